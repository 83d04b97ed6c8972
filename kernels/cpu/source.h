// Checks of what a package claims about a matrix, before anything is allocated or read.
#pragma once

#include <cstring>
#include <string>
#include <vector>

#include "matrix.h"

namespace tailcut {

struct Counted {
  int64_t nonzeros = 0;                  // entries with a mask bit, rows * cols without a mask
  std::vector<uint64_t> values_before;   // [rows + 1] entries before each row; empty without a mask
};

inline int64_t value_bits(Kind kind) {
  return kind == Kind::f32 ? 32 : kind == Kind::i8 ? 8 : kind == Kind::i4 ? 4 : 16;
}

// The 64 mask bits of one block of a row, zero beyond the row's mask bytes.
inline uint64_t mask_word(const Source& s, int64_t row, int64_t block) {
  const int64_t width = (s.cols + 7) / 8, left = width - block * 8;
  const uint8_t* at = s.mask + row * width + block * 8;
  uint64_t word = 0;
  if (left >= 8) std::memcpy(&word, at, 8);
  else if (left > 0) std::memcpy(&word, at, static_cast<size_t>(left));
  return word;
}

// Bits that are set in each of a word's eight bytes. (The instruction that counts bits is not in every processor.)
inline uint64_t bits_by_byte(uint64_t x) {
  x -= x >> 1 & 0x5555555555555555u;
  x = (x & 0x3333333333333333u) + (x >> 2 & 0x3333333333333333u);
  return (x + (x >> 4)) & 0x0f0f0f0f0f0f0f0fu;
}
inline int64_t count_bits(uint64_t x) { return static_cast<int64_t>(bits_by_byte(x) * 0x0101010101010101u >> 56); }

// True and *counted if every length fits, every padding bit is 0 and the mask counts as many entries as there are
// values; else false and a sentence in *error.
bool check(const Source& source, Counted* counted, std::string* error);

}  // namespace tailcut
