"""What must answer at once, and on a bare host, loads the standard library and no more."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

HEAVY = ("torch", "numpy", "IPython", "matplotlib", "rich", "nbclient", "nbformat", "jupytext")

SCRIPT = """
import contextlib, io, json, sys
with contextlib.redirect_stdout(io.StringIO()):
    {statement}
print(json.dumps(sorted({{name.partition(".")[0] for name in sys.modules}})))
"""
MAIN = "from labkit.cli import main\n    with contextlib.suppress(SystemExit): main({words!r})"


def list_modules(statement):
    """The top-level modules that a fresh interpreter has loaded after the statement."""
    command = [sys.executable, "-c", SCRIPT.format(statement=statement)]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60)
    return set(json.loads(done.stdout))


@pytest.mark.parametrize(
    "statement",
    [
        pytest.param("import labkit", id="import labkit"),
        pytest.param(MAIN.format(words=["--help"]), id="labkit --help"),
        pytest.param(MAIN.format(words=["devices"]), id="labkit devices"),
        pytest.param(MAIN.format(words=["devices", "--json"]), id="labkit devices --json"),
        pytest.param(MAIN.format(words=["run", "--help"]), id="labkit run --help"),
        pytest.param(MAIN.format(words=["status", "--help"]), id="labkit status --help"),
    ],
)
def test_nothing_heavy_is_loaded(statement):
    assert list_modules(statement).isdisjoint(HEAVY)


def test_devices_is_the_first_to_load_the_nvml_binding():
    assert "pynvml" not in list_modules("import labkit, labkit.devices.detect")


def test_the_probe_sees_what_is_loaded():
    assert "json" in list_modules("import json")
