// What the AVX2 translation units share.
#pragma once

#include <immintrin.h>

#include <limits>

#include "matrix.h"

namespace tailcut::avx2 {

inline bool integer(const Matrix& w) { return w.kind == Kind::i8 || w.kind == Kind::i4; }

// Above this many rows of x a matrix is not read with a few of them at a time any more (from cache) but once for all:
// slots by places with rows of x side by side (avx2_slots_lanes.h), other formats by panels (avx2_panel.h), and so slots
// with eight places a window where there are so many rows that expanding them is paid back (Zen 3, half of the weights
// left, one thread: panels take 25 ms and 0.18 a row, places 0.30 a row).
constexpr int64_t kSlotsRows = 9, kEightPlaces = 200, kDensePasses = 12, kMaskPasses = 6;

// Whether the kernels want x in lanes of int16 (panels) rather than as int8 and its absolute values (one row at a time).
inline bool wide(const Matrix& w, int64_t m) {
  if (w.format == Format::slots) return m > kEightPlaces && w.data[0] == 8;
  return m > (w.format == Format::dense ? kDensePasses : kMaskPasses);
}

inline bool by_places(const Matrix& w, int64_t m) { return w.format == Format::slots && m > kSlotsRows && !wide(w, m); }

// Whether the kernels want x8 split: dense i4, where one byte of weights is two columns.
inline bool split(const Matrix& w, int64_t m) { return w.kind == Kind::i4 && w.format == Format::dense && !wide(w, m); }

// What `prepare` leaves of one row of x: x8 (wide: see avx2_panel.h), with room behind it. Columns are padded with zeros to blocks.
// Split: x8 with the even columns of each block in front of the odd ones, and in that room 8 times the sum of each group's columns,
// shared out to eight lanes as the kernel adds them.
struct Activations {
  const float* scales;  // [groups]
  bool bad;             // a NaN or an infinity was among them
  const int8_t* x8;
  const int32_t* eights;  // [groups, 8]
};

// A product under way: m rows of x, prepared in `scratch`.
struct Job {
  const Matrix& w;
  const uint8_t* scratch;
  int64_t m;
  float* y;
  int64_t ldy;
};

inline size_t header_bytes(const Matrix& w) { return static_cast<size_t>((w.groups * 4 + 4 + 63) / 64 * 64); }
inline size_t activation_bytes(const Matrix& w) {  // x8, and as much for `eights`
  return header_bytes(w) + static_cast<size_t>(w.blocks * kBlock * 2);
}

inline Activations activations(const Matrix& w, const uint8_t* scratch, int64_t i) {
  const uint8_t* at = scratch + static_cast<size_t>(i) * activation_bytes(w);
  const uint8_t* columns = at + header_bytes(w);
  const auto* scales = reinterpret_cast<const float*>(at);
  return {scales, scales[w.groups] != 0.0f, reinterpret_cast<const int8_t*>(columns),
          reinterpret_cast<const int32_t*>(columns + w.blocks * kBlock)};
}

// Rows of y whose x held a NaN or an infinity, which int8 cannot say.
inline void void_bad_rows(const Matrix& w, const uint8_t* scratch, int64_t m, float* y, int64_t ldy, int64_t row0,
                          int64_t row1) {
  for (int64_t i = 0; i < m; ++i)
    if (activations(w, scratch, i).bad)
      for (int64_t row = row0; row < row1; ++row) y[i * ldy + row] = std::numeric_limits<float>::quiet_NaN();
}

void prepare(const Matrix& w, const float* x, int64_t m, int64_t first, int64_t last, uint8_t* scratch);

// i8 and i4, formats bitmask and dense: m rows of x (narrow).
void int_gemv(const Matrix& w, const uint8_t* scratch, int64_t m, float* y, int64_t ldy, int64_t row0, int64_t row1);
// i8 and i4 slots: one row of x (narrow).
void slots_gemv(const Matrix& w, const uint8_t* scratch, float* y, int64_t row0, int64_t row1);
// The same with two or more rows of x, each part of the matrix read once.
void slots_rows(const Matrix& w, const uint8_t* scratch, int64_t m, float* y, int64_t ldy, int64_t row0, int64_t row1);
// All of i8 and i4 for any m.
void int_compute(const Matrix& w, const uint8_t* scratch, int64_t m, float* y, int64_t ldy, int64_t row0, int64_t row1);

inline float sum_lanes(__m256 v) {
  __m128 s = _mm_add_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1));
  s = _mm_add_ps(s, _mm_movehl_ps(s, s));
  return _mm_cvtss_f32(_mm_add_ss(s, _mm_movehdup_ps(s)));
}

}  // namespace tailcut::avx2
