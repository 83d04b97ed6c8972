// i8 and i4 slots, one row of x: activations are picked for the weights that are there (see slots.h). 16 rows at a time.
//
// A range is read as two streams side by side, its first and its second half: measured on Zen 3, half of the weights
// left, one thread, 20 GB/s with one stream, 22 to 23 with two, 19 to 20 with three or four.

#if defined(__AVX2__)

#include "avx2_slots.h"

namespace tailcut::avx2 {
namespace {

constexpr int kStreams = 2;

// 32 places: weights times the activations their indices pick.
__m256i picked(__m256i window, __m256i indices, __m256i weights) {
  return products(_mm256_shuffle_epi8(window, indices), weights, _mm256_abs_epi8(weights));
}

void add_window4(const uint8_t* at, const int8_t* x, Sums* sums) {
  const __m256i window = broadcast16(x), nibble = _mm256_set1_epi8(15), ones = _mm256_set1_epi16(1);
  const __m256i indices = load(at);
  const __m256i low = _mm256_and_si256(indices, nibble);
  const __m256i high = _mm256_and_si256(_mm256_srli_epi16(indices, 4), nibble);
  sums->low = _mm256_add_epi32(sums->low, _mm256_madd_epi16(picked(window, low, load(at + 32)), ones));
  sums->high = _mm256_add_epi32(sums->high, _mm256_madd_epi16(picked(window, high, load(at + 64)), ones));
}

__m256i products2(const uint8_t* at, const int8_t* x) {  // 16 rows, one int16 each
  const __m128i indices = _mm_loadu_si128(reinterpret_cast<const __m128i*>(at)), nibble = _mm_set1_epi8(15);
  const __m128i low = _mm_and_si128(indices, nibble), high = _mm_and_si128(_mm_srli_epi16(indices, 4), nibble);
  return picked(broadcast16(x), _mm256_set_m128i(high, low), load(at + 16));
}

// Two windows: their rows are interleaved, so that the pairwise sum adds the two. Lanes then hold rows 0-3, 8-11 and
// 4-7, 12-15, which `in_order` sorts out at the end.
void add_two_windows2(const uint8_t* at, const int8_t* x, bool second, Sums* sums) {
  const __m256i a = products2(at, x);
  const __m256i b = second ? products2(at + slots_window_bytes(2), x + kWindow) : _mm256_setzero_si256();
  add_interleaved(a, b, &sums->low, &sums->high);
}

// Activations of any column of the group for 32 places: looked up in each of the eight windows by the lowest four bits
// of the column, then bits 4, 5 and 6 choose, each moved to the highest of its byte.
__m256i look_up_128(const int8_t* x, __m256i columns) {
  const __m256i bit4 = _mm256_slli_epi16(columns, 3), bit5 = _mm256_slli_epi16(columns, 2);
  __m256i pair[4];
  for (int k = 0; k < 4; ++k) {
    const __m256i even = _mm256_shuffle_epi8(broadcast16(x + 2 * k * kWindow), columns);
    const __m256i odd = _mm256_shuffle_epi8(broadcast16(x + (2 * k + 1) * kWindow), columns);
    pair[k] = _mm256_blendv_epi8(even, odd, bit4);
  }
  const __m256i low = _mm256_blendv_epi8(pair[0], pair[1], bit5);
  const __m256i high = _mm256_blendv_epi8(pair[2], pair[3], bit5);
  return _mm256_blendv_epi8(low, high, _mm256_slli_epi16(columns, 1));
}

__m256i wide_products(const uint8_t* at, const int8_t* x) {
  const __m256i weights = load(at + kWideBytes / 2);
  return products(look_up_128(x, load(at)), weights, _mm256_abs_epi8(weights));
}

// In the mixed order of rows that add_two_windows2 leaves.
Sums wide_sums(const uint8_t* at, int wide, const int8_t* x) {
  Sums sums{_mm256_setzero_si256(), _mm256_setzero_si256()};
  for (int k = 0; k < wide; k += 2) {
    prefetch(at + k * kWideBytes);
    prefetch(at + (k + 1) * kWideBytes);
    const __m256i a = wide_products(at + k * kWideBytes, x);
    const __m256i b = k + 1 < wide ? wide_products(at + (k + 1) * kWideBytes, x) : _mm256_setzero_si256();
    add_interleaved(a, b, &sums.low, &sums.high);
  }
  return sums;
}

template <int S>
Sums window_sums(const uint8_t* at, int64_t windows, const int8_t* x) {
  Sums sums{_mm256_setzero_si256(), _mm256_setzero_si256()};
  if (S >= 4) {
    for (int64_t k = 0; k < windows * (S / 4); ++k) {
      prefetch(at);
      prefetch(at + 64);
      add_window4(at, x + k / (S / 4) * kWindow, &sums);
      at += slots_window_bytes(4);
    }
    return sums;
  }
  for (int64_t k = 0; k < windows; k += 2) {
    prefetch(at);
    prefetch(at + 64);
    add_two_windows2(at, x + k * kWindow, k + 1 < windows, &sums);
    at += 2 * slots_window_bytes(2);
  }
  return in_order(sums);
}

// The exact sums of one group for 16 rows; moves `record` on to the next group.
template <int S>
Sums group_sums(const uint8_t** record, int64_t windows, const int8_t* x) {
  alignas(32) int32_t until[24] = {};
  const uint8_t* at = *record;
  const int n = slots_list(at), wide = at[2];
  at += kSlotsRecord;
  if (n) sum_list(at, at + n, n, x, until);
  at += 2 * n;
  Sums extra = wide_sums(at, wide, x);
  at += wide * kWideBytes;
  Sums sums = window_sums<S>(at, windows, x);
  *record = at + windows * slots_window_bytes(S);
  extra = in_order(extra);
  sums = {_mm256_add_epi32(sums.low, extra.low), _mm256_add_epi32(sums.high, extra.high)};
  if (!n) return sums;
  const Sums listed = list_sums(until);
  return {_mm256_add_epi32(sums.low, listed.low), _mm256_add_epi32(sums.high, listed.high)};
}

// 16 rows as they are read.
struct Tile {
  const uint8_t* record;
  __m256 low, high;
};

template <int S, bool group_scales>
void add_group(const Matrix& w, const Activations& x, int64_t group, Tile* tile) {
  __m256 scale = _mm256_set1_ps(x.scales[group]), scale_high = scale;
  if (group_scales) {
    const float* const own = reinterpret_cast<const float*>(tile->record);  // loaded unaligned
    scale = _mm256_mul_ps(scale, _mm256_loadu_ps(own));
    scale_high = _mm256_mul_ps(scale_high, _mm256_loadu_ps(own + 8));
    tile->record += kTile * sizeof(float);
  }
  const Sums sums = group_sums<S>(&tile->record, slots_windows(w, group), x.x8 + group * kGroup);
  tile->low = _mm256_fmadd_ps(_mm256_cvtepi32_ps(sums.low), scale, tile->low);
  tile->high = _mm256_fmadd_ps(_mm256_cvtepi32_ps(sums.high), scale_high, tile->high);
}

void store_rows(const Matrix& w, const Tile& tile, int64_t row0, float* y) {
  float sums[kTile];
  _mm256_storeu_ps(sums, tile.low);
  _mm256_storeu_ps(sums + 8, tile.high);
  for (int64_t k = 0; k < kTile && row0 + k < w.rows; ++k)
    y[row0 + k] = w.kind == Kind::i8 ? sums[k] * w.scales[row0 + k] : sums[k];
}

// Tiles tile, tile + apart, ...: N of them, a group of each in turn.
template <int S, bool group_scales, int N>
void some_tiles(const Matrix& w, const Activations& x, float* y, int64_t tile, int64_t apart) {
  Tile tiles[N];
  for (int n = 0; n < N; ++n)
    tiles[n] = {w.data + w.row_start[tile + n * apart], _mm256_setzero_ps(), _mm256_setzero_ps()};
  for (int64_t group = 0; group < w.groups; ++group)
    for (Tile& one : tiles) add_group<S, group_scales>(w, x, group, &one);
  for (int n = 0; n < N; ++n) store_rows(w, tiles[n], (tile + n * apart) * kTile, y);
}

template <int S, bool group_scales>
void all_tiles(const Matrix& w, const Activations& x, float* y, int64_t first, int64_t last) {
  const int64_t apart = (last - first) / kStreams;
  for (int64_t k = 0; k < apart; ++k) some_tiles<S, group_scales, kStreams>(w, x, y, first + k, apart);
  for (int64_t tile = first + kStreams * apart; tile < last; ++tile) some_tiles<S, group_scales, 1>(w, x, y, tile, apart);
}

template <bool group_scales>
void all_tiles(const Matrix& w, const Activations& x, float* y, int64_t first, int64_t last) {
  switch (w.data[0]) {
    case 2: return all_tiles<2, group_scales>(w, x, y, first, last);
    case 4: return all_tiles<4, group_scales>(w, x, y, first, last);
    default: return all_tiles<8, group_scales>(w, x, y, first, last);
  }
}

}  // namespace

void slots_gemv(const Matrix& w, const uint8_t* scratch, float* y, int64_t row0, int64_t row1) {
  const Activations x = activations(w, scratch, 0);
  const int64_t first = row0 / kTile, last = (row1 + kTile - 1) / kTile;
  w.kind == Kind::i8 ? all_tiles<false>(w, x, y, first, last) : all_tiles<true>(w, x, y, first, last);
  void_bad_rows(w, scratch, 1, y, w.rows, row0, row1);
}

}  // namespace tailcut::avx2

#endif
