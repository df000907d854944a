"""`labkit hub`: JupyterHub for a class on this machine, with Docker; hub/ has its parts.

The hub's project and its network have fixed names: a machine has one hub.
"""

from __future__ import annotations

import os
import re
import secrets
import urllib.error
import urllib.request
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from labkit.errors import EngineError, TimedOutError
from labkit.host.engine import parse_object
from labkit.host.gpu import probe_gpu
from labkit.launch import image
from labkit.launch.compose import ContainerLab
from labkit.launch.plan import UNPRIVILEGED_ID, announce_choices, make_plan, probe_host
from labkit.launch.progress import StepLog, Steps
from labkit.launch.server import reachable_address, wait_until
from labkit.launch.settings import Checkout, Settings
from labkit.launch.state import prepare_state_folder, write_private
from labkit.process import CommandRunner, compose_environment, run_command, stream_command
from labkit.text import format_bytes

HUB_IMAGE = "labkit:hub"
DEFAULT_PORT = 8000
START_LIMIT_SECONDS = 120.0
READ_LIMIT_SECONDS = 300.0
INPUTS = (*image.LAB_INPUTS, "hub")
SOCKET = Path("/var/run/docker.sock")
NAME_PREFIX = "labkit-learner-"
CONTAINER_ID = re.compile(r"[0-9a-f]{64}")
WORK_VOLUME = re.compile(rf"{NAME_PREFIX}(.+)-work")
# DockerSpawner writes all but letters and digits of a name so: "-40" is an @.
ESCAPED = re.compile("(?:-[0-9a-f]{2})+")
# Prints each learner's progress, one line of JSON each. A learner's files are only read.
READ_ALL = (
    'for folder in /learners/*; do LABKIT_WORKSPACE="$folder" labkit progress --json'
    " | tr -d '\\n'; echo; done"
)


def start_hub(checkout: Checkout, settings: Settings, steps: Steps) -> str:
    """Builds the hub's images where needed, starts the hub, and returns its URL.

    Raises EngineError without Docker, or with the log of what failed; TimedOutError if the hub does
    not answer.
    """
    prepare_state_folder(checkout)
    plan = make_plan(checkout, settings, probe_host(checkout, settings, steps), demand=False)
    announce_choices(plan, steps)
    lab = plan.lab
    if not isinstance(lab, ContainerLab) or lab.client != "docker":
        raise EngineError(
            f"the hub cannot run by the runtime {plan.runtime.value}",
            cause="it starts a container for each learner through Docker's socket",
            fix="make hub RUNTIME=docker",
        )
    lab.prepare(steps)
    variables = compose_variables(checkout, lab, settings)
    _build(checkout, lab, variables, steps)
    with steps.step("starting JupyterHub"):
        _compose(checkout, ["up", "--detach", "--no-build"], variables, "make hub")
        url = f"http://{reachable_address(settings.bind)}:{settings.port or DEFAULT_PORT}"
        if not wait_until(lambda: _answers(url), timeout_seconds=START_LIMIT_SECONDS):
            raise TimedOutError(
                f"JupyterHub did not answer at {url} in {START_LIMIT_SECONDS:.0f} s",
                cause="its log says why",
                fix="docker logs labkit-hub-hub-1",
            )
    return url


def stop_hub(checkout: Checkout) -> None:
    """Stops the hub and the learners' servers; their volumes and accounts stay."""
    variables = _list_defaults(checkout)
    _compose(checkout, ["stop"], variables, "make hub STOP=1")
    words = ["docker", "ps", "--all", "--quiet", "--filter", f"name=^/{NAME_PREFIX}"]
    servers = run_command(words, timeout_seconds=30).stdout.split()
    for word in (["stop"], ["rm", "--force"]) if servers else ():
        run_command(["docker", *word, *servers], timeout_seconds=120)
    _compose(checkout, ["down"], variables, "make hub STOP=1")


def read_class(checkout: Checkout) -> list[tuple[str, dict[str, Any]]]:
    """Each learner's name and progress, as `labkit progress --json` prints it, from the volumes."""
    listed = run_command(
        ["docker", "volume", "ls", "--quiet", "--filter", f"name={NAME_PREFIX}"],
        timeout_seconds=30,
    )
    names = sorted(found[1] for found in map(WORK_VOLUME.fullmatch, listed.stdout.split()) if found)
    if not names:
        return []
    mounts = [
        word
        for name in names
        for word in ("--volume", f"{NAME_PREFIX}{name}-work:/learners/{name}:ro")
    ]
    hardened = ["--network", "none", "--cap-drop", "ALL", "--read-only", "--tmpfs", "/tmp"]  # noqa: S108
    answer = run_command(
        ["docker", "run", "--rm", *hardened, *mounts, HUB_IMAGE, "sh", "-c", READ_ALL],
        timeout_seconds=READ_LIMIT_SECONDS,
    )
    if not answer.ok:
        raise EngineError(
            f"cannot read the learners' progress: {answer.message}",
            cause="the hub's image is missing, or the engine does not answer",
            fix="make hub",
        )
    lines = answer.stdout.splitlines()
    shown = map(read_name, names)
    return [(name, parse_object(line)) for name, line in zip(shown, lines, strict=False)]


