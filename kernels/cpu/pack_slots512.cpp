// Packs the slots of AVX-512. The source has been checked; every entry of the mask gets a place, also one of value 0.

#include <cstring>

#include "slots512_plan.h"

namespace tailcut {
namespace {

constexpr uint8_t kNone8 = 0x80, kNone4 = 0x88;  // bytes of the weight 0, of two of them

uint8_t no_weight(Kind kind) { return kind == Kind::i8 ? kNone8 : kNone4 & 0x0f; }
int64_t rows_in(uint16_t rows) { return count_bits(rows); }

// A group's record: what is in it, and where its parts begin.
struct Record {
  Kind kind;
  SlotsPlan plan;
  Layers layers;
  int64_t units;
  uint8_t* base;
  uint8_t* pairs[kMostLayers];
};

int64_t all_pairs(const SlotsPlan& plan, const Layers& layers) { return plan.full + layers.pairs; }

int64_t pair_bytes(Kind kind, const Layers& layers, int64_t pair) {
  return slots512_pair_bytes(kind, rows_in(layers.rows[2 * pair]), rows_in(layers.rows[2 * pair + 1]));
}

int64_t scale_bytes(Kind kind) { return kind == Kind::i4 ? kTile * static_cast<int64_t>(sizeof(float)) : 0; }

uint64_t plan_tile(const Packing& p, const SlotsPlan& plan, int64_t tile) {
  const Kind kind = p.source.kind;
  int64_t bytes = 0;
  for (int64_t group = 0; group < p.w->groups; ++group) {
    const Layers layers = layers_of(lengths_of(p.source, tile, group, plan.places), plan);
    bytes += scale_bytes(kind) + kPairsHead + kPairBits * layers.pairs;
    bytes += slots512_units(*p.w, group, plan.places) * slots512_unit_bytes(kind);
    for (int64_t pair = 0; pair < all_pairs(plan, layers); ++pair) bytes += pair_bytes(kind, layers, pair);
  }
  return static_cast<uint64_t>(bytes);
}

// The weight scales of a group for the 16 rows of a tile; those of rows that do not exist stay 0.
void put_scales(const Packing& p, int64_t tile, int64_t group, uint8_t* to) {
  float scales[kTile] = {};
  for (int64_t k = 0; k < kTile && tile * kTile + k < p.source.rows; ++k)
    scales[k] = p.source.scales[(tile * kTile + k) * p.w->groups + group];
  std::memcpy(to, scales, sizeof scales);
}

void empty_unit(Kind kind, uint8_t* unit) {
  if (kind == Kind::i8) std::memset(unit + 64, kNone8, 128);
  else std::memset(unit, kNone8, 128);
}

// Layers of `first` and `second` rows.
void empty_pair(Kind kind, int64_t first, int64_t second, uint8_t* pair) {
  const auto a = static_cast<size_t>(kQuad * first), b = static_cast<size_t>(kQuad * second);
  std::memset(pair + a, kind == Kind::i8 ? kNone8 : kNone4, a);
  if (kind == Kind::i8) std::memset(pair + 2 * a + b, kNone8, b);
}

// Writes the record's head and empty places at `to`, which is all zero; `*end` is where the next record begins.
Record begin_record(const Packing& p, const SlotsPlan& plan, int64_t tile, int64_t group, uint8_t* to, uint8_t** end) {
  const Kind kind = p.source.kind;
  Record r{kind, plan, layers_of(lengths_of(p.source, tile, group, plan.places), plan),
           slots512_units(*p.w, group, plan.places), nullptr, {}};
  if (kind == Kind::i4) put_scales(p, tile, group, to);
  to += scale_bytes(kind);
  to[0] = static_cast<uint8_t>(r.layers.pairs);
  const auto masks = static_cast<size_t>(kPairBits * r.layers.pairs);
  if (masks) std::memcpy(to + kPairsHead, r.layers.rows + 2 * plan.full, masks);
  r.base = to + kPairsHead + masks;
  for (int64_t unit = 0; unit < r.units; ++unit) empty_unit(kind, r.base + unit * slots512_unit_bytes(kind));
  uint8_t* at = r.base + r.units * slots512_unit_bytes(kind);
  for (int64_t pair = 0; pair < all_pairs(plan, r.layers); ++pair) {
    r.pairs[pair] = at;
    empty_pair(kind, rows_in(r.layers.rows[2 * pair]), rows_in(r.layers.rows[2 * pair + 1]), at);
    at += pair_bytes(kind, r.layers, pair);
  }
  *end = at;
  return r;
}

void put_nibble(uint8_t* at, bool high, uint8_t value) {
  *at = static_cast<uint8_t>((*at & (high ? 0x0f : 0xf0)) | value << (high ? 4 : 0));
}

// Place `place` of a row in a window of 16 columns.
void put_near(const Record& r, int64_t row, int64_t window, int64_t place, int64_t column, uint8_t value) {
  const int64_t in_unit = 8 / r.plan.places, each = kQuad / r.plan.places;  // windows of a unit, of a vector
  uint8_t* const unit = r.base + window / in_unit * slots512_unit_bytes(r.kind);
  const bool second = window % in_unit >= each;
  const int64_t at = kQuad * row + window % each * r.plan.places + place;
  if (r.kind == Kind::i8) {
    put_nibble(unit + at, second, static_cast<uint8_t>(column));
    unit[64 + 64 * second + at] = value;
  } else {
    unit[64 * second + at] = static_cast<uint8_t>(column | value << 4);
  }
}

// Entry `count` of a row beyond its windows.
void put_far(const Record& r, int64_t row, int64_t count, int64_t column, uint8_t value) {
  const int64_t layer = count / kQuad, place = count % kQuad;
  const bool second = layer % 2 != 0;
  const uint16_t* const rows = r.layers.rows + layer / 2 * 2;
  const auto before = static_cast<uint16_t>((1u << row) - 1);
  const int64_t a = kQuad * rows_in(rows[0]), b = kQuad * rows_in(rows[1]);
  const int64_t at_a = kQuad * rows_in(rows[0] & before) + place, at_b = kQuad * rows_in(rows[1] & before) + place;
  uint8_t* const pair = r.pairs[layer / 2];
  pair[second ? 2 * a + at_b : at_a] = static_cast<uint8_t>(column);
  if (r.kind == Kind::i4) put_nibble(pair + a + at_a, second, value);
  else pair[second ? 2 * a + b + at_b : a + at_a] = value;
}

// A row's values in turn, as they are stored: w + 128 or w + 8.
struct Values {
  Kind kind;
  const uint8_t* stream;
  uint64_t at;

