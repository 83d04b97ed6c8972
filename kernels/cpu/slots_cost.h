// How the `slots` format is laid out for a matrix: places a window, and what becomes of the entries that do not fit.
#pragma once

#include "pack.h"
#include "slots.h"

namespace tailcut {

// Entries of each of a tile's rows that do not fit into the windows of one group.
struct Lengths {
  int16_t of[kTile] = {};
};
Lengths lengths_of(const Source& s, int64_t tile, int64_t group, int64_t slots);

// What is left over in a group: `wide` pairs of wide places a row, then a list of `listed` entries.
struct Leftover {
  int64_t wide = 0;
  int64_t listed = 0;
  double cost = 0;
};
Leftover cheapest(const Lengths& lengths);

// The number of places a window that costs least.
int64_t best_places(const Source& s);

}  // namespace tailcut
