"""Runs other programs, each with a time limit and an environment that labkit composes.

A missing, slow or killed program is a result here, not an exception: a probe must never hang or
crash on a broken host.
"""

from __future__ import annotations

import contextlib
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from types import FrameType
from typing import IO, NamedTuple, Protocol

from labkit.errors import UsageError
from labkit.text import MAKE_VARIABLE

Line = Callable[[str], None]

# Options of `python -m` in a learner's folder: without them, a file there such as random.py is
# imported in place of Python's own. Python 3.10 has no such option.
SAFE_PATH = ("-P",) if sys.version_info >= (3, 11) else ()
# How long a program may take to end after SIGTERM.
GRACE_SECONDS = 5.0
# How much of each stream of a probed program is kept; the rest is read and dropped.
KEPT_BYTES = 4 * 2**20
# How long to wait for the last output of a killed program: a child that left its process group
# may hold the pipe open.
LAST_OUTPUT_SECONDS = 1.0

# Variables that change where or how pip, Python, Jupyter, Compose, uv, git or make work. They are
# removed. The key is the prefix of their names; the value lists the exceptions, which are passed
# on. All variables without such a prefix are passed on too: a learner's programs need them.
# docs/environment.md has the same list.
STEERING_VARIABLES: dict[str, tuple[str, ...]] = {
    # Kept: the package source and the network. Removed: the destination (PIP_TARGET, PIP_PREFIX,
    # PIP_ROOT, PIP_USER) and restrictions (PIP_DRY_RUN, PIP_CONSTRAINT, PIP_REQUIRE_VIRTUALENV).
    "PIP_": (
        *("PIP_INDEX_URL", "PIP_EXTRA_INDEX_URL", "PIP_NO_INDEX", "PIP_FIND_LINKS"),
        *("PIP_CONFIG_FILE", "PIP_KEYRING_PROVIDER", "PIP_TRUSTED_HOST", "PIP_PROXY"),
        *("PIP_CERT", "PIP_CLIENT_CERT", "PIP_TIMEOUT", "PIP_DEFAULT_TIMEOUT", "PIP_RETRIES"),
        *("PIP_CACHE_DIR", "PIP_NO_CACHE_DIR"),
    ),
    # Kept: output, hashing and caches. Removed: what Python imports or runs at its start.
    "PYTHON": (
        *("PYTHONUTF8", "PYTHONIOENCODING", "PYTHONUNBUFFERED", "PYTHONFAULTHANDLER"),
        *("PYTHONHASHSEED", "PYTHONDONTWRITEBYTECODE", "PYTHONPYCACHEPREFIX"),
        "PYTHON_KEYRING_BACKEND",  # for the index's password
    ),
    "__PYVENV_LAUNCHER__": (),  # macOS: changes which Python a .venv uses
    "VIRTUAL_ENV": (),
    # The lab has its own configuration and kernels.
    "JUPYTER": (),
    "IPYTHONDIR": (),
    # The launcher names the file, the project and the profiles.
    "COMPOSE_": ("COMPOSE_PARALLEL_LIMIT", "COMPOSE_CONVERT_WINDOWS_PATHS"),
    # `make lock`: as for pip.
    "UV_": (
        *("UV_INDEX_URL", "UV_DEFAULT_INDEX", "UV_EXTRA_INDEX_URL", "UV_INDEX", "UV_FIND_LINKS"),
        *("UV_KEYRING_PROVIDER", "UV_INSECURE_HOST", "UV_NATIVE_TLS", "UV_SYSTEM_CERTS"),
        *("UV_HTTP_TIMEOUT", "UV_CACHE_DIR", "UV_NO_CACHE", "UV_OFFLINE"),
    ),
    # A git hook sets them: git would then use another repository.
    "GIT_DIR": (),
    "GIT_WORK_TREE": (),
    "GIT_INDEX_FILE": (),
    # From the make that called labkit: a make in a notebook or terminal would join its jobs.
    "MAKEFLAGS": (),
    "MAKELEVEL": (),
    "MFLAGS": (),
}


def name_python() -> str:
    """How a command names this Python: ``python`` where a shell finds it by that name, or its path.

    The path is quoted for a shell.
    """
    found = shutil.which("python")
    # A link of another environment leads to the same file, but starts with other packages.
    is_this = found and Path(found).parent.resolve() == Path(sys.executable).parent.resolve()
    return "python" if is_this else shlex.quote(sys.executable or "python3")


