// Packs the slots format. The source has been checked.

#include <algorithm>
#include <cstring>

#include "pack.h"
#include "slots.h"

namespace tailcut {
namespace {

struct Census {
  int64_t spills2 = 0, spills4 = 0;  // entries beyond 2 and 4 a window
};

uint32_t window_bits(uint64_t word, int64_t window) { return static_cast<uint32_t>(word >> (16 * window) & 0xffff); }

Census census(const Source& s) {
  Census c;
  for (int64_t row = 0; row < s.rows; ++row)
    for (int64_t block = 0; block * kBlock < s.cols; ++block) {
      const uint64_t word = block_mask(s, row, block);
      for (int64_t window = 0; window < 4; ++window) {
        const int n = __builtin_popcount(window_bits(word, window));
        c.spills2 += n > 2 ? n - 2 : 0;
        c.spills4 += n > 4 ? n - 4 : 0;
      }
    }
  return c;
}

int64_t bytes_with(const Source& s, int64_t slots, int64_t spills) {
  const int64_t tiles = (s.rows + kTile - 1) / kTile, windows = (s.cols + kWindow - 1) / kWindow;
  return tiles * windows * slots_window_bytes(slots) + 2 * spills;
}

// Time in bytes read: what is read, or what the processor spends if that is longer. Measured on Zen 3: a mask costs 10.3
// cycles a 64 weights, in which two threads read 40 bytes each; places cost 1 cycle, a list entry 1.6.
int64_t cost_of_mask(const Source& s, const Counted& c) {
  const int64_t all = s.rows * s.cols;
  return std::max(all / 8 + c.nonzeros, all * 40 / 64);
}

int64_t cost_with(const Source& s, int64_t slots, int64_t spills) {
  return std::max(bytes_with(s, slots, spills), s.rows * s.cols * 4 / 64 + spills * 6);
}

int64_t best_slots(const Source& s, const Census& c) {
  return cost_with(s, 2, c.spills2) < cost_with(s, 4, c.spills4) ? 2 : 4;
}

// One tile and group being packed: 16 rows, up to 128 columns.
struct Block {
  int8_t dense[kTile][kGroup];
};

void load_block(const Source& s, const Counted& c, int64_t tile, int64_t group, std::vector<uint64_t>* next, Block* b) {
  std::memset(b, 0, sizeof *b);
  const auto* values = static_cast<const int8_t*>(s.values);
  for (int64_t k = 0; k < kTile && tile * kTile + k < s.rows; ++k) {
    const int64_t row = tile * kTile + k;
    uint64_t& at = (*next)[static_cast<size_t>(k)];
    if (group == 0) at = first_entry(s, c, row);
    for (int64_t half = 0; half < 2; ++half)
      for (uint64_t word = block_mask(s, row, group * 2 + half); word; word &= word - 1)
        b->dense[k][half * kBlock + __builtin_ctzll(word)] = values[at++];
  }
}

void put_place(uint8_t* window, int64_t slots, int64_t row, int64_t place, int64_t column, int8_t value) {
  const int64_t index_bytes = kTile * slots / 2, at = row * slots + place;
  uint8_t& indices = window[at % index_bytes];
  indices = static_cast<uint8_t>(indices | column << (at < index_bytes ? 0 : 4));
  window[index_bytes + at] = static_cast<uint8_t>(value);
}

struct List {
  std::vector<uint8_t> codes;
  std::vector<int8_t> values;
  bool any = false;
  void put(bool begins, int64_t column, int8_t value) {
    codes.push_back(static_cast<uint8_t>((begins ? 0x80 : 0) | column));
    values.push_back(value);
  }
};

void place_row(const Block& b, int64_t row, int64_t windows, int64_t slots, uint8_t* out, List* list) {
  bool begins = true;
  for (int64_t window = 0; window < windows; ++window)
    for (int64_t j = 0, used = 0; j < kWindow; ++j) {
      const int64_t column = window * kWindow + j;
      const int8_t value = b.dense[row][column];
      if (!value) continue;
      if (used < slots) {
        put_place(out + window * slots_window_bytes(slots), slots, row, used++, j, value);
      } else {
        list->put(begins, column, value);
        list->any = true, begins = false;
      }
    }
  if (begins) list->put(true, 0, 0);
}

void append_group(const Block& b, int64_t windows, int64_t slots, std::vector<uint8_t>* out) {
  List list;
  std::vector<uint8_t> places(static_cast<size_t>(windows * slots_window_bytes(slots)), 0);
  for (int64_t row = 0; row < kTile; ++row) place_row(b, row, windows, slots, places.data(), &list);
  const size_t n = list.any ? list.codes.size() : 0;
  out->push_back(static_cast<uint8_t>(n & 255));
  out->push_back(static_cast<uint8_t>(n >> 8));
  if (n) {
    out->insert(out->end(), list.codes.begin(), list.codes.end());
    const auto* bytes = reinterpret_cast<const uint8_t*>(list.values.data());
    out->insert(out->end(), bytes, bytes + n);
  }
  out->insert(out->end(), places.begin(), places.end());
}

}  // namespace

bool slots_are_better(const Source& s, const Counted& c) {
  const Census found = census(s);
  const int64_t slots = best_slots(s, found);
  return cost_with(s, slots, slots == 2 ? found.spills2 : found.spills4) < cost_of_mask(s, c);
}

bool pack_slots(const Source& s, const Counted& c, Matrix* w, std::string* error) {
  const int64_t slots = best_slots(s, census(s)), tiles = (s.rows + kTile - 1) / kTile;
  std::vector<uint8_t> bytes(kSlotsHeader, 0);
  bytes[0] = static_cast<uint8_t>(slots);
  std::vector<uint64_t> starts, next(kTile, 0);
  Block block;
  for (int64_t tile = 0; tile < tiles; ++tile) {
    starts.push_back(bytes.size());
    for (int64_t group = 0; group < w->groups; ++group) {
      load_block(s, c, tile, group, &next, &block);
      append_group(block, slots_windows(*w, group), slots, &bytes);
    }
  }
  starts.push_back(bytes.size());
  if (!allocate(w, starts, s, error)) return false;
  std::memcpy(w->memory.get(), bytes.data(), bytes.size());
  return true;
}

}  // namespace tailcut
