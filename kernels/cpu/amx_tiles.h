// AMX tiles, all of 16 rows of 64 bytes, by number; under TAILCUT_EMULATE in plain C++.
#pragma once

#include <cstdint>
#include <cstring>

namespace tailcut {
namespace {

#if defined(TAILCUT_EMULATE)

struct Tile {
  uint8_t rows[16][64];
};
inline Tile& tile_of(int number) {
  static thread_local Tile tiles[8];
  return tiles[number];
}
struct Tiles {  // the tile configuration, for as long as it lives
  Tiles() {}
  ~Tiles() {}
};

template <int T>
inline void tile_zero() {
  std::memset(&tile_of(T), 0, sizeof(Tile));
}
template <int T>
inline void tile_load(const void* from, int64_t stride) {
  for (int64_t r = 0; r < 16; ++r) std::memcpy(tile_of(T).rows[r], static_cast<const uint8_t*>(from) + r * stride, 64);
}
template <int T>
inline void tile_store(void* to, int64_t stride) {
  for (int64_t r = 0; r < 16; ++r) std::memcpy(static_cast<uint8_t*>(to) + r * stride, tile_of(T).rows[r], 64);
}
// C[m][n] += sum over k of u8 A[m][k] * s8 B[k / 4][4 n + k % 4]
template <int C, int A, int B>
inline void tile_dot_bytes() {
  for (int m = 0; m < 16; ++m)
    for (int n = 0; n < 16; ++n) {
      int32_t total;
      std::memcpy(&total, tile_of(C).rows[m] + 4 * n, 4);
      for (int k = 0; k < 64; ++k)
        total += int{tile_of(A).rows[m][k]} * int{static_cast<int8_t>(tile_of(B).rows[k / 4][4 * n + k % 4])};
      std::memcpy(tile_of(C).rows[m] + 4 * n, &total, 4);
    }
}
inline float bfloat_at(const uint8_t* at) {
  const uint32_t bits = uint32_t{at[0]} << 16 | uint32_t{at[1]} << 24;
  float value;
  std::memcpy(&value, &bits, 4);
  return value;
}
// The same for bfloat16: k = 0 .. 31, B[k / 2][2 n + k % 2]
template <int C, int A, int B>
inline void tile_dot_bfloats() {
  for (int m = 0; m < 16; ++m)
    for (int n = 0; n < 16; ++n) {
      float total;
      std::memcpy(&total, tile_of(C).rows[m] + 4 * n, 4);
      for (int k = 0; k < 32; ++k)
        total += bfloat_at(tile_of(A).rows[m] + 2 * k) * bfloat_at(tile_of(B).rows[k / 2] + 4 * n + 2 * (k % 2));
      std::memcpy(tile_of(C).rows[m] + 4 * n, &total, 4);
    }
}

#else

// Own assembler lines: gcc's macros take literal numbers only, and their loads do not tell the compiler that they read
// memory.
struct Tiles {  // while it lives the tiles are configured; without them a context switch need not save 8 KB
  Tiles() {
    struct {
      uint8_t palette = 1, start_row = 0, reserved[14] = {};
      uint16_t row_bytes[16] = {64, 64, 64, 64, 64, 64, 64, 64};
      uint8_t rows[16] = {16, 16, 16, 16, 16, 16, 16, 16};
    } config;
    static_assert(sizeof config == 64, "the layout LDTILECFG reads");
    __asm__ volatile("ldtilecfg %0" ::"m"(config));
  }
  ~Tiles() { __asm__ volatile("tilerelease" ::); }
  Tiles(const Tiles&) = delete;
  Tiles& operator=(const Tiles&) = delete;
};

template <int T>
inline void tile_zero() {
  __asm__ volatile("tilezero %%tmm%c0" ::"i"(T));
}
template <int T>
inline void tile_load(const void* from, int64_t stride) {
  __asm__ volatile("tileloadd (%0,%1,1), %%tmm%c2" ::"r"(from), "r"(stride), "i"(T) : "memory");
}
template <int T>
inline void tile_store(void* to, int64_t stride) {
  __asm__ volatile("tilestored %%tmm%c2, (%0,%1,1)" ::"r"(to), "r"(stride), "i"(T) : "memory");
}
// C[m][n] += sum over k of u8 A[m][k] * s8 B[k / 4][4 n + k % 4]
template <int C, int A, int B>
inline void tile_dot_bytes() {
  __asm__ volatile("tdpbusd %%tmm%c2, %%tmm%c1, %%tmm%c0" ::"i"(C), "i"(A), "i"(B));
}
// The same for bfloat16: k = 0 .. 31, B[k / 2][2 n + k % 2]
template <int C, int A, int B>
inline void tile_dot_bfloats() {
  __asm__ volatile("tdpbf16ps %%tmm%c2, %%tmm%c1, %%tmm%c0" ::"i"(C), "i"(A), "i"(B));
}
#endif

// Tile numbers: sums of 16 rows of W (p) and 16 rows of x (v), the weights, x.
constexpr int sums_tile(int p, int v) { return 2 * p + v; }
constexpr int weights_tile(int p) { return 4 + p; }
constexpr int x_tile(int v) { return 6 + v; }

}  // namespace
}  // namespace tailcut
