"""After an estimate the user's objects are as before: no fake tensor is left in one."""

from __future__ import annotations

import array
import collections.abc
import contextlib
import contextvars
import ctypes
import dataclasses
import functools
import gc
import importlib.util
import io
import logging
import multiprocessing
import sys
import threading
from collections import Counter, OrderedDict, defaultdict, deque
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

from labkit.memory.estimate.buffers import LOOKED_BYTES, MOST_BYTES
from labkit.memory.estimate.fake import LEFT
from labkit.memory.estimate.objects import WRITTEN
from labkit.memory.estimate.play import estimate_memory


class History:
    """What scripts keep of their steps, in a class."""

    losses = []  # noqa: RUF012
    best = None

    def __init__(self):
        self.steps, self.kept = 0, []

    def update(self, value):
        self.steps += 1
        self.kept.append(value)


class Slots:
    """An object without a dictionary."""

    __slots__ = ("sum", "unset")

    def __init__(self):
        self.sum = 0.0


@dataclasses.dataclass
class State:
    """A record with a list."""

    count: int = 0
    values: list = dataclasses.field(default_factory=list)


LOSSES, CACHE, RECENT, GROUPS = [], {}, deque(maxlen=2), defaultdict(list)
COUNTS, ORDER, SEEN, NAMES = Counter(), OrderedDict(a=1, b=2), set(), SimpleNamespace(last=None)
METRICS, BUFFER, NESTED = np.zeros(4), torch.zeros(3), {"a": [{"b": []}], "c": ([],)}
HISTORY, SLOTS, STATE = History(), Slots(), State()
NORM, GRADED = nn.BatchNorm1d(4, affine=False), torch.ones(2)
total = 0


def append_default(value, seen=[], *, more={}):  # noqa: B006
    seen.append(value)
    more[len(more)] = value


def count_calls(value):
    count_calls.calls = getattr(count_calls, "calls", 0) + 1
    count_calls.last = value


@functools.lru_cache
def make_table(size):
    return torch.ones(size)


def add_total(value):
    global total  # noqa: PLW0603
    total = total + value


def make_global(value):
    globals()["added"] = value


def replace_default(value):
    append_default.__defaults__ = ([value],)


def move_last(value):
    ORDER.move_to_end("a")
    ORDER["c"] = value


def add_group(value):
    GROUPS["a"].append(value)


def fill_slots(value):
    SLOTS.sum = SLOTS.sum + value
    SLOTS.unset = value


def replace_method(value):
    History.update = lambda self, other: None
    History.extra = value


def set_buffer(value):
    NORM.eval()
    NORM.note = value
    NORM.running_mean = value


# What steps do with the value of their loss outside of their arguments.
CHANGES = {
    "list": LOSSES.append,
    "dictionary": lambda value: CACHE.update({1: value}),
    "deque": RECENT.append,
    "defaultdict": add_group,
    "counter": lambda value: COUNTS.update(["a"]),
    "order": move_last,
    "set": SEEN.add,
    "namespace": lambda value: setattr(NAMES, "last", value),
    "nested list": NESTED["a"][0]["b"].append,
    "list in a tuple": NESTED["c"][0].append,
    "array": lambda value: METRICS.__setitem__(0, 5.0),
    "tensor": lambda value: BUFFER.add_(1),
    "class attribute": History.losses.append,
    "class attribute set": lambda value: setattr(History, "best", value),
    "class changed": replace_method,
    "object": HISTORY.update,
    "slots": fill_slots,
    "dataclass": lambda value: (STATE.values.append(value), setattr(STATE, "count", 9)),
    "default": append_default,
    "default replaced": replace_default,
    "function's attribute": count_calls,
    "cached function": lambda value: make_table(10) + value,
    "global": add_total,
    "new global": make_global,
    "module": set_buffer,
    "running mean": lambda value: NORM(value.expand(2, 4)),
    "gradient": lambda value: setattr(GRADED, "requires_grad", True),
}  # fmt: skip
DEFAULTS = append_default.__defaults__


def show():
    """The state of all objects above, in words."""
    lists = LOSSES, CACHE, RECENT, GROUPS, COUNTS, ORDER, SEEN, NESTED, NAMES, METRICS, BUFFER
    return repr((
        *lists, vars(HISTORY), SLOTS.sum, hasattr(SLOTS, "unset"), STATE, History.losses,
        History.best, sorted(vars(History)), append_default.__defaults__,
        append_default.__kwdefaults__, vars(count_calls), total, "added" in globals(),
        NORM.training, NORM.state_dict(), sorted(vars(NORM)), GRADED,
    ))  # fmt: skip


