// Many rows of x times i8 and i4 weights: eight rows of x side by side in a vector, two columns of int16 each.
//
// VPMADDWD multiplies such pairs of columns with a pair of weights and adds the two exactly; a group of columns stays far
// inside int32 (128 * 127 * 127). Blocks of up to 64 rows of x, each [pairs of columns][lanes][2], lanes being rows of x
// rounded up to whole vectors (of zeros); the scales of its groups in front, [groups][lanes].
#pragma once

#include "avx2.h"

namespace tailcut::avx2 {

constexpr int64_t kIntLane = 8;                      // rows of x in a vector
constexpr int64_t kIntVectors = 8;                   // vectors in a block
constexpr int64_t kIntLanes = kIntLane * kIntVectors;
constexpr int64_t kPairs = kGroup / 2;

struct IntLanes {
  const float* scale;
  const int16_t* pair;
  int64_t m, groups, columns;  // columns: padded to blocks of 64

  static int64_t lanes(int64_t m) { return (m + kIntLane - 1) / kIntLane * kIntLane; }
  static size_t bytes(const Matrix& w, int64_t m) {
    const int64_t each = (w.groups * int64_t(sizeof(float)) + w.blocks * kBlock * int64_t(sizeof(int16_t)));
    return static_cast<size_t>((lanes(m) * each + 63) / 64 * 64);
  }
  IntLanes(const Matrix& w, const uint8_t* scratch, int64_t m_)
      : scale(reinterpret_cast<const float*>(scratch)),
        pair(reinterpret_cast<const int16_t*>(scale + lanes(m_) * w.groups)),
        m(m_), groups(w.groups), columns(w.blocks * kBlock) {}

  int64_t blocks() const { return (m + kIntLanes - 1) / kIntLanes; }
  int64_t vectors(int64_t block) const {
    const int64_t left = m - block * kIntLanes;
    return left >= kIntLanes ? kIntVectors : (left + kIntLane - 1) / kIntLane;
  }
  const float* scales(int64_t block, int64_t group) const {
    return scale + block * kIntLanes * groups + group * vectors(block) * kIntLane;
  }
  const int16_t* group(int64_t block, int64_t g) const {
    return pair + block * kIntLanes * columns + g * kGroup * vectors(block) * kIntLane;
  }
};

// What is left of a group of columns of kPanelRows rows of W: pairs of weights, and where in a vector's worth of x each
// pair's columns lie (in bytes). Dense: all pairs in order, `at` unused.
constexpr int64_t kPanelRows = 64;
constexpr int kListStep = 4;
struct PanelLists {
  alignas(64) uint32_t weights[kPanelRows][kPairs + 8];  // lists are written eight entries at a time
  alignas(64) uint32_t at[kPanelRows][kPairs + 8];
  int count[kPanelRows];  // a multiple of kListStep: pairs of 0 fill a list up
};

// Adds a group's products, scaled, to the sums [row][lanes] of one block of x. `own` [rows]: i4, the group's weight scales.
struct PanelStep {
  const PanelLists* lists;
  int64_t rows, pairs;
  const int16_t* x;
  const float* scales;
  const float* own;
  float* sums;
  const char* ahead;  // x of the next step: ahead_lines cache lines of it are asked for a row
  int64_t ahead_lines;
};
void panel_sparse(const PanelStep& step, int64_t vectors);
void panel_dense(const PanelStep& step, int64_t vectors);

// A group of a tile of 16 rows as int8 [16][kGroup], from its record on; where the next record begins.
const uint8_t* slots_expand(const Matrix& w, const uint8_t* record, int64_t group, int8_t* to);

// Rows [first, last) of x into IntLanes::bytes of scratch; `first` a multiple of kIntLane, `last` too or m.
void panel_prepare(const Matrix& w, const float* x, int64_t m, int64_t first, int64_t last, uint8_t* scratch);

inline void transpose8(__m256 (&v)[8]) {
  __m256 a[8], b[8];
  for (int k = 0; k < 8; k += 2) a[k] = _mm256_unpacklo_ps(v[k], v[k + 1]), a[k + 1] = _mm256_unpackhi_ps(v[k], v[k + 1]);
  for (int k = 0; k < 8; k += 4) {
    b[k] = _mm256_shuffle_ps(a[k], a[k + 2], 0x44), b[k + 1] = _mm256_shuffle_ps(a[k], a[k + 2], 0xee);
    b[k + 2] = _mm256_shuffle_ps(a[k + 1], a[k + 3], 0x44), b[k + 3] = _mm256_shuffle_ps(a[k + 1], a[k + 3], 0xee);
  }
  for (int k = 0; k < 4; ++k) {
    v[k] = _mm256_permute2f128_ps(b[k], b[k + 4], 0x20);
    v[k + 4] = _mm256_permute2f128_ps(b[k], b[k + 4], 0x31);
  }
}

}  // namespace tailcut::avx2
