// Rows of f32, f16 and bf16 matrices, 64 columns at a time, as four vectors of 16 float32 (bf16: even and odd columns
// of each 32 in turn, which saves the shuffles; x is arranged alike by `arrange_block`).
#pragma once

#include "avx512.h"
#include "avx512_vector.h"

namespace tailcut {
namespace {

struct Masked32 {
  static constexpr Kind kind = Kind::f32;
  const uint8_t* mask = nullptr;
  const uint8_t* values = nullptr;
  Masked32() = default;
  Masked32(const Matrix& w, int64_t row) : mask(w.data + w.row_start[row]), values(mask + w.blocks * 8) {}
  void ask_mask(int64_t ahead) const { prefetch(mask + ahead); }
  void next(Floats* out) {
    const uint64_t word = read_u64(mask);
    TAILCUT_UNROLL for (int j = 0; j < 4; ++j) {
      const uint16_t bits = static_cast<uint16_t>(word >> 16 * j);
      out[j] = expand_floats(bits, values);
      values += 4 * count_bits(bits);
    }
    mask += 8;
  }
};

struct Dense32 {
  static constexpr Kind kind = Kind::f32;
  const uint8_t* values = nullptr;
  Dense32() = default;
  Dense32(const Matrix& w, int64_t row) : values(w.data + w.row_start[row]) {}
  void ask_mask(int64_t) const {}
  void next(Floats* out) {
    TAILCUT_UNROLL for (int j = 0; j < 4; ++j) out[j] = as_floats(load_ints(values + 64 * j));
    values += 256;
  }
};

template <Kind kKind>
inline void halves_to_floats(Ints halves, Floats* out) {
  out[0] = kKind == Kind::bf16 ? low_bfloats(halves) : first_halves(halves);
  out[1] = kKind == Kind::bf16 ? high_bfloats(halves) : last_halves(halves);
}

template <Kind kKind>
struct Masked16 {
  static constexpr Kind kind = kKind;
  const uint8_t* mask = nullptr;
  const uint8_t* values = nullptr;
  Masked16() = default;
  Masked16(const Matrix& w, int64_t row) : mask(w.data + w.row_start[row]), values(mask + w.blocks * 8) {}
  void ask_mask(int64_t ahead) const { prefetch(mask + ahead); }
  void next(Floats* out) {
    const uint64_t word = read_u64(mask);
    TAILCUT_UNROLL for (int j = 0; j < 2; ++j) {
      const uint32_t bits = static_cast<uint32_t>(word >> 32 * j);
      halves_to_floats<kKind>(expand_halves(bits, values), out + 2 * j);
      values += 2 * count_bits(bits);
    }
    mask += 8;
  }
};

template <Kind kKind>
struct Dense16 {
  static constexpr Kind kind = kKind;
  const uint8_t* values = nullptr;
  Dense16() = default;
  Dense16(const Matrix& w, int64_t row) : values(w.data + w.row_start[row]) {}
  void ask_mask(int64_t) const {}
  void next(Floats* out) {
    TAILCUT_UNROLL for (int j = 0; j < 2; ++j) halves_to_floats<kKind>(load_ints(values + 64 * j), out + 2 * j);
    values += 128;
  }
};

// 16 values in a row, as float32.
template <Kind kKind>
inline Floats sixteen(const uint8_t* at) {
  if (kKind == Kind::f32) return as_floats(load_ints(at));
  return kKind == Kind::bf16 ? widen_bfloats(at) : widen_halves(at);
}
constexpr int64_t size_of(Kind kind) { return kind == Kind::f32 ? 4 : 2; }

// 64 columns of x in the order in which the weights of this kind come.
inline void arrange_block(const Matrix& w, const float* x, int64_t left, float* to) {
  Floats v[4];
  TAILCUT_UNROLL for (int j = 0; j < 4; ++j) v[j] = load_some(x + 16 * j, lanes_of(left - 16 * j));
  if (w.kind == Kind::bf16)
    TAILCUT_UNROLL for (int j = 0; j < 4; j += 2) {
      const Floats even = even_floats(v[j], v[j + 1]), odd = odd_floats(v[j], v[j + 1]);
      v[j] = even, v[j + 1] = odd;
    }
  TAILCUT_UNROLL for (int j = 0; j < 4; ++j) store(to + 16 * j, v[j]);
}

// For few rows of x: [padded_rows(m)][few_stride] floats. For many: lane groups of up to 64 rows of x, each
// [columns][lanes] floats, lanes a multiple of 16; a group starts at 64 * its number * columns. Behind them a byte for
// each row of x: 1 if all of it is finite.
inline int64_t few_stride(const Matrix& w) { return w.blocks * kBlock + 16; }  // rows must not share cache sets
inline int64_t columns_of(const Matrix& w) { return w.blocks * kBlock; }
inline int64_t lanes_floats(const Matrix& w, int64_t m) { return (m + 15) / 16 * 16 * columns_of(w); }

inline bool all_finite(const float* x, int64_t count) {
  Ints top = zero_ints();
  for (int64_t k = 0; k < count; k += 16)
    top = max_unsigned(top, and_bits(as_ints(load_some(x + k, lanes_of(count - k))), all_ints(0x7fffffff)));
  return largest_unsigned(top) < 0x7f800000u;
}

}  // namespace
}  // namespace tailcut
