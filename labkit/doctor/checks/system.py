"""Checks of the machine: disk, memory, limits, clock, checkout, workspace, port, caches."""

from __future__ import annotations

import contextlib
import os
import re
from dataclasses import dataclass
from pathlib import Path

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
from labkit.host.cpu import read_limits
from labkit.host.distribution import Distribution
from labkit.host.machine import FolderFacts, read_folder
from labkit.text import format_bytes

FULL_BYTES = 2**30
TIGHT_BYTES = 6 * 2**30  # the CPU image takes 1.6 GB, and its build about as much again twice


FREE_SPACE = "df -h   # then delete; docker system prune: the engine's unused images"
FREE_INODES = "df -i   # then delete; docker system prune: the engine's unused images"
FEW_INODES = 50_000  # an image has about as many files


@dataclass(frozen=True)
class DiskPlace:
    """A folder that the lab or its engine writes to, and the free bytes and files on its disk."""

    path: str
    free_bytes: int | None = None
    free_inodes: int | None = None


def probe_disk(host: Host) -> tuple[DiskPlace, ...]:
    """The workspace's disk, and the engine's own if `docker info` names its folder."""
    folders = [host.workspace or Path.cwd()]
    named = host.read_docker_info().get("DockerRootDir")
    if isinstance(named, str) and named.startswith("/") and host.exists(named.lstrip("/")):
        folders.append(Path(named))
    return tuple(DiskPlace(str(f), host.free_bytes(f), host.free_inodes(f)) for f in folders)


def judge_disk(places: tuple[DiskPlace, ...], distribution: Distribution) -> Finding:
    """Judges the place with the least free space, and the one with the fewest free files."""
    known = [(each.free_bytes, each.path) for each in places if each.free_bytes is not None]
    if not known:
        return unknown("the free space cannot be read")
    free, place = min(known)
    found = f"{format_bytes(free)} free at {place}"
    if free < FULL_BYTES:
        return failed(found, "the disk is almost full", FREE_SPACE)
    for each in places:
        if each.free_inodes is not None and each.free_inodes < FEW_INODES:
            words = f"{each.free_inodes:,} more files fit at {each.path}"
            cause = "the disk has run out of inodes, although it has free space"
            return failed(words, cause, FREE_INODES)
    if free < TIGHT_BYTES:
        return warning(found, "a build or an update may fill it", FREE_SPACE)
    return ok(found)


DISK_CHECK = Check("disk", "free space on the disk", probe_disk, judge_disk)


SMALL_BYTES = 2 * 2**30
LOW_BYTES = 2**30


@dataclass(frozen=True)
class MemoryFacts:
    """The machine's total and available memory, and the container's limit, in bytes."""

    total_bytes: int | None = None
    available_bytes: int | None = None
    limit_bytes: int | None = None
    system: str = "Linux"


def probe_memory(host: Host) -> MemoryFacts:
    """/proc/meminfo and the cgroup above this process."""
    text = host.read("proc/meminfo") or ""
    found = re.findall(r"^(MemTotal|MemAvailable):\s+(\d+) kB", text, re.MULTILINE)
    sizes = {name: int(count) * 1024 for name, count in found}
    limit = read_limits(host.root).memory_bytes if sizes else None
    total, available = sizes.get("MemTotal"), sizes.get("MemAvailable")
    return MemoryFacts(total, available, limit, host.machine.system)


def judge_memory(facts: MemoryFacts, distribution: Distribution) -> Finding:
    """A warning if the total or the available memory is small."""
    if facts.system != "Linux":
        return ok(f"not checked on {facts.system}")
    if facts.total_bytes is None:
        return unknown("/proc/meminfo cannot be read")
    total = min(facts.total_bytes, facts.limit_bytes or facts.total_bytes)
    if total < SMALL_BYTES:
        limited = total < facts.total_bytes
        return warning(
            f"{format_bytes(total)} of memory{' for this container' if limited else ''}",
            "JupyterLab and torch need about 1 GiB before any work",
            "LABKIT_MEMORY=4g make down up" if limited else "free -h   # then close programs",
        )
    if facts.available_bytes is not None and facts.available_bytes < LOW_BYTES:
        return warning(
            f"{format_bytes(facts.available_bytes)} of {format_bytes(total)} available",
            "other programs use the rest",
            "ps -eo pid,rss,comm --sort=-rss | head   # shows which",
        )
    return ok(f"{format_bytes(facts.available_bytes)} of {format_bytes(total)} available")


