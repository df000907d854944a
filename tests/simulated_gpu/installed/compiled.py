"""The values of what torch.compile makes for CUDA.

Triton's kernels compute nothing on a simulated GPU. Each graph that inductor compiled is therefore
also interpreted on the CPU, on the same memory, before the compiled code runs; its values are
written into what the compiled code returns. As in inductor's kernels, types of 16 bits are computed
in 32 bits and rounded only where a result leaves the graph or enters a library's product.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from types import ModuleType
from typing import Any

import torch
from torch.fx import GraphModule, Interpreter, Node

# Products of libraries: they take their arguments rounded, and round what they return.
PRODUCTS = ("aten.mm", "aten.addmm", "aten.bmm", "aten.baddbmm", "aten.convolution", "aten._scaled")
# How inductor's code is called: with a list that it empties.
Boxed = Callable[[list[Any]], Any]
SHORT_TYPES = (torch.float16, torch.bfloat16)


def add_values(inductor: ModuleType) -> None:
    """Makes ``torch._inductor.compile_fx`` return functions whose results have values."""
    import torch._functorch.config

    # Its entries would come back without passing through the function below.
    torch._functorch.config.enable_autograd_cache = False
    compile_graph = inductor._compile_fx_inner

    def compile_with_values(module: GraphModule, inputs: Any, **options: Any) -> Any:
        # inductor changes the graph as it compiles it.
        reference = GraphModule(module, copy.deepcopy(module.graph))
        compiled = compile_graph(module, inputs, **options)
        if uses_cuda(reference) and getattr(compiled, "current_callable", None):
            compiled.current_callable = write_values(compiled.current_callable, reference)
        return compiled

    inductor._compile_fx_inner = compile_with_values


def uses_cuda(module: GraphModule) -> bool:
    """True if a tensor of the graph is on a GPU."""
    values = (node.meta.get("val") for node in module.graph.nodes)
    return any(isinstance(value, torch.Tensor) and value.is_cuda for value in values)


def write_values(
    run: Callable[[list[Any]], Any], module: GraphModule
) -> Callable[[list[Any]], Any]:
    """``run`` with the values of the graph in its results."""

    def run_with_values(inputs: list[Any]) -> Any:
        if torch.cuda.is_current_stream_capturing():
            return run(inputs)
        with torch.no_grad():
            values = OnCpu(module).run(*inputs)
            results = run(inputs)
            for result, value in zip(results, values, strict=True):
                if isinstance(result, torch.Tensor) and result.numel():
                    view_on_cpu(result).copy_(value)
        return results

    run_with_values._boxed_call = True  # type: ignore[attr-defined]
    return run_with_values


def view_on_cpu(value: Any) -> Any:
    """A CUDA tensor's memory as a tensor of the CPU; anything else as it is."""
    if isinstance(value, torch.Tensor) and value.is_cuda:
        return torch.ops.labkit_simulated.view_on_cpu(value)
    return value


class OnCpu(Interpreter):
    """Runs a graph for CUDA on the CPU."""

    def __init__(self, module: GraphModule) -> None:
        super().__init__(module)
        self._node: Node | None = None

    def run_node(self, node: Node) -> Any:
        """Notes the node: call_function does not get it."""
        self._node = node
        return super().run_node(node)

    def placeholder(self, target: Any, arguments: Any, keywords: Any) -> Any:
        """An input of the graph."""
        return view_on_cpu(super().placeholder(target, arguments, keywords))

    def get_attr(self, target: Any, arguments: Any, keywords: Any) -> Any:
        """A constant of the graph."""
        return view_on_cpu(super().get_attr(target, arguments, keywords))

    def call_function(self, target: Any, arguments: Any, keywords: Any) -> Any:
        """One operator, with CPU for CUDA and, but for products, 32 bits for 16."""
        name = str(target)
        if name.startswith("aten.copy_"):  # into an input of the graph, which has its own type
            return target(*arguments, **keywords)
        if name.startswith(PRODUCTS):
            arguments = self._round_arguments(arguments)
        else:
            arguments = torch.fx.node.map_aggregate(arguments, widen)
            if keywords.get("dtype") in SHORT_TYPES:
                keywords = {**keywords, "dtype": torch.float32}
            if name.startswith("prims.convert_element_type") and arguments[1] in SHORT_TYPES:
                arguments = (arguments[0], torch.float32)
        if isinstance(keywords.get("device"), torch.device):
            keywords = {**keywords, "device": torch.device("cpu")}
        if "inductor_seed" in name or "inductor_random" in name:
            arguments = torch.fx.node.map_aggregate(arguments, leave_cuda)
        return target(*arguments, **keywords)

    def _round_arguments(self, arguments: Any) -> Any:
        """The arguments in the types that the graph says."""
        assert self._node is not None
        return tuple(
            value.to(node.meta["val"].dtype) if isinstance(value, torch.Tensor) else value
            for value, node in zip(arguments, self._node.args, strict=True)
        )


def widen(value: Any) -> Any:
    """A tensor of 16-bit floats in 32 bits."""
    if isinstance(value, torch.Tensor) and value.dtype in SHORT_TYPES:
        return value.float()
    return value


def leave_cuda(value: Any) -> Any:
    """The CPU for a CUDA device."""
    return torch.device("cpu") if isinstance(value, torch.device) else value
