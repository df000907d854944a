// See fused.h. Mirrors the operators of ATen/native/transformers/cuda and ATen/native/cuda/RNN.cu by
// their mathematics; what forward leaves for backward (workspaces) has a layout of its own.
#include "fused.h"

#include <ATen/ATen.h>

#include <cmath>
#include <map>

namespace sim {
namespace {

using at::Tensor;
using c10::IValue;
using torch::jit::Stack;

// The arguments of a call, by name.
class Call {
 public:
  Call(const c10::FunctionSchema& schema, const Stack& arguments)
      : schema_(schema), arguments_(arguments) {}

  const IValue& value(const std::string& name) const {
    return arguments_.at(*schema_.argumentIndexWithName(name));
  }
  // Undefined if the operator has no such argument, or it is None.
  Tensor tensor(const std::string& name) const {
    const auto at = schema_.argumentIndexWithName(name);
    return at && arguments_.at(*at).isTensor() ? arguments_.at(*at).toTensor() : Tensor();
  }
  // Empty if the operator has no such argument.
  std::vector<bool> flags(const std::string& name) const {
    const auto at = schema_.argumentIndexWithName(name);
    std::vector<bool> found;
    if (at)
      for (const bool flag : arguments_.at(*at).toBoolList()) found.push_back(flag);
    return found;
  }
  Tensor floats(const std::string& name) const {
    const Tensor found = tensor(name);
    return found.defined() ? found.to(at::kFloat) : found;
  }

