"""The settings of a command, from its options and environment; the folders of a checkout."""

from __future__ import annotations

import hashlib
import ipaddress
import os
import re
import shlex
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from labkit.errors import LabkitError, UsageError
from labkit.host.gpu import parse_gpus

RUNTIMES = ("docker", "podman", "local")
DEFAULT_PORT = 8888
LOOPBACK = "127.0.0.1"
# The lock of what this checkout adds to the lab; git ignores it.
EXTRAS = "extras"


# What the launcher found wrong with the host, for the start page: findings as the doctor's in JSON.
NOTICES_VARIABLE = "LABKIT_NOTICES"


@dataclass(frozen=True)
class Checkout:
    """The folder with compose.yaml, and the places in it that the launcher uses.

    ``named`` is the workspace if it is not the checkout's ``work/`` (LABKIT_WORKSPACE).
    """

    root: Path
    named: Path | None = None

    @property
    def state_folder(self) -> Path:
        """Token, state, logs and the local lab's caches: mode 0700, outside of git."""
        return self.root / ".labkit"

    @property
    def workspace(self) -> Path:
        """The learner's folder."""
        return self.named or self.root / "work"

    @property
    def token_file(self) -> Path:
        """The file with the running lab's token, of mode 0600."""
        return self.state_folder / "token"

    @property
    def logs_folder(self) -> Path:
        """The folder of the logs, one for each kind of long step; errors name the file."""
        return self.state_folder / "logs"

    @property
    def environment_folder(self) -> Path:
        """The Python environment of the local runtime; LABKIT_VENV overrides it."""
        return self.root / (os.environ.get("LABKIT_VENV") or ".venv")

    def lock_file(self, name: str) -> Path:
        """The file with the pinned packages of one lock, such as "lab"."""
        return self.root / "docker" / "locks" / f"{name}.txt"

    @property
    def project(self) -> str:
        """The Compose project's name, different for each checkout on this machine."""
        digest = hashlib.sha256(str(self.root).encode()).hexdigest()[:8]
        return f"labkit-{digest}"


@dataclass(frozen=True)
class Settings:
    """What the user asked for; "auto" and None leave the choice to the launcher.

    ``memory_bytes`` limits a container's memory; 0 means no limit. ``data`` is a folder that the
    lab may read, ``env_file`` a file with variables for it.
    """

    runtime: str = "auto"
    flavor: str = "auto"
    port: int | None = None
    bind: str = LOOPBACK
    bind_asked: bool = False
    cuda: str = "auto"
    gpus: tuple[str, ...] = ()
    memory_bytes: int | None = None
    data: Path | None = None
    env_file: Path | None = None

    @property
    def asks_for_gpu(self) -> bool:
        """True if the user asked by name for a CUDA build or GPUs, which a cpu lab cannot have."""
        return self.cuda != "auto" or bool(self.gpus)

    @property
    def opens_to_others(self) -> bool:
        """True if other machines can reach the lab."""
        return not ipaddress.ip_address(self.bind).is_loopback


@dataclass(frozen=True)
class Flavor:
    """A flavor: its torch build, its GPUs, and how a container gets them.

    ``gpus`` are names for the engine ("all", an index, a UUID), empty without GPUs; ``way`` is
    "reservation" or "cdi" in a container, else None.
    """

    name: str
    build: str
    gpus: tuple[str, ...] = ()
    way: str | None = None


CPU = Flavor("cpu", "cpu")


@dataclass(frozen=True)
class Identity:
    """The container's user; ``keep_id`` makes rootless Podman map the host's user to itself."""

    user_id: int
    group_id: int
    keep_id: bool = False
    owns_workspace: bool = True

    @property
    def is_root(self) -> bool:
        """True only in a rootless engine, where the container's root is the host's user."""
        return self.user_id == 0


def find_checkout(start: Path | None = None) -> Checkout:
    """The checkout that this labkit runs from; LABKIT_HOME overrides it.

    The variables in its `.env` become this process's, unless they are set already. Raises
    UsageError if it has no compose.yaml, or for a line in `.env` that sets no variable.
    """
    named = os.environ.get("LABKIT_HOME")
    root = start or (Path(named) if named else Path(__file__).parents[2])
    if not (root / "compose.yaml").is_file():
        raise UsageError(
            f"no checkout of labkit at {root}",
            cause="compose.yaml is not there; the launcher works from a clone of the repository",
            fix="labkit lab DIR   # a lab that needs no clone; else cd to the clone",
        )
    root = root.resolve()
    if (root / ".env").is_file():
        for name, value in read_variables(root / ".env").items():
            os.environ.setdefault(name, value)
    asked = os.environ.get("LABKIT_WORKSPACE")
    workspace = Path(asked).expanduser().absolute() if asked else root / "work"
    return Checkout(root, None if workspace == root / "work" else workspace)


