"""Two more users of the host, for tests that root runs: the lab's owner and an attacker."""

from __future__ import annotations

import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
OWNER, ATTACKER = 1001, 1002


def find_users_python() -> str:
    """A Python that other users may run, and that can import labkit; skips the test without one."""
    for program in (sys.executable, "/usr/bin/python3", "/usr/local/bin/python3"):
        try:
            check = [program, "-c", "import labkit.launch.up"]
            if subprocess.run(check, **as_user(OWNER), check=False).returncode == 0:  # type: ignore[call-overload]
                return program
        except OSError:
            continue
    pytest.skip("no Python here that other users may run, with a labkit that they may read")


def as_user(user: int, environment: Mapping[str, str] | None = None) -> dict[str, object]:
    """What has subprocess run a program as this user."""
    variables = {"PATH": "/usr/bin:/bin", "PYTHONPATH": str(ROOT), **(environment or {})}
    return {"user": user, "group": user, "extra_groups": [], "env": variables, "cwd": "/"}


def open_folder(factory: pytest.TempPathFactory) -> Path:
    """A temporary folder that other users may enter."""
    folder = factory.mktemp("shared")
    # pytest-of-USER/pytest-N, and a worker's folder in it under xdist.
    for path in (folder, *folder.parents):
        if path == Path(tempfile.gettempdir()):
            break
        path.chmod(0o755)
    return folder
