// The AVX-512 table: F, BW, VL, DQ, VBMI, VBMI2 and VNNI (Ice Lake, Zen 4 and later).
#include "avx512.h"

namespace tailcut {

#if defined(TAILCUT_EMULATE) || (defined(__AVX512VBMI2__) && defined(__AVX512VNNI__))
namespace {

bool integers(const Matrix& w) { return w.kind == Kind::i8 || w.kind == Kind::i4; }

size_t scratch_bytes(const Matrix& w, int64_t m) {
  const size_t bytes = w.format == Format::index ? avx512::index_scratch_bytes(w, m)
                       : avx512::by_slots(w, m)  ? avx512::slots_scratch_bytes(w, m)
                       : integers(w)             ? avx512::integer_scratch_bytes(w, m)
                                                 : avx512::float_scratch_bytes(w, m);
  return (bytes + 63) / 64 * 64;
}

void prepare(const Matrix& w, const float* x, int64_t m, int64_t first, int64_t last, uint8_t* scratch) {
  if (w.format == Format::index) avx512::index_prepare(w, x, m, first, last, scratch);
  else if (avx512::by_slots(w, m)) avx512::slots_prepare(w, x, m, first, last, scratch);
  else if (integers(w)) avx512::integer_prepare(w, x, m, first, last, scratch);
  else avx512::float_prepare(w, x, m, first, last, scratch);
}

void compute(const Matrix& w, const float* x, const uint8_t* scratch, int64_t m, float* y, int64_t ldy, int64_t row0,
             int64_t row1) {
  if (w.format == Format::index) avx512::index_compute(w, x, scratch, m, y, ldy, row0, row1);
  else if (avx512::by_slots(w, m)) avx512::slots_compute(w, scratch, m, y, ldy, row0, row1);
  else if (integers(w)) avx512::integer_compute(w, scratch, m, y, ldy, row0, row1);
  else avx512::float_compute(w, x, scratch, m, y, ldy, row0, row1);
}

}  // namespace

const Kernels* avx512_kernels() {
  static constexpr Kernels table{"avx512", scratch_bytes, prepare, compute};
  return &table;
}
#else
const Kernels* avx512_kernels() { return nullptr; }
#endif

}  // namespace tailcut
