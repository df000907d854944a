"""A simulated step that reaches real files by ways that the layer of files does not see."""

from __future__ import annotations

import _io
import _thread
import contextlib
import functools
import io
import json
import logging.handlers
import mmap
import multiprocessing.pool
import os
import posix
import queue
import shelve
import shutil
import signal
import socket
import sqlite3
import subprocess
import sys
import tarfile
import tempfile
import threading
import time
import zipfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from signal import raise_signal
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

from labkit.memory.estimate.play import estimate_memory
from tests.fakes.record import Record

KEPT = "folder/kept.txt"
REMOVERS = [[{"deep": (os.remove,)}]]
POOL = ThreadPoolExecutor(1)


class Slots:
    __slots__ = ("remove",)

    def __init__(self):
        self.remove = os.remove


class Folder:
    def __init__(self):
        self.clear, self.path, self.unlink = shutil.rmtree, Path(KEPT), Path(KEPT).unlink
        self.write = Path(KEPT).write_text


with torch.profiler.profile() as PROFILE:
    torch.ones(1)
SLOTS, FOLDER = Slots(), Folder()


def remove_by_keyword(path, *, remove=os.remove):
    remove(path)


def enclose(function):
    def call(*arguments):
        return function(*arguments)

    return call


REMOVE_ENCLOSED = enclose(enclose(os.remove))
REMOVE_CACHED = functools.lru_cache(os.remove)
REMOVE_IN_PART = functools.partial(functools.partial(functools.partial(os.remove), KEPT))
ATTRIBUTE = SimpleNamespace(tools=SimpleNamespace(remove=os.remove))
GENERATOR = (one for one in [os.remove] * 9)
SAVERS = [torch.save]
OPENERS = [(open,)]
SYSTEM = {"all": [os.open, os.truncate, os.chmod, os.rename, os.symlink, os.utime, os.mkdir]}


def write(file):
    with file:
        file.write("new" if isinstance(file, io.TextIOBase) else b"new")


def write_by_descriptor():
    number = SYSTEM["all"][0](KEPT, os.O_WRONLY | os.O_TRUNC)
    os.write(number, b"new")
    os.close(number)


def remove_beside_a_descriptor():
    number = os.open("folder", os.O_RDONLY)
    try:
        os.remove("kept.txt", dir_fd=number)
    finally:
        os.close(number)


def dump_into_a_raw_file():
    with io.TextIOWrapper(io.FileIO(KEPT, "w")) as file:
        json.dump([1], file)


def map_and_write():
    with OPENERS[0][0](KEPT, "r+b") as file, mmap.mmap(file.fileno(), 0) as mapped:
        mapped[0:1] = b"n"


def map_by_name():
    with open(KEPT, "r+b") as file, mmap.mmap(file.fileno(), 0) as mapped:
        mapped[0:1] = b"n"


def write_through_a_link():
    if not os.path.exists("other"):
        os.symlink(os.path.abspath("folder"), "other")
    Path("other/kept.txt").write_text("new")
    assert Path("folder/kept.txt").read_text() == "new"


def write_through_a_link_to_a_file():
    if not os.path.exists("other.txt"):
        os.symlink(os.path.abspath(KEPT), "other.txt")
    Path("other.txt").write_text("new")


def write_through_a_link_that_was_there():
    Path("latest/kept.txt").write_text("new")
    assert Path(KEPT).read_text() == "new"
    Path("kept-link.txt").write_text("newer")
    assert Path(KEPT).read_text() == "newer"


def swallow(function):
    def call():
        try:
            function()
        except Exception:
            return

    return call


def swallow_all(function):
    def call():
        try:
            function()
        except BaseException:
            return

    return call


def run_in_a_thread(function, *arguments):
    def call():
        thread = threading.Thread(target=function, args=arguments)
        thread.start()
        thread.join()

    return call


def run_in_a_raw_thread():
    lock = _thread.allocate_lock()
    lock.acquire()

    def run():
        with contextlib.suppress(PermissionError):
            REMOVERS[0][0]["deep"][0](KEPT)
        lock.release()

    _thread.start_new_thread(run, ())
    lock.acquire()


def send_by_descriptor():
    number = os.pidfd_open(os.getpid())
    try:
        signal.pidfd_send_signal(number, signal.SIGTERM)
    finally:
        os.close(number)


def run_a_process():
    process = multiprocessing.get_context("fork").Process(target=os.remove, args=(KEPT,))
    process.start()
    process.join()


