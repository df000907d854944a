"""Remembers what operators make of fake tensors, so that the same call needs no second computation.

The shapes and storages of an operator's results follow from its arguments' shapes and numbers. A
model's layers and an optimizer's parameters repeat the same calls, and torch needs about ten times
as long to compute a fake result, or to find it in its own cache, as ``Recipe.make`` to repeat it.
"""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
from torch._subclasses import fake_tensor
from torch._subclasses.fake_tensor import FakeTensor

from labkit.memory.estimate.cuda import find_number, replace_attributes
from labkit.memory.estimate.limits import CARRYING, PLACES, SUBSETS
from labkit.memory.estimate.operators import CONVERTING, spreads_gradient
from labkit.memory.estimate.selecting import SCATTERED
from labkit.memory.estimate.strides import find_name
from labkit.memory.estimate.values import LIKE
from labkit.memory.track.storages import LIFT, list_tensors

# The most recipes, in all estimates of a process.
MOST_RECIPES = 50_000
# Types of arguments that are compared by value; the type counts too, as True equals 1.
NUMBERS = (int, bool, float, complex, type(None))
PLAIN = frozenset((*NUMBERS, str, torch.dtype, torch.device, torch.layout, torch.memory_format))
META, CPU = torch.device("meta"), torch.device("cpu")
ATEN = torch.ops.aten
# Operators beside those of single elements that do the same wherever in its storage a tensor is:
# a loop over the steps of a sequence calls them with one step after the other.
ANYWHERE = frozenset(
    (
        *(ATEN.select.int, ATEN.slice.Tensor, ATEN.t.default, ATEN.transpose.int),
        *(ATEN.unsafe_split.Tensor, ATEN.split.Tensor, ATEN.unbind.int, ATEN.expand.default),
        *(ATEN.view.default, ATEN._unsafe_view.default, ATEN.unsqueeze.default),
        *(ATEN.squeeze.dim, ATEN.detach.default, ATEN.alias.default, ATEN.clone.default),
        *(ATEN.mm.default, ATEN.addmm.default, ATEN.bmm.default, ATEN.cat.default),
        *(ATEN.stack.default, ATEN.sum.dim_IntList),
    )
)
# What a fake tensor keeps: how it is laid out, and the record of its storage. An operator that
# changes its shape or storage in place removes them, as ``tensor.data = other`` does.
LAYOUT, HELD = "labkit_layout", "labkit_storage"
# What an operator keeps while a step is simulated: its facts. Python's ``id()``, which a table
# would need, tells each audit hook that it is called, and an estimate's hook stays.
FACTS = "labkit_facts"
_recipes: dict[Any, Recipe] = {}
_layouts: dict[Any, int] = {}
_numbers = itertools.count(1)
# A name of this module is found faster than torch's.
_make_strided, _make_empty = torch.empty_strided, torch.empty
_make_subclass, _guard_dispatch = torch.Tensor._make_subclass, torch._C._DisableTorchDispatch
_is_grad_enabled, _is_inference = torch.is_grad_enabled, torch.is_inference_mode_enabled
_count_threads, _find_dtype = torch.get_num_threads, torch.get_default_dtype
_has_mkldnn, _find_keys = torch._C._get_mkldnn_enabled, torch._C._dispatch_keys  # type: ignore[attr-defined]


def _list_unset() -> frozenset[str]:
    """The attributes that each fake tensor has as None."""
    memos = (name for name, one in vars(FakeTensor).items() if isinstance(one, MEMO))
    names = [f"_{name}{part}" for name in memos for part in ("", "_vc", "_epoch")]
    return frozenset((*names, "constant", "real_tensor", "pytype", "dispatch_keys"))


MEMO = getattr(fake_tensor, "SymNumberMemoDescriptor", ())
_UNSET = _list_unset()


@contextlib.contextmanager
def borrow_attributes() -> Iterator[None]:
    """Gives torch's class of fake tensors, and operators, what makes an estimate fast, until exit.

    The class gets what each fake tensor has as None: a tensor with three attributes of its own
    instead of some twenty is made, freed and looked through by the garbage collector faster.
    """
    missing = {name: None for name in _UNSET if name not in vars(FakeTensor)}
    for operator, facts in _known:
        operator.__dict__[FACTS] = facts
    try:
        with replace_attributes(FakeTensor, **missing):
            yield
    finally:
        for operator, _ in _known:
            operator.__dict__.pop(FACTS, None)


