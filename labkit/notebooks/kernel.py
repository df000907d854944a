"""Starts a fresh kernel, runs a notebook's cells in it with nbclient, and always ends it.

Cells and failures are those of plain nbclient. labkit adds output limits, ends a cell at its
timeout at once, and lets no process of the kernel outlive the run.
"""

from __future__ import annotations

import asyncio
import atexit
import contextlib
import json
import logging
import os
import signal
import subprocess
import tempfile
import time
import uuid
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from queue import Empty
from typing import IO, Any

from jupyter_client import AsyncKernelManager
from jupyter_client.kernelspec import NATIVE_KERNEL_NAME, KernelSpecManager
from nbclient import NotebookClient
from nbclient.exceptions import CellTimeoutError, DeadKernelError
from nbformat.v4 import new_output

from labkit.errors import LabkitError
from labkit.notebooks.ranks import find_waiting_frame
from labkit.notebooks.sources import DEEPEST, is_nested_too_deep
from labkit.text import count_bytes, first_line, format_bytes

# The result reports errors; without this, the libraries would log them on stderr again.
QUIET = logging.getLogger("labkit.notebooks")
QUIET.addHandler(logging.NullHandler())
QUIET.propagate = False

KEPT_STDERR_BYTES = 2000
PORT_TAKEN = "Address already in use"

# Every process that a kernel starts inherits this variable, even one that leaves the kernel's
# process group. Each kernel has its own name, so that nested runs do not conflict.
MARK = "LABKIT_KERNEL_"

# Waits until the pipe to the runner closes, which also happens if the runner is killed.
GUARD = """read -r line; kill -9 -- "-$1"
for file in $(grep -las "$2" /proc/[0-9]*/environ); do
  id=${file#/proc/}; kill -9 "${id%/environ}"
done"""


