"""A run that ends because a GPU's memory ran out is told where that memory is."""

from __future__ import annotations

import asyncio
import sys
import textwrap

import pytest

from labkit.jupyter.cells import explain_last_error
from labkit.notebooks.execute import (
    PAGE_CHARACTERS,
    advise,
    explain_in_kernel,
    is_out_of_memory,
    read_balance,
    read_page,
)
from labkit.notebooks.report.page import write_report
from labkit.notebooks.result import FailureBalance
from labkit.notebooks.summary import format_summary
from tests.fakes.runs import make_notebook, make_result, write_run
from tests.notebooks import run_cells
from tests.test_oom_page import TEXT

# A kernel of the tests: torch need not be there to run out of memory.
FAIL = f"raise RuntimeError({TEXT!r})"
PAGE = """\
out of memory on cuda:0
  asked for                             30.0 GiB
  free on the device                    27.5 GiB
  tensors of this process               24.0 GiB
  cached by the allocator                6.0 GiB
  total                                 79.7 GiB

what would help, in order
  1. a smaller batch, a smaller type (torch.autocast), or a part at a time"""


def test_the_kernel_tells_the_page_right_after_the_cell(tmp_path):
    result, notebook = run_cells(tmp_path, "x = 1", FAIL, "print('not run')")
    assert (result.status, result.error.kind) == ("failed", "out_of_memory")
    assert result.error.hint == PAGE
    assert result.error.balance.asked_bytes == 30 * 2**30
    assert [cell.status for cell in result.cells] == ["passed", "failed", "not_run"]
    assert textwrap.indent(PAGE, "  ") in format_summary((result,))
    # The question leaves no trace in the notebook.
    assert [len(cell.outputs) for cell in notebook.cells] == [0, 1, 0]


def test_a_kernel_without_labkit_leaves_the_errors_own_text(tmp_path):
    hide = "import sys; sys.modules['labkit.jupyter.cells'] = None"
    result, _ = run_cells(tmp_path, hide, FAIL)
    assert result.error.hint.startswith("30.0 GiB asked for, 27.5 GiB free")


def test_a_cell_that_may_fail_is_not_asked_about(tmp_path):
    watch = (
        "import labkit.jupyter.cells as explain; asked = [];"
        " explain.explain_last_error = lambda: asked.append(1)"
    )
    result, notebook = run_cells(tmp_path, watch, FAIL, "print(asked)", allow_errors=True)
    assert result.status == "passed"
    assert notebook.cells[2].outputs[0].text == "[]\n"


@pytest.mark.parametrize(
    ("answer", "page"),
    [("'a page'", "a page"), ("None", None), ("''", None), ("7", None), ("<no text>", None)],
)
def test_an_answer_is_read_or_let_be(answer, page):
    told = {"user_expressions": {"labkit": {"status": "ok", "data": {"text/plain": answer}}}}
    assert read_page(told) == page


def test_a_page_is_bounded_and_an_error_is_none():
    told = {"user_expressions": {"labkit": {"data": {"text/plain": repr("x" * 99_999)}}}}
    assert len(read_page(told)) == PAGE_CHARACTERS
    assert read_page({}) is None
    assert read_page({"user_expressions": {"labkit": {"status": "error"}}}) is None


def test_only_a_gpus_memory_is_asked_about():
    for value in ("DefaultCPUAllocator: can't allocate memory", "division by zero", ""):
        assert asyncio.run(explain_in_kernel(None, value)) is None


@pytest.mark.slow
@pytest.mark.parametrize("name", ["last_exc", "last_value"])
def test_the_last_error_is_found_where_this_python_keeps_it(monkeypatch, name):
    for other in ("last_exc", "last_value"):
        monkeypatch.delattr(sys, other, raising=False)
    assert explain_last_error() is None
    monkeypatch.setattr(sys, name, RuntimeError(TEXT), raising=False)
    assert explain_last_error().startswith("out of memory on cuda:0\n")
    monkeypatch.setattr(sys, name, ValueError("no"), raising=False)
    assert explain_last_error() is None


