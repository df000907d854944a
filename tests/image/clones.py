"""Copies of the checkout, used through their own command line as a user does."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from labkit.launch.settings import Checkout
from labkit.process import CommandResult, run_command
from tests.servers import LabServer

ROOT = Path(__file__).parents[2]
COPIED = ("docker", "hub", "labkit", "labs", "tests", "docs")
FILES = (
    "compose.yaml",
    "Makefile",
    "pyproject.toml",
    "README.md",
    "CHANGELOG.md",
    "LICENSE",
    ".dockerignore",
)


@dataclass(frozen=True)
class Clone:
    """A checkout and how to use it."""

    root: Path
    venv: Path | None = None  # one that is made already

    @property
    def checkout(self) -> Checkout:
        return Checkout(self.root.resolve())

    @property
    def workspace(self) -> Path:
        return self.root / "work"

    def environment(self, **variables: str) -> dict[str, str]:
        kept = {key: value for key, value in os.environ.items() if not key.startswith("LABKIT_")}
        named = {"LABKIT_VENV": str(self.venv)} if self.venv else {}
        return {**kept, **named, "PYTHONPATH": str(self.root), **variables}

    def labkit(self, *words: str, timeout_seconds: float = 300, **variables: str) -> CommandResult:
        """`python3 -m labkit ...` from the clone, to its end."""
        return run_command(
            [sys.executable, "-m", "labkit", *words],
            timeout_seconds=timeout_seconds,
            environment=self.environment(**variables),
            folder=self.root,
        )

    def start_labkit(self, *words: str, **variables: str) -> subprocess.Popen[str]:
        """`python3 -m labkit ...` from the clone, left running."""
        return subprocess.Popen(
            [sys.executable, "-m", "labkit", *words],
            env=self.environment(**variables),
            cwd=self.root,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )

    def status(self) -> dict[str, Any]:
        return json.loads(self.labkit("status", "--json").stdout)

    def server(self) -> LabServer:
        """The running lab, asked on its published port."""
        token = (self.root / ".labkit" / "token").read_text().strip()
        return LabServer(self.status()["port"], token, self.workspace)

    def containers(self, *, all_states: bool = False) -> list[str]:
        """The ids of this clone's containers."""
        project = f"label=com.docker.compose.project={self.checkout.project}"
        words = ["docker", "ps", "--quiet", "--filter", project, *(["-a"] if all_states else [])]
        return run_command(words, timeout_seconds=30).stdout.split()

    def inside(self, *command: str, timeout_seconds: float = 120) -> CommandResult:
        """A command in the running container, as its own user."""
        container = self.containers()[0]
        return run_command(["docker", "exec", container, *command], timeout_seconds=timeout_seconds)

    def networks(self) -> list[str]:
        project = f"label=com.docker.compose.project={self.checkout.project}"
        words = ["docker", "network", "ls", "--quiet", "--filter", project]
        return run_command(words, timeout_seconds=10).stdout.split()

    def remove_volumes(self) -> None:
        for name in (f"{self.checkout.project}_caches",):
            run_command(["docker", "volume", "rm", "--force", name], timeout_seconds=60)


def copy_checkout(target: Path) -> Clone:
    """A copy of what a clone holds, without work, state or environment."""
    target.mkdir(parents=True)
    ignored = shutil.ignore_patterns("__pycache__", "*.pyc")
    for name in COPIED:
        shutil.copytree(ROOT / name, target / name, ignore=ignored)
    for name in FILES:
        if (ROOT / name).exists():
            shutil.copy2(ROOT / name, target / name)
    return Clone(target)
