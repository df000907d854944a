"""Modules that a step imports for the first time: they are imported for real, before the step.

A process imports a module once. If a simulation imported it, what the import has done elsewhere,
such as a name in a registry, would be put back, and what the module has would be the simulation's.
Whatever finds and loads it, importlib does so in one function, which stops the step. What the step
loads by hand, and what it has written itself, is loaded in the simulation and forgotten after it.
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import os
import random
import sys
import threading
from collections.abc import Callable, Iterator
from operator import is_
from types import ModuleType
from typing import Any, NamedTuple, NoReturn

import torch

# _disable_current_modes() imports it: as a step imports, it must be there already.
from torch._subclasses import schema_check_mode  # noqa: F401
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes

from labkit.memory.estimate.cuda import replace_attributes
from labkit.memory.estimate.state import OWN_MODULES, let_variables
from labkit.memory.track.frames import OWN, judge_file

BOOTSTRAP: Any = sys.modules["importlib._bootstrap"]
# Where importlib loads a module that it has found, and runs one again; and where the loaders of
# source, bytecode and archives run a module's code.
LOAD, EXECUTE_AGAIN = BOOTSTRAP._load_unlocked, BOOTSTRAP._exec
LOADERS: Any = sys.modules["importlib._bootstrap_external"]._LoaderBasics  # type: ignore[attr-defined]
EXECUTE = LOADERS.exec_module
# The type of a module that is loaded when it is first used: to ask it for anything loads it.
LAZY: Any = importlib.util._LazyModule  # type: ignore[attr-defined]


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


class _ImportStop(TorchDispatchMode):  # type: ignore[misc]
    """Stops a step that has caught what its import has raised at its next operator."""

    def __init__(self, name: str) -> None:
        super().__init__()
        self._name = name

    def __torch_dispatch__(self, *call: Any) -> NoReturn:
        raise NeedsImportError(self._name)


def _is_of_python(name: str, module: Any) -> bool:
    """True for a module that Python's or torch's own code has made."""
    file = vars(module).get("__file__") if isinstance(module, ModuleType) else None
    own = name.partition(".")[0] in OWN_MODULES
    return own and isinstance(file, str) and judge_file(file) == OWN


class StepImports:
    """The modules that the step of an estimate imports; there is one estimate at a time."""

    def __init__(self) -> None:
        self._tried: set[str] = set()
        self._needed: str | None = None
        self._state = ImportState.read()
        self._thread: int | None = None
        # Whether another thread works for the step, and whether the step has written a file.
        self._is_played: Callable[[], bool] = lambda: False
        self._is_written: Callable[[Any], bool] = lambda path: False
        # The modules that stay, and what those had that the step has run again.
        self._loaded: set[str] = set()
        self._ran_again: list[tuple[ModuleType, dict[str, Any]]] = []

    @contextlib.contextmanager
    def hold(
        self, is_played: Callable[[], bool], is_written: Callable[[Any], bool]
    ) -> Iterator[None]:
        """Stops the step where it imports a module for the first time, until exit.

        ``is_played`` says whether the running thread, another one, works for the step, and
        ``is_written`` whether the step has written a file.
        """
        self._is_played, self._is_written = is_played, is_written
        with (
            replace_attributes(BOOTSTRAP, _load_unlocked=self._load, _exec=self._run_again),
            replace_attributes(LOADERS, exec_module=self._wrap_execute()),
            replace_attributes(LAZY, __getattribute__=self._wrap_lazy()),
        ):
            yield

    @contextlib.contextmanager
    def keep_modules(self) -> Iterator[None]:
        """Forgets, on exit, the modules that the step has loaded by hand, or has written."""
        self._loaded.clear()
        self._ran_again.clear()
        before = dict(sys.modules)
        try:
            yield
        finally:
            self._forget_modules(before)

    def _load(self, spec: Any) -> Any:
        if self._wrote(spec):
            return LOAD(spec)
        own = spec.name.partition(".")[0] in OWN_MODULES
        if not own and self._is_of_step():
            self._meet(spec.name)
        before = {*sys.modules}
        # What a module makes itself, as its tables of coefficients, is real.
        with _disable_current_modes():
            found = LOAD(spec)
        if own or not self._is_of_step():
            self._loaded |= sys.modules.keys() - before
        return found

    def _run_again(self, spec: Any, module: ModuleType) -> Any:
        if self._is_of_step():
            self._ran_again.append((module, dict(vars(module))))
        return EXECUTE_AGAIN(spec, module)

    def _wrap_execute(self) -> Callable[[Any, ModuleType], None]:
        def execute(loader: Any, module: ModuleType) -> None:
            if self._wrote(getattr(module, "__spec__", None)):
                cached, sys.dont_write_bytecode = sys.dont_write_bytecode, True
                try:
                    EXECUTE(loader, module)
                finally:
                    sys.dont_write_bytecode = cached
            else:
                with _disable_current_modes():
                    EXECUTE(loader, module)

        return execute

    def _wrap_lazy(self) -> Callable[[ModuleType, str], Any]:
        read = LAZY.__getattribute__

        def answer(module: ModuleType, name: str) -> Any:
            spec = ModuleType.__getattribute__(module, "__spec__")
            if self._is_of_step() and sys.modules.get(spec.name) is module:
                self._meet(spec.name)
            return read(module, name)

        return answer

    def _is_of_step(self) -> bool:
        if self._thread is None:
            return False
        return threading.get_ident() == self._thread or self._is_played()

    def _wrote(self, spec: Any) -> bool:
        """Whether the step has written what a module is loaded from."""
        if spec is None or not self._is_of_step():
            return False
        folders = spec.submodule_search_locations if spec.origin is None else None
        archive = getattr(spec.loader, "archive", spec.origin)
        return any(map(self._is_written, folders or [archive]))

    def _meet(self, name: str) -> None:
        if self._needed is None and name not in self._tried:
            self._needed, self._state = name, ImportState.read()
        if self._needed is not None:
            # The step may catch it.
            if torch._C._len_torch_dispatch_stack():
                _ImportStop(self._needed).__enter__()
            raise NeedsImportError(self._needed)

    def _forget_modules(self, before: dict[str, ModuleType]) -> None:
        for module, names in reversed(self._ran_again):
            vars(module).clear()
            vars(module).update(names)
        self._ran_again.clear()
        now = dict(sys.modules)
        same = len(now) == len(before) and all(map(is_, now.values(), before.values()))
        for name in () if same else now.keys() - before.keys() - self._loaded:
            if not _is_of_python(name, now[name]):
                module = sys.modules.pop(name)
                owner, _, own = name.rpartition(".")
                if owner and vars(sys.modules.get(owner, sys)).get(own) is module:
                    delattr(sys.modules[owner], own)
        for name, module in () if same else before.items():
            if now.get(name, self) is not module:
                sys.modules[name] = module
        self._loaded.clear()

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
        with self._set_aside(), let_variables(), _keep_generators(), caught, self._state.use():
            found = importlib.import_module(name)
            if type(found) is LAZY:
                found.__doc__  # noqa: B018  # loads it

    @contextlib.contextmanager
    def _set_aside(self) -> Iterator[None]:
        """Keeps what is known of this step's imports from an estimate of the module's own."""
        kept = dict(vars(self))
        self._tried = set()
        try:
            yield
        finally:
            vars(self).update(kept)

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