class Kernel:
    """The process that runs one notebook's cells, from before its start to after its end."""

    def __init__(self, name: str = NATIVE_KERNEL_NAME) -> None:
        self.name = name
        self.manager = _make_manager(name)
        self._stderr: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115
        self._mark = MARK + uuid.uuid4().hex
        self._guard: subprocess.Popen[bytes] | None = None

    def start_options(self, environment: Mapping[str, str], folder: str) -> dict[str, Any]:
        """The options of the kernel's start.

        The process does not share labkit's streams: stdout is for the result, and the result
        includes what a crash writes to stderr.
        """
        return {
            "env": {**environment, self._mark: "1"},
            "cwd": folder,
            "stdout": self._stderr,
            "stderr": self._stderr,
        }

    def read_stderr(self) -> str:
        """The end of what the process wrote to its own streams, without ipykernel's warnings."""
        size = self._stderr.seek(0, os.SEEK_END)
        self._stderr.seek(max(0, size - KEPT_STDERR_BYTES))
        lines = self._stderr.read().decode(errors="replace").splitlines()
        return "\n".join(line for line in lines if "[IPKernelApp] WARNING" not in line).strip()

    @property
    def process_id(self) -> int | None:
        """The kernel's process id; None before it starts, or if it runs on another machine."""
        found = getattr(self.manager.provisioner, "pid", None)
        return None if found is None else int(found)

    @property
    def has_ended(self) -> bool:
        """True if the process was started and has ended."""
        process = getattr(self.manager.provisioner, "process", None)
        return process is not None and process.poll() is not None

    def read_stack(self, seconds: float = 1.0) -> str:
        """The stack of the kernel's main thread; empty if it does not write one in time."""
        try:
            return self._read_stack(seconds)
        except ValueError:  # another thread has closed the kernel meanwhile, and its files
            return ""

    def _read_stack(self, seconds: float) -> str:
        before = self._stderr.seek(0, os.SEEK_END)
        if self.process_id is None or self.has_ended:
            return ""
        _end(self.process_id, _ask_for_stack)
        deadline = time.monotonic() + seconds
        text = ""
        while time.monotonic() < deadline and "in <module>\n" not in text:
            time.sleep(0.02)
            self._stderr.seek(before)
            text = self._stderr.read().decode(errors="replace")
        return text

    def guard(self) -> None:
        """Starts a shell that ends the kernel if this process is killed."""
        group = self._group
        if group is None:
            return
        # Not through labkit.process: the shell runs as long as the kernel, without a timeout.
        self._guard = subprocess.Popen(
            ["sh", "-c", GUARD, "sh", str(group), self._mark],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )

    @property
    def lost_its_port(self) -> bool:
        """True if the kernel's last words are that another program has one of its ports."""
        return PORT_TAKEN in self.read_stderr()

    def prepare_again(self) -> None:
        """Takes another manager, with other ports, for another start of the kernel."""
        self.end_guard()
        self.manager = _make_manager(self.name)

    def end_guard(self) -> None:
        """Ends the shell that ``guard`` started."""
        if self._guard is not None:
            self._guard.kill()
            self._guard.communicate()
            self._guard = None

    def kill(self) -> None:
        """Kills the kernel's process group, with its children, from any thread."""
        if self._group is not None:
            _end(self._group, os.killpg)
        elif not hasattr(os, "killpg"):  # Windows
            process = getattr(self.manager.provisioner, "process", None)
            if process is not None:
                process.kill()

    def close(self) -> None:
        """Kills the kernel's remaining processes and releases its files."""
        self.kill()
        # Twice, because a process can start another one between the search and the kill.
        for _ in range(2):
            for process_id in find_marked(self._mark):
                _end(process_id, os.kill)
        self.end_guard()
        self._stderr.close()

    async def explain_death(self) -> str:
        """How the kernel's process ended: "killed by SIGKILL", "exit code 3"."""
        provisioner = self.manager.provisioner
        code = await provisioner.poll() if provisioner and provisioner.has_process else None
        if code is None:
            return "it ended"
        if code >= 0:
            return f"exit code {code}"
        with contextlib.suppress(ValueError):
            return f"killed by {signal.Signals(-code).name}"
        return f"killed by signal {-code}"

    @property
    def _group(self) -> int | None:
        if not hasattr(os, "getpgrp"):  # Windows
            return None
        group = getattr(self.manager.provisioner, "pgid", None)
        return int(group) if group and group != os.getpgrp() else None


def _make_manager(name: str) -> AsyncKernelManager:
    manager = AsyncKernelManager(log=QUIET)
    manager.kernel_name = name
    if name == NATIVE_KERNEL_NAME:
        # With no folder to search, "python3" is ipykernel of this Python; a registered kernel of
        # this name may start another Python.
        manager.kernel_spec_manager = KernelSpecManager(kernel_dirs=[], log=QUIET)
    return manager


# ipykernel runs this line at its start, before the first cell; it leaves no name behind.
STACK_LINE = (
    "--IPKernelApp.exec_lines=__import__('faulthandler').register("
    "__import__('signal').SIGUSR1, all_threads=False)"
)


def list_stack_arguments(kernel: Kernel) -> list[str]:
    """What makes this Python's kernel write its stack on a signal; nothing for another kernel."""
    usable = kernel.name == NATIVE_KERNEL_NAME and hasattr(signal, "SIGUSR1")
    return [STACK_LINE] if usable else []


def _ask_for_stack(process_id: int, _: int) -> None:
    os.kill(process_id, signal.SIGUSR1)


def find_waiting_line(kernel: Kernel, notebook: Any) -> str | None:
    """The user's line that the kernel is running: "line 2: dist.barrier()"; None if unknown."""
    if not list_stack_arguments(kernel):
        return None
    frame = find_waiting_frame(kernel.read_stack())
    if frame is None:
        return None
    from ipykernel.compiler import get_file_name

    name = Path(frame.file).name
    for cell in notebook.cells:
        lines = cell.source.splitlines()
        file = get_file_name(cell.source)  # type: ignore[no-untyped-call]
        if Path(file).name == name and frame.line <= len(lines):
            return f"line {frame.line}: {lines[frame.line - 1].strip()}"
    return f"{frame.where}: {frame.source}".rstrip(": ")


