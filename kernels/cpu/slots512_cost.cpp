// What the integer formats cost on AVX-512, and how slots are laid out there. The source has been checked.

#include <algorithm>
#include <limits>

#include "slots512_plan.h"

namespace tailcut {
namespace {

// Time in bytes read, of 16 rows of a group of 128 columns. Expanding masks takes as long however little is left: a
// product takes no less than kMaskLeast. Slots are read at the memory's rate; what they compute besides counts by
// the share that reading does not hide.
struct Costs {
  double mask_least, dense, unit, full, partial;
};
constexpr Costs kCosts8{1150, 2048, 22, 20, 56};
constexpr Costs kCosts4{1530, 1024 + 64, 24, 24, 64};
constexpr int64_t kSampled = 512;  // groups of a matrix that speak for it

const Costs& costs_of(const Source& s) { return s.kind == Kind::i8 ? kCosts8 : kCosts4; }

int64_t tiles_of(const Source& s) { return (s.rows + kTile - 1) / kTile; }
int64_t groups_of(const Source& s) { return (s.cols + kGroup - 1) / kGroup; }

int64_t longest_of(const Lengths& lengths) {  // in quads
  return (*std::max_element(lengths.of, lengths.of + kTile) + kQuad - 1) / kQuad;
}

// What the layers beyond the windows cost, by the number of pairs that all rows are in.
class LayerCosts {
 public:
  explicit LayerCosts(const Source& s) : s_(s) {}

  void add(const Lengths& lengths) {
    int64_t rows[kMostLayers + 1] = {};  // of each layer
    for (int16_t length : lengths.of)
      for (int64_t layer = 0; layer * kQuad < length; ++layer) ++rows[layer];
    const int64_t pairs = (longest_of(lengths) + 1) / 2;
    double some = 0;  // bytes of the pairs from `full` on
    for (int64_t full = kMostLayers / 2; full >= 0; --full) {
      if (full < pairs) some += pair_cost(rows[2 * full], rows[2 * full + 1]);
      const int64_t left = std::max<int64_t>(0, pairs - full);
      cost_[full] += some + static_cast<double>(full) * (pair_cost(kTile, kTile) + costs_of(s_).full);
      cost_[full] += static_cast<double>(left) * (costs_of(s_).partial + kPairBits);
      ++seen_[full][left];
    }
  }

  SlotsPlan best(int64_t places) const {
    const auto full = std::min_element(cost_, cost_ + kMostLayers / 2 + 1) - cost_;
    const auto* const seen = seen_[full];
    const auto common = std::max_element(seen, seen + kMostLayers / 2 + 1) - seen;
    return {places, full, common, true};
  }
  double cost() const { return *std::min_element(cost_, cost_ + kMostLayers / 2 + 1); }

 private:
  double pair_cost(int64_t first, int64_t second) const {
    return static_cast<double>(slots512_pair_bytes(s_.kind, first, second));
  }

  const Source& s_;
  double cost_[kMostLayers / 2 + 1] = {};
  int64_t seen_[kMostLayers / 2 + 1][kMostLayers / 2 + 1] = {};
};

struct Choice {
  SlotsPlan plan;
  double cost = std::numeric_limits<double>::infinity();  // of a group
};

Choice with_places(const Source& s, int64_t places) {
  const int64_t groups = groups_of(s), tiles = tiles_of(s);
  const int64_t step = std::max<int64_t>(1, tiles * groups / kSampled);
  LayerCosts layers(s);
  int64_t seen = 0;
  for (int64_t tile = 0; tile < tiles; tile += step)
    for (int64_t group = 0; group < groups; ++group, ++seen) layers.add(lengths_of(s, tile, group, places));
  const double unit = static_cast<double>(slots512_unit_bytes(s.kind)) + costs_of(s).unit;
  const double scales = s.kind == Kind::i4 ? kTile * sizeof(float) : 0;
  const double each = scales + kPairsHead + static_cast<double>(places) * unit;  // 8 windows are `places` units
  return {layers.best(places), each + layers.cost() / static_cast<double>(std::max<int64_t>(1, seen))};
}

Choice best_choice(const Source& s) {
  Choice best;
  for (int64_t places : {0, 2, 4}) {
    const Choice one = with_places(s, places);
    if (one.cost < best.cost) best = one;
  }
  return best;
}

}  // namespace

Layers layers_of(const Lengths& lengths, const SlotsPlan& plan) {
  Layers layers;
  const int64_t common = 2 * plan.full;
  layers.pairs = std::max(plan.partial, (longest_of(lengths) - common + 1) / 2);
  std::fill(layers.rows, layers.rows + common, kAllRows);
  for (int64_t row = 0; row < kTile; ++row)
    for (int64_t layer = common; layer * kQuad < lengths.of[row]; ++layer)
      layers.rows[layer] = static_cast<uint16_t>(layers.rows[layer] | 1u << row);
  return layers;
}

Format best_format512(const Source& s, const Counted& c, SlotsPlan* plan) {
  const Costs& costs = costs_of(s);
  const double all = static_cast<double>(s.rows) * static_cast<double>(s.cols);
  const double left = static_cast<double>(c.nonzeros) / all, cells = kTile * kGroup;
  const double scales = s.kind == Kind::i4 ? kTile * sizeof(float) : 0;
  const double mask_bytes = cells / 8 * (1 + left * static_cast<double>(value_bits(s.kind))) + scales;
  const double mask = std::max(costs.mask_least, mask_bytes);
  const Choice slots = best_choice(s);
  *plan = slots.plan;
  if (costs.dense <= mask && costs.dense <= slots.cost) return Format::dense;
  return slots.cost < mask ? Format::slots : Format::bitmask;
}

SlotsPlan best_plan512(const Source& s) { return best_choice(s).plan; }

}  // namespace tailcut
