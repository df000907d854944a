"""The lab's image: its inputs, whether the local image is current, and its build."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

from labkit import __version__
from labkit.launch.certificates import build_certificate, build_proxies, keep_fingerprint
from labkit.launch.progress import StepLog, Steps
from labkit.launch.settings import Checkout
from labkit.process import run_command, stream_command

# The inputs of the images; .dockerignore excludes nearly everything else.
LAB_INPUTS: tuple[str, ...] = ("docker", "labkit", "labs", "pyproject.toml", ".dockerignore")
TEST_INPUTS = (
    *LAB_INPUTS,
    *("tests", "compose.yaml", "Makefile", "docs", "hub", ".ci", ".gitignore"),
    *("README.md", "CHANGELOG.md", "CONTRIBUTING.md", "SECURITY.md", "LICENSE"),
)
BUILD_LIMIT_SECONDS = 3 * 3600.0
IGNORED = {"__pycache__", ".ipynb_checkpoints"}
# Settings that change a build's result. TORCH_INDEX does not: every file must have its hash.
BUILD_VARIABLES = ("BASE_IMAGE",)

# BuildKit: "#12 [python 3/5] RUN ...", under Compose "#12 [cpu python 3/5] RUN ..."; classic
# Docker and Podman: "STEP 3/9: RUN ...".
BUILD_STEP = re.compile(
    r"^(?:#\d+ \[(?:\S+ )?(\S+) +(\d+)/(\d+)\]|(?:\[\S+\] )?STEP (\d+)/(\d+):) (.*)"
)
PIP_LINE = re.compile(r"(?:^|\s)(Collecting|Downloading|Installing collected) ?(\S*)")


def digest_inputs(checkout: Checkout, inputs: tuple[str, ...] = LAB_INPUTS) -> str:
    """The fingerprint of all files and settings that go into an image, 16 hexadecimal digits."""
    digest = hashlib.sha256()
    for path in sorted(_walk_inputs(checkout.root, inputs)):
        digest.update(f"{path.relative_to(checkout.root)}\0".encode())
        digest.update(b"x" if os.access(path, os.X_OK) else b"-")
        digest.update(path.read_bytes() + b"\0")
    for name in BUILD_VARIABLES:
        digest.update(f"{name}={os.environ.get(name, '')}\0".encode())
    digest.update(f"LABKIT_KEPT_CA={keep_fingerprint()}\0".encode())
    return digest.hexdigest()[:16]


def _walk_inputs(root: Path, inputs: tuple[str, ...]) -> Iterator[Path]:
    for name in inputs:
        path = root / name
        found = path.rglob("*") if path.is_dir() else [path]
        for file in found:
            if file.is_file() and IGNORED.isdisjoint(file.parts) and file.suffix != ".pyc":
                yield file


def read_image_digest(client: str, image: str) -> str | None:
    """The fingerprint of the inputs that the image was built from, or None without the image."""
    label = '{{index .Config.Labels "io.labkit.inputs"}}'
    answer = run_command([client, "image", "inspect", "--format", label, image], timeout_seconds=20)
    return answer.stdout.strip() or None if answer.ok else None


def build_variables(checkout: Checkout, digest: str) -> dict[str, str]:
    """The variables of compose.yaml's build: labels, proxies and the network's certificate."""
    commit_time = _ask_git(checkout, "log", "-1", "--format=%ct")
    return {
        "LABKIT_VERSION": __version__,
        "LABKIT_REVISION": read_revision(checkout) or "unknown",
        "LABKIT_INPUTS": digest,
        # One line per event: the progress is parsed from them.
        "BUILDKIT_PROGRESS": "plain",
        # The image's time is its commit's time, so that builds are reproducible.
        **({"SOURCE_DATE_EPOCH": commit_time} if commit_time else {}),
        **build_certificate(),
        **build_proxies(),
    }


def read_revision(checkout: Checkout) -> str | None:
    """The checkout's git commit, with "-changed" if files differ from it; None outside git."""
    return _ask_git(
        checkout, "describe", "--always", "--exclude=*", "--abbrev=12", "--dirty=-changed"
    )


def _ask_git(checkout: Checkout, *words: str) -> str | None:
    answer = run_command(["git", "-C", str(checkout.root), *words], timeout_seconds=10)
    return answer.stdout.strip() or None if answer.ok else None


def run_build(
    steps: Steps,
    what: str,
    client: str,
    command: Sequence[str],
    environment: Mapping[str, str],
    *,
    flavor: str,
    log_path: Path,
    fix: str,
    why: str = "",
) -> None:
    """Runs a build and shows its progress; then removes the former image of the same name.

    Raises EngineError with the log's last lines; ``fix`` is its command if the cause is unknown.
    """
    with steps.step(f"{what} ({why})" if why else what) as step:
        with StepLog(log_path, follow_build(step.note)) as log:
            result = stream_command(
                command,
                timeout_seconds=BUILD_LIMIT_SECONDS,
                on_line=log.write,
                environment=environment,
            )
            if result.missing or result.timed_out:
                log.write(result.message)
        if not result.ok:
            raise log.failure(f"{what} failed", fix)
    # The former images have no name now and occupy gigabytes.
    label = f"label=io.labkit.flavor={flavor}"
    run_command([client, "image", "prune", "--force", "--filter", label], timeout_seconds=60)


def follow_build(note: Callable[[str], None]) -> Callable[[str], None]:
    """A callback for build output; it calls ``note`` with a short progress text."""
    current = ""
    packages = 0

    def read_line(line: str) -> None:
        nonlocal current, packages
        step = BUILD_STEP.match(line)
        if step:
            current, packages = _name_build_step(step), 0
            note(current)
            return
        found = PIP_LINE.search(line)
        if found and found.group(1) == "Collecting":
            packages += 1
            note(f"{current} - package {packages}, {found.group(2).split('==')[0]}")

    return read_line


def _name_build_step(step: re.Match[str]) -> str:
    stage, number, count, classic, classic_count, text = step.groups()
    words = " ".join(text.split())
    words = re.sub(r"--mount=\S+ ?|(?<= )/steps/reach-network\.sh ", "", words)
    place = f"step {number or classic} of {count or classic_count}"
    return f"{stage + ' ' if stage else ''}{place}: {words[:60]}"
