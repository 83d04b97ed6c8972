// Many rows of x times sparse weights: only weights that are there are multiplied, each with all rows of x.
//
// A stretch of columns of x in lanes stays in the first-level cache while the rows of W pass by: a weight costs one
// broadcast and a multiply-add with memory for each vector, at half density about half of what a dense product costs.
#if defined(__AVX2__)
#include "avx2_panel_lists.h"

namespace tailcut::avx2 {
namespace {

constexpr int64_t kStretchVectors = 512;  // of x, passed between two looks at a row's sums: 16 KB

// A stretch of columns of one or two blocks of x, and a row's sums.
struct Stretch {
  const char* x[2];
  float* sums[2];
};

// The sums of V vectors of the first block and V2 of the second.
template <int V, int V2>
struct Vectors {
  static constexpr int kAll = V + V2;
  static constexpr int kSets = kAll <= 2 ? 4 : kAll <= 4 ? 2 : 1;  // so that eight additions or so are under way
  __m256 sum[kSets][kAll];

  static float* place(const Stretch& s, int v) { return v < V ? s.sums[0] + v * kLane : s.sums[1] + (v - V) * kLane; }

  inline __attribute__((always_inline)) explicit Vectors(const Stretch& s) {
#pragma GCC unroll 8
    for (int v = 0; v < kAll; ++v) {
      sum[0][v] = _mm256_load_ps(place(s, v));
#pragma GCC unroll 4
      for (int set = 1; set < kSets; ++set) sum[set][v] = _mm256_setzero_ps();
    }
  }

  inline __attribute__((always_inline)) void store(const Stretch& s) {
#pragma GCC unroll 8
    for (int v = 0; v < kAll; ++v) {
      __m256 all = sum[0][v];
#pragma GCC unroll 4
      for (int set = 1; set < kSets; ++set) all = _mm256_add_ps(all, sum[set][v]);
      _mm256_store_ps(place(s, v), all);
    }
  }

