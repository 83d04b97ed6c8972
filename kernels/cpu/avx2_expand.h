// Eight weights of a masked row at a time, as float32. For the AVX2 translation units only.
//
// AVX2 has no expand instruction: a mask byte looks up a byte shuffle that sends the next values to their columns and puts
// zeros elsewhere. Shuffles stay within 16 bytes, so float32 takes two loads; the permutation across all eight lanes
// (vpermps and a blend) needs one but is slower on AMD (Zen 3: 0.96 against 0.82 ns for eight columns).
#pragma once

#include <immintrin.h>

#include <cstring>

#include "matrix.h"

namespace tailcut::avx2 {
namespace {

// Byte shuffles, 0x80 putting a zero. f32: each half of the table's 32 bytes sends the values of one nibble of the mask to
// their four columns. f16: the first 16 bytes send those of the whole byte to their eight.
template <int Size>
struct ShuffleTable {
  static constexpr int kLane = 16 / Size;  // values that a 16-byte lane holds
  alignas(64) uint8_t byte[256][8 * Size] = {};
  constexpr ShuffleTable() {
    for (int mask = 0; mask < 256; ++mask) {
      for (int column = 0, next = 0; column < 8; ++column) {
        if (column % kLane == 0) next = 0;
        const bool kept = mask >> column & 1;
        for (int b = 0; b < Size; ++b) byte[mask][column * Size + b] = kept ? uint8_t(next * Size + b) : uint8_t(0x80);
        next += kept;
      }
    }
  }
};
constexpr ShuffleTable<4> kShuffle4;
constexpr ShuffleTable<2> kShuffle2;

// bf16 is the upper half of a float32: with the same eight values in both lanes, one shuffle sends each to the upper
// half of its column and zeros elsewhere (Zen 3, half of the weights left: 1.3 ms, 1.6 with widening afterwards).
struct UpperHalves {
  alignas(64) uint8_t byte[256][32] = {};
  constexpr UpperHalves() {
    for (int mask = 0; mask < 256; ++mask) {
      for (int column = 0, next = 0; column < 8; ++column) {
        const bool kept = mask >> column & 1;
        for (int b = 0; b < 4; ++b) byte[mask][column * 4 + b] = 0x80;
        for (int b = 0; kept && b < 2; ++b) byte[mask][column * 4 + 2 + b] = uint8_t(next * 2 + b);
        next += kept;
      }
    }
  }
};
constexpr UpperHalves kUpperHalves;

template <Kind K>
constexpr int64_t kWidth = K == Kind::f32 ? 4 : 2;  // bytes of a value

template <Kind K>
inline __m256 widen(__m128i halves) {
  if constexpr (K == Kind::f16) return _mm256_cvtph_ps(halves);
  return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(halves), 16));
}

inline __m128i load16(const uint8_t* at) { return _mm_loadu_si128(reinterpret_cast<const __m128i*>(at)); }

// Eight values, unaligned.
template <Kind K>
inline __m256 load8(const uint8_t* at) {
  if constexpr (K == Kind::f32) return _mm256_loadu_ps(reinterpret_cast<const float*>(at));
  return widen<K>(load16(at));
}

// The weights of the eight columns that `mask` describes; `values` moves on.
template <Kind K>
inline __m256 expand8(uint64_t mask, const uint8_t*& values) {
  const uint8_t* from = values;
  values += __builtin_popcountll(mask) * kWidth<K>;
  if constexpr (K == Kind::f32) {
    const __m256i shuffle = _mm256_load_si256(reinterpret_cast<const __m256i*>(kShuffle4.byte[mask]));
    const __m128i low = load16(from), high = load16(from + __builtin_popcountll(mask & 15u) * 4);
    return _mm256_castsi256_ps(_mm256_shuffle_epi8(_mm256_set_m128i(high, low), shuffle));
  } else if constexpr (K == Kind::bf16) {
    const __m256i shuffle = _mm256_load_si256(reinterpret_cast<const __m256i*>(kUpperHalves.byte[mask]));
    return _mm256_castsi256_ps(_mm256_shuffle_epi8(_mm256_broadcastsi128_si256(load16(from)), shuffle));
  } else {
    const __m128i shuffle = _mm_load_si128(reinterpret_cast<const __m128i*>(kShuffle2.byte[mask]));
    return widen<K>(_mm_shuffle_epi8(load16(from), shuffle));
  }
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

// always_inline: gcc takes a function that only prefetches for one without effect and drops calls of it
inline __attribute__((always_inline)) void prefetch(const uint8_t* at) {
  _mm_prefetch(reinterpret_cast<const char*>(at), _MM_HINT_T0);
}

constexpr int64_t kAhead = 4096;  // bytes: hardware prefetch alone reaches two thirds of the bandwidth
constexpr int64_t kNear = 1024;   // the same where several streams are read side by side

}  // namespace
}  // namespace tailcut::avx2
