// i8 and i4 slots for several rows of x: a group of a tile is read once, its places look up up to four rows of x in turn.
//
// Products are |w| times x with the sign of w: nothing but x differs from row to row.

#if defined(__AVX2__)

#include <cstring>

#include "avx2_panel_lanes.h"
#include "avx2_slots.h"

namespace tailcut::avx2 {
namespace {

constexpr int64_t kShared = 4;  // rows of x at once: their sums take eight registers

// The wide places of a group, ready to be looked up: window k has what `at[k]` points to, zeros for other windows.
struct Wide {
  __m256i at[kGroup / kWindow];
  __m256i weights, absolute;
};

void read_wide(const uint8_t* from, Wide* to) {
  const __m256i columns = load(from);
  for (int k = 0; k < kGroup / kWindow; ++k) {
    // 0x70 to 0x7f within the window, else the top bit: VPSHUFB puts a zero
    const __m256i other = _mm256_xor_si256(columns, _mm256_set1_epi8(static_cast<char>(k * kWindow)));
    to->at[k] = _mm256_add_epi8(other, _mm256_set1_epi8(0x70));
  }
  to->weights = load(from + kWideBytes / 2);
  to->absolute = _mm256_abs_epi8(to->weights);
}

// A group of a tile.
struct Record {
  const float* own;  // i4: the weight scales
  const uint8_t* codes;
  const uint8_t* places;
  int64_t windows;
  int listed, wides;
  Wide wide[kMostWide + 1];  // one of zeros behind the last
};

// Reads the head; where the next record begins.
template <int S>
const uint8_t* read_record(const Matrix& w, const uint8_t* at, int64_t group, Record* to) {
  to->own = nullptr;
  if (w.kind == Kind::i4) to->own = reinterpret_cast<const float*>(at), at += kTile * sizeof(float);  // may be unaligned
  to->listed = slots_list(at), to->wides = at[2], to->windows = slots_windows(w, group);
  to->codes = at + kSlotsRecord;
  const uint8_t* wide = to->codes + 2 * to->listed;
  for (int k = 0; k < to->wides; ++k, wide += kWideBytes) read_wide(wide, to->wide + k);
  if (to->wides % 2) std::memset(static_cast<void*>(to->wide + to->wides), 0, sizeof(Wide));
  to->places = wide;
  return wide + to->windows * slots_window_bytes(S);
}

// X rows of x, `apart` bytes each from the next.
struct Inputs {
  const int8_t* x;
  int64_t apart;
};

template <int X>
inline __attribute__((always_inline)) void add_places(const Inputs& in, __m256i indices, __m256i weights, __m256i (&sum)[X]) {
  const __m256i ones = _mm256_set1_epi16(1), absolute = _mm256_abs_epi8(weights);
#pragma GCC unroll 4
  for (int r = 0; r < X; ++r) {
    const __m256i picked = _mm256_shuffle_epi8(broadcast16(in.x + r * in.apart), indices);
    sum[r] = _mm256_add_epi32(sum[r], _mm256_madd_epi16(products(picked, weights, absolute), ones));
  }
}

template <int S, int X>
void window_sums(const Record& record, Inputs in, Sums* sums) {
  const __m256i nibble = _mm256_set1_epi8(15);
  __m256i low[X], high[X];
#pragma GCC unroll 4
  for (int r = 0; r < X; ++r) low[r] = high[r] = _mm256_setzero_si256();
  const uint8_t* at = record.places;
  for (int64_t k = 0; k < record.windows * (S / 4); ++k, at += slots_window_bytes(4)) {
    prefetch(at), prefetch(at + 64);
    const Inputs here{in.x + k / (S / 4) * kWindow, in.apart};
    const __m256i indices = load(at);
    add_places<X>(here, _mm256_and_si256(indices, nibble), load(at + 32), low);
    add_places<X>(here, _mm256_and_si256(_mm256_srli_epi16(indices, 4), nibble), load(at + 64), high);
  }
#pragma GCC unroll 4
  for (int r = 0; r < X; ++r) sums[r] = {low[r], high[r]};
}

struct Places2 {
  __m256i indices, weights, absolute;
};

inline __attribute__((always_inline)) Places2 read_places2(const uint8_t* at) {
  const __m128i indices = _mm_loadu_si128(reinterpret_cast<const __m128i*>(at)), nibble = _mm_set1_epi8(15);
  const __m128i low = _mm_and_si128(indices, nibble), high = _mm_and_si128(_mm_srli_epi16(indices, 4), nibble);
  const __m256i weights = load(at + 16);
  return {_mm256_set_m128i(high, low), weights, _mm256_abs_epi8(weights)};
}

inline __attribute__((always_inline)) __m256i products2(const Places2& p, const int8_t* x) {
  return products(_mm256_shuffle_epi8(broadcast16(x), p.indices), p.weights, p.absolute);
}

template <int X>
void window_sums2(const Record& record, Inputs in, Sums* sums) {
  __m256i low[X], high[X];
#pragma GCC unroll 4
  for (int r = 0; r < X; ++r) low[r] = high[r] = _mm256_setzero_si256();
  const uint8_t* at = record.places;
  for (int64_t k = 0; k < record.windows; k += 2, at += 2 * slots_window_bytes(2)) {
    prefetch(at), prefetch(at + 64);
    const Places2 first = read_places2(at), none{};
    const Places2 second = k + 1 < record.windows ? read_places2(at + slots_window_bytes(2)) : none;
#pragma GCC unroll 4
    for (int r = 0; r < X; ++r) {
      const int8_t* const x = in.x + r * in.apart + k * kWindow;
      add_interleaved(products2(first, x), products2(second, x + kWindow), &low[r], &high[r]);
    }
  }
#pragma GCC unroll 4
  for (int r = 0; r < X; ++r) sums[r] = in_order({low[r], high[r]});
}

inline __attribute__((always_inline)) __m256i wide_products(const Wide& wide, const __m256i (&window)[8]) {
  __m256i picked = _mm256_shuffle_epi8(window[0], wide.at[0]);
#pragma GCC unroll 8
  for (int k = 1; k < 8; ++k) picked = _mm256_or_si256(picked, _mm256_shuffle_epi8(window[k], wide.at[k]));
  return products(picked, wide.weights, wide.absolute);
}

Sums wide_sums(const Record& record, const int8_t* x) {
  __m256i window[8], low = _mm256_setzero_si256(), high = low;
#pragma GCC unroll 8
  for (int k = 0; k < 8; ++k) window[k] = broadcast16(x + k * kWindow);
  for (int k = 0; k < record.wides; k += 2)
    add_interleaved(wide_products(record.wide[k], window), wide_products(record.wide[k + 1], window), &low, &high);
  return in_order({low, high});
}

Sums both(const Sums& a, const Sums& b) { return {_mm256_add_epi32(a.low, b.low), _mm256_add_epi32(a.high, b.high)}; }

// What is not in the windows.
Sums rest(const Record& record, const int8_t* x) {
  const Sums wide = wide_sums(record, x);
  if (!record.listed) return wide;
  alignas(32) int32_t until[24] = {};
  sum_list(record.codes, record.codes + record.listed, record.listed, x, until);
  return both(wide, list_sums(until));
}

// Totals [row of x][16].
void add_total(const Sums& sums, float x_scale, const float* own, float* to) {
  __m256 scale = _mm256_set1_ps(x_scale), other = scale;
  if (own) scale = _mm256_mul_ps(scale, _mm256_loadu_ps(own)), other = _mm256_mul_ps(other, _mm256_loadu_ps(own + 8));
  _mm256_storeu_ps(to, _mm256_fmadd_ps(_mm256_cvtepi32_ps(sums.low), scale, _mm256_loadu_ps(to)));
  _mm256_storeu_ps(to + 8, _mm256_fmadd_ps(_mm256_cvtepi32_ps(sums.high), other, _mm256_loadu_ps(to + 8)));
}

template <int S, int X>
void some_rows(const Job& job, const Record& record, int64_t group, int64_t i, float* totals) {
  const Inputs in{activations(job.w, job.scratch, i).x8 + group * kGroup, int64_t(activation_bytes(job.w))};
  Sums sums[X];
  if constexpr (S == 2) window_sums2<X>(record, in, sums);
  else window_sums<S, X>(record, in, sums);
  for (int r = 0; r < X; ++r) {
    const Sums all = record.wides || record.listed ? both(sums[r], rest(record, in.x + r * in.apart)) : sums[r];
    add_total(all, activations(job.w, job.scratch, i + r).scales[group], record.own, totals + (i + r) * kTile);
  }
}

template <int S>
void tile_rows(const Job& job, int64_t tile, float* totals) {
  const Matrix& w = job.w;
  alignas(32) Record record;
  std::memset(totals, 0, static_cast<size_t>(job.m * kTile) * sizeof(float));
  const uint8_t* at = w.data + w.row_start[tile];
  const int64_t steps = (job.m + kShared - 1) / kShared;
  for (int64_t group = 0; group < w.groups; ++group) {
    at = read_record<S>(w, at, group, &record);
    for (int64_t step = 0; step < steps; ++step) {
      const int64_t i = job.m * step / steps;
      switch (job.m * (step + 1) / steps - i) {
        case 1: some_rows<S, 1>(job, record, group, i, totals); break;
        case 2: some_rows<S, 2>(job, record, group, i, totals); break;
        case 3: some_rows<S, 3>(job, record, group, i, totals); break;
        default: some_rows<S, 4>(job, record, group, i, totals); break;
      }
    }
  }
  for (int64_t i = 0; i < job.m; ++i)
    for (int64_t k = 0; k < kTile && tile * kTile + k < w.rows; ++k) {
      const int64_t row = tile * kTile + k;
      job.y[i * job.ldy + row] = w.kind == Kind::i8 ? totals[i * kTile + k] * w.scales[row] : totals[i * kTile + k];
    }
}

}  // namespace

void slots_rows(const Matrix& w, const uint8_t* scratch, int64_t m, float* y, int64_t ldy, int64_t row0, int64_t row1) {
  static thread_local Kept<float> kept;
  const Job job{w, scratch, m, y, ldy};
  float* const totals = kept.at_least(m * kTile);
  for (int64_t tile = row0 / kTile; tile < (row1 + kTile - 1) / kTile; ++tile) switch (w.data[0]) {
      case 2: tile_rows<2>(job, tile, totals); break;
      case 4: tile_rows<4>(job, tile, totals); break;
      default: tile_rows<8>(job, tile, totals); break;
    }
  void_bad_rows(w, scratch, m, y, ldy, row0, row1);
}

}  // namespace tailcut::avx2

#endif
