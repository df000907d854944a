"""``labkit prove``: whether a device is correct and as fast as it should be."""

from __future__ import annotations

import argparse
import math
import os
import re
import shlex
import sys
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING

from labkit.cli import add_common, advise, print_error, print_json
from labkit.cli.run import NEEDED, require_modules, require_reader
from labkit.errors import ExitCode, LabkitError, UsageError
from labkit.text import escape_controls, near_match

if TYPE_CHECKING:
    from labkit.prove.model import Proof
    from labkit.prove.run import ProveTools

EPILOG = """\
exit codes: 0 all well; 1 something is lower than it should be, or a claim or check failed;
3 the DEVICE is not here; 5 torch, the driver or a GPU cannot be used; 130 interrupted (what was
done is kept).
"""
STEPS = ("doctor", "measure", "sustained", "compile", "links", "verify", "labs")
GPU_SECONDS, MORE_SECONDS, CPU_SECONDS = 95.0, 60.0, 110.0
QUICK_SECONDS = 50.0
DEFAULT_FOLDER = Path("proof")
PAGE_NAME = "proof.html"


def add_commands(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Adds ``prove``."""
    parser = subparsers.add_parser(
        "prove",
        help="prove that a device is correct and as fast as it should be",
        description="Runs the doctor's checks, the self-tests, measurements of every device and"
        " the labs' claims, and judges each figure by what the hardware can do. Writes proof.json"
        " and proof.html.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--device", metavar="DEVICE", help="measure only cpu, cuda or cuda:N (default: every one)"
    )
    parser.add_argument(
        "--quick", action="store_true", help="within a minute: no torch.compile, no labs"
    )
    parser.add_argument(
        "--seconds",
        type=float,
        metavar="N",
        help="begin no step after that; the labs come last (default: 95, and 60 more for each"
        " further GPU; 300 gives every lab its time)",
    )
    parser.add_argument(
        "--skip",
        action="append",
        default=[],
        metavar="STEP",
        help=f"leave out a step: {', '.join(STEPS)}; may be repeated",
    )
    parser.add_argument(
        "--output", type=Path, metavar="DIR", help="where the two files go (default: proof)"
    )
    parser.add_argument(
        "--compare",
        nargs=2,
        type=Path,
        metavar=("A", "B"),
        help="compare two proofs instead: before and after a driver, a card, a year",
    )
    add_common(parser)
    parser.set_defaults(run=run_prove)


def run_prove(arguments: argparse.Namespace) -> int:
    """Proves the devices, or compares two proofs; returns the verdict's exit code."""
    if arguments.compare:
        return compare_asked(arguments)
    options = _check_arguments(arguments)
    require_modules((*NEEDED, "torch"), "cannot prove a device", "make prove")
    from labkit.devices.detect import detect_devices
    from labkit.prove.run import ProofRun, ProveOptions, find_stored

    detection = detect_devices()
    gpus = sum(one.kind != "cpu" and one.torch_name is not None for one in detection.devices)
    seconds = arguments.seconds or _choose_seconds(gpus, quick=arguments.quick)
    folder = arguments.output or DEFAULT_FOLDER
    asked = ProveOptions(arguments.device, options, arguments.quick, seconds)
    writer = ProofWriter(folder, shlex.join(["labkit", *_list_words(arguments)]))
    run = ProofRun(
        detection, asked, _make_tools(), say=_say, keep=writer.keep, stored=find_stored()
    )
    writer.open()
    proof = run.run()
    return _finish(proof, writer, as_json=arguments.json)


class ProofWriter:
    """Writes proof.json after each step, so that a proof that is killed keeps what it has."""

    def __init__(self, folder: Path, command: str) -> None:
        self.folder, self._command = folder, command
        self.trouble: OSError | None = None

    def open(self) -> None:
        """Makes the folder. Raises UsageError if it cannot, or if no file can be written there."""
        import tempfile

        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=self.folder):
                pass  # measuring takes minutes: it is known before whether the proof can be kept
        except OSError as error:
            raise UsageError(
                f"--output {self.folder} cannot be written",
                cause=error.strerror,
                fix="--output DIR",
            ) from error
        self._keep_earlier()

    def _keep_earlier(self) -> None:
        """Renames an earlier proof's files by the time they were written."""
        from labkit.prove.model import PROOF_NAME

        earlier = self.folder / PROOF_NAME
        if not earlier.exists():
            return
        moment = datetime.fromtimestamp(earlier.stat().st_mtime).astimezone()
        for path in (earlier, self.folder / PAGE_NAME):
            name, number = f"{path.stem}-{moment:%Y-%m-%d-%H%M%S}", 2
            kept = path.with_name(name + path.suffix)
            while kept.exists():
                kept, number = path.with_name(f"{name}-{number}{path.suffix}"), number + 1
            if path.exists():
                path.rename(kept)
                _say(f"the earlier proof is kept: {kept}")

    def keep(self, proof: Proof) -> None:
        """Writes the proof so far; the first error is kept."""
        import json

        from labkit.files import write_atomically
        from labkit.prove.model import PROOF_NAME

        text = json.dumps(self.describe(proof), indent=1) + "\n"
        try:
            write_atomically(self.folder / PROOF_NAME, text)
        except OSError as error:
            self.trouble = self.trouble or error

    def describe(self, proof: Proof) -> dict[str, object]:
        """The proof as JSON values, with the command that made it."""
        from msgspec.structs import replace

        return replace(proof, command=self._command).describe()


