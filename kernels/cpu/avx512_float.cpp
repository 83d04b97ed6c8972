// f32, f16 and bf16 matrices with AVX-512, few rows of x: rows of W are expanded in registers, sums are float32.
#include "avx512.h"

#if defined(TAILCUT_EMULATE) || (defined(__AVX512VBMI2__) && defined(__AVX512VNNI__))
#include "avx512_ahead.h"
#include "avx512_float.h"

namespace tailcut {
namespace {

// Partial sums of one product: enough to hide the latency of the additions.
constexpr int parts_of(int m) { return m <= 2 ? 2 : 1; }

template <class Weights>
struct Dot {
  const Matrix& w;
  Ahead ahead;
  const float* x;
  int64_t m;
  float* y;
  int64_t ldy;

  template <int R, int M>
  inline void rows(int64_t row, int64_t apart) const {
    constexpr int kParts = parts_of(M);
    const int64_t stride = few_stride(w);
    Weights readers[R];
    Floats acc[R][M][kParts];
    TAILCUT_UNROLL for (int r = 0; r < R; ++r) {
      readers[r] = Weights(w, row + r * apart);
      TAILCUT_UNROLL for (int i = 0; i < M; ++i) TAILCUT_UNROLL for (int p = 0; p < kParts; ++p) acc[r][i][p] = zeros();
    }
    for (int64_t b = 0; b < w.blocks; ++b) {
      const float* columns = x + b * kBlock;
      TAILCUT_UNROLL for (int r = 0; r < R; ++r) {
        ahead.ask(readers[r]);
        Floats weights[4];
        readers[r].next(weights);
        TAILCUT_UNROLL for (int i = 0; i < M; ++i) TAILCUT_UNROLL for (int j = 0; j < 4; ++j)
            acc[r][i][j % kParts] = fma(weights[j], load(columns + i * stride + 16 * j), acc[r][i][j % kParts]);
      }
    }
    TAILCUT_UNROLL for (int r = 0; r < R; ++r) TAILCUT_UNROLL for (int i = 0; i < M; ++i)
        if (i < m)
          y[i * ldy + row + r * apart] = sum(kParts == 1 ? acc[r][i][0] : add(acc[r][i][0], acc[r][i][kParts - 1]));
  }
};

template <class Weights>
void few_rows_of(const Matrix& w, const float* x, int64_t m, float* y, int64_t ldy, int64_t row0, int64_t row1) {
  few_rows(Dot<Weights>{w, Ahead(w, w.blocks), x, m, y, ldy}, row0, row1);
}

void few_rows(const Matrix& w, const float* x, int64_t m, float* y, int64_t ldy, int64_t row0, int64_t row1) {
  if (w.kind == Kind::f32 && masked(w)) few_rows_of<Masked32>(w, x, m, y, ldy, row0, row1);
  else if (w.kind == Kind::f32) few_rows_of<Dense32>(w, x, m, y, ldy, row0, row1);
  else if (w.kind == Kind::bf16 && masked(w)) few_rows_of<Masked16<Kind::bf16>>(w, x, m, y, ldy, row0, row1);
  else if (w.kind == Kind::bf16) few_rows_of<Dense16<Kind::bf16>>(w, x, m, y, ldy, row0, row1);
  else if (masked(w)) few_rows_of<Masked16<Kind::f16>>(w, x, m, y, ldy, row0, row1);
  else few_rows_of<Dense16<Kind::f16>>(w, x, m, y, ldy, row0, row1);
}

void few_prepare(const Matrix& w, const float* x, int64_t m, int64_t first, int64_t last, float* to) {
  for (int64_t i = first; i < last; ++i)
    for (int64_t b = 0; b < w.blocks; ++b)
      arrange_block(w, x + i * w.cols + b * kBlock, w.cols - b * kBlock, to + i * few_stride(w) + b * kBlock);
  if (last < m) return;
  for (int64_t i = m; i < avx512::padded_rows(m); ++i)
    std::memset(to + i * few_stride(w), 0, static_cast<size_t>(few_stride(w)) * sizeof(float));
}

}  // namespace

size_t avx512::float_scratch_bytes(const Matrix& w, int64_t m) {
  if (m <= kFewRows) return static_cast<size_t>(padded_rows(m) * few_stride(w)) * sizeof(float);
  return static_cast<size_t>(lanes_floats(w, m)) * sizeof(float) + static_cast<size_t>(m);
}

void avx512::float_prepare(const Matrix& w, const float* x, int64_t m, int64_t first, int64_t last, uint8_t* scratch) {
  float* to = reinterpret_cast<float*>(scratch);
  if (m <= kFewRows) few_prepare(w, x, m, first, last, to);
  else lanes_prepare(w, x, m, first, last, to);
}

void avx512::float_compute(const Matrix& w, const float* x, const uint8_t* scratch, int64_t m, float* y, int64_t ldy,
                           int64_t row0, int64_t row1) {
  const float* arranged = reinterpret_cast<const float*>(scratch);
  if (m <= kFewRows) return few_rows(w, arranged, m, y, ldy, row0, row1);
  lanes_compute(w, arranged, m, y, ldy, row0, row1);
  const uint8_t* finite = reinterpret_cast<const uint8_t*>(arranged + lanes_floats(w, m));
  for (int64_t i = 0; i < m; ++i)  // where only entries are visited, 0 * infinity is not seen
    if (!finite[i]) portable_kernels()->compute(w, x + i * w.cols, nullptr, 1, y + i * ldy, ldy, row0, row1);
}

}  // namespace tailcut
#endif
