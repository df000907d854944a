"""Does a container see the GPU? Proven by one: settings alone have said yes and no wrongly.

Is the engine one that can reach the GPU at all?

Is the NVIDIA Container Toolkit there, and past its worst hole?

Is there a CDI specification of the GPU that the engine can read, and that is not outdated?

Is the engine set up to pass the GPU on: by CDI, or by the nvidia runtime?

Does the toolkit's no-cgroups setting fit the engine?

Which cgroup driver has the engine: can a reload of systemd take the GPU from a container?

Would SELinux keep a container from the GPU?
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from labkit.doctor.check import Check, Finding, SafeFix, failed, ok, unknown, warning
from labkit.doctor.checks.driver import read_module_version
from labkit.doctor.checks.engine import probe_pair
from labkit.doctor.host import COMMAND_SECONDS, Host
from labkit.host.distribution import Distribution
from labkit.host.gpu_access import GpuAccessTest, find_image, probe_gpu_access
from labkit.host.packages import (
    INSTALL_TOOLKIT,
    LEAVE_SNAP,
    MAKE_CDI_SPEC,
    RESTART_DOCKER,
    UPDATE_TOOLKIT,
)
from labkit.known_errors.match import explain_text
from labkit.process import CommandResult


@dataclass(frozen=True)
class KindFacts:
    """The engine, and what tells where its daemon came from; None is not known."""

    engine: str
    root_folder: str | None = None
    system: str | None = None
    in_wsl: bool = False
    has_runtime: bool = False


def probe_engine_kind(host: Host) -> KindFacts:
    """What `docker info` says of the folder and the system that its daemon lives in."""
    said = host.ask_docker()
    return KindFacts(
        probe_pair(host).chosen.name,
        str(said.get("DockerRootDir") or "") or None,
        str(said.get("OperatingSystem") or "") or None,
        host.in_wsl,
        knows_runtime(host),
    )


def judge_engine_kind(facts: KindFacts, distribution: Distribution) -> Finding:
    """A snap sees little of the host, and Docker Desktop on Linux is a machine without a GPU."""
    if facts.engine != "docker":
        return ok(f"{facts.engine} runs on this very system")
    if (facts.root_folder or "").startswith("/var/snap/"):
        if facts.has_runtime:
            return ok("docker is a snap, with a toolkit of its own")
        return failed(
            "docker is a snap",
            "a snap cannot reach the driver's libraries, so no container gets the GPU",
            LEAVE_SNAP.on(distribution),
        )
    if facts.system == "Docker Desktop" and not facts.in_wsl:
        return failed(
            "docker is Docker Desktop's",
            "its containers run in a virtual machine that has no GPU (context desktop-linux)",
            "docker context use default",
        )
    return ok("docker runs on this very system" if not facts.in_wsl else "docker reaches into WSL2")


ENGINE_KIND_CHECK = Check(
    "engine-kind",
    "an engine that can reach the GPU",
    probe_engine_kind,
    judge_engine_kind,
    ("driver", "engine-daemon"),
)


SAFE_VERSION = (1, 17, 8)  # CVE-2025-23266, a way out of the container, is open before it


@dataclass(frozen=True)
class ToolkitFacts:
    """What nvidia-ctk says of itself, and whether the engine brings a toolkit of its own."""

    answer: CommandResult
    engine_has_runtime: bool = False


def probe_toolkit(host: Host) -> ToolkitFacts:
    """`nvidia-ctk --version`, and the runtimes that `docker info` lists."""
    answer = host.run(["nvidia-ctk", "--version"], timeout_seconds=COMMAND_SECONDS)
    return ToolkitFacts(answer, knows_runtime(host))


def knows_runtime(host: Host) -> bool:
    """True where `docker info` lists the nvidia runtime."""
    runtimes = host.ask_docker().get("Runtimes")
    return isinstance(runtimes, dict) and "nvidia" in runtimes


def judge_toolkit(facts: ToolkitFacts, distribution: Distribution) -> Finding:
    """Fine from 1.17.8 on; Docker Desktop has one inside that this cannot ask."""
    if facts.answer.missing:
        if facts.engine_has_runtime:
            return ok("not installed here; the engine brings its own (Docker Desktop)")
        return failed(
            "no NVIDIA Container Toolkit",
            "without it no container gets the GPU; it comes from NVIDIA's own package source "
            "(nvidia.github.io/libnvidia-container)",
            INSTALL_TOOLKIT.on(distribution),
        )
    found = re.search(r"version\s+v?(\d+)\.(\d+)\.(\d+)", facts.answer.stdout)
    if found is None:
        return unknown(f"nvidia-ctk tells no version ({facts.answer.message})")
    version = ".".join(found.groups())
    if tuple(map(int, found.groups())) < SAFE_VERSION:
        return warning(
            f"NVIDIA Container Toolkit {version}",
            "CVE-2025-23266 is open before 1.17.8: a container can take over the host",
            UPDATE_TOOLKIT.on(distribution),
        )
    return ok(f"NVIDIA Container Toolkit {version}")


TOOLKIT_CHECK = Check(
    "toolkit", "the NVIDIA Container Toolkit", probe_toolkit, judge_toolkit, ("engine-kind",)
)


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


def probe_cdi(host: Host) -> CdiFacts:
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


def judge_cdi(facts: CdiFacts, distribution: Distribution) -> Finding:
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


CDI_CHECK = Check("cdi", "a CDI specification that is right", probe_cdi, judge_cdi, ("toolkit",))


CDI_BY_DEFAULT = 28  # Docker 25 to 27 have CDI, switched off; older ones have none
ROOTLESS_CONFIGURE = (
    "nvidia-ctk runtime configure --runtime=docker --config=$HOME/.config/docker/daemon.json "
    "&& systemctl --user restart docker"
)
ENABLE_CDI = (
    "sudo nvidia-ctk runtime configure --runtime=docker --cdi.enabled "
    "&& sudo systemctl restart docker"
)


@dataclass(frozen=True)
class PassingFacts:
    """The engine, the nvidia runtime (known, or only written down) and CDI (there, switched on)."""

    engine: str
    has_runtime: bool = False
    has_specification: bool = False
    cdi_off: bool = False
    configured: bool = False
    rootless: bool = False


def probe_gpu_passing(host: Host) -> PassingFacts:
    """`docker info`'s runtimes and CDI folders, daemon.json, and the CDI specification."""
    engine = probe_pair(host).chosen
    return PassingFacts(
        engine.name,
        knows_runtime(host),
        find_specification(host) is not None,
        engine.name == "docker" and _is_cdi_off(host),
        "nvidia-container-runtime" in (host.read("etc/docker/daemon.json") or ""),
        bool(engine.rootless),
    )


