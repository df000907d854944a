"""The host a check looks at: its files below a root, its commands, and how each is limited."""

from __future__ import annotations

import json
import os
import shutil
import socket
import ssl
import threading
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from labkit.host.distribution import Distribution, read_distribution
from labkit.host.engine import EngineFacts, probe_engine
from labkit.host.machine import MachineFacts, PortProbe, is_port_free, read_machine
from labkit.process import CommandResult, CommandRunner, run_command

COMMAND_SECONDS = 3.0
TRIAL_SECONDS = 600.0
PROBE_GRACE_SECONDS = 0.5
NETWORK_SECONDS = 3.0
READ_CHARACTERS = 1_000_000


def run_probe(arguments: Sequence[str], *, timeout_seconds: float) -> CommandResult:
    """The command's result; one that is past its limit is ended without much ado."""
    return run_command(
        arguments, timeout_seconds=timeout_seconds, grace_seconds=PROBE_GRACE_SECONDS
    )


class OnceRunner:
    """Runs each command once for all checks, within seconds; a program that hung is left alone."""

    def __init__(self, run: CommandRunner, limit_seconds: float = COMMAND_SECONDS) -> None:
        self._run = run
        self._limit_seconds = limit_seconds
        self._lock = threading.Lock()
        self._answers: dict[tuple[str, ...], Future[CommandResult]] = {}
        self._hung: set[str] = set()

    def __call__(self, arguments: Sequence[str], *, timeout_seconds: float) -> CommandResult:
        """The command's result; the same one to everybody who asks the same."""
        words = tuple(arguments)
        with self._lock:
            mine = words not in self._answers
            answer = self._answers.setdefault(words, Future())
        if mine:
            try:
                answer.set_result(self._ask(words, min(timeout_seconds, self._limit_seconds)))
            except BaseException as error:
                answer.set_exception(error)
        return answer.result()

    def _ask(self, words: tuple[str, ...], limit_seconds: float) -> CommandResult:
        if words[0] in self._hung:
            return CommandResult(words, None, seconds=limit_seconds, timed_out=True)
        result = self._run(words, timeout_seconds=limit_seconds)
        if result.timed_out:
            self._hung.add(words[0])
        return result


def find_free_bytes(path: Path) -> int | None:
    """Bytes free on the disk of ``path`` or of the nearest folder above it that exists."""
    for folder in (path, *path.parents):
        try:
            return shutil.disk_usage(folder).free
        except OSError:
            continue
    return None


def find_total_bytes(path: Path) -> int | None:
    """The size of the file system at ``path`` in bytes, or None where it cannot be asked."""
    try:
        return shutil.disk_usage(path).total
    except OSError:
        return None


def resolve_name(name: str) -> None:
    """Asks the system's resolver for the name. Raises OSError where it has no answer."""
    socket.getaddrinfo(name, 443)


def reach_url(url: str, ca_file: str | None = None) -> None:
    """Asks for the page's head, through the proxies set. Raises OSError where nothing answers.

    An answer of any status will do: the question is only whether somebody is there. What
    ``ca_file`` certifies is trusted too, as a build does that is given LABKIT_CA_FILE.
    """
    request = urllib.request.Request(url, method="HEAD")  # noqa: S310  (the settings' own address)
    trust = ssl.create_default_context()
    if ca_file:
        trust.load_verify_locations(ca_file)
    try:
        urllib.request.urlopen(request, timeout=NETWORK_SECONDS, context=trust).close()  # noqa: S310
    except urllib.error.HTTPError as answer:
        answer.close()


@dataclass(frozen=True)
class Host:
    """What the checks may ask. Everything that reaches out is injected, so a host can be played.

    ``own_port`` is the port this checkout's own lab runs on. ``run_long`` has no short limit, and
    ``run_trial`` neither, but runs a command once for all that ask.
    ``deep`` gives what may take minutes its minutes. ``images`` are the images to try a GPU in,
    of which only one that is here already is used. ``builds_torch`` is True in a checkout, whose
    builds take torch from PyTorch's own index where no other one is named.
    """

    run: CommandRunner = field(default_factory=lambda: OnceRunner(run_probe))
    run_long: CommandRunner = run_probe
    run_trial: CommandRunner = field(
        default_factory=lambda: OnceRunner(run_probe, limit_seconds=TRIAL_SECONDS)
    )
    root: Path = Path("/")
    machine: MachineFacts = field(default_factory=read_machine)
    groups: tuple[int, ...] = field(default_factory=lambda: tuple(os.getgroups()))
    environment: Mapping[str, str] = field(default_factory=lambda: dict(os.environ))
    workspace: Path | None = None
    deep: bool = False
    images: tuple[str, ...] = ()
    port: int = 8888
    port_asked: bool = False
    own_port: int | None = None
    indexes: tuple[str, ...] = ()
    builds_torch: bool = False
    free_bytes: Callable[[Path], int | None] = find_free_bytes
    total_bytes: Callable[[Path], int | None] = find_total_bytes
    is_port_free: PortProbe = is_port_free
    resolve: Callable[[str], None] = resolve_name
    reach: Callable[[str], None] = reach_url

    @cached_property
    def distribution(self) -> Distribution:
        """The distribution below this host's root."""
        return read_distribution(self.root)

    @property
    def in_container(self) -> bool:
        """True inside a container, where the engine and its settings are out of sight."""
        marks = (".dockerenv", "run/.containerenv")
        return self.in_lab or any(map(self.exists, marks))

    @property
    def in_lab(self) -> bool:
        """True inside the lab's own container, whose workspace is a folder of the host."""
        return bool(self.environment.get("LABKIT_IN_CONTAINER"))

    @property
    def in_wsl(self) -> bool:
        """True in WSL2, where the GPU is a Windows device (/dev/dxg) and not on a bus."""
        return self.exists("dev/dxg") or "microsoft" in (self.read("proc/version") or "").lower()

    def exists(self, path: str) -> bool:
        """True where there is something at ``path`` below the root."""
        return os.path.lexists(self.root / path)

    def read(self, path: str) -> str | None:
        """The text at ``path`` below the root; None where there is none or it may not be read."""
        try:
            with (self.root / path).open(encoding="utf-8", errors="replace") as file:
                return file.read(READ_CHARACTERS)
        except OSError:
            return None

    def list(self, folder: str, pattern: str) -> list[Path]:
        """What is in a folder below the root, by name; empty where it cannot be listed."""
        try:
            return sorted((self.root / folder).glob(pattern))
        except OSError:
            return []

    def ask_docker(self) -> dict[str, Any]:
        """What `docker info` says of its daemon; empty where it says nothing that can be read."""
        words = ["docker", "info", "--format", "{{json .}}"]
        try:
            said = json.loads(self.run(words, timeout_seconds=COMMAND_SECONDS).stdout)
        except (ValueError, RecursionError):
            return {}
        return said if isinstance(said, dict) else {}

    def probe_engines(self) -> tuple[EngineFacts, EngineFacts]:
        """Docker's and Podman's facts, asked side by side."""
        docker = start_thread(lambda: probe_engine("docker", self.run))
        podman = start_thread(lambda: probe_engine("podman", self.run))
        return docker.result(), podman.result()


def start_thread(function: Callable[[], EngineFacts]) -> Future[EngineFacts]:
    """The future result of a function that runs beside this one and never holds up an exit."""
    future: Future[EngineFacts] = Future()

    def work() -> None:
        try:
            future.set_result(function())
        except Exception as error:
            future.set_exception(error)

    threading.Thread(target=work, daemon=True).start()
    return future
