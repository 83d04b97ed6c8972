#include "give_back.h"

#include <cstdint>
#include <vector>

#if defined(__linux__)
#include <fcntl.h>
#include <sys/mman.h>
#include <unistd.h>
#endif

namespace tailcut {

#if defined(__linux__)
namespace {

// One word a page in /proc/self/pagemap: bit 63 in memory, bit 62 in swap, bit 61 of a file or shared. A page of a
// private file mapping that somebody wrote to has bit 61 clear: that one is the only copy and must stay.
constexpr uint64_t kPresent = uint64_t{1} << 63, kSwapped = uint64_t{1} << 62, kBacked = uint64_t{1} << 61;

bool all_backed(int file, uintptr_t first, uintptr_t end, uintptr_t page) {
  std::vector<uint64_t> words(4096);
  for (uintptr_t at = first; at < end;) {
    const size_t left = (end - at) / page, count = left < words.size() ? left : words.size();
    const auto wanted = static_cast<ssize_t>(count * sizeof(uint64_t));
    if (pread(file, words.data(), count * sizeof(uint64_t), static_cast<off_t>(at / page * sizeof(uint64_t))) != wanted)
      return false;
    for (size_t i = 0; i < count; ++i)
      if (words[i] & kSwapped || (words[i] & kPresent && !(words[i] & kBacked))) return false;
    at += count * page;
  }
  return true;
}

}  // namespace

size_t give_back(const void* data, size_t bytes) {
  const auto page = static_cast<uintptr_t>(sysconf(_SC_PAGESIZE));
  const auto start = reinterpret_cast<uintptr_t>(data);
  const uintptr_t first = (start + page - 1) / page * page, end = (start + bytes) / page * page;
  if (!data || first >= end) return 0;
  const int file = open("/proc/self/pagemap", O_RDONLY | O_CLOEXEC);
  if (file < 0) return 0;
  const bool safe = all_backed(file, first, end, page);
  close(file);
  if (!safe || madvise(reinterpret_cast<void*>(first), end - first, MADV_DONTNEED)) return 0;
  return end - first;
}
#else
size_t give_back(const void*, size_t) { return 0; }
#endif

}  // namespace tailcut
