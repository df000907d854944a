"""A check, its finding, and the host that it examines: files below a root, commands, limits."""

from __future__ import annotations

import json
import os
import shutil
import socket
import ssl
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from labkit.host.cpu import count_allowed_cores
from labkit.host.distribution import Distribution, read_distribution
from labkit.host.engine import EngineFacts, probe_engine
from labkit.host.gpu import find_smi, is_lxc, is_wsl
from labkit.host.machine import MachineFacts, PortProbe, is_port_free, read_machine
from labkit.process import CommandResult, CommandRunner, run_command, run_working

PROBE_SECONDS = 3.0
# What a check asks for; the limit of each command is the runner's: less, unless the host is busy.
COMMAND_SECONDS = 20.0
SELF_TEST_SECONDS = 600.0
PROBE_GRACE_SECONDS = 0.5
WORK_SECONDS = 60.0
NETWORK_SECONDS = 3.0
READ_CHARACTERS = 1_000_000


def run_probe(arguments: Sequence[str], *, timeout_seconds: float) -> CommandResult:
    """The command's result; a command that exceeds its limit has half a second to end."""
    return run_command(
        arguments, timeout_seconds=timeout_seconds, grace_seconds=PROBE_GRACE_SECONDS
    )


def run_own_python(arguments: Sequence[str], *, timeout_seconds: float) -> CommandResult:
    """As ``run_probe``, for this same Python, which imports what its parent does (PYTHONPATH).

    A limit of minutes is one of work done: a busy machine is not a device that hangs.
    """
    if timeout_seconds > WORK_SECONDS:
        return run_working(arguments, timeout_seconds=timeout_seconds, environment=os.environ)
    return run_command(
        arguments,
        timeout_seconds=timeout_seconds,
        environment=os.environ,
        grace_seconds=PROBE_GRACE_SECONDS,
    )


class OnceRunner:
    """Runs each command once for all checks; a program that hung is not run again."""

    def __init__(self, run: CommandRunner, limit_seconds: float = PROBE_SECONDS) -> None:
        self._run = run
        self._limit_seconds = limit_seconds
        self._lock = threading.Lock()
        self._answers: dict[tuple[str, ...], Future[CommandResult]] = {}
        self._hung: set[str] = set()

    def __call__(self, arguments: Sequence[str], *, timeout_seconds: float) -> CommandResult:
        """The command's result; every caller of the same command gets the same one."""
        words = tuple(arguments)
        with self._lock:
            mine = words not in self._answers
            answer = self._answers.setdefault(words, Future())
        if mine:
            try:
                answer.set_result(self._run_once(words, min(timeout_seconds, self._limit_seconds)))
            except BaseException as error:
                answer.set_exception(error)
        return answer.result()

    def _run_once(self, words: tuple[str, ...], limit_seconds: float) -> CommandResult:
        if words[0] in self._hung:
            return CommandResult(words, None, seconds=limit_seconds, timed_out=True)
        result = self._run(words, timeout_seconds=limit_seconds)
        if result.timed_out:
            self._hung.add(words[0])
        return result


def measure_patience() -> float:
    """By how much to extend limits of time: the processes that wait for each core, from 1 to 6."""
    cores = count_allowed_cores() or 1
    try:
        waiting = os.getloadavg()[0] / cores
    except OSError:  # not on this system
        return 1.0
    return max(1.0, min(6.0, waiting))


def find_free_inodes(path: Path) -> int | None:
    """Files that can still be created on the disk of ``path``; None if it has no such limit."""
    for folder in (path, *path.parents):
        try:
            found = os.statvfs(folder)
        except OSError:
            continue
        return found.f_favail if found.f_files else None
    return None


def find_free_bytes(path: Path) -> int | None:
    """Bytes free on the disk of ``path``, or of the nearest existing folder above it."""
    for folder in (path, *path.parents):
        try:
            return shutil.disk_usage(folder).free
        except OSError:
            continue
    return None


def find_total_bytes(path: Path) -> int | None:
    """The size of the file system at ``path`` in bytes, or None if it cannot be read."""
    try:
        return shutil.disk_usage(path).total
    except OSError:
        return None


def resolve_name(name: str) -> None:
    """Resolves the name with the system's resolver. Raises OSError if it cannot."""
    socket.getaddrinfo(name, 443)