MEMORY_CHECK = Check("memory", "memory", probe_memory, judge_memory)


ENOUGH_BYTES = 512 * 2**20
PLACE = "dev/shm"


@dataclass(frozen=True)
class SharedMemoryFacts:
    """The size of /dev/shm in bytes; None if it does not exist."""

    total_bytes: int | None
    in_container: bool = False
    system: str = "Linux"


def probe_shm(host: Host) -> SharedMemoryFacts:
    """The file system's size at /dev/shm."""
    total = host.total_bytes(host.root / PLACE) if host.exists(PLACE) else None
    return SharedMemoryFacts(total, host.in_container, host.machine.system)


def judge_shm(facts: SharedMemoryFacts, distribution: Distribution) -> Finding:
    """A warning below half a GiB: the engines' default is 64 MiB."""
    if facts.system != "Linux":
        return ok("not needed on this system")
    if facts.total_bytes is None:
        return unknown("the size of /dev/shm cannot be read")
    size = f"shared memory: {format_bytes(facts.total_bytes)}"
    if facts.total_bytes >= ENOUGH_BYTES:
        return ok(size)
    fix = (
        "LABKIT_SHM_SIZE=2g make down up"
        if facts.in_container
        else ("sudo mount -o remount,size=2G /dev/shm")
    )
    return warning(size, "DataLoader workers die with a bus error when it is full", fix)


SHM_CHECK = Check("shm", "shared memory for worker processes", probe_shm, judge_shm)


@dataclass(frozen=True)
class CheckoutFacts:
    """The checkout's folder and the one of labkit's state in it; None outside a checkout."""

    folder: FolderFacts | None = None
    state: FolderFacts | None = None
    user_id: int | None = None


def probe_checkout(host: Host) -> CheckoutFacts:
    """The folders that `make up` writes to; nothing is written."""
    if host.checkout is None:
        return CheckoutFacts()
    state = read_folder(host.checkout / ".labkit")
    return CheckoutFacts(read_folder(host.checkout), state, host.machine.user_id)


def judge_checkout(facts: CheckoutFacts, distribution: Distribution) -> Finding:
    """A failure if `make up` could not keep its state there."""
    if facts.folder is None:
        return ok("not in a checkout")
    state = facts.state if facts.state and facts.state.exists else facts.folder
    if state.writable:
        return ok(f"{facts.folder.path} is writable")
    foreign = facts.user_id not in (None, 0) and state.owner_id != facts.user_id
    path = facts.folder.path
    cause = f"user {state.owner_id} owns it" if foreign else "its mode or its disk is read-only"
    return failed(
        f"{state.path} is not writable",
        f"{cause}; `make up` keeps its state and settings there",
        f"cp -r {path} ~/{path.name} && cd ~/{path.name} && make up   # or have its owner open it",
    )


CHECKOUT_CHECK = Check("checkout", "the checkout's folder", probe_checkout, judge_checkout)


@dataclass(frozen=True)
class WorkspaceFacts:
    """The workspace's folder (None: unknown), and the user and group that examine it.

    ``own`` is True for the folder ``work/`` of a checkout, not a link; ``--fix`` changes no other.
    """

    folder: FolderFacts | None
    user_id: int | None = None
    group_id: int | None = None
    own: bool = False
    in_lab: bool = False


def probe_workspace(host: Host) -> WorkspaceFacts:
    """The folder's owner, and whether this user may write there; nothing is written."""
    folder = read_folder(host.workspace) if host.workspace else None
    return WorkspaceFacts(
        folder,
        host.machine.user_id,
        host.machine.group_id,
        own=is_own(host.workspace),
        in_lab=host.in_lab,
    )


def is_own(workspace: Path | None) -> bool:
    """True for the folder work/ of a checkout, if it is not a link."""
    if workspace is None or workspace.name != "work" or workspace.is_symlink():
        return False
    return (workspace.parent / "compose.yaml").is_file()


