// The format `slots` of i8 and i4 matrices as AVX2 reads it (AVX-512 has slots512.h).
//
// Without an instruction that expands bytes by a mask, expanding costs AVX2 about ten cycles a 64 columns however little
// is left. Here activations are looked up for the weights that are left instead: VPSHUFB picks from 16 activations by
// 4-bit column numbers. 16 rows are worked on together. Each has S places in every window of 16 columns; what does not
// fit goes to places that may name any of the group's 128 columns (`wide`, looked up in eight steps), and what still
// does not fit to a list.
//
//   data               64 bytes: uint32 S (2, 4 or 8)
//   data + row_start[t] tile t of 16 rows, t < ceil(rows / 16); one record a group of 128 columns:
//     float scale[16]  i4 only: the weight scales of the group (4-bit values are kept as bytes here)
//     uint16 n         number of list entries, 0 or at least one for each of the 16 rows
//     uint8 wide, 0    number of wide places a row, divided by 2
//     uint8 code[n]    bit 7: this entry begins the next row; bits 0-6: column in the group
//     int8 value[n]    0 for the entry of a row that has nothing in the list
//     wide times       uint8 column[16 rows][2], int8 value[16 rows][2]
//     windows          one for each 16 columns that begin before `cols`:
//       S = 4: 32 bytes of indices, then int8 value[16 rows][4]; byte j holds the index of value j (low nibble) and of
//              value 32 + j (high)
//       S = 8: that twice
//       S = 2: 16 bytes of indices, then int8 value[16 rows][2]; byte j holds the indices of values j and 16 + j
//   Empty places have value 0 and column 0.
#pragma once

#include "matrix.h"

namespace tailcut {

constexpr int64_t kWindow = 16;
constexpr int64_t kSlotsHeader = 64, kSlotsRecord = 4;
constexpr int64_t kWideBytes = 64, kMostWide = 32;  // bytes of one, and how many a group may have

static inline int64_t slots_windows(const Matrix& w, int64_t group) {
  const int64_t left = w.cols - group * kGroup;
  return left >= kGroup ? kGroup / kWindow : (left + kWindow - 1) / kWindow;
}
static inline int slots_list(const uint8_t* record) { return record[0] | record[1] << 8; }  // its entries
constexpr int64_t slots_window_bytes(int64_t s) { return kTile * s * 3 / 2; }

}  // namespace tailcut
