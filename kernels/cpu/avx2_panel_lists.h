// What is left of some rows of W, listed as columns and float32 values: one hot loop then serves every format.
#pragma once

#include "avx2_expand.h"
#include "avx2_panel_lanes.h"
#include "index.h"

namespace tailcut::avx2 {
namespace {

constexpr uint32_t kUnit = kLane * sizeof(float);  // columns are listed in bytes of one vector a column
constexpr uint32_t kEnd = ~uint32_t{0};            // behind a list, four times: it is looked at so far ahead

struct Entries {
  const uint32_t* column;  // ascending
  const float* value;
};

// The lists of some rows, complete for columns from `column0` to `column1` and counted from `origin`.
struct Listed {
  Entries row[kTileRows];
  int64_t count;
  int64_t origin, column0, column1;
};

inline void end_list(uint32_t* at) { _mm_storeu_si128(reinterpret_cast<__m128i*>(at), _mm_set1_epi32(int(kEnd))); }

// Positions of the bits of a byte, in kUnit.
struct BitTable {
  alignas(64) uint8_t at[256][8] = {};
  constexpr BitTable() {
    for (int mask = 0; mask < 256; ++mask)
      for (int bit = 0, next = 0; bit < 8; ++bit)
        if (mask >> bit & 1) at[mask][next++] = uint8_t(bit * kUnit);
  }
};
constexpr BitTable kBits;

// Lists of bitmask rows, some columns at a time: few if x is wide, so that lists, x and sums stay in the second-level cache.
template <Kind K>
class MaskLists {
 public:
  static int64_t rows(int64_t vectors) { return vectors > 3 ? kTileRows : kTile; }

  MaskLists(const Matrix& w, int64_t row0, int64_t count, int64_t vectors) : w_(w), columns_(vectors > 3 ? 256 : 2048) {
    static thread_local Kept<uint32_t> kept;
    static thread_local Kept<float> kept_values;
    room_ = columns_ + 16;
    entries_ = kept.at_least(count * room_);
    if (K != Kind::f32) values_ = kept_values.at_least(count * room_);
    list_.count = count, list_.column1 = 0;
    for (int64_t r = 0; r < count; ++r) {
      mask_[r] = w.data + w.row_start[row0 + r];
      next_[r] = mask_[r] + w.blocks * 8;
    }
  }

  Listed* next() {
    if (list_.column1 >= w_.cols) return nullptr;
    list_.origin = list_.column0 = list_.column1;
    list_.column1 = list_.column0 + columns_ < w_.cols ? list_.column0 + columns_ : w_.cols;
    for (int64_t r = 0; r < list_.count; ++r) list_row(r, (list_.column1 + 7) / 8);
    return &list_;
  }

 private:
  void list_row(int64_t r, int64_t stop) {
    uint32_t* to = entries_ + r * room_;
    __m256i base = _mm256_setzero_si256();
    for (int64_t byte = list_.column0 / 8; byte < stop; ++byte) {
      const uint8_t mask = mask_[r][byte];
      const __m128i bits = _mm_loadl_epi64(reinterpret_cast<const __m128i*>(kBits.at[mask]));
      _mm256_storeu_si256(reinterpret_cast<__m256i*>(to), _mm256_add_epi32(_mm256_cvtepu8_epi32(bits), base));
      base = _mm256_add_epi32(base, _mm256_set1_epi32(8 * kUnit));
      to += __builtin_popcount(mask);
    }
    end_list(to);
    list_.row[r] = {entries_ + r * room_, take_values(r, to - (entries_ + r * room_))};
  }

  // The next `count` values; as many behind them are asked for.
  const float* take_values(int64_t r, int64_t count) {
    const uint8_t* from = next_[r];
    next_[r] += count * kWidth<K>;
    for (int64_t at = 0; at < count * kWidth<K>; at += 64) prefetch(next_[r] + at);
    if constexpr (K == Kind::f32) return reinterpret_cast<const float*>(from);
    float* to = values_ + r * room_;
    for (int64_t k = 0; k < count; k += 8) _mm256_storeu_ps(to + k, load8<K>(from + k * kWidth<K>));
    return to;
  }

  const Matrix& w_;
  int64_t columns_, room_;
  const uint8_t* mask_[kTileRows];
  const uint8_t* next_[kTileRows];
  uint32_t* entries_;
  float* values_ = nullptr;
  Listed list_;
};

inline void transpose4(__m128 (&v)[4]) {
  const __m128 a = _mm_unpacklo_ps(v[0], v[1]), b = _mm_unpackhi_ps(v[0], v[1]);
  const __m128 c = _mm_unpacklo_ps(v[2], v[3]), d = _mm_unpackhi_ps(v[2], v[3]);
  v[0] = _mm_movelh_ps(a, c), v[1] = _mm_movehl_ps(c, a), v[2] = _mm_movelh_ps(b, d), v[3] = _mm_movehl_ps(d, b);
}

// Lists of slices of the index format. All lanes of a slice are listed as far as the slowest needs it: the others are then
// ahead by what it takes. Fillers stay in: their value is 0 and x is finite.
template <Kind K>
class IndexLists {
 public:
  static int64_t rows(int64_t) { return kTileRows; }

