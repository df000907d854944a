"""Time and memory that a test plays to a sampler: no sleeping, and every figure is known."""

from __future__ import annotations

import contextlib
import os
import threading
import time

from labkit.memory.balance.model import Balance, Snapshot, ThisProcess

GIB = 2**30
MIB = 2**20


@contextlib.contextmanager
def play_utc():
    """Greenwich, wherever this machine is: the zone that local times are written in."""
    before = os.environ.get("TZ")
    os.environ["TZ"] = "UTC"
    time.tzset()
    try:
        yield
    finally:
        os.environ.pop("TZ")
        if before is not None:
            os.environ["TZ"] = before
        time.tzset()


class PlayedClock:
    """A clock that stands still until it is told to go on."""

    def __init__(self, now=1000.0):
        self.now = now

    def __call__(self):
        return self.now


class PlayedEvent(threading.Event):
    """An event on which waiting takes no time: it puts the clock on, and is set after ``turns``."""

    def __init__(self, clock, turns):
        super().__init__()
        self.clock, self.turns, self.waits = clock, turns, []

    def wait(self, timeout=None):
        self.waits.append(timeout)
        self.clock.now += timeout
        if len(self.waits) > self.turns:
            self.set()
        return self.is_set()


class PlayedReader:
    """Gives what it was given: snapshots, or errors that it raises; the last one for ever."""

    def __init__(self, *answers):
        self.answers = list(answers)
        self.closed = self.forgotten = 0

    def read(self):
        answer = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        if isinstance(answer, Exception):
            raise answer
        return answer

    def close(self):
        self.closed += 1

    def forget(self):
        self.forgotten += 1


def play_cpu(resident=100 * MIB, available=8 * GIB, total=16 * GIB):
    """The balance of the CPU, as a sampler's reader gives it."""
    return Balance(
        "cpu",
        torch_name="cpu",
        name="A CPU",
        total_bytes=total,
        free_bytes=available,
        this_process=ThisProcess(used_bytes=resident),
        other_processes_bytes=total - available - resident,
        shared=True,
        machine_bytes=total,
    )


def play_gpu(allocated=GIB, cached=GIB, used=4 * GIB, total=24 * GIB, index=0, **known):
    """The balance of a GPU: so much by torch, so much used by anyone."""
    facts = {
        "kind": "cuda",
        "nvml_index": index,
        "torch_name": f"cuda:{index}",
        "name": "A GPU",
        "uuid": f"GPU-0000000{index}",
        "total_bytes": total,
        "free_bytes": total - used,
        "driver_reserved_bytes": 0,
        "this_process": ThisProcess(allocated, cached),
    }
    return Balance(**{**facts, **known})


def lose_gpu(index=0):
    """A GPU that fell off the bus: it does not even tell its name."""
    return Balance("cuda", nvml_index=index, trouble="the GPU is lost")


def snap(*balances):
    """A snapshot of these balances; of the CPU alone where none is given."""
    return Snapshot(balances or (play_cpu(),))
