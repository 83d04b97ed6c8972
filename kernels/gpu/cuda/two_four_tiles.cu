// y = x W^T for a few rows of x, W 2:4 sparse, on sparse tensor cores (mma.sp, sm_80 and newer).
//
// W is operand A of m16n8k32, so a row of x is a column of the product and costs nothing up to 8 rows. W lies in global
// memory in the order of the registers (layout TwoFourTiles): a tile is 32 rows x 128 columns of W, that a warp reads with
// nine 16-byte loads a lane (16-bit values), each byte once, without shared memory. Values of 8 and 4 bits become exact
// 16-bit integers in registers; their scales multiply float32 sums: of a row (8 bits), of a row's tile (4). x goes through shared memory, shared
// by the warps of a block. A block has WR x WK warps: WR tiles of 32 rows, and the columns divided among WK warps whose
// sums meet in shared memory at the end; with CLUSTER the blocks of a cluster divide the columns once more and meet in
// distributed shared memory. All sums are float32 in a fixed order: the same result every time.
//
// No headers, so that NVRTC needs none. Settings, given as macros by the loader:
//   BITS    of a value of W: 16, 8 or 4
//   NT      tiles of 8 rows of x (the kernel takes 1 to 8 NT rows)
//   WR, WK  warps along the rows of W, warps along its columns
//   STAGES  buffers of x in shared memory (2 or more)
//   DEPTH   tiles of W a warp has under way beside the one it multiplies (registers)
//   RING    1: W comes through shared memory too (cp.async, STAGES - 1 tiles under way), DEPTH is ignored
//   BLOCKS  blocks an SM should hold (bounds the registers)
//   HALF    1: float16, 0: bfloat16
//   CLUSTER 1: gridDim.y blocks make a cluster and add their sums (sm_90)
//   PARTIAL 1: the gridDim.y blocks write their sums as float32 [gridDim.y, M, N] instead
//   ORDERED 1: the compiler knows mma.sp::ordered_metadata (PTX 8.5)
typedef unsigned int u32;
typedef unsigned short u16;

static constexpr int THREADS = WR * WK * 32;
static constexpr int COLUMNS = WK * 128;  // of W and x, a step
static constexpr int ROW_BYTES = COLUMNS * 2;
static constexpr int X_ROWS = NT * 8;
static constexpr int X_BYTES = X_ROWS * ROW_BYTES;
static constexpr int VECTORS = BITS == 16 ? 9 : BITS == 8 ? 5 : 3;  // of 16 bytes a lane, the last one positions
static constexpr int TILE_VECTORS = VECTORS * 32 + (BITS == 4 ? 8 : 0);  // 4 bits: then 32 scales
static constexpr int STAGE_BYTES = X_BYTES + (RING ? WR * WK * TILE_VECTORS * 16 : 0);
static constexpr int SUM_STRIDE = X_ROWS + 1;  // odd: a column of sums is read without bank conflicts

#ifndef TAILCUT_EMULATE  // the tests bring these instructions in plain C++
#if HALF
#define TYPE "f16"
#else
#define TYPE "bf16"
#endif
#if ORDERED
#define MMA "mma.sp::ordered_metadata.sync.aligned.m16n8k32.row.col.f32." TYPE "." TYPE ".f32 "
#else
#define MMA "mma.sp.sync.aligned.m16n8k32.row.col.f32." TYPE "." TYPE ".f32 "
#endif

// D += A B; the metadata of A is in lanes 4g, 4g + 1 (SELECTOR 0) or 4g + 2, 4g + 3 (1).
template <int SELECTOR>
__device__ __forceinline__ void multiply(float (&d)[4], const uint4 &a, const u32 (&b)[4], u32 metadata) {
  asm volatile(MMA "{%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9,%10,%11}, {%0,%1,%2,%3}, %12, %13;\n"
               : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
               : "r"(a.x), "r"(a.y), "r"(a.z), "r"(a.w), "r"(b[0]), "r"(b[1]), "r"(b[2]), "r"(b[3]), "r"(metadata),
                 "n"(SELECTOR));
}