def find_marked(mark: str, proc: Path = Path("/proc")) -> Iterator[int]:
    """The ids of the processes whose environment has the variable ``mark`` (Linux)."""
    entry = f"{mark}=1".encode()
    for folder in proc.glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if entry in (folder / "environ").read_bytes().split(b"\0"):
                yield int(folder.name)


def _end(target: int, send: Callable[[int, int], None]) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        send(target, signal.SIGKILL)


def choose_kernel(notebook: Any, asked: str | None = None) -> str:
    """The kernel to start: the requested one, else the notebook's, else this Python's."""
    spec = notebook.metadata.get("kernelspec")
    named = spec.get("name") if isinstance(spec, Mapping) else None
    return str(asked or named or NATIVE_KERNEL_NAME)


def kernel_environment(*, reference: bool, workspace: Path | None) -> dict[str, str]:
    """The environment of a kernel that finds this labkit, and the workspace if there is one.

    The caller's PYTHONSTARTUP is left out, because IPython would run it before the first cell.
    """
    left_out = ("LABKIT_REFERENCE", "LABKIT_WORKSPACE", "PYTHONSTARTUP")
    environment = {key: value for key, value in os.environ.items() if key not in left_out}
    if reference:
        environment["LABKIT_REFERENCE"] = "1"
    if workspace:
        environment["LABKIT_WORKSPACE"] = str(workspace)
    home = Path(__file__).resolve().parents[2]
    # An installed labkit is found without this; site-packages first could hide standard modules.
    if home.name not in ("site-packages", "dist-packages"):
        paths = [str(home), environment.get("PYTHONPATH", "")]
        environment["PYTHONPATH"] = os.pathsep.join(path for path in paths if path)
    return environment


# In the metadata of a cell that was interrupted at its time limit.
TIMED_OUT_MARK = "labkit_timed_out"
# A reply can arrive before its cell's output. nbclient waits 4 s; large outputs need longer.
IOPUB_SECONDS = 60
# An Output widget sends its state on the socket that waits for the cell's reply. Sending can
# lose the wake-up for a reply that has arrived (nbclient#312), so the wait polls.
REPLY_POLL_SECONDS = 0.25


