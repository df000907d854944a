"""The commands that start, stop and show the lab, and those that run inside its environment."""

from __future__ import annotations

import argparse
import contextlib
import os
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from labkit.cli import add_common, advise, print_json
from labkit.errors import ExitCode, UsageError
from labkit.text import escape_controls

if TYPE_CHECKING:
    from labkit.launch.settings import Checkout


def add_commands(commands: argparse._SubParsersAction[Any]) -> None:
    """Adds this family's commands to the parser."""
    _add_launch(commands)
    _add_inside(commands)


def _add_launch(commands: argparse._SubParsersAction[Any]) -> None:
    """Adds up, down, status and logs."""
    up = commands.add_parser(
        "up", help="start the lab and print its URL", description="Starts the lab."
    )
    add_choices(up)
    _add_address(up)
    up.add_argument(
        "--memory",
        metavar="SIZE",
        help="the container's memory limit: 16g, off or auto (most of the machine's)",
    )
    _add_folders(up)
    up.add_argument("--open", action="store_true", help="open the URL in the browser")
    add_common(up)
    up.set_defaults(run=run_up)

    down = commands.add_parser("down", help="stop the lab", description="Stops the lab.")
    add_common(down, as_json=False)
    down.set_defaults(run=run_down)

    status = commands.add_parser(
        "status",
        help="say whether the lab runs, and where",
        description="Says whether the lab runs. Exit code 1 if it was started and is not healthy.",
    )
    add_common(status)
    status.set_defaults(run=run_status)

    logs = commands.add_parser(
        "logs", help="show the server's log", description="Shows the server's log."
    )
    logs.add_argument("--lines", type=int, default=200, metavar="N", help="how many lines (200)")
    logs.add_argument("--follow", "-f", action="store_true", help="follow it until Ctrl-C")
    add_common(logs, as_json=False)
    logs.set_defaults(run=run_logs)


def _add_folders(parser: argparse.ArgumentParser) -> None:
    """Adds the options for what the user brings."""
    parser.add_argument("--data", metavar="DIR", help="a folder that the lab may read, at /data")
    parser.add_argument("--env-file", metavar="FILE", help="a file with variables for the lab")


def _add_address(parser: argparse.ArgumentParser) -> None:
    """Adds the options that say where the server listens."""
    parser.add_argument(
        "--port", metavar="N", help="the port (default: 8888, or the next free one)"
    )
    parser.add_argument("--bind", metavar="ADDRESS", help="the address to listen on (127.0.0.1)")


def add_choices(parser: argparse.ArgumentParser) -> None:
    """Adds the options that override the launcher's choices."""
    parser.add_argument("--runtime", metavar="NAME", help="docker, podman, local or auto (auto)")
    parser.add_argument("--flavor", metavar="NAME", help="cpu, cuda or auto (auto)")
    parser.add_argument(
        "--cuda", metavar="BUILD", help="torch's build: cu130, cu126 or auto (auto)"
    )
    parser.add_argument("--gpus", metavar="LIST", help="all, or indices and UUIDs: 0,1 (all)")


def run_up(arguments: argparse.Namespace) -> int:
    """Starts the lab; prints the URL and the command to stop it to stdout."""
    from labkit.host.machine import read_machine
    from labkit.launch.progress import Steps
    from labkit.launch.settings import find_checkout, read_settings
    from labkit.launch.state import hold_lock, read_state
    from labkit.launch.up import describe_urls, open_browser, start_lab

    checkout = find_checkout()
    settings = read_settings(vars(arguments))
    steps = Steps()
    with hold_lock(checkout, lambda: steps.say("another `up` or `down` is at work: waiting")):
        before = read_state(checkout)  # under the lock: another `up` may have just started the lab
        status = start_lab(checkout, settings, steps)
    if arguments.json:
        print_json(status.describe())
        return ExitCode.OK
    if before is not None and before == status.state:
        print("the lab is running already")
    if arguments.open:
        open_browser(status, steps)
    print("\n".join(describe_urls(status, read_machine())))
    return ExitCode.OK


def run_down(arguments: argparse.Namespace) -> int:
    """Stops the lab. The exit code is 0 even if none was running."""
    from labkit.launch.progress import Steps
    from labkit.launch.settings import find_checkout
    from labkit.launch.state import hold_lock, read_state
    from labkit.launch.status import place_checkout
    from labkit.launch.stop import stop_lab

    checkout = find_checkout()
    steps = Steps()
    with hold_lock(checkout, lambda: steps.say("another `up` or `down` is at work: waiting")):
        state = read_state(checkout)
        stopped = stop_lab(checkout, steps)
    checkout = place_checkout(checkout, state) if state else checkout
    kept = f"your files are in {checkout.workspace}"
    print(f"stopped; {escape_controls(kept)}" if stopped else "nothing was running")
    return ExitCode.OK


