"""What a step on fake tensors knows of values: constants, unknown numbers, and assumptions.

Fake tensors have no values. Small tensors that the step makes from constants, and small integer
tensors that it is given, are computed for real beside the fake ones (``KnownValues``), so models
that ask for them while they are built, and masks that hide nothing, are simulated exactly.
``loss.item()`` returns an ``UnknownNumber``, which can be printed and added up. Where the step
decides by an unknown value, ``Assumptions`` decides, and names the line.
"""

from __future__ import annotations

import contextlib
import dis
import functools
import operator as operators
import sys
import time
import weakref
from collections import Counter
from collections.abc import Callable, Collection, Mapping
from typing import Any, NamedTuple, NoReturn

import torch
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensor
from torch.utils._python_dispatch import _disable_current_modes

from labkit.memory.estimate.cuda import UNNAMED, find_number, replace_attributes
from labkit.memory.estimate.limits import Limits, combine
from labkit.memory.estimate.selecting import collapse, join_sizes
from labkit.memory.track.frames import find_user_frames
from labkit.memory.track.storages import list_tensors

READ_VALUE = torch.ops.aten._local_scalar_dense.default
# Operators that make a tensor from constants alone.
FACTORIES = frozenset(
    "arange linspace logspace full zeros ones eye scalar_tensor lift_fresh lift_fresh_copy".split()  # noqa: SIM905
)
# Operators that take a tensor for its shape and its dtype alone.
LIKE = frozenset("ones_like zeros_like full_like new_ones new_zeros new_full".split())  # noqa: SIM905
# The most elements of a known tensor, and the most decisions of one line.
KNOWN_ELEMENTS, LINE_DECISIONS = 262_144, 200


# What a value decides alone, whatever the other one is: "or" with True, "and" and a product with 0.
ABSORBING = {
    "aten::bitwise_or": True, "aten::logical_or": True, "aten::bitwise_and": False,
    "aten::logical_and": False, "aten::mul": False,
}  # fmt: skip


# A line, and the number of one of its decisions in a step; None for all of them.
Change = tuple[str, int | None]
# A mask: the line that selects by it, and its shape.
Mask = tuple[str, torch.Size]


