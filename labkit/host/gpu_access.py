"""Tests in a container whether it sees the GPU, because settings do not prove it.

Docker can list an nvidia runtime without a GPU, and lists none if CDI passes the GPU on.
"""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass

from labkit.process import CommandResult, CommandRunner
from labkit.text import escape_controls

TEST_SECONDS = 20.0
INSPECT_SECONDS = 10.0
PULL_SECONDS = 120.0
# The ways of Docker and Podman to pass a GPU on, in the order of the tests.
WAYS = {"docker": ("reservation", "cdi"), "podman": ("cdi",)}
NO_IMAGE = "no image to try it with"
# The same restrictions as the lab's container: a test with more rights would prove nothing.
HARDENED = ("--cap-drop", "ALL", "--security-opt", "no-new-privileges", "--read-only")
# Lines that the client prints around its error: image search, download, help page.
NOISE = ("Unable to find image", "See 'docker", "Run 'docker", "Status: ", "Digest: ")

# nvidia-smi also prints "GPU access blocked by the operating system".
LISTED = re.compile(r"GPU \d+: |MIG \S+ +Device ")


@dataclass(frozen=True)
class GpuAccessTest:
    """The test of one ``way`` to pass the GPU on: "reservation" (docker --gpus) or "cdi".

    ``seen`` are the lines of `nvidia-smi -L` in the container; if empty, ``problem`` quotes the
    engine.
    """

    way: str
    seen: tuple[str, ...] = ()
    problem: str | None = None


def probe_gpu_access(
    client: str,
    image: str,
    run: CommandRunner,
    *,
    gpus: Sequence[str] = ("all",),
    user: Sequence[str] = (),
) -> tuple[GpuAccessTest, ...]:
    """Tries each way of the engine ``client`` until a container sees a GPU; returns all tests.

    ``image`` is pulled if the engine lacks it. ``gpus`` are "all", indices or UUIDs; ``user`` has
    the engine's options for the container's user, such as ("--user", "1000:1000").
    """
    missing = _fetch_image(client, image, run)
    if missing:
        return (GpuAccessTest(WAYS[client][0], problem=missing),)
    tests: list[GpuAccessTest] = []
    for way in WAYS[client]:
        tests.append(_try_way(client, image, run, way, [*_ask_for(way, gpus), *user]))
        if tests[-1].seen:
            break
    return tuple(tests)


def find_image(client: str, images: Sequence[str], run: CommandRunner) -> str | None:
    """The first of ``images`` that the engine has here, or None."""
    return next((image for image in images if _has_image(client, image, run)), None)


def name_cdi_device(gpu: str) -> str:
    """The CDI name of a GPU by its index or UUID, or of "all".

    >>> name_cdi_device("0")
    'nvidia.com/gpu=0'
    """
    return f"nvidia.com/gpu={gpu}"


def list_seen(answer: CommandResult) -> tuple[str, ...]:
    """The lines of `nvidia-smi -L` that name a GPU or a MIG instance."""
    lines = (line.strip() for line in answer.stdout.splitlines() if answer.ok)
    return tuple(line for line in lines if LISTED.match(line))


def _has_image(client: str, image: str, run: CommandRunner) -> bool:
    words = [client, "image", "inspect", "--format", "{{.Id}}", image]
    return run(words, timeout_seconds=INSPECT_SECONDS).ok


def _fetch_image(client: str, image: str, run: CommandRunner) -> str | None:
    """Pulls the image if the engine lacks it; returns the problem, or None."""
    if _has_image(client, image, run):
        return None
    answer = run([client, "pull", "--quiet", image], timeout_seconds=PULL_SECONDS)
    return None if answer.ok else f"{NO_IMAGE}: {_quote_engine(answer)}"


def _ask_for(way: str, gpus: Sequence[str]) -> list[str]:
    """The options of `run` that ask for the GPUs."""
    if way == "cdi":
        return [word for gpu in gpus for word in ("--device", name_cdi_device(gpu))]
    if tuple(gpus) == ("all",):
        return ["--gpus", "all"]
    # The client parses this as a line of CSV, so the list needs its own quotes.
    return ["--gpus", f'"device={",".join(gpus)}"']


def _try_way(
    client: str, image: str, run: CommandRunner, way: str, words: Sequence[str]
) -> GpuAccessTest:
    name = f"labkit-gpu-test-{os.getpid()}-{way}"
    held = ["--rm", "--name", name, "--network", "none", *HARDENED]
    # The lab's image has an entrypoint that would start a lab.
    command = [client, "run", *words, *held, "--entrypoint", "nvidia-smi", image, "-L"]
    answer = run(command, timeout_seconds=TEST_SECONDS)
    if answer.timed_out:  # the client was killed; its container may still run
        run([client, "rm", "--force", name], timeout_seconds=INSPECT_SECONDS)
    seen = list_seen(answer)
    return GpuAccessTest(way, seen, None if seen else _quote_engine(answer))


def _quote_engine(answer: CommandResult) -> str:
    """The engine's and nvidia-smi's error on one line, safe for a terminal."""
    if answer.missing or answer.timed_out:
        return answer.message
    lines = (line.strip() for line in (answer.stderr + "\n" + answer.stdout).splitlines())
    said = [line for line in lines if line and not line.startswith(NOISE)]
    error = next((place for place, line in enumerate(said) if "rror" in line), 0)
    return escape_controls(" ".join(said[error:]) or answer.message)