  IndexLists(const Matrix& w, int64_t slot0, int64_t count, int64_t) : cols_(w.cols) {
    static thread_local Kept<uint32_t> kept;
    static thread_local Kept<float> kept_values;
    list_.count = count, list_.origin = 0, list_.column1 = 0;
    int64_t room = 0;
    for (int64_t s = 0; s * kTile < count; ++s) room += kTile * lane_room(w, slot0 / kTile + s);
    uint32_t* column = kept.at_least(room);
    float* value = kept_values.at_least(room);
    for (int64_t first = 0; first < count; first += kTile) {
      const int64_t slice = (slot0 + first) / kTile, stride = lane_room(w, slice);
      slices_[first / kTile] = {w.data + w.row_start[slice], w.data + w.row_start[slice + 1], column, value, stride, {}};
      for (int64_t lane = 0; lane < kTile && first + lane < count; ++lane)
        list_.row[first + lane] = {column + lane * stride, value + lane * stride};
      column += kTile * stride, value += kTile * stride;
    }
  }

  Listed* next() {
    if (list_.column1 >= cols_) return nullptr;
    list_.column0 = list_.column1;
    list_.column1 = list_.column0 + kColumns < cols_ ? list_.column0 + kColumns : cols_;
    for (int64_t s = 0; s * kTile < list_.count; ++s) fill(&slices_[s], int(uint32_t(list_.column1) * kUnit));
    return &list_;
  }

 private:
  static constexpr int64_t kColumns = 256;
  static constexpr int64_t kBytes = int64_t(index_group_bytes(K));
  static int64_t lane_room(const Matrix& w, int64_t slice) {
    return int64_t(w.row_start[slice + 1] - w.row_start[slice]) / kBytes * kIndexSteps + 16;
  }

  struct Slice {
    const uint8_t* group;
    const uint8_t* end;
    uint32_t* column;  // of the next entry of lane 0
    float* value;
    int64_t stride;
    __m128i here[4];  // columns of the last entries
  };

  static bool behind(const Slice& s, __m128i stop) {
    const __m128i a = _mm_or_si128(_mm_cmplt_epi32(s.here[0], stop), _mm_cmplt_epi32(s.here[1], stop));
    const __m128i b = _mm_or_si128(_mm_cmplt_epi32(s.here[2], stop), _mm_cmplt_epi32(s.here[3], stop));
    return _mm_movemask_epi8(_mm_or_si128(a, b)) != 0;
  }

  static void fill(Slice* s, int stop_at) {
    const __m128i stop = _mm_set1_epi32(stop_at);
    for (; s->group < s->end && behind(*s, stop); s->group += kBytes, s->column += kIndexSteps, s->value += kIndexSteps) {
      for (int64_t line = 0; line < kBytes; line += 64) prefetch(s->group + kAhead + line);
      for (int64_t quad = 0; quad < 4; ++quad) four_lanes(*s, quad, &s->here[quad]);
    }
    for (int64_t lane = 0; lane < kTile; ++lane) end_list(s->column + lane * s->stride);
  }

  // Four steps of four lanes, turned into four entries of each lane.
  static inline void four_lanes(const Slice& s, int64_t quad, __m128i* here) {
    __m128 columns[4], values[4];
    for (int64_t step = 0; step < kIndexSteps; ++step) {
      const int64_t place = step * kTile + quad * 4;
      uint32_t deltas;
      std::memcpy(&deltas, s.group + place, sizeof deltas);
      *here = _mm_add_epi32(*here, _mm_slli_epi32(_mm_cvtepu8_epi32(_mm_cvtsi32_si128(int(deltas))), 5));
      columns[step] = _mm_castsi128_ps(*here);
      values[step] = load4(s.group + kIndexSteps * kTile + place * kWidth<K>);
    }
    transpose4(columns), transpose4(values);
    for (int64_t lane = 0; lane < 4; ++lane) {
      const int64_t at = (quad * 4 + lane) * s.stride;
      _mm_storeu_si128(reinterpret_cast<__m128i*>(s.column + at), _mm_castps_si128(columns[lane]));
      _mm_storeu_ps(s.value + at, values[lane]);
    }
  }
  static_assert(kUnit == 1 << 5 && kIndexSteps == 4);

  static inline __m128 load4(const uint8_t* at) {
    if constexpr (K == Kind::f32) return _mm_loadu_ps(reinterpret_cast<const float*>(at));
    const __m128i halves = _mm_loadl_epi64(reinterpret_cast<const __m128i*>(at));
    if constexpr (K == Kind::f16) return _mm_cvtph_ps(halves);
    return _mm_castsi128_ps(_mm_slli_epi32(_mm_cvtepu16_epi32(halves), 16));
  }

  int64_t cols_;
  Slice slices_[kTileRows / kTile];
  Listed list_;
};

}  // namespace
}  // namespace tailcut::avx2
