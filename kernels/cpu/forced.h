// Between the operators and the plain C interface: what tests and benchmarks ask for in place of the automatic choice (for
// matrices packed after the call), and what the sessions hold.
#pragma once

#include "matrix.h"

namespace tailcut {

Isa forced_isa();
Format forced_format();

// Added to when a session packs a matrix and when it lets go (negative).
void count_packed(int64_t bytes);

}  // namespace tailcut
