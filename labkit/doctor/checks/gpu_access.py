"""Checks of how the engine passes the GPU to containers; the last one tests it in a container.

Settings alone are not proof: they can be right without access, and wrong with access.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from labkit.doctor.check import (
    COMMAND_SECONDS,
    Check,
    Finding,
    Host,
    SafeFix,
    failed,
    ok,
    unknown,
    warning,
)
from labkit.doctor.checks.engine import probe_pair
from labkit.host.distribution import Distribution
from labkit.host.engine import DESKTOP, LEAVE_DESKTOP, SNAP_FOLDER
from labkit.host.gpu import read_module_version
from labkit.host.gpu_access import GpuAccessTest, find_image, probe_gpu_access
from labkit.host.packages import (
    CONFIGURE_ROOTLESS,
    LEAVE_SNAP,
    MAKE_CDI_SPEC,
    RESTART_DOCKER,
    UPDATE_TOOLKIT,
    DriverFix,
    choose_toolkit_fix,
)
from labkit.known_errors.match import explain_text
from labkit.process import CommandResult
from labkit.text import escape_controls, plural, shorten


@dataclass(frozen=True)
class EngineOriginFacts:
    """The engine, and where its daemon was installed from; None means unknown."""

    engine: str
    root_folder: str | None = None
    system: str | None = None
    in_wsl: bool = False
    has_runtime: bool = False


def probe_engine_kind(host: Host) -> EngineOriginFacts:
    """What `docker info` says about its daemon's folder and system."""
    info = host.read_docker_info()
    return EngineOriginFacts(
        probe_pair(host).chosen.name,
        str(info.get("DockerRootDir") or "") or None,
        str(info.get("OperatingSystem") or "") or None,
        host.in_wsl,
        knows_runtime(host),
    )


def judge_engine_kind(facts: EngineOriginFacts, distribution: Distribution) -> Finding:
    """A snap sees little of the host; Docker Desktop on Linux is a VM without a GPU."""
    if facts.engine != "docker":
        return ok(f"{facts.engine} runs on this system")
    if (facts.root_folder or "").startswith(SNAP_FOLDER):
        if facts.has_runtime:
            return ok("docker is a snap that has its own toolkit")
        return failed(
            "docker is a snap",
            "a snap cannot access the driver's libraries, so no container gets the GPU",
            LEAVE_SNAP.on(distribution),
        )
    if facts.system == DESKTOP and not facts.in_wsl:
        return failed(
            "docker is Docker Desktop",
            "its containers run in a virtual machine without a GPU (context desktop-linux)",
            LEAVE_DESKTOP,
        )
    return ok("docker runs on this system" if not facts.in_wsl else "docker runs in WSL2")


ENGINE_KIND_CHECK = Check(
    "engine-kind",
    "an engine that can access the GPU",
    probe_engine_kind,
    judge_engine_kind,
    ("driver", "engine-daemon"),
)


SAFE_VERSION = (1, 17, 8)  # fixes CVE-2025-23266, a container escape


@dataclass(frozen=True)
class ToolkitFacts:
    """The answer of nvidia-ctk, the engine, and whether it has its own toolkit."""

    answer: CommandResult
    engine_has_runtime: bool = False
    engine: str = "docker"
    rootless: bool = False


def probe_toolkit(host: Host) -> ToolkitFacts:
    """`nvidia-ctk --version`, and the runtimes that `docker info` lists."""
    answer = host.run(["nvidia-ctk", "--version"], timeout_seconds=COMMAND_SECONDS)
    engine = probe_pair(host).chosen
    return ToolkitFacts(answer, knows_runtime(host), engine.name, bool(engine.rootless))


def knows_runtime(host: Host) -> bool:
    """True if `docker info` lists the nvidia runtime."""
    runtimes = host.read_docker_info().get("Runtimes")
    return isinstance(runtimes, dict) and "nvidia" in runtimes


