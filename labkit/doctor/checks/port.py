"""Is the lab's port free?"""

from __future__ import annotations

from dataclasses import dataclass

from labkit.doctor.check import Check, Finding, failed, ok, warning
from labkit.doctor.distribution import Distribution
from labkit.doctor.host import Host


@dataclass(frozen=True)
class PortFacts:
    """The port, who has it, and whether it was asked for by number."""

    port: int
    free: bool
    asked: bool = False
    own: bool = False
    in_lab: bool = False


def probe(host: Host) -> PortFacts:
    """Whether a server could listen on the port of 127.0.0.1 now."""
    free = host.is_port_free("127.0.0.1", host.port)
    own = host.own_port == host.port
    return PortFacts(host.port, free, host.port_asked, own, host.in_lab)


def judge(facts: PortFacts, distribution: Distribution) -> Finding:
    """A taken port is a failure only where it was asked for by number."""
    if facts.own and not facts.free:
        return ok(f"this lab runs on port {facts.port}")
    if facts.in_lab:
        return ok("the host publishes the port: ask there")
    if facts.free:
        return ok(f"port {facts.port} is free")
    found = f"port {facts.port} is taken"
    if facts.asked:
        return failed(found, "another program listens on it", "ss -ltnp   # or another PORT=")
    return warning(
        found,
        "another program listens on it, and would refuse this lab's token",
        "make up   # takes the next free port, and prints it",
    )


CHECK = Check("port", "the lab's port", probe, judge)
