"""What the launcher remembers between commands: the running lab, its token, and a lock."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import secrets
import shlex
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

from labkit.errors import LabkitError, UsageError
from labkit.launch.settings import Checkout
from labkit.process import end_like_interrupt


@dataclass(frozen=True)
class LabHandle:
    """What to take hold of a started lab by: its container's id, or its process.

    A process is told apart from a later one with the same number by when it started.
    """

    container: str | None = None
    process_id: int | None = None
    process_started: str | None = None


@dataclass(frozen=True)
class LabState:
    """A lab that was started: how, why so, where, and what to take hold of it by.

    ``gpus`` are the engine's words for the GPUs of a cuda lab ("all", "0,1"), and ``gpus_asked``
    what was typed for them.
    """

    runtime: str
    flavor: str
    port: int
    bind: str
    reason: str
    started_at: str
    handle: LabHandle
    build: str = "cpu"
    gpus: str | None = None
    gpus_asked: str | None = None
    way: str | None = None

    @property
    def kind(self) -> str:
        """Flavor, build and GPUs as they are shown.

        >>> LabState("local", "cpu", 8888, "::1", "", "", LabHandle()).kind
        'cpu'
        """
        if self.flavor == "cpu":
            return self.flavor
        return f"{self.flavor} {self.build}, GPUs: {self.gpus or 'none'}"


def read_state(checkout: Checkout) -> LabState | None:
    """The lab that was last started, or None; an unreadable file counts as none."""
    try:
        said = json.loads(_state_file(checkout).read_text(encoding="utf-8"))
        return LabState(**{**said, "handle": LabHandle(**said["handle"])})
    except (OSError, ValueError, TypeError, KeyError):
        return None


def write_state(checkout: Checkout, state: LabState) -> None:
    """Remembers ``state`` for the next command."""
    write_private(_state_file(checkout), json.dumps(asdict(state), indent=2) + "\n")


def forget_state(checkout: Checkout) -> None:
    """Remembers that no lab runs."""
    _state_file(checkout).unlink(missing_ok=True)


def _state_file(checkout: Checkout) -> Path:
    return checkout.state_folder / "state.json"


def prepare_state_folder(checkout: Checkout) -> None:
    """Makes the state folder, readable by its owner alone. Raises UsageError where it cannot."""
    try:
        checkout.state_folder.mkdir(mode=0o700, exist_ok=True)
        checkout.logs_folder.mkdir(exist_ok=True)
    except OSError as error:
        raise _refuse(checkout, f"cannot make {error.filename}", error) from error


def _refuse(checkout: Checkout, what: str, error: OSError) -> UsageError:
    return UsageError(
        f"{what}: {error.strerror}", cause=_explain_refusal(checkout), fix=_give_back(checkout)
    )


def _explain_refusal(checkout: Checkout) -> str:
    try:
        owner = checkout.state_folder.stat().st_uid
    except OSError:
        return f"the launcher keeps its token and logs there, in {checkout.root}"
    if owner == os.getuid():
        return f"{checkout.state_folder.name}/ is yours, but may not be written to"
    return f"{checkout.state_folder.name}/ belongs to uid {owner}, and you are uid {os.getuid()}"


def _give_back(checkout: Checkout) -> str:
    folder = checkout.state_folder if checkout.state_folder.exists() else checkout.root
    if folder.is_dir() and folder.stat().st_uid == os.getuid():
        return f"chmod -R u+rwX {shlex.quote(str(folder))}"
    return f"sudo chown -R $(id -u):$(id -g) {shlex.quote(str(folder))}"


def read_token(checkout: Checkout) -> str:
    """The lab's token as it is on disk; empty where there is none that can be read."""
    try:
        return checkout.token_file.read_text(encoding="ascii").strip()
    except (OSError, ValueError):
        return ""


def ensure_token(checkout: Checkout) -> str:
    """The lab's token: made once, kept in a file of mode 0600, the same after every restart."""
    token = read_token(checkout)
    if not token:
        token = secrets.token_hex(24)
        write_private(checkout.token_file, token + "\n")
    checkout.token_file.chmod(0o600)
    return token


def write_private(path: Path, text: str) -> None:
    """Replaces ``path`` whole, with mode 0600 from the first byte on."""
    temporary: str | None = None
    try:
        descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}-")
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            file.write(text)
        Path(temporary).replace(path)
    except OSError as error:
        if temporary:
            Path(temporary).unlink(missing_ok=True)
        quoted = shlex.quote(str(path.parent))
        raise LabkitError(
            f"cannot write {path}: {error.strerror}",
            cause="the disk may be full, or the folder another user's",
            fix=f"ls -ld {quoted} && df -h {quoted}",
        ) from error


@contextlib.contextmanager
def hold_lock(checkout: Checkout, on_wait: Callable[[], None]) -> Iterator[None]:
    """Keeps a second `up` or `down` of the same checkout waiting until this one is done.

    ``on_wait`` is called once where another one holds the lock. The lock goes with the process,
    however it ends.
    """
    prepare_state_folder(checkout)
    path = checkout.state_folder / "lock"
    try:
        lock = path.open("w")
    except OSError as error:
        raise _refuse(checkout, f"cannot write {path}", error) from error
    with lock as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            on_wait()
            fcntl.flock(file, fcntl.LOCK_EX)
        with end_like_interrupt():
            yield


def timestamp() -> str:
    """Now, in UTC to the second, as ISO 8601."""
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