def judge_toolkit(facts: ToolkitFacts, distribution: Distribution) -> Finding:
    """OK from 1.17.8 on; the toolkit of Docker Desktop cannot be queried."""
    if facts.answer.missing:
        if facts.engine_has_runtime:
            return ok("not installed; the engine has its own (Docker Desktop)")
        return failed(
            "no NVIDIA Container Toolkit",
            "no container gets the GPU without it; NVIDIA's own package source has it "
            "(nvidia.github.io/libnvidia-container)",
            choose_toolkit_fix(facts.engine, rootless=facts.rootless).on(distribution),
        )
    found = re.search(r"version\s+v?(\d+)\.(\d+)\.(\d+)", facts.answer.stdout)
    if found is None:
        return unknown(f"nvidia-ctk prints no version ({facts.answer.message})")
    version = ".".join(found.groups())
    if tuple(map(int, found.groups())) < SAFE_VERSION:
        return warning(
            f"NVIDIA Container Toolkit {version}",
            "before 1.17.8 a container can take over the host (CVE-2025-23266)",
            UPDATE_TOOLKIT.on(distribution),
        )
    return ok(f"NVIDIA Container Toolkit {version}")


TOOLKIT_CHECK = Check(
    "toolkit", "the NVIDIA Container Toolkit", probe_toolkit, judge_toolkit, ("engine-kind",)
)


# The first one counts: engines prefer what is generated at each boot.
FOLDERS = ("var/run/cdi", "run/cdi", "etc/cdi")
KIND = "nvidia.com/gpu"
LIBRARY = re.compile(r"[\"\s](/\S+?\.so\.(\d{3}\.\d+(?:\.\d+)?))\b")


@dataclass(frozen=True)
class Specification:
    """A CDI specification of the GPUs; ``text`` is None if this user cannot read it."""

    path: str
    text: str | None

    @property
    def driver(self) -> str | None:
        """The driver's version in the names of its files, or None."""
        found = LIBRARY.search(self.text or "")
        return found.group(2) if found else None

    @property
    def libraries(self) -> tuple[str, ...]:
        """The driver's library files that it names."""
        return tuple(dict.fromkeys(path for path, _ in LIBRARY.findall(self.text or "")))


@dataclass(frozen=True)
class CdiFacts:
    """The engine, its CDI specification, the loaded driver, and a missing file that it names.

    ``needed`` is True if the engine has no other way to pass a GPU on.
    """

    engine: str
    needed: bool
    rootless: bool = False
    specification: Specification | None = None
    driver: str | None = None
    missing: str | None = None


def probe_cdi(host: Host) -> CdiFacts:
    """The specification that engines find, the files it names, the loaded module."""
    engine = probe_pair(host).chosen
    found = find_specification(host)
    libraries = found.libraries if found else ()
    return CdiFacts(
        engine.name,
        engine.name == "podman" or not knows_runtime(host),
        bool(engine.rootless),
        found,
        read_module_version(host.root),
        next((path for path in libraries if not host.exists(path.lstrip("/"))), None),
    )


def find_specification(host: Host) -> Specification | None:
    """The first specification of NVIDIA's GPUs; an unreadable one is recognized by its name."""
    for folder in FOLDERS:
        for path in host.list(folder, "*"):
            text = host.read(f"{folder}/{path.name}")
            ours = KIND in text if text is not None else "nvidia" in path.name
            if ours and path.suffix in (".yaml", ".yml", ".json"):
                return Specification(f"/{folder}/{path.name}", text)
    return None


def judge_cdi(facts: CdiFacts, distribution: Distribution) -> Finding:
    """Podman needs a specification; Docker needs none if it has the nvidia runtime."""
    found = facts.specification
    if found is None:
        return _judge_no_specification(facts)
    if found.text is None:
        return _judge_unreadable(found.path, facts.rootless)
    outdated = found.driver and facts.driver and found.driver != facts.driver
    if not outdated and not facts.missing:
        return ok(f"{found.path}" + (f", of driver {found.driver}" if found.driver else ""))
    what = (
        f"{found.path} is for driver {found.driver}, and {facts.driver} is loaded"
        if outdated
        else f"{found.path} names {facts.missing}, which does not exist"
    )
    cause = "the driver was changed after the specification was written"
    fix = f"sudo nvidia-ctk cdi generate --output={found.path}"
    safe = _remake(found.path)
    return (failed if facts.needed else warning)(what, cause, fix, safe=safe)


