// Memory of weights that were packed and will not be read again.
#pragma once

#include <cstddef>

namespace tailcut {

// Give back the whole pages inside [data, data + bytes), if each of them is backed by a file or shared memory and
// nothing is lost by it: it is read again from there if anybody asks. Returns the bytes given back.
size_t give_back(const void* data, size_t bytes);

}  // namespace tailcut
