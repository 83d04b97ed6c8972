// The `index` format (index.h) with AVX-512, several rows of x: lanes are rows of x (as in avx512_lanes.cpp), so that a
// weight costs one broadcast and a multiply-add for every 16 of them, and no gather.
//
// Eight slices (128 rows of W) at a time. Each gives an equal share of its groups to a stretch of columns; of the x of
// such a stretch 32 KB are used, which stay in the first cache, wherever weights are spread about evenly. Columns and
// values are widened once for all rows of x and left in the order in which they come: step by step, 16 rows of W side
// by side, each of which then walks down its own lane.
#include "avx512.h"

#if defined(TAILCUT_EMULATE) || (defined(__AVX512VBMI2__) && defined(__AVX512VNNI__))
#include "avx512_ahead.h"
#include "avx512_float.h"
#include "index.h"

namespace tailcut {
namespace {

constexpr int64_t kSlices = 8;
constexpr int64_t kLaneGroups = 8;      // of 64 lanes, whose sums are kept at once
constexpr int64_t kGroupLanes = 64;
constexpr int64_t kStretchFloats = 8192;  // of x, in the first cache: 128 columns of 64 lanes
// A lane names a column at most once, so that a slice has no more steps than the matrix has columns, rounded up to a
// group: its share of a stretch is at most the stretch's columns and two groups more.
constexpr int64_t kMostSteps = kStretchFloats / 16 + 2 * kIndexSteps;

struct Buffers {
  alignas(64) uint32_t columns[kSlices][kMostSteps][16];
  alignas(64) float values[kSlices][kMostSteps][16];
  alignas(64) float sums[kLaneGroups][kSlices * kTile * kGroupLanes];  // [row of W][lanes of the group]
};

// A slice and how far it has been read.
struct Slice {
  const uint8_t* group;
  int64_t groups;  // all of them
  int64_t steps;   // widened for this stretch
  alignas(64) uint32_t column[16];
};

// The slices being worked on, and the rows of x: groups of 64 lanes, the last one of fewer.
struct Work {
  const Matrix& w;
  Buffers& to;
  int64_t slot0;
  int64_t slots;
  const float* x;
  int64_t m;
  Slice slices[kSlices];

