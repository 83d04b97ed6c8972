// Malformed and well-formed matrices against the library's C interface: an error sentence or the right product, never a
// crash. Built with the sanitizers and run by tests/kernels/cpu/test_fuzz.py.
//
//     fuzz FIRST COUNT      cases FIRST … FIRST + COUNT - 1; a case depends on its number alone
//
// Buffers are allocated to the byte, so that AddressSanitizer sees any read or write beyond them.
#include <cinttypes>
#include <cstdio>
#include <cstdlib>
#include <memory>
#include <string>

#include "../capi.h"
#include "reference.h"

extern "C" {
void* tailcut_pack(int32_t, int64_t, int64_t, const uint8_t*, size_t, const void*, size_t, const float*, size_t, int32_t,
                   int32_t, char*, size_t);
void tailcut_free(void*);
void tailcut_describe(const void*, TailcutInfo*);
int32_t tailcut_isa_available(int32_t);
}

namespace fuzz {
namespace {

struct Random {
  uint64_t state;
  explicit Random(uint64_t seed) : state(seed * 0x9e3779b97f4a7c15u + 0x1234567u) {
    for (int i = 0; i < 4; ++i) next();
  }
  uint64_t next() {  // splitmix64
    uint64_t z = state += 0x9e3779b97f4a7c15u;
    z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9u;
    z = (z ^ z >> 27) * 0x94d049bb133111ebu;
    return z ^ z >> 31;
  }
  int64_t below(int64_t limit) { return int64_t(next() % uint64_t(limit)); }
  bool chance(int percent) { return below(100) < percent; }
  float unit() { return float(below(1 << 24)) / float(1 << 23) - 1.0f; }
};

int64_t bits_of(int32_t kind) { return kind == 0 ? 32 : kind == 3 ? 8 : kind == 4 ? 4 : 16; }

int64_t side(Random& r, int64_t most) {
  static const int64_t edges[] = {0, 1, 7, 8, 9, 15, 16, 17, 63, 64, 65, 127, 128, 129, 255, 256, 257};
  const int64_t found = r.chance(50) ? edges[r.below(17)] : r.below(most + 1);
  return found < most ? found : most;
}

float weight(Random& r) {
  if (r.chance(97)) return r.unit();
  return from_bits(uint32_t(r.next()) & 0x807fffffu);  // below the normal numbers, and both zeros
}

uint16_t half_bits(Random& r) { return uint16_t((r.next() & 0x8000) | uint64_t(r.below(0x4000))); }  // |value| < 2

void fill_values(Random& r, Parts& p, uint64_t entries) {
  p.values.assign(size_t((entries * uint64_t(bits_of(p.kind)) + 7) / 8), 0);
  for (uint64_t i = 0; i < entries; ++i) {
    if (p.kind == 0) {
      const float one = weight(r);
      std::memcpy(p.values.data() + 4 * i, &one, 4);
    } else if (p.kind <= 2) {
      uint16_t bits = half_bits(r);
      if (p.kind == 2) {
        const float one = weight(r);
        std::memcpy(&bits, reinterpret_cast<const char*>(&one) + 2, 2);
      }
      std::memcpy(p.values.data() + 2 * i, &bits, 2);
    } else if (p.kind == 3) {
      p.values[i] = uint8_t(r.below(255) - 127);
    } else {
      p.values[i / 2] = uint8_t(p.values[i / 2] | (1 + r.below(15)) << (i % 2 * 4));
    }
  }
}

// A well-formed matrix.
Parts valid_parts(Random& r) {
  static const int densities[] = {0, 3, 20, 50, 90, 100};
  Parts p;
  p.kind = int32_t(r.below(5));
  p.rows = side(r, 40), p.cols = side(r, r.chance(10) ? 1300 : 300);
  p.masked = r.chance(80), p.scaled = p.kind >= 3;
  uint64_t entries = uint64_t(p.rows * p.cols);
  if (p.masked) {
    const int density = densities[r.below(6)];
    p.mask.assign(size_t(p.rows * p.mask_width()), 0);
    entries = 0;
    for (int64_t row = 0; row < p.rows; ++row) {
      const int own = r.chance(10) ? 0 : r.chance(10) ? 100 : density;
      for (int64_t col = 0; col < p.cols; ++col) {
        if (!r.chance(own)) continue;
        p.mask[size_t(row * p.mask_width() + col / 8)] |= uint8_t(1 << col % 8);
        ++entries;
      }
    }
  } else if (p.kind == 4) {
    entries = uint64_t(p.rows * ((p.cols + 1) / 2 * 2));
  }
  fill_values(r, p, entries);
  if (p.scaled) {
    p.scales.resize(size_t(p.kind == 3 ? p.rows : p.rows * p.groups()));
    for (float& scale : p.scales) scale = std::fabs(r.unit()) * 0.1f;
  }
  return p;
}

int64_t wild_side(Random& r) {
  static const int64_t wild[] = {-1, INT64_MIN, INT64_MAX, int64_t{1} << 31, (int64_t{1} << 31) - 1, int64_t{1} << 32,
                                 int64_t{1} << 40, int64_t{1} << 61, int64_t{1} << 62, int64_t{1} << 20, 0, 1, 1 << 16};
  return r.chance(70) ? wild[r.below(13)] : int64_t(r.next());
}

int64_t nudge(int64_t side, int64_t by) { return int64_t(uint64_t(side) + uint64_t(by)); }

template <typename T>
void resize_somehow(Random& r, std::vector<T>& v) {
  const int64_t change = r.chance(70) ? r.below(3) - 1 : r.below(64) - 32;
  const int64_t wanted = int64_t(v.size()) + change;
  v.resize(size_t(wanted > 0 ? wanted : 0), T(1));
  v.shrink_to_fit();
}

// One thing that a damaged or hostile package may get wrong, or several.
void damage(Random& r, Parts& p) {
  do {
    switch (r.below(9)) {
      case 0: p.rows = wild_side(r); break;
      case 1: p.cols = wild_side(r); break;
      case 2: p.rows = nudge(p.rows, r.below(5) - 2); break;
      case 3: p.cols = nudge(p.cols, r.below(9) - 4); break;
      case 4: if (!p.mask.empty()) p.mask[size_t(r.below(int64_t(p.mask.size())))] ^= uint8_t(1 << r.below(8)); break;
      case 5: resize_somehow(r, p.mask); break;
      case 6: resize_somehow(r, p.values); break;
      case 7: resize_somehow(r, p.scales); break;
      default: p.kind = r.chance(80) ? int32_t(r.below(5)) : int32_t(r.next()); break;
    }
  } while (r.chance(30));
}

// Bytes that mean something else but are well-formed still: any value, any scale.
void scribble(Random& r, Parts& p) {
  for (int64_t i = 0; i < 4 && !p.values.empty(); ++i) p.values[size_t(r.below(int64_t(p.values.size())))] = uint8_t(r.next());
}

bool fits(const Parts& p) {
  const int64_t limit = int64_t{1} << 31;
  if (p.kind < 0 || p.kind > 4 || p.rows < 0 || p.cols < 0 || p.rows > limit || p.cols > limit) return false;
  const __int128 rows = p.rows, cols = p.cols, width = (cols + 7) / 8;
  if (cols == 0 && p.rows > 1 << 20) return false;
  __int128 entries = rows * cols;
  if (p.masked) {
    if (rows * width != __int128(p.mask.size())) return false;
    int64_t count = 0;
    for (const uint8_t byte : p.mask) count += __builtin_popcount(byte);
    for (int64_t row = 0; p.cols % 8 && row < p.rows; ++row) {
      if (p.mask[size_t((row + 1) * p.mask_width() - 1)] >> p.cols % 8) return false;
    }
    entries = count;
  } else if (p.kind == 4) {
    entries = rows * ((cols + 1) / 2 * 2);
  }
  if ((entries * bits_of(p.kind) + 7) / 8 != __int128(p.values.size())) return false;
  const __int128 scales = p.kind == 3 ? rows : p.kind == 4 ? rows * ((cols + kGroup - 1) / kGroup) : 0;
  return scales == __int128(p.scales.size());
}

// A heap copy of exactly the vector's size.
template <typename T>
std::unique_ptr<T[]> exact(const std::vector<T>& v) {
  std::unique_ptr<T[]> copy(new T[v.size()]);
  if (!v.empty()) std::memcpy(copy.get(), v.data(), v.size() * sizeof(T));
  return copy;
}

struct Handle {
  void* at;
  ~Handle() { if (at) tailcut_free(at); }
};

[[noreturn]] void wrong(uint64_t number, const Parts& p, const std::string& what) {
  std::printf("case %" PRIu64 " (kind %d, %" PRId64 " x %" PRId64 "): %s\n", number, p.kind, p.rows, p.cols, what.c_str());
  std::exit(1);
}

bool agrees(float y, const Expected& e) {
  if (std::isnan(e.value)) return std::isnan(y);
  if (std::isinf(e.value)) return double(y) == e.value;
  return std::fabs(double(y) - e.value) <= e.bound;
}

std::vector<float> activations(Random& r, int64_t count) {
  std::vector<float> x(size_t(count), 0.0f);
  for (float& one : x) one = r.unit();
  if (r.chance(10)) for (float& one : x) one *= 1e-38f;
  if (count && r.chance(10)) {
    static const float special[] = {NAN, INFINITY, -INFINITY, 0.0f};
    for (int i = 0; i < 3; ++i) x[size_t(r.below(count))] = special[r.below(4)];
  }
  return x;
}

void check_product(Random& r, uint64_t number, const Parts& p, const Handle& handle) {
  static const int64_t counts[] = {1, 1, 1, 2, 3, 4, 5, 7, 9, 12, 17, 33};
  const int64_t m = counts[r.below(12)];
  if (p.rows > 1 << 16 || p.cols > 1 << 16) return;  // nothing in one direction, too much for this test in the other
  const std::vector<float> given = activations(r, m * p.cols);
  const auto x = exact(given);
  const auto y = exact(std::vector<float>(size_t(m * p.rows), -77.0f));
  if (!tailcut_matmul(handle.at, x.get(), m, y.get(), r.chance(2) ? 2 : 1)) wrong(number, p, "matmul failed");
  TailcutInfo info;
  tailcut_describe(handle.at, &info);
  const std::vector<double> w = dense(p);
  for (int64_t i = 0; i < m; ++i) {
    for (int64_t row = 0; row < p.rows; ++row) {
      const Expected e = expected(p, w.data() + row * p.cols, given.data() + i * p.cols, info.isa == 3);
      const float found = y[size_t(i * p.rows + row)];
      if (agrees(found, e)) continue;
      char text[256];
      std::snprintf(text, sizeof text, "format %d isa %d m %" PRId64 ": y[%" PRId64 ", %" PRId64 "] is %.9g, not %.9g +- %.3g",
                    info.format, info.isa, m, i, row, double(found), e.value, e.bound);
      wrong(number, p, text);
    }
  }
}

// 1 if the matrix was accepted and its product right, 0 if it was refused with a sentence.
int run(uint64_t number) {
  Random r(number);
  Parts p = valid_parts(r);
  const bool broken = r.chance(75);
  if (broken) damage(r, p);
  else if (p.kind < 3 && r.chance(10)) scribble(r, p);
  const int32_t isa = r.chance(2) ? int32_t(r.next()) : int32_t(r.below(5)) - 1;
  const int32_t format = r.chance(2) ? int32_t(r.next()) : int32_t(r.below(5)) - 1;
  const auto mask = exact(p.mask);
  const auto values = exact(p.values);
  const auto scales = exact(p.scales);
  char error[512] = "";
  const Handle handle{tailcut_pack(p.kind, p.rows, p.cols, p.masked ? mask.get() : nullptr, p.masked ? p.mask.size() : 0,
                                   values.get(), p.values.size(), p.scales.empty() ? nullptr : scales.get(), p.scales.size(),
                                   isa, format, error, sizeof error)};
  if (handle.at == nullptr) {
    if (std::strlen(error) < 12) wrong(number, p, std::string("refused without a sentence: ") + error);
    const bool known = isa >= -1 && isa <= 3 && (isa < 0 || tailcut_isa_available(isa)) && format >= -1 && format <= 1;
    if (known && fits(p)) wrong(number, p, std::string("refused though well-formed: ") + error);
    return 0;
  }
  if (!fits(p)) wrong(number, p, "accepted though malformed");
  check_product(r, number, p, handle);
  return 1;
}

}  // namespace
}  // namespace fuzz

int main(int count, char** words) {
  if (count != 3) return std::fprintf(stderr, "usage: fuzz FIRST COUNT\n"), 2;
  const uint64_t first = std::strtoull(words[1], nullptr, 10), cases = std::strtoull(words[2], nullptr, 10);
  uint64_t accepted = 0;
  for (uint64_t i = 0; i < cases; ++i) accepted += uint64_t(fuzz::run(first + i));
  std::printf("%" PRIu64 " cases: %" PRIu64 " multiplied, %" PRIu64 " refused\n", cases, accepted, cases - accepted);
}
