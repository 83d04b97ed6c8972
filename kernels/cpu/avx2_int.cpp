// i8 and i4 rows on AVX2: bitmask (8 columns a table lookup) and dense.
//
// A range of rows is read as four streams side by side, each a part of the range in order (see avx2_float.cpp; i8
// dense, one thread: 16 GB/s with one stream, 21 with two, 24 with four). A row is summed alike wherever it lies.
//
// Products: VPMADDUBSW multiplies unsigned by signed bytes and adds pairs in int16, so it gets |x| and w with the sign
// of x; both stay within 127, so that a pair (at most 2 * 127 * 127 = 32258) cannot saturate.

#if defined(__AVX2__)

#include <cstring>

#include "avx2.h"

namespace tailcut::avx2 {
namespace {

constexpr int kStreams = 4, kAhead = 1024;  // bytes prefetched in each

// always_inline: gcc takes a function that only prefetches for one without effect and drops calls of it
inline __attribute__((always_inline)) void prefetch(const void* at) {
  _mm_prefetch(static_cast<const char*>(at) + kAhead, _MM_HINT_T0);
}

__m256i load(const void* at) { return _mm256_loadu_si256(static_cast<const __m256i*>(at)); }

// Byte j of entry m: where in the packed bytes column j lies, or 0x80 (VPSHUFB writes 0). `high` counts from 8.
struct Expand {
  uint64_t low[256], high[256];
  Expand() {
    for (int m = 0; m < 256; ++m) {
      uint8_t at[8], above[8];
      for (int j = 0, next = 0; j < 8; ++j) {
        const bool there = m >> j & 1;
        at[j] = there ? static_cast<uint8_t>(next) : 0x80;
        above[j] = there ? static_cast<uint8_t>(next + 8) : 0x80;
        next += there;
      }
      std::memcpy(&low[m], at, 8);
      std::memcpy(&high[m], above, 8);
    }
  }
};
alignas(64) const Expand table;

__m128i two_halves(const void* low, const void* high) {
  const __m128d first = _mm_castsi128_pd(_mm_loadl_epi64(static_cast<const __m128i*>(low)));  // may be unaligned
  return _mm_castpd_si128(_mm_loadh_pd(first, static_cast<const double*>(high)));
}

// 32 columns: mask bits and the packed bytes that belong to them, zeros where a bit is clear.
__m256i expand32(uint32_t mask, const uint8_t* values) {
  const uint32_t m0 = mask & 255, m1 = mask >> 8 & 255, m2 = mask >> 16 & 255, m3 = mask >> 24;
  const __m128i a = two_halves(values, values + _mm_popcnt_u32(m0));
  const __m128i b = two_halves(values + _mm_popcnt_u32(mask & 0xffff), values + _mm_popcnt_u32(mask & 0xffffff));
  const __m128i where_a = two_halves(&table.low[m0], &table.high[m1]);
  const __m128i where_b = two_halves(&table.low[m2], &table.high[m3]);
  return _mm256_shuffle_epi8(_mm256_set_m128i(b, a), _mm256_set_m128i(where_b, where_a));
}

// 32 bytes of nibbles q + 8 -> 64 bytes q, low nibble first.
void unpack64(const uint8_t* nibbles, int8_t* to) {
  const __m256i raw = load(nibbles);
  const __m256i mask = _mm256_set1_epi8(15), eight = _mm256_set1_epi8(8);
  const __m256i low = _mm256_sub_epi8(_mm256_and_si256(raw, mask), eight);
  const __m256i high = _mm256_sub_epi8(_mm256_and_si256(_mm256_srli_epi16(raw, 4), mask), eight);
  const __m256i a = _mm256_unpacklo_epi8(low, high), b = _mm256_unpackhi_epi8(low, high);
  _mm256_store_si256(reinterpret_cast<__m256i*>(to), _mm256_permute2x128_si256(a, b, 0x20));
  _mm256_store_si256(reinterpret_cast<__m256i*>(to + 32), _mm256_permute2x128_si256(a, b, 0x31));
}

struct Pair {
  __m256i first, second;  // columns 0..31 and 32..63 of a block
};

// Walks the blocks of one row. next() gives the 64 weights of the next block as int8.
template <Kind kind, bool masked>
class Row {
 public:
  void open(const Matrix& w, int64_t row) {
    masks_ = w.data + w.row_start[row], values_ = masks_ + (masked ? w.blocks * 8 : 0);
    for (const uint8_t* at = masks_; at < values_; at += 64) prefetch(at);  // next() follows the values
  }

