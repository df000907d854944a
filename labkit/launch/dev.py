"""Runs the tests and the linters where the lab runs: in the test image, or in the .venv.

A maintainer's tools, each of one version, in an environment that no lab ever sees.

`make lock`: pins every package anew, with a hash for each file and no index's address.
"""

from __future__ import annotations

import os
import re
import shlex
import sys
import tempfile
import urllib.error
import urllib.request
from collections.abc import Iterable, Sequence
from pathlib import Path

from labkit.errors import EngineError
from labkit.host.torch_builds import BUILDS, CUDA_BUILDS, TORCH_VERSION, TorchBuild
from labkit.launch import image
from labkit.launch.certificates import trust_in_pip
from labkit.launch.compose import ContainerLab
from labkit.launch.plan import announce_choices, make_plan, probe_host
from labkit.launch.progress import Steps
from labkit.launch.settings import Checkout, Settings
from labkit.launch.state import ensure_token, hold_lock, prepare_state_folder
from labkit.process import CommandResult, replace_process, run_command

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


# One resolver version, so that two maintainers' locks differ by packages alone.
RESOLVER = "uv==0.13.9"
OLDEST_PYTHON = "3.10"
# In this order: a lock after lab.txt keeps to its versions.
LOCKS = ("lab", "test", *(f"cuda-{build.name}" for build in CUDA_BUILDS))

WHEEL = re.compile(
    r"torch-([0-9.]+)(?:%2B|\+)?(\w+)?-cp(\d+)-cp\d+-(\w+)\.whl#sha256=([0-9a-f]{64})"
)
INDEX_HEADER = """\
# torch's build {name}: every wheel of it that PyTorch publishes for {systems}.
# Installed alone, without dependencies ({others}): only this step knows PyTorch's index.
"""
DEFAULT_HEADER = """\
# torch's build {name}: the one on the default index.
# Installed alone, without dependencies ({others}).
# Three equal signs: two would also take 2.13.0+cpu, and pip prefers it where it sees one.
"""


def update_locks(checkout: Checkout, steps: Steps) -> list[str]:
    """Resolves the locks anew and says, a line each, what became of them."""
    folder = checkout.root / "docker" / "locks"
    resolver = _prepare_resolver(checkout, steps)
    lines = []
    for name in LOCKS:
        with steps.step(f"resolving {name}"):
            before = _read_pins(folder / f"{name}.txt")
            _resolve(resolver, folder, name)
            lines.append(describe_change(name, before, _read_pins(folder / f"{name}.txt")))
    for build in BUILDS.values():
        if build.torch_index:
            lines.append(_update_from_index(folder, build, build.torch_index, steps))
        else:
            lines.append(_update_from_default(resolver, folder, build, steps))
    return lines


def _prepare_resolver(checkout: Checkout, steps: Steps) -> Path:
    """The resolver's program, in an environment of its own."""
    return prepare_tools(checkout, steps, [RESOLVER], "make lock") / "uv"


def _resolve(resolver: Path, folder: Path, name: str) -> None:
    """Writes NAME.txt from NAME.in; of a CUDA build's, without what other locks hold."""
    elsewhere = ["torch", *_read_pins(folder / "lab.txt")] if name.startswith("cuda-") else []
    options = ["-o", f"{name}.txt", "--upgrade"]
    options += [word for other in elsewhere for word in ("--no-emit-package", other)]
    result = _compile(resolver, folder, f"{name}.in", *options)
    if not result.ok:
        raise EngineError(
            f"resolving {name}.in failed: {result.message}",
            cause="its requirements exclude each other, or the package index does not answer",
            fix=f"edit docker/locks/{name}.in, then: make lock",
        )


def _compile(resolver: Path, folder: Path, source: str, *options: str) -> CommandResult:
    """One run of the resolver: for every Python and machine, with hashes, without an index."""
    always = "--quiet --universal --no-python-downloads --generate-hashes"
    always += " --no-header --no-annotate --no-emit-index-url"
    command = [str(resolver), "pip", "compile", source, *always.split()]
    command += ["--python-version", OLDEST_PYTHON, *options]
    return run_command(command, timeout_seconds=900, folder=folder)


def _read_pins(lock: Path) -> dict[str, str]:
    """Package names and versions in a lock; the newest where it names several."""
    if not lock.exists():
        return {}
    text = lock.read_text(encoding="utf-8")
    return dict(re.findall(r"^([A-Za-z0-9._-]+)==([^\s;\\]+)", text, flags=re.MULTILINE))


