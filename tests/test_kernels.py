from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from jupyter_client.connect import LocalPortCache

from labkit.errors import LabkitError
from labkit.notebooks.kernel import cell_error, kernel_environment, run_cells

ROOT = Path(__file__).parents[1]


def code(*sources: str) -> dict[str, Any]:
    cells = [{"cell_type": "code", "metadata": {}, "outputs": [], "source": s} for s in sources]
    return {"cells": cells, "metadata": {}, "nbformat": 4, "nbformat_minor": 5}


def texts(notebook: Any) -> list[str]:
    return ["".join(o.get("text", "") for o in cell.outputs) for cell in notebook.cells]


def test_cells_run_in_this_python_and_in_the_folder(tmp_path: Path) -> None:
    source = ["import os, sys\n", "print(sys.executable)\n", "print(os.getcwd())\n", "1 / 0"]
    notebook = code("", "print('after')")
    notebook["cells"][0]["source"] = source  # files may keep their sources as lines
    notebook["cells"][0]["outputs"] = [{"output_type": "stream", "name": "stdout", "text": "old"}]

    ran = run_cells(
        notebook,
        tmp_path,
        kernel_environment(reference=False, workspace=None),
        timeout_seconds=60,
    )

    assert texts(ran) == [f"{sys.executable}\n{tmp_path}\n", "after\n"]
    assert cell_error(ran.cells[0]) == "ZeroDivisionError: division by zero"
    assert cell_error(ran.cells[1]) is None
    assert notebook["cells"][0]["outputs"][0]["text"] == "old"


def test_the_kernels_own_streams_stay_off_ours(tmp_path: Path, capfd: Any) -> None:
    run_cells(
        code("import os; os.write(1, b'one'); os.write(2, b'two')"),
        tmp_path,
        kernel_environment(reference=False, workspace=None),
        timeout_seconds=60,
    )

    assert capfd.readouterr() == ("", "")


@pytest.mark.slow
def test_a_kernel_that_cannot_start_is_an_error(tmp_path: Path) -> None:
    environment = {
        **kernel_environment(reference=False, workspace=None),
        "PYTHONHOME": str(tmp_path / "nowhere"),
    }

    with pytest.raises(LabkitError, match="the kernel did not start"):
        run_cells(code("1"), tmp_path, environment, timeout_seconds=60)


@pytest.mark.slow
@pytest.mark.parametrize("taken", [1, 99], ids=["once", "always"])
def test_a_kernel_whose_port_was_taken_meanwhile_gets_another(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, taken: int
) -> None:
    find = LocalPortCache.find_available_port
    found: list[int] = []
    with socket.create_server(("127.0.0.1", 0)) as other:

        def find_late(cache: Any, ip: str) -> int:
            found.append(other.getsockname()[1] if len(found) < 5 * taken else find(cache, ip))
            return found[-1]

        monkeypatch.setattr(LocalPortCache, "find_available_port", find_late)
        environment = kernel_environment(reference=False, workspace=None)
        if taken == 1:
            ran = run_cells(code("print(6 * 7)"), tmp_path, environment, timeout_seconds=60)
            assert ran.cells[0].outputs[0].text == "42\n"
        else:
            with pytest.raises(LabkitError, match="the kernel did not start"):
                run_cells(code("1"), tmp_path, environment, timeout_seconds=60)

    assert len(found) == 5 * min(taken + 1, 3)  # five ports for each start, three starts at most


@pytest.mark.slow
def test_ctrl_c_ends_the_kernel_and_the_run(tmp_path: Path) -> None:
    script = tmp_path / "run.py"
    script.write_text(
        "from pathlib import Path\n"
        "from labkit.notebooks.kernel import kernel_environment, run_cells\n"
        "source = 'import os, signal, time; os.kill(os.getppid(), signal.SIGINT); time.sleep(60)'\n"
        "cell = {'cell_type': 'code', 'metadata': {}, 'outputs': [], 'source': source}\n"
        "notebook = {'cells': [cell], 'metadata': {}, 'nbformat': 4, 'nbformat_minor': 5}\n"
        "environment = kernel_environment(reference=False, workspace=None)\n"
        "try:\n"
        "    run_cells(notebook, Path('.'), environment, timeout_seconds=60)\n"
        "except KeyboardInterrupt:\n"
        "    print('interrupted')\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, str(script)],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        timeout=50,
        check=True,
    )

    assert (done.stdout, done.stderr) == ("interrupted\n", "")


def test_the_environment_says_what_kind_of_run_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LABKIT_REFERENCE", "1")
    monkeypatch.setenv("LABKIT_WORKSPACE", "/somewhere/else")
    monkeypatch.setenv("PYTHONPATH", "/mine")

    learner = kernel_environment(reference=False, workspace=tmp_path)
    reference = kernel_environment(reference=True, workspace=None)

    assert "LABKIT_REFERENCE" not in learner
    assert learner["LABKIT_WORKSPACE"] == str(tmp_path)
    assert reference["LABKIT_REFERENCE"] == "1"
    assert "LABKIT_WORKSPACE" not in reference
    assert learner["PYTHONPATH"].split(os.pathsep)[-1] == "/mine"


@pytest.mark.parametrize(
    ("outputs", "error"),
    [
        pytest.param([], None, id="none"),
        pytest.param(
            [{"output_type": "error", "ename": "KeyError", "evalue": "'a'\nmore"}],
            "KeyError: 'a'",
            id="first line",
        ),
        pytest.param(
            [{"output_type": "error", "ename": "KeyboardInterrupt", "evalue": ""}],
            "KeyboardInterrupt",
            id="without a text",
        ),
    ],
)
def test_a_cells_error_is_one_line(outputs: list[dict[str, str]], error: str | None) -> None:
    assert cell_error({"outputs": outputs}) == error


def test_a_callers_startup_file_does_not_run_before_a_lab(monkeypatch):
    monkeypatch.setenv("PYTHONSTARTUP", "/somebody/startup.py")
    assert "PYTHONSTARTUP" not in kernel_environment(reference=True, workspace=None)
