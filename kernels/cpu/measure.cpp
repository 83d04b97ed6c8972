// For benchmarks: the machine's read stream and products over a rotating pool of matrices, timed inside the library so
// that no interpreter stands between two calls.

#include <chrono>
#include <cstring>

#include "capi.h"
#include "matrix.h"
#include "threads.h"

namespace tailcut {
namespace {

// A core has more reads under way in several streams far apart than in one: its prefetchers follow each by itself, and
// they hit different banks of memory. Four read fastest on the processors that were tried.
constexpr size_t kStreams = 4;
constexpr size_t kLine = 64, kAhead = 1024;
constexpr size_t kPiece = size_t{256} << 10;  // of each stream that a thread reads before it asks for more work

// Piece i is the i-th of each stream; the streams are the buffer's quarters.
struct Stream {
  const uint8_t* data;
  size_t quarter;  // bytes, whole lines
};

double seconds_since(std::chrono::steady_clock::time_point start) {
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
}

uint64_t read_line(const uint8_t* at) {
  uint64_t words[8], sum = 0;
  std::memcpy(words, at, kLine);
  for (uint64_t word : words) sum += word;
  return sum;
}

void read_piece(void* context, int64_t index) {
  const auto& stream = *static_cast<const Stream*>(context);
  const size_t first = static_cast<size_t>(index) * kPiece;
  const size_t last = first + kPiece < stream.quarter ? first + kPiece : stream.quarter;
  uint64_t sum = 0;
  for (size_t at = first; at < last; at += kLine)
    for (size_t k = 0; k < kStreams; ++k) {
      const uint8_t* line = stream.data + k * stream.quarter + at;
      __builtin_prefetch(line + kAhead);
      sum += read_line(line);
    }
  __asm__ volatile("" : : "r"(sum));  // or the loop would be removed
}

}  // namespace
}  // namespace tailcut

using namespace tailcut;

// Seconds to read `bytes` bytes once with `threads` threads.
TAILCUT_PUBLIC double tailcut_stream_read(const void* data, size_t bytes, int32_t threads) {
  Stream stream{static_cast<const uint8_t*>(data), bytes / kStreams / kLine * kLine};
  const auto start = std::chrono::steady_clock::now();
  threads_of(threads).run(static_cast<int64_t>((stream.quarter + kPiece - 1) / kPiece), read_piece, &stream);
  return seconds_since(start);
}

// `calls` products with the matrices of the pool in turn, starting at `first`; the seconds of each in `out`. 0 if out of memory.
TAILCUT_PUBLIC int32_t tailcut_time_pool(const void* const* pool, int32_t count, int32_t first, const float* x, int64_t m,
                                         float* y, int32_t threads, int32_t calls, double* out) {
  for (int32_t i = 0; i < calls; ++i) {
    const auto start = std::chrono::steady_clock::now();
    if (!tailcut_matmul(pool[(first + i) % count], x, m, y, threads)) return 0;
    out[i] = seconds_since(start);
  }
  return 1;
}
