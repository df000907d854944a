"""`make lock`: pins every package anew, with a hash for each file and no index's address."""

from __future__ import annotations

import re
import sys
import urllib.error
import urllib.request
from collections.abc import Iterable
from pathlib import Path

from labkit.commands import run_command
from labkit.errors import EngineError
from labkit.launch.builds import CPU_BUILD, TORCH_VERSION
from labkit.launch.settings import Checkout
from labkit.launch.steps import Steps

# One resolver version, so that two maintainers' locks differ by packages alone.
RESOLVER = "uv==0.13.9"
OLDEST_PYTHON = "3.10"
LOCKS = ("lab", "test")

WHEEL = re.compile(
    r"torch-([0-9.]+)(?:%2B|\+)?(\w+)?-cp(\d+)-cp\d+-(\w+)\.whl#sha256=([0-9a-f]{64})"
)
TORCH_HEADER = """\
# torch for the cpu flavor, every wheel that PyTorch publishes of it for Linux and macOS.
# Installed alone, without dependencies (lab.in names them): only this step knows PyTorch's index.
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
    lines.append(_update_torch_lock(folder / "torch-cpu.txt", steps))
    return lines


def _prepare_resolver(checkout: Checkout, steps: Steps) -> Path:
    """The resolver's program, in an environment of its own."""
    home = checkout.state_folder / "resolver"
    program = home / "bin" / "uv"
    with steps.step(f"getting {RESOLVER}"):
        for command in (
            [sys.executable, "-m", "venv", str(home)],
            [str(home / "bin" / "pip"), "install", "--quiet", RESOLVER],
        ):
            result = run_command(command, timeout_seconds=600)
            if not result.ok:
                raise EngineError(
                    f"cannot install {RESOLVER}: {result.message}",
                    cause="the package index does not answer, or has no build for this machine",
                    fix="make lock   # again, with a network",
                )
    return program


def _resolve(resolver: Path, folder: Path, name: str) -> None:
    command = [str(resolver), "pip", "compile", f"{name}.in", "-o", f"{name}.txt", "--quiet"]
    command += ["--universal", "--python-version", OLDEST_PYTHON, "--generate-hashes"]
    command += ["--no-header", "--no-annotate", "--no-emit-index-url", "--upgrade"]
    result = run_command(command, timeout_seconds=900, folder=folder)
    if not result.ok:
        raise EngineError(
            f"resolving {name}.in failed: {result.message}",
            cause="its requirements exclude each other, or the package index does not answer",
            fix=f"edit docker/locks/{name}.in, then: make lock",
        )


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


def _update_torch_lock(lock: Path, steps: Steps) -> str:
    """Renews torch's lock from PyTorch's index; where that is out of reach, keeps it."""
    with steps.step("reading PyTorch's index"):
        try:
            with urllib.request.urlopen(f"{CPU_BUILD.torch_index}/torch/", timeout=20) as answer:  # noqa: S310
                page = answer.read().decode("utf-8", "replace")
        except (urllib.error.URLError, OSError) as error:
            return f"torch-cpu: kept, as PyTorch's index does not answer ({error})"
    text = format_torch_lock(page, TORCH_VERSION)
    if text is None:
        return f"torch-cpu: kept, as PyTorch's index has no torch {TORCH_VERSION}"
    changed = not lock.exists() or lock.read_text(encoding="utf-8") != text
    lock.write_text(text, encoding="utf-8")
    return "torch-cpu: " + ("renewed" if changed else "unchanged")


def format_torch_lock(page: str, version: str) -> str | None:
    """The lock for torch ``version`` from its page on the index; None where it is not there."""
    linux, mac = set(), set()
    for found_version, local, python, platform, digest in WHEEL.findall(page):
        if found_version != version or int(python) < 310:
            continue
        if local == "cpu" and platform.endswith(("linux_2_28_x86_64", "linux_2_28_aarch64")):
            linux.add(digest)
        elif not local and platform.startswith("macosx"):
            mac.add(digest)
    if not linux:
        return None
    text = TORCH_HEADER + _format_pin(f'torch=={version}+cpu ; sys_platform == "linux"', linux)
    return text + (_format_pin(f'torch=={version} ; sys_platform == "darwin"', mac) if mac else "")


def _format_pin(pin: str, digests: Iterable[str]) -> str:
    hashes = [f"    --hash=sha256:{digest}" for digest in sorted(digests)]
    return " \\\n".join([pin, *hashes]) + "\n"
