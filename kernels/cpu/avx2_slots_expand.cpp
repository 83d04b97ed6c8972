// i8 and i4 slots as rows of int8, for many rows of x: a tile of 16 rows, a group of columns at a time.

#if defined(__AVX2__)

#include <cstring>

#include "avx2_panel.h"
#include "slots.h"

namespace tailcut::avx2 {
namespace {

// Places of 16 rows: column numbers and values. With four places a row, of eight rows.
struct Places {
  __m256i columns, values;
};

Places load_places4(const uint8_t* at, int half) {
  const __m256i indices = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(at)), nibble = _mm256_set1_epi8(15);
  return {_mm256_and_si256(half ? _mm256_srli_epi16(indices, 4) : indices, nibble),
          _mm256_loadu_si256(reinterpret_cast<const __m256i*>(at + 32 + 32 * half))};
}

Places load_places2(const uint8_t* at) {
  const __m128i indices = _mm_loadu_si128(reinterpret_cast<const __m128i*>(at)), nibble = _mm_set1_epi8(15);
  const __m128i low = _mm_and_si128(indices, nibble), high = _mm_and_si128(_mm_srli_epi16(indices, 4), nibble);
  return {_mm256_set_m128i(high, low), _mm256_loadu_si256(reinterpret_cast<const __m256i*>(at + 16))};
}

// The 16 columns of row `row` of each half of `p`, S places a row. Empty places have value 0, wherever they point.
template <int S>
inline __attribute__((always_inline)) __m256i two_rows(const Places& p, int row) {
  const __m128i count = _mm_setr_epi8(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
  const __m256i columns = _mm256_broadcastsi128_si256(count);
  __m256i found = _mm256_setzero_si256();
#pragma GCC unroll 4
  for (int place = 0; place < S; ++place) {
    const __m256i which = _mm256_set1_epi8(static_cast<char>(S * row + place));
    const __m256i here = _mm256_cmpeq_epi8(_mm256_shuffle_epi8(p.columns, which), columns);
    found = _mm256_or_si256(found, _mm256_and_si256(here, _mm256_shuffle_epi8(p.values, which)));
  }
  return found;
}

inline __attribute__((always_inline)) void store_rows(__m256i rows, int8_t* to, int apart) {
  _mm_store_si128(reinterpret_cast<__m128i*>(to), _mm256_castsi256_si128(rows));
  _mm_store_si128(reinterpret_cast<__m128i*>(to + apart * kGroup), _mm256_extracti128_si256(rows, 1));
}

template <bool two_layers>
void put_window4(const uint8_t* at, int8_t* to) {
  for (int half = 0; half < 2; ++half) {
    const Places first = load_places4(at, half);
    const Places second = two_layers ? load_places4(at + slots_window_bytes(4), half) : first;
#pragma GCC unroll 4
    for (int row = 0; row < 4; ++row) {
      __m256i rows = two_rows<4>(first, row);
      if (two_layers) rows = _mm256_or_si256(rows, two_rows<4>(second, row));
      store_rows(rows, to + (half * 8 + row) * kGroup, 4);
    }
  }
}

void put_window2(const uint8_t* at, int8_t* to) {
  const Places places = load_places2(at);
#pragma GCC unroll 8
  for (int row = 0; row < 8; ++row) store_rows(two_rows<2>(places, row), to + row * kGroup, 8);
}

inline void join(int8_t* cell, uint8_t value) { *cell = static_cast<int8_t>(*cell | value); }  // empty places: 0

void put_wide(const uint8_t* at, int8_t* to) {
  for (int k = 0; k < 2 * kTile; ++k) join(to + k / 2 * kGroup + at[k], at[kWideBytes / 2 + k]);
}

void put_list(const uint8_t* codes, const uint8_t* values, int n, int8_t* to) {
  for (int64_t k = 0, row = -1; k < n; ++k) {
    row += codes[k] >> 7;
    join(to + row * kGroup + (codes[k] & 127), values[k]);
  }
}

// All windows of a group, `slots` places each. Where the next record begins.
const uint8_t* put_windows(const uint8_t* at, int64_t windows, int slots, int8_t* to) {
  for (int64_t k = 0; k < windows; ++k, at += slots_window_bytes(slots), to += kWindow) {
    if (slots == 2) put_window2(at, to);
    else if (slots == 4) put_window4<false>(at, to);
    else put_window4<true>(at, to);
  }
  return at;
}

}  // namespace

const uint8_t* slots_expand(const Matrix& w, const uint8_t* record, int64_t group, int8_t* to) {
  std::memset(to, 0, static_cast<size_t>(kTile * kGroup));
  if (w.kind == Kind::i4) record += kTile * sizeof(float);
  const int n = slots_list(record), wide = record[2];
  const uint8_t* const list = record + kSlotsRecord;
  const uint8_t* const at = list + 2 * n + wide * kWideBytes;
  const uint8_t* const end = put_windows(at, slots_windows(w, group), w.data[0], to);
  for (int k = 0; k < wide; ++k) put_wide(list + 2 * n + k * kWideBytes, to);
  put_list(list, list + n, n, to);
  return end;
}

}  // namespace tailcut::avx2

#endif
