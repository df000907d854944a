"""The lab without an engine: the same JupyterLab and configuration, run from the .venv."""

from __future__ import annotations

import os
import shlex
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from labkit.errors import EngineError, LabkitError, UsageError
from labkit.files import OUTSIDE_VARIABLE
from labkit.host.gpu import ALL_GPUS
from labkit.host.torch_builds import CPU_BUILD, find_build
from labkit.launch.progress import Steps, explain_failure
from labkit.launch.server import is_running, start_in_background, stop_process
from labkit.launch.settings import (
    CPU,
    EXTRAS,
    NOTICES_VARIABLE,
    Checkout,
    Flavor,
    Settings,
    read_lab_variables,
)
from labkit.launch.state import LabHandle
from labkit.launch.venv import PythonEnvironment
from labkit.process import SAFE_PATH, compose_environment, replace_process, run_command

# Flavor, build and GPUs of a running server, for when its state file is lost.
LAB_VARIABLE = "LABKIT_LAB"
# How much of a log's end is searched for known errors.
LAST_BYTES = 65536
LAYOUT_LIMIT_SECONDS = 120.0


@dataclass(frozen=True)
class LocalLab:
    """JupyterLab as a background process of the host's user; ``notices`` as in a container's."""

    checkout: Checkout
    settings: Settings
    port: int = 0
    flavor: Flavor = CPU
    notices: str = ""

    @property
    def python_environment(self) -> PythonEnvironment:
        """The .venv that the lab runs from."""
        return PythonEnvironment(self.checkout)

    @property
    def log_file(self) -> Path:
        """The log file with the server's output."""
        return self.checkout.logs_folder / "server.log"

    def prepare(self, steps: Steps, more_locks: Sequence[str] = ()) -> None:
        """Creates or updates the .venv; ``more_locks`` are installed in addition."""
        build = find_build(self.flavor.build)
        kept = self.python_environment.find_cuda_build()
        # If the driver fails for a day, the CUDA build stays: to download it again costs gigabytes.
        if kept and build == CPU_BUILD and self.settings.flavor == "auto":
            steps.say(f"keeping the build for CUDA {kept.cuda} in .venv, which has the CPU too")
            build = kept
        extras = (EXTRAS,) if self.checkout.lock_file(EXTRAS).is_file() else ()
        self.python_environment.prepare(steps, (*build.locks, *more_locks, *extras))

    def start(self) -> LabHandle:
        """Starts JupyterLab in the background."""
        self.log_file.unlink(missing_ok=True)
        if self.settings.data:
            link_data(self.checkout.workspace, self.settings.data)
        command = [str(self.python_environment.python), *SAFE_PATH, "-m", "labkit", "serve"]
        return start_in_background(
            command, self.environment(), self.log_file, self.checkout.workspace
        )

    def stop(self, handle: LabHandle) -> None:
        """Ends JupyterLab, which ends its kernels."""
        stop_process(handle)

    def is_alive(self, handle: LabHandle) -> bool:
        """True while the server's process runs."""
        return is_running(handle)

    def explain_death(self, handle: LabHandle) -> LabkitError:
        """The error for a server that stopped after its start, with the end of its log."""
        try:
            with self.log_file.open("rb") as log:
                log.seek(max(0, self.log_file.stat().st_size - LAST_BYTES))
                lines = log.read().decode(errors="replace").splitlines()
        except OSError:
            lines = []
        return explain_failure("JupyterLab stopped", lines, self.log_file, "make logs")

    def show_logs(self, handle: LabHandle | None, lines: int, follow: bool) -> None:
        """Replaces this process by `tail` of the server's log. Raises EngineError without a log."""
        if not self.log_file.exists():
            raise EngineError("there is no log yet", cause="no lab was started", fix="make up")
        options = ["-n", str(lines), *(["-f"] if follow else [])]
        replace_process(["tail", *options, str(self.log_file)])

    def enter(self, handle: LabHandle | None, command: Sequence[str]) -> int:
        """Replaces this process by ``command`` in the .venv, in the workspace."""
        os.chdir(self.checkout.workspace)
        outside = {OUTSIDE_VARIABLE: str(self.checkout.workspace)}
        replace_process(list(command), self.environment() | outside)
        return 0

    def lay_out_changes(self) -> None:
        """Puts changed lessons into the workspace of a running lab. Raises EngineError."""
        python = str(self.python_environment.python)
        command = [python, *SAFE_PATH, "-m", "labkit", "reset", "--changed"]
        done = run_command(
            command,
            timeout_seconds=LAYOUT_LIMIT_SECONDS,
            environment=self.environment(),
            folder=self.checkout.workspace,
        )
        if not done.ok:
            raise EngineError(
                f"the changed lessons cannot be laid out: {done.message}",
                cause="the environment is older than the checkout",
                fix="make down && make up",
            )

    def on_port(self, port: int) -> LocalLab:
        """The same lab, listening on another port."""
        return replace(self, port=port)

    def environment(self) -> dict[str, str]:
        """The lab's environment variables: as in the image, with folders of this checkout."""
        state, root = self.checkout.state_folder, self.checkout.root
        gpus = ",".join(self.flavor.gpus)
        binaries = self.python_environment.python.parent
        return {
            **compose_environment(),
            "PATH": f"{binaries}{os.pathsep}{os.environ.get('PATH', '')}",
            "VIRTUAL_ENV": str(self.checkout.environment_folder),
            "LABKIT_HOME": str(root),
            "LABKIT_STATE": str(state),
            LAB_VARIABLE: f"{self.flavor.name} {self.flavor.build} {gpus}",
            # The server rotates this log when it becomes too long.
            "LABKIT_LOG_FILE": str(self.log_file),
            "LABKIT_WORKSPACE": str(self.checkout.workspace),
            "LABKIT_TOKEN_FILE": str(self.checkout.token_file),
            "LABKIT_SERVER_ADDRESS": self.settings.bind,
            "LABKIT_SERVER_PORT": str(self.port),
            "LABKIT_REMOTE_ACCESS": "1" if self.settings.opens_to_others else "0",
            "LABKIT_ALLOW_ROOT": "1" if os.geteuid() == 0 else "0",
            "JUPYTER_CONFIG_PATH": str(root / "docker" / "jupyter"),
            # Kept across restarts and reboots: a cold compile costs a learner 20 s.
            "TORCHINDUCTOR_CACHE_DIR": str(state / "torchinductor"),
            "PYTHONUNBUFFERED": "1",
            NOTICES_VARIABLE: self.notices,
            **self._choose_gpus(),
            **read_lab_variables(self.settings),
            **({"LABKIT_DATA": str(self.settings.data)} if self.settings.data else {}),
        }

    def _choose_gpus(self) -> dict[str, str]:
        """The variables that show torch the chosen GPUs only.

        The user's CUDA_VISIBLE_DEVICES stays if they chose no GPUs here. By default CUDA numbers
        the fastest GPU first; here it uses the order of nvidia-smi.
        """
        chosen = self.flavor.gpus
        if chosen in ((), ALL_GPUS):
            return {}
        if not self.settings.gpus and "CUDA_VISIBLE_DEVICES" in os.environ:
            return {}
        return {"CUDA_DEVICE_ORDER": "PCI_BUS_ID", "CUDA_VISIBLE_DEVICES": ",".join(chosen)}

    def find_gpu_problem(self, handle: LabHandle) -> str | None:
        """Always None: the plan has already checked the GPUs with the same driver."""
        return None


def link_data(workspace: Path, data: Path) -> None:
    """Links ``data`` as the folder "data" of the workspace, in place of an earlier link.

    Raises UsageError if the workspace has a file or folder of that name.
    """
    link = workspace / "data"
    if os.path.lexists(link) and not link.is_symlink():
        raise UsageError(
            f"{link} is in the way of DATA={data}",
            cause="the local runtime links the data there, and replaces nothing but a link",
            fix=f"mv {shlex.quote(str(link))} {shlex.quote(str(link))}.mine",
        )
    if not (link.is_symlink() and link.readlink() == data):
        link.unlink(missing_ok=True)
        link.symlink_to(data)
