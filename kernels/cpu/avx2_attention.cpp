// The inner loops of attention on AVX2.

#if defined(__AVX2__)

#include <cstring>

#include "attention.h"
#include "avx2.h"
#include "avx2_exp.h"

namespace tailcut {
namespace avx2 {
namespace {

// exp of eight values <= 0 (NaN stays NaN); 0 where it would be subnormal.
__m256 exponential(__m256 x) {
  const __m256 lowest = _mm256_set1_ps(kExpLowest);
  __m256i k;
  const __m256 p = exp_parts(_mm256_max_ps(lowest, x), &k);  // a NaN, as the second operand, stays
  const __m256 value = _mm256_mul_ps(p, power(_mm256_max_epi32(k, _mm256_set1_epi32(-126))));
  return _mm256_andnot_ps(_mm256_cmp_ps(x, lowest, _CMP_LT_OQ), value);
}

// Eight sums side by side: lane i of the result is the sum of rows[i].
__m256 sum_each(const __m256* rows) {
  const __m256 a = _mm256_hadd_ps(_mm256_hadd_ps(rows[0], rows[1]), _mm256_hadd_ps(rows[2], rows[3]));
  const __m256 b = _mm256_hadd_ps(_mm256_hadd_ps(rows[4], rows[5]), _mm256_hadd_ps(rows[6], rows[7]));
  return _mm256_add_ps(_mm256_permute2f128_ps(a, b, 0x20), _mm256_permute2f128_ps(a, b, 0x31));
}

void scores(const float* query, const float* keys, int64_t dim, int64_t count, float* out) {
  int64_t i = 0;
  for (; i + 8 <= count; i += 8) {
    __m256 sums[8];
    for (__m256& s : sums) s = _mm256_setzero_ps();
    for (int64_t j = 0; j < dim; j += 8) {
      const __m256 q = _mm256_loadu_ps(query + j);
      for (int k = 0; k < 8; ++k) sums[k] = _mm256_fmadd_ps(q, _mm256_loadu_ps(keys + (i + k) * dim + j), sums[k]);
    }
    _mm256_storeu_ps(out + i, sum_each(sums));
  }
  for (; i < count; ++i) {  // the same order of additions as above, for one row
    __m256 rows[8];
    for (__m256& r : rows) r = _mm256_setzero_ps();
    for (int64_t j = 0; j < dim; j += 8)
      rows[0] = _mm256_fmadd_ps(_mm256_loadu_ps(query + j), _mm256_loadu_ps(keys + i * dim + j), rows[0]);
    out[i] = _mm256_cvtss_f32(sum_each(rows));
  }
}

float largest(const float* scores, int64_t count) {
  __m256 top = _mm256_set1_ps(scores[0]), bad = _mm256_cmp_ps(top, top, _CMP_UNORD_Q);
  int64_t i = 0;
  for (; i + 8 <= count; i += 8) {
    const __m256 here = _mm256_loadu_ps(scores + i);
    bad = _mm256_or_ps(bad, _mm256_cmp_ps(here, here, _CMP_UNORD_Q));
    top = _mm256_max_ps(top, here);
  }
  __m128 most = _mm_max_ps(_mm256_castps256_ps128(top), _mm256_extractf128_ps(top, 1));
  most = _mm_max_ps(most, _mm_movehl_ps(most, most));
  float found = _mm_cvtss_f32(_mm_max_ss(most, _mm_movehdup_ps(most)));
  bool any = _mm256_movemask_ps(bad) != 0;
  for (; i < count; ++i) {
    any |= scores[i] != scores[i];
    if (scores[i] > found) found = scores[i];
  }
  return any ? __builtin_nanf("") : found;
}

float exponentials(float* weights, int64_t count, float top) {
  const __m256 high = _mm256_set1_ps(top);
  __m256 sum = _mm256_setzero_ps();
  int64_t i = 0;
  for (; i + 8 <= count; i += 8) {
    const __m256 e = exponential(_mm256_sub_ps(_mm256_loadu_ps(weights + i), high));
    _mm256_storeu_ps(weights + i, e);
    sum = _mm256_add_ps(sum, e);
  }
  if (i < count) {
    float rest[8] = {0, 0, 0, 0, 0, 0, 0, 0};
    std::memcpy(rest, weights + i, static_cast<size_t>(count - i) * sizeof(float));
    const __m256i lane = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
    const __m256i there = _mm256_cmpgt_epi32(_mm256_set1_epi32(static_cast<int>(count - i)), lane);
    const __m256 e = _mm256_and_ps(exponential(_mm256_sub_ps(_mm256_loadu_ps(rest), high)), _mm256_castsi256_ps(there));
    _mm256_storeu_ps(rest, e);
    std::memcpy(weights + i, rest, static_cast<size_t>(count - i) * sizeof(float));
    sum = _mm256_add_ps(sum, e);
  }
  return sum_lanes(sum);
}

// `lanes` vectors of channels at a time stay in registers over all positions.
template <int lanes>
void accumulate_channels(const float* weights, const float* values, int64_t dim, int64_t count, float keep, float* out) {
  __m256 sums[lanes];
  for (int k = 0; k < lanes; ++k) sums[k] = _mm256_mul_ps(_mm256_loadu_ps(out + 8 * k), _mm256_set1_ps(keep));
  for (int64_t i = 0; i < count; ++i) {
    const __m256 w = _mm256_set1_ps(weights[i]);
    for (int k = 0; k < lanes; ++k) sums[k] = _mm256_fmadd_ps(w, _mm256_loadu_ps(values + i * dim + 8 * k), sums[k]);
  }
  for (int k = 0; k < lanes; ++k) _mm256_storeu_ps(out + 8 * k, sums[k]);
}

void accumulate(const float* weights, const float* values, int64_t dim, int64_t count, float keep, float* out) {
  int64_t j = 0;
  for (; j + 64 <= dim; j += 64) accumulate_channels<8>(weights, values + j, dim, count, keep, out + j);
  for (; j < dim; j += 8) accumulate_channels<1>(weights, values + j, dim, count, keep, out + j);
}

void widen(const uint16_t* from, int64_t count, float* to) {
  for (int64_t i = 0; i < count; i += 8)
    _mm256_storeu_ps(to + i, _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(from + i))));
}

void narrow(const float* from, int64_t count, uint16_t* to) {
  constexpr int nearest = _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC;
  for (int64_t i = 0; i < count; i += 8)
    _mm_storeu_si128(reinterpret_cast<__m128i*>(to + i), _mm256_cvtps_ph(_mm256_loadu_ps(from + i), nearest));
}

}  // namespace
}  // namespace avx2

const AttentionKernels* avx2_attention() {
  static const AttentionKernels table{avx2::scores,     avx2::largest, avx2::exponentials,
                                      avx2::accumulate, avx2::widen,   avx2::narrow};
  return &table;
}

}  // namespace tailcut

#else

#include "attention.h"

namespace tailcut {
const AttentionKernels* avx2_attention() { return nullptr; }
}  // namespace tailcut

#endif
