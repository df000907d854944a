"""Does a container see the GPU? Proven by one: settings alone have said yes and no wrongly."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from labkit.commands import CommandResult
from labkit.doctor.check import Check, Finding, failed, ok, unknown
from labkit.doctor.checks.engine_client import probe_pair
from labkit.doctor.distribution import Distribution
from labkit.doctor.explain import explain_text
from labkit.doctor.host import Host
from labkit.host.gpu_passing import PassingTrial, find_image, probe_passing

QUICK_SECONDS = 5.0
DEEP_SECONDS = 30.0
DEEPER = "labkit doctor --deep   # gives a container a minute to start"
WAYS = {"reservation": "--gpus all", "cdi": "--device nvidia.com/gpu=all"}


@dataclass(frozen=True)
class SeenFacts:
    """The image it was tried in (None: there is none here) and what each way came to."""

    engine: str
    image: str | None = None
    trials: tuple[PassingTrial, ...] = ()


def probe(host: Host) -> SeenFacts:
    """`nvidia-smi -L` in a throw-away container of an image that is here; nothing is pulled."""
    engine = probe_pair(host).chosen.name
    image = find_image(engine, host.images, host.run)
    if image is None:
        return SeenFacts(engine)

    def run(arguments: Sequence[str], *, timeout_seconds: float) -> CommandResult:
        limit = DEEP_SECONDS if host.deep else QUICK_SECONDS
        return host.run_long(arguments, timeout_seconds=min(limit, timeout_seconds))

    return SeenFacts(engine, image, probe_passing(engine, image, run))


def judge(facts: SeenFacts, distribution: Distribution) -> Finding:
    """The GPUs that the container lists; else what the engine's own words mean."""
    if facts.image is None:
        return Finding("skipped", "no image is here yet to try it in: make build")
    seen = next((trial for trial in facts.trials if trial.seen), None)
    if seen:
        count = f"{len(seen.seen)} GPU{'s' if len(seen.seen) > 1 else ''}"
        return ok(f"a container of {facts.image} sees {count} (by {seen.way})")
    problems = [trial.problem for trial in facts.trials if trial.problem]
    if any("did not answer" in problem for problem in problems):
        return unknown(f"no container of {facts.image} started in time", DEEPER)
    known = [found for text in problems if (found := explain_text(text).first)]
    # A docker whose CDI is off, as it is by default, tells nothing of what its first way met.
    known = [each for each in known if each.sign.name != "docker-cdi-off"]
    what = f"no container sees the GPU ({known[0].line if known else _shorten(problems)})"
    if known:
        return failed(what, known[0].sign.cause, known[0].sign.fix.on(distribution))
    way = WAYS[facts.trials[0].way] if facts.trials else WAYS["reservation"]
    return failed(
        what,
        "not known: the engine's own words are all there is",
        f"{facts.engine} run --rm {way} --entrypoint nvidia-smi {facts.image}   # says it in full",
    )


def _shorten(problems: Sequence[str]) -> str:
    return (problems[0] if problems else "it said nothing")[:200]


CHECK = Check(
    "container-gpu",
    "a GPU seen from a container",
    probe,
    judge,
    ("gpu-passing", "driver-library", "cgroups"),
    deep_seconds=2 * DEEP_SECONDS + 15,
    late=DEEPER,
)
