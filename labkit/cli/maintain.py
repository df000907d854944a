"""labkit build, test, lint, docs, lock, clean: a maintainer's commands in a checkout."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any

from labkit.cli import add_common
from labkit.cli.launch import add_choices
from labkit.errors import ExitCode
from labkit.text import escape_controls

if TYPE_CHECKING:
    from labkit.launch.progress import Steps


def add_commands(commands: argparse._SubParsersAction[Any]) -> None:
    """Adds the commands."""
    for name, help_text, run in (
        ("build", "build the image, or update the .venv", run_build),
        ("test", "run the tests, in the image or in the .venv", run_test),
        ("lint", "check style, types and layers", run_lint),
        ("docs", "build the documentation site in build/site", run_docs),
        ("lock", "resolve the newest versions into docker/locks/", run_lock),
        ("clean", "remove images, caches, .venv and state; never work/", run_clean),
    ):
        parser = commands.add_parser(name, help=help_text, description=f"{help_text}.")
        if name in ("build", "test", "lint"):
            add_choices(parser)
        if name == "build":
            parser.add_argument("--image", metavar="NAME", help="the image: registry/name:tag")
            parser.add_argument(
                "--extras",
                metavar="WHAT",
                help="lock and add packages: a file of requirements, names, or none",
            )
        if name == "test":
            parser.add_argument(
                "--fast", action="store_true", help="leave out slow, engine and browser tests"
            )
            parser.add_argument(
                "--simulated", action="store_true", help="run the tests for GPUs on simulated ones"
            )
            parser.add_argument(
                "--house",
                action="store_true",
                help="count the files that five features use, instead of testing",
            )
        if name in ("test", "lint"):
            parser.add_argument(
                "words", nargs="*", metavar="OPTION", help="options for the program, after `--`"
            )
        add_common(parser, as_json=False)
        parser.set_defaults(run=run)


def run_build(arguments: argparse.Namespace) -> int:
    """Builds an image by name, or updates what `up` would use; starts nothing."""
    from labkit.launch.progress import Steps
    from labkit.launch.settings import find_checkout, read_settings
    from labkit.launch.up import prepare_lab

    steps, checkout, settings = Steps(), find_checkout(), read_settings(vars(arguments))
    if arguments.extras:
        _lock_extras(arguments.extras, steps)
    named = settings.flavor != "auto" or settings.cuda != "auto"
    if arguments.image or (named and settings.runtime != "local"):
        return _build_image(arguments, steps)
    prepare_lab(checkout, settings, steps, use_running=False)
    print("up to date")
    return ExitCode.OK


def _lock_extras(asked: str, steps: Steps) -> None:
    from labkit.launch.dev import lock_extras
    from labkit.launch.settings import find_checkout
    from labkit.launch.state import prepare_state_folder

    checkout = find_checkout()
    prepare_state_folder(checkout)
    steps.say(lock_extras(checkout, asked, steps))


def _build_image(arguments: argparse.Namespace, steps: Steps) -> int:
    """Builds the requested flavor, even if this host cannot run it."""
    from labkit.launch.plan import check_settings, choose_image_build
    from labkit.launch.publish import build_image, choose_named_build, describe_built
    from labkit.launch.settings import find_checkout, read_settings
    from labkit.launch.state import hold_lock, prepare_state_folder

    checkout, settings = find_checkout(), read_settings(vars(arguments))
    check_settings(settings)
    if arguments.image:  # for other hosts
        build = choose_named_build(settings.flavor, settings.cuda)
    else:
        build = choose_image_build(settings)
    prepare_state_folder(checkout)
    with hold_lock(checkout, lambda: steps.say("another `up` or `down` is at work: waiting")):
        built = build_image(checkout, settings, build, arguments.image, steps)
    print("\n".join(describe_built(built)))
    return ExitCode.OK


def run_test(arguments: argparse.Namespace) -> int:
    """Runs pytest (or the count of files) where the lab runs, and exits with its code."""
    if arguments.house:
        return _run_tools(arguments, "house")
    if arguments.simulated:
        return _run_simulated_tests(arguments)
    return _run_tools(arguments, "fast test" if arguments.fast else "test")


def _run_simulated_tests(arguments: argparse.Namespace) -> int:
    from labkit.launch.dev import run_simulated_tests
    from labkit.launch.progress import Steps
    from labkit.launch.settings import find_checkout, read_settings

    settings = read_settings(vars(arguments))
    return run_simulated_tests(
        find_checkout(), settings, Steps(), arguments.words, fast=arguments.fast
    )


def run_lint(arguments: argparse.Namespace) -> int:
    """Runs every linter where the lab runs; exits with 1 if one of them finds a problem."""
    return _run_tools(arguments, "lint")


def _run_tools(arguments: argparse.Namespace, tool: str) -> int:
    from labkit.launch.dev import run_tools
    from labkit.launch.progress import Steps
    from labkit.launch.settings import find_checkout, read_settings

    checkout = find_checkout()
    settings = read_settings(vars(arguments))
    return run_tools(checkout, settings, Steps(), tool, arguments.words)


def run_docs(arguments: argparse.Namespace) -> int:
    """Builds the documentation site and names its first page."""
    from labkit.launch.dev import build_docs
    from labkit.launch.progress import Steps
    from labkit.launch.settings import find_checkout
    from labkit.launch.state import prepare_state_folder

    checkout = find_checkout()
    prepare_state_folder(checkout)
    print(build_docs(checkout, Steps()))
    return ExitCode.OK


def run_lock(arguments: argparse.Namespace) -> int:
    """Resolves every lock to the newest versions and says what changed."""
    from labkit.launch.dev import update_locks
    from labkit.launch.progress import Steps
    from labkit.launch.settings import find_checkout

    for line in update_locks(find_checkout(), Steps()):
        print(line)
    return ExitCode.OK


def run_clean(arguments: argparse.Namespace) -> int:
    """Removes all that labkit created, except the learner's work."""
    from labkit.launch.progress import Steps
    from labkit.launch.settings import find_checkout
    from labkit.launch.state import hold_lock
    from labkit.launch.stop import clean_checkout

    checkout = find_checkout()
    steps = Steps()
    had_state = checkout.state_folder.exists()  # taking the lock creates it
    with hold_lock(checkout, lambda: steps.say("another `up` or `down` is at work: waiting")):
        removed = clean_checkout(checkout, steps)
    if not had_state:
        removed.remove(checkout.state_folder.name)
    print("removed " + ", ".join(removed) if removed else "nothing to remove")
    if checkout.workspace.exists():
        print(f"kept {escape_controls(str(checkout.workspace))}")
    return ExitCode.OK