def judge_workspace(facts: WorkspaceFacts, distribution: Distribution) -> Finding:
    """OK if it belongs to this user and is writable, or does not exist yet."""
    folder = facts.folder
    if folder is None:
        return ok("not in a checkout, so there is no workspace")
    if not folder.exists:
        return ok(f"{folder.path} does not exist yet; make up creates it")
    if not folder.is_folder:
        fix, cause = f"mv {folder.path} {folder.path}.old", "a file or a dead link has its name"
        return failed(f"{folder.path} is not a folder", cause, fix)
    foreign = facts.user_id not in (None, 0) and folder.owner_id != facts.user_id
    place = "work   # on the host, in the checkout" if facts.in_lab else folder.path
    chown = f'sudo chown -R "$(id -u):$(id -g)" {place}'
    safe = _give_back(facts, foreign) if facts.own else None
    if not folder.writable:
        cause = (
            f"user {folder.owner_id} owns it" if foreign else "its mode or its disk is read-only"
        )
        fix = chown if foreign else f"chmod u+rwx {folder.path}   # or see: ls -ld {folder.path}"
        return failed(f"{folder.path} is not writable", cause, fix, safe=safe)
    if foreign:
        return warning(
            f"{folder.path} belongs to user {folder.owner_id}",
            "you may not be able to change files that the lab creates, and the lab yours",
            chown,
            safe=safe,
        )
    return ok(f"{folder.path} is writable")


def _give_back(facts: WorkspaceFacts, foreign: bool) -> SafeFix | None:
    """Makes this user the owner of the folder and its contents; links are not followed."""
    path = str(facts.folder.path) if facts.folder else ""
    if not foreign:
        return SafeFix(("chmod", "u+rwx", path), "lets you write to your workspace", as_root=False)
    if facts.group_id is None:
        return None
    owner = f"{facts.user_id}:{facts.group_id}"
    return SafeFix(("chown", "-R", "-P", owner, path), "makes you the owner of your workspace")


WORKSPACE_CHECK = Check(
    "workspace", "the workspace's owner", probe_workspace, judge_workspace, ("checkout",)
)


@dataclass(frozen=True)
class PortFacts:
    """The port, whether it is free or this lab's, and whether PORT= names it."""

    port: int
    free: bool
    asked: bool = False
    own: bool = False
    in_lab: bool = False


def probe_port(host: Host) -> PortFacts:
    """Whether a server could listen on the port of 127.0.0.1."""
    free = host.is_port_free("127.0.0.1", host.port)
    own = host.own_port == host.port
    return PortFacts(host.port, free, host.port_asked, own, host.in_lab)


def judge_port(facts: PortFacts, distribution: Distribution) -> Finding:
    """A taken port is a failure only if PORT= names it."""
    if facts.own and not facts.free:
        return ok(f"this lab runs on port {facts.port}")
    if facts.in_lab:
        return ok("the host publishes the port: run the doctor there")
    if facts.free:
        return ok(f"port {facts.port} is free")
    found = f"port {facts.port} is taken"
    if facts.asked:
        return failed(
            found, "another program listens on it", "ss -ltnp   # or choose another PORT="
        )
    return warning(
        found,
        "another program listens on it, which does not accept this lab's token",
        "make up   # takes the next free port, and prints it",
    )


PORT_CHECK = Check("port", "the lab's port", probe_port, judge_port)


NAMES = ("TORCHINDUCTOR_CACHE_DIR", "TRITON_CACHE_DIR", "TMPDIR")


@dataclass(frozen=True)
class CacheFacts:
    """The cache folders; which are not writable, which are noexec, which are this user's."""

    folders: tuple[str, ...] = ()
    unwritable: tuple[str, ...] = ()
    noexec: tuple[str, ...] = ()
    owned: tuple[str, ...] = ()


def probe_caches(host: Host) -> CacheFacts:
    """Mode and mount options of each folder, or of the one to create it in; writes nothing."""
    named = [host.environment[name] for name in NAMES if host.environment.get(name)]
    # By default inductor creates a folder with the user's name in the temporary folder.
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
    """True if the mount of ``path`` is noexec."""
    return bool(os.statvfs(path).f_flag & os.ST_NOEXEC) if hasattr(os, "ST_NOEXEC") else False