def _judge_no_specification(facts: CdiFacts) -> Finding:
    if facts.engine == "podman":
        return failed(
            "no CDI specification for the GPU",
            "podman passes GPUs on only by CDI",
            MAKE_CDI_SPEC,
            safe=_remake("/etc/cdi/nvidia.yaml"),
        )
    return ok("no CDI specification" + ("" if facts.needed else ", and none is needed"))


def _judge_unreadable(path: str, rootless: bool) -> Finding:
    """A file that this user cannot read: a rootless engine runs as this user, others as root."""
    if not rootless:
        return ok(f"{path}, which only root can read")
    return failed(
        f"this user cannot read {path}",
        "a rootless engine reads it as this user",
        f"sudo chmod a+r {path}",
        safe=SafeFix(("chmod", "a+r", path), "lets every user read the GPU's specification"),
    )


def _remake(path: str) -> SafeFix:
    arguments = ("nvidia-ctk", "cdi", "generate", f"--output={path}")
    return SafeFix(arguments, "writes the GPU's specification for the loaded driver")


CDI_CHECK = Check("cdi", "the CDI specification", probe_cdi, judge_cdi, ("toolkit",))


CDI_BY_DEFAULT = 28  # Docker 25 to 27 have CDI, which is off; older ones have none
ENABLE_CDI = (
    "sudo nvidia-ctk runtime configure --runtime=docker --cdi.enabled "
    "&& sudo systemctl restart docker"
)


@dataclass(frozen=True)
class GpuAccessFacts:
    """The engine, its nvidia runtime (known or only configured), and CDI (specified, on)."""

    engine: str
    has_runtime: bool = False
    has_specification: bool = False
    cdi_off: bool = False
    configured: bool = False
    rootless: bool = False


def probe_gpu_access_settings(host: Host) -> GpuAccessFacts:
    """`docker info`'s runtimes and CDI folders, daemon.json, and the CDI specification."""
    engine = probe_pair(host).chosen
    return GpuAccessFacts(
        engine.name,
        knows_runtime(host),
        find_specification(host) is not None,
        engine.name == "docker" and _is_cdi_off(host),
        "nvidia-container-runtime" in (host.read("etc/docker/daemon.json") or ""),
        bool(engine.rootless),
    )


def _is_cdi_off(host: Host) -> bool:
    """True if the daemon lists no folder of specifications: then CDI is off."""
    info = host.read_docker_info()
    if "CDISpecDirs" in info:
        return not info["CDISpecDirs"]
    major = re.match(r"\d+", str(info.get("ServerVersion") or ""))
    return bool(major) and int(major.group()) < CDI_BY_DEFAULT if major else False


def judge_gpu_access_settings(facts: GpuAccessFacts, distribution: Distribution) -> Finding:
    """Podman needs a specification; Docker needs one with CDI on, or the nvidia runtime."""
    if facts.engine != "docker":
        return ok("podman passes the GPU on by CDI")
    by_cdi = facts.has_specification and not facts.cdi_off
    if facts.has_runtime:
        return ok("docker knows the nvidia runtime" + (" and CDI" if by_cdi else ""))
    if by_cdi:
        return ok("docker passes the GPU on by CDI")
    if facts.configured and not facts.rootless:
        return failed(
            "daemon.json names the nvidia runtime, but docker does not know it",
            "docker was not restarted since",
            "sudo systemctl restart docker",
        )
    if facts.has_specification and not facts.rootless:
        return failed(
            "docker's CDI is off, and docker has no nvidia runtime",
            f"before version {CDI_BY_DEFAULT} docker has CDI off by default",
            ENABLE_CDI,
        )
    return failed(
        "docker has neither the nvidia runtime nor a CDI specification",
        "the toolkit is installed, but docker is not configured for it, or was not restarted",
        CONFIGURE_ROOTLESS if facts.rootless else RESTART_DOCKER,
    )