class Assumptions:
    """Answers the questions that unknown values would answer, always with ``answer``.

    ``changed`` are the decisions with the other answer. ``selects``: masks select everything, and
    counts are the highest; else nothing, and the lowest. It is ``answer`` if it is not given.
    ``singles`` are the masks that select one element, as ``item()`` reads what they select: their
    lines and shapes. What is found out about them is added.
    ``places`` counts the decisions of each line, ``drawn`` the numbers that it drew.
    ``steps`` counts the steps that have begun, and ``began_ns`` is the time of the first way's.
    ``ahead`` counts the iterations of each line whose workers may load ahead, and ``copied`` the
    operators that may copy an argument that is not contiguous.
    ``reorders`` is True once the order of a backward pass depends on more than the step.
    ``by_rows`` is given where a mask selects the same number of elements in each row, neither all
    nor none: this number for some lines, and one for all others. ``chosen`` has the lines that
    select by unknown values.
    """

    def __init__(
        self,
        *,
        answer: bool,
        changed: Collection[Change] = (),
        began_ns: int | None = None,
        by_rows: Mapping[str, int] | None = None,
        selects: bool | None = None,
        singles: set[Mask] | None = None,
    ) -> None:
        self.answer, self.changed, self.by_rows = answer, frozenset(changed), by_rows
        self.selects = answer if selects is None else selects
        self.singles: set[Mask] = set() if singles is None else singles
        self.chosen: list[str] = []
        # Whether it has counted what is selected, and whether it has decided anything else.
        self.counts = self.branches = False
        # The figures of what was simulated until an error of the step.
        self.reached: dict[str, Any] | None = None
        self._mask: Mask | None = None
        # By the number of selected elements, the latest mask that selected as many.
        self._sizes: dict[int, Mask] = {}
        self.began_ns = time.time_ns() if began_ns is None else began_ns
        self.reorders = False
        self.copied: Counter[str] = Counter()
        self.ahead: Counter[str] = Counter()
        self.steps = 0
        self.places: Counter[str] = Counter()
        self.drawn: Counter[str] = Counter()
        # The decisions of each line in this step, the latest line last; the lines of earlier steps.
        self._made: dict[str, int] = {}
        self._earlier: dict[str, None] = {}

    @property
    def asked(self) -> int:
        """How many answers there were."""
        return self.places.total() + self.drawn.total()

    @property
    def has_ways(self) -> bool:
        """Whether the other answer may lead to another figure."""
        return bool(self.asked or self.reorders or self.copied or self.ahead)

    @property
    def forks(self) -> bool:
        """Whether it has decided more than how much is selected."""
        return bool(self.branches or self.reorders or self.ahead)

    def begin_step(self) -> None:
        """Counts the decisions of each line from one again."""
        self.steps += 1
        self._earlier |= dict.fromkeys(self._made)
        self._made.clear()

    def answers_draw(self, most: int) -> bool:
        """False once the running line has drawn so often in this step."""
        return self._made.get(_find_line(), 0) < most

    def decide(self, *, drawn: bool = False, counts: bool = False) -> bool:
        """The answer; raises DataDependentOutputException where a line asks without end.

        ``counts`` where the answer is how much is selected.
        """
        where = _find_line()
        (self.drawn if drawn else self.places)[where] += 1
        number = self._made.pop(where, 0) + 1
        self._made[where] = number
        self._refuse_endless(where)
        if counts:
            self.counts = True
        else:
            self.branches = True
        answer = self.selects if counts else self.answer
        return answer != bool({(where, None), (where, number)} & self.changed)

    def _refuse_endless(self, where: str) -> None:
        if self.places[where] > LINE_DECISIONS:
            raise DataDependentOutputException(READ_VALUE)

    def choose(self, selected: Any = None) -> None:
        """Counts a decision about how many elements are selected, which no error changes."""
        where = _find_line()
        self.places[where] += 1
        self.counts = True
        self.chosen.append(where)
        self._refuse_endless(where)
        if self._mask is not None:
            for one in list_tensors(selected):
                self._sizes[one.numel()] = self._mask

    def expect_single(self, tensor: Any) -> None:
        """Notes which mask must select one element, so that ``item()`` can read this tensor.

        The step is simulated again then.
        """
        mask = self._sizes.get(tensor.numel())
        if mask is not None:
            self.singles.add(mask)

    def count_chosen(self, shape: torch.Size) -> int:
        """How many elements a mask of this shape selects."""
        whole = int(shape.numel())
        self._mask = _find_line(), shape
        if self._mask in self.singles:
            return min(whole, 1)
        rows = self._count_in_row(shape)
        return whole * self.selects if rows is None else int(shape[0]) * rows

    def _count_in_row(self, shape: torch.Size) -> int | None:
        """How many elements a mask selects in each row; None if that is not assumed."""
        if self.by_rows is None or len(shape) < 2:
            return None
        return min(self.by_rows.get(_find_line(), 1), int(shape[1:].numel()))

    def fill(self, shape: torch.Size) -> torch.Tensor:
        """A mask of this shape that selects as many."""
        if shape.numel() and (_find_line(), shape) in self.singles:
            mask = torch.zeros(shape.numel(), dtype=torch.bool)
            mask[-1 if self.selects else 0] = True
            return mask.view(shape)
        rows = self._count_in_row(shape)
        if rows is None:
            return torch.full(shape, self.selects)
        mask = torch.zeros(shape[0], shape[1:].numel(), dtype=torch.bool)
        mask[:, :rows] = True
        return mask.view(shape)

    def copies(self, name: str) -> bool:
        """Whether the operator copies its arguments that are not contiguous."""
        self.copied[name] += 1
        return self.selects

    def loads_ahead(self) -> bool:
        """Whether the workers of a DataLoader are ahead of the step."""
        self.ahead[_find_line()] += 1
        return not self.answer

    def find_change(self, tried: Collection[Change], check: str | None = None) -> Change | None:
        """What to decide differently after an error: the latest decision, or all of its line.

        An earlier step may have kept what it has read, such as the errors of samples. ``check`` is
        the line whose condition alone led to the error: there it would be raised each time.
        """
        if check in self._made and not any(one[0] == check for one in tried):
            return check, None
        for where, number in reversed(self._made.items()):
            if not any(one[0] == where for one in tried):
                return where, number
            if (where, None) not in tried:
                return where, None
        for where in reversed(self._earlier):
            if where not in self._made and (where, None) not in tried:
                return where, None
        return None


def _find_line() -> str:
    frames = find_user_frames()
    return frames[0].where if frames else "an unknown line"