def find_attributes(state: dict[str, Any]) -> dict[str, Any]:
    """What a fake tensor needs of its own beside its mode, from the attributes of one like it."""
    return {
        name: one
        for name, one in state.items()
        if name != "fake_mode" and not (one is None and name in _UNSET)
    }


class Made(NamedTuple):
    """A new tensor among an operator's results.

    ``source`` is the place of the argument whose storage it shares, at ``offset`` elements after
    the argument's first one; None for a new storage of ``storage_bytes``, which is ``resized`` if
    the shape needs another size. ``attributes`` are those of Python's object, ``place`` is the
    device's name.
    """

    shape: torch.Size
    strides: tuple[int, ...]
    offset: int
    dtype: torch.dtype
    device: torch.device
    source: int | None
    storage_bytes: int
    resized: bool
    attributes: dict[str, Any]
    place: str
    on_cuda: bool


class Same(NamedTuple):
    """A result that is the argument at this place."""

    place: int


class Constant(NamedTuple):
    """A result that is a number or None."""

    value: Any


Part = Made | Same | Constant


class Recipe(NamedTuple):
    """An operator's results, and the bytes that it takes for itself and frees before it returns.

    ``kind`` is tuple or list, None for a single result. ``allocates``: it makes a storage, if only
    for itself.
    """

    parts: tuple[Part, ...]
    kind: type | None
    freed_bytes: int
    allocates: bool

    def make(self, call: Call, mode: Any, add: Callable[..., object], found: Any) -> Any:
        """The results for this call; ``add`` is called with each new storage, and ``found``."""
        if self.kind is None:
            return _make_part(self.parts[0], call, mode, add, found)
        return self.kind([_make_part(one, call, mode, add, found) for one in self.parts])


def _make_part(part: Part, call: Call, mode: Any, add: Callable[..., object], found: Any) -> Any:
    if type(part) is not Made:
        return call.tensors[part.place] if type(part) is Same else part.value  # type: ignore[union-attr]
    one = make_tensor(part, call, mode)
    if LAYOUT not in part.attributes:
        # The same for each call that has the recipe's key.
        part.attributes[LAYOUT] = number_layout(one)
    if part.source is None:
        add(one, part, found)
    else:
        one.__dict__[HELD] = call.tensors[part.source].__dict__.get(HELD)
    return one


def number_layout(tensor: Any) -> int | None:
    """A number for all that a key has of a tensor, the same for tensors that are alike.

    Not among it are its place in its storage and whether it takes a gradient. The tensor keeps it.
    None for a sparse tensor, which has no strides and no storage.
    """
    if tensor.layout is not torch.strided:
        return None
    state = tensor.__dict__
    device = state.get("_fake_device") or tensor.fake_device
    key = tensor.shape, tensor.stride(), tensor.dtype, device, _find_keys(tensor).raw_repr()
    number = _layouts.get(key)
    if number is None:
        if len(_layouts) >= MOST_RECIPES:
            _layouts.clear()
        number = _layouts[key] = next(_numbers)
    state[LAYOUT] = number
    return number


def forget_layout(tensors: list[Any]) -> None:
    """Removes what the tensors keep of their layouts and storages, which have changed."""
    for one in tensors:
        kept = getattr(one, "__dict__", {})
        kept.pop(LAYOUT, None)
        kept.pop(HELD, None)


def make_tensor(part: Made, call: Call | None, mode: Any) -> Any:
    """The fake tensor; twelve times as fast as FakeTensor's own constructor.

    A new storage needs no call.
    """
    if (
        _is_inference()
        and call is not None
        and part.source is not None
        and not call.tensors[part.source].is_inference()
    ):
        # A view of a tensor that gradients may still be taken of is one too.
        with torch.inference_mode(mode=False):
            return make_tensor(part, call, mode)
    # In force until it is deleted; a with block would take twice as long.
    shape, strides, offset, dtype, device, place, storage_bytes, resized, attributes, _, _ = part
    guard = _guard_dispatch()
    try:
        if place is None or call is None:
            elem = _make_strided(shape, strides, dtype=dtype, device=META)
            if resized:
                elem.untyped_storage().resize_(storage_bytes)
        else:
            source = call.tensors[place]
            elem = _make_empty(0, dtype=dtype, device=META)
            offset += source.storage_offset() + call.selected
            elem.set_(source.untyped_storage(), offset, shape, strides)
        fake = _make_subclass(
            FakeTensor, elem, False, dispatch_device=True, device_for_backend_keys=device
        )
    finally:
        del guard
    kept = fake.__dict__
    kept.update(attributes)
    kept["fake_mode"] = mode
    return fake


