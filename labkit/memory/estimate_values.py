"""A number that nobody knows: what ``loss.item()`` gives where the loss is a fake tensor.

Most training steps ask for the loss to print it or to add it up. That changes no size, so it goes
through; to compare it, to branch on it or to make an integer of it does, and raises.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any, NoReturn

import torch
from torch._subclasses.fake_tensor import DataDependentOutputException

READ_VALUE = torch.ops.aten._local_scalar_dense.default


class UnknownNumber(float):
    """A number without a value: it can be reckoned with and shown, as ``?``, and no more."""

    def __repr__(self) -> str:
        return "?"

    __str__ = __repr__

    def __format__(self, form: str) -> str:
        return "?"

    def _pass_on(self, *others: Any) -> UnknownNumber:
        return UnknownNumber(1.0)

    def _refuse(self, *others: Any) -> NoReturn:
        raise DataDependentOutputException(READ_VALUE)

    __add__ = __radd__ = __sub__ = __rsub__ = __mul__ = __rmul__ = _pass_on
    __truediv__ = __rtruediv__ = __pow__ = __rpow__ = __neg__ = __pos__ = __abs__ = _pass_on
    __bool__ = __lt__ = __le__ = __gt__ = __ge__ = __eq__ = __ne__ = _refuse  # type: ignore[assignment]
    __int__ = __trunc__ = __floor__ = __ceil__ = __floordiv__ = __rfloordiv__ = _refuse
    __mod__ = __rmod__ = __divmod__ = __rdivmod__ = __hash__ = _refuse  # type: ignore[assignment]

    def __round__(self, digits: Any = None) -> Any:
        return self._refuse() if digits is None else self._pass_on()


@contextlib.contextmanager
def pass_unknown_items(tell: Callable[[], object]) -> Iterator[None]:
    """While it is open, ``tensor.item()`` gives an UnknownNumber where there is no value.

    ``tell`` is called each time that it does.
    """
    own = "item" in vars(torch.Tensor)
    original = torch.Tensor.item

    def read(tensor: Any) -> Any:
        try:
            return original(tensor)
        except DataDependentOutputException:
            if not tensor.is_floating_point():
                raise  # a count: it is asked for to be used
            tell()
            return UnknownNumber(1.0)

    torch.Tensor.item = read
    try:
        yield
    finally:
        if own:
            torch.Tensor.item = original
        else:
            del torch.Tensor.item