@pytest.mark.parametrize("name", CHANGES)
def test_what_a_step_changes_outside_of_its_arguments_is_put_back(name):
    change, counts, last = CHANGES[name], [], None

    def step(model, optimizer, inputs):
        nonlocal last
        optimizer.zero_grad()
        last = model(inputs).square().mean()
        last.backward()
        optimizer.step()
        counts.append(last)
        change(last.detach())

    model = nn.Linear(4, 4)
    optimizer = torch.optim.SGD(model.parameters())
    before, update = show(), History.update
    estimate = estimate_memory(step, model, optimizer, torch.ones(2, 4))
    assert show() == before
    assert (counts, last, History.update) == ([], None, update)
    assert append_default.__defaults__ is DEFAULTS
    assert type(make_table(10)) is torch.Tensor
    assert not [one for one in estimate.notes if "put back" in one or "fake" in one]


def test_a_method_keeps_its_object_as_it_was():
    class Trainer:
        def __init__(self):
            self.losses, self.count = [], 0

        def run(self, values):
            self.count += 1
            self.losses.append(values.sum())

    trainer = Trainer()
    estimate_memory(trainer.run, torch.ones(4))
    assert vars(trainer) == {"losses": [], "count": 0}


def test_objects_are_put_back_where_the_step_fails():
    def step(values):
        LOSSES.append(values)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        estimate_memory(step, torch.ones(4))
    assert LOSSES == []


def test_what_keeps_a_fake_tensor_is_named(monkeypatch):
    package = ModuleType("labkit_package")
    package.__file__ = "/usr/lib/python3/site-packages/labkit_package/__init__.py"
    package.CACHE = {"tables": []}
    monkeypatch.setitem(sys.modules, package.__name__, package)

    def step(values):
        package.CACHE["tables"] = [values * 2]

    (note,) = estimate_memory(step, torch.ones(4)).notes
    assert note == LEFT.format("labkit_package.CACHE")


def test_a_cycle_is_not_taken_for_something_that_stays():
    def step(values):
        cycle = [values * 2]
        cycle.append(cycle)

    gc.collect()
    gc.disable()
    try:
        assert estimate_memory(step, torch.ones(4)).notes == ()
    finally:
        gc.enable()


@pytest.mark.parametrize("mode", ["a", "ab", "r+b"])
def test_what_a_step_writes_into_a_file_that_was_open_before_is_dropped(tmp_path, mode):
    path = tmp_path / "log.csv"
    path.write_text("mine\n")
    line = "row\n" if mode == "a" else b"row\n"
    with path.open(mode) as file:
        holder = SimpleNamespace(file=file)

        def step(weight):
            weight.sum().backward()
            holder.file.write(line)
            holder.file.flush()

        estimate = estimate_memory(step, torch.ones(4, requires_grad=True))
        assert any("log.csv, which was open before" in note for note in estimate.notes)
        assert path.read_text() == "mine\n"
        holder.file.seek(0, 2)
        holder.file.write(line)  # the real one again
    assert path.read_text() == "mine\nrow\n"


def test_what_another_thread_writes_meanwhile_stays(tmp_path):
    with (tmp_path / "log.txt").open("w") as file:
        holder = SimpleNamespace(file=file)

        begun, written = threading.Event(), threading.Event()
        # By way of their class: the step's own calls do not reach another thread.
        begin = functools.partial(threading.Event.set, begun)
        wait = functools.partial(threading.Event.wait, written, 60)

        def write():
            begun.wait(60)
            print("theirs", file=file)
            written.set()

        other = threading.Thread(target=write)
        other.start()

        def step(weight):
            print(weight.sum().item(), file=holder.file)
            begin()
            assert wait()

        estimate_memory(step, torch.ones(4))
        other.join()
    assert (tmp_path / "log.txt").read_text() == "theirs\n"


SCALE = torch.full((64,), 3.0)


@functools.lru_cache(None)
def find_scale(power):
    return float((SCALE**power).mean())


@functools.lru_cache(None)
def count_letters(word):
    return len(word)


def test_what_a_simulated_step_has_cached_is_not_used_by_the_real_one():
    find_scale.cache_clear()
    count_letters("kept")
    notes = estimate_memory(lambda one: one.sum() * find_scale(2), torch.ones(4)).notes
    assert any("the cache of find_scale is emptied" in note for note in notes)
    assert not any("count_letters" in note for note in notes)
    assert find_scale(2) == 9.0
    assert count_letters.cache_info().currsize


