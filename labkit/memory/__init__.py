"""Where memory is: ``labkit.memory()`` gives the balance of each device, now.

This package is itself the function. ``labkit.memory`` is the natural name of both, and Python
binds a subpackage to its parent's name as soon as anything imports ``labkit.memory.balance``: a
function of that name would be there or gone by the order of imports. A module whose class has
``__call__`` is one object under both roles, whichever is used first.
"""

from __future__ import annotations

import sys
from types import ModuleType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from labkit.memory.balance.read import Snapshot


class _CallableModule(ModuleType):
    """A module that can be called."""

    def __call__(self) -> Snapshot:
        """The balance of every GPU and of this process on the CPU; shows itself when displayed.

        Reads only: no CUDA context is made, no cache emptied, torch not imported.
        """
        from labkit.memory.balance.read import take_snapshot

        return take_snapshot()


# ``labkit`` exports a name from the module of its table: this package gives itself.
memory = sys.modules[__name__]
memory.__class__ = _CallableModule
