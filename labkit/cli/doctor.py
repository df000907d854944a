"""``labkit doctor``: does this host work, all the way down; and what does this error mean?"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from labkit.cli import add_common, print_json
from labkit.errors import ExitCode, UsageError
from labkit.launch.builds import CPU_BUILD

if TYPE_CHECKING:
    from labkit.doctor.host import Host


def add_commands(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Adds ``doctor``."""
    parser = subparsers.add_parser(
        "doctor",
        help="check this host, or explain an error",
        description="Checks this host from the GPU on its bus to a compiled kernel, and changes "
        "nothing. Exits with 5 where a check failed. With --explain it names the causes of a log "
        "instead, and exits with 1 where it knows none.",
    )
    what = parser.add_mutually_exclusive_group()
    what.add_argument(
        "--explain",
        nargs="?",
        const="-",
        metavar="FILE",
        help="explain the errors in a file (or in standard input)",
    )
    what.add_argument("--list", action="store_true", help="list the checks, and make none")
    parser.add_argument("--offline", action="store_true", help="leave out what uses the network")
    add_common(parser)
    parser.set_defaults(run=run_doctor)


def run_doctor(arguments: argparse.Namespace) -> int:
    """Lists, explains or examines, as was asked."""
    if arguments.explain is not None:
        return explain(arguments)
    return list_checks(arguments) if arguments.list else examine(arguments)


def list_checks(arguments: argparse.Namespace) -> int:
    """Prints every check's name and what it asks, in their order."""
    from labkit.doctor.checks import CHECKS

    if arguments.json:
        print_json({"checks": [{"check": each.name, "title": each.title} for each in CHECKS]})
    else:
        print("\n".join(f"{each.name:<18}{each.title}" for each in CHECKS))
    return ExitCode.OK


def explain(arguments: argparse.Namespace) -> int:
    """Prints the causes found in the text, or that none is known (exit 1)."""
    from labkit.doctor.distribution import read_distribution
    from labkit.doctor.explain import explain_text, format_explanation

    explanation = explain_text(read_text(arguments.explain))
    distribution = read_distribution()
    if arguments.json:
        print_json(explanation.describe(distribution))
    elif explanation.found:
        print(format_explanation(explanation, distribution))
    if explanation.found:
        return ExitCode.OK
    print("nothing in this text is an error that the doctor knows", file=sys.stderr)
    return ExitCode.FAILED


def read_text(name: str) -> str:
    """The text of a file, or of standard input for "-"; what is not UTF-8 is shown as such."""
    if name == "-":
        if sys.stdin.isatty():
            print("paste the log, then press Ctrl-D:", file=sys.stderr)
        return sys.stdin.read()
    try:
        return Path(name).read_text(encoding="utf-8", errors="replace")
    except OSError as error:
        raise UsageError(
            f"cannot read {name}: {error.strerror}", fix="labkit doctor --explain < FILE"
        ) from error


def examine(arguments: argparse.Namespace) -> int:
    """Makes every check and prints the findings, the failures last; 5 where one failed."""
    from labkit.doctor.checks import CHECKS
    from labkit.doctor.examine import examine_host, format_examination

    host = make_host()
    examination = examine_host(host, CHECKS, offline=arguments.offline)
    if arguments.json:
        print_json(
            {
                "healthy": examination.healthy,
                "distribution": host.distribution.name,
                "counts": examination.count(),
                "checks": [finding.describe() for finding in examination.shown],
            }
        )
    else:
        print(format_examination(examination))
    return ExitCode.OK if examination.healthy else ExitCode.ENGINE


def make_host() -> Host:
    """This machine as the checks see it; from a checkout, its workspace, port and index too."""
    from labkit.doctor.host import Host
    from labkit.launch.settings import DEFAULT_PORT, find_checkout, read_settings
    from labkit.launch.state import read_state

    settings = read_settings({})
    port = settings.port or DEFAULT_PORT
    asked = settings.port is not None
    try:
        checkout = find_checkout()
    except UsageError:
        indexes = find_indexes(None, os.environ)
        workspace = find_workspace(os.environ)
        return Host(workspace=workspace, port=port, port_asked=asked, indexes=indexes)
    state = read_state(checkout)
    return Host(
        workspace=checkout.workspace,
        port=state.port if state and not asked else port,
        port_asked=asked,
        own_port=state.port if state else None,
        indexes=find_indexes(checkout.root / "compose.yaml", os.environ),
    )


def find_workspace(environment: Mapping[str, str]) -> Path | None:
    """The workspace where there is no checkout: inside the lab it is known, elsewhere it is not."""
    named = environment.get("LABKIT_WORKSPACE")
    inside = "/work" if environment.get("LABKIT_IN_CONTAINER") else None
    place = named or inside
    return Path(place) if place else None


def find_indexes(compose: Path | None, environment: Mapping[str, str]) -> tuple[str, ...]:
    """The package indexes that a build here would use: the variables', else PyTorch's own."""
    named = [environment.get("TORCH_INDEX"), environment.get("PIP_INDEX_URL")]
    if not named[0] and compose is not None:
        named[0] = CPU_BUILD.torch_index
    return tuple(address for address in named if address)