__device__ __forceinline__ void load_matrices(u32 (&b)[4], u32 address) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];\n"
               : "=r"(b[0]), "=r"(b[1]), "=r"(b[2]), "=r"(b[3])
               : "r"(address));
}

// Two 16-bit numbers each: a + b.
__device__ __forceinline__ u32 add_pairs(u32 a, u32 b) {
  u32 sum;
#if HALF
  asm("add.rn.f16x2 %0, %1, %2;\n" : "=r"(sum) : "r"(a), "r"(b));
#else
  asm("fma.rn.bf16x2 %0, %1, %2, %3;\n" : "=r"(sum) : "r"(a), "r"(0x3f803f80u), "r"(b));  // sm_80 has no add
#endif
  return sum;
}

// Read once, so not kept in L1.
__device__ __forceinline__ uint4 load_stream(const uint4 *p) {
  uint4 v;
  asm volatile("ld.global.nc.L1::no_allocate.L2::128B.v4.u32 {%0,%1,%2,%3}, [%4];\n"
               : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w)
               : "l"(p));
  return v;
}

__device__ __forceinline__ uint4 load_shared(u32 address) {
  uint4 v;
  asm volatile("ld.shared.v4.u32 {%0,%1,%2,%3}, [%4];\n" : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w) : "r"(address));
  return v;
}

// 16 bytes to shared memory; zeros where `bytes` is 0.
__device__ __forceinline__ void copy_async(u32 to, const void *from, int bytes) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;\n" ::"r"(to), "l"(from), "r"(bytes));
}
__device__ __forceinline__ void copies_commit() { asm volatile("cp.async.commit_group;\n"); }
template <int LEFT>
__device__ __forceinline__ void copies_wait() {
  asm volatile("cp.async.wait_group %0;\n" ::"n"(LEFT) : "memory");
}

// The kernel before this one in the stream has written its results (nothing to do unless launched early).
__device__ __forceinline__ void wait_for_previous() {
#if __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.wait;\n" ::: "memory");
#endif
}
__device__ __forceinline__ void let_next_start() {
#if __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.launch_dependents;\n" ::: "memory");
#endif
}

__device__ __forceinline__ u16 narrow(float value) {
  u16 bits;
#if HALF
  asm("cvt.rn.f16.f32 %0, %1;\n" : "=h"(bits) : "f"(value));
#else
  u32 both;  // the single cvt.rn.bf16.f32 is newer than sm_80
  asm("cvt.rn.bf16x2.f32 %0, %1, %2;\n" : "=r"(both) : "f"(0.0f), "f"(value));
  bits = (u16)both;
#endif
  return bits;
}

#if CLUSTER
__device__ __forceinline__ void cluster_meet() {
  asm volatile("barrier.cluster.arrive.release;\nbarrier.cluster.wait.acquire;\n" ::: "memory");
}
__device__ __forceinline__ float load_peer(u32 address, u32 rank) {
  u32 there;
  float value;
  asm volatile("mapa.shared::cluster.u32 %0, %1, %2;\n" : "=r"(there) : "r"(address), "r"(rank));
  asm volatile("ld.shared::cluster.f32 %0, [%1];\n" : "=f"(value) : "r"(there) : "memory");
  return value;
}
#endif

#endif  // TAILCUT_EMULATE

