"""Finds the labs and their exercises in a checkout's labs/, or else in the package.

Standard library only, so that commands can read the workspace without loading torch.
"""

from __future__ import annotations

import ast
import os
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache
from importlib.machinery import SourceFileLoader
from importlib.util import module_from_spec, spec_from_loader
from pathlib import Path
from typing import TYPE_CHECKING, Any

from labkit.errors import LabkitError, UsageError
from labkit.text import near_match

if TYPE_CHECKING:
    from labkit.lessons.exercises import Exercise

LABS_VARIABLE = "LABKIT_LABS"


@dataclass(frozen=True)
class Lab:
    """A lab's entry in labs.toml, and the folder with its lesson and exercises."""

    name: str
    title: str
    summary: str
    minutes: int
    needs: tuple[str, ...]
    notebook: str
    folder: Path

    @property
    def lesson(self) -> Path:
        """The lesson's source, a percent notebook with the reference solutions in it."""
        return self.folder / "lesson.py"

    @property
    def exercises(self) -> Path:
        """The module that defines the lab's exercises."""
        return self.folder / "exercises.py"


def labs_folder() -> Path:
    """The folder with labs.toml: LABKIT_LABS, else a checkout's labs/, else the package's."""
    named = os.environ.get(LABS_VARIABLE)
    if named:
        return Path(named)
    package = Path(__file__).resolve().parents[1]
    checkout = package.parent / "labs"
    return checkout if (checkout / "labs.toml").is_file() else package / "_labs"


def find_labs(folder: Path | None = None) -> tuple[Lab, ...]:
    """The labs that have a lesson, in the order of labs.toml."""
    return tuple(lab for lab in listed_labs(folder) if lab.lesson.is_file())


def listed_labs(folder: Path | None = None) -> tuple[Lab, ...]:
    """Every lab that labs.toml lists, whether or not its folder is there yet."""
    folder = folder or labs_folder()
    path = folder / "labs.toml"
    entries = _read_toml(path).get("lab", [])
    try:
        return tuple(_read_lab(entry, folder) for entry in entries)
    except (KeyError, TypeError, ValueError) as error:
        raise LabkitError(
            f"{path} cannot be used",
            cause=f"a [[lab]] has a missing or invalid key: {error}",
            fix="give each lab name, title, summary, minutes, needs and notebook",
        ) from error


def find_lab(name: str, labs: Iterable[Lab] | None = None) -> Lab:
    """The lab of that name. Raises UsageError with the closest name for an unknown one."""
    known = {lab.name: lab for lab in (listed_labs() if labs is None else labs)}
    if name in known:
        return known[name]
    near = near_match(name, known)
    raise UsageError(
        f"there is no lab named {name!r}",
        cause=f"the labs are {', '.join(known) or '(none)'}",
        fix=f"did you mean {near}?" if near else None,
    )


def load_exercises(lab: Lab) -> tuple[Exercise, ...]:
    """The lab's exercises, loaded from its exercises.py on each call; empty without that file."""
    if not lab.exercises.is_file():
        return ()
    name = f"labkit_labs.{lab.name}.exercises"
    loader = _QuietLoader(name, str(lab.exercises))
    spec = spec_from_loader(name, loader)
    assert spec is not None
    module = module_from_spec(spec)
    # Dataclasses look up their module when they are defined. It must not stay in sys.modules:
    # pickle would search it for other modules' names.
    sys.modules[name] = module
    try:
        loader.exec_module(module)
        return tuple(module.EXERCISES)
    except Exception as error:  # a new lab's own code can be wrong in any way
        raise LabkitError(
            f"{lab.exercises} cannot be loaded",
            cause=f"{type(error).__name__}: {error}",
            fix=f"python {lab.exercises}   # shows the line",
        ) from error
    finally:
        sys.modules.pop(name, None)


def exercise_names(lab: Lab) -> tuple[str, ...]:
    """The names of the lab's exercises, parsed from exercises.py without loading torch."""
    return tuple(exercise_titles(lab))


def exercise_titles(lab: Lab) -> dict[str, str]:
    """The title of each of the lab's exercises by its name, parsed as ``exercise_names`` does.

    Both must be literals in its ``Exercise(name="...", title="...")``; the gate checks the names.
    """
    if not lab.exercises.is_file():
        return {}
    known = lab.exercises.stat()
    return dict(_parse_titles(lab.exercises, (known.st_mtime_ns, known.st_size, known.st_ino)))


@lru_cache(maxsize=64)
def _parse_titles(path: Path, version: tuple[int, ...]) -> dict[str, str]:
    """Each version of a file is parsed once: the start page asks again and again."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    calls = [node for node in ast.walk(tree) if isinstance(node, ast.Call)]
    named = [call for call in calls if getattr(call.func, "id", None) == "Exercise"]
    titles = {}
    for call in sorted(named, key=lambda one: one.lineno):
        said = {
            keyword.arg: str(keyword.value.value)
            for keyword in call.keywords
            if isinstance(keyword.value, ast.Constant)
        }
        if "name" in said:
            titles[said["name"]] = said.get("title", said["name"])
    return titles


def find_exercise(full_name: str) -> tuple[Lab, Exercise]:
    """The exercise ``<lab>.<name>`` and its lab. Raises UsageError for an unknown name."""
    lab_name, _, exercise_name = full_name.partition(".")
    lab = find_lab(lab_name)
    known = {exercise.name: exercise for exercise in load_exercises(lab)}
    if exercise_name in known:
        return lab, known[exercise_name]
    near = near_match(exercise_name, known)
    raise UsageError(
        f"there is no exercise named {full_name!r}",
        cause=f"the exercises of {lab.name} are {', '.join(known) or '(none)'}",
        fix=f"did you mean {lab.name}.{near}?" if near else None,
    )


class _QuietLoader(SourceFileLoader):
    """Loads a source file without leaving a __pycache__ beside it: labs may be read-only."""

    def set_data(self, path: str, data: Any, *, _mode: int = 0o666) -> None:
        """Writes nothing."""

    def path_stats(self, path: str) -> Any:
        """Disables cached bytecode, so that an edited file is always loaded."""
        raise OSError


def _read_lab(entry: dict[str, Any], folder: Path) -> Lab:
    return Lab(
        name=str(entry["name"]),
        title=str(entry["title"]),
        summary=str(entry["summary"]),
        minutes=int(entry["minutes"]),
        needs=tuple(entry["needs"]),
        notebook=str(entry["notebook"]),
        folder=folder / entry["name"],
    )


def _read_toml(path: Path) -> dict[str, Any]:
    if sys.version_info >= (3, 11):
        import tomllib
    else:
        import tomli as tomllib
    try:
        return dict(tomllib.loads(path.read_text(encoding="utf-8")))
    except OSError as error:
        raise LabkitError(
            f"no labs found in {path.parent}",
            cause=f"{path.name} cannot be read: {error.strerror}",
            fix=f"unset {LABS_VARIABLE}" if os.environ.get(LABS_VARIABLE) else None,
        ) from error
    except tomllib.TOMLDecodeError as error:
        raise LabkitError(f"{path} is not valid TOML", cause=str(error)) from error
