// i8 and i4 rows on AVX2: bitmask (8 columns a table lookup) and dense.
//
// A range of rows is read as four streams side by side, each a part of the range in order (see avx2_float.cpp; i8
// dense, one thread: 16 GB/s with one stream, 21 with two, 24 with four). A row is summed alike wherever it lies.
//
// Products: VPMADDUBSW multiplies unsigned by signed bytes and adds pairs in int16, so it gets |w| and x with the sign
// of w. x stays within 127 and |w|, unsigned, within 128 (a stored -128 has no int8 of the other sign, so it is not w
// that changes signs): a pair (at most 2 * 128 * 127 = 32512) cannot saturate.

#if defined(__AVX2__)

#include "avx2_int_rows.h"

namespace tailcut::avx2 {
namespace {

constexpr int kStreams = 4;

__m256i dot32(__m256i sum, __m256i w, const int8_t* x) {
  const __m256i pairs = _mm256_maddubs_epi16(_mm256_abs_epi8(w), _mm256_sign_epi8(load(x), w));
  return _mm256_add_epi32(sum, _mm256_madd_epi16(pairs, _mm256_set1_epi16(1)));
}

__m256 add_scaled(__m256i sums, float scale, __m256 total) {
  return _mm256_fmadd_ps(_mm256_cvtepi32_ps(sums), _mm256_set1_ps(scale), total);
}

// Rows row, row + apart, ...: S of them.
template <Kind kind, bool masked, int S>
void dot_rows(const Matrix& w, const Activations& x, float* y, int64_t row, int64_t apart) {
  Row<kind, masked> weights[S];
  __m256 total[S];
  for (int s = 0; s < S; ++s) weights[s].open(w, row + s * apart), total[s] = _mm256_setzero_ps();
  for (int64_t group = 0, block = 0; group < w.groups; ++group) {
    __m256i even[S], odd[S];
    for (int s = 0; s < S; ++s) even[s] = odd[s] = _mm256_setzero_si256();
    for (const int64_t stop = block + 2 < w.blocks ? block + 2 : w.blocks; block < stop; ++block) {
      const int64_t at = block * kBlock;
#pragma GCC unroll 4
      for (int s = 0; s < S; ++s) {
        const Pair p = weights[s].next();
        even[s] = dot32(even[s], p.first, x.x8 + at);
        odd[s] = dot32(odd[s], p.second, x.x8 + at + 32);
      }
    }
#pragma GCC unroll 4
    for (int s = 0; s < S; ++s) {
      const float own = kind == Kind::i4 ? w.scales[(row + s * apart) * w.groups + group] : 1.0f;
      total[s] = add_scaled(_mm256_add_epi32(even[s], odd[s]), x.scales[group] * own, total[s]);
    }
  }
  for (int s = 0; s < S; ++s)
    y[row + s * apart] = sum_lanes(total[s]) * (kind == Kind::i8 ? w.scales[row + s * apart] : 1.0f);
}

// The same for dense i4, whose nibbles stay q + 8: both sides of a product are bytes as they lie, and what the 8 adds
// is known beforehand. A pair is at most 2 * 15 * 127 = 3810, so that the four of a group fit int16.
template <int S>
void dot_nibbles(const Matrix& w, const Activations& x, float* y, int64_t row, int64_t apart) {
  const __m256i nibble = _mm256_set1_epi8(15), ones = _mm256_set1_epi16(1);
  const uint8_t* at[S];
  __m256 total[S];
  for (int s = 0; s < S; ++s) at[s] = w.data + w.row_start[row + s * apart], total[s] = _mm256_setzero_ps();
  for (int64_t group = 0, block = 0; group < w.groups; ++group) {
    __m256i sums[S];
    for (int s = 0; s < S; ++s) prefetch(at[s]), sums[s] = _mm256_setzero_si256();
    for (const int64_t stop = block + 2 < w.blocks ? block + 2 : w.blocks; block < stop; ++block) {
      const __m256i even = load(x.x8 + block * kBlock), odd = load(x.x8 + block * kBlock + 32);
#pragma GCC unroll 4
      for (int s = 0; s < S; ++s) {
        const __m256i raw = load(at[s]);
        at[s] += kBlock / 2;
        const __m256i low = _mm256_maddubs_epi16(_mm256_and_si256(raw, nibble), even);
        const __m256i high = _mm256_maddubs_epi16(_mm256_and_si256(_mm256_srli_epi16(raw, 4), nibble), odd);
        sums[s] = _mm256_add_epi16(sums[s], _mm256_add_epi16(low, high));
      }
    }
    const __m256i eights = load(x.eights + group * 8);
#pragma GCC unroll 4
    for (int s = 0; s < S; ++s) {
      const float scale = x.scales[group] * w.scales[(row + s * apart) * w.groups + group];
      total[s] = add_scaled(_mm256_sub_epi32(_mm256_madd_epi16(sums[s], ones), eights), scale, total[s]);
    }
  }
  for (int s = 0; s < S; ++s) y[row + s * apart] = sum_lanes(total[s]);
}

template <Kind kind, bool masked, int S>
void some_rows(const Matrix& w, const Activations& x, float* y, int64_t row, int64_t apart) {
  if constexpr (kind == Kind::i4 && !masked) dot_nibbles<S>(w, x, y, row, apart);
  else dot_rows<kind, masked, S>(w, x, y, row, apart);
}

// All rows of x while the weights are in the cache.
template <Kind kind, bool masked, int S>
void each_input(const Job& job, int64_t row, int64_t apart) {
  for (int64_t i = 0; i < job.m; ++i)
    some_rows<kind, masked, S>(job.w, activations(job.w, job.scratch, i), job.y + i * job.ldy, row, apart);
}

template <Kind kind, bool masked>
void gemv(const Job& job, int64_t row0, int64_t row1) {
  const int64_t apart = (row1 - row0) / kStreams;
  for (int64_t i = 0; i < apart; ++i) each_input<kind, masked, kStreams>(job, row0 + i, apart);
  for (int64_t row = row0 + kStreams * apart; row < row1; ++row) each_input<kind, masked, 1>(job, row, 0);
}

}  // namespace

void int_gemv(const Matrix& w, const uint8_t* scratch, int64_t m, float* y, int64_t ldy, int64_t row0, int64_t row1) {
  const Job job{w, scratch, m, y, ldy};
  const bool masked = w.format == Format::bitmask;
  if (w.kind == Kind::i8) masked ? gemv<Kind::i8, true>(job, row0, row1) : gemv<Kind::i8, false>(job, row0, row1);
  else masked ? gemv<Kind::i4, true>(job, row0, row1) : gemv<Kind::i4, false>(job, row0, row1);
  void_bad_rows(w, scratch, m, y, ldy, row0, row1);
}

}  // namespace tailcut::avx2

#endif