#if BITS == 8
// Two int8 bytes of `word`, at bytes 0 and 1 (SELECTOR 0x4140) or 2 and 3 (0x4342), -> two 16-bit floats, exact.
template <u32 SELECTOR>
__device__ __forceinline__ u32 widen(u32 word) {
#if HALF
  return add_pairs(__byte_perm(word ^ 0x80808080u, 0x64646464u, SELECTOR), 0xe480e480u);  // (1024 + q + 128) - 1152
#else
  const u32 pair = __byte_perm(word, 0x43434343u, SELECTOR);  // 128 + seven bits, and the sign's 128 apart
  return add_pairs(pair & 0xff7fff7fu, (pair & 0xff80ff80u) | 0x80008000u);
#endif
}
#elif BITS == 4
// q + 8 in bits 0-3 and 16-19 -> two 16-bit floats, exact.
__device__ __forceinline__ u32 widen(u32 word) {
#if HALF
  return add_pairs((word & 0x000f000fu) | 0x64006400u, 0xe408e408u);  // (1024 + q + 8) - 1032
#else
  return add_pairs((word & 0x000f000fu) | 0x43004300u, 0xc308c308u);  // (128 + q + 8) - 136
#endif
}
#endif

// Operand A of 16 rows (half) and 32 columns (step) of a tile.
__device__ __forceinline__ uint4 fragment(const uint4 (&w)[VECTORS], int step, int half) {
#if BITS == 16
  return w[step * 2 + half];
#elif BITS == 8
  const u32 low = half ? w[step].z : w[step].x, high = half ? w[step].w : w[step].y;
  return {widen<0x4140>(low), widen<0x4342>(low), widen<0x4140>(high), widen<0x4342>(high)};
#else
  const uint4 &v = w[step >> 1];
  const u32 word = step & 1 ? (half ? v.w : v.z) : (half ? v.y : v.x);
  return {widen(word), widen(word >> 4), widen(word >> 8), widen(word >> 12)};
#endif
}

// sums += one tile of W times its 128 columns of x at `x` (this lane's address in the first 8 rows).
__device__ __forceinline__ void multiply_tile(float (&sums)[2][NT][4], const uint4 (&w)[VECTORS], u32 x, int chunk,
                                              int swap) {
  const uint4 &positions = w[VECTORS - 1];
#pragma unroll
  for (int step = 0; step < 4; ++step) {
    const u32 metadata0 = step >> 1 ? positions.y : positions.x, metadata1 = step >> 1 ? positions.w : positions.z;
    const uint4 a0 = fragment(w, step, 0), a1 = fragment(w, step, 1);
#pragma unroll
    for (int n = 0; n < NT; ++n) {
      u32 b[4];
      load_matrices(b, x + n * 8 * ROW_BYTES + (((chunk + step * 4) ^ swap) << 4));
      if (step & 1) {
        multiply<1>(sums[0][n], a0, b, metadata0);
        multiply<1>(sums[1][n], a1, b, metadata1);
      } else {
        multiply<0>(sums[0][n], a0, b, metadata0);
        multiply<0>(sums[1][n], a1, b, metadata1);
      }
    }
  }
}

// A tile and what multiplies its sums.
struct Tile {
  uint4 w[VECTORS];
#if BITS == 4
  uint4 scales;  // float32 bits: rows g, g + 8, g + 16, g + 24
#endif
};

__device__ __forceinline__ void add_tile(float (&sums)[2][NT][4], const Tile &tile, u32 x, int chunk, int swap) {
#if BITS == 4
  float part[2][NT][4] = {};
  multiply_tile(part, tile.w, x, chunk, swap);
  const float scale[4] = {__uint_as_float(tile.scales.x), __uint_as_float(tile.scales.y),
                          __uint_as_float(tile.scales.z), __uint_as_float(tile.scales.w)};
#pragma unroll
  for (int half = 0; half < 2; ++half)
#pragma unroll
    for (int n = 0; n < NT; ++n)
#pragma unroll
      for (int i = 0; i < 4; ++i) sums[half][n][i] += scale[half * 2 + (i >> 1)] * part[half][n][i];
#else
  multiply_tile(sums, tile.w, x, chunk, swap);
#endif
}