def _finish(proof: Proof, writer: ProofWriter, *, as_json: bool) -> int:
    """Writes the page, prints the result, and returns the exit code."""
    from labkit.notebooks.report.page import write_page
    from labkit.prove.model import PROOF_NAME, read_proof
    from labkit.prove.view import format_proof, render_proof

    print(advise(format_proof(proof)), file=sys.stderr if as_json else sys.stdout)
    if as_json:
        print_json(writer.describe(proof))
    try:
        if writer.trouble:
            raise LabkitError(f"{writer.folder} is incomplete", cause=str(writer.trouble))
        saved = read_proof(writer.folder / PROOF_NAME)
        page = write_page(writer.folder / PAGE_NAME, render_proof(saved))
    except LabkitError as error:
        print_error(error)
        return int(proof.exit_code) or ExitCode.FAILED
    print(f"proof: {escape_controls(str(page))}", file=sys.stderr)
    return int(proof.exit_code)


def _say(words: str) -> None:
    print(escape_controls(advise(words)), file=sys.stderr, flush=True)


def _make_tools() -> ProveTools:
    from labkit.cli.devices import explain_known
    from labkit.cli.doctor import make_host
    from labkit.doctor.check import Host
    from labkit.doctor.checks import CHECKS
    from labkit.doctor.run import Examination, examine_host
    from labkit.prove.run import ProveTools

    def examine() -> Examination:
        host: Host = make_host()
        return examine_host(host, CHECKS, offline=True)

    return ProveTools(examine, explain_known, environment=dict(os.environ))


def _check_arguments(arguments: argparse.Namespace) -> frozenset[str]:
    """The steps to skip. Raises UsageError for a word that is not one."""
    for word in arguments.skip:
        if word not in STEPS:
            near = near_match(word, STEPS)
            raise UsageError(
                f"invalid --skip {word!r}",
                cause=f"the steps are: {', '.join(STEPS)}",
                fix=f"labkit prove --skip {near or 'labs'}",
            )
    device = arguments.device
    if device is not None and not re.fullmatch(r"cpu|cuda(:\d+)?|xpu(:\d+)?|mps(:\d+)?", device):
        cause = "a device is named as in torch: cpu, cuda, cuda:1, mps, xpu"
        raise UsageError(f"invalid --device {device!r}", cause=cause, fix="labkit devices")
    seconds = arguments.seconds
    if seconds is not None and not (math.isfinite(seconds) and seconds > 0):
        raise UsageError(f"invalid --seconds {seconds:g}", cause="it must be above 0 seconds")
    return frozenset(arguments.skip)


def _choose_seconds(gpus: int, *, quick: bool) -> float:
    if quick:
        return QUICK_SECONDS * max(1, gpus)
    return GPU_SECONDS + MORE_SECONDS * (gpus - 1) if gpus else CPU_SECONDS


def _list_words(arguments: argparse.Namespace) -> list[str]:
    """The command's words without paths, for the proof."""
    words = ["prove"]
    words += ["--device", arguments.device] if arguments.device else []
    words += ["--quick"] if arguments.quick else []
    words += ["--seconds", f"{arguments.seconds:g}"] if arguments.seconds else []
    return words + [word for step in arguments.skip for word in ("--skip", step)]


def compare_asked(arguments: argparse.Namespace) -> int:
    """Prints two proofs side by side; exits 0, also if they differ."""
    require_reader()
    from labkit.prove.model import find_damage, read_proof
    from labkit.prove.view import describe_proof_comparison, format_proof_comparison

    a, b = (read_proof(place) for place in arguments.compare)
    for damage in filter(None, map(find_damage, arguments.compare)):
        _say(f"warning: {' '.join(damage.split())}")
    if arguments.json:
        print_json(describe_proof_comparison(a, b))
    else:
        print(format_proof_comparison(a, b))
    return ExitCode.OK
