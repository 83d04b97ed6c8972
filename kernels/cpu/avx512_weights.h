// Rows of i8 and i4 matrices, 64 columns at a time, as unsigned bytes (weight + offset; nothing there: the offset).
#pragma once

#include "avx512.h"
#include "avx512_vector.h"

namespace tailcut {
namespace {

struct MaskedBytes {
  static constexpr bool group_scales = false;
  const uint8_t* mask = nullptr;
  const uint8_t* values = nullptr;
  MaskedBytes() = default;
  MaskedBytes(const Matrix& w, int64_t row) : mask(w.data + w.row_start[row]), values(mask + w.blocks * 8) {}
  void ask(int64_t bytes) const { prefetch(mask), prefetch(mask + 64), prefetch_lines(values, bytes); }
  void ask_mask(int64_t ahead) const { prefetch(mask + ahead); }
  Ints next() {
    const uint64_t word = read_u64(mask);
    const Ints bytes = expand_bytes(all_bytes(128), word, load_ints(values));
    values += count_bits(word), mask += 8;
    return bytes;
  }
};

struct DenseBytes {
  static constexpr bool group_scales = false;
  const uint8_t* values = nullptr;
  DenseBytes() = default;
  DenseBytes(const Matrix& w, int64_t row) : values(w.data + w.row_start[row]) {}
  void ask(int64_t bytes) const { prefetch_lines(values, bytes); }
  void ask_mask(int64_t) const {}
  Ints next() {
    const Ints bytes = load_ints(values);
    values += 64;
    return bytes;
  }
};

struct MaskedNibbles {
  static constexpr bool group_scales = true;
  const uint8_t* mask = nullptr;
  const uint8_t* values = nullptr;
  MaskedNibbles() = default;
  MaskedNibbles(const Matrix& w, int64_t row) : mask(w.data + w.row_start[row]), values(mask + w.blocks * 8) {}
  void ask(int64_t bytes) const { prefetch(mask), prefetch(mask + 64), prefetch_lines(values, bytes); }
  void ask_mask(int64_t ahead) const { prefetch(mask + ahead); }
  Ints next() {
    const uint64_t word = read_u64(mask);
    const Ints bytes = expand_bytes(all_bytes(8), word, unpack_nibbles(values));
    values += (count_bits(word) + 1) / 2, mask += 8;
    return bytes;
  }
};

struct DenseNibbles {
  static constexpr bool group_scales = true;
  const uint8_t* values = nullptr;
  DenseNibbles() = default;
  DenseNibbles(const Matrix& w, int64_t row) : values(w.data + w.row_start[row]) {}
  void ask(int64_t bytes) const { prefetch_lines(values, bytes); }
  void ask_mask(int64_t) const {}
  Ints next() {
    const Ints bytes = unpack_nibbles(values);
    values += 32;
    return bytes;
  }
};

// Calls action(Weights{}) with the type that reads this matrix.
template <class Action>
inline void with_weights(const Matrix& w, Action action) {
  if (w.kind == Kind::i8 && masked(w)) action(MaskedBytes{});
  else if (w.kind == Kind::i8) action(DenseBytes{});
  else if (masked(w)) action(MaskedNibbles{});
  else action(DenseNibbles{});
}

}  // namespace
}  // namespace tailcut
