"""Imports modules on a bare interpreter: ``python -I -S bare_import.py CHECKOUT MODULE...``.

Prints one JSON object: for each module that failed, or asked for anything outside the standard
library and labkit, the error. A refused import that the module catches counts too: code that
uses torch where it is installed behaves differently on a bare host.
"""

from __future__ import annotations

import importlib
import importlib.abc
import json
import sys
from typing import Any

ALLOWED = {*sys.stdlib_module_names, "labkit"}


class Gate(importlib.abc.MetaPathFinder):
    """Refuses every module outside the standard library and labkit, and notes the importer."""

    def __init__(self) -> None:
        self.refused: list[str] = []

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> None:
        if name.partition(".")[0] in ALLOWED:
            return
        caller = find_importer()
        # The standard library itself looks for modules of other systems, such as Jython's.
        if caller.partition(".")[0] == "labkit":
            self.refused.append(f"{caller} imports {name}")
        raise ModuleNotFoundError(f"refused: {name}", name=name)


def find_importer() -> str:
    """The name of the module whose code runs the import that is under way."""
    frame = sys._getframe(2)
    while frame and "importlib" in frame.f_globals.get("__name__", ""):
        frame = frame.f_back
    return str(frame.f_globals.get("__name__", "")) if frame else ""


def import_all(names: list[str]) -> dict[str, list[str]]:
    """What went wrong with each module; modules that import cleanly are left out."""
    gate = Gate()
    sys.meta_path.insert(0, gate)
    problems = {}
    for name in names:
        gate.refused.clear()
        try:
            importlib.import_module(name)
            found = list(gate.refused)
        except BaseException as error:
            found = [*gate.refused, f"{type(error).__name__}: {error}"]
        if found:
            problems[name] = found
    return problems


if __name__ == "__main__":
    sys.path.insert(0, sys.argv[1])
    print(json.dumps(import_all(sys.argv[2:])))
