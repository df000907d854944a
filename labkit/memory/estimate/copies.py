"""Copies of what a step changes, without data: tensors, scripts, optimizers, generators."""

from __future__ import annotations

import contextlib
import copy
import functools
import weakref
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch._subclasses import fake_tensor
from torch.utils._python_dispatch import _disable_current_modes

from labkit.memory.balance.read import is_leaf
from labkit.memory.estimate.cuda import replace_attributes, replace_in_thread
from labkit.memory.estimate.results import forget_layout


def is_fake(tensor: Any) -> bool:
    """Whether the tensor is one of a simulation."""
    return isinstance(tensor, fake_tensor.FakeTensor)


@contextlib.contextmanager
def copy_by(convert: Callable[[Any], Any]) -> Iterator[None]:
    """Makes ``copy.deepcopy`` replace each tensor by ``convert(tensor)``."""

    def copy_tensor(tensor: Any, memo: dict[int, Any]) -> Any:
        return memo.setdefault(id(tensor), convert(tensor))

    # Each of these has its own __deepcopy__.
    with contextlib.ExitStack() as stack:
        for cls in (torch.Tensor, torch.nn.Parameter, torch.nn.UninitializedParameter):
            stack.enter_context(replace_in_thread(cls, __deepcopy__=copy_tensor))
        for owner, copier in (
            (torch.optim.Optimizer, _copy_optimizer),
            (torch.jit.RecursiveScriptModule, _copy_script),
        ):
            stack.enter_context(replace_in_thread(owner, __deepcopy__=copier))
        copiers = copy._deepcopy_dispatch  # type: ignore[attr-defined]
        own = {torch.Generator: _copy_generator, torch.jit.ScriptFunction: lambda one, _: one}
        for kind in own:
            stack.callback(copiers.pop, kind)
        copiers.update(own)
        yield


def _copy_script(module: Any, memo: dict[int, Any]) -> Any:
    """A copy of a scripted, traced or loaded module, whose C++ object would copy real tensors."""
    made = torch.jit._recursive.wrap_cpp_module(_copy_script_object(module._c, memo))
    return memo.setdefault(id(module), made)


def _copy_script_object(source: Any, memo: dict[int, Any]) -> Any:
    made = source.__copy__()
    for kind in (torch._C.ParameterDict, torch._C.BufferDict):
        for name, tensor in kind(source).items():
            made.setattr(name, copy.deepcopy(tensor, memo))
    for name, part in torch._C.ModuleDict(source).items():
        made.setattr(name, _copy_script_object(part, memo))
    return made


def _copy_optimizer(optimizer: Any, memo: dict[int, Any]) -> Any:
    """A deep copy with the attributes that torch's leaves out, such as L-BFGS's parameters."""
    kind: Any = type(optimizer)
    made = memo[id(optimizer)] = kind.__new__(kind)
    made.__setstate__(copy.deepcopy(optimizer.__getstate__(), memo))
    for name, value in vars(optimizer).items():
        # A scheduler puts a function in place of the optimizer's step.
        if name not in vars(made) and not callable(value):
            setattr(made, name, copy.deepcopy(value, memo))
        elif getattr(value, "_wrapped_by_lr_sched", False):
            made.step = _wrap_step(made)
    return made


def _wrap_step(optimizer: Any) -> Callable[..., Any]:
    """The optimizer's step as a scheduler wraps it: it notes that it was called.

    The scheduler's own wrapper would call the step of the optimizer that was copied.
    """
    step, find = type(optimizer).step, weakref.ref(optimizer)

    @functools.wraps(step)
    def run(*arguments: Any, **named: Any) -> Any:
        optimizer = find()
        optimizer._opt_called = True  # type: ignore[union-attr]
        return step(optimizer, *arguments, **named)

    run._wrapped_by_lr_sched = True  # type: ignore[attr-defined]
    return run


def _copy_generator(generator: Any, memo: dict[int, Any]) -> Any:
    """A copy, which torch's fake mode does not let it make itself."""
    with _disable_current_modes():
        made = memo[id(generator)] = torch.Generator(generator.device)
        made.set_state(generator.get_state())
    return made


COPY_TENSOR = torch.Tensor.__deepcopy__


def copy_tensor(tensor: Any, memo: dict[int, Any]) -> Any:
    """A deep copy; torch's own refuses fake tensors that are not parameters."""
    if not isinstance(tensor, fake_tensor.FakeTensor) or not is_leaf(tensor):
        return COPY_TENSOR(tensor, memo)
    copied = tensor.detach().clone().requires_grad_(tensor.requires_grad)
    if isinstance(tensor, torch.nn.Parameter):
        copied._is_param = True
    return memo.setdefault(id(tensor), copied)