def read_name(escaped: str) -> str:
    """The learner's name, as it stands in the names of containers and volumes.

    >>> read_name("ada-40uni-2eexample")
    'ada@uni.example'
    """
    return ESCAPED.sub(
        lambda found: bytes.fromhex(found[0].replace("-", "")).decode("utf-8", "replace"), escaped
    )


@dataclass(frozen=True)
class LearnerUsage:
    """What a learner's running container holds, in bytes; None is unknown.

    ``gpus`` has an entry for each GPU, by its index, that one of the container's processes uses.
    ``name`` is None for the processes on GPUs that belong to no learner; ``memory`` too then.
    """

    name: str | None
    memory: str | None
    gpus: dict[int, int | None] = field(default_factory=dict)

    def describe(self) -> dict[str, Any]:
        """The usage as a JSON object."""
        gpus = [{"index": index, "used_bytes": used} for index, used in self.gpus.items()]
        return {"name": self.name, "memory": self.memory, "gpus": gpus}


def read_usage(run: CommandRunner, root: Path = Path("/")) -> list[LearnerUsage]:
    """What each learner's running container holds, of the machine's memory and of its GPUs'.

    The engine tells the first, nvidia-smi the second: it lists processes, whose containers stand in
    /proc/PID/cgroup. Raises EngineError if Docker does not answer.
    """
    words = ["docker", "ps", "--no-trunc", "--filter", f"name=^/{NAME_PREFIX}"]
    listed = run([*words, "--format", "{{.ID}} {{.Names}}"], timeout_seconds=30)
    if not listed.ok:
        raise EngineError(
            f"cannot list the learners' containers: {listed.message}",
            cause="the engine does not answer",
            fix="make doctor",
        )
    names = dict(line.split(" ", 1) for line in listed.stdout.splitlines() if " " in line)
    memory = _read_container_memory(run, list(names)) if names else {}
    gpus = _read_gpu_holders(run, root)
    found = [
        LearnerUsage(read_name(name.removeprefix(NAME_PREFIX)), memory.get(key), gpus.pop(key, {}))
        for key, name in sorted(names.items(), key=lambda item: item[1])
    ]
    others = [item for held in gpus.values() for item in held.items()]
    rest = {
        index: None if any(used is None for used in parts) else sum(filter(None, parts))
        for index in sorted({index for index, _ in others})
        if (parts := [used for number, used in others if number == index])
    }
    return [*found, LearnerUsage(None, None, rest)] if rest else found


def _read_container_memory(run: CommandRunner, containers: Sequence[str]) -> dict[str, str]:
    """Each container's memory as `docker stats` prints it, such as "350.2MiB / 2GiB"."""
    words = ["docker", "stats", "--no-stream", "--no-trunc", "--format", "{{.ID}} {{.MemUsage}}"]
    said = run([*words, *containers], timeout_seconds=60)
    return dict(line.split(" ", 1) for line in said.stdout.splitlines() if " " in line)


def _read_gpu_holders(run: CommandRunner, root: Path) -> dict[str | None, dict[int, int | None]]:
    """By container: what its processes hold of each GPU; an unknown part makes the sum unknown.

    None stands for the processes that are in no container.
    """
    indices = {gpu.uuid: gpu.index for gpu in probe_gpu(run, root).gpus}
    if not indices:
        return {}
    query = "--query-compute-apps=pid,gpu_uuid,used_memory"
    words = ["nvidia-smi", query, "--format=csv,noheader,nounits"]
    found: dict[str | None, dict[int, int | None]] = {}
    for line in run(words, timeout_seconds=30).stdout.splitlines():
        pid, uuid, used = ([word.strip() for word in line.split(",")] + ["", ""])[:3]
        if not pid.isdecimal() or uuid not in indices:
            continue
        container = _find_container(root / "proc" / pid / "cgroup")
        held = found.setdefault(container, {})
        before = held.get(indices[uuid], 0)
        known = before is not None and used.isdecimal()
        held[indices[uuid]] = (before or 0) + int(used) * 2**20 if known else None
    return found


def _find_container(cgroup: Path) -> str | None:
    """The container that a process runs in, by its control group; None if in none."""
    try:
        found = CONTAINER_ID.findall(cgroup.read_text(encoding="ascii", errors="replace"))
    except OSError:  # the process has ended
        return None
    return found[-1] if found else None


