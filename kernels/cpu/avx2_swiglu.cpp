// silu(gate) * up, eight at a time.
//
// With t = exp(-|g|) in (0, 1], silu(g) = g / (1 + t) for g >= 0 and g t / (1 + t) below: nothing overflows. t underflows
// where the product with a large `up` would not, so for g < 0 it is kept as p 2^k, 0.7 < p < 1.5, and the power of two
// is multiplied in as three factors that are normal numbers each, the first before and the others after `up`.
#include "swiglu.h"

#if defined(__AVX2__)
#include "avx2_exp.h"

namespace tailcut::avx2 {
namespace {

inline __m256 constant(float value) { return _mm256_set1_ps(value); }

inline __m256 magnitude(__m256 v) { return _mm256_andnot_ps(constant(-0.0f), v); }

inline __m256 swiglu8(__m256 given, __m256 up) {
  // below -208 even 208 exp(-208) times the largest number is 0; a NaN, as the second operand, stays
  const __m256 lowest = constant(-208.0f), gate = _mm256_max_ps(lowest, given);
  __m256i k;
  const __m256 p = exp_parts(_mm256_max_ps(_mm256_or_ps(gate, constant(-0.0f)), lowest), &k);
  const __m256 t = _mm256_mul_ps(p, power(_mm256_max_epi32(k, _mm256_set1_epi32(-126))));
  const __m256 negative = _mm256_cmp_ps(gate, _mm256_setzero_ps(), _CMP_LT_OQ);
  const __m256i own = _mm256_and_si256(k, _mm256_castps_si256(negative));  // k, or 0 where g >= 0
  const __m256i most = _mm256_set1_epi32(-100);
  const __m256i k1 = _mm256_max_epi32(own, most), left = _mm256_sub_epi32(own, k1);
  const __m256i k2 = _mm256_max_epi32(left, most);
  const __m256 third = power(_mm256_sub_epi32(left, k2));
  const __m256 factor = _mm256_mul_ps(_mm256_blendv_ps(gate, _mm256_mul_ps(gate, p), negative), power(k1));
  // the larger of the two is divided: halving a number below the normal ones would cost a bit of it
  const __m256 swapped = _mm256_cmp_ps(magnitude(factor), magnitude(up), _CMP_LT_OQ);
  const __m256 large = _mm256_blendv_ps(factor, up, swapped), small = _mm256_blendv_ps(up, factor, swapped);
  const __m256 product = _mm256_mul_ps(_mm256_div_ps(large, _mm256_add_ps(constant(1.0f), t)), small);
  // all bits set are a NaN, which is what the formula has for -inf
  const __m256 limitless = _mm256_cmp_ps(given, constant(-__builtin_inff()), _CMP_EQ_OQ);
  return _mm256_or_ps(_mm256_mul_ps(_mm256_mul_ps(product, power(k2)), third), limitless);
}

}  // namespace

int64_t swiglu_vectors(const float* gate, const float* up, int64_t n, float* out) {
  int64_t j = 0;
  for (; j + 8 <= n; j += 8) {
    _mm256_storeu_ps(out + j, swiglu8(_mm256_loadu_ps(gate + j), _mm256_loadu_ps(up + j)));
  }
  return j;
}

}  // namespace tailcut::avx2
#else
namespace tailcut::avx2 {
int64_t swiglu_vectors(const float*, const float*, int64_t, float*) { return 0; }
}  // namespace tailcut::avx2
#endif
