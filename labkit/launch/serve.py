"""Becomes JupyterLab, inside the lab's own environment: a container's or a .venv's."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from pathlib import Path

from labkit.errors import EngineError, UsageError
from labkit.process import replace_process

# Made where they are missing: a fresh cache volume has none of them.
STATE_FOLDERS = {
    "JUPYTER_CONFIG_DIR": "jupyter/config",
    "JUPYTER_DATA_DIR": "jupyter/data",
    "JUPYTER_RUNTIME_DIR": "jupyter/runtime",
    "IPYTHONDIR": "ipython",
    "MPLCONFIGDIR": "matplotlib",
}


def prepare_folders(environment: Mapping[str, str] = os.environ) -> dict[str, str]:
    """The environment with JupyterLab's own folders set and made, apart from the user's own.

    Raises EngineError where the caches cannot be written.
    """
    state = Path(environment.get("LABKIT_STATE") or Path.home() / ".cache" / "labkit")
    values = {name: str(state / folder) for name, folder in STATE_FOLDERS.items()}
    # Set only inside a container, where no home exists before the first start.
    home = {environment["HOME"]} if environment.get("LABKIT_IN_CONTAINER") else set()
    for folder in {*values.values(), *home}:
        try:
            Path(folder).mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise EngineError(
                f"cannot write to {folder}: {error.strerror}",
                cause="the caches belong to another user than the lab runs as",
                fix="make clean && make up",
            ) from error
    return {**environment, **values}


def find_workspace(environment: Mapping[str, str] = os.environ) -> Path:
    """The workspace that the server serves. Raises UsageError where it cannot be written."""
    workspace = Path(environment.get("LABKIT_WORKSPACE") or Path.cwd())
    if not os.access(workspace, os.W_OK | os.X_OK):
        raise UsageError(
            f"the workspace {workspace} cannot be written by uid {os.getuid()}",
            cause="it belongs to another user",
            fix="sudo chown -R $(id -u):$(id -g) work",
        )
    return workspace


def become_jupyter(environment: Mapping[str, str]) -> None:
    """Replaces this process with JupyterLab; JUPYTER_CONFIG_PATH names docker/jupyter/."""
    replace_process([sys.executable, "-m", "jupyterlab"], environment)