def read_variables(path: Path) -> dict[str, str]:
    """The variables in a file of lines NAME=VALUE; quotes around a value are removed.

    Empty lines and those that start with # are skipped; `export` is allowed, `$` has no meaning.
    Raises UsageError if the file cannot be read or a line is none of these; it quotes no line,
    which may have a secret.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, ValueError) as error:
        raise UsageError(
            f"{path} cannot be read: {getattr(error, 'strerror', None) or 'it is not text'}",
            cause="it is a file of lines NAME=VALUE",
            fix=f"ls -l {shlex.quote(str(path))}",
        ) from error
    values = {}
    for number, line in enumerate(lines, 1):
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        found = re.fullmatch(r"\s*(?:export\s+)?([A-Za-z_]\w*)\s*=\s*(.*?)\s*", line)
        if found is None:
            raise UsageError(
                f"line {number} of {path} does not set a variable",
                cause="each line is NAME=VALUE",
                fix=f"sed -n {number}p {shlex.quote(str(path))}   # shows the line",
            )
        quoted = re.fullmatch(r"(['\"])(.*)\1", found[2])
        values[found[1]] = quoted[2] if quoted else re.sub(r"\s+#.*", "", found[2])
    return values


def check_locks(checkout: Checkout, locks: Iterable[str]) -> None:
    """Raises LabkitError if a lock is missing, before anything is downloaded or removed."""
    missing = [path for path in map(checkout.lock_file, locks) if not path.is_file()]
    if missing:
        raise LabkitError(
            f"docker/locks/{missing[0].name} is missing",
            cause="the checkout is not complete",
            fix=f"git -C {shlex.quote(str(checkout.root))} checkout -- docker/locks",
        )


def read_settings(
    options: Mapping[str, str | None], environment: Mapping[str, str] = os.environ
) -> Settings:
    """The settings from options; a missing one from LABKIT_<NAME> in the environment.

    Raises UsageError for an invalid port, address, memory limit, path or list of GPUs.
    """

    def asked(name: str) -> str | None:
        return options.get(name) or environment.get(f"LABKIT_{name.upper()}") or None

    return Settings(
        runtime=asked("runtime") or "auto",
        flavor=asked("flavor") or "auto",
        port=_parse_port(asked("port")),
        bind=_parse_address(asked("bind")),
        bind_asked=asked("bind") is not None,
        cuda=asked("cuda") or "auto",
        gpus=parse_gpus(asked("gpus")),
        memory_bytes=_parse_memory(asked("memory")),
        data=_parse_path("DATA", asked("data"), Path.is_dir),
        env_file=_parse_path("ENV_FILE", asked("env_file"), Path.is_file),
    )


def read_lab_variables(settings: Settings) -> dict[str, str]:
    """The variables in ENV_FILE, for the lab alone. Raises UsageError for one of labkit's own."""
    if settings.env_file is None:
        return {}
    values = read_variables(settings.env_file)
    own = [name for name in values if name.startswith("LABKIT_")]
    if own:
        raise UsageError(
            f"{settings.env_file} sets {own[0]}",
            cause="ENV_FILE is for variables of your programs; labkit's own stand in .env",
            fix=f"mv {shlex.quote(str(settings.env_file))} .env   # or remove the line",
        )
    return values


def _parse_path(name: str, text: str | None, is_kind: Callable[[Path], bool]) -> Path | None:
    if text is None:
        return None
    path = Path(text).expanduser().absolute()
    if is_kind(path):
        return path
    kind = "folder" if name == "DATA" else "file"
    raise UsageError(
        f"{name}={text} is not a {kind}",
        cause=f"{name} takes the path of a {kind} on this machine",
        fix=f"ls -ld {shlex.quote(str(path))}",
    )


def _parse_port(text: str | None) -> int | None:
    if text is None:
        return None
    if text.isdecimal() and 1 <= int(text) <= 65535:
        return int(text)
    raise UsageError(
        f"invalid PORT={text}", cause="a port is a number from 1 to 65535", fix="make up"
    )


def _parse_address(text: str | None) -> str:
    if text in (None, "localhost"):
        return LOOPBACK
    try:
        return str(ipaddress.ip_address(str(text)))
    except ValueError as error:
        raise UsageError(
            f"invalid BIND={text}",
            cause="BIND takes an IP address of this machine",
            fix="make up BIND=127.0.0.1",
        ) from error


def _parse_memory(text: str | None) -> int | None:
    """A size such as "16g" or "1.5 GiB" in bytes; 0 for "off", None for "auto"."""
    asked = (text or "auto").strip().lower()
    if asked in ("auto", "off"):
        return None if asked == "auto" else 0
    found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([bkmgt]?)(?:i?b)?", asked)
    if found is None:
        raise UsageError(
            f"invalid MEMORY={text}",
            cause="MEMORY takes a size, off or auto",
            fix="make up MEMORY=16g",
        )
    return int(float(found[1]) * 1024 ** "bkmgt".find(found[2] or "b"))
