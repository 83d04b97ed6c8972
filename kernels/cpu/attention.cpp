#include "attention.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>

namespace tailcut {
namespace {

constexpr int64_t kItems = 8;       // a prompt: at least so many pieces of work, if it has that many heads of queries
constexpr int64_t kRowsItem = 16;   // tokens of a prompt in one piece of work
constexpr int64_t kRows = 128;      // queries that go over a block of the cache together
constexpr int64_t kChunk = 128;     // one token: positions in one piece of work,
constexpr int64_t kMaxChunks = 64;  // twice that and so on where there would be more pieces than this
constexpr int64_t kWide = 8192;     // float32 of a block: 32 KiB, with the weights of some queries in first-level cache
constexpr float kNothing = -std::numeric_limits<float>::infinity();

int64_t width(const Attention& a) { return (a.heads + 2 * a.kv_heads) * a.head_dim; }

// Position of the first token of this run.
int64_t past_of(const Attention& a, int64_t b) { return a.first ? 0 : int64_t{a.last[b]} + 1 - a.sequence; }

// First position that the token at `position` sees.
int64_t begin_of(const Attention& a, int64_t position) {
  return a.window > 0 && position + 1 > a.window ? position + 1 - a.window : 0;
}

struct Plan {
  const Attention* a;
  const AttentionKernels* kernels;
  float* queries;        // rotated and scaled, [batch, sequence, heads * head_dim]
  int64_t heads_item;    // heads of queries in one piece of work, all of one head of keys
  int64_t parts, spans;  // pieces a head of keys, and pieces a sequence
  int64_t chunks;        // pieces of the cache, the most of any row; 1 for more than one token
  float* partial;        // of more than one chunk: [batch, heads, chunks, head_dim], then [.., 2] of top and sum
  size_t element;        // bytes of a number in the cache
};

// (x1, x2) -> (x1 cos - x2 sin, x2 cos + x1 sin) over the two halves of the rotated channels.
void rotate(const Attention& a, const float* x, int64_t position, float factor, float* to) {
  const float* cos = a.cos + position * a.rotary_half;
  const float* sin = a.sin + position * a.rotary_half;
  for (int64_t j = 0; j < a.rotary_half; ++j) {
    const float first = x[j], second = x[j + a.rotary_half];
    to[j] = (first * cos[j] - second * sin[j]) * factor;
    to[j + a.rotary_half] = (second * cos[j] + first * sin[j]) * factor;
  }
  for (int64_t j = 2 * a.rotary_half; j < a.head_dim; ++j) to[j] = x[j] * factor;
}

// The number at `index` of a cache.
uint8_t* at(const Plan& p, void* cache, int64_t index) {
  return static_cast<uint8_t*>(cache) + static_cast<size_t>(index) * p.element;
}

void store_row(const Plan& p, const float* from, uint8_t* to) {
  if (p.a->halves) p.kernels->narrow(from, p.a->head_dim, reinterpret_cast<uint16_t*>(to));
  else std::memcpy(to, from, static_cast<size_t>(p.a->head_dim) * sizeof(float));
}

void store_token(const Plan& p, int64_t b, int64_t s) {
  const Attention& a = *p.a;
  const int64_t position = past_of(a, b) + s, dim = a.head_dim;
  const float* from = a.qkv + (b * a.sequence + s) * width(a);
  float* queries = p.queries + (b * a.sequence + s) * a.heads * dim;
  for (int64_t h = 0; h < a.heads; ++h) rotate(a, from + h * dim, position, a.scale, queries + h * dim);
  for (int64_t h = 0; h < a.kv_heads; ++h) {
    const int64_t row = ((b * a.kv_heads + h) * a.capacity + position) * dim;
    float key[kMaxHeadDim];
    rotate(a, from + (a.heads + h) * dim, position, 1.0f, key);
    store_row(p, key, at(p, a.keys, row));
    store_row(p, from + (a.heads + a.kv_heads + h) * dim, at(p, a.values, row));
  }
}

void store_tokens(void* context, int64_t index) {
  const Plan& p = *static_cast<const Plan*>(context);
  const int64_t sequence = p.a->sequence, first = index * kRowsItem;
  const int64_t last = std::min(first + kRowsItem, p.a->batch * sequence);
  for (int64_t t = first; t < last; ++t) store_token(p, t / sequence, t % sequence);
}

// The running softmax of one query.
struct Row {
  const float* query;
  float* out;
  int64_t begin, end;  // positions it sees
  float top, sum;
};

// Queries that share a head of keys and values, and the memory that they share while they go over it.
struct Group {
  int64_t count = 0, begin = 0, end = 0;  // begin, end: positions that any of them sees
  Row rows[kRows];
  alignas(64) float weights[kRows][kSpan];
  alignas(64) float wide[kWide];

