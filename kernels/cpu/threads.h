// A small thread pool: for the plain C interface, and for packing, which ONNX Runtime does on one thread. Products in
// sessions do not use it: they have ONNX Runtime's threads.
#pragma once

#include <cstdint>

#include "matrix.h"

namespace tailcut {

// The pool of `threads` threads (the caller is one of them); made once, kept until the process ends. Whoever comes
// while it works, on another thread or from within, does its own round alone.
Parallel& threads_of(int32_t threads);

// Processors that this thread, and threads that it starts, may run on; at least 1.
int32_t usable_cpus();

// Threads for packing a matrix of `weights` weights: as many as there are processors, or what was asked for, or only
// the caller where waking others would cost more than it saves.
Parallel& packing_threads(int64_t weights);

// How many threads pack from now on, whatever the size of a matrix; 0 leaves the choice to the library.
void ask_packing_threads(int32_t threads);

}  // namespace tailcut
