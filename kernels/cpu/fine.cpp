#include "fine.h"

#include <cmath>
#include <cstring>

#include "matrix.h"

namespace tailcut {
namespace {

// To the nearest integer, ties to even, for |x| < 2^22: the sum has no room for a fraction. Vectorises where nearbyint
// does not.
float rounded(float x) {
  constexpr float shift = 12582912.0f;  // 1.5 * 2^23
  return (x + shift) - shift;
}

void rest_of_group(const float* x, int64_t count, float* rest) {
  float largest = 0;
  for (int64_t j = 0; j < count; ++j) largest = std::fabs(x[j]) > largest ? std::fabs(x[j]) : largest;
  const float inverse = largest > 0 ? 127.0f / largest : 0.0f, scale = largest / 127.0f;
  if (!(inverse > 0) || !std::isfinite(inverse)) {  // denormals and infinities: the first part decides
    std::memset(rest, 0, static_cast<size_t>(count) * sizeof(float));
    return;
  }
  for (int64_t j = 0; j < count; ++j) rest[j] = x[j] - rounded(x[j] * inverse) * scale;
}

}  // namespace

void split_activations(const float* x, int64_t m, int64_t cols, float* out) {
  std::memcpy(out, x, static_cast<size_t>(m * cols) * sizeof(float));
  for (int64_t i = 0; i < m; ++i)
    for (int64_t at = 0; at < cols; at += kGroup)
      rest_of_group(x + i * cols + at, cols - at < kGroup ? cols - at : kGroup, out + (m + i) * cols + at);
}

}  // namespace tailcut