class Client(NotebookClient):  # type: ignore[misc]
    """One notebook's execution in one kernel.

    ``run`` blocks. Call it outside the main thread, where nbclient would handle Ctrl-C itself and
    report a dead kernel. ``stop`` is called from another thread. ``on_cut_short`` is called when
    a cell ends early, while the kernel may still be running.
    """

    def __init__(
        self,
        notebook: Any,
        kernel: Kernel,
        on_cut_short: Callable[[], None] = lambda: None,
        **options: Any,
    ) -> None:
        options = {"km": kernel.manager, "iopub_timeout": IOPUB_SECONDS, "log": QUIET, **options}
        super().__init__(notebook, **options)
        self.kernel = kernel
        self.limit = OutputLimit()
        self.death = "it ended"
        self.stopped = False
        self._on_cut_short = on_cut_short
        self._loop: asyncio.AbstractEventLoop | None = None
        self._task: asyncio.Task[Any] | None = None
        self._options: dict[str, Any] = {}

    def run(self, environment: Mapping[str, str], folder: str) -> None:
        """Runs every cell in ``folder``; the kernel's own process has ended when this returns.

        Raises what nbclient raises, and CancelledError after ``stop``. The caller closes the
        kernel, which ends what the process left behind.
        """
        try:
            asyncio.run(self._run(self.kernel.start_options(environment, folder)))
        finally:
            # nbclient leaves this set if the kernel did not start, and then fails at exit.
            atexit.unregister(self._cleanup_kernel)

    def stop(self) -> None:
        """Ends the kernel and the run, from another thread."""
        self.stopped = True
        self.kernel.kill()
        if self._loop is not None and self._task is not None:
            with contextlib.suppress(RuntimeError):  # the run has just ended by itself
                self._loop.call_soon_threadsafe(self._task.cancel)

    async def _run(self, options: dict[str, Any]) -> None:
        self._loop, self._task = asyncio.get_running_loop(), asyncio.current_task()
        if self.stopped:
            raise asyncio.CancelledError
        self._options = options
        await self.async_execute(cleanup_kc=True, **options)

    async def async_start_new_kernel_client(self) -> Any:
        """Starts the kernel's client, which polls for replies.

        A kernel binds its ports some time after they were found free. Where another program has
        taken one meanwhile, the kernel is started again on other ports.
        """
        client = None
        for last in (False, False, True):
            self.kernel.guard()
            try:
                client = await super().async_start_new_kernel_client()
                break
            except RuntimeError:
                if last or self.stopped or not self.kernel.lost_its_port:
                    raise
                self.kernel.prepare_again()
                self.km = self.kernel.manager
                await self.async_start_new_kernel(**self._options)
        assert client is not None
        channel = client.shell_channel
        channel.get_msg = _look_again(channel.get_msg)
        return client

    async def async_execute_cell(
        self, cell: Any, cell_index: int, *rest: Any, **options: Any
    ) -> Any:
        """Executes the cell; kills the kernel at once on timeout, death or cancellation.

        nbclient would ask the kernel to stop, and wait for a kernel that cannot reply.
        """
        self.limit.start_cell()
        try:
            return await super().async_execute_cell(cell, cell_index, *rest, **options)
        except (CellTimeoutError, DeadKernelError, asyncio.CancelledError) as error:
            self.shutdown_kernel = "immediate"
            self.limit.finish_cell()
            self._on_cut_short()
            if isinstance(error, DeadKernelError):
                self.death = await self.kernel.explain_death()
            raise

    async def _async_handle_timeout(self, timeout: int, cell: Any = None) -> Any:
        if cell is not None:
            # What it raises then, KeyboardInterrupt, is what a learner's interrupt raises too.
            cell.metadata[TIMED_OUT_MARK] = True
        return await super()._async_handle_timeout(timeout, cell)

    def output(self, outs: list[Any], msg: Any, display_id: str | None, cell_index: int) -> Any:
        """Handles a message as nbclient does, within the output limits."""
        hooked = bool(self.output_hook_stack[msg["parent_header"].get("msg_id")])
        if self.clear_before_next_output and not hooked:
            self.limit.clear()
        content = msg["content"]
        if msg["msg_type"] != "stream":
            self.limit.bound_content(content)
            return super().output(outs, msg, display_id, cell_index)
        content["text"], rest = self.limit.take_text(content["name"], content["text"])
        kept = super().output(outs, msg, display_id, cell_index) if content["text"] else None
        if rest is not None:
            outs.append(rest)
        return kept

    def clear_output(self, outs: list[Any], msg: Any, cell_index: int) -> None:
        """Clears the output as nbclient does, and its size count."""
        super().clear_output(outs, msg, cell_index)
        if not outs:
            self.limit.clear()

    def _update_display_id(self, display_id: str, msg: Any) -> None:
        # An update does not pass through output().
        if msg["msg_type"] == "update_display_data":
            self.limit.bound_content(msg["content"], replaces=True)
        super()._update_display_id(display_id, msg)

    async def _check_raise_for_error(self, cell: Any, cell_index: int, exec_reply: Any) -> None:
        if exec_reply is not None and exec_reply["content"]["status"] == "error":
            content = exec_reply["content"]
            content["evalue"] = shorten_middle(str(content.get("evalue", "")))
            content["traceback"] = [
                shorten_middle(str(line)) for line in content.get("traceback", ())
            ]
        await super()._check_raise_for_error(cell, cell_index, exec_reply)