def _is_cdi_off(host: Host) -> bool:
    """True where the daemon lists no folder of specifications: it then takes no CDI device."""
    said = host.ask_docker()
    if "CDISpecDirs" in said:
        return not said["CDISpecDirs"]
    major = re.match(r"\d+", str(said.get("ServerVersion") or ""))
    return bool(major) and int(major.group()) < CDI_BY_DEFAULT if major else False


def judge_gpu_passing(facts: PassingFacts, distribution: Distribution) -> Finding:
    """Podman needs a specification; Docker that, with CDI switched on, or the runtime."""
    if facts.engine != "docker":
        return ok("podman passes the GPU on by CDI")
    by_cdi = facts.has_specification and not facts.cdi_off
    if facts.has_runtime:
        return ok("docker knows the nvidia runtime" + (" and CDI" if by_cdi else ""))
    if by_cdi:
        return ok("docker passes the GPU on by CDI")
    if facts.configured and not facts.rootless:
        return failed(
            "docker's daemon.json names the nvidia runtime, and docker does not know it",
            "it was not restarted since",
            "sudo systemctl restart docker",
        )
    if facts.has_specification and not facts.rootless:
        return failed(
            "docker's CDI is switched off, and it has no nvidia runtime",
            f"before version {CDI_BY_DEFAULT} docker uses CDI only where it is told to",
            ENABLE_CDI,
        )
    return failed(
        "docker has neither the nvidia runtime nor a CDI specification",
        "the toolkit is installed, but docker was not told of it, or not restarted since",
        ROOTLESS_CONFIGURE if facts.rootless else RESTART_DOCKER,
    )


GPU_PASSING_CHECK = Check(
    "gpu-passing", "CDI or the nvidia runtime", probe_gpu_passing, judge_gpu_passing, ("cdi",)
)


SET = "sudo nvidia-ctk config --in-place --set nvidia-container-cli.no-cgroups={}"


@dataclass(frozen=True)
class CgroupFacts:
    """The setting, and the kind of engine; None is not known."""

    engine: str
    rootless: bool | None = None
    no_cgroups: bool = False
    has_spec: bool = False


def probe_cgroups(host: Host) -> CgroupFacts:
    """no-cgroups in the toolkit's config.toml, which is commented out where it is off."""
    text = host.read("etc/nvidia-container-runtime/config.toml") or ""
    engine = probe_pair(host).chosen
    setting = re.search(r"^\s*no-cgroups\s*=\s*(true|false)", text, re.MULTILINE)
    on = bool(setting and setting.group(1) == "true")
    return CgroupFacts(engine.name, engine.rootless, on, find_specification(host) is not None)


def judge_cgroups(facts: CgroupFacts, distribution: Distribution) -> Finding:
    """On for rootless Docker, off for Docker as root; Podman's CDI does not read it."""
    if facts.engine != "docker" or facts.rootless is None:
        return ok("no matter for this engine")
    if facts.rootless and not facts.no_cgroups and not facts.has_spec:
        return warning(
            "rootless docker, and no-cgroups is off",
            "the toolkit then tries to write device rules, which a rootless engine may not",
            f"{SET.format('true')} && systemctl --user restart docker",
        )
    if not facts.rootless and facts.no_cgroups:
        return failed(
            "docker runs as root, and no-cgroups is on",
            "containers then get the GPU's files without the right to use them (NVML: Unknown "
            "Error)",
            f"{SET.format('false')} && sudo systemctl restart docker",
        )
    if facts.rootless and not facts.no_cgroups:
        return ok("no-cgroups is off, and CDI does without it")
    return ok(f"no-cgroups is {'on' if facts.no_cgroups else 'off'}, as this engine needs it")