class KnownValues:
    """The values of small tensors, kept as an attribute of the fake ones."""

    def __init__(self) -> None:
        # Counts, for each storage, the writes of unknown values: aliases are unknown from then on.
        self._writes: Counter[int] = Counter()
        # By their ids, copies of real tensors: a view of one may be written to.
        self._copies: dict[int, tuple[Any, Any]] = {}
        # Whether a function reads that can answer without a value.
        self.reads_unknown = False

    def keep(self, fake: Any, value: Any, limits: Limits | None = None) -> None:
        """Keeps the real tensor that has the fake one's values, or one draw of them."""
        if fake.layout is not torch.strided:  # it has no storage
            return
        fake.labkit_value = (value, self.count_writes(fake), limits)

    def limit(self, fake: Any, limits: Limits) -> None:
        """Keeps between which numbers the fake tensor's unknown values are."""
        fake.labkit_value = (None, self.count_writes(fake), limits)

    def hand_on(self, tensor: Any, result: Any) -> None:
        """Gives a tensor's limits, if it has some, to what has no other numbers than it."""
        limits = self.find_limits(tensor)
        if limits is not None:
            for one in list_tensors(result):
                self.limit(one, limits)

    def find_limits(self, tensor: Any) -> Limits | None:
        """Between which numbers the tensor's values are; None if nothing is known."""
        _, writes, limits = getattr(tensor, "labkit_value", NOTHING)
        known = limits is not None and writes == self.count_writes(tensor)
        return limits if known else None

    def copy(self, fake: Any, tensor: Any) -> None:
        """Keeps a copy of the real tensor's values."""
        plain = type(tensor) is torch.Tensor
        with torch._C._DisableTorchDispatch() if plain else _disable_current_modes():
            value = tensor.detach().clone()
        self.keep(fake, value)

    def find_ends(self, tensor: Any) -> Limits | None:
        """The tensor's limits, which may be those of its known values."""
        value = self.find(tensor)
        if value is None or not value.numel() or value.is_complex():
            return self.find_limits(tensor)
        try:
            with _disable_current_modes():
                low, high = (one.item() for one in collapse(value).aminmax())
        except NotImplementedError:  # for this dtype
            return self.find_limits(tensor)
        return Limits(low, high)

    def find(self, tensor: Any) -> Any:
        """The tensor's values as a real tensor; None if they are unknown."""
        value, writes, _ = getattr(
            tensor, "labkit_value", (tensor if is_real(tensor) else None, 0, None)
        )
        if value is None or writes != self.count_writes(tensor):
            return None
        return self._find_copy(tensor) if value is tensor else value

    def _find_copy(self, tensor: Any) -> Any:
        known = self._copies.get(id(tensor))
        if known is None:
            with torch._C._DisableTorchDispatch():
                copied = tensor.detach().clone()
            forget = functools.partial(self._drop_copy, id(tensor))
            known = self._copies[id(tensor)] = weakref.ref(tensor, forget), copied
        return known[1]

    def _drop_copy(self, number: int, _: Any) -> None:
        self._copies.pop(number, None)

    def read(self, tensor: Any) -> Any:
        """The number in a tensor of one element; None if it is unknown."""
        value = self.find(tensor)
        if value is None:
            return None
        with torch._C._DisableTorchDispatch():  # ten times as fast as without modes
            return value.item()

    def compute(self, operator: Any, tensors: list[Any], arguments: Any, named: Any) -> Any:
        """The operator's result on real tensors; None if an argument is unknown.

        A write happens in place in the values too; a write of unknown values makes them unknown.
        """
        traits = _traits.get(find_number(operator)) or _find_traits(operator)
        _, schema, name, like, mutable, drawn, views = traits
        if tensors and not like and not any(map(may_be_known, tensors)):
            if mutable:
                self._forget_written(schema, arguments, named)
            return None
        if like:
            shape = tensors[0].shape if name.endswith("_like") else ()
            with _disable_current_modes():
                known = {find_number(one): torch.empty(shape, dtype=one.dtype) for one in tensors}
        else:
            known = {find_number(one): self.find(one) for one in tensors}
            if not views and any(map(_is_large, tensors)):
                return self._compute_repeated(traits, known, arguments, named)
        certain = bool(tensors) or is_constant(operator)
        # A real tensor of the step's is not written to.
        drawn = drawn or (mutable and any(map(is_real, tensors)))
        if drawn or not certain or any(one is None for one in known.values()):
            if schema.name in ABSORBING:
                return _absorb(schema.name, list(known.values()), tensors)
            if mutable:
                self._forget_written(schema, arguments, named)
            return None

        disabled = torch._C._DisableTorchDispatch()
        with disabled, contextlib.suppress(RuntimeError, NotImplementedError):
            return operator(
                *_put_known(tuple(arguments), known),
                **{name: _put_known(one, known) for name, one in named.items()},
            )
        if mutable:
            self._forget_written(schema, arguments, named)
        return None

    def _compute_repeated(
        self, traits: _Traits, known: dict[int, Any], arguments: Any, named: Any
    ) -> Any:
        """The result for one expanded tensor and numbers, expanded too; else None.

        More elements than KNOWN_ELEMENTS are only known where few are repeated.
        """
        value = next(iter(known.values()))
        alone = len(known) == 1 and value is not None and not traits.mutable
        single = traits.name == "_to_copy" or torch.Tag.pointwise in traits.operator.tags
        if alone and single:
            disabled = torch._C._DisableTorchDispatch()
            with disabled, contextlib.suppress(RuntimeError, NotImplementedError):
                once = dict.fromkeys(known, collapse(value))
                made = traits.operator(
                    *_put_known(tuple(arguments), once),
                    **{name: _put_known(one, once) for name, one in named.items()},
                )
                return made.expand(value.shape)
        if traits.mutable:
            self._forget_written(traits.schema, arguments, named)
        return None

    def count_writes(self, tensor: Any) -> int:
        """How often unknown values were written into the tensor's storage."""
        return self._writes.get(tensor.untyped_storage()._cdata, 0)

    def forget(self, tensor: Any) -> None:
        """Notes a write of unknown values into the tensor."""
        self._writes[tensor.untyped_storage()._cdata] += 1
        getattr(tensor, "__dict__", {}).pop("labkit_value", None)

    def is_labelled(self, tensor: Any) -> bool:
        """True if anything is known of the tensor's values."""
        return self.find(tensor) is not None or self.find_limits(tensor) is not None

    def _forget_written(self, schema: Any, arguments: Any, named: Any) -> None:
        for place, argument in enumerate(schema.arguments):
            if argument.alias_info is not None and argument.alias_info.is_write:
                value = arguments[place] if place < len(arguments) else named.get(argument.name)
                for one in list_tensors(value):
                    self.forget(one)


