"""Can what torch.compile builds be kept, and run from where it is kept?

Is there room on the disk for images, packages and the workspace?

Is there memory for a lab?

Is /dev/shm large enough for DataLoader workers?

Is the workspace a folder that the lab may write to?

Is the lab's port free?
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path

from labkit.devices.cpu import read_limits
from labkit.doctor.check import Check, Finding, SafeFix, failed, ok, unknown, warning
from labkit.doctor.host import COMMAND_SECONDS, Host
from labkit.host.distribution import Distribution
from labkit.host.machine import FolderFacts, read_folder
from labkit.text import format_bytes

FULL_BYTES = 2**30
TIGHT_BYTES = 6 * 2**30  # the CPU image takes 1.6 GB, and its build about as much again twice


@dataclass(frozen=True)
class DiskFacts:
    """Free bytes at each place the lab writes to; None is unknown."""

    places: tuple[tuple[str, int | None], ...]


def probe_disk(host: Host) -> DiskFacts:
    """The workspace's disk, and the engine's own where `docker info` names a folder here."""
    folders = [host.workspace or Path.cwd()]
    info = host.run(["docker", "info", "--format", "{{json .}}"], timeout_seconds=COMMAND_SECONDS)
    named = re.search(r'"DockerRootDir":\s*"(/[^"]+)"', info.stdout)
    if named and host.exists(named.group(1).lstrip("/")):
        folders.append(Path(named.group(1)))
    return DiskFacts(tuple((str(folder), host.free_bytes(folder)) for folder in folders))


def judge_disk(facts: DiskFacts, distribution: Distribution) -> Finding:
    """Judged by the place with the least room."""
    known = [(free, place) for place, free in facts.places if free is not None]
    if not known:
        return unknown("no folder to ask for its room")
    free, place = min(known)
    found = f"{format_bytes(free)} free at {place}"
    if free < FULL_BYTES:
        return failed(found, "the disk is all but full", "df -h && docker system prune")
    if free < TIGHT_BYTES:
        return warning(found, "a build or an update may fill it", "df -h && docker system prune")
    return ok(found)


DISK_CHECK = Check("disk", "room on the disk", probe_disk, judge_disk)


SMALL_BYTES = 2 * 2**30
LOW_BYTES = 2**30


@dataclass(frozen=True)
class MemoryFacts:
    """The machine's memory, what of it is available, and the container's limit, in bytes."""

    total_bytes: int | None = None
    available_bytes: int | None = None
    limit_bytes: int | None = None
    system: str = "Linux"


def probe_memory(host: Host) -> MemoryFacts:
    """/proc/meminfo and the cgroup above this process."""
    text = host.read("proc/meminfo") or ""
    found = re.findall(r"^(MemTotal|MemAvailable):\s+(\d+) kB", text, re.MULTILINE)
    told = {name: int(count) * 1024 for name, count in found}
    limit = read_limits(host.root).memory_bytes if told else None
    return MemoryFacts(told.get("MemTotal"), told.get("MemAvailable"), limit, host.machine.system)


def judge_memory(facts: MemoryFacts, distribution: Distribution) -> Finding:
    """A warning where there is little in all, or little left."""
    if facts.system != "Linux":
        return ok(f"not asked on {facts.system}")
    if facts.total_bytes is None:
        return unknown("/proc/meminfo does not say")
    total = min(facts.total_bytes, facts.limit_bytes or facts.total_bytes)
    if total < SMALL_BYTES:
        limited = total < facts.total_bytes
        return warning(
            f"{format_bytes(total)} of memory{' for this container' if limited else ''}",
            "JupyterLab and torch take about 1 GiB before any work is done",
            "LABKIT_MEMORY=4g make down up" if limited else "free -h   # close what is not needed",
        )
    if facts.available_bytes is not None and facts.available_bytes < LOW_BYTES:
        return warning(
            f"{format_bytes(facts.available_bytes)} of {format_bytes(total)} available",
            "other programs hold the rest",
            "ps -eo pid,rss,comm --sort=-rss | head   # shows which",
        )
    return ok(f"{format_bytes(facts.available_bytes)} of {format_bytes(total)} available")


MEMORY_CHECK = Check("memory", "memory", probe_memory, judge_memory)


ENOUGH_BYTES = 512 * 2**20
PLACE = "dev/shm"


@dataclass(frozen=True)
class SharedMemoryFacts:
    """The size of /dev/shm in bytes; None where there is none to ask."""

    total_bytes: int | None
    in_container: bool = False
    system: str = "Linux"


def probe_shm(host: Host) -> SharedMemoryFacts:
    """The file system's size at /dev/shm."""
    total = host.total_bytes(host.root / PLACE) if host.exists(PLACE) else None
    return SharedMemoryFacts(total, host.in_container, host.machine.system)


