// What a product must be, in float64 and without any of the library's own code, and how far off it may be.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <vector>

namespace fuzz {

constexpr int64_t kGroup = 128;

inline float from_bits(uint32_t bits) {
  float value;
  std::memcpy(&value, &bits, sizeof value);
  return value;
}

inline float half(uint16_t h) {
  const int exponent = h >> 10 & 31, fraction = h & 1023;
  float value = exponent == 31 ? (fraction ? std::numeric_limits<float>::quiet_NaN() : std::numeric_limits<float>::infinity())
                : exponent == 0 ? std::ldexp(float(fraction), -24)
                                : std::ldexp(float(fraction + 1024), exponent - 25);
  return h & 0x8000 ? -value : value;
}

// The parts of a matrix as a package holds them; buffers are exactly as long as they say.
struct Parts {
  int32_t kind = 0;  // f32, f16, bf16, i8, i4
  int64_t rows = 0, cols = 0;
  bool masked = false, scaled = false;
  std::vector<uint8_t> mask, values;
  std::vector<float> scales;

  int64_t mask_width() const { return (cols + 7) / 8; }
  int64_t groups() const { return (cols + kGroup - 1) / kGroup; }
  bool kept(int64_t row, int64_t col) const {
    return !masked || (mask[size_t(row * mask_width() + col / 8)] >> (col % 8) & 1);
  }
};

inline double value_at(const Parts& p, int64_t row, int64_t col, uint64_t index) {
  switch (p.kind) {
    case 0: {
      uint32_t bits;
      std::memcpy(&bits, p.values.data() + 4 * index, 4);
      return double(from_bits(bits));
    }
    case 1: return double(half(uint16_t(p.values[2 * index] | p.values[2 * index + 1] << 8)));
    case 2: return double(from_bits(uint32_t(p.values[2 * index] | p.values[2 * index + 1] << 8) << 16));
    case 3: return double(int8_t(p.values[index])) * double(p.scales[size_t(row)]);
    default: {
      const int nibble = p.values[index / 2] >> (index % 2 * 4) & 15;
      return double(nibble - 8) * double(p.scales[size_t(row * p.groups() + col / kGroup)]);
    }
  }
}

// Dense [rows, cols] of valid parts.
inline std::vector<double> dense(const Parts& p) {
  std::vector<double> w(size_t(p.rows * p.cols), 0.0);
  uint64_t next = 0;
  for (int64_t row = 0; row < p.rows; ++row) {
    if (p.kind == 4 && !p.masked) next = uint64_t(row * ((p.cols + 1) / 2 * 2));
    for (int64_t col = 0; col < p.cols; ++col) {
      if (p.kept(row, col)) w[size_t(row * p.cols + col)] = value_at(p, row, col, next++);
    }
  }
  return w;
}

struct Expected {
  double value;
  double bound;  // |y - value| may be this
};

// `flushes`: the products are AMX's, which takes bfloat16 parts of x below the normal numbers, and such sums, for 0.
inline Expected expected(const Parts& p, const double* w, const float* x, bool flushes) {
  double sum = 0, size = 0, rounding = 0, all_weights = 0;
  bool finite = true;
  for (int64_t col = 0; col < p.cols; ++col) finite = finite && std::isfinite(x[col]);
  for (int64_t first = 0; first < p.cols; first += kGroup) {
    const int64_t stop = first + kGroup < p.cols ? first + kGroup : p.cols;
    double peak = 0, weights = 0;
    for (int64_t col = first; col < stop; ++col) {
      sum += w[col] * double(x[col]);
      size += std::fabs(w[col] * double(x[col]));
      weights += std::fabs(w[col]);
      peak = std::fmax(peak, std::fabs(double(x[col])));
    }
    rounding += weights * (peak / 127 * 0.50001 + 1e-36);  // half a step; groups below 4e-37 count as zero
    all_weights += weights;
  }
  // float32 sums of n products: n eps sum|w x| (Higham 3.1); products below the normal numbers lose a denormal each
  double order = double(p.cols + 8) * (std::ldexp(size, -24) + 1e-44);
  if (flushes) order += std::ldexp(all_weights + double(p.cols), -124);
  if (p.kind < 3) return {sum, order};
  if (!finite) return {std::numeric_limits<double>::quiet_NaN(), 0};
  return {sum, rounding + 4 * order + std::ldexp(rounding, -10)};
}

}  // namespace fuzz