class Call:
    """A call of an operator: its tensor arguments, in order, and a key for calls that are alike.

    ``key`` is None where the results may differ from call to call. In a simulation that puts
    everything on the GPU, tensors of the CPU are an optimizer's: where their results are depends on
    the caller. So does a result that is to be on the CPU. ``selected`` is the number of elements
    before the one that an index selects, which is not in the key. ``collects`` is False where no
    tensor can be a leaf that gets a gradient.
    """

    __slots__ = (
        "_anywhere",
        "_lifts",
        "_loose",
        "collects",
        "in_place",
        "key",
        "known",
        "selected",
        "tensors",
        "valued",
    )

    def __init__(self, facts: Facts, arguments: Any, named: Any, placement: str) -> None:
        tensors: list[Any] = []
        self.tensors = tensors
        # Whether anything is known of one of the tensors, and whether its values are.
        self.known = self.valued = self.collects = False
        self._loose, self.in_place, self._anywhere = facts.loose, facts.in_place, facts.anywhere
        # Where everything is on the GPU, where the fake tensor is depends on the caller.
        self._lifts = facts.lifts and placement != "gpu"
        self.selected = 0
        if facts.selects:
            arguments, self.selected = _take_index(arguments)
        # What decides about results beside the arguments, and can change from call to call.
        found = [
            facts.number,
            placement,
            _is_grad_enabled(),
            _is_inference(),
            _count_threads(),
            _find_dtype(),
            _has_mkldnn(),
        ]
        if facts.converts:
            found.append(spreads_gradient())
        whole = facts.number > 0
        for value in arguments:
            # What _describe does, without a call for most arguments.
            kind = type(value)
            if kind is FakeTensor:
                state = value.__dict__
                if LAYOUT not in state or "labkit_value" in state:
                    whole = self._describe((value,), found) and whole
                    continue
                tensors.append(value)
                collects = value.requires_grad
                if collects or "_is_param" in state:
                    self.collects = True
                found += (state[LAYOUT], collects)
                if not facts.anywhere:
                    found.append(value.storage_offset())
            elif kind in PLAIN:
                found.append(kind)
                if kind is not float or not facts.loose:
                    found.append(value)
            else:
                whole = self._describe((value,), found) and whole
        if named:
            whole = self._describe(tuple(named.items()), found) and whole
        if whole and placement == "gpu":
            whole = any(one.fake_device.type == "cuda" for one in self.tensors)
            whole = whole and named.get("device") != CPU
        self.key = tuple(found) if whole else None

    def _describe(self, values: Any, found: list[Any]) -> bool:
        whole, loose = True, self._loose
        for value in values:
            kind = type(value)
            if kind is FakeTensor:
                self.tensors.append(value)
                self.collects = True
                state = value.__dict__
                number = state.get(LAYOUT) or number_layout(value)
                if number is None:
                    whole = False
                label = state.get("labkit_value")
                if label is not None:
                    self.known = True
                    self.valued = self.valued or label[0] is not None
                found += (number, value.requires_grad)
                if not self._anywhere:
                    found.append(value.storage_offset() if number else 0)
            elif kind in PLAIN:
                found.append(kind)
                if not (loose and kind is float):
                    found.append(value)
            elif kind in SEQUENCES:
                found += (kind, len(value))
                whole = self._describe(value, found) and whole
            else:
                whole = False
                self.tensors += list_tensors(value)
                self.collects = True
                if self._lifts and _is_new(value):
                    whole = True
                    found += (kind, value.shape, value.stride(), value.dtype)
        return whole


SEQUENCES = (list, tuple, torch.Size)


