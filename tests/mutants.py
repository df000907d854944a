"""Mutants of a function's source: each differs from it by one small, plausible mistake.

The operators are those of mutation testing: a constant, an operator, a comparison or a name is
exchanged, a statement, an argument or a negation dropped. Python's ``ast`` only.
"""

from __future__ import annotations

import ast
import copy
from collections.abc import Iterator

_SWAPS: dict[type[ast.AST], tuple[type[ast.AST], ...]] = {
    ast.Add: (ast.Sub,),
    ast.Sub: (ast.Add,),
    ast.Mult: (ast.Add, ast.Div),
    ast.Div: (ast.Mult,),
    ast.FloorDiv: (ast.Mult,),
    ast.Mod: (ast.FloorDiv,),
    ast.Pow: (ast.Mult,),
    ast.MatMult: (ast.Mult,),
    ast.Lt: (ast.LtE, ast.GtE),
    ast.LtE: (ast.Lt, ast.Gt),
    ast.Gt: (ast.GtE, ast.LtE),
    ast.GtE: (ast.Gt, ast.Lt),
    ast.Eq: (ast.NotEq,),
    ast.NotEq: (ast.Eq,),
    ast.Is: (ast.IsNot,),
    ast.IsNot: (ast.Is,),
}
_NAMES = {
    "sum": ("mean", "max"),
    "mean": ("sum",),
    "median": ("mean",),
    "std": ("var",),
    "ceil": ("floor",),
    "jvp": ("vjp",),
    "hessian": ("grad",),
    "solve": ("lstsq",),
    "cat": ("stack",),
    "first": ("second",),
    "float32": ("float64",),
    "sqrt": ("square",),
    "norm": ("sum",),
}


def list_mutants(source: str) -> Iterator[tuple[str, str]]:
    """Every mutant of the source, with what was changed: "line 3: + became -"."""
    tree = ast.parse(source)
    seen = {ast.unparse(tree)}
    for index, node in enumerate(ast.walk(tree)):
        for edit in range(_count_edits(node)):
            mutant = copy.deepcopy(tree)
            target = next(each for at, each in enumerate(ast.walk(mutant)) if at == index)
            said = _edit(mutant, target, edit)
            text = ast.unparse(ast.fix_missing_locations(mutant))
            if text not in seen:
                seen.add(text)
                yield f"line {getattr(node, 'lineno', 1)}: {said}", text


def _count_edits(node: ast.AST) -> int:
    return len(list(_edits(node)))


def _edit(tree: ast.AST, node: ast.AST, wanted: int) -> str:
    """Carries out one of the node's edits; returns what it does, in words."""
    said, field, value = list(_edits(node))[wanted]
    if field:
        setattr(node, field, value)
    else:
        _replace(tree, node, value)
    return said


def _replace(tree: ast.AST, old: ast.AST, new: ast.AST) -> None:
    for parent in ast.walk(tree):
        for name, value in ast.iter_fields(parent):
            if value is old:
                setattr(parent, name, new)
            elif isinstance(value, list) and any(each is old for each in value):
                setattr(parent, name, [new if each is old else each for each in value])


def _edits(node: ast.AST) -> Iterator[tuple[str, str, object]]:
    """What can be done to one node: words, a field of it and the field's new value.

    Without a field, the value is a node that takes its place.
    """
    if isinstance(node, ast.Constant):
        yield from _constant_edits(node)
    elif isinstance(node, ast.BinOp | ast.AugAssign) and not isinstance(node.op, ast.BitOr):
        for other in _SWAPS.get(type(node.op), ()):
            yield f"{type(node.op).__name__} became {other.__name__}", "op", other()
        if isinstance(node, ast.BinOp):
            yield "an operation lost its right side", "", node.left
            yield "an operation lost its left side", "", node.right
    elif isinstance(node, ast.Compare):
        for other in _SWAPS.get(type(node.ops[0]), ()):
            yield f"{type(node.ops[0]).__name__} became {other.__name__}", "ops", [other()]
    elif isinstance(node, ast.UnaryOp):
        yield "a sign was dropped", "", node.operand
    elif isinstance(node, ast.IfExp):
        yield "only the first branch", "", node.body
        yield "only the second branch", "", node.orelse
    elif isinstance(node, ast.Attribute | ast.Name):
        field = "attr" if isinstance(node, ast.Attribute) else "id"
        for name in _NAMES.get(getattr(node, field), ()):
            yield f"{getattr(node, field)} became {name}", field, name
    elif isinstance(node, ast.Call):
        yield from _call_edits(node)
    elif isinstance(node, ast.Tuple | ast.List) and len(node.elts) == 2:
        yield "two values changed places", "elts", node.elts[::-1]
    yield from _block_edits(node)


def _constant_edits(node: ast.Constant) -> Iterator[tuple[str, str, object]]:
    value = node.value
    if isinstance(value, bool):
        yield f"{value} became {not value}", "value", not value
    elif isinstance(value, int | float):
        for other in dict.fromkeys((value + 1, value - 1, 0)):
            yield f"{value} became {other}", "value", other
    elif value is None:
        yield "None became 0", "value", 0


def _call_edits(node: ast.Call) -> Iterator[tuple[str, str, object]]:
    for index, keyword in enumerate(node.keywords):
        rest = [*node.keywords[:index], *node.keywords[index + 1 :]]
        yield f"{keyword.arg}= was dropped", "keywords", rest
    if len(node.args) > 1:
        for index in range(len(node.args) - 1):
            args = list(node.args)
            args[index], args[index + 1] = args[index + 1], args[index]
            yield f"arguments {index + 1} and {index + 2} changed places", "args", args
    if isinstance(node.func, ast.Attribute) and not node.args:
        yield f".{node.func.attr}() was dropped", "", node.func.value
    elif len(node.args) == 1:
        yield f"{ast.unparse(node.func)}(x) became x", "", node.args[0]


def _block_edits(node: ast.AST) -> Iterator[tuple[str, str, object]]:
    for field in ("body", "orelse", "finalbody"):
        block = getattr(node, field, None)
        if not isinstance(block, list) or isinstance(node, ast.Module):
            continue
        for index, statement in enumerate(block):
            if isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Constant):
                continue  # a docstring
            rest = [*block[:index], *block[index + 1 :]]
            said = f"{ast.unparse(statement).splitlines()[0]!r} was dropped"
            yield said, field, rest or [ast.Pass()]
