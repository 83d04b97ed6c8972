// The AVX2 table.
#include "pack.h"

namespace tailcut {
const Kernels* avx2_kernels() { return nullptr; }
bool slots_are_better(const Source&, const Counted&) { return false; }
bool pack_slots(const Source&, const Counted&, Matrix*, std::string*) { return false; }
}  // namespace tailcut
