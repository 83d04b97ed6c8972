// Packs the slots format. The source has been checked.

#include <algorithm>
#include <cstring>
#include <limits>

#include "pack.h"
#include "slots.h"

namespace tailcut {
namespace {

// Time in bytes read: what is read, and what the processor spends besides, as measured on Zen 3 with two threads that
// share a core. List entries are dear (a jump that is guessed wrong a list, and one by one), so most groups have none.
constexpr double kWindowCost = 96 + 12, kWideCost = kWideBytes + 60, kEntryCost = 2 + 30;
constexpr double kMaskCost = 2000;  // expanding 16 rows of a group by their masks
constexpr int64_t kMaxWide = 32;

// One tile and group: 16 rows, up to 128 columns.
struct Block {
  int8_t dense[kTile][kGroup];
};

struct Entry {
  int64_t row, column;
  int8_t value;
};

// What does not fit into S places a window, by row.
using Rest = std::vector<Entry>[kTile];

int64_t list_size(const int64_t* lengths, int64_t wide) {
  int64_t size = 0;
  bool any = false;
  for (int64_t row = 0; row < kTile; ++row) {
    const int64_t left = lengths[row] - 2 * wide;
    any = any || left > 0;
    size += left > 1 ? left : 1;
  }
  return any ? size : 0;
}

struct Choice {
  int64_t wide = 0;
  double cost = std::numeric_limits<double>::infinity();  // of wide places and list
};

Choice cheapest(const int64_t* lengths) {
  Choice best;
  const int64_t most = std::min(kMaxWide, (*std::max_element(lengths, lengths + kTile) + 1) / 2);
  for (int64_t wide = 0; wide <= most; ++wide) {
    const double cost = static_cast<double>(wide) * kWideCost + static_cast<double>(list_size(lengths, wide)) * kEntryCost;
    if (cost < best.cost) best = {wide, cost};
  }
  return best;
}

void lengths_of(const Source& s, int64_t tile, int64_t group, int64_t slots, int64_t* lengths) {
  for (int64_t k = 0; k < kTile; ++k) {
    lengths[k] = 0;
    if (tile * kTile + k >= s.rows) continue;
    for (int64_t half = 0; half < 2; ++half)
      for (uint64_t word = block_mask(s, tile * kTile + k, group * 2 + half); word; word >>= 16)
        lengths[k] += std::max<int64_t>(0, __builtin_popcountll(word & 0xffff) - slots);
  }
}

// Cost of every `step`-th tile.
double cost_of(const Source& s, int64_t slots, int64_t step) {
  double cost = 0;
  const int64_t tiles = (s.rows + kTile - 1) / kTile, groups = (s.cols + kGroup - 1) / kGroup;
  for (int64_t tile = 0; tile < tiles; tile += step)
    for (int64_t group = 0; group < groups; ++group) {
      int64_t lengths[kTile];
      lengths_of(s, tile, group, slots, lengths);
      cost += 8 * kWindowCost * static_cast<double>(slots) / 4 + cheapest(lengths).cost;
    }
  return cost;
}

double cost_of_mask(const Source& s, const Counted& c, int64_t step) {
  const int64_t tiles = (s.rows + kTile - 1) / kTile, groups = (s.cols + kGroup - 1) / kGroup;
  const double all = static_cast<double>(s.rows) * static_cast<double>(s.cols), seen = static_cast<double>((tiles + step - 1) / step);
  const double bytes = (all / 8 + static_cast<double>(c.nonzeros)) * seen / static_cast<double>(tiles);
  return bytes + seen * static_cast<double>(groups) * kMaskCost;
}

// About 64 tiles of a matrix speak for it.
int64_t sample_step(const Source& s) { return std::max<int64_t>(1, (s.rows + kTile - 1) / kTile / 64); }

struct Places {
  int64_t slots = 2;
  double cost = std::numeric_limits<double>::infinity();
};

Places best_places(const Source& s) {
  Places best;
  for (int64_t slots : {2, 4, 8}) {
    const double cost = cost_of(s, slots, sample_step(s));
    if (cost < best.cost) best = {slots, cost};
  }
  return best;
}

int8_t read_value(const Source& s, uint64_t at) {
  const auto* bytes = static_cast<const uint8_t*>(s.values);
  if (s.kind == Kind::i8) return static_cast<int8_t>(bytes[at]);
  return static_cast<int8_t>((at & 1 ? bytes[at / 2] >> 4 : bytes[at / 2] & 15) - 8);
}

// The weight scales of a group for the 16 rows of a tile, 0 for rows that do not exist.
void append_scales(const Source& s, int64_t tile, int64_t group, int64_t groups, std::vector<uint8_t>* out) {
  float scales[kTile] = {};
  for (int64_t k = 0; k < kTile && tile * kTile + k < s.rows; ++k) scales[k] = s.scales[(tile * kTile + k) * groups + group];
  const auto* bytes = reinterpret_cast<const uint8_t*>(scales);
  out->insert(out->end(), bytes, bytes + sizeof scales);
}

void load_block(const Source& s, const Counted& c, int64_t tile, int64_t group, std::vector<uint64_t>* next, Block* b) {
  std::memset(b, 0, sizeof *b);
  for (int64_t k = 0; k < kTile && tile * kTile + k < s.rows; ++k) {
    const int64_t row = tile * kTile + k;
    uint64_t& at = (*next)[static_cast<size_t>(k)];
    if (group == 0) at = first_entry(s, c, row);
    for (int64_t half = 0; half < 2; ++half)
      for (uint64_t word = block_mask(s, row, group * 2 + half); word; word &= word - 1)
        b->dense[k][half * kBlock + __builtin_ctzll(word)] = read_value(s, at++);
  }
}

// Place `place` of a row; eight places are two layers of four.
void put_place(uint8_t* window, int64_t slots, int64_t row, int64_t place, int64_t column, int8_t value) {
  if (slots == 8) return put_place(window + (place / 4) * slots_window_bytes(4), 4, row, place % 4, column, value);
  const int64_t index_bytes = kTile * slots / 2, at = row * slots + place;
  uint8_t& indices = window[at % index_bytes];
  indices = static_cast<uint8_t>(indices | column << (at < index_bytes ? 0 : 4));
  window[index_bytes + at] = static_cast<uint8_t>(value);
}

void fill_windows(const Block& b, int64_t windows, int64_t slots, uint8_t* out, Rest* rest) {
  for (int64_t row = 0; row < kTile; ++row)
    for (int64_t window = 0; window < windows; ++window)
      for (int64_t j = 0, used = 0; j < kWindow; ++j) {
        const int64_t column = window * kWindow + j;
        const int8_t value = b.dense[row][column];
        if (!value) continue;
        if (used < slots) put_place(out + window * slots_window_bytes(slots), slots, row, used++, j, value);
        else (*rest)[row].push_back({row, column, value});
      }
}

void fill_wide(const Rest& rest, int64_t wide, uint8_t* out) {
  for (int64_t row = 0; row < kTile; ++row)
    for (size_t k = 0; k < rest[row].size() && k < static_cast<size_t>(2 * wide); ++k) {
      uint8_t* at = out + static_cast<int64_t>(k / 2) * kWideBytes + row * 2 + static_cast<int64_t>(k % 2);
      at[0] = static_cast<uint8_t>(rest[row][k].column);
      at[kWideBytes / 2] = static_cast<uint8_t>(rest[row][k].value);
    }
}

// Codes, then values, of what is beyond the wide places.
void append_list(const Rest& rest, int64_t wide, std::vector<uint8_t>* out) {
  std::vector<uint8_t> values;
  for (int64_t row = 0; row < kTile; ++row) {
    const auto first = static_cast<size_t>(2 * wide);
    uint8_t begins = 0x80;
    for (size_t k = first; k < rest[row].size(); ++k, begins = 0) {
      out->push_back(static_cast<uint8_t>(begins | rest[row][k].column));
      values.push_back(static_cast<uint8_t>(rest[row][k].value));
    }
    if (begins) out->push_back(0x80), values.push_back(0);
  }
  out->insert(out->end(), values.begin(), values.end());
}

void append_group(const Block& b, int64_t windows, int64_t slots, std::vector<uint8_t>* out) {
  Rest rest;
  std::vector<uint8_t> places(static_cast<size_t>(windows * slots_window_bytes(slots)), 0);
  fill_windows(b, windows, slots, places.data(), &rest);
  int64_t lengths[kTile];
  for (int64_t row = 0; row < kTile; ++row) lengths[row] = static_cast<int64_t>(rest[row].size());
  const int64_t wide = cheapest(lengths).wide, n = list_size(lengths, wide);
  out->insert(out->end(), {static_cast<uint8_t>(n & 255), static_cast<uint8_t>(n >> 8), static_cast<uint8_t>(wide), 0});
  if (n) append_list(rest, wide, out);
  const size_t at = out->size();
  out->resize(at + static_cast<size_t>(wide * kWideBytes), 0);
  fill_wide(rest, wide, out->data() + at);
  out->insert(out->end(), places.begin(), places.end());
}

}  // namespace

int64_t slots_if_better(const Source& s, const Counted& c) {
  const Places best = best_places(s);
  return best.cost < cost_of_mask(s, c, sample_step(s)) ? best.slots : 0;
}

bool pack_slots(const Source& s, const Counted& c, int64_t slots, Matrix* w, std::string* error) {
  if (!slots) slots = best_places(s).slots;
  const int64_t tiles = (s.rows + kTile - 1) / kTile;
  std::vector<uint8_t> bytes(kSlotsHeader, 0);
  bytes[0] = static_cast<uint8_t>(slots);
  std::vector<uint64_t> starts, next(kTile, 0);
  Block block;
  for (int64_t tile = 0; tile < tiles; ++tile) {
    starts.push_back(bytes.size());
    for (int64_t group = 0; group < w->groups; ++group) {
      load_block(s, c, tile, group, &next, &block);
      if (s.kind == Kind::i4) append_scales(s, tile, group, w->groups, &bytes);
      append_group(block, slots_windows(*w, group), slots, &bytes);
    }
  }
  starts.push_back(bytes.size());
  if (!allocate(w, starts, s, error)) return false;
  std::memcpy(w->memory.get(), bytes.data(), bytes.size());
  return true;
}

}  // namespace tailcut
