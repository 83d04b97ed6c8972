// i8 and i4 slots with AVX-512, up to kSlotsRows rows of x: activations are looked up for the weights that are there
// (slots512.h), 16 rows of W at a time.
//
// VPDPBUSD multiplies unsigned with signed bytes, and both weights and activations have signs. Weights are stored
// + 128; a second VPDPBUSD adds up 128 times the activations that were looked up, which is taken off in the end: reading
// sums of weights instead would cost more than this does.
#include "avx512.h"

#if defined(TAILCUT_EMULATE) || (defined(__AVX512VBMI2__) && defined(__AVX512VNNI__))
#include "avx512_quantise.h"
#include "avx512_slots.h"

namespace tailcut {
namespace {

constexpr int64_t kAtOnce = 8;  // rows of x whose sums stay in registers
// Places of a range read in turn for one row of x (see avx512_ahead.h; more rows of x leave time), and how far ahead.
constexpr int64_t kPlaces = 4, kSlotsNear = 2048;
constexpr int64_t places_for(int64_t m) { return m == 1 ? kPlaces : m <= 4 ? 2 : 1; }

inline int64_t padded(int64_t m) {
  return m <= kAtOnce ? avx512::padded_rows(m) : (m + kAtOnce - 1) / kAtOnce * kAtOnce;
}

// Exact sums of one group for 16 rows of W and M rows of x.
template <int M>
struct Sums {
  Ints weighted[M], offset[M];

