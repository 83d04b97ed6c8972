// How slots are laid out for a matrix on AVX-512 (slots512.h).
#pragma once

#include "pack.h"
#include "slots512.h"
#include "slots_cost.h"

namespace tailcut {

constexpr uint16_t kAllRows = 0xffff;

// Rows (bits) of each layer of a group: those that all rows are in, then `pairs` more pairs.
struct Layers {
  int64_t pairs = 0;
  uint16_t rows[2 * kMostLayers] = {};
};
Layers layers_of(const Lengths& lengths, const SlotsPlan& plan);

// The plan that costs least.
SlotsPlan best_plan512(const Source& s);

}  // namespace tailcut
