"""A fresh kernel of this same Python, and its certain end: no process of it outlives a run."""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import subprocess
import tempfile
import uuid
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import IO, Any

from jupyter_client import AsyncKernelManager
from jupyter_client.kernelspec import NATIVE_KERNEL_NAME, KernelSpecManager

# What goes wrong is told in the result; the libraries' log lines would say it again on stderr.
QUIET = logging.getLogger("labkit.notebooks")
QUIET.addHandler(logging.NullHandler())
QUIET.propagate = False

KEPT_STDERR_BYTES = 2000

# Every process that a kernel starts inherits this, also one that left the kernel's process group.
# The name is the kernel's own, so that a run within a run's notebook carries both marks.
MARK = "LABKIT_KERNEL_"

# Waits for the pipe to the runner to close, which the runner's end does, whatever it was.
GUARD = """read -r line; kill -9 -- "-$1"
for file in $(grep -las "$2" /proc/[0-9]*/environ); do
  id=${file#/proc/}; kill -9 "${id%/environ}"
done"""


class Kernel:
    """The process that runs one notebook's cells, from before its start to after its end."""

    def __init__(self, notebook: Any) -> None:
        self.manager = AsyncKernelManager(log=QUIET)
        self.manager.kernel_name = _choose_kernel(notebook)
        if self.manager.kernel_name == NATIVE_KERNEL_NAME:
            # No folder to search leaves ipykernel of this Python: a "python3" that someone
            # registered may start another one.
            self.manager.kernel_spec_manager = KernelSpecManager(kernel_dirs=[], log=QUIET)
        self._stderr: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115
        self._mark = MARK + uuid.uuid4().hex
        self._guard: subprocess.Popen[bytes] | None = None

    def start_options(self, environment: Mapping[str, str], folder: str) -> dict[str, Any]:
        """What nbclient hands on to the kernel's start.

        The process's own streams are kept off ours: stdout is the result's, and what a crash
        writes to stderr is told with it.
        """
        return {
            "env": {**environment, self._mark: "1"},
            "cwd": folder,
            "stdout": self._stderr,
            "stderr": self._stderr,
        }

    def read_stderr(self) -> str:
        """The last that the process itself wrote to its streams, without ipykernel's notices."""
        size = self._stderr.seek(0, os.SEEK_END)
        self._stderr.seek(max(0, size - KEPT_STDERR_BYTES))
        lines = self._stderr.read().decode(errors="replace").splitlines()
        return "\n".join(line for line in lines if "[IPKernelApp] WARNING" not in line).strip()

    @property
    def process_id(self) -> int | None:
        """The kernel's process id; None before it started, or where it runs elsewhere."""
        found = getattr(self.manager.provisioner, "pid", None)
        return None if found is None else int(found)

    def guard(self) -> None:
        """Leaves a shell waiting that ends the kernel should this process be killed itself."""
        group = self._group
        if group is None:
            return
        # Not by way of labkit.process: this one lives as long as the kernel, and has no limit.
        self._guard = subprocess.Popen(
            ["sh", "-c", GUARD, "sh", str(group), self._mark],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )

    def kill(self) -> None:
        """Ends the kernel's whole process group, children and all, from any thread."""
        if self._group is not None:
            _end(self._group, os.killpg)

    def close(self) -> None:
        """Ends what is left of the kernel and lets go of what was kept of it."""
        self.kill()
        # Twice: a process can have started another between being found and being ended.
        for _ in range(2):
            for process_id in find_marked(self._mark):
                _end(process_id, os.kill)
        if self._guard is not None:
            self._guard.kill()
            self._guard.communicate()
        self._stderr.close()

    @property
    def _group(self) -> int | None:
        group = getattr(self.manager.provisioner, "pgid", None)
        return int(group) if group and group != os.getpgrp() else None


def find_marked(mark: str, proc: Path = Path("/proc")) -> Iterator[int]:
    """The ids of the processes whose environment has the variable ``mark`` (Linux)."""
    entry = f"{mark}=1".encode()
    for folder in proc.glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if entry in (folder / "environ").read_bytes().split(b"\0"):
                yield int(folder.name)


def _end(target: int, send: Callable[[int, int], None]) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        send(target, signal.SIGKILL)


async def explain_death(manager: Any) -> str:
    """How the kernel's process ended, in words: "killed by SIGKILL", "exit code 3"."""
    provisioner = manager.provisioner
    code = await provisioner.poll() if provisioner and provisioner.has_process else None
    if code is None:
        return "it is gone"
    if code >= 0:
        return f"exit code {code}"
    with contextlib.suppress(ValueError):
        return f"killed by {signal.Signals(-code).name}"
    return f"killed by signal {-code}"


def _choose_kernel(notebook: Any) -> str:
    """The kernel to start: this Python's own, unless the notebook is in another language."""
    spec = notebook.metadata.get("kernelspec") or {}
    info = notebook.metadata.get("language_info") or {}
    language = spec.get("language") or info.get("name")
    if language and "python" not in language.lower() and spec.get("name"):
        return str(spec["name"])
    return str(NATIVE_KERNEL_NAME)