GPU_ACCESS_CHECK = Check(
    "gpu-passing",
    "CDI or the nvidia runtime",
    probe_gpu_access_settings,
    judge_gpu_access_settings,
    ("cdi",),
)


SET = "sudo nvidia-ctk config --in-place --set nvidia-container-cli.no-cgroups={}"


@dataclass(frozen=True)
class CgroupFacts:
    """The setting, and the kind of engine; None means unknown."""

    engine: str
    rootless: bool | None = None
    no_cgroups: bool = False
    has_spec: bool = False


def probe_cgroups(host: Host) -> CgroupFacts:
    """Reads no-cgroups in the toolkit's config.toml; a commented-out line means off."""
    text = host.read("etc/nvidia-container-runtime/config.toml") or ""
    engine = probe_pair(host).chosen
    setting = re.search(r"^\s*no-cgroups\s*=\s*(true|false)", text, re.MULTILINE)
    on = bool(setting and setting.group(1) == "true")
    return CgroupFacts(engine.name, engine.rootless, on, find_specification(host) is not None)


def judge_cgroups(facts: CgroupFacts, distribution: Distribution) -> Finding:
    """Must be on for rootless Docker and off for Docker as root; Podman does not read it."""
    if facts.engine != "docker" or facts.rootless is None:
        return ok("not applicable to this engine")
    if facts.rootless and not facts.no_cgroups and not facts.has_spec:
        return warning(
            "rootless docker, and no-cgroups is off",
            "the toolkit then writes device rules, which a rootless engine is not allowed to",
            f"{SET.format('true')} && systemctl --user restart docker",
        )
    if not facts.rootless and facts.no_cgroups:
        return failed(
            "docker runs as root, and no-cgroups is on",
            "containers then get the GPU's files without access to them (NVML: Unknown Error)",
            f"{SET.format('false')} && sudo systemctl restart docker",
        )
    if facts.rootless and not facts.no_cgroups:
        return ok("no-cgroups is off, and CDI does not need it")
    return ok(f"no-cgroups is {'on' if facts.no_cgroups else 'off'}, as this engine requires")


CGROUPS_CHECK = Check(
    "cgroups", "the toolkit's cgroup setting", probe_cgroups, judge_cgroups, ("toolkit",)
)


@dataclass(frozen=True)
class CgroupDriverFacts:
    """The engine's cgroup driver and version (None: unknown), and whether CDI is used."""

    engine: str
    driver: str | None = None
    version: str | None = None
    has_specification: bool = False


def probe_cgroup_driver(host: Host) -> CgroupDriverFacts:
    """What `docker info` says about cgroups."""
    info = host.read_docker_info()
    return CgroupDriverFacts(
        probe_pair(host).chosen.name,
        str(info.get("CgroupDriver") or "") or None,
        str(info.get("CgroupVersion") or "") or None,
        find_specification(host) is not None,
    )