class _Traits(NamedTuple):
    """What of an operator decides about known values.

    It takes a shape, it writes, it draws, and its results are views.
    """

    operator: Any
    schema: Any
    name: str
    like: bool
    mutable: bool
    drawn: bool
    views: bool


# By the operator's number, as torch computes its hash in Python.
_traits: dict[int, _Traits] = {}
# What is known of a tensor without a label.
NOTHING = (None, 0, None)


def _find_traits(operator: Any) -> _Traits:
    schema = operator._schema
    name = schema.name.partition("::")[2]
    drawn = torch.Tag.nondeterministic_seeded in operator.tags
    views = is_view(operator)
    traits = _Traits(operator, schema, name, name in LIKE, schema.is_mutable, drawn, views)
    return _traits.setdefault(find_number(operator), traits)


@functools.cache
def is_view(operator: Any) -> bool:
    """True for an operator whose results share the storage of an argument."""
    schema = operator._schema
    shared = (one.alias_info is not None for one in schema.returns)
    return bool(schema.returns) and not schema.is_mutable and all(shared)


def _is_large(tensor: Any) -> bool:
    return bool(tensor.numel() > KNOWN_ELEMENTS)


def repeats_known(tensor: Any) -> bool:
    """True for an expanded tensor of more elements than are known by themselves."""
    return may_be_known(tensor) and _is_large(tensor)


def may_be_known(tensor: Any) -> bool:
    """False for a tensor of which no value is known, at most its limits."""
    label = getattr(tensor, "labkit_value", None)
    return type(tensor) is torch.Tensor if label is None else label[0] is not None


def _put_known(value: Any, known: dict[int, Any]) -> Any:
    """An argument with the known tensors for the fake ones, on the CPU."""
    if isinstance(value, torch.Tensor):
        return known[find_number(value)]
    if isinstance(value, list | tuple):
        return type(value)(_put_known(one, known) for one in value)
    return torch.device("cpu") if isinstance(value, torch.device) else value


def is_real(tensor: Any) -> bool:
    """True for a small tensor of whole numbers that is not fake, such as the lengths of sequences.

    >>> is_real(torch.ones(3)), is_real(torch.arange(3))
    (False, True)
    """
    return (
        type(tensor) is torch.Tensor
        and not (tensor.is_floating_point() or tensor.is_complex())
        and tensor.device.type == "cpu"
        and tensor.layout is torch.strided
        and tensor.numel() <= KNOWN_ELEMENTS
    )


