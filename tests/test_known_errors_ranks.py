"""In a log of many processes what ended the first one ranks above what follows from it."""

from __future__ import annotations

import pytest

from labkit.host.distribution import UNKNOWN
from labkit.known_errors.match import explain_text, format_explanation

REMOTE = """\
[rank3]: torch.distributed.DistBackendError: NCCL error in: ProcessGroupNCCL.cpp:2006, remote \
process exited or there was a network error, NCCL version 2.21.5
[rank3]: ncclRemoteError: A call failed possibly due to a network error or a remote process exiting
[rank3]: socketProgress: Connection closed by remote peer node1<45678>
"""
GLOO = "RuntimeError: [gloo/transport/tcp/pair.cc:547] Connection closed by peer [10.0.0.1]:12345\n"
STORE = (
    "[1] ... via c10d key-value store by key '0', but store->get('0') got error: Connection reset\n"
)
TIMEOUT = "[rank1]: Watchdog caught collective operation timeout: WorkNCCL(SeqNum=12, OpType=A)\n"
CHILD = (
    "E1129 10:02:12.5 140 api.py:869] failed (exitcode: 1) local_rank: {0} (pid: 15) of binary: x\n"
    "torch.distributed.elastic.multiprocessing.errors.ChildFailedError: \ntrain.py FAILED\n"
    "Root Cause (first observed failure):\n[{0}]:\n  time      : 2026-11-29_10:02:12\n"
    "  host      : node1\n  rank      : {0} (local_rank: {0})\n  exitcode  : 1 (pid: 150)\n"
)
FULL = (
    "torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total"
    " capacity of 79.15 GiB of which 512.00 MiB is free."
)


def write_traceback(rank, error, mark="[rank{}]: "):
    """A traceback of a rank's own program, each line with the mark of the rank."""
    lines = (
        "Traceback (most recent call last):",
        f'  File "train.py", line {rank + 40}, in main',
        "    step(batch)",
        error,
    )
    return "".join(f"{mark.format(rank)}{line}\n" for line in lines)


def list_causes(text):
    """The errors of a text that do not come from another one."""
    return [each.error.name for each in explain_text(text).found if not each.caused_by]


@pytest.mark.parametrize(
    "remote", [REMOTE, GLOO, STORE, TIMEOUT], ids=["nccl", "gloo", "store", "timeout"]
)
@pytest.mark.parametrize(
    ("error", "name"),
    [
        ("ValueError: batch_size must be divisible by 3", "program-raised"),
        ("ModuleNotFoundError: No module named 'wandb'", "module-missing"),
        (FULL, "gpu-memory-full"),
    ],
)
@pytest.mark.parametrize("order", [1, -1], ids=["after", "before"])
def test_an_error_of_one_rank_is_the_cause_of_what_the_others_print(remote, error, name, order):
    parts = [remote, write_traceback(0, error)][::order]
    text = "".join([*parts, CHILD.format(0)])
    assert list_causes(text) == [name]
    assert explain_text(text).found[0].error.name == name
    shown = format_explanation(explain_text(text), UNKNOWN)
    assert shown.count("  try: ") == 1


@pytest.mark.parametrize("mark", ["{}: ", "[{}]: ", "(RayWorker rank={} pid=8) "])
def test_the_rank_is_read_however_it_is_marked(mark):
    text = GLOO + write_traceback(0, "KeyError: 'data'", mark)
    assert list_causes(text) == ["program-raised"]


def test_the_rank_that_torchrun_names_comes_first():
    texts = write_traceback(0, FULL) + write_traceback(
        2, "ModuleNotFoundError: No module named 'wandb'"
    )
    assert explain_text(texts + CHILD.format(2)).found[0].error.name == "module-missing"
    assert explain_text(texts + CHILD.format(0)).found[0].error.name == "gpu-memory-full"


