"""``labkit.memory()``: the balance of each device now.

This package is also the function. ``labkit.memory`` must name both, and as soon as something
imports ``labkit.memory.balance``, Python binds the package to that name in ``labkit``. A module
whose class has ``__call__`` is both, whatever is imported first.
"""

from __future__ import annotations

import sys
from types import ModuleType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from labkit.memory.balance.model import Snapshot


class _CallableModule(ModuleType):
    """A module that can be called."""

    def __call__(self) -> Snapshot:
        """The balance of every GPU, and of this process on the CPU; a notebook displays it.

        Only reads: it makes no CUDA context, empties no cache and does not import torch.
        """
        from labkit.memory.balance.read import take_snapshot

        return take_snapshot()


# `labkit` resolves its exports as attributes of their modules: this package holds itself.
memory = sys.modules[__name__]
memory.__class__ = _CallableModule
