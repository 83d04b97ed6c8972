// Source -> Matrix: validated, then copied once into the order in which the kernels read.

#include "pack.h"

#include <cstring>

#include "index.h"
#include "memory.h"
#include "source.h"

namespace tailcut {
namespace {

constexpr uint64_t kAlign = 64;

uint64_t round_up(uint64_t value, uint64_t unit) { return (value + unit - 1) / unit * unit; }

uint8_t nibble(const uint8_t* stream, uint64_t index) {
  return index & 1 ? stream[index / 2] >> 4 : stream[index / 2] & 15;
}

// Bytes of a record before rounding: the mask words and the values of one row.
uint64_t record_bytes(const Source& s, const Matrix& w, const Counted& c, int64_t row) {
  if (w.format == Format::dense) return static_cast<uint64_t>(w.blocks * kBlock * value_bits(s.kind) / 8);
  const uint64_t masks = static_cast<uint64_t>(w.blocks) * 8;
  if (s.kind != Kind::i4) {
    const uint64_t entries = s.mask ? c.values_before[static_cast<size_t>(row) + 1] - c.values_before[static_cast<size_t>(row)]
                                    : static_cast<uint64_t>(s.cols);
    return masks + entries * static_cast<uint64_t>(value_bits(s.kind)) / 8;
  }
  uint64_t bytes = masks;
  for (int64_t block = 0; block < w.blocks; ++block)
    bytes += (static_cast<uint64_t>(__builtin_popcountll(block_mask(s, row, block))) + 1) / 2;
  return bytes;
}

void copy_i8(const int8_t* from, uint8_t* to, uint64_t count, bool signed_bytes) {
  const uint8_t flip = signed_bytes ? 0 : 0x80;
  for (uint64_t i = 0; i < count; ++i) to[i] = static_cast<uint8_t>(from[i]) ^ flip;
}

void copy_values(const Source& s, const Matrix& w, uint64_t first, uint64_t count, uint8_t* to) {
  if (s.kind == Kind::i8) return copy_i8(static_cast<const int8_t*>(s.values) + first, to, count, w.signed_bytes);
  const uint64_t size = static_cast<uint64_t>(value_bits(s.kind)) / 8;
  if (count) std::memcpy(to, static_cast<const uint8_t*>(s.values) + first * size, count * size);
}

void put_nibble(uint8_t* to, uint64_t index, uint8_t value) {
  to[index / 2] = static_cast<uint8_t>(to[index / 2] | value << (index & 1 ? 4 : 0));
}

// One row of a 4-bit matrix: every block's nibbles start at a whole byte.
void copy_nibbles(const Source& s, const Matrix& w, int64_t row, uint64_t first, uint8_t* to) {
  const auto* stream = static_cast<const uint8_t*>(s.values);
  for (int64_t block = 0; block < w.blocks; ++block) {
    const uint64_t count = static_cast<uint64_t>(__builtin_popcountll(block_mask(s, row, block)));
    for (uint64_t i = 0; i < count; ++i) put_nibble(to, i, nibble(stream, first + i));
    to += (count + 1) / 2, first += count;
  }
}

void fill_bitmask_row(const Source& s, const Matrix& w, const Counted& c, int64_t row, uint8_t* to) {
  for (int64_t block = 0; block < w.blocks; ++block) {
    const uint64_t word = block_mask(s, row, block);
    std::memcpy(to + block * 8, &word, 8);
  }
  to += w.blocks * 8;
  const uint64_t first = first_entry(s, c, row);
  if (s.kind == Kind::i4) return copy_nibbles(s, w, row, first, to);
  const uint64_t count = s.mask ? c.values_before[static_cast<size_t>(row) + 1] - first : static_cast<uint64_t>(s.cols);
  copy_values(s, w, first, count, to);
}

void fill_dense_row(const Source& s, const Matrix& w, const Counted& c, int64_t row, uint8_t* to) {
  uint64_t at = first_entry(s, c, row);
  const auto* values = static_cast<const uint8_t*>(s.values);
  const uint64_t size = static_cast<uint64_t>(value_bits(s.kind)) / 8;
  for (int64_t block = 0; block < w.blocks; ++block) {
    const uint64_t word = block_mask(s, row, block);
    for (int j = 0; j < kBlock; ++j) {
      const uint64_t column = static_cast<uint64_t>(block * kBlock + j);
      const bool there = word >> j & 1;
      if (s.kind == Kind::i4) put_nibble(to, column, there ? nibble(values, at) : 8);
      else if (s.kind == Kind::i8) to[column] = static_cast<uint8_t>((there ? values[at] : 0) ^ (w.signed_bytes ? 0 : 0x80));
      else if (there) std::memcpy(to + column * size, values + at * size, size);
      at += there;
    }
  }
}

bool pack_rows(const Source& s, const Counted& c, Matrix* w, std::string* error) {
  std::vector<uint64_t> starts(static_cast<size_t>(s.rows) + 1, 0);
  for (int64_t row = 0; row < s.rows; ++row)
    starts[static_cast<size_t>(row) + 1] = starts[static_cast<size_t>(row)] + round_up(record_bytes(s, *w, c, row), 8);
  if (!allocate(w, starts, s, error)) return false;
  auto* base = static_cast<uint8_t*>(w->memory.get());
  for (int64_t row = 0; row < s.rows; ++row) {
    uint8_t* to = base + starts[static_cast<size_t>(row)];
    if (w->format == Format::dense) fill_dense_row(s, *w, c, row, to);
    else fill_bitmask_row(s, *w, c, row, to);
  }
  return true;
}

// *slots is set where it chooses slots.
Format automatic_format(const Source& s, const Counted& c, Isa isa, int64_t* slots) {
  const int64_t all = s.rows * s.cols, bits = value_bits(s.kind);
  if (!s.mask || c.nonzeros * bits + all >= all * bits) return Format::dense;
  if (bits >= 16 && index_is_better(s, c, isa)) return Format::index;
  if (bits <= 8 && isa == Isa::avx2 && (*slots = slots_if_better(s, c))) return Format::slots;
  return Format::bitmask;
}

bool known(Isa isa, Format format, Kind kind, std::string* error) {
  const bool floats = value_bits(kind) >= 16;
  if (isa_available(isa) && (format == Format::dense || format == Format::bitmask)) return true;
  if (isa_available(isa) && format == Format::index && floats) return true;
  if (isa_available(isa) && format == Format::slots && !floats && isa == Isa::avx2) return true;
  *error = isa_available(isa) ? "this format does not exist for these values on this instruction set"
                              : std::string("this processor does not run ") + isa_name(isa);
  return false;
}

}  // namespace

bool allocate(Matrix* w, const std::vector<uint64_t>& starts, const Source& s, std::string* error) {
  w->data_bytes = starts.back();
  const uint64_t offsets_at = round_up(w->data_bytes + kSlack, kAlign);
  const uint64_t scales_at = round_up(offsets_at + starts.size() * sizeof(uint64_t), kAlign);
  w->memory = weight_memory(scales_at + s.scale_count * sizeof(float) + kAlign);
  auto* base = static_cast<uint8_t*>(w->memory.get());
  if (!base) {
    *error = "no memory for " + std::to_string(w->data_bytes) + " bytes of weights";
    return false;
  }
  w->data = base;
  w->row_start = reinterpret_cast<uint64_t*>(base + offsets_at);
  std::memcpy(base + offsets_at, starts.data(), starts.size() * sizeof(uint64_t));
  if (s.scale_count) {
    w->scales = reinterpret_cast<float*>(base + scales_at);
    std::memcpy(base + scales_at, s.scales, s.scale_count * sizeof(float));
  }
  return true;
}

uint64_t block_mask(const Source& s, int64_t row, int64_t block) {
  if (s.mask) return mask_word(s, row, block);
  const int64_t left = s.cols - block * kBlock;
  if (left <= 0) return 0;  // behind the last column
  return left >= kBlock ? ~uint64_t{0} : (uint64_t{1} << left) - 1;
}

uint64_t first_entry(const Source& s, const Counted& c, int64_t row) {
  if (s.mask) return c.values_before[static_cast<size_t>(row)];
  const int64_t stride = s.kind == Kind::i4 ? (s.cols + 1) / 2 * 2 : s.cols;
  return static_cast<uint64_t>(row * stride);
}

// A mask costs the same time whatever is left, an index costs it per weight left. Where they meet was measured at
// 4096 x 4096: on Zen 3 (AVX2) near 58 % zeros in f32 and 70 % in 16 bits; with an expand instruction near 80 % in f32,
// in 16 bits where the index has fewer bytes, below 1/8 left. So for plain C++, which walks either alike.
bool index_is_better(const Source& s, const Counted& c, Isa isa) {
  const bool wide = s.kind == Kind::f32;
  const int64_t percent = isa == Isa::avx2 ? (wide ? 42 : 30) : isa != Isa::portable && wide ? 22 : 12;
  return c.nonzeros * 100 < s.rows * s.cols * percent;
}

bool pack_index(const Source& s, const Counted&, Matrix* w, std::string* error) {
  const IndexPlan plan = plan_index(s);
  if (!allocate(w, plan.slice_start, s, error)) return false;
  fill_index(s, plan, static_cast<uint8_t*>(w->memory.get()));
  return true;
}

std::unique_ptr<Matrix> pack(const Source& source, Isa isa, Format format, std::string* error) {
  Counted counted;
  if (!check(source, &counted, error)) return nullptr;
  if (isa == Isa::automatic) isa = best_isa();
  int64_t slots = 0;
  if (format == Format::automatic) format = automatic_format(source, counted, isa, &slots);
  if (!known(isa, format, source.kind, error)) return nullptr;
  auto w = std::make_unique<Matrix>();
  w->kind = source.kind, w->format = format, w->isa = isa;
  w->signed_bytes = isa == Isa::portable || isa == Isa::avx2;
  w->rows = source.rows, w->cols = source.cols;
  w->blocks = (source.cols + kBlock - 1) / kBlock, w->groups = (source.cols + kGroup - 1) / kGroup;
  w->nonzeros = counted.nonzeros;
  w->scales = nullptr;
  w->kernels = kernels_of(isa);
  bool done = false;
  if (format == Format::index) done = pack_index(source, counted, w.get(), error);
  else if (format == Format::slots) done = pack_slots(source, counted, slots, w.get(), error);
  else done = pack_rows(source, counted, w.get(), error);
  return done ? std::move(w) : nullptr;
}

}  // namespace tailcut
