// i8 and i4 matrices with AMX: panels as in avx512_panels.h, multiplied by TDPBUSD. A tile of weights is 16 rows of W
// as they are expanded, a tile of x has been arranged by `quantise_tiles`.
#include "amx.h"

#if defined(TAILCUT_EMULATE) || (defined(__AMX_INT8__) && defined(__AVX512VNNI__))
#include "amx_tiles.h"
#include "avx512_slots_panel.h"

namespace tailcut {
namespace {

struct Exact {
  alignas(64) int32_t sums[2][2][16][16];
};

struct TileProduct {
  // The exact sums of one group: P tiles of W against V tiles of x. Sums start at what undoes the weights' offset.
  template <int P, int V>
  static inline void multiply(const Stretch& s, int64_t r0, int64_t t, int64_t g, Exact& to) {
    const uint8_t* x0 = s.tile + t * tile_stride(s.w);
    const uint8_t* x1 = x0 + tile_stride(s.w);
    tile_load<sums_tile(0, 0)>(starts_of(s.w, x0, g), 0);
    if constexpr (V > 1) tile_load<sums_tile(0, 1)>(starts_of(s.w, x1, g), 0);
    if constexpr (P > 1) tile_load<sums_tile(1, 0)>(starts_of(s.w, x0, g), 0);
    if constexpr (P > 1 && V > 1) tile_load<sums_tile(1, 1)>(starts_of(s.w, x1, g), 0);
    const int64_t stop = smaller(2 * g + 2, s.block0 + s.blocks);
    for (int64_t b = 2 * g; b < stop; ++b) {
      tile_load<weights_tile(0)>(s.panel.bytes[r0] + (b - s.block0) * 64, kPanelStride);
      if constexpr (P > 1) tile_load<weights_tile(1)>(s.panel.bytes[r0 + 16] + (b - s.block0) * 64, kPanelStride);
      tile_load<x_tile(0)>(x0 + b * 1024, 64);
      if constexpr (V > 1) tile_load<x_tile(1)>(x1 + b * 1024, 64);
      tile_dot_bytes<sums_tile(0, 0), weights_tile(0), x_tile(0)>();
      if constexpr (V > 1) tile_dot_bytes<sums_tile(0, 1), weights_tile(0), x_tile(1)>();
      if constexpr (P > 1) tile_dot_bytes<sums_tile(1, 0), weights_tile(1), x_tile(0)>();
      if constexpr (P > 1 && V > 1) tile_dot_bytes<sums_tile(1, 1), weights_tile(1), x_tile(1)>();
    }
    tile_store<sums_tile(0, 0)>(to.sums[0][0], 64);
    if constexpr (V > 1) tile_store<sums_tile(0, 1)>(to.sums[0][1], 64);
    if constexpr (P > 1) tile_store<sums_tile(1, 0)>(to.sums[1][0], 64);
    if constexpr (P > 1 && V > 1) tile_store<sums_tile(1, 1)>(to.sums[1][1], 64);
  }

  template <bool kGroupScales>
  static inline void add_scaled(const Stretch& s, int64_t r0, int64_t t, int64_t g, const int32_t (*exact)[16]) {
    const Floats scale = load(scales_of(s.w, s.tile + t * tile_stride(s.w), g));
    for (int64_t r = 0; r < 16; ++r) {
      float* sums = s.panel.sums[t][r0 + r];
      const Floats by = kGroupScales ? mul(scale, all(weight_scale(s, r0 + r, g))) : scale;
      store(sums, fma(to_floats(load_ints(exact[r])), by, load(sums)));
    }
  }

  template <bool kGroupScales, int P, int V>
  static inline void groups(const Stretch& s, int64_t r0, int64_t t) {
    Exact exact[2];  // two in turn: a group's sums are scaled while the next one's are multiplied
    const int64_t g0 = s.block0 / 2, g1 = (s.block0 + s.blocks + 1) / 2;
    for (int64_t g = g0; g < g1; ++g) {
      Exact& now = exact[g % 2];
      multiply<P, V>(s, r0, t, g, now);
      for (int p = 0; p < P; ++p)
        for (int v = 0; v < V; ++v) add_scaled<kGroupScales>(s, r0 + 16 * p, t + v, g, now.sums[p][v]);
    }
  }

  template <bool kGroupScales>
  static inline void run(const Stretch& s) {
    for (int64_t t = 0; t < s.tiles; t += 2)
      for (int64_t r0 = 0; r0 < s.rows; r0 += 32) {
        const bool pair = t + 1 < s.tiles, tall = s.rows - r0 > 16;
        if (tall && pair) groups<kGroupScales, 2, 2>(s, r0, t);
        else if (tall) groups<kGroupScales, 2, 1>(s, r0, t);
        else if (pair) groups<kGroupScales, 1, 2>(s, r0, t);
        else groups<kGroupScales, 1, 1>(s, r0, t);
      }
  }
};

}  // namespace

size_t amx::integer_scratch_bytes(const Matrix& w, int64_t m) {
  return static_cast<size_t>(tiles_of(m) * tile_stride(w));
}

void amx::integer_prepare(const Matrix& w, const float* x, int64_t m, int64_t first, int64_t last, uint8_t* scratch) {
  quantise_tiles(w, x, m, first, last, scratch);
}

void amx::integer_compute(const Matrix& w, const uint8_t* scratch, int64_t m, float* y, int64_t ldy, int64_t row0,
                          int64_t row1) {
  const Tiles configured;
  with_panel_weights(w, [&](auto weights) {
    multiply_panels<decltype(weights), TileProduct>(w, scratch, m, y, ldy, row0, row1);
  });
}

}  // namespace tailcut
#endif
