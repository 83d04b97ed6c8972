// Attention over a cache that is kept in place: rotary embedding, new keys and values into the cache, then softmax(q K^T) V.
//
// Several heads of queries share one head of keys and values. Everything is float32. Sums run over the cache in blocks of
// kSpan positions with a running maximum, so that memory does not grow with the context and results depend on neither the
// number of threads nor on how rows are shared out.
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
  const float* qkv;            // [batch, sequence, (heads + 2 kv_heads) * head_dim]
  const float *cos, *sin;      // [table_rows, rotary_half]
  const int32_t* last;         // [batch] valid positions after this run, minus 1
  float *keys, *values;        // [batch, kv_heads, capacity, head_dim]
  float* out;                  // [batch, sequence, heads * head_dim]
};

constexpr int64_t kSpan = 64;       // positions of the cache in one block
constexpr int64_t kMaxHeadDim = 512;

// Null if every size fits, else a sentence. Reads `last`, nothing else.
const char* why_not(const Attention& a);

// head_dim must be a multiple of 8 (checked by why_not).
void attend(const Attention& a, Parallel& parallel, Scratch& scratch);

// One block of one query: scores of `count` positions from `keys` (stride head_dim), and the weighted sum of `values`.
struct AttentionKernels {
  void (*scores)(const float* query, const float* keys, int64_t head_dim, int64_t count, float* out);
  // weights[i] = exp(weights[i] - top); returns their sum, lane by lane in a fixed order.
  float (*exponentials)(float* weights, int64_t count, float top);
  // out = out * keep + sum_i weights[i] * values[i]
  void (*accumulate)(const float* weights, const float* values, int64_t head_dim, int64_t count, float keep, float* out);
};
const AttentionKernels* portable_attention();
const AttentionKernels* avx2_attention();  // null where it was not compiled

}  // namespace tailcut
