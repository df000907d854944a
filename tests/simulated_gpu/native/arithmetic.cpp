// The arithmetic of torch's CUDA operators. The simulated kernels compute nothing; after each CUDA
// operator this library runs the CPU's operator on the same memory, so that allocations, streams and
// launches are those of CUDA and the values are right. During the capture of a graph the CPU's part is
// kept and runs at each launch of the graph.
// Mirrors nothing of NVIDIA's: it registers kernels for the key CUDA in torch's dispatcher.
#include <ATen/Context.h>
#include <ATen/core/Tensor.h>
#include <ATen/core/dispatch/Dispatcher.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/empty_strided.h>
#include <ATen/ops/from_blob.h>
#include <c10/util/Exception.h>
#include <dlfcn.h>
#include <torch/library.h>

#include <cstdlib>
#include <iostream>
#include <set>

#include "fused.h"

namespace {

using c10::IValue;
using Stack = torch::jit::Stack;

// Products that would take a CPU seconds keep whatever values their memory has.
constexpr double MOST_FLOPS = 2e9;

// Operators that only make or describe memory, or that have no counterpart on the CPU.
const std::set<std::string> WITHOUT_ARITHMETIC = {
    "_copy_from", "_copy_from_and_resize", "_cudnn_init_dropout_state", "_efficientzerotensor",
    "_empty_affine_quantized", "_has_compatible_shallow_copy_type", "_local_scalar_dense",
    "_reshape_alias", "as_strided", "empty", "empty_quantized", "empty_strided", "is_set_to",
    "record_stream", "resize_", "segment_reduce", "set_", "unfold", "view", "view_as_complex",
    "view_as_real",
};
// The size of the result depends on values, which the CUDA operator would read from memory that no
// kernel has written: only the CPU's operator runs. Of linear algebra too, which checks its results.
const std::set<std::string> CPU_ALONE = {
    "_histogramdd_bin_edges", "_unique", "_unique2", "argwhere", "bincount", "count_nonzero",
    "histc", "masked_select", "nonzero", "nonzero_numpy", "nonzero_static", "repeat_interleave",
    "unique_consecutive", "unique_dim", "unique_dim_consecutive",
};
const std::vector<std::string> CPU_ALONE_PREFIXES = {
    "linalg_", "_linalg", "cholesky", "_cholesky", "lu_", "geqrf", "ormqr", "triangular_solve",
};
const std::set<std::string> PRODUCTS = {"mm", "addmm", "bmm", "baddbmm", "_addmm_activation",
                                        "_scaled_mm"};

bool is_traced() {
  static const bool traced = std::getenv("LABKIT_SIM_TRACE_ARITHMETIC") != nullptr;
  return traced;
}

bool is_on_gpu(const IValue& value) {
  return value.isTensor() && value.toTensor().defined() && value.toTensor().is_cuda();
}

// The same memory as a tensor of the CPU. A tensor that is not on a GPU stays as it is.
at::Tensor view_on_cpu(const at::Tensor& tensor) {
  if (!tensor.defined() || !tensor.is_cuda() || tensor.layout() != at::kStrided) return tensor;
  const auto options =
      tensor.options().device(at::kCPU).requires_grad(false).pinned_memory(false);
  if (!tensor.numel()) return at::empty_strided(tensor.sizes(), tensor.strides(), options);
  void* data = tensor.unsafeGetTensorImpl()->mutable_data();
  at::Tensor view = at::from_blob(data, tensor.sizes(), tensor.strides(), [](void*) {}, options);
  if (tensor.is_conj()) view._set_conj(true);
  if (tensor.is_neg()) view._set_neg(true);
  return view;
}

IValue move_argument(const IValue& value) {
  if (value.isTensor()) return view_on_cpu(value.toTensor());
  if (value.isTensorList()) {
    c10::List<at::Tensor> moved;
    for (const at::Tensor& tensor : value.toTensorVector()) moved.push_back(view_on_cpu(tensor));
    return moved;
  }
  if (value.isOptionalTensorList()) {
    c10::List<std::optional<at::Tensor>> moved;
    for (const std::optional<at::Tensor>& tensor : value.toOptionalTensorVector())
      moved.push_back(tensor ? std::optional<at::Tensor>(view_on_cpu(*tensor)) : std::nullopt);
    return moved;
  }
  if (value.isDevice() && value.toDevice().is_cuda()) return c10::Device(at::kCPU);
  if (value.isGenerator() && value.toGenerator().device().is_cuda()) return IValue();
  return value;
}

bool is_alike(const at::Tensor& left, const at::Tensor& right) {
  return left.defined() && left.sizes() == right.sizes() &&
         left.scalar_type() == right.scalar_type();
}

// Writes a result of the CPU into the CUDA operator's; makes that where the two do not fit.
void write_result(IValue& ours, const IValue& computed, c10::Device device) {
  if (computed.isTensor()) {
    const at::Tensor& values = computed.toTensor();
    at::Tensor tensor = ours.isTensor() ? ours.toTensor() : at::Tensor();
    if (!values.defined() || (tensor.defined() && !tensor.is_cuda())) return;
    if (!is_alike(tensor, values)) {
      tensor = at::empty(values.sizes(), values.options().device(device));
      ours = tensor;
    }
    if (values.numel()) view_on_cpu(tensor).copy_(values);
  } else if (computed.isTensorList() && ours.isTensorList()) {
    const auto tensors = ours.toTensorVector(), values = computed.toTensorVector();
    for (size_t at = 0; at < std::min(tensors.size(), values.size()); at++)
      if (tensors[at].defined() && tensors[at].is_cuda() && values[at].numel() &&
          tensors[at].sizes() == values[at].sizes())
        view_on_cpu(tensors[at]).copy_(values[at]);
  } else if (computed.isInt() || computed.isBool() || computed.isDouble()) {
    ours = computed;
  }
}

// TF32 has 10 bits of mantissa, float32 23.
at::Tensor round_to_tf32(const at::Tensor& values) {
  constexpr int64_t HALF_STEP = 0x1000, KEPT = ~0x1fffLL;
  return values.contiguous().view(at::kInt).add(HALF_STEP).bitwise_and(KEPT).view(at::kFloat);
}

// True where a GPU would use TF32: from Ampere on, if the user allows it.
bool uses_tf32(c10::Device device) {
  using Ask = int (*)(int*, int, int);
  constexpr int MAJOR = 75, OLDEST = 8;  // cudaDevAttrComputeCapabilityMajor
  static const auto ask = reinterpret_cast<Ask>(dlsym(RTLD_DEFAULT, "cudaDeviceGetAttribute"));
  int major = 0;
  return at::globalContext().allowTF32CuBLAS() && ask && !ask(&major, MAJOR, device.index()) &&
         major >= OLDEST;
}

// The factors of a product in float32, rounded as the GPU's tensor cores round them.
void round_factors(const c10::FunctionSchema& schema, const std::string& name, Stack& arguments) {
  static const std::set<std::string> FACTORS = {"mat1", "mat2", "batch1", "batch2"};
  for (size_t at = 0; at < arguments.size(); at++) {
    const std::string& argument = schema.arguments()[at].name();
    const bool factor = FACTORS.count(argument) ||
                        (argument == "self" && (name == "mm" || name == "bmm"));
    if (factor && arguments[at].isTensor() && arguments[at].toTensor().scalar_type() == at::kFloat)
      arguments[at] = round_to_tf32(arguments[at].toTensor());
  }
}

bool is_too_large(const std::string& name, const std::vector<IValue>& arguments) {
  static const char* set = std::getenv("LABKIT_SIM_MOST_FLOPS");
  static const double most = set ? std::atof(set) : MOST_FLOPS;
  if (!PRODUCTS.count(name)) return false;
  double work = 0;
  at::Tensor left;
  for (const IValue& argument : arguments) {
    if (!argument.isTensor() || !argument.toTensor().defined()) continue;
    const at::Tensor right = argument.toTensor();
    if (right.dim() < 2) continue;
    if (left.defined()) work = std::max(work, 2.0 * left.numel() * right.size(-1));
    left = right;
  }
  return work > 2 * most;
}

// The simulated runtime's side of graphs: see graphs.cpp.
using Run = void (*)(void*);
bool is_capturing() {
  using Ask = int (*)();
  static const auto ask = reinterpret_cast<Ask>(dlsym(RTLD_DEFAULT, "labkit_sim_is_capturing"));
  return ask && ask();
}
void add_to_capture(Run run, void* data, Run destroy) {
  using Add = void (*)(Run, void*, Run);
  static const auto add = reinterpret_cast<Add>(dlsym(RTLD_DEFAULT, "labkit_sim_add_to_capture"));
  add(run, data, destroy);
}

// One operator's run on the CPU: its moved arguments, and the CUDA results that get its values.
struct CpuRun {
  c10::OperatorHandle op;
  Stack arguments;
  std::vector<IValue> results;
  c10::Device device;