def run_status(arguments: argparse.Namespace) -> int:
    """Prints whether the lab runs, its URL, and what is wrong with it."""
    from labkit.launch.settings import find_checkout
    from labkit.launch.state import prepare_state_folder
    from labkit.launch.status import read_status

    checkout = find_checkout()
    if checkout.state_folder.is_dir():  # what it has is for its owner alone
        with contextlib.suppress(UsageError):
            prepare_state_folder(checkout)
    status = read_status(checkout)
    if arguments.json:
        print_json(status.describe())
    elif status.healthy and status.state:
        print(f"running ({status.state.runtime}, {status.state.kind}):  {status.url}")
    elif status.state:
        print(escape_controls(advise(f"not healthy: {status.problem}\n  try: {status.fix}")))
    else:
        print(advise("not running\n  try: make up"))
    return ExitCode.FAILED if status.state and not status.healthy else ExitCode.OK


def run_logs(arguments: argparse.Namespace) -> int:
    """Replaces this process by the program that shows the server's log."""
    from labkit.launch.local import LocalLab
    from labkit.launch.settings import Settings, find_checkout
    from labkit.launch.state import read_state
    from labkit.launch.status import find_forgotten_lab, open_lab

    checkout = find_checkout()
    state = read_state(checkout) or find_forgotten_lab(checkout)
    sys.stdout.flush()
    if state is None:
        LocalLab(checkout, Settings()).show_logs(None, arguments.lines, arguments.follow)
    else:
        open_lab(checkout, state).show_logs(state.handle, arguments.lines, arguments.follow)
    return ExitCode.OK


def _add_inside(commands: argparse._SubParsersAction[Any]) -> None:
    """Adds shell, exec, serve, lab and hub."""
    shell = commands.add_parser(
        "shell", help="open a shell inside the lab", description="Opens a shell inside the lab."
    )
    add_choices(shell)
    _add_folders(shell)
    add_common(shell, as_json=False)
    shell.set_defaults(run=run_shell)

    execute = commands.add_parser(
        "exec",
        help="run a command inside the lab",
        description="Runs a command inside the lab: `labkit exec -- labkit devices`. What stands"
        " after the command belongs to it.",
    )
    add_choices(execute)
    _add_folders(execute)
    execute.add_argument(
        "words", nargs=argparse.REMAINDER, metavar="COMMAND", help="the command and its arguments"
    )
    add_common(execute, as_json=False)
    execute.set_defaults(run=run_exec)

    serve = commands.add_parser(
        "serve",
        help="run JupyterLab (`up` starts this command inside the lab)",
        description="Copies the notebooks into the workspace and runs JupyterLab, which gets"
        " all further arguments: labkit serve --ServerApp.base_url=/lab/",
    )
    add_common(serve, as_json=False)
    serve.set_defaults(run=run_serve, passes_on=True)

    _add_hub(commands)
    lab = commands.add_parser(
        "lab",
        help="run JupyterLab with the labs in a folder, from this Python environment",
        description="Copies the notebooks into a folder and runs JupyterLab there, in the Python"
        " environment that labkit is installed in. It needs no checkout and no engine.",
    )
    lab.add_argument("folder", nargs="?", default="work", metavar="DIR", help="the folder (work)")
    _add_address(lab)
    add_common(lab, as_json=False)
    lab.set_defaults(run=run_lab)


def run_shell(arguments: argparse.Namespace) -> int:
    """Runs a shell inside the lab and returns its exit code."""
    return enter_lab(arguments, ["bash"])


def run_exec(arguments: argparse.Namespace) -> int:
    """Runs the command inside the lab and returns its exit code."""
    words = arguments.words[1:] if arguments.words[:1] == ["--"] else arguments.words
    if not words:
        raise UsageError(
            "no command to run in the lab",
            cause="`labkit exec` takes one",
            fix="labkit shell   # or: labkit exec -- COMMAND",
        )
    return enter_lab(arguments, words)


