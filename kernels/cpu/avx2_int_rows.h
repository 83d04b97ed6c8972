// Rows of i8 and i4 matrices (bitmask and dense) as int8, 64 columns at a time.
#pragma once

#include <cstring>

#include "avx2.h"

namespace tailcut::avx2 {
namespace {

constexpr int kAhead = 1024;  // bytes prefetched in each row

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

}  // namespace
}  // namespace tailcut::avx2