// x [M, K] (rows `x_stride` bytes apart, 16-byte aligned), y [M, N]; tiles [ceil(N / 32)][k_tiles][TILE_VECTORS];
// row_scales [N], 8 bits only.
extern "C" __global__ void __launch_bounds__(THREADS, BLOCKS)
    two_four_tiles(const uint4 *__restrict__ tiles, const char *__restrict__ x, u16 *__restrict__ y,
                   float *__restrict__ partial, const float *__restrict__ row_scales, int M, int N, int K, int k_tiles, long long x_stride) {
  let_next_start();  // its first tiles of W then come while this kernel ends
  extern __shared__ __align__(128) char memory[];
  const u32 base = (u32)__cvta_generic_to_shared(memory);
  const int lane = threadIdx.x & 31, warp = threadIdx.x >> 5;
  const int wr = warp % WR, wk = warp / WR;
  const int row_tile = blockIdx.x * WR + wr;
  const int first = (int)((long long)k_tiles * blockIdx.y / gridDim.y);
  const int last = (int)((long long)k_tiles * (blockIdx.y + 1) / gridDim.y);
  const int steps = (last - first + WK - 1) / WK;
  const bool has_rows = row_tile * 32 < N;
  const uint4 *mine = tiles + (long long)row_tile * k_tiles * TILE_VECTORS + lane;

  auto has_tile = [&](int step) { return has_rows && first + step * WK + wk < last; };
  auto load_w = [&](Tile &tile, int step) {
    if (!has_tile(step)) return;
    const uint4 *from = mine + (long long)(first + step * WK + wk) * TILE_VECTORS;
#pragma unroll
    for (int j = 0; j < VECTORS; ++j) tile.w[j] = load_stream(from + j * 32);
#if BITS == 4
    tile.scales = load_stream(from - lane + VECTORS * 32 + (lane >> 2));
#endif
  };
  auto ring = [&](int step) { return base + (step % STAGES) * STAGE_BYTES + X_BYTES + warp * TILE_VECTORS * 16; };
  auto copy_w = [&](int step) {
    if (!has_tile(step)) return;
    const uint4 *from = mine + (long long)(first + step * WK + wk) * TILE_VECTORS;
#pragma unroll
    for (int j = 0; j < VECTORS; ++j) copy_async(ring(step) + (j * 32 + lane) * 16, from + j * 32, 16);
    if (BITS == 4 && lane < 8) copy_async(ring(step) + (VECTORS * 32 + lane) * 16, from + VECTORS * 32, 16);
  };
  auto copy_x = [&](int step) {
    const int column = (first + step * WK) * 128;
    const u32 to = base + (step % STAGES) * STAGE_BYTES;
#pragma unroll
    for (int i = threadIdx.x; i < X_ROWS * (COLUMNS / 8); i += THREADS) {
      const int row = i / (COLUMNS / 8), chunk = i % (COLUMNS / 8);
      const bool inside = row < M && column + chunk * 8 < K;
      const char *from = inside ? x + row * x_stride + (long long)(column + chunk * 8) * 2 : x;
      copy_async(to + row * ROW_BYTES + ((chunk ^ (row & 7)) << 4), from, inside ? 16 : 0);
    }
  };

  float sums[2][NT][4] = {};
  const int chunk = wk * 16 + (lane >> 3);
  auto compute = [&](const Tile &tile, int step) {
    const u32 rows = base + (step % STAGES) * STAGE_BYTES + (lane & 7) * ROW_BYTES;
    add_tile(sums, tile, rows, chunk, lane & 7);
  };
#if RING
#pragma unroll
  for (int s = 0; s < STAGES - 1; ++s)  // W does not wait for the kernel before
    if (s < steps) copy_w(s);
  wait_for_previous();
#pragma unroll
  for (int s = 0; s < STAGES - 1; ++s) {
    if (s < steps) copy_x(s);
    copies_commit();
  }
  for (int step = 0; step < steps; ++step) {
    copies_wait<STAGES - 2>();
    __syncthreads();
    if (step + STAGES - 1 < steps) {
      copy_w(step + STAGES - 1);
      copy_x(step + STAGES - 1);
    }
    copies_commit();
    if (has_tile(step)) {
      Tile tile;
#pragma unroll
      for (int j = 0; j < VECTORS; ++j) tile.w[j] = load_shared(ring(step) + (j * 32 + lane) * 16);
#if BITS == 4
      tile.scales = load_shared(ring(step) + (VECTORS * 32 + (lane >> 2)) * 16);
#endif
      compute(tile, step);
    }
  }
#else
  Tile ahead[DEPTH + 1];
#pragma unroll
  for (int d = 0; d < DEPTH; ++d) load_w(ahead[d], d);
  wait_for_previous();
#pragma unroll
  for (int s = 0; s < STAGES - 1; ++s) {
    if (s < steps) copy_x(s);
    copies_commit();
  }
  for (int start = 0; start < steps; start += DEPTH + 1) {
#pragma unroll
    for (int u = 0; u <= DEPTH; ++u) {
      const int step = start + u;
      if (step < steps) {
        copies_wait<STAGES - 2>();
        __syncthreads();
        if (step + STAGES - 1 < steps) copy_x(step + STAGES - 1);
        copies_commit();
        load_w(ahead[(u + DEPTH) % (DEPTH + 1)], step + DEPTH);
        if (has_tile(step)) compute(ahead[u], step);
      }
    }
  }
#endif

  // Sums of the block: [WK][WR * 32 rows][SUM_STRIDE], where x was.
  copies_wait<0>();
  __syncthreads();
  float *area = (float *)memory;
  constexpr int ROWS = WR * 32;
  const int group = lane >> 2, pair = lane & 3;
#pragma unroll
  for (int r = 0; r < 2; ++r)
#pragma unroll
    for (int n = 0; n < NT; ++n)
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const int row = wr * 32 + r * 16 + group + (i >> 1) * 8;
        area[(wk * ROWS + row) * SUM_STRIDE + n * 8 + pair * 2 + (i & 1)] = sums[r][n][i];
      }
  __syncthreads();
  const int outputs = M * ROWS;