  void add(const Row& row) {
    begin = count ? std::min(begin, row.begin) : row.begin, end = count ? std::max(end, row.end) : row.end;
    rows[count++] = row;
  }
};

// The positions [from, to) of a cache as float32.
const float* block(const Plan& p, const uint8_t* cache, int64_t from, int64_t to, float* wide) {
  const int64_t dim = p.a->head_dim;
  const uint8_t* first = cache + static_cast<size_t>(from * dim) * p.element;
  if (!p.a->halves) return reinterpret_cast<const float*>(first);
  p.kernels->widen(reinterpret_cast<const uint16_t*>(first), (to - from) * dim, wide);
  return wide;
}

// Ask for the share of row r in a block that is read next.
void fetch(const Plan& p, const uint8_t* cache, int64_t from, int64_t to, int64_t r, int64_t rows) {
  const int64_t bytes = (to - from) * p.a->head_dim * static_cast<int64_t>(p.element), lines = (bytes + 63) / 64;
  const uint8_t* first = cache + static_cast<size_t>(from * p.a->head_dim) * p.element;
  for (int64_t line = lines * r / rows; line < lines * (r + 1) / rows; ++line) __builtin_prefetch(first + 64 * line);
}

// Scores become weights; returns what the sum so far is worth beside them.
float weigh(const Plan& p, Row* row, float* scores, int64_t count) {
  if (p.a->softcap > 0)
    for (int64_t i = 0; i < count; ++i) scores[i] = p.a->softcap * std::tanh(scores[i] / p.a->softcap);
  const float found = p.kernels->largest(scores, count);
  const float top = found > row->top || std::isnan(found) ? found : row->top;
  const float keep = row->sum > 0 ? std::exp(row->top - top) : 0.0f;
  row->sum = row->sum * keep + p.kernels->exponentials(scores, count, top);
  row->top = top;
  return keep;
}

// One block for all queries of a group: keys once for the weights of all, values once for the sums of all. A query's
// positions [from, to) of the block are all of it but at the ends of what it sees.
void take_block(const Plan& p, const uint8_t* keys, const uint8_t* values, int64_t begin, int64_t end, Group* g) {
  const int64_t dim = p.a->head_dim, next = std::min(end + (end - begin), g->end);
  float keep[kRows];
  const float* wide = block(p, keys, begin, end, g->wide);
  for (int64_t r = 0; r < g->count; ++r) {
    Row& row = g->rows[r];
    const int64_t from = std::max(begin, row.begin), to = std::min(end, row.end);
    fetch(p, values, begin, end, r, g->count);
    if (from >= to) continue;
    p.kernels->scores(row.query, wide + (from - begin) * dim, dim, to - from, g->weights[r]);
    keep[r] = weigh(p, &row, g->weights[r], to - from);
  }
  wide = block(p, values, begin, end, g->wide);
  for (int64_t r = 0; r < g->count; ++r) {
    const Row& row = g->rows[r];
    const int64_t from = std::max(begin, row.begin), to = std::min(end, row.end);
    fetch(p, keys, end, next, r, g->count);
    if (from >= to) continue;
    p.kernels->accumulate(g->weights[r], wide + (from - begin) * dim, dim, to - from, keep[r], row.out);
  }
}

void go_over(const Plan& p, int64_t kv, Group* g) {
  const Attention& a = *p.a;
  const int64_t step = std::min(kSpan, kWide / a.head_dim), first = kv * a.capacity * a.head_dim;
  const uint8_t *keys = at(p, a.keys, first), *values = at(p, a.values, first);
  for (int64_t r = 0; r < g->count; ++r)
    std::memset(g->rows[r].out, 0, static_cast<size_t>(a.head_dim) * sizeof(float));
  for (int64_t i = g->begin / step * step; i < g->end; i += step)
    take_block(p, keys, values, std::max(i, g->begin), std::min(i + step, g->end), g);
}

void divide(float* out, int64_t dim, float by) {
  for (int64_t j = 0; j < dim; ++j) out[j] /= by;
}

// Some heads of queries that share a head of keys, at some tokens of a prompt.
void attend_prompt(void* context, int64_t index) {
  const Plan& p = *static_cast<const Plan*>(context);
  const Attention& a = *p.a;
  const int64_t span = index % p.spans, part = index / p.spans % p.parts, kv = index / p.spans / p.parts;
  const int64_t b = kv / a.kv_heads, group = a.heads / a.kv_heads, dim = a.head_dim, past = past_of(a, b);
  const int64_t head0 = kv % a.kv_heads * group + part * p.heads_item;
  const int64_t head1 = std::min(head0 + p.heads_item, (kv % a.kv_heads + 1) * group);
  const int64_t s0 = span * kRowsItem, s1 = std::min(s0 + kRowsItem, a.sequence), heads = kRows / (s1 - s0);
  for (int64_t h = head0; h < head1; h += heads) {
    Group g;
    for (int64_t s = s0; s < s1; ++s)
      for (int64_t k = h; k < head1 && k < h + heads; ++k) {
        const int64_t row = ((b * a.sequence + s) * a.heads + k) * dim;
        g.add({p.queries + row, a.out + row, begin_of(a, past + s), past + s + 1, kNothing, 0});
      }
    go_over(p, kv, &g);
    for (int64_t r = 0; r < g.count; ++r) divide(g.rows[r].out, dim, g.rows[r].sum);
  }
}

// Positions of a row in one piece of work, of a run of one token.
int64_t chunk_of(const Attention& a, int64_t b) {
  const int64_t last = past_of(a, b), sees = last + 1 - begin_of(a, last);
  return kChunk * ((sees + kChunk * kMaxChunks - 1) / (kChunk * kMaxChunks));
}

// The first of a row's chunks, which are counted from position 0.
int64_t first_chunk(const Attention& a, int64_t b) { return begin_of(a, past_of(a, b)) / chunk_of(a, b); }

int64_t chunks_of(const Attention& a, int64_t b) { return past_of(a, b) / chunk_of(a, b) + 1 - first_chunk(a, b); }

// Top and sum of each chunk of a head.
float* tops_and_sums(const Plan& p, int64_t head) {
  return p.partial + (p.a->batch * p.a->heads * p.a->head_dim + head * 2) * p.chunks;
}

// All heads of queries that share a head of keys, one token, a chunk of the cache.
void attend_chunk(void* context, int64_t index) {
  const Plan& p = *static_cast<const Plan*>(context);
  const Attention& a = *p.a;
  const int64_t c = index % p.chunks, kv = index / p.chunks, b = kv / a.kv_heads, dim = a.head_dim;
  if (c >= chunks_of(a, b)) return;
  const int64_t group = a.heads / a.kv_heads, end = past_of(a, b) + 1, chunk = chunk_of(a, b);
  const int64_t from = (first_chunk(a, b) + c) * chunk, begin = std::max(begin_of(a, end - 1), from);
  for (int64_t done = 0; done < group; done += kRows) {
    const int64_t head = kv * group + done;  // b * heads + k, as kv is b * kv_heads + the head of keys
    Group g;
    for (int64_t k = head; k < head - done + group && k < head + kRows; ++k) {
      float* out = p.chunks == 1 ? a.out + k * dim : p.partial + (k * p.chunks + c) * dim;
      g.add({p.queries + k * dim, out, begin, std::min(end, from + chunk), kNothing, 0});
    }
    go_over(p, kv, &g);
    for (int64_t r = 0; r < g.count; ++r) {
      if (p.chunks == 1) divide(g.rows[r].out, dim, g.rows[r].sum);
      float* found = p.chunks == 1 ? nullptr : tops_and_sums(p, head + r) + 2 * c;
      if (found) found[0] = g.rows[r].top, found[1] = g.rows[r].sum;
    }
  }
}

// The chunks of one head, in their order.
void merge(const Plan& p, int64_t b, int64_t head) {
  const Attention& a = *p.a;
  const int64_t count = chunks_of(a, b), dim = a.head_dim;
  const float *found = tops_and_sums(p, head), *parts = p.partial + head * p.chunks * dim;
  float *out = a.out + head * dim, top = found[0], sum = 0;
  for (int64_t c = 1; c < count; ++c)
    if (found[2 * c] > top || std::isnan(found[2 * c])) top = found[2 * c];
  std::memset(out, 0, static_cast<size_t>(dim) * sizeof(float));
  for (int64_t c = 0; c < count; ++c) {
    const float worth = std::exp(found[2 * c] - top);
    sum += worth * found[2 * c + 1];
    for (int64_t j = 0; j < dim; ++j) out[j] += worth * parts[c * dim + j];
  }
  divide(out, dim, sum);
}

const AttentionKernels* kernels_for(Isa isa) {
  const Isa wanted = isa == Isa::automatic ? best_isa() : isa;
  if (wanted >= Isa::avx512 && isa_available(Isa::avx512)) return avx512_attention();
  return wanted >= Isa::avx2 && isa_available(Isa::avx2) ? avx2_attention() : portable_attention();
}

// Memory for the queries and the chunks, and how the work is cut.
Plan planned(const Attention& a, Scratch& scratch) {
  const int64_t group = a.heads / a.kv_heads, queries = a.batch * a.sequence * a.heads * a.head_dim;
  Plan p{&a, kernels_for(a.isa), nullptr, group, 1, 1, 1, nullptr, a.halves ? sizeof(uint16_t) : sizeof(float)};
  if (a.sequence == 1)
    for (int64_t b = 0; b < a.batch; ++b) p.chunks = std::max(p.chunks, chunks_of(a, b));
  const int64_t partial = p.chunks > 1 ? a.batch * a.heads * p.chunks * (a.head_dim + 2) : 0;
  p.queries = reinterpret_cast<float*>(scratch.at_least(static_cast<size_t>(queries + partial) * sizeof(float)));
  p.partial = p.queries + queries;
  p.spans = (a.sequence + kRowsItem - 1) / kRowsItem;
  while (a.sequence > 1 && p.heads_item > 1 && a.batch * a.kv_heads * p.spans * p.parts < kItems) {
    p.heads_item = (p.heads_item + 1) / 2;
    p.parts = (group + p.heads_item - 1) / p.heads_item;
  }
  return p;
}

void each(Parallel& parallel, int64_t count, void (*body)(void*, int64_t), Plan* plan) {
  if (count == 1) body(plan, 0);
  else parallel.run(count, body, plan);
}

}  // namespace

const char* why_not(const Attention& a) {
  if (a.batch < 0 || a.sequence < 0 || a.heads < 1 || a.kv_heads < 1 || a.heads % a.kv_heads)
    return "the heads of queries must be a multiple of the heads of keys";
  if (a.head_dim < 8 || a.head_dim % 8 || a.head_dim > kMaxHeadDim)
    return "head_dim must be a multiple of 8, at most 512";
  if (a.rotary_half < 0 || 2 * a.rotary_half > a.head_dim) return "more channels are rotated than a head has";
  for (int64_t b = 0; b < a.batch; ++b) {
    const int64_t past = past_of(a, b);
    if (past < 0) return "seqlens_k says fewer positions than this run has tokens";
    if (past + a.sequence > a.capacity) return "the cache is full: its capacity is less than the positions of this run";
    if (past + a.sequence > a.table_rows && a.rotary_half) return "a position lies beyond the rotary tables";
  }
  return nullptr;
}

void attend(const Attention& a, Parallel& parallel, Scratch& scratch) {
  if (!a.batch || !a.sequence) return;
  Plan plan = planned(a, scratch);
  each(parallel, (a.batch * a.sequence + kRowsItem - 1) / kRowsItem, store_tokens, &plan);
  const int64_t shared = a.batch * a.kv_heads;
  if (a.sequence > 1) return each(parallel, shared * plan.parts * plan.spans, attend_prompt, &plan);
  each(parallel, shared * plan.chunks, attend_chunk, &plan);
  for (int64_t head = 0; plan.chunks > 1 && head < a.batch * a.heads; ++head) merge(plan, head / a.heads, head);
}

}  // namespace tailcut
