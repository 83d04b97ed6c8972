// i8 and i4 rows on AVX2: bitmask (8 columns a table lookup) and dense.
//
// Products: VPMADDUBSW multiplies unsigned by signed bytes and adds pairs in int16, so it gets |x| and w with the sign
// of x; both stay within 127, so that a pair (at most 2 * 127 * 127 = 32258) cannot saturate.

#if defined(__AVX2__)

#include <cstring>
#include <limits>

#include "avx2.h"

namespace tailcut::avx2 {
namespace {

constexpr int kAhead = 2048;  // bytes prefetched ahead of the values

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
  const __m256i raw = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(nibbles));
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
  Row(const Matrix& w, int64_t row) : masks_(w.data + w.row_start[row]), values_(masks_ + (masked ? w.blocks * 8 : 0)) {}

  Pair next() {
    uint64_t mask = 0;
    if (masked) std::memcpy(&mask, masks_, 8), masks_ += 8;
    const uint8_t* from = values_;
    _mm_prefetch(reinterpret_cast<const char*>(from) + kAhead, _MM_HINT_T0);
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
  static __m256i load(const uint8_t* at) { return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(at)); }

  const uint8_t* masks_;
  const uint8_t* values_;
  alignas(32) int8_t unpacked_[96] = {};  // loads of the last columns reach beyond 64
};

__m256i dot32(__m256i sum, __m256i w, const int8_t* x, const uint8_t* abs) {
  const __m256i signs = _mm256_load_si256(reinterpret_cast<const __m256i*>(x));
  const __m256i sizes = _mm256_load_si256(reinterpret_cast<const __m256i*>(abs));
  const __m256i pairs = _mm256_maddubs_epi16(sizes, _mm256_sign_epi8(w, signs));
  return _mm256_add_epi32(sum, _mm256_madd_epi16(pairs, _mm256_set1_epi16(1)));
}

template <Kind kind, bool masked>
float dot_row(const Matrix& w, const Activations& x, int64_t row) {
  Row<kind, masked> weights(w, row);
  __m256 total = _mm256_setzero_ps();
  for (int64_t group = 0, block = 0; group < w.groups; ++group) {
    __m256i even = _mm256_setzero_si256(), odd = even;
    for (const int64_t stop = block + 2 < w.blocks ? block + 2 : w.blocks; block < stop; ++block) {
      const Pair p = weights.next();
      const int64_t at = block * kBlock;
      even = dot32(even, p.first, x.x8 + at, x.abs8 + at);
      odd = dot32(odd, p.second, x.x8 + at + 32, x.abs8 + at + 32);
    }
    const float scale = kind == Kind::i4 ? x.scales[group] * w.scales[row * w.groups + group] : x.scales[group];
    total = _mm256_fmadd_ps(_mm256_cvtepi32_ps(_mm256_add_epi32(even, odd)), _mm256_set1_ps(scale), total);
  }
  return kind == Kind::i8 ? sum_lanes(total) * w.scales[row] : sum_lanes(total);
}

template <Kind kind, bool masked>
void gemv(const Matrix& w, const Activations& x, float* y, int64_t row0, int64_t row1) {
  for (int64_t row = row0; row < row1; ++row) {
    if (masked && row + 2 < w.rows)  // the masks of a later row are a stream of their own
      for (int64_t at = 0; at < w.blocks * 8; at += 64)
        _mm_prefetch(reinterpret_cast<const char*>(w.data + w.row_start[row + 2] + at), _MM_HINT_T0);
    y[row] = dot_row<kind, masked>(w, x, row);
  }
}

template <Kind kind, bool masked>
void expand(const Matrix& w, int64_t row, int16_t* to) {
  Row<kind, masked> weights(w, row);
  for (int64_t block = 0; block < w.blocks; ++block, to += kBlock) {
    const Pair p = weights.next();
    const __m128i quarters[4] = {_mm256_castsi256_si128(p.first), _mm256_extracti128_si256(p.first, 1),
                                 _mm256_castsi256_si128(p.second), _mm256_extracti128_si256(p.second, 1)};
    for (int q = 0; q < 4; ++q)
      _mm256_store_si256(reinterpret_cast<__m256i*>(to + 16 * q), _mm256_cvtepi8_epi16(quarters[q]));
  }
}

}  // namespace

void int_gemv(const Matrix& w, const Activations& x, float* y, int64_t row0, int64_t row1) {
  const bool masked = w.format == Format::bitmask;
  if (x.bad) {
    for (int64_t row = row0; row < row1; ++row) y[row] = std::numeric_limits<float>::quiet_NaN();
  } else if (w.kind == Kind::i8) {
    masked ? gemv<Kind::i8, true>(w, x, y, row0, row1) : gemv<Kind::i8, false>(w, x, y, row0, row1);
  } else {
    masked ? gemv<Kind::i4, true>(w, x, y, row0, row1) : gemv<Kind::i4, false>(w, x, y, row0, row1);
  }
}

void int_expand(const Matrix& w, int64_t row, int16_t* to) {
  const bool masked = w.format == Format::bitmask;
  if (w.kind == Kind::i8) masked ? expand<Kind::i8, true>(w, row, to) : expand<Kind::i8, false>(w, row, to);
  else masked ? expand<Kind::i4, true>(w, row, to) : expand<Kind::i4, false>(w, row, to);
}

}  // namespace tailcut::avx2

#endif
