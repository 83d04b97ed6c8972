// What every operator needs while it runs: scratch memory, the session's threads, and no exception into the runtime.
#pragma once

#include <memory>
#include <mutex>
#include <new>
#include <vector>

#include "matrix.h"
#include "ort_abi.h"

namespace tailcut::ort {

// Scratch memory of all sessions: an operator takes one for a run and puts it back, so that a few warm buffers serve
// everything and a run allocates nothing once they have grown.
class ScratchPool {
 public:
  std::unique_ptr<Scratch> take() {
    const std::lock_guard<std::mutex> lock(mutex_);
    if (free_.empty()) return std::make_unique<Scratch>();
    std::unique_ptr<Scratch> scratch = std::move(free_.back());
    free_.pop_back();
    return scratch;
  }
  void put(std::unique_ptr<Scratch> scratch) {
    const std::lock_guard<std::mutex> lock(mutex_);
    free_.push_back(std::move(scratch));
  }

 private:
  std::mutex mutex_;
  std::vector<std::unique_ptr<Scratch>> free_;
};

ScratchPool& scratch_pool();

// The session's thread pool: tasks are handed out one at a time to whichever thread is free.
class SessionThreads : public Parallel {
 public:
  SessionThreads(const Api* api, const Context* context) : api_(api), context_(context) {}
  void run(int64_t count, void (*body)(void*, int64_t), void* context) override {
    struct Call {
      void (*body)(void*, int64_t);
      void* context;
    } call{body, context};
    const auto one = [](void* user, size_t index) {
      const auto* c = static_cast<const Call*>(user);
      c->body(c->context, static_cast<int64_t>(index));
    };
    Status* status = ParallelFor::of(api_)(context_, one, static_cast<size_t>(count), 0, &call);
    if (!status) return;
    ReleaseStatus::of(api_)(status);  // without its threads the work is still done
    for (int64_t i = 0; i < count; ++i) body(context, i);
  }

 private:
  const Api* api_;
  const Context* context_;
};

// No exception may cross into the runtime.
template <class Body>
Status* guarded(const Api* api, Body body) {
  try {
    return body();
  } catch (const std::bad_alloc&) {
    return CreateStatus::of(api)(kRuntimeException, "tailcut: not enough memory");
  } catch (...) {
    return CreateStatus::of(api)(kRuntimeException, "tailcut: unexpected failure");
  }
}

// The callbacks that all operators answer alike.
void fill_common(CustomOp* op);

}  // namespace tailcut::ort
