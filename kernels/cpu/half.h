// float16 in plain C++, bit for bit what the F16C instructions do: denormals kept, a NaN made quiet.
#pragma once

#include <cstdint>
#include <cstring>

namespace tailcut {

inline float half_to_float(uint16_t half) {
  const uint32_t sign = uint32_t{half} >> 15 << 31, exponent = half >> 10 & 31, fraction = half & 1023;
  uint32_t bits = sign | (exponent + 112) << 23 | fraction << 13;
  float value;
  if (exponent == 0) {  // fraction units of 2^-24, exactly
    value = static_cast<float>(fraction) * 5.9604644775390625e-8f;
    std::memcpy(&bits, &value, sizeof bits);
    bits |= sign;
  } else if (exponent == 31) {
    bits = sign | 0x7f800000u | fraction << 13 | (fraction ? 0x400000u : 0);
  }
  std::memcpy(&value, &bits, sizeof value);
  return value;
}

// To nearest, ties to even; what is too large becomes infinite.
inline uint16_t float_to_half(float value) {
  uint32_t bits;
  std::memcpy(&bits, &value, sizeof bits);
  const uint32_t sign = bits >> 16 & 0x8000u, size = bits & 0x7fffffffu;
  if (size > 0x7f800000u) return static_cast<uint16_t>(sign | 0x7e00u | (size >> 13 & 0x3ffu));
  if (size >= 0x477ff000u) return static_cast<uint16_t>(sign | 0x7c00u);  // 65520 and above
  if (size < 0x33000000u) return static_cast<uint16_t>(sign);             // below half of the least
  // What is kept, and the bits behind it: 13 of a normal number, more below 2^-14.
  const uint32_t exponent = size >> 23, drop = exponent < 113 ? 126 - exponent : 13;
  const uint32_t from = exponent < 113 ? (size & 0x7fffffu) | 0x800000u : size - (112u << 23);
  const uint32_t kept = from >> drop, rest = from & ((1u << drop) - 1), tie = 1u << (drop - 1);
  return static_cast<uint16_t>(sign | (kept + (rest > tie || (rest == tie && (kept & 1)))));
}

}  // namespace tailcut