def judge_shm(facts: SharedMemoryFacts, distribution: Distribution) -> Finding:
    """A warning below half a GiB: an engine's own default is 64 MiB."""
    if facts.system != "Linux":
        return ok("this system has none, and needs none")
    if facts.total_bytes is None:
        return unknown("shared memory (/dev/shm) cannot be asked")
    size = f"shared memory: {format_bytes(facts.total_bytes)}"
    if facts.total_bytes >= ENOUGH_BYTES:
        return ok(size)
    fix = (
        "LABKIT_SHM_SIZE=2g make down up"
        if facts.in_container
        else ("sudo mount -o remount,size=2G /dev/shm")
    )
    return warning(size, "DataLoader workers die of a Bus error when it is full", fix)


SHM_CHECK = Check("shm", "shared memory for worker processes", probe_shm, judge_shm)


@dataclass(frozen=True)
class WorkspaceFacts:
    """The workspace's folder (None: not known where), who asks, and whether it is a checkout's own.

    Only a checkout's own ``work/``, no link to elsewhere, is a folder to change by itself.
    """

    folder: FolderFacts | None
    user_id: int | None = None
    group_id: int | None = None
    own: bool = False
    in_lab: bool = False


def probe_workspace(host: Host) -> WorkspaceFacts:
    """The folder's owner and whether this user may write there; nothing is written to find out."""
    folder = read_folder(host.workspace) if host.workspace else None
    return WorkspaceFacts(
        folder,
        host.machine.user_id,
        host.machine.group_id,
        own=is_own(host.workspace),
        in_lab=host.in_lab,
    )


def is_own(workspace: Path | None) -> bool:
    """True for the folder work/ that lies in a checkout itself."""
    if workspace is None or workspace.name != "work" or workspace.is_symlink():
        return False
    return (workspace.parent / "compose.yaml").is_file()


def judge_workspace(facts: WorkspaceFacts, distribution: Distribution) -> Finding:
    """Fine where it is this user's, writable, or not made yet."""
    folder = facts.folder
    if folder is None:
        return ok("no checkout here, so no workspace to look at")
    if not folder.exists:
        return ok(f"{folder.path} is not made yet; make up makes it")
    if not folder.is_folder:
        fix, cause = f"mv {folder.path} {folder.path}.old", "a file or a dead link is in its place"
        return failed(f"{folder.path} is not a folder", cause, fix)
    foreign = facts.user_id not in (None, 0) and folder.owner_id != facts.user_id
    place = "work   # on the host, in the checkout" if facts.in_lab else folder.path
    chown = f'sudo chown -R "$(id -u):$(id -g)" {place}'
    safe = _give_back(facts, foreign) if facts.own else None
    if not folder.writable:
        cause = f"user {folder.owner_id} owns it" if foreign else "its mode or its disk forbids it"
        fix = chown if foreign else f"chmod u+rwx {folder.path}   # or look: ls -ld {folder.path}"
        return failed(f"{folder.path} cannot be written", cause, fix, safe=safe)
    if foreign:
        return warning(
            f"{folder.path} belongs to user {folder.owner_id}",
            "files made inside the lab may not be yours outside, or the other way round",
            chown,
            safe=safe,
        )
    return ok(f"{folder.path} can be written")


