"""A maintainer's commands: the tests, the linters and the documentation, and `make lock`."""

from __future__ import annotations

import hashlib
import os
import re
import shlex
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

from labkit.errors import EngineError, UsageError
from labkit.host.torch_builds import BUILDS, CUDA_BUILDS, TORCH_VERSION, TorchBuild
from labkit.launch.compose import ContainerLab
from labkit.launch.plan import announce_choices, make_plan, probe_host
from labkit.launch.progress import StepLog, Steps
from labkit.launch.settings import EXTRAS, Checkout, Settings, check_locks
from labkit.launch.state import ensure_token, hold_lock, prepare_state_folder
from labkit.launch.venv import SIMULATED_VENV, PythonEnvironment, compose_pip_environment
from labkit.process import (
    CommandResult,
    compose_environment,
    replace_process,
    run_command,
    stream_command,
)

# What needs a GPU or the simulation, wherever it stands.
SIMULATED_TESTS = ("-n", "2", "--dist", "worksteal", "-m", "(gpu or gpu_hardware or simulated)")
SIMULATION_BUILD = "tests.simulated_gpu.build"
# In the order of tests/conftest.py, which begins with the files that take longest.
BY_FILE = ("-n", "2", "--dist", "loadfile", "--no-loadscope-reorder")
FAST_TESTS = ("-m", "not slow and not engine and not browser", *BY_FILE)
# Each one runs, even if the one before it failed.
LINTERS = (
    "ruff check .",
    "ruff format --check .",
    "mypy",
    "lint-imports --no-cache",
    "! command -v shellcheck >/dev/null || shellcheck docker/*/*.sh .ci/run",
)


def chain_commands(lines: Sequence[str]) -> tuple[str, ...]:
    """One command that prints and runs each line; it fails if any line fails."""
    each = [f"echo {shlex.quote('+ ' + line)}; {{ {line}; }} || status=1" for line in lines]
    return ("sh", "-c", f"status=0; {'; '.join(each)}; exit $status")


# What `make test`, `make test FAST=1`, `make house` and `make lint` run, in the lab's environment.
TOOLS: dict[str, tuple[str, ...]] = {
    "test": ("python", "-m", "pytest"),
    "fast test": ("python", "-m", "pytest", *FAST_TESTS),
    "house": ("python", "tests/house/count_files.py"),
    "lint": chain_commands(LINTERS),
}

OLDEST_PYTHON = "3.10"
# jsonschema imports it where it is there, to check IRIs, which no schema of Jupyter has: half of a
# server's start.
SLOW_START = "rfc3987-syntax"
# In the order of resolution: test and docs use the versions of lab.
LOCKS = (
    *("lab", "test", "docs", "tools", "hub", "models"),
    *(f"cuda-{build.name}" for build in CUDA_BUILDS),
)
TORCH_HEADER = """\
# torch's build {name}, from {index}.
# Installed alone, without dependencies ({others}).
"""
# pip prefers 2.13.0+cpu to 2.13.0 where an index has both, and "==2.13.0" takes either.
EXACTLY = "# Three equal signs: two would also take 2.13.0+cpu.\n"


def run_tools(
    checkout: Checkout, settings: Settings, steps: Steps, tool: str, words: Sequence[str] = ()
) -> int:
    """Runs one of TOOLS with ``words`` in the chosen runtime; returns its exit code."""
    prepare_state_folder(checkout)
    plan = make_plan(checkout, settings, probe_host(checkout, settings, steps), demand=False)
    announce_choices(plan, steps)
    command = [*TOOLS[tool], *words]
    with hold_lock(checkout, lambda: steps.say("another `up` or `down` is at work: waiting")):
        checkout.workspace.mkdir(exist_ok=True)
        ensure_token(checkout)
        if isinstance(plan.lab, ContainerLab):
            plan.lab.prepare(steps, for_tests=True)
        else:
            plan.lab.prepare(steps, ["test"])
    os.chdir(checkout.root)
    if isinstance(plan.lab, ContainerLab):
        return plan.lab.run_once("test", command, ["--no-TTY"])
    replace_process(command, plan.lab.environment())
    return 0


