"""May this user talk to the engine's daemon?"""

from __future__ import annotations

from labkit.doctor.check import Check, Finding, failed, ok
from labkit.doctor.checks.engine_client import EnginePair, probe_pair
from labkit.doctor.distribution import Distribution


def judge(facts: EnginePair, distribution: Distribution) -> Finding:
    """Refused is a failure only where no other engine answers."""
    engine = facts.chosen
    if "permission denied" in (engine.problem or "").lower():
        return failed(
            f"{engine.name}'s socket refuses this user",
            "this user is not in the docker group, or not since the last login",
            "sudo usermod -aG docker $USER   # then log out and in again",
        )
    return ok(f"{engine.name} has not refused this user")


CHECK = Check(
    "engine-permission", "this user at the engine's socket", probe_pair, judge, ("engine-client",)
)
