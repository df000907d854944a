"""Whether a container sees the GPU, proven by one: settings alone have said yes and no wrongly.

Docker tells of an nvidia runtime where no GPU is, and of none where CDI passes the GPU on.
"""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass

from labkit.process import CommandResult, CommandRunner

TRIAL_SECONDS = 20.0
INSPECT_SECONDS = 10.0
PULL_SECONDS = 120.0
# What Docker and Podman have, in the order in which they are tried.
WAYS = {"docker": ("reservation", "cdi"), "podman": ("cdi",)}
NO_IMAGE = "no image to try it with"
# Held as the lab is: what a container with more rights sees proves nothing.
HARDENED = ("--cap-drop", "ALL", "--security-opt", "no-new-privileges", "--read-only")
# What the client says around its error: it looked for the image, pulled it, has a help page.
NOISE = ("Unable to find image", "See 'docker", "Run 'docker", "Status: ", "Digest: ")

# "GPU access blocked by the operating system" is no GPU.
LISTED = re.compile(r"GPU \d+: |MIG \S+ +Device ")


@dataclass(frozen=True)
class GpuAccessTest:
    """One throw-away container, started one ``way``: "reservation" (docker --gpus) or "cdi".

    ``seen`` are the lines of `nvidia-smi -L` from inside it, and ``problem`` the engine's own
    words where there are none.
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
    """The trials made with the engine ``client``, the last of which sees a GPU if any does.

    ``image`` is pulled where it is not here. ``gpus`` are "all", indices or UUIDs; ``user`` are
    the engine's own words for who the container runs as, such as ("--user", "1000:1000").
    """
    missing = _fetch_image(client, image, run)
    if missing:
        return (GpuAccessTest(WAYS[client][0], problem=missing),)
    trials: list[GpuAccessTest] = []
    for way in WAYS[client]:
        trials.append(_try_way(client, image, run, way, [*_ask_for(way, gpus), *user]))
        if trials[-1].seen:
            break
    return tuple(trials)


def find_image(client: str, images: Sequence[str], run: CommandRunner) -> str | None:
    """The first of ``images`` that the engine has here, or None."""
    return next((image for image in images if _has_image(client, image, run)), None)


def name_cdi_device(gpu: str) -> str:
    """What CDI calls a GPU: its index, UUID or "all", below the vendor's name."""
    return f"nvidia.com/gpu={gpu}"


def list_seen(answer: CommandResult) -> tuple[str, ...]:
    """The lines of `nvidia-smi -L` that name a GPU, or a part of one (MIG)."""
    lines = (line.strip() for line in answer.stdout.splitlines() if answer.ok)
    return tuple(line for line in lines if LISTED.match(line))


def _has_image(client: str, image: str, run: CommandRunner) -> bool:
    words = [client, "image", "inspect", "--format", "{{.Id}}", image]
    return run(words, timeout_seconds=INSPECT_SECONDS).ok


def _fetch_image(client: str, image: str, run: CommandRunner) -> str | None:
    """Pulls the image where it is not here; why it cannot be had, or None where it is."""
    if _has_image(client, image, run):
        return None
    answer = run([client, "pull", "--quiet", image], timeout_seconds=PULL_SECONDS)
    return None if answer.ok else f"{NO_IMAGE}: {_quote_engine(answer)}"


def _ask_for(way: str, gpus: Sequence[str]) -> list[str]:
    """The words of `run` that ask for the GPUs."""
    if way == "cdi":
        return [word for gpu in gpus for word in ("--device", name_cdi_device(gpu))]
    if tuple(gpus) == ("all",):
        return ["--gpus", "all"]
    # The client reads this word as a line of CSV, so the list needs quotes of its own.
    return ["--gpus", f'"device={",".join(gpus)}"']


def _try_way(
    client: str, image: str, run: CommandRunner, way: str, words: Sequence[str]
) -> GpuAccessTest:
    name = f"labkit-trial-{os.getpid()}-{way}"
    held = ["--rm", "--name", name, "--network", "none", *HARDENED]
    # Its own entrypoint: the lab's image has another, and would start a lab.
    command = [client, "run", *words, *held, "--entrypoint", "nvidia-smi", image, "-L"]
    answer = run(command, timeout_seconds=TRIAL_SECONDS)
    if answer.timed_out:  # the client is gone, and its container may not be
        run([client, "rm", "--force", name], timeout_seconds=INSPECT_SECONDS)
    seen = list_seen(answer)
    return GpuAccessTest(way, seen, None if seen else _quote_engine(answer))


def _quote_engine(answer: CommandResult) -> str:
    """What went wrong, in the engine's and nvidia-smi's own words, on one line."""
    if answer.missing or answer.timed_out:
        return answer.message
    lines = (line.strip() for line in (answer.stderr + "\n" + answer.stdout).splitlines())
    told = [line for line in lines if line and not line.startswith(NOISE)]
    error = next((place for place, line in enumerate(told) if "rror" in line), 0)
    return " ".join(told[error:]) or answer.message
