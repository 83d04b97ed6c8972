// What the packers of the formats share. `Counted` comes from `check`: nothing here reads an unchecked source.
#pragma once

#include "source.h"

namespace tailcut {

// The 64 mask bits of a block of a row; all columns that exist when the source has no mask.
uint64_t block_mask(const Source& s, int64_t row, int64_t block);
// Index of a row's first entry among the source's values (nibbles for i4).
uint64_t first_entry(const Source& s, const Counted& c, int64_t row);

// One allocation for records (starts.back() bytes, zeroed), slack, offsets and scales; sets data, data_bytes, row_start,
// scales and memory of *w. The records are then written through w->memory.
bool allocate(Matrix* w, const std::vector<uint64_t>& starts, const Source& s, std::string* error);

// Formats with packers of their own. Each fills data, data_bytes, row_start, scales and memory of *w.
bool index_is_better(const Source& s, const Counted& c, Isa isa);
bool pack_index(const Source& s, const Counted& c, Matrix* w, std::string* error);
// Places a window at which slots are better than masks, 0 if they are not; pack_slots takes that number, or 0 to choose.
int64_t slots_if_better(const Source& s, const Counted& c);
bool pack_slots(const Source& s, const Counted& c, int64_t slots, Matrix* w, std::string* error);

}  // namespace tailcut