def run_a_pool():
    with multiprocessing.get_context("fork").Pool(1) as pool:
        pool.apply(os.remove, (KEPT,))


def run_a_pool_of_threads():
    with multiprocessing.pool.ThreadPool(1) as pool:
        pool.apply(SLOTS.remove, (KEPT,))


def spawn_a_process():
    multiprocessing.get_context("spawn").Process(target=os.remove, args=(KEPT,)).start()


def change_a_database():
    with sqlite3.connect("folder/data.db") as connection:
        connection.execute("create table made (number)")


def zip_into_it():
    with zipfile.ZipFile("folder/kept.txt", "w") as archive:
        archive.writestr("a", "b")


def tar_into_it():
    with tarfile.open("folder/kept.txt", "w") as archive:
        archive.add("folder/data.db")


def link_and_write():
    os.link(KEPT, "folder/second.txt")
    Path("folder/second.txt").write_text("new")


def link_by_kept_function():
    posix.link(KEPT, "second.txt")


def log_to_it():
    handler = logging.FileHandler(KEPT, mode="w")
    logging.getLogger("labkit-step").addHandler(handler)
    logging.getLogger("labkit-step").warning("new")


def use_temporary_files():
    with tempfile.TemporaryDirectory() as folder, tempfile.TemporaryFile() as file:
        Path(folder, "x").write_text("1")
        file.write(b"1")
        with tempfile.NamedTemporaryFile(dir=folder) as named:
            named.write(b"1")
    with tempfile.SpooledTemporaryFile(max_size=1) as file:
        file.write(b"123")


def shelve_it():
    with shelve.open("folder/shelf") as shelf:
        shelf["a"] = 1


def map_an_array():
    np.memmap(KEPT, dtype=np.uint8, mode="r+")[0] = 1


def submit_to_a_pool():
    POOL.submit(REMOVERS[0][0]["deep"][0], KEPT).result()


