#include "source.h"

namespace tailcut {
namespace {

constexpr int64_t kMaxSide = int64_t{1} << 31;
constexpr int64_t kMaxWeights = int64_t{1} << 40;   // products of sizes below stay far inside 64 bits
constexpr int64_t kMaxEmptyRows = int64_t{1} << 20;  // rows without columns need no bytes that would vouch for them

bool fail(std::string* error, const std::string& text) {
  *error = text;
  return false;
}

std::string count_text(const char* what, uint64_t found, uint64_t wanted) {
  return std::string(what) + " has " + std::to_string(found) + " where the shape needs " + std::to_string(wanted);
}

bool padding_is_clear(const Source& s) {
  const int64_t width = (s.cols + 7) / 8;
  const int spare = static_cast<int>(width * 8 - s.cols);
  if (!spare) return true;
  for (int64_t row = 0; row < s.rows; ++row)
    if (s.mask[row * width + width - 1] >> (8 - spare)) return false;
  return true;
}

// Entries of a 4-bit matrix without a mask start each row at a whole byte.
uint64_t bytes_of_values(const Source& s, uint64_t entries) {
  if (s.kind == Kind::i4 && !s.mask) return static_cast<uint64_t>(s.rows) * static_cast<uint64_t>((s.cols + 1) / 2);
  return (entries * static_cast<uint64_t>(value_bits(s.kind)) + 7) / 8;
}

bool check_scales(const Source& s, std::string* error) {
  uint64_t wanted = 0;
  if (s.kind == Kind::i8) wanted = static_cast<uint64_t>(s.rows);
  if (s.kind == Kind::i4) wanted = static_cast<uint64_t>(s.rows) * static_cast<uint64_t>((s.cols + kGroup - 1) / kGroup);
  if (s.scale_count != wanted) return fail(error, count_text("scales", s.scale_count, wanted));
  if (wanted && !s.scales) return fail(error, "scales are missing");
  return true;
}

}  // namespace

bool check(const Source& s, Counted* counted, std::string* error) {
  if (static_cast<int32_t>(s.kind) < 0 || static_cast<int32_t>(s.kind) > 4) return fail(error, "unknown kind of values");
  if (s.rows < 0 || s.cols < 0 || s.rows > kMaxSide || s.cols > kMaxSide || (s.cols && s.rows > kMaxWeights / s.cols))
    return fail(error, "a shape of " + std::to_string(s.rows) + " x " + std::to_string(s.cols) +
                           " is not a matrix this library can hold (sides up to 2^31, 2^40 weights)");
  if (s.cols == 0 && s.rows > kMaxEmptyRows)
    return fail(error, "a matrix of " + std::to_string(s.rows) + " rows has no columns; at most 2^20 such rows are taken");
  if (!check_scales(s, error)) return false;
  const uint64_t width = static_cast<uint64_t>((s.cols + 7) / 8);
  counted->nonzeros = s.rows * s.cols;
  if (s.mask) {
    if (s.mask_bytes != static_cast<uint64_t>(s.rows) * width)
      return fail(error, count_text("mask bytes", s.mask_bytes, static_cast<uint64_t>(s.rows) * width));
    if (!padding_is_clear(s)) return fail(error, "mask has bits beyond column " + std::to_string(s.cols));
    counted->values_before.resize(static_cast<size_t>(s.rows) + 1);
    uint64_t before = 0;
    for (int64_t row = 0; row < s.rows; ++row) {
      counted->values_before[static_cast<size_t>(row)] = before;
      for (int64_t block = 0; block * kBlock < s.cols; ++block)
        before += static_cast<uint64_t>(count_bits(mask_word(s, row, block)));
    }
    counted->values_before[static_cast<size_t>(s.rows)] = before;
    counted->nonzeros = static_cast<int64_t>(before);
  } else if (s.mask_bytes) {
    return fail(error, "mask is missing");
  }
  const uint64_t wanted = bytes_of_values(s, static_cast<uint64_t>(counted->nonzeros));
  if (s.value_bytes != wanted && s.mask && value_bits(s.kind) >= 8)
    return fail(error, "mask names " + std::to_string(counted->nonzeros) + " weights, " +
                           std::to_string(s.value_bytes * 8 / static_cast<uint64_t>(value_bits(s.kind))) +
                           " values are stored");
  if (s.value_bytes != wanted) return fail(error, count_text("value bytes", s.value_bytes, wanted));
  if (wanted && !s.values) return fail(error, "values are missing");
  return true;
}

}  // namespace tailcut
