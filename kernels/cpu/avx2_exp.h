// exp of eight values <= 0 in parts, for the AVX2 kernels that finish it in their own ways.
#pragma once

#include <immintrin.h>

#include <initializer_list>

namespace tailcut::avx2 {

// exp(z) = p 2^k for z in [-208, 0], 0.7 < p < 1.5; k as an integer.
inline __m256 exp_parts(__m256 z, __m256i* k) {
  const __m256 whole =
      _mm256_round_ps(_mm256_mul_ps(z, _mm256_set1_ps(1.44269504f)), _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
  *k = _mm256_cvtps_epi32(whole);
  // ln 2 in two parts, the first with so few bits that its product with k is exact
  __m256 r = _mm256_fnmadd_ps(whole, _mm256_set1_ps(0.693359375f), z);
  r = _mm256_fnmadd_ps(whole, _mm256_set1_ps(-2.12194440e-4f), r);
  // |r| <= ln 2 / 2: Taylor's terms up to r^7 leave 5e-9
  __m256 p = _mm256_set1_ps(1.0f / 5040);
  for (const float term : {1.0f / 720, 1.0f / 120, 1.0f / 24, 1.0f / 6, 0.5f, 1.0f, 1.0f}) {
    p = _mm256_fmadd_ps(p, r, _mm256_set1_ps(term));
  }
  return p;
}

// 2^k for -126 <= k <= 127.
inline __m256 power(__m256i k) {
  return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_add_epi32(k, _mm256_set1_epi32(127)), 23));
}

}  // namespace tailcut::avx2
