#include "ort_run.h"

#include <climits>

namespace tailcut::ort {

ScratchPool& scratch_pool() {
  static auto* const pool = new ScratchPool;  // never destroyed: runs may outlive the end of main
  return *pool;
}

void fill_common(CustomOp* op) {
  CustomOp& e = *op;
  e.version = kVersion;
  // the two callbacks of older runtimes: those are refused at registration, so nothing calls these
  e.create_kernel = [](const CustomOp*, const Api*, const KernelInfo*) -> void* { return nullptr; };
  e.compute = [](void*, Context*) {};
  e.provider = [](const CustomOp*) { return "CPUExecutionProvider"; };
  e.output_type = [](const CustomOp*, size_t) { return kFloat; };
  e.input_characteristic = [](const CustomOp*, size_t) { return kRequired; };
  e.output_characteristic = [](const CustomOp*, size_t) { return kRequired; };
  e.input_memory = [](const CustomOp*, size_t) { return kDefaultMemory; };
  e.variadic_input_minimum = [](const CustomOp*) { return 1; };
  e.variadic_input_homogeneous = [](const CustomOp*) { return 1; };
  e.variadic_output_minimum = [](const CustomOp*) { return 1; };
  e.variadic_output_homogeneous = [](const CustomOp*) { return 1; };
  e.infer_shape = [](const CustomOp*, ShapeContext*) -> Status* { return nullptr; };
  e.first_version = [](const CustomOp*) { return 1; };
  e.last_version = [](const CustomOp*) { return INT_MAX; };
}

}  // namespace tailcut::ort
