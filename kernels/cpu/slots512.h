// The format `slots` of i8 and i4 matrices as AVX-512 reads it (AVX2 has slots.h).
//
// Expanding masks costs AVX-512 three operations of one execution port for 64 columns of a row however little is left.
// Here activations are looked up for the weights that are left, 64 at a time: 16 rows are worked on together, a vector
// holds four places (a quad) of each, and VPDPBUSD adds up every row's four products in its own lane.
//
// The first places of a row in every window of 16 columns are named by 4 bits (VPSHUFB). What does not fit goes to
// quads that may name any of the group's 128 columns (VPERMI2B): layer j holds quad j of every row that has so many.
// Layers come in pairs. In the first ones all rows have a quad; each of the others begins with the bits of the rows that
// have one, so nothing is padded to the longest row. There are no lists and no other limits.
//
//   data               byte 0: places a window (0, 2 or 4), byte 1: pairs of layers that all rows are in
//   data + row_start[t] tile t of 16 rows, t < ceil(rows / 16); one record a group of 128 columns:
//     float scale[16]  i4 only: the weight scales of the group
//     uint8 pairs, 0, 0, 0: pairs of layers that some rows are in
//     pairs times      uint16 rows of the first layer, of the second one (those of the first or fewer)
//     units            128 places each, vectors A and B: windows 2 u and 2 u + 1 (4 places), or 4 u, 4 u + 1 in A and
//                      4 u + 2, 4 u + 3 in B (2 places: a quad is two of either window)
//       i8: 64 bytes of columns (A in the low nibbles, B in the high), 64 values of A, 64 of B
//       i4: 64 places of A, 64 of B: column in the low nibble, value in the high
//     pairs of layers, those of all rows first; of the rows that are in them, four bytes each:
//       i8: columns, values of the first layer, columns, values of the second
//       i4: columns of the first layer, values of both (low nibble: of the first), columns of the second
//   i8 values are w + 128, i4 values w + 8. A row never names a column twice with different weights: empty places hold
//   the weight 0, in a window a column of their own that is free there, elsewhere the row's first free column. Places of
//   a window are in ascending order. So windows can be written by masks, all else on top of them in any order.
#pragma once

#include "slots.h"

namespace tailcut {

constexpr int64_t kQuad = 4;                            // places that VPDPBUSD adds up
constexpr int64_t kMostLayers = kGroup / kQuad;         // a full row without windows
constexpr int64_t kPairsHead = 4, kPairBits = 4;        // bytes of a record's number of pairs, of a pair's two masks

static inline int64_t slots512_units(const Matrix& w, int64_t group, int64_t places) {
  return (slots_windows(w, group) * places + 7) / 8;
}
static constexpr int64_t slots512_unit_bytes(Kind kind) { return kind == Kind::i8 ? 192 : 128; }
static constexpr int64_t slots512_pair_bytes(Kind kind, int64_t first, int64_t second) {  // of so many rows
  return kQuad * (kind == Kind::i8 ? 2 * first + 2 * second : 2 * first + second);
}

}  // namespace tailcut
