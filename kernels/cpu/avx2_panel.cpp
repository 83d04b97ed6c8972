// i8 and i4 for any number of rows of x: a tile of 16 rows of W is expanded once to int16 and multiplied with all of x.
//
// int16 because VPMADDWD adds products of pairs exactly: 2 * 127 * 127 * 64 pairs a group stay far inside int32.

#if defined(__AVX2__)

#include <cstdlib>
#include <limits>
#include <new>

#include "avx2.h"

namespace tailcut::avx2 {
namespace {

// One expanded tile a thread, kept between calls.
struct Panel {
  int16_t* data = nullptr;
  size_t bytes = 0;
  ~Panel() { std::free(data); }
  int16_t* at_least(size_t wanted) {
    if (wanted > bytes) {
      std::free(data);
      bytes = (wanted + 4095) / 4096 * 4096;
      data = static_cast<int16_t*>(std::aligned_alloc(64, bytes));
      if (!data) {
        bytes = 0;
        throw std::bad_alloc();
      }
    }
    return data;
  }
};

constexpr int kRows = 4, kX = 2;

struct Scales {
  const float* x[kX];
  const float* w[kRows];  // i4: the groups of each row
};

__m256i load(const int16_t* at) { return _mm256_load_si256(reinterpret_cast<const __m256i*>(at)); }

// Four rows of W (at `w`, `stride` apart) times two of x -> out[x][row], unscaled by the row.
template <Kind kind>
void micro(const int16_t* w, int64_t stride, const int16_t* const* x, int64_t blocks, const Scales& s, float out[kX][kRows]) {
  __m256 total[kX][kRows];
  for (auto& row : total)
    for (__m256& t : row) t = _mm256_setzero_ps();
  for (int64_t at = 0, group = 0; at < blocks * kBlock; ++group) {
    __m256i sum[kX][kRows];
    for (auto& row : sum)
      for (__m256i& t : row) t = _mm256_setzero_si256();
    const int64_t stop = at + kGroup < blocks * kBlock ? at + kGroup : blocks * kBlock;
    for (; at < stop; at += 16) {
      const __m256i a = load(x[0] + at), b = load(x[1] + at);
      for (int r = 0; r < kRows; ++r) {
        const __m256i v = load(w + r * stride + at);
        sum[0][r] = _mm256_add_epi32(sum[0][r], _mm256_madd_epi16(v, a));
        sum[1][r] = _mm256_add_epi32(sum[1][r], _mm256_madd_epi16(v, b));
      }
    }
    for (int i = 0; i < kX; ++i)
      for (int r = 0; r < kRows; ++r) {
        const float scale = kind == Kind::i4 ? s.x[i][group] * s.w[r][group] : s.x[i][group];
        total[i][r] = _mm256_fmadd_ps(_mm256_cvtepi32_ps(sum[i][r]), _mm256_set1_ps(scale), total[i][r]);
      }
  }
  for (int i = 0; i < kX; ++i)
    for (int r = 0; r < kRows; ++r) out[i][r] = sum_lanes(total[i][r]);
}

// Four rows from `row` on, of which those below `stop` exist, times rows i and i + 1 of x.
void four_rows(const Matrix& w, const int16_t* panel, const uint8_t* scratch, int64_t m, int64_t i, float* y, int64_t ldy,
               int64_t row, int64_t stop) {
  const int64_t second = i + 1 < m ? i + 1 : i, stride = w.blocks * kBlock;
  const Activations x[kX] = {activations(w, scratch, i), activations(w, scratch, second)};
  const int16_t* const columns[kX] = {x[0].x16, x[1].x16};
  Scales scales{{x[0].scales, x[1].scales}, {}};
  for (int64_t r = 0; r < kRows && w.kind == Kind::i4; ++r)
    scales.w[r] = w.scales + (row + r < stop ? row + r : row) * w.groups;
  float out[kX][kRows];
  if (w.kind == Kind::i8) micro<Kind::i8>(panel, stride, columns, w.blocks, scales, out);
  else micro<Kind::i4>(panel, stride, columns, w.blocks, scales, out);
  for (int64_t k = 0; k < kX && i + k < m; ++k)
    for (int64_t r = 0; r < kRows && row + r < stop; ++r) {
      const float value = w.kind == Kind::i8 ? out[k][r] * w.scales[row + r] : out[k][r];
      y[(i + k) * ldy + row + r] = x[k].bad ? std::numeric_limits<float>::quiet_NaN() : value;
    }
}

void expand_tile(const Matrix& w, int64_t row, int64_t stop, int16_t* panel) {
  if (w.format == Format::slots) return slots_expand(w, row / kTile, panel);
  const int64_t stride = w.blocks * kBlock;
  for (int64_t r = 0; r < kTile; ++r) int_expand(w, row + r < stop ? row + r : stop - 1, panel + r * stride);
}

void panels(const Matrix& w, const uint8_t* scratch, int64_t m, float* y, int64_t ldy, int64_t row0, int64_t row1) {
  thread_local Panel memory;
  const int64_t stride = w.blocks * kBlock;
  int16_t* const panel = memory.at_least(static_cast<size_t>(kTile * stride) * sizeof(int16_t));
  for (int64_t row = row0; row < row1; row += kTile) {
    const int64_t stop = row + kTile < row1 ? row + kTile : row1;
    expand_tile(w, row, stop, panel);
    for (int64_t i = 0; i < m; i += kX)
      for (int64_t r = row; r < stop; r += kRows)
        four_rows(w, panel + (r - row) * stride, scratch, m, i, y, ldy, r, stop);
  }
}

}  // namespace

void int_compute(const Matrix& w, const uint8_t* scratch, int64_t m, float* y, int64_t ldy, int64_t row0, int64_t row1) {
  if (wide(w, m)) return panels(w, scratch, m, y, ldy, row0, row1);
  if (w.format == Format::slots) return slots_gemv(w, scratch, m, y, ldy, row0, row1);
  int_gemv(w, scratch, m, y, ldy, row0, row1);
}

}  // namespace tailcut::avx2

#endif