  // The operator's results, with the values written; empty if the CPU has no such operator.
  Stack run(bool must_work) {
    Stack stack = arguments;
    const std::string name = op.operator_name().name.substr(6);
    if (PRODUCTS.count(name) && uses_tf32(device)) round_factors(op.schema(), name, stack);
    try {
      if (std::optional<Stack> fused = sim::run_fused(name, op.schema(), stack))
        stack = std::move(*fused);
      else
        op.redispatchBoxed(c10::DispatchKeySet(c10::DispatchKey::CPU), &stack);
    } catch (const std::exception& error) {
      if (must_work) throw;
      if (is_traced())
        std::cerr << "[simulated gpu] " << op.schema().name() << ": "
                  << std::string(error.what()).substr(0, 200) << std::endl;
      return {};
    }
    for (size_t at = 0; at < std::min(results.size(), stack.size()); at++)
      if (!op.schema().returns()[at].alias_info()) write_result(results[at], stack[at], device);
    return stack;
  }
};

// A result that is one of the arguments: of an operator in place, or with out=.
IValue find_argument_for(const c10::FunctionSchema& schema, size_t result,
                         const std::vector<IValue>& arguments, const IValue& otherwise) {
  const auto* wanted = schema.returns()[result].alias_info();
  for (size_t at = 0; wanted && at < arguments.size(); at++) {
    const auto* found = schema.arguments()[at].alias_info();
    if (found && found->beforeSets() == wanted->beforeSets()) return arguments[at];
  }
  return otherwise;
}

// The kernel that replaces one CUDA kernel of torch's.
struct WithArithmetic final : c10::OperatorKernel {
  WithArithmetic(c10::SafeKernelFunction kernel, bool cpu_alone)
      : kernel_(std::move(kernel)), cpu_alone_(cpu_alone) {}