def describe_change(name: str, before: dict[str, str], after: dict[str, str]) -> str:
    """One line on how a lock changed.

    >>> describe_change("lab", {"a": "1", "b": "1"}, {"a": "2", "c": "1"})
    'lab: a 1 -> 2, + c 1, - b'
    """
    moved = [f"{key} {before[key]} -> {after[key]}" for key in after if _moved(key, before, after)]
    added = [f"+ {key} {after[key]}" for key in after if key not in before]
    gone = [f"- {key}" for key in before if key not in after]
    return f"{name}: " + (", ".join([*moved, *added, *gone]) or "unchanged")


def _moved(key: str, before: dict[str, str], after: dict[str, str]) -> bool:
    return key in before and before[key] != after[key]


def _update_from_default(resolver: Path, folder: Path, build: TorchBuild, steps: Steps) -> str:
    """Renews the lock of torch's build on the default index."""
    with steps.step(f"resolving {build.torch_lock}"), tempfile.TemporaryDirectory() as scratch:
        source = Path(scratch) / "torch.in"
        source.write_text(f'torch=={TORCH_VERSION} ; sys_platform == "linux"\n', encoding="utf-8")
        result = _compile(resolver, folder, str(source), "--no-deps")
    if not result.ok:
        raise EngineError(
            f"resolving {build.torch_lock} failed: {result.message}",
            cause=f"the package index does not answer, or has no torch {TORCH_VERSION}",
            fix="make lock   # again, with a network",
        )
    pins = re.sub(r"^torch==(?!=)", "torch===", result.stdout, flags=re.MULTILINE)
    header = DEFAULT_HEADER.format(name=build.name, others=_name_other_locks(build))
    return _write_lock(folder, build, header + pins.rstrip("\n") + "\n")


def _update_from_index(folder: Path, build: TorchBuild, index: str, steps: Steps) -> str:
    """Renews the lock of one build of torch from PyTorch's index; out of reach, keeps it."""
    with steps.step(f"reading PyTorch's index of {build.name}"):
        try:
            with urllib.request.urlopen(f"{index}/torch/", timeout=20) as answer:  # noqa: S310
                page = answer.read().decode("utf-8", "replace")
        except (urllib.error.URLError, OSError) as error:
            return f"{build.torch_lock}: kept, as PyTorch's index does not answer ({error})"
    text = format_torch_lock(page, TORCH_VERSION, build)
    if text is None:
        return f"{build.torch_lock}: kept, as PyTorch's index has no torch {TORCH_VERSION}"
    return _write_lock(folder, build, text)


def _write_lock(folder: Path, build: TorchBuild, text: str) -> str:
    lock = folder / f"{build.torch_lock}.txt"
    changed = not lock.exists() or lock.read_text(encoding="utf-8") != text
    lock.write_text(text, encoding="utf-8")
    return f"{build.torch_lock}: " + ("renewed" if changed else "unchanged")


def format_torch_lock(page: str, version: str, build: TorchBuild) -> str | None:
    """The lock for torch ``version`` from its page on the index; None where it is not there."""
    linux, mac = set(), set()
    for found_version, local, python, platform, digest in WHEEL.findall(page):
        if found_version != version or int(python) < 310:
            continue
        if local == build.name and platform.endswith(("linux_2_28_x86_64", "linux_2_28_aarch64")):
            linux.add(digest)
        elif not local and platform.startswith("macosx") and build.flavor == "cpu":
            mac.add(digest)
    if not linux:
        return None
    systems = "Linux and macOS" if mac else "Linux"
    others = _name_other_locks(build)
    text = INDEX_HEADER.format(name=build.name, systems=systems, others=others)
    text += _format_pin(f'torch=={version}+{build.name} ; sys_platform == "linux"', linux)
    return text + (_format_pin(f'torch=={version} ; sys_platform == "darwin"', mac) if mac else "")


def _name_other_locks(build: TorchBuild) -> str:
    """Where the dependencies are that torch is installed without."""
    others = [f"{name}.txt" for name in build.locks if name != build.torch_lock]
    return " and ".join(others) + (" have them" if len(others) > 1 else " has them")


def _format_pin(pin: str, digests: Iterable[str]) -> str:
    hashes = [f"    --hash=sha256:{digest}" for digest in sorted(digests)]
    return " \\\n".join([pin, *hashes]) + "\n"


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
