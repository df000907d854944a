// The arithmetic of torch's fused operators, which exist for CUDA alone: attention and the cells of
// LSTM and GRU. All tensors are views on the CPU.
#pragma once
#include <ATen/core/function_schema.h>
#include <ATen/core/stack.h>

#include <optional>
#include <string>

namespace sim {

// The results of the operator of this name without "aten::"; nothing if it is not one of these. A
// result that nobody's values depend on is None. Attention is without dropout.
std::optional<torch::jit::Stack> run_fused(const std::string& name,
                                           const c10::FunctionSchema& schema,
                                           const torch::jit::Stack& arguments);

}  // namespace sim
