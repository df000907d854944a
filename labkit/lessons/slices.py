"""Takes from a notebook just the statements that an answer to a check needs, and runs those.

So the gate can judge every stub and every reference in a second, without running whole labs.
"""

from __future__ import annotations

import ast
import linecache
import symtable
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from labkit.errors import LabkitError


@dataclass(frozen=True)
class CheckCall:
    """A ``check(name, answer)`` in a notebook: where it stands and the answer's expression."""

    exercise: str
    position: int
    answer: ast.expr


def find_check_calls(sources: Iterable[str]) -> tuple[list[ast.stmt], list[CheckCall]]:
    """The top-level statements of the code cells, and the checks that stand among them."""
    statements = [statement for source in sources for statement in _parse(source)]
    calls = []
    for position, statement in enumerate(statements):
        for node in ast.walk(statement):
            if _is_check(node):
                calls.append(CheckCall(node.args[0].value, position, node.args[1]))  # type: ignore
    return statements, calls


def find_answer(statements: list[ast.stmt], call: CheckCall) -> Any:
    """The function that the check is given, made by running what it depends on and no more."""
    body = [statements[index] for index in sorted(_needed_by(statements, call))]
    answer = ast.Assign(targets=[ast.Name("__answer__", ast.Store())], value=call.answer)
    module = ast.fix_missing_locations(ast.Module([*body, answer], type_ignores=[]))
    name, text = f"<{call.exercise}>", ast.unparse(module)
    # So that whoever asks for a function's source finds it.
    linecache.cache[name] = (len(text), None, text.splitlines(keepends=True), name)
    namespace: dict[str, Any] = {"__name__": "__lesson__"}
    try:
        exec(compile(text, name, "exec"), namespace)  # noqa: S102  our own lesson
    except Exception as error:
        raise LabkitError(
            f"the answer to {call.exercise} cannot be made",
            cause=f"{type(error).__name__}: {error}",
            fix="let its cell stand on imports and definitions only",
        ) from error
    return namespace["__answer__"]


def count_claims(sources: Iterable[str]) -> int:
    """How many ``claim`` and ``claim_raises`` the code cells hold."""
    return sum(
        _called_name(node) in ("claim", "claim_raises")
        for source in sources
        for statement in _parse(source)
        for node in ast.walk(statement)
    )


def _parse(source: str) -> list[ast.stmt]:
    from IPython.core.inputtransformer2 import TransformerManager

    return list(ast.parse(str(TransformerManager().transform_cell(source))).body)


def _is_check(node: ast.AST) -> bool:
    return (
        _called_name(node) == "check"
        and isinstance(node, ast.Call)
        and len(node.args) == 2
        and isinstance(node.args[0], ast.Constant)
    )


def _called_name(node: ast.AST) -> str | None:
    if not isinstance(node, ast.Call):
        return None
    if isinstance(node.func, ast.Attribute):
        return node.func.attr
    return node.func.id if isinstance(node.func, ast.Name) else None


def _needed_by(statements: list[ast.stmt], call: CheckCall) -> set[int]:
    """The places of the statements that the answer depends on, through others too."""
    chosen: set[int] = set()
    asked: set[tuple[str, int]] = set()
    answer = ast.Expr(call.answer)
    waiting = [(name, call.position) for name in _used_now(answer) | _used_later(answer)]
    while waiting:
        name, before = waiting.pop()
        if (name, before) in asked:
            continue
        asked.add((name, before))
        for index in _makers(statements[:before], name):
            if index not in chosen:
                chosen.add(index)
                waiting += [(other, index) for other in _used_now(statements[index])]
                # What a function's body names is looked up when it is called: at the check.
                waiting += [(other, call.position) for other in _used_later(statements[index])]
    return chosen


def _makers(statements: list[ast.stmt], name: str) -> Iterator[int]:
    """The last statement that binds the name, and those after it that change what it holds."""
    for index in range(len(statements) - 1, -1, -1):
        if name in _bound_names(statements[index]):
            yield index
            return
        if name in _changed_names(statements[index]):
            yield index


def _bound_names(statement: ast.stmt) -> set[str]:
    if isinstance(statement, ast.AugAssign):
        return set()
    return {
        symbol.get_name()
        for symbol in _table(statement).get_symbols()
        if symbol.is_assigned() or symbol.is_imported()
    }


def _changed_names(statement: ast.stmt) -> set[str]:
    if isinstance(statement, ast.AugAssign) and isinstance(statement.target, ast.Name):
        return {statement.target.id}
    return {
        node.value.id
        for node in ast.walk(statement)
        if isinstance(node, ast.Attribute | ast.Subscript)
        and isinstance(node.ctx, ast.Store)
        and isinstance(node.value, ast.Name)
    }


def _used_now(statement: ast.stmt) -> set[str]:
    """The names that running the statement looks up."""
    table = _table(statement)
    used = {symbol.get_name() for symbol in table.get_symbols() if symbol.is_referenced()}
    if isinstance(statement, ast.AugAssign):
        used |= _changed_names(statement)
    return used


def _used_later(statement: ast.stmt) -> set[str]:
    """The global names that the functions and classes made by the statement look up."""
    waiting = list(_table(statement).get_children())
    used: set[str] = set()
    while waiting:
        table = waiting.pop()
        waiting += table.get_children()
        used |= {
            symbol.get_name()
            for symbol in table.get_symbols()
            if symbol.is_global() and symbol.is_referenced()
        }
    return used


def _table(statement: ast.stmt) -> symtable.SymbolTable:
    return symtable.symtable(ast.unparse(statement), "<lesson>", "exec")