  void operator()(const c10::OperatorHandle& op, c10::DispatchKeySet keys, Stack* stack) {
    const c10::FunctionSchema& schema = op.schema();
    const std::vector<IValue> arguments(stack->end() - schema.arguments().size(), stack->end());
    if (!cpu_alone_) {
      kernel_.callBoxed(op, keys, stack);
      if (is_too_large(op.operator_name().name.substr(6), arguments)) return;
    }
    CpuRun cpu{op, {}, {}, find_device(arguments)};
    for (const IValue& argument : arguments) cpu.arguments.push_back(move_argument(argument));
    if (cpu_alone_) {
      stack->erase(stack->end() - arguments.size(), stack->end());
      stack->insert(stack->end(), schema.returns().size(), IValue());
    }
    const size_t first = stack->size() - schema.returns().size();
    cpu.results.assign(stack->begin() + first, stack->end());
    if (is_capturing()) {
      keep_for_launch(std::move(cpu));
      return;
    }
    cpu.run(cpu_alone_);
    for (size_t at = 0; at < cpu.results.size(); at++)
      (*stack)[first + at] =
          cpu_alone_ ? find_argument_for(schema, at, arguments, cpu.results[at]) : cpu.results[at];
  }

 private:
  static c10::Device find_device(const std::vector<IValue>& arguments) {
    for (const IValue& argument : arguments)
      if (is_on_gpu(argument)) return argument.toTensor().device();
    return {at::kCUDA, c10::impl::getDeviceGuardImpl(at::kCUDA)->getDevice().index()};
  }

