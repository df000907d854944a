"""labkit build, test, lint, lock, clean: what a maintainer of the lab runs from a checkout."""

from __future__ import annotations

import argparse
from typing import Any

from labkit.cli import add_common
from labkit.cli.launch import add_choices
from labkit.errors import ExitCode


def add_commands(commands: argparse._SubParsersAction[Any]) -> None:
    """Adds the five commands."""
    for name, help_text, run in (
        ("build", "build the image, or bring the .venv up to date", run_build),
        ("test", "run the tests, in the image or in the .venv", run_test),
        ("lint", "check style, types and layers", run_lint),
        ("lock", "pin every package anew in docker/locks/", run_lock),
        ("clean", "remove images, caches, .venv and state; never work/", run_clean),
    ):
        parser = commands.add_parser(name, help=help_text, description=f"{help_text}.")
        if name in ("build", "test", "lint"):
            add_choices(parser)
        if name in ("test", "lint"):
            parser.add_argument("words", nargs="*", metavar="OPTION", help="passed on, after `--`")
        add_common(parser, as_json=False)
        parser.set_defaults(run=run)


def run_build(arguments: argparse.Namespace) -> int:
    """Makes the environment of the chosen runtime current, without starting anything."""
    from labkit.launch.enter import prepare_lab
    from labkit.launch.settings import find_checkout, read_settings
    from labkit.launch.steps import Steps

    steps = Steps()
    prepare_lab(find_checkout(), read_settings(vars(arguments)), steps, use_running=False)
    print("up to date")
    return ExitCode.OK


def run_test(arguments: argparse.Namespace) -> int:
    """Runs pytest where the lab runs; its exit code is this one's."""
    return _run_tools(arguments, "test")


def run_lint(arguments: argparse.Namespace) -> int:
    """Runs every linter where the lab runs; 1 where any of them found something."""
    return _run_tools(arguments, "lint")


def _run_tools(arguments: argparse.Namespace, kind: str) -> int:
    from labkit.launch.settings import find_checkout, read_settings
    from labkit.launch.steps import Steps
    from labkit.launch.testing import run_tools

    checkout = find_checkout()
    settings = read_settings(vars(arguments))
    return run_tools(checkout, settings, Steps(), kind, arguments.words)


def run_lock(arguments: argparse.Namespace) -> int:
    """Resolves every lock anew and says what changed."""
    from labkit.launch.locks import update_locks
    from labkit.launch.settings import find_checkout
    from labkit.launch.steps import Steps

    for line in update_locks(find_checkout(), Steps()):
        print(line)
    return ExitCode.OK


def run_clean(arguments: argparse.Namespace) -> int:
    """Removes what labkit made, except the learner's work."""
    from labkit.launch.clean import clean_checkout
    from labkit.launch.settings import find_checkout
    from labkit.launch.state import hold_lock
    from labkit.launch.steps import Steps

    checkout = find_checkout()
    steps = Steps()
    had_state = checkout.state_folder.exists()  # holding the lock makes one
    with hold_lock(checkout, lambda: steps.say("another `up` or `down` is at work: waiting")):
        removed = clean_checkout(checkout, steps)
    if not had_state:
        removed.remove(checkout.state_folder.name)
    print("removed " + ", ".join(removed) if removed else "nothing to remove")
    if checkout.workspace.exists():
        print(f"kept {checkout.workspace}")
    return ExitCode.OK
