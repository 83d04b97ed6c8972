// f32, f16 and bf16 matrices with AVX-512, many rows of x: lanes are rows of x, a weight is broadcast to all of them.
// So a weight that is not there costs nothing: where less than kDenseAbove of W is left, only the entries are visited,
// at about two thirds of the speed of dense arithmetic per entry.
//
// 128 rows of W at a time, 128 columns at a time: that stretch of x for 64 lanes (32 KB) stays in the first cache while
// it is used by all the rows; 256 columns where there are 32 lanes at most. Column numbers within a stretch come from
// VPCOMPRESSB, so they are bytes; four are read at once, as loads are what limits few lanes.
#include "avx512.h"

#if defined(TAILCUT_EMULATE) || (defined(__AVX512VBMI2__) && defined(__AVX512VNNI__))
#include "avx512_float.h"

namespace tailcut {
namespace {

constexpr int64_t kRows = 128;        // of W
constexpr int64_t kMostBlocks = 4;    // of columns: a byte counts them
constexpr int64_t kMostColumns = kMostBlocks * kBlock;
constexpr int64_t kLaneGroups = 8;    // of 64 lanes, whose sums are kept at once
constexpr int64_t kRowsAhead = 8;     // whose values are asked for
// For 16 lanes by counting loads (an entry costs 2.25 of them, an expanded weight 1.1 and a third of a cycle before).
constexpr double kDenseAbove = 0.7, kDenseAboveFew = 0.55;

struct Buffers {
  alignas(64) float sums[kLaneGroups][kRows * 64];  // [row of W][lanes of the group]
  alignas(64) float values[kRows][kMostColumns + 16];
  alignas(64) uint8_t columns[kRows][kMostColumns + 64];
  const float* at[kRows];  // the entries' values: in `values`, or where they lie in the matrix
  int64_t count[kRows];
};

// The rows of W that are being worked on, and how far each has been read.
struct Rows {
  const Matrix& w;
  Buffers& to;
  int64_t row0;
  int64_t rows;
  bool by_entry;
  const uint8_t* mask[kRows];
  const uint8_t* values[kRows];
};

Ints column_numbers(int64_t block) {
  alignas(64) uint8_t numbers[64];
  for (int j = 0; j < 64; ++j) numbers[j] = static_cast<uint8_t>(block * 64 + j);
  return load_ints(numbers);
}

// Entries of a stretch: their columns, and their values as float32.
template <Kind kKind>
inline void list_entries(Rows& s, int64_t r, int64_t blocks, const Ints* numbers) {
  int64_t count = 0;
  for (int64_t b = 0; b < blocks; ++b) {
    const uint64_t word = read_u64(s.mask[r]);
    compress_bytes(s.to.columns[r] + count, word, numbers[b]);
    count += count_bits(word), s.mask[r] += 8;
  }
  if (kKind == Kind::f32) {
    s.to.at[r] = reinterpret_cast<const float*>(s.values[r]);
  } else {
    for (int64_t j = 0; j < count; j += 16) store(s.to.values[r] + j, sixteen<kKind>(s.values[r] + 2 * j));
    s.to.at[r] = s.to.values[r];
  }
  s.to.count[r] = count, s.values[r] += count * size_of(kKind);
}

// All columns of a stretch as float32, from either format.
template <Kind kKind>
inline void expand_columns(Rows& s, int64_t r, int64_t blocks) {
  alignas(64) uint8_t halves[64];
  float* to = s.to.values[r];
  for (int64_t j = 0; j < blocks * 4; ++j) {
    const bool odd = j % 2 != 0;
    if (!masked(s.w)) {
      store(to + 16 * j, sixteen<kKind>(s.values[r]));
      s.values[r] += 16 * size_of(kKind);
    } else if (kKind == Kind::f32) {
      const uint16_t bits = static_cast<uint16_t>(s.mask[r][0] | s.mask[r][1] << 8);
      store(to + 16 * j, expand_floats(bits, s.values[r]));
      s.values[r] += 4 * count_bits(bits), s.mask[r] += 2;
    } else {
      if (!odd) {
        const uint32_t bits = static_cast<uint32_t>(read_i32(s.mask[r]));
        store_ints(halves, expand_halves(bits, s.values[r]));
        s.values[r] += 2 * count_bits(bits), s.mask[r] += 4;
      }
      store(to + 16 * j, sixteen<kKind>(halves + (odd ? 32 : 0)));
    }
  }
}

template <Kind kKind>
inline void read_stretch(Rows& s, int64_t blocks, const Ints* numbers) {
  const int64_t bytes = static_cast<int64_t>(s.w.data_bytes) / s.w.rows * blocks / s.w.blocks;
  for (int64_t r = 0; r < s.rows; ++r) {
    const int64_t later = smaller(r + kRowsAhead, s.rows - 1);
    prefetch(s.mask[later]), prefetch_lines(s.values[later], bytes);
    if (s.by_entry) list_entries<kKind>(s, r, blocks, numbers);
    else expand_columns<kKind>(s, r, blocks);
  }
}

// One row's entries against V * 16 lanes. Several sums are kept so that an addition need not wait for the one before.
template <int V>
inline void multiply_entries(const Buffers& b, int64_t r, const float* x, float* sums) {
  constexpr int kParts = V <= 2 ? 4 : 2;
  const float* values = b.at[r];
  const uint8_t* columns = b.columns[r];
  Floats acc[kParts][V];
  TAILCUT_UNROLL for (int v = 0; v < V; ++v) {
    acc[0][v] = load(sums + 16 * v);
    TAILCUT_UNROLL for (int p = 1; p < kParts; ++p) acc[p][v] = zeros();
  }
  int64_t j = 0;
  for (; j + 4 <= b.count[r]; j += 4) {
    const uint32_t four = static_cast<uint32_t>(read_i32(columns + j));
    TAILCUT_UNROLL for (int p = 0; p < 4; ++p) {
      const Floats weight = all(values[j + p]);
      const float* lanes = x + size_t{four >> 8 * p & 255} * (16 * V);
      Floats* to = acc[p % kParts];
      TAILCUT_UNROLL for (int v = 0; v < V; ++v) to[v] = fma(weight, load(lanes + 16 * v), to[v]);
    }
  }
  for (; j < b.count[r]; ++j) {
    const Floats weight = all(values[j]);
    const float* lanes = x + columns[j] * (16 * V);
    TAILCUT_UNROLL for (int v = 0; v < V; ++v) acc[0][v] = fma(weight, load(lanes + 16 * v), acc[0][v]);
  }
  TAILCUT_UNROLL for (int v = 0; v < V; ++v) {
    Floats total = add(acc[0][v], acc[1][v]);
    if (kParts == 4) total = add(total, add(acc[kParts - 2][v], acc[kParts - 1][v]));
    store(sums + 16 * v, total);
  }
}

// Rows multiplied side by side: eight sums or more are under way, and what is read of x is used for all of them.
constexpr int64_t rows_together(int vectors) { return vectors <= 2 ? 8 : 4; }

// Some rows' expanded columns against V * 16 lanes.
template <int V>
inline void multiply_columns(const Buffers& b, int64_t r, int64_t count, const float* x, float* sums) {
  constexpr int kTogether = rows_together(V);
  Floats acc[kTogether][V];
  TAILCUT_UNROLL for (int q = 0; q < kTogether; ++q) TAILCUT_UNROLL for (int v = 0; v < V; ++v) acc[q][v] = zeros();
  for (int64_t k = 0; k < count; ++k) {
    Floats lanes[V];
    TAILCUT_UNROLL for (int v = 0; v < V; ++v) lanes[v] = load(x + k * 16 * V + 16 * v);
    TAILCUT_UNROLL for (int q = 0; q < kTogether; ++q) {
      const Floats weight = all(b.values[r + q][k]);
      TAILCUT_UNROLL for (int v = 0; v < V; ++v) acc[q][v] = fma(weight, lanes[v], acc[q][v]);
    }
  }
  TAILCUT_UNROLL for (int q = 0; q < kTogether; ++q) TAILCUT_UNROLL for (int v = 0; v < V; ++v) {
    float* to = sums + q * 16 * V + 16 * v;
    store(to, add(load(to), acc[q][v]));
  }
}

template <int V>
inline void multiply_stretch(const Rows& s, int64_t blocks, const float* x, float* sums) {
  constexpr int64_t kStep = rows_together(V), kWidth = 16 * V;
  if (s.by_entry)
    for (int64_t r = 0; r < s.rows; ++r) multiply_entries<V>(s.to, r, x, sums + r * kWidth);
  else
    for (int64_t r = 0; r < s.rows; r += kStep) multiply_columns<V>(s.to, r, blocks * kBlock, x, sums + r * kWidth);
}

// Vectors of the group of lanes that starts when `left` rows of x are left.
inline int64_t vectors_of(int64_t left) { return smaller(4, (left + 15) / 16); }

// A stretch from `block` on against lanes [0, m) of x, 64 at a time.
inline void multiply_lanes(const Rows& s, int64_t block, int64_t blocks, const float* x, int64_t m) {
  for (int64_t lane = 0; lane < m; lane += 64) {
    const int64_t vectors = vectors_of(m - lane);
    const float* from = x + lane * columns_of(s.w) + block * kBlock * 16 * vectors;
    float* sums = s.to.sums[lane / 64];
    switch (vectors) {
      case 1: multiply_stretch<1>(s, blocks, from, sums); break;
      case 2: multiply_stretch<2>(s, blocks, from, sums); break;
      case 3: multiply_stretch<3>(s, blocks, from, sums); break;
      default: multiply_stretch<4>(s, blocks, from, sums);
    }
  }
}

inline void write_rows(const Rows& s, int64_t m, float* y, int64_t ldy) {
  for (int64_t r0 = 0; r0 < s.rows; r0 += 16)
    for (int64_t lane = 0; lane < m; lane += 16) {
      Floats sums[16];
      const int64_t group = lane / 64, width = 16 * vectors_of(m - group * 64);
      TAILCUT_UNROLL for (int r = 0; r < 16; ++r) sums[r] = load(s.to.sums[group] + (r0 + r) * width + lane % 64);
      transpose(sums);
      for (int64_t i = 0; i < smaller(16, m - lane); ++i)
        store_some(y + (lane + i) * ldy + s.row0 + r0, lanes_of(s.rows - r0), sums[i]);
    }
}

template <Kind kKind>
void multiply_rows(Rows& s, const float* x, int64_t m, float* y, int64_t ldy) {
  const Ints numbers[kMostBlocks] = {column_numbers(0), column_numbers(1), column_numbers(2), column_numbers(3)};
  const int64_t at_once = m <= 32 ? kMostBlocks : 2;
  for (int64_t r = 0; r < s.rows; ++r) {
    s.mask[r] = s.w.data + s.w.row_start[s.row0 + r];
    s.values[r] = s.mask[r] + (masked(s.w) ? s.w.blocks * 8 : 0);
  }
  for (int64_t lane = 0; lane < m; lane += 64)
    std::memset(s.to.sums[lane / 64], 0, kRows * 16 * static_cast<size_t>(vectors_of(m - lane)) * sizeof(float));
  for (int64_t b = 0; b < s.w.blocks; b += at_once) {
    const int64_t blocks = smaller(at_once, s.w.blocks - b);
    read_stretch<kKind>(s, blocks, numbers);
    multiply_lanes(s, b, blocks, x, m);
  }
  write_rows(s, m, y, ldy);
}

bool few_entries(const Matrix& w, int64_t m) {
  const double most = m <= 16 ? kDenseAboveFew : kDenseAbove;
  return masked(w) && static_cast<double>(w.nonzeros) < most * static_cast<double>(w.rows * w.cols);
}

}  // namespace

void avx512::lanes_prepare(const Matrix& w, const float* x, int64_t m, int64_t first, int64_t last, float* to) {
  uint8_t* finite = reinterpret_cast<uint8_t*>(to + lanes_floats(w, m));
  for (int64_t i = first; i < last; ++i) finite[i] = all_finite(x + i * w.cols, w.cols);
  for (int64_t i = first; i < last;) {
    const int64_t start = i / 16 * 16, stop = smaller(last, start + 16), group = i / 64 * 64;
    const int64_t width = smaller(64, (m - group + 15) / 16 * 16);
    const uint16_t lanes = lanes_between(i - start, stop - start, stop == m);
    for (int64_t k = 0; k < columns_of(w); k += 16) {
      Floats v[16];
      for (int64_t j = 0; j < 16; ++j)
        v[j] = start + j < i || start + j >= stop
                   ? zeros()
                   : load_some(x + (start + j) * w.cols + k, lanes_of(w.cols - k));
      transpose(v);
      float* at = to + group * columns_of(w) + k * width + start - group;
      for (int64_t j = 0; j < 16; ++j) store_some(at + j * width, lanes, v[j]);
    }
    i = stop;
  }
}

void avx512::lanes_compute(const Matrix& w, const float* x, int64_t m, float* y, int64_t ldy, int64_t row0,
                           int64_t row1) {
  static thread_local Buffers buffers;
  constexpr int64_t at_once = kLaneGroups * 64;
  for (int64_t i = 0; i < m; i += at_once)
    for (int64_t r = row0; r < row1; r += kRows) {
      const int64_t count = smaller(at_once, m - i);
      Rows s{w, buffers, r, smaller(kRows, row1 - r), few_entries(w, count), {}, {}};
      const float* lanes = x + i * columns_of(w);
      if (w.kind == Kind::f32) multiply_rows<Kind::f32>(s, lanes, count, y + i * ldy, ldy);
      else if (w.kind == Kind::bf16) multiply_rows<Kind::bf16>(s, lanes, count, y + i * ldy, ldy);
      else multiply_rows<Kind::f16>(s, lanes, count, y + i * ldy, ldy);
    }
}

}  // namespace tailcut
#endif
