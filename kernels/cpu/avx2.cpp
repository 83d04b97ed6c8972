// The AVX2 table: int8 and int4 by the integer kernels, everything else by the float kernels.

#include "matrix.h"

#if defined(__AVX2__)

#include "avx2.h"
#include "avx2_float.h"
#include "avx2_panel.h"
#include "avx2_slots_lanes.h"

namespace tailcut {
namespace avx2 {
namespace {

size_t scratch_bytes(const Matrix& w, int64_t m) {
  if (!integer(w)) return float_scratch_bytes(w, m);
  if (by_places(w, m)) return ByteLanes::bytes(w, m);
  return wide(w, m) ? IntLanes::bytes(w, m) : static_cast<size_t>(m) * activation_bytes(w);
}

void arrange(const Matrix& w, const float* x, int64_t m, int64_t first, int64_t last, uint8_t* scratch) {
  if (integer(w)) prepare(w, x, m, first, last, scratch);
  else float_prepare(w, x, m, first, last, scratch);
}

void compute(const Matrix& w, const float* x, const uint8_t* scratch, int64_t m, float* y, int64_t ldy, int64_t row0,
             int64_t row1) {
  if (integer(w)) int_compute(w, scratch, m, y, ldy, row0, row1);
  else float_compute(w, x, scratch, m, y, ldy, row0, row1);
}

}  // namespace
}  // namespace avx2

const Kernels* avx2_kernels() {
  static const Kernels table{"avx2", avx2::scratch_bytes, avx2::arrange, avx2::compute};
  return &table;
}

}  // namespace tailcut

#else

namespace tailcut {
const Kernels* avx2_kernels() { return nullptr; }
}  // namespace tailcut

#endif