WAYS = {
    "a list": lambda: REMOVERS[0][0]["deep"][0](KEPT),
    "a keyword-only default": lambda: remove_by_keyword(KEPT),
    "a closure": lambda: REMOVE_ENCLOSED(KEPT),
    "lru_cache": lambda: REMOVE_CACHED(KEPT),
    "slots": lambda: SLOTS.remove(KEPT),
    "an attribute": lambda: ATTRIBUTE.tools.remove(KEPT),
    "partials of partials": REMOVE_IN_PART,
    "a generator": lambda: next(GENERATOR)(KEPT),
    "a kept rmtree": lambda: FOLDER.clear("folder"),
    "a kept rmtree, errors ignored": lambda: FOLDER.clear("folder", ignore_errors=True),
    "a kept unlink of pathlib": lambda: FOLDER.unlink(missing_ok=True),
    "a kept write_text of pathlib": lambda: FOLDER.write("new"),
    "posix.remove": lambda: posix.remove(KEPT),
    "posix.replace": lambda: posix.replace("folder/data.db", KEPT),
    "os.replace": lambda: os.replace("folder/data.db", KEPT),
    "posix.rmdir": lambda: posix.rmdir("empty"),
    "posix.mkdir": lambda: posix.mkdir("made"),
    "a kept open": lambda: write(OPENERS[0][0](KEPT, "w")),
    "a kept open for a new file": lambda: write(OPENERS[0][0]("new.txt", "x")),
    "a kept open to append": lambda: write(OPENERS[0][0](KEPT, "ab")),
    "io.FileIO": lambda: write(io.FileIO(KEPT, "w")),
    "_io.open": lambda: write(_io.open(KEPT, "wb")),
    "a descriptor": write_by_descriptor,
    "a folder's descriptor": remove_beside_a_descriptor,
    "kept truncate": lambda: SYSTEM["all"][1](KEPT, 0),
    "kept chmod": lambda: SYSTEM["all"][2](KEPT, 0o600),
    "kept rename": lambda: SYSTEM["all"][3](KEPT, "folder/gone.txt"),
    "kept symlink": lambda: SYSTEM["all"][4](KEPT, "made.txt"),
    "kept utime": lambda: SYSTEM["all"][5](KEPT, (1, 1)),
    "os.link": link_and_write,
    "posix.link": link_by_kept_function,
    "json into a raw file": dump_into_a_raw_file,
    "mmap by a kept open": map_and_write,
    "mmap": map_by_name,
    "numpy.memmap": map_an_array,
    "numpy.save": lambda: np.save(KEPT, np.ones(3)),
    "numpy.tofile": lambda: np.ones(3).tofile(KEPT),
    "torch.save": lambda: torch.save(torch.ones(3), KEPT),
    "a kept torch.save": lambda: SAVERS[0]({"a": 1}, KEPT),
    "torch.jit.save": lambda: torch.jit.save(torch.jit.script(nn.ReLU()), KEPT),
    "zipfile": zip_into_it,
    "tarfile": tar_into_it,
    "shelve": shelve_it,
    "sqlite3": change_a_database,
    "tempfile": use_temporary_files,
    "logging.FileHandler": log_to_it,
    "a link to a folder": write_through_a_link,
    "a link to a file": write_through_a_link_to_a_file,
    "links that were there": write_through_a_link_that_was_there,
    "except Exception": swallow(lambda: posix.remove(KEPT)),
    "except BaseException": swallow_all(lambda: posix.remove(KEPT)),
    "a thread": run_in_a_thread(os.remove, KEPT),
    "a thread that keeps a function": run_in_a_thread(lambda: REMOVERS[0][0]["deep"][0](KEPT)),
    "a thread of posix.remove": run_in_a_thread(posix.remove, KEPT),
    "a raw thread": run_in_a_raw_thread,
    "a pool that was there": submit_to_a_pool,
    "a forked process": run_a_process,
    "a spawned process": spawn_a_process,
    "subprocess": lambda: subprocess.run(["rm", KEPT], check=True),
    "a shell": lambda: subprocess.run(f"echo new > {KEPT}", shell=True, check=True),
    "os.system": lambda: os.system(f"rm {KEPT}"),
    "os.posix_spawn": lambda: os.posix_spawn("/bin/rm", ["rm", KEPT], {}),
    "a pool of processes": run_a_pool,
    "a pool of threads": run_a_pool_of_threads,
    "a program of another path": lambda: os.spawnlp(os.P_WAIT, "rm", "rm", KEPT),
    "os.mkfifo": lambda: os.mkfifo("made"),
    "torch.profiler": lambda: PROFILE.export_chrome_trace(KEPT),
    "a signal": lambda: os.kill(os.getppid(), signal.SIGWINCH),
    "a signal for itself": lambda: os.kill(os.getpid(), signal.SIGTERM),
    "a raised signal": lambda: signal.raise_signal(signal.SIGTERM),
    "a signal raised by an imported name": lambda: raise_signal(signal.SIGTERM),
    "a signal for a thread": lambda: signal.pthread_kill(
        threading.main_thread().ident, signal.SIGTERM
    ),
    "a signal to a descriptor of a process": send_by_descriptor,
    "an interrupted main thread": _thread.interrupt_main,
    "a raised signal in a thread": run_in_a_thread(signal.raise_signal, signal.SIGTERM),
    "a wait for a signal": signal.pause,
}


def read_all(folder):
    return {
        str(one): (one.is_symlink(), one.stat().st_mode, one.stat().st_mtime_ns)
        + ((one.read_bytes(),) if one.is_file() else ())
        for one in folder.rglob("*")
    }


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("folder").mkdir()
    Path("empty").mkdir()
    Path(KEPT).write_text("kept")
    sqlite3.connect("folder/data.db").close()
    Path("latest").symlink_to("folder")
    Path("kept-link.txt").symlink_to(KEPT)
    POOL.submit(int).result()
    return tmp_path


# What the layer takes; at most others the estimate stops.
# What a shelf is made of differs by Python.
LAYERED = {
    "partials of partials", "a kept unlink of pathlib", "a kept write_text of pathlib",
    "os.replace",
    "os.link", "mmap", "numpy.memmap", "numpy.save", "numpy.tofile", "torch.save", "zipfile",
    "tarfile", "tempfile", "logging.FileHandler", "a link to a folder",
    "a link to a file", "links that were there", "a thread",
    "a thread of posix.remove", "a forked process", "a pool of processes", "os.mkfifo",
}  # fmt: skip


@pytest.mark.filterwarnings("ignore:.torch.jit.*is deprecated:DeprecationWarning")
@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
@pytest.mark.parametrize("name", WAYS)
def test_no_way_leads_a_simulated_step_to_a_real_file(name, folder):
    before, way = read_all(folder), WAYS[name]

    def step():
        way()
        return torch.ones(2)

    obstacle = estimate_memory(step).obstacle
    assert read_all(folder) == before
    assert obstacle is None or name not in LAYERED
    assert obstacle is None or "real" in obstacle.reason or "signal" in obstacle.reason