def enter_lab(arguments: argparse.Namespace, command: Sequence[str]) -> int:
    """Runs ``command`` in the running lab, or in a prepared one; returns its exit code."""
    from labkit.launch.progress import Steps
    from labkit.launch.settings import find_checkout, read_settings
    from labkit.launch.up import prepare_lab

    checkout = find_checkout()
    lab, handle = prepare_lab(checkout, read_settings(vars(arguments)), Steps())
    return lab.enter(handle, command)


def run_serve(arguments: argparse.Namespace) -> int:
    """Copies the notebooks into the workspace and replaces this process by JupyterLab."""
    from labkit.files import choose_labs_folder
    from labkit.launch.serve import become_jupyter, find_workspace, prepare_folders
    from labkit.lessons.workspace import update_workspace

    workspace = find_workspace()
    environment = prepare_folders()
    update_workspace(choose_labs_folder(workspace))
    become_jupyter(environment, arguments.further)
    return ExitCode.OK


def _add_hub(commands: argparse._SubParsersAction[Any]) -> None:
    hub = commands.add_parser(
        "hub",
        help="start JupyterHub for a class, or stop it",
        description="Starts JupyterHub, which starts a lab for each learner who logs in.",
    )
    hub.add_argument("--stop", action="store_true", help="stop it; all work stays")
    hub.add_argument("--progress", action="store_true", help="show what each learner has passed")
    hub.add_argument(
        "--usage", action="store_true", help="show what each learner holds of memory and GPUs"
    )
    add_choices(hub)
    _add_address(hub)
    add_common(hub)
    hub.set_defaults(run=run_hub)


def run_hub(arguments: argparse.Namespace) -> int:
    """Starts or stops the hub of this machine, or shows the learners' progress or usage."""
    from labkit.launch.hub import DEFAULT_PORT, start_hub, stop_hub
    from labkit.launch.progress import Steps
    from labkit.launch.settings import LOOPBACK, find_checkout, read_settings
    from labkit.launch.state import hold_lock

    checkout, steps = find_checkout(), Steps()
    # LABKIT_PORT and LABKIT_BIND are the lab's own, which may run beside the hub.
    port = arguments.port or os.environ.get("HUB_PORT") or str(DEFAULT_PORT)
    bind = arguments.bind or os.environ.get("HUB_BIND") or LOOPBACK
    settings = read_settings({**vars(arguments), "port": port, "bind": bind})
    if arguments.progress or arguments.usage:
        return _show_class(checkout, arguments)
    with hold_lock(checkout, lambda: steps.say("another `up` or `down` is at work: waiting")):
        if arguments.stop:
            stop_hub(checkout)
        else:
            url = start_hub(checkout, settings, steps)
    if arguments.json:
        print_json({"url": None if arguments.stop else url})
    elif arguments.stop:
        print("stopped; the learners' files and accounts stay")
    else:
        print(advise(f"JupyterHub is ready:  {url}\nstop it:  make hub STOP=1"))
    return ExitCode.OK


def _show_class(checkout: Checkout, arguments: argparse.Namespace) -> int:
    """Prints the learners' progress, or what their containers hold."""
    from labkit.launch.hub import describe_class, describe_usage, read_class, read_usage
    from labkit.process import run_command

    if arguments.progress:
        learners = read_class(checkout)
        lines = describe_class(learners)
        objects = [{"name": name, **said} for name, said in learners]
    else:
        holders = read_usage(run_command)
        lines = describe_usage(holders)
        objects = [holder.describe() for holder in holders]
    if arguments.json:
        print_json({"learners": objects})
    else:
        print(escape_controls("\n".join(lines)))
    return ExitCode.OK


def run_lab(arguments: argparse.Namespace) -> int:
    """Replaces this process by JupyterLab on a folder, in this Python environment."""
    from pathlib import Path

    from labkit.files import choose_labs_folder
    from labkit.launch.progress import Steps
    from labkit.launch.serve import become_jupyter, compose_lab
    from labkit.launch.settings import DEFAULT_PORT, read_settings
    from labkit.launch.up import choose_port, warn_of_others
    from labkit.lessons.workspace import update_workspace

    settings, steps = read_settings(vars(arguments)), Steps()
    warn_of_others(settings, steps)
    port = choose_port(settings, settings.port or DEFAULT_PORT, steps)
    # Unlike Path.resolve, it raises nothing for a link that leads to itself.
    workspace = Path(os.path.realpath(Path(arguments.folder).expanduser()))
    environment = compose_lab(workspace, settings, port)
    update_workspace(choose_labs_folder(workspace))
    become_jupyter(environment)
    return ExitCode.OK
