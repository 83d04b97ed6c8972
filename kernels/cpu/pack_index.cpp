// Packing of the `index` format (index.h).
#include <algorithm>
#include <cstring>
#include <numeric>

#include "index.h"

namespace tailcut {
namespace {

// Calls visit(column) for every column kept in `row`, in ascending order.
template <typename Visit>
void for_each_column(const Source& source, int64_t row, Visit visit) {
  if (source.mask == nullptr) {
    for (int64_t column = 0; column < source.cols; ++column) visit(column);
    return;
  }
  const int64_t width = (source.cols + 7) / 8;
  const uint8_t* mask = source.mask + row * width;
  for (int64_t byte = 0; byte < width; ++byte) {
    for (unsigned bits = mask[byte]; bits != 0; bits &= bits - 1) visit(8 * byte + __builtin_ctz(bits));
  }
}

// Entries that lead from the column before to this one: the value's own, and one for every 255 columns bridged.
int64_t entries_between(int64_t before, int64_t column) {
  const int64_t gap = column - before;
  return gap == 0 ? 1 : (gap + 254) / 255;
}

int64_t entries_of_row(const Source& source, int64_t row) {
  int64_t entries = 0;
  int64_t before = 0;
  for_each_column(source, row, [&](int64_t column) {
    entries += entries_between(before, column);
    before = column;
  });
  return entries;
}

// A step near the golden section of `count` that visits every slice: any stretch of visits is spread evenly.
int64_t even_step(int64_t count) {
  int64_t step = std::max<int64_t>(1, int64_t(double(count) * 0.6180339887));
  while (std::gcd(step, count) != 1) ++step;
  return step;
}

int64_t values_in_row(const Source& source, int64_t row) {
  if (source.mask == nullptr) return source.cols;
  const int64_t width = (source.cols + 7) / 8;
  int64_t count = 0;
  for (int64_t byte = 0; byte < width; ++byte) count += __builtin_popcount(source.mask[row * width + byte]);
  return count;
}

// One lane of a slice: entry e is step e % kIndexSteps of group e / kIndexSteps.
void fill_lane(const Source& source, int64_t row, int64_t first_value, int64_t lane, uint8_t* slice) {
  const size_t width = value_bytes_of(source.kind);
  const size_t group_bytes = index_group_bytes(source.kind);
  const uint8_t* values = static_cast<const uint8_t*>(source.values) + size_t(first_value) * width;
  int64_t entry = 0;
  const auto place = [&](int64_t delta, const uint8_t* value) {
    uint8_t* group = slice + size_t(entry / kIndexSteps) * group_bytes;
    const size_t place_in_group = size_t(entry % kIndexSteps * kTile + lane);
    group[place_in_group] = uint8_t(delta);
    if (value != nullptr) std::memcpy(group + kIndexSteps * kTile + place_in_group * width, value, width);
    ++entry;
  };
  int64_t before = 0;
  for_each_column(source, row, [&](int64_t column) {
    for (; column - before > 255; before += 255) place(255, nullptr);
    place(column - before, values);
    values += width;
    before = column;
  });
}

}  // namespace

IndexPlan plan_index(const Source& source) {
  const int64_t slices = index_slices(source.rows);
  std::vector<int64_t> entries(size_t(source.rows));
  for (int64_t row = 0; row < source.rows; ++row) entries[size_t(row)] = entries_of_row(source, row);
  std::vector<uint32_t> sorted(size_t(source.rows));
  std::iota(sorted.begin(), sorted.end(), 0U);
  std::stable_sort(sorted.begin(), sorted.end(), [&](uint32_t a, uint32_t b) { return entries[a] > entries[b]; });

  IndexPlan plan;
  plan.order.assign(size_t(slices * kTile), 0U);
  plan.slice_start.assign(size_t(slices + 1), 0U);
  uint64_t place = plan.order.size() * sizeof(uint32_t);
  const int64_t whole = source.rows / kTile;  // a slice that is not full stays last: slots < rows are the real ones
  const int64_t step = whole > 0 ? even_step(whole) : 1;
  for (int64_t slice = 0; slice < slices; ++slice) {
    const int64_t from = slice < whole ? slice * step % whole * kTile : whole * kTile;
    const int64_t count = std::min(kTile, source.rows - from);
    std::copy_n(sorted.begin() + from, count, plan.order.begin() + slice * kTile);
    const int64_t longest = entries[sorted[size_t(from)]];  // sorted, longest first
    plan.slice_start[size_t(slice)] = place;
    place += uint64_t((longest + kIndexSteps - 1) / kIndexSteps) * index_group_bytes(source.kind);
  }
  plan.slice_start[size_t(slices)] = place;
  plan.bytes = place;
  return plan;
}

void fill_index(const Source& source, const IndexPlan& plan, uint8_t* data) {
  std::memset(data, 0, plan.bytes);
  if (!plan.order.empty()) std::memcpy(data, plan.order.data(), plan.order.size() * sizeof(uint32_t));
  std::vector<int64_t> first_value(size_t(source.rows) + 1, 0);
  for (int64_t row = 0; row < source.rows; ++row) {
    first_value[size_t(row) + 1] = first_value[size_t(row)] + values_in_row(source, row);
  }
  for (int64_t slot = 0; slot < source.rows; ++slot) {
    const int64_t row = plan.order[size_t(slot)];
    uint8_t* slice = data + plan.slice_start[size_t(slot / kTile)];
    fill_lane(source, row, first_value[size_t(row)], slot % kTile, slice);
  }
}

}  // namespace tailcut
