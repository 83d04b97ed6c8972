// i8 and i4 for any number of rows of x. For many: a group of columns of up to 64 rows of W is listed, times all of x.

#if defined(__AVX2__)

#include <cstring>

#include "avx2_int_rows.h"
#include "avx2_panel.h"
#include "avx2_panel_lanes.h"
#include "avx2_slots_lanes.h"

namespace tailcut::avx2 {
namespace {

constexpr int64_t kBlocksOfX = 8;  // 512 rows between two passes over the weights: sums and x of a group stay near

// Places of the bits of a byte.
struct BitPlaces {
  alignas(64) uint8_t at[256][8] = {};
  constexpr BitPlaces() {
    for (int mask = 0; mask < 256; ++mask)
      for (int bit = 0, next = 0; bit < 8; ++bit)
        if (mask >> bit & 1) at[mask][next++] = static_cast<uint8_t>(bit);
  }
};
constexpr BitPlaces kPlaces;

__m256i wide_pairs(const int8_t* from) {
  return _mm256_cvtepi8_epi16(_mm_load_si128(reinterpret_cast<const __m128i*>(from)));
}

void list_all(const int8_t* from, uint32_t* weights) {
  for (int64_t pair = 0; pair < kPairs; pair += 8)
    _mm256_store_si256(reinterpret_cast<__m256i*>(weights + pair), wide_pairs(from + 2 * pair));
}

// Pairs that are not both 0, filled up to whole steps. How many.
int list_some(const int8_t* from, uint32_t* weights, uint32_t* at) {
  int count = 0;
  __m256i base = _mm256_setzero_si256();
  for (int64_t pair = 0; pair < kPairs; pair += 8, base = _mm256_add_epi32(base, _mm256_set1_epi32(8))) {
    const __m256i two = wide_pairs(from + 2 * pair);
    const __m256i none = _mm256_cmpeq_epi32(two, _mm256_setzero_si256());
    const unsigned there = ~static_cast<unsigned>(_mm256_movemask_ps(_mm256_castsi256_ps(none))) & 255;
    const __m256i places = _mm256_cvtepu8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(kPlaces.at[there])));
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(weights + count), _mm256_permutevar8x32_epi32(two, places));
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(at + count), _mm256_slli_epi32(_mm256_add_epi32(places, base), 5));
    count += __builtin_popcount(there);
  }
  _mm_storeu_si128(reinterpret_cast<__m128i*>(weights + count), _mm_setzero_si128());
  _mm_storeu_si128(reinterpret_cast<__m128i*>(at + count), _mm_setzero_si128());
  return (count + kListStep - 1) / kListStep * kListStep;
}

using Cells = int8_t[kTile][kGroup];

// Walks the groups of up to kPanelRows rows of a bitmask or dense matrix: next() gives 16 of them.
template <Kind kind, bool masked>
class RowGroups {
 public:
  RowGroups(const Matrix& w, int64_t row0, int64_t rows) : w_(w), rows_(rows) {
    for (int64_t r = 0; r < rows; ++r) row_[r].open(w, row0 + r);
  }
  void next(int64_t first, int64_t group, Cells& to) {
    const int64_t blocks = w_.blocks - 2 * group < 2 ? 1 : 2;
    if (blocks < 2) std::memset(to, 0, sizeof to);
    for (int64_t r = 0; r < kTile && first + r < rows_; ++r)
      for (int64_t b = 0; b < blocks; ++b) {
        const Pair p = row_[first + r].next();
        _mm256_store_si256(reinterpret_cast<__m256i*>(to[r] + b * kBlock), p.first);
        _mm256_store_si256(reinterpret_cast<__m256i*>(to[r] + b * kBlock + 32), p.second);
      }
  }

 private:
  const Matrix& w_;
  const int64_t rows_;
  Row<kind, masked> row_[kPanelRows];
};

class SlotGroups {
 public:
  SlotGroups(const Matrix& w, int64_t row0, int64_t rows) : w_(w) {
    for (int64_t first = 0; first < rows; first += kTile)
      record_[first / kTile] = w.data + w.row_start[(row0 + first) / kTile];
  }
  void next(int64_t first, int64_t group, Cells& to) {
    const uint8_t*& record = record_[first / kTile];
    record = slots_expand(w_, record, group, to[0]);
  }

 private:
  const Matrix& w_;
  const uint8_t* record_[kPanelRows / kTile];
};

// Some rows of W and blocks of x.
struct Part {
  const Matrix& w;
  const IntLanes& x;
  float* sums;  // of each block kPanelRows * kIntLanes
  int64_t row0, rows, block0, block1;

  float* block(int64_t b) const { return sums + (b - block0) * kPanelRows * kIntLanes; }
};

template <class Groups>
void list_group(Groups* groups, const Part& part, int64_t group, bool dense, PanelLists* lists) {
  alignas(64) Cells cells;
  for (int64_t first = 0; first < part.rows; first += kTile) {
    groups->next(first, group, cells);
    for (int64_t r = 0; r < kTile && first + r < part.rows; ++r) {
      if (dense) list_all(cells[r], lists->weights[first + r]);
      else lists->count[first + r] = list_some(cells[r], lists->weights[first + r], lists->at[first + r]);
    }
  }
}

