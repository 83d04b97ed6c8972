// What the kernels for slots share, for one row of x and for several.
#pragma once

#include "avx2.h"
#include "slots.h"

namespace tailcut::avx2 {
namespace {

constexpr int kAhead = 2048;  // bytes

// always_inline: gcc takes a function that only prefetches for one without effect and drops calls of it
inline __attribute__((always_inline)) void prefetch(const uint8_t* at) {
  _mm_prefetch(reinterpret_cast<const char*>(at) + kAhead, _MM_HINT_T0);
}

struct Sums {
  __m256i low, high;  // rows 0..7 and 8..15
};

inline __m256i load(const void* at) { return _mm256_loadu_si256(static_cast<const __m256i*>(at)); }

inline __m256i broadcast16(const int8_t* x) {
  return _mm256_broadcastsi128_si256(_mm_load_si128(reinterpret_cast<const __m128i*>(x)));
}

// 32 products, added in pairs: x with the signs of the weights, and their absolute values. No pair saturates: see avx2_int.cpp.
inline __attribute__((always_inline)) __m256i products(__m256i x, __m256i weights, __m256i absolute) {
  return _mm256_maddubs_epi16(absolute, _mm256_sign_epi8(x, weights));
}

// Pairs of sums for 16 rows each, interleaved so that the pairwise sum adds the two: see in_order.
inline __attribute__((always_inline)) void add_interleaved(__m256i a, __m256i b, __m256i* low, __m256i* high) {
  const __m256i ones = _mm256_set1_epi16(1);
  *low = _mm256_add_epi32(*low, _mm256_madd_epi16(_mm256_unpacklo_epi16(a, b), ones));
  *high = _mm256_add_epi32(*high, _mm256_madd_epi16(_mm256_unpackhi_epi16(a, b), ones));
}

// Rows 0-3, 8-11 and 4-7, 12-15, as interleaving leaves them, to 0-7 and 8-15.
inline Sums in_order(const Sums& s) {
  return {_mm256_permute2x128_si256(s.low, s.high, 0x20), _mm256_permute2x128_si256(s.low, s.high, 0x31)};
}

// The list: running sums, of which the last of each row stays in `until`; a row's own sum is the difference.
inline void sum_list(const uint8_t* codes, const uint8_t* values, int n, const int8_t* x, int32_t* until) {
  int32_t sum = 0;
  int row = 0;
  for (int k = 0; k < n; ++k) {
    row += codes[k] >> 7;
    sum += int{static_cast<int8_t>(values[k])} * int{x[codes[k] & 127]};
    until[row] = sum;
  }
}

inline Sums list_sums(const int32_t* until) {
  return {_mm256_sub_epi32(load(until + 1), load(until)), _mm256_sub_epi32(load(until + 9), load(until + 8))};
}

}  // namespace
}  // namespace tailcut::avx2