def read_timers():
    return [round(signal.getitimer(which)[0], -1) for which in (0, 1, 2)]


def test_a_timer_ends_in_the_steps_own_handler_alone():
    real, own = [], Record()

    def step():
        signal.alarm(100)
        assert signal.alarm(0) == 100
        signal.setitimer(signal.ITIMER_VIRTUAL, 0.001)
        until = time.process_time() + 0.02
        while time.process_time() < until:
            pass
        signal.signal(signal.SIGPROF, lambda *_: own.append(1))
        signal.setitimer(signal.ITIMER_PROF, 0.001, 0.001)
        while not own.take():
            pass
        return torch.ones(2)

    before = signal.signal(signal.SIGVTALRM, lambda *_: real.append(1))
    timers = read_timers()
    try:
        assert estimate_memory(step).obstacle is None
        assert read_timers() == timers and not real
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGVTALRM, before)


def test_the_obstacle_names_the_call_the_path_and_the_line(folder):
    kept = [os.remove]
    obstacle = estimate_memory(lambda: kept[0](KEPT)).obstacle
    assert obstacle.operator == f"os.remove('{KEPT}')"
    assert obstacle.frame.source == "obstacle = estimate_memory(lambda: kept[0](KEPT)).obstacle"
    assert "call os.remove by that name" in obstacle.reason
    kept[0](KEPT)  # outside of a simulation
    assert not Path(KEPT).exists()


def test_a_log_that_a_step_opens_is_closed_with_the_layer(folder):
    logger = logging.getLogger("labkit-step")

    def make_step():
        logger.addHandler(logging.FileHandler(KEPT))
        logger.warning("new")
        assert Path(KEPT).read_text() == "keptnew\n"
        return lambda: torch.ones(2)

    assert estimate_memory(make_step).obstacle is None
    assert logger.handlers == []


def test_threads_that_wait_for_work_are_released_after_the_simulation(folder):
    work, done, pools = queue.Queue(), queue.Queue(), Record()

    def consume():
        for path in iter(work.get, None):
            done.put(Path(path).write_text("new"))

    def make_step():
        pool = ThreadPoolExecutor(1)
        pools.append(pool)
        threading.Thread(target=consume).start()
        return lambda: step(pool)

    def step(pool):
        work.put(KEPT)
        pool.submit(Path("other.txt").write_text, "1")
        return torch.ones(2)

    assert estimate_memory(make_step).obstacle is None
    assert Path(KEPT).read_text() == "kept" and not Path("other.txt").exists()
    (pool,) = pools.take()
    pool.submit(Path("other.txt").write_text, "real").result()
    work.put("third.txt")
    work.put(None)
    pool.shutdown()
    assert done.get(timeout=9) == 3  # of the real file: what the step put is dropped
    assert Path("other.txt").read_text() == "real" and Path("third.txt").read_text() == "new"


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_thread_that_outlives_the_simulation_changes_nothing(folder):
    begin = threading.Event()

    def remove_later():
        begin.wait()
        os.remove(KEPT)

    def step():
        threading.Thread(target=remove_later, name="late").start()
        return torch.ones(2)

    estimate = estimate_memory(step)
    assert estimate.obstacle is None and "goes on after it" in estimate.notes[0]
    begin.set()
    for one in threading.enumerate():
        if one.name == "late":
            one.join()
    assert Path(KEPT).exists()


def test_a_step_may_ask_programs_that_only_print(folder):
    def step():
        subprocess.run(["uname", "-a"], check=True, stdout=subprocess.DEVNULL)
        subprocess.run("git --version 2> /dev/null", shell=True, check=False, capture_output=True)
        return torch.ones(os.system("true") + 2)

    assert estimate_memory(step).obstacle is None


def test_lines_in_a_log_file_that_was_open_are_dropped(folder):
    logger, handler = logging.getLogger("labkit-before"), logging.FileHandler("train.log")
    rotating = logging.handlers.RotatingFileHandler("other.log", maxBytes=3, backupCount=1)
    logger.handlers[:] = [handler, rotating]
    logger.warning("real")

    def step():
        logger.warning("simulated")
        return torch.ones(2)

    assert estimate_memory(step).obstacle is None
    logger.warning("too")
    for one in (handler, rotating):
        one.close()
    assert Path("train.log").read_text() == "real\ntoo\n"
    assert Path("other.log.1").read_text() + Path("other.log").read_text() == "real\ntoo\n"


