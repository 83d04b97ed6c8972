// i8 and i4 slots: activations are picked for the weights that are there (see slots.h). 16 rows at a time.

#if defined(__AVX2__)

#include <cstring>
#include <limits>

#include "avx2.h"
#include "slots.h"

namespace tailcut::avx2 {
namespace {

constexpr int kAhead = 4096;

struct Sums {
  __m256i low, high;  // rows 0..7 and 8..15
};

__m256i load(const void* at) { return _mm256_loadu_si256(static_cast<const __m256i*>(at)); }

// 32 places: weights times the activations their indices pick, added in pairs. No pair saturates: see avx2_int.cpp.
__m256i products(__m256i window, __m256i indices, __m256i weights) {
  const __m256i x = _mm256_shuffle_epi8(window, indices);
  return _mm256_maddubs_epi16(_mm256_abs_epi8(x), _mm256_sign_epi8(weights, x));
}

__m256i broadcast16(const int8_t* x) {
  return _mm256_broadcastsi128_si256(_mm_load_si128(reinterpret_cast<const __m128i*>(x)));
}

void add_window4(const uint8_t* at, const int8_t* x, Sums* sums) {
  const __m256i window = broadcast16(x), nibble = _mm256_set1_epi8(15), ones = _mm256_set1_epi16(1);
  const __m256i indices = load(at);
  const __m256i low = _mm256_and_si256(indices, nibble);
  const __m256i high = _mm256_and_si256(_mm256_srli_epi16(indices, 4), nibble);
  sums->low = _mm256_add_epi32(sums->low, _mm256_madd_epi16(products(window, low, load(at + 32)), ones));
  sums->high = _mm256_add_epi32(sums->high, _mm256_madd_epi16(products(window, high, load(at + 64)), ones));
}

__m256i products2(const uint8_t* at, const int8_t* x) {  // 16 rows, one int16 each
  const __m128i indices = _mm_loadu_si128(reinterpret_cast<const __m128i*>(at)), nibble = _mm_set1_epi8(15);
  const __m128i low = _mm_and_si128(indices, nibble), high = _mm_and_si128(_mm_srli_epi16(indices, 4), nibble);
  return products(broadcast16(x), _mm256_set_m128i(high, low), load(at + 16));
}

// Two windows: their rows are interleaved, so that the pairwise sum adds the two. Lanes then hold rows 0-3, 8-11 and
// 4-7, 12-15, which `in_order` sorts out at the end.
void add_two_windows2(const uint8_t* at, const int8_t* x, bool second, Sums* sums) {
  const __m256i a = products2(at, x), ones = _mm256_set1_epi16(1);
  const __m256i b = second ? products2(at + slots_window_bytes(2), x + kWindow) : _mm256_setzero_si256();
  sums->low = _mm256_add_epi32(sums->low, _mm256_madd_epi16(_mm256_unpacklo_epi16(a, b), ones));
  sums->high = _mm256_add_epi32(sums->high, _mm256_madd_epi16(_mm256_unpackhi_epi16(a, b), ones));
}

Sums in_order(const Sums& s) {
  return {_mm256_permute2x128_si256(s.low, s.high, 0x20), _mm256_permute2x128_si256(s.low, s.high, 0x31)};
}

// Activations of any column of the group for 32 places: each step looks into 16 of them, and writes 0 for the others,
// whose numbers are then below 0 or above 15 and so have their highest bit set once 0x70 is added with saturation.
__m256i look_up_128(const int8_t* x, __m256i columns) {
  const __m256i step = _mm256_set1_epi8(kWindow), push = _mm256_set1_epi8(0x70);
  __m256i found = _mm256_setzero_si256();
  for (int k = 0; k < kGroup / kWindow; ++k) {
    found = _mm256_or_si256(found, _mm256_shuffle_epi8(broadcast16(x + k * kWindow), _mm256_adds_epu8(columns, push)));
    columns = _mm256_sub_epi8(columns, step);
  }
  return found;
}

__m256i wide_products(const uint8_t* at, const int8_t* x) {
  const __m256i picked = look_up_128(x, load(at));
  return _mm256_maddubs_epi16(_mm256_abs_epi8(picked), _mm256_sign_epi8(load(at + kWideBytes / 2), picked));
}

// In the mixed order of rows that add_two_windows2 leaves.
Sums wide_sums(const uint8_t* at, int wide, const int8_t* x) {
  Sums sums{_mm256_setzero_si256(), _mm256_setzero_si256()};
  const __m256i ones = _mm256_set1_epi16(1);
  for (int k = 0; k < wide; k += 2) {
    const __m256i a = wide_products(at + k * kWideBytes, x);
    const __m256i b = k + 1 < wide ? wide_products(at + (k + 1) * kWideBytes, x) : _mm256_setzero_si256();
    sums.low = _mm256_add_epi32(sums.low, _mm256_madd_epi16(_mm256_unpacklo_epi16(a, b), ones));
    sums.high = _mm256_add_epi32(sums.high, _mm256_madd_epi16(_mm256_unpackhi_epi16(a, b), ones));
  }
  return sums;
}

// The list: running sums, of which the last of each row stays in `until`; a row's own sum is the difference.
void sum_list(const uint8_t* codes, const uint8_t* values, int n, const int8_t* x, int32_t* until) {
  int32_t sum = 0;
  int row = 0;
  for (int k = 0; k < n; ++k) {
    row += codes[k] >> 7;
    sum += int{static_cast<int8_t>(values[k])} * int{x[codes[k] & 127]};
    until[row] = sum;
  }
}

Sums list_sums(const int32_t* until) {
  return {_mm256_sub_epi32(load(until + 1), load(until)), _mm256_sub_epi32(load(until + 9), load(until + 8))};
}

template <int S>
Sums window_sums(const uint8_t* at, int64_t windows, const int8_t* x) {
  Sums sums{_mm256_setzero_si256(), _mm256_setzero_si256()};
  if (S >= 4) {
    for (int64_t k = 0; k < windows * (S / 4); ++k) {
      _mm_prefetch(reinterpret_cast<const char*>(at) + kAhead, _MM_HINT_T0);
      _mm_prefetch(reinterpret_cast<const char*>(at) + kAhead + 64, _MM_HINT_T0);
      add_window4(at, x + k / (S / 4) * kWindow, &sums);
      at += slots_window_bytes(4);
    }
    return sums;
  }
  for (int64_t k = 0; k < windows; k += 2) {
    _mm_prefetch(reinterpret_cast<const char*>(at) + kAhead, _MM_HINT_T0);
    _mm_prefetch(reinterpret_cast<const char*>(at) + kAhead + 64, _MM_HINT_T0);
    add_two_windows2(at, x + k * kWindow, k + 1 < windows, &sums);
    at += 2 * slots_window_bytes(2);
  }
  return in_order(sums);
}

uint16_t list_length(const uint8_t* record) {
  uint16_t n;
  std::memcpy(&n, record, 2);
  return n;
}

// The exact sums of one group for 16 rows; moves `record` on to the next group.
template <int S>
Sums group_sums(const uint8_t** record, int64_t windows, const int8_t* x) {
  alignas(32) int32_t until[24] = {};
  const uint8_t* at = *record;
  const int n = list_length(at), wide = at[2];
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

template <int S, bool group_scales>
void tile_dot(const Matrix& w, const Activations& x, int64_t tile, float* out) {
  const uint8_t* record = w.data + w.row_start[tile];
  __m256 low = _mm256_setzero_ps(), high = low;
  for (int64_t group = 0; group < w.groups; ++group) {
    __m256 scale = _mm256_set1_ps(x.scales[group]), scale_high = scale;
    if (group_scales) {
      const float* const own = reinterpret_cast<const float*>(record);  // loaded unaligned
      scale = _mm256_mul_ps(scale, _mm256_loadu_ps(own));
      scale_high = _mm256_mul_ps(scale_high, _mm256_loadu_ps(own + 8));
      record += kTile * sizeof(float);
    }
    const Sums sums = group_sums<S>(&record, slots_windows(w, group), x.x8 + group * kGroup);
    low = _mm256_fmadd_ps(_mm256_cvtepi32_ps(sums.low), scale, low);
    high = _mm256_fmadd_ps(_mm256_cvtepi32_ps(sums.high), scale_high, high);
  }
  _mm256_storeu_ps(out, low);
  _mm256_storeu_ps(out + 8, high);
}

template <bool group_scales>
void dot_tile(const Matrix& w, const Activations& x, int64_t tile, float* out) {
  switch (w.data[0]) {
    case 2: return tile_dot<2, group_scales>(w, x, tile, out);
    case 4: return tile_dot<4, group_scales>(w, x, tile, out);
    default: return tile_dot<8, group_scales>(w, x, tile, out);
  }
}

int64_t rows_of(const Matrix& w, int64_t tile) {
  const int64_t left = w.rows - tile * kTile;
  return left < kTile ? left : kTile;
}

}  // namespace

void slots_gemv(const Matrix& w, const Activations& x, float* y, int64_t tile) {
  float sums[kTile];
  if (!x.bad) w.kind == Kind::i8 ? dot_tile<false>(w, x, tile, sums) : dot_tile<true>(w, x, tile, sums);
  for (int64_t k = 0; k < rows_of(w, tile); ++k) {
    const int64_t row = tile * kTile + k;
    const float value = w.kind == Kind::i8 ? sums[k] * w.scales[row] : sums[k];
    y[row] = x.bad ? std::numeric_limits<float>::quiet_NaN() : value;
  }
}

namespace {

// Adds one window or layer of `slots` places a row to the rows of `to`.
void expand_window(const uint8_t* at, int64_t slots, int16_t* to, int64_t stride) {
  const int64_t index_bytes = kTile * slots / 2;
  for (int64_t k = 0; k < kTile * slots; ++k) {
    const int column = k < index_bytes ? at[k] & 15 : at[k - index_bytes] >> 4;
    int16_t& cell = to[k / slots * stride + column];
    cell = static_cast<int16_t>(cell + static_cast<int8_t>(at[index_bytes + k]));  // empty places add 0
  }
}

void expand_wide(const uint8_t* at, int16_t* to, int64_t stride) {
  for (int64_t k = 0; k < 2 * kTile; ++k) {
    int16_t& cell = to[k / 2 * stride + at[k]];
    cell = static_cast<int16_t>(cell + static_cast<int8_t>(at[kWideBytes / 2 + k]));
  }
}

void expand_list(const uint8_t* codes, const uint8_t* values, int n, int16_t* to, int64_t stride) {
  for (int64_t k = 0, row = -1; k < n; ++k) {
    row += codes[k] >> 7;
    int16_t& cell = to[row * stride + (codes[k] & 127)];
    cell = static_cast<int16_t>(cell + static_cast<int8_t>(values[k]));
  }
}

}  // namespace

void slots_expand(const Matrix& w, int64_t tile, int16_t* to) {
  const int64_t stride = w.blocks * kBlock, slots = w.data[0], layers = slots == 8 ? 2 : 1;
  std::memset(to, 0, static_cast<size_t>(kTile * stride) * sizeof(int16_t));
  const uint8_t* record = w.data + w.row_start[tile];
  for (int64_t group = 0; group < w.groups; ++group, to += kGroup) {
    if (w.kind == Kind::i4) record += kTile * sizeof(float);
    const int n = list_length(record), wide = record[2];
    record += kSlotsRecord;
    expand_list(record, record + n, n, to, stride);
    record += 2 * n;
    for (int k = 0; k < wide; ++k, record += kWideBytes) expand_wide(record, to, stride);
    for (int64_t k = 0; k < slots_windows(w, group) * layers; ++k, record += slots_window_bytes(slots / layers))
      expand_window(record, slots / layers, to + k / layers * kWindow, stride);
  }
}

}  // namespace tailcut::avx2

#endif
