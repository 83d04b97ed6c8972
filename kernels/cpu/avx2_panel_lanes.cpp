// Rows of x into lanes, and sums in lanes into rows of y.
#if defined(__AVX2__)
#include "avx2_panel_lanes.h"

#include "avx2_panel.h"

namespace tailcut::avx2 {
namespace {

// Eight rows of x, of which `rows` exist, into the lanes from `to` on; zeros for the others.
void eight_rows(const float* x, int64_t cols, int64_t rows, float* to, int64_t width) {
  int64_t column = 0;
  for (; column + 8 <= cols; column += 8) {
    __m256 v[8];
    for (int64_t i = 0; i < 8; ++i) v[i] = i < rows ? _mm256_loadu_ps(x + i * cols + column) : _mm256_setzero_ps();
    transpose8(v);
    for (int64_t k = 0; k < 8; ++k) _mm256_store_ps(to + (column + k) * width, v[k]);
  }
  for (; column < cols; ++column)
    for (int64_t i = 0; i < 8; ++i) to[column * width + i] = i < rows ? x[i * cols + column] : 0.0f;
}

// Whether a row holds a NaN or an infinity: 0 * x is 0 for every other number.
uint32_t is_odd(const float* x, int64_t cols) {
  __m256 sum = _mm256_setzero_ps();
  int64_t column = 0;
  for (; column + 8 <= cols; column += 8) sum = _mm256_fmadd_ps(_mm256_loadu_ps(x + column), _mm256_setzero_ps(), sum);
  const int found = _mm256_movemask_ps(_mm256_cmp_ps(sum, sum, _CMP_UNORD_Q));
  float rest = 0.0f;
  for (; column < cols; ++column) rest += 0.0f * x[column];
  return found != 0 || rest != 0.0f;
}

// Zeros in the `count` lanes behind the last row of x.
void clear_behind(float* last, int64_t count, int64_t cols, int64_t width) {
  for (int64_t column = 0; column < cols; ++column)
    for (int64_t k = 1; k <= count; ++k) last[column * width + k] = 0.0f;
}

void write_eight(const float* sums, int64_t width, int64_t rows, float* y, int64_t ldy, int64_t inputs) {
  __m256 v[8];
  for (int64_t r = 0; r < 8; ++r) v[r] = r < rows ? _mm256_load_ps(sums + r * width) : _mm256_setzero_ps();
  transpose8(v);
  if (rows == 8) {
    for (int64_t i = 0; i < inputs; ++i) _mm256_storeu_ps(y + i * ldy, v[i]);
    return;
  }
  alignas(32) float row[8];
  for (int64_t i = 0; i < inputs; ++i) {
    _mm256_store_ps(row, v[i]);
    for (int64_t r = 0; r < rows; ++r) y[i * ldy + r] = row[r];
  }
}

int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }

}  // namespace

void lanes_prepare(const float* x, int64_t m, int64_t cols, int64_t first, int64_t last, float* scratch) {
  const Lanes lanes(scratch, m, cols);
  auto* odd = reinterpret_cast<uint32_t*>(scratch);
  for (int64_t i = first; i < last; ++i) odd[i] = is_odd(x + i * cols, cols);
  for (int64_t i = first; i < last;) {
    const int64_t block = i / kLanes, lane = i % kLanes, width = lanes.vectors(block) * kLane;
    float* to = scratch + Lanes::header(m) + block * kLanes * cols + lane;
    const int64_t end = smaller(i + kLane, m);
    if (lane % kLane == 0 && end <= last) {
      eight_rows(x + i * cols, cols, end - i, to, width), i = end;
      continue;
    }
    for (int64_t column = 0; column < cols; ++column) to[column * width] = x[i * cols + column];  // other lanes: others'
    if (++i == m) clear_behind(to, width - lane - 1, cols, width);
  }
}

void lanes_write(const Finished& from, float* y, int64_t ldy) {
  for (int64_t block = from.block0; block < from.block1; ++block) {
    const int64_t width = from.lanes.vectors(block) * kLane, i0 = block * kLanes, rows = smaller(from.lanes.m - i0, width);
    const float* sums = from.sums.block(block - from.block0);
    if (from.order != nullptr) {
      for (int64_t r = 0; r < from.count; ++r)
        for (int64_t i = 0; i < rows; ++i) y[(i0 + i) * ldy + from.order[from.first + r]] = sums[r * width + i];
      continue;
    }
    for (int64_t i = 0; i < rows; i += kLane)
      for (int64_t r = 0; r < from.count; r += 8)
        write_eight(sums + r * width + i, width, smaller(from.count - r, 8), y + (i0 + i) * ldy + from.first + r, ldy,
                    smaller(rows - i, kLane));
  }
}

}  // namespace tailcut::avx2
#endif