def run_simulated_tests(
    checkout: Checkout,
    settings: Settings,
    steps: Steps,
    words: Sequence[str] = (),
    *,
    fast: bool = False,
) -> int:
    """Replaces this process by the tests for GPUs, in an environment with simulated ones.

    It is a .venv in each runtime: the simulation replaces CUDA's libraries, which an image of the
    lab must not have. Raises UsageError for a container or the CPU, EngineError if it cannot be
    built.
    """
    if settings.runtime in ("docker", "podman") or settings.flavor == "cpu":
        raise UsageError(
            f"SIMULATED=1 runs in {SIMULATED_VENV}, with the build for CUDA {CUDA_BUILDS[0].cuda}",
            cause="RUNTIME=docker, RUNTIME=podman and FLAVOR=cpu conflict with it",
            fix="make test SIMULATED=1",
        )
    prepare_state_folder(checkout)
    environment = PythonEnvironment(checkout, SIMULATED_VENV)
    with hold_lock(checkout, lambda: steps.say("another `up` or `down` is at work: waiting")):
        environment.prepare(steps, (*CUDA_BUILDS[0].locks, "test"))
        _build_simulation(checkout, environment, steps)
    os.chdir(checkout.root)
    *options, marked = SIMULATED_TESTS
    marked += " and not slow" if fast else ""
    command = [str(environment.python), "-m", "pytest", *options, marked, *words]
    replace_process(command, _describe_simulation(checkout, environment))
    return 0


def _build_simulation(checkout: Checkout, environment: PythonEnvironment, steps: Steps) -> None:
    """Compiles the simulated GPU and puts it into the environment; seconds if nothing changed."""
    command = [str(environment.python), "-m", SIMULATION_BUILD, str(environment.folder)]
    with (
        steps.step("building the simulated GPU"),
        StepLog(checkout.logs_folder / "simulated-gpu.log") as log,
    ):
        result = stream_command(
            command, timeout_seconds=1200, on_line=log.write, folder=checkout.root
        )
        if not result.ok:
            raise log.failure(
                "building the simulated GPU failed",
                "make test SIMULATED=1   # on Linux, x86-64, with gcc and g++",
            )


def _describe_simulation(checkout: Checkout, environment: PythonEnvironment) -> dict[str, str]:
    """The environment variables for programs on simulated GPUs; the tests choose the GPUs."""
    home = environment.folder / "simulated-gpu"
    programs = (home / "bin", environment.folder / "bin", os.environ.get("PATH", ""))
    return {
        **compose_environment(),
        "PATH": os.pathsep.join(map(str, programs)),
        "VIRTUAL_ENV": str(environment.folder),
        "LD_LIBRARY_PATH": str(home / "driver"),
        "TRITON_LIBCUDA_PATH": str(home / "driver"),
        "TORCHINDUCTOR_CACHE_DIR": str(checkout.state_folder / "simulated-torchinductor"),
    }


def build_docs(checkout: Checkout, steps: Steps) -> Path:
    """Builds the documentation site; returns its first page. Raises EngineError with warnings."""
    mkdocs = prepare_tools(checkout, steps, "docs", "make docs") / "mkdocs"
    with steps.step("building the documentation"):
        result = run_command(
            [str(mkdocs), "build", "--strict"], timeout_seconds=600, folder=checkout.root
        )
    if not result.ok:
        warnings = [
            line for line in result.stderr.splitlines() if "WARNING" in line or "rror" in line
        ]
        raise EngineError(
            "\n  ".join([f"mkdocs build --strict failed: {result.message}", *warnings]),
            cause="a page or a docstring has a broken link or anchor",
            fix="repair it, then: make docs",
        )
    return checkout.root / "build" / "site" / "index.html"


def prepare_tools(checkout: Checkout, steps: Steps, lock: str, retry: str) -> Path:
    """The folder of the programs from docker/locks/LOCK.txt, in a separate Python environment.

    It is created if none exists for this content of the lock; ``retry`` is the command to retry.
    Raises EngineError if the packages cannot be installed.
    """
    check_locks(checkout, [lock])
    source = checkout.lock_file(lock)
    digest = hashlib.sha256(source.read_bytes() + sys.version.encode()).hexdigest()[:12]
    home = checkout.state_folder / "tools" / f"{lock}-{digest}"
    done = home / "labkit-installed"
    if done.exists():
        return home / "bin"
    options = ["--require-hashes", "--only-binary", ":all:", "--no-deps", "--quiet"]
    with steps.step(f"installing the packages of {lock}.txt"):
        for command in (
            [sys.executable, "-m", "venv", "--clear", str(home)],
            [str(home / "bin" / "python"), "-m", "pip", "install", *options, "-r", str(source)],
        ):
            result = run_command(
                command, timeout_seconds=600, environment=_compose_tool_environment(checkout)
            )
            if not result.ok:
                raise EngineError(
                    f"cannot install the packages of {lock}.txt: {result.message}",
                    cause="the package index does not answer, or has no build for this machine",
                    fix=f"{retry}   # again, with a network",
                )
    done.touch()
    return home / "bin"