# In front of a command, where a text names one.
_PROGRAM = re.compile(
    r"(?<![\w./\"'-])labkit(?= (?:up|down|status|logs|devices|doctor|prove|memory|history|estimate"
    r"|run|report|compare|check|progress|reset|shell|exec|serve|lab|hub|build|test|lint|docs|lock"
    r"|clean)\b| --help)"
)
_MAKE_LINE = re.compile(
    r"\bmake ((?:(?:up|down|status|logs|devices|doctor|prove|memory|run|check|progress|reset|shell"
    r"|build|clean|hub)\b ?)+)((?:(?<= )[A-Z]+=(?:'[^']*'|\"[^\"]*\"|[^\s,;]+) ?)*)(?<! )"
)
# The options that make's variables stand for.
_MAKE_OPTIONS = ("RUNTIME", "FLAVOR", "CUDA", "GPUS", "PORT", "BIND", "MEMORY")
_CLONES_FILES = ("Makefile", "compose.yaml", "labkit/__main__.py")


def in_clone(package: Path = Path(__file__).parent) -> bool:
    """True if this labkit runs from a clone of the repository, which has ``make``'s lines."""
    return all((package.parent / name).is_file() for name in _CLONES_FILES[:2])


def has_make(folder: Path | None = None) -> bool:
    """True if ``make`` called this program, or has this repository's lines in the folder.

    The folder is the current one by default.
    """
    if os.environ.get(MAKE_VARIABLE):
        return True
    try:
        folder = folder or Path.cwd()
        return all((folder / name).is_file() for name in _CLONES_FILES)
    except OSError:  # the folder was deleted
        return False


def name_command(
    text: str, *, program: str | None = None, clone: bool | None = None, make: bool | None = None
) -> str:
    """Advice with commands that run as they stand: for how labkit was started, and from where.

    Without a ``labkit`` on the PATH, a program that ``python -m labkit`` started names the Python
    that runs. Where the current folder is not a clone, and so has no Makefile, labkit's commands
    stand for ``make``'s lines: without any clone, ``labkit lab`` for ``make up``. ``program`` (as
    started) is sys.argv[0].

    >>> name_command("make run LABS='tensors autograd'", clone=False)
    'labkit run tensors autograd'
    >>> name_command("make down && make up GPUS=0", clone=True, make=False)
    'labkit down && labkit up --gpus 0'
    """
    is_clone = in_clone() if clone is None else clone
    if not (is_clone and (has_make() if make is None else make)):
        text = _MAKE_LINE.sub(lambda found: _replace_make(found, is_clone=is_clone), text)
    started = Path(sys.argv[0] if program is None else program)
    by_module = started.parent.name == "labkit" and started.name == "__main__.py"
    if by_module and shutil.which("labkit") is None:
        python = f"{name_python()} -m labkit"
        text = _PROGRAM.sub(lambda _: python, text)
    return text


def _replace_make(found: re.Match[str], *, is_clone: bool) -> str:
    targets = found[1].split()
    values = re.findall(r"([A-Z]+)=('[^']*'|\"[^\"]*\"|[^\s,;]+)", found[2])
    if "up" in targets and not is_clone:
        return "labkit lab"
    options = [f"--{name.lower()} {value}" for name, value in values if name in _MAKE_OPTIONS]
    options += ["--stop" for name, _ in values if name == "STOP"]
    names = [value.strip("'\"") for name, value in values if name == "LABS"]
    last = " ".join([f"labkit {targets[-1]}", *names, *(options if is_clone else ())])
    return " && ".join([*(f"labkit {each}" for each in targets[:-1]), last])


def compose_environment(environment: Mapping[str, str] | None = None) -> dict[str, str]:
    """The environment for a program that labkit starts, from ``environment`` (this process's).

    Every program that this module starts gets it, unless the caller passes another one.

    >>> compose_environment({"PIP_TARGET": "/x", "PIP_INDEX_URL": "https://a", "HF_HOME": "/h"})
    {'PIP_INDEX_URL': 'https://a', 'HF_HOME': '/h'}
    """
    found = os.environ if environment is None else environment
    return {name: value for name, value in found.items() if _is_passed_on(name)}


def _is_passed_on(name: str) -> bool:
    steered = [passed for start, passed in STEERING_VARIABLES.items() if name.startswith(start)]
    return not steered or any(name in passed for passed in steered)


