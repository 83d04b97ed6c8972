#include "threads.h"

#include <pthread.h>

#include <atomic>
#include <map>
#include <memory>
#include <mutex>
#include <system_error>
#include <thread>

#include "wait.h"

#if defined(__linux__)
#include <sched.h>
#endif

namespace tailcut {
namespace {

constexpr int32_t kMostThreads = 256;
constexpr int32_t kMostPackers = 16;  // packing waits for memory long before that
constexpr int64_t kWorthThreads = int64_t{1} << 18;  // weights: a third of a millisecond of packing
constexpr std::chrono::microseconds kIdle{200};      // about the gap between two products of a decode step
constexpr std::chrono::microseconds kFinish{2000};   // the last pieces of a round are shorter than that
constexpr size_t kLine = 64;                         // what different threads write lies in different cache lines

struct Alone : Parallel {
  void run(int64_t count, void (*body)(void*, int64_t), void* context) override {
    for (int64_t i = 0; i < count; ++i) body(context, i);
  }
};

// One round of work. Every thread takes the next index until none is left.
struct alignas(kLine) Round {
  void (*body)(void*, int64_t) = nullptr;
  void* context = nullptr;
  int64_t count = 0;
  alignas(kLine) std::atomic<int64_t> next{0};

  void work() {
    for (int64_t i = next.fetch_add(1); i < count; i = next.fetch_add(1)) body(context, i);
  }
};

class Pool : public Parallel {
 public:
  // Where there are fewer processors than threads, one that spins keeps another from working: then all sleep.
  explicit Pool(int32_t threads) : spins_(threads <= usable_cpus()) {
    try {
      for (int32_t i = 1; i < threads; ++i, ++others_) std::thread([this] { serve(); }).detach();
    } catch (const std::system_error&) {  // no more threads to be had: those that started do the work
    }
  }

  // Workers all take part in every round: the round is over when each has reported, so its data may be reused.
  void run(int64_t count, void (*body)(void*, int64_t), void* context) override {
    if (count < 2 || !others_ || busy_.exchange(true, std::memory_order_acquire))
      return Alone().run(count, body, context);
    round_.body = body, round_.context = context, round_.count = count;
    round_.next.store(0, std::memory_order_relaxed);
    const uint64_t reports = done_.value() + others_;
    started_.raise();
    round_.work();
    done_.wait(reports, spins_ ? kFinish : std::chrono::microseconds::zero());
    busy_.store(false, std::memory_order_release);
  }

 private:
  void serve() {
    for (uint64_t round = 1;; ++round) {
      started_.wait(round, spins_ ? kIdle : std::chrono::microseconds::zero());
      round_.work();
      done_.raise();
    }
  }

  const bool spins_;
  uint64_t others_ = 0;
  Round round_;
  alignas(kLine) Signal started_;
  alignas(kLine) Signal done_;
  alignas(kLine) std::atomic<bool> busy_{false};
};

// All pools of the process, never destroyed: workers wait in them.
struct Pools {
  std::mutex mutex;
  std::map<int32_t, std::unique_ptr<Pool>> of;
};

Pools* pools = nullptr;

// A child of fork() has none of its parent's threads: it starts with no pools (its copies of the old ones are lost).
void forget_pools() { pools = new Pools; }

Pools& all_pools() {
  static const bool once = [] {
    forget_pools();
    pthread_atfork(nullptr, nullptr, forget_pools);
    return true;
  }();
  static_cast<void>(once);
  return *pools;
}

std::atomic<int32_t> asked{0};

}  // namespace

Parallel& threads_of(int32_t threads) {
  const int32_t wanted = threads < 1 ? 1 : threads > kMostThreads ? kMostThreads : threads;
  Pools& all = all_pools();
  const std::lock_guard<std::mutex> lock(all.mutex);
  std::unique_ptr<Pool>& pool = all.of[wanted];
  if (!pool) pool = std::make_unique<Pool>(wanted);
  return *pool;
}

int32_t usable_cpus() {
#if defined(__linux__)
  cpu_set_t set;
  if (!sched_getaffinity(0, sizeof set, &set) && CPU_COUNT(&set) > 0) return CPU_COUNT(&set);
#endif
  const unsigned found = std::thread::hardware_concurrency();
  return found ? static_cast<int32_t>(found) : 1;
}

Parallel& packing_threads(int64_t weights) {
  static Alone alone;
  if (const int32_t threads = asked.load()) return threads_of(threads);
  if (weights < kWorthThreads) return alone;
  const int32_t cpus = usable_cpus();
  return threads_of(cpus < kMostPackers ? cpus : kMostPackers);
}

void ask_packing_threads(int32_t threads) { asked.store(threads); }

}  // namespace tailcut
