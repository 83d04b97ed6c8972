#include "threads.h"

#include <atomic>
#include <chrono>
#include <condition_variable>
#include <map>
#include <memory>
#include <mutex>
#include <thread>
#include <vector>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace tailcut {
namespace {

constexpr int32_t kMostThreads = 256;
constexpr std::chrono::microseconds kSpin{200};  // about the gap between two products of a decode step

void rest() {
#if defined(__x86_64__)
  _mm_pause();
#endif
}

// One round of work. Every thread takes the next index until none is left.
struct Round {
  void (*body)(void*, int64_t) = nullptr;
  void* context = nullptr;
  int64_t count = 0;
  std::atomic<int64_t> next{0};

  void work() {
    for (int64_t i = next.fetch_add(1); i < count; i = next.fetch_add(1)) body(context, i);
  }
};

class Pool : public Parallel {
 public:
  explicit Pool(int32_t threads) {
    for (int32_t i = 1; i < threads; ++i) std::thread([this] { serve(); }).detach();
    others_ = threads - 1;
  }

  // Workers all take part in every round: the round is over when each has reported, so its data may be reused.
  void run(int64_t count, void (*body)(void*, int64_t), void* context) override {
    round_.body = body, round_.context = context, round_.count = count;
    round_.next.store(0, std::memory_order_relaxed);
    done_.store(0, std::memory_order_relaxed);
    {
      const std::lock_guard<std::mutex> lock(mutex_);
      number_.fetch_add(1, std::memory_order_release);
    }
    wake_.notify_all();
    round_.work();
    while (done_.load(std::memory_order_acquire) < others_) rest();
  }

 private:
  void serve() {
    for (uint64_t seen = 0;;) {
      seen = wait_beyond(seen);
      round_.work();
      done_.fetch_add(1, std::memory_order_release);
    }
  }

  uint64_t wait_beyond(uint64_t seen) {
    const auto until = std::chrono::steady_clock::now() + kSpin;
    for (int spins = 0; number_.load(std::memory_order_acquire) == seen; ++spins) {
      rest();
      if (spins % 64 == 0 && std::chrono::steady_clock::now() > until) break;
    }
    std::unique_lock<std::mutex> lock(mutex_);
    wake_.wait(lock, [&] { return number_.load(std::memory_order_acquire) != seen; });
    return number_.load(std::memory_order_acquire);
  }

  Round round_;
  std::atomic<uint64_t> number_{0};
  std::atomic<int32_t> done_{0};
  int32_t others_ = 0;
  std::mutex mutex_;
  std::condition_variable wake_;
};

}  // namespace

Parallel& threads_of(int32_t threads) {
  static auto* const mutex = new std::mutex;
  static auto* const pools = new std::map<int32_t, std::unique_ptr<Pool>>;  // never destroyed: workers wait in them
  const int32_t wanted = threads < 1 ? 1 : threads > kMostThreads ? kMostThreads : threads;
  const std::lock_guard<std::mutex> lock(*mutex);
  std::unique_ptr<Pool>& pool = (*pools)[wanted];
  if (!pool) pool = std::make_unique<Pool>(wanted);
  return *pool;
}

}  // namespace tailcut