class CommandResult(NamedTuple):
    """How a program ended (``exit_code`` is None if it did not end by itself) and its output."""

    arguments: tuple[str, ...]
    exit_code: int | None
    stdout: str = ""
    stderr: str = ""
    seconds: float = 0.0
    missing: bool = False
    timed_out: bool = False

    @property
    def ok(self) -> bool:
        """True if the program ran and its exit code is 0."""
        return self.exit_code == 0

    @property
    def message(self) -> str:
        """The most informative line: the last line of its errors, or how the program ended."""
        if self.missing:
            return f"{self.arguments[0]}: command not found"
        if self.timed_out:
            return f"{self.arguments[0]} did not answer in {self.seconds:.0f} s"
        lines = [line.strip() for line in (self.stderr or self.stdout).splitlines()]
        return next((line for line in reversed(lines) if line), self._describe_end())

    def _describe_end(self) -> str:
        if self.exit_code is not None and self.exit_code < 0:
            with contextlib.suppress(ValueError):  # not a signal number on this system
                return f"{self.arguments[0]} was killed by {signal.Signals(-self.exit_code).name}"
        return f"exit code {self.exit_code}"


class CommandRunner(Protocol):
    """The function that a probe calls to run a program; tests pass a fake host."""

    def __call__(self, arguments: Sequence[str], *, timeout_seconds: float) -> CommandResult:
        """Runs the program within the time limit and returns the result."""
        ...


def run_command(
    arguments: Sequence[str],
    *,
    timeout_seconds: float,
    environment: Mapping[str, str] | None = None,
    folder: Path | None = None,
    grace_seconds: float = GRACE_SECONDS,
) -> CommandResult:
    """Runs a program; returns how it ended and its output (at most 4 MiB of each stream).

    A missing program is a result too, and so is a timeout, with the output up to then. After its
    limit a program has ``grace_seconds`` to end by itself.
    """
    started = time.monotonic()
    try:
        process = _start(arguments, environment, folder, stderr=subprocess.PIPE)
    except OSError:
        return CommandResult(tuple(arguments), None, missing=True)
    try:
        streams = [_Stream(process.stdout), _Stream(process.stderr)]
        timed_out = not _wait(process, streams, started + timeout_seconds)
    except BaseException:
        _end_group(process)
        raise
    seconds = time.monotonic() - started
    if timed_out:
        _end_group(process, grace_seconds)
        for stream in streams:
            stream.join(LAST_OUTPUT_SECONDS)
    return CommandResult(
        tuple(arguments),
        None if timed_out else process.returncode,
        stdout=streams[0].text,
        stderr=streams[1].text,
        seconds=seconds,
        timed_out=timed_out,
    )


# A program that works uses more of a core than this; one that waits in a driver uses less.
LEAST_SHARE = 0.01
POLL_SECONDS = 0.25


def run_working(
    arguments: Sequence[str],
    *,
    timeout_seconds: float,
    idle_seconds: float = 60.0,
    environment: Mapping[str, str] | None = None,
    read_cpu: Callable[[int], float | None] | None = None,
) -> CommandResult:
    """As ``run_command``, but the limit is of work done: a busy machine is not a hang.

    The program is ended after ``timeout_seconds`` in which it also used twice as much CPU time
    (several threads), or after ``idle_seconds`` in which it used almost none. Where CPU time cannot
    be read (no /proc), the limit is of wall time.
    """
    read = read_cpu or read_session_cpu
    started = time.monotonic()
    try:
        process = _start(arguments, environment, None, stderr=subprocess.PIPE)
    except OSError:
        return CommandResult(tuple(arguments), None, missing=True)
    try:
        streams = [_Stream(process.stdout), _Stream(process.stderr)]
        mark, mark_cpu = started, 0.0
        timed_out = False
        while not timed_out and not _wait(process, streams, time.monotonic() + POLL_SECONDS):
            now, used = time.monotonic(), read(process.pid)
            over = now - started >= timeout_seconds
            if used is None or (over and used >= 2 * timeout_seconds):
                timed_out = over
            elif now - mark >= idle_seconds:
                timed_out = used - mark_cpu < LEAST_SHARE * (now - mark)
                mark, mark_cpu = now, used
    except BaseException:
        _end_group(process)
        raise
    seconds = time.monotonic() - started
    if timed_out:
        _end_group(process)
        for stream in streams:
            stream.join(LAST_OUTPUT_SECONDS)
    exit_code = None if timed_out else process.returncode
    out, err = (stream.text for stream in streams)
    return CommandResult(tuple(arguments), exit_code, out, err, seconds, timed_out=timed_out)


