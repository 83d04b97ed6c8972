// exp of eight values <= 0 in parts, for the AVX2 kernels that finish it in their own ways.
#pragma once

#include <immintrin.h>

#include "exp_terms.h"

namespace tailcut::avx2 {

// exp(z) = p 2^k for z in [-208, 0], 0.7 < p < 1.5; k as an integer.
inline __m256 exp_parts(__m256 z, __m256i* k) {
  const __m256 whole =
      _mm256_round_ps(_mm256_mul_ps(z, _mm256_set1_ps(kLog2E)), _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
  *k = _mm256_cvtps_epi32(whole);
  __m256 r = _mm256_fnmadd_ps(whole, _mm256_set1_ps(kLn2High), z);
  r = _mm256_fnmadd_ps(whole, _mm256_set1_ps(kLn2Low), r);
  __m256 p = _mm256_set1_ps(kExpTerms[0]);
#pragma GCC unroll 8
  for (int i = 1; i < kExpTermCount; ++i) p = _mm256_fmadd_ps(p, r, _mm256_set1_ps(kExpTerms[i]));
  return p;
}

// 2^k for -126 <= k <= 127.
inline __m256 power(__m256i k) {
  return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_add_epi32(k, _mm256_set1_epi32(127)), 23));
}

}  // namespace tailcut::avx2