  uint8_t next() {
    const uint64_t i = at++;
    return kind == Kind::i8 ? stream[i] ^ 0x80 : nibble(stream, i);
  }
};

// The first `places` columns of a window that have an entry; if there are fewer, also the first free ones.
unsigned near_columns(unsigned bits, int64_t places) {
  unsigned near = 0;
  for (int64_t place = 0; place < places && bits; ++place, bits &= bits - 1) near |= bits & -bits;
  while (__builtin_popcount(near) < places) near |= ~near & (near + 1);
  return near;
}

// The windows that units have places for; `words` holds the row's entries, those of windows that do not exist are 0.
void fill_windows(const Record& r, int64_t row, const uint64_t* words, Values* values, int64_t* far) {
  const int64_t near_windows = r.plan.places ? r.units * 8 / r.plan.places : 0;
  for (int64_t window = 0; window < kGroup / kWindow; ++window) {
    auto bits = static_cast<unsigned>(words[window / 4] >> window % 4 * 16 & 0xffff);
    unsigned near = window < near_windows ? near_columns(bits, r.plan.places) : 0;
    const unsigned rest = bits & ~near;
    for (int64_t place = 0; near; ++place, near &= near - 1) {
      const bool entry = bits & near & -near;
      put_near(r, row, window, place, __builtin_ctz(near), entry ? values->next() : no_weight(r.kind));
    }
    for (bits = rest; bits; bits &= bits - 1)
      put_far(r, row, (*far)++, window * kWindow + __builtin_ctz(bits), values->next());
  }
}

int64_t first_free(const uint64_t* words) {  // of 128 columns; a full row has no empty places
  if (~words[0]) return __builtin_ctzll(~words[0]);
  return ~words[1] ? 64 + __builtin_ctzll(~words[1]) : 0;
}

void fill_row(const Record& r, int64_t row, const uint64_t* words, Values* values) {
  const int64_t layers = 2 * all_pairs(r.plan, r.layers), free = first_free(words);
  int64_t far = 0;
  fill_windows(r, row, words, values, &far);
  for (; far / kQuad < layers && r.layers.rows[far / kQuad] >> row & 1; ++far)
    put_far(r, row, far, free, no_weight(r.kind));
}

void fill_tile(const Packing& p, const SlotsPlan& plan, int64_t tile, uint8_t* to) {
  const int64_t first = tile * kTile, left = p.source.rows - first, rows = left < kTile ? left : kTile;
  Values values[kTile] = {};
  for (int64_t k = 0; k < rows; ++k)
    values[k] = {p.source.kind, static_cast<const uint8_t*>(p.source.values),
                 first_entry(p.source, p.counted, first + k)};
  for (int64_t group = 0; group < p.w->groups; ++group) {
    const Record r = begin_record(p, plan, tile, group, to, &to);
    for (int64_t k = 0; k < rows; ++k) {
      const uint64_t words[2] = {block_mask(p.source, first + k, group * 2),
                                 block_mask(p.source, first + k, group * 2 + 1)};
      fill_row(r, k, words, &values[k]);
    }
  }
}

}  // namespace

bool pack_slots512(const Packing& p, SlotsPlan plan, std::string* error) {
  if (!plan.made) plan = best_plan512(p.source);
  const int64_t tiles = (p.source.rows + kTile - 1) / kTile;
  std::vector<uint64_t> starts(static_cast<size_t>(tiles) + 1, kSlotsHeader);
  spread(p.threads, tiles, [&](int64_t t) { starts[static_cast<size_t>(t) + 1] = plan_tile(p, plan, t); });
  add_up(&starts);
  uint8_t* const base = allocate(p, starts, error);
  if (!base) return false;
  base[0] = static_cast<uint8_t>(plan.places), base[1] = static_cast<uint8_t>(plan.full);
  spread(p.threads, tiles, [&](int64_t t) { fill_tile(p, plan, t, base + starts[static_cast<size_t>(t)]); });
  return true;
}

}  // namespace tailcut