def reach_url(url: str, ca_file: str | None = None) -> None:
    """Requests the page's head, through the proxies set. Raises OSError if nothing answers.

    Any status is an answer: the server is reachable. The certificates in ``ca_file`` are trusted
    too, as in a build with LABKIT_CA_FILE.
    """
    request = urllib.request.Request(url, method="HEAD")  # noqa: S310  (an address from the settings)
    trust = ssl.create_default_context()
    if ca_file:
        trust.load_verify_locations(ca_file)
    try:
        urllib.request.urlopen(request, timeout=NETWORK_SECONDS, context=trust).close()  # noqa: S310
    except urllib.error.HTTPError as answer:
        answer.close()


@dataclass(frozen=True)
class Host:
    """The host's files, commands and network, all injected, so that tests can play a host.

    ``run`` ends a command after a few seconds. ``run_long`` and ``run_shared`` allow more time;
    ``run_shared`` runs each command once for all checks. ``deep`` gives slow checks minutes.
    ``own_port`` is the port of this checkout's running lab. ``images`` are the images to test GPU
    access with; only one that the engine already has is used. ``builds_torch`` is True in a
    checkout, whose builds get torch from PyTorch's index unless another one is set. ``patience``
    extends the checks' limits on a busy machine. ``find_program`` is like ``shutil.which``.
    """

    run: CommandRunner = field(default_factory=lambda: OnceRunner(run_probe))
    run_long: CommandRunner = run_probe
    run_shared: CommandRunner = field(
        default_factory=lambda: OnceRunner(run_own_python, limit_seconds=SELF_TEST_SECONDS)
    )
    root: Path = Path("/")
    machine: MachineFacts = field(default_factory=read_machine)
    groups: tuple[int, ...] = field(default_factory=lambda: tuple(os.getgroups()))
    environment: Mapping[str, str] = field(default_factory=lambda: dict(os.environ))
    workspace: Path | None = None
    checkout: Path | None = None
    deep: bool = False
    patience: float = 1.0
    images: tuple[str, ...] = ()
    port: int = 8888
    port_asked: bool = False
    own_port: int | None = None
    indexes: tuple[str, ...] = ()
    builds_torch: bool = False
    free_bytes: Callable[[Path], int | None] = find_free_bytes
    total_bytes: Callable[[Path], int | None] = find_total_bytes
    free_inodes: Callable[[Path], int | None] = find_free_inodes
    find_program: Callable[[str], object] = shutil.which
    now: Callable[[], float] = time.time
    is_port_free: PortProbe = is_port_free
    resolve: Callable[[str], None] = resolve_name
    reach: Callable[[str], None] = reach_url

    @cached_property
    def distribution(self) -> Distribution:
        """The distribution below this host's root."""
        return read_distribution(self.root)

    @property
    def in_container(self) -> bool:
        """True inside a container, from which the engine and its settings are not visible."""
        signs = (".dockerenv", "run/.containerenv", ".singularity.d")
        in_pod = bool(self.environment.get("KUBERNETES_SERVICE_HOST"))  # containerd leaves no file
        return self.in_lab or in_pod or any(map(self.exists, signs))

    @property
    def in_lxc(self) -> bool:
        """True in an LXC container: a system of its own, which runs on its host's kernel."""
        return is_lxc(self.root, self.environment)

    @cached_property
    def smi(self) -> str:
        """How to call nvidia-smi on this host."""
        return find_smi(self.run, self.root)

    @property
    def in_lab(self) -> bool:
        """True inside the lab's container, whose workspace is a folder of the host."""
        return bool(self.environment.get("LABKIT_IN_CONTAINER"))

    @property
    def in_wsl(self) -> bool:
        """True in WSL2, where the GPU is a Windows device (/dev/dxg) and not on a bus."""
        return is_wsl(self.root)

    def exists(self, path: str) -> bool:
        """True if a file, folder or link exists at ``path`` below the root."""
        return os.path.lexists(self.root / path)

    def read(self, path: str) -> str | None:
        """The text at ``path`` below the root; None if there is none or it cannot be read."""
        try:
            with (self.root / path).open(encoding="utf-8", errors="replace") as file:
                return file.read(READ_CHARACTERS)
        except OSError:
            return None

    def list(self, folder: str, pattern: str) -> list[Path]:
        """The sorted entries of a folder below the root; empty if it cannot be listed."""
        try:
            return sorted((self.root / folder).glob(pattern))
        except OSError:
            return []

    def read_docker_info(self) -> dict[str, Any]:
        """What `docker info` says about its daemon; empty if it cannot be read."""
        words = ["docker", "info", "--format", "{{json .}}"]
        try:
            info = json.loads(self.run(words, timeout_seconds=COMMAND_SECONDS).stdout)
        except (ValueError, RecursionError):
            return {}
        return info if isinstance(info, dict) else {}

    def probe_engines(self) -> tuple[EngineFacts, EngineFacts]:
        """Docker's and Podman's facts, probed at the same time."""
        docker = start_thread(lambda: probe_engine("docker", self.run, self.environment))
        podman = start_thread(lambda: probe_engine("podman", self.run, self.environment))
        return docker.result(), podman.result()