  Pair next() {
    uint64_t mask = 0;
    if (masked) std::memcpy(&mask, masks_, 8), masks_ += 8;
    const uint8_t* from = values_;
    prefetch(from);
    if (kind == Kind::i4) {
      unpack64(from, unpacked_);
      from = reinterpret_cast<const uint8_t*>(unpacked_);
    }
    values_ += masked ? stored(_mm_popcnt_u64(mask)) : stored(kBlock);
    if (!masked) return {load(from), load(from + 32)};
    const auto low = static_cast<uint32_t>(mask);
    return {expand32(low, from), expand32(static_cast<uint32_t>(mask >> 32), from + _mm_popcnt_u32(low))};
  }

 private:
  static int64_t stored(int64_t count) { return kind == Kind::i4 ? (count + 1) / 2 : count; }

  const uint8_t* masks_ = nullptr;
  const uint8_t* values_ = nullptr;
  alignas(32) int8_t unpacked_[96] = {};  // loads of the last columns reach beyond 64
};

__m256i dot32(__m256i sum, __m256i w, const int8_t* x, const uint8_t* abs) {
  const __m256i pairs = _mm256_maddubs_epi16(load(abs), _mm256_sign_epi8(w, load(x)));
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
        even[s] = dot32(even[s], p.first, x.x8 + at, x.abs8 + at);
        odd[s] = dot32(odd[s], p.second, x.x8 + at + 32, x.abs8 + at + 32);
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

struct Job {
  const Matrix& w;
  const uint8_t* scratch;
  int64_t m;
  float* y;
  int64_t ldy;
};

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

template <Kind kind, bool masked>
void expand(const Matrix& w, int64_t row, int16_t* to) {
  Row<kind, masked> weights;
  weights.open(w, row);
  for (int64_t block = 0; block < w.blocks; ++block, to += kBlock) {
    const Pair p = weights.next();
    const __m128i quarters[4] = {_mm256_castsi256_si128(p.first), _mm256_extracti128_si256(p.first, 1),
                                 _mm256_castsi256_si128(p.second), _mm256_extracti128_si256(p.second, 1)};
    for (int q = 0; q < 4; ++q)
      _mm256_store_si256(reinterpret_cast<__m256i*>(to + 16 * q), _mm256_cvtepi8_epi16(quarters[q]));
  }
}

}  // namespace

void int_gemv(const Matrix& w, const uint8_t* scratch, int64_t m, float* y, int64_t ldy, int64_t row0, int64_t row1) {
  const Job job{w, scratch, m, y, ldy};
  const bool masked = w.format == Format::bitmask;
  if (w.kind == Kind::i8) masked ? gemv<Kind::i8, true>(job, row0, row1) : gemv<Kind::i8, false>(job, row0, row1);
  else masked ? gemv<Kind::i4, true>(job, row0, row1) : gemv<Kind::i4, false>(job, row0, row1);
  void_bad_rows(w, scratch, m, y, ldy, row0, row1);
}

void int_expand(const Matrix& w, int64_t row, int16_t* to) {
  const bool masked = w.format == Format::bitmask;
  if (w.kind == Kind::i8) masked ? expand<Kind::i8, true>(w, row, to) : expand<Kind::i8, false>(w, row, to);
  else masked ? expand<Kind::i4, true>(w, row, to) : expand<Kind::i4, false>(w, row, to);
}

}  // namespace tailcut::avx2

#endif