@functools.cache
def is_constant(operator: Any) -> bool:
    """True for an operator that makes a tensor from numbers alone, called without a tensor.

    ``torch.div(7, 2)`` is an operator on tensors, whose arguments stay numbers.
    """
    schema = operator._schema
    takes_tensor = schema.arguments and str(schema.arguments[0].type) == "Tensor"
    return bool(takes_tensor) or schema.name.partition("::")[2] in FACTORIES


def _absorb(name: str, values: list[Any], tensors: list[Any]) -> Any:
    """The result of an operator of ABSORBING if one argument decides it alone, else None."""
    decides = ABSORBING[name]
    for value in values:
        if value is None or value.is_floating_point():
            continue
        with _disable_current_modes():
            if bool((value.bool() == decides).all()) and (not decides or value.dtype is torch.bool):
                shape = torch.broadcast_shapes(*(one.shape for one in tensors))
                return torch.full(shape, decides, dtype=value.dtype)
    return None


class UnknownNumber(float):
    """A number without a value; it supports arithmetic and printing (as ``?``).

    A comparison is decided by the assumptions, unless its limits decide it. With limits it is a
    size too: the lowest or the highest. ``whole`` where it is from a tensor of whole numbers.
    """

    assumptions: Assumptions
    limits: Limits | None
    whole = False

    def __repr__(self) -> str:
        return "?"

    __str__ = __repr__

    def __format__(self, form: str) -> str:
        return "?"

    def _refuse(self, *others: Any) -> NoReturn:
        raise DataDependentOutputException(READ_VALUE)

    def _choose(self) -> int:
        return self._refuse() if self.limits is None else int(self.limits.choose(self.assumptions))

    def __bool__(self) -> bool:
        return self.__ne__(0)

    def __hash__(self) -> int:
        return hash(self._choose())

    def __round__(self, digits: Any = None) -> Any:  # type: ignore[override]
        if digits is not None:
            return make_unknown(self.assumptions, self.limits)
        shown = self.limits is None and is_shown(sys._getframe(1))
        return make_unknown(self.assumptions) if shown else self._choose()

    def _cut(self) -> Any:
        """A whole number of this one, which C would not know to be unknown."""
        shown = self.limits is None and is_shown(sys._getframe(1))
        return make_unknown(self.assumptions) if shown else self._choose()

    def __int__(self) -> int:
        return 1 if self.limits is None and is_shown(sys._getframe(1)) else self._choose()

    def __abs__(self) -> Any:
        limits = self.limits
        if limits is not None and limits.low < 0:
            highest = max(abs(limits.low), abs(limits.high))
            limits = limits._replace(low=0, high=highest, distinct=False)
        return make_unknown(self.assumptions, limits)

    def __mod__(self, other: Any) -> Any:
        if not isinstance(other, int | float):
            return NotImplemented
        limits = self.limits
        if limits is not None:
            counts = isinstance(other, int) and other > 0
            limits = limits._replace(low=0, high=other - 1, distinct=False) if counts else None
        return make_unknown(self.assumptions, limits)

    def __rmod__(self, other: Any) -> Any:
        known = isinstance(other, int | float)
        return make_unknown(self.assumptions) if known else NotImplemented

    # An unknown count without limits can be added up, but not be used as a size or an index.
    __index__ = _choose
    __trunc__ = __floor__ = __ceil__ = _cut  # type: ignore[assignment]
    __divmod__ = __rdivmod__ = _refuse  # type: ignore[assignment]


def is_shown(frame: Any) -> bool:
    """True where what the frame's running instruction makes goes into a text, and nowhere else.

    That is ``"%d" % value``, and ``int(value)`` in an f-string.
    """
    return frame.f_lasti in _find_shown(frame.f_code)


@functools.lru_cache(maxsize=1024)
def _find_shown(code: Any) -> frozenset[int]:
    """Where instructions of the code make what is only shown, by their offsets."""
    steps = [one for one in dis.get_instructions(code) if one.opname not in UNSEEN]
    found = set()
    for place, one in enumerate(steps):
        rest = one.opname == "BINARY_MODULO" or (one.opname == "BINARY_OP" and "%" in one.argrepr)
        following = [each.opname for each in steps[place + 1 : place + 3]]
        if following[:1] == ["LOAD_CONST"]:  # how many places, and the like
            following = following[1:]
        shown = bool(following) and following[0].startswith("FORMAT_")
        if rest or (shown and one.opname in CALLS):
            found.add(one.offset)
    return frozenset(found)


