// The inner loops of attention on AVX-512, 16 channels or 16 positions at a time.
//
// A head is a multiple of 8 channels: where it is no multiple of 16, the last 8 are a masked half vector. The order in
// which sums are taken depends on head_dim and on the number of positions alone.
#include "attention.h"
#include "avx512.h"

#if defined(TAILCUT_EMULATE) || (defined(__AVX512VBMI2__) && defined(__AVX512VNNI__))
#include "avx512_vector.h"
#include "exp_terms.h"

namespace tailcut {
namespace {

constexpr uint16_t kHalfVector = 0x00ff;

// exp of values <= 0 (NaN stays NaN); 0 where it would be subnormal.
inline Floats exponential(Floats x) {
  const Floats lowest = all(kExpLowest), z = larger(lowest, x);  // a NaN, as the second operand, stays
  const Floats whole = round_floats(mul(z, all(kLog2E)));
  const Floats r = fma(whole, all(-kLn2Low), fma(whole, all(-kLn2High), z));
  Floats p = all(kExpTerms[0]);
  TAILCUT_UNROLL for (int i = 1; i < kExpTermCount; ++i) p = fma(p, r, all(kExpTerms[i]));
  return keep_lanes(not_below(x, lowest), times_power(p, whole));
}

// Scores of 16 positions side by side; of `count` of them unless they are whole, and the last again for the others.
template <bool whole>
inline Floats scores16(const float* query, const float* keys, int64_t dim, int64_t count) {
  const auto row = [=](int64_t k) { return keys + (whole ? k : smaller(k, count - 1)) * dim; };
  const int64_t full = dim / 16 * 16;
  Floats sums[16];
  TAILCUT_UNROLL for (int k = 0; k < 16; ++k) sums[k] = zeros();
  for (int64_t j = 0; j < full; j += 16) {
    const Floats q = load(query + j);
    TAILCUT_UNROLL for (int k = 0; k < 16; ++k) sums[k] = fma(q, load(row(k) + j), sums[k]);
  }
  if (full < dim) {
    const Floats q = load_some(query + full, kHalfVector);
    TAILCUT_UNROLL for (int k = 0; k < 16; ++k) sums[k] = fma(q, load_some(row(k) + full, kHalfVector), sums[k]);
  }
  return sum_each(sums);
}

void scores(const float* query, const float* keys, int64_t dim, int64_t count, float* out) {
  int64_t i = 0;
  for (; i + 16 <= count; i += 16) store(out + i, scores16<true>(query, keys + i * dim, dim, 16));
  if (i < count) store_some(out + i, lanes_of(count - i), scores16<false>(query, keys + i * dim, dim, count - i));
}

float largest(const float* scores, int64_t count) {
  Floats top = all(scores[0]);
  unsigned bad = 0;
  for (int64_t i = 0; i < count; i += 16) {
    const Floats here = load_over(top, scores + i, lanes_of(count - i));
    bad |= not_numbers(here);
    top = larger(top, here);
  }
  return bad ? __builtin_nanf("") : largest_float(top);
}

float exponentials(float* weights, int64_t count, float top) {
  const Floats high = all(top);
  Floats total = zeros();
  for (int64_t i = 0; i < count; i += 16) {
    const uint16_t lanes = lanes_of(count - i);
    const Floats e = keep_lanes(lanes, exponential(sub(load_some(weights + i, lanes), high)));
    store_some(weights + i, lanes, e);
    total = add(total, e);
  }
  return sum(total);
}

// 16 channels, or 8 and zeros behind them.
template <bool half>
inline Floats channels(const float* at) {
  return half ? load_some(at, kHalfVector) : load(at);
}

// `vectors` vectors of channels stay in registers over all positions, each in `parts` sums of every parts-th position:
// enough of them to hide the latency of the additions.
template <int vectors, int parts, bool half = false>
void accumulate_channels(const float* weights, const float* values, int64_t dim, int64_t count, float keep,
                         float* out) {
  Floats sums[parts][vectors];
  TAILCUT_UNROLL for (int k = 0; k < vectors; ++k) {
    sums[0][k] = mul(channels<half>(out + 16 * k), all(keep));
    TAILCUT_UNROLL for (int p = 1; p < parts; ++p) sums[p][k] = zeros();
  }
  int64_t i = 0;
  for (; i + parts <= count; i += parts)
    TAILCUT_UNROLL for (int p = 0; p < parts; ++p) {
      const Floats w = all(weights[i + p]);
      const float* at = values + (i + p) * dim;
      TAILCUT_UNROLL for (int k = 0; k < vectors; ++k) sums[p][k] = fma(w, channels<half>(at + 16 * k), sums[p][k]);
    }
  for (; i < count; ++i)
    TAILCUT_UNROLL for (int k = 0; k < vectors; ++k)
        sums[0][k] = fma(all(weights[i]), channels<half>(values + i * dim + 16 * k), sums[0][k]);
  TAILCUT_UNROLL for (int k = 0; k < vectors; ++k) {
    TAILCUT_UNROLL for (int p = 1; p < parts; ++p) sums[0][k] = add(sums[0][k], sums[p][k]);
    store_some(out + 16 * k, half ? kHalfVector : uint16_t{0xffff}, sums[0][k]);
  }
}

void accumulate(const float* weights, const float* values, int64_t dim, int64_t count, float keep, float* out) {
  int64_t j = 0;
  for (; j + 128 <= dim; j += 128) accumulate_channels<8, 1>(weights, values + j, dim, count, keep, out + j);
  for (; j + 64 <= dim; j += 64) accumulate_channels<4, 2>(weights, values + j, dim, count, keep, out + j);
  for (; j + 16 <= dim; j += 16) accumulate_channels<1, 8>(weights, values + j, dim, count, keep, out + j);
  if (j < dim) accumulate_channels<1, 8, true>(weights, values + j, dim, count, keep, out + j);
}

void widen(const uint16_t* from, int64_t count, float* to) {
  int64_t i = 0;
  for (; i + 16 <= count; i += 16) store(to + i, widen_halves(reinterpret_cast<const uint8_t*>(from + i)));
  if (i == count) return;
  uint8_t rest[32] = {};  // 8 are left
  std::memcpy(rest, from + i, 16);
  store_some(to + i, kHalfVector, widen_halves(rest));
}

void narrow(const float* from, int64_t count, uint16_t* to) {
  int64_t i = 0;
  for (; i + 16 <= count; i += 16) store_halves(to + i, load(from + i));
  if (i == count) return;
  uint16_t rest[16];
  store_halves(rest, load_some(from + i, kHalfVector));
  std::memcpy(to + i, rest, 16);
}

}  // namespace

const AttentionKernels* avx512_attention() {
  static constexpr AttentionKernels table{scores, largest, exponentials, accumulate, widen, narrow};
  return &table;
}

}  // namespace tailcut
#else
namespace tailcut {
const AttentionKernels* avx512_attention() { return nullptr; }
}  // namespace tailcut
#endif