def start_thread(function: Callable[[], EngineFacts]) -> Future[EngineFacts]:
    """The future result of a function in a thread that does not delay an exit."""
    future: Future[EngineFacts] = Future()

    def work() -> None:
        try:
            future.set_result(function())
        except Exception as error:
            future.set_exception(error)

    threading.Thread(target=work, daemon=True).start()
    return future


# All checks must finish within 10 s, with the start of Python and the printing.
LIMIT_SECONDS = 8.0

Status = Literal["ok", "skipped", "unknown", "warning", "failed"]
# In display order: failures come last, so that they stay visible in a terminal.
STATUSES: tuple[Status, ...] = ("ok", "skipped", "unknown", "warning", "failed")


@dataclass(frozen=True)
class SafeFix:
    """A fix that ``--fix`` may run: its exact arguments (not a shell line), and what it does.

    A fix is safe if it can be undone, touches no other user's work, and grants no more access than
    the lab needs: no reboot, no installation, no restart of an engine, no deletion.
    """

    arguments: tuple[str, ...]
    does: str
    as_root: bool = True

    def command(self, user_id: int | None, *, may_ask: bool = True) -> tuple[str, ...]:
        """The command for this user, with sudo if it needs root; ``may_ask``: for a password."""
        if not self.as_root or user_id == 0:
            return self.arguments
        return ("sudo", *(() if may_ask else ("-n",)), *self.arguments)


@dataclass(frozen=True)
class Finding:
    """The result of a check, with the likely cause and the exact fix (None without a problem).

    ``skip_reason`` says why checks that depend on this one are skipped, None if they are not.
    ``safe`` is the fix as data, if ``--fix`` may run it.
    """

    status: Status
    found: str
    cause: str | None = None
    fix: str | None = None
    skip_reason: str | None = None
    check: str = ""
    safe: SafeFix | None = None

    def describe(self) -> dict[str, object]:
        """The finding as ``--json`` prints it."""
        return {
            "check": self.check,
            "status": self.status,
            "found": self.found,
            "cause": self.cause,
            "fix": self.fix,
            "safe_fix": list(self.safe.arguments) if self.safe else None,
        }


def ok(found: str, *, skip_reason: str | None = None) -> Finding:
    """No problem; ``skip_reason`` says why the checks that depend on this one are skipped."""
    return Finding("ok", found, skip_reason=skip_reason)


def warning(
    found: str,
    cause: str,
    fix: str,
    *,
    skip_reason: str | None = None,
    safe: SafeFix | None = None,
) -> Finding:
    """The lab works, but could work better or more safely."""
    return Finding("warning", found, cause, fix, skip_reason, safe=safe)


def failed(found: str, cause: str, fix: str, *, safe: SafeFix | None = None) -> Finding:
    """The lab, or its GPU, does not work."""
    return Finding("failed", found, cause, fix, safe=safe)


def unknown(found: str, fix: str | None = None) -> Finding:
    """The probe gave no usable answer."""
    return Finding("unknown", found, None, fix)


@dataclass(frozen=True)
class Check:
    """One question about a host: a probe that reads facts and a pure function that judges them.

    The check is skipped if a check in ``needs`` did not pass. It must end ``limit_seconds`` after
    the start of the examination (``deep_seconds`` with ``--deep``); ``late`` is the fix to show if
    it does not.
    """

    name: str
    title: str
    probe: Callable[[Host], Any]
    judge: Callable[[Any, Distribution], Finding]
    needs: tuple[str, ...] = ()
    network: bool = False
    limit_seconds: float = LIMIT_SECONDS
    deep_seconds: float = LIMIT_SECONDS
    late: str | None = None