CGROUPS_CHECK = Check(
    "cgroups", "the toolkit's cgroup setting", probe_cgroups, judge_cgroups, ("toolkit",)
)


@dataclass(frozen=True)
class CgroupDriverFacts:
    """The engine's cgroup driver and version, and whether CDI passes the GPU on; None unknown."""

    engine: str
    driver: str | None = None
    version: str | None = None
    has_specification: bool = False


def probe_cgroup_driver(host: Host) -> CgroupDriverFacts:
    """What `docker info` says of cgroups."""
    said = host.ask_docker()
    return CgroupDriverFacts(
        probe_pair(host).chosen.name,
        str(said.get("CgroupDriver") or "") or None,
        str(said.get("CgroupVersion") or "") or None,
        find_specification(host) is not None,
    )


def judge_cgroup_driver(facts: CgroupDriverFacts, distribution: Distribution) -> Finding:
    """Never a fault by itself: most hosts are set so; but it is where a lost GPU comes from."""
    if facts.engine != "docker" or facts.driver is None:
        return ok("no matter for this engine")
    found = f"{facts.driver}, cgroup v{facts.version or '?'}"
    if facts.driver != "systemd" or facts.has_specification:
        return ok(found)
    return ok(
        f"{found}: where a running lab loses its GPU (NVML: Unknown Error) after a daemon-reload, "
        "make down up"
    )


CGROUP_DRIVER_CHECK = Check(
    "cgroup-driver",
    "the engine's cgroup driver",
    probe_cgroup_driver,
    judge_cgroup_driver,
    ("gpu-passing",),
)


@dataclass(frozen=True)
class SelinuxFacts:
    """Whether SELinux enforces, and whether containers may use devices (None: no such switch)."""

    enforcing: bool = False
    devices_allowed: bool | None = None


def probe_selinux(host: Host) -> SelinuxFacts:
    """The switches below /sys/fs/selinux; a boolean reads "now pending"."""
    switch = host.read("sys/fs/selinux/booleans/container_use_devices")
    return SelinuxFacts(
        (host.read("sys/fs/selinux/enforce") or "").strip() == "1",
        switch.split()[:1] == ["1"] if switch else None,
    )


def judge_selinux(facts: SelinuxFacts, distribution: Distribution) -> Finding:
    """A warning only where it enforces and the switch for devices is off."""
    if not facts.enforcing:
        return ok("SELinux does not enforce here")
    if facts.devices_allowed is False:
        return warning(
            "SELinux enforces, and containers may not use devices",
            "a container then fails with NVML: Insufficient Permissions",
            "sudo setsebool -P container_use_devices on",
        )
    return ok("SELinux enforces, and lets containers use devices")


SELINUX_CHECK = Check(
    "selinux", "SELinux and the GPU", probe_selinux, judge_selinux, ("driver", "engine-daemon")
)


QUICK_SECONDS = 5.0
DEEP_SECONDS = 30.0
DEEPER = "labkit doctor --deep   # gives a container a minute to start"
WAYS = {"reservation": "--gpus all", "cdi": "--device nvidia.com/gpu=all"}


@dataclass(frozen=True)
class SeenFacts:
    """The image it was tried in (None: there is none here) and what each way came to."""

    engine: str
    image: str | None = None
    trials: tuple[GpuAccessTest, ...] = ()


def probe_container_gpu(host: Host) -> SeenFacts:
    """`nvidia-smi -L` in a throw-away container of an image that is here; nothing is pulled."""
    engine = probe_pair(host).chosen.name
    image = find_image(engine, host.images, host.run)
    if image is None:
        return SeenFacts(engine)

    def run(arguments: Sequence[str], *, timeout_seconds: float) -> CommandResult:
        limit = DEEP_SECONDS if host.deep else QUICK_SECONDS
        return host.run_long(arguments, timeout_seconds=min(limit, timeout_seconds))

    return SeenFacts(engine, image, probe_gpu_access(engine, image, run))


def judge_container_gpu(facts: SeenFacts, distribution: Distribution) -> Finding:
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
    known = [each for each in known if each.error.name != "docker-cdi-off"]
    what = f"no container sees the GPU ({known[0].line if known else _shorten(problems)})"
    if known:
        return failed(what, known[0].error.cause, known[0].error.fix.on(distribution))
    way = WAYS[facts.trials[0].way] if facts.trials else WAYS["reservation"]
    return failed(
        what,
        "not known: the engine's own words are all there is",
        f"{facts.engine} run --rm {way} --entrypoint nvidia-smi {facts.image}   # says it in full",
    )


def _shorten(problems: Sequence[str]) -> str:
    return (problems[0] if problems else "it said nothing")[:200]


CONTAINER_GPU_CHECK = Check(
    "container-gpu",
    "a GPU seen from a container",
    probe_container_gpu,
    judge_container_gpu,
    ("gpu-passing", "driver-library", "cgroups"),
    deep_seconds=2 * DEEP_SECONDS + 15,
    late=DEEPER,
)
