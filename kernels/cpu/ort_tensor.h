// Tensors of ONNX Runtime as plain values, and failures as its status objects.
#pragma once

#include <string>

#include "matrix.h"
#include "ort_abi.h"

namespace tailcut::ort {

constexpr size_t kMaxRank = 8;

struct Tensor {
  ElementType type = kUndefined;
  size_t rank = 0;
  int64_t dims[kMaxRank] = {};
  const void* data = nullptr;

  size_t count() const;
  size_t bytes() const;
};

// Null, or the runtime's own failure. A tensor of more than kMaxRank dimensions is refused.
Status* read(const Api* api, const Value* value, Tensor* tensor);

// Where output `index` of this shape is to be written.
Status* output(const Api* api, Context* context, size_t index, const int64_t* dims, size_t rank, float** data);
Status* output(const Api* api, Context* context, size_t index, const int64_t* dims, size_t rank, void** data);

Status* failure(const Api* api, const std::string& sentence);

// What a weight operator is made of: its name, and the element type of each input (kUndefined: any float type).
enum class Op { sparse, sparse_i8, sparse_i4, dense_i8, dense_i4 };
constexpr size_t kMaxInputs = 5;
struct OpShape {
  Op op;
  const char* name;
  size_t inputs;
  ElementType types[kMaxInputs];
};
constexpr OpShape kOps[] = {
    {Op::sparse, "SparseMatMul", 4, {kFloat, kUndefined, kUint8, kInt64}},
    {Op::sparse_i8, "SparseMatMulInt8", 5, {kFloat, kInt8, kUint8, kFloat, kInt64}},
    {Op::sparse_i4, "SparseMatMulInt4", 5, {kFloat, kUint8, kUint8, kFloat, kInt64}},
    {Op::dense_i8, "MatMulInt8", 3, {kFloat, kInt8, kFloat}},
    {Op::dense_i4, "MatMulInt4", 4, {kFloat, kUint8, kFloat, kInt64}},
};

// The matrix that inputs 1 … of an operator describe; false and a sentence if they contradict each other.
// What they hold (mask bits, lengths) is checked by `pack`.
bool source_of(const OpShape& op, const Tensor* inputs, Source* source, std::string* error);

}  // namespace tailcut::ort
