"""What the memory functions take for a device, a number, a function; and how they refuse others."""

from __future__ import annotations

import functools

import pytest

import labkit
from labkit.errors import DeviceMissingError, UsageError, format_error
from labkit.memory.estimate.model import find_target

torch = pytest.importorskip("torch")

CPU = torch.device("cpu")


def make_step(batch):
    """A step that holds 4 bytes for each sample."""
    held = torch.ones(batch)
    return lambda: held


def test_a_device_of_torchs_is_as_good_as_its_name():
    with labkit.track_memory(CPU) as tracked:
        pass
    assert [span.where for span in tracked.use.spans] == ["process"]
    with labkit.record_allocations(CPU) as recorded:
        held = torch.ones(2)
    assert recorded.history.devices[0].peak.live_bytes == held.nbytes
    assert find_target(CPU).name == find_target("cpu").name
    with pytest.raises(DeviceMissingError, match="cuda:42 is not on this machine"):
        find_target(torch.device("cuda:42"))


async def wait():
    """What is only awaited."""


async def wait_for_each():
    """What is only awaited, step by step."""
    yield


REFUSED = {
    "track: a number": (lambda: labkit.track_memory(0), "cannot track the memory of '0'"),
    "track: an index": (lambda: labkit.track_memory("cuda:x"), "cannot track the memory of"),
    "track: another device": (
        lambda: labkit.track_memory(torch.device("mps")),
        "cannot track the memory of 'mps'",
    ),
    "lines: None": (lambda: labkit.track_memory(lines=None), "lines=None"),
    "lines: less": (lambda: labkit.track_memory(lines=-1), "lines=-1"),
    "lines: a part": (lambda: labkit.track_memory(lines=2.5), "lines=2.5"),
    "decorate: async": (lambda: labkit.track_memory()(wait), "cannot decorate wait"),
    "decorate: async for": (
        lambda: labkit.track_memory()(wait_for_each),
        "cannot decorate wait_for_each",
    ),
    "decorate: without a name": (
        lambda: labkit.track_memory()(functools.partial(wait)),
        "cannot decorate functools.partial",
    ),
    "record: one GPU": (
        lambda: labkit.record_allocations(torch.device("cuda:1")),
        "cannot record the allocations of 'cuda:1'",
    ),
    "plot: a number": (lambda: labkit.plot_memory(5), "cannot plot 5"),
    "fit: nothing": (lambda: find_target(0), "device size 0"),
    "fit: an index": (lambda: find_target(1), "device size 1"),
    "fit: no memory": (lambda: find_target("0 GiB"), "device size '0 GiB'"),
    "fit: less": (lambda: find_target(-1), "device size -1"),
    "fit: a part": (lambda: find_target(24.5), "device size 24.5"),
    "batch: text": (lambda: labkit.estimate_memory(make_step, batch="32"), "batch size '32'"),
    "batch: a part": (lambda: labkit.estimate_memory(make_step, batch=3.5), "batch size 3.5"),
    "batch: a truth": (lambda: labkit.estimate_memory(make_step, batch=True), "batch size True"),
    "batch: beside arguments": (
        lambda: labkit.estimate_memory(torch.nn.Linear(1, 1), torch.ones(1), batch=8),
        "Linear has arguments and batch=8",
    ),
    "step: a model without its inputs": (
        lambda: labkit.estimate_memory(torch.nn.Linear(1, 1)),
        "Linear is a model",
    ),
    "step: without a tensor": (lambda: labkit.estimate_memory(lambda: 5), "makes no tensors"),
    "step: none": (lambda: labkit.estimate_memory(None), "cannot estimate None"),
}


@pytest.mark.parametrize(("call", "words"), REFUSED.values(), ids=REFUSED)
def test_what_makes_no_sense_is_refused_with_the_next_thing_to_try(call, words):
    with pytest.raises(UsageError) as caught:
        call()
    assert caught.value.what.startswith(words) or words in caught.value.what
    assert "\n  try: " in format_error(caught.value)
