// Rows straight from the packed stream: one to four rows of x at a time, what decoding spends its time in.
//
// A range of rows is read as several streams side by side, each a part of the range in order: the hardware
// prefetcher follows one page a stream, so that one stream leaves much of the bandwidth (Zen 3, f32 dense, one
// thread: 17 GB/s with one stream, 21 with two, 25 with four). Rows that are computed together share the loads of x.
#if defined(__AVX2__)
#include "avx2_float.h"

#include "avx2_expand.h"

namespace tailcut::avx2 {
namespace {

// The rows of x that a pass multiplies, with the columns of the last, incomplete block copied behind zeros: reading x
// in whole blocks would run past it, and whatever lies there might not be finite.
template <int M>
struct Inputs {
  const float* row[M];
  int64_t whole;  // complete blocks
  int64_t blocks;
  alignas(32) float tail[M][kBlock];

  Inputs(const Matrix& w, const float* x) : whole(w.cols / kBlock), blocks(w.blocks), tail{} {
    for (int i = 0; i < M; ++i) {
      row[i] = x + i * w.cols;
      std::memcpy(tail[i], row[i] + whole * kBlock, size_t(w.cols - whole * kBlock) * sizeof(float));
    }
  }
  const float* block(int i, int64_t b) const { return b < whole ? row[i] + b * kBlock : tail[i]; }
};

// One row of packed weights as it is read.
template <Kind K, Format F>
struct Reader {
  const uint8_t* mask;
  const uint8_t* values;

  void open(const Matrix& w, int64_t row) {
    values = mask = w.data + w.row_start[row];
    if constexpr (F == Format::bitmask) {
      values += w.blocks * 8;
      for (int64_t at = 0; at < w.blocks * 8; at += 64) prefetch(mask + kNear + at);  // the loop follows the values
    }
  }
};

// Streams, as many as the sums have registers for.
template <int M>
constexpr int kStreams = M <= 2 ? 4 : 2;

// How many independent sums a row of x has: fused multiply-adds take four cycles and start twice a cycle. The same for
// rows that are left over: the order of a sum must not depend on the range.
template <int M>
constexpr int kSums = M == 1 ? 2 : 1;

// R rows of weights times M rows of x: sums[r][i][.].
template <Kind K, Format F, int R, int M>
struct Block {
  __m256 sums[R][M][kSums<M>];

  Block() {
    for (auto& row : sums)
      for (auto& one : row)
        for (__m256& sum : one) sum = _mm256_setzero_ps();
  }

  inline __attribute__((always_inline)) void add(Reader<K, F> (&rows)[R], const float* const (&x)[M], int64_t b) {
#pragma GCC unroll 8
    for (int step = 0; step < 8; ++step) {
      __m256 weights[R];
#pragma GCC unroll 4
      for (int r = 0; r < R; ++r) {
        if constexpr (F == Format::bitmask) {
          weights[r] = expand8<K>(rows[r].mask[8 * b + step], rows[r].values);
        } else {
          weights[r] = load8<K>(rows[r].values);
          rows[r].values += 8 * kWidth<K>;
        }
        if (step * kWidth<K> % 8 == 0) prefetch(rows[r].values + kNear);
      }
#pragma GCC unroll 4
      for (int i = 0; i < M; ++i) {
        const __m256 inputs = _mm256_loadu_ps(x[i] + 8 * step);
#pragma GCC unroll 4
        for (int r = 0; r < R; ++r) {
          __m256& sum = sums[r][i][step % kSums<M>];
          sum = _mm256_fmadd_ps(weights[r], inputs, sum);
        }
      }
    }
  }

  float total(int r, int i) const {
    __m256 all = sums[r][i][0];
    for (int s = 1; s < kSums<M>; ++s) all = _mm256_add_ps(all, sums[r][i][s]);
    return sum8(all);
  }
};

// Rows row, row + apart, ...: R of them.
template <Kind K, Format F, int R, int M>
void some_rows(const Matrix& w, const Inputs<M>& inputs, float* y, int64_t ldy, int64_t row, int64_t apart) {
  Reader<K, F> rows[R];
  for (int r = 0; r < R; ++r) rows[r].open(w, row + r * apart);
  Block<K, F, R, M> block;
  const float* x[M];
  for (int i = 0; i < M; ++i) x[i] = inputs.row[i];
  for (int64_t b = 0; b < inputs.whole; ++b) {
    block.add(rows, x, b);
    for (int i = 0; i < M; ++i) x[i] += kBlock;
  }
  if (inputs.whole < inputs.blocks) {
    for (int i = 0; i < M; ++i) x[i] = inputs.tail[i];
    block.add(rows, x, inputs.whole);
  }
  for (int r = 0; r < R; ++r)
    for (int i = 0; i < M; ++i) y[i * ldy + row + r * apart] = block.total(r, i);
}

template <Kind K, Format F, int M>
void all_rows(const Matrix& w, const float* x, float* y, int64_t ldy, int64_t row0, int64_t row1) {
  const Inputs<M> inputs(w, x);
  constexpr int S = kStreams<M>;
  const int64_t apart = (row1 - row0) / S;
  for (int64_t i = 0; i < apart; ++i) some_rows<K, F, S, M>(w, inputs, y, ldy, row0 + i, apart);
  for (int64_t row = row0 + S * apart; row < row1; ++row) some_rows<K, F, 1, M>(w, inputs, y, ldy, row, 0);
}

template <Kind K, Format F>
void direct(const Matrix& w, const float* x, int64_t m, float* y, int64_t ldy, int64_t row0, int64_t row1) {
  switch (m) {
    case 1: return all_rows<K, F, 1>(w, x, y, ldy, row0, row1);
    case 2: return all_rows<K, F, 2>(w, x, y, ldy, row0, row1);
    case 3: return all_rows<K, F, 3>(w, x, y, ldy, row0, row1);
    default: return all_rows<K, F, 4>(w, x, y, ldy, row0, row1);
  }
}

template <Kind K>
void direct(const Matrix& w, const float* x, int64_t m, float* y, int64_t ldy, int64_t row0, int64_t row1) {
  if (w.format == Format::dense) return direct<K, Format::dense>(w, x, m, y, ldy, row0, row1);
  direct<K, Format::bitmask>(w, x, m, y, ldy, row0, row1);
}

}  // namespace

void float_direct(const Matrix& w, const float* x, int64_t m, float* y, int64_t ldy, int64_t row0, int64_t row1) {
  switch (w.kind) {
    case Kind::f32: return direct<Kind::f32>(w, x, m, y, ldy, row0, row1);
    case Kind::f16: return direct<Kind::f16>(w, x, m, y, ldy, row0, row1);
    default: return direct<Kind::bf16>(w, x, m, y, ldy, row0, row1);
  }
}

void float_compute(const Matrix& w, const float* x, const uint8_t* scratch, int64_t m, float* y, int64_t ldy, int64_t row0,
                   int64_t row1) {
  if (m > kDirectRows) return float_panels(w, x, reinterpret_cast<const float*>(scratch), m, y, ldy, row0, row1);
  if (w.format == Format::index) return float_index(w, x, m, y, ldy, row0, row1);
  float_direct(w, x, m, y, ldy, row0, row1);
}

}  // namespace tailcut::avx2
#endif
