// Source -> Matrix: validated, then copied once into the order in which the kernels read.

#include "pack.h"

#include <cstring>

#include "memory.h"
#include "threads.h"

namespace tailcut {
namespace {

constexpr uint64_t kAlign = 64;

uint64_t round_up(uint64_t value, uint64_t unit) { return (value + unit - 1) / unit * unit; }

uint64_t entries_of(const Packing& p, int64_t row) {
  const auto at = static_cast<size_t>(row);
  if (!p.source.mask) return static_cast<uint64_t>(p.source.cols);
  return p.counted.values_before[at + 1] - p.counted.values_before[at];
}

// Bytes of a record before rounding: the mask words and the values of one row.
uint64_t record_bytes(const Packing& p, int64_t row) {
  const uint64_t bits = static_cast<uint64_t>(value_bits(p.source.kind)), blocks = static_cast<uint64_t>(p.w->blocks);
  if (p.w->format == Format::dense) return blocks * kBlock * bits / 8;
  if (p.source.kind != Kind::i4) return blocks * 8 + entries_of(p, row) * bits / 8;
  uint64_t bytes = blocks * 8;
  for (int64_t block = 0; block < p.w->blocks; ++block)
    bytes += static_cast<uint64_t>(count_bits(block_mask(p.source, row, block)) + 1) / 2;
  return bytes;
}

void copy_i8(const int8_t* from, uint8_t* to, uint64_t count, bool signed_bytes) {
  const uint8_t flip = signed_bytes ? 0 : 0x80;
  for (uint64_t i = 0; i < count; ++i) to[i] = static_cast<uint8_t>(from[i]) ^ flip;
}

void copy_values(const Packing& p, uint64_t first, uint64_t count, uint8_t* to) {
  const Source& s = p.source;
  if (s.kind == Kind::i8) return copy_i8(static_cast<const int8_t*>(s.values) + first, to, count, p.w->signed_bytes);
  const uint64_t size = static_cast<uint64_t>(value_bits(s.kind)) / 8;
  if (count) std::memcpy(to, static_cast<const uint8_t*>(s.values) + first * size, count * size);
}

// `count` nibbles of a stream, from nibble `first` on, to a whole byte.
void copy_nibbles(const uint8_t* stream, uint64_t first, uint64_t count, uint8_t* to) {
  const uint8_t* from = stream + first / 2;
  const uint64_t pairs = count / 2;
  if (first & 1) {
    for (uint64_t i = 0; i < pairs; ++i) to[i] = static_cast<uint8_t>(from[i] >> 4 | from[i + 1] << 4);
  } else if (pairs) {
    std::memcpy(to, from, pairs);
  }
  if (count & 1) to[pairs] = nibble(stream, first + count - 1);
}

void fill_bitmask_row(const Packing& p, int64_t row, uint8_t* to) {
  const uint64_t first = first_entry(p.source, p.counted, row);
  uint8_t* values = to + p.w->blocks * 8;
  if (p.source.kind != Kind::i4) copy_values(p, first, entries_of(p, row), values);
  uint64_t before = 0;
  for (int64_t block = 0; block < p.w->blocks; ++block) {
    const uint64_t word = block_mask(p.source, row, block);
    std::memcpy(to + block * 8, &word, 8);
    if (p.source.kind != Kind::i4) continue;
    const auto count = static_cast<uint64_t>(count_bits(word));
    copy_nibbles(static_cast<const uint8_t*>(p.source.values), first + before, count, values);
    values += (count + 1) / 2, before += count;
  }
}

// A row of zeros, as stored. The memory is all zero bytes as it comes.
void clear_dense_row(const Packing& p, uint8_t* to) {
  const auto columns = static_cast<size_t>(p.w->blocks * kBlock);
  if (p.source.kind == Kind::i4) std::memset(to, 0x88, columns / 2);
  if (p.source.kind == Kind::i8 && !p.w->signed_bytes) std::memset(to, 0x80, columns);
}

void put_nibble(uint8_t* to, int64_t column, uint8_t value) {
  const int shift = column & 1 ? 4 : 0;
  to[column / 2] = static_cast<uint8_t>((to[column / 2] & 0xf0 >> shift) | value << shift);
}

void put_dense(const Packing& p, int64_t column, uint64_t entry, uint8_t* to) {
  const auto* values = static_cast<const uint8_t*>(p.source.values);
  if (p.source.kind == Kind::i4) return put_nibble(to, column, nibble(values, entry));
  copy_values(p, entry, 1, to + column * value_bits(p.source.kind) / 8);
}

void fill_dense_row(const Packing& p, int64_t row, uint8_t* to) {
  const Source& s = p.source;
  uint64_t entry = first_entry(s, p.counted, row);
  clear_dense_row(p, to);
  if (!s.mask && s.kind != Kind::i4) return copy_values(p, entry, static_cast<uint64_t>(s.cols), to);
  for (int64_t block = 0; block < p.w->blocks; ++block)
    for (uint64_t word = block_mask(s, row, block); word; word &= word - 1)
      put_dense(p, block * kBlock + __builtin_ctzll(word), entry++, to);
}

// Rows in runs of kTile, which is enough work to hand over.
template <class Body>
void spread_rows(const Packing& p, const Body& body) {
  spread(p.threads, (p.source.rows + kTile - 1) / kTile, [&](int64_t tile) {
    for (int64_t row = tile * kTile; row < (tile + 1) * kTile && row < p.source.rows; ++row) body(row);
  });
}

bool pack_rows(const Packing& p, std::string* error) {
  std::vector<uint64_t> starts(static_cast<size_t>(p.source.rows) + 1, 0);
  spread_rows(p, [&](int64_t row) { starts[static_cast<size_t>(row) + 1] = round_up(record_bytes(p, row), 8); });
  add_up(&starts);
  uint8_t* const base = allocate(p, starts, error);
  if (!base) return false;
  spread_rows(p, [&](int64_t row) {
    uint8_t* to = base + starts[static_cast<size_t>(row)];
    if (p.w->format == Format::dense) fill_dense_row(p, row, to);
    else fill_bitmask_row(p, row, to);
  });
  return true;
}

// AVX2 has no instruction that expands bytes: up to these shares of zeros nothing is as fast as multiplying all of an
// integer matrix (4096 x 4096 on Zen 3, one thread: i8 dense 0.66 ms, slots 0.71 at 50 %, masks 1.5; i4 dense 0.38 ms,
// slots 0.71 at 50 %, 0.41 at 80 %, 0.33 at 90 %).
bool dense_is_better(const Source& s, const Counted& c, Isa isa) {
  const int64_t all = s.rows * s.cols, percent = s.kind == Kind::i4 ? 82 : 48;
  return isa == Isa::avx2 && value_bits(s.kind) <= 8 && (all - c.nonzeros) * 100 < all * percent;
}

bool wide_slots(Isa isa) { return isa == Isa::avx512 || isa == Isa::amx; }

// *plan is set where it chooses slots.
Format automatic_format(const Source& s, const Counted& c, Isa isa, SlotsPlan* plan) {
  const int64_t all = s.rows * s.cols, bits = value_bits(s.kind);
  if (!s.mask || c.nonzeros * bits + all >= all * bits || dense_is_better(s, c, isa)) return Format::dense;
  if (bits >= 16) return index_is_better(s, c, isa) ? Format::index : Format::bitmask;
  if (wide_slots(isa)) return best_format512(s, c, plan);
  return isa == Isa::avx2 && (plan->places = slots_if_better(s, c)) ? Format::slots : Format::bitmask;
}

bool known(Isa isa, Format format, Kind kind, std::string* error) {
  const bool floats = value_bits(kind) >= 16;
  if (isa_available(isa) && (format == Format::dense || format == Format::bitmask)) return true;
  if (isa_available(isa) && format == Format::index && floats) return true;
  if (isa_available(isa) && format == Format::slots && !floats && isa != Isa::portable) return true;
  *error = isa_available(isa) ? "this format does not exist for these values on this instruction set"
                              : std::string("this processor does not run ") + isa_name(isa);
  return false;
}

std::unique_ptr<Matrix> unfilled(const Source& source, const Counted& counted, Isa isa, Format format) {
  auto w = std::make_unique<Matrix>();
  w->kind = source.kind, w->format = format, w->isa = isa;
  w->signed_bytes = isa == Isa::portable || isa == Isa::avx2;
  w->rows = source.rows, w->cols = source.cols;
  w->blocks = (source.cols + kBlock - 1) / kBlock, w->groups = (source.cols + kGroup - 1) / kGroup;
  w->nonzeros = counted.nonzeros;
  w->scales = nullptr;
  w->kernels = kernels_of(isa);
  return w;
}

}  // namespace

void add_up(std::vector<uint64_t>* starts) {
  for (size_t i = 1; i < starts->size(); ++i) (*starts)[i] += (*starts)[i - 1];
}

uint8_t* allocate(const Packing& p, const std::vector<uint64_t>& starts, std::string* error) {
  const Source& s = p.source;
  p.w->data_bytes = starts.back();
  const uint64_t offsets_at = round_up(p.w->data_bytes + kSlack, kAlign);
  const uint64_t scales_at = round_up(offsets_at + starts.size() * sizeof(uint64_t), kAlign);
  p.w->memory = weight_memory(scales_at + s.scale_count * sizeof(float) + kAlign);
  auto* base = static_cast<uint8_t*>(p.w->memory.get());
  if (!base) {
    *error = "no memory for " + std::to_string(p.w->data_bytes) + " bytes of weights";
    return nullptr;
  }
  p.w->data = base;
  p.w->row_start = reinterpret_cast<uint64_t*>(base + offsets_at);
  std::memcpy(base + offsets_at, starts.data(), starts.size() * sizeof(uint64_t));
  if (s.scale_count) {
    p.w->scales = reinterpret_cast<float*>(base + scales_at);
    std::memcpy(base + scales_at, s.scales, s.scale_count * sizeof(float));
  }
  return base;
}

// A mask costs the same time whatever is left, an index costs it per weight left. Where they meet was measured at
// 4096 x 4096: on Zen 3 (AVX2) near 58 % zeros in f32 and 70 % in 16 bits; with an expand instruction near 80 % in f32,
// in 16 bits where the index has fewer bytes, below 1/8 left. So for plain C++, which walks either alike.
bool index_is_better(const Source& s, const Counted& c, Isa isa) {
  const bool wide = s.kind == Kind::f32;
  const int64_t percent = isa == Isa::avx2 ? (wide ? 42 : 30) : isa != Isa::portable && wide ? 22 : 12;
  return c.nonzeros * 100 < s.rows * s.cols * percent;
}

std::unique_ptr<Matrix> pack(const Source& source, Isa isa, Format format, std::string* error) {
  Counted counted;
  if (!check(source, &counted, error)) return nullptr;
  if (isa == Isa::automatic) isa = best_isa();
  SlotsPlan plan;
  if (format == Format::automatic) format = automatic_format(source, counted, isa, &plan);
  if (!known(isa, format, source.kind, error)) return nullptr;
  std::unique_ptr<Matrix> w = unfilled(source, counted, isa, format);
  const Packing p{source, counted, packing_threads(source.rows * source.cols), w.get()};
  const bool done = format == Format::index   ? pack_index(p, error)
                    : format != Format::slots ? pack_rows(p, error)
                    : wide_slots(isa)         ? pack_slots512(p, plan, error)
                                              : pack_slots(p, plan.places, error);
  return done ? std::move(w) : nullptr;
}

}  // namespace tailcut