KILLED = {
    "srun": "srun: error: node1: task 1: Killed\n",
    "spawn": "ProcessExitedException: process 1 terminated with signal SIGKILL\n",
    "a container": "worker-1 exited with code 137\n",
}


@pytest.mark.parametrize("kill", KILLED.values(), ids=KILLED)
@pytest.mark.parametrize("error", ["ValueError: bad batch", FULL])
def test_of_an_exception_and_a_kill_the_one_that_came_first_is_the_cause(kill, error):
    raised = write_traceback(0, error)
    name = "program-raised" if error != FULL else "gpu-memory-full"
    assert list_causes(raised + kill) == [name]
    assert explain_text(kill + raised).found[0].error.name != "program-raised"


def test_a_kill_of_the_rank_that_torchrun_names_is_the_cause():
    raised = write_traceback(0, "ValueError: bad batch")
    assert list_causes(raised + KILLED["srun"] + CHILD.format(0)) == ["program-raised"]
    assert list_causes(raised + KILLED["srun"] + CHILD.format(1)) == ["process-got-sigkill"]


def test_a_kill_for_full_memory_does_not_follow_from_an_exception():
    kernel = "Out of memory: Killed process 4711 (python) total-vm:81234kB\n"
    raised = write_traceback(0, "ValueError: bad batch")
    assert list_causes(raised + kernel) == ["out-of-memory-killed"]


@pytest.mark.parametrize("error", ["ValueError: bad batch", "mylib.errors.DataError: bad shard"])
@pytest.mark.parametrize("remote", [REMOTE, GLOO, STORE], ids=["nccl", "gloo", "store"])
@pytest.mark.parametrize("order", [1, -1], ids=["after", "before"])
def test_an_exception_without_a_traceback_is_an_unknown_cause(error, remote, order):
    text = "".join([remote, f"[rank0]: {error}\n"][::order])
    explanation = explain_text(text)
    assert (explanation.first, explanation.sure) == (None, None)
    assert error in explanation.failure.line
    assert all("does not know" in each.caused_by for each in explanation.found)
    assert "  try: " not in format_explanation(explanation, UNKNOWN)
    # torchrun says that another one failed first.
    assert explain_text(text + CHILD.format(1)).first is not None


@pytest.mark.parametrize(
    "line",
    [
        "[rank0]: ConnectionResetError: [Errno 104] Connection reset by peer",
        "[rank0]: torch.distributed.DistNetworkError: the server is gone",
        "[rank0]: RuntimeError: Broken pipe, retrying",
        "UserWarning: odd",
    ],
)
def test_an_exception_of_the_network_is_not_a_cause_of_its_own(line):
    explanation = explain_text(f"{line}\n{REMOTE}")
    assert explanation.first is not None
    assert not explanation.is_cause_unknown


def test_without_an_own_error_the_network_is_the_cause():
    assert list_causes(REMOTE) == ["nccl-net"]
    assert list_causes("NCCL WARN Bootstrap : no socket interface found\n" + REMOTE) == ["nccl-net"]


def test_a_warning_is_not_what_ended_a_process():
    text = "FutureWarning: Failed to load image Python extension: libc10.so: cannot open\n" + REMOTE
    assert "nccl-net" in list_causes(text)


def test_what_follows_from_an_error_is_not_shown_unasked():
    explanation = explain_text(REMOTE + write_traceback(0, "ValueError: odd"))
    assert explanation.sure is None


def test_an_abort_by_the_watchdog_is_a_consequence():
    text = (
        "[rank2]: terminate called after throwing an instance of 'c10::DistBackendError'\n"
        "  what():  [Rank 2] Process group watchdog thread terminated with exception: NCCL error:"
        " remote process exited or there was a network error\nFatal Python error: Aborted\n"
    )
    assert list_causes(text + write_traceback(0, "KeyError: 'labels'")) == ["program-raised"]
    assert list_causes(text) == ["peer-process-died"]
