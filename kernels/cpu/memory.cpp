#include "memory.h"

#include <sys/mman.h>
#include <unistd.h>

namespace tailcut {
namespace {

constexpr size_t kHuge = size_t{2} << 20;

size_t round_up(size_t value, size_t unit) { return (value + unit - 1) / unit * unit; }

}  // namespace

// Maps 2 MB more than needed and returns both ends, which leaves an aligned start: the tail beyond the last whole
// huge page stays in ordinary pages and costs no memory that is not used.
std::shared_ptr<void> weight_memory(size_t bytes) {
  const size_t page = static_cast<size_t>(sysconf(_SC_PAGESIZE));
  const size_t wanted = round_up(bytes ? bytes : 1, page);
  const size_t mapped = wanted >= kHuge ? wanted + kHuge : wanted;
  if (mapped < bytes) return {};
  void* raw = mmap(nullptr, mapped, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (raw == MAP_FAILED) return {};
  auto* start = static_cast<uint8_t*>(raw);
  if (mapped > wanted) {
    auto* aligned = reinterpret_cast<uint8_t*>(round_up(reinterpret_cast<uintptr_t>(start), kHuge));
    if (aligned > start) munmap(start, static_cast<size_t>(aligned - start));
    uint8_t* const end = start + mapped;
    if (end > aligned + wanted) munmap(aligned + wanted, static_cast<size_t>(end - (aligned + wanted)));
    start = aligned;
#if defined(MADV_HUGEPAGE)
    madvise(start, wanted, MADV_HUGEPAGE);  // advice: a refusal changes speed only
#endif
  }
  return std::shared_ptr<void>(start, [wanted](void* p) { munmap(p, wanted); });
}

}  // namespace tailcut
