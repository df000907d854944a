"""``labkit run --nproc-per-node``: real ranks under torchrun, and which failure was first."""

from __future__ import annotations

import json
import os
import pickle
import signal
import subprocess
import sys
import time
from pathlib import Path

import nbformat
import pytest
from jsonschema import Draft202012Validator

from labkit.cli import main
from labkit.errors import ExitCode
from labkit.notebooks import torchrun
from labkit.notebooks.execute import RunOptions
from labkit.notebooks.result import (
    CellMemory,
    CellResult,
    NotebookResult,
    RankPlace,
    RunFailure,
    find_status,
    group_ranks,
    make_schema,
)
from labkit.notebooks.summary import format_summary
from labkit.notebooks.torchrun import RankOptions, end_ranks, settle_ranks

START = "import time, torch, torch.distributed as dist\ndist.init_process_group('gloo')\n"


def rank(number, status, what=None, *, at=1.0, waits=None, cells=()):
    error = RunFailure(what) if what else None
    place = RankPlace(number, number, 2, waits=waits, ended_at=at)
    name = f"train.rank{number}"
    return NotebookResult(name, "train.py", status, rank=place, error=error, cells=cells)


LOST = "cell 2 of 3 raised RuntimeError: Connection closed by peer [127.0.0.1]:4000"


@pytest.mark.parametrize(
    ("ranks", "first", "status"),
    [
        pytest.param(
            [rank(0, "failed", "a", at=2.0), rank(1, "failed", "b", at=1.0)],
            *(1, "failed"),
            id="the earlier one",
        ),
        pytest.param(
            [rank(0, "failed", LOST, at=1.0), rank(1, "died", "killed by SIGKILL", at=2.0)],
            *(1, "died"),
            id="a death before the lost connection that is noticed earlier",
        ),
        pytest.param(
            [rank(0, "died", "killed", at=None), rank(1, "failed", "b", at=3.0)],
            *(1, "failed"),
            id="an error before the rank that was killed because of it",
        ),
        pytest.param(
            [rank(0, "stopped", "ended"), rank(1, "timed_out", "too long", at=9.0)],
            *(1, "timed_out"),
            id="not the one that was ended",
        ),
        pytest.param(
            [rank(0, "failed", LOST, at=5.0), rank(1, "passed")],
            *(0, "failed"),
            id="a lost connection where nobody else failed",
        ),
    ],
)
def test_the_first_failure_decides(ranks, first, status):
    settled = settle_ranks(ranks)

    assert [one.rank.failed_first for one in settled] == [n == first for n in range(2)]
    assert find_status(settled) == status


def cells(*statuses):
    return tuple(CellResult(n, status) for n, status in enumerate(statuses))


WAITS = "cell 2 of 2, line 1: time.sleep(9)"


@pytest.mark.parametrize(
    "ranks",
    [
        pytest.param(
            [rank(0, "stopped", "ended because another rank failed"), rank(1, "running")],
            id="one that was asked to stop, one that was killed",
        ),
        pytest.param(
            [rank(0, "failed", LOST), rank(1, "stopped", "ended because another rank failed")],
            id="one whose peer was ended before it",
        ),
    ],
)
def test_ranks_that_the_user_interrupts_say_so(ranks):
    ended = end_ranks([*ranks, rank(2, "passed")], True, [])

    assert [one.status for one in ended] == ["interrupted", "interrupted", "passed"]
    assert all("interrupted" in one.error.what for one in ended[:2])
    assert find_status(settle_ranks(ended)) == "interrupted"


def test_an_interrupted_rank_says_where_it_was():
    run = rank(0, "stopped", "ended", waits=WAITS, cells=cells("passed", "stopped"))

    [ended] = end_ranks([run], True, [])

    assert ended.error.what == f"interrupted in {WAITS}"
    assert [one.status for one in ended.cells] == ["passed", "interrupted"]


def test_a_failure_before_the_interruption_is_still_the_failure():
    ranks = [rank(0, "failed", "cell 1 of 3 raised ValueError: bad"), rank(1, "stopped", "ended")]

    settled = settle_ranks(end_ranks(ranks, True, []))

    assert find_status(settled) == "failed"
    assert settled[0].rank.failed_first


