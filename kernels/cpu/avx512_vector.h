// The vector operations that the AVX-512 and AMX kernels are written in, each a thin name over the intrinsics.
//
// Under TAILCUT_EMULATE the same names come from emulate512.h in plain C++, so that the kernels built on them are
// tested on machines without AVX-512. Everything is in an unnamed namespace: a copy compiled for AVX-512 must never be
// the one another translation unit is linked to. For the same reason the kernels use no templates of the standard
// library.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>

#if defined(TAILCUT_EMULATE)
#include "emulate512.h"
#else
// gcc 12 reports its own headers: "may be used uninitialized" of _mm512_undefined_ps (gcc bug 105593).
#pragma GCC diagnostic ignored "-Wuninitialized"
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#include <immintrin.h>

namespace tailcut {
namespace {

using Floats = __m512;  // 16 float32
using Ints = __m512i;   // 64 bytes, 32 halves or 16 int32

inline Floats zeros() { return _mm512_setzero_ps(); }
inline Ints zero_ints() { return _mm512_setzero_si512(); }
inline Floats all(float value) { return _mm512_set1_ps(value); }
inline Ints all_bytes(uint8_t value) { return _mm512_set1_epi8(static_cast<char>(value)); }
inline Ints all_ints(int32_t value) { return _mm512_set1_epi32(value); }
inline Floats load(const float* at) { return _mm512_loadu_ps(at); }
inline Floats load_some(const float* at, uint16_t lanes) { return _mm512_maskz_loadu_ps(lanes, at); }
inline Floats load_over(Floats rest, const float* at, uint16_t lanes) { return _mm512_mask_loadu_ps(rest, lanes, at); }
inline void store(float* at, Floats v) { _mm512_storeu_ps(at, v); }
inline void store_some(float* at, uint16_t lanes, Floats v) { _mm512_mask_storeu_ps(at, lanes, v); }
inline Ints load_ints(const void* at) { return _mm512_loadu_si512(at); }
inline void store_ints(void* at, Ints v) { _mm512_storeu_si512(at, v); }
inline Floats add(Floats a, Floats b) { return _mm512_add_ps(a, b); }
inline Floats mul(Floats a, Floats b) { return _mm512_mul_ps(a, b); }
inline Floats sub(Floats a, Floats b) { return _mm512_sub_ps(a, b); }
inline Floats fma(Floats a, Floats b, Floats c) { return _mm512_fmadd_ps(a, b, c); }  // a b + c
inline Floats larger(Floats a, Floats b) { return _mm512_max_ps(a, b); }  // b where one is a NaN
inline float largest_float(Floats v) { return _mm512_reduce_max_ps(v); }  // of numbers
inline uint16_t not_numbers(Floats v) { return _mm512_cmp_ps_mask(v, v, _CMP_UNORD_Q); }
inline uint16_t not_below(Floats a, Floats b) { return _mm512_cmp_ps_mask(a, b, _CMP_NLT_UQ); }  // NaN is not
inline Floats keep_lanes(uint16_t lanes, Floats v) { return _mm512_maskz_mov_ps(lanes, v); }     // others 0
inline Floats round_floats(Floats v) {  // to nearest, ties to even
  return _mm512_roundscale_ps(v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
}
inline Floats times_power(Floats v, Floats k) { return _mm512_scalef_ps(v, k); }  // v 2^k, k whole
inline float sum(Floats v) { return _mm512_reduce_add_ps(v); }
inline Floats as_floats(Ints v) { return _mm512_castsi512_ps(v); }
inline Ints as_ints(Floats v) { return _mm512_castps_si512(v); }
inline Floats to_floats(Ints v) { return _mm512_cvtepi32_ps(v); }
inline Ints and_bits(Ints a, Ints b) { return _mm512_and_si512(a, b); }
inline Ints or_bits(Ints a, Ints b) { return _mm512_or_si512(a, b); }
inline Ints add_ints(Ints a, Ints b) { return _mm512_add_epi32(a, b); }
inline Ints sub_ints(Ints a, Ints b) { return _mm512_sub_epi32(a, b); }
inline Ints max_unsigned(Ints a, Ints b) { return _mm512_max_epu32(a, b); }
inline uint32_t largest_unsigned(Ints v) { return _mm512_reduce_max_epu32(v); }
inline int32_t sum_ints(Ints v) { return _mm512_reduce_add_epi32(v); }
inline Ints shift_right_16(Ints v) { return _mm512_srli_epi32(v, 16); }
inline Ints round_to_ints(Floats v) { return _mm512_cvtps_epi32(v); }  // to nearest, ties to even
inline void store_low_bytes(void* at, Ints v) {
  _mm_storeu_si128(static_cast<__m128i*>(at), _mm512_cvtepi32_epi8(v));
}
inline void store_ints_some(void* at, uint16_t lanes, Ints v) { _mm512_mask_storeu_epi32(at, lanes, v); }
inline Ints widen_bytes(const uint8_t* at) {  // 16 bytes to int32
  return _mm512_cvtepu8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(at)));
}
inline Floats widen_bfloats(const uint8_t* at) {  // 16 bfloat16 in a row
  const __m256i halves = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(at));
  return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(halves), 16));
}
inline Floats widen_halves(const uint8_t* at) {  // 16 float16 in a row
  return _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(at)));
}
inline void store_halves(void* at, Floats v) {  // 16 float16, to nearest and ties to even
  _mm256_storeu_si256(static_cast<__m256i*>(at), _mm512_cvtps_ph(v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
}
inline Floats where_finite(Floats x, Floats v) {  // v where x is finite, else 0
  const __m512i magnitude = _mm512_and_si512(_mm512_castps_si512(x), _mm512_set1_epi32(0x7fffffff));
  return _mm512_maskz_mov_ps(_mm512_cmplt_epu32_mask(magnitude, _mm512_set1_epi32(0x7f800000)), v);
}
inline Floats gather(const float* base, Ints index) { return _mm512_i32gather_ps(index, base, 4); }
// Assembler lines: a function that only prefetches counts as one without effect for gcc, which then drops its calls.
inline void prefetch(const void* at) { __asm__ volatile("prefetcht0 %0" ::"m"(*static_cast<const char*>(at))); }
inline void prefetch_far(const void* at) {  // not to the first cache
  __asm__ volatile("prefetcht1 %0" ::"m"(*static_cast<const char*>(at)));
}

// acc + the sums of four products each: u unsigned bytes, s signed bytes.
inline Ints dot_bytes(Ints acc, Ints u, Ints s) { return _mm512_dpbusd_epi32(acc, u, s); }

// Values in order at the set bits of the mask; elsewhere `fill`, or zero.
inline Ints expand_bytes(Ints fill, uint64_t mask, Ints packed) { return _mm512_mask_expand_epi8(fill, mask, packed); }
inline Ints expand_halves(uint32_t mask, const uint8_t* at) {
  return _mm512_maskz_expand_epi16(mask, _mm512_loadu_si512(at));
}
inline Floats expand_floats(uint16_t mask, const uint8_t* at) {
  return _mm512_maskz_expand_ps(mask, _mm512_loadu_ps(at));
}
// The bytes of `from` at the set bits, in order; all 64 bytes at `to` are written.
inline void compress_bytes(uint8_t* to, uint64_t mask, Ints from) {
  _mm512_storeu_si512(to, _mm512_maskz_compress_epi8(mask, from));
}
// 32 bytes to 64 bytes of a nibble each, low nibble first.
inline Ints unpack_nibbles(const uint8_t* at) {
  const __m512i wide = _mm512_cvtepu8_epi16(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(at)));
  return _mm512_and_si512(_mm512_or_si512(wide, _mm512_slli_epi16(wide, 4)), _mm512_set1_epi8(15));
}
// 16 bfloat16 in the low or the high halves of 16 int32.
inline Floats low_bfloats(Ints v) { return _mm512_castsi512_ps(_mm512_slli_epi32(v, 16)); }
inline Floats high_bfloats(Ints v) {
  return _mm512_castsi512_ps(_mm512_and_si512(v, _mm512_set1_epi32(static_cast<int>(0xffff0000u))));
}
// 16 float16 in the low or the high 32 bytes.
inline Floats first_halves(Ints v) { return _mm512_cvtph_ps(_mm512_castsi512_si256(v)); }
inline Floats last_halves(Ints v) { return _mm512_cvtph_ps(_mm512_extracti64x4_epi64(v, 1)); }
// Even and odd elements of the 32 floats a, b.
inline Floats even_floats(Floats a, Floats b) {
  const __m512i index = _mm512_set_epi32(30, 28, 26, 24, 22, 20, 18, 16, 14, 12, 10, 8, 6, 4, 2, 0);
  return _mm512_permutex2var_ps(a, index, b);
}
inline Floats odd_floats(Floats a, Floats b) {
  const __m512i index = _mm512_set_epi32(31, 29, 27, 25, 23, 21, 19, 17, 15, 13, 11, 9, 7, 5, 3, 1);
  return _mm512_permutex2var_ps(a, index, b);
}

// Sixteen sums side by side: lane i of the result is the sum of r[i], which is overwritten.
inline Floats sum_each(Floats* r) {
#pragma GCC unroll 8
  for (int i = 0; i < 16; i += 2)  // per 128-bit lane a0 + a2, b0 + b2, a1 + a3, b1 + b3
    r[i] = _mm512_add_ps(_mm512_unpacklo_ps(r[i], r[i + 1]), _mm512_unpackhi_ps(r[i], r[i + 1]));
#pragma GCC unroll 4
  for (int i = 0; i < 16; i += 4) {  // r[i]: 128-bit lane l holds the sums over that lane of rows i .. i + 3
    const __m512d a = _mm512_castps_pd(r[i]), b = _mm512_castps_pd(r[i + 2]);
    r[i] = _mm512_add_ps(_mm512_castpd_ps(_mm512_unpacklo_pd(a, b)), _mm512_castpd_ps(_mm512_unpackhi_pd(a, b)));
  }
#pragma GCC unroll 2
  for (int i = 0; i < 16; i += 8)
    r[i] = _mm512_add_ps(_mm512_shuffle_f32x4(r[i], r[i + 4], 0x44), _mm512_shuffle_f32x4(r[i], r[i + 4], 0xee));
  return _mm512_add_ps(_mm512_shuffle_f32x4(r[0], r[8], 0x88), _mm512_shuffle_f32x4(r[0], r[8], 0xdd));
}

// Rows of a 16 x 16 matrix of 4-byte elements to its columns.
inline void transpose(Floats* r) {
  Floats a[16], b[16];
#pragma GCC unroll 8
  for (int i = 0; i < 16; i += 2) {
    a[i] = _mm512_unpacklo_ps(r[i], r[i + 1]);
    a[i + 1] = _mm512_unpackhi_ps(r[i], r[i + 1]);
  }
  const auto low = [](Floats x, Floats y) {
    return _mm512_castpd_ps(_mm512_unpacklo_pd(_mm512_castps_pd(x), _mm512_castps_pd(y)));
  };
  const auto high = [](Floats x, Floats y) {
    return _mm512_castpd_ps(_mm512_unpackhi_pd(_mm512_castps_pd(x), _mm512_castps_pd(y)));
  };
#pragma GCC unroll 4
  for (int i = 0; i < 16; i += 4) {  // b[i + j]: 128-bit lane l holds column 4 l + j of rows i .. i + 3
    b[i] = low(a[i], a[i + 2]), b[i + 1] = high(a[i], a[i + 2]);
    b[i + 2] = low(a[i + 1], a[i + 3]), b[i + 3] = high(a[i + 1], a[i + 3]);
  }
#pragma GCC unroll 4
  for (int j = 0; j < 4; ++j) {
    const Floats even0 = _mm512_shuffle_f32x4(b[j], b[4 + j], 0x88), odd0 = _mm512_shuffle_f32x4(b[j], b[4 + j], 0xdd);
    const Floats even1 = _mm512_shuffle_f32x4(b[8 + j], b[12 + j], 0x88);
    const Floats odd1 = _mm512_shuffle_f32x4(b[8 + j], b[12 + j], 0xdd);
    r[j] = _mm512_shuffle_f32x4(even0, even1, 0x88), r[8 + j] = _mm512_shuffle_f32x4(even0, even1, 0xdd);
    r[4 + j] = _mm512_shuffle_f32x4(odd0, odd1, 0x88), r[12 + j] = _mm512_shuffle_f32x4(odd0, odd1, 0xdd);
  }
}

}  // namespace
}  // namespace tailcut
#endif

namespace tailcut {
namespace {

inline void prefetch_lines(const uint8_t* at, int64_t bytes) {
  for (int64_t line = 0; line < bytes; line += 64) prefetch(at + line);
}

}  // namespace
}  // namespace tailcut
