// Memory for packed weights: 2 MB aligned when large, so that the kernel may back it with huge pages.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>

namespace tailcut {

// `bytes` zeroed bytes, at least 64-byte aligned; empty if there is no memory.
std::shared_ptr<void> weight_memory(size_t bytes);

}  // namespace tailcut
