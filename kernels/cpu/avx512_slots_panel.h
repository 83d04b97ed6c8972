// Slots as rows of bytes for the panels of avx512_panels.h: a tile of 16 rows, a group of columns at a time. Places are
// written one by one, which takes several times as long as expanding masks; many rows of x share it.
#pragma once

#include "avx512_panels.h"
#include "avx512_slots.h"

namespace tailcut {
namespace {

// Reads a tile; only those of a tile's first rows are used.
template <bool kGroupScales>
struct SlotRows {
  static constexpr bool group_scales = kGroupScales;
  static constexpr Kind kind = kGroupScales ? Kind::i4 : Kind::i8;
  const uint8_t* record = nullptr;
  SlotRows() = default;
  SlotRows(const Matrix& w, int64_t row) : record(row % kTile ? nullptr : w.data + w.row_start[row / kTile]) {}
};

// Adds 64 places to cells that hold the weight 0. Place p of a row names columns from first[p] on.
template <Kind kKind>
inline void put_places(Ints columns, Ints values, int64_t first, int64_t second, uint8_t* to) {
  alignas(64) uint8_t column[64], value[64];
  store_ints(column, columns);
  store_ints(value, kKind == Kind::i4 ? low_nibbles(shift_right_4(values)) : values);
  constexpr int none = kKind == Kind::i4 ? 8 : 128;
  for (int64_t row = 0; row < kTile; ++row, to += kPanelStride)
    for (int64_t p = 0; p < kQuad; ++p) {
      uint8_t& cell = to[(p < 2 ? first : second) + column[kQuad * row + p]];
      cell = static_cast<uint8_t>(cell + value[kQuad * row + p] - none);
    }
}

// A group's 128 columns of 16 rows, kPanelStride apart; returns where the next record begins.
template <Kind kKind>
inline const uint8_t* expand_slots(const Matrix& w, const uint8_t* record, int64_t g, uint8_t* to) {
  const Ints none = all_bytes(kKind == Kind::i4 ? 8 : 128);
  for (int64_t row = 0; row < kTile; ++row)
    store_ints(to + row * kPanelStride, none), store_ints(to + row * kPanelStride + 64, none);
  const SlotsRecord r = read_record<kKind>(record);
  const int64_t places = w.data[0], units = slots512_units(w, g, places), step = places == 4 ? 0 : kWindow;
  const uint8_t* at = r.units;
  for (int64_t u = 0; u < units; ++u, at += slots512_unit_bytes(kKind)) {
    const Places p = read_unit<kKind>(at);
    const int64_t a = u * (8 / places) * kWindow, b = a + kWindow + step;
    put_places<kKind>(p.column[0], p.value[0], a, a + step, to);
    put_places<kKind>(p.column[1], p.value[1], b, b + step, to);
  }
  const auto put_pair = [&](const Places& p) {
    for (int k = 0; k < 2; ++k) put_places<kKind>(p.column[k], p.value[k], 0, 0, to);
  };
  for (int64_t k = 0; k < w.data[1]; ++k, at += slots512_pair_bytes(kKind, kTile, kTile)) put_pair(read_full<kKind>(at));
  for (int64_t k = 0; k < r.pairs; ++k) {
    const uint8_t* const rows = r.rows + kPairBits * k;
    put_pair(read_some<kKind>(&at, read_u16(rows), read_u16(rows + 2)));
  }
  return at;
}

template <bool kGroupScales>
inline void expand_stretch(const Stretch& s, SlotRows<kGroupScales>* readers) {
  for (int64_t r = 0; r < s.rows; r += kTile)
    for (int64_t b = 0; b < s.blocks; b += 2)
      readers[r].record = expand_slots<SlotRows<kGroupScales>::kind>(s.w, readers[r].record, (s.block0 + b) / 2,
                                                                     s.panel.bytes[r] + 64 * b);
}

// with_weights for panels: slots too.
template <class Action>
inline void with_panel_weights(const Matrix& w, Action action) {
  if (w.format != Format::slots) with_weights(w, action);
  else if (w.kind == Kind::i8) action(SlotRows<false>{});
  else action(SlotRows<true>{});
}

}  // namespace
}  // namespace tailcut
