// Packs the slots format. The source has been checked; every entry of the mask gets a place, also one of value 0.

#include <cstring>

#include "pack.h"
#include "slots.h"
#include "slots_cost.h"

namespace tailcut {
namespace {

// A row's values in turn.
template <Kind kind>
struct Values {
  const uint8_t* stream;
  uint64_t at;

  int8_t next() {
    const uint64_t i = at++;
    return static_cast<int8_t>(kind == Kind::i8 ? stream[i] : nibble(stream, i) - 8);
  }
};

// Where the parts of a group's record lie.
struct Group {
  int64_t slots, windows;
  Leftover left;
  uint8_t* codes;
  uint8_t* values;  // of the list
  uint8_t* wide;
  uint8_t* places;
};

int64_t group_bytes(const Packing& p, int64_t group, int64_t slots, const Leftover& left) {
  const int64_t scales = p.source.kind == Kind::i4 ? kTile * static_cast<int64_t>(sizeof(float)) : 0;
  const int64_t places = slots_windows(*p.w, group) * slots_window_bytes(slots);
  return scales + kSlotsRecord + 2 * left.listed + left.wide * kWideBytes + places;
}

// Bytes of a tile; what is left over in each of its groups goes to left[0 …].
uint64_t plan_tile(const Packing& p, int64_t tile, int64_t slots, Leftover* left) {
  int64_t bytes = 0;
  for (int64_t group = 0; group < p.w->groups; ++group) {
    left[group] = cheapest(lengths_of(p.source, tile, group, slots));
    bytes += group_bytes(p, group, slots, left[group]);
  }
  return static_cast<uint64_t>(bytes);
}

// The weight scales of a group for the 16 rows of a tile; those of rows that do not exist stay 0.
uint8_t* put_scales(const Packing& p, int64_t tile, int64_t group, uint8_t* to) {
  float scales[kTile] = {};
  for (int64_t k = 0; k < kTile && tile * kTile + k < p.source.rows; ++k)
    scales[k] = p.source.scales[(tile * kTile + k) * p.w->groups + group];
  std::memcpy(to, scales, sizeof scales);
  return to + sizeof scales;
}

// The record's head, and what follows from it. The memory is zero as it comes.
Group begin_group(const Packing& p, int64_t group, int64_t slots, const Leftover& left, uint8_t* to) {
  to[0] = static_cast<uint8_t>(left.listed & 255), to[1] = static_cast<uint8_t>(left.listed >> 8);
  to[2] = static_cast<uint8_t>(left.wide);
  uint8_t* const codes = to + kSlotsRecord;
  uint8_t* const wide = codes + 2 * left.listed;
  return {slots, slots_windows(*p.w, group), left, codes, codes + left.listed, wide, wide + left.wide * kWideBytes};
}

// Place `place` of a row; eight places are two layers of four.
void put_place(uint8_t* window, int64_t slots, int64_t row, int64_t place, int64_t column, int8_t value) {
  if (slots == 8) window += place / 4 * slots_window_bytes(4), slots = 4, place %= 4;
  const int64_t index_bytes = kTile * slots / 2, at = row * slots + place;
  uint8_t& indices = window[at % index_bytes];
  indices = static_cast<uint8_t>(indices | column << (at < index_bytes ? 0 : 4));
  window[index_bytes + at] = static_cast<uint8_t>(value);
}

// What does not fit into a row's windows, in the order of its columns: wide places first, then the list.
class Rest {
 public:
  Rest(const Group& g, int64_t row, uint8_t** code) : g_(g), row_(row), code_(code) {}

  void put(int64_t column, int8_t value) {
    if (count_ < 2 * g_.left.wide) {
      uint8_t* at = g_.wide + count_ / 2 * kWideBytes + row_ * 2 + count_ % 2;
      at[0] = static_cast<uint8_t>(column), at[kWideBytes / 2] = static_cast<uint8_t>(value);
    } else {
      list(column, value);
    }
    ++count_;
  }

