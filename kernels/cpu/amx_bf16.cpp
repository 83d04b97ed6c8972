// bf16 matrices with AMX: panels of W expanded to bfloat16 rows, multiplied by TDPBF16PS.
//
// x is float32 and must not be rounded to bfloat16, so it is cut into three bfloat16 of 8 bits each, whose sum is x
// exactly (but for denormals, which AMX takes as zero); three products cost less than one with float32 arithmetic.
#include "amx.h"

#if defined(TAILCUT_EMULATE) || (defined(__AMX_BF16__) && defined(__AVX512VBMI2__))
#include "amx_tiles.h"
#include "avx512.h"
#include "avx512_vector.h"

namespace tailcut {
namespace {

constexpr int64_t kPanelRows = 128;  // 256 KB of sums, 74 KB of weights, 768 KB of x at most: the second cache
constexpr int64_t kPanelSteps = 8;                      // of 32 columns, expanded at a time
constexpr int64_t kPanelStride = kPanelSteps * 64 + 64;  // bytes; an odd number of cache lines
constexpr int64_t kPanelTiles = 32;                     // tiles of x whose sums are kept at once
constexpr int64_t kParts = 3;
constexpr int64_t kRowsAhead = 4;                       // whose values are asked for

struct Panel {
  alignas(64) uint8_t halves[kPanelRows][kPanelStride];
  alignas(64) float sums[kPanelTiles][kPanelRows][16];  // lane: row of x
  alignas(64) float stretch[2][2][16][16];
};

struct Stretch {
  const Matrix& w;
  Panel& panel;
  int64_t row0;
  int64_t rows;
  const uint8_t* tile;  // the first tile of x
  int64_t tiles;
  int64_t step0;
  int64_t steps;
};

// A tile of x: per 32 columns 3 parts of [16 pairs of columns][16 rows][2 columns] bfloat16.
inline int64_t steps_of(const Matrix& w) { return w.blocks * 2; }
inline int64_t tile_stride(const Matrix& w) { return steps_of(w) * kParts * 1024; }

// The upper halves of even and odd columns, side by side.
inline Ints pairs(Floats even, Floats odd) {
  return or_bits(shift_right_16(as_ints(even)), and_bits(as_ints(odd), all_ints(static_cast<int32_t>(0xffff0000u))));
}
// What 8 bits of significand leave of v; nothing of what is not finite.
inline Floats rest(Floats v) {
  return where_finite(v, sub(v, as_floats(and_bits(as_ints(v), all_ints(static_cast<int32_t>(0xffff0000u))))));
}

// 32 columns of rows [first, last) of a tile (16 rows of x; x: its first, to: its parts of these columns).
inline void arrange_step(const Matrix& w, const float* x, int64_t column, int64_t first, int64_t last, uint16_t lanes,
                         uint8_t* to) {
  Floats parts[kParts][16];
  for (int64_t i = 0; i < 16; ++i) {
    Floats even = zeros(), odd = zeros();
    if (i >= first && i < last) {
      const float* from = x + i * w.cols + column;
      // + 0: a signalling NaN becomes a quiet one, whose mark is in the upper half
      const Floats a = add(load_some(from, lanes_of(w.cols - column)), zeros());
      const Floats b = add(load_some(from + 16, lanes_of(w.cols - column - 16)), zeros());
      even = even_floats(a, b), odd = odd_floats(a, b);
    }
    for (int64_t p = 0; p < kParts; ++p) {
      parts[p][i] = as_floats(pairs(even, odd));
      even = rest(even), odd = rest(odd);
    }
  }
  for (int64_t p = 0; p < kParts; ++p) {
    transpose(parts[p]);
    for (int64_t k = 0; k < 16; ++k) store_ints_some(to + p * 1024 + k * 64, lanes, as_ints(parts[p][k]));
  }
}

struct Reader {
  const uint8_t* mask;
  const uint8_t* values;
};

inline void expand_row(const Stretch& s, Reader& reader, uint8_t* to) {
  const bool dense = !masked(s.w);
  for (int64_t step = 0; step < s.steps; ++step) {
    const uint32_t bits = dense ? ~uint32_t{0} : static_cast<uint32_t>(read_i32(reader.mask));
    store_ints(to + 64 * step, dense ? load_ints(reader.values) : expand_halves(bits, reader.values));
    reader.values += 2 * count_bits(bits), reader.mask += 4;
  }
}

template <int P, int V>
inline void multiply(const Stretch& s, int64_t r0, int64_t t) {
  tile_zero<sums_tile(0, 0)>();
  if constexpr (V > 1) tile_zero<sums_tile(0, 1)>();
  if constexpr (P > 1) tile_zero<sums_tile(1, 0)>();
  if constexpr (P > 1 && V > 1) tile_zero<sums_tile(1, 1)>();
  for (int64_t step = 0; step < s.steps; ++step) {
    const uint8_t* x = s.tile + t * tile_stride(s.w) + (s.step0 + step) * kParts * 1024;
    tile_load<weights_tile(0)>(s.panel.halves[r0] + step * 64, kPanelStride);
    if constexpr (P > 1) tile_load<weights_tile(1)>(s.panel.halves[r0 + 16] + step * 64, kPanelStride);
    for (int64_t part = kParts - 1; part >= 0; --part) {  // the smallest first
      tile_load<x_tile(0)>(x + part * 1024, 64);
      if constexpr (V > 1) tile_load<x_tile(1)>(x + tile_stride(s.w) + part * 1024, 64);
      tile_dot_bfloats<sums_tile(0, 0), weights_tile(0), x_tile(0)>();
      if constexpr (V > 1) tile_dot_bfloats<sums_tile(0, 1), weights_tile(0), x_tile(1)>();
      if constexpr (P > 1) tile_dot_bfloats<sums_tile(1, 0), weights_tile(1), x_tile(0)>();
      if constexpr (P > 1 && V > 1) tile_dot_bfloats<sums_tile(1, 1), weights_tile(1), x_tile(1)>();
    }
  }
  tile_store<sums_tile(0, 0)>(s.panel.stretch[0][0], 64);
  if constexpr (V > 1) tile_store<sums_tile(0, 1)>(s.panel.stretch[0][1], 64);
  if constexpr (P > 1) tile_store<sums_tile(1, 0)>(s.panel.stretch[1][0], 64);
  if constexpr (P > 1 && V > 1) tile_store<sums_tile(1, 1)>(s.panel.stretch[1][1], 64);
  for (int p = 0; p < P; ++p)
    for (int v = 0; v < V; ++v)
      for (int r = 0; r < 16; ++r) {
        float* sums = s.panel.sums[t + v][r0 + 16 * p + r];
        store(sums, add(load(sums), load(s.panel.stretch[p][v][r])));
      }
}

inline void multiply_tiles(const Stretch& s) {
  for (int64_t t = 0; t < s.tiles; t += 2)
    for (int64_t r0 = 0; r0 < s.rows; r0 += 32) {
      const bool pair = t + 1 < s.tiles, tall = s.rows - r0 > 16;
      if (tall && pair) multiply<2, 2>(s, r0, t);
      else if (tall) multiply<2, 1>(s, r0, t);
      else if (pair) multiply<1, 2>(s, r0, t);
      else multiply<1, 1>(s, r0, t);
    }
}

inline void write_tiles(const Stretch& s, int64_t m, float* y, int64_t ldy) {
  for (int64_t t = 0; t < s.tiles; ++t)
    for (int64_t r0 = 0; r0 < s.rows; r0 += 16) {
      Floats lanes[16];
      TAILCUT_UNROLL for (int r = 0; r < 16; ++r) lanes[r] = load(s.panel.sums[t][r0 + r]);
      transpose(lanes);
      for (int64_t i = 0; i < smaller(16, m - 16 * t); ++i)
        store_some(y + (16 * t + i) * ldy + s.row0 + r0, lanes_of(s.rows - r0), lanes[i]);
    }
}

inline void multiply_panel(Stretch s, int64_t m, float* y, int64_t ldy) {
  Reader readers[kPanelRows];
  for (int64_t r = 0; r < s.rows; ++r) {
    readers[r].mask = s.w.data + s.w.row_start[s.row0 + r];
    readers[r].values = readers[r].mask + (masked(s.w) ? s.w.blocks * 8 : 0);
  }
  std::memset(s.panel.sums, 0, static_cast<size_t>(s.tiles) * sizeof s.panel.sums[0]);
  for (s.step0 = 0; s.step0 < steps_of(s.w); s.step0 += kPanelSteps) {
    s.steps = smaller(kPanelSteps, steps_of(s.w) - s.step0);
    const int64_t bytes = static_cast<int64_t>(s.w.data_bytes) / s.w.rows * s.steps / steps_of(s.w);
    for (int64_t r = 0; r < s.rows; ++r) {
      const Reader& later = readers[smaller(r + kRowsAhead, s.rows - 1)];
      prefetch(later.mask), prefetch_lines(later.values, bytes);
      expand_row(s, readers[r], s.panel.halves[r]);
    }
    multiply_tiles(s);
  }
  write_tiles(s, m, y, ldy);
}

}  // namespace

size_t amx::bfloat_scratch_bytes(const Matrix& w, int64_t m) {
  return static_cast<size_t>((m + 15) / 16 * tile_stride(w));
}

void amx::bfloat_prepare(const Matrix& w, const float* x, int64_t m, int64_t first, int64_t last, uint8_t* scratch) {
  for (int64_t i = first; i < last;) {
    const int64_t tile = i / 16, stop = smaller(last, 16 * tile + 16);
    const uint16_t lanes = lanes_between(i % 16, stop - 16 * tile, stop == m);
    for (int64_t step = 0; step < steps_of(w); ++step)
      arrange_step(w, x + 16 * tile * w.cols, step * 32, i % 16, stop - 16 * tile, lanes,
                   scratch + tile * tile_stride(w) + step * kParts * 1024);
    i = stop;
  }
}

void amx::bfloat_compute(const Matrix& w, const uint8_t* scratch, int64_t m, float* y, int64_t ldy, int64_t row0,
                         int64_t row1) {
  static thread_local Panel panel;
  const Tiles configured;
  const int64_t tiles = (m + 15) / 16;
  for (int64_t t = 0; t < tiles; t += kPanelTiles)
    for (int64_t r = row0; r < row1; r += kPanelRows)
      multiply_panel(Stretch{w, panel, r, smaller(kPanelRows, row1 - r), scratch + t * tile_stride(w),
                             smaller(kPanelTiles, tiles - t), 0, 0},
                     m - 16 * t, y + 16 * t * ldy, ldy);
}

}  // namespace tailcut
#endif
