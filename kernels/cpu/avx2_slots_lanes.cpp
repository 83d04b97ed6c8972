// The products of avx2_slots_lanes.h.

#if defined(__AVX2__)

#include "avx2_slots_lanes.h"

#include <cstring>

#include "avx2_panel_lanes.h"
#include "avx2_slots.h"

namespace tailcut::avx2 {
namespace {

// Of a row: eight windows of up to eight places, wide places, a list of up to a whole group.
constexpr int kShift = 5;  // 32 lanes of a column, then of the same negated
static_assert(kByteLanes == 1 << kShift);
constexpr int64_t kMostFours = 16 + kMostWide / 2 + kGroup / 4;

// A group of a tile: fours of places. `at`: byte offsets of their columns in a block; `weight`: |w|.
struct Fours {
  alignas(64) uint16_t at[kMostFours][kTile][4];
  alignas(64) uint8_t weight[kMostFours][kTile][4];
  int64_t count;
};

// Sixteen places: columns within the group and values -> offsets and |w|.
inline __attribute__((always_inline)) void put16(__m128i columns, __m128i values, uint16_t* at, uint8_t* weight) {
  const __m256i negative = _mm256_srli_epi16(_mm256_cvtepi8_epi16(values), 15);
  const __m256i both = _mm256_or_si256(_mm256_slli_epi16(_mm256_cvtepu8_epi16(columns), 1), negative);
  _mm256_store_si256(reinterpret_cast<__m256i*>(at), _mm256_slli_epi16(both, kShift));
  _mm_store_si128(reinterpret_cast<__m128i*>(weight), _mm_abs_epi8(values));
}

inline __attribute__((always_inline)) void put32(__m256i columns, __m256i values, uint16_t* at, uint8_t* weight) {
  put16(_mm256_castsi256_si128(columns), _mm256_castsi256_si128(values), at, weight);
  put16(_mm256_extracti128_si256(columns, 1), _mm256_extracti128_si256(values, 1), at + 16, weight + 16);
}

class Reader {
 public:
  explicit Reader(Fours* to) : to_(to) { to_->count = 0; }

  // Four places of 16 rows, as a window of four holds them.
  void four(__m256i low_columns, __m256i high_columns, __m256i low, __m256i high) {
    put32(low_columns, low, to_->at[to_->count][0], to_->weight[to_->count][0]);
    put32(high_columns, high, to_->at[to_->count][8], to_->weight[to_->count][8]);
    ++to_->count;
  }

  // Two times two places of 16 rows, each [16][2].
  void two_and_two(__m256i columns, __m256i values, __m256i more_columns, __m256i more_values) {
    const Quarters c = interleaved(columns, more_columns), v = interleaved(values, more_values);
    four(c.low, c.high, v.low, v.high);
  }

  // Entries of each row in turn, the list of a group.
  void list(const uint8_t* codes, const uint8_t* values, int n) {
    int64_t first = to_->count, row = -1, place = 0;
    for (int k = 0; k < n; ++k) {
      if (codes[k] >> 7) ++row, place = 0;
      if (first + place / 4 == to_->count) clear_next();
      const auto value = static_cast<int8_t>(values[k]);
      const int offset = (codes[k] & 127) * 2 + (value < 0);
      to_->at[first + place / 4][row][place % 4] = static_cast<uint16_t>(offset << kShift);
      to_->weight[first + place / 4][row][place % 4] = static_cast<uint8_t>(value < 0 ? -value : value);
      ++place;
    }
  }

 private:
  struct Quarters {
    __m256i low, high;  // rows 0-7 and 8-15
  };
  static Quarters interleaved(__m256i a, __m256i b) {
    const __m256i low = _mm256_unpacklo_epi16(a, b), high = _mm256_unpackhi_epi16(a, b);  // 0-3, 8-11 and 4-7, 12-15
    return {_mm256_permute2x128_si256(low, high, 0x20), _mm256_permute2x128_si256(low, high, 0x31)};
  }
  void clear_next() {
    std::memset(to_->at[to_->count], 0, sizeof to_->at[0]);
    std::memset(to_->weight[to_->count], 0, sizeof to_->weight[0]);
    ++to_->count;
  }

