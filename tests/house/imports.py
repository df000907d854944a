"""The import graph of labkit's files, read from their source: nothing is imported to get it."""

from __future__ import annotations

import ast
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path


@dataclass(frozen=True)
class Module:
    """One file of a package: its dotted name, and the modules that it imports with their lines."""

    name: str
    path: Path
    imports: Mapping[str, int] = field(default_factory=dict)

    @property
    def last_name(self) -> str:
        """The name after the last dot: "view" of labkit.memory.balance.view."""
        return self.name.rpartition(".")[2]


Graph = Mapping[str, Module]


def find_files(package: Path) -> dict[str, Path]:
    """Every Python file of the package folder by its dotted name; a package is its __init__."""
    files = {}
    for path in sorted(package.rglob("*.py")):
        parts = [package.name, *path.relative_to(package).with_suffix("").parts]
        files[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return files


def read_graph(package: Path) -> Graph:
    """All files of the package with what they import of it, wherever in the file it stands.

    Imports inside functions count, and so do those under ``TYPE_CHECKING``: they never run, but
    a file that names another's types cannot be read or changed without it, and a view that
    imports its data class for types alone would hide the circle with a lazy import of the view.
    import-linter counts them by default as well. Names that a table holds as strings (the public
    names in ``__init__``, a data class that names its view) are not imports.
    """
    files = find_files(package)
    return {
        name: Module(name, path, _read_imports(name, path, files)) for name, path in files.items()
    }


def _read_imports(name: str, path: Path, files: Mapping[str, Path]) -> dict[str, int]:
    found: dict[str, int] = {}
    base = name if path.name == "__init__.py" else name.rpartition(".")[0]
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"), str(path))):
        for target in _list_targets(node, base, files):
            if target in files and target != name:
                found[target] = min(found.get(target, node.lineno), node.lineno)  # type: ignore[attr-defined]
    return found


def _list_targets(node: ast.AST, base: str, files: Mapping[str, Path]) -> Iterator[str]:
    """The modules that a statement imports: what is a name in a module counts as the module."""
    if isinstance(node, ast.Import):
        yield from (alias.name for alias in node.names)
    elif isinstance(node, ast.ImportFrom):
        origin = _resolve(node, base)
        for alias in node.names:
            inner = f"{origin}.{alias.name}"
            yield inner if inner in files else origin
    elif isinstance(node, ast.Call) and node.args and "import_module" in ast.dump(node.func):
        first = node.args[0]
        if isinstance(first, ast.Constant) and isinstance(first.value, str):
            yield first.value


def _resolve(node: ast.ImportFrom, base: str) -> str:
    if not node.level:
        return node.module or ""
    above = base.split(".")[: len(base.split(".")) - node.level + 1]
    return ".".join([*above, *([node.module] if node.module else [])])


def find_circles(graph: Graph) -> list[list[str]]:
    """One shortest circle of each knot of files that import each other, its first name repeated."""
    circles = []
    left = set(graph)
    for name in sorted(graph):
        if name not in left:
            continue
        knot = {other for other in list_reached(graph, name) if name in list_reached(graph, other)}
        if knot:
            left -= knot
            inside = (find_chain(graph, one, one.__eq__) for one in sorted(knot))
            circles.append(min((chain for chain in inside if chain), key=len))
    return circles


def list_reached(graph: Graph, start: str) -> set[str]:
    """Every module that ``start`` imports, directly or through others; itself only in a circle."""
    seen: set[str] = set()
    waiting = deque([start])
    while waiting:
        new = set(graph[waiting.popleft()].imports) - seen
        seen |= new
        waiting.extend(new)
    return seen


def find_chain(graph: Graph, start: str, wanted: Callable[[str], bool]) -> list[str] | None:
    """The shortest chain of imports from ``start`` to a module that is wanted, both included."""
    waiting = deque([[start]])
    seen: set[str] = set()
    while waiting:
        chain = waiting.popleft()
        for target in graph[chain[-1]].imports:
            if wanted(target):
                return [*chain, target]
            if target not in seen:
                seen.add(target)
                waiting.append([*chain, target])
    return None


def describe_chain(graph: Graph, chain: list[str], root: Path) -> str:
    """The chain as a reader follows it: a line for each import, with its file and line number."""
    return "\n".join(
        f"  {graph[one].path.relative_to(root)}:{graph[one].imports[other]} imports {other}"
        for one, other in pairwise(chain)
    )