def _look_again(get_message: Callable[..., Any]) -> Callable[..., Any]:
    """Wraps ``get_message`` so that it restarts its wait every quarter of a second."""

    async def get(timeout: float | None = None) -> Any:
        deadline = None if timeout is None else time.monotonic() + timeout
        while True:
            left = REPLY_POLL_SECONDS
            if deadline is not None:
                left = min(left, max(0.0, deadline - time.monotonic()))
            try:
                return await get_message(timeout=left)
            except Empty:
                if deadline is not None and time.monotonic() >= deadline:
                    raise

    return get


OnCell = Callable[[int, int], None]


def run_cells(
    notebook: Mapping[str, Any],
    folder: Path,
    environment: Mapping[str, str],
    *,
    timeout_seconds: float,
    on_cell: OnCell | None = None,
) -> Any:
    """A copy of the notebook with the outputs of a fresh run in ``folder``, by this Python.

    A cell that raises does not stop the run; a cell that exceeds the time limit is interrupted,
    and has TIMED_OUT_MARK in its metadata.
    ``on_cell`` gets the number of each cell as it starts, and the number of cells.
    LabkitError if the kernel does not start or dies.
    """
    import nbformat

    # Through text, because a file's sources may be lists of lines.
    copy = nbformat.v4.reads(json.dumps(notebook))
    for cell in copy.cells:
        if cell.cell_type == "code":
            cell.outputs, cell.execution_count = [], None
    started = 0

    def note_start(cell: Any, cell_index: int) -> None:
        nonlocal started
        started = cell_index + 1
        if on_cell:
            on_cell(started, len(copy.cells))

    client = Client(
        copy,
        Kernel(),
        allow_errors=True,
        timeout_func=lambda cell: timeout_seconds,
        interrupt_on_timeout=True,
        on_cell_start=note_start,
    )
    try:
        _run_in_thread(client, environment, str(folder))
    except (RuntimeError, AssertionError) as error:
        raise _explain_end(client, started, len(copy.cells), error) from error
    finally:
        client.kernel.close()
    return copy


def _run_in_thread(client: Client, environment: Mapping[str, str], folder: str) -> None:
    with ThreadPoolExecutor(1) as pool:
        future = pool.submit(client.run, environment, folder)
        try:
            future.result()
        except KeyboardInterrupt:
            client.stop()
            raise


def _explain_end(client: Client, cell: int, cells: int, error: Exception) -> LabkitError:
    if not cell:
        return LabkitError("the kernel did not start", cause=str(error), fix="labkit check --debug")
    return LabkitError(
        f"the kernel died in cell {cell} of {cells}",
        cause=f"{client.death}: the cell ended its own process, or the machine ran out of memory",
        fix="run the notebook in JupyterLab up to that cell, and watch its memory",
    )


def cell_error(cell: Mapping[str, Any]) -> str | None:
    """The error that ended the cell, in one line; None if it completed."""
    for output in cell.get("outputs", ()):
        if output.get("output_type") == "error":
            return f"{output.get('ename')}: {first_line(str(output.get('evalue', '')))}".rstrip(
                ": "
            )
    return None


# Limits on a cell's output: long text keeps its head and tail, with a note of how much is left
# out between them. An output that is too big is replaced by a note.

HEAD_BYTES = 1024 * 1024
TAIL_BYTES = 256 * 1024
RICH_BYTES = 32 * 1024 * 1024
ERROR_CHARACTERS = 64 * 1024
ERROR_LINES = 2000