  Fours* const to_;
};

void read_window4(const uint8_t* at, __m256i column0, Reader* to) {
  const __m256i nibble = _mm256_set1_epi8(15), indices = load(at);
  const __m256i low = _mm256_and_si256(indices, nibble), high = _mm256_and_si256(_mm256_srli_epi16(indices, 4), nibble);
  to->four(_mm256_add_epi8(low, column0), _mm256_add_epi8(high, column0), load(at + 32), load(at + 64));
}

__m256i columns2(const uint8_t* at, __m256i column0) {
  const __m128i indices = _mm_loadu_si128(reinterpret_cast<const __m128i*>(at)), nibble = _mm_set1_epi8(15);
  const __m128i low = _mm_and_si128(indices, nibble), high = _mm_and_si128(_mm_srli_epi16(indices, 4), nibble);
  return _mm256_add_epi8(_mm256_set_m128i(high, low), column0);
}

void read_windows(const uint8_t* at, int64_t windows, int slots, Reader* to) {
  const __m256i step = _mm256_set1_epi8(kWindow), zero = _mm256_setzero_si256();
  __m256i column0 = zero;
  for (int64_t k = 0; k < windows; k += slots == 2 ? 2 : 1, column0 = _mm256_add_epi8(column0, step)) {
    for (int64_t line = 0; line < slots_window_bytes(slots); line += 64) prefetch(at + line);
    if (slots == 2) {
      const __m256i next = _mm256_add_epi8(column0, step);
      const uint8_t* const other = at + slots_window_bytes(2);
      if (k + 1 < windows) to->two_and_two(columns2(at, column0), load(at + 16), columns2(other, next), load(other + 16));
      else to->two_and_two(columns2(at, column0), load(at + 16), zero, zero);
      at = other + slots_window_bytes(2), column0 = next;
      continue;
    }
    for (int layer = 0; layer < slots / 4; ++layer, at += slots_window_bytes(4)) read_window4(at, column0, to);
  }
}

// Reads a group's record; where the next begins.
const uint8_t* read_group(const Matrix& w, const uint8_t* at, int64_t group, Fours* to) {
  Reader reader(to);
  if (w.kind == Kind::i4) at += kTile * sizeof(float);
  const int n = slots_list(at), wides = at[2], slots = w.data[0];
  const uint8_t* const codes = at + kSlotsRecord;
  at = codes + 2 * n;
  const __m256i zero = _mm256_setzero_si256();
  for (int k = 0; k < wides; k += 2, at += 2 * kWideBytes) {
    const bool two = k + 1 < wides;
    const uint8_t* const other = at + kWideBytes;
    reader.two_and_two(load(at), load(at + 32), two ? load(other) : zero, two ? load(other + 32) : zero);
  }
  at = codes + 2 * n + wides * kWideBytes;
  read_windows(at, slots_windows(w, group), slots, &reader);
  if (n) reader.list(codes, codes + n, n);
  return at + slots_windows(w, group) * slots_window_bytes(slots);
}

inline __attribute__((always_inline)) void add_products(__m256i x, __m256i weights, __m256i* sum) {
  const __m256i pairs = _mm256_maddubs_epi16(weights, x);
  *sum = _mm256_add_epi32(*sum, _mm256_madd_epi16(pairs, _mm256_set1_epi16(1)));
  __asm__("" : "+x"(*sum));  // keeps it in its register
}

inline __attribute__((always_inline)) __m256i lanes_at(const int8_t* at) {
  return _mm256_load_si256(reinterpret_cast<const __m256i*>(at));
}

// One row of W times a block of x, of which the first 8 P rows are there.
template <int P>
inline __attribute__((always_inline)) void row_sums(const Fours& fours, int64_t row, const int8_t* x, __m256i (&sum)[P]) {
#pragma GCC unroll 4
  for (int k = 0; k < P; ++k) sum[k] = _mm256_setzero_si256();
  for (int64_t k = 0; k < fours.count; ++k) {
    const uint16_t* const at = fours.at[k][row];
    int four;
    std::memcpy(&four, fours.weight[k][row], sizeof four);
    const __m256i weights = _mm256_set1_epi32(four);
    const __m256i a = lanes_at(x + at[0]), b = lanes_at(x + at[1]), c = lanes_at(x + at[2]), d = lanes_at(x + at[3]);
    const __m256i ab = _mm256_unpacklo_epi8(a, b), cd = _mm256_unpacklo_epi8(c, d);
    add_products(_mm256_unpacklo_epi16(ab, cd), weights, &sum[0]);
    if constexpr (P > 1) add_products(_mm256_unpackhi_epi16(ab, cd), weights, &sum[1]);
    if constexpr (P > 2) {
      const __m256i ab2 = _mm256_unpackhi_epi8(a, b), cd2 = _mm256_unpackhi_epi8(c, d);
      add_products(_mm256_unpacklo_epi16(ab2, cd2), weights, &sum[2]);
      if constexpr (P > 3) add_products(_mm256_unpackhi_epi16(ab2, cd2), weights, &sum[3]);
    }
  }
}

// A group of a tile times a block of x, added to totals [row][lanes], scaled. `own`: the weight scales of i4. `ahead`: the
// columns that come next, which are asked for meanwhile (no hardware foresees the order in which columns are read).
struct Step {
  const Fours& fours;
  int64_t rows;
  const int8_t* x;
  const float* scales;
  const float* own;
  float* totals;
  const int8_t* ahead;
};

template <int P>
void add_group(const Step& s) {
  constexpr int64_t kShare = 2 * kGroup * kByteLanes / kTile;  // bytes asked for a row
  for (int64_t row = 0; row < s.rows; ++row) {
    for (int64_t line = 0; line < kShare; line += 64)
      _mm_prefetch(reinterpret_cast<const char*>(s.ahead + row * kShare + line), _MM_HINT_T0);
    __m256i sum[P];
    row_sums<P>(s.fours, row, s.x, sum);
    const __m256 wide = _mm256_set1_ps(s.own ? s.own[row] : 1.0f);
#pragma GCC unroll 4
    for (int k = 0; k < P; ++k) {
      float* const to = s.totals + row * kByteLanes + 8 * k;
      const __m256 scale = _mm256_mul_ps(wide, _mm256_load_ps(s.scales + 8 * k));
      _mm256_store_ps(to, _mm256_fmadd_ps(_mm256_cvtepi32_ps(sum[k]), scale, _mm256_load_ps(to)));
    }
  }
}

constexpr int64_t kRowsAtOnce = 512;  // of x between two passes over the weights

// Rows [i0, i1) of x, whole blocks of them, times one tile.
struct Tile {
  const Matrix& w;
  const ByteLanes& x;
  float* totals;  // of each block [16][lanes]
  int64_t i0, i1, row0, rows;
};

void multiply_group(const Tile& t, const Fours& fours, int64_t group) {
  float scales_of_rows[kTile];
  for (int64_t r = 0; t.w.kind == Kind::i4 && r < t.rows; ++r)
    scales_of_rows[r] = t.w.scales[(t.row0 + r) * t.w.groups + group];
  const float* const own = t.w.kind == Kind::i4 ? scales_of_rows : nullptr;
  for (int64_t i0 = t.i0; i0 < t.i1; i0 += kByteLanes) {
    const bool last = i0 + kByteLanes >= t.i1;
    const int64_t then = last && group + 1 < t.w.groups ? group + 1 : last ? 0 : group;
    const Step step{fours, t.rows, t.x.block(group, i0), t.x.scales(group, i0), own, t.totals + (i0 - t.i0) * kTile,
                    t.x.block(then, last ? t.i0 : i0 + kByteLanes)};
    switch ((t.i1 - i0 + 7) / 8) {
      case 1: add_group<1>(step); break;
      case 2: add_group<2>(step); break;
      case 3: add_group<3>(step); break;
      default: add_group<4>(step); break;
    }
  }
}

void write_tile(const Tile& t, float* y, int64_t ldy) {
  for (int64_t i = t.i0; i < t.i1; ++i) {
    const float* const totals = t.totals + (i - t.i0) / kByteLanes * kByteLanes * kTile + i % kByteLanes;
    for (int64_t r = 0; r < t.rows; ++r) {
      const float own = t.w.kind == Kind::i8 ? t.w.scales[t.row0 + r] : 1.0f;
      y[i * ldy + t.row0 + r] = totals[r * kByteLanes] * own;
    }
  }
}

}  // namespace

void lanes8_compute(const Matrix& w, const uint8_t* scratch, int64_t m, float* y, int64_t ldy, int64_t row0, int64_t row1) {
  static thread_local Kept<float> kept;
  static thread_local Kept<Fours> kept_fours;
  const ByteLanes x(w, scratch, m);
  Fours* const fours = kept_fours.at_least(1);
  float* const totals = kept.at_least(kRowsAtOnce * kTile);
  for (int64_t i0 = 0; i0 < m; i0 += kRowsAtOnce)
    for (int64_t row = row0; row < row1; row += kTile) {
      const int64_t i1 = i0 + kRowsAtOnce < m ? i0 + kRowsAtOnce : m;
      const Tile tile{w, x, totals, i0, i1, row, row1 - row < kTile ? row1 - row : kTile};
      std::memset(totals, 0, static_cast<size_t>((i1 - i0 + kByteLanes - 1) / kByteLanes * kByteLanes * kTile) * sizeof(float));
      const uint8_t* at = w.data + w.row_start[row / kTile];
      for (int64_t group = 0; group < w.groups; ++group) {
        at = read_group(w, at, group, fours);
        multiply_group(tile, *fours, group);
      }
      write_tile(tile, y, ldy);
    }
}

}  // namespace tailcut::avx2

#endif
