// The plain C interface for ctypes: tests, benchmarks and the counters. Nothing throws across it.
#pragma once

#include <cstddef>
#include <cstdint>

#define TAILCUT_PUBLIC extern "C" __attribute__((visibility("default")))

TAILCUT_PUBLIC int32_t tailcut_matmul(const void* handle, const float* x, int64_t m, float* y, int32_t threads);

struct TailcutInfo {
  int32_t kind, format, isa, reserved;
  int64_t rows, cols, nonzeros, bytes;
};
