// Activations in two parts: what int8 leaves of x is quantised once more, with a scale of its own.
//
// x = scale q + rest, |rest| <= scale / 2 in each group, so that the second part adds seven bits: int8 weights times
// activations of about 15 bits. The kernels see twice as many rows of x and read every weight once.
#pragma once

#include <cstdint>

namespace tailcut {

// x [m, cols] -> out [2 m, cols]: x, then what is left of each row by groups of kGroup columns (see portable.cpp for how
// a group is quantised).
void split_activations(const float* x, int64_t m, int64_t cols, float* out);

}  // namespace tailcut
