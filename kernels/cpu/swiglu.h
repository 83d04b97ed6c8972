// The gate of a gated feed-forward block.
#pragma once

#include <cstdint>

namespace tailcut {

// out[r, j] = silu(gate[r, j]) * up[r, j] for first_row <= r < last_row, silu(g) = g / (1 + exp(-g)).
// gate_up [rows, 2 n]: gate, then up. out [rows, n]. Within 4 units in the last place of float64, results below the
// normal numbers included; NaN and infinities as the formula gives them (silu(-inf) = -inf / inf = NaN).
void swiglu(const float* gate_up, int64_t first_row, int64_t last_row, int64_t n, float* out);

namespace avx2 {
// As many of the n elements as whole vectors hold; returns how many. 0 where the compiler had no AVX2.
int64_t swiglu_vectors(const float* gate, const float* up, int64_t n, float* out);
}  // namespace avx2

}  // namespace tailcut
