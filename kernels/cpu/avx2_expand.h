// Eight weights of a masked row at a time, as float32. For the AVX2 translation units only.
//
// AVX2 has no expand instruction: a mask byte looks up a permutation that sends the next values to their columns. Lanes
// of dropped columns carry the sign bit in the table, which is what blendv looks at to put a zero there.
#pragma once

#include <immintrin.h>

#include <cstring>

#include "matrix.h"

namespace tailcut::avx2 {
namespace {

struct ExpandTable {
  alignas(64) uint32_t lane[256][8] = {};
  constexpr ExpandTable() {
    for (int mask = 0; mask < 256; ++mask) {
      uint32_t next = 0;
      for (int bit = 0; bit < 8; ++bit) lane[mask][bit] = mask >> bit & 1 ? next++ : 0x80000000u;
    }
  }
};
constexpr ExpandTable kExpand;

template <Kind K>
constexpr int64_t kWidth = K == Kind::f32 ? 4 : 2;  // bytes of a value

// Eight values, unaligned.
template <Kind K>
inline __m256 load8(const uint8_t* at) {
  if constexpr (K == Kind::f32) {
    return _mm256_loadu_ps(reinterpret_cast<const float*>(at));
  } else {
    const __m128i half = _mm_loadu_si128(reinterpret_cast<const __m128i*>(at));
    if constexpr (K == Kind::f16) return _mm256_cvtph_ps(half);
    return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(half), 16));
  }
}

// The weights of the eight columns that `mask` describes; `values` moves on.
template <Kind K>
inline __m256 expand8(unsigned mask, const uint8_t*& values) {
  const __m256 lanes = _mm256_load_ps(reinterpret_cast<const float*>(kExpand.lane[mask]));
  const __m256 spread = _mm256_permutevar8x32_ps(load8<K>(values), _mm256_castps_si256(lanes));
  values += __builtin_popcount(mask) * kWidth<K>;
  return _mm256_blendv_ps(spread, _mm256_setzero_ps(), lanes);
}

inline uint64_t word_at(const uint8_t* at) {
  uint64_t word;
  std::memcpy(&word, at, sizeof word);
  return word;
}

inline float sum8(__m256 v) {
  const __m128 four = _mm_add_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1));
  const __m128 two = _mm_add_ps(four, _mm_movehl_ps(four, four));
  return _mm_cvtss_f32(_mm_add_ss(two, _mm_movehdup_ps(two)));
}

inline void prefetch(const uint8_t* at) { _mm_prefetch(reinterpret_cast<const char*>(at), _MM_HINT_T0); }

constexpr int64_t kAhead = 4096;  // bytes: hardware prefetch alone reaches two thirds of the bandwidth

}  // namespace
}  // namespace tailcut::avx2