def describe_usage(learners: Sequence[LearnerUsage]) -> list[str]:
    """A table of what each learner's container holds.

    >>> for line in describe_usage([LearnerUsage("ada", "350MiB / 2GiB", {0: 2**30})]): print(line)
    learner   memory         GPU memory
    ada       350MiB / 2GiB  GPU 0: 1.0 GiB
    """
    if not learners:
        return ["no learner's server is running"]
    rows = [("learner", "memory", "GPU memory")]
    for learner in learners:
        held = [f"GPU {index}: {format_bytes(used)}" for index, used in learner.gpus.items()]
        name, memory = learner.name or "no learner", learner.memory or "unknown"
        rows.append((name, memory if learner.name else "", ", ".join(held) or "none"))
    widths = [max(len(row[column]) for row in rows) for column in (0, 1)]
    return [
        f"{name:{max(widths[0], 8)}}  {memory:{widths[1]}}  {gpus}" for name, memory, gpus in rows
    ]


def _answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(f"{url}/hub/health", timeout=5) as answer:  # noqa: S310
            return bool(answer.status == 200)
    except (OSError, urllib.error.URLError):
        return False


def compose_variables(checkout: Checkout, lab: ContainerLab, settings: Settings) -> dict[str, str]:
    """The variables that hub/compose.yaml reads. Creates the token of hub and proxy if missing."""
    user = os.getuid() or UNPRIVILEGED_ID
    token = checkout.state_folder / "hub-token"
    if not token.exists():
        write_private(token, secrets.token_hex(32) + "\n")
    if os.getuid() == 0:
        os.chown(token, user, user)
    return {
        **_list_defaults(checkout),
        "HUB_USER": f"{user}:{os.getgid() or user}",
        "HUB_SOCKET_GROUP": str(SOCKET.stat().st_gid),
        "HUB_LAB_IMAGE": lab.image,
        "HUB_PORT": str(settings.port or DEFAULT_PORT),
        "HUB_BIND": settings.bind,
    }


def _list_defaults(checkout: Checkout) -> dict[str, str]:
    token = str(checkout.state_folder / "hub-token")
    return {**compose_environment(), "HUB_TOKEN_FILE": token, "HUB_IMAGE": HUB_IMAGE}


def _build(
    checkout: Checkout, lab: ContainerLab, variables: Mapping[str, str], steps: Steps
) -> None:
    """Builds the images of hub and proxy, unless they are from the same inputs and flavor."""
    digest = f"{image.digest_inputs(checkout, INPUTS)}-{lab.flavor.build}"
    if image.read_image_digest("docker", HUB_IMAGE) == digest:
        return
    image.run_build(
        steps,
        "building the hub's images",
        "docker",
        _compose_command(checkout, ["build", "proxy", "hub"]),
        {**variables, **image.build_variables(checkout, digest)},
        flavor=lab.flavor.name,
        log_path=checkout.logs_folder / "build-hub.log",
        fix="make hub",
    )


def _compose_command(checkout: Checkout, words: Sequence[str]) -> list[str]:
    file = str(checkout.root / "hub" / "compose.yaml")
    return ["docker", "compose", "--project-name", "labkit-hub", "--file", file, *words]


def _compose(
    checkout: Checkout, words: Sequence[str], variables: Mapping[str, str], fix: str
) -> None:
    with StepLog(checkout.logs_folder / "hub.log") as log:
        result = stream_command(
            _compose_command(checkout, words),
            timeout_seconds=START_LIMIT_SECONDS,
            on_line=log.write,
            environment=variables,
        )
        if result.missing or result.timed_out:
            log.write(result.message)
        if not result.ok:
            raise log.failure(f"Compose could not {words[0]} the hub", fix)


def describe_class(learners: Sequence[tuple[str, Mapping[str, Any]]]) -> list[str]:
    """A table of the learners: how many exercises of each lab they have passed.

    >>> lab = {"lab": "tensors", "passed": 1, "total": 5}
    >>> print("\\n".join(describe_class([("ada", {"labs": [lab]})])))
    learner    tensors
    ada            1/5
    """
    names = dict.fromkeys(lab["lab"] for _, said in learners for lab in said.get("labs", ()))
    width = max([9, *(len(name) for name, _ in learners)]) + 1
    lines = ["learner".ljust(width) + "".join(f" {name:>7}" for name in names)]
    for learner, said in learners:
        done = {lab["lab"]: f"{lab['passed']}/{lab['total']}" for lab in said.get("labs", ())}
        cells = [done.get(name, "unknown").rjust(max(7, len(name))) for name in names]
        lines.append(learner.ljust(width) + "".join(f" {cell}" for cell in cells))
    return lines
