// Many rows of x in lanes: eight rows side by side in a vector, so that a weight is multiplied with all of them at once.
//
// lanes_prepare turns x [m, cols] into blocks of up to 32 rows, each [cols][lanes of the block], lanes being rows of x
// rounded up to whole vectors (of zeros). A product is then a sum over columns of weight times vectors: nothing of W is
// transposed, and weights that are not there need not be touched. Sums are kept the same way, [row of W][lanes], and
// turned once into rows of y.
#pragma once

#include <immintrin.h>

#include <cstdlib>
#include <new>

#include "matrix.h"

namespace tailcut::avx2 {

constexpr int64_t kLane = 8;          // rows of x in a vector
constexpr int64_t kLanes = 32;        // rows of x in a block
constexpr int64_t kBlocksAtOnce = 8;  // blocks between two passes over the weights
constexpr int64_t kTileRows = 144;    // rows of W worked on together, at most: with those blocks, 144 KB of sums

// Where lanes_prepare left m rows of x: a flag a row (0: all finite), then the blocks.
struct Lanes {
  const uint32_t* odd;
  const float* at;
  int64_t m, cols;

  static int64_t header(int64_t m) { return (m + 15) / 16 * 16; }  // in floats
  static int64_t floats(int64_t m, int64_t cols) { return header(m) + (m + kLane - 1) / kLane * kLane * cols; }
  Lanes(const float* scratch, int64_t m_, int64_t cols_)
      : odd(reinterpret_cast<const uint32_t*>(scratch)), at(scratch + header(m_)), m(m_), cols(cols_) {}

  int64_t blocks() const { return (m + kLanes - 1) / kLanes; }
  int64_t vectors(int64_t block) const {
    const int64_t left = m - block * kLanes;
    return left >= kLanes ? kLanes / kLane : (left + kLane - 1) / kLane;
  }
  const float* block(int64_t b) const { return at + b * kLanes * cols; }
  bool finite() const {
    uint32_t any = 0;
    for (int64_t i = 0; i < m; ++i) any |= odd[i];
    return any == 0;
  }
};

// Memory of a thread, kept between calls.
template <class T>
class Kept {
 public:
  Kept() = default;
  Kept(const Kept&) = delete;
  Kept& operator=(const Kept&) = delete;
  ~Kept() { std::free(data_); }
  T* at_least(int64_t count) {
    if (count > count_) {
      std::free(data_);
      count_ = 0;
      const int64_t bytes = (count * int64_t(sizeof(T)) + 4095) / 4096 * 4096;
      data_ = static_cast<T*>(std::aligned_alloc(64, size_t(bytes)));
      if (data_ == nullptr) throw std::bad_alloc();
      count_ = count;
    }
    return data_;
  }

 private:
  T* data_ = nullptr;
  int64_t count_ = 0;
};

// The sums of a tile: for each of a few blocks [row][lanes].
struct TileSums {
  float* at;
  float* block(int64_t b) const { return at + b * kLanes * kTileRows; }
  static float* memory() {
    static thread_local Kept<float> kept;
    return kept.at_least(kBlocksAtOnce * kLanes * kTileRows);
  }
};

// Rows [first, last) of x into `scratch` of Lanes::floats.
void lanes_prepare(const float* x, int64_t m, int64_t cols, int64_t first, int64_t last, float* scratch);

// The finished sums of rows first … first + count - 1 (`order` says of y's) and blocks block0 … block1 - 1 into y.
struct Finished {
  const Lanes& lanes;
  TileSums sums;
  int64_t block0, block1, first, count;
  const uint32_t* order;
};
void lanes_write(const Finished& from, float* y, int64_t ldy);

// y for finite x and a bitmask or index matrix of fewer than kMostColumns columns: they are listed as 31-bit distances.
constexpr int64_t kMostColumns = int64_t{1} << 26;
void sparse_lanes(const Matrix& w, const Lanes& x, float* y, int64_t ldy, int64_t row0, int64_t row1);

}  // namespace tailcut::avx2
