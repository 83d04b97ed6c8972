// The products of avx2_panel.h. A weight pair costs one broadcast and, for each vector of x, VPMADDWD and an addition.

#if defined(__AVX2__)

#include "avx2_panel.h"

namespace tailcut::avx2 {
namespace {

constexpr int64_t kVectorBytes = 32;

inline __attribute__((always_inline)) __m256i load(const void* at) {
  return _mm256_load_si256(static_cast<const __m256i*>(at));
}
inline __attribute__((always_inline)) __m256i pair_of(const uint32_t* at) { return _mm256_set1_epi32(static_cast<int>(*at)); }

// The empty statement keeps the sum in its register: gcc otherwise adds the products of several steps first, which takes
// more registers than there are (measured: half as fast with eight vectors).
inline __attribute__((always_inline)) void add_pairs(__m256i* sum, __m256i weights, __m256i x) {
  *sum = _mm256_add_epi32(*sum, _mm256_madd_epi16(weights, x));
  __asm__("" : "+x"(*sum));
}

template <int V>
inline __attribute__((always_inline)) void add_scaled(const __m256i (&sum)[V], const float* scales, float own, float* to) {
#pragma GCC unroll 8
  for (int v = 0; v < V; ++v) {
    const __m256 scale = _mm256_mul_ps(_mm256_load_ps(scales + v * kIntLane), _mm256_set1_ps(own));
    const __m256 total = _mm256_load_ps(to + v * kIntLane);
    _mm256_store_ps(to + v * kIntLane, _mm256_fmadd_ps(_mm256_cvtepi32_ps(sum[v]), scale, total));
  }
}

inline __attribute__((always_inline)) void ask(const PanelStep& s, int64_t row) {
  const char* at = s.ahead + row * s.ahead_lines * 64;
  for (int64_t line = 0; line < s.ahead_lines; ++line, at += 64) _mm_prefetch(at, _MM_HINT_T1);
}

template <int V>
void sparse(const PanelStep& s) {
  const auto* const x = reinterpret_cast<const char*>(s.x);
  for (int64_t row = 0; row < s.rows; ++row) {
    ask(s, row);
    const uint32_t* const weights = s.lists->weights[row];
    const uint32_t* const at = s.lists->at[row];
    __m256i sum[V];
#pragma GCC unroll 8
    for (int v = 0; v < V; ++v) sum[v] = _mm256_setzero_si256();
    for (int64_t k = 0, count = s.lists->count[row]; k < count; k += kListStep) {
#pragma GCC unroll 4
      for (int step = 0; step < kListStep; ++step) {
        const __m256i pair = pair_of(weights + k + step);
        const char* const columns = x + static_cast<uint64_t>(at[k + step]) * V;
#pragma GCC unroll 8
        for (int v = 0; v < V; ++v)
          add_pairs(&sum[v], pair, load(columns + v * kVectorBytes));
      }
    }
    add_scaled(sum, s.scales, s.own ? s.own[row] : 1.0f, s.sums + row * V * kIntLane);
  }
}

// Two rows of W times V vectors of a block, the first of them `from`. The second row may be one that does not exist.
template <int V>
void dense(const PanelStep& s, int64_t vectors, int64_t from) {
  const char* const x = reinterpret_cast<const char*>(s.x) + from * kVectorBytes;
  for (int64_t row = 0; row < s.rows; row += 2) {
    if (from == 0) ask(s, row / 2);
    const uint32_t* const weights[2] = {s.lists->weights[row], s.lists->weights[row + 1]};
    __m256i sum[2][V];
#pragma GCC unroll 4
    for (int v = 0; v < V; ++v) sum[0][v] = sum[1][v] = _mm256_setzero_si256();
    const char* columns = x;
#pragma GCC unroll 2
    for (int64_t k = 0; k < s.pairs; ++k, columns += vectors * kVectorBytes) {
      const __m256i a = pair_of(weights[0] + k), b = pair_of(weights[1] + k);
#pragma GCC unroll 4
      for (int v = 0; v < V; ++v) {
        const __m256i two = load(columns + v * kVectorBytes);
        sum[0][v] = _mm256_add_epi32(sum[0][v], _mm256_madd_epi16(a, two));
        sum[1][v] = _mm256_add_epi32(sum[1][v], _mm256_madd_epi16(b, two));
      }
    }
    float* const sums = s.sums + (row * vectors + from) * kIntLane;
    add_scaled(sum[0], s.scales + from * kIntLane, s.own ? s.own[row] : 1.0f, sums);
    if (row + 1 < s.rows)
      add_scaled(sum[1], s.scales + from * kIntLane, s.own ? s.own[row + 1] : 1.0f, sums + vectors * kIntLane);
  }
}

}  // namespace

void panel_sparse(const PanelStep& step, int64_t vectors) {
  switch (vectors) {
    case 1: return sparse<1>(step);
    case 2: return sparse<2>(step);
    case 3: return sparse<3>(step);
    case 4: return sparse<4>(step);
    case 5: return sparse<5>(step);
    case 6: return sparse<6>(step);
    case 7: return sparse<7>(step);
    default: return sparse<8>(step);
  }
}

void panel_dense(const PanelStep& step, int64_t vectors) {
  for (int64_t from = 0; from < vectors; from += 4) switch (vectors - from) {
      case 1: dense<1>(step, vectors, from); break;
      case 2: dense<2>(step, vectors, from); break;
      case 3: dense<3>(step, vectors, from); break;
      default: dense<4>(step, vectors, from); break;
    }
}

}  // namespace tailcut::avx2

#endif
