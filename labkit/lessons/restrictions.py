"""Finds the ways an answer was reached: loops, NumPy, and values taken out one by one.

It reads the function's own bytecode (and its source, for a `while`), that of what is nested in
it, and of the helpers that it calls by name from the same notebook; libraries are taken as they
are.
"""

from __future__ import annotations

import ast
import dis
import functools
import inspect
import textwrap
from collections.abc import Callable, Iterator
from types import CodeType, FunctionType, MethodType, ModuleType

_LIBRARIES = {"torch", "numpy", "functools", "builtins", "math"}
_LOOPING = ("map", "filter", "reduce", "accumulate", "starmap")
_SENTENCES = {
    "loop": "it goes through the values with a loop, and this exercise asks for a way without one",
    "numpy": "it goes through NumPy, and this exercise asks for torch alone",
    "item": "it takes values out of tensors with `.item()` or `.tolist()`, "
    "and this exercise asks to stay with tensors",
    "by_hand": "no gradient was asked for, and this exercise asks for autograd's",
}
_DERIVATIVES = {
    *("backward", "grad", "grad_and_value", "jacobian", "hessian"),
    *("jacrev", "jacfwd", "vjp", "jvp", "linearize"),
}


def find_forbidden(function: object, forbids: tuple[str, ...]) -> str | None:
    """A sentence on the first forbidden way that the function takes, or None where it takes none.

    >>> find_forbidden(lambda x: sum(v for v in x), ("loop",)).split(",")[0]
    'it goes through the values with a loop'
    """
    functions = list(_own_functions(function, set()))
    for way in forbids:
        if way == "by_hand":
            if functions and not any(asks_for_gradient(one) for one in functions):
                return _SENTENCES[way]
        elif any(_FINDERS[way](one) for one in functions):
            return _SENTENCES[way]
    return None


def has_loop(function: FunctionType) -> bool:
    """True where the function has a for, a while, a comprehension or a ``map`` of its own."""
    codes = list(_codes(function.__code__))
    if any(name in _LOOPING for code in codes for name in code.co_names):
        return True
    steps = (one.opname for code in codes for one in dis.get_instructions(code))
    return "FOR_ITER" in steps or _has_while(function)


def uses_numpy(function: FunctionType) -> bool:
    """True where the function calls ``.numpy()``, imports NumPy or uses a name from it."""
    for code in _codes(function.__code__):
        if any(name.split(".")[0] == "numpy" or name == "from_numpy" for name in code.co_names):
            return True
        if any(constant == "numpy" for constant in code.co_consts if isinstance(constant, str)):
            return True
    return any(_library_of(value) == "numpy" for value in _named_values(function))


def takes_items(function: FunctionType) -> bool:
    """True where the function calls ``.item()`` or ``.tolist()``."""
    return any(
        name in ("item", "tolist") for code in _codes(function.__code__) for name in code.co_names
    )


def asks_for_gradient(function: FunctionType) -> bool:
    """True where the function names a way to have torch find a derivative."""
    return any(name in _DERIVATIVES for code in _codes(function.__code__) for name in code.co_names)


_FINDERS: dict[str, Callable[[FunctionType], bool]] = {
    "loop": has_loop,
    "numpy": uses_numpy,
    "item": takes_items,
}


def _own_functions(value: object, seen: set[int]) -> Iterator[FunctionType]:
    """The learner's functions behind a callable: itself, what it wraps, and helpers it names."""
    if id(value) in seen:
        return
    seen.add(id(value))
    if isinstance(value, functools.partial):
        for part in (value.func, *value.args, *value.keywords.values()):
            yield from _own_functions(part, seen)
    elif isinstance(value, MethodType):
        yield from _own_functions(value.__func__, seen)
    elif isinstance(value, FunctionType):
        # Not __module__, which a decorator copies from what it wraps.
        own = str(value.__globals__.get("__name__")).split(".")[0] not in _LIBRARIES
        if own:
            yield value
        # A transform such as vmap(f) holds f in its closure; a library's globals are its own.
        for other in _named_values(value) if own else _closure_values(value):
            if isinstance(other, FunctionType | functools.partial | MethodType):
                yield from _own_functions(other, seen)
    elif callable(value) and not isinstance(value, type):
        for name in ("forward", "__call__"):
            yield from _own_functions(getattr(type(value), name, None), seen)


def _named_values(function: FunctionType) -> Iterator[object]:
    for code in _codes(function.__code__):
        for name in code.co_names:
            if name in function.__globals__:
                yield function.__globals__[name]
    yield from _closure_values(function)


def _closure_values(function: FunctionType) -> Iterator[object]:
    for cell in function.__closure__ or ():
        try:
            yield cell.cell_contents
        except ValueError:  # named before it is bound
            continue


def _library_of(value: object) -> str:
    if isinstance(value, ModuleType):
        return value.__name__.split(".")[0]
    return str(getattr(value, "__module__", None) or "").split(".")[0]


def _codes(code: CodeType) -> Iterator[CodeType]:
    yield code
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _codes(constant)


def _has_while(function: FunctionType) -> bool:
    if function.__name__ == "<lambda>":
        return False
    try:
        tree = ast.parse(textwrap.dedent(inspect.getsource(function.__code__)))
    except (OSError, TypeError, SyntaxError):
        # Without its source a `while` and the handlers of a `try` look much the same.
        return any(_jumps_back(code) for code in _codes(function.__code__))
    return any(isinstance(node, ast.While) for node in ast.walk(tree))


def _jumps_back(code: CodeType) -> bool:
    jumps = {*dis.hasjrel, *dis.hasjabs}
    return any(
        one.opcode in jumps and one.argval <= one.offset and "NO_INTERRUPT" not in one.opname
        for one in dis.get_instructions(code)
    )