def _compose_tool_environment(checkout: Checkout) -> dict[str, str]:
    """The environment variables that make pip and uv trust the network's certificate."""
    environment = compose_pip_environment(checkout)
    if "PIP_CERT" in environment:
        environment.setdefault("SSL_CERT_FILE", environment["PIP_CERT"])
    return environment


def update_locks(checkout: Checkout, steps: Steps) -> list[str]:
    """Resolves every lock to the newest versions; returns one line for each on what changed.

    Raises EngineError if one cannot be resolved. If PyTorch's index cannot be reached, the locks
    of its builds are kept.
    """
    resolver = prepare_tools(checkout, steps, "tools", "make lock") / "uv"
    lines = []
    for name in LOCKS:
        lock = checkout.lock_file(name)
        with steps.step(f"resolving {name}"):
            before = _read_pins(lock)
            _resolve(checkout, resolver, name)
            lines.append(describe_change(name, before, _read_pins(lock)))
    for build in BUILDS.values():
        with steps.step(f"resolving {build.torch_lock}"):
            lines.append(_update_torch(checkout, resolver, build))
    return lines


# Their code is compiled for one build of torch; the package index has that of one CUDA alone.
BOUND_TO_TORCH = ("torchaudio", "torchcodec", "torchvision")


def lock_extras(checkout: Checkout, asked: str, steps: Steps) -> str:
    """Locks packages beside the lab's in docker/locks/extras.txt; returns what changed.

    ``asked`` is the path of a file of requirements, or requirements separated by spaces; "none"
    removes the lock. The image and the .venv install what is locked. Raises UsageError for a
    package that is bound to a build of torch, EngineError if it cannot be resolved.
    """
    lock = checkout.lock_file(EXTRAS)
    before = _read_pins(lock)
    if asked == "none":
        lock.unlink(missing_ok=True)
        return describe_change(EXTRAS, before, {})
    path = Path(asked).expanduser()
    wanted = path.read_text(encoding="utf-8") if path.is_file() else "\n".join(asked.split())
    bound = [name for name in BOUND_TO_TORCH if re.search(rf"^{name}\b", wanted, re.MULTILINE)]
    if bound:
        raise UsageError(
            f"EXTRAS cannot have {bound[0]}",
            cause="it is compiled for one build of torch, and the images have different ones",
            fix=f"pip install --no-deps {bound[0]} --index-url"
            f" {BUILDS['cpu'].torch_index}   # in the lab, with its own build in place of cpu",
        )
    resolver = prepare_tools(checkout, steps, "tools", "make build") / "uv"
    with steps.step(f"resolving {EXTRAS}"):
        result = _resolve_extras(checkout, resolver, wanted)
    if not result.ok:
        raise EngineError(
            f"EXTRAS={asked} cannot be resolved: {result.message}",
            cause="no version fits the lab's packages, or the package index does not answer",
            fix="make build EXTRAS=...   # with other names or versions",
        )
    header = (
        f"# What `make build EXTRAS={' '.join(asked.split())}` locked; EXTRAS=none takes it out.\n"
    )
    lock.write_text(header + lock.read_text(encoding="utf-8"), encoding="utf-8")
    return describe_change(EXTRAS, before, _read_pins(lock))


def _resolve_extras(checkout: Checkout, resolver: Path, wanted: str) -> CommandResult:
    """Resolves requirements into extras.txt: with the lab's versions, and without its packages."""
    present = ["lab", *(f"cuda-{build.name}" for build in CUDA_BUILDS)]
    names = {name for lock in present for name in _read_pins(checkout.lock_file(lock))}
    options = [word for name in ("torch", *sorted(names)) for word in ("--no-emit-package", name)]
    with tempfile.TemporaryDirectory() as scratch:
        source, limits = Path(scratch, "extras.in"), Path(scratch, "limits.in")
        source.write_text(wanted + "\n", encoding="utf-8")
        limits.write_text(f"torch=={TORCH_VERSION}\n", encoding="utf-8")
        options += ["--no-header", "-c", "lab.txt", "-c", str(limits), "-o", f"{EXTRAS}.txt"]
        return _compile(checkout, resolver, str(source), *options)


