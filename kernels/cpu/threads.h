// A small thread pool for the plain C interface. Sessions do not use it: they have ONNX Runtime's.
#pragma once

#include <cstdint>

#include "matrix.h"

namespace tailcut {

// The pool of `threads` threads (the caller is one of them); made once, kept until the process ends.
Parallel& threads_of(int32_t threads);

}  // namespace tailcut
