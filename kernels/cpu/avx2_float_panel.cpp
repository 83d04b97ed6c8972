// Many rows of x: kPanelRows rows of weights are expanded a chunk of columns at a time, then multiplied like dense ones.
//
// Both factors lie in rows, so a tile of 3 rows of x times 4 of weights keeps 12 vectors of partial sums over eight
// columns each and adds across lanes once a chunk; transposing the panel would cost more than those additions. A chunk
// of 4 rows fills half the first-level cache, a block of x half the second.
#if defined(__AVX2__)
#include <cstdlib>
#include <new>

#include "avx2_expand.h"
#include "avx2_float.h"
#include "avx2_panel_lanes.h"
#include "index.h"

namespace tailcut::avx2 {
namespace {

constexpr int64_t kPanelRows = 32;    // rows of weights expanded together; two tiles
constexpr int64_t kChunkBlocks = 16;  // of 64 columns
constexpr int64_t kChunk = kChunkBlocks * kBlock;
constexpr int64_t kStride = kChunk + 16;  // of rows: 4096 bytes would put all of them into the same cache sets
constexpr int64_t kInputRows = 48;        // rows of x between two passes over the panel
constexpr int64_t kManyIfSparse = 12, kManyIfDense = 24;  // rows of x from which zeros are left out
constexpr int64_t kQuad = 4;        // rows of weights in a tile

struct Panel {
  float* at;
  Panel() : at(static_cast<float*>(std::aligned_alloc(64, sizeof(float) * kPanelRows * kStride))) {
    if (at == nullptr) throw std::bad_alloc();
  }
  Panel(const Panel&) = delete;
  Panel& operator=(const Panel&) = delete;
  ~Panel() { std::free(at); }
};

// Where a tile's sums go: columns first … first + count - 1 of y, or those that `order` names.
struct Target {
  float* y;
  int64_t ldy;
  const uint32_t* order;
  int64_t first;
  int64_t count;
  bool add;  // to what earlier chunks left