  inline __attribute__((always_inline)) void add(const Stretch& s, const Entries& e, int set) {
    const uint64_t column = e.column[set];
    const auto* first = reinterpret_cast<const float*>(s.x[0] + column * V);
    const auto* second = reinterpret_cast<const float*>(s.x[1] + column * V2);
    const __m256 weight = _mm256_broadcast_ss(e.value + set);
#pragma GCC unroll 8
    for (int v = 0; v < kAll; ++v) {
      const float* x = v < V ? first + v * kLane : second + (v - V) * kLane;
      sum[set][v] = _mm256_fmadd_ps(weight, _mm256_load_ps(x), sum[set][v]);
    }
  }
};

// Adds the entries before column `stop` (in kUnit) of one row. What is left of them.
template <int V, int V2>
inline __attribute__((always_inline)) Entries add_entries(Entries from, uint32_t stop, const Stretch& s) {
  constexpr int kSets = Vectors<V, V2>::kSets;
  Vectors<V, V2> sums(s);
  if constexpr (kSets > 1) {
    for (; from.column[kSets - 1] < stop; from.column += kSets, from.value += kSets) {
#pragma GCC unroll 4
      for (int set = 0; set < kSets; ++set) sums.add(s, from, set);
    }
  }
  for (; *from.column < stop; ++from.column, ++from.value) sums.add(s, from, 0);
  sums.store(s);
  return from;
}

inline __attribute__((always_inline)) void ask(const void* at) { _mm_prefetch(static_cast<const char*>(at), _MM_HINT_T0); }

// Behind this stretch lies the next: it is asked for while this one is worked on, some lines a row.
struct Ahead {
  const char* at;
  int64_t lines;  // a row
  inline __attribute__((always_inline)) void some() {
    for (int64_t k = 0; k < lines; ++k, at += 64) _mm_prefetch(at, _MM_HINT_T1);
  }
};

// The next lists lie apart from this one: no hardware foresees them.
inline __attribute__((always_inline)) void ask_for_list(const Entries& soon) {
  ask(soon.column), ask(soon.column + 16), ask(soon.value), ask(soon.value + 16);
}

// One or two blocks of x, all columns of them.
struct Pair {
  const float* x[2];
  float* sums[2];
};

// All that is listed times the blocks. After the last blocks the lists are moved on.
template <int V, int V2>
void add_blocks(Listed* list, const Pair& pair, bool last) {
  constexpr int64_t kColumns = kStretchVectors / (V + V2);
  const int64_t count = list->count;
  Entries at[kTileRows];
  for (int64_t r = 0; r < count; ++r) at[r] = list->row[r];
  const auto* x0 = reinterpret_cast<const char*>(pair.x[0] + list->origin * V * kLane);
  const auto* x1 = reinterpret_cast<const char*>(pair.x[1] + list->origin * V2 * kLane);
  for (int64_t column = list->column0; column < list->column1; column += kColumns) {
    const int64_t stop = column + kColumns < list->column1 ? column + kColumns : list->column1;
    const int64_t next = (stop - list->origin) * kUnit;
    Ahead ahead{x0 + next * V, (kColumns * V / 2 + count - 1) / count};
    Ahead ahead1{x1 + next * V2, (kColumns * V2 / 2 + count - 1) / count};
    for (int64_t r = 0; r < count; ++r) {
      ask_for_list(at[r + 2 < count ? r + 2 : r]);
      ahead.some();
      if constexpr (V2 > 0) ahead1.some();
      const Stretch stretch{{x0, x1}, {pair.sums[0] + r * V * kLane, pair.sums[1] + r * V2 * kLane}};
      at[r] = add_entries<V, V2>(at[r], uint32_t(next), stretch);
    }
  }
  for (int64_t r = 0; last && r < count; ++r) list->row[r] = at[r];
}

void add_lists(Listed* list, const Pair& pair, int64_t vectors, bool last) {
  switch (vectors) {
    case 1: return add_blocks<1, 0>(list, pair, last);
    case 2: return add_blocks<2, 0>(list, pair, last);
    case 3: return add_blocks<3, 0>(list, pair, last);
    case 4: return add_blocks<4, 0>(list, pair, last);
    case 5: return add_blocks<4, 1>(list, pair, last);
    case 6: return add_blocks<4, 2>(list, pair, last);
    case 7: return add_blocks<4, 3>(list, pair, last);
    default: return add_blocks<4, 4>(list, pair, last);
  }
}

// Everything listed of a tile times blocks block0 … block1 - 1 of x, two at a time.
void add_all(Listed* list, const Lanes& x, const TileSums& sums, int64_t block0, int64_t block1) {
  for (int64_t b = block0; b < block1; b += 2) {
    const bool two = b + 1 < block1;
    const int64_t other = two ? b + 1 : b;
    const Pair pair{{x.block(b), x.block(other)}, {sums.block(b - block0), sums.block(other - block0)}};
    add_lists(list, pair, x.vectors(b) + (two ? x.vectors(other) : 0), b + 2 >= block1);
  }
}

// Rows in each tile of a range, a multiple of kTile: as few tiles as can be, about alike. x passes by once a tile.
int64_t tile_rows(int64_t range, int64_t most) {
  const int64_t tiles = (range + most - 1) / most;
  return ((range + tiles - 1) / tiles + kTile - 1) / kTile * kTile;
}

template <class Lists>
void tiles(const Matrix& w, const Lanes& x, float* y, int64_t ldy, int64_t row0, int64_t row1) {
  const uint32_t* order = w.format == Format::index ? index_order(w) : nullptr;
  const TileSums sums{TileSums::memory()};
  const int64_t widest = x.vectors(0), height = tile_rows(row1 - row0, Lists::rows(widest));
  for (int64_t block0 = 0; block0 < x.blocks(); block0 += kBlocksAtOnce) {
    const int64_t block1 = block0 + kBlocksAtOnce < x.blocks() ? block0 + kBlocksAtOnce : x.blocks();
    for (int64_t row = row0; row < row1; row += height) {
      const int64_t count = row1 - row < height ? row1 - row : height;
      Lists lists(w, row, count, widest);
      for (int64_t b = block0; b < block1; ++b)
        std::memset(sums.block(b - block0), 0, size_t(count * x.vectors(b) * kLane) * sizeof(float));
      while (Listed* list = lists.next()) add_all(list, x, sums, block0, block1);
      lanes_write({x, sums, block0, block1, row, count, order}, y, ldy);
    }
  }
}

template <Kind K>
void tiles_of(const Matrix& w, const Lanes& x, float* y, int64_t ldy, int64_t row0, int64_t row1) {
  if (w.format == Format::index) return tiles<IndexLists<K>>(w, x, y, ldy, row0, row1);
  tiles<MaskLists<K>>(w, x, y, ldy, row0, row1);
}

}  // namespace

void sparse_lanes(const Matrix& w, const Lanes& x, float* y, int64_t ldy, int64_t row0, int64_t row1) {
  switch (w.kind) {
    case Kind::f32: return tiles_of<Kind::f32>(w, x, y, ldy, row0, row1);
    case Kind::f16: return tiles_of<Kind::f16>(w, x, y, ldy, row0, row1);
    default: return tiles_of<Kind::bf16>(w, x, y, ldy, row0, row1);
  }
}

}  // namespace tailcut::avx2
#endif