def test_what_a_step_logs_to_a_tracker_is_dropped(folder, monkeypatch):
    logged, begun = Record(), Record()

    class FileWriter:
        def add_event(self, event):
            logged.append(event)

    class Run:
        def _log(self, data):
            logged.append(data)

        def finish(self):
            begun.append("finish")

    class TrackingServiceClient:
        def log_metric(self, run, key, value):
            logged.append(value)

    def begin(**named):
        begun.append(named["mode"])
        return Run()

    for name, names in (
        ("torch.utils.tensorboard.writer", {"FileWriter": FileWriter}),
        ("wandb", {"init": begin, "run": None}),
        ("wandb.sdk.wandb_run", {"Run": Run}),
        (
            "mlflow.tracking._tracking_service.client",
            {"TrackingServiceClient": TrackingServiceClient},
        ),
    ):
        monkeypatch.setitem(sys.modules, name, SimpleNamespace(**names))
    writer, run, client = FileWriter(), Run(), TrackingServiceClient()

    def make_step():
        one = sys.modules["wandb"].init(project="x", mode="online")
        writer.add_event(1)
        run._log({"loss": 1})
        client.log_metric("run", "loss", 1)
        one._log({"loss": 1})
        return lambda: torch.ones(2)

    assert estimate_memory(make_step).obstacle is None
    assert (logged.take(), begun.take()) == ([], ["disabled", "finish"])
    writer.add_event(2)
    run._log(3)
    client.log_metric("run", "loss", 4)
    assert logged.take() == [2, 3, 4]


class Makers:
    """A class, a list, a dictionary, defaults and a closure that keep the real functions."""

    make = os.mkfifo
    tools = [{"pipe": os.mkfifo}, [os.mknod]]  # noqa: RUF012


def make_by_default(path, make=os.mkfifo, *, other=os.mknod):
    make(path)
    other(path + "2")


MAKERS = {
    "a class": lambda path: Makers.make(path),  # noqa: PLW0108
    "a dictionary": lambda path: Makers.tools[0]["pipe"](path),  # noqa: PLW0108
    "a list": lambda path: Makers.tools[1][0](path),  # noqa: PLW0108
    "a default": make_by_default,
    "a closure": enclose(os.mkfifo),
}


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="the system has no pipes with names")
@pytest.mark.parametrize("name", MAKERS)
def test_a_kept_function_that_makes_a_pipe_makes_it_in_the_layer(folder, name):
    before = repr(vars(Makers))

    def make_step():
        MAKERS[name]("pipe")
        assert Path("pipe").exists()
        return lambda: torch.ones(2)

    assert estimate_memory(make_step).obstacle is None
    assert not Path("pipe").exists()
    assert repr(vars(Makers)) == before
    assert (make_by_default.__defaults__, Makers.make) == ((os.mkfifo,), os.mkfifo)


@pytest.mark.skipif(not hasattr(socket, "AF_UNIX"), reason="the system has no sockets in files")
def test_a_socket_in_a_file_is_not_made(folder):
    def make_step():
        with socket.socket(socket.AF_UNIX) as one:
            one.bind("socket")
        return lambda: torch.ones(2)

    estimate = estimate_memory(make_step)
    assert estimate.obstacle.operator == "socket.bind('socket')"
    assert not Path("socket").exists()


def test_a_socket_of_the_network_is_no_file(folder):
    def make_step():
        with socket.socket() as one:
            one.bind(("127.0.0.1", 0))
        return lambda: torch.ones(2)

    assert estimate_memory(make_step).obstacle is None


def test_files_that_native_code_opens_are_in_the_layer(folder, monkeypatch):
    def write_image(path, data):
        write(OPENERS[0][0](path, "wb"))

    def read_image(path):
        with OPENERS[0][0](path) as file:
            return file.read()

    def open_database(path, readonly=False):
        assert readonly
        return read_image(path)

    for name in ("cv2", "lmdb"):
        monkeypatch.setitem(sys.modules, name, ModuleType(name))
    vars(sys.modules["cv2"]).update(imwrite=write_image, imread=read_image)
    vars(sys.modules["lmdb"]).update(open=open_database)

    def step():
        vision, database = sys.modules["cv2"], sys.modules["lmdb"]
        assert database.open(KEPT, readonly=True) == "kept"
        vision.imwrite(KEPT, b"new")
        assert vision.imread(KEPT) == "new"
        database.open(KEPT)

    assert estimate_memory(step).obstacle.operator == f"open('{KEPT}')"
    assert Path(KEPT).read_text() == "kept"
