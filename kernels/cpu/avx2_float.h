// The AVX2 kernels of f32, f16 and bf16 matrices in the formats dense, bitmask and index.
//
// Every product is summed in float32 in an order that depends on m alone, never on the range of rows: results are
// bitwise the same however the rows are shared out. Zeros take part as in dense arithmetic (0 * inf = NaN).
#pragma once

#include "matrix.h"

namespace tailcut::avx2 {

// Many rows of x are copied by `float_prepare` into an order in which they do not compete for the same cache sets.
size_t float_scratch_bytes(const Matrix& w, int64_t m);
void float_prepare(const Matrix& w, const float* x, int64_t m, int64_t first, int64_t last, uint8_t* scratch);

// y[i * ldy + r] for i < m, row0 <= r < row1 (index: a range of slots, y at order[slot]). x [m, cols].
void float_compute(const Matrix& w, const float* x, const uint8_t* scratch, int64_t m, float* y, int64_t ldy, int64_t row0,
                   int64_t row1);

// What `float_compute` chooses from: rows straight from the packed stream, for up to kDirectRows rows of x, and panels of
// expanded rows, for any m. `arranged` is what float_prepare wrote, or null: then x itself is read.
constexpr int64_t kDirectRows = 4;
void float_direct(const Matrix& w, const float* x, int64_t m, float* y, int64_t ldy, int64_t row0, int64_t row1);
void float_panels(const Matrix& w, const float* x, const float* arranged, int64_t m, float* y, int64_t ldy,
                  int64_t row0, int64_t row1);
void float_index(const Matrix& w, const float* x, int64_t m, float* y, int64_t ldy, int64_t row0, int64_t row1);

}  // namespace tailcut::avx2
