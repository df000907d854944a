"""``labkit estimate --world-size``: what each rank holds, against what real ranks hold (gloo)."""

from __future__ import annotations

import dataclasses
import json
import sys
from typing import Any

import pytest
import torch
from torch import nn

from labkit.cli import main
from labkit.errors import UsageError
from labkit.memory.estimate.model import find_target
from labkit.memory.estimate.play import estimate_memory
from labkit.memory.estimate.shards import (
    ParameterSize,
    RanksEstimate,
    estimate_ranks,
    format_ranks,
    list_shardings,
    number_layers,
    share_out,
)
from labkit.memory.track.tracker import track_memory
from labkit.notebooks.ranks import run_on_ranks


class Net(nn.Module):
    """Sizes that neither two nor three ranks divide evenly; a frozen layer, and one outside."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(101, 64)
        self.blocks = nn.ModuleList(
            nn.Sequential(nn.Linear(64, width), nn.ReLU(), nn.Linear(width, 64))
            for width in (257, 130, 1)
        )
        self.head = nn.Linear(64, 7)
        self.head.requires_grad_(False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.embed(x)
        for block in self.blocks:
            x = x + block(x)
        return self.head(x)


def make_inputs(batch: int) -> torch.Tensor:
    return torch.arange(batch * 16).reshape(batch, 16) % 101


def make_step(batch: int = 8) -> Any:
    model = Net()
    optimizer = torch.optim.Adam(model.parameters())
    inputs = make_inputs(batch)

    def step() -> None:
        optimizer.zero_grad()
        model(inputs).sum().backward()
        optimizer.step()

    return step


def estimate(world_size: int, shard: str) -> RanksEstimate:
    return estimate_ranks(make_step, estimate_memory, world_size=world_size, shard=shard)


def hold(shard: str) -> dict[str, int]:
    """What this rank holds after some steps, and what it exchanges and gathers at its peak."""
    from torch.distributed.fsdp import fully_shard
    from torch.distributed.optim import ZeroRedundancyOptimizer
    from torch.nn.parallel import DistributedDataParallel

    model: Any = Net()
    if shard == "fsdp":
        for block in model.blocks:
            fully_shard(block)
        fully_shard(model)
    else:
        model = DistributedDataParallel(model)
    if shard == "zero1":
        optimizer: Any = ZeroRedundancyOptimizer(model.parameters(), torch.optim.Adam)
    else:
        optimizer = torch.optim.Adam(model.parameters())
    inputs = make_inputs(8)

    def step() -> None:
        optimizer.zero_grad()
        model(inputs).sum().backward()
        optimizer.step()

    step()
    step()
    with track_memory("cpu", kinds=True) as tracked:
        step()
    local = [one.to_local() if hasattr(one, "to_local") else one for one in model.parameters()]
    states = getattr(optimizer, "optim", optimizer).state.values()
    held = [one for state in states for one in state.values()]
    return {
        "parameters": sum_storages(local),
        "gradients": sum_storages(one.grad for one in model.parameters() if one.grad is not None),
        "optimizer": sum_storages(held),
        "buckets": tracked.kinds["buckets"],
        "gathered": tracked.kinds["parameters"] - sum_storages(local),
        "peak": sum(tracked.kinds.values()),
    }


def sum_storages(tensors: Any) -> int:
    local = [one.to_local() if hasattr(one, "to_local") else one for one in tensors]
    storages = {one.untyped_storage().data_ptr(): one.untyped_storage().nbytes() for one in local}
    return sum(storages.values())


@pytest.mark.slow
@pytest.mark.timeout(200)
@pytest.mark.parametrize("world_size", [2, 3])
@pytest.mark.parametrize("shard", ["ddp", "zero1", "fsdp"])
def test_each_rank_holds_what_was_estimated(shard, world_size):
    cloudpickle = pytest.importorskip("cloudpickle")
    cloudpickle.register_pickle_by_value(sys.modules[__name__])
    shares = estimate(world_size, shard).shares

    measured = run_on_ranks(hold, shard, world_size=world_size, timeout_seconds=100)

    for share, real in zip(shares, measured, strict=True):
        assert share.parameters_bytes == real["parameters"]
        assert share.gradients_bytes == real["gradients"]
        assert share.optimizer_bytes == real["optimizer"]
        # What is exchanged and gathered is exact for DDP; for FSDP it depends on the moment at
        # which the ranks reach the peak, and the estimate is a bound.
        if shard == "fsdp":
            assert 0 < real["buckets"] <= 1.02 * share.buckets_bytes
            assert 0 < real["gathered"] <= 1.02 * share.gathered_bytes
        else:
            assert (share.buckets_bytes, share.gathered_bytes) == (real["buckets"], 0)
        assert 0.9 * real["peak"] <= share.peak_bytes <= 1.6 * real["peak"]


def test_one_rank_alone_holds_what_one_process_holds():
    found = estimate(1, "ddp")

    assert found.shares[0].peak_bytes == found.estimate.peak_bytes
    assert found.shares[0].buckets_bytes == 0


def test_all_pieces_together_are_the_whole():
    sizes = [ParameterSize((5, 3), 4, True, None, 120, 4), ParameterSize((), 4, True, 0)]
    for one in sizes:
        for ranks in (1, 2, 3, 7):
            assert sum(one.cut(ranks, rank)[1] for rank in range(ranks)) == one.bytes


def test_layers_are_the_outermost_modules_in_lists():
    names = [prefix for prefix, _ in number_layers(Net())]

    assert names == ["blocks.0.", "blocks.1.", "blocks.2."]
    assert number_layers(nn.Linear(2, 2)) == []


def test_a_step_that_is_run_twice_is_recorded_once():
    found = estimate(2, "ddp")
    parameters = sum(one.numel() * 4 for one in Net().parameters())

    assert found.shares[0].parameters_bytes == parameters


@pytest.mark.parametrize(
    ("world_size", "shard", "sizes"),
    [
        pytest.param(0, "ddp", [ParameterSize((2,), 4, True, None)], id="no ranks"),
        pytest.param(2, "zero9", [ParameterSize((2,), 4, True, None)], id="unknown"),
        pytest.param(2, "ddp", [], id="no module"),
    ],
)
def test_what_cannot_be_shared_out(world_size, shard, sizes):
    with pytest.raises(UsageError):
        share_out(sizes, estimate(1, "ddp").estimate, world_size=world_size, shard=shard)


@pytest.mark.parametrize("capacity", [None, "500 MiB", "1 GiB", "1 MiB"])
def test_a_remedy_shares_out_over_two_and_over_the_fewest_that_fit(capacity):
    layers = [ParameterSize((4096, 1024), 4, True, n, state_bytes=2**25) for n in range(16)]
    whole = sum(one.bytes for one in layers)
    kinds = dict.fromkeys(("parameters", "gradients", "optimizer", "buckets"), whole)
    kinds |= {"optimizer": 2 * whole, "buckets": 0}
    target = find_target(capacity)
    made = estimate(1, "ddp").estimate
    made = dataclasses.replace(made, peak_bytes=4 * whole, kinds=kinds, target=target)
    found = list(list_shardings(layers, made))

    assert len(found[0].shares) == 2 and all(one.shard == "fsdp" for one in found)
    peak = found[0].shares[0].peak_bytes
    assert peak == share_out(layers, made, world_size=2, shard="fsdp")[0].peak_bytes < 4 * whole
    enough = {None: 8, "500 MiB": 4, "1 GiB": 2, "1 MiB": 8}[capacity]
    assert len(found[-1].shares) == enough
    assert found[-1].fits is {None: None, "1 MiB": False}.get(capacity, True)


def test_equal_ranks_are_one_line():
    lines = format_ranks(estimate(4, "ddp")).splitlines()

    assert lines[0] == "make_step, batch 8 in each rank, 4 ranks, ddp"
    assert [line.split()[0] for line in lines if line.startswith("0")] == ["0"]
    assert any(line.startswith("0 to 3 ") for line in lines)


SCRIPT = """
import torch
def make_step(batch=4):
    model = torch.nn.Linear(1000, 1000)
    optimizer = torch.optim.Adam(model.parameters())
    def step():
        print("loss")
        optimizer.zero_grad()
        model(torch.ones(batch, 1000)).sum().backward()
        optimizer.step()
    return step
"""


@pytest.mark.parametrize(
    ("options", "code"),
    [
        (["--world-size", "2", "--shard", "fsdp"], 0),
        (["--world-size", "2", "--device", "24 GiB"], 0),
        (["--world-size", "2", "--device", "100 MiB"], 1),
        (["--shard", "fsdp"], 2),
        (["--world-size", "0"], 2),
        (["--world-size", "100000000", "--shard", "zero1"], 2),
    ],
    ids=["no device", "fits", "does not", "no world", "no ranks", "too many"],
)
def test_the_command_and_its_exit_code(options, code, tmp_path, capsys):
    file = tmp_path / "train.py"
    file.write_text(SCRIPT)

    assert main(["estimate", f"{file}:make_step", "--json", *options]) == code
    shown = json.loads(capsys.readouterr().out)
    if code != 2:
        assert (shown["world_size"], len(shown["ranks"])) == (2, 2)
        assert shown["ranks"][0]["parameters_bytes"] > 0
