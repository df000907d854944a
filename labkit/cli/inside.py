"""labkit shell, exec, serve: commands that run inside the lab's own environment."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import Any

from labkit.cli import add_common
from labkit.cli.launch import add_choices
from labkit.errors import ExitCode


def add_commands(commands: argparse._SubParsersAction[Any]) -> None:
    """Adds the three commands."""
    shell = commands.add_parser(
        "shell", help="open a shell inside the lab", description="Opens a shell inside the lab."
    )
    add_choices(shell)
    add_common(shell, as_json=False)
    shell.set_defaults(run=run_shell)

    execute = commands.add_parser(
        "exec",
        help="run a command inside the lab",
        description="Runs a command inside the lab: `labkit exec -- labkit devices`.",
    )
    add_choices(execute)
    execute.add_argument("words", nargs="+", metavar="COMMAND", help="the command, after `--`")
    add_common(execute, as_json=False)
    execute.set_defaults(run=run_exec)

    serve = commands.add_parser(
        "serve",
        help="become JupyterLab (what `up` starts inside the lab)",
        description="Puts the notebooks into the workspace and becomes JupyterLab.",
    )
    add_common(serve, as_json=False)
    serve.set_defaults(run=run_serve)


def run_shell(arguments: argparse.Namespace) -> int:
    """Becomes an interactive shell inside the lab."""
    return enter_lab(arguments, ["bash"])


def run_exec(arguments: argparse.Namespace) -> int:
    """Becomes the command inside the lab; its exit code is this one's."""
    return enter_lab(arguments, arguments.words)


def enter_lab(arguments: argparse.Namespace, command: Sequence[str]) -> int:
    """Becomes ``command`` in the lab that runs, or in one made ready for it."""
    from labkit.launch.enter import prepare_lab
    from labkit.launch.settings import find_checkout, read_settings
    from labkit.launch.steps import Steps

    checkout = find_checkout()
    lab, handle = prepare_lab(checkout, read_settings(vars(arguments)), Steps())
    lab.enter(handle, command)
    return ExitCode.OK


def run_serve(arguments: argparse.Namespace) -> int:
    """Puts the notebooks into the workspace, says what it did, and becomes JupyterLab."""
    from labkit.launch.serve import become_jupyter, find_workspace, prepare_folders
    from labkit.lessons.workspace import update_workspace

    workspace = find_workspace()
    environment = prepare_folders()
    update_workspace(workspace)
    become_jupyter(environment)
    return ExitCode.OK