class StreamTail:
    """The part of a stream after its head: one output with a note and the stream's tail."""

    def __init__(self, name: str) -> None:
        self.output = new_output("stream", name=name, text="")
        self._pieces: deque[str] = deque()
        self._kept = 0
        self._left_out = 0

    def add(self, text: str) -> None:
        """Appends text and drops what is no longer in the tail."""
        self._left_out += max(0, len(text) - TAIL_BYTES)
        text = text[-TAIL_BYTES:]
        self._pieces.append(text)
        self._kept += len(text)
        while self._kept - len(self._pieces[0]) >= TAIL_BYTES:
            dropped = len(self._pieces.popleft())
            self._kept -= dropped
            self._left_out += dropped

    def write(self) -> None:
        """Writes the tail into the output, with a note if text is left out."""
        text = "".join(self._pieces)
        left_out = self._left_out + max(0, len(text) - TAIL_BYTES)
        if left_out:
            size = format_bytes(left_out)
            text = f"\n[labkit left out {size} of {self.output.name} here]\n{text[-TAIL_BYTES:]}"
        self.output.text = text


class OutputLimit:
    """Counts and bounds the outputs of the running cell."""

    def __init__(self) -> None:
        self.start_cell()

    def start_cell(self) -> None:
        """Resets the counts for a new cell."""
        self.output_bytes = 0
        self.truncated = False
        self.clear()

    def clear(self) -> None:
        """Resets the counts after the cell cleared its output."""
        self._room: dict[str, int] = {}
        self._tails: dict[str, StreamTail] = {}
        self._rich_bytes = 0

    def finish_cell(self) -> None:
        """Writes the tails of long streams into their outputs at the cell's end."""
        for tail in self._tails.values():
            tail.write()

    def take_text(self, name: str, text: str) -> tuple[str, Any]:
        """The part of a stream's text to keep as it is, and an output to add after it, or None."""
        self.output_bytes += count_bytes(text)
        if name in self._tails:
            self._add(name, text)
            return "", None
        room = self._room.get(name, HEAD_BYTES)
        self._room[name] = max(0, room - len(text))
        if len(text) <= room:
            return text, None
        self._tails[name] = StreamTail(name)
        self._add(name, text[room:])
        return text[:room], self._tails[name].output

    def _add(self, name: str, text: str) -> None:
        self._tails[name].add(text)
        self.truncated = True

    def bound_content(self, content: dict[str, Any], *, replaces: bool = False) -> None:
        """Shortens a display output or a traceback in place.

        An output that ``replaces`` an earlier one is not added to the total.
        """
        if "traceback" in content:
            self._bound_error(content)
            return
        data = content.get("data", {})
        if is_nested_too_deep([data, content.get("metadata")]):
            self._leave_out(content, f"an output nested more than {DEEPEST} levels deep")
            return
        size = sum(count_bytes(str(value)) for value in data.values())
        self.output_bytes += size
        if size + (0 if replaces else self._rich_bytes) > RICH_BYTES:
            self._leave_out(content, f"an output of {format_bytes(size)}")
        elif not replaces:
            self._rich_bytes += size

    def _leave_out(self, content: dict[str, Any], what: str) -> None:
        content["data"], content["metadata"] = {"text/plain": f"[labkit left out {what} here]"}, {}
        self.truncated = True

    def _bound_error(self, content: dict[str, Any]) -> None:
        lines = [str(line) for line in content["traceback"]]
        self.output_bytes += sum(map(count_bytes, lines))
        content["evalue"] = shorten_middle(str(content.get("evalue", "")))
        content["traceback"] = [shorten_middle(line) for line in lines[-ERROR_LINES:]]
        longest = max(map(len, lines), default=0)
        self.truncated |= len(lines) > ERROR_LINES or longest > ERROR_CHARACTERS


def shorten_middle(text: str, limit: int = ERROR_CHARACTERS) -> str:
    """The text, or its head and tail with a note of how much is left out.

    >>> shorten_middle("abcdefghij", 4)
    'ab[labkit left out 6 B here]ij'
    """
    if len(text) <= limit:
        return text
    half = limit // 2
    note = f"[labkit left out {format_bytes(len(text) - 2 * half)} here]"
    return text[:half] + note + text[-half:]
