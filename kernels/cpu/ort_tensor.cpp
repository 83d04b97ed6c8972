#include "ort_tensor.h"

namespace tailcut::ort {
namespace {

size_t size_of(ElementType type) {
  switch (type) {
    case kUint8:
    case kInt8: return 1;
    case kFloat16:
    case kBfloat16: return 2;
    case kFloat: return 4;
    case kInt64: return 8;
    default: return 0;
  }
}

std::string shape_text(const Tensor& t) {
  std::string text = "[";
  for (size_t i = 0; i < t.rank; ++i) text += (i ? ", " : "") + std::to_string(t.dims[i]);
  return text + "]";
}

bool fail(std::string* error, const std::string& sentence) {
  *error = sentence;
  return false;
}

bool require_shape(const char* what, const Tensor& t, int64_t rows, int64_t cols, std::string* error) {
  if (t.rank == 2 && t.dims[0] == rows && t.dims[1] == cols) return true;
  return fail(error, std::string(what) + " has shape " + shape_text(t) + " where [" + std::to_string(rows) + ", " +
                         std::to_string(cols) + "] is needed");
}

bool require_vector(const char* what, const Tensor& t, std::string* error) {
  return t.rank == 1 || fail(error, std::string(what) + " has shape " + shape_text(t) + ", one dimension is needed");
}

// shape int64 [2] = (rows, cols), both at least 0 and small enough for the sums below.
bool read_shape(const Tensor& t, Source* s, std::string* error) {
  if (t.rank != 1 || t.dims[0] != 2) return fail(error, "shape has shape " + shape_text(t) + ", two numbers are needed");
  const auto* sides = static_cast<const int64_t*>(t.data);
  s->rows = sides[0], s->cols = sides[1];
  constexpr int64_t kLargest = int64_t{1} << 40;
  if (s->rows >= 0 && s->cols >= 0 && s->rows <= kLargest && s->cols <= kLargest) return true;
  return fail(error, "shape says " + std::to_string(s->rows) + " x " + std::to_string(s->cols) + ", which is no matrix");
}

bool read_mask(const Tensor& t, Source* s, std::string* error) {
  if (!require_shape("mask", t, s->rows, (s->cols + 7) / 8, error)) return false;
  static const uint8_t nothing = 0;  // a mask without bytes is still a mask
  s->mask = t.data ? static_cast<const uint8_t*>(t.data) : &nothing;
  s->mask_bytes = t.bytes();
  return true;
}

bool read_values(const Tensor& t, Source* s, std::string* error) {
  s->values = t.data, s->value_bytes = t.bytes();
  switch (t.type) {
    case kFloat: s->kind = Kind::f32; return true;
    case kFloat16: s->kind = Kind::f16; return true;
    case kBfloat16: s->kind = Kind::bf16; return true;
    case kInt8: s->kind = Kind::i8; return true;
    case kUint8: s->kind = Kind::i4; return true;
    default: return fail(error, "values must be float32, float16 or bfloat16");
  }
}

void read_scales(const Tensor& t, Source* s) {
  s->scales = static_cast<const float*>(t.data), s->scale_count = t.count();
}

bool read_group_scales(const Tensor& t, Source* s, std::string* error) {
  read_scales(t, s);
  return require_shape("scales", t, s->rows, (s->cols + kGroup - 1) / kGroup, error);
}

}  // namespace

size_t Tensor::count() const {
  size_t product = 1;
  for (size_t i = 0; i < rank; ++i) product *= static_cast<size_t>(dims[i]);  // the runtime holds that many
  return product;
}

size_t Tensor::bytes() const { return count() * size_of(type); }

Status* output(const Api* api, Context* context, size_t index, const int64_t* dims, size_t rank, void** data) {
  Value* value = nullptr;
  if (Status* status = GetOutput::of(api)(context, index, dims, rank, &value)) return status;
  return TensorData::of(api)(value, data);
}

Status* output(const Api* api, Context* context, size_t index, const int64_t* dims, size_t rank, float** data) {
  void* raw = nullptr;
  if (Status* status = output(api, context, index, dims, rank, &raw)) return status;
  *data = static_cast<float*>(raw);
  return nullptr;
}

Status* failure(const Api* api, const std::string& sentence) {
  return CreateStatus::of(api)(kInvalidArgument, sentence.c_str());
}

Status* read(const Api* api, const Value* value, Tensor* tensor) {
  TensorInfo* info = nullptr;
  if (!value) return failure(api, "an input is missing");
  if (Status* status = InfoOf::of(api)(value, &info)) return status;
  Status* status = ElementTypeOf::of(api)(info, &tensor->type);
  if (!status) status = RankOf::of(api)(info, &tensor->rank);
  if (!status && tensor->rank > kMaxRank) status = failure(api, "a tensor of more than 8 dimensions");
  if (!status) status = DimensionsOf::of(api)(info, tensor->dims, tensor->rank);
  ReleaseInfo::of(api)(info);
  if (status) return status;
  void* data = nullptr;  // only read; the interface has one function for both uses
  status = TensorData::of(api)(const_cast<Value*>(value), &data);
  tensor->data = data;
  return status;
}

bool source_of(const OpShape& op, const Tensor* in, Source* s, std::string* error) {
  *s = Source{};
  if (!read_values(in[1], s, error)) return false;
  switch (op.op) {
    case Op::sparse:
      if (s->kind == Kind::i8 || s->kind == Kind::i4) return fail(error, "values must be float32, float16 or bfloat16");
      return read_shape(in[3], s, error) && require_vector("values", in[1], error) && read_mask(in[2], s, error);
    case Op::sparse_i8:
      read_scales(in[3], s);
      return read_shape(in[4], s, error) && require_vector("values", in[1], error) &&
             require_vector("scales", in[3], error) && read_mask(in[2], s, error);
    case Op::sparse_i4:
      return read_shape(in[4], s, error) && require_vector("values", in[1], error) && read_mask(in[2], s, error) &&
             read_group_scales(in[3], s, error);
    case Op::dense_i8:
      if (in[1].rank != 2) return fail(error, "weight has shape " + shape_text(in[1]) + ", two dimensions are needed");
      s->rows = in[1].dims[0], s->cols = in[1].dims[1];
      read_scales(in[2], s);
      return require_vector("scales", in[2], error);
    case Op::dense_i4:
      return read_shape(in[3], s, error) && require_shape("weight", in[1], s->rows, (s->cols + 1) / 2, error) &&
             read_group_scales(in[2], s, error);
  }
  return false;
}

}  // namespace tailcut::ort
