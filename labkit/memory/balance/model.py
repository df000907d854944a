"""The balance of one device: every byte of it under one term, and the terms add up to the total.

total = driver's reserve + this process (live tensors + cached by the allocator + context and
libraries) + other processes + free + unaccounted. A term that nobody tells is None, and what it
holds shows up in "unaccounted": it is never guessed and never hidden.

These are NamedTuples for the reason that ``labkit.devices.nvml`` gives: ``labkit memory`` answers
at once.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

MIB = 2**20


class ThisProcess(NamedTuple):
    """What this process holds on a device, in bytes; None is unknown.

    allocated: live tensors. cached: what torch's allocator keeps for the next tensors. context:
    everything else, such as the CUDA context and loaded kernels. used: all of it, as the driver
    or the kernel counts it.
    """

    allocated_bytes: int | None = None
    cached_bytes: int | None = None
    context_bytes: int | None = None
    used_bytes: int | None = None

    @property
    def known_bytes(self) -> int:
        """As much of this process's use as is known: all of it, or the parts that are."""
        if self.used_bytes is not None:
            return self.used_bytes
        return _add_known((self.allocated_bytes, self.cached_bytes, self.context_bytes))


class DeviceProcess(NamedTuple):
    """A process on a device; name and bytes are None where they are not told."""

    pid: int
    name: str | None = None
    used_bytes: int | None = None


class Term(NamedTuple):
    """One line of a balance: its key and words, and its bytes (None: unknown)."""

    key: str
    words: str
    held_bytes: int | None


class Balance(NamedTuple):
    """One device's memory in bytes, every term told apart; what is unknown is None.

    On a device that shares the machine's memory (``shared``: the CPU, a unified-memory GPU)
    ``other_processes_bytes`` is the rest of the machine, or of the container where that has a
    limit; then ``total_bytes`` is the limit and ``machine_bytes`` what the machine has.
    ``host_ids``: the ids of ``processes`` are the host's, and mean nothing in here.
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
        """Bytes in use by anyone but the driver itself; equals ``nvidia-smi``'s memory.used."""
        if self.total_bytes is None or self.free_bytes is None:
            return None
        return self.total_bytes - self.free_bytes - (self.driver_reserved_bytes or 0)

    @property
    def unaccounted_bytes(self) -> int | None:
        """What is in use and in no known term; None where total or free is unknown.

        Below zero where terms count more than is in use, such as tensors never written to.
        """
        if self.used_bytes is None:
            return None
        mine = self.this_process.known_bytes
        parts = _list_parts(self.this_process)
        if all(part is not None for part in parts):
            mine = _add_known(parts)
        return self.used_bytes - mine - (self.other_processes_bytes or 0)


def list_terms(balance: Balance) -> list[Term]:
    """The lines of the balance in the order of its bar; the known ones add up to the total."""
    mine, on_cpu = balance.this_process, balance.kind == "cpu"
    context = "everything else in this process" if on_cpu else "context and libraries"
    rest = "rest of the container" if balance.limit_bytes else "rest of the machine"
    parts = _list_parts(mine)
    if mine.used_bytes is not None and (None in parts or mine.used_bytes == mine.context_bytes):
        terms = [Term("context", "this process", mine.used_bytes)]
    else:
        terms = [
            Term("allocated", "tensors", mine.allocated_bytes),
            Term("cached", "cached by the allocator", mine.cached_bytes),
            Term("context", context, mine.context_bytes),
        ]
    others = rest if balance.shared else "other processes"
    terms.append(Term("others", others, balance.other_processes_bytes))
    if not balance.shared:
        terms.append(Term("reserved", "driver's reserve", balance.driver_reserved_bytes))
    terms.append(Term("unaccounted", "unaccounted", balance.unaccounted_bytes))
    terms.append(Term("free", "free", balance.free_bytes))
    return [term for term in terms if term.held_bytes != 0 or term.key == "free"]


def round_together(counts: Sequence[int], unit: int = MIB) -> list[int]:
    """The counts in whole units, rounded so that they still add up to their rounded sum.

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
    """How many of ``width`` cells each term takes; one that is not nothing takes at least one."""
    held = {term.key: term.held_bytes for term in terms if term.held_bytes and term.held_bytes > 0}
    whole = sum(held.values())
    # A cell for each first; what is left is shared out by size, in units of one cell.
    left = width - len(held)
    shares = round_together([count * left for count in held.values()], whole) if held else []
    return [(key, 1 + share) for key, share in zip(held, shares, strict=True)]


def _list_parts(mine: ThisProcess) -> tuple[int | None, int | None, int | None]:
    return mine.allocated_bytes, mine.cached_bytes, mine.context_bytes


def _add_known(counts: Iterable[int | None]) -> int:
    return sum(count for count in counts if count is not None)
