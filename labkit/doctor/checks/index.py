"""Can a build reach its package index?"""

from __future__ import annotations

import re
from dataclasses import dataclass

from labkit.doctor.check import Check, Finding, ok, warning
from labkit.doctor.checks.driver import read_module_version
from labkit.doctor.checks.torch_build import find_build, read_capabilities
from labkit.doctor.distribution import Distribution
from labkit.doctor.explain import explain_text
from labkit.doctor.host import Host
from labkit.host.builds import BUILDS, CPU_BUILD


@dataclass(frozen=True)
class IndexFacts:
    """Each index with the problem of reaching it; None is none."""

    answers: tuple[tuple[str, str | None], ...] = ()


def probe(host: Host) -> IndexFacts:
    """Asks each index for its head, through the proxies that are set, with a short limit."""
    return IndexFacts(tuple((hide_login(each), _reach(host, each)) for each in list_indexes(host)))


def list_indexes(host: Host) -> tuple[str, ...]:
    """The indexes that a build here would use: those that are named, and PyTorch's own.

    The build for CUDA 13 comes from the default index, which is asked only where it is named.
    """
    if not host.builds_torch:
        return host.indexes
    capabilities = read_capabilities(host)
    driver = read_module_version(host)
    name = None
    if driver or capabilities:
        name = find_build(driver, capabilities, host.machine.architecture)
    own = BUILDS[name or CPU_BUILD.name].torch_index
    return (*([own] if own else []), *host.indexes)


def _reach(host: Host, index: str) -> str | None:
    try:
        host.reach(index)
    except (OSError, ValueError) as error:
        return str(error) or type(error).__name__
    return None


def hide_login(index: str) -> str:
    """The index's address without the user and password that may stand in it."""
    return re.sub(r"//[^/@]*@", "//", index)


def judge(facts: IndexFacts, distribution: Distribution) -> Finding:
    """A warning only: an image that is built already needs no index."""
    for index, problem in facts.answers:
        if problem:
            found = explain_text(problem).first
            return warning(
                f"{index} cannot be reached ({problem})",
                found.sign.cause if found else "a firewall, a proxy that is not set, or no network",
                found.sign.fix.on(distribution) if found else f"curl -sSI {index}",
            )
    if not facts.answers:
        return ok("no index is set: torch's build for this GPU comes from the default one")
    return ok(f"{', '.join(index for index, _ in facts.answers)} answers")


CHECK = Check("index", "the package index answers", probe, judge, ("dns",), network=True)