void multiply_group(const Part& part, const PanelLists* lists, int64_t group, bool dense) {
  const IntLanes& x = part.x;
  const int64_t left = (x.columns - group * kGroup) / 2, pairs = left < kPairs ? left : kPairs;
  float own[kPanelRows];
  for (int64_t r = 0; part.w.kind == Kind::i4 && r < part.rows; ++r)
    own[r] = part.w.scales[(part.row0 + r) * part.w.groups + group];
  for (int64_t b = part.block0; b < part.block1; ++b) {
    const bool last = b + 1 == part.block1;
    const int64_t next = last ? part.block0 : b + 1, then = last && group + 1 < x.groups ? group + 1 : group;
    const int64_t lines = kPairs * x.vectors(next) / 2, visits = dense ? (part.rows + 1) / 2 : part.rows;
    const PanelStep step{lists, part.rows, pairs, x.group(b, group), x.scales(b, group),
                         part.w.kind == Kind::i4 ? own : nullptr, part.block(b),
                         reinterpret_cast<const char*>(x.group(next, then)), (lines + visits - 1) / visits};
    dense ? panel_dense(step, x.vectors(b)) : panel_sparse(step, x.vectors(b));
  }
}

// Sums [row][lanes] of one block, times the scales of rows of i8, into y.
void write_block(const Part& part, int64_t block, float* y, int64_t ldy) {
  const int64_t width = part.x.vectors(block) * kIntLane, i0 = block * kIntLanes;
  const float* const sums = part.block(block);
  for (int64_t r0 = 0; r0 < part.rows; r0 += 8)
    for (int64_t i = 0; i < width; i += kIntLane) {
      const int64_t count = part.rows - r0 < 8 ? part.rows - r0 : 8;
      __m256 v[8];
      for (int64_t r = 0; r < 8; ++r) {
        const float own = part.w.kind == Kind::i8 && r < count ? part.w.scales[part.row0 + r0 + r] : 1.0f;
        v[r] = r < count ? _mm256_mul_ps(_mm256_load_ps(sums + (r0 + r) * width + i), _mm256_set1_ps(own))
                         : _mm256_setzero_ps();
      }
      transpose8(v);
      for (int64_t k = 0; k < kIntLane && i0 + i + k < part.x.m; ++k)
        std::memcpy(y + (i0 + i + k) * ldy + part.row0 + r0, &v[k], static_cast<size_t>(count) * sizeof(float));
    }
}

template <class Groups>
void panels(const Matrix& w, const IntLanes& x, float* y, int64_t ldy, int64_t row0, int64_t row1) {
  static thread_local Kept<PanelLists> kept;
  static thread_local Kept<float> kept_sums;
  PanelLists* const lists = kept.at_least(1);
  const bool dense = w.format == Format::dense;
  for (int64_t block0 = 0; block0 < x.blocks(); block0 += kBlocksOfX) {
    const int64_t block1 = block0 + kBlocksOfX < x.blocks() ? block0 + kBlocksOfX : x.blocks();
    const int64_t floats = (block1 - block0) * kPanelRows * kIntLanes;
    float* const sums = kept_sums.at_least(floats);
    for (int64_t row = row0; row < row1; row += kPanelRows) {
      const Part part{w, x, sums, row, row1 - row < kPanelRows ? row1 - row : kPanelRows, block0, block1};
      Groups groups(w, row, part.rows);
      std::memset(sums, 0, static_cast<size_t>(floats) * sizeof(float));
      for (int64_t group = 0; group < w.groups; ++group) {
        list_group(&groups, part, group, dense, lists);
        multiply_group(part, lists, group, dense);
      }
      for (int64_t b = block0; b < block1; ++b) write_block(part, b, y, ldy);
    }
  }
}

template <Kind kind>
void panels_of(const Matrix& w, const IntLanes& x, float* y, int64_t ldy, int64_t row0, int64_t row1) {
  if (w.format == Format::slots) return panels<SlotGroups>(w, x, y, ldy, row0, row1);
  if (w.format == Format::dense) return panels<RowGroups<kind, false>>(w, x, y, ldy, row0, row1);
  panels<RowGroups<kind, true>>(w, x, y, ldy, row0, row1);
}

}  // namespace

void int_compute(const Matrix& w, const uint8_t* scratch, int64_t m, float* y, int64_t ldy, int64_t row0, int64_t row1) {
  if (wide(w, m)) {
    const IntLanes x(w, scratch, m);
    return w.kind == Kind::i8 ? panels_of<Kind::i8>(w, x, y, ldy, row0, row1)
                              : panels_of<Kind::i4>(w, x, y, ldy, row0, row1);
  }
  if (by_places(w, m)) return lanes8_compute(w, scratch, m, y, ldy, row0, row1);
  if (w.format == Format::slots && m > 1) return slots_rows(w, scratch, m, y, ldy, row0, row1);
  if (w.format == Format::slots) return slots_gemv(w, scratch, y, row0, row1);
  int_gemv(w, scratch, m, y, ldy, row0, row1);
}

}  // namespace tailcut::avx2

#endif
