"""Replaces this process by JupyterLab, inside the lab's container or .venv."""

from __future__ import annotations

import contextlib
import os
import stat
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from labkit.errors import EngineError, UsageError
from labkit.process import replace_process

# Created if missing: a new cache volume is empty.
STATE_FOLDERS = {
    "JUPYTER_CONFIG_DIR": "jupyter/config",
    "JUPYTER_DATA_DIR": "jupyter/data",
    "JUPYTER_RUNTIME_DIR": "jupyter/runtime",
    "IPYTHONDIR": "ipython",
    "MPLCONFIGDIR": "matplotlib",
}
# Without this variable Jupyter ignores a configuration file that raises, and serves without its
# settings. The lab's configuration file removes the variable, so that no kernel inherits it.
STRICT_CONFIG = "TRAITLETS_APPLICATION_RAISE_CONFIG_FILE_ERROR"


def prepare_folders(environment: Mapping[str, str] = os.environ) -> dict[str, str]:
    """The environment variables with JupyterLab's folders, which are created.

    The folders are below LABKIT_STATE, separate from the user's own Jupyter; the one with tokens is
    closed to other users. Raises EngineError if they cannot be created.
    """
    state = Path(environment.get("LABKIT_STATE") or Path.home() / ".cache" / "labkit")
    values = {name: str(state / folder) for name, folder in STATE_FOLDERS.items()}
    # Only a container needs this: its home does not exist before the first start.
    home = {environment["HOME"]} if environment.get("LABKIT_IN_CONTAINER") else set()
    for folder in {*values.values(), *home}:
        try:
            Path(folder).mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise EngineError(
                f"cannot write to {folder}: {error.strerror}",
                cause="the caches belong to another user than the lab's user",
                fix="make clean && make up",
            ) from error
    _close_runtime(Path(values["JUPYTER_RUNTIME_DIR"]))
    return {**environment, **values, STRICT_CONFIG: "1"}


def _close_runtime(folder: Path) -> None:
    """Closes the folder where Jupyter keeps tokens and keys; removes pages with old tokens."""
    with contextlib.suppress(OSError):  # a file system without modes
        folder.chmod(0o700)
        for path in folder.iterdir():
            if path.name.startswith("jpserver-") and path.name.endswith("-open.html"):
                path.unlink()
            elif stat.S_ISREG(path.lstat().st_mode):
                path.chmod(0o600)


def find_workspace(environment: Mapping[str, str] = os.environ) -> Path:
    """The workspace that the server serves. Raises UsageError if it is not writable."""
    workspace = Path(environment.get("LABKIT_WORKSPACE") or Path.cwd())
    if not os.access(workspace, os.W_OK | os.X_OK):
        raise UsageError(
            f"the workspace {workspace} cannot be written by uid {os.getuid()}",
            cause="it belongs to another user",
            fix="sudo chown -R $(id -u):$(id -g) work",
        )
    return workspace


def become_jupyter(environment: Mapping[str, str], options: Sequence[str] = ()) -> None:
    """Replaces this process with JupyterLab, started with ``options``.

    JUPYTER_CONFIG_PATH names the folder with its settings, docker/jupyter/.
    """
    replace_process([sys.executable, "-m", "jupyterlab", *options], environment)
