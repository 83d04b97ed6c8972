// The format `index` of f32, f16 and bf16 matrices: values with byte deltas of their columns, sixteen rows side by side.
//
// A mask costs the kernels the same time per column whether anything is there or not; here the cost is per value, so
// that little is paid for a matrix of which little is left. 1 byte more than the value per weight kept.
//
// Rows are sorted by their number of entries so that the sixteen rows of a slice are about equally long. Position `slot`
// of the sorted rows belongs to row order[slot] of the matrix. The slices are then dealt out evenly: any run of them holds
// long and short ones alike, so that threads that get equal ranges of slots get about equal work.
//
//   data                      order, uint32 [16 * slices] (0 behind the last row), a multiple of 64 bytes
//   data + row_start[s]       slice s, s < slices = ceil(rows / 16): groups up to data + row_start[s + 1]
//   Matrix::row_start         [slices + 1], multiples of 64
//
//   group = kIndexSteps steps of 16 lanes, lane l of slice s being slot 16 s + l:
//     uint8 delta [kIndexSteps][16]     64 bytes
//     value       [kIndexSteps][16]     256 bytes (f32) or 128 bytes (f16, bf16)
//
// The column of an entry is the sum of its lane's deltas up to and including its own, from 0. A gap of more than 255
// columns is bridged by entries of delta 255 and value 0. Short lanes, and lanes behind the last row, end in entries of
// delta 0 and value 0. Every column named is < cols; a matrix without columns has no groups.
//
// Entries of value 0 name columns that hold other weights or none, and columns of weight 0 are not named at all, so this
// format is right for finite x only: where dense arithmetic gives 0 * inf = NaN, the kernels must fall back (`compute`
// checks each row of x and takes a slow exact path for one that is not finite).
//
// A range [row0, row1) given to `compute` is a range of slots (row0 a multiple of 16, row1 too or the end);
// y is written at order[slot].
#pragma once

#include "matrix.h"

namespace tailcut {

constexpr int64_t kIndexSteps = 4;  // deltas of a group fill one cache line

// static: a copy compiled for AVX-512 must never be the one that the portable code is linked to
static constexpr size_t value_bytes_of(Kind kind) { return kind == Kind::f32 ? 4 : 2; }  // of f32, f16, bf16
static constexpr size_t index_group_bytes(Kind kind) { return size_t(kIndexSteps * kTile) * (1 + value_bytes_of(kind)); }
static constexpr int64_t index_slices(int64_t rows) { return (rows + kTile - 1) / kTile; }

static inline const uint32_t* index_order(const Matrix& w) { return reinterpret_cast<const uint32_t*>(w.data); }

}  // namespace tailcut
