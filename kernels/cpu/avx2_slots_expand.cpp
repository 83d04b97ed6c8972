// i8 and i4 slots as rows of int16, for many rows of x.

#if defined(__AVX2__)

#include <cstring>

#include "avx2.h"
#include "slots.h"

namespace tailcut::avx2 {
namespace {

// Adds one window or layer of `slots` places a row to the rows of `to`.
void expand_window(const uint8_t* at, int64_t slots, int16_t* to, int64_t stride) {
  const int64_t index_bytes = kTile * slots / 2;
  for (int64_t k = 0; k < kTile * slots; ++k) {
    const int column = k < index_bytes ? at[k] & 15 : at[k - index_bytes] >> 4;
    int16_t& cell = to[k / slots * stride + column];
    cell = static_cast<int16_t>(cell + static_cast<int8_t>(at[index_bytes + k]));  // empty places add 0
  }
}

void expand_wide(const uint8_t* at, int16_t* to, int64_t stride) {
  for (int64_t k = 0; k < 2 * kTile; ++k) {
    int16_t& cell = to[k / 2 * stride + at[k]];
    cell = static_cast<int16_t>(cell + static_cast<int8_t>(at[kWideBytes / 2 + k]));
  }
}

void expand_list(const uint8_t* codes, const uint8_t* values, int n, int16_t* to, int64_t stride) {
  for (int64_t k = 0, row = -1; k < n; ++k) {
    row += codes[k] >> 7;
    int16_t& cell = to[row * stride + (codes[k] & 127)];
    cell = static_cast<int16_t>(cell + static_cast<int8_t>(values[k]));
  }
}

}  // namespace

void slots_expand(const Matrix& w, int64_t tile, int16_t* to) {
  const int64_t stride = w.blocks * kBlock, slots = w.data[0], layers = slots == 8 ? 2 : 1;
  std::memset(to, 0, static_cast<size_t>(kTile * stride) * sizeof(int16_t));
  const uint8_t* record = w.data + w.row_start[tile];
  for (int64_t group = 0; group < w.groups; ++group, to += kGroup) {
    if (w.kind == Kind::i4) record += kTile * sizeof(float);
    const int n = slots_list(record), wide = record[2];
    record += kSlotsRecord;
    expand_list(record, record + n, n, to, stride);
    record += 2 * n;
    for (int k = 0; k < wide; ++k, record += kWideBytes) expand_wide(record, to, stride);
    for (int64_t k = 0; k < slots_windows(w, group) * layers; ++k, record += slots_window_bytes(slots / layers))
      expand_window(record, slots / layers, to + k / layers * kWindow, stride);
  }
}

}  // namespace tailcut::avx2

#endif
