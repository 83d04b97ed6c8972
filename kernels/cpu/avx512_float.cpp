// f32, f16 and bf16 matrices with AVX-512, few rows of x: rows of W are expanded in registers, sums are float32.
#include "avx512.h"

#if defined(TAILCUT_EMULATE) || (defined(__AVX512VBMI2__) && defined(__AVX512VNNI__))
#include "avx512_ahead.h"
#include "avx512_float.h"

namespace tailcut {
namespace {

// Rows of W taken at once, each from another place.
constexpr int rows_at_once(int m) { return m == 1 ? kStreams : m <= 4 ? 2 : 1; }
// Partial sums of one product: enough to hide the latency of the additions.
constexpr int parts_of(int m) { return m <= 2 ? 2 : 1; }

// Rows row, row + apart, … (R of them) against M rows of x.
template <class Weights, int R, int M>
inline void dot_row(const Matrix& w, const Ahead& ahead, const float* x, int64_t m, float* y, int64_t ldy, int64_t row,
                    int64_t apart) {
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
      if (i < m) y[i * ldy + row + r * apart] = sum(kParts == 1 ? acc[r][i][0] : add(acc[r][i][0], acc[r][i][kParts - 1]));
}

template <class Weights, int M>
void dot_rows(const Matrix& w, const float* x, int64_t m, float* y, int64_t ldy, int64_t row0, int64_t row1) {
  constexpr int kRows = rows_at_once(M);
  const int64_t apart = (row1 - row0) / kRows;
  const Ahead ahead(w, w.blocks);
  for (int r = 0; r < kRows && apart; ++r) ask_for_start(w, row0 + r * apart);
  for (int64_t row = row0; row < row0 + apart; ++row) dot_row<Weights, kRows, M>(w, ahead, x, m, y, ldy, row, apart);
  for (int64_t row = row0 + kRows * apart; row < row1; ++row) dot_row<Weights, 1, M>(w, ahead, x, m, y, ldy, row, 0);
}

template <class Weights>
void few_rows(const Matrix& w, const float* x, int64_t m, float* y, int64_t ldy, int64_t row0, int64_t row1) {
  switch (avx512::padded_rows(m)) {
    case 1: return dot_rows<Weights, 1>(w, x, m, y, ldy, row0, row1);
    case 2: return dot_rows<Weights, 2>(w, x, m, y, ldy, row0, row1);
    case 4: return dot_rows<Weights, 4>(w, x, m, y, ldy, row0, row1);
    default: return dot_rows<Weights, 8>(w, x, m, y, ldy, row0, row1);
  }
}

void few_rows(const Matrix& w, const float* x, int64_t m, float* y, int64_t ldy, int64_t row0, int64_t row1) {
  if (w.kind == Kind::f32 && masked(w)) few_rows<Masked32>(w, x, m, y, ldy, row0, row1);
  else if (w.kind == Kind::f32) few_rows<Dense32>(w, x, m, y, ldy, row0, row1);
  else if (w.kind == Kind::bf16 && masked(w)) few_rows<Masked16<Kind::bf16>>(w, x, m, y, ldy, row0, row1);
  else if (w.kind == Kind::bf16) few_rows<Dense16<Kind::bf16>>(w, x, m, y, ldy, row0, row1);
  else if (masked(w)) few_rows<Masked16<Kind::f16>>(w, x, m, y, ldy, row0, row1);
  else few_rows<Dense16<Kind::f16>>(w, x, m, y, ldy, row0, row1);
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
