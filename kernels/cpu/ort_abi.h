// The part of ONNX Runtime's C interface that the operators need, declared here in our own words.
//
// The interface is a table of functions that only ever grows at its end: a number below is a function's place in it, the
// same in every release since it was added. Version 17 (ONNX Runtime 1.17) is the first with all of them, so 17 is what
// is asked for, whatever runtime is there. No ONNX Runtime header is needed to build this library, nor any of its
// libraries to link it.
#pragma once

#include <cstddef>
#include <cstdint>

namespace tailcut::ort {

constexpr uint32_t kVersion = 17;

struct Status;  // null means success
struct Value;
struct TensorInfo;
struct KernelInfo;
struct Context;
struct Domain;
struct SessionOptions;
struct ShapeContext;

enum ElementType : int32_t {
  kUndefined = 0,
  kFloat = 1,
  kUint8 = 2,
  kInt8 = 3,
  kInt32 = 6,
  kInt64 = 7,
  kFloat16 = 10,
  kBfloat16 = 16,
};
enum ErrorCode : int32_t { kFail = 1, kInvalidArgument = 2, kRuntimeException = 6 };
enum Characteristic : int32_t { kRequired = 0 };
enum MemoryType : int32_t { kDefaultMemory = 0 };

struct Api {
  using Function = void (*)();
  Function table[275];  // at least this many for version 17
};

struct ApiBase {
  const Api* (*get)(uint32_t version);  // null if the runtime is older than `version`
  const char* (*version)();
};

// The places of the functions used, with their types.
template <int Place, class Type>
struct Slot {
  static Type* of(const Api* api) { return reinterpret_cast<Type*>(api->table[Place]); }
};

using CreateStatus = Slot<0, Status*(ErrorCode, const char*)>;
using ErrorMessage = Slot<2, const char*(const Status*)>;
using CreateDomain = Slot<26, Status*(const char*, Domain**)>;
struct CustomOp;
using AddOp = Slot<27, Status*(Domain*, const CustomOp*)>;
using AddDomain = Slot<28, Status*(SessionOptions*, Domain*)>;
using TensorData = Slot<51, Status*(Value*, void**)>;
using ElementTypeOf = Slot<60, Status*(const TensorInfo*, ElementType*)>;
using RankOf = Slot<61, Status*(const TensorInfo*, size_t*)>;
using DimensionsOf = Slot<62, Status*(const TensorInfo*, int64_t*, size_t)>;
using InfoOf = Slot<65, Status*(const Value*, TensorInfo**)>;
using AttributeFloat = Slot<85, Status*(const KernelInfo*, const char*, float*)>;
using AttributeInt = Slot<86, Status*(const KernelInfo*, const char*, int64_t*)>;
using GetInput = Slot<90, Status*(const Context*, size_t, const Value**)>;
using GetOutput = Slot<91, Status*(Context*, size_t, const int64_t*, size_t, Value**)>;
using ReleaseStatus = Slot<93, void(Status*)>;
using ReleaseInfo = Slot<99, void(TensorInfo*)>;
using NodeName = Slot<244, Status*(const KernelInfo*, char*, size_t*)>;
using ConstantInput = Slot<249, Status*(const KernelInfo*, size_t, int*, const Value**)>;
using ParallelFor = Slot<274, Status*(const Context*, void (*)(void*, size_t), size_t, size_t, void*)>;

// An operator: version 17's callbacks, each of which the runtime may call unconditionally.
struct CustomOp {
  uint32_t version;
  void* (*create_kernel)(const CustomOp*, const Api*, const KernelInfo*);
  const char* (*name)(const CustomOp*);
  const char* (*provider)(const CustomOp*);
  ElementType (*input_type)(const CustomOp*, size_t);
  size_t (*input_count)(const CustomOp*);
  ElementType (*output_type)(const CustomOp*, size_t);
  size_t (*output_count)(const CustomOp*);
  void (*compute)(void* kernel, Context*);
  void (*destroy)(void* kernel);
  Characteristic (*input_characteristic)(const CustomOp*, size_t);
  Characteristic (*output_characteristic)(const CustomOp*, size_t);
  MemoryType (*input_memory)(const CustomOp*, size_t);
  int (*variadic_input_minimum)(const CustomOp*);
  int (*variadic_input_homogeneous)(const CustomOp*);
  int (*variadic_output_minimum)(const CustomOp*);
  int (*variadic_output_homogeneous)(const CustomOp*);
  Status* (*create_kernel_checked)(const CustomOp*, const Api*, const KernelInfo*, void** kernel);
  Status* (*compute_checked)(void* kernel, Context*);
  Status* (*infer_shape)(const CustomOp*, ShapeContext*);
  int (*first_version)(const CustomOp*);
  int (*last_version)(const CustomOp*);
};

}  // namespace tailcut::ort
