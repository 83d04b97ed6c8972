// Activations to int8 in groups of 128 columns, as portable.cpp defines it.

#if defined(__AVX2__)

#include <cmath>
#include <cstring>

#include "avx2_panel.h"
#include "avx2_panel_lanes.h"
#include "avx2_slots_lanes.h"

namespace tailcut::avx2 {
namespace {

// Largest absolute value of 128 floats as its bit pattern: it orders like the value, and NaN above infinity.
uint32_t largest_bits(const float* x) {
  const __m256i no_sign = _mm256_set1_epi32(0x7fffffff);
  __m256i top = _mm256_setzero_si256();
  for (int j = 0; j < kGroup; j += 8) {
    const __m256i bits = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(x + j));
    top = _mm256_max_epi32(top, _mm256_and_si256(bits, no_sign));
  }
  __m128i half = _mm_max_epi32(_mm256_castsi256_si128(top), _mm256_extracti128_si256(top, 1));
  half = _mm_max_epi32(half, _mm_shuffle_epi32(half, 0x4e));
  half = _mm_max_epi32(half, _mm_shuffle_epi32(half, 0xb1));
  return static_cast<uint32_t>(_mm_cvtsi128_si32(half));
}

__m256i rounded16(const float* x, __m256 inverse) {  // 16 columns as int16
  const __m256i a = _mm256_cvtps_epi32(_mm256_mul_ps(_mm256_loadu_ps(x), inverse));
  const __m256i b = _mm256_cvtps_epi32(_mm256_mul_ps(_mm256_loadu_ps(x + 8), inverse));
  return _mm256_permute4x64_epi64(_mm256_packs_epi32(a, b), 0xd8);
}

struct Target {
  int8_t* x8;
  int16_t* x16;  // null: narrow
};

void write16(__m256i columns, const Target& to, int64_t at) {
  if (to.x16) return _mm256_storeu_si256(reinterpret_cast<__m256i*>(to.x16 + at), columns);
  const __m128i bytes = _mm_packs_epi16(_mm256_castsi256_si128(columns), _mm256_extracti128_si256(columns, 1));
  _mm_storeu_si128(reinterpret_cast<__m128i*>(to.x8 + at), bytes);
}

// One group at column `at`; writes up to `stop` columns (a multiple of 64) and returns its scale.
float quantise_group(const float* x, int64_t at, int64_t stop, const Target& to, bool* bad) {
  const uint32_t bits = largest_bits(x);
  float largest;
  std::memcpy(&largest, &bits, 4);
  if (bits >= 0x7f800000u) *bad = true, largest = 0;
  float inverse = largest > 0 ? 127.0f / largest : 0.0f;
  if (!std::isfinite(inverse)) inverse = 0;
  const __m256 wide = _mm256_set1_ps(inverse);
  for (int64_t j = 0; at + j < stop && j < kGroup; j += 16)
    write16(inverse > 0 ? rounded16(x + j, wide) : _mm256_setzero_si256(), to, at + j);
  return inverse > 0 ? largest / 127.0f : 0.0f;
}

// See `Activations`: dense i4. Sums of bytes as the kernel adds them up, lane for lane.
void split_columns(const Matrix& w, int8_t* x8, int32_t* eights) {
  const __m256i first = _mm256_set1_epi16(255), eight = _mm256_set1_epi8(8), ones = _mm256_set1_epi16(1);
  __m256i sums = _mm256_setzero_si256();
  for (int64_t block = 0; block < w.blocks; ++block) {
    auto* const at = reinterpret_cast<__m256i*>(x8 + block * kBlock);
    const __m256i a = _mm256_loadu_si256(at), b = _mm256_loadu_si256(at + 1);
    const __m256i even = _mm256_packus_epi16(_mm256_and_si256(a, first), _mm256_and_si256(b, first));
    const __m256i odd = _mm256_packus_epi16(_mm256_srli_epi16(a, 8), _mm256_srli_epi16(b, 8));
    const __m256i columns[2] = {_mm256_permute4x64_epi64(even, 0xd8), _mm256_permute4x64_epi64(odd, 0xd8)};
    for (int k = 0; k < 2; ++k) {
      _mm256_storeu_si256(at + k, columns[k]);
      sums = _mm256_add_epi32(sums, _mm256_madd_epi16(_mm256_maddubs_epi16(eight, columns[k]), ones));
    }
    if (block % 2 == 0 && block + 1 < w.blocks) continue;
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(eights + block / 2 * 8), sums);
    sums = _mm256_setzero_si256();
  }
}

