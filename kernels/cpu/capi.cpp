#include "capi.h"

#include <atomic>
#include <cstring>
#include <memory>
#include <mutex>
#include <new>
#include <string>

#include "forced.h"
#include "matrix.h"
#include "threads.h"

namespace tailcut {
namespace {

std::atomic<int32_t> asked_isa{-1}, asked_format{-1};
std::atomic<int64_t> packed{0};

void say(const std::string& sentence, char* error, size_t capacity) {
  if (!error || !capacity) return;
  const size_t length = sentence.size() < capacity - 1 ? sentence.size() : capacity - 1;
  std::memcpy(error, sentence.data(), length);
  error[length] = 0;
}

bool valid(int32_t isa, int32_t format) { return isa >= -1 && isa <= 3 && format >= -1 && format <= 3; }

struct Handle {
  std::unique_ptr<Matrix> w;
};

// One matmul at a time in this interface: it times and tests kernels, sessions have their own threads.
std::mutex& one_at_a_time() {
  static auto* const mutex = new std::mutex;
  return *mutex;
}

Scratch& shared_scratch() {
  static auto* const scratch = new Scratch;
  return *scratch;
}

}  // namespace

Isa forced_isa() { return static_cast<Isa>(asked_isa.load()); }
Format forced_format() { return static_cast<Format>(asked_format.load()); }
void count_packed(int64_t bytes) { packed.fetch_add(bytes, std::memory_order_relaxed); }

}  // namespace tailcut

using namespace tailcut;

TAILCUT_PUBLIC int32_t tailcut_format_version() { return kFormatVersion; }

TAILCUT_PUBLIC int32_t tailcut_isa_available(int32_t isa) {
  return isa >= 0 && isa <= 3 && kernels_of(static_cast<Isa>(isa)) && isa_available(static_cast<Isa>(isa));
}

TAILCUT_PUBLIC const char* tailcut_isa_name(int32_t isa) {
  return isa >= 0 && isa <= 3 ? isa_name(static_cast<Isa>(isa)) : "";
}

TAILCUT_PUBLIC int32_t tailcut_best_isa() { return static_cast<int32_t>(best_isa()); }

// -1 is automatic. Holds for matrices that sessions pack after this call; 0 if it is not known here.
TAILCUT_PUBLIC int32_t tailcut_force(int32_t isa, int32_t format) {
  if (!valid(isa, format) || (isa >= 0 && !tailcut_isa_available(isa))) return 0;
  asked_isa.store(isa), asked_format.store(format);
  return 1;
}

// A packed matrix, or null and a sentence in `error`.
TAILCUT_PUBLIC void* tailcut_pack(int32_t kind, int64_t rows, int64_t cols, const uint8_t* mask, size_t mask_bytes,
                                  const void* values, size_t value_bytes, const float* scales, size_t scale_count,
                                  int32_t isa, int32_t format, char* error, size_t capacity) {
  try {
    std::string sentence = "unknown instruction set or format";
    const Source source{static_cast<Kind>(kind), rows, cols, mask, mask_bytes, values, value_bytes, scales, scale_count};
    if (valid(isa, format)) {
      auto handle = std::make_unique<Handle>();
      handle->w = pack(source, static_cast<Isa>(isa), static_cast<Format>(format), &sentence);
      if (handle->w) return handle.release();
    }
    say(sentence, error, capacity);
  } catch (const std::exception& e) {
    say(std::string("not enough memory (") + e.what() + ")", error, capacity);
  }
  return nullptr;
}

// Activations of an i8 or i4 matrix in two int8 parts from now on (fine.h), or in one.
TAILCUT_PUBLIC void tailcut_set_fine(void* handle, int32_t fine) { static_cast<Handle*>(handle)->w->fine = fine != 0; }

TAILCUT_PUBLIC void tailcut_free(void* handle) { delete static_cast<Handle*>(handle); }

TAILCUT_PUBLIC void tailcut_describe(const void* handle, TailcutInfo* out) {
  const Matrix& w = *static_cast<const Handle*>(handle)->w;
  *out = TailcutInfo{static_cast<int32_t>(w.kind), static_cast<int32_t>(w.format), static_cast<int32_t>(w.isa), 0, w.rows,
                     w.cols, w.nonzeros, static_cast<int64_t>(w.data_bytes)};
}

// The packed bytes, as many as tailcut_describe says.
TAILCUT_PUBLIC const void* tailcut_data(const void* handle) { return static_cast<const Handle*>(handle)->w->data; }

// Threads that pack matrices from now on; 0 leaves it to the library.
TAILCUT_PUBLIC void tailcut_ask_packing_threads(int32_t threads) { ask_packing_threads(threads); }

// y [m, rows] = x [m, cols] W^T with `threads` threads; 0 if there is not enough memory.
TAILCUT_PUBLIC int32_t tailcut_matmul(const void* handle, const float* x, int64_t m, float* y, int32_t threads) {
  try {
    const std::lock_guard<std::mutex> lock(one_at_a_time());
    matmul(*static_cast<const Handle*>(handle)->w, x, m, y, threads_of(threads), shared_scratch());
    return 1;
  } catch (const std::exception&) {
    return 0;
  }
}

// Bytes of packed matrices in the sessions of this process.
TAILCUT_PUBLIC int64_t tailcut_packed_bytes() { return packed.load(); }

// Calls of every kind of kernel since the process started; names and numbers, at most `capacity` of them.
TAILCUT_PUBLIC int32_t tailcut_counters(const char** names, uint64_t* calls, int32_t capacity) {
  constexpr int32_t kMost = 128;
  Counter found[kMost];
  const int32_t count = counters(found, capacity < kMost ? capacity : kMost);
  for (int32_t i = 0; i < count; ++i) names[i] = found[i].name, calls[i] = found[i].calls;
  return count;
}