# Instructions without a result, and those that call a function of one argument.
UNSEEN = {"CACHE", "EXTENDED_ARG", "NOP", "PRECALL"}
CALLS = {"CALL", "CALL_FUNCTION", "CALL_METHOD"}


def _pass_on(operate: Callable[..., Any], *, needs_limits: bool = False) -> Callable[..., Any]:
    """An operation on an unknown number, whose result is unknown too."""

    def combine_(self: UnknownNumber, *others: Any) -> Any:
        if not all(isinstance(one, int | float | None) for one in others):
            return NotImplemented  # a tensor or an array has the result
        limits = self.limits
        if limits is not None and others:
            known = [one.limits if isinstance(one, UnknownNumber) else one for one in others[:1]]
            limits = None if known[0] is None else combine(operate, limits, known[0])
        elif limits is not None:
            limits = combine(lambda one, _: operate(one), limits, 0)
        if limits is None and needs_limits:
            raise DataDependentOutputException(READ_VALUE)
        return make_unknown(self.assumptions, limits)

    return combine_


def _compare(compare: Callable[[Any, Any], bool]) -> Callable[..., bool]:
    """A comparison of an unknown number, which its limits decide or the assumptions."""

    def decide(self: UnknownNumber, other: Any) -> bool:
        limits = self.limits
        if limits is not None and isinstance(other, int | float) and not _is_unknown(other):
            found = {compare(limits.low, other), compare(limits.high, other)}
            inside = limits.low <= other <= limits.high and limits.low < limits.high
            if len(found) == 1 and not (compare in {operators.eq, operators.ne} and inside):
                return found.pop()
        return self.assumptions.decide()

    return decide


def _is_unknown(value: Any) -> bool:
    return isinstance(value, UnknownNumber)


for _name in ("add", "sub", "mul", "truediv", "pow", "floordiv"):
    _operate, _needs = getattr(operators, _name), _name == "floordiv"
    setattr(UnknownNumber, f"__{_name}__", _pass_on(_operate, needs_limits=_needs))
    _turned = functools.partial(lambda operate, one, other: operate(other, one), _operate)
    setattr(UnknownNumber, f"__r{_name}__", _pass_on(_turned, needs_limits=_needs))
for _name in ("neg", "pos"):
    setattr(UnknownNumber, f"__{_name}__", _pass_on(getattr(operators, _name)))
for _name in ("lt", "le", "gt", "ge", "eq", "ne"):
    setattr(UnknownNumber, f"__{_name}__", _compare(getattr(operators, _name)))


def make_unknown(assumptions: Assumptions, limits: Limits | None = None) -> UnknownNumber:
    """A number without a value, whose comparisons these assumptions decide."""
    # Functions of C read the number that is assumed.
    drawn = limits is not None and limits.drawn
    number = UnknownNumber(limits.choose(assumptions) if limits and drawn else 1.0)
    number.assumptions, number.limits = assumptions, limits
    return number


def make_array(tensor: Any, value: Any, *, force: bool = False) -> Any:
    """What ``tensor.numpy()`` returns for a fake tensor: an array of this value, or these values.

    As in torch it keeps the tensor's storage; raises what torch raises for the real tensor.
    """
    if tensor.requires_grad and not force:
        raise RuntimeError(
            "Can't call numpy() on Tensor that requires grad. Use tensor.detach().numpy() instead."
        )
    if tensor.device.type != "cpu" and tensor.device != UNNAMED and not force:
        raise TypeError(
            f"can't convert {tensor.device} device type tensor to numpy."
            " Use Tensor.cpu() to copy the tensor to host memory first."
        )
    import numpy

    class Array(numpy.ndarray):  # type: ignore[misc,type-arg]
        """An array that can hold the storage of a tensor; its views hold it."""

    with _disable_current_modes():
        if not isinstance(value, torch.Tensor):
            value = torch.full(tensor.shape, value, dtype=tensor.dtype)
        found = value.numpy()
    made = numpy.ndarray.__new__(Array, found.shape, found.dtype)
    made[...] = found
    made.storage = tensor.untyped_storage()
    return made


def count_up(shape: Any, dtype: Any) -> Any:
    """The assumed values of whole numbers: all different, from 1 on."""
    with _disable_current_modes():
        return torch.arange(1, shape.numel() + 1).to(dtype).view(shape)