def test_a_mapped_file_is_as_before(tmp_path):
    rows = np.memmap(tmp_path / "rows.bin", "float32", "w+", shape=(4, 8))
    rows[:] = 7
    held = SimpleNamespace(rows=rows)

    def step(weight):
        held.rows[0] = weight.sum().item()

    assert estimate_memory(step, torch.ones(8)).obstacle is None
    assert (np.fromfile(tmp_path / "rows.bin", "float32") == 7).all()


class RecentLosses(deque):
    """A deque of a program's own."""


class Tally(Counter):
    """A counter of a program's own."""


class Epochs(OrderedDict):
    """A dictionary of a program's own."""


class Record(ctypes.Structure):
    _fields_ = (("count", ctypes.c_int), ("sums", ctypes.c_double * 3))


class PerThread(threading.local):
    """What each thread counts for itself."""

    def __init__(self):
        self.count, self.losses = 0, []


RECENT_LOSSES, TALLY, EPOCHS, LOCAL = RecentLosses([1]), Tally(a=1), Epochs(a=1), PerThread()
DOUBLES, TEXT, BYTES = array.array("d", [1, 2]), io.StringIO("ab"), io.BytesIO(b"ab")
VALUE, SHARED, RAW = multiprocessing.Value("d", 1), multiprocessing.Array("i", 3), Record(1)
STRUCTURE = multiprocessing.Value(Record, 1)
LARGE, VIEWED = np.zeros(2**20), bytearray(8)
VIEW = memoryview(VIEWED)
TEXT.seek(1)

# What steps do with memory outside of their arguments.
BUFFERS = {
    "deque's subclass": (RECENT_LOSSES.append, lambda: list(RECENT_LOSSES)),
    "counter's subclass": (lambda value: TALLY.update("ab"), TALLY.copy),
    "dictionary's subclass": (lambda value: EPOCHS.update(b=value), EPOCHS.copy),
    "thread's attribute": (lambda value: setattr(LOCAL, "count", 3), lambda: LOCAL.count),
    "thread's list": (LOCAL.losses.append, lambda: LOCAL.losses[:]),
    "array.array": (lambda value: DOUBLES.append(3), DOUBLES.tolist),
    "array.array's item": (lambda value: DOUBLES.__setitem__(0, 9), DOUBLES.tolist),
    "StringIO": (lambda value: TEXT.write("xxx"), lambda: (TEXT.getvalue(), TEXT.tell())),
    "BytesIO": (lambda value: BYTES.write(b"xxx"), lambda: (BYTES.getvalue(), BYTES.tell())),
    "BytesIO's place": (lambda value: BYTES.read(), BYTES.tell),
    "Value": (lambda value: setattr(VALUE, "value", 7), lambda: VALUE.value),
    "Array": (lambda value: SHARED.__setitem__(1, 7), lambda: SHARED[:]),
    "Value of a structure": (lambda value: setattr(STRUCTURE, "count", 7), lambda: STRUCTURE.count),
    "structure": (lambda value: RAW.sums.__setitem__(1, 7), lambda: RAW.sums[:]),
    "array above 64 KiB": (lambda value: LARGE.__setitem__(5, 7), LARGE.sum),
    "array's shape": (lambda value: setattr(LARGE, "shape", (2, -1)), lambda: LARGE.shape),
    "memoryview": (lambda value: VIEW.__setitem__(0, 7), lambda: bytes(VIEWED)),
}  # fmt: skip


@pytest.mark.parametrize("name", BUFFERS)
def test_what_a_step_writes_into_memory_is_put_back(name):
    change, read = BUFFERS[name]
    before = read()

    def step(weight):
        weight.sum().backward()
        change(weight.sum().item())

    notes = estimate_memory(step, torch.ones(4, requires_grad=True)).notes
    assert read() == before
    assert not [one for one in notes if "put back" in one or "copied" in one]


@pytest.mark.parametrize("count", [MOST_BYTES * 2, LOOKED_BYTES * 2], ids=["whole", "in parts"])
def test_an_array_that_is_too_large_to_be_copied_is_named_where_it_changes(count):
    held = SimpleNamespace(values=np.zeros(count, "uint8"), others=np.zeros(count, "uint8"))

    def step(weight):
        weight.sum().backward()
        held.values[-1] = 1

    notes = estimate_memory(step, torch.ones(4, requires_grad=True)).notes
    assert notes == (WRITTEN[0].format(f"an array of {count} bytes"),)


