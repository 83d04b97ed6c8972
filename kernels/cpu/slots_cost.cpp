// The cost model of the slots format. The source has been checked.

#include "slots_cost.h"

#include <algorithm>
#include <limits>

namespace tailcut {
namespace {

// Time in bytes read: what is read, and what the processor spends besides, as measured on Zen 3 with two threads that
// share a core. List entries are dear (a jump that is guessed wrong a list, and one by one), so most groups have none.
constexpr double kWindowCost = 96 + 12, kWideCost = kWideBytes + 30, kEntryCost = 2 + 30;
constexpr double kMaskCost = 2000;  // expanding 16 rows of a group by their masks
constexpr double kNever = std::numeric_limits<double>::infinity();

int64_t tiles_of(const Source& s) { return (s.rows + kTile - 1) / kTile; }
int64_t groups_of(const Source& s) { return (s.cols + kGroup - 1) / kGroup; }

// Bits beyond the first `slots` in each of a word's four windows, all added up.
int64_t beyond(uint64_t word, int64_t slots) {
  constexpr uint64_t kOnes = 0x0001000100010001u, kTops = 0x8000800080008000u;
  const uint64_t bytes = bits_by_byte(word), counts = (bytes + (bytes >> 8)) & kOnes * 0x1f;
  // the top bit stays where count >= slots
  const uint64_t less = (counts | kTops) - kOnes * static_cast<uint64_t>(slots);
  const uint64_t there = less >> 15 & kOnes;
  return static_cast<int64_t>((less & there * 0x7fff) * kOnes >> 48);
}

// A list has an entry for each row, also for one that has nothing in it.
int64_t list_size(const Lengths& lengths, int64_t wide) {
  const auto placed = static_cast<int16_t>(2 * wide);
  int16_t longest = 0, size = 0;
  for (int16_t length : lengths.of) {
    const auto left = static_cast<int16_t>(length - placed);
    longest = std::max(longest, left);
    size = static_cast<int16_t>(size + std::max<int16_t>(left, 1));
  }
  return longest > 0 ? size : 0;
}

// Cost of every `step`-th tile.
double cost_of(const Source& s, int64_t slots, int64_t step) {
  double cost = 0;
  for (int64_t tile = 0; tile < tiles_of(s); tile += step)
    for (int64_t group = 0; group < groups_of(s); ++group)
      cost += 8 * kWindowCost * static_cast<double>(slots) / 4 + cheapest(lengths_of(s, tile, group, slots)).cost;
  return cost;
}

double cost_of_mask(const Source& s, const Counted& c, int64_t step) {
  const double all = static_cast<double>(s.rows) * static_cast<double>(s.cols);
  const double tiles = static_cast<double>(tiles_of(s)), seen = static_cast<double>((tiles_of(s) + step - 1) / step);
  const double bytes = (all / 8 + static_cast<double>(c.nonzeros)) * seen / tiles;
  return bytes + seen * static_cast<double>(groups_of(s)) * kMaskCost;
}

// About 64 tiles of a matrix speak for it.
int64_t sample_step(const Source& s) { return std::max<int64_t>(1, tiles_of(s) / 64); }

struct Places {
  int64_t slots = 2;
  double cost = kNever;
};

Places cheapest_places(const Source& s) {
  Places best;
  for (int64_t slots : {2, 4, 8}) {
    const double cost = cost_of(s, slots, sample_step(s));
    if (cost < best.cost) best = {slots, cost};
  }
  return best;
}

}  // namespace

Lengths lengths_of(const Source& s, int64_t tile, int64_t group, int64_t slots) {
  Lengths lengths;
  for (int64_t k = 0; k < kTile && tile * kTile + k < s.rows; ++k) {
    const int64_t row = tile * kTile + k;
    const int64_t first = beyond(block_mask(s, row, group * 2), slots);
    lengths.of[k] = static_cast<int16_t>(first + beyond(block_mask(s, row, group * 2 + 1), slots));
  }
  return lengths;
}

Leftover cheapest(const Lengths& lengths) {
  Leftover best{0, 0, kNever};
  const int64_t longest = *std::max_element(lengths.of, lengths.of + kTile);
  const int64_t most = std::min(kMostWide, (longest + 1) / 2);
  for (int64_t wide = 0; wide <= most && static_cast<double>(wide) * kWideCost < best.cost; ++wide) {
    const int64_t listed = list_size(lengths, wide);
    const double cost = static_cast<double>(wide) * kWideCost + static_cast<double>(listed) * kEntryCost;
    if (cost < best.cost) best = {wide, listed, cost};
  }
  return best;
}

int64_t best_places(const Source& s) { return cheapest_places(s).slots; }

int64_t slots_if_better(const Source& s, const Counted& c) {
  const Places best = cheapest_places(s);
  return best.cost < cost_of_mask(s, c, sample_step(s)) ? best.slots : 0;
}

}  // namespace tailcut
