// The plain C interface for ctypes: tests, benchmarks and the counters. Nothing throws across it.
#pragma once

#include <cstddef>
#include <cstdint>

#define TAILCUT_PUBLIC extern "C" __attribute__((visibility("default")))

struct TailcutInfo {
  int32_t kind, format, isa, reserved;
  int64_t rows, cols, nonzeros, bytes;
};