COUNTING = """
LOSSES, COUNT = [], 0

class Meter:
    seen = []

def add(value):
    global COUNT
    COUNT += 1
    LOSSES.append(value)
    Meter.seen.append(value)
    Meter.last = value

def show():
    return COUNT, LOSSES[:], Meter.seen[:], hasattr(Meter, "last")
"""
IN_ITS_PLACE = """
import sys

class Meters:
    def __init__(self):
        self.count, self.losses = 0, []

    def add(self, value):
        self.count += 1
        self.losses.append(value)

    def show(self):
        return self.count, self.losses[:]

sys.modules[__name__] = Meters()
"""


class CountingLoader:
    """Finds and loads one module, which has no file."""

    def find_spec(self, name, path=None, target=None):
        return importlib.util.spec_from_loader(name, self) if name == "labkit_counting" else None

    def create_module(self, spec):
        return None

    def exec_module(self, module):
        exec(COUNTING, vars(module))


def load_counting(folder, monkeypatch):
    monkeypatch.setattr(sys, "meta_path", [*sys.meta_path, CountingLoader()])
    return importlib.import_module("labkit_counting")


def make_counting(folder, monkeypatch, kind=ModuleType):
    module = kind("labkit_counting")
    monkeypatch.setitem(sys.modules, "labkit_counting", module)
    exec(COUNTING, vars(module))
    return module


def make_part(folder, monkeypatch):
    part = ModuleType("labkit_whole.counting")
    monkeypatch.setitem(sys.modules, "labkit_whole", ModuleType("labkit_whole"))
    monkeypatch.setitem(sys.modules, part.__name__, part)
    exec(COUNTING, vars(part))
    return part


def make_unlisted(folder, monkeypatch):
    module = ModuleType("labkit_counting")
    exec(COUNTING, vars(module))
    return module


def replace_itself(folder, monkeypatch):
    (folder / "labkit_counting.py").write_text(IN_ITS_PLACE)
    monkeypatch.syspath_prepend(folder)
    return importlib.import_module("labkit_counting")


def be_a_namespace(folder, monkeypatch):
    module = SimpleNamespace(losses=[], count=0)
    module.add = lambda value: (module.losses.append(value), setattr(module, "count", 1))
    module.show = lambda: (module.losses[:], module.count)
    monkeypatch.setitem(sys.modules, "labkit_counting", module)
    return module


class OwnModule(ModuleType):
    """A module's class of a program's own."""


@pytest.mark.parametrize("is_looked_up", [False, True])
@pytest.mark.parametrize(
    "make",
    [load_counting, make_counting, make_part, make_unlisted, replace_itself, be_a_namespace,
     functools.partial(make_counting, kind=OwnModule)],
    ids=["loader", "by hand", "part", "not importable", "object", "namespace", "subclass"],
)  # fmt: skip
def test_a_module_without_a_file_is_as_before(make, is_looked_up, tmp_path, monkeypatch):
    module = make(tmp_path, monkeypatch)
    looked_up = is_looked_up and make is not make_unlisted
    name = getattr(module, "__name__", "labkit_counting")
    before = module.show()

    def step(values):
        (sys.modules[name] if looked_up else module).add(values * 2)

    try:
        assert estimate_memory(step, torch.ones(4)).notes == ()
        assert module.show() == before
    finally:
        sys.modules.pop("labkit_counting", None)


def patch_by_name(name, value):
    owner, _, attribute = name.rpartition(".")
    setattr(functools.reduce(getattr, owner.split(".")[1:], sys.modules[owner.split(".")[0]]),
            attribute, value)  # fmt: skip


