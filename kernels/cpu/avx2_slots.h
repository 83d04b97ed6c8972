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
