// Slots as rows of bytes for the panels of avx512_panels.h: a tile of 16 rows, a group of columns at a time. Columns
// that windows name become masks, by which VPEXPANDB writes 64 columns of a row at once (three operations of one port,
// as in the mask format); places that may name any column are stored one by one.
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

// What 64 columns of 16 rows take from their windows: a row's columns as bits, its values in their order.
struct Block {
  alignas(64) uint8_t masks[kTile * 8];
  alignas(64) uint8_t values[kTile * 16];
};

// Where row `row` is among 16 int64 that first_pairs and last_pairs made of the rows' int32.
constexpr int64_t pair_of(int64_t row) { return row % 4 / 2 * 8 + row / 4 * 2 + row % 2; }

template <Kind kKind>
inline Ints bytes_of(Ints value) { return kKind == Kind::i4 ? shift_right_4(value) : value; }

inline void store_masks(Ints first, Ints second, Block* to) {
  store_ints(to->masks, first_pairs(first, second));
  store_ints(to->masks + 64, last_pairs(first, second));
}

// Two places a window: one unit has four windows of 16 rows.
template <Kind kKind>
inline void read_block2(const uint8_t* unit, Block* to) {
  const Places p = read_unit<kKind>(unit);
  const Ints a = bytes_of<kKind>(p.value[0]), b = bytes_of<kKind>(p.value[1]);
  store_masks(two_bits(p.column[0]), two_bits(p.column[1]), to);
  store_ints(to->values, first_pairs(a, b));
  store_ints(to->values + 64, last_pairs(a, b));
}

// Four places a window: two units. The second may be missing: the rest of the last group's columns.
template <Kind kKind>
inline void read_block4(const uint8_t* unit, bool second, Block* to) {
  const Ints none = all_bytes(128), zero = zero_ints();
  const Places p = read_unit<kKind>(unit);
  const Places q = second ? read_unit<kKind>(unit + slots512_unit_bytes(kKind)) : Places{{zero, zero}, {none, none}};
  store_masks(join_halves(two_bits(p.column[0]), two_bits(p.column[1])),
              join_halves(two_bits(q.column[0]), two_bits(q.column[1])), to);
  const Ints a = bytes_of<kKind>(p.value[0]), b = bytes_of<kKind>(p.value[1]);
  const Ints c = bytes_of<kKind>(q.value[0]), d = bytes_of<kKind>(q.value[1]);
  const Ints ab[2] = {first_pairs(a, b), last_pairs(a, b)}, cd[2] = {first_pairs(c, d), last_pairs(c, d)};
  TAILCUT_UNROLL for (int k = 0; k < 2; ++k) {
    store_ints(to->values + 128 * k, first_longs(ab[k], cd[k]));
    store_ints(to->values + 128 * k + 64, last_longs(ab[k], cd[k]));
  }
}

// 64 columns of 16 rows, kPanelStride apart. Rows have 8 values (two places a window) or 16.
template <Kind kKind, int kValues>
inline void put_block(const Block& from, uint8_t* to) {
  const Ints none = all_bytes(kKind == Kind::i4 ? 8 : 128);
  in_memory(&from);
  TAILCUT_UNROLL for (int64_t row = 0; row < kTile; ++row) {
    const int64_t quarter = row % 4 * 4 + row / 4;  // where 16 values are
    const uint8_t* const values = from.values + (kValues == 8 ? 8 * pair_of(row) : 16 * quarter);
    const uint64_t mask = read_u64(from.masks + 8 * pair_of(row));
    store_ints(to + row * kPanelStride, expand_bytes(none, mask, load_first<kValues>(values)));
  }
}

inline void empty_rows(Ints none, uint8_t* to) {
  for (int64_t row = 0; row < kTile; ++row, to += kPanelStride) store_ints(to, none), store_ints(to + 64, none);
}

// The columns that windows name, all others empty.
template <Kind kKind>
inline void put_windows(const uint8_t* unit, int64_t places, int64_t units, uint8_t* to) {
  constexpr int64_t bytes = slots512_unit_bytes(kKind);
  if (places == 0) return empty_rows(all_bytes(kKind == Kind::i4 ? 8 : 128), to);
  const int64_t each = places / 2;  // units of 64 columns
  Block block;
  for (int64_t left = units; left > 0; left -= each, unit += each * bytes, to += 64) {
    if (each == 1) {
      read_block2<kKind>(unit, &block);
      put_block<kKind, 8>(block, to);
    } else {
      read_block4<kKind>(unit, left > 1, &block);
      put_block<kKind, 16>(block, to);
    }
  }
}

