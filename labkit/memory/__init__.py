"""``labkit.memory()``: the balance of each device now.

This package is also the function: ``labkit.memory`` must name both. When something imports
``labkit.memory.balance``, Python sets ``labkit.memory`` to the package. A module whose class has
``__call__`` is both, in any import order.
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

        Read-only: it creates no CUDA context, empties no cache and does not import torch.
        """
        from labkit.memory.balance.read import take_snapshot

        return take_snapshot()


# `labkit` resolves each export as an attribute of its module, so this package contains itself.
memory = sys.modules[__name__]
memory.__class__ = _CallableModule
