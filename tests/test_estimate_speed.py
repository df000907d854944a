"""What an estimate does for its own speed, and what it leaves as it was."""

from __future__ import annotations

import gc
import weakref

import pytest
import torch

from labkit.memory.estimate.play import estimate_memory


@pytest.fixture
def unfrozen():
    gc.unfreeze()
    yield
    gc.unfreeze()


def make_growing():
    kept = []

    def step():
        print(gc.get_freeze_count())
        kept.append(torch.ones(1000))

    return step


@pytest.mark.usefixtures("unfrozen")
def test_the_collector_does_not_look_at_what_was_there_before_the_estimate(capsys):
    assert estimate_memory(make_growing).growth_bytes == 4000
    looks = [int(one) for one in capsys.readouterr().out.split()]
    assert len(looks) == 3
    assert min(looks) > 1000
    assert gc.get_freeze_count() == 0


@pytest.mark.usefixtures("unfrozen")
def test_what_the_process_has_frozen_itself_stays_so():
    gc.freeze()
    count = gc.get_freeze_count()
    estimate_memory(make_growing)
    # Some of it may be gone, by its count of references.
    assert gc.get_freeze_count() == pytest.approx(count, rel=0.01)


@pytest.mark.usefixtures("unfrozen")
def test_garbage_from_before_an_estimate_does_not_outlive_it():
    class Loop:
        pass

    gc.collect()
    loop = Loop()
    loop.self = loop
    gone = weakref.ref(loop)
    del loop
    estimate_memory(make_growing)
    assert gone() is None
