// Activations of i8 and i4 matrices: int8 in groups of kGroup columns, in one of two arrangements.
//
//   rows   for few rows of x: per row groups * 128 int8, then starts [groups][16], then scales [groups]. A start is
//          what an int32 sum must begin with so that weights stored with an offset come out right: -offset * (sum of the
//          int8 that the sum is over); one for each lane of the vector, so that every lane is exact by itself.
//   tiles  for many rows: per 16 rows of x, per block of 64 columns 1 KB: [16 fours of columns][16 rows][4 columns],
//          the order of VPDPBUSD and of an AMX tile; then scales [groups][16], then starts [groups][16].
//
// A group that holds a NaN or an infinity gets the scale NaN, which makes the row's outputs NaN.
#pragma once

#include "avx512.h"
#include "avx512_vector.h"

namespace tailcut {
namespace {

struct GroupSum {
  float scale;
  int32_t sum;
};

inline int32_t weight_offset(const Matrix& w) { return w.kind == Kind::i4 ? 8 : 128; }
inline int64_t row_stride(const Matrix& w) {  // an odd number of cache lines: rows must not share cache sets
  const int64_t lines = (w.groups * (kGroup + 64 + 4) + 63) / 64;
  return (lines | 1) * 64;
}
inline int64_t tile_stride(const Matrix& w) { return w.blocks * 1024 + w.groups * 128; }
inline int64_t tiles_of(int64_t m) { return (m + 15) / 16; }

inline float float_of_bits(uint32_t bits) {
  float value;
  std::memcpy(&value, &bits, 4);
  return value;
}

// `count` floats at x (at most 128) to 128 int8 at q; returns the scale and the sum of the int8.
inline GroupSum quantise_group(const float* x, int64_t count, uint8_t* q) {
  Floats v[8];
  Ints top = zero_ints();
  TAILCUT_UNROLL for (int k = 0; k < 8; ++k) {
    v[k] = load_some(x + 16 * k, lanes_of(count - 16 * k));
    top = max_unsigned(top, and_bits(as_ints(v[k]), all_ints(0x7fffffff)));
  }
  const uint32_t bits = largest_unsigned(top);  // bits of |x| order like |x|; NaN lies above infinity
  const float largest = float_of_bits(bits);
  const bool finite = bits < 0x7f800000u;
  const float inverse = bits && finite ? 127.0f / largest : 0.0f;
  if (!(inverse > 0.0f && inverse < float_of_bits(0x7f800000u))) {  // all zero, denormal (counts as zero) or not finite
    store_ints(q, zero_ints());
    store_ints(q + 64, zero_ints());
    return {finite ? 0.0f : float_of_bits(0x7fc00000u), 0};
  }
  Ints total = zero_ints();
  TAILCUT_UNROLL for (int k = 0; k < 8; ++k) {
    const Ints rounded = round_to_ints(mul(v[k], all(inverse)));
    total = add_ints(total, rounded);
    store_low_bytes(q + 16 * k, rounded);
  }
  return {largest / 127.0f, sum_ints(total)};
}

inline uint8_t* row_starts(const Matrix& w, uint8_t* row) { return row + w.groups * kGroup; }
inline uint8_t* row_scales(const Matrix& w, uint8_t* row) { return row + w.groups * (kGroup + 64); }

inline void quantise_row(const Matrix& w, const float* x, uint8_t* to) {
  const Ints offset = all_bytes(static_cast<uint8_t>(weight_offset(w)));
  for (int64_t g = 0; g < w.groups; ++g) {
    uint8_t* q = to + g * kGroup;
    const GroupSum s = quantise_group(x + g * kGroup, smaller(w.cols - g * kGroup, kGroup), q);
    std::memcpy(row_scales(w, to) + 4 * g, &s.scale, 4);
    const Ints shifted = dot_bytes(dot_bytes(zero_ints(), offset, load_ints(q)), offset, load_ints(q + 64));
    store_ints(row_starts(w, to) + 64 * g, sub_ints(zero_ints(), shifted));
  }
}

inline void quantise_rows(const Matrix& w, const float* x, int64_t m, int64_t first, int64_t last, uint8_t* scratch) {
  for (int64_t i = first; i < last; ++i) quantise_row(w, x + i * w.cols, scratch + i * row_stride(w));
  if (last < m) return;
  for (int64_t i = m; i < avx512::padded_rows(m); ++i)
    std::memset(scratch + i * row_stride(w), 0, static_cast<size_t>(row_stride(w)));
}

// One group of rows [first, last) of a tile, rows counted from the tile's first; lanes: what may be written.
inline void quantise_tile_group(const Matrix& w, const float* x, int first, int last, uint16_t lanes, int64_t g,
                                uint8_t* tile) {
  alignas(64) uint8_t q[16][kGroup];
  alignas(64) float scales[16] = {0};
  alignas(64) int32_t starts[16] = {0};
  std::memset(q, 0, sizeof q);
  for (int i = first; i < last; ++i) {
    const float* from = x + (i - first) * w.cols + g * kGroup;
    const GroupSum s = quantise_group(from, smaller(w.cols - g * kGroup, kGroup), q[i]);
    scales[i] = s.scale, starts[i] = -weight_offset(w) * s.sum;
  }
  const int64_t blocks = smaller(2, w.blocks - 2 * g);
  for (int64_t b = 0; b < blocks; ++b) {
    Floats columns[16];
    TAILCUT_UNROLL for (int i = 0; i < 16; ++i) columns[i] = as_floats(load_ints(q[i] + 64 * b));
    transpose(columns);
    uint8_t* to = tile + (2 * g + b) * 1024;
    TAILCUT_UNROLL for (int k = 0; k < 16; ++k) store_ints_some(to + 64 * k, lanes, as_ints(columns[k]));
  }
  uint8_t* sums = tile + w.blocks * 1024;
  store_ints_some(sums + g * 64, lanes, load_ints(scales));
  store_ints_some(sums + (w.groups + g) * 64, lanes, load_ints(starts));
}

inline void quantise_tiles(const Matrix& w, const float* x, int64_t m, int64_t first, int64_t last, uint8_t* scratch) {
  for (int64_t i = first; i < last;) {
    const int64_t tile = i / 16, stop = smaller(last, (tile + 1) * 16);
    const uint16_t lanes = lanes_between(i % 16, stop - tile * 16, stop == m);
    for (int64_t g = 0; g < w.groups; ++g)
      quantise_tile_group(w, x + i * w.cols, static_cast<int>(i % 16), static_cast<int>(stop - tile * 16), lanes, g,
                          scratch + tile * tile_stride(w));
    i = stop;
  }
}

}  // namespace
}  // namespace tailcut
