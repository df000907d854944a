"""JupyterLab's server part of the start page and of the memory in the status bar.

``labextensions/labkit`` shows in the browser what these answers say. A page starts no kernel and
no CUDA context: the devices are read through NVML, the rest from the workspace's files.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import json
import os
import sys
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Generic, TypeVar

from jupyter_server.base.handlers import APIHandler
from jupyter_server.utils import url_path_join
from tornado import web

from labkit.jupyter.start_view import Notice, render_start
from labkit.jupyter.usage import PANEL, STATUS, Answers, ask_kernel
from labkit.lessons.overview import (
    Overview,
    mark_unread,
    overview_without_progress,
    read_overview,
)
from labkit.process import SAFE_PATH

DOCTOR = (*SAFE_PATH, "-m", "labkit", "doctor", "--quick", "--json")
DOCTOR_SECONDS = 120.0
# How long the doctor's word counts: a full disk or a lost GPU may come later.
DOCTOR_AGE_SECONDS = 1800.0
# How long the page waits for a disk or a driver before it says what it waits for.
ANSWER_SECONDS = 1.0
MEMORY_SECONDS = 5.0
# How long what was read after its reader had left is good for the next one.
FRESH_SECONDS = 5.0
UNREAD = {
    "parts": ["memory not measured"],
    "details": ["The driver does not answer."],
    "nearly_full": "",
    "device": "devices and memory: still being read",
    "kernel": False,
}


class Doctor:
    """The doctor's word on this machine, asked for in the background, at most twice an hour."""

    def __init__(self, command: tuple[str, ...] = (sys.executable, *DOCTOR)) -> None:
        self._command = command
        self._asked_at: float | None = None
        self._task: asyncio.Task[None] | None = None
        self._notices: tuple[Notice, ...] = ()

    @property
    def is_asked(self) -> bool:
        """True while the doctor examines the machine."""
        return self._task is not None and not self._task.done()

    def read(self) -> tuple[Notice, ...]:
        """What the doctor last found; it is asked again if that is old."""
        now = time.monotonic()
        if self._asked_at is None or now - self._asked_at > DOCTOR_AGE_SECONDS:
            self._asked_at = now
            self._task = asyncio.ensure_future(self._ask())
        return self._notices

    async def _ask(self) -> None:
        process = await asyncio.create_subprocess_exec(
            *self._command,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.DEVNULL,
        )
        # A learner's first cell must not wait for it. Not by preexec_fn: what runs there after a
        # fork of a server with threads can wait forever, and the server with it.
        with contextlib.suppress(OSError):
            os.setpriority(os.PRIO_PROCESS, process.pid, 10)
        try:
            said, _ = await asyncio.wait_for(process.communicate(), DOCTOR_SECONDS)
            self._notices = read_notices(json.loads(said))
        except (OSError, ValueError, KeyError, asyncio.TimeoutError):
            return  # without the doctor's word, the page is the same
        finally:
            if process.returncode is None:
                process.kill()


def read_notices(document: Any) -> tuple[Notice, ...]:
    """The doctor's failures and then its warnings, from what it prints as JSON."""
    checks = document["checks"] if isinstance(document, dict) else []
    return tuple(
        Notice(status, check["found"], check.get("cause"), check.get("fix"))
        for status in ("failed", "warning")
        for check in checks
        if check.get("status") == status
    )


def read_launch_notices(environment: Mapping[str, str] = os.environ) -> tuple[Notice, ...]:
    """What `make up` found wrong with the host."""
    try:
        return read_notices({"checks": json.loads(environment.get("LABKIT_NOTICES") or "[]")})
    except (ValueError, TypeError, KeyError, AttributeError):
        return ()


T = TypeVar("T")


class SlowReading(Generic[T]):
    """A reading in a thread of its own, one at a time, for whoever asks while it runs.

    A disk or a driver that hangs must take neither the page nor the threads of the server.
    """

    def __init__(self, read: Callable[[], T]) -> None:
        self._read = read
        self._task: asyncio.Future[T] | None = None
        self._ended_at = 0.0

    async def wait(self, seconds: float) -> T | None:
        """What is read; None if that takes longer: it goes on, for the next who asks."""
        task = self._task
        if task is None or (task.done() and time.monotonic() - self._ended_at > FRESH_SECONDS):
            task = self._task = asyncio.get_running_loop().create_future()
            loop = asyncio.get_running_loop()
            threading.Thread(target=self._run, args=(loop, task), daemon=True).start()
        done, _ = await asyncio.wait({task}, timeout=seconds)
        if not done:
            return None
        if self._task is task:
            self._task = None
        return task.result()

    def _run(self, loop: asyncio.AbstractEventLoop, task: asyncio.Future[T]) -> None:
        try:
            end = functools.partial(task.set_result, self._read())
        except Exception as error:
            end = functools.partial(task.set_exception, error)

        def conclude() -> None:
            self._ended_at = time.monotonic()
            end()

        with contextlib.suppress(RuntimeError):  # the server has ended
            loop.call_soon_threadsafe(conclude)


