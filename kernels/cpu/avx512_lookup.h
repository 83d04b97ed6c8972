// Vector operations of the slots format (see avx512_vector.h): activations looked up by column numbers.
#pragma once

#include "avx512_vector.h"

namespace tailcut {
namespace {

#if defined(TAILCUT_EMULATE)
inline Ints four_times_16(const uint8_t* at) {
  return each<uint8_t>([=](int i) { return at[i % 16]; });
}
inline Ints look_up_16(Ints table, Ints index) {
  return each<uint8_t>([&](int i) { return table.b[i / 16 * 16 + index.b[i] % 16]; });
}
inline Ints look_up_two(Ints first, Ints second, Ints index) {
  return each<uint8_t>([&](int i) { return (i % 4 < 2 ? first : second).b[i / 16 * 16 + index.b[i] % 16]; });
}
inline Ints look_up_128(Ints low, Ints high, Ints index) {
  return each<uint8_t>([&](int i) { return (index.b[i] & 64 ? high : low).b[index.b[i] % 64]; });
}
inline Ints expand_ints(Ints fill, uint16_t mask, Ints packed) {
  int next = 0;
  return each<uint32_t>([&](int i) { return mask >> i & 1 ? get<uint32_t>(packed, next++) : get<uint32_t>(fill, i); });
}
inline Ints shift_left_4(Ints v) {
  return each<uint32_t>([&](int i) { return get<uint32_t>(v, i) << 4; });
}
inline Ints shift_right_4(Ints v) {
  return each<uint32_t>([&](int i) { return get<uint32_t>(v, i) >> 4; });
}
inline Ints sixteenths(Ints v) {
  return each<int32_t>([&](int i) { return get<int32_t>(v, i) / 16; });
}
// For each 16 bits, the bits that its two bytes (below 16) number.
inline Ints two_bits(Ints numbers) {
  return each<uint16_t>([&](int i) { return 1u << numbers.b[2 * i] | 1u << numbers.b[2 * i + 1]; });
}
// The two halves of every int32 joined by OR: those of a in the low halves, those of b in the high ones.
inline Ints join_halves(Ints a, Ints b) {
  return each<uint16_t>([&](int i) {
    const Ints& from = i % 2 ? b : a;
    return get<uint16_t>(from, i) | get<uint16_t>(from, i ^ 1);
  });
}
// Within each quarter the first or the last two int32 (int64: one) of a and b, in turn.
inline Ints first_pairs(Ints a, Ints b) {
  return each<uint32_t>([&](int i) { return get<uint32_t>(i % 2 ? b : a, i / 4 * 4 + i % 4 / 2); });
}
inline Ints last_pairs(Ints a, Ints b) {
  return each<uint32_t>([&](int i) { return get<uint32_t>(i % 2 ? b : a, i / 4 * 4 + 2 + i % 4 / 2); });
}
inline Ints first_longs(Ints a, Ints b) {
  return each<uint64_t>([&](int i) { return get<uint64_t>(i % 2 ? b : a, i / 2 * 2); });
}
inline Ints last_longs(Ints a, Ints b) {
  return each<uint64_t>([&](int i) { return get<uint64_t>(i % 2 ? b : a, i / 2 * 2 + 1); });
}
// 8 or 16 bytes at the beginning of a vector.
template <int kBytes>
inline Ints load_first(const uint8_t* at) {
  Ints r = zero_ints();
  std::memcpy(r.b, at, kBytes);
  return r;
}
#else
inline Ints four_times_16(const uint8_t* at) {  // 16 bytes, in each quarter of the vector
  return _mm512_broadcast_i32x4(_mm_loadu_si128(reinterpret_cast<const __m128i*>(at)));
}
// Bytes of `table` by 4-bit numbers, each quarter by its own.
inline Ints look_up_16(Ints table, Ints index) { return _mm512_shuffle_epi8(table, index); }
// The same; the third and fourth byte of every int32 from the second table.
inline Ints look_up_two(Ints first, Ints second, Ints index) {
  return _mm512_mask_shuffle_epi8(_mm512_shuffle_epi8(first, index), 0xccccccccccccccccu, second, index);
}
// Of 128 bytes by 7-bit numbers.
inline Ints look_up_128(Ints low, Ints high, Ints index) { return _mm512_permutex2var_epi8(low, index, high); }
// int32 in order at the set bits of the mask; elsewhere `fill`.
inline Ints expand_ints(Ints fill, uint16_t mask, Ints packed) {
  return _mm512_mask_expand_epi32(fill, mask, packed);
}
inline Ints shift_left_4(Ints v) { return _mm512_slli_epi32(v, 4); }
inline Ints shift_right_4(Ints v) { return _mm512_srli_epi32(v, 4); }
inline Ints sixteenths(Ints v) { return _mm512_srai_epi32(v, 4); }  // of int32 that are multiples of 16
inline Ints two_bits(Ints numbers) {
  const __m512i one = _mm512_set1_epi16(1), first = _mm512_and_si512(numbers, _mm512_set1_epi16(0xff));
  return _mm512_or_si512(_mm512_sllv_epi16(one, first), _mm512_sllv_epi16(one, _mm512_srli_epi16(numbers, 8)));
}
inline Ints join_halves(Ints a, Ints b) {
  const __m512i low = _mm512_or_si512(a, _mm512_srli_epi32(a, 16)), high = _mm512_or_si512(b, _mm512_slli_epi32(b, 16));
  return _mm512_mask_blend_epi16(0xaaaaaaaau, low, high);
}
inline Ints first_pairs(Ints a, Ints b) { return _mm512_unpacklo_epi32(a, b); }
inline Ints last_pairs(Ints a, Ints b) { return _mm512_unpackhi_epi32(a, b); }
inline Ints first_longs(Ints a, Ints b) { return _mm512_unpacklo_epi64(a, b); }
inline Ints last_longs(Ints a, Ints b) { return _mm512_unpackhi_epi64(a, b); }
// A load of no more than was stored before in one piece gets it without waiting for the cache.
template <int kBytes>
inline Ints load_first(const uint8_t* at) {
  const auto* const from = reinterpret_cast<const __m128i*>(at);
  return _mm512_castsi128_si512(kBytes == 8 ? _mm_loadl_epi64(from) : _mm_loadu_si128(from));
}
#endif

// What is stored at `at` is read from there, not taken out of the registers: loads have ports of their own.
inline void in_memory(const void* at) { __asm__ volatile("" ::"r"(at) : "memory"); }

}  // namespace
}  // namespace tailcut
