#include "swiglu_op.h"

#include <string>

#include "ort_run.h"
#include "ort_tensor.h"
#include "swiglu.h"

namespace tailcut::ort {
namespace {

constexpr int64_t kTaskElements = 16384;  // tens of microseconds: below this a second thread costs more than it brings

struct Job {
  const float* x;
  float* y;
  int64_t rows, n, rows_a_task;
};

void some_rows(void* context, int64_t index) {
  const Job& job = *static_cast<const Job*>(context);
  const int64_t first = index * job.rows_a_task, last = first + job.rows_a_task;
  swiglu(job.x, first, last < job.rows ? last : job.rows, job.n, job.y);
}

void all_rows(Job job, Parallel& parallel) {
  if (!job.rows || !job.n) return;
  job.rows_a_task = job.n < kTaskElements ? kTaskElements / job.n : 1;
  const int64_t tasks = (job.rows + job.rows_a_task - 1) / job.rows_a_task;
  if (tasks == 1) some_rows(&job, 0);
  else parallel.run(tasks, some_rows, &job);
}

Status* compute(const Api* api, Context* context) {
  const Value* given = nullptr;
  Tensor x;
  if (Status* status = GetInput::of(api)(context, 0, &given)) return status;
  if (Status* status = read(api, given, &x)) return status;
  if (x.type != kFloat || x.rank == 0 || x.dims[x.rank - 1] % 2)
    return failure(api, "tailcut::SwiGLU: gate_up must be float32 with an even number of columns");
  int64_t dims[kMaxRank], rows = 1;
  for (size_t i = 0; i < x.rank; ++i) dims[i] = x.dims[i];
  for (size_t i = 0; i + 1 < x.rank; ++i) rows *= dims[i];
  dims[x.rank - 1] /= 2;
  float* y = nullptr;
  if (Status* status = output(api, context, 0, dims, x.rank, &y)) return status;
  SessionThreads threads(api, context);
  all_rows(Job{static_cast<const float*>(x.data), y, rows, dims[x.rank - 1], 1}, threads);
  return nullptr;
}

CustomOp entry() {
  CustomOp e{};
  fill_common(&e);
  e.name = [](const CustomOp*) { return "SwiGLU"; };
  e.input_type = [](const CustomOp*, size_t) { return kFloat; };
  e.input_count = [](const CustomOp*) -> size_t { return 1; };
  e.output_count = [](const CustomOp*) -> size_t { return 1; };
  e.destroy = [](void*) {};  // its kernel is the runtime's own table
  e.create_kernel_checked = [](const CustomOp*, const Api* api, const KernelInfo*, void** kernel) -> Status* {
    *kernel = const_cast<Api*>(api);
    return nullptr;
  };
  e.compute_checked = [](void* kernel, Context* context) {
    const auto* api = static_cast<const Api*>(kernel);
    return guarded(api, [&] { return compute(api, context); });
  };
  return e;
}

}  // namespace

const CustomOp* swiglu_op() {
  static const CustomOp op = entry();
  return &op;
}

}  // namespace tailcut::ort
