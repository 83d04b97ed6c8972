// The packed matrix and the table of functions that every instruction set fills in.
//
// A matrix W [rows, cols] comes in as the package stores it (Source: one bit mask a row, values in row order) and is
// packed once into the order in which the kernels read it. Formats are versioned by kFormatVersion; they live in
// memory only and never reach a file.
//
//   bitmask   per row: ceil(cols / 64) mask words (8 bytes, bit c of word b = column 64 b + c), then the row's values,
//             then zeros up to a multiple of 8 bytes. One stream in memory order.
//             f32, f16, bf16: the values as they are. i8: one byte each. i4: two a byte (low first, stored as q + 8),
//             each 64-column block starting at a whole byte.
//   dense     per row: cols values, padded with zeros to 64 columns (i8: bytes, i4: nibbles as above).
//   index     f32, f16, bf16 only, see index.h. Cheaper than bitmask when hardly anything is left.
//   slots     i8 and i4, see slots.h (AVX2) and slots512.h (AVX-512).
//
// i8 bytes are w when `signed_bytes`, else w + 128 (what VPDPBUSD wants as its unsigned side).
// Activations of i8 and i4 matrices are quantised to int8 in groups of kGroup columns (symmetric, round to nearest
// even, scale = max |x| / 127 of the group); products are summed exactly in int32 within a group, groups in float32.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>

namespace tailcut {

constexpr int kFormatVersion = 1;
constexpr int64_t kBlock = 64;   // columns of one mask word
constexpr int64_t kGroup = 128;  // columns that share an activation scale, and in i4 a weight scale
constexpr int64_t kTile = 16;    // rows a range given to `compute` starts at a multiple of
constexpr size_t kSlack = 8192;  // readable bytes behind the last row: wide loads and prefetches may run over

enum class Kind : int32_t { f32 = 0, f16 = 1, bf16 = 2, i8 = 3, i4 = 4 };
enum class Format : int32_t { automatic = -1, dense = 0, bitmask = 1, index = 2, slots = 3 };
enum class Isa : int32_t { automatic = -1, portable = 0, avx2 = 1, avx512 = 2, amx = 3 };

// What the package holds; borrowed, not modified. `mask` [rows, ceil(cols / 8)], little-endian bits, or null when the
// matrix is dense. values: `value_count` entries in row order (i4: nibbles q + 8 in one flat stream over all rows with a
// mask; without a mask each row starts at a whole byte). scales: i8 [rows], i4 [rows, ceil(cols / kGroup)], else null.
struct Source {
  Kind kind;
  int64_t rows;
  int64_t cols;
  const uint8_t* mask;
  size_t mask_bytes;
  const void* values;
  size_t value_bytes;
  const float* scales;
  size_t scale_count;
};

struct Kernels;

struct Matrix {
  Kind kind;
  Format format;
  Isa isa;
  bool signed_bytes;  // i8 values are stored as they are, not + 128
  int64_t rows;
  int64_t cols;
  int64_t blocks;  // ceil(cols / kBlock)
  int64_t groups;  // ceil(cols / kGroup)
  int64_t nonzeros;
  const uint8_t* data;        // 64-byte aligned, huge pages advised, kSlack readable bytes behind
  size_t data_bytes;          // without slack
  const uint64_t* row_start;  // [rows + 1] offsets into data of row records (bitmask, dense), else per format
  const float* scales;        // i8 [rows], i4 [rows, groups], else null
  const Kernels* kernels;     // the functions of `isa`
  bool fine = false;          // i8, i4: activations in two int8 parts instead of one, see fine.h
  std::shared_ptr<void> memory;
};

// The functions of one instruction set. x is [m, cols] float32, contiguous; y[i * ldy + r].
struct Kernels {
  const char* name;
  // Bytes `prepare` writes for m rows of x; 0 if `compute` reads x itself. A multiple of 64.
  size_t (*scratch_bytes)(const Matrix& w, int64_t m);
  // Arrange rows [first, last) of the m rows of x. Ranges of different threads do not overlap.
  void (*prepare)(const Matrix& w, const float* x, int64_t m, int64_t first, int64_t last, uint8_t* scratch);
  // y[i, r] for i < m and row0 <= r < row1 (row0 a multiple of kTile). Any m >= 1. Results do not depend on the range.
  void (*compute)(const Matrix& w, const float* x, const uint8_t* scratch, int64_t m, float* y, int64_t ldy,
                  int64_t row0, int64_t row1);
};

// One table per translation unit; null where the compiler had no such instruction set.
const Kernels* portable_kernels();
const Kernels* avx2_kernels();
const Kernels* avx512_kernels();
const Kernels* amx_kernels();

// Whether this processor (and operating system) runs it. AMX asks the kernel for permission on first use.
bool isa_available(Isa isa);
Isa best_isa();
const char* isa_name(Isa isa);
const Kernels* kernels_of(Isa isa);

// Pack; on failure an empty pointer and a sentence in *error. automatic chooses by measured cost.
std::unique_ptr<Matrix> pack(const Source& source, Isa isa, Format format, std::string* error);

// How work is spread: run(count, body, context) calls body(context, i) for every i < count, any thread, any order.
struct Parallel {
  virtual ~Parallel() = default;
  virtual void run(int64_t count, void (*body)(void*, int64_t), void* context) = 0;
};

// y [m, rows] = x [m, cols] W^T. `scratch` is grown as needed and may be kept between calls (one caller at a time).
struct Scratch {
  uint8_t* data = nullptr;
  size_t bytes = 0;
  Scratch() = default;
  Scratch(const Scratch&) = delete;
  Scratch& operator=(const Scratch&) = delete;
  ~Scratch();
  uint8_t* at_least(size_t wanted);  // 64-byte aligned
};
void matmul(const Matrix& w, const float* x, int64_t m, float* y, Parallel& parallel, Scratch& scratch);

// Calls of `matmul` since the process started, by kind, format and instruction set: the proof of what ran.
struct Counter {
  const char* name;  // such as "i8 bitmask avx2"
  uint64_t calls;
};
int counters(Counter* out, int capacity);

}  // namespace tailcut
