// What tests and benchmarks ask for in place of the automatic choice; for matrices packed after the call.
#pragma once

#include "matrix.h"

namespace tailcut {

Isa forced_isa();
Format forced_format();

}  // namespace tailcut