  void put(int64_t i, __m128 sums) const {
    float* row = y + i * ldy;
    if (order == nullptr && count == kQuad) {
      _mm_storeu_ps(row + first, add ? _mm_add_ps(_mm_loadu_ps(row + first), sums) : sums);
      return;
    }
    float one[kQuad];
    _mm_storeu_ps(one, sums);
    for (int64_t lane = 0; lane < count; ++lane) {
      float& to = row[order != nullptr ? order[first + lane] : uint32_t(first + lane)];
      to = add ? to + one[lane] : one[lane];
    }
  }
};

// Lanes of four vectors -> the sums of each.
inline __m128 sum_each(__m256 a, __m256 b, __m256 c, __m256 d) {
  const __m256 all = _mm256_hadd_ps(_mm256_hadd_ps(a, b), _mm256_hadd_ps(c, d));
  return _mm_add_ps(_mm256_castps256_ps128(all), _mm256_extractf128_ps(all, 1));
}

inline __m256i first_lanes(int64_t count) {
  return _mm256_cmpgt_epi32(_mm256_set1_epi32(int(count)), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
}

template <int M>
struct Tile {
  __m256 sums[M][kQuad];

  inline __attribute__((always_inline)) void step(const __m256 (&inputs)[M], const float* weights) {
#pragma GCC unroll 4
    for (int r = 0; r < kQuad; ++r) {
      const __m256 row = _mm256_load_ps(weights + r * kStride);
#pragma GCC unroll 3
      for (int i = 0; i < M; ++i) sums[i][r] = _mm256_fmadd_ps(row, inputs[i], sums[i][r]);
    }
  }
};

// `columns` columns of M rows of x (ldx apart) times four rows of the panel.
template <int M>
void multiply(const float* x, int64_t ldx, int64_t columns, const float* panel, const Target& target, int64_t i0) {
  Tile<M> tile;
  for (auto& row : tile.sums)
    for (__m256& sum : row) sum = _mm256_setzero_ps();
  __m256 inputs[M];
  int64_t column = 0;
  for (; column + 8 <= columns; column += 8) {
    for (int i = 0; i < M; ++i) inputs[i] = _mm256_loadu_ps(x + i * ldx + column);
    tile.step(inputs, panel + column);
  }
  if (column < columns) {  // what lies behind a row of x is not ours to read
    const __m256i lanes = first_lanes(columns - column);
    for (int i = 0; i < M; ++i) inputs[i] = _mm256_maskload_ps(x + i * ldx + column, lanes);
    tile.step(inputs, panel + column);
  }
  for (int i = 0; i < M; ++i) {
    target.put(i0 + i, sum_each(tile.sums[i][0], tile.sums[i][1], tile.sums[i][2], tile.sums[i][3]));
  }
}

// All m rows of x (already at the chunk's first column) times `rows` rows of the panel.
void multiply_panel(const float* x, int64_t ldx, int64_t m, int64_t columns, const float* panel, int64_t rows, Target target) {
  const int64_t first = target.first;
  for (int64_t block = 0; block < m; block += kInputRows) {
    const int64_t stop = block + kInputRows < m ? block + kInputRows : m;
    for (int64_t row = 0; row < rows; row += kQuad) {
      target.first = first + row;
      target.count = rows - row < kQuad ? rows - row : kQuad;
      const float* quad = panel + row * kStride;
      for (int64_t i = block; i < stop;) {
        const int64_t left = stop - i;
        if (left == 1) {
          multiply<1>(x + i * ldx, ldx, columns, quad, target, i), i += 1;
        } else if (left == 2 || left == 4) {  // 2 + 2 keeps more sums in flight than 3 + 1
          multiply<2>(x + i * ldx, ldx, columns, quad, target, i), i += 2;
        } else {
          multiply<3>(x + i * ldx, ldx, columns, quad, target, i), i += 3;
        }
      }
    }
  }
}

// Expands rows of a row-wise format chunk by chunk.
template <Kind K, Format F>
struct RowReader {
  const uint8_t* masks[kPanelRows];
  const uint8_t* values[kPanelRows];

  RowReader(const Matrix& w, int64_t row0, int64_t count) {
    for (int64_t r = 0; r < count; ++r) {
      masks[r] = w.data + w.row_start[row0 + r];
      values[r] = masks[r] + (F == Format::bitmask ? w.blocks * 8 : 0);
    }
  }

  void expand(const Matrix& w, int64_t block0, int64_t count, float* panel) {
    const int64_t last = block0 + kChunkBlocks < w.blocks ? block0 + kChunkBlocks : w.blocks;
    for (int64_t r = 0; r < count; ++r) {
      float* to = panel + r * kStride;
      const uint8_t* from = values[r];
      for (int64_t b = block0; b < last; ++b) {
        for (int step = 0; step < 8; ++step, to += 8) {
          if constexpr (F == Format::bitmask) {
            _mm256_store_ps(to, expand8<K>(masks[r][8 * b + step], from));
          } else {
            _mm256_store_ps(to, load8<K>(from));
            from += 8 * kWidth<K>;
          }
          if (step * kWidth<K> % 8 == 0) prefetch(from + kAhead);
        }
      }
      values[r] = from;
    }
  }
};

// Expands one slice of the index format chunk by chunk, lane by lane.
template <Kind K>
struct SliceReader {
  const uint8_t* groups;
  int64_t entries;
  int64_t next[kTile] = {};    // entry to read
  int64_t column[kTile] = {};  // of the entry before

  SliceReader(const Matrix& w, int64_t slot0, int64_t) : groups(w.data + w.row_start[slot0 / kTile]) {
    const uint8_t* end = w.data + w.row_start[slot0 / kTile + 1];
    entries = (end - groups) / int64_t(index_group_bytes(K)) * kIndexSteps;
  }

  static float value(const uint8_t* at) {
    if constexpr (K == Kind::f32) {
      float one;
      std::memcpy(&one, at, sizeof one);
      return one;
    } else {
      uint16_t bits;
      std::memcpy(&bits, at, sizeof bits);
      if constexpr (K == Kind::f16) return _cvtsh_ss(bits);
      return _mm_cvtss_f32(_mm_castsi128_ps(_mm_cvtsi32_si128(int(uint32_t(bits) << 16))));
    }
  }

  void expand(const Matrix& w, int64_t block0, int64_t count, float* panel) {
    const int64_t from = block0 * kBlock;
    const int64_t stop = block0 + kChunkBlocks < w.blocks ? from + kChunk : w.blocks * kBlock;
    for (int64_t lane = 0; lane < count; ++lane) {
      float* to = panel + lane * kStride;
      for (int64_t at = 0; at < stop - from; at += 8) _mm256_store_ps(to + at, _mm256_setzero_ps());
      int64_t entry = next[lane], here = column[lane];
      for (; entry < entries; ++entry) {
        const uint8_t* group = groups + entry / kIndexSteps * int64_t(index_group_bytes(K));
        const int64_t place = entry % kIndexSteps * kTile + lane;
        if (here + group[place] >= stop) break;
        here += group[place];
        to[here - from] += value(group + kIndexSteps * kTile + place * kWidth<K>);  // adding: fillers are 0
      }
      next[lane] = entry, column[lane] = here;
    }
  }
};

template <typename Reader>
void panels(const Matrix& w, const float* x, const float* arranged, int64_t m, float* y, int64_t ldy, int64_t row0,
            int64_t row1, int64_t height) {
  static thread_local Panel panel;
  const uint32_t* order = w.format == Format::index ? index_order(w) : nullptr;
  for (int64_t row = row0; row < row1; row += height) {
    const int64_t count = row1 - row < height ? row1 - row : height;
    Reader reader(w, row, count);
    const int64_t padded = (count + kQuad - 1) / kQuad * kQuad;
    for (int64_t at = count * kStride; at < padded * kStride; at += 8) _mm256_store_ps(panel.at + at, _mm256_setzero_ps());
    for (int64_t block = 0; block < w.blocks; block += kChunkBlocks) {
      reader.expand(w, block, count, panel.at);
      const int64_t from = block * kBlock, columns = w.cols - from < kChunk ? w.cols - from : kChunk;
      const Target target{y, ldy, order, row, kQuad, block > 0};
      if (arranged != nullptr) multiply_panel(arranged + from / kChunk * m * kStride, kStride, m, columns, panel.at, count, target);
      else multiply_panel(x + from, w.cols, m, columns, panel.at, count, target);
    }
  }
}

template <Kind K>
void panels_of(const Matrix& w, const float* x, const float* arranged, int64_t m, float* y, int64_t ldy, int64_t row0, int64_t row1) {
  switch (w.format) {
    case Format::dense: return panels<RowReader<K, Format::dense>>(w, x, arranged, m, y, ldy, row0, row1, kPanelRows);
    case Format::bitmask: return panels<RowReader<K, Format::bitmask>>(w, x, arranged, m, y, ldy, row0, row1, kPanelRows);
    default: return panels<SliceReader<K>>(w, x, arranged, m, y, ldy, row0, row1, kTile);
  }
}

}  // namespace

namespace {

// Whether zeros are left out (avx2_panel_sparse.cpp): it pays where x has rows enough for the arithmetic to cost more than
// finding the weights, later the denser the matrix. Measured at 4096 x 4096.
bool leaves_zeros_out(const Matrix& w, int64_t m) {
  if (w.format == Format::index) return w.cols < kMostColumns;
  if (w.format != Format::bitmask || w.cols >= kMostColumns) return false;
  const int64_t percent = w.nonzeros * 100 / (w.rows * w.cols + 1);
  return percent < 30 ? m >= kManyIfSparse : percent < 75 && m >= kManyIfDense;
}

}  // namespace

size_t float_scratch_bytes(const Matrix& w, int64_t m) {
  if (m <= kDirectRows) return 0;
  if (leaves_zeros_out(w, m)) return size_t(Lanes::floats(m, w.cols)) * sizeof(float);
  return size_t((w.cols + kChunk - 1) / kChunk * m * kStride) * sizeof(float);
}

// Lanes, or [chunk][row][kStride]
void float_prepare(const Matrix& w, const float* x, int64_t m, int64_t first, int64_t last, uint8_t* scratch) {
  auto* to = reinterpret_cast<float*>(scratch);
  if (leaves_zeros_out(w, m)) return lanes_prepare(x, m, w.cols, first, last, to);
  for (int64_t from = 0; from < w.cols; from += kChunk) {
    const int64_t columns = w.cols - from < kChunk ? w.cols - from : kChunk;
    float* chunk = to + from / kChunk * m * kStride;
    for (int64_t i = first; i < last; ++i) std::memcpy(chunk + i * kStride, x + i * w.cols + from, size_t(columns) * sizeof(float));
  }
}

void float_panels(const Matrix& w, const float* x, const float* arranged, int64_t m, float* y, int64_t ldy, int64_t row0,
                  int64_t row1) {
  if (w.cols == 0) {
    for (int64_t i = 0; i < m; ++i)
      for (int64_t r = row0; r < row1; ++r) y[i * ldy + r] = 0.0f;  // every slot's row is in some range
    return;
  }
  if (arranged != nullptr && leaves_zeros_out(w, m)) {
    const Lanes lanes(arranged, m, w.cols);
    if (lanes.finite()) return sparse_lanes(w, lanes, y, ldy, row0, row1);
    arranged = nullptr;  // zeros count
  }
  switch (w.kind) {
    case Kind::f32: return panels_of<Kind::f32>(w, x, arranged, m, y, ldy, row0, row1);
    case Kind::f16: return panels_of<Kind::f16>(w, x, arranged, m, y, ldy, row0, row1);
    default: return panels_of<Kind::bf16>(w, x, arranged, m, y, ldy, row0, row1);
  }
}

}  // namespace tailcut::avx2
#endif