 private:
  const c10::FunctionSchema& schema_;
  const Stack& arguments_;
};

struct Attention {
  Tensor query, key, value, weights;
  double scale;
};

// softmax(scale * Q K^T + bias), in 32 bits.
Attention weigh(const Call& call) {
  Attention found{call.floats("query"), call.floats("key"), call.floats("value"), {}, 1.0};
  const IValue& scale = call.value("scale");
  found.scale = scale.isNone() ? 1 / std::sqrt(found.query.size(-1)) : scale.toDouble();
  Tensor scores = at::matmul(found.query, found.key.transpose(-2, -1)) * found.scale;
  const Tensor bias = call.floats("attn_bias");
  if (bias.defined()) scores = scores + bias;
  if (call.value("is_causal").toBool()) {
    const Tensor later = at::ones({scores.size(-2), scores.size(-1)}, at::kBool).triu(1);
    scores = scores.masked_fill(later, -INFINITY);
  }
  found.weights = at::softmax(scores, -1);
  return found;
}

Stack attend(const Call& call) {
  const Attention found = weigh(call);
  return {at::matmul(found.weights, found.value).to(call.tensor("query").scalar_type())};
}

Stack attend_backward(const Call& call, const char* gradient_name) {
  const Attention found = weigh(call);
  const Tensor gradient = call.floats(gradient_name);
  const auto type = call.tensor("query").scalar_type();
  const Tensor of_weights = at::matmul(gradient, found.value.transpose(-2, -1));
  const Tensor mean = (of_weights * found.weights).sum(-1, true);
  const Tensor of_scores = found.weights * (of_weights - mean);
  const Tensor of_query = at::matmul(of_scores, found.key) * found.scale;
  const Tensor of_key = at::matmul(of_scores.transpose(-2, -1), found.query) * found.scale;
  const Tensor of_value = at::matmul(found.weights.transpose(-2, -1), gradient);
  // CUDA's operator makes no gradient for a bias that nobody trains; nor may this one make memory.
  const auto mask = call.flags("grad_input_mask");
  const IValue of_bias = mask.size() == 4 && mask[3] ? IValue(of_scores.to(type)) : IValue();
  return {of_query.to(type), of_key.to(type), of_value.to(type), of_bias};
}

// The gates of a cell, with its biases.
Tensor add_bias(const Call& call, const char* gates, const char* bias) {
  const Tensor added = call.tensor(bias);
  return added.defined() ? call.tensor(gates) + added : call.tensor(gates);
}

Tensor slope_of_sigmoid(const Tensor& y) { return y * (1 - y); }
Tensor slope_of_tanh(const Tensor& y) { return 1 - y * y; }

Stack lstm_cell(const Call& call) {
  const Tensor gates = add_bias(call, "input_gates", "input_bias") +
                       add_bias(call, "hidden_gates", "hidden_bias");
  const auto parts = gates.chunk(4, 1);
  const Tensor input = parts[0].sigmoid(), forget = parts[1].sigmoid(), cell = parts[2].tanh(),
               output = parts[3].sigmoid();
  const Tensor state = forget * call.tensor("cx") + input * cell;
  return {output * state.tanh(), state, at::cat({input, forget, cell, output}, 1)};
}

Stack lstm_cell_backward(const Call& call) {
  const auto parts = call.tensor("workspace").chunk(4, 1);
  const Tensor &input = parts[0], &forget = parts[1], &cell = parts[2], &output = parts[3];
  const Tensor squashed = call.tensor("cy").tanh();
  Tensor hidden = call.tensor("grad_hy"), state = call.tensor("grad_cy");
  if (!hidden.defined()) hidden = at::zeros_like(squashed);
  if (!state.defined()) state = at::zeros_like(squashed);
  state = state + hidden * output * slope_of_tanh(squashed);
  const Tensor gates = at::cat({state * cell * slope_of_sigmoid(input),
                                state * call.tensor("cx") * slope_of_sigmoid(forget),
                                state * input * slope_of_tanh(cell),
                                hidden * squashed * slope_of_sigmoid(output)},
                               1);
  return {gates, state * forget, gates.sum(0)};
}

Stack gru_cell(const Call& call) {
  const auto input = add_bias(call, "input_gates", "input_bias").chunk(3, 1);
  const auto hidden = add_bias(call, "hidden_gates", "hidden_bias").chunk(3, 1);
  const Tensor reset = (input[0] + hidden[0]).sigmoid(), keep = (input[1] + hidden[1]).sigmoid();
  const Tensor fresh = (input[2] + reset * hidden[2]).tanh(), before = call.tensor("hx");
  return {fresh + keep * (before - fresh),
          at::cat({reset, keep, fresh, before.expand_as(fresh), hidden[2]}, 1)};
}

Stack gru_cell_backward(const Call& call) {
  const auto parts = call.tensor("workspace").chunk(5, 1);
  const Tensor &reset = parts[0], &keep = parts[1], &fresh = parts[2], &before = parts[3];
  const Tensor gradient = call.tensor("grad_hy");
  const Tensor of_fresh = gradient * (1 - keep) * slope_of_tanh(fresh);
  const Tensor of_reset = of_fresh * parts[4] * slope_of_sigmoid(reset);
  const Tensor of_keep = gradient * (before - fresh) * slope_of_sigmoid(keep);
  const Tensor of_input = at::cat({of_reset, of_keep, of_fresh}, 1);
  const Tensor of_hidden = at::cat({of_reset, of_keep, of_fresh * reset}, 1);
  return {of_input, of_hidden, gradient * keep, of_input.sum(0), of_hidden.sum(0)};
}

using Run = Stack (*)(const Call&);
const std::map<std::string, Run> OPERATORS = {
    {"_scaled_dot_product_efficient_attention", attend},
    {"_scaled_dot_product_flash_attention", attend},
    {"_scaled_dot_product_efficient_attention_backward",
     [](const Call& call) { return attend_backward(call, "grad_out_"); }},
    {"_scaled_dot_product_flash_attention_backward",
     [](const Call& call) { return attend_backward(call, "grad_out"); }},
    {"_thnn_fused_lstm_cell", lstm_cell},
    {"_thnn_fused_lstm_cell_backward_impl", lstm_cell_backward},
    {"_thnn_fused_gru_cell", gru_cell},
    {"_thnn_fused_gru_cell_backward", gru_cell_backward},
};

}  // namespace

std::optional<Stack> run_fused(const std::string& name, const c10::FunctionSchema& schema,
                               const Stack& arguments) {
  const auto found = OPERATORS.find(name);
  if (found == OPERATORS.end()) return std::nullopt;
  Stack results = found->second(Call(schema, arguments));
  results.resize(schema.returns().size());
  return results;
}

}  // namespace sim