class _UnknownItems:
    """Reads the values of tensors, and notes which function asked for one that is unknown."""

    def __init__(self, note: Callable[[str], object], values: KnownValues) -> None:
        self._note, self._values = note, values

    def attempt(self, read: Callable[[Any], Any], tensor: Any) -> Any:
        self._values.reads_unknown = True
        try:
            return read(tensor)
        finally:
            self._values.reads_unknown = False

    def find_limits(self, tensor: Any) -> Limits | None:
        return self._values.find_limits(tensor)

    def note(self, function: str, limits: Limits | None) -> None:
        if limits is None or not limits.drawn:  # a draw has both ends
            self._note(function)


def _replace_numbers(items: _UnknownItems, assumptions: Assumptions) -> dict[str, Any]:
    """Methods of a tensor that return its one value as a number, also if it is unknown."""
    item, convert, count = torch.Tensor.item, torch.Tensor.__float__, torch.Tensor.__int__

    def expect_single(tensor: Any) -> None:
        if tensor.numel() != 1:
            assumptions.expect_single(tensor)

    def read(tensor: Any) -> Any:
        expect_single(tensor)
        try:
            return items.attempt(item, tensor)
        except DataDependentOutputException:
            if tensor.dtype is torch.bool:
                return assumptions.decide()
            limits = items.find_limits(tensor)
            items.note("item()", limits)
            number = make_unknown(assumptions, limits)
            number.whole = not (tensor.is_floating_point() or tensor.is_complex())
            return number

    def read_float(tensor: Any) -> float:
        expect_single(tensor)
        try:
            return float(items.attempt(convert, tensor))
        except DataDependentOutputException:
            limits = items.find_limits(tensor)
            items.note("float()", limits)
            return 1.0 if limits is None else float(limits.choose(assumptions))

    def read_int(tensor: Any) -> int:
        expect_single(tensor)
        try:
            return int(items.attempt(count, tensor))
        except DataDependentOutputException:
            limits = items.find_limits(tensor)
            if limits is None:
                raise
            items.note("int()", limits)
            return int(limits.choose(assumptions))

    return {"item": read, "__float__": read_float, "__int__": read_int, "__index__": read_int}


def allow_unknown_items(
    assumptions: Assumptions, note: Callable[[str], object], values: KnownValues
) -> contextlib.AbstractContextManager[Any]:
    """Makes ``tensor.item()``, ``float(tensor)`` and printing answer without a value, until exit.

    ``int(tensor)`` answers where its limits are known. A tensor can be split in as many parts as
    there are unknown sizes. ``note`` is called with the name of the function each time.
    """
    items = _UnknownItems(note, values)
    item, show = torch.Tensor.item, torch.Tensor.__format__
    split, is_true = torch.Tensor.split, torch.Tensor.__bool__

    def write(self: Any, format_spec: str) -> str:
        if self.dim() or type(self) is not FakeTensor:
            return str(show(self, format_spec))
        try:
            return format(items.attempt(item, self), format_spec)
        except DataDependentOutputException:
            return "?"

    def decide(tensor: Any) -> bool:
        try:
            return bool(items.attempt(is_true, tensor))
        except DataDependentOutputException:
            return assumptions.decide()

    # Called with torch's own names too.
    def cut(self: Any, split_size: Any, dim: int = 0) -> Any:
        sizes = split_size
        if isinstance(sizes, list | tuple) and any(type(one) is UnknownNumber for one in sizes):
            sizes = _assume_sizes(self.size(dim), len(sizes), first=assumptions.decide())
        return split(self, sizes, dim)

    stack = contextlib.ExitStack()
    for owner in (torch, torch.Tensor):
        cut_at = _make_cutter(owner.tensor_split, assumptions, values)
        stack.enter_context(replace_attributes(owner, tensor_split=cut_at))
    replaced = {"split": cut, "__format__": write, "__bool__": decide}
    numbers = _replace_numbers(items, assumptions)
    stack.enter_context(replace_attributes(torch.Tensor, **numbers, **replaced))
    return stack