  Sums() {
    TAILCUT_UNROLL for (int i = 0; i < M; ++i) weighted[i] = offset[i] = zero_ints();
  }
  inline void add(int i, Ints value, Ints found) {
    weighted[i] = dot_bytes(weighted[i], value, found);
    offset[i] = dot_bytes(offset[i], all_bytes(128), found);
  }
};

struct Job {
  const Matrix& w;
  const uint8_t* x;  // of the first of these rows
  int64_t stride;
  int64_t places, full;
  int64_t record_bytes;  // on average
};

// `columns`: of the group, for the first row of x.
template <Kind kKind, int M, bool kFour>
inline const uint8_t* add_units(const Job& job, const uint8_t* columns, int64_t units, const uint8_t* at, Sums<M>* sums) {
  for (int64_t u = 0; u < units; ++u, at += slots512_unit_bytes(kKind)) {
    const Places p = read_unit<kKind>(at);
    TAILCUT_UNROLL for (int i = 0; i < M; ++i) {
      const uint8_t* const x = columns + i * job.stride + u * (kFour ? 32 : 64);
      if (kFour) {
        sums->add(i, p.value[0], look_up_16(four_times_16(x), p.column[0]));
        sums->add(i, p.value[1], look_up_16(four_times_16(x + 16), p.column[1]));
      } else {
        sums->add(i, p.value[0], look_up_two(four_times_16(x), four_times_16(x + 16), p.column[0]));
        sums->add(i, p.value[1], look_up_two(four_times_16(x + 32), four_times_16(x + 48), p.column[1]));
      }
    }
  }
  return at;
}

template <int M>
inline void add_pair(const Job& job, const uint8_t* columns, const Places& p, Sums<M>* sums) {
  TAILCUT_UNROLL for (int i = 0; i < M; ++i) {
    const uint8_t* const x = columns + i * job.stride;
    const Ints low = load_ints(x), high = load_ints(x + 64);
    sums->add(i, p.value[0], look_up_128(low, high, p.column[0]));
    sums->add(i, p.value[1], look_up_128(low, high, p.column[1]));
  }
}

// Adds group g, whose record begins at *record, to acc; moves *record on.
template <Kind kKind, int M>
inline void add_group(const Job& job, int64_t g, const uint8_t** record, Floats* acc) {
  for (int64_t line = 0; line < job.record_bytes; line += 64) prefetch(*record + kSlotsNear + line);
  const SlotsRecord r = read_record<kKind>(*record);
  const uint8_t* const columns = job.x + g * kGroup;
  const int64_t units = slots512_units(job.w, g, job.places);
  Sums<M> sums;
  const uint8_t* at = job.places == 4 ? add_units<kKind, M, true>(job, columns, units, r.units, &sums)
                                      : add_units<kKind, M, false>(job, columns, units, r.units, &sums);
  for (int64_t k = 0; k < job.full; ++k, at += slots512_pair_bytes(kKind, kTile, kTile))
    add_pair(job, columns, read_full<kKind>(at), &sums);
  for (int64_t k = 0; k < r.pairs; ++k) {
    const uint8_t* const rows = r.rows + kPairBits * k;
    add_pair(job, columns, read_some<kKind>(&at, read_u16(rows), read_u16(rows + 2)), &sums);
  }
  *record = at;
  const uint8_t* const scales = job.x + job.w.groups * (kGroup + 64) + 4 * g;
  TAILCUT_UNROLL for (int i = 0; i < M; ++i) {
    float scale;
    std::memcpy(&scale, scales + i * job.stride, 4);
    const Ints exact = sub_ints(sums.weighted[i], sums.offset[i]);
    if (kKind == Kind::i4) {
      const Floats own = load(reinterpret_cast<const float*>(r.scales));  // loaded unaligned
      acc[i] = fma(to_floats(sixteenths(exact)), mul(own, all(scale)), acc[i]);
    } else {
      acc[i] = fma(to_floats(exact), all(scale), acc[i]);
    }
  }
}

// Rows of y that exist, of those this range has.
struct Target {
  float* y;
  int64_t ldy;
  int64_t m;
  int64_t row1;
};

template <Kind kKind, int M>
inline void write_tile(const Matrix& w, const Floats* acc, int64_t row, const Target& to) {
  const uint16_t lanes = lanes_of(to.row1 - row);
  for (int64_t i = 0; i < smaller(M, to.m); ++i) {
    const Floats sums = kKind == Kind::i8 ? mul(acc[i], load_some(w.scales + row, lanes)) : acc[i];
    store_some(to.y + i * to.ldy + row, lanes, sums);
  }
}

// Tiles tile, tile + apart, ... (`count` of them), a group of each in turn.
template <Kind kKind, int M>
inline void some_tiles(const Job& job, int64_t tile, int64_t apart, int64_t count, const Target& to) {
  const uint8_t* record[places_for(M)];
  Floats acc[places_for(M)][M];
  for (int64_t n = 0; n < count; ++n) {
    record[n] = job.w.data + job.w.row_start[tile + n * apart];
    TAILCUT_UNROLL for (int i = 0; i < M; ++i) acc[n][i] = zeros();
  }
  for (int64_t g = 0; g < job.w.groups; ++g)
    for (int64_t n = 0; n < count; ++n) add_group<kKind, M>(job, g, &record[n], acc[n]);
  for (int64_t n = 0; n < count; ++n) write_tile<kKind, M>(job.w, acc[n], (tile + n * apart) * kTile, to);
}

// All rows of x while the weights are in the cache.
template <Kind kKind, int M>
void all_rows(Job job, int64_t tile, int64_t apart, int64_t count, Target to) {
  for (; to.m > 0; to.m -= M, to.y += M * to.ldy, job.x += M * job.stride)
    some_tiles<kKind, M>(job, tile, apart, count, to);
}

template <Kind kKind, int M>
void all_tiles(const Job& job, int64_t first, int64_t last, const Target& to) {
  constexpr int64_t places = places_for(M);
  const int64_t apart = (last - first) / places;
  for (int64_t n = 0; n < places && apart; ++n)
    prefetch_lines(job.w.data + job.w.row_start[first + n * apart], kSlotsNear);
  for (int64_t t = first; t < first + apart; ++t) all_rows<kKind, M>(job, t, apart, places, to);
  for (int64_t t = first + places * apart; t < last; ++t) all_rows<kKind, M>(job, t, 0, 1, to);
}

template <Kind kKind>
void multiply(const Job& job, int64_t first, int64_t last, const Target& to) {
  switch (smaller(kAtOnce, padded(to.m))) {
    case 1: return all_tiles<kKind, 1>(job, first, last, to);
    case 2: return all_tiles<kKind, 2>(job, first, last, to);
    case 4: return all_tiles<kKind, 4>(job, first, last, to);
    default: return all_tiles<kKind, 8>(job, first, last, to);
  }
}

}  // namespace

size_t avx512::slots_scratch_bytes(const Matrix& w, int64_t m) {
  return static_cast<size_t>(padded(m) * row_stride(w));
}

void avx512::slots_prepare(const Matrix& w, const float* x, int64_t m, int64_t first, int64_t last, uint8_t* scratch) {
  for (int64_t i = first; i < last; ++i) quantise_row(w, x + i * w.cols, scratch + i * row_stride(w));
  const int64_t behind = last < m ? 0 : padded(m) - m;
  std::memset(scratch + last * row_stride(w), 0, static_cast<size_t>(behind * row_stride(w)));
}

void avx512::slots_compute(const Matrix& w, const uint8_t* scratch, int64_t m, float* y, int64_t ldy, int64_t row0,
                           int64_t row1) {
  const int64_t tiles = (w.rows + kTile - 1) / kTile, records = tiles * w.groups;
  const int64_t bytes = static_cast<int64_t>(w.data_bytes) / (records ? records : 1);
  const Job job{w, scratch, row_stride(w), w.data[0], w.data[1], bytes};
  const int64_t first = row0 / kTile, last = (row1 + kTile - 1) / kTile;
  if (w.kind == Kind::i8) multiply<Kind::i8>(job, first, last, {y, ldy, m, row1});
  else multiply<Kind::i4>(job, first, last, {y, ldy, m, row1});
}

}  // namespace tailcut
#endif
