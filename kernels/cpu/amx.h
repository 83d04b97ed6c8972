// What the AMX translation units share.
#pragma once

#include <cstddef>
#include <cstdint>

#include "matrix.h"

namespace tailcut {
namespace amx {

// Below this many rows of x the AVX-512 functions are faster: filling tiles costs more than the products.
constexpr int64_t kIntegerRows = 5;
constexpr int64_t kBfloatRows = 5;

size_t integer_scratch_bytes(const Matrix& w, int64_t m);
void integer_prepare(const Matrix& w, const float* x, int64_t m, int64_t first, int64_t last, uint8_t* scratch);
void integer_compute(const Matrix& w, const uint8_t* scratch, int64_t m, float* y, int64_t ldy, int64_t row0,
                     int64_t row1);

size_t bfloat_scratch_bytes(const Matrix& w, int64_t m);
void bfloat_prepare(const Matrix& w, const float* x, int64_t m, int64_t first, int64_t last, uint8_t* scratch);
void bfloat_compute(const Matrix& w, const uint8_t* scratch, int64_t m, float* y, int64_t ldy, int64_t row0,
                    int64_t row1);

}  // namespace amx
}  // namespace tailcut