def _make_cutter(
    split: Callable[..., Any], assumptions: Assumptions, values: KnownValues
) -> Callable[..., Any]:
    """``tensor_split``, whose code in C++ would read the places in a fake tensor."""

    def read(places: Any, tensor: Any, dim: int) -> Any:
        if type(places) is not FakeTensor:
            return places
        if not places.dim():
            return int(places)
        if values.find(places) is not None:
            return places.tolist()
        first = assumptions.decide()
        return join_sizes(_assume_sizes(tensor.size(dim), places.numel() + 1, first=first))

    def cut_at(*taken: Any, **named: Any) -> Any:
        tensor, *taken = (named.pop("input"), *taken) if "input" in named else taken  # type: ignore[assignment]
        dim = named.get("dim", taken[1] if len(taken) > 1 else 0)
        given = [read(taken[0], tensor, dim), *taken[1:]] if taken else []
        places = {
            name: one if name == "dim" else read(one, tensor, dim) for name, one in named.items()
        }
        return split(tensor, *given, **_name_places(places))

    return cut_at


def _name_places(named: dict[str, Any]) -> dict[str, Any]:
    """The named arguments of ``tensor_split`` with places that are numbers now."""
    places = named.pop("tensor_indices_or_sections", None)
    if places is None:
        return named
    return {**named, "sections" if isinstance(places, int) else "indices": places}


def make_lister(assumptions: Assumptions, values: KnownValues) -> Callable[[Any], Any]:
    """``FakeTensor.tolist``, which reads known values at once, such as an order of all samples."""
    read_each: Callable[[Any], Any] = FakeTensor.tolist

    def answer(tensor: Any) -> Any:
        known = values.find(tensor)
        if known is None:
            return read_each(tensor)
        limits = values.find_limits(tensor)
        if limits is not None and limits.drawn:
            assumptions.decide(drawn=True)
        with _disable_current_modes():
            return known.tolist()

    return answer


def _assume_sizes(total: int, parts: int, *, first: bool) -> list[int]:
    """The sizes of parts that only values tell: the first one has everything, or all are equal."""
    if first:
        return [total] + [0] * (parts - 1)
    return [total * (n + 1) // parts - total * n // parts for n in range(parts)]


def shape_ctc(operator: Any, arguments: Any, values: KnownValues) -> Any:
    """The loss and the table of ``ctc_loss``, whose width is that of the longest target.

    Returns None for another operator. If the lengths are unknown, the targets are as long as they
    can be.
    """
    if operator._schema.name != "aten::_ctc_loss":
        return None
    scores, targets, lengths = arguments[0], arguments[1], arguments[3]
    known = values.find(lengths) if isinstance(lengths, torch.Tensor) else torch.tensor(lengths)
    with _disable_current_modes():
        longest = targets.size(-1) if known is None else int(known.max())
    batch = scores.size(1)
    return scores.new_empty(batch), scores.new_empty(batch, scores.size(0), 2 * longest + 1)


def pack_padded(operator: Any, arguments: Any, values: KnownValues, *, longest: bool) -> Any:
    """The packed sequences and how many there are at each step; None for another operator.

    Sequences of unknown lengths are all as long as they can be, or have one step.
    """
    if operator._schema.name != "aten::_pack_padded_sequence":
        return None
    padded, lengths, batch_first = arguments
    known = values.find(lengths)
    batch, steps = padded.shape[:2] if batch_first else padded.shape[1::-1]
    with _disable_current_modes():
        if known is None:
            known = torch.full((batch,), steps if longest else 1)
        sizes = (known[None, :] > torch.arange(int(known.max()))[:, None]).sum(1)
        total = int(known.sum())
    # Torch's C++ code reads the numbers, on the CPU: they are real.
    return padded.new_empty(total, *padded.shape[2:]), sizes


def make_unpacking(values: KnownValues) -> Callable[..., Any]:
    """``pad_packed_sequence`` as C++ has it, which would write the lengths into a fake tensor."""

    def pad(data: Any, sizes: Any, batch_first: bool, padding: float, total: int) -> Any:
        with _disable_current_modes():
            counts = sizes.tolist()
            lengths = (sizes[:, None] > torch.arange(counts[0])).sum(0)
        padded = data.new_full((max(total, len(counts)), counts[0], *data.shape[1:]), padding)
        begin = offset = 0
        for place, count in enumerate(counts, 1):
            if place == len(counts) or counts[place] != count:
                part = data[offset : offset + (place - begin) * count]
                padded[begin:place, :count].copy_(part.view(place - begin, count, *data.shape[1:]))
                offset, begin = offset + len(part), place
        made = torch.empty(lengths.shape, dtype=torch.int64)
        values.keep(made, lengths)
        return padded.transpose(0, 1) if batch_first else padded, made

    return pad
