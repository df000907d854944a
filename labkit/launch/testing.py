"""Runs the tests and the linters where the lab runs: in the test image, or in the .venv."""

from __future__ import annotations

import os
import shlex
from collections.abc import Sequence

from labkit.commands import replace_process
from labkit.launch import image
from labkit.launch.container import ContainerLab
from labkit.launch.plan import announce_choices, make_plan, probe_host
from labkit.launch.settings import Checkout, Settings
from labkit.launch.state import ensure_token, hold_lock, prepare_state_folder
from labkit.launch.steps import Steps

# Every linter runs, whatever the one before it found.
LINTERS = (
    "ruff check .",
    "ruff format --check .",
    "mypy",
    "lint-imports --no-cache",
    "! command -v shellcheck >/dev/null || shellcheck docker/steps/*.sh .ci/run",
)


def run_tools(
    checkout: Checkout, settings: Settings, steps: Steps, kind: str, words: Sequence[str]
) -> int:
    """Becomes pytest (``kind`` "test") or the linters ("lint"), in the chosen runtime."""
    prepare_state_folder(checkout)
    plan = make_plan(checkout, settings, probe_host(checkout, settings, steps), demand=False)
    announce_choices(plan, steps)
    command = ["python", "-m", "pytest", *words] if kind == "test" else _lint_command()
    with hold_lock(checkout, lambda: steps.say("another `up` or `down` is at work: waiting")):
        checkout.workspace.mkdir(exist_ok=True)
        ensure_token(checkout)
        if isinstance(plan.lab, ContainerLab):
            _prepare_image(plan.lab, steps)
        else:
            plan.lab.prepare(steps, ["test"])
    if isinstance(plan.lab, ContainerLab):
        run = plan.lab.compose_command(["run", "--rm", "--no-TTY", "test", *command])
        replace_process(run, plan.lab.environment())
    else:
        os.chdir(checkout.root)
        replace_process(command, plan.lab.environment())
    return 0


def _prepare_image(lab: ContainerLab, steps: Steps) -> None:
    digest = image.digest_inputs(lab.checkout, image.TEST_INPUTS)
    present = image.read_image_digest(lab.client, lab.test_image)
    if present != digest:
        why = "not built yet" if present is None else "its inputs have changed"
        lab.build(steps, "test", digest, why)


def _lint_command() -> list[str]:
    lines = [f"echo {shlex.quote('+ ' + line)}; {{ {line}; }} || status=1" for line in LINTERS]
    return ["sh", "-c", "status=0; " + "; ".join(lines) + "; exit $status"]
