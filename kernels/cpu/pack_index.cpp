// Packing of the `index` format (index.h). The source has been checked.
#include <algorithm>
#include <cstring>
#include <numeric>

#include "index.h"
#include "pack.h"

namespace tailcut {
namespace {

// Where everything will lie, found from the mask alone.
struct Plan {
  std::vector<uint32_t> order;        // [16 * slices]
  std::vector<uint64_t> slice_start;  // [slices + 1], what becomes Matrix::row_start
};

// Entries that lead from the column before to this one: the value's own, and one for every 255 columns bridged.
int64_t entries_between(int64_t before, int64_t column) {
  const int64_t gap = column - before;
  return gap == 0 ? 1 : (gap + 254) / 255;
}

// Only the first column of a block can be far from the one before.
int64_t entries_of_row(const Packing& p, int64_t row) {
  int64_t entries = 0, before = 0;
  for (int64_t block = 0; block < p.w->blocks; ++block) {
    const uint64_t word = block_mask(p.source, row, block);
    if (!word) continue;
    entries += entries_between(before, block * kBlock + __builtin_ctzll(word)) + count_bits(word) - 1;
    before = block * kBlock + kBlock - 1 - __builtin_clzll(word);
  }
  return entries;
}

// A step near the golden section of `count` that visits every slice: any stretch of visits is spread evenly.
int64_t even_step(int64_t count) {
  int64_t step = std::max<int64_t>(1, int64_t(double(count) * 0.6180339887));
  while (std::gcd(step, count) != 1) ++step;
  return step;
}

std::vector<int64_t> entries_of_rows(const Packing& p) {
  std::vector<int64_t> entries(size_t(p.source.rows));
  spread(p.threads, index_slices(p.source.rows), [&](int64_t slice) {
    for (int64_t row = slice * kTile; row < (slice + 1) * kTile && row < p.source.rows; ++row)
      entries[size_t(row)] = entries_of_row(p, row);
  });
  return entries;
}

Plan plan_index(const Packing& p) {
  const int64_t rows = p.source.rows, slices = index_slices(rows);
  const std::vector<int64_t> entries = entries_of_rows(p);
  std::vector<uint32_t> sorted(static_cast<size_t>(rows));
  std::iota(sorted.begin(), sorted.end(), 0U);
  std::stable_sort(sorted.begin(), sorted.end(), [&](uint32_t a, uint32_t b) { return entries[a] > entries[b]; });

  Plan plan;
  plan.order.assign(size_t(slices * kTile), 0U);
  plan.slice_start.assign(size_t(slices + 1), plan.order.size() * sizeof(uint32_t));
  const int64_t whole = rows / kTile;  // a slice that is not full stays last: slots < rows are the real ones
  const int64_t step = whole > 0 ? even_step(whole) : 1;
  for (int64_t slice = 0; slice < slices; ++slice) {
    const int64_t from = slice < whole ? slice * step % whole * kTile : whole * kTile;
    std::copy_n(sorted.begin() + from, std::min(kTile, rows - from), plan.order.begin() + slice * kTile);
    const int64_t longest = entries[sorted[size_t(from)]];  // sorted, longest first
    plan.slice_start[size_t(slice) + 1] =
        uint64_t((longest + kIndexSteps - 1) / kIndexSteps) * index_group_bytes(p.source.kind);
  }
  add_up(&plan.slice_start);
  return plan;
}

// One lane of a slice, an entry a step; kIndexSteps of them to a group. Memory is zero as it comes, which is what
// bridges and the ends of short lanes hold.
template <size_t width>
class Lane {
 public:
  Lane(uint8_t* slice, int64_t lane) : group_(slice), lane_(size_t(lane)) {}

  void put(int64_t column, const uint8_t* value) {
    for (; column - before_ > 255; before_ += 255) step(255);
    const size_t place = step(uint8_t(column - before_));
    before_ = column;
    std::memcpy(values_ + place * width, value, width);
  }

 private:
  // Sets the delta of the next entry; its place among the group's, and its group's values.
  size_t step(uint8_t delta) {
    const size_t place = step_ * kTile + lane_;
    group_[place] = delta;
    values_ = group_ + kIndexSteps * kTile;
    if (++step_ == kIndexSteps) step_ = 0, group_ += kIndexSteps * kTile * (1 + width);
    return place;
  }

  uint8_t* group_;
  uint8_t* values_ = nullptr;
  const size_t lane_;
  size_t step_ = 0;
  int64_t before_ = 0;
};

template <size_t width>
void fill_lane(const Packing& p, int64_t row, int64_t lane, uint8_t* slice) {
  const uint8_t* value = static_cast<const uint8_t*>(p.source.values) + first_entry(p.source, p.counted, row) * width;
  Lane<width> to(slice, lane);
  for (int64_t block = 0; block < p.w->blocks; ++block)
    for (uint64_t word = block_mask(p.source, row, block); word; word &= word - 1, value += width)
      to.put(block * kBlock + __builtin_ctzll(word), value);
}

void fill_slice(const Packing& p, const Plan& plan, int64_t slice, uint8_t* base) {
  uint8_t* const to = base + plan.slice_start[size_t(slice)];
  for (int64_t lane = 0; lane < kTile && slice * kTile + lane < p.source.rows; ++lane) {
    const int64_t row = plan.order[size_t(slice * kTile + lane)];
    if (value_bytes_of(p.source.kind) == 4) fill_lane<4>(p, row, lane, to);
    else fill_lane<2>(p, row, lane, to);
  }
}

}  // namespace

bool pack_index(const Packing& p, std::string* error) {
  const Plan plan = plan_index(p);
  uint8_t* const base = allocate(p, plan.slice_start, error);
  if (!base) return false;
  if (!plan.order.empty()) std::memcpy(base, plan.order.data(), plan.order.size() * sizeof(uint32_t));
  spread(p.threads, index_slices(p.source.rows), [&](int64_t slice) { fill_slice(p, plan, slice, base); });
  return true;
}

}  // namespace tailcut
