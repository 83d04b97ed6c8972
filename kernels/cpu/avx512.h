// What the AVX-512 translation units share: the functions of integer and of float matrices, and small helpers.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>

#include "matrix.h"

// Loops over registers must vanish, or their arrays go to memory. Emulated, they only take long to compile.
#if defined(TAILCUT_EMULATE)
#define TAILCUT_UNROLL
#else
#define TAILCUT_UNROLL _Pragma("GCC unroll 16")
#endif

namespace tailcut {
namespace avx512 {

// Up to this many rows of x, rows of W are expanded in registers and multiplied at once; above, panels of W are
// expanded to memory first. x is padded with rows of zeros to 1, 2, 4 or 8 rows, the sizes compiled.
constexpr int64_t kFewRows = 8;
static constexpr int64_t padded_rows(int64_t m) { return m <= 2 ? m : m <= 4 ? 4 : 8; }

size_t integer_scratch_bytes(const Matrix& w, int64_t m);
void integer_prepare(const Matrix& w, const float* x, int64_t m, int64_t first, int64_t last, uint8_t* scratch);
void integer_compute(const Matrix& w, const uint8_t* scratch, int64_t m, float* y, int64_t ldy, int64_t row0,
                     int64_t row1);

// Slots of i8 and i4, up to kSlotsRows rows of x; above, panels of them are expanded (avx512_slots_panel.h).
constexpr int64_t kSlotsRows = 16;
size_t slots_scratch_bytes(const Matrix& w, int64_t m);
void slots_prepare(const Matrix& w, const float* x, int64_t m, int64_t first, int64_t last, uint8_t* scratch);
void slots_compute(const Matrix& w, const uint8_t* scratch, int64_t m, float* y, int64_t ldy, int64_t row0, int64_t row1);
static constexpr bool by_slots(const Matrix& w, int64_t m) { return w.format == Format::slots && m <= kSlotsRows; }

size_t float_scratch_bytes(const Matrix& w, int64_t m);
void float_prepare(const Matrix& w, const float* x, int64_t m, int64_t first, int64_t last, uint8_t* scratch);
void float_compute(const Matrix& w, const float* x, const uint8_t* scratch, int64_t m, float* y, int64_t ldy,
                   int64_t row0, int64_t row1);

// For more than kFewRows rows of x (avx512_lanes.cpp).
void lanes_prepare(const Matrix& w, const float* x, int64_t m, int64_t first, int64_t last, float* to);
void lanes_compute(const Matrix& w, const float* x, int64_t m, float* y, int64_t ldy, int64_t row0, int64_t row1);

// The index format. More than kGatherRows rows of x are arranged like many rows of the other formats.
constexpr int64_t kGatherRows = 4;
size_t index_scratch_bytes(const Matrix& w, int64_t m);
void index_prepare(const Matrix& w, const float* x, int64_t m, int64_t first, int64_t last, uint8_t* scratch);
void index_compute(const Matrix& w, const float* x, const uint8_t* scratch, int64_t m, float* y, int64_t ldy,
                   int64_t row0, int64_t row1);
void index_lanes(const Matrix& w, const float* x, int64_t m, float* y, int64_t ldy, int64_t row0, int64_t row1);

}  // namespace avx512

namespace {

inline uint64_t read_u64(const uint8_t* at) {
  uint64_t value;
  std::memcpy(&value, at, 8);
  return value;
}
inline int32_t read_i32(const uint8_t* at) {
  int32_t value;
  std::memcpy(&value, at, 4);
  return value;
}
inline int64_t count_bits(uint64_t word) { return __builtin_popcountll(word); }
inline int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }
// The lanes of a vector of 16 that exist when `count` elements are left.
inline uint16_t lanes_of(int64_t count) {
  return count >= 16 ? uint16_t{0xffff} : count <= 0 ? uint16_t{0} : static_cast<uint16_t>((1u << count) - 1);
}
// Lanes [first, last) of 16, and those behind the last row of x as well when this is the last row.
inline uint16_t lanes_between(int64_t first, int64_t last, bool to_the_end) {
  const unsigned below = to_the_end ? 0xffffu : (1u << last) - 1;
  return static_cast<uint16_t>(below & ~((1u << first) - 1));
}
inline bool masked(const Matrix& w) { return w.format == Format::bitmask; }

}  // namespace
}  // namespace tailcut
