"""The balance of every device again and again, cheaply: what does not change is read once.

``take_snapshot`` looks at everything anew, for the one time it is asked. Here NVML stays open, and
nothing is called that could disturb what runs: of torch only the allocators' own counters are
read, for a call into CUDA from another thread may spoil a graph that is being captured.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from labkit.devices.detect import strip_kind
from labkit.devices.nvml import Gate, MemoryAnswer, NvmlError, Trouble, ask_gpu_memory, open_gate
from labkit.host.machine import read_room
from labkit.memory.balance.model import Balance
from labkit.memory.balance.process import (
    MachineMemory,
    has_loaded,
    read_available_bytes,
    read_machine_memory,
    read_resident_bytes,
    sees_host_ids,
)
from labkit.memory.balance.read import (
    AllocatorFacts,
    Observer,
    Snapshot,
    find_started_torch,
    join_memory,
)
from labkit.memory.balance.view import name_device

# What there is to draw of a device, the innermost first.
GPU_MEASURES = ("allocated", "reserved", "used")
CPU_MEASURES = ("process", "available")

# Between two attempts to reach a driver that did not answer, and two looks at what is loaded.
RETRY_SECONDS = 5.0
# Nothing will change about these while this process lives.
FINAL_TROUBLES = {"no binding", "no library"}


class Levels(NamedTuple):
    """What one device holds at a moment, by measure, in bytes; None is not measured."""

    key: str
    name: str
    kind: str
    total_bytes: int | None
    held_bytes: dict[str, int | None]


def read_levels(balance: Balance) -> Levels:
    """The levels that are followed over time, from a balance."""
    mine = balance.this_process
    if balance.kind == "cpu":
        held = dict(zip(CPU_MEASURES, (mine.used_bytes, balance.free_bytes), strict=True))
        return Levels("cpu", "cpu", "cpu", balance.total_bytes, held)
    reserved = None
    if mine.allocated_bytes is not None and mine.cached_bytes is not None:
        reserved = mine.allocated_bytes + mine.cached_bytes
    # Of a lost GPU nothing is known: what torch last counted there is no level of now.
    told = (mine.allocated_bytes, reserved, balance.used_bytes)
    counts = (None, None, None) if balance.trouble else told
    name = name_device(balance)
    held = dict(zip(GPU_MEASURES, counts, strict=True))
    # Torch writes a UUID without NVML's prefix, and tells of a device that NVML has lost sight of.
    key = strip_kind(balance.uuid or name)
    return Levels(key, name, "gpu", balance.total_bytes, held)


class LevelReader:
    """Reads every device as often as it is asked, without importing torch or starting CUDA.

    ``processes`` tells this process from others on a GPU, which costs a query more for each GPU.
    """

    def __init__(
        self,
        *,
        processes: bool = False,
        binding: Any = None,
        root: Path = Path("/"),
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._processes = processes
        self._binding = binding
        self._root = root
        self._clock = clock
        self._machine: MachineMemory | None = None
        self.forget()

    def forget(self) -> None:
        """Lets go of the driver without a word to it: in a forked child it is the parent's."""
        self._gate: Gate | None = None
        self._answer = MemoryAnswer()
        self._asked_at: float | None = None
        self._uses_cuda: bool | None = None
        self._looked_at: float | None = None
        self._torch: Any = None
        self._devices: tuple[tuple[str | None, str, bool], ...] = ()
        self._places: dict[int, list[Balance]] = {}

    def close(self) -> None:
        """Closes NVML; the next reading opens it again."""
        self._asked_at = None
        self._close_gate()

    def read(self) -> Snapshot:
        """The balance of every device now, GPUs first; CPU tensors are not told apart."""
        allocators = self._read_allocators()
        answer = self._ask_driver()
        observer = Observer(
            process_id=os.getpid(),
            host_ids=sees_host_ids() if self._processes else False,
            uses_cuda=self._look_for_cuda(bool(allocators)) if self._processes else None,
            resident_bytes=read_resident_bytes(),
        )
        return self._name_lost(join_memory(answer, allocators, self._read_machine(), observer))

    def _read_machine(self) -> MachineMemory:
        if self._machine is None:
            self._machine = read_machine_memory(self._root)
        offered = [read_available_bytes(self._root)]
        if self._machine.limit_bytes is not None:
            offered.append(read_room(self._root))
        known = [count for count in offered if count is not None]
        return self._machine._replace(free_bytes=min(known, default=None))

    def _ask_driver(self) -> MemoryAnswer:
        if self._gate is None and not self._may_ask():
            return self._answer
        try:
            if self._gate is None:
                self._asked_at = self._clock()
                self._gate = open_gate(self._binding)
            self._answer = ask_gpu_memory(self._gate, processes=self._processes)
        except NvmlError as error:
            self._answer = MemoryAnswer(trouble=error.trouble)
        if self._answer.trouble:
            self._close_gate()  # a driver that was reloaded answers only to who asks anew
        return self._answer

    def _close_gate(self) -> None:
        if self._gate is not None:
            self._gate.close()
            self._gate = None

    def _may_ask(self) -> bool:
        trouble: Trouble | None = self._answer.trouble
        if trouble is not None and trouble.kind in FINAL_TROUBLES:
            return False
        return self._asked_at is None or self._clock() - self._asked_at >= RETRY_SECONDS

    def _look_for_cuda(self, started: bool) -> bool | None:
        if started or self._uses_cuda:
            self._uses_cuda = True
        elif self._looked_at is None or self._clock() - self._looked_at >= RETRY_SECONDS:
            self._looked_at = self._clock()
            self._uses_cuda = None if has_loaded("libcuda.so") is not False else False
        return self._uses_cuda

    def _read_allocators(self) -> tuple[AllocatorFacts, ...]:
        torch = find_started_torch()
        if torch is None:
            return ()
        if torch is not self._torch:
            self._devices = tuple(map(_describe, _list_properties(torch)))
            self._torch = torch
        return tuple(
            AllocatorFacts(f"cuda:{index}", uuid, name, *_count(torch.cuda, index), unified)
            for index, (uuid, name, unified) in enumerate(self._devices)
        )

    def _name_lost(self, snapshot: Snapshot) -> Snapshot:
        """A GPU that no longer tells its UUID is the one that was at its place before."""
        places: dict[int, list[Balance]] = {}
        balances = []
        for balance in snapshot.balances:
            before = self._places.get(-1 if balance.nvml_index is None else balance.nvml_index, [])
            # A split GPU has several slices at its place: which of them is lost is not known.
            told = balance
            if not balance.uuid and len(before) == 1:
                told = balance._replace(uuid=before[0].uuid, torch_name=before[0].torch_name)
            if told.nvml_index is not None:
                places.setdefault(told.nvml_index, []).append(told)
            balances.append(told)
        self._places = {**self._places, **places}
        return snapshot._replace(balances=tuple(balances))


def _list_properties(torch: Any) -> list[Any]:
    return [torch.cuda.get_device_properties(at) for at in range(torch.cuda.device_count())]


def _describe(properties: Any) -> tuple[str | None, str, bool]:
    uuid = getattr(properties, "uuid", None)
    unified = bool(getattr(properties, "is_integrated", 0))
    return str(uuid) if uuid is not None else None, properties.name, unified


def _count(cuda: Any, index: int) -> tuple[int, int]:
    """Bytes allocated and reserved; the allocator's own counters, without a call into CUDA."""
    statistics = cuda.memory_stats_as_nested_dict(index)
    if not statistics:
        return 0, 0
    allocated = statistics["allocated_bytes"]["all"]["current"]
    return allocated, statistics["reserved_bytes"]["all"]["current"]
