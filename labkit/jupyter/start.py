"""JupyterLab's server part of the start page and of the memory in the status bar.

``labextensions/labkit`` shows in the browser what these answers say. A page starts no kernel and
no CUDA context: the devices are read through NVML, the rest from the workspace's files.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jupyter_server.base.handlers import APIHandler
from jupyter_server.utils import url_path_join
from tornado import web

from labkit.jupyter.start_view import Notice, render_start
from labkit.jupyter.usage import PANEL, STATUS, Answers, ask_kernel
from labkit.lessons.overview import Overview, overview_without_progress, read_overview
from labkit.process import SAFE_PATH

DOCTOR = (*SAFE_PATH, "-m", "labkit", "doctor", "--quick", "--json")
DOCTOR_SECONDS = 120.0
# How long the doctor's word counts: a full disk or a lost GPU may come later.
DOCTOR_AGE_SECONDS = 1800.0


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


class StartHandler(APIHandler):  # type: ignore[misc]
    """The start page's content as HTML."""

    _track_activity = False  # a page that is left open keeps no server from being stopped

    @web.authenticated
    async def get(self) -> None:
        """Responds with the page; ``pending`` says that the doctor has not answered yet."""
        doctor: Doctor = self.settings["labkit_doctor"]
        answers: Answers = self.settings["labkit_answers"]
        root = Path(self.contents_manager.root_dir)
        notices = (*read_launch_notices(), *doctor.read())
        overview, device = await asyncio.gather(
            asyncio.to_thread(self._read_overview, root),
            asyncio.to_thread(self._read_device, answers),
        )
        page = render_start(overview, device, notices, self.base_url)
        self.set_header("Cache-Control", "no-store")
        self.finish({"html": page, "pending": doctor.is_asked})

    # Whatever a workspace holds or a driver answers, the page is the way to the labs.
    def _read_overview(self, root: Path) -> Overview:
        try:
            return read_overview(root)
        except Exception as error:
            self.log.exception("labkit: the start page could not read the workspace")
            why = f"{type(error).__name__}: {error}"
            return overview_without_progress(f"your progress could not be read ({why})")

    def _read_device(self, answers: Answers) -> str:
        try:
            return str(answers.answer(STATUS)["device"])
        except Exception:
            self.log.exception("labkit: the start page could not read the devices")
            return "devices and memory: not measured"


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
            answers: Answers = self.settings["labkit_answers"]
            said = await asyncio.to_thread(answers.answer, word)
            said["silent"] = bool(kernel)
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
    app.web_app.settings["labkit_doctor"] = Doctor()
    app.web_app.settings["labkit_answers"] = Answers(kernel=False)
    base = app.web_app.settings["base_url"]
    app.web_app.add_handlers(
        ".*$",
        [
            (url_path_join(base, "labkit", "start"), StartHandler),
            (url_path_join(base, "labkit", "memory"), MemoryHandler),
        ],
    )
