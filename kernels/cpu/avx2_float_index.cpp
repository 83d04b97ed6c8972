// The index format with one row of x: sixteen rows of weights side by side, each lane at its own column.
#if defined(__AVX2__)
#include "index.h"

#include "avx2_expand.h"
#include "avx2_float.h"

namespace tailcut::avx2 {
namespace {

// x at eight columns. Eight loads and inserts: the gather instruction of most AVX2 processors is slower than that.
inline __m256 gather8(const float* x, __m256i columns) {
  const __m128i low = _mm256_castsi256_si128(columns), high = _mm256_extracti128_si256(columns, 1);
  const uint64_t c01 = uint64_t(_mm_cvtsi128_si64(low)), c23 = uint64_t(_mm_extract_epi64(low, 1));
  const uint64_t c45 = uint64_t(_mm_cvtsi128_si64(high)), c67 = uint64_t(_mm_extract_epi64(high, 1));
  __m128 a = _mm_load_ss(x + uint32_t(c01)), b = _mm_load_ss(x + uint32_t(c45));
  a = _mm_insert_ps(a, _mm_load_ss(x + (c01 >> 32)), 0x10);
  b = _mm_insert_ps(b, _mm_load_ss(x + (c45 >> 32)), 0x10);
  a = _mm_insert_ps(a, _mm_load_ss(x + uint32_t(c23)), 0x20);
  b = _mm_insert_ps(b, _mm_load_ss(x + uint32_t(c67)), 0x20);
  a = _mm_insert_ps(a, _mm_load_ss(x + (c23 >> 32)), 0x30);
  b = _mm_insert_ps(b, _mm_load_ss(x + (c67 >> 32)), 0x30);
  return _mm256_set_m128(b, a);
}

inline __m256i advance(__m256i columns, const uint8_t* deltas) {
  const __m128i bytes = _mm_loadl_epi64(reinterpret_cast<const __m128i*>(deltas));
  return _mm256_add_epi32(columns, _mm256_cvtepu8_epi32(bytes));
}

template <Kind K>
void slice(const uint8_t* group, const uint8_t* end, const float* x, float* sums) {
  constexpr int64_t kBytes = int64_t(index_group_bytes(K));
  __m256i columns0 = _mm256_setzero_si256(), columns1 = columns0;
  __m256 sum0 = _mm256_setzero_ps(), sum1 = sum0;
  for (; group < end; group += kBytes) {
    for (int64_t line = 0; line < kBytes; line += 64) prefetch(group + kAhead + line);
    const uint8_t* values = group + kIndexSteps * kTile;
#pragma GCC unroll 4
    for (int step = 0; step < kIndexSteps; ++step) {
      columns0 = advance(columns0, group + step * kTile);
      columns1 = advance(columns1, group + step * kTile + 8);
      sum0 = _mm256_fmadd_ps(gather8(x, columns0), load8<K>(values + step * kTile * kWidth<K>), sum0);
      sum1 = _mm256_fmadd_ps(gather8(x, columns1), load8<K>(values + (step * kTile + 8) * kWidth<K>), sum1);
    }
  }
  _mm256_storeu_ps(sums, sum0);
  _mm256_storeu_ps(sums + 8, sum1);
}

template <Kind K>
void slots(const Matrix& w, const float* x, int64_t m, float* y, int64_t ldy, int64_t slot0, int64_t slot1) {
  const uint32_t* order = index_order(w);
  for (int64_t first = slot0; first < slot1; first += kTile) {
    const uint64_t* start = w.row_start + first / kTile;
    const int64_t count = slot1 - first < kTile ? slot1 - first : kTile;
    for (int64_t i = 0; i < m; ++i) {  // the slice stays in the cache
      float sums[kTile];
      slice<K>(w.data + start[0], w.data + start[1], x + i * w.cols, sums);
      for (int64_t lane = 0; lane < count; ++lane) y[i * ldy + order[first + lane]] = sums[lane];
    }
  }
}

// 0 * x is 0 for every finite x and NaN for the others.
bool all_finite(const float* x, int64_t count) {
  __m256 sum = _mm256_setzero_ps();
  int64_t at = 0;
  for (; at + 8 <= count; at += 8) sum = _mm256_fmadd_ps(_mm256_loadu_ps(x + at), _mm256_setzero_ps(), sum);
  float rest = sum8(sum);
  for (; at < count; ++at) rest += 0.0f * x[at];
  return rest == 0.0f;
}

void finite_rows(const Matrix& w, const float* x, int64_t m, float* y, int64_t ldy, int64_t slot0, int64_t slot1) {
  switch (w.kind) {
    case Kind::f32: return slots<Kind::f32>(w, x, m, y, ldy, slot0, slot1);
    case Kind::f16: return slots<Kind::f16>(w, x, m, y, ldy, slot0, slot1);
    default: return slots<Kind::bf16>(w, x, m, y, ldy, slot0, slot1);
  }
}

}  // namespace

// Rows of x that are not finite are multiplied by expanded weights, where columns that were dropped count.
void float_index(const Matrix& w, const float* x, int64_t m, float* y, int64_t ldy, int64_t row0, int64_t row1) {
  for (int64_t i = 0, stop; i < m; i = stop) {
    const bool finite = all_finite(x + i * w.cols, w.cols);
    for (stop = i + 1; stop < m && all_finite(x + stop * w.cols, w.cols) == finite;) ++stop;
    const float* rows = x + i * w.cols;
    if (finite) finite_rows(w, rows, stop - i, y + i * ldy, ldy, row0, row1);
    else float_panels(w, rows, nullptr, stop - i, y + i * ldy, ldy, row0, row1);
  }
}

}  // namespace tailcut::avx2
#endif
