// The `index` format (index.h) with AVX-512, few rows of x: a lane is a row of the slice, columns run up by byte
// deltas, x is gathered. More rows of x: avx512_index_lanes.cpp.
#include "avx512.h"

#if defined(TAILCUT_EMULATE) || (defined(__AVX512VBMI2__) && defined(__AVX512VNNI__))
#include "avx512_ahead.h"
#include "avx512_float.h"
#include "index.h"

namespace tailcut {
namespace {

// M rows of x against one slice. Columns of all rows of x are the same: one gather a row of x.
template <Kind kKind, int M>
struct Slice {
  static constexpr int64_t kValues = kIndexSteps * kTile, kBytes = kValues * (1 + size_of(kKind));
  const uint8_t* group = nullptr;
  const uint8_t* stop = nullptr;
  Ints column;
  Floats parts[M][2];

  Slice() = default;
  Slice(const Matrix& w, int64_t slice)
      : group(w.data + w.row_start[slice]), stop(w.data + w.row_start[slice + 1]), column(zero_ints()) {
    TAILCUT_UNROLL for (int i = 0; i < M; ++i) parts[i][0] = parts[i][1] = zeros();
  }

  inline void step(const Matrix& w, const float* x) {
    TAILCUT_UNROLL for (int64_t line = 0; line < kBytes; line += 64) prefetch(group + line + kNear);
    TAILCUT_UNROLL for (int64_t step = 0; step < kIndexSteps; ++step) {
      column = add_ints(column, widen_bytes(group + step * kTile));
      const Floats weight = sixteen<kKind>(group + kValues + step * kTile * size_of(kKind));
      TAILCUT_UNROLL for (int i = 0; i < M; ++i)
          parts[i][step % 2] = fma(weight, gather(x + i * w.cols, column), parts[i][step % 2]);
    }
    group += kBytes;
  }

  void put(const Matrix& w, int64_t slot, int64_t last, float* y, int64_t ldy) const {
    for (int i = 0; i < M; ++i) {
      alignas(64) float sums[16];
      store(sums, add(parts[i][0], parts[i][1]));
      for (int64_t l = 0; l < smaller(kTile, last - slot); ++l) y[i * ldy + index_order(w)[slot + l]] = sums[l];
    }
  }
};

// S slices, `apart` slices from one another: together as far as the shortest goes, then each to its end.
template <Kind kKind, int S, int M>
inline void multiply_slices(const Matrix& w, const float* x, float* y, int64_t ldy, int64_t slice, int64_t apart,
                            int64_t row1) {
  using Lanes = Slice<kKind, M>;
  Lanes slices[S];
  int64_t together = INT64_MAX;
  TAILCUT_UNROLL for (int s = 0; s < S; ++s) {
    slices[s] = Lanes(w, slice + s * apart);
    together = smaller(together, (slices[s].stop - slices[s].group) / Lanes::kBytes);
  }
  for (int64_t k = 0; k < together; ++k) TAILCUT_UNROLL for (int s = 0; s < S; ++s) slices[s].step(w, x);
  TAILCUT_UNROLL for (int s = 0; s < S; ++s) {
    while (slices[s].group < slices[s].stop) slices[s].step(w, x);
    slices[s].put(w, (slice + s * apart) * kTile, row1, y, ldy);
  }
}

template <Kind kKind, int M>
void multiply_range(const Matrix& w, const float* x, float* y, int64_t ldy, int64_t row0, int64_t row1) {
  constexpr int kSlices = M == 1 ? kStreams : 1;
  const int64_t first = row0 / kTile, last = (row1 + kTile - 1) / kTile, apart = (last - first) / kSlices;
  for (int s = 0; s < kSlices && apart; ++s) ask_for_start(w, first + s * apart);
  for (int64_t slice = first; slice < first + apart; ++slice)
    multiply_slices<kKind, kSlices, M>(w, x, y, ldy, slice, apart, row1);
  for (int64_t slice = first + kSlices * apart; slice < last; ++slice)
    multiply_slices<kKind, 1, M>(w, x, y, ldy, slice, 0, row1);
}

template <Kind kKind>
void multiply_all(const Matrix& w, const float* x, int64_t m, float* y, int64_t ldy, int64_t row0, int64_t row1) {
  int64_t i = 0;
  for (; i + 4 <= m; i += 4) multiply_range<kKind, 4>(w, x + i * w.cols, y + i * ldy, ldy, row0, row1);
  for (; i < m; ++i) multiply_range<kKind, 1>(w, x + i * w.cols, y + i * ldy, ldy, row0, row1);
}

}  // namespace

size_t avx512::index_scratch_bytes(const Matrix& w, int64_t m) {
  return m <= kGatherRows ? 0 : static_cast<size_t>(lanes_floats(w, m)) * sizeof(float) + static_cast<size_t>(m);
}

void avx512::index_prepare(const Matrix& w, const float* x, int64_t m, int64_t first, int64_t last, uint8_t* scratch) {
  lanes_prepare(w, x, m, first, last, reinterpret_cast<float*>(scratch));
}

void avx512::index_compute(const Matrix& w, const float* x, const uint8_t* scratch, int64_t m, float* y, int64_t ldy,
                           int64_t row0, int64_t row1) {
  const float* arranged = reinterpret_cast<const float*>(scratch);
  if (m > kGatherRows) index_lanes(w, arranged, m, y, ldy, row0, row1);
  else if (w.kind == Kind::f32) multiply_all<Kind::f32>(w, x, m, y, ldy, row0, row1);
  else if (w.kind == Kind::bf16) multiply_all<Kind::bf16>(w, x, m, y, ldy, row0, row1);
  else multiply_all<Kind::f16>(w, x, m, y, ldy, row0, row1);
  const uint8_t* finite = m > kGatherRows ? reinterpret_cast<const uint8_t*>(arranged + lanes_floats(w, m)) : nullptr;
  for (int64_t i = 0; i < m; ++i)  // columns without weights are not seen here, but 0 * inf = NaN
    if (finite ? !finite[i] : !all_finite(x + i * w.cols, w.cols))
      portable_kernels()->compute(w, x + i * w.cols, nullptr, 1, y + i * ldy, ldy, row0, row1);
}

}  // namespace tailcut
#endif
