"""Errors that pass through the doctor by themselves: of notebooks, of runs, of kernels that die."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from IPython.core.interactiveshell import InteractiveShell
from IPython.utils.capture import capture_output
from traitlets.config import Config
from traitlets.config.loader import PyFileConfigLoader

from labkit.host.distribution import Distribution
from labkit.jupyter import cells, extension
from labkit.known_errors.match import explain_text, hint_at
from labkit.lessons.catalog import listed_labs
from labkit.lessons.notebooks import make_learner_notebook, notebook_bytes
from tests.fakes.small_labs import write_labs
from tests.notebooks import run_cells

REPOSITORY = Path(__file__).parents[1]
SETTINGS = REPOSITORY / "docker" / "jupyter" / "ipython_config.py"
NO_KERNEL = "CUDA error: no kernel image is available for execution on the device"
HINT = (
    "cause: this torch has no code for the GPU's architecture (Maxwell, Pascal and Volta need the "
    "cu126 build, Blackwell needs cu130)\n"
    "try: pip install --force-reinstall torch torchvision --index-url https://download.pytorch.org/whl/cu126"
    "   # or cu130 (RTX 50 and newer: cu128 at least)"
)


@pytest.fixture
def shell():
    """A shell of its own, without the history file, in which the extension is loaded."""
    config = Config()
    config.HistoryManager.enabled = False
    config.InteractiveShell.colors = "nocolor"
    InteractiveShell.clear_instance()
    started = InteractiveShell.instance(config=config)
    started.run_cell("%load_ext labkit")
    yield started
    extension.unload_ipython_extension(started)
    InteractiveShell.clear_instance()


def show(shell, cell):
    """The rich outputs that the cell left below its traceback."""
    with capture_output() as captured:
        shell.run_cell(cell)
    return [output.data for output in captured.outputs]


def test_a_cell_that_raises_a_known_error_is_followed_by_its_cause(shell):
    (data,) = show(shell, f"raise RuntimeError({NO_KERNEL!r})")
    assert data["text/plain"] == HINT
    assert data["text/html"].startswith('<pre style="white-space:pre-wrap">cause: this torch')


@pytest.mark.parametrize(
    "error",
    [
        AssertionError("Torch not compiled with CUDA enabled"),
        RuntimeError("Found no NVIDIA driver on your system."),
    ],
    ids=["a build for the CPU", "a build for CUDA"],
)
def test_on_a_machine_without_a_gpu_the_fix_is_another_device(monkeypatch, error):
    monkeypatch.setattr(cells, "has_gpu", lambda: False)
    assert "best_device()" in cells.explain_known_error(error)
    monkeypatch.setattr(cells, "has_gpu", lambda: True)
    assert "best_device" not in cells.explain_known_error(error)


def test_a_name_from_a_cell_that_has_not_run_names_that_cell(shell, tmp_path, monkeypatch):
    lab = listed_labs(write_labs(tmp_path / "labs"))[0]
    notebook = tmp_path / "01_small.ipynb"
    notebook.write_bytes(notebook_bytes(make_learner_notebook(lab)))
    monkeypatch.setenv("JPY_SESSION_NAME", str(notebook))

    (imported,) = show(shell, "def center(x: torch.Tensor): return x")
    (defined,) = show(shell, "scale * 2")

    assert imported["text/plain"] == (
        'torch comes from the first code cell under "Small", which has not run in this kernel: '
        "run it first (or Run > Run All Above Selected Cell)"
    )
    assert '<a href="#Small">Small</a>' in imported["text/html"]
    assert defined["text/plain"].startswith("scale comes from a cell under")
    assert show(shell, "nobody_defines_this") == []


def test_the_error_that_led_to_another_is_read_too(shell):
    cell = f"""
try:
    raise RuntimeError({NO_KERNEL!r})
except RuntimeError as error:
    raise ValueError("no model") from error
"""
    assert [data["text/plain"] for data in show(shell, cell)] == [HINT]


@pytest.mark.parametrize(
    "cell",
    [
        pytest.param("raise ValueError('expected 4 classes, got 3')", id="an error of one's own"),
        pytest.param("print('RuntimeError: No CUDA GPUs are available')", id="a cell that prints"),
        pytest.param("raise SystemExit", id="an exit"),
        pytest.param(
            "raise RuntimeError('Kernel died before replying to kernel_info')", id="maybe"
        ),
        pytest.param("1 +", id="no Python"),
    ],
)
def test_nothing_is_shown_below_other_cells(shell, cell):
    assert show(shell, cell) == []


def test_nothing_was_raised_is_nothing_explained():
    assert cells.explain_known_error(None) is None


@pytest.mark.parametrize(
    ("set_to", "extensions"),
    [(None, ["labkit"]), ("1", ["labkit"]), ("0", None)],
    ids=["not set", "on", "off"],
)
def test_the_settings_of_the_labs_python_load_the_extension(monkeypatch, set_to, extensions):
    monkeypatch.delenv("LABKIT_EXTENSION")
    if set_to is not None:
        monkeypatch.setenv("LABKIT_EXTENSION", set_to)
    loaded = PyFileConfigLoader(SETTINGS.name, str(SETTINGS.parent)).load_config()
    assert loaded.get("InteractiveShellApp", {}).get("extensions") == extensions


def test_an_ipython_with_these_settings_explains_by_itself(tmp_path):
    profile = tmp_path / "profile_default"
    profile.mkdir()
    (profile / "ipython_config.py").write_text(SETTINGS.read_text())
    done = subprocess.run(
        [sys.executable, "-m", "IPython", "-c", f"raise RuntimeError({NO_KERNEL!r})"],
        env={
            **os.environ,
            "IPYTHONDIR": str(tmp_path),
            "PYTHONPATH": str(REPOSITORY),
            "LABKIT_EXTENSION": "1",
        },
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert HINT in done.stdout


# labkit run


def test_a_runs_failure_has_the_cause_of_a_known_error(tmp_path):
    result, _ = run_cells(tmp_path, f"raise RuntimeError({NO_KERNEL!r})")
    assert result.error.hint == HINT
    assert result.error.kind == "cell"


def test_a_warning_that_explains_the_error_is_read_with_it(tmp_path):
    result, _ = run_cells(
        tmp_path,
        "import sys\nprint('Error 804: forward compatibility was attempted on non supported HW',"
        " file=sys.stderr)\nraise RuntimeError('CUDA is not there')",
    )
    assert result.error.hint.startswith("cause: a compat libcuda")


def test_a_runs_ordinary_failure_has_no_cause(tmp_path):
    result, _ = run_cells(tmp_path, "raise ValueError('expected 4 classes, got 3')")
    assert result.error.hint is None


def test_a_kernels_last_words_are_read(tmp_path):
    result, _ = run_cells(
        tmp_path,
        "import os\nos.write(2, b'symbol lookup error: libcusparse.so.12: undefined symbol: "
        "__nvJitLinkComplete_12_4\\n')\nos._exit(127)",
    )
    assert result.status == "died"
    assert "libnvJitLink" in result.error.hint


# What is sure enough to be said unasked


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("fatal error: Python.h: No such file or directory", True),
        ("Illegal instruction (core dumped)", False),
        ("all is well", False),
    ],
    ids=["certain", "a possibility", "nothing"],
)
def test_a_mere_possibility_is_not_said_unasked(text, said):
    assert (explain_text(text).sure is not None) is said
    assert (hint_at(text, Distribution("Debian", "debian")) is not None) is said
