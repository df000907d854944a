"""The launcher's files in `.labkit`: the state of the running lab, its token, and a lock."""

from __future__ import annotations

import contextlib
import errno
import ipaddress
import json
import os
import re
import secrets
import shlex
import stat
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypeVar, get_type_hints

from labkit.errors import LabkitError, UsageError
from labkit.files import LARGEST_RECORD_BYTES, explain_wrong_kind
from labkit.host.torch_builds import BUILDS
from labkit.launch.settings import RUNTIMES, Checkout

T = TypeVar("T")
# Subfolders of the state folder with many files and no secrets.
CACHES = ("torchinductor", "tools")


@dataclass(frozen=True)
class LabHandle:
    """Handle of a running lab: the id of its container, or its process.

    The start time distinguishes the process from a later one with the same id.
    """

    container: str | None = None
    process_id: int | None = None
    process_started: str | None = None


@dataclass(frozen=True)
class LabState:
    """A started lab: its settings, the reason for them, its address, and its handle.

    ``gpus`` names the GPUs of a cuda lab for the engine ("all", "0,1"), ``gpus_asked`` as the
    user typed them. ``workspace`` is None for the checkout's own; ``data`` and ``env_file`` are
    paths as in `Settings`. ``lessons`` is the digest of the labs' lessons; None if unknown.
    """

    runtime: str
    flavor: str
    port: int
    bind: str
    reason: str
    started_at: str | None
    handle: LabHandle
    build: str = "cpu"
    gpus: str | None = None
    gpus_asked: str | None = None
    way: str | None = None
    workspace: str | None = None
    data: str | None = None
    env_file: str | None = None
    lessons: str | None = None

    @property
    def kind(self) -> str:
        """Flavor, build and GPUs in words.

        >>> LabState("local", "cpu", 8888, "::1", "", "", LabHandle()).kind
        'cpu'
        """
        if self.flavor == "cpu":
            return self.flavor
        return f"{self.flavor} {self.build}, GPUs: {self.gpus or 'none'}"


def read_state(checkout: Checkout) -> LabState | None:
    """The last started lab; None if the file is missing or has invalid content."""
    try:
        said = json.loads(read_record(_state_file(checkout)))
        state = _build(LabState, {**said, "handle": _build(LabHandle, said["handle"])})
        _check_values(state)
    except (OSError, ValueError, TypeError, KeyError, RecursionError):
        return None
    return state


def read_record(path: Path) -> bytes:
    """The content of a small file. OSError for anything else: a pipe would be waited for."""
    found = path.stat()
    if not stat.S_ISREG(found.st_mode) or found.st_size > LARGEST_RECORD_BYTES:
        raise OSError(errno.EINVAL, "it is not a small file", str(path))
    return path.read_bytes()


def _build(kind: type[T], said: Any) -> T:
    """An object of a dataclass from JSON. Raises ValueError or TypeError for wrong fields."""
    if not isinstance(said, dict):
        raise ValueError(f"{said!r} is not an object")
    types = get_type_hints(kind)
    for name, value in said.items():
        if isinstance(value, bool) or not isinstance(value, types.get(name, ())):
            raise ValueError(f"{name} is {value!r}")
    return kind(**said)


def _check_values(state: LabState) -> None:
    """Raises ValueError for values that labkit never writes: they would reach a command line."""
    handle = state.handle
    ipaddress.ip_address(state.bind)
    possible = (
        state.runtime in RUNTIMES,
        state.flavor in ("cpu", "cuda"),
        state.build in BUILDS,
        1 <= state.port <= 65535,
        all(path is None or Path(path).is_absolute() for path in _list_paths(state)),
        # `kill` treats ids below 2 specially.
        handle.process_id is None or 1 < handle.process_id < 2**31,
        handle.container is None or re.fullmatch(r"\w[\w.-]*", handle.container),
    )
    if not all(possible):
        raise ValueError(f"not the state of a lab: {state}")


def _list_paths(state: LabState) -> tuple[str | None, ...]:
    return state.workspace, state.data, state.env_file


def write_state(checkout: Checkout, state: LabState) -> None:
    """Stores ``state`` for the next command."""
    write_private(_state_file(checkout), json.dumps(asdict(state), indent=2) + "\n")


def forget_state(checkout: Checkout) -> None:
    """Removes the stored state, when no lab runs."""
    _state_file(checkout).unlink(missing_ok=True)


def _state_file(checkout: Checkout) -> Path:
    return checkout.state_folder / "state.json"


