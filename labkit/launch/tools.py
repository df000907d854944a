"""A maintainer's tools, each of one version, in an environment that no lab ever sees."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path

from labkit.commands import run_command
from labkit.errors import EngineError
from labkit.launch.certificate import trust_in_pip
from labkit.launch.settings import Checkout
from labkit.launch.steps import Steps

DONE = "labkit-installed"


def prepare_tools(
    checkout: Checkout, steps: Steps, requirements: Sequence[str], retry: str
) -> Path:
    """The folder of the tools' programs, which are installed where they are not yet.

    ``requirements`` name one version each, such as "uv==0.13.9"; ``retry`` is the command line
    that tries again. Raises EngineError where they cannot be installed.
    """
    home = checkout.state_folder / "tools" / "+".join(requirements)
    names = " and ".join(requirements)
    if (home / DONE).exists():
        return home / "bin"
    with steps.step(f"getting {names}"):
        for command in (
            [sys.executable, "-m", "venv", "--clear", str(home)],
            [str(home / "bin" / "pip"), "install", "--quiet", *requirements],
        ):
            result = run_command(
                command, timeout_seconds=600, environment={**os.environ, **trust_in_pip(checkout)}
            )
            if not result.ok:
                raise EngineError(
                    f"cannot install {names}: {result.message}",
                    cause="the package index does not answer, or has no build for this machine",
                    fix=f"{retry}   # again, with a network",
                )
    (home / DONE).touch()
    return home / "bin"
