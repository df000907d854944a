"""cpu or cuda, and with which build, GPUs and way: from the driver to a container that saw them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from labkit.errors import DeviceMissingError, EngineError, LabkitError, UsageError
from labkit.host.distribution import UNKNOWN, Distribution
from labkit.host.gpu import GpuFacts
from labkit.host.gpu_access import NO_IMAGE, GpuAccessTest
from labkit.known_errors.match import explain_text
from labkit.launch.build import (
    CHOOSE_BUILD_BUILDS,
    CPU_LAB,
    DEFAULT_BUILD,
    BuildHost,
    choose_build,
    describe_gpus,
    find_served,
)
from labkit.launch.gpu import ALL_GPUS, GpuSelection, select_gpus
from labkit.launch.runtime import Choice, check_name
from labkit.launch.settings import Settings

FLAVORS = ("cpu", "cuda")
VENV_LAB = "make up RUNTIME=local   # uses the GPU at once, from a .venv"
ENGINES = {"docker": "Docker", "podman": "Podman"}


@dataclass(frozen=True)
class Flavor:
    """A flavor and what it comes with: torch's build, the GPUs by the engine's words, the way in.

    ``gpus`` is empty where the lab has none; ``way`` is "reservation" or "cdi" in a container.
    """

    name: str
    build: str
    gpus: tuple[str, ...] = ()
    way: str | None = None


CPU = Flavor("cpu", "cpu")


class GpuAccessError(EngineError):
    """The engine runs labs, and their containers see no GPU."""


@dataclass(frozen=True)
class GpuHost:
    """What the flavor is chosen from. ``engine`` is None for the local runtime.

    ``trials`` are the containers that were tried, none where none had to be.
    """

    facts: GpuFacts
    machine: str = "x86_64"
    distribution: Distribution = UNKNOWN
    engine: str | None = None
    trials: tuple[GpuAccessTest, ...] = ()


def check_flavor(settings: Settings) -> None:
    """Raises UsageError for names that are none, and for CUDA or GPUS in a lab for the CPU."""
    check_name("flavor", settings.flavor, FLAVORS)
    check_name("CUDA build", settings.cuda, CHOOSE_BUILD_BUILDS, "CUDA")
    if settings.flavor == "cpu" and settings.asks_for_gpu:
        raise UsageError(
            f"FLAVOR=cpu has no use for {' '.join(_list_asked(settings)[1:])}",
            cause="the cpu flavor uses no GPU",
            fix="unset LABKIT_CUDA LABKIT_GPUS; make up FLAVOR=cpu",
        )


def choose_flavor(settings: Settings, host: GpuHost, *, demand: bool = True) -> Choice[Flavor]:
    """The flavor that this host can run, or that was asked for.

    What was asked for by name and cannot be had raises; left to the launcher, the cpu flavor
    takes its place, with the reason and the way out. Without ``demand`` (a build, the tests) a
    cuda lab needs no GPU.
    """
    check_flavor(settings)
    if settings.flavor == "cpu":
        return Choice(CPU, "asked for by name")
    try:
        return _choose_cuda(settings, host)
    except LabkitError as error:
        by_name = settings.flavor == "cuda" or settings.cuda != "auto"
        if by_name and not demand and not settings.gpus:
            return _choose_idle(settings, host, error)
        if by_name or settings.gpus:
            raise _name_asked(settings, error) from error
        return _fall_back(host, error)


def prepare_trial(settings: Settings, host: GpuHost) -> tuple[str, ...]:
    """The GPUs to try a container with; empty where the choice is made without one."""
    if settings.flavor == "cpu":
        return ()
    try:
        return _choose_gpus(settings, host)[0].words
    except LabkitError:
        return ()


def _choose_cuda(settings: Settings, host: GpuHost) -> Choice[Flavor]:
    """The cuda flavor. Raises LabkitError with the cause and the fix where it cannot be had."""
    selection, build = _choose_gpus(settings, host)
    flavor = Flavor("cuda", build.value, selection.words)
    if host.engine is None:
        return Choice(flavor, build.reason, build.warning, build.fix)
    seen = next((trial for trial in host.trials if trial.seen), None)
    if seen is None:
        raise _refuse_passing(host)
    flavor = Flavor("cuda", build.value, selection.words, seen.way)
    by_cdi = " by CDI" if seen.way == "cdi" else ""
    them = "them" if len(selection.gpus) > 1 else "it"
    reason = f"{build.reason}; a container saw {them}{by_cdi}"
    return Choice(flavor, reason, build.warning, build.fix)


def _choose_gpus(settings: Settings, host: GpuHost) -> tuple[GpuSelection, Choice[str]]:
    """The GPUs that the lab gets, and the build for them."""
    facts = host.facts
    if not facts.present:
        raise DeviceMissingError(
            "this host has no NVIDIA GPU that its driver knows", **_explain_absence(host)
        )
    if facts.problem:
        raise EngineError(
            f"the NVIDIA driver does not answer as it should ({facts.problem})",
            **_explain(facts.problem, host.distribution, "make doctor"),
        )
    selection = select_gpus(settings.gpus, facts)
    build_host = BuildHost(facts, selection.gpus, host.machine, host.distribution)
    by_name = settings.gpus not in ((), ALL_GPUS)
    build = choose_build(settings.cuda, build_host, all_asked=by_name)
    return selection.narrow(find_served(build.value, selection.gpus, host.machine)), build


def _explain_absence(host: GpuHost) -> dict[str, str]:
    problem = host.facts.problem
    if problem is None:
        cause = "nvidia-smi is not here and no nvidia kernel module is loaded"
        return {"cause": cause, "fix": CPU_LAB}
    return _explain(problem, host.distribution, CPU_LAB)


def _explain(problem: str, distribution: Distribution, fix: str) -> dict[str, str]:
    """The cause and the fix of a problem that the doctor knows; else the problem itself."""
    found = explain_text(problem).first
    if found is None:
        return {"cause": problem, "fix": fix}
    return {"cause": found.error.cause, "fix": found.error.fix.on(distribution)}


def _refuse_passing(host: GpuHost) -> LabkitError:
    """Why no container saw the GPU: the first trial that the doctor knows the trouble of."""
    name = ENGINES.get(host.engine or "", host.engine)
    problems = [trial.problem for trial in host.trials if trial.problem]
    # A docker whose CDI is off, as it is by default, tells nothing of what its first way met.
    known = [text for text in problems if _name_known_error(text) not in (None, "docker-cdi-off")]
    told = (known or problems or ["no container was tried"])[0]
    untried = told.startswith(NO_IMAGE)
    return GpuAccessError(
        f"{name} could not be tried with the GPU"
        if untried
        else f"{name} does not pass the GPU on",
        **_explain(told, host.distribution, "make doctor"),
    )


def _name_known_error(text: str) -> str | None:
    found = explain_text(text).first
    return found.error.name if found else None


def _choose_idle(settings: Settings, host: GpuHost, error: LabkitError) -> Choice[Flavor]:
    """The cuda flavor on a host that has no GPU for it: built and tested as far as that goes."""
    try:
        build = _choose_gpus(settings, host)[1].value  # what it will need once the engine is set up
    except LabkitError:
        build = DEFAULT_BUILD if settings.cuda == "auto" else settings.cuda
    return Choice(
        Flavor("cuda", build), f"asked for by name; build {build}, without a GPU: {error.what}"
    )


def _fall_back(host: GpuHost, error: LabkitError) -> Choice[Flavor]:
    facts = host.facts
    if not facts.present:
        reason = _quote_program(facts.problem) or "no NVIDIA driver on this host"
        known = facts.problem and explain_text(facts.problem).first
        return Choice(CPU, reason, error.cause, error.fix) if known else Choice(CPU, reason)
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
    """nvidia-smi's words, with whose they are where they do not say so."""
    named = problem is None or problem.lower().startswith("nvidia-smi")
    return problem if named else f"nvidia-smi says: {problem}"


def _name_asked(settings: Settings, error: LabkitError) -> LabkitError:
    """The error, of the same kind, with what was asked for in front of it."""
    asked = " ".join(_list_asked(settings))
    return type(error)(f"{asked}: {error.what}", cause=error.cause, fix=error.fix)


def _list_asked(settings: Settings) -> Sequence[str]:
    """What was asked for, as it is typed after `make up`."""
    asked = {
        "FLAVOR": settings.flavor,
        "CUDA": settings.cuda,
        "GPUS": ",".join(settings.gpus) or "auto",
    }
    return [f"{name}={value}" for name, value in asked.items() if value != "auto"]
