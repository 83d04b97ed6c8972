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
#endif

}  // namespace
}  // namespace tailcut
