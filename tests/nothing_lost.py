"""A randomised harness: whatever happens to a workspace, nothing that a learner wrote is lost.

A sequence plays a learner, JupyterLab, maintainers and bad luck on one workspace. Each step runs
in a process of its own that may be killed (SIGKILL) at a random moment. The model below knows,
independently of labkit, which bytes the learner has written: tokens in sources, outputs and cell
metadata, passed exercises, and an unknown field of progress.json. After each complete start of
labkit, all of them must be in visible files.

Replay one sequence: ``python -m tests.nothing_lost no-links 17``. Two processes that run at once
may interleave differently in a replay; everything else repeats exactly.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from datetime import datetime, timedelta, timezone
from pathlib import Path
from types import FrameType
from typing import Any

from jupyter_server.services.contents.fileio import atomic_writing

from labkit import files
from labkit.errors import LabkitError
from labkit.files import Disk, temporary_name
from labkit.lessons import workspace
from labkit.lessons.catalog import Lab
from labkit.lessons.progress import record_attempt
from labkit.lessons.workspace import reset_lab, update_workspace

FILE_SYSTEMS = ("plain", "no-links", "no-chown", "full")
STEPS = 14
DONE, REFUSED, NOT_HERE = 0, 3, 77
TMPFS_BYTES = 512 * 1024
# The calls that change a file or its name: a step is killed before or after one of them.
CALLS = {
    *("open", "write", "flush", "close", "sendfile", "truncate", "utime", "chmod"),
    *("rename", "replace", "link", "unlink", "remove", "mkdir", "flock", "fsync"),
}
PADDING = "# padding to fill more than one block of the disk\n" * 60
Cell = dict[str, Any]
Tokens = frozenset[str]


class Lost(AssertionError):
    """Something that the learner wrote is in no visible file."""


class HalvingDisk(Disk):
    """Writes in two halves, with room to be killed between them, and waits for no disk."""

    def write_new(self, path: Path, data: bytes, mode: int = 0o644) -> None:
        handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
        try:
            _write_all(handle, data[: len(data) // 2])
            _write_all(handle, data[len(data) // 2 :])
        finally:
            os.close(handle)

    def sync(self, folder: Path) -> None:
        pass


def _write_all(handle: int, data: bytes) -> None:
    while data:
        data = data[os.write(handle, data) :]


class Process:
    """A forked step of a sequence; ``kill_at`` is the number of the event at which it dies."""

    def __init__(self, act: Callable[[], object], prepare: Callable[[], None], kill_at: int):
        reading, writing = os.pipe()
        self.pid = os.fork()
        if self.pid == 0:
            os.close(reading)
            code = 70
            try:
                prepare()
                calls = _count_calls(act, kill_at)
                os.write(writing, str(calls).encode())
                code = DONE
            except (LabkitError, OSError):
                code = REFUSED
            except BaseException:
                import traceback

                traceback.print_exc()
            finally:
                os._exit(code)
        os.close(writing)
        self._reading = reading

    def wait(self) -> tuple[int, int]:
        """The exit code (negative: killed) and how many calls a complete step took, or 0."""
        _, status = os.waitpid(self.pid, 0)
        with os.fdopen(self._reading, "rb") as pipe:
            calls = int(pipe.read() or 0)
        code = os.waitstatus_to_exitcode(status)
        if code not in (DONE, REFUSED, -signal.SIGKILL):
            raise AssertionError(f"a step ended with {code}")
        return code, calls


def _count_calls(act: Callable[[], object], kill_at: int) -> int:
    calls = 0

    def count(frame: FrameType, event: str, argument: object) -> None:
        nonlocal calls
        if event not in ("c_call", "c_return") or getattr(argument, "__name__", "") not in CALLS:
            return
        calls += 1
        if calls == kill_at:
            os.kill(os.getpid(), signal.SIGKILL)

    sys.setprofile(count)
    try:
        act()
    finally:
        sys.setprofile(None)
    return calls


def make_notebook(cells: list[Cell]) -> bytes:
    """A notebook as bytes."""
    value = {"cells": cells, "metadata": {}, "nbformat": 4, "nbformat_minor": 5}
    return json.dumps(value, indent=1).encode()


def make_cell(source: str) -> Cell:
    """A code cell without outputs."""
    return {"cell_type": "code", "metadata": {}, "outputs": [], "source": source}


def read_cells(path: Path) -> list[Cell] | None:
    """The notebook's cells; None if it is not a whole notebook."""
    try:
        return list(json.loads(path.read_bytes())["cells"])
    except (OSError, ValueError, KeyError, TypeError):
        return None


