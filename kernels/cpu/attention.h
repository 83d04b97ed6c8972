// Attention over a cache that is kept in place: rotary embedding, new keys and values into the cache, then softmax(q K^T) V.
//
// Several heads of queries share one head of keys and values: each block of kSpan positions of the cache is read, and where
// it is float16 widened, once for all of them. What is computed is float32; a float16 cache is rounded to nearest, ties to
// even, when it is written. Sums run over the cache in blocks with a running maximum, so that memory does not grow with the
// context. A run of one token is cut into chunks of the cache that are merged in their order; where they are cut depends on
// the row's length alone. So results depend on neither the number of threads nor on how rows are shared out.
#pragma once

#include "matrix.h"

namespace tailcut {

struct Attention {
  int64_t batch, sequence;     // tokens of this run, each row padded on the right
  int64_t heads, kv_heads, head_dim;
  int64_t capacity;            // positions that the cache holds
  int64_t rotary_half, table_rows;  // pairs of channels that are rotated, positions in the tables
  float scale, softcap;        // softcap 0: none
  int64_t window;              // a position sees this many, itself included; 0: all before it
  bool first;                  // the cache is empty: positions count from 0, whatever the rows' lengths
  bool halves;                 // the cache is float16, not float32
  Isa isa;                     // whose kernels run, where it has some; automatic: the best
  const float* qkv;            // [batch, sequence, (heads + 2 kv_heads) * head_dim]
  const float *cos, *sin;      // [table_rows, rotary_half]
  const int32_t* last;         // [batch] valid positions after this run, minus 1
  void *keys, *values;         // [batch, kv_heads, capacity, head_dim]
  float* out;                  // [batch, sequence, heads * head_dim]
};

constexpr int64_t kSpan = 64;       // positions of the cache in one block, fewer of wide heads
constexpr int64_t kMaxHeadDim = 512;

// Null if every size fits, else a sentence. Reads `last`, nothing else.
const char* why_not(const Attention& a);

// head_dim must be a multiple of 8 (checked by why_not).
void attend(const Attention& a, Parallel& parallel, Scratch& scratch);

// One block of the cache in float32, [count, head_dim], and one query.
struct AttentionKernels {
  // out[i] = query . keys[i]
  void (*scores)(const float* query, const float* keys, int64_t head_dim, int64_t count, float* out);
  // The largest score; NaN if one of them is. count >= 1.
  float (*largest)(const float* scores, int64_t count);
  // weights[i] = exp(weights[i] - top); returns their sum, lane by lane in a fixed order.
  float (*exponentials)(float* weights, int64_t count, float top);
  // out = out * keep + sum_i weights[i] * values[i]
  void (*accumulate)(const float* weights, const float* values, int64_t head_dim, int64_t count, float keep, float* out);
  // float16 to float32 and, to nearest and ties to even, back. count is a multiple of 8.
  void (*widen)(const uint16_t* from, int64_t count, float* to);
  void (*narrow)(const float* from, int64_t count, uint16_t* to);
};
const AttentionKernels* portable_attention();
const AttentionKernels* avx2_attention();    // null where it was not compiled
const AttentionKernels* avx512_attention();  // likewise; AMX runs it too

}  // namespace tailcut
