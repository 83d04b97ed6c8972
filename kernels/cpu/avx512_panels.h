// Many rows of x against an i8 or i4 matrix: 128 rows of W are expanded to bytes, 1024 columns at a time, and
// multiplied with all tiles of x. Expanded rows, that stretch of x and the sums (128 KB, 512 KB, 256 KB at most)
// stay in the second cache; x is read from farther away once for 128 rows. What multiplies (VPDPBUSD or AMX) is the
// parameter `Product`.
#pragma once

#include "avx512_quantise.h"
#include "avx512_weights.h"

namespace tailcut {
namespace {

constexpr int64_t kPanelRows = 128;
constexpr int64_t kPanelBlocks = 16;                    // 64-column blocks expanded at a time
constexpr int64_t kPanelStride = kPanelBlocks * 64 + 64;  // an odd number of cache lines
constexpr int64_t kPanelTiles = 32;                     // tiles of x whose sums are kept at once

struct Panel {
  alignas(64) uint8_t bytes[kPanelRows][kPanelStride];
  alignas(64) float sums[kPanelTiles][kPanelRows][16];  // lane: row of x
};

inline Panel& panel_of_thread() {
  static thread_local Panel panel;
  return panel;
}

// A stretch of columns of a panel against tiles of x: sums[t][r][i] += scale * (exact sums of each group).
struct Stretch {
  const Matrix& w;
  Panel& panel;
  int64_t row0;         // of W, the panel's first
  int64_t rows;         // of the panel that exist
  const uint8_t* tile;  // the first tile of x
  int64_t tiles;
  int64_t block0;  // even
  int64_t blocks;
};

inline const float* scales_of(const Matrix& w, const uint8_t* tile, int64_t g) {
  return reinterpret_cast<const float*>(tile + w.blocks * 1024 + g * 64);
}
inline const int32_t* starts_of(const Matrix& w, const uint8_t* tile, int64_t g) {
  return reinterpret_cast<const int32_t*>(tile + w.blocks * 1024 + (w.groups + g) * 64);
}
// The scale of a weight's group within its row; rows behind the last read the last one's.
inline float weight_scale(const Stretch& s, int64_t row, int64_t g) {
  return s.w.scales[(s.row0 + smaller(row, s.rows - 1)) * s.w.groups + g];
}

// Rows ahead whose values are asked for. A stretch of a row is a few lines, no stream that the hardware would follow.
constexpr int64_t kRowsAhead = 4;

template <class Weights>
inline void expand_stretch(const Stretch& s, Weights* readers) {
  const int64_t bytes = static_cast<int64_t>(s.w.data_bytes) / s.w.rows * s.blocks / s.w.blocks;
  for (int64_t r = 0; r < s.rows; ++r) {
    if (r + kRowsAhead < s.rows) readers[r + kRowsAhead].ask(bytes);
    Weights reader = readers[r];
    for (int64_t b = 0; b < s.blocks; ++b) store_ints(s.panel.bytes[r] + 64 * b, reader.next());
    readers[r] = reader;
  }
}

// sums [row][x row] of one tile to y [x row][row].
template <bool kRowScales>
inline void write_tile(const Stretch& s, int64_t t, int64_t x_rows, float* y, int64_t ldy) {
  for (int64_t r0 = 0; r0 < s.rows; r0 += 16) {
    Floats lanes[16];
    TAILCUT_UNROLL for (int r = 0; r < 16; ++r) lanes[r] = load(s.panel.sums[t][r0 + r]);
    transpose(lanes);
    const uint16_t there = lanes_of(s.rows - r0);
    const Floats scale = kRowScales ? load_some(s.w.scales + s.row0 + r0, there) : all(1.0f);
    for (int64_t i = 0; i < x_rows; ++i) store_some(y + i * ldy + s.row0 + r0, there, mul(lanes[i], scale));
  }
}

template <class Weights, class Product>
inline void multiply_panel(Stretch s, int64_t x_rows, float* y, int64_t ldy) {
  Weights readers[kPanelRows];
  for (int64_t r = 0; r < s.rows; ++r) readers[r] = Weights(s.w, s.row0 + r);
  std::memset(s.panel.sums, 0, static_cast<size_t>(s.tiles) * sizeof s.panel.sums[0]);
  for (s.block0 = 0; s.block0 < s.w.blocks; s.block0 += kPanelBlocks) {
    s.blocks = smaller(kPanelBlocks, s.w.blocks - s.block0);
    expand_stretch(s, readers);
    Product::template run<Weights::group_scales>(s);
  }
  for (int64_t t = 0; t < s.tiles; ++t)
    write_tile<!Weights::group_scales>(s, t, smaller(16, x_rows - 16 * t), y + 16 * t * ldy, ldy);
}

template <class Weights, class Product>
inline void multiply_panels(const Matrix& w, const uint8_t* scratch, int64_t m, float* y, int64_t ldy, int64_t row0,
                            int64_t row1) {
  Panel& panel = panel_of_thread();
  for (int64_t t = 0; t < tiles_of(m); t += kPanelTiles)
    for (int64_t r = row0; r < row1; r += kPanelRows) {
      const Stretch s{w, panel, r, smaller(kPanelRows, row1 - r), scratch + t * tile_stride(w),
                      smaller(kPanelTiles, tiles_of(m) - t), 0, 0};
      multiply_panel<Weights, Product>(s, m - 16 * t, y + 16 * t * ldy, ldy);
    }
}

}  // namespace
}  // namespace tailcut
