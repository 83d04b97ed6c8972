// Waiting for another thread: cheap when it takes microseconds, asleep when it takes long.
#pragma once

#include <atomic>
#include <chrono>
#include <condition_variable>
#include <cstdint>
#include <mutex>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace tailcut {

// PAUSE is polite to the other thread of a core, but costs up to 140 cycles, and in a virtual machine a loop of it can
// hand the processor back to the host. So nobody pauses during the first microseconds, when most waits end.
constexpr std::chrono::microseconds kEager{5};

// A number that only grows, and threads that wait for it to.
class Signal {
 public:
  // The value, for whoever set it last or waits for no one.
  uint64_t value() const { return value_.load(std::memory_order_relaxed); }

  // What was written before is visible to whoever sees the new value. Either a thread that is about to sleep sees it,
  // or this sees the sleeper: both sides first write, then read, in one order for all.
  void raise() {
    value_.fetch_add(1, std::memory_order_seq_cst);
    if (!sleepers_.load(std::memory_order_seq_cst)) return;
    { const std::lock_guard<std::mutex> lock(mutex_); }
    wake_.notify_all();
  }

  // Until the value is at least `wanted`; asleep after `patience`, at once if that is 0.
  void wait(uint64_t wanted, std::chrono::microseconds patience) {
    if (patience.count() && spin(wanted, patience)) return;
    sleepers_.fetch_add(1, std::memory_order_seq_cst);
    {
      std::unique_lock<std::mutex> lock(mutex_);
      wake_.wait(lock, [&] { return value_.load(std::memory_order_seq_cst) >= wanted; });
    }
    sleepers_.fetch_sub(1, std::memory_order_relaxed);
  }

 private:
  bool spin(uint64_t wanted, std::chrono::microseconds patience) const {
    const auto start = std::chrono::steady_clock::now();
    for (auto waited = std::chrono::nanoseconds::zero(); waited < patience;) {
      const bool eager = waited < kEager;
      for (int i = 0; i < 64; ++i) {
        if (value_.load(std::memory_order_acquire) >= wanted) return true;
        if (!eager) pause();
      }
      waited = std::chrono::steady_clock::now() - start;
    }
    return false;
  }

  static void pause() {
#if defined(__x86_64__)
    _mm_pause();
#endif
  }

  std::atomic<uint64_t> value_{0};
  std::atomic<int32_t> sleepers_{0};
  std::mutex mutex_;
  std::condition_variable wake_;
};

}  // namespace tailcut
