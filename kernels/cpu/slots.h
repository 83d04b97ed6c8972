// The format `slots` of int8 matrices, for processors that cannot expand bytes by a mask in one instruction.
//
// Expanding a mask costs AVX2 about ten cycles a 64 columns however little is left. Here activations are looked up for
// the weights that are left instead: VPSHUFB picks 16 of a window's 16 activations by 4-bit column indices. 16 rows
// are worked on together; each has S places a window, and what does not fit goes to a list (`spills`).
//
//   data               64 bytes: uint32 S (2 or 4)
//   data + row_start[t] tile t of 16 rows, t < ceil(rows / 16); one record a group of 128 columns:
//     uint16 n         number of list entries, 0 or at least one for each of the 16 rows
//     uint8 code[n]    bit 7: this entry begins the next row; bits 0-6: column in the group
//     int8 value[n]    0 for the entry of a row that has nothing in the list
//     windows          one for each 16 columns that begin before `cols`:
//       S = 4: 32 bytes of indices, then int8 value[16 rows][4]; byte j holds the index of value j (low nibble) and of
//              value 32 + j (high)
//       S = 2: 16 bytes of indices, then int8 value[16 rows][2]; byte j holds the indices of values j and 16 + j
//   Empty places have value 0 and index 0. Bits a weight: 0.75 S + 16 times the share of weights in lists.
#pragma once

#include "matrix.h"

namespace tailcut {

constexpr int64_t kWindow = 16;
constexpr int64_t kSlotsHeader = 64;

inline int64_t slots_windows(const Matrix& w, int64_t group) {
  const int64_t left = w.cols - group * kGroup;
  return left >= kGroup ? kGroup / kWindow : (left + kWindow - 1) / kWindow;
}
constexpr int64_t slots_window_bytes(int64_t s) { return kTile * s * 3 / 2; }

}  // namespace tailcut