# What steps, and the libraries that they call, replace in the classes and modules of packages.
PATCHES = {
    "method": (
        lambda: nn.Conv2d.forward, lambda: setattr(nn.Conv2d, "forward", lambda one, given: given)),
    "method by name": (
        lambda: nn.modules.conv.Conv1d.forward,
        lambda: patch_by_name("torch.nn.modules.conv.Conv1d.forward", lambda one, given: given)),
    "inherited method": (
        lambda: "state_dict" in vars(nn.Bilinear),
        lambda: setattr(nn.Bilinear, "state_dict", lambda one: {})),
    "property": (
        lambda: vars(torch.distributions.Normal)["mean"],
        lambda: setattr(torch.distributions.Normal, "mean", property(lambda one: 0))),
    "class method": (
        lambda: vars(nn.Embedding)["from_pretrained"],
        lambda: setattr(nn.Embedding, "from_pretrained", classmethod(lambda kind: None))),
    "setting of a class": (
        lambda: nn.Softmax.__constants__,
        lambda: setattr(nn.Softmax, "added", 3)),
    "function of a module in a module": (
        lambda: torch.utils.checkpoint.checkpoint,
        lambda: setattr(torch.utils.checkpoint, "checkpoint", lambda run, *given: run(*given))),
    "class of a module in a module": (
        lambda: torch.utils.data.DataLoader, lambda: setattr(torch.utils.data, "DataLoader", list)),
    "name for another": (
        lambda: hasattr(collections, "Mapping"),
        lambda: setattr(collections, "Mapping", collections.abc.Mapping)),
    "NumPy's old name": (
        lambda: hasattr(np, "labkit_float"), lambda: setattr(np, "labkit_float", np.float64)),
}  # fmt: skip


@pytest.mark.parametrize("name", PATCHES)
def test_what_a_step_replaces_in_packages_is_put_back(name):
    read, change = PATCHES[name]
    before = read()

    def step(values):
        change()
        assert name == "setting of a class" or read() != before
        return values * 2

    estimate_memory(step, torch.ones(4))
    assert read() == before
    assert not hasattr(nn.Softmax, "added")


class Kind:
    """A class whose objects a step gives another one."""

    @functools.singledispatchmethod
    def show(self, one):
        return ""


class OtherKind(Kind):
    """The other one."""


def give_code():
    return 1


def give_other_code():
    return 2


DEFAULT = contextvars.ContextVar("DEFAULT", default=[])  # noqa: B039
OBJECT, LAYER, TABLE, FIXED = Kind(), nn.Linear(2, 2), defaultdict(list), np.arange(4)
OPTIMIZER, STACK = torch.optim.SGD(LAYER.parameters()), contextlib.ExitStack()
LOGGER = logging.getLogger("tests.estimate_objects")

# How each is read, and how a step changes it.
LEFT_BEHIND = {
    "default of a context variable": (
        lambda: DEFAULT.get()[:], lambda value: DEFAULT.get().append(value)),
    "class of an object": (
        lambda: type(OBJECT), lambda value: setattr(OBJECT, "__class__", OtherKind)),
    "class of a layer": (
        lambda: type(LAYER), lambda value: setattr(LAYER, "__class__", OwnLinear)),
    "base of a class": (
        lambda: OtherKind.__bases__, lambda value: setattr(OtherKind, "__bases__", (OtherBase,))),
    "name of a class": (
        lambda: Kind.__name__, lambda value: setattr(Kind, "__name__", "Renamed")),
    "method for a type": (
        lambda: OBJECT.show(1), lambda value: Kind.show.register(int, lambda one, given: "int")),
    "code of a function": (
        give_code, lambda value: setattr(give_code, "__code__", give_other_code.__code__)),
    "name of a function": (
        lambda: give_code.__name__, lambda value: setattr(give_code, "__name__", "renamed")),
    "factory of a dictionary": (
        lambda: TABLE.default_factory, lambda value: setattr(TABLE, "default_factory", int)),
    "array that is fixed": (
        lambda: (FIXED.flags.writeable, FIXED.tolist()),
        lambda value: (FIXED.fill(3), FIXED.setflags(write=False))),
    "hook of a gradient": (
        lambda: len(LAYER.weight._post_accumulate_grad_hooks or ()),
        lambda value: LAYER.weight.register_post_accumulate_grad_hook(print)),
    "hook of an optimizer": (
        lambda: len(OPTIMIZER._optimizer_step_post_hooks),
        lambda value: OPTIMIZER.register_step_post_hook(print)),
    "attribute of a logger": (
        lambda: hasattr(LOGGER, "seen"), lambda value: setattr(LOGGER, "seen", value)),
    "call at an exit": (
        lambda: len(STACK._exit_callbacks), lambda value: STACK.callback(give_code)),
}  # fmt: skip


class OtherBase(Kind):
    """Another base."""


class OwnLinear(nn.Linear):
    """A layer of a program's own."""


@pytest.mark.parametrize("name", LEFT_BEHIND)
def test_what_a_step_leaves_behind_is_put_back(name):
    read, change = LEFT_BEHIND[name]
    before = read()

    def step(values):
        if read() == before:
            change(values)
        return values * 2

    assert estimate_memory(step, torch.ones(4)).notes == ()
    assert read() == before