def _give_back(facts: WorkspaceFacts, foreign: bool) -> SafeFix | None:
    """The folder back in this user's hands, with what is in it; links in it are not followed."""
    path = str(facts.folder.path) if facts.folder else ""
    if not foreign:
        return SafeFix(("chmod", "u+rwx", path), "lets you write to your workspace", as_root=False)
    if facts.group_id is None:
        return None
    owner = f"{facts.user_id}:{facts.group_id}"
    return SafeFix(("chown", "-R", "-P", owner, path), "gives your workspace back to you")


WORKSPACE_CHECK = Check("workspace", "the workspace's owner", probe_workspace, judge_workspace)


@dataclass(frozen=True)
class PortFacts:
    """The port, who has it, and whether it was asked for by number."""

    port: int
    free: bool
    asked: bool = False
    own: bool = False
    in_lab: bool = False


def probe_port(host: Host) -> PortFacts:
    """Whether a server could listen on the port of 127.0.0.1 now."""
    free = host.is_port_free("127.0.0.1", host.port)
    own = host.own_port == host.port
    return PortFacts(host.port, free, host.port_asked, own, host.in_lab)


def judge_port(facts: PortFacts, distribution: Distribution) -> Finding:
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


PORT_CHECK = Check("port", "the lab's port", probe_port, judge_port)


NAMES = ("TORCHINDUCTOR_CACHE_DIR", "TRITON_CACHE_DIR", "TMPDIR")


@dataclass(frozen=True)
class CacheFacts:
    """The cache folders, those of them that refuse writing or running, and those that are ours."""

    folders: tuple[str, ...] = ()
    unwritable: tuple[str, ...] = ()
    noexec: tuple[str, ...] = ()
    owned: tuple[str, ...] = ()


def probe_caches(host: Host) -> CacheFacts:
    """Mode and mount options of each folder, or of the one it would be made in; writes nothing."""
    named = [host.environment[name] for name in NAMES if host.environment.get(name)]
    # Where no folder is named, inductor makes one of the user's name in the folder for temporaries.
    default = Path(host.environment.get("TMPDIR") or "/tmp")  # noqa: S108
    folders = [Path(name) for name in dict.fromkeys([*named, "/tmp"])]  # noqa: S108
    if not host.environment.get("TORCHINDUCTOR_CACHE_DIR") and host.machine.user_name:
        folders.append(default / f"torchinductor_{host.machine.user_name}")
    existing = {folder: _find_existing(host.root / str(folder).lstrip("/")) for folder in folders}
    return CacheFacts(
        tuple(str(folder) for folder in folders),
        tuple(str(each) for each, at in existing.items() if not os.access(at, os.W_OK | os.X_OK)),
        tuple(str(each) for each, at in existing.items() if is_noexec(at)),
        tuple(
            str(each)
            for each, at in existing.items()
            if each.name == at.name and at.stat().st_uid == host.machine.user_id
        ),
    )


def _find_existing(path: Path) -> Path:
    return next((each for each in (path, *path.parents) if each.exists()), path)


def is_noexec(path: Path) -> bool:
    """True where the mount that holds ``path`` forbids running programs from it."""
    return bool(os.statvfs(path).f_flag & os.ST_NOEXEC) if hasattr(os, "ST_NOEXEC") else False


def judge_caches(facts: CacheFacts, distribution: Distribution) -> Finding:
    """Every cache folder must take files, and let what is in them run."""
    if facts.unwritable:
        folder = facts.unwritable[0]
        open_up = SafeFix(("chmod", "u+rwx", folder), "lets you write to a cache", as_root=False)
        return failed(
            f"{folder} cannot be written",
            "torch.compile keeps what it builds there",
            "export TORCHINDUCTOR_CACHE_DIR=$HOME/.cache/inductor",
            safe=open_up if folder in facts.owned else None,
        )
    if facts.noexec:
        return failed(
            f"{facts.noexec[0]} is mounted noexec",
            "what torch.compile builds there cannot be loaded",
            "export TORCHINDUCTOR_CACHE_DIR=$HOME/.cache/inductor TMPDIR=$HOME/.cache",
        )
    return ok(f"{', '.join(facts.folders)} can be written and run from")


CACHES_CHECK = Check(
    "caches", "caches of torch.compile", probe_caches, judge_caches, ("torch-build",)
)
