// The AMX table: tiles for i8, i4 and bf16 with several rows of x, AVX-512 for all else.
#include "amx.h"

#include "avx512.h"

namespace tailcut {

#if defined(TAILCUT_EMULATE) || (defined(__AMX_INT8__) && defined(__AMX_BF16__) && defined(__AVX512VBMI2__))
namespace {

bool integer_tiles(const Matrix& w, int64_t m) {
  return (w.kind == Kind::i8 || w.kind == Kind::i4) && m >= amx::kIntegerRows && !avx512::by_slots(w, m);
}
bool bfloat_tiles(const Matrix& w, int64_t m) {
  return w.kind == Kind::bf16 && w.format != Format::index && m >= amx::kBfloatRows;
}

size_t scratch_bytes(const Matrix& w, int64_t m) {
  if (integer_tiles(w, m)) return amx::integer_scratch_bytes(w, m);
  if (bfloat_tiles(w, m)) return amx::bfloat_scratch_bytes(w, m);
  return avx512_kernels()->scratch_bytes(w, m);
}

void prepare(const Matrix& w, const float* x, int64_t m, int64_t first, int64_t last, uint8_t* scratch) {
  if (integer_tiles(w, m)) amx::integer_prepare(w, x, m, first, last, scratch);
  else if (bfloat_tiles(w, m)) amx::bfloat_prepare(w, x, m, first, last, scratch);
  else avx512_kernels()->prepare(w, x, m, first, last, scratch);
}

void compute(const Matrix& w, const float* x, const uint8_t* scratch, int64_t m, float* y, int64_t ldy, int64_t row0,
             int64_t row1) {
  if (integer_tiles(w, m)) amx::integer_compute(w, scratch, m, y, ldy, row0, row1);
  else if (bfloat_tiles(w, m)) amx::bfloat_compute(w, scratch, m, y, ldy, row0, row1);
  else avx512_kernels()->compute(w, x, scratch, m, y, ldy, row0, row1);
}

}  // namespace

const Kernels* amx_kernels() {
  static constexpr Kernels table{"amx", scratch_bytes, prepare, compute};
  return avx512_kernels() ? &table : nullptr;
}
#else
const Kernels* amx_kernels() { return nullptr; }
#endif

}  // namespace tailcut
