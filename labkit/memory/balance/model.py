"""The balance of a device: what holds each part of its memory.

total = driver's reserve + this process (live tensors + cached by the allocator + context and
libraries) + other processes + free + unaccounted. A term that cannot be read is None, and its
bytes are part of "unaccounted".

The classes are NamedTuples, because importing ``dataclasses`` would slow ``labkit memory`` down.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

from labkit.render import Displayed

MIB = 2**20


class ThisProcess(NamedTuple):
    """What this process holds on a device, in bytes; None is unknown.

    allocated: live tensors. cached: memory that torch's allocator keeps for later tensors.
    context: everything else, such as the CUDA context and loaded kernels. used: the sum of them,
    as the driver or the kernel counts it.
    """

    allocated_bytes: int | None = None
    cached_bytes: int | None = None
    context_bytes: int | None = None
    used_bytes: int | None = None

    @property
    def parts(self) -> tuple[int | None, int | None, int | None]:
        """Allocated, cached and context."""
        return self.allocated_bytes, self.cached_bytes, self.context_bytes

    @property
    def known_bytes(self) -> int:
        """The sum if it is known, else the sum of the known parts."""
        return _add_known(self.parts) if self.used_bytes is None else self.used_bytes


class DeviceProcess(NamedTuple):
    """A process on a device; its name and bytes are None if unknown."""

    pid: int
    name: str | None = None
    used_bytes: int | None = None


class Term(NamedTuple):
    """One line of a balance: its key and words, and its bytes (None: unknown)."""

    key: str
    words: str
    held_bytes: int | None


class Balance(NamedTuple):
    """The memory of one device in bytes; what is unknown is None.

    ``shared``: the device uses the machine's memory (the CPU, a GPU with unified memory). Then
    ``other_processes_bytes`` is everything else on the machine, or in the container if it has a
    limit; ``total_bytes`` is that limit and ``machine_bytes`` the machine's memory.
    ``host_ids``: the ids of ``processes`` are the host's and not valid in this container.
    """

    kind: str
    nvml_index: int | None = None
    torch_name: str | None = None
    name: str | None = None
    uuid: str | None = None
    total_bytes: int | None = None
    free_bytes: int | None = None
    driver_reserved_bytes: int | None = None
    this_process: ThisProcess = ThisProcess()
    other_processes_bytes: int | None = None
    processes: tuple[DeviceProcess, ...] | None = None
    host_ids: bool = False
    shared: bool = False
    machine_bytes: int | None = None
    limit_bytes: int | None = None
    trouble: str | None = None

    @property
    def used_bytes(self) -> int | None:
        """Bytes in use, without the driver's reserve; ``nvidia-smi``'s memory.used."""
        if self.total_bytes is None or self.free_bytes is None:
            return None
        return self.total_bytes - self.free_bytes - (self.driver_reserved_bytes or 0)

    @property
    def unaccounted_bytes(self) -> int | None:
        """Bytes in use that no known term holds; None if total or free is unknown.

        Negative if the terms hold more than is in use, such as tensors that were never written.
        """
        if self.used_bytes is None:
            return None
        parts = self.this_process.parts
        mine = self.this_process.known_bytes if None in parts else _add_known(parts)
        return self.used_bytes - mine - (self.other_processes_bytes or 0)

    @property
    def is_readable(self) -> bool:
        """False for a failed device whose total is unknown too."""
        return self.total_bytes is not None or not self.trouble


class _SnapshotFields(NamedTuple):
    balances: tuple[Balance, ...]
    notes: tuple[str, ...] = ()


class Snapshot(
    Displayed,
    _SnapshotFields,
    view="labkit.memory.balance.view",
    text="format_snapshot",
    html="render_snapshot",
):
    """The balance of each device, GPUs first, and notes on what could not be read."""


def name_device(balance: Balance) -> str:
    """Torch's name for the device; if that is unknown, its number in ``nvidia-smi``."""
    number = "" if balance.nvml_index is None else f" {balance.nvml_index}"
    return balance.torch_name or f"gpu{number}"


def list_terms(balance: Balance) -> list[Term]:
    """The terms in the order of the bar; the known ones add up to the total."""
    mine, on_cpu = balance.this_process, balance.kind == "cpu"
    if mine.used_bytes is not None and (None in mine.parts or mine.used_bytes == mine.parts[2]):
        terms = [Term("context", "this process", mine.used_bytes)]
    else:
        context = "everything else in this process" if on_cpu else "context and libraries"
        terms = [
            Term("allocated", "tensors", mine.allocated_bytes),
            Term("cached", "cached by the allocator", mine.cached_bytes),
            Term("context", context, mine.context_bytes),
        ]
    rest = "rest of the container" if balance.limit_bytes else "rest of the machine"
    others = rest if balance.shared else "other processes"
    terms.append(Term("others", others, balance.other_processes_bytes))
    if not balance.shared:
        terms.append(Term("reserved", "driver's reserve", balance.driver_reserved_bytes))
    terms.append(Term("unaccounted", "unaccounted", balance.unaccounted_bytes))
    terms.append(Term("free", "free", balance.free_bytes))
    return [term for term in terms if term.held_bytes != 0 or term.key == "free"]


def round_together(counts: Sequence[int], unit: int = MIB) -> list[int]:
    """The counts in whole units, rounded so that they add up to their rounded sum.

    >>> round_together([4, 4, 4], unit=10), round_together([14, 14, 2], unit=10)
    ([1, 0, 0], [2, 1, 0])
    """
    shares = [count // unit for count in counts]
    missing = (sum(counts) + unit // 2) // unit - sum(shares)
    by_remainder = sorted(range(len(counts)), key=lambda place: -(counts[place] % unit))
    for place in by_remainder[:missing]:
        shares[place] += 1
    return shares


def divide_bar(terms: Iterable[Term], width: int) -> list[tuple[str, int]]:
    """How many of ``width`` cells each positive term gets: at least one."""
    held = {term.key: term.held_bytes for term in terms if term.held_bytes and term.held_bytes > 0}
    whole = sum(held.values())
    # One cell for each term, and the rest in proportion to size.
    left = width - len(held)
    shares = round_together([count * left for count in held.values()], whole) if held else []
    return [(key, 1 + share) for key, share in zip(held, shares, strict=True)]


def _add_known(counts: Iterable[int | None]) -> int:
    return sum(count for count in counts if count is not None)
