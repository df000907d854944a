"""Modules that a step imports for the first time: they are imported for real, before the step.

A process imports a module once. If a simulation imported it, what the import has done elsewhere,
such as a name in a registry, would be put back, and what the module has would be the simulation's.
"""

from __future__ import annotations

import contextlib
import importlib
import random
import sys
import threading
from collections.abc import Iterator
from importlib.machinery import SourceFileLoader
from types import ModuleType
from typing import Any

import torch

# _disable_current_modes() imports it: as a step imports, it must be there already.
from torch._subclasses import schema_check_mode  # noqa: F401
from torch.utils._python_dispatch import _disable_current_modes

from labkit.memory.estimate.cuda import replace_attributes
from labkit.memory.estimate.state import let_variables

EXECUTE = SourceFileLoader.exec_module
# Modules of which a simulation leaves nothing behind, and that it may import itself.
OWN = frozenset((*sys.stdlib_module_names, "labkit", "torch"))


class NeedsImportError(BaseException):
    """The step imports a module that is not imported yet: ``args`` are its name.

    The step's own ``except Exception`` does not catch it.
    """


class StepImports:
    """The modules that the step of an estimate imports; there is one estimate at a time."""

    def __init__(self) -> None:
        self._tried: set[str] = set()
        self._needed: str | None = None
        self._thread: int | None = None

    @contextlib.contextmanager
    def hold(self) -> Iterator[None]:
        """Stops the step where it imports a module for the first time, until exit."""

        def execute(loader: SourceFileLoader, module: ModuleType) -> None:
            self._meet(module)
            # What a module makes itself, as its tables of coefficients, is real.
            with _disable_current_modes():
                EXECUTE(loader, module)

        with replace_attributes(SourceFileLoader, exec_module=execute):
            yield

    def _meet(self, module: ModuleType) -> None:
        name = module.__name__
        known = name.partition(".")[0] in OWN or name in self._tried
        # Else the program runs a file itself, by a name that may be another module's.
        is_import = getattr(module.__spec__, "_initializing", False)
        if is_import and not known and threading.get_ident() == self._thread:
            self._needed = name
            raise NeedsImportError(name)

    @contextlib.contextmanager
    def ask(self) -> Iterator[list[str]]:
        """Has ``hold()`` stop the step; the list has the module then that ``import_now`` takes."""
        needed: list[str] = []
        self._needed, self._thread = None, threading.get_ident()
        try:
            yield needed
        except NeedsImportError:
            pass
        finally:
            self._thread = None
            # A bare ``except`` of the step's may have caught it.
            needed += [] if self._needed is None else [self._needed]

    def import_now(self, name: str) -> None:
        """Imports it for real; what it raises, the step will meet by itself."""
        self._tried.add(name)
        with let_variables(), _keep_generators(), contextlib.suppress(Exception):
            importlib.import_module(name)

    def forget(self) -> None:
        """Tries each module again in the next estimate."""
        self._tried.clear()


@contextlib.contextmanager
def _keep_generators() -> Iterator[None]:
    """Puts back, on exit, the states of the generators that a module may draw from."""
    numpy: Any = sys.modules.get("numpy.random")
    pythons, numpys = random.getstate(), None if numpy is None else numpy.get_state()
    try:
        with torch.random.fork_rng(devices=[]):
            yield
    finally:
        random.setstate(pythons)
        if numpys is not None:
            numpy.set_state(numpys)


IMPORTS = StepImports()