def judge_cgroup_driver(facts: CgroupDriverFacts, distribution: Distribution) -> Finding:
    """Never a failure: most hosts use systemd; but it explains why a container loses its GPU."""
    if facts.engine != "docker" or facts.driver is None:
        return ok("not applicable to this engine")
    found = f"{facts.driver}, cgroup v{facts.version or '?'}"
    if facts.driver != "systemd" or facts.has_specification:
        return ok(found)
    return ok(
        f"{found}: if a lab loses its GPU after a daemon-reload (NVML: Unknown Error): make down up"
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
    """Whether SELinux enforces, and lets containers use devices (None: no such boolean)."""

    enforcing: bool = False
    devices_allowed: bool | None = None


def probe_selinux(host: Host) -> SelinuxFacts:
    """The files below /sys/fs/selinux; a boolean reads "CURRENT PENDING"."""
    switch = host.read("sys/fs/selinux/booleans/container_use_devices")
    return SelinuxFacts(
        (host.read("sys/fs/selinux/enforce") or "").strip() == "1",
        switch.split()[:1] == ["1"] if switch else None,
    )


def judge_selinux(facts: SelinuxFacts, distribution: Distribution) -> Finding:
    """A warning if SELinux enforces and its boolean for devices is off."""
    if not facts.enforcing:
        return ok("SELinux is not enforcing")
    if facts.devices_allowed is False:
        return warning(
            "SELinux is enforcing, and containers may not use devices",
            "containers then fail with NVML: Insufficient Permissions",
            "sudo setsebool -P container_use_devices on",
        )
    return ok("SELinux is enforcing, and containers may use devices")


SELINUX_CHECK = Check(
    "selinux", "SELinux and the GPU", probe_selinux, judge_selinux, ("driver", "engine-daemon")
)


QUICK_SECONDS = 5.0
DEEP_SECONDS = 30.0
DEEPER = "labkit doctor --deep   # gives the container a minute to start"
WAYS = {"reservation": "--gpus all", "cdi": "--device nvidia.com/gpu=all"}


@dataclass(frozen=True)
class ContainerGpuFacts:
    """The image of the test (None: the engine has none), and the result of each way."""

    engine: str
    image: str | None = None
    tests: tuple[GpuAccessTest, ...] = ()


def probe_container_gpu(host: Host) -> ContainerGpuFacts:
    """`nvidia-smi -L` in a temporary container of an image that the engine has; no pull."""
    engine = probe_pair(host).chosen.name
    image = find_image(engine, host.images, host.run)
    if image is None:
        return ContainerGpuFacts(engine)

    def run(arguments: Sequence[str], *, timeout_seconds: float) -> CommandResult:
        limit = DEEP_SECONDS if host.deep else QUICK_SECONDS
        return host.run_long(arguments, timeout_seconds=min(limit, timeout_seconds))

    return ContainerGpuFacts(engine, image, probe_gpu_access(engine, image, run))


def judge_container_gpu(facts: ContainerGpuFacts, distribution: Distribution) -> Finding:
    """The GPUs that the container lists, else the cause of the engine's error."""
    if facts.image is None:
        return Finding("skipped", "no image to test it with yet: make build")
    seen = next((test for test in facts.tests if test.seen), None)
    if seen:
        count = plural(len(seen.seen), "GPU")
        return ok(f"a container of {facts.image} sees {count} (by {seen.way})")
    problems = [test.problem for test in facts.tests if test.problem]
    if any("did not answer" in problem for problem in problems):
        return unknown(f"no container of {facts.image} started in time", DEEPER)
    known = [found for text in problems if (found := explain_text(text, signs={"lab"}).first)]
    # CDI is off by default, so that error does not explain why the first way failed. What is known
    # by its form alone says less than the whole message.
    known = [
        each for each in known if each.error.name != "docker-cdi-off" and not each.error.general
    ]
    what = f"no container sees the GPU ({known[0].line if known else _quote(problems)})"
    if known:
        error = known[0].error
        # The host's own driver works (this check needs that): another one could break it.
        fix = None if isinstance(error.fix, DriverFix) else error.fix.on(distribution)
        return failed(what, error.cause, fix or error.otherwise or DEEPER)
    way = WAYS[facts.tests[0].way] if facts.tests else WAYS["reservation"]
    return failed(
        what,
        "unknown: the engine's message is all that is known",
        f"{facts.engine} run --rm {way} --entrypoint nvidia-smi {facts.image}   # shows all of it",
    )


def _quote(problems: Sequence[str]) -> str:
    return escape_controls(shorten(problems[0], 200)) if problems else "no message"


CONTAINER_GPU_CHECK = Check(
    "container-gpu",
    "a GPU seen from a container",
    probe_container_gpu,
    judge_container_gpu,
    ("gpu-passing", "driver-library", "cgroups"),
    deep_seconds=2 * DEEP_SECONDS + 15,
    late=DEEPER,
)