#if CLUSTER
  for (int o = threadIdx.x; o < outputs; o += THREADS) {
    float *cell = area + (o % ROWS) * SUM_STRIDE + o / ROWS;
    float sum = cell[0];
#pragma unroll
    for (int k = 1; k < WK; ++k) sum += cell[k * ROWS * SUM_STRIDE];
    cell[0] = sum;
  }
  cluster_meet();
  for (int o = blockIdx.y * THREADS + threadIdx.x; o < outputs; o += gridDim.y * THREADS) {
    const u32 cell = base + ((o % ROWS) * SUM_STRIDE + o / ROWS) * 4;
    float sum = load_peer(cell, 0);
    for (u32 rank = 1; rank < gridDim.y; ++rank) sum += load_peer(cell, rank);
    const int row = blockIdx.x * ROWS + o % ROWS;
    if (row < N) y[(long long)(o / ROWS) * N + row] = narrow(BITS == 8 ? sum * row_scales[row] : sum);
  }
  cluster_meet();  // nobody leaves while another reads here
#else
  for (int o = threadIdx.x; o < outputs; o += THREADS) {
    const float *cell = area + (o % ROWS) * SUM_STRIDE + o / ROWS;
    float sum = cell[0];
#pragma unroll
    for (int k = 1; k < WK; ++k) sum += cell[k * ROWS * SUM_STRIDE];
    const int row = blockIdx.x * ROWS + o % ROWS, m = o / ROWS;
    if (row >= N) continue;
#if PARTIAL
    partial[((long long)blockIdx.y * M + m) * N + row] = BITS == 8 ? sum * row_scales[row] : sum;
#else
    y[(long long)m * N + row] = narrow(BITS == 8 ? sum * row_scales[row] : sum);
#endif
  }
#endif
}
