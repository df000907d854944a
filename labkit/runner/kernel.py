"""A fresh kernel of this same Python, and its certain end: no process of it outlives a run."""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import tempfile
from collections.abc import Mapping
from typing import IO, Any

from jupyter_client import AsyncKernelManager
from jupyter_client.kernelspec import NATIVE_KERNEL_NAME, KernelSpecManager

# What goes wrong is told in the result; the libraries' log lines would say it again on stderr.
QUIET = logging.getLogger("labkit.runner")
QUIET.addHandler(logging.NullHandler())
QUIET.propagate = False

KEPT_STDERR_BYTES = 2000


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

    def start_options(self, environment: Mapping[str, str], folder: str) -> dict[str, Any]:
        """What nbclient hands on to the kernel's start.

        The process's own streams are kept off ours: stdout is the result's, and what a crash
        writes to stderr is told with it.
        """
        return {
            "env": dict(environment),
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

    def kill(self) -> None:
        """Ends the kernel's whole process group, children and all, from any thread."""
        group = getattr(self.manager.provisioner, "pgid", None)
        if group and group != os.getpgrp():
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(group, signal.SIGKILL)

    def close(self) -> None:
        """Ends what is left of the kernel and lets go of what was kept of it."""
        self.kill()
        self._stderr.close()


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
    spec = notebook.metadata.get("kernelspec", {})
    language = spec.get("language") or notebook.metadata.get("language_info", {}).get("name")
    if language and "python" not in language.lower() and spec.get("name"):
        return str(spec["name"])
    return str(NATIVE_KERNEL_NAME)
