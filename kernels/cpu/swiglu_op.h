#pragma once

#include "ort_abi.h"

namespace tailcut::ort {

// tailcut::SwiGLU(gate_up [..., 2 n]) -> silu(gate) * up [..., n]
const CustomOp* swiglu_op();

}  // namespace tailcut::ort