  // A list names every row at least once.
  void end() {
    if (g_.left.listed && begins_) list(0, 0);
  }

 private:
  void list(int64_t column, int8_t value) {
    g_.values[*code_ - g_.codes] = static_cast<uint8_t>(value);
    *(*code_)++ = static_cast<uint8_t>(begins_ | column);
    begins_ = 0;
  }

  const Group& g_;
  const int64_t row_;
  uint8_t** const code_;
  int64_t count_ = 0;
  int64_t begins_ = 0x80;
};

template <int64_t slots, class V>
void fill_row(const Group& g, int64_t row, const uint64_t* words, V* values, uint8_t** code) {
  Rest rest(g, row, code);
  for (int64_t window = 0; window < g.windows; ++window) {
    uint8_t* const to = g.places + window * slots_window_bytes(slots);
    unsigned bits = static_cast<unsigned>(words[window / 4] >> window % 4 * 16 & 0xffff);
    for (int64_t place = 0; bits && place < slots; ++place, bits &= bits - 1)
      put_place(to, slots, row, place, __builtin_ctz(bits), values->next());
    for (; bits; bits &= bits - 1) rest.put(window * kWindow + __builtin_ctz(bits), values->next());
  }
  rest.end();
}

template <Kind kind, int64_t slots>
void fill_tile(const Packing& p, int64_t tile, const Leftover* left, uint8_t* to) {
  Values<kind> values[kTile] = {};
  for (int64_t k = 0; k < kTile && tile * kTile + k < p.source.rows; ++k)
    values[k] = {static_cast<const uint8_t*>(p.source.values), first_entry(p.source, p.counted, tile * kTile + k)};
  for (int64_t group = 0; group < p.w->groups; ++group) {
    if (kind == Kind::i4) to = put_scales(p, tile, group, to);
    const Group g = begin_group(p, group, slots, left[group], to);
    uint8_t* code = g.codes;
    for (int64_t k = 0; k < kTile; ++k) {
      const bool real = tile * kTile + k < p.source.rows;
      const uint64_t words[2] = {real ? block_mask(p.source, tile * kTile + k, group * 2) : 0,
                                 real ? block_mask(p.source, tile * kTile + k, group * 2 + 1) : 0};
      fill_row<slots>(g, k, words, &values[k], &code);
    }
    to = g.places + g.windows * slots_window_bytes(slots);
  }
}

template <Kind kind>
void fill(const Packing& p, int64_t tile, int64_t slots, const Leftover* left, uint8_t* to) {
  if (slots == 2) fill_tile<kind, 2>(p, tile, left, to);
  else if (slots == 4) fill_tile<kind, 4>(p, tile, left, to);
  else fill_tile<kind, 8>(p, tile, left, to);
}

}  // namespace

bool pack_slots(const Packing& p, int64_t slots, std::string* error) {
  if (!slots) slots = best_places(p.source);
  const int64_t tiles = (p.source.rows + kTile - 1) / kTile;
  std::vector<uint64_t> starts(static_cast<size_t>(tiles) + 1, kSlotsHeader);
  std::vector<Leftover> left(static_cast<size_t>(tiles * p.w->groups));
  spread(p.threads, tiles, [&](int64_t t) {
    starts[static_cast<size_t>(t) + 1] = plan_tile(p, t, slots, left.data() + t * p.w->groups);
  });
  add_up(&starts);
  uint8_t* const base = allocate(p, starts, error);
  if (!base) return false;
  base[0] = static_cast<uint8_t>(slots);
  spread(p.threads, tiles, [&](int64_t t) {
    uint8_t* const to = base + starts[static_cast<size_t>(t)];
    const Leftover* const own = left.data() + t * p.w->groups;
    if (p.source.kind == Kind::i8) fill<Kind::i8>(p, t, slots, own, to);
    else fill<Kind::i4>(p, t, slots, own, to);
  });
  return true;
}

}  // namespace tailcut