def prepare_state_folder(checkout: Checkout) -> None:
    """Creates the state folder and closes it to other users. Raises UsageError if it cannot.

    If the folder itself was already closed, the caches with thousands of files are skipped:
    nobody else can reach them.
    """
    folder = checkout.state_folder
    try:
        folder.mkdir(mode=0o700, exist_ok=True)
        was_open = _close_to_others(folder.resolve())
        checkout.logs_folder.mkdir(mode=0o700, exist_ok=True)
    except OSError as error:
        raise _refuse(checkout, f"cannot make {error.filename} private", error) from error
    for top, folders, files in os.walk(folder):
        for name in (*folders, *files):
            # A running lab may remove files now; the token may belong to the lab's user.
            with contextlib.suppress(OSError):
                _close_to_others(Path(top, name))
        if not was_open:
            folders[:] = [name for name in folders if name not in CACHES]


def _close_to_others(path: Path) -> bool:
    """Removes all rights of group and others on ``path``; True if they had any."""
    mode = path.lstat().st_mode
    if stat.S_ISLNK(mode) or not mode & 0o077:
        return False
    path.chmod(stat.S_IMODE(mode) & 0o700)
    return True


def _refuse(checkout: Checkout, what: str, error: OSError) -> UsageError:
    if wrong := explain_wrong_kind(error):
        return UsageError(wrong.what, cause=wrong.cause, fix=wrong.fix)
    if error.errno == errno.EROFS:  # no mode or owner helps
        copy = f"~/{shlex.quote(checkout.root.name)}"
        return UsageError(
            f"{what}: {error.strerror}",
            cause=f"the checkout {checkout.root} is on a read-only file system",
            fix=f"cp -r {shlex.quote(str(checkout.root))} {copy} && cd {copy} && make up",
        )
    return UsageError(
        f"{what}: {error.strerror}", cause=_explain_refusal(checkout), fix=_give_back(checkout)
    )


def _explain_refusal(checkout: Checkout) -> str:
    name = checkout.state_folder.name
    try:
        owner = checkout.state_folder.stat().st_uid
    except OSError:
        return f"the launcher keeps its token and logs there, in {checkout.root}"
    if owner == os.getuid():
        return f"{name}/ is yours, but you may not write to it"
    return f"{name}/ belongs to uid {owner}, and you are uid {os.getuid()}"


def _give_back(checkout: Checkout) -> str:
    folder = checkout.state_folder if checkout.state_folder.exists() else checkout.root
    if folder.is_dir() and folder.stat().st_uid == os.getuid():
        return f"chmod -R u+rwX {shlex.quote(str(folder))}"
    return f"sudo chown -R $(id -u):$(id -g) {shlex.quote(str(folder))}"


def read_token(checkout: Checkout) -> str:
    """The token of the last start; empty if it cannot be read."""
    try:
        return read_record(checkout.token_file).decode("ascii").strip()
    except (OSError, ValueError):
        return ""


def renew_token(checkout: Checkout) -> str:
    """Writes a new token to a file of mode 0600; old tokens become invalid with each start."""
    token = secrets.token_hex(24)
    write_private(checkout.token_file, token + "\n")
    return token


def ensure_token(checkout: Checkout) -> str:
    """The token, created if missing: Compose mounts the file into one-off containers too."""
    return read_token(checkout) or renew_token(checkout)


def open_private(path: Path, flags: int = 0) -> int:
    """A file descriptor open for writing to ``path``, created if missing, with mode 0600."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | flags, 0o600)
    mode = os.fstat(descriptor).st_mode
    if stat.S_ISREG(mode) and mode & 0o077:
        os.fchmod(descriptor, 0o600)
    return descriptor


def write_private(path: Path, text: str) -> None:
    """Replaces ``path`` atomically by a file of mode 0600. Raises LabkitError."""
    temporary: str | None = None
    try:
        descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}-")
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            file.write(text)
        Path(temporary).replace(path)
    except OSError as error:
        if temporary:
            Path(temporary).unlink(missing_ok=True)
        if wrong := explain_wrong_kind(error):
            raise wrong from error
        quoted = shlex.quote(str(path.parent))
        raise LabkitError(
            f"cannot write {path}: {error.strerror}",
            cause="the disk may be full, or the folder may belong to another user",
            fix=f"ls -ld {quoted} && df -h {quoted}",
        ) from error


@contextlib.contextmanager
def hold_lock(checkout: Checkout, on_wait: Callable[[], None]) -> Iterator[None]:
    """Lets only one `up` or `down` of a checkout run at a time; a second one waits.

    ``on_wait`` is called once before waiting. The system releases the lock when the process ends.
    """
    import fcntl  # not on Windows, where the command line refuses what the lock guards

    prepare_state_folder(checkout)
    path = checkout.state_folder / "lock"
    try:
        descriptor = open_private(path)
    except OSError as error:
        raise _refuse(checkout, f"cannot write {path}", error) from error
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            on_wait()
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def timestamp() -> str:
    """Now, in UTC to the second, as ISO 8601."""
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