// One row of x in groups: scales[g * apart], columns into `to`. Whether a NaN or an infinity was among them.
bool quantise_row(const Matrix& w, const float* x, const Target& to, float* scales, int64_t apart) {
  bool any = false;
  for (int64_t g = 0; g < w.groups; ++g) {
    const int64_t at = g * kGroup;
    const float* from = x + at;
    float padded[kGroup];
    if (at + kGroup > w.cols) {
      std::memset(padded, 0, sizeof padded);
      std::memcpy(padded, from, static_cast<size_t>(w.cols - at) * sizeof(float));
      from = padded;
    }
    bool bad = false;
    scales[g * apart] = quantise_group(from, at, w.blocks * kBlock, to, &bad);
    if (bad && apart > 1) scales[g * apart] = std::numeric_limits<float>::quiet_NaN();  // of lanes: spoils the sum
    any |= bad;
  }
  return any;
}

// Eight rows of `columns` int16 -> vectors of pairs, `vectors` apart.
void pairs_in_lanes(const int16_t* rows, int64_t columns, int64_t vectors, int16_t* to) {
  for (int64_t column = 0; column < columns; column += 16) {
    __m256 v[8];
    for (int64_t r = 0; r < 8; ++r) v[r] = _mm256_load_ps(reinterpret_cast<const float*>(rows + r * columns + column));
    transpose8(v);
    for (int64_t k = 0; k < 8; ++k)
      _mm256_store_ps(reinterpret_cast<float*>(to + (column / 2 + k) * vectors * kIntLane * 2), v[k]);
  }
}

}  // namespace

void panel_prepare(const Matrix& w, const float* x, int64_t m, int64_t first, int64_t last, uint8_t* scratch) {
  static thread_local Kept<int16_t> kept;
  const IntLanes lanes(w, scratch, m);
  int16_t* const rows = kept.at_least(kIntLane * lanes.columns + 1);
  for (int64_t i = first; i < last; i += kIntLane) {
    const int64_t block = i / kIntLanes, lane = i % kIntLanes, vectors = lanes.vectors(block);
    float* const scales = const_cast<float*>(lanes.scales(block, 0)) + lane;
    for (int64_t k = 0; k < kIntLane; ++k) {
      int16_t* const row = rows + k * lanes.columns;
      if (i + k < m) {
        quantise_row(w, x + (i + k) * w.cols, {nullptr, row}, scales + k, vectors * kIntLane);
        continue;
      }
      std::memset(row, 0, static_cast<size_t>(lanes.columns) * sizeof(int16_t));
      for (int64_t g = 0; g < w.groups; ++g) scales[g * vectors * kIntLane + k] = 0.0f;
    }
    pairs_in_lanes(rows, lanes.columns, vectors, const_cast<int16_t*>(lanes.group(block, 0)) + lane * 2);
  }
}

void lanes8_prepare(const Matrix& w, const float* x, int64_t m, int64_t first, int64_t last, uint8_t* scratch) {
  static thread_local Kept<int8_t> kept;
  const ByteLanes lanes(w, scratch, m);
  const int64_t columns = w.groups * kGroup;
  int8_t* const row = kept.at_least(columns);
  std::memset(row, 0, static_cast<size_t>(columns));
  const Target to{row, nullptr};
  auto* const scales = const_cast<float*>(lanes.scale);
  for (int64_t i = first; i < last; ++i) {
    const int64_t i0 = i / kByteLanes * kByteLanes, place = ByteLanes::place(i - i0);
    quantise_row(w, x + i * w.cols, to, scales + i, lanes.padded);
    for (int64_t g = 0; g < w.groups; ++g) {
      auto* at = const_cast<int8_t*>(lanes.block(g, i0)) + place;
      for (int64_t c = 0; c < kGroup; ++c, at += 2 * kByteLanes)
        at[0] = row[g * kGroup + c], at[kByteLanes] = static_cast<int8_t>(-row[g * kGroup + c]);
    }
  }
  for (int64_t i = m; last == m && i < lanes.padded; ++i)
    for (int64_t g = 0; g < w.groups; ++g) scales[g * lanes.padded + i] = 0.0f;
}

void prepare(const Matrix& w, const float* x, int64_t m, int64_t first, int64_t last, uint8_t* scratch) {
  if (!integer(w)) return;
  if (by_places(w, m)) return lanes8_prepare(w, x, m, first, last, scratch);
  if (wide(w, m)) return panel_prepare(w, x, m, first, last, scratch);
  for (int64_t i = first; i < last; ++i) {
    uint8_t* base = scratch + static_cast<size_t>(i) * activation_bytes(w);
    auto* scales = reinterpret_cast<float*>(base);
    uint8_t* columns = base + header_bytes(w);
    const Target to{reinterpret_cast<int8_t*>(columns), nullptr};
    scales[w.groups] = quantise_row(w, x + i * w.cols, to, scales, 1) ? 1.0f : 0.0f;
    if (split(w, m)) split_columns(w, to.x8, reinterpret_cast<int32_t*>(columns + w.blocks * kBlock));
  }
}

}  // namespace tailcut::avx2

#endif