def _resolve(checkout: Checkout, resolver: Path, name: str) -> None:
    """Writes NAME.txt from NAME.in; one that comes on top of lab.txt omits what that has."""
    options = ["-o", f"{name}.txt", "--upgrade"]
    if name in {"hub", "models"} or name.startswith("cuda-"):
        elsewhere = ["torch", *_read_pins(checkout.lock_file("lab"))]
        if name == "models":  # they need torch, whose default build needs CUDA's libraries
            elsewhere += _read_pins(checkout.lock_file(f"cuda-{CUDA_BUILDS[0].name}"))
        options += ["--no-header"]
        options += [word for other in elsewhere for word in ("--no-emit-package", other)]
    result = _compile(checkout, resolver, f"{name}.in", *options)
    if not result.ok:
        raise EngineError(
            f"resolving {name}.in failed: {result.message}",
            cause="its requirements exclude each other, or the package index does not answer",
            fix=f"edit docker/locks/{name}.in, then: make lock",
        )


def _compile(checkout: Checkout, resolver: Path, source: str, *options: str) -> CommandResult:
    """Runs uv once: for every Python and machine, with hashes, without an index's address.

    The lock's header names these options: Dependabot reads them there.
    """
    always = "--universal --no-python-downloads --generate-hashes --no-annotate"
    always += (
        f" --no-emit-index-url --python-version {OLDEST_PYTHON} --no-emit-package {SLOW_START}"
    )
    return run_command(
        [str(resolver), "pip", "compile", source, "--quiet", *always.split(), *options],
        timeout_seconds=900,
        folder=checkout.lock_file("lab").parent,
        environment=_compose_tool_environment(checkout),
    )


def _update_torch(checkout: Checkout, resolver: Path, build: TorchBuild) -> str:
    """Renews the lock of one torch build and returns one line on the result."""
    version = TORCH_VERSION if build.from_default_index else build.torch_version
    wanted = f'torch=={version} ; sys_platform == "linux"\n'
    if build.flavor == "cpu":  # wheels for macOS have no build name
        wanted += f'torch==={TORCH_VERSION} ; sys_platform == "darwin"\n'
    index = ["--index-url", build.torch_index] if build.torch_index else []
    with tempfile.TemporaryDirectory() as scratch:
        source = Path(scratch) / "torch.in"
        source.write_text(wanted, encoding="utf-8")
        result = _compile(checkout, resolver, str(source), "--no-header", "--no-deps", *index)
    if not result.ok and build.torch_index:
        return f"{build.torch_lock}: kept, as PyTorch's index does not give it ({result.message})"
    if not result.ok:
        raise EngineError(
            f"resolving {build.torch_lock} failed: {result.message}",
            cause=f"the package index does not answer, or has no torch {TORCH_VERSION}",
            fix="make lock   # again, with a network",
        )
    lock = checkout.lock_file(build.torch_lock)
    text = _format_torch_lock(build, result.stdout)
    changed = not lock.exists() or lock.read_text(encoding="utf-8") != text
    lock.write_text(text, encoding="utf-8")
    return f"{build.torch_lock}: " + ("renewed" if changed else "unchanged")


def _format_torch_lock(build: TorchBuild, pins: str) -> str:
    others = [f"{name}.txt" for name in build.locks if name != build.torch_lock]
    text = TORCH_HEADER.format(
        name=build.name,
        index="the default index" if build.from_default_index else "PyTorch's index",
        others=" and ".join(others) + (" have them" if len(others) > 1 else " has them"),
    )
    if build.from_default_index:
        text += EXACTLY
        pins = re.sub(r"^torch==(?!=)", "torch===", pins, flags=re.MULTILINE)
    return text + pins.strip("\n") + "\n"


def _read_pins(lock: Path) -> dict[str, str]:
    """Package names and versions in a lock; the newest if it pins several."""
    if not lock.exists():
        return {}
    text = lock.read_text(encoding="utf-8")
    return dict(re.findall(r"^([A-Za-z0-9._-]+)==([^\s;\\]+)", text, flags=re.MULTILINE))


def describe_change(name: str, before: Mapping[str, str], after: Mapping[str, str]) -> str:
    """One line on how a lock changed.

    >>> describe_change("lab", {"a": "1", "b": "1"}, {"a": "2", "c": "1"})
    'lab: a 1 -> 2, + c 1, - b'
    """
    both = [key for key in after if key in before]
    moved = [f"{key} {before[key]} -> {after[key]}" for key in both if before[key] != after[key]]
    added = [f"+ {key} {after[key]}" for key in after if key not in before]
    gone = [f"- {key}" for key in before if key not in after]
    return f"{name}: " + (", ".join([*moved, *added, *gone]) or "unchanged")
