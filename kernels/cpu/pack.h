// What the packers of the formats share. `Counted` comes from `check`: nothing here reads an unchecked source.
//
// Packers work in two passes: the size of every piece (a row, a tile, a slice), then the pieces, each written straight
// to its place. Pieces are spread over threads and depend on the source alone, so the bytes are the same however many
// threads there are, and nothing is held twice. Code that runs on several threads allocates nothing: it cannot fail.
#pragma once

#include "source.h"

namespace tailcut {

// What packing a matrix needs throughout. `w` has everything but the fields that `allocate` sets.
struct Packing {
  const Source& source;
  const Counted& counted;
  Parallel& threads;
  Matrix* w;
};

// The 64 mask bits of a block of a row; all columns that exist when the source has no mask.
inline uint64_t block_mask(const Source& s, int64_t row, int64_t block) {
  if (s.mask) return mask_word(s, row, block);
  const int64_t left = s.cols - block * kBlock;
  if (left <= 0) return 0;  // behind the last column
  return left >= kBlock ? ~uint64_t{0} : (uint64_t{1} << left) - 1;
}

// Index of a row's first entry among the source's values (nibbles for i4).
inline uint64_t first_entry(const Source& s, const Counted& c, int64_t row) {
  if (s.mask) return c.values_before[static_cast<size_t>(row)];
  const int64_t stride = s.kind == Kind::i4 ? (s.cols + 1) / 2 * 2 : s.cols;
  return static_cast<uint64_t>(row * stride);
}

inline uint8_t nibble(const uint8_t* stream, uint64_t index) {
  return index & 1 ? stream[index / 2] >> 4 : stream[index / 2] & 15;
}

// body(i) for every i < count, on any of the threads.
template <class Body>
void spread(Parallel& threads, int64_t count, const Body& body) {
  const auto call = [](void* context, int64_t i) { (*static_cast<const Body*>(context))(i); };
  threads.run(count, call, const_cast<Body*>(&body));
}

// Sizes of pieces (*starts)[1 …] -> where each begins; (*starts)[0] is where the first one does.
void add_up(std::vector<uint64_t>* starts);

// One allocation for records (starts.back() bytes, zeroed), slack, offsets and scales; sets data, data_bytes,
// row_start, scales and memory of *p.w. Where the records are to be written, or null and a sentence: no memory.
uint8_t* allocate(const Packing& p, const std::vector<uint64_t>& starts, std::string* error);

// How slots are laid out for AVX-512 (slots512.h): places a window, pairs of layers that all rows are in, and the least
// number of other pairs a group has (a number that rarely changes is a jump that is rarely guessed wrong).
struct SlotsPlan {
  int64_t places = 0;
  int64_t full = 0;
  int64_t partial = 0;
  bool made = false;
};

// Formats with packers of their own. Each fills data, data_bytes, row_start, scales and memory of *p.w.
bool index_is_better(const Source& s, const Counted& c, Isa isa);
bool pack_index(const Packing& p, std::string* error);
// Places a window at which slots are better than masks, 0 if they are not; pack_slots takes that number, or 0 to
// choose.
int64_t slots_if_better(const Source& s, const Counted& c);
bool pack_slots(const Packing& p, int64_t slots, std::string* error);
// The fastest of dense, bitmask and slots on AVX-512, and the plan if it is slots; pack_slots512 makes its own plan if it
// is given none.
Format best_format512(const Source& s, const Counted& c, SlotsPlan* plan);
bool pack_slots512(const Packing& p, SlotsPlan plan, std::string* error);

}  // namespace tailcut
