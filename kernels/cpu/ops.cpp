// The operators of domain "tailcut" for ONNX Runtime: weights are packed when a session is made, then every run multiplies
// with the session's own threads. Inputs and their order are those of the functions that a package carries, which the
// runtime would otherwise run in their place.

#include <cstdio>
#include <memory>
#include <string>
#include <vector>

#include "attention_op.h"
#include "forced.h"
#include "give_back.h"
#include "ort_abi.h"
#include "ort_run.h"
#include "ort_tensor.h"
#include "swiglu_op.h"

namespace tailcut::ort {
namespace {

struct OpEntry : CustomOp {
  OpShape shape;
};

const OpShape& shape_of(const CustomOp* op) { return static_cast<const OpEntry*>(op)->shape; }

struct Kernel {
  const Api* api;
  const OpShape* shape;
  std::string where;          // for messages: operator and node
  bool fine;                  // attribute activation_bits is above 8
  std::unique_ptr<Matrix> w;  // empty if the weights are computed by the graph: then they are packed in every run
  ~Kernel() {
    if (w) count_packed(-static_cast<int64_t>(w->data_bytes));
  }
};

std::string node_name(const Api* api, const KernelInfo* info) {
  char text[512] = {};
  size_t size = sizeof text;
  Status* status = NodeName::of(api)(info, text, &size);
  if (status) ReleaseStatus::of(api)(status);
  return status ? std::string("(long name)") : std::string(text);
}

std::unique_ptr<Matrix> pack_inputs(const Kernel& k, const Tensor* inputs, std::string* error) {
  Source source;
  if (!source_of(*k.shape, inputs, &source, error)) return nullptr;
  std::unique_ptr<Matrix> w = pack(source, forced_isa(), forced_format(), error);
  if (w) w->fine = k.fine;
  return w;
}

// 8 where a graph of an earlier version does not say.
int64_t activation_bits(const Api* api, const KernelInfo* info) {
  int64_t bits = 8;
  Status* status = AttributeInt::of(api)(info, "activation_bits", &bits);
  if (!status) return bits;
  ReleaseStatus::of(api)(status);
  return 8;
}

// The constant inputs 1 …; *all is false if one of them is computed at run time.
Status* constants(const Kernel& k, const KernelInfo* info, Tensor* inputs, bool* all) {
  *all = true;
  for (size_t i = 1; i < k.shape->inputs; ++i) {
    int constant = 0;
    const Value* value = nullptr;
    if (Status* status = ConstantInput::of(k.api)(info, i, &constant, &value)) return status;
    if (!constant || !value) {
      *all = false;
      return nullptr;
    }
    if (Status* status = read(k.api, value, &inputs[i])) return status;
  }
  return nullptr;
}

Status* make(const CustomOp* op, const Api* api, const KernelInfo* info, void** out) {
  auto kernel = std::make_unique<Kernel>();
  kernel->api = api, kernel->shape = &shape_of(op);
  kernel->where = std::string("tailcut::") + kernel->shape->name + " " + node_name(api, info) + ": ";
  kernel->fine = activation_bits(api, info) > 8;
  Tensor inputs[kMaxInputs];
  bool all = false;
  if (Status* status = constants(*kernel, info, inputs, &all)) return status;
  if (all) {
    std::string error;
    kernel->w = pack_inputs(*kernel, inputs, &error);
    if (!kernel->w) return failure(api, kernel->where + error);
    count_packed(static_cast<int64_t>(kernel->w->data_bytes));
    for (size_t i = 1; i < kernel->shape->inputs; ++i) give_back(inputs[i].data, inputs[i].bytes());
  }
  *out = kernel.release();
  return nullptr;
}

// y has x's dimensions with the last one replaced by the rows of W.
Status* multiply(const Kernel& k, const Matrix& w, const Tensor& x, Context* context) {
  if (x.type != kFloat) return failure(k.api, k.where + "x must be float32");
  if (x.rank == 0 || x.dims[x.rank - 1] != w.cols)
    return failure(k.api, k.where + "x ends in " + std::to_string(x.rank ? x.dims[x.rank - 1] : 0) + " columns, W has " +
                              std::to_string(w.cols));
  int64_t dims[kMaxRank], m = 1;
  for (size_t i = 0; i < x.rank; ++i) dims[i] = x.dims[i];
  for (size_t i = 0; i + 1 < x.rank; ++i) m *= dims[i];
  dims[x.rank - 1] = w.rows;
  float* y = nullptr;
  if (Status* status = output(k.api, context, 0, dims, x.rank, &y)) return status;
  SessionThreads threads(k.api, context);
  std::unique_ptr<Scratch> scratch = scratch_pool().take();
  matmul(w, static_cast<const float*>(x.data), m, y, threads, *scratch);
  scratch_pool().put(std::move(scratch));
  return nullptr;
}

Status* compute(const Kernel& k, Context* context) {
  Tensor inputs[kMaxInputs];
  const size_t needed = k.w ? 1 : k.shape->inputs;
  for (size_t i = 0; i < needed; ++i) {
    const Value* value = nullptr;
    if (Status* status = GetInput::of(k.api)(context, i, &value)) return status;
    if (Status* status = read(k.api, value, &inputs[i])) return status;
  }
  if (k.w) return multiply(k, *k.w, inputs[0], context);
  std::string error;
  const std::unique_ptr<Matrix> w = pack_inputs(k, inputs, &error);
  return w ? multiply(k, *w, inputs[0], context) : failure(k.api, k.where + error);
}

Status* create_checked(const CustomOp* op, const Api* api, const KernelInfo* info, void** kernel) {
  return guarded(api, [&] { return make(op, api, info, kernel); });
}

Status* compute_checked(void* kernel, Context* context) {
  const auto* k = static_cast<const Kernel*>(kernel);
  return guarded(k->api, [&] { return compute(*k, context); });
}

OpEntry entry(const OpShape& shape) {
  OpEntry e{};
  e.shape = shape;
  fill_common(&e);
  e.name = [](const CustomOp* op) { return shape_of(op).name; };
  e.input_type = [](const CustomOp* op, size_t i) { return shape_of(op).types[i]; };
  e.input_count = [](const CustomOp* op) { return shape_of(op).inputs; };
  e.output_count = [](const CustomOp*) -> size_t { return 1; };
  e.destroy = [](void* kernel) { delete static_cast<Kernel*>(kernel); };
  e.create_kernel_checked = create_checked;
  e.compute_checked = compute_checked;
  return e;
}

const std::vector<OpEntry>& entries() {
  static const auto* const all = [] {
    auto* made = new std::vector<OpEntry>;
    for (const OpShape& shape : kOps) made->push_back(entry(shape));
    return made;
  }();
  return *all;
}

// The table is what we take it for: a status made with its first entry reads back through its third.
bool table_is_sound(const Api* api) {
  Status* status = CreateStatus::of(api)(kFail, "tailcut");
  const bool same = status && std::string(ErrorMessage::of(api)(status)) == "tailcut";
  ReleaseStatus::of(api)(status);
  return same;
}

// A runtime keeps the domain as long as its sessions live and says nothing when it lets go: domains are never freed.
Status* add_operators(const Api* api, SessionOptions* options) {
  if (!table_is_sound(api)) return failure(api, "tailcut: this ONNX Runtime does not have the C interface of version 17");
  Domain* domain = nullptr;
  if (Status* status = CreateDomain::of(api)("tailcut", &domain)) return status;
  for (const OpEntry& op : entries())
    if (Status* status = AddOp::of(api)(domain, &op)) return status;
  for (const CustomOp* op : {attention_op(), half_attention_op(), swiglu_op()})
    if (Status* status = AddOp::of(api)(domain, op)) return status;
  return AddDomain::of(api)(options, domain);
}

Status* too_old(const ApiBase* base) {
  const std::string sentence = std::string("tailcut's kernels need ONNX Runtime 1.17 or newer (C interface 17), this is ") +
                               base->version() + "; upgrade onnxruntime, or load the package without them";
  const Api* first = base->get(1);  // its first entry makes a status in every release
  if (first) return failure(first, sentence);
  std::fprintf(stderr, "%s\n", sentence.c_str());
  return nullptr;
}

}  // namespace
}  // namespace tailcut::ort

// What ONNX Runtime calls when this library is registered with a session's options.
extern "C" __attribute__((visibility("default"))) tailcut::ort::Status* RegisterCustomOps(
    tailcut::ort::SessionOptions* options, const tailcut::ort::ApiBase* base) {
  using namespace tailcut::ort;
  const Api* api = base->get(kVersion);
  if (!api) return too_old(base);
  return guarded(api, [&] { return add_operators(api, options); });
}