// Four places that may name any column of a row, one by one: about a place a cycle.
enum class Bits { all, low, high };
template <Bits kBits>
inline void put_quad(const uint8_t* columns, const uint8_t* values, uint8_t* row) {
  TAILCUT_UNROLL for (int p = 0; p < kQuad; ++p) {
    const int value = values[p];
    row[columns[p]] = static_cast<uint8_t>(kBits == Bits::low ? value & 15 : kBits == Bits::high ? value >> 4 : value);
  }
}

// A pair of layers that all rows are in.
template <Kind kKind>
inline void put_full(const uint8_t* at, uint8_t* to) {
  for (int64_t row = 0; row < kTile; ++row, at += kQuad, to += kPanelStride) {
    put_quad<kKind == Kind::i8 ? Bits::all : Bits::low>(at, at + 64, to);
    put_quad<kKind == Kind::i8 ? Bits::all : Bits::high>(at + 128, at + (kKind == Kind::i8 ? 192 : 64), to);
  }
}

inline int64_t lowest(uint16_t rows) { return __builtin_ctz(rows); }
inline uint16_t without_lowest(uint16_t rows) { return static_cast<uint16_t>(rows & (rows - 1)); }

// A pair of layers with these rows; returns what comes behind it.
template <Kind kKind>
inline const uint8_t* put_some(const uint8_t* at, uint16_t first, uint16_t second, uint8_t* to) {
  constexpr bool i8 = kKind == Kind::i8;
  const int64_t a = kQuad * count_bits(first), b = kQuad * count_bits(second);
  const uint8_t* const end = at + slots512_pair_bytes(kKind, a / kQuad, b / kQuad);
  const uint8_t *columns = at, *values = at + a;
  for (uint16_t rows = first; rows; rows = without_lowest(rows), columns += kQuad)
    put_quad<i8 ? Bits::all : Bits::low>(columns, columns + a, to + lowest(rows) * kPanelStride);
  columns = at + 2 * a;
  for (uint16_t rows = second; rows; rows = without_lowest(rows), columns += kQuad) {
    const int64_t row = lowest(rows), before = count_bits(first & ((1u << row) - 1));  // in the first layer
    put_quad<i8 ? Bits::all : Bits::high>(columns, i8 ? columns + b : values + kQuad * before, to + row * kPanelStride);
  }
  return end;
}

// A group's 128 columns of 16 rows, kPanelStride apart; returns where the next record begins.
template <Kind kKind>
inline const uint8_t* expand_slots(const Matrix& w, const uint8_t* record, int64_t g, uint8_t* to) {
  const SlotsRecord r = read_record<kKind>(record);
  const int64_t places = w.data[0], units = slots512_units(w, g, places);
  put_windows<kKind>(r.units, places, units, to);
  const uint8_t* at = r.units + units * slots512_unit_bytes(kKind);
  for (int64_t k = 0; k < w.data[1]; ++k, at += slots512_pair_bytes(kKind, kTile, kTile)) put_full<kKind>(at, to);
  for (int64_t k = 0; k < r.pairs; ++k) {
    const uint8_t* const rows = r.rows + kPairBits * k;
    at = put_some<kKind>(at, read_u16(rows), read_u16(rows + 2), to);
  }
  return at;
}

// While a tile is written, as much of the next one is asked for; behind the last one, of the first one's next stretch.
template <bool kGroupScales>
inline void expand_stretch(const Stretch& s, SlotRows<kGroupScales>* readers) {
  const int64_t records = (s.w.rows + kTile - 1) / kTile * s.w.groups;
  const int64_t bytes = static_cast<int64_t>(s.w.data_bytes) / (records ? records : 1);
  for (int64_t r = 0; r < s.rows; r += kTile) {
    const uint8_t *at = readers[r].record, *next = readers[r + kTile < s.rows ? r + kTile : 0].record;
    for (int64_t b = 0; b < s.blocks; b += 2, next += bytes) {
      prefetch_lines(next, bytes);
      at = expand_slots<SlotRows<kGroupScales>::kind>(s.w, at, (s.block0 + b) / 2, s.panel.bytes[r] + 64 * b);
    }
    readers[r].record = at;
  }
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
