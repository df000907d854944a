"""Do names resolve, as a build needs?"""

from __future__ import annotations

from dataclasses import dataclass
from urllib.parse import urlsplit

from labkit.doctor.check import Check, Finding, ok, warning
from labkit.doctor.checks.index import list_indexes
from labkit.doctor.distribution import Distribution
from labkit.doctor.host import Host


@dataclass(frozen=True)
class NameFacts:
    """The index's host name, whether it resolved, and whether a proxy does that instead."""

    name: str | None = None
    problem: str | None = None
    proxied: bool = False


def probe(host: Host) -> NameFacts:
    """The system's resolver, asked for the host of the index that a build would use."""
    names = [urlsplit(index).hostname for index in list_indexes(host)]
    name = next((name for name in names if name), None)
    proxied = any(host.environment.get(key) for key in ("https_proxy", "HTTPS_PROXY"))
    if name is None or proxied:
        return NameFacts(name, proxied=proxied)
    try:
        host.resolve(name)
    except OSError as error:
        return NameFacts(name, str(error.strerror or error))
    return NameFacts(name)


def judge(facts: NameFacts, distribution: Distribution) -> Finding:
    """A warning only: an image that is built already needs no names."""
    if facts.name is None:
        return ok("no index is set, so no name to resolve", moot="no index is set")
    if facts.proxied:
        return ok("the proxy resolves names")
    if facts.problem:
        return warning(
            f"{facts.name} does not resolve ({facts.problem})",
            "no name server answers from here, or it does not know the name: a build would fail",
            "resolvectl status || cat /etc/resolv.conf",
            moot=f"{facts.name} does not resolve",
        )
    return ok(f"{facts.name} resolves")


CHECK = Check("dns", "names resolve", probe, judge, network=True, patience_seconds=6.0)
