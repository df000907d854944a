"""How labkit finds IPython's shell and calls its cells: the same words wherever a line is told."""

from __future__ import annotations

import sys
import types

import pytest

from labkit.memory.track.frames import Frame, find_shell, name_cell

CELL = Frame("<ipython-input-7-abc>", 2, "<module>")


def play_ipython(monkeypatch, shell):
    """This process has IPython, and that shell in it."""
    played = types.SimpleNamespace(get_ipython=lambda: shell)
    monkeypatch.setitem(sys.modules, "IPython", played)


def format_code_name(file):
    """What IPython's compiler calls a cell."""
    return ("Cell", "In[7]") if file == CELL.file else None


def test_a_line_of_a_cell_is_called_as_ipythons_tracebacks_call_it(monkeypatch):
    compiler = types.SimpleNamespace(format_code_name=format_code_name)
    play_ipython(monkeypatch, types.SimpleNamespace(compile=compiler))
    assert CELL.where == "In[7]:2"
    assert Frame("/home/ada/train.py", 12, "step").where == "train.py:12"


@pytest.mark.parametrize(
    "shell",
    [None, types.SimpleNamespace(), types.SimpleNamespace(compile=compile)],
    ids=["no shell", "no compiler", "another compiler"],
)
def test_a_cell_without_a_number_is_still_called_one(monkeypatch, shell):
    play_ipython(monkeypatch, shell)
    assert name_cell(CELL.file) is None
    assert CELL.where == "cell:2"


def test_an_ipython_that_is_being_imported_has_no_shell_yet(monkeypatch):
    monkeypatch.setitem(sys.modules, "IPython", types.ModuleType("IPython"))
    assert find_shell() is None


def test_a_real_cell_has_the_same_name_in_a_tracked_block_and_in_a_recording():
    pytest.importorskip("torch")
    interactive = pytest.importorskip("IPython.core.interactiveshell").InteractiveShell
    interactive.clear_instance()
    shell = interactive.instance()
    try:
        shell.run_cell(
            "import labkit, torch\n"
            "with labkit.track_memory('cpu', lines=1) as tracked:\n"
            "    first = torch.ones(1000)\n"
            "with labkit.record_allocations('cpu') as recorded:\n"
            "    second = torch.ones(1000)\n",
            store_history=True,
        ).raise_error()
        tracked, recorded = shell.user_ns["tracked"], shell.user_ns["recorded"]
        number = shell.execution_count - 1
        assert f"In[{number}]:3  first = torch.ones(1000)" in repr(tracked)
        assert f"In[{number}]:5\n" in repr(recorded)
    finally:
        interactive.clear_instance()