def read_tokens(cells: list[Cell]) -> Tokens:
    """Everything that the learner wrote into the cells."""
    found = set()
    for cell in cells:
        texts = [cell["source"], *cell["metadata"].get("mine", [])]
        texts += [output["text"] for output in cell["outputs"]]
        found |= {word for text in texts for word in text.split() if word.startswith("token-")}
    return frozenset(found)


def save_in_place(path: Path, data: bytes) -> None:
    """JupyterLab's own save: a copy to .~X, then X is emptied and written in two halves."""
    text = data.decode()
    with atomic_writing(str(path)) as file:
        file.write(text[: len(text) // 2])
        file.flush()
        file.write(text[len(text) // 2 :])


def save_by_renaming(path: Path, data: bytes) -> None:
    """The save of the lab's server: written beside, then renamed."""
    draft = temporary_name(path)
    HalvingDisk().write_new(draft, data)
    draft.replace(path)


class Sequence:
    """One workspace, the steps that are played on it, and the model of the learner's bytes."""

    def __init__(self, file_system: str, seed: int, folder: Path) -> None:
        self.random = random.Random(f"{file_system}-{seed}")
        self.file_system = file_system
        self.work = folder / "work"
        self.work.mkdir()
        self.filler = folder / "filler"
        self.lab = Lab("small", "", "", 1, (), "01_small.ipynb", folder / "small")
        self.lab.folder.mkdir()
        self.day = datetime(2026, 11, 23, tzinfo=timezone.utc)
        self.log: list[str] = []
        self.calls: dict[str, int] = {}
        self.count = 0
        self.must_start = False
        self.states: set[Tokens] = set()
        # Of a killed save: what it wrote, and the states that it was to replace.
        self.pending: tuple[Tokens, set[Tokens]] | None = None
        self.passed: set[str] = set()
        self.set_version(1)
        (self.work / "progress.json").write_text('{"owner": "token-0", "exercises": {}}')

    def play(self) -> None:
        """Plays the steps, and ends with a start on a sound disk. Raises Lost."""
        self.start(killable=False)
        steps = ["edit", "execute", "annotate", "attempt", "rename", "delete", "clock"]
        steps += ["publish", "publish", "publish", "start", "reset", "together", "together"]
        for _ in range(STEPS):
            # A killed server comes back through a start, which restores what it left.
            name = "start" if self.must_start else self.random.choice(steps)
            if self.file_system == "full":
                self.fill()
            getattr(self, name)()
        self.filler.unlink(missing_ok=True)
        self.start(killable=False)

    # What labkit does.

    def start(self, *, killable: bool = True) -> None:
        """labkit's start; a killed or refused one leaves no server running."""
        code = self.run("start", self.update, killable=killable)
        self.must_start = code != DONE
        if code == DONE:
            self.look()
        elif not killable:
            raise AssertionError("a start on a sound disk was refused")

    def update(self) -> None:
        update_workspace(self.work, [self.lab], make=self.make, disk=HalvingDisk(), now=self.day)

    def do_reset(self) -> None:
        reset_lab(self.work, self.lab, make=self.make, disk=HalvingDisk(), now=self.day)

    def reset(self) -> None:
        self.run("reset", self.do_reset)

    def attempt(self) -> None:
        """A check that passes in a kernel; what was counted before a kill need not be."""
        name = f"small.{self.token()}"
        if self.run("attempt", lambda: self.record(name)) == DONE:
            self.passed.add(name)

    def record(self, name: str) -> None:
        record_attempt(self.work, name, passed=True, now=self.day, disk=HalvingDisk())

    # What the learner does.

    def edit(self) -> None:
        """Adds a cell, and saves."""
        token = self.token()
        self.save(lambda cells: cells.append(make_cell(f"# {token}\n{PADDING}")))

    def execute(self) -> None:
        """Runs a cell, whose output replaces the former one, and saves."""
        output = {"output_type": "stream", "name": "stdout", "text": self.token()}
        self.save(lambda cells: self.random.choice(cells).update(outputs=[output]))

    def annotate(self) -> None:
        """Adds to a cell's metadata, and saves."""
        token = self.token()
        self.save(lambda cells: cells[0]["metadata"].setdefault("mine", []).append(token))

    def rename(self) -> None:
        path = self.choose()
        if path:
            target = path.with_name(f"renamed-{self.token()}.ipynb")
            path.rename(target)
            self.log.append(f"rename {path.name} to {target.name}")

    def delete(self) -> None:
        """Deletes a file: what was only there is no longer owed."""
        path = self.choose()
        if path and self.random.random() < 0.5:
            before = self.owed()
            path.unlink()
            self.log.append(f"delete {path.name}")
            self.states -= before - self.owed()

    def save(self, change: Callable[[list[Cell]], object]) -> None:
        path = self.choose()
        cells = read_cells(path) if path else None
        if not path or not cells:
            return
        change(cells)
        old = read_tokens(read_cells(path) or [])
        before = self.owed()
        data = make_notebook(cells)
        style = self.random.choice((save_in_place, save_by_renaming))
        code = self.run(f"{style.__name__} {path.name}", lambda: style(path, data))
        if code == DONE:
            # What this save replaced on purpose, a former output, is no longer owed.
            self.states -= before - self.owed()
            self.states.add(read_tokens(cells))
        else:
            self.must_start = True
            replaced = {state for state in before if state <= old}
            self.pending = (read_tokens(cells), replaced)

    def together(self) -> None:
        """Two processes at once: one of labkit's, and another or a save."""
        first = self.random.choice((self.update, self.do_reset))
        path, token = self.choose(), self.token()
        cells = read_cells(path) if path else None
        name = f"small.{token}"
        second: Callable[[], object] = self.random.choice((self.update, lambda: self.record(name)))
        saves = bool(path and cells and self.random.random() < 0.6)
        if path and cells and saves:
            cells.append(make_cell(f"# {token}"))
            data, target = make_notebook(cells), path
            style = self.random.choice((save_in_place, save_by_renaming))
            self.log.append(f"  {style.__name__} {path.name}")
            second = lambda: style(target, data)  # noqa: E731
        self.log.append(f"together {first.__name__} and {second}, saves {saves}")
        if self.random.random() < 0.5:
            self.set_version(self.random.randint(1, 4))
        processes = [self.begin(act, self.kill_at("together")) for act in (first, second)]
        codes = [process.wait()[0] for process in processes]
        self.log.append(f"  codes {codes}, {path} {token}")
        if cells and saves:
            if codes[1] == DONE:
                self.states.add(read_tokens(cells))
            else:
                self.must_start = True
        elif codes[1] == DONE and second != self.update:
            self.passed.add(name)

    # What happens around them.

    def publish(self) -> None:
        """A start with another version of the lab, which may be an older one."""
        self.set_version(self.random.randint(1, 4))
        self.start()

    def set_version(self, version: int) -> None:
        self.lab.lesson.write_text(f"# version {version}\n")

    def clock(self) -> None:
        """The clock is put back or on, and a file gets a time from the other side of it."""
        self.day += timedelta(days=self.random.choice((-400, -1, 1, 400)))
        path = self.choose()
        if path:
            os.utime(path, (self.day.timestamp(), self.day.timestamp()))

    def fill(self) -> None:
        """Leaves a random number of free bytes on the small tmpfs."""
        self.filler.unlink(missing_ok=True)
        if self.random.random() < 0.6:
            space = os.statvfs(self.work)
            left = self.random.choice((0, 4096, 8192, 16384))
            with contextlib.suppress(OSError):
                self.filler.write_bytes(b"x" * max(0, space.f_bavail * space.f_frsize - left))

    # The machinery.

    def make(self, lab: Lab) -> bytes:
        version = lab.lesson.read_text().split()[-1]
        return make_notebook([make_cell(f"version = {version}\n{PADDING}")])

    def run(self, name: str, act: Callable[[], object], *, killable: bool = True) -> int:
        """Runs the step in a process; in half of the cases, kills it somewhere on its way."""
        kind = name.split(maxsplit=1)[0]
        kill_at = self.kill_at(kind) if killable else 0
        code, calls = self.begin(act, kill_at).wait()
        self.log.append(f"{name}: kill at {kill_at}, code {code}, token {self.count}")
        if code == DONE:
            self.calls[kind] = calls
        return code

    def kill_at(self, kind: str) -> int:
        """The event at which to kill; 0 for never."""
        return self.random.choice((0, self.random.randint(1, self.calls.get(kind, 30))))

    def begin(self, act: Callable[[], object], kill_at: int) -> Process:
        return Process(act, self.limit_system, kill_at)

    def limit_system(self) -> None:
        """Makes this process see the file system that the sequence is about."""

        def refuse(*arguments: object, **options: object) -> None:
            raise OSError(errno.EPERM, os.strerror(errno.EPERM))

        if self.file_system == "no-links":
            os.link = refuse  # type: ignore[assignment]
        if self.file_system == "no-chown":
            os.geteuid = lambda: 0
            os.fchown = os.chown = refuse  # type: ignore[assignment]
        files.SAVE_SECONDS = workspace.SAVE_SECONDS = 0.2

    def token(self) -> str:
        self.count += 1
        return f"token-{self.count}"

    def visible(self) -> list[Path]:
        paths = self.work.glob("*.ipynb")
        return sorted(path for path in paths if not path.name.startswith("."))

    def choose(self) -> Path | None:
        paths = self.visible()
        return self.random.choice(paths) if paths else None

    # The model.

    def owed(self) -> set[Tokens]:
        """The states that are whole in a visible file now."""
        held = [read_tokens(cells) for path in self.visible() if (cells := read_cells(path))]
        return {state for state in self.states if any(state <= tokens for tokens in held)}

    def look(self) -> None:
        """Raises Lost unless everything owed is there."""
        if self.pending:
            new, replaced = self.pending
            self.pending = None
            self.states.add(new)
            # A save that was killed at its end counts as complete; any other never was.
            if new in self.owed():
                self.states -= replaced - self.owed()
            else:
                self.states.discard(new)
        lost = self.states - self.owed()
        progress = json.loads((self.work / "progress.json").read_bytes())
        recorded = {name for name, entry in progress["exercises"].items() if entry["passed"]}
        if lost or not self.passed <= recorded or progress.get("owner") != "token-0":
            story = "\n  ".join(self.log)
            files = [self.describe(path) for path in sorted(self.work.rglob("*"))]
            raise Lost(f"lost {lost or self.passed - recorded}\n  {story}\n  {files}")

    def describe(self, path: Path) -> str:
        """The file's name, its size, and what the learner wrote into it."""
        cells = read_cells(path)
        held = "broken" if cells is None else sorted(read_tokens(cells))
        return f"{path.relative_to(self.work)}: {path.stat().st_size} bytes, {held}"


@contextlib.contextmanager
def folder_on(file_system: str) -> Iterator[Path]:
    """A folder for sequences; for "full", on a small tmpfs of its own, which needs root."""
    folder = Path(tempfile.mkdtemp(prefix="labkit-lost-"))
    mounted = False
    try:
        if file_system == "full":
            options = f"size={TMPFS_BYTES}"
            subprocess.run(
                ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(folder)],
                check=True,
                capture_output=True,
            )
            mounted = True
        yield folder
    finally:
        if mounted:
            subprocess.run(["umount", "-l", str(folder)], check=False, capture_output=True)
        shutil.rmtree(folder, ignore_errors=True)


def play_sequences(file_system: str, first: int, count: int) -> None:
    """Plays ``count`` sequences from the seed ``first`` on. Raises Lost with the seed."""
    with folder_on(file_system) as folder:
        for seed in range(first, first + count):
            inside = folder / "sequence"
            inside.mkdir()
            try:
                Sequence(file_system, seed, inside).play()
            except AssertionError as error:
                again = f"python -m tests.nothing_lost {file_system} {seed}"
                raise Lost(f"{again}\n{error}") from error
            shutil.rmtree(inside)


def main(words: list[str]) -> int:
    """``FILE_SYSTEM FIRST_SEED [COUNT]``: plays the sequences; 0 if nothing was lost."""
    count = int(words[2]) if len(words) > 2 else 1
    started = time.monotonic()
    try:
        play_sequences(words[0], int(words[1]), count)
    except subprocess.CalledProcessError as error:
        print(f"no small tmpfs can be mounted here: {error.stderr.decode().strip()}")
        return NOT_HERE
    except Lost as error:
        print(error)
        return 1
    print(f"{words[0]}: {count} sequences, nothing lost, {time.monotonic() - started:.1f} s")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
