#include "attention_op.h"

#include <cstring>
#include <string>

#include "attention.h"
#include "forced.h"
#include "ort_run.h"
#include "ort_tensor.h"

namespace tailcut::ort {
namespace {

enum Input { kQkv, kPastKey, kPastValue, kLast, kTotal, kCos, kSin, kInputs };
// kUndefined: the cache, float32 or float16.
constexpr ElementType kTypes[kInputs] = {kFloat, kUndefined, kUndefined, kInt32, kInt32, kFloat, kFloat};
constexpr size_t kRanks[kInputs] = {3, 4, 4, 1, 0, 2, 2};
constexpr const char* kNames[kInputs] = {"qkv",  "past_key", "past_value", "seqlens_k", "total_sequence_length",
                                         "cos", "sin"};

struct Entry : CustomOp {
  ElementType cache;
};

ElementType cache_of(const CustomOp* op) { return static_cast<const Entry*>(op)->cache; }

struct Kernel {
  const Api* api;
  ElementType cache;
  Isa isa;
  int64_t heads, kv_heads, window;
  float scale, softcap;
};

Status* refused(const Kernel& k, const std::string& sentence) {
  return failure(k.api, "tailcut::GroupQueryAttention: " + sentence);
}

Status* make(const CustomOp* op, const Api* api, const KernelInfo* info, void** out) {
  Kernel k{};
  k.api = api, k.cache = cache_of(op), k.isa = forced_isa();
  if (Status* status = AttributeInt::of(api)(info, "num_heads", &k.heads)) return status;
  if (Status* status = AttributeInt::of(api)(info, "kv_num_heads", &k.kv_heads)) return status;
  if (Status* status = AttributeInt::of(api)(info, "local_window_size", &k.window)) return status;
  if (Status* status = AttributeFloat::of(api)(info, "scale", &k.scale)) return status;
  if (Status* status = AttributeFloat::of(api)(info, "softcap", &k.softcap)) return status;
  *out = new Kernel(k);
  return nullptr;
}

Status* read_inputs(const Kernel& k, Context* context, Tensor* in) {
  for (size_t i = 0; i < kInputs; ++i) {
    const Value* value = nullptr;
    if (Status* status = GetInput::of(k.api)(context, i, &value)) return status;
    if (Status* status = read(k.api, value, &in[i])) return status;
    const bool scalar = i == kTotal && in[i].count() == 1;
    const ElementType wanted = kTypes[i] == kUndefined ? k.cache : kTypes[i];
    if (in[i].type != wanted || (in[i].rank != kRanks[i] && !scalar))
      return refused(k, std::string(kNames[i]) + " has an unexpected type or rank");
  }
  return nullptr;
}

// What the shapes promise each other; null if they agree.
const char* disagreement(const Kernel& k, const Tensor* in) {
  const int64_t *cache = in[kPastKey].dims, *qkv = in[kQkv].dims;
  if (std::memcmp(cache, in[kPastValue].dims, 4 * sizeof(int64_t))) return "past_key and past_value differ in shape";
  if (std::memcmp(in[kCos].dims, in[kSin].dims, 2 * sizeof(int64_t))) return "cos and sin differ in shape";
  if (k.heads < 1 || k.kv_heads < 1 || cache[1] != k.kv_heads) return "the cache does not have kv_num_heads heads";
  if (cache[0] != qkv[0] || in[kLast].dims[0] != qkv[0]) return "qkv, the cache and seqlens_k differ in batch";
  if (qkv[2] != (k.heads + 2 * k.kv_heads) * cache[3]) return "qkv is not (num_heads + 2 kv_num_heads) heads wide";
  return nullptr;
}

Attention described(const Kernel& k, const Tensor* in) {
  Attention a{};
  a.batch = in[kQkv].dims[0], a.sequence = in[kQkv].dims[1];
  a.heads = k.heads, a.kv_heads = k.kv_heads, a.capacity = in[kPastKey].dims[2], a.head_dim = in[kPastKey].dims[3];
  a.table_rows = in[kCos].dims[0], a.rotary_half = in[kCos].dims[1];
  a.scale = k.scale, a.softcap = k.softcap, a.window = k.window > 0 ? k.window : 0;
  int32_t total = 0;
  std::memcpy(&total, in[kTotal].data, sizeof total);
  a.first = total == a.sequence;
  a.halves = k.cache == kFloat16, a.isa = k.isa;
  a.qkv = static_cast<const float*>(in[kQkv].data);
  a.cos = static_cast<const float*>(in[kCos].data), a.sin = static_cast<const float*>(in[kSin].data);
  a.last = static_cast<const int32_t*>(in[kLast].data);
  return a;
}

void keep(const Tensor& past, void* present) {
  if (present != past.data && past.count()) std::memcpy(present, past.data, past.bytes());
}

Status* compute(const Kernel& k, Context* context) {
  Tensor in[kInputs];
  if (Status* status = read_inputs(k, context, in)) return status;
  if (const char* sentence = disagreement(k, in)) return refused(k, sentence);
  Attention a = described(k, in);
  if (const char* sentence = why_not(a)) return refused(k, sentence);
  const int64_t dims[3] = {a.batch, a.sequence, a.heads * a.head_dim};
  if (Status* status = output(k.api, context, 0, dims, 3, &a.out)) return status;
  if (Status* status = output(k.api, context, 1, in[kPastKey].dims, 4, &a.keys)) return status;
  if (Status* status = output(k.api, context, 2, in[kPastValue].dims, 4, &a.values)) return status;
  keep(in[kPastKey], a.keys), keep(in[kPastValue], a.values);
  SessionThreads threads(k.api, context);
  std::unique_ptr<Scratch> scratch = scratch_pool().take();
  attend(a, threads, *scratch);
  scratch_pool().put(std::move(scratch));
  return nullptr;
}

Status* create_checked(const CustomOp* op, const Api* api, const KernelInfo* info, void** kernel) {
  return guarded(api, [&] { return make(op, api, info, kernel); });
}

Status* compute_checked(void* kernel, Context* context) {
  const auto* k = static_cast<const Kernel*>(kernel);
  return guarded(k->api, [&] { return compute(*k, context); });
}

Entry entry(ElementType cache) {
  Entry e{};
  fill_common(&e);
  e.cache = cache;
  e.name = [](const CustomOp*) { return "GroupQueryAttention"; };
  e.input_type = [](const CustomOp* op, size_t i) { return kTypes[i] == kUndefined ? cache_of(op) : kTypes[i]; };
  e.output_type = [](const CustomOp* op, size_t i) { return i ? cache_of(op) : kFloat; };
  e.input_count = [](const CustomOp*) -> size_t { return kInputs; };
  e.output_count = [](const CustomOp*) -> size_t { return 3; };
  e.destroy = [](void* kernel) { delete static_cast<Kernel*>(kernel); };
  e.create_kernel_checked = create_checked;
  e.compute_checked = compute_checked;
  return e;
}

}  // namespace

const CustomOp* attention_op() {
  static const Entry op = entry(kFloat);
  return &op;
}

const CustomOp* half_attention_op() {
  static const Entry op = entry(kFloat16);
  return &op;
}

}  // namespace tailcut::ort
