"""Is there a CDI specification of the GPU that the engine can read, and that is not outdated?"""

from __future__ import annotations

import re
from dataclasses import dataclass

from labkit.doctor.check import Check, Finding, SafeFix, failed, ok, warning
from labkit.doctor.checks.driver import read_module_version
from labkit.doctor.checks.engine_client import probe_pair
from labkit.doctor.checks.toolkit import knows_runtime
from labkit.doctor.distribution import MAKE_CDI_SPEC, Distribution
from labkit.doctor.host import Host

FOLDERS = ("etc/cdi", "var/run/cdi", "run/cdi")
KIND = "nvidia.com/gpu"
LIBRARY = re.compile(r"[\"\s](/\S+?\.so\.(\d{3}\.\d+(?:\.\d+)?))\b")


@dataclass(frozen=True)
class Specification:
    """A file that describes the GPUs to an engine: its text is None where it may not be read."""

    path: str
    text: str | None

    @property
    def driver(self) -> str | None:
        """The driver's version that its files are named by, or None where none of them says."""
        found = LIBRARY.search(self.text or "")
        return found.group(2) if found else None

    @property
    def libraries(self) -> tuple[str, ...]:
        """The driver's library files that it names."""
        return tuple(dict.fromkeys(path for path, _ in LIBRARY.findall(self.text or "")))


@dataclass(frozen=True)
class CdiFacts:
    """The specification, the loaded driver, what is gone of its files, and who would use it.

    ``needed`` is True where the engine has no other way to pass a GPU on.
    """

    engine: str
    needed: bool
    rootless: bool = False
    specification: Specification | None = None
    driver: str | None = None
    gone: str | None = None


def probe(host: Host) -> CdiFacts:
    """The specifications where engines look for them, the files they name, the loaded module."""
    engine = probe_pair(host).chosen
    found = find_specification(host)
    libraries = found.libraries if found else ()
    return CdiFacts(
        engine.name,
        engine.name == "podman" or not knows_runtime(host),
        bool(engine.rootless),
        found,
        read_module_version(host),
        next((path for path in libraries if not host.exists(path.lstrip("/"))), None),
    )


def find_specification(host: Host) -> Specification | None:
    """The first specification of NVIDIA's GPUs; one that may not be read is known by its name."""
    for folder in FOLDERS:
        for path in host.list(folder, "*"):
            text = host.read(f"{folder}/{path.name}")
            ours = KIND in text if text is not None else "nvidia" in path.name
            if ours and path.suffix in (".yaml", ".yml", ".json"):
                return Specification(f"/{folder}/{path.name}", text)
    return None


def judge(facts: CdiFacts, distribution: Distribution) -> Finding:
    """Podman needs one; Docker can do without where it has the nvidia runtime."""
    found = facts.specification
    if found is None:
        return _judge_missing(facts)
    if found.text is None:
        return _judge_closed(found.path, facts.rootless)
    outdated = found.driver and facts.driver and found.driver != facts.driver
    if not outdated and not facts.gone:
        return ok(f"{found.path}" + (f", of driver {found.driver}" if found.driver else ""))
    what = (
        f"{found.path} is for driver {found.driver}, and {facts.driver} is loaded"
        if outdated
        else f"{found.path} names {facts.gone}, which is not there"
    )
    cause = "the driver was changed after the specification was made"
    fix = f"sudo nvidia-ctk cdi generate --output={found.path}"
    safe = _remake(found.path)
    return (failed if facts.needed else warning)(what, cause, fix, safe=safe)


def _judge_missing(facts: CdiFacts) -> Finding:
    if facts.engine == "podman":
        return failed(
            "no CDI specification for the GPU",
            "podman passes GPUs by CDI alone",
            MAKE_CDI_SPEC,
            safe=_remake("/etc/cdi/nvidia.yaml"),
        )
    return ok("no CDI specification" + ("" if facts.needed else ", and none needed"))


def _judge_closed(path: str, rootless: bool) -> Finding:
    """A file this user may not read: a rootless engine is this user, another is root."""
    if not rootless:
        return ok(f"{path}, which only root reads")
    return failed(
        f"{path} may not be read by this user",
        "a rootless engine reads it as this user",
        f"sudo chmod a+r {path}",
        safe=SafeFix(("chmod", "a+r", path), "lets everybody read the GPU's specification"),
    )


def _remake(path: str) -> SafeFix:
    arguments = ("nvidia-ctk", "cdi", "generate", f"--output={path}")
    return SafeFix(arguments, "writes the GPU's specification for the driver that is loaded")


CHECK = Check("cdi", "a CDI specification that is right", probe, judge, ("toolkit",))