  int64_t count() const { return (slots + kTile - 1) / kTile; }
  int64_t lane_groups() const { return (m + kGroupLanes - 1) / kGroupLanes; }
  int64_t vectors(int64_t g) const { return smaller(4, (m - g * kGroupLanes + 15) / 16); }
  const float* lanes(int64_t g) const { return x + g * kGroupLanes * columns_of(w); }
};

inline void open_slices(Work& s, int64_t group_bytes) {
  for (int64_t k = 0; k < s.count(); ++k) {
    const uint64_t* start = s.w.row_start + s.slot0 / kTile + k;
    s.slices[k].group = s.w.data + start[0];
    s.slices[k].groups = static_cast<int64_t>(start[1] - start[0]) / group_bytes;
    store_ints(s.slices[k].column, zero_ints());
  }
}

// Groups of a slice as columns and float32 values.
template <Kind kKind>
inline void widen_groups(Slice& slice, int64_t groups, uint32_t (*columns)[16], float (*values)[16]) {
  constexpr int64_t kValues = kIndexSteps * kTile, kBytes = kValues * (1 + size_of(kKind));
  Ints column = load_ints(slice.column);
  slice.steps = groups * kIndexSteps;
  for (int64_t g = 0; g < groups; ++g, slice.group += kBytes) {
    TAILCUT_UNROLL for (int64_t line = 0; line < kBytes; line += 64) prefetch(slice.group + line + kNear);
    TAILCUT_UNROLL for (int64_t step = 0; step < kIndexSteps; ++step) {
      column = add_ints(column, widen_bytes(slice.group + step * kTile));
      store_ints(columns[g * kIndexSteps + step], column);
      store(values[g * kIndexSteps + step], sixteen<kKind>(slice.group + kValues + step * kTile * size_of(kKind)));
    }
  }
  store_ints(slice.column, column);
}

// One row of W against V * 16 lanes. Several sums are kept so that an addition need not wait for the one before.
template <int V>
inline void multiply_lane(const uint32_t* columns, const float* values, int64_t steps, const float* x, float* sums) {
  constexpr int kParts = V <= 2 ? 4 : 2;
  static_assert(kIndexSteps % kParts == 0, "whole groups only");
  Floats acc[kParts][V];
  TAILCUT_UNROLL for (int v = 0; v < V; ++v) {
    acc[0][v] = load(sums + 16 * v);
    TAILCUT_UNROLL for (int p = 1; p < kParts; ++p) acc[p][v] = zeros();
  }
  for (int64_t step = 0; step < steps; step += kIndexSteps, columns += 16 * kIndexSteps, values += 16 * kIndexSteps)
    TAILCUT_UNROLL for (int64_t k = 0; k < kIndexSteps; ++k) {
      const Floats weight = all(values[16 * k]);
      const float* lanes = x + size_t{columns[16 * k]} * (16 * V);
      Floats* to = acc[k % kParts];
      TAILCUT_UNROLL for (int v = 0; v < V; ++v) to[v] = fma(weight, load(lanes + 16 * v), to[v]);
    }
  TAILCUT_UNROLL for (int v = 0; v < V; ++v) {
    Floats total = add(acc[0][v], acc[1][v]);
    if (kParts == 4) total = add(total, add(acc[kParts - 2][v], acc[kParts - 1][v]));
    store(sums + 16 * v, total);
  }
}

// What is widened, against a group of lanes; `ahead` is what will be read of x next, some lines of it asked for a row.
template <int V>
inline void multiply_group(const Work& s, const float* x, float* sums, const float* ahead) {
  constexpr int64_t kLines = kStretchFloats / 16 / (kSlices * kTile);
  for (int64_t k = 0; k < s.count(); ++k)
    for (int64_t lane = 0; lane < smaller(kTile, s.slots - k * kTile); ++lane, sums += 16 * V) {
      TAILCUT_UNROLL for (int64_t line = 0; line < kLines; ++line, ahead += 16) prefetch_far(ahead);
      multiply_lane<V>(s.to.columns[k][0] + lane, s.to.values[k][0] + lane, s.slices[k].steps, x, sums);
    }
}

inline void multiply_groups(const Work& s, int64_t next_column) {
  for (int64_t g = 0; g < s.lane_groups(); ++g) {
    const bool last = g + 1 == s.lane_groups();
    const int64_t then = last ? 0 : g + 1;  // several groups: the first is of 64 lanes
    const int64_t column = last ? next_column : next_column - kStretchFloats / kGroupLanes;
    const float* ahead = s.lanes(then) + column * 16 * s.vectors(then);
    switch (s.vectors(g)) {
      case 1: multiply_group<1>(s, s.lanes(g), s.to.sums[g], ahead); break;
      case 2: multiply_group<2>(s, s.lanes(g), s.to.sums[g], ahead); break;
      case 3: multiply_group<3>(s, s.lanes(g), s.to.sums[g], ahead); break;
      default: multiply_group<4>(s, s.lanes(g), s.to.sums[g], ahead);
    }
  }
}

// Sums [row of W][lanes] to y [row of x][order of the row of W].
inline void write_slots(const Work& s, float* y, int64_t ldy) {
  const uint32_t* order = index_order(s.w) + s.slot0;
  for (int64_t lane = 0; lane < s.m; lane += 16) {
    const int64_t g = lane / kGroupLanes, width = 16 * s.vectors(g);
    const float* sums = s.to.sums[g] + lane % kGroupLanes;
    for (int64_t r0 = 0; r0 < s.slots; r0 += 16) {
      const int64_t rows = smaller(16, s.slots - r0);
      Floats turned[16];
      TAILCUT_UNROLL for (int64_t r = 0; r < 16; ++r) turned[r] = load(sums + (r0 + r) * width);
      transpose(turned);
      for (int64_t i = 0; i < smaller(16, s.m - lane); ++i) {
        alignas(64) float row[16];
        store(row, turned[i]);
        for (int64_t r = 0; r < rows; ++r) y[(lane + i) * ldy + order[r0 + r]] = row[r];
      }
    }
  }
}

template <Kind kKind>
void multiply_slots(Work& s, float* y, int64_t ldy) {
  const int64_t columns = kStretchFloats / (16 * s.vectors(0));
  const int64_t stretches = (s.w.cols + columns - 1) / columns;
  open_slices(s, static_cast<int64_t>(index_group_bytes(kKind)));
  for (int64_t g = 0; g < s.lane_groups(); ++g)
    std::memset(s.to.sums[g], 0, static_cast<size_t>(s.count() * kTile * 16 * s.vectors(g)) * sizeof(float));
  for (int64_t stretch = 0; stretch < stretches; ++stretch) {
    for (int64_t k = 0; k < s.count(); ++k) {
      const int64_t first = s.slices[k].groups * stretch / stretches;
      const int64_t last = s.slices[k].groups * (stretch + 1) / stretches;
      widen_groups<kKind>(s.slices[k], last - first, s.to.columns[k], s.to.values[k]);
    }
    multiply_groups(s, (stretch + 1) * columns);
  }
  write_slots(s, y, ldy);
}

}  // namespace

void avx512::index_lanes(const Matrix& w, const float* x, int64_t m, float* y, int64_t ldy, int64_t row0,
                         int64_t row1) {
  static thread_local Buffers buffers;
  constexpr int64_t lanes = kLaneGroups * kGroupLanes, slots = kSlices * kTile;
  for (int64_t i = 0; i < m; i += lanes)
    for (int64_t slot = row0; slot < row1; slot += slots) {
      Work s{w, buffers, slot, smaller(slots, row1 - slot), x + i * columns_of(w), smaller(lanes, m - i), {}};
      if (w.kind == Kind::f32) multiply_slots<Kind::f32>(s, y + i * ldy, ldy);
      else if (w.kind == Kind::bf16) multiply_slots<Kind::bf16>(s, y + i * ldy, ldy);
      else multiply_slots<Kind::f16>(s, y + i * ldy, ldy);
    }
}

}  // namespace tailcut
#endif
