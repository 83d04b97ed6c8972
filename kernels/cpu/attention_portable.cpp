// The inner loops of attention in plain C++.

#include <cmath>

#include "attention.h"
#include "half.h"

namespace tailcut {
namespace {

void scores(const float* query, const float* keys, int64_t dim, int64_t count, float* out) {
  for (int64_t i = 0; i < count; ++i) {
    float sum = 0;
    for (int64_t j = 0; j < dim; ++j) sum += query[j] * keys[i * dim + j];
    out[i] = sum;
  }
}

float largest(const float* scores, int64_t count) {
  float top = scores[0];
  for (int64_t i = 1; i < count; ++i)
    if (scores[i] > top || std::isnan(scores[i])) top = scores[i];  // nothing is above a NaN
  return top;
}

float exponentials(float* weights, int64_t count, float top) {
  float sum = 0;
  for (int64_t i = 0; i < count; ++i) sum += weights[i] = std::exp(weights[i] - top);
  return sum;
}

void accumulate(const float* weights, const float* values, int64_t dim, int64_t count, float keep, float* out) {
  for (int64_t j = 0; j < dim; ++j) out[j] *= keep;
  for (int64_t i = 0; i < count; ++i)
    for (int64_t j = 0; j < dim; ++j) out[j] += weights[i] * values[i * dim + j];
}

void widen(const uint16_t* from, int64_t count, float* to) {
  for (int64_t i = 0; i < count; ++i) to[i] = half_to_float(from[i]);
}

void narrow(const float* from, int64_t count, uint16_t* to) {
  for (int64_t i = 0; i < count; ++i) to[i] = float_to_half(from[i]);
}

}  // namespace

const AttentionKernels* portable_attention() {
  static const AttentionKernels table{scores, largest, exponentials, accumulate, widen, narrow};
  return &table;
}

}  // namespace tailcut
