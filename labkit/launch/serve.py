"""Replaces this process by JupyterLab: in the lab's container or .venv, or for `labkit lab`."""

from __future__ import annotations

import contextlib
import os
import shlex
import shutil
import stat
import sys
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path

from labkit.errors import EngineError, UsageError
from labkit.launch.settings import Settings
from labkit.process import SAFE_PATH, replace_process

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


def prepare_folders(
    environment: Mapping[str, str] = os.environ, fix: str = "make clean && make up"
) -> dict[str, str]:
    """The environment variables with JupyterLab's folders, which are created.

    The folders are below LABKIT_STATE, separate from the user's own Jupyter; the one with tokens is
    closed to other users. Raises EngineError, with ``fix``, if they cannot be created.
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
                cause="it belongs to another user, or its disk is read-only",
                fix=fix,
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
    if os.access(workspace, os.W_OK | os.X_OK):
        return workspace
    # The launcher gives its container a token file.
    by_hand = environment.get("LABKIT_IN_CONTAINER") and not environment.get("LABKIT_TOKEN_FILE")
    raise UsageError(
        f"the workspace {workspace} cannot be written by uid {os.getuid()}",
        cause="it belongs to another user, or is read-only",
        fix='docker run --user $(id -u):$(id -g) -v "$PWD":/work ...   # Apptainer: --bind'
        if by_hand
        else f"sudo chown -R $(id -u):$(id -g) {shlex.quote(str(workspace))}",
    )


def find_config() -> Path:
    """The folder with JupyterLab's settings: the checkout's, or the one that the wheel brings."""
    package = Path(__file__).resolve().parents[1]
    checkout = package.parent / "docker" / "jupyter"
    return checkout if checkout.is_dir() else package / "_jupyter"


def compose_lab(
    workspace: Path, settings: Settings, port: int, environment: Mapping[str, str] = os.environ
) -> dict[str, str]:
    """The environment of `labkit lab`: JupyterLab on ``workspace``, which is created.

    The server runs in the caller's own Python environment. Raises EngineError without JupyterLab
    in it, UsageError if the workspace cannot be used.
    """
    if find_spec("jupyterlab") is None:
        raise EngineError(
            "JupyterLab is not installed here",
            cause=f"{sys.executable} has labkit without its extra [lab]",
            fix='pip install "labkit[lab]"',
        )
    _make_workspace(workspace)
    values = prepare_folders(
        {
            **environment,
            "LABKIT_WORKSPACE": str(workspace),
            "LABKIT_SERVER_ADDRESS": settings.bind,
            "LABKIT_SERVER_PORT": str(port),
            "LABKIT_REMOTE_ACCESS": "1" if settings.opens_to_others else "0",
            "LABKIT_ALLOW_ROOT": "1" if os.geteuid() == 0 else "0",
            "JUPYTER_CONFIG_PATH": str(find_config()),
        },
        fix=f'LABKIT_STATE="$(mktemp -d)" labkit lab {shlex.quote(str(workspace))}',
    )
    profile = Path(values["IPYTHONDIR"], "profile_default")
    profile.mkdir(exist_ok=True)
    shutil.copyfile(find_config() / "ipython_config.py", profile / "ipython_config.py")
    return values


def _make_workspace(workspace: Path) -> None:
    """Creates the folder of `labkit lab`. Raises UsageError if it cannot be used."""
    cause = "it belongs to another user, or its disk is read-only"
    try:
        workspace.mkdir(parents=True, exist_ok=True)
        usable = os.access(workspace, os.W_OK | os.X_OK)
    except OSError as error:
        usable, cause = False, error.strerror or str(error)
        if isinstance(error, (FileExistsError, NotADirectoryError)):
            cause = "there is a file of that name"
    if not usable:
        raise UsageError(
            f"the folder {workspace} cannot be used: nothing can be written there",
            cause=cause,
            fix="labkit lab ~/labkit-work   # another folder",
        )


def become_jupyter(environment: Mapping[str, str], options: Sequence[str] = ()) -> None:
    """Replaces this process with JupyterLab, started with ``options``.

    JUPYTER_CONFIG_PATH names the folder with its settings, docker/jupyter/. A container that
    JupyterHub started becomes its single-user server; raises EngineError without JupyterHub in it.
    """
    program = "jupyterlab"
    if "JUPYTERHUB_API_TOKEN" in environment:
        program = "jupyterhub.singleuser"
        if find_spec("jupyterhub") is None:
            raise EngineError(
                "JupyterHub started this lab, and JupyterHub is not in its image",
                cause="the hub needs the image labkit:hub, which `make hub` builds",
                fix="make hub   # or: make build EXTRAS=jupyterhub",
            )
    replace_process([sys.executable, *SAFE_PATH, "-m", program, *options], environment)
