"""Finds how a function reaches its answer: with a loop, NumPy, ``.item()``, or without autograd.

It reads the source of the function, of nested functions, and of the helpers from the same
notebook that it uses; libraries are not searched. A function without source passes.
"""

from __future__ import annotations

import ast
import functools
import linecache
from collections.abc import Iterator
from dataclasses import dataclass
from types import FunctionType, MethodType, ModuleType

_LIBRARIES = {"torch", "numpy", "functools", "builtins", "math"}
_LOOPS = (ast.For, ast.AsyncFor, ast.While, ast.comprehension)
_LOOPING = {"map", "filter", "reduce", "accumulate", "starmap"}
_DERIVATIVES = {
    *("backward", "grad", "grad_and_value", "jacobian", "hessian"),
    *("jacrev", "jacfwd", "vjp", "jvp", "linearize"),
}
_Definition = ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda
_SENTENCES = {
    "loop": "it goes through the values with a loop, and this exercise asks for a way without one",
    "numpy": "it goes through NumPy, and this exercise asks for torch alone",
    "item": "it takes values out of tensors with `.item()` or `.tolist()`, "
    "and this exercise asks to stay with tensors",
    "by_hand": "no gradient was asked for, and this exercise asks for autograd's",
}


def find_violation(function: object, restrictions: tuple[str, ...]) -> str | None:
    """A sentence on the first restriction that the function violates; None if there is none.

    >>> source = "def total(x): return sum(v for v in x)"
    >>> _ = linecache.cache.update({"<cell>": (len(source), None, [source], "<cell>")})
    >>> exec(compile(source, "<cell>", "exec"))
    >>> find_violation(total, ("loop",)).split(",")[0]
    'it goes through the values with a loop'
    """
    sources = [source for one in _own_functions(function, set()) if (source := _read(one))]
    for restriction in restrictions:
        if restriction == "by_hand":
            violated = bool(sources) and not any(one.names & _DERIVATIVES for one in sources)
        else:
            violated = any(one.violates(restriction) for one in sources)
        if violated:
            return _SENTENCES[restriction]
    return None


@dataclass(frozen=True)
class _Source:
    """What a function's source uses: loops, names and attributes, strings, and global values."""

    loops: bool
    names: set[str]
    texts: set[object]
    values: tuple[object, ...]

    def violates(self, restriction: str) -> bool:
        if restriction == "loop":
            return self.loops or bool(self.names & _LOOPING)
        if restriction == "item":
            return bool(self.names & {"item", "tolist"})
        if self.names & {"numpy", "from_numpy"} or "numpy" in self.texts:
            return True
        return any(_library_of(value) == "numpy" for value in self.values)


def _read(function: FunctionType) -> _Source | None:
    node = _find_node(function)
    if node is None:
        return None
    body = node.body if isinstance(node.body, list) else [node.body]
    nodes = [one for statement in body for one in _walk(statement)]
    bound = {arg.arg for arg in _walk(node) if isinstance(arg, ast.arg)}
    names, texts = set[str](), set[object]()
    for one in nodes:
        if isinstance(one, ast.Attribute):
            names.add(one.attr)
        elif isinstance(one, ast.Import | ast.ImportFrom):
            modules = [one.module or ""] if isinstance(one, ast.ImportFrom) else []
            modules += [alias.name for alias in one.names]
            names |= {part for module in modules for part in module.split(".")[:1]}
        elif isinstance(one, ast.Constant) and isinstance(one.value, str):
            texts.add(one.value)
        elif isinstance(one, ast.Name) and not isinstance(one.ctx, ast.Load):
            bound.add(one.id)
    loaded = {one.id for one in nodes if isinstance(one, ast.Name)} - bound
    values = [function.__globals__[name] for name in loaded if name in function.__globals__]
    return _Source(
        any(isinstance(one, _LOOPS) for one in nodes),
        names | loaded,
        texts,
        (*values, *_closure_values(function)),
    )


def _walk(node: ast.AST) -> Iterator[ast.AST]:
    """The node and its descendants, without annotations, which do not affect the computation."""
    yield node
    for name, value in ast.iter_fields(node):
        if name not in ("annotation", "returns"):
            for child in value if isinstance(value, list) else [value]:
                if isinstance(child, ast.AST):
                    yield from _walk(child)


def _find_node(
    function: FunctionType,
) -> ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda | None:
    """The function's definition in the syntax tree of its file or notebook cell."""
    code = function.__code__
    try:
        tree = _parse("".join(linecache.getlines(code.co_filename)))
    except (SyntaxError, ValueError):
        return None
    found: list[_Definition] = []
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            first = min([node.lineno, *(one.lineno for one in node.decorator_list)])
            if node.name == code.co_name and first == code.co_firstlineno:
                found.append(node)
        elif isinstance(node, ast.Lambda) and code.co_name == "<lambda>":
            names = tuple(one.arg for one in ast.walk(node.args) if isinstance(one, ast.arg))
            known = code.co_varnames[: len(names)]
            if node.lineno == code.co_firstlineno and sorted(names) == sorted(known):
                found.append(node)
    # If a line has several lambdas, choose the one that uses the same names as the code object.
    used = set(code.co_names)
    return next(
        (node for node in found if used <= {*_attributes(node)} | {*_names(node)}),
        found[0] if found else None,
    )


def _attributes(node: ast.AST) -> Iterator[str]:
    return (one.attr for one in ast.walk(node) if isinstance(one, ast.Attribute))


def _names(node: ast.AST) -> Iterator[str]:
    return (one.id for one in ast.walk(node) if isinstance(one, ast.Name))


@functools.lru_cache(maxsize=32)
def _parse(text: str) -> ast.Module:
    return ast.parse(text)


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
        # Not __module__, because a decorator copies it from the wrapped function.
        own = str(value.__globals__.get("__name__")).split(".")[0] not in _LIBRARIES
        if own:
            yield value
        # A transform such as vmap(f) holds f in its closure; a library's globals are not searched.
        source = _read(value) if own else None
        for other in source.values if source else _closure_values(value):
            if isinstance(other, FunctionType | functools.partial | MethodType):
                yield from _own_functions(other, seen)
    elif callable(value) and not isinstance(value, type):
        for name in ("forward", "__call__"):
            yield from _own_functions(getattr(type(value), name, None), seen)


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