  // The results become views of the graph's memory: a graph does not keep torch's tensors alive.
  static void keep_for_launch(CpuRun cpu) {
    for (IValue& result : cpu.results) result = move_argument(result);
    add_to_capture(
        [](void* data) {
          auto& kept = *static_cast<CpuRun*>(data);
          std::vector<IValue> views = kept.results;
          const Stack computed = kept.run(false);
          for (size_t at = 0; at < std::min(views.size(), computed.size()); at++)
            copy_into_view(views[at], computed[at]);
          kept.results = views;
        },
        new CpuRun(std::move(cpu)), [](void* data) { delete static_cast<CpuRun*>(data); });
  }

  static void copy_into_view(const IValue& view, const IValue& computed) {
    if (view.isTensor() && computed.isTensor() && is_alike(view.toTensor(), computed.toTensor())) {
      if (view.toTensor().data_ptr() != computed.toTensor().data_ptr())
        view.toTensor().copy_(computed.toTensor());
    } else if (view.isTensorList() && computed.isTensorList()) {
      const auto views = view.toTensorVector(), values = computed.toTensorVector();
      for (size_t at = 0; at < std::min(views.size(), values.size()); at++)
        if (is_alike(views[at], values[at])) views[at].copy_(values[at]);
    }
  }

  c10::SafeKernelFunction kernel_;
  bool cpu_alone_;
};

bool is_cpu_alone(const std::string& name) {
  for (const std::string& prefix : CPU_ALONE_PREFIXES)
    if (name.rfind(prefix, 0) == 0) return true;
  return CPU_ALONE.count(name) > 0;
}

bool returns_view(const c10::FunctionSchema& schema) {
  for (const auto& result : schema.returns())
    if (result.alias_info() && !result.alias_info()->isWrite()) return true;
  return false;
}

bool has_cuda_kernel(const c10::OperatorHandle& op, const std::string& name) {
  // copy_ reaches CUDA through another key, and has a kernel for it all the same.
  return name == "copy_" || op.hasKernelForDispatchKey(c10::DispatchKey::CUDA);
}

struct IgnoreWarnings : c10::WarningHandler {
  void process(const c10::Warning&) override {}
};

// Replaces the CUDA kernel of each of torch's operators, when the library is loaded.
struct Registration {
  Registration() {
    IgnoreWarnings ignore;  // torch warns of each kernel that is replaced
    c10::WarningUtils::WarningHandlerGuard guard(&ignore);
    auto* library = new torch::Library(torch::Library::IMPL, "aten", c10::DispatchKey::CUDA,
                                       __FILE__, __LINE__);
    auto& dispatcher = c10::Dispatcher::singleton();
    for (const c10::OperatorName& full : dispatcher.getAllOpNames()) {
      if (full.name.rfind("aten::", 0)) continue;
      const std::string name = full.name.substr(6);
      const auto op = dispatcher.findSchema(full);
      if (!op || WITHOUT_ARITHMETIC.count(name) || !has_cuda_kernel(*op, name) ||
          returns_view(op->schema()))
        continue;
      auto kernel = op->getComputedKernelForDispatchKey(c10::DispatchKey::CUDA);
      const std::string overload = full.overload_name.empty() ? "" : "." + full.overload_name;
      library->impl((full.name + overload).c_str(),
                    torch::CppFunction::makeFromBoxedFunctor(
                        std::make_unique<WithArithmetic>(kernel, is_cpu_alone(name))));
    }
  }
} registration;

}  // namespace

// For installed/compiled.py.
TORCH_LIBRARY(labkit_simulated, library) {
  library.def("view_on_cpu(Tensor(a) tensor) -> Tensor(a)");
  library.impl("view_on_cpu", c10::DispatchKey::CUDA, TORCH_FN(view_on_cpu));
}