def _is_new(value: Any) -> bool:
    """True for a real tensor as ``torch.tensor`` makes it, with memory of its own."""
    if type(value) is not torch.Tensor or value.layout is not torch.strided:
        return False
    if value.device.type != "cpu" or value.requires_grad:
        return False
    storage = value.untyped_storage()
    whole = storage.nbytes() == value.numel() * value.element_size()
    return whole and bool(storage.resizable())


def _take_index(arguments: Any) -> tuple[Any, int]:
    """The arguments of ``select`` without an index, and the elements before what it selects."""
    tensor, dim, index = arguments
    if type(tensor) is FakeTensor and tensor.layout is torch.strided and type(index) is int:
        size = tensor.size(dim)
        if -size <= index < size:
            return (tensor, dim), index % size * tensor.stride(dim)
    return arguments, 0


class Facts(NamedTuple):
    """What calls of an operator have in common.

    ``number`` is its own, 0 if its results are not repeated. ``loose``: only the types of its
    numbers matter, not their values. ``like``: it takes a tensor for its shape alone. ``in_place``:
    it computes each element, writes it into its first argument and returns this. ``converts``: what
    it takes for itself depends on what backward runs. ``anywhere``: the offsets of its arguments in
    their storages do not matter. ``selects``: it selects by an index. ``lifts``: it
    makes a real tensor a fake one. ``carries``: its results may have limits that its arguments
    have, or it writes into these. ``mutates``: it writes into its first argument.
    ``subset``: its results have no other numbers than its first one.
    The tracer marks others: ``parts`` may run by its parts, another
    function may run instead of ``changed``, and what ``followed`` draws or limits is kept.
    """

    number: int
    name: str
    loose: bool
    like: bool
    in_place: bool
    converts: bool
    anywhere: bool
    selects: bool
    lifts: bool
    carries: bool
    mutates: bool = False
    subset: bool = False
    parts: bool = False
    changed: bool = False
    followed: bool = False


# By the operator's number, as torch computes its hash in Python; the operator is kept beside.
_facts: dict[int, Facts] = {}
_known: list[tuple[Any, Facts]] = []


def find_facts(operator: Any) -> Facts:
    """The operator's facts, found once."""
    facts: Facts | None = operator.__dict__.get(FACTS)
    if facts is None:
        # The operator may have lost them: what a step sets on the objects of its code is undone.
        facts = _facts.get(find_number(operator))
        if facts is None:
            facts = _facts[find_number(operator)] = _collect_facts(operator)
            _known.append((operator, facts))
        operator.__dict__[FACTS] = facts
    return facts


def _collect_facts(operator: Any) -> Facts:
    number, name, loose, in_place, carries, mutates = 0, "", False, False, True, False
    if getattr(operator, "namespace", "") == "aten":
        name = find_name(operator)
        number = 0 if name == SCATTERED else len(_facts) + 1
        loose = torch.Tag.pointwise in operator.tags or name.startswith("_foreach_")
        in_place = loose and _is_in_place(operator._schema)
        mutates = _writes_first(operator._schema)
        carries = name in CARRYING or operator._schema.is_mutable
    facts = Facts(
        number=number,
        name=name,
        loose=loose,
        like=name in LIKE,
        in_place=in_place,
        converts=name in CONVERTING or name == "mul",
        anywhere=loose or operator in ANYWHERE,
        selects=operator is ATEN.select.int,
        lifts=operator is LIFT,
        carries=carries,
        mutates=mutates,
        subset=number > 0 and name in SUBSETS and name not in PLACES and operator is not LIFT,
        **{name: find_number(operator) in ids for name, ids in _marked.items()},
    )
    whole = isinstance(operator, torch._ops.HigherOrderOperator)
    return facts._replace(parts=True) if whole else facts


# The numbers of the operators whose facts have a mark of the tracer's, by the mark's name.
_marked: dict[str, frozenset[int]] = {}


def mark_operators(**marks: frozenset[int]) -> None:
    """Has the facts of operators, by their numbers, say ``parts``, ``changed`` or ``followed``."""
    _marked.update(marks)


def _writes_first(schema: Any) -> bool:
    given = schema.arguments
    written = given[0].alias_info if given and str(given[0].type) == "Tensor" else None
    return written is not None and bool(written.is_write)


