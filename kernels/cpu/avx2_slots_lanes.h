// Many rows of x times slots: rows of x side by side in bytes, weights by fours.
//
// Four places of a row of W name four columns; the bytes of those columns, interleaved, are what VPMADDUBSW and VPMADDWD
// add up for one row of x in 32 bits. So only places are multiplied, each with up to 32 rows of x. |w| is the unsigned
// side; its sign chooses between a column of x and the same negated, which lie side by side. No pair saturates
// (2 * 128 * 127 = 32512), a group's sums are exact.
#pragma once

#include "avx2.h"

namespace tailcut::avx2 {

constexpr int64_t kByteLanes = 32;  // rows of x in a block

// Where lanes8_prepare left m rows of x: scales [groups][rows of x, padded], then blocks [groups][kGroup][2 signs][lanes].
struct ByteLanes {
  const float* scale;
  const int8_t* lanes;
  int64_t m, groups, padded;

  static int64_t pad(int64_t m) { return (m + kByteLanes - 1) / kByteLanes * kByteLanes; }
  static size_t bytes(const Matrix& w, int64_t m) {
    return static_cast<size_t>(w.groups * pad(m) * (int64_t(sizeof(float)) + 2 * kGroup));
  }
  ByteLanes(const Matrix& w, const uint8_t* scratch, int64_t m_)
      : scale(reinterpret_cast<const float*>(scratch)),
        lanes(reinterpret_cast<const int8_t*>(scale + w.groups * pad(m_))), m(m_), groups(w.groups), padded(pad(m_)) {}

  const float* scales(int64_t group, int64_t i0) const { return scale + group * padded + i0; }
  const int8_t* block(int64_t group, int64_t i0) const { return lanes + 2 * kGroup * (groups * i0 + group * kByteLanes); }
  // Where in a block a row of x lies: so that after interleaving, sums are in order.
  static int64_t place(int64_t row) { return row / 8 * 4 + row / 4 % 2 * 16 + row % 4; }
};

void lanes8_prepare(const Matrix& w, const float* x, int64_t m, int64_t first, int64_t last, uint8_t* scratch);
void lanes8_compute(const Matrix& w, const uint8_t* scratch, int64_t m, float* y, int64_t ldy, int64_t row0, int64_t row1);

}  // namespace tailcut::avx2
