// i8 and i4 matrices with AVX-512: VPEXPANDB puts the packed values at their columns, VPDPBUSD multiplies.
#include "avx512.h"

#if defined(TAILCUT_EMULATE) || (defined(__AVX512VBMI2__) && defined(__AVX512VNNI__))
#include "avx512_ahead.h"
#include "avx512_panels.h"
#include "avx512_slots_panel.h"

namespace tailcut {
namespace {

// One group (kBlocks blocks of 64 columns) of a row of W against M rows of x; `weight_scales` are those of the row.
template <int kBlocks, int M, class Weights>
inline void dot_group(const Matrix& w, Weights& reader, const uint8_t* x, int64_t g, const float* weight_scales,
                      Floats* acc) {
  Ints bytes[2];
  TAILCUT_UNROLL for (int b = 0; b < kBlocks; ++b) bytes[b] = reader.next();
  const int64_t stride = row_stride(w);
  const uint8_t* columns = x + g * kGroup;
  const uint8_t* starts = x + w.groups * kGroup + g * 64;
  const uint8_t* scales = x + w.groups * (kGroup + 64) + g * 4;
  TAILCUT_UNROLL for (int i = 0; i < M; ++i) {
    float scale;
    std::memcpy(&scale, scales + i * stride, 4);
    Ints exact = load_ints(starts + i * stride);
    TAILCUT_UNROLL for (int b = 0; b < kBlocks; ++b)
        exact = dot_bytes(exact, bytes[b], load_ints(columns + i * stride + 64 * b));
    Floats dot = to_floats(exact);
    if (Weights::group_scales) dot = mul(dot, all(weight_scales[g]));
    acc[i] = fma(dot, all(scale), acc[i]);
  }
}

template <class Weights>
struct Dot {
  const Matrix& w;
  Ahead ahead;
  const uint8_t* x;
  int64_t m;
  float* y;
  int64_t ldy;

  template <int R, int M>
  inline void rows(int64_t row, int64_t apart) const {
    const int64_t scales = Weights::group_scales ? w.groups : 1;  // a row
    Weights readers[R];
    Floats acc[R][M];
    TAILCUT_UNROLL for (int r = 0; r < R; ++r) {
      readers[r] = Weights(w, row + r * apart);
      TAILCUT_UNROLL for (int i = 0; i < M; ++i) acc[r][i] = zeros();
    }
    const int64_t whole = w.blocks / 2;
    for (int64_t g = 0; g < whole; ++g) {
      TAILCUT_UNROLL for (int r = 0; r < R; ++r) {
        ahead.ask(readers[r]);
        dot_group<2, M>(w, readers[r], x, g, w.scales + (row + r * apart) * scales, acc[r]);
      }
    }
    TAILCUT_UNROLL for (int r = 0; r < R; ++r) {
      const int64_t at = row + r * apart;
      if (w.blocks % 2) dot_group<1, M>(w, readers[r], x, whole, w.scales + at * scales, acc[r]);
      TAILCUT_UNROLL for (int i = 0; i < M; ++i)
          if (i < m) y[i * ldy + at] = Weights::group_scales ? sum(acc[r][i]) : sum(acc[r][i]) * w.scales[at];
    }
  }
};

// VPDPBUSD over a stretch: eight rows of W, four columns of a row broadcast at a time, against one or two tiles of x.
struct DotProduct {
  template <bool kGroupScales, int V>
  static inline void group(const Stretch& s, int64_t r0, int64_t t, int64_t g) {
    const int64_t blocks = smaller(2, s.block0 + s.blocks - 2 * g);
    const uint8_t* tile = s.tile + t * tile_stride(s.w);
    const uint8_t* x = tile + 2 * g * 1024;
    const uint8_t* bytes = s.panel.bytes[r0] + (2 * g - s.block0) * 64;
    Ints exact[8][V];
    TAILCUT_UNROLL for (int r = 0; r < 8; ++r) TAILCUT_UNROLL for (int v = 0; v < V; ++v)
        exact[r][v] = load_ints(starts_of(s.w, tile + v * tile_stride(s.w), g));
    for (int64_t k = 0; k < blocks * 16; ++k) {
      Ints columns[V];
      TAILCUT_UNROLL for (int v = 0; v < V; ++v) columns[v] = load_ints(x + v * tile_stride(s.w) + 64 * k);
      TAILCUT_UNROLL for (int r = 0; r < 8; ++r) {
        const Ints four = all_ints(read_i32(bytes + r * kPanelStride + 4 * k));
        TAILCUT_UNROLL for (int v = 0; v < V; ++v) exact[r][v] = dot_bytes(exact[r][v], four, columns[v]);
      }
    }
    TAILCUT_UNROLL for (int v = 0; v < V; ++v) {
      const Floats scale = load(scales_of(s.w, tile + v * tile_stride(s.w), g));
      TAILCUT_UNROLL for (int r = 0; r < 8; ++r) {
        float* sums = s.panel.sums[t + v][r0 + r];
        const Floats by = kGroupScales ? mul(scale, all(weight_scale(s, r0 + r, g))) : scale;
        store(sums, fma(to_floats(exact[r][v]), by, load(sums)));
      }
    }
  }

  template <bool kGroupScales>
  static inline void run(const Stretch& s) {
    const int64_t g0 = s.block0 / 2, g1 = (s.block0 + s.blocks + 1) / 2;
    for (int64_t t = 0; t < s.tiles; t += 2)
      for (int64_t r0 = 0; r0 < s.rows; r0 += 8)
        for (int64_t g = g0; g < g1; ++g) {
          if (t + 1 < s.tiles) group<kGroupScales, 2>(s, r0, t, g);
          else group<kGroupScales, 1>(s, r0, t, g);
        }
  }
};

}  // namespace

size_t avx512::integer_scratch_bytes(const Matrix& w, int64_t m) {
  return static_cast<size_t>(m <= kFewRows ? padded_rows(m) * row_stride(w) : tiles_of(m) * tile_stride(w));
}

void avx512::integer_prepare(const Matrix& w, const float* x, int64_t m, int64_t first, int64_t last,
                             uint8_t* scratch) {
  if (m <= kFewRows) quantise_rows(w, x, m, first, last, scratch);
  else quantise_tiles(w, x, m, first, last, scratch);
}

void avx512::integer_compute(const Matrix& w, const uint8_t* scratch, int64_t m, float* y, int64_t ldy, int64_t row0,
                             int64_t row1) {
  if (m <= kFewRows)
    return with_weights(w, [&](auto weights) {
      few_rows(Dot<decltype(weights)>{w, Ahead(w, (w.blocks + 1) / 2), scratch, m, y, ldy}, row0, row1);
    });
  with_panel_weights(w, [&](auto weights) {
    multiply_panels<decltype(weights), DotProduct>(w, scratch, m, y, ldy, row0, row1);
  });
}

}  // namespace tailcut
#endif
