// Checks of what a package claims about a matrix, before anything is allocated or read.
#pragma once

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
uint64_t mask_word(const Source& source, int64_t row, int64_t block);

// True and *counted if every length fits, every padding bit is 0 and the mask counts as many entries as there are
// values; else false and a sentence in *error.
bool check(const Source& source, Counted* counted, std::string* error);

}  // namespace tailcut
