"""Modules that a step imports for the first time: they are imported for real, before the step.

A process imports a module once. If a simulation imported it, what the import has done elsewhere,
such as a name in a registry, would be put back, and what the module has would be the simulation's.
"""

from __future__ import annotations

import contextlib
import importlib
import os
import random
import sys
import threading
from collections.abc import Iterator
from importlib.machinery import SourceFileLoader
from types import ModuleType
from typing import Any, NamedTuple

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


class ImportState(NamedTuple):
    """What a module may read while it is imported, as the step has set it."""

    variables: dict[str, str]
    arguments: list[str]
    paths: list[str]
    dtype: torch.dtype
    records: bool

    @classmethod
    def read(cls) -> ImportState:
        """That of the running thread."""
        variables, arguments, paths = dict(os.environ), list(sys.argv), list(sys.path)
        dtype, records = torch.get_default_dtype(), torch.is_grad_enabled()
        return cls(variables, arguments, paths, dtype, records)

    @contextlib.contextmanager
    def use(self) -> Iterator[None]:
        """Sets it until exit; of the variables and paths, what the block changes itself stays."""
        before = self.read()
        _change_variables(before.variables, self.variables)
        sys.argv[:], sys.path[:] = self.arguments, self.paths
        torch.set_default_dtype(self.dtype)
        try:
            with torch.set_grad_enabled(self.records):
                yield
        finally:
            torch.set_default_dtype(before.dtype)
            sys.argv[:] = before.arguments
            added = [one for one in sys.path if one not in self.paths]
            sys.path[:] = [*before.paths, *added]
            made = dict(os.environ)
            _change_variables(made, before.variables)
            _change_variables(self.variables, made)


def _change_variables(first: dict[str, str], other: dict[str, str]) -> None:
    """Makes those changes in the environment that lead from the first variables to the others."""
    for name in first.keys() - other.keys():
        os.environ.pop(name, None)
    os.environ.update({name: one for name, one in other.items() if first.get(name) != one})


class StepImports:
    """The modules that the step of an estimate imports; there is one estimate at a time."""

    def __init__(self) -> None:
        self._tried: set[str] = set()
        self._needed: str | None = None
        self._state = ImportState.read()
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
            self._needed, self._state = name, ImportState.read()
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
        """Imports it for real, with the state that the step has set.

        What it raises, the step will meet by itself.
        """
        self._tried.add(name)
        caught = contextlib.suppress(Exception, SystemExit)
        with let_variables(), _keep_generators(), caught, self._state.use():
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
