// The instructions of kernels/gpu/cuda/*.cu in plain C++: a CUDA thread is a thread, a block runs after the other.
// mma.sp and ldmatrix are written from the PTX ISA's fragment tables, not from the kernel. Copies (cp.async) happen
// when they are issued (eager) or when they are waited for; shared memory starts as NaN.
#pragma once
#include <barrier>
#include <cstring>
#include <memory>
#include <thread>
#include <vector>

#define __device__
#define __global__
#define __forceinline__ inline
#define __launch_bounds__(threads, blocks)
#define __shared__
#define __align__(n) __attribute__((aligned(n)))

struct uint4 {
  unsigned x, y, z, w;
};
struct Index {
  int x, y, z;
};
static thread_local Index threadIdx, blockIdx;
static Index gridDim;
__attribute__((aligned(128))) char memory[256 * 1024];
static bool eager;

struct Warp {
  std::barrier<> meet{32};
  unsigned words[32][9];
};
static thread_local Warp *my_warp;
static thread_local std::barrier<> *my_block;

struct Copy {
  unsigned to;
  const void *from;
  int bytes;
  void run() const {
    std::memset(memory + to, 0, 16);
    std::memcpy(memory + to, from, bytes);
  }
};
static thread_local std::vector<std::vector<Copy>> groups;

static void __syncthreads() { my_block->arrive_and_wait(); }
static unsigned long __cvta_generic_to_shared(const void *p) { return (const char *)p - memory; }

static float to_float(unsigned bits) {
#if HALF
  unsigned short half = bits;
  _Float16 value;
  std::memcpy(&value, &half, 2);
  return value;
#else
  bits <<= 16;
  float value;
  std::memcpy(&value, &bits, 4);
  return value;
#endif
}

static unsigned short narrow(float value) {
#if HALF
  _Float16 half = value;
  unsigned short bits;
  std::memcpy(&bits, &half, 2);
  return bits;
#else
  unsigned bits;
  std::memcpy(&bits, &value, 4);
  return (bits + 0x7fff + (bits >> 16 & 1)) >> 16;
#endif
}

static unsigned add_pairs(unsigned a, unsigned b) {
  const unsigned low = narrow(to_float(a & 0xffff) + to_float(b & 0xffff));
  return low | (unsigned)narrow(to_float(a >> 16) + to_float(b >> 16)) << 16;
}
static unsigned __byte_perm(unsigned a, unsigned b, unsigned selector) {
  const unsigned long long both = (unsigned long long)b << 32 | a;
  unsigned result = 0;
  for (int i = 0; i < 4; ++i) result |= (unsigned)(both >> 8 * (selector >> 4 * i & 7) & 0xff) << 8 * i;
  return result;
}
static float __uint_as_float(unsigned bits) {
  float value;
  std::memcpy(&value, &bits, 4);
  return value;
}

template <int SELECTOR>
void multiply(float (&d)[4], const uint4 &a, const unsigned (&b)[4], unsigned metadata) {
  const int lane = threadIdx.x & 31, g = lane >> 2, t = lane & 3;
  const unsigned mine[9] = {a.x, a.y, a.z, a.w, b[0], b[1], b[2], b[3], metadata};
  std::memcpy(my_warp->words[lane], mine, sizeof mine);
  my_warp->meet.arrive_and_wait();
  for (int i = 0; i < 4; ++i) {
    const int row = g + (i >> 1) * 8, n = 2 * t + (i & 1);
    for (int group = 0; group < 8; ++group) {  // of four columns of A
      const unsigned pair = my_warp->words[g * 4 + group % 4][group / 4 * 2 + row / 8];
      const unsigned positions = my_warp->words[g * 4 + SELECTOR * 2 + group / 4][8] >> (row / 8 * 16 + group % 4 * 4);
      for (int kept = 0; kept < 2; ++kept) {
        const int k = group * 4 + (positions >> 2 * kept & 3);
        const unsigned x = my_warp->words[n * 4 + k % 8 / 2][4 + k / 8];
        d[i] += to_float(pair >> 16 * kept & 0xffff) * to_float(x >> 16 * (k & 1) & 0xffff);
      }
    }
  }
  my_warp->meet.arrive_and_wait();
}

static void load_matrices(unsigned (&b)[4], unsigned address) {
  const int lane = threadIdx.x & 31;
  my_warp->words[lane][0] = address;
  my_warp->meet.arrive_and_wait();
  for (int i = 0; i < 4; ++i) std::memcpy(&b[i], memory + my_warp->words[i * 8 + lane / 4][0] + lane % 4 * 4, 4);
  my_warp->meet.arrive_and_wait();
}

static uint4 load_stream(const uint4 *p) { return *p; }
static uint4 load_shared(unsigned address) {
  uint4 v;
  std::memcpy(&v, memory + address, 16);
  return v;
}
static void copy_async(unsigned to, const void *from, int bytes) {
  const Copy copy{to, from, bytes};
  if (eager) return copy.run();
  if (groups.empty()) groups.emplace_back();
  groups.back().push_back(copy);
}
static void copies_commit() {
  if (groups.empty()) groups.emplace_back();
  groups.emplace_back();
}
template <int LEFT>
void copies_wait() {
  while ((int)groups.size() > LEFT + 1) {  // the last one is still open
    for (const Copy &copy : groups.front()) copy.run();
    groups.erase(groups.begin());
  }
}
static void wait_for_previous() {}
static void let_next_start() {}

extern "C" void two_four_tiles(const uint4 *, const char *, unsigned short *, float *, const float *, int, int, int, int,
                               long long);

extern "C" void run(int grid_x, int grid_y, int threads, int copy_eagerly, const uint4 *tiles, const char *x,
                    unsigned short *y, float *partial, const float *row_scales, int m, int n, int k, int k_tiles, long long x_stride) {
  gridDim = {grid_x, grid_y, 1};
  eager = copy_eagerly;
  for (int block = 0; block < grid_x * grid_y; ++block) {
    std::memset(memory, 0xff, sizeof memory);
    std::barrier<> all(threads);
    std::vector<std::unique_ptr<Warp>> warps;
    for (int w = 0; w < threads / 32; ++w) warps.push_back(std::make_unique<Warp>());
    std::vector<std::thread> running;
    for (int i = 0; i < threads; ++i)
      running.emplace_back([&, i] {
        threadIdx = {i, 0, 0};
        blockIdx = {block % grid_x, block / grid_x, 0};
        my_warp = warps[i / 32].get();
        my_block = &all;
        two_four_tiles(tiles, x, y, partial, row_scales, m, n, k, k_tiles, x_stride);
      });
    for (std::thread &thread : running) thread.join();
  }
}