class Pages:
    """What the start page shows of a workspace, whatever it holds and a driver answers."""

    def __init__(self, root: Path, answers: Answers, log: Any) -> None:
        self._root, self._answers, self._log = root, answers, log
        self._overviews = SlowReading(self._read_overview)
        self._devices = SlowReading(self._read_device)
        self._known: Overview | None = None
        self._path: Path | None = None

    async def read(self, seconds: float = ANSWER_SECONDS) -> tuple[Overview, str, bool]:
        """The labs, the line of the devices, and whether one of them is still being read.

        It takes little more than ``seconds``.
        """
        overview, device = await asyncio.gather(
            self._overviews.wait(seconds), self._devices.wait(seconds)
        )
        pending = overview is None or device is None
        return (
            overview or self._describe_unread(),
            device or str(UNREAD["device"]),
            pending,
        )

    def _describe_unread(self) -> Overview:
        """The labs as they were last seen, with the name of the file that is being read."""
        path = self._path
        name = "the workspace"
        if path is not None and path.is_relative_to(self._root):
            name = path.relative_to(self._root).as_posix()
        name = name.encode(errors="backslashreplace").decode()
        note = (
            f"still reading {name}: a large notebook or a slow disk takes its time;"
            " this page is updated when it has been read"
        )
        return mark_unread(self._known, note) if self._known else overview_without_progress(note)

    def _read_overview(self) -> Overview:
        try:
            self._known = read_overview(self._root, on_read=self._follow)
        except Exception as error:
            self._log.exception("labkit: the start page could not read the workspace")
            why = f"{type(error).__name__}: {error}"
            return overview_without_progress(f"your progress could not be read ({why})")
        finally:
            self._path = None
        return self._known

    def _follow(self, path: Path) -> None:
        self._path = path

    def _read_device(self) -> str:
        try:
            return str(self._answers.answer(STATUS)["device"])
        except Exception:
            self._log.exception("labkit: the start page could not read the devices")
            return "devices and memory: not measured"


class StartHandler(APIHandler):  # type: ignore[misc]
    """The start page's content as HTML."""

    _track_activity = False  # a page that is left open keeps no server from being stopped

    @web.authenticated
    async def get(self) -> None:
        """Responds with the page; ``pending`` says that there will be more to show."""
        doctor: Doctor = self.settings["labkit_doctor"]
        pages: Pages = self.settings["labkit_pages"]
        notices = (*read_launch_notices(), *doctor.read())
        overview, device, pending = await pages.read()
        page = render_start(overview, device, notices, self.base_url)
        self.set_header("Cache-Control", "no-store")
        self.finish({"html": page, "pending": pending or doctor.is_asked})


class MemoryHandler(APIHandler):  # type: ignore[misc]
    """The memory of the devices, and of the kernel that is asked for."""

    _track_activity = False

    @web.authenticated
    async def get(self) -> None:
        """Responds with the words of the status bar, and with the panel if asked."""
        word = PANEL if self.get_query_argument("panel", "") else STATUS
        kernel = self.get_query_argument("kernel", "")
        said = await self._ask_kernel(kernel, word) if kernel else None
        if said is None or "trouble" in said:
            reading: SlowReading[dict[str, Any]] = self.settings["labkit_memory"][word]
            answer = await reading.wait(MEMORY_SECONDS)
            said = {**(answer or UNREAD), "silent": bool(kernel)}
        self.set_header("Cache-Control", "no-store")
        self.finish(said)

    async def _ask_kernel(self, kernel_id: str, word: str) -> dict[str, Any] | None:
        if kernel_id not in self.kernel_manager:
            return None
        # A gateway's kernels have no file here.
        file = getattr(self.kernel_manager.get_kernel(kernel_id), "connection_file", None)
        return await ask_kernel(Path(file), word) if file else None


def _jupyter_server_extension_points() -> list[dict[str, str]]:
    return [{"module": "labkit.jupyter.start"}]


def _load_jupyter_server_extension(app: Any) -> None:
    """Adds the handlers to Jupyter's server."""
    answers, settings = Answers(kernel=False), app.web_app.settings
    settings["labkit_doctor"] = Doctor()
    settings["labkit_pages"] = Pages(Path(app.contents_manager.root_dir), answers, app.log)
    settings["labkit_memory"] = {
        word: SlowReading(functools.partial(answers.answer, word)) for word in (STATUS, PANEL)
    }
    base = settings["base_url"]
    app.web_app.add_handlers(
        ".*$",
        [
            (url_path_join(base, "labkit", "start"), StartHandler),
            (url_path_join(base, "labkit", "memory"), MemoryHandler),
        ],
    )
