// Reading the slots of AVX-512 (slots512.h): 128 places of 16 rows at a time.
#pragma once

#include "avx512.h"
#include "avx512_lookup.h"
#include "slots512.h"

namespace tailcut {
namespace {

// Two vectors of places: columns, and unsigned values that are 128 where nothing is. i4 values are 16 w + 128.
struct Places {
  Ints column[2];
  Ints value[2];
};

inline Ints low_nibbles(Ints v) { return and_bits(v, all_bytes(0x0f)); }
inline Ints high_nibbles(Ints v) { return and_bits(v, all_bytes(0xf0)); }

template <Kind kKind>
inline Places read_unit(const uint8_t* at) {
  const Ints a = load_ints(at), b = load_ints(at + 64);
  if (kKind == Kind::i4) return {{low_nibbles(a), low_nibbles(b)}, {high_nibbles(a), high_nibbles(b)}};
  return {{low_nibbles(a), low_nibbles(shift_right_4(a))}, {b, load_ints(at + 128)}};
}

// A pair of layers that all rows are in.
template <Kind kKind>
inline Places read_full(const uint8_t* at) {
  const Ints a = load_ints(at), values = load_ints(at + 64), b = load_ints(at + 128);
  if (kKind == Kind::i4) return {{a, b}, {high_nibbles(shift_left_4(values)), high_nibbles(values)}};
  return {{a, b}, {values, load_ints(at + 192)}};
}

// A pair of layers with these rows; moves `at` behind it.
template <Kind kKind>
inline Places read_some(const uint8_t** at, uint16_t first, uint16_t second) {
  const int64_t a = kQuad * count_bits(first), b = kQuad * count_bits(second);
  const uint8_t* const from = *at;
  *at = from + slots512_pair_bytes(kKind, a / kQuad, b / kQuad);
  const Ints none = all_bytes(kKind == Kind::i4 ? 0x88 : 0x80);
  const Ints values = expand_ints(none, first, load_ints(from + a));
  const Ints columns[2] = {expand_ints(zero_ints(), first, load_ints(from)),
                           expand_ints(zero_ints(), second, load_ints(from + 2 * a))};
  if (kKind == Kind::i4)
    return {{columns[0], columns[1]}, {high_nibbles(shift_left_4(values)), high_nibbles(values)}};
  return {{columns[0], columns[1]}, {values, expand_ints(none, second, load_ints(from + 2 * a + b))}};
}

inline uint16_t read_u16(const uint8_t* at) {
  uint16_t value;
  std::memcpy(&value, at, 2);
  return value;
}

// The parts of a group's record.
struct SlotsRecord {
  const uint8_t* scales;  // i4
  int64_t pairs;          // that some rows are in
  const uint8_t* rows;    // their bits
  const uint8_t* units;
};

template <Kind kKind>
inline SlotsRecord read_record(const uint8_t* at) {
  const uint8_t* const head = at + (kKind == Kind::i4 ? kTile * static_cast<int64_t>(sizeof(float)) : 0);
  const int64_t pairs = head[0];
  return {at, pairs, head + kPairsHead, head + kPairsHead + kPairBits * pairs};
}

}  // namespace
}  // namespace tailcut
