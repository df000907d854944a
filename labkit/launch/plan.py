"""From a host's facts to how the lab will run on it, and why."""

from __future__ import annotations

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

from labkit.errors import EngineError
from labkit.host.distribution import UNKNOWN, Distribution, read_distribution
from labkit.host.engine import EngineFacts, probe_engine
from labkit.host.gpu import GpuFacts, probe_gpu
from labkit.host.gpu_access import GpuAccessTest, find_image, probe_gpu_access
from labkit.host.machine import MachineFacts, read_folder, read_machine
from labkit.host.torch_builds import BUILDS, TorchBuild
from labkit.launch.build import find_build
from labkit.launch.compose import ContainerLab
from labkit.launch.flavor import Flavor, GpuHost, check_flavor, choose_flavor, prepare_trial
from labkit.launch.local import LocalLab
from labkit.launch.progress import Steps
from labkit.launch.runtime import (
    RUNTIMES,
    Choice,
    Identity,
    check_name,
    choose_identity,
    choose_runtime,
)
from labkit.launch.settings import Checkout, Settings
from labkit.process import CommandRunner, run_command

Lab = ContainerLab | LocalLab

BASE_IMAGE = "debian:bookworm-slim"


@dataclass(frozen=True)
class HostFacts:
    """Everything the choices are made from; ``trials`` are of the engine that will be taken."""

    machine: MachineFacts
    docker: EngineFacts
    podman: EngineFacts
    gpu: GpuFacts
    distribution: Distribution = UNKNOWN
    trials: tuple[GpuAccessTest, ...] = ()

    def engine(self, name: str) -> EngineFacts:
        """The facts of the engine of this name."""
        return self.docker if name == "docker" else self.podman

    def gpu_host(self, runtime: str) -> GpuHost:
        """What the flavor is chosen from, where the lab runs by ``runtime``."""
        engine = None if runtime == "local" else runtime
        return GpuHost(self.gpu, self.machine.architecture, self.distribution, engine, self.trials)


@dataclass(frozen=True)
class Plan:
    """How the lab will run, and why."""

    runtime: Choice[str]
    flavor: Choice[Flavor]
    lab: Lab
    port_asked: bool
    identity: Choice[Identity] | None = None


def check_settings(settings: Settings) -> None:
    """Raises UsageError for names that are none, before anything is asked of the host."""
    check_name("runtime", settings.runtime, RUNTIMES)
    check_flavor(settings)


def probe_host(
    checkout: Checkout,
    settings: Settings,
    steps: Steps,
    run: CommandRunner = run_command,
    root: Path = Path("/"),
    *,
    machine: MachineFacts | None = None,
) -> HostFacts:
    """The host's facts, its engines and driver asked side by side, and then a container tried.

    Raises UsageError for settings that no host could meet.
    """
    check_settings(settings)
    absent = EngineFacts("docker", client_found=False)
    names = [settings.runtime] if settings.runtime in ("docker", "podman") else []
    names = names or ([] if settings.runtime == "local" else ["docker", "podman"])
    with ThreadPoolExecutor() as pool:
        gpu = pool.submit(probe_gpu, run, root)
        engines = {name: pool.submit(probe_engine, name, run) for name in names}
        found = {name: future.result() for name, future in engines.items()}
        facts = HostFacts(
            machine or read_machine(),
            found.get("docker", absent),
            found.get("podman", absent),
            gpu.result(),
            read_distribution(root),
        )
    return replace(facts, trials=_try_passing(checkout, settings, facts, steps, run))


def _try_passing(
    checkout: Checkout, settings: Settings, facts: HostFacts, steps: Steps, run: CommandRunner
) -> tuple[GpuAccessTest, ...]:
    """The containers tried, where the lab would run in one and have a GPU."""
    try:
        runtime = _choose_runtime(settings, facts).value
    except EngineError:
        return ()  # the plan says why
    gpus = prepare_trial(settings, facts.gpu_host(runtime))
    if runtime == "local" or not gpus:
        return ()
    own = [os.environ.get("LABKIT_IMAGE"), *(f"labkit:{name}" for name in BUILDS)]
    base = os.environ.get("BASE_IMAGE") or BASE_IMAGE
    images = [name for name in (*own, base) if name]
    image = find_image(runtime, images, run) or base
    user = _word_identity(_choose_identity(checkout, facts, runtime).value)
    with steps.step("trying a container with the GPU"):  # a second; minutes where it must be pulled
        return probe_gpu_access(runtime, image, run, gpus=gpus, user=user)


def choose_image_build(
    settings: Settings, run: CommandRunner = run_command, root: Path = Path("/")
) -> TorchBuild:
    """The build of an image that is made here and not started: for this host's GPUs, if any.

    No engine is asked whether it passes them on.
    """
    host = GpuHost(probe_gpu(run, root), read_machine().architecture)
    return find_build(choose_flavor(settings, host, demand=False).value.build)


def make_plan(
    checkout: Checkout, settings: Settings, facts: HostFacts, *, demand: bool = True
) -> Plan:
    """The runtime and flavor for these facts. Raises where what was asked for cannot be had.

    Without ``demand`` a cuda lab needs no GPU: it is built or tested, and not started.
    """
    runtime = _choose_runtime(settings, facts)
    host = facts.gpu_host(runtime.value)
    flavor = choose_flavor(settings, host, demand=demand)
    port_asked = settings.port is not None
    if runtime.value == "local":
        return Plan(runtime, flavor, LocalLab(checkout, settings, flavor=flavor.value), port_asked)
    identity = _choose_identity(checkout, facts, runtime.value)
    lab = ContainerLab(checkout, runtime.value, flavor.value, settings, identity=identity.value)
    return Plan(runtime, flavor, lab, port_asked, identity)


def _choose_runtime(settings: Settings, facts: HostFacts) -> Choice[str]:
    return choose_runtime(
        settings.runtime, facts.docker, facts.podman, facts.distribution, facts.machine.system
    )


def _choose_identity(checkout: Checkout, facts: HostFacts, engine: str) -> Choice[Identity]:
    folder, root = read_folder(checkout.workspace), read_folder(checkout.root)
    return choose_identity(facts.machine, folder, facts.engine(engine), root)


def _word_identity(identity: Identity) -> Sequence[str]:
    """The engine's words for who a container runs as."""
    user = ["--user", f"{identity.user_id}:{identity.group_id}"]
    return [*user, *(["--userns", "keep-id"] if identity.keep_id else [])]


def announce_choices(plan: Plan, steps: Steps) -> None:
    """Says what was chosen and why, and warns of what the choice leaves out."""
    for name, value, choice in (
        ("runtime", plan.runtime.value, plan.runtime),
        ("flavor", plan.flavor.value.name, plan.flavor),
    ):
        steps.say(f"{name + ':':<9}{value} ({choice.reason})")
        if choice.warning:
            steps.say(f"  warning: {choice.warning}")
        if choice.fix:
            steps.say(f"    try: {choice.fix}")
        if choice.otherwise:
            steps.say(f"    else: {choice.otherwise}")
