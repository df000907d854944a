"""Does the engine's daemon answer, and is it on this machine?"""

from __future__ import annotations

from labkit.doctor.check import Check, Finding, failed, ok, unknown, warning
from labkit.doctor.checks.engine_client import EnginePair, probe_pair
from labkit.doctor.distribution import Distribution, Fix

START = Fix(
    "sudo systemctl enable --now docker",
    alpine="sudo rc-update add docker && sudo service docker start",
)


def judge(facts: EnginePair, distribution: Distribution) -> Finding:
    """Fine where a daemon of this machine answers."""
    engine = facts.chosen
    if engine.server_version is None:
        return _judge_silent(facts, distribution)
    if engine.remote:
        return failed(
            f"{engine.name} talks to another machine ({engine.endpoint})",
            "that engine cannot see this machine's work/ or its GPU",
            "unset DOCKER_HOST DOCKER_CONTEXT; docker context use default",
        )
    kind = "rootless " if engine.rootless else ""
    docker_says = facts.docker.problem or ""
    if engine.name == "podman" and facts.docker.client_found and "Podman's" not in docker_says:
        return warning(
            f"docker does not answer ({docker_says}); podman {engine.server_version} does",
            "the lab runs in podman, although docker is installed",
            START.on(distribution),
        )
    return ok(f"{kind}{engine.name} {engine.server_version} answers")


def _judge_silent(facts: EnginePair, distribution: Distribution) -> Finding:
    engine = facts.chosen
    if "did not answer" in (engine.problem or ""):
        return unknown(str(engine.problem), "sudo systemctl restart docker   # where it hangs")
    if engine.name == "podman":
        return failed(
            f"podman does not work ({engine.problem})",
            "its storage or its runtime is not set up",
            "podman info   # shows what is wrong with it",
        )
    start = "open -a Docker" if facts.system == "Darwin" else START.on(distribution)
    return failed(f"docker's daemon does not answer ({engine.problem})", "it does not run", start)


CHECK = Check(
    "engine-daemon", "the engine's daemon answers", probe_pair, judge, ("engine-permission",)
)
