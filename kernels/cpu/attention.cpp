#include "attention.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>

namespace tailcut {
namespace {

constexpr int64_t kItems = 8;     // at least so many pieces of work, if there are that many heads of queries
constexpr int64_t kRowsItem = 16; // tokens of a prompt in one piece of work

int64_t width(const Attention& a) { return (a.heads + 2 * a.kv_heads) * a.head_dim; }

// Position of the first token of this run.
int64_t past_of(const Attention& a, int64_t b) { return a.first ? 0 : int64_t{a.last[b]} + 1 - a.sequence; }

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

struct Plan {
  const Attention* a;
  const AttentionKernels* kernels;
  float* queries;        // rotated and scaled, [batch, sequence, heads * head_dim]
  int64_t heads_item;    // heads of queries in one piece of work, all of one head of keys
  int64_t parts, spans;  // pieces a head of keys, and pieces a sequence
};

void store_token(const Plan& p, int64_t b, int64_t s) {
  const Attention& a = *p.a;
  const int64_t position = past_of(a, b) + s, dim = a.head_dim;
  const float* from = a.qkv + (b * a.sequence + s) * width(a);
  float* queries = p.queries + (b * a.sequence + s) * a.heads * dim;
  for (int64_t h = 0; h < a.heads; ++h) rotate(a, from + h * dim, position, a.scale, queries + h * dim);
  for (int64_t h = 0; h < a.kv_heads; ++h) {
    const int64_t row = ((b * a.kv_heads + h) * a.capacity + position) * dim;
    rotate(a, from + (a.heads + h) * dim, position, 1.0f, a.keys + row);
    std::memcpy(a.values + row, from + (a.heads + a.kv_heads + h) * dim, static_cast<size_t>(dim) * sizeof(float));
  }
}

void store_tokens(void* context, int64_t index) {
  const Plan& p = *static_cast<const Plan*>(context);
  const int64_t tokens = p.a->batch * p.a->sequence, first = index * kRowsItem;
  for (int64_t t = first; t < tokens && t < first + kRowsItem; ++t) store_token(p, t / p.a->sequence, t % p.a->sequence);
}

float cap(float score, float limit) { return limit > 0 ? limit * std::tanh(score / limit) : score; }

// The running softmax of one query.
struct Row {
  const float* query;
  float* out;
  int64_t begin, end;  // positions it sees
  float top = -std::numeric_limits<float>::infinity(), sum = 0;
};

void take_span(const Plan& p, const float* keys, const float* values, int64_t at, int64_t stop, Row* row) {
  const int64_t from = at > row->begin ? at : row->begin, to = stop < row->end ? stop : row->end, dim = p.a->head_dim;
  if (from >= to) return;
  float weights[kSpan], top = row->top;
  p.kernels->scores(row->query, keys + from * dim, dim, to - from, weights);
  for (int64_t i = 0; i < to - from; ++i) {
    weights[i] = cap(weights[i], p.a->softcap);
    if (weights[i] > top || std::isnan(weights[i])) top = weights[i];
  }
  const float keep = row->sum > 0 ? std::exp(row->top - top) : 0.0f;
  row->sum = row->sum * keep + p.kernels->exponentials(weights, to - from, top);
  p.kernels->accumulate(weights, values + from * dim, dim, to - from, keep, row->out);
  row->top = top;
}

// Some heads of queries that share a head of keys, at some tokens: each block of the cache is read once for all of them.
void attend_some(void* context, int64_t index) {
  const Plan& p = *static_cast<const Plan*>(context);
  const Attention& a = *p.a;
  const int64_t span = index % p.spans, part = index / p.spans % p.parts, kv = index / p.spans / p.parts;
  const int64_t b = kv / a.kv_heads, group = a.heads / a.kv_heads, dim = a.head_dim, past = past_of(a, b);
  const int64_t head0 = kv % a.kv_heads * group + part * p.heads_item;
  const int64_t head1 = std::min(head0 + p.heads_item, (kv % a.kv_heads + 1) * group);
  const int64_t s0 = span * kRowsItem, s1 = std::min(s0 + kRowsItem, a.sequence);
  Row rows[kRowsItem * 16];
  for (int64_t h = head0; h < head1; h += 16) {
    int64_t count = 0, end = 0, begin = past + s1;
    for (int64_t s = s0; s < s1; ++s)
      for (int64_t k = h; k < head1 && k < h + 16; ++k) {
        Row& row = rows[count++];
        const int64_t at = ((b * a.sequence + s) * a.heads + k) * dim, seen = past + s + 1;
        row = Row{p.queries + at, a.out + at, a.window > 0 && seen > a.window ? seen - a.window : 0, seen};
        std::memset(row.out, 0, static_cast<size_t>(dim) * sizeof(float));
        begin = std::min(begin, row.begin), end = std::max(end, row.end);
      }
    const float *keys = a.keys + kv * a.capacity * dim, *values = a.values + kv * a.capacity * dim;
    for (int64_t at = begin / kSpan * kSpan; at < end; at += kSpan)
      for (int64_t r = 0; r < count; ++r) take_span(p, keys, values, at, at + kSpan, &rows[r]);
    for (int64_t r = 0; r < count; ++r)
      for (int64_t j = 0; j < dim; ++j) rows[r].out[j] /= rows[r].sum;
  }
}

void plain_scores(const float* query, const float* keys, int64_t dim, int64_t count, float* out) {
  for (int64_t i = 0; i < count; ++i) {
    float sum = 0;
    for (int64_t j = 0; j < dim; ++j) sum += query[j] * keys[i * dim + j];
    out[i] = sum;
  }
}

float plain_exponentials(float* weights, int64_t count, float top) {
  float sum = 0;
  for (int64_t i = 0; i < count; ++i) sum += weights[i] = std::exp(weights[i] - top);
  return sum;
}

void plain_accumulate(const float* weights, const float* values, int64_t dim, int64_t count, float keep, float* out) {
  for (int64_t j = 0; j < dim; ++j) out[j] *= keep;
  for (int64_t i = 0; i < count; ++i)
    for (int64_t j = 0; j < dim; ++j) out[j] += weights[i] * values[i * dim + j];
}

}  // namespace

const AttentionKernels* portable_attention() {
  static const AttentionKernels table{plain_scores, plain_exponentials, plain_accumulate};
  return &table;
}

const char* why_not(const Attention& a) {
  if (a.batch < 0 || a.sequence < 0 || a.heads < 1 || a.kv_heads < 1 || a.heads % a.kv_heads)
    return "the heads of queries must be a multiple of the heads of keys";
  if (a.head_dim < 8 || a.head_dim % 8 || a.head_dim > kMaxHeadDim) return "head_dim must be a multiple of 8, at most 512";
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
  const int64_t tokens = a.batch * a.sequence, group = a.heads / a.kv_heads;
  Plan plan{&a, isa_available(Isa::avx2) ? avx2_attention() : portable_attention(), nullptr, group, 1, 1};
  plan.queries = reinterpret_cast<float*>(scratch.at_least(static_cast<size_t>(tokens * a.heads * a.head_dim) * sizeof(float)));
  plan.spans = (a.sequence + kRowsItem - 1) / kRowsItem;
  while (plan.heads_item > 1 && a.batch * a.kv_heads * plan.spans * plan.parts < kItems) {
    plan.heads_item = (plan.heads_item + 1) / 2;
    plan.parts = (group + plan.heads_item - 1) / plan.heads_item;
  }
  const int64_t stores = (tokens + kRowsItem - 1) / kRowsItem, items = a.batch * a.kv_heads * plan.parts * plan.spans;
  if (stores == 1) store_tokens(&plan, 0);
  else parallel.run(stores, store_tokens, &plan);
  if (items == 1) attend_some(&plan, 0);
  else parallel.run(items, attend_some, &plan);
}

}  // namespace tailcut