def _is_in_place(schema: Any) -> bool:
    given, made = schema.arguments, schema.returns
    if not given or len(made) != 1 or str(given[0].type) != "Tensor":
        return False
    written, returned = given[0].alias_info, made[0].alias_info
    if written is None or returned is None or not (written.is_write and returned.is_write):
        return False
    return bool(written.before_set == returned.before_set)


def find_recipe(key: Any) -> Recipe | None:
    """The recipe for a call; None if it is unknown."""
    return _recipes.get(key)


def keep_recipe(call: Call, result: Any, before: list[Any], freed: int, out: object = None) -> None:
    """Keeps how the result of a call looks, if it can be repeated.

    ``before`` are the sizes of the arguments and of their storages before the call, and ``out`` is
    the argument of this name, which is the last one.
    """
    key, taken = call.key, call.tensors
    if before != measure(taken):
        return
    if call.in_place and result is taken[0]:  # whatever else shares its storage
        _keep(key, Recipe((Same(0),), None, freed, freed > 0))
        return
    kind = type(result) if type(result) in (list, tuple) else None
    parts: list[Part] = []
    sources = {one.untyped_storage()._cdata: place for place, one in reversed([*enumerate(taken)])}
    aliased = len(sources) < len(taken)
    places = {find_number(one): place for place, one in enumerate(taken)}
    for one in [result] if kind is None else result:
        part = _take_apart(one, places, sources, call)
        if part is None or (aliased and one is not out and _is_open(part, taken)):
            return
        parts.append(part)
    allocates = freed > 0 or any(isinstance(one, Made) and one.source is None for one in parts)
    _keep(key, Recipe(tuple(parts), kind, freed, allocates))


def _keep(key: Any, recipe: Recipe) -> None:
    if len(_recipes) >= MOST_RECIPES:
        _recipes.clear()
    _recipes[key] = recipe


def _is_open(part: Part, taken: list[Any]) -> bool:
    """Whether a result comes from one of two arguments with one storage, and which one is open.

    Of an argument that is given once it is known.
    """
    if isinstance(part, Same):
        return sum(one is taken[part.place] for one in taken) > 1
    return isinstance(part, Made) and part.source is not None


def measure(tensors: list[Any]) -> list[Any]:
    """What an operator can change of its arguments in place, beside values."""
    return [
        (one.shape, one.stride(), one.untyped_storage()._cdata, one.untyped_storage().nbytes())
        for one in tensors
    ]


def _take_apart(
    value: Any, places: dict[int, int], sources: dict[int, int], call: Call
) -> Part | None:
    if find_number(value) in places:
        return Same(places[find_number(value)])
    if type(value) in NUMBERS:
        return Constant(value)
    if type(value) is not FakeTensor or value.requires_grad or value.layout is not torch.strided:
        return None
    return _take_tensor_apart(value, sources, call)


def _take_tensor_apart(value: Any, sources: dict[int, int], call: Call) -> Made | None:
    attributes = find_attributes(value.__dict__)
    for name in ("labkit_value", LAYOUT, HELD):
        attributes.pop(name, None)
    plain = all(type(one) in PLAIN for one in attributes.values())
    if not plain or value.is_conj() or value.is_neg() or value._is_zerotensor():
        return None
    storage = value.untyped_storage()
    source = sources.get(storage._cdata)
    if source is None:
        # Another result with the same storage could not be repeated.
        sources[storage._cdata] = -1
    elif source < 0:
        return None
    offset, count = value.storage_offset(), storage.nbytes()
    if source is not None:
        offset -= call.tensors[source].storage_offset() + call.selected
    elif offset:
        return None
    expected = _count_bytes(value)
    return Made(
        value.shape,
        value.stride(),
        offset,
        value.dtype,
        value.fake_device,
        source,
        count,
        count != expected,
        attributes,
        str(value.fake_device),
        value.fake_device.type == "cuda",
    )


def _count_bytes(tensor: Any) -> int:
    """The bytes of a new storage for the tensor."""
    if not tensor.numel():
        return 0
    last = sum((size - 1) * step for size, step in zip(tensor.shape, tensor.stride(), strict=True))
    return int((last + 1) * tensor.element_size())
