// One product, spread over threads: the activations are arranged once, the rows of W are shared out.

#include <algorithm>
#include <atomic>
#include <cstdio>
#include <cstdlib>
#include <new>

#include "fine.h"
#include "matrix.h"

namespace tailcut {
namespace {

constexpr int kKinds = 5, kFormats = 4, kIsas = 4;
std::atomic<uint64_t> calls[kKinds][kFormats][kIsas];

constexpr int64_t kTaskBytes = 64 << 10;     // below this a second thread costs more than it brings
constexpr int64_t kStreamBytes = 768 << 10;  // a task reads on where it is: short tasks would keep starting anew
constexpr int64_t kFewTasks = 4, kMaxTasks = 32;  // several a thread: a thread that was held up takes fewer
constexpr int64_t kEven = 8;  // a number of tasks that 2, 4 and 8 threads can share evenly
constexpr int64_t kRowsOfX = 8;  // rows of x arranged by one task; AVX2 counts on whole vectors of them

struct Job {
  const Matrix& w;
  const float* x;
  uint8_t* scratch;
  int64_t m;
  float* y;
  int64_t tasks;
};

void prepare_some(void* context, int64_t index) {
  const Job& job = *static_cast<const Job*>(context);
  const int64_t first = index * kRowsOfX, last = first + kRowsOfX < job.m ? first + kRowsOfX : job.m;
  job.w.kernels->prepare(job.w, job.x, job.m, first, last, job.scratch);
}

void compute_some(void* context, int64_t index) {
  const Job& job = *static_cast<const Job*>(context);
  const int64_t tiles = (job.w.rows + kTile - 1) / kTile;
  const int64_t first = tiles * index / job.tasks * kTile;
  int64_t last = tiles * (index + 1) / job.tasks * kTile;
  if (last > job.w.rows) last = job.w.rows;
  if (first < last) job.w.kernels->compute(job.w, job.x, job.scratch, job.m, job.y, job.w.rows, first, last);
}

int64_t tasks_for(const Matrix& w, int64_t m) {
  const int64_t tiles = (w.rows + kTile - 1) / kTile;
  const int64_t work = static_cast<int64_t>(w.data_bytes) * (m < 16 ? 1 : m / 8);
  const int64_t most = std::min({tiles, work / kTaskBytes, kMaxTasks});
  const int64_t wanted = std::max(kFewTasks, work / kStreamBytes);
  return std::max<int64_t>(1, std::min(most, wanted <= kFewTasks ? wanted : (wanted + kEven - 1) / kEven * kEven));
}

}  // namespace

Scratch::~Scratch() { std::free(data); }

uint8_t* Scratch::at_least(size_t wanted) {
  if (wanted <= bytes) return data;
  std::free(data);
  data = nullptr, bytes = 0;
  const size_t rounded = (wanted + 4095) / 4096 * 4096;
  data = static_cast<uint8_t*>(std::aligned_alloc(64, rounded));
  if (!data) throw std::bad_alloc();
  bytes = rounded;
  return data;
}

namespace {

// y [m, rows] with activations as the kernels quantise them; `scratch` holds scratch_bytes(w, m).
void multiply(const Matrix& w, const float* x, int64_t m, float* y, Parallel& parallel, uint8_t* scratch) {
  Job job{w, x, scratch, m, y, tasks_for(w, m)};
  if (w.kernels->scratch_bytes(w, m)) {
    const int64_t parts = (m + kRowsOfX - 1) / kRowsOfX;
    if (parts == 1) prepare_some(&job, 0);
    else parallel.run(parts, prepare_some, &job);
  }
  if (job.tasks == 1) compute_some(&job, 0);
  else parallel.run(job.tasks, compute_some, &job);
}

// The two parts of the activations as twice as many rows, then their sum.
void multiply_fine(const Matrix& w, const float* x, int64_t m, float* y, Parallel& parallel, Scratch& scratch) {
  const size_t needed = w.kernels->scratch_bytes(w, 2 * m);
  const auto inputs = static_cast<size_t>(2 * m * w.cols), outputs = static_cast<size_t>(2 * m * w.rows);
  uint8_t* const base = scratch.at_least(needed + (inputs + outputs) * sizeof(float));
  auto* const parts = reinterpret_cast<float*>(base + needed);
  float* const sums = parts + inputs;
  split_activations(x, m, w.cols, parts);
  multiply(w, parts, 2 * m, sums, parallel, base);
  for (int64_t j = 0; j < m * w.rows; ++j) y[j] = sums[j] + sums[m * w.rows + j];
}

}  // namespace

void matmul(const Matrix& w, const float* x, int64_t m, float* y, Parallel& parallel, Scratch& scratch) {
  calls[static_cast<int>(w.kind)][static_cast<int>(w.format)][static_cast<int>(w.isa)].fetch_add(
      1, std::memory_order_relaxed);
  if (m <= 0 || w.rows == 0) return;
  if (w.fine && (w.kind == Kind::i8 || w.kind == Kind::i4)) return multiply_fine(w, x, m, y, parallel, scratch);
  const size_t needed = w.kernels->scratch_bytes(w, m);
  multiply(w, x, m, y, parallel, needed ? scratch.at_least(needed) : nullptr);
}

int counters(Counter* out, int capacity) {
  static const char* const kinds[kKinds] = {"f32", "f16", "bf16", "i8", "i4"};
  static const char* const formats[kFormats] = {"dense", "bitmask", "index", "slots"};
  static char names[kKinds][kFormats][kIsas][32];
  int found = 0;
  for (int k = 0; k < kKinds; ++k)
    for (int f = 0; f < kFormats; ++f)
      for (int i = 0; i < kIsas; ++i) {
        const uint64_t count = calls[k][f][i].load(std::memory_order_relaxed);
        if (!count || found >= capacity) continue;
        std::snprintf(names[k][f][i], sizeof names[k][f][i], "%s %s %s", kinds[k], formats[f],
                      isa_name(static_cast<Isa>(i)));
        out[found++] = Counter{names[k][f][i], count};
      }
  return found;
}

}  // namespace tailcut
