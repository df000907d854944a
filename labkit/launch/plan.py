"""Plans how the lab runs on this host, and why: runtime, user, flavor, build and GPUs.

``probe_host`` gathers the facts; everything else here is a pure function of them.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Generic, TypeVar

from labkit.errors import DeviceMissingError, EngineError, LabkitError, UsageError
from labkit.host.distribution import UNKNOWN, Distribution, read_distribution
from labkit.host.engine import LEAVE_DESKTOP, EngineFacts, find_engine_obstacle, probe_engine
from labkit.host.gpu import (
    ALL_GPUS,
    GpuFacts,
    GpuSelection,
    describe_gpus,
    name_architecture,
    probe_gpu,
    read_major,
    select_gpus,
)
from labkit.host.gpu_access import NO_IMAGE, GpuAccessTest, find_image, probe_gpu_access
from labkit.host.machine import FolderFacts, MachineFacts, read_folder, read_machine
from labkit.host.packages import (
    CPU_LAB,
    GIVE_TO_LXC,
    INSTALL_TOOLKIT,
    Capability,
    DriverFix,
    adapt_command,
    advise_driver,
    choose_target,
    choose_toolkit_fix,
    find_last_branch,
)
from labkit.host.torch_builds import (
    BUILDS,
    CUDA_BUILDS,
    NEEDS,
    BuildChoice,
    BuildHost,
    TorchBuild,
    choose_build,
    find_build,
)
from labkit.known_errors.match import explain_text
from labkit.launch.compose import ContainerLab
from labkit.launch.local import LocalLab
from labkit.launch.progress import Steps
from labkit.launch.settings import CPU, RUNTIMES, Checkout, Flavor, Identity, Settings
from labkit.process import CommandRunner, run_command
from labkit.text import near_match

FLAVORS = ("cpu", "cuda")
# Aliases whose nearest match by spelling would be wrong, such as "cpu" for "gpu".
MEANT = {"gpu": "cuda"}
# The lab's user id if the host's user is root: the first ordinary user of most systems.
UNPRIVILEGED_ID = 1000
BASE_IMAGE = "debian:bookworm-slim"
VENV_LAB = "make up RUNTIME=local   # uses the GPU at once, from a .venv"

Lab = ContainerLab | LocalLab
T = TypeVar("T")


@dataclass(frozen=True)
class Choice(Generic[T]):
    """A chosen value, the reason, and a warning with its fix.

    ``otherwise`` is a command for a user who cannot type ``fix``.
    """

    value: T
    reason: str
    warning: str | None = None
    fix: str | None = None
    otherwise: str | None = None


class GpuAccessError(EngineError):
    """The engine can run the lab, but its containers see no GPU."""


@dataclass(frozen=True)
class HostFacts:
    """All facts that the choices depend on.

    ``folder`` and ``workspace`` are the checkout's. ``access_tests`` are the results of the test
    containers in the engine that will be chosen; empty if no GPU is needed. ``find_program`` is
    like ``shutil.which``: a fix names only programs that it finds.
    """

    machine: MachineFacts
    docker: EngineFacts
    podman: EngineFacts
    gpu: GpuFacts
    folder: FolderFacts
    workspace: FolderFacts
    distribution: Distribution = UNKNOWN
    access_tests: tuple[GpuAccessTest, ...] = ()
    find_program: Callable[[str], object] = str  # each is here

    def engine(self, name: str) -> EngineFacts:
        """The facts of the engine ``name``."""
        return self.docker if name == "docker" else self.podman

    def gpu_host(self, runtime: str) -> GpuHost:
        """The facts for the choice of the flavor if the lab runs by ``runtime``."""
        engine = None if runtime == "local" else runtime
        return GpuHost(
            self.gpu,
            self.machine.architecture,
            self.distribution,
            engine,
            self.access_tests,
            rootless_docker=engine == "docker" and bool(self.docker.rootless),
            snap_docker=engine == "docker" and self.docker.from_snap,
            desktop=engine == "docker" and self.docker.is_desktop and not self.gpu.wsl,
        )


@dataclass(frozen=True)
class GpuHost:
    """The facts for the choice of the flavor. ``engine`` is None for the local runtime."""

    facts: GpuFacts
    machine: str = "x86_64"
    distribution: Distribution = UNKNOWN
    engine: str | None = None
    access_tests: tuple[GpuAccessTest, ...] = ()
    rootless_docker: bool = False
    snap_docker: bool = False
    desktop: bool = False


@dataclass(frozen=True)
class Plan:
    """How the lab will run, and why."""

    runtime: Choice[str]
    flavor: Choice[Flavor]
    lab: Lab
    port_asked: bool
    identity: Choice[Identity] | None = None


def make_plan(
    checkout: Checkout, settings: Settings, facts: HostFacts, *, demand: bool = True
) -> Plan:
    """The runtime and flavor for these facts. Raises if a request by name cannot be met.

    Without ``demand`` a cuda lab needs no GPU: it is only built or tested, not started.
    """
    try:
        plan = _make_plan(checkout, settings, facts, demand=demand)
    except LabkitError as error:
        error.fix = _adapt(error.fix, facts)
        raise
    flavor = replace(plan.flavor, fix=_adapt(plan.flavor.fix, facts))
    return replace(plan, flavor=flavor)


def _adapt(fix: str | None, facts: HostFacts) -> str | None:
    return fix and adapt_command(fix, facts.distribution, facts.find_program)


def _make_plan(checkout: Checkout, settings: Settings, facts: HostFacts, *, demand: bool) -> Plan:
    runtime = _choose_runtime(settings, facts)
    flavor = choose_flavor(settings, facts.gpu_host(runtime.value), demand=demand)
    port_asked = settings.port is not None
    if runtime.value == "local":
        return Plan(runtime, flavor, LocalLab(checkout, settings, flavor=flavor.value), port_asked)
    identity = _choose_identity(facts, runtime.value)
    lab = ContainerLab(checkout, runtime.value, flavor.value, settings, identity=identity.value)
    return Plan(runtime, flavor, lab, port_asked, identity)


def announce_choices(plan: Plan, steps: Steps) -> None:
    """Prints what was chosen and why, with the warnings and their fixes."""
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


# The names that a user can give.


def check_settings(settings: Settings) -> None:
    """Raises UsageError for unknown names, and for CUDA or GPUS together with FLAVOR=cpu."""
    check_name("runtime", settings.runtime, RUNTIMES)
    check_name("flavor", settings.flavor, FLAVORS)
    check_name("CUDA build", settings.cuda, tuple(NEEDS), "CUDA")
    if settings.flavor == "cpu" and settings.asks_for_gpu:
        raise UsageError(
            f"{' '.join(_list_asked(settings)[1:])} conflicts with FLAVOR=cpu",
            cause="the cpu flavor uses no GPU",
            fix="unset LABKIT_CUDA LABKIT_GPUS; make up FLAVOR=cpu",
        )


def check_name(kind: str, asked: str, known: tuple[str, ...], variable: str = "") -> None:
    """Raises UsageError, with the nearest match, unless ``asked`` is "auto" or a known name.

    ``variable`` is its name for make, if that differs from ``kind``.
    """
    if asked in known or asked == "auto":
        return
    near = MEANT.get(asked.lower()) or near_match(asked.lower(), known)
    raise UsageError(
        f"unknown {kind} {asked!r}",
        cause=f"{kind} is one of: auto, {', '.join(known)}",
        fix=f"make up {variable or kind.upper()}={near or 'auto'}",
    )


def _list_asked(settings: Settings) -> Sequence[str]:
    """What the user asked for, as typed after `make up`."""
    asked = {
        "FLAVOR": settings.flavor,
        "CUDA": settings.cuda,
        "GPUS": ",".join(settings.gpus) or "auto",
    }
    return [f"{name}={value}" for name, value in asked.items() if value != "auto"]


# The facts.


def probe_host(
    checkout: Checkout,
    settings: Settings,
    steps: Steps,
    run: CommandRunner = run_command,
    root: Path = Path("/"),
    *,
    machine: MachineFacts | None = None,
    find_program: Callable[[str], object] = shutil.which,
) -> HostFacts:
    """The host's facts: probes engines and driver in parallel, then tries a container.

    Raises UsageError for settings that no host could meet.
    """
    check_settings(settings)
    names = [settings.runtime] if settings.runtime in ("docker", "podman") else []
    names = names or ([] if settings.runtime == "local" else ["docker", "podman"])
    with ThreadPoolExecutor() as pool:
        gpu = pool.submit(probe_gpu, run, root)
        asked = {name: pool.submit(probe_engine, name, run) for name in names}
        engines = {name: future.result() for name, future in asked.items()}
    facts = HostFacts(
        machine or read_machine(),
        engines.get("docker", EngineFacts("docker", client_found=False)),
        engines.get("podman", EngineFacts("podman", client_found=False)),
        gpu.result(),
        read_folder(checkout.root),
        read_folder(checkout.workspace),
        read_distribution(root),
        find_program=find_program,
    )
    return replace(facts, access_tests=_try_gpu_access(settings, facts, steps, run))


def _try_gpu_access(
    settings: Settings, facts: HostFacts, steps: Steps, run: CommandRunner
) -> tuple[GpuAccessTest, ...]:
    """Tries containers with the GPU; empty if the lab would use no container or no GPU."""
    try:
        runtime = _choose_runtime(settings, facts).value
    except EngineError:
        return ()  # make_plan says why
    gpus = () if runtime == "local" else list_gpus_to_try(settings, facts.gpu_host(runtime))
    if not gpus:
        return ()
    own = [os.environ.get("LABKIT_IMAGE"), *(f"labkit:{name}" for name in BUILDS)]
    base = os.environ.get("BASE_IMAGE") or BASE_IMAGE
    image = find_image(runtime, [name for name in (*own, base) if name], run) or base
    identity = _choose_identity(facts, runtime).value
    user = ["--user", f"{identity.user_id}:{identity.group_id}"]
    user += ["--userns", "keep-id"] if identity.keep_id else []
    with steps.step("trying a container with the GPU"):  # 1 s; minutes if it pulls
        return probe_gpu_access(runtime, image, run, gpus=gpus, user=user)


def list_gpus_to_try(settings: Settings, host: GpuHost) -> tuple[str, ...]:
    """The GPUs to try a container with; empty if the choice needs no test."""
    if settings.flavor == "cpu":
        return ()
    try:
        return _choose_gpus(settings, host)[0].words
    except LabkitError:
        return ()


# The runtime, and who the container runs as.


def _choose_runtime(settings: Settings, facts: HostFacts) -> Choice[str]:
    return choose_runtime(
        settings.runtime, facts.docker, facts.podman, facts.distribution, facts.machine.system
    )


def choose_runtime(
    asked: str,
    docker: EngineFacts,
    podman: EngineFacts,
    distribution: Distribution = UNKNOWN,
    system: str = "Linux",
) -> Choice[str]:
    """docker, podman or local: the requested one, else the first that can run the lab.

    Raises EngineError if the engine that was asked for by name cannot run it.
    """
    check_name("runtime", asked, RUNTIMES)
    if asked == "local":
        return Choice("local", "asked for by name")
    engines = {"docker": docker, "podman": podman}
    if asked in engines:
        obstacle = find_engine_obstacle(engines[asked], distribution, system)
        if obstacle:
            what = f"RUNTIME={asked} cannot run the lab"
            raise EngineError(what, cause=obstacle.reason, fix=obstacle.fix)
        return Choice(asked, f"asked for by name; {_describe_engine(engines[asked])}")
    obstacles = []
    for engine in (docker, podman):
        obstacle = find_engine_obstacle(engine, distribution, system)
        if obstacle is None:
            return Choice(engine.name, _describe_engine(engine))
        if engine.client_found:
            obstacles.append(obstacle)
    if not obstacles:
        return Choice("local", "no docker or podman command here")
    return Choice(
        "local",
        "; ".join(each.reason for each in obstacles),
        warning="to use the engine instead: " + "; or ".join(each.fix for each in obstacles),
    )


def _describe_engine(engine: EngineFacts) -> str:
    return (
        f"{engine.name.capitalize()} {engine.server_version} answers, "
        f"with Compose {engine.compose_version}"
    )


def _choose_identity(facts: HostFacts, engine: str) -> Choice[Identity]:
    return choose_identity(facts.machine, facts.workspace, facts.engine(engine), facts.folder)


def choose_identity(
    machine: MachineFacts, workspace: FolderFacts, engine: EngineFacts, checkout: FolderFacts
) -> Choice[Identity]:
    """The user of the container's process, so that the host's user owns the files it writes."""
    user, group = machine.user_id, machine.group_id
    if user is None or group is None:
        return Choice(Identity(UNPRIVILEGED_ID, UNPRIVILEGED_ID), "the host has no user ids")
    if engine.rootless and engine.name == "docker":
        return Choice(Identity(0, 0), "rootless Docker: the container's root is you")
    if user != 0:
        keep = engine.name == "podman" and bool(engine.rootless)
        return Choice(Identity(user, group, keep_id=keep), "your own user and group")
    if workspace.owner_id:
        owner_group = workspace.group_id or UNPRIVILEGED_ID
        return Choice(Identity(workspace.owner_id, owner_group), "the workspace's owner, not root")
    if checkout.owner_id:  # `sudo make up`: uid 1000 may be another person
        owner_group = checkout.group_id or UNPRIVILEGED_ID
        return Choice(
            Identity(checkout.owner_id, owner_group, owns_workspace=False),
            "you are root, so the checkout's owner, who is given the workspace",
        )
    return Choice(
        Identity(UNPRIVILEGED_ID, UNPRIVILEGED_ID, owns_workspace=False),
        "you are root, so an unprivileged user, who is given the workspace",
    )


# The flavor, with its build and GPUs.


def choose_flavor(settings: Settings, host: GpuHost, *, demand: bool = True) -> Choice[Flavor]:
    """The flavor that this host can run, or that was asked for.

    Raises if a flavor, build or GPU was asked for by name and is not available. Otherwise falls
    back to the cpu flavor, with the reason and the fix. Without ``demand`` (a build, the tests) a
    cuda lab needs no GPU.
    """
    check_settings(settings)
    if settings.flavor == "cpu":
        return Choice(CPU, "asked for by name")
    try:
        return _choose_cuda(settings, host)
    except LabkitError as error:
        by_name = settings.flavor == "cuda" or settings.cuda != "auto"
        if by_name and not demand and not settings.gpus:
            return _choose_without_gpu(settings, host, error)
        if by_name or settings.gpus:
            what = f"{' '.join(_list_asked(settings))}: {error.what}"
            raise type(error)(what, cause=error.cause, fix=error.fix) from error
        return _fall_back(host, error)


def choose_image_build(
    settings: Settings, run: CommandRunner = run_command, root: Path = Path("/")
) -> TorchBuild:
    """The torch build for an image that is built but not started: for this host's GPUs, if any.

    Does not test whether an engine passes the GPUs on.
    """
    host = GpuHost(probe_gpu(run, root), read_machine().architecture)
    return find_build(choose_flavor(settings, host, demand=False).value.build)


def _choose_cuda(settings: Settings, host: GpuHost) -> Choice[Flavor]:
    """The cuda flavor. Raises LabkitError with the cause and the fix if it is not available."""
    selection, build = _choose_gpus(settings, host)
    flavor = Flavor("cuda", build.name, selection.words)
    if host.engine is None:
        return Choice(flavor, build.reason, build.warning, build.fix)
    seen = next((test for test in host.access_tests if test.seen), None)
    if seen is None:
        raise _refuse_access(host)
    them = "them" if len(selection.gpus) > 1 else "it"
    by_cdi = " by CDI" if seen.way == "cdi" else ""
    reason = f"{build.reason}; a container saw {them}{by_cdi}"
    return Choice(replace(flavor, way=seen.way), reason, build.warning, build.fix)


def _choose_gpus(settings: Settings, host: GpuHost) -> tuple[GpuSelection, BuildChoice]:
    """The GPUs that the lab gets, and the build for them."""
    facts = host.facts
    if facts.dropped:
        raise _refuse_dropped(facts, facts.dropped, host.distribution)
    if not facts.present:
        what = "this host has no NVIDIA GPU that its driver knows"
        if facts.problem:
            raise DeviceMissingError(what, **_explain(facts.problem, host, CPU_LAB))
        if facts.withheld:
            cause = "this LXC container was not given its host's GPU"
            raise DeviceMissingError(what, cause=cause, fix=GIVE_TO_LXC)
        cause = "there is no nvidia-smi, and no nvidia kernel module is loaded"
        fix = CPU_LAB
        if facts.on_bus:
            target = choose_target(facts.on_bus) or facts.on_bus[0]
            cause += f"; a GPU is on the bus ({name_architecture(target)})"
            fix = advise_driver(host.distribution, target).command
        raise DeviceMissingError(what, cause=cause, fix=fix)
    if facts.problem:
        raise EngineError(
            f"the NVIDIA driver does not answer as it should ({facts.problem})",
            **_explain(facts.problem, host, "make doctor"),
        )
    selection = select_gpus(settings.gpus, facts)
    build_host = BuildHost(facts, selection.gpus, host.machine, host.distribution)
    by_name = settings.gpus not in ((), ALL_GPUS)
    build = choose_build(settings.cuda, build_host, all_asked=by_name)
    return selection.narrow(build.gpus), build


def _refuse_dropped(
    facts: GpuFacts, capability: Capability, distribution: Distribution
) -> EngineError:
    """The error that the driver is too new for the GPU: neither a reboot nor modprobe helps."""
    version = facts.driver_version or facts.installed
    last = find_last_branch(capability)
    advice = advise_driver(distribution, capability, wsl=facts.wsl, installed=read_major(version))
    return EngineError(
        f"driver {version} does not support this GPU",
        cause=f"{last} is the last branch for {name_architecture(capability)}",
        fix=advice.command,
    )


def _explain(problem: str, host: GpuHost, fix: str) -> dict[str, str]:
    """The cause and the fix of a known error; otherwise ``problem`` as the cause, and ``fix``."""
    kinds = {"rootless": host.rootless_docker, "snap": host.snap_docker}
    signs = {"lab", *(kind for kind, holds in kinds.items() if holds)}
    found = explain_text(problem, signs=signs).first
    if found is None:
        return {"cause": problem, "fix": fix}
    if found.error.fix == INSTALL_TOOLKIT:
        install = choose_toolkit_fix(host.engine or "docker", rootless=host.rootless_docker)
        return {"cause": found.error.cause, "fix": install.on(host.distribution)}
    works = bool(host.facts.gpus) and not host.facts.problem
    if works and isinstance(found.error.fix, DriverFix):  # another driver could break this one
        return {"cause": found.error.cause, "fix": found.error.otherwise or fix}
    known = [gpu.capability for gpu in host.facts.gpus if gpu.capability] or host.facts.on_bus
    command = found.error.fix.on(host.distribution, choose_target(known), wsl=host.facts.wsl)
    return {"cause": found.error.cause, "fix": command}


def _refuse_access(host: GpuHost) -> LabkitError:
    """The error that no container saw the GPU; quotes the first problem that is a known error."""
    name = str(host.engine).capitalize()
    problems = [test.problem for test in host.access_tests if test.problem]
    if host.desktop:
        cause = "Docker Desktop runs its containers in a virtual machine without a GPU"
        return GpuAccessError(f"{name} does not pass the GPU on", cause=cause, fix=LEAVE_DESKTOP)
    # Docker's CDI is off by default, so this error does not explain why the reservation failed.
    known = [text for text in problems if _name_error(text) not in (None, "docker-cdi-off")]
    problem = (known or problems or ["no container was tried"])[0]
    what = "could not be tried with the GPU" if problem.startswith(NO_IMAGE) else None
    return GpuAccessError(
        f"{name} {what or 'does not pass the GPU on'}",
        **_explain(problem, host, "make doctor"),
    )


def _name_error(text: str) -> str | None:
    found = explain_text(text, signs={"lab"}).first
    return found.error.name if found else None


def _choose_without_gpu(settings: Settings, host: GpuHost, error: LabkitError) -> Choice[Flavor]:
    """The cuda flavor on a host that has no GPU for it: it can be built, and tested in part."""
    try:
        build = _choose_gpus(settings, host)[1].name  # the build that its GPUs need
    except LabkitError:
        build = CUDA_BUILDS[0].name if settings.cuda == "auto" else settings.cuda
    reason = f"asked for by name; build {build}, without a GPU: {error.what}"
    return Choice(Flavor("cuda", build), reason)


def _fall_back(host: GpuHost, error: LabkitError) -> Choice[Flavor]:
    """The cpu flavor, with the reason why it is not cuda."""
    facts = host.facts
    if facts.dropped:
        return Choice(CPU, error.what, error.cause, error.fix)
    if not facts.present:
        without = "no NVIDIA driver on this host"
        if facts.withheld:
            without = "this LXC container was not given its host's GPU"
        reason = _quote_program(facts.problem) or without
        found = explain_text(facts.problem, signs={"lab"}).first if facts.problem else None
        # One that is only possible, such as a crash of any program, explains nothing.
        known = found is not None and found.error.certainty != "possible"
        unused = any(each >= (5, 0) for each in facts.on_bus)  # older ones run no build of torch
        tell = known or unused
        return Choice(CPU, reason, error.cause, error.fix) if tell else Choice(CPU, reason)
    here, are = describe_gpus(facts.gpus), "are" if len(facts.gpus) > 1 else "is"
    driver = f" (driver {facts.driver_version})" if facts.driver_version else ""
    return Choice(
        CPU,
        error.what,
        f"{here}{driver} {are} here but will not be used: {error.cause}",
        error.fix,
        VENV_LAB if isinstance(error, GpuAccessError) else None,
    )


def _quote_program(problem: str | None) -> str | None:
    """nvidia-smi's message, prefixed with its name if it lacks it."""
    named = problem is None or problem.lower().startswith("nvidia-smi")
    return problem if named else f"nvidia-smi says: {problem}"