def test_the_page_keeps_its_columns_in_the_report(tmp_path):
    error = {"what": "cell 2 of 2 raised OutOfMemoryError: no", "cell_index": 1, "hint": PAGE}
    described = make_result(make_notebook(status="failed", error=error), status="failed")
    folder = write_run(tmp_path / "run", described)
    report = write_report(folder).read_text()
    assert f"<pre>{PAGE}</pre>" in report


@pytest.mark.gpu
def test_a_real_shortage_names_what_holds_the_memory(tmp_path):
    result, _ = run_cells(
        tmp_path,
        "import torch\nkept = torch.zeros(64 * 2**20, dtype=torch.uint8, device='cuda')",
        "torch.zeros(2**50, dtype=torch.uint8, device='cuda')",
        asks_cuda=True,
    )
    hint = result.error.hint
    assert "the biggest live tensors\n    64.0 MiB  (67108864,) uint8  kept" in hint
    assert "largest free block of the cache" in hint
    assert "the balance after the error\ncuda:0" in hint


ON_CUDA = (
    "CUDA out of memory. Tried to allocate 20.00 GiB. GPU 0 has a total capacity of 139.81 GiB of"
    " which 512.00 MiB is free. Process 1234 has 139.31 GiB memory in use. Of the allocated memory"
    " 100.50 GiB is allocated by PyTorch, and 38.00 GiB is reserved by PyTorch but unallocated. If"
    " reserved but unallocated memory is large try setting"
    " PYTORCH_CUDA_ALLOC_CONF=expandable_segments:True to avoid fragmentation."
)
ON_CPU = (
    "[enforce fail at alloc_cpu.cpp:127] err == 0. DefaultCPUAllocator: can't allocate memory: you"
    " tried to allocate 4000000000000 bytes. Error code 12 (Cannot allocate memory)"
)


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        ("OutOfMemoryError", ON_CUDA, True),
        ("torch.OutOfMemoryError", "", True),
        ("RuntimeError", ON_CPU, True),
        ("RuntimeError", "CUDA error: out of memory", True),
        ("MemoryError", "", True),
        ("RuntimeError", "shapes do not match", False),
    ],
)
def test_running_out_of_memory_is_known_by_its_name_or_text(name, value, expected):
    assert is_out_of_memory(name, value) is expected


def test_the_balance_is_read_from_the_text():
    assert read_balance(ON_CUDA) == FailureBalance(
        asked_bytes=20 * 2**30,
        total_bytes=round(139.81 * 2**30),
        free_bytes=512 * 2**20,
        allocated_bytes=round(100.5 * 2**30),
        cached_bytes=38 * 2**30,
    )
    assert read_balance(ON_CPU) == FailureBalance(asked_bytes=4_000_000_000_000)
    assert read_balance("") is None


def test_the_advice_shows_the_figures_side_by_side():
    lines = advise(ON_CUDA, read_balance(ON_CUDA), {}).splitlines()
    assert lines[0] == (
        "20.0 GiB asked for, 512.0 MiB free, 100.5 GiB allocated by torch, 38.0 GiB cached by"
        " torch, 139.8 GiB total"
    )
    assert lines[1].startswith("try: a smaller batch; torch.no_grad()")
    assert "PYTORCH_ALLOC_CONF=expandable_segments:True helps" in lines[2]


@pytest.mark.parametrize("name", ["PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF"])
def test_expandable_segments_are_not_advised_where_they_are_on(name):
    settings = {name: "max_split_size_mb:64,expandable_segments:True"}
    advice = advise(ON_CUDA, read_balance(ON_CUDA), settings)
    assert "PYTORCH" not in advice
    assert "expandable segments are on" in advice


def test_on_the_cpu_there_is_other_advice():
    assert advise(ON_CPU, read_balance(ON_CPU)).splitlines() == [
        "3.6 TiB asked for",
        "try: a smaller batch or a smaller dtype, or give the machine or container more memory",
    ]
