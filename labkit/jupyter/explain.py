"""What is shown after a cell that raised: the page of an out-of-memory error, a cause of others."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from typing import Any

from labkit.host.distribution import read_distribution
from labkit.known_errors.match import hint_at
from labkit.memory.balance.model import Balance
from labkit.memory.balance.read import Snapshot, find_started_torch, take_snapshot
from labkit.memory.oom.live import Budget, find_live_tensors, list_roots
from labkit.memory.oom.model import (
    OutOfMemoryPage,
    find_out_of_memory,
    read_failure,
    read_largest_block,
    walk_chain,
)
from labkit.memory.track.frames import find_shell


def explain_out_of_memory(
    error: BaseException,
    namespace: Mapping[str, object],
    *,
    torch: Any = None,
    take: Callable[[], Snapshot] = take_snapshot,
    budget: Budget | None = None,
) -> OutOfMemoryPage:
    """What is known of this shortage: from its text, the allocator, the balance and the names.

    Nothing of the page keeps a tensor or the error alive. ``torch`` is the one that has started
    CUDA; without it the allocator is not asked.
    """
    torch = torch or find_started_torch()
    shortage = read_failure(str(error))
    device = shortage.device or (_name_current(torch) if torch else None)
    if device is None:
        return OutOfMemoryPage(shortage)
    return OutOfMemoryPage(
        shortage._replace(device=device),
        balance=_find_balance(device, take),
        largest_block_bytes=read_largest_block(torch.cuda, device) if torch else None,
        live=find_live_tensors(device, list_roots(namespace, error), budget),
    )


def explain_last_error() -> str | None:
    """The page as text on the error that the last cell ended with; None if it is of another kind.

    ``labkit run`` asks for it in a notebook's kernel, where the extension need not be loaded.
    """
    error = find_out_of_memory(getattr(sys, "last_exc", None) or getattr(sys, "last_value", None))
    if error is None:
        return None
    shell = find_shell()
    return repr(explain_out_of_memory(error, shell.user_ns if shell is not None else {}))


def explain_known_error(error: BaseException | None) -> str | None:
    """The cause and the fix, a line each, of an error that the doctor knows; None of another."""
    told = [f"{type(one).__name__}: {one}" for one in walk_chain(error)]
    return hint_at("\n".join(told), read_distribution()) if told else None


def _name_current(torch: Any) -> str:
    return f"cuda:{torch.cuda.current_device()}"


def _find_balance(device: str, take: Callable[[], Snapshot]) -> Balance | None:
    try:
        balances = take().balances
    except RuntimeError:
        return None  # an error of CUDA's that stays makes every further question fail
    return next((one for one in balances if one.torch_name == device), None)
