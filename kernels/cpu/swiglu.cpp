#include "swiglu.h"

#include <cmath>

#include "matrix.h"

namespace tailcut {
namespace {

float swiglu_one(float gate, float up) {
  const double g = gate;
  return static_cast<float>(g / (1.0 + std::exp(-g)) * up);
}

}  // namespace

void swiglu(const float* gate_up, int64_t first_row, int64_t last_row, int64_t n, float* out) {
  const bool vectors = isa_available(Isa::avx2);
  for (int64_t row = first_row; row < last_row; ++row) {
    const float* gate = gate_up + row * 2 * n;
    const float* up = gate + n;
    float* to = out + row * n;
    for (int64_t j = vectors ? avx2::swiglu_vectors(gate, up, n, to) : 0; j < n; ++j) to[j] = swiglu_one(gate[j], up[j]);
  }
}

}  // namespace tailcut