def read_session_cpu(session: int, root: Path = Path("/")) -> float | None:
    """CPU seconds of a session's processes and their ended children; None without /proc."""
    total, found = 0, False
    for path in (root / "proc").glob("[0-9]*/stat"):
        try:
            fields = path.read_text(errors="replace").rpartition(")")[2].split()
        except OSError:  # it has ended
            continue
        if len(fields) > 14 and fields[3] == str(session):
            found = True
            total += sum(map(int, fields[11:15]))
    return total / os.sysconf("SC_CLK_TCK") if found else None


def run_at_terminal(arguments: Sequence[str], *, timeout_seconds: float) -> CommandResult:
    """Runs a program that may ask the person at the terminal, as sudo asks for a password.

    The program shares this process's terminal, so Ctrl-C reaches it too. Its output goes to
    standard error (standard output is for results) and is not kept.
    """
    started = time.monotonic()
    try:
        done = subprocess.run(
            list(arguments),
            stdout=2,
            timeout=timeout_seconds,
            check=False,
            env=compose_environment(),
        )
    except OSError:
        return CommandResult(tuple(arguments), None, missing=True)
    except subprocess.TimeoutExpired:
        seconds = time.monotonic() - started
        return CommandResult(tuple(arguments), None, seconds=seconds, timed_out=True)
    seconds = time.monotonic() - started
    return CommandResult(tuple(arguments), done.returncode, seconds=seconds)


def stream_command(
    arguments: Sequence[str],
    *,
    timeout_seconds: float,
    on_line: Line,
    environment: Mapping[str, str] | None = None,
    folder: Path | None = None,
) -> CommandResult:
    """Runs a long program and calls ``on_line`` with each line of its output (both streams).

    On Ctrl-C, or past the limit, the program and its children are ended before this returns.
    """
    started = time.monotonic()
    expired = threading.Event()

    def expire() -> None:
        expired.set()
        _end_group(process)

    alarm = threading.Timer(timeout_seconds, expire)
    alarm.daemon = True
    try:
        process = _start(arguments, environment, folder, stderr=subprocess.STDOUT)
    except OSError:
        return CommandResult(tuple(arguments), None, missing=True)
    # No statement between the start and this `try`: a Ctrl-C there would leave the program running.
    try:
        alarm.start()
        for line in process.stdout or ():
            on_line(line.rstrip("\n"))
        process.wait()
    except BaseException:
        _end_group(process)
        raise
    finally:
        alarm.cancel()
        if alarm.ident is not None:
            alarm.join()
        _close_pipes(process)
    seconds = time.monotonic() - started
    exit_code = None if expired.is_set() else process.returncode
    return CommandResult(tuple(arguments), exit_code, seconds=seconds, timed_out=expired.is_set())


@contextlib.contextmanager
def end_like_interrupt() -> Iterator[None]:
    """Makes SIGTERM (``docker stop``, CI) and SIGHUP (lost terminal) act like Ctrl-C in the block.

    So the block can clean up and write its results. A signal that already has a handler, or is
    ignored (nohup), is not changed.
    """
    with _handle_signals(("SIGTERM", "SIGHUP"), signal.default_int_handler, unless_handled=True):
        yield


@contextlib.contextmanager
def _handle_signals(
    names: Iterable[str],
    handle: Callable[[int, FrameType | None], object],
    *,
    unless_handled: bool = False,
) -> Iterator[None]:
    """Calls ``handle`` for these signals in the block, unless they are ignored.

    With ``unless_handled``, a signal that has another handler than the system's keeps it.
    """
    before = {}
    if threading.current_thread() is threading.main_thread():
        # Windows has no SIGHUP.
        for number in (getattr(signal, name) for name in names if hasattr(signal, name)):
            old = signal.getsignal(number)
            if old is not signal.SIG_IGN and not (unless_handled and old is not signal.SIG_DFL):
                before[number] = signal.signal(number, handle)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def replace_process(arguments: Sequence[str], environment: Mapping[str, str] | None = None) -> None:
    """Replaces this process by the program, which gets its terminal, signals and exit code.

    Raises UsageError if there is no such program.
    """
    passed = compose_environment() if environment is None else dict(environment)
    try:
        os.execvpe(arguments[0], list(arguments), passed)  # noqa: S606
    except OSError as error:
        raise _refuse(arguments[0], error) from error


def _refuse(program: str, error: OSError) -> UsageError:
    return UsageError(
        f"cannot run {program}: {error.strerror}",
        cause="it is not installed here, or not on PATH",
        fix=f"command -v {program}",
    )


