// The `index` format (index.h) with AVX-512: a lane is a row of the slice, columns run up by byte deltas, x is
// gathered.
#include "avx512.h"

#if defined(TAILCUT_EMULATE) || (defined(__AVX512VBMI2__) && defined(__AVX512VNNI__))
#include "avx512_ahead.h"
#include "avx512_float.h"
#include "index.h"

namespace tailcut {
namespace {

// M rows of x against one slice. Columns of all rows of x are the same: one gather a row of x.
template <Kind kKind, int M>
inline void multiply_slice(const Matrix& w, const float* x, int64_t slice, Floats* acc) {
  constexpr int64_t kValues = kIndexSteps * kTile, kBytes = kValues * (1 + size_of(kKind));
  Floats parts[M][2];
  TAILCUT_UNROLL for (int i = 0; i < M; ++i) parts[i][0] = parts[i][1] = zeros();
  Ints column = zero_ints();
  const uint8_t* stop = w.data + w.row_start[slice + 1];
  for (const uint8_t* group = w.data + w.row_start[slice]; group < stop; group += kBytes) {
    TAILCUT_UNROLL for (int64_t line = 0; line < kBytes; line += 64) prefetch(group + line + kAhead);
    TAILCUT_UNROLL for (int64_t step = 0; step < kIndexSteps; ++step) {
      column = add_ints(column, widen_bytes(group + step * kTile));
      const Floats weight = sixteen<kKind>(group + kValues + step * kTile * size_of(kKind));
      TAILCUT_UNROLL for (int i = 0; i < M; ++i)
          parts[i][step % 2] = fma(weight, gather(x + i * w.cols, column), parts[i][step % 2]);
    }
  }
  TAILCUT_UNROLL for (int i = 0; i < M; ++i) acc[i] = add(parts[i][0], parts[i][1]);
}

template <Kind kKind, int M>
void multiply_slices(const Matrix& w, const float* x, float* y, int64_t ldy, int64_t row0, int64_t row1) {
  prefetch_lines(w.data + w.row_start[row0 / kTile], kAhead);
  for (int64_t slot = row0; slot < row1; slot += kTile) {
    Floats acc[M];
    multiply_slice<kKind, M>(w, x, slot / kTile, acc);
    TAILCUT_UNROLL for (int i = 0; i < M; ++i) {
      alignas(64) float sums[16];
      store(sums, acc[i]);
      for (int64_t l = 0; l < smaller(kTile, row1 - slot); ++l) y[i * ldy + index_order(w)[slot + l]] = sums[l];
    }
  }
}

template <Kind kKind>
void multiply_all(const Matrix& w, const float* x, int64_t m, float* y, int64_t ldy, int64_t row0, int64_t row1) {
  int64_t i = 0;
  for (; i + 4 <= m; i += 4) multiply_slices<kKind, 4>(w, x + i * w.cols, y + i * ldy, ldy, row0, row1);
  for (; i < m; ++i) multiply_slices<kKind, 1>(w, x + i * w.cols, y + i * ldy, ldy, row0, row1);
}

}  // namespace

void avx512::index_compute(const Matrix& w, const float* x, int64_t m, float* y, int64_t ldy, int64_t row0,
                           int64_t row1) {
  if (w.kind == Kind::f32) multiply_all<Kind::f32>(w, x, m, y, ldy, row0, row1);
  else if (w.kind == Kind::bf16) multiply_all<Kind::bf16>(w, x, m, y, ldy, row0, row1);
  else multiply_all<Kind::f16>(w, x, m, y, ldy, row0, row1);
  for (int64_t i = 0; i < m; ++i)  // columns without weights are not seen here, but 0 * inf = NaN
    if (!all_finite(x + i * w.cols, w.cols))
      portable_kernels()->compute(w, x + i * w.cols, nullptr, 1, y + i * ldy, ldy, row0, row1);
}

}  // namespace tailcut
#endif