AS_SUBCLASS, MAKE_SUBCLASS = torch.Tensor.as_subclass, torch.Tensor._make_subclass
# The classes of fake tensors that are of a class of the user's too, by the latter.
_fake_kinds: weakref.WeakKeyDictionary[Any, Any] = weakref.WeakKeyDictionary()


def find_fake_kind(kind: Any) -> Any:
    """The class for fake tensors that are of this subclass of Tensor, with its own methods.

    None where fake tensors have their own class or the subclass has operators of its own.
    """
    if issubclass(kind, fake_tensor.FakeTensor):
        return kind
    plain = kind.__torch_dispatch__ is torch.Tensor.__torch_dispatch__
    if not plain or kind in {torch.Tensor, torch.nn.Parameter}:
        return None
    made = _fake_kinds.get(kind)
    if made is None:
        names = {"__module__": kind.__module__, "__qualname__": kind.__qualname__}
        try:
            made = type(kind)(kind.__name__, (fake_tensor.FakeTensor, kind), names)
        except TypeError:  # a metaclass, or slots
            return None
        # Torch gives a class that has operators of its own, as fake tensors have, none of this.
        follow = kind.__torch_function__
        is_method = hasattr(follow, "__func__")
        made.__torch_function__ = classmethod(follow.__func__) if is_method else follow
        _fake_kinds[kind] = made
    return made


def give_class(tensor: Any, kind: Any, attributes: Mapping[str, Any] | None = None) -> Any:
    """The fake tensor itself, as one of this subclass of Tensor, with attributes, if it can be."""
    made = find_fake_kind(kind)
    if made is not None:
        with contextlib.suppress(TypeError):  # of another layout
            tensor.__class__ = made
            tensor.__dict__.update(attributes or {})
    return tensor


def make_plain(tensor: Any) -> Any:
    """The tensor without its subclass, whose functions would run while it is copied."""
    kind = type(tensor)
    if isinstance(tensor, torch.nn.Parameter) or is_fake(tensor) or find_fake_kind(kind) is None:
        return tensor
    with _disable_current_modes(), torch._C.DisableTorchFunctionSubclass():
        return tensor.detach().as_subclass(torch.Tensor).requires_grad_(tensor.requires_grad)


def follow_subclasses() -> contextlib.AbstractContextManager[Any]:
    """Makes ``as_subclass`` give fake tensors the class that is asked for, until exit.

    Torch refuses: its object for the tensor is a fake tensor already.
    """

    def as_subclass(tensor: Any, cls: Any) -> Any:
        # Torch's own, for plain tensors, would need a GPU where one is simulated.
        if not is_fake(tensor) or (find_fake_kind(cls) is None and cls is not torch.Tensor):
            return AS_SUBCLASS(tensor, cls)
        with torch._C.DisableTorchFunctionSubclass():
            return give_class(torch.ops.aten.alias.default(tensor), cls)

    def make_subclass(cls: Any, data: Any, *arguments: Any, **named: Any) -> Any:
        known = len(arguments) < 2 and not named.keys() - {"require_grad"}
        if not known or not is_fake(data) or find_fake_kind(cls) is None:
            return MAKE_SUBCLASS(cls, data, *arguments, **named)
        asked = named.get("require_grad", *arguments) if named or arguments else False
        with torch._C.DisableTorchFunctionSubclass():
            return give_class(data.detach(), cls).requires_grad_(asked)

    return replace_attributes(
        torch.Tensor, as_subclass=as_subclass, _make_subclass=staticmethod(make_subclass)
    )


DATA = torch.Tensor.data


def set_data(tensor: Any, data: Any) -> None:
    """``tensor.data = data``, which gives the tensor another layout and storage."""
    DATA.__set__(tensor, data)
    forget_layout([tensor])


def swap_fakes(apply: Callable[..., Any]) -> Callable[..., Any]:
    """``Module._apply`` that swaps fake parameters, as newer releases than torch 2.6 do.

    Else they would get the moved data, and keep the device that they had.
    """

    @functools.wraps(apply)
    def run(module: Any, *arguments: Any, **named: Any) -> Any:
        known = torch.__future__.get_swap_module_params_on_conversion()
        swaps = known or any(map(is_fake, module._parameters.values()))
        with replace_attributes(torch.__future__, _swap_module_params_on_conversion=swaps):
            return apply(module, *arguments, **named)

    # Those ask for themselves.
    return apply if "FakeTensor" in apply.__code__.co_names else run


def swap_data(one: Any, other: Any) -> None:
    """For ``Module.to``: torch's own swap refuses fake parameters."""
    if other.device.type == "meta" != one.device.type:
        torch._C._swap_tensor_impl(one, other)
        one.__dict__, other.__dict__ = other.__dict__, one.__dict__
        return
    one.data = other.data
    one.fake_device = other.fake_device