def run_attached(
    arguments: Sequence[str],
    environment: Mapping[str, str] | None = None,
    *,
    stop: Callable[[], object],
) -> int:
    """Runs a program at this process's terminal and returns its exit code.

    For the client of a container engine, which leaves the container running when it is killed:
    SIGTERM, SIGHUP, and SIGINT where no terminal sends it, call ``stop`` before and after the
    program is ended, and raise KeyboardInterrupt. A terminal's Ctrl-C reaches the program itself.
    Raises UsageError if there is no such program.
    """
    passed = compose_environment() if environment is None else dict(environment)
    asked: list[int] = []
    waits = False

    def handle(number: int, frame: FrameType | None) -> None:
        nonlocal waits
        if number == signal.SIGINT and _is_in_foreground():
            return
        asked.append(number)
        if waits:  # before, nobody could stop what is being started
            waits = False
            raise KeyboardInterrupt

    with _handle_signals(("SIGINT", "SIGTERM", "SIGHUP"), handle):
        try:
            process = subprocess.Popen(list(arguments), env=passed)
        except OSError as error:
            raise _refuse(arguments[0], error) from error
        try:
            waits = True
            if asked:
                raise KeyboardInterrupt
            code = process.wait()
        except KeyboardInterrupt:
            waits = False
            _stop_attached(process, stop)
            raise
    return code if code >= 0 else 128 - code


def _stop_attached(process: subprocess.Popen[bytes], stop: Callable[[], object]) -> None:
    stop()  # first, so that the program still shows the last output
    for end in (process.terminate, process.kill):
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(GRACE_SECONDS)
        end()
    stop()  # what the program has started meanwhile


def _is_in_foreground() -> bool:
    """True where a terminal sends Ctrl-C to this process and to the programs that it starts."""
    try:
        terminal = os.open("/dev/tty", os.O_RDONLY | os.O_NOCTTY)
    except OSError:
        return False
    try:
        return os.tcgetpgrp(terminal) == os.getpgrp()
    finally:
        os.close(terminal)


def _start(
    arguments: Sequence[str],
    environment: Mapping[str, str] | None,
    folder: Path | None,
    stderr: int,
) -> subprocess.Popen[str]:
    return subprocess.Popen(
        list(arguments),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=stderr,
        env=compose_environment() if environment is None else dict(environment),
        cwd=folder,
        text=True,
        errors="replace",
        start_new_session=True,  # so that a time limit or Ctrl-C can end its children too
    )


class _Stream(threading.Thread):
    """Reads a program's stream to EOF, so that it never blocks on a full pipe; keeps a part.

    The thread closes the pipe itself: if another thread closed it during a read, the descriptor's
    number could already belong to a new file.
    """

    def __init__(self, pipe: IO[str] | None) -> None:
        super().__init__(daemon=True)
        self._pipe = pipe
        self._kept = bytearray()
        self.start()

    def run(self) -> None:
        """Reads until EOF."""
        with contextlib.suppress(OSError, ValueError), self._pipe or contextlib.nullcontext():
            while self._pipe and (block := os.read(self._pipe.fileno(), 65536)):
                self._kept += block[: KEPT_BYTES - len(self._kept)]

    @property
    def text(self) -> str:
        """The text kept so far; bytes that are not UTF-8 become U+FFFD."""
        text = bytes(self._kept).decode(errors="replace")
        return text.replace("\r\n", "\n").replace("\r", "\n")


def _wait(process: subprocess.Popen[str], streams: Sequence[_Stream], deadline: float) -> bool:
    """True once the program has ended and all its output is read; False at the deadline."""
    for stream in streams:
        stream.join(max(0.0, deadline - time.monotonic()))
    try:
        process.wait(max(0.0, deadline - time.monotonic()))
    except subprocess.TimeoutExpired:
        return False
    return not any(stream.is_alive() for stream in streams)


def _end_group(process: subprocess.Popen[str], grace_seconds: float = GRACE_SECONDS) -> None:
    """Ends the program's process group: SIGTERM, then SIGKILL after ``grace_seconds``.

    SIGKILL is sent even if the program itself has ended: one of its children may have ignored
    SIGTERM. Windows has no groups: there it ends the program alone.
    """
    if not hasattr(os, "killpg"):
        process.kill()
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(timeout=grace_seconds)
        return
    for sign in (signal.SIGTERM, signal.SIGKILL):
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, sign)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(timeout=grace_seconds)


def _close_pipes(process: subprocess.Popen[str]) -> None:
    """Closes open pipes; only the thread that reads them may call it."""
    for pipe in (process.stdout, process.stderr):
        if pipe:
            pipe.close()