def test_a_rank_that_was_killed_names_the_cell_that_failed_and_quotes_torchrun():
    ranks = [rank(0, "running", cells=cells("passed", "failed")), rank(1, "running")]

    failed, died = end_ranks(ranks, False, ["first", "exitcode  : -9"])

    assert (failed.status, died.status) == ("failed", "died")
    assert "cell 2 of 2 failed" in failed.error.what
    assert failed.error.cell_index == 1
    assert "exitcode  : -9" in died.error.hint


class BrokenExecution:
    """A run whose first cell passes, and which then hits a defect of labkit."""

    waits = None

    def __init__(self, source, notebook, options, account, *, deadline, watch, follow):
        self._follow = follow

    def run(self):
        self._follow(NotebookResult("train", "train.py", "running", cells=cells("passed")))
        raise IndexError("list index out of range")


def test_a_rank_whose_run_has_a_defect_writes_what_it_was(tmp_path, monkeypatch):
    plan = torchrun._RankPlan("train", "train.py", False, RunOptions(), None)
    (tmp_path / "plan").write_bytes(pickle.dumps(plan))
    nbformat.write(nbformat.v4.new_notebook(), tmp_path / "notebook.ipynb")
    for name, value in {"RANK": "1", "LOCAL_RANK": "1", "WORLD_SIZE": "2"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(torchrun, "Execution", BrokenExecution)
    monkeypatch.setattr(torchrun.signal, "signal", lambda *_: None)

    code = torchrun._RankRun(tmp_path).run()

    written = json.loads((tmp_path / "1.result").read_text())
    assert (code, written["status"], written["cells"][0]["status"]) == (1, "invalid", "passed")
    assert "IndexError: list index out of range" in written["error"]["what"]
    assert written["rank"]["rank"] == 1


def test_ranks_that_all_passed_have_no_first_failure():
    settled = settle_ranks([rank(1, "passed"), rank(0, "passed")])

    assert [one.rank.rank for one in settled] == [0, 1]
    assert find_status(settled) == "passed"
    assert not any(one.rank.failed_first for one in settled)


def test_the_summary_has_a_column_for_each_rank_and_the_first_failure_first():
    def cell(status, seconds):
        return CellResult(0, status, seconds, "train()", memory=CellMemory(1, 3 * 2**20, 2))

    settled = settle_ranks(
        [
            rank(0, "stopped", "ended", waits="cell 1 of 1", cells=(cell("stopped", 4.0),)),
            rank(1, "failed", "cell 1 of 1 raised ValueError: bad", cells=(cell("failed", 2.0),)),
        ]
    )
    lines = format_summary(settled).splitlines()

    assert lines[0].startswith("train.rank1: failed first")
    assert any("rank 0 was in cell 1 of 1" in line for line in lines)
    table = lines[lines.index("") + 1 :] if "" in lines else lines
    heads = next(line for line in table if line.startswith("cell "))
    assert heads.split() == ["cell", "rank", "0", "rank", "1"]
    assert any("stopped 4.00 s" in line and "failed 2.00 s" in line for line in table)


def test_only_ranks_are_grouped():
    assert group_ranks([NotebookResult("a", "a.py", "passed")]) == []


def test_torchruns_own_words():
    alone = RankOptions(4).list_arguments()
    two = RankOptions(8, 2, "node0:29500").list_arguments()

    assert "--standalone" in alone
    assert alone[alone.index("--nproc-per-node") + 1] == "4"
    assert two[two.index("--rdzv-endpoint") + 1] == "node0:29500"
    assert two[two.index("--nnodes") + 1] == "2"


@pytest.mark.parametrize(
    "options",
    [
        pytest.param(["--nnodes", "2"], id="nodes without ranks"),
        pytest.param(["--rdzv-endpoint", "a:1"], id="an endpoint without ranks"),
        pytest.param(["--nproc-per-node", "0"], id="no ranks"),
        pytest.param(["--nproc-per-node", "2", "--nnodes", "2"], id="no endpoint"),
        pytest.param(["--nproc-per-node", "2", "--nnodes", "0"], id="no nodes"),
        pytest.param(["--nproc-per-node", "2", "--jobs", "2"], id="jobs"),
        pytest.param(["--nproc-per-node", "2", "--device", "cuda:1"], id="one GPU for all"),
    ],
)
def test_options_that_do_not_go_together(options, tmp_path, capsys):
    file = tmp_path / "train.py"
    file.write_text("1\n")

    assert main(["run", str(file), "--no-output", *options]) == ExitCode.USAGE
    assert "error:" in capsys.readouterr().err


def run(tmp_path: Path, capsys, *cells: str, timeout: int = 60, ranks: int = 2):
    file = tmp_path / "train.py"
    file.write_text("".join(f"# %%\n{cell}\n" for cell in [START, *cells]))
    folder = tmp_path / "run"
    options = ["--nproc-per-node", str(ranks), "--timeout", str(timeout), "--json"]
    code = main(["run", str(file), "--output", str(folder), *options])
    described = json.loads(capsys.readouterr().out)
    Draft202012Validator(make_schema()).validate(described)
    return code, described, folder


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_each_rank_is_a_notebook_of_the_result_with_its_own_output(tmp_path, capsys):
    code, described, folder = run(
        tmp_path,
        capsys,
        "x = torch.ones(1) * (1 + dist.get_rank())\ndist.all_reduce(x)\nprint('sum', x.item())",
        "import os\nprint('local', os.environ['LOCAL_RANK'], 'of', os.environ['WORLD_SIZE'])",
    )

    assert (code, described["status"]) == (ExitCode.OK, "passed")
    assert [one["rank"]["rank"] for one in described["notebooks"]] == [0, 1]
    assert all(
        cell["memory"]["peak_bytes"] for one in described["notebooks"] for cell in one["cells"]
    )
    for number in range(2):
        executed = (folder / f"train.rank{number}.ipynb").read_text()
        assert "sum 3.0" in executed
        assert f"local {number} of 2" in executed
    assert described["measuring"]["how"]["process"]
    report = (folder / "report.html").read_text()
    assert "rank 0: time" in report
    assert "rank 1: peak" in report


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_a_rank_that_raises_ends_the_others_and_is_named_first(tmp_path, capsys):
    code, described, _ = run(
        tmp_path,
        capsys,
        "if dist.get_rank() == 1:\n    raise ValueError('broken sample')\ndist.barrier()",
        "print('never')",
    )

    zero, one = described["notebooks"]
    assert (code, described["status"]) == (ExitCode.FAILED, "failed")
    assert one["rank"]["failed_first"]
    assert "ValueError: broken sample" in one["error"]["what"]
    assert not zero["rank"]["failed_first"]
    assert zero["cells"][-1]["status"] == "not_run"


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_ctrl_c_ends_all_ranks_and_blames_none(tmp_path, heeds_interrupts):
    file = tmp_path / "train.py"
    file.write_text(f"# %%\n{START}\n# %%\ntime.sleep(3600)\n")
    command = [sys.executable, "-m", "labkit", "run", file, "--nproc-per-node", "2"]
    process = subprocess.Popen(
        [*command, "--no-output", "--timeout", "4000", "--json"],
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stderr is not None
    # A line each for the first cell of both ranks: the second one is on its way.
    assert all("1/2" in process.stderr.readline() for _ in range(2))
    process.send_signal(signal.SIGINT)
    printed = json.loads(process.communicate(timeout=300)[0])

    assert (process.returncode, printed["status"]) == (ExitCode.INTERRUPTED, "interrupted")
    assert all(one["error"]["what"].startswith("interrupted") for one in printed["notebooks"])
    assert not any(one["rank"]["failed_first"] for one in printed["notebooks"])


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_a_hang_ends_with_the_timeout_and_says_at_which_line_each_rank_is(tmp_path, capsys):
    started = time.monotonic()
    code, described, _ = run(
        tmp_path,
        capsys,
        "def share():\n    dist.barrier()",
        "if dist.get_rank() == 0:\n    share()\nelse:\n    time.sleep(500)",
        timeout=30,
    )

    first = next(one for one in described["notebooks"] if one["rank"]["failed_first"])
    assert (code, described["status"]) == (ExitCode.TIMEOUT, "timed_out")
    assert "rank 0 was in cell 3 of 3, line 2: dist.barrier()" in first["error"]["hint"]
    assert "rank 1 was in cell 3 of 3, line 4: time.sleep(500)" in first["error"]["hint"]
    assert time.monotonic() - started < 200