def judge_caches(facts: CacheFacts, distribution: Distribution) -> Finding:
    """Every cache folder must be writable, and its files executable."""
    if facts.unwritable:
        folder = facts.unwritable[0]
        open_up = SafeFix(("chmod", "u+rwx", folder), "lets you write to a cache", as_root=False)
        return failed(
            f"{folder} is not writable",
            "torch.compile stores what it builds there",
            "export TORCHINDUCTOR_CACHE_DIR=$HOME/.cache/inductor",
            safe=open_up if folder in facts.owned else None,
        )
    if facts.noexec:
        return failed(
            f"{facts.noexec[0]} is mounted noexec",
            "torch.compile cannot load what it builds there",
            "export TORCHINDUCTOR_CACHE_DIR=$HOME/.cache/inductor TMPDIR=$HOME/.cache",
        )
    return ok(f"{', '.join(facts.folders)}: writable and executable")


CACHES_CHECK = Check(
    "caches", "caches of torch.compile", probe_caches, judge_caches, ("torch-build",)
)


# Files that the system rewrites often: the clock cannot be behind the newest of them.
CLOCK_FILES = ("etc/ld.so.cache", "var/lib/dpkg/status", "var/log/wtmp", "var/log/lastlog")
CLOCK_SLACK_SECONDS = 3600.0


@dataclass(frozen=True)
class ClockFacts:
    """How far the clock is behind the system's newest file, and whether NTP sets it."""

    behind_seconds: float | None = None
    synchronized: bool | None = None


def probe_clock(host: Host) -> ClockFacts:
    """The newest of a few files, and `timedatectl`."""
    times = []
    for name in CLOCK_FILES:
        with contextlib.suppress(OSError):
            times.append((host.root / name).stat().st_mtime)
    words = ["timedatectl", "show", "--property=NTPSynchronized", "--value"]
    answer = host.run(words, timeout_seconds=COMMAND_SECONDS).stdout.strip()
    behind = max(times) - host.now() if times else None
    return ClockFacts(behind, {"yes": True, "no": False}.get(answer))


def judge_clock(facts: ClockFacts, distribution: Distribution) -> Finding:
    """A failure if the clock is behind: certificates and package lists are then not valid yet."""
    if facts.behind_seconds is not None and facts.behind_seconds > CLOCK_SLACK_SECONDS:
        hours = facts.behind_seconds / 3600
        return failed(
            f"the clock is at least {hours:,.0f} h behind",
            "files here are newer than its time; certificates then are not valid yet",
            "sudo timedatectl set-ntp true   # or set it: sudo date -s 'YYYY-MM-DD HH:MM'",
        )
    if facts.synchronized is False:
        return ok("the clock is plausible, and no time server sets it")
    return ok("the clock is plausible")


CLOCK_CHECK = Check("clock", "the system's clock", probe_clock, judge_clock)


ENOUGH_LOCKED_BYTES = 2**40


@dataclass(frozen=True)
class MemlockFacts:
    """The limit of locked memory in bytes (None: unknown), and whether there is InfiniBand."""

    limit_bytes: int | None = None
    has_infiniband: bool = False
    in_container: bool = False


def probe_memlock(host: Host) -> MemlockFacts:
    """/proc/self/limits, and the adapters in /sys/class/infiniband."""
    found = re.search(r"^Max locked memory +(\S+)", host.read("proc/self/limits") or "", re.M)
    text = found[1] if found else ""
    limit = 2**63 if text == "unlimited" else int(text) if text.isdigit() else None
    adapters = host.list("sys/class/infiniband", "*")
    return MemlockFacts(limit, bool(adapters), host.in_container)


def judge_memlock(facts: MemlockFacts, distribution: Distribution) -> Finding:
    """A warning if a host with InfiniBand limits locked memory: NCCL registers all its buffers."""
    if facts.limit_bytes is None or not facts.has_infiniband:
        return ok("no InfiniBand adapter that would need locked memory")
    if facts.limit_bytes >= ENOUGH_LOCKED_BYTES:
        return ok("locked memory has no limit")
    return warning(
        f"at most {format_bytes(facts.limit_bytes)} of locked memory",
        "NCCL registers its buffers with the InfiniBand adapter, and fails at the limit",
        "docker run --ulimit memlock=-1 ...   # on the host; Compose: ulimits: {memlock: -1}"
        if facts.in_container
        else "echo '* - memlock unlimited' | sudo tee /etc/security/limits.d/90-memlock.conf   "
        "# then log in again",
    )


MEMLOCK_CHECK = Check("memlock", "the limit of locked memory", probe_memlock, judge_memlock)
