// The operations of avx512_vector.h in plain C++, for TAILCUT_EMULATE: slow, and the same results but for the order of
// summation in `sum`.
#pragma once

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>

#include "half.h"

namespace tailcut {
namespace {

struct alignas(64) Floats {
  float v[16];
};
struct alignas(64) Ints {
  uint8_t b[64];
};

template <class T>
inline T get(const Ints& v, int i) {
  T value;
  std::memcpy(&value, v.b + i * static_cast<int>(sizeof(T)), sizeof(T));
  return value;
}
template <class T>
inline void put(Ints& v, int i, T value) {
  std::memcpy(v.b + i * static_cast<int>(sizeof(T)), &value, sizeof(T));
}
template <class F>
inline Floats each_float(F f) {
  Floats r;
  for (int i = 0; i < 16; ++i) r.v[i] = f(i);
  return r;
}
template <class T, class F>
inline Ints each(F f) {
  Ints r;
  for (int i = 0; i < 64 / static_cast<int>(sizeof(T)); ++i) put<T>(r, i, static_cast<T>(f(i)));
  return r;
}

inline Floats all(float value) {
  return each_float([=](int) { return value; });
}
inline Floats zeros() { return all(0); }
inline Ints all_bytes(uint8_t value) {
  return each<uint8_t>([=](int) { return value; });
}
inline Ints all_ints(int32_t value) {
  return each<int32_t>([=](int) { return value; });
}
inline Ints zero_ints() { return all_ints(0); }
inline Floats load(const float* at) {
  Floats r;
  std::memcpy(r.v, at, 64);
  return r;
}
inline Floats load_some(const float* at, uint16_t lanes) {
  return each_float([=](int i) { return lanes >> i & 1 ? at[i] : 0.0f; });
}
inline Floats load_over(Floats rest, const float* at, uint16_t lanes) {
  return each_float([&](int i) { return lanes >> i & 1 ? at[i] : rest.v[i]; });
}
inline void store(float* at, Floats v) { std::memcpy(at, v.v, 64); }
inline void store_some(float* at, uint16_t lanes, Floats v) {
  for (int i = 0; i < 16; ++i)
    if (lanes >> i & 1) at[i] = v.v[i];
}
inline Ints load_ints(const void* at) {
  Ints r;
  std::memcpy(r.b, at, 64);
  return r;
}
inline void store_ints(void* at, Ints v) { std::memcpy(at, v.b, 64); }
inline Floats add(Floats a, Floats b) {
  return each_float([&](int i) { return a.v[i] + b.v[i]; });
}
inline Floats sub(Floats a, Floats b) {
  return each_float([&](int i) { return a.v[i] - b.v[i]; });
}
inline Floats mul(Floats a, Floats b) {
  return each_float([&](int i) { return a.v[i] * b.v[i]; });
}
inline Floats fma(Floats a, Floats b, Floats c) {  // rounded twice; the callers' tolerances allow for it
  return each_float([&](int i) { return a.v[i] * b.v[i] + c.v[i]; });
}
template <class F>
inline uint16_t each_bit(F f) {
  unsigned bits = 0;
  for (int i = 0; i < 16; ++i) bits |= static_cast<unsigned>(f(i)) << i;
  return static_cast<uint16_t>(bits);
}
inline Floats larger(Floats a, Floats b) {
  return each_float([&](int i) { return a.v[i] > b.v[i] ? a.v[i] : b.v[i]; });
}
inline float largest_float(Floats v) {
  float found = v.v[0];
  for (float value : v.v) found = value > found ? value : found;
  return found;
}
inline uint16_t not_numbers(Floats v) {
  return each_bit([&](int i) { return std::isnan(v.v[i]); });
}
inline uint16_t not_below(Floats a, Floats b) {
  return each_bit([&](int i) { return !(a.v[i] < b.v[i]); });
}
inline Floats keep_lanes(uint16_t lanes, Floats v) {
  return each_float([&](int i) { return lanes >> i & 1 ? v.v[i] : 0.0f; });
}
inline Floats round_floats(Floats v) {
  return each_float([&](int i) { return std::nearbyint(v.v[i]); });
}
inline Floats times_power(Floats v, Floats k) {  // |k| so small that an int holds it; NaN where k is
  return each_float([&](int i) {
    return std::isnan(k.v[i]) ? k.v[i] : std::ldexp(v.v[i], static_cast<int>(k.v[i]));
  });
}
inline float sum(Floats v) {
  for (int half = 8; half; half /= 2)
    for (int i = 0; i < half; ++i) v.v[i] += v.v[i + half];
  return v.v[0];
}
inline Floats as_floats(Ints v) {
  Floats r;
  std::memcpy(r.v, v.b, 64);
  return r;
}
inline Ints as_ints(Floats v) { return load_ints(v.v); }
inline Floats to_floats(Ints v) {
  return each_float([&](int i) { return static_cast<float>(get<int32_t>(v, i)); });
}
inline Ints and_bits(Ints a, Ints b) {
  return each<uint8_t>([&](int i) { return a.b[i] & b.b[i]; });
}
inline Ints or_bits(Ints a, Ints b) {
  return each<uint8_t>([&](int i) { return a.b[i] | b.b[i]; });
}
inline Ints add_ints(Ints a, Ints b) {
  return each<uint32_t>([&](int i) { return get<uint32_t>(a, i) + get<uint32_t>(b, i); });
}
inline Ints sub_ints(Ints a, Ints b) {
  return each<uint32_t>([&](int i) { return get<uint32_t>(a, i) - get<uint32_t>(b, i); });
}
inline Ints max_unsigned(Ints a, Ints b) {
  return each<uint32_t>([&](int i) {
    const uint32_t x = get<uint32_t>(a, i), y = get<uint32_t>(b, i);
    return x > y ? x : y;
  });
}
inline uint32_t largest_unsigned(Ints v) {
  uint32_t largest = 0;
  for (int i = 0; i < 16; ++i)
    if (get<uint32_t>(v, i) > largest) largest = get<uint32_t>(v, i);
  return largest;
}
inline int32_t sum_ints(Ints v) {
  uint32_t total = 0;
  for (int i = 0; i < 16; ++i) total += get<uint32_t>(v, i);
  return static_cast<int32_t>(total);
}
inline Ints shift_right_16(Ints v) {
  return each<uint32_t>([&](int i) { return get<uint32_t>(v, i) >> 16; });
}
inline Ints round_to_ints(Floats v) {  // outside int32: the least int32, as the instruction gives
  return each<int32_t>([&](int i) {
    const float f = v.v[i];
    return f >= -2147483648.0f && f < 2147483648.0f ? static_cast<int32_t>(std::nearbyint(f)) : INT32_MIN;
  });
}
inline void store_low_bytes(void* at, Ints v) {
  for (int i = 0; i < 16; ++i) static_cast<uint8_t*>(at)[i] = v.b[4 * i];
}
inline void store_ints_some(void* at, uint16_t lanes, Ints v) {
  for (int i = 0; i < 16; ++i)
    if (lanes >> i & 1) std::memcpy(static_cast<uint8_t*>(at) + 4 * i, v.b + 4 * i, 4);
}
inline Ints widen_bytes(const uint8_t* at) {
  return each<uint32_t>([=](int i) { return at[i]; });
}
inline void store_halves(void* at, Floats v) {
  for (int i = 0; i < 16; ++i) {
    const uint16_t half = float_to_half(v.v[i]);
    std::memcpy(static_cast<uint8_t*>(at) + 2 * i, &half, 2);
  }
}
inline Floats where_finite(Floats x, Floats v) {
  return each_float([&](int i) { return std::isfinite(x.v[i]) ? v.v[i] : 0.0f; });
}
inline Floats gather(const float* base, Ints index) {
  return each_float([&](int i) { return base[get<int32_t>(index, i)]; });
}
inline void prefetch(const void*) {}
inline void prefetch_far(const void*) {}

inline Ints dot_bytes(Ints acc, Ints u, Ints s) {
  return each<int32_t>([&](int i) {
    int32_t total = get<int32_t>(acc, i);
    for (int j = 4 * i; j < 4 * i + 4; ++j) total += int{u.b[j]} * int{static_cast<int8_t>(s.b[j])};
    return total;
  });
}

inline Ints expand_bytes(Ints fill, uint64_t mask, Ints packed) {
  int next = 0;
  return each<uint8_t>([&](int i) { return mask >> i & 1 ? packed.b[next++] : fill.b[i]; });
}
inline Ints expand_halves(uint32_t mask, const uint8_t* at) {
  const Ints packed = load_ints(at);
  int next = 0;
  return each<uint16_t>([&](int i) { return mask >> i & 1 ? get<uint16_t>(packed, next++) : uint16_t{0}; });
}
inline Floats expand_floats(uint16_t mask, const uint8_t* at) {
  const Floats packed = as_floats(load_ints(at));
  int next = 0;
  return each_float([&](int i) { return mask >> i & 1 ? packed.v[next++] : 0.0f; });
}
inline void compress_bytes(uint8_t* to, uint64_t mask, Ints from) {
  Ints r = zero_ints();
  int next = 0;
  for (int i = 0; i < 64; ++i)
    if (mask >> i & 1) r.b[next++] = from.b[i];
  store_ints(to, r);
}
inline Ints unpack_nibbles(const uint8_t* at) {
  return each<uint8_t>([=](int i) { return i & 1 ? at[i / 2] >> 4 : at[i / 2] & 15; });
}
inline Floats low_bfloats(Ints v) {
  return as_floats(each<uint32_t>([&](int i) { return get<uint32_t>(v, i) << 16; }));
}
inline Floats high_bfloats(Ints v) {
  return as_floats(each<uint32_t>([&](int i) { return get<uint32_t>(v, i) & 0xffff0000u; }));
}
inline float half_value(uint16_t h) {
  const float sign = h & 0x8000 ? -1.0f : 1.0f;
  const int exponent = h >> 10 & 31, fraction = h & 1023;
  if (exponent == 31) return fraction ? NAN : sign * INFINITY;
  if (exponent == 0) return sign * std::ldexp(static_cast<float>(fraction), -24);
  return sign * std::ldexp(static_cast<float>(1024 + fraction), exponent - 25);
}
inline Floats first_halves(Ints v) {
  return each_float([&](int i) { return half_value(get<uint16_t>(v, i)); });
}
inline Floats last_halves(Ints v) {
  return each_float([&](int i) { return half_value(get<uint16_t>(v, 16 + i)); });
}
inline Floats widen_halves(const uint8_t* at) {
  return each_float([=](int i) { return half_value(static_cast<uint16_t>(at[2 * i] | at[2 * i + 1] << 8)); });
}
inline Floats widen_bfloats(const uint8_t* at) {
  return as_floats(each<uint32_t>([=](int i) { return uint32_t{at[2 * i]} << 16 | uint32_t{at[2 * i + 1]} << 24; }));
}
inline Floats even_floats(Floats a, Floats b) {
  return each_float([&](int i) { return i < 8 ? a.v[2 * i] : b.v[2 * i - 16]; });
}
inline Floats odd_floats(Floats a, Floats b) {
  return each_float([&](int i) { return i < 8 ? a.v[2 * i + 1] : b.v[2 * i - 15]; });
}
inline Floats sum_each(Floats* r) {
  return each_float([=](int i) { return sum(r[i]); });
}
inline void transpose(Floats* r) {
  for (int i = 0; i < 16; ++i)
    for (int j = 0; j < i; ++j) {
      const float kept = r[i].v[j];
      r[i].v[j] = r[j].v[i];
      r[j].v[i] = kept;
    }
}

}  // namespace
}  // namespace tailcut
