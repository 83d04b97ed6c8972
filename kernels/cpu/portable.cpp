// Plain C++ for every processor, and the definition of what the other translation units compute.
//
// Rows of W are expanded one at a time to a dense row; sums are float32 per row in column order of four interleaved
// partial sums (a compiler may keep them in registers), int8 groups are summed exactly.

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <vector>

#include "index.h"
#include "matrix.h"

namespace tailcut {
namespace {

bool integer(const Matrix& w) { return w.kind == Kind::i8 || w.kind == Kind::i4; }

float from_bits(uint32_t bits) {
  float value;
  std::memcpy(&value, &bits, 4);
  return value;
}

float half_to_float(uint16_t h) {
  const uint32_t sign = static_cast<uint32_t>(h & 0x8000) << 16;
  const uint32_t exponent = h >> 10 & 31, fraction = h & 1023;
  if (exponent == 31) return from_bits(sign | 0x7f800000u | fraction << 13);
  if (exponent == 0) {  // zero and subnormals: exact in float
    const float value = static_cast<float>(fraction) * 0x1p-24f;
    return sign ? -value : value;
  }
  return from_bits(sign | (exponent + 112) << 23 | fraction << 13);
}

float read_float(Kind kind, const uint8_t* at) {
  if (kind == Kind::f32) {
    float value;
    std::memcpy(&value, at, 4);
    return value;
  }
  uint16_t bits;
  std::memcpy(&bits, at, 2);
  return kind == Kind::bf16 ? from_bits(static_cast<uint32_t>(bits) << 16) : half_to_float(bits);
}

int read_integer(const Matrix& w, const uint8_t* values, int64_t index) {
  if (w.kind == Kind::i4) return (index & 1 ? values[index / 2] >> 4 : values[index / 2] & 15) - 8;
  return w.signed_bytes ? static_cast<int8_t>(values[index]) : static_cast<int>(values[index]) - 128;
}

// Bytes of a block's values.
int64_t block_bytes(Kind kind, int64_t count) {
  if (kind == Kind::i4) return (count + 1) / 2;
  return count * (kind == Kind::f32 ? 4 : kind == Kind::i8 ? 1 : 2);
}

// Calls put(column, values of the block, index in the block) for every stored entry of a row.
template <class Put>
void each_entry(const Matrix& w, int64_t row, Put put) {
  const uint8_t* record = w.data + w.row_start[row];
  const uint8_t* values = w.format == Format::bitmask ? record + w.blocks * 8 : record;
  for (int64_t block = 0; block < w.blocks; ++block) {
    uint64_t word = ~uint64_t{0};
    if (w.format == Format::bitmask) std::memcpy(&word, record + block * 8, 8);
    int64_t count = 0;
    for (int64_t j = 0; j < kBlock; ++j)
      if (word >> j & 1) {
        const int64_t column = block * kBlock + j;
        if (column < w.cols) put(column, values, count);
        ++count;
      }
    values += block_bytes(w.kind, count);
  }
}

// What `prepare` leaves for one row of x: a scale a group, a flag, then the quantised columns.
struct Quantised {
  float* scales;
  uint8_t* bad;  // 1: a NaN or an infinity was among the activations
  int8_t* q;
};

size_t quantised_bytes(const Matrix& w) {
  return static_cast<size_t>((w.groups * 4 + 4 + w.cols + 63) / 64 * 64);
}

Quantised quantised(const Matrix& w, const uint8_t* scratch, int64_t i) {
  uint8_t* at = const_cast<uint8_t*>(scratch) + static_cast<size_t>(i) * quantised_bytes(w);
  return {reinterpret_cast<float*>(at), at + w.groups * 4, reinterpret_cast<int8_t*>(at + w.groups * 4 + 4)};
}

size_t scratch_bytes(const Matrix& w, int64_t m) { return integer(w) ? static_cast<size_t>(m) * quantised_bytes(w) : 0; }

void quantise_group(const float* x, int64_t count, float* scale, int8_t* q, uint8_t* bad) {
  float largest = 0;
  for (int64_t j = 0; j < count; ++j) {
    if (!std::isfinite(x[j])) *bad = 1;
    if (std::fabs(x[j]) > largest) largest = std::fabs(x[j]);
  }
  const float inverse = largest > 0 ? 127.0f / largest : 0.0f;
  const bool usable = inverse > 0 && std::isfinite(inverse);  // denormal groups count as zero
  *scale = usable ? largest / 127.0f : 0.0f;
  for (int64_t j = 0; j < count; ++j)
    q[j] = usable && std::isfinite(x[j]) ? static_cast<int8_t>(std::nearbyint(x[j] * inverse)) : int8_t{0};
}

void prepare(const Matrix& w, const float* x, int64_t, int64_t first, int64_t last, uint8_t* scratch) {
  if (!integer(w)) return;
  for (int64_t i = first; i < last; ++i) {
    const Quantised to = quantised(w, scratch, i);
    *to.bad = 0;
    for (int64_t g = 0; g < w.groups; ++g) {
      const int64_t at = g * kGroup, count = w.cols - at < kGroup ? w.cols - at : kGroup;
      quantise_group(x + i * w.cols + at, count, to.scales + g, to.q + at, to.bad);
    }
  }
}

float dot_float(const float* x, const std::vector<float>& row) {
  float part[4] = {0, 0, 0, 0};
  for (size_t j = 0; j < row.size(); ++j) part[j & 3] += x[j] * row[j];
  return (part[0] + part[1]) + (part[2] + part[3]);
}

float dot_integer(const Matrix& w, const Quantised& x, const std::vector<int8_t>& row, int64_t r) {
  if (*x.bad) return std::numeric_limits<float>::quiet_NaN();
  float sum = 0;
  for (int64_t g = 0; g < w.groups; ++g) {
    const int64_t stop = (g + 1) * kGroup < w.cols ? (g + 1) * kGroup : w.cols;
    int32_t exact = 0;
    for (int64_t j = g * kGroup; j < stop; ++j) exact += int{x.q[j]} * int{row[static_cast<size_t>(j)]};
    const float scale = w.kind == Kind::i4 ? x.scales[g] * w.scales[r * w.groups + g] : x.scales[g];
    sum += static_cast<float>(exact) * scale;
  }
  return w.kind == Kind::i8 ? sum * w.scales[r] : sum;
}

void compute_integer(const Matrix& w, const uint8_t* scratch, int64_t m, float* y, int64_t ldy, int64_t row0, int64_t row1) {
  std::vector<int8_t> dense(static_cast<size_t>(w.cols));
  for (int64_t r = row0; r < row1; ++r) {
    std::fill(dense.begin(), dense.end(), int8_t{0});
    each_entry(w, r, [&](int64_t column, const uint8_t* values, int64_t index) {
      dense[static_cast<size_t>(column)] = static_cast<int8_t>(read_integer(w, values, index));
    });
    for (int64_t i = 0; i < m; ++i) y[i * ldy + r] = dot_integer(w, quantised(w, scratch, i), dense, r);
  }
}

void compute_float(const Matrix& w, const float* x, int64_t m, float* y, int64_t ldy, int64_t row0, int64_t row1) {
  std::vector<float> dense(static_cast<size_t>(w.cols));
  const int64_t step = block_bytes(w.kind, 1);
  for (int64_t r = row0; r < row1; ++r) {
    std::fill(dense.begin(), dense.end(), 0.0f);
    each_entry(w, r, [&](int64_t column, const uint8_t* values, int64_t index) {
      dense[static_cast<size_t>(column)] = read_float(w.kind, values + index * step);
    });
    for (int64_t i = 0; i < m; ++i) y[i * ldy + r] = dot_float(x + i * w.cols, dense);
  }
}

// One lane of a slice as a dense row.
void expand_lane(const Matrix& w, int64_t slot, std::vector<float>* dense) {
  std::fill(dense->begin(), dense->end(), 0.0f);
  const int64_t slice = slot / kTile, lane = slot % kTile, size = block_bytes(w.kind, 1);
  const uint8_t* stop = w.data + w.row_start[slice + 1];
  int64_t column = 0;
  for (const uint8_t* group = w.data + w.row_start[slice]; group < stop; group += index_group_bytes(w.kind))
    for (int64_t step = 0; step < kIndexSteps; ++step) {
      const int64_t at = step * kTile + lane;
      column += group[at];
      (*dense)[static_cast<size_t>(column)] += read_float(w.kind, group + kIndexSteps * kTile + at * size);
    }
}

void compute_index(const Matrix& w, const float* x, int64_t m, float* y, int64_t ldy, int64_t row0, int64_t row1) {
  std::vector<float> dense(static_cast<size_t>(w.cols));
  for (int64_t slot = row0; slot < row1; ++slot) {
    expand_lane(w, slot, &dense);
    for (int64_t i = 0; i < m; ++i) y[i * ldy + index_order(w)[slot]] = dot_float(x + i * w.cols, dense);
  }
}

void compute(const Matrix& w, const float* x, const uint8_t* scratch, int64_t m, float* y, int64_t ldy, int64_t row0,
             int64_t row1) {
  if (integer(w)) compute_integer(w, scratch, m, y, ldy, row0, row1);
  else if (w.format == Format::index) compute_index(w, x, m, y, ldy, row0, row1);
  else compute_float(w, x, m, y, ldy, row0, row1);
}

}  // namespace

const Kernels* portable_kernels() {
  static const Kernels table{"portable", scratch_bytes, prepare, compute};
  return &table;
}

}  // namespace tailcut
