"""A function on several ranks: real processes, real gloo."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

from labkit.errors import UsageError
from labkit.notebooks.ranks import (
    RanksFailed,
    RanksTimedOut,
    find_waiting_frame,
    is_lost_peer,
    run_on_ranks,
)

cloudpickle = pytest.importorskip("cloudpickle")
# As a notebook's functions, which no other process can import.
cloudpickle.register_pickle_by_value(sys.modules[__name__])
starts_ranks = pytest.mark.slow


class OwnError(Exception):
    """An exception that cannot be made again from its arguments."""

    def __init__(self, one: int, other: int) -> None:
        super().__init__(f"{one} and {other}")


def add_up(x: torch.Tensor) -> tuple[torch.Tensor, str, int]:
    dist.all_reduce(x)
    print("got", x.tolist())
    return x, os.environ["RANK"], os.getpid()


@starts_ranks
@pytest.mark.parametrize("world_size", [1, 3])
def test_each_rank_returns_its_own_result(world_size, capsys):
    given = torch.ones(2)
    results = run_on_ranks(add_up, given, world_size=world_size)

    assert [rank for _, rank, _ in results] == [str(n) for n in range(world_size)]
    assert all(torch.equal(x, given * world_size) for x, _, _ in results)
    assert len({os.getpid(), *(process_id for _, _, process_id in results)}) == world_size + 1
    assert torch.equal(given, torch.ones(2))
    printed = sorted(capsys.readouterr().out.splitlines())
    assert printed == [f"[rank {n}] got {[float(world_size)] * 2}" for n in range(world_size)]


@starts_ranks
def test_what_a_notebook_defines_reaches_the_ranks():
    names: dict = {}
    code = """
import torch
SCALE = 3
class Net(torch.nn.Linear):
    def forward(self, x):
        return super().forward(x) * SCALE
def use(x):
    return helper(Net(2, 1, bias=False), x)
def helper(net, x):
    torch.nn.init.ones_(net.weight)
    return net(x).detach()
"""
    exec(compile(code, "<cell>", "exec"), names)

    results = run_on_ranks(names["use"], torch.ones(2))

    assert [x.tolist() for x in results] == [[6.0], [6.0]]


def fail_in_one() -> None:
    if dist.get_rank() == 1:
        raise OwnError(1, 2)
    dist.barrier()


def die_in_one() -> None:
    if dist.get_rank() == 0:
        os._exit(4)
    dist.all_reduce(torch.ones(1))


def leave_early() -> None:
    if dist.get_rank() == 0:
        dist.destroy_process_group()
    else:
        dist.all_reduce(torch.ones(1))


@starts_ranks
def test_the_first_error_is_raised_and_not_what_follows_from_it():
    with pytest.raises(RanksFailed, match="rank 1 of 2 raised OwnError: 1 and 2") as caught:
        run_on_ranks(fail_in_one)

    assert caught.value.rank == 1
    assert "raise OwnError(1, 2)" in str(caught.value)
    assert Path(caught.value.frame.file).name == Path(__file__).name


@starts_ranks
def test_a_death_is_named_before_the_lost_connection_of_the_others():
    with pytest.raises(RanksFailed, match=r"rank 0 of 2 died \(exit code 4\)"):
        run_on_ranks(die_in_one)


@starts_ranks
def test_a_lost_connection_names_who_has_returned():
    with pytest.raises(RanksFailed, match="rank 1 of 2 raised") as caught:
        run_on_ranks(leave_early)

    assert caught.value.cause is not None
    assert "rank 0 has returned already" in caught.value.cause


def wait_for_nobody() -> None:
    if dist.get_rank() == 0:
        dist.barrier()


@starts_ranks
def test_a_hang_says_where_each_rank_is():
    with pytest.raises(RanksTimedOut) as caught:
        run_on_ranks(wait_for_nobody, timeout_seconds=0.5)

    zero, one = caught.value.standings
    assert (zero.word, zero.frame.source, one.word) == ("waits", "dist.barrier()", "returned")
    assert "rank 0 waits in test_ranks.py" in str(caught.value)


def print_too_much() -> int:
    print("x" * 100_000)
    return os.getpid()


@starts_ranks
def test_the_output_of_a_rank_is_limited(capsys):
    run_on_ranks(print_too_much, world_size=1)

    assert "labkit left out" in capsys.readouterr().out


@starts_ranks
def test_no_process_outlives_the_call():
    ids = run_on_ranks(print_too_much)

    assert not any(Path(f"/proc/{one}").exists() for one in ids) or sys.platform != "linux"


@starts_ranks
def test_a_script_needs_no_main_guard(tmp_path):
    script = tmp_path / "train.py"
    script.write_text(
        "import torch.distributed as dist\nfrom labkit import run_on_ranks\n"
        "print(run_on_ranks(lambda: dist.get_rank()))\n"
    )

    done = subprocess.run(
        [sys.executable, script], check=False, capture_output=True, text=True, timeout=100
    )

    assert done.stdout == "[0, 1]\n", done.stderr


@pytest.mark.parametrize("world_size", [0, -1, 2.0, True])
def test_a_world_size_that_is_no_number_of_ranks(world_size):
    with pytest.raises(UsageError, match="world_size"):
        run_on_ranks(max, 1, 2, world_size=world_size)


@pytest.mark.parametrize(
    ("text", "lost"),
    [
        ("[.../pair.cc:534] Connection closed by peer [127.0.0.1]:29512", True),
        ("Read error [127.0.0.1]:4: Connection reset by peer", True),
        ("Broken pipe", True),
        ("NCCL error: remote process exited or there was a network error", True),
        ("Timed out waiting 500ms for recv operation to complete", False),
        ("CUDA out of memory", False),
        ("", False),
    ],
)
def test_what_follows_from_another_ranks_end(text, lost):
    assert is_lost_peer(text) is lost


def test_the_waiting_line_is_the_innermost_of_the_user(tmp_path):
    torch_file = torch.distributed.__file__
    text = (
        "Stack (most recent call first):\n"
        f'  File "{torch_file}", line 7 in all_reduce\n'
        '  File "/home/me/train.py", line 12 in step\n'
        '  File "/home/me/train.py", line 30 in <module>\n'
    )

    frame = find_waiting_frame(text)

    assert frame is not None
    assert (frame.file, frame.line, frame.function) == ("/home/me/train.py", 12, "step")
    assert find_waiting_frame("") is None
    assert find_waiting_frame(f'  File "{torch_file}", line 7 in all_reduce\n') is None
