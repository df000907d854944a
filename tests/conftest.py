"""What decides whether a marked test can run here, and the servers that tests share."""

from __future__ import annotations

import contextlib
import gc
import importlib.util
import os
import shutil
import signal
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from labkit.process import run_command
from tests.servers import LabServer, start_server
from tests.simulated_gpu.hosts import (
    ALLOCATOR_VARIABLES,
    find_missing_simulation,
    play_default_host,
)
from tests.snapshots import RENEW_VARIABLE

ROOT = Path(__file__).parents[1]
# A machine with a GPU may have the package's dependencies without JupyterLab: the rest runs there.
collect_ignore = (
    []
    if importlib.util.find_spec("jupyter_server")
    else ["test_contents.py", "test_guard.py", "test_nothing_lost.py", "test_start.py"]
)

# The fixtures of the simulated hosts, by name.
pytest_plugins = ["tests.simulated_gpu.fixtures"]

# What a collection makes is there to the end: pytest_collection_finish.
gc.disable()

# The device files of an NVIDIA GPU on Linux, on WSL2 and on a Jetson.
GPU_FILES = ("/dev/nvidiactl", "/dev/dxg", "/dev/nvhost-gpu")

# torch reads them once, when CUDA starts: the tests are about its allocator's defaults.
for _name in ALLOCATOR_VARIABLES:
    os.environ.pop(_name, None)
# Before torch and NVML read which GPUs there are.
if not find_missing_simulation():
    play_default_host()

# Kernels that tests start are plain ones, whatever the environment's settings load into them; the
# servers of tests/servers.py are started as the lab's own.
os.environ["LABKIT_EXTENSION"] = "0"
# xdist's workers share the cores: with a thread per core in each, torch would wait, not compute.
if WORKERS := int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "0")):
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // WORKERS)))
# `make test` sets it, for messages to a person.
os.environ.pop("LABKIT_MAKE", None)
# The image's own, which is no test's.
os.environ.pop("LABKIT_WORKSPACE", None)


def _missing_engine() -> str | None:
    if os.environ.get("LABKIT_IN_CONTAINER"):
        return "inside the test container there is no engine: make test RUNTIME=local"
    answer = run_command(["docker", "info"], timeout_seconds=20)
    return None if answer.ok else f"needs a container engine: {answer.message}"


def _missing_root() -> str | None:
    return None if os.geteuid() == 0 else "needs root, to become other users or to mount"


def _missing_browser() -> str | None:
    missing = [name for name in ("chromium", "chromedriver") if not shutil.which(name)]
    return f"needs {' and '.join(missing)}: apt-get install chromium-driver" if missing else None


def _missing_gpu() -> str | None:
    if find_missing_simulation() and not any(Path(file).exists() for file in GPU_FILES):
        return "needs an NVIDIA GPU, or a simulated one: make test SIMULATED=1"
    import torch

    return None if torch.cuda.is_available() else "needs a GPU that this torch can use"


def _missing_hardware() -> str | None:
    if not find_missing_simulation():
        return "the simulated GPU cannot show it, only a real one"
    return _missing_gpu()


def pytest_addoption(parser: pytest.Parser) -> None:
    """Adds ``--renew-snapshots``: stores the screens that tests/snapshots.py compares."""
    parser.addoption(
        "--renew-snapshots", action="store_true", help="store the screens that tests compare"
    )


def pytest_configure(config: pytest.Config) -> None:
    """Hands the option to tests/snapshots.py."""
    if config.getoption("--renew-snapshots"):
        os.environ[RENEW_VARIABLE] = "1"


MISSING = {
    "root": _missing_root,
    "engine": _missing_engine,
    "hub": _missing_engine,
    "browser": _missing_browser,
    "gpu": _missing_gpu,
    "gpu_hardware": _missing_hardware,
    "simulated": find_missing_simulation,
}


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Skips what cannot run here, with the reason and the way to run it; long files come first."""
    reasons: dict[str, str | None] = {}
    repeats = config.pluginmanager.hasplugin("rerunfailures")
    for item in items:
        # JupyterLab and Chromium load in an order of their own, which a busy machine changes: a
        # browser test that fails runs once more, and pytest's last line counts it as a rerun.
        if repeats and item.get_closest_marker("browser"):
            item.add_marker(pytest.mark.flaky(reruns=1))
        for name, find_missing in MISSING.items():
            if item.get_closest_marker(name):
                if name not in reasons:  # `docker info` takes a while
                    reasons[name] = find_missing()
                if reason := reasons[name]:
                    item.add_marker(pytest.mark.skip(reason=reason))
    # Files that take minutes begin first: a worker that began one last would work alone.
    long = {item.path for item in items if item.get_closest_marker("slow")}
    items.sort(key=lambda item: item.path not in long)


def pytest_collection_finish() -> None:
    """Takes what is there by now out of the garbage collector's sight.

    It stays to the end, and whatever collects in a test, or lists all objects, would walk through
    half a million of them: a third of a second each time. Hypothesis is there too, though no test
    needs it: its plugin imports it at the end, and would miss frozen objects.
    """
    with contextlib.suppress(ImportError):
        importlib.import_module("hypothesis")
    gc.collect()
    gc.freeze()
    gc.enable()


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Says why a test failed that passed the second time: pytest names it alone."""
    for report in terminalreporter.getreports("rerun"):
        terminalreporter.write_sep("_", f"the first run of {report.nodeid}")
        terminalreporter.write_line(report.longreprtext)


def pytest_sessionfinish() -> None:
    """Ends that: for its summary pytest may import hypothesis, which asks for all referrers."""
    gc.unfreeze()


@pytest.fixture(autouse=True)
def _empty_gpu(request: pytest.FixtureRequest) -> Iterator[None]:
    """Takes earlier tests' memory off the GPU before and after each test marked ``gpu``."""
    marked = request.node.get_closest_marker("gpu")
    if marked:
        _empty_cache()
    yield
    if marked:
        _empty_cache()


def _empty_cache() -> None:
    torch = sys.modules.get("torch")
    gc.collect()
    if torch is not None and torch.cuda.is_initialized():
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()


@pytest.fixture
def heeds_interrupts() -> Iterator[None]:
    """Ctrl-C raises KeyboardInterrupt in our children though pytest's shell may ignore it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.fixture(scope="module")
def lab_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LabServer]:
    """JupyterLab as `labkit serve` starts it in every runtime, on a workspace of its own.

    One for each file of tests: which files a worker runs, and in what order, differs between runs.
    """
    with start_server(tmp_path_factory.mktemp("served")) as server:
        yield server


@pytest.fixture(autouse=True)
def _current_folder(request: pytest.FixtureRequest) -> Iterator[None]:
    """Fails a test that leaves the next ones in another folder: what they see depends on it."""
    os.chdir(ROOT)
    folder = Path.cwd()
    yield
    try:
        left = Path.cwd()
    except OSError:  # it was deleted
        left = None
    os.chdir(ROOT)
    if left != folder:
        pytest.fail(f"{request.node.name} left the current folder at {left}", pytrace=False)


@pytest.fixture(autouse=True)
def _threads_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """Threads that tests of other files have left do not count as the program's."""
    opened = sys.modules.get("labkit.memory.estimate.opened")
    if opened is None:
        return
    list_all = opened.list_thread_frames
    left = list_all().keys() - {threading.get_ident()}
    monkeypatch.setattr(
        opened,
        "list_thread_frames",
        lambda: {number: frame for number, frame in list_all().items() if number not in left},
    )
