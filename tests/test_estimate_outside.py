"""A step that reads what was made outside of it: teachers, schedulers, tables, torch's switches."""

from __future__ import annotations

import copy
import functools
import gc
import io
import itertools
import multiprocessing
import pickle
import queue
import random
import weakref
from collections import Counter, OrderedDict, defaultdict
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from labkit.errors import UsageError
from labkit.memory.estimate.play import estimate_memory
from tests.fakes.steps import measure_twice

INPUTS = torch.ones(8, 64)


@torch.no_grad()
def average(teacher, model):
    for mean, one in zip(teacher.parameters(), model.parameters(), strict=True):
        mean.mul_(0.9).add_(one, alpha=0.1)


def average_data(teacher, model):
    for mean, one in zip(teacher.parameters(), model.parameters(), strict=True):
        mean.data = mean.data * 0.9 + one.data * 0.1


@torch.no_grad()
def average_at_once(teacher, model):
    torch._foreach_lerp_(list(teacher.parameters()), list(model.parameters()), 0.1)


def load(teacher, model):
    teacher.load_state_dict(model.state_dict())


def load_and_assign(teacher, model):
    teacher.load_state_dict(model.state_dict(), assign=True)


def replace_weight(teacher, model):
    teacher.weight = nn.Parameter(model.weight.detach().clone())
    teacher.bias.requires_grad_(False)
    teacher.bias.kept = model.bias


def write_array(teacher, model):
    teacher.weight.detach().numpy()[:] = 0
    teacher.bias.data = torch.zeros(64)


def convert(teacher, model):
    teacher.double().float()


def add_parts(teacher, model):
    teacher.register_buffer("seen", model.bias.detach().clone())
    teacher.add_module("part", nn.Identity())
    teacher.register_forward_hook(lambda *_: None)
    teacher.weight.register_hook(lambda gradient: gradient)


UPDATES = (
    average, average_data, average_at_once, load, load_and_assign, replace_weight, write_array,
    convert, add_parts,
)  # fmt: skip


def show(module):
    hooks = [value for value in vars(module).values() if isinstance(value, dict)]
    hooks += [one._backward_hooks for one in module.parameters()]
    named = dict(module.named_parameters())
    return repr(
        [(name, one, vars(one), one.requires_grad, one.grad) for name, one in named.items()]
    )


@pytest.mark.parametrize("update", UPDATES)
def test_a_teacher_from_a_closure_is_read_and_stays_as_it_is(update):
    model = nn.Linear(64, 64)
    teacher, optimizer = copy.deepcopy(model), torch.optim.Adam(model.parameters())

    def step(model, optimizer, inputs, teacher=teacher):
        with torch.no_grad():
            aim = teacher(inputs)
        (model(inputs) - aim).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
        update(teacher, model)

    before, parameters = show(teacher), list(teacher.parameters())
    estimate = estimate_memory(step, model, optimizer, INPUTS)
    assert show(teacher) == before
    assert all(map(lambda one, other: one is other, teacher.parameters(), parameters))
    assert estimate.obstacle is None
    step(model, optimizer, INPUTS)  # the real one
    assert all(type(one.data) is torch.Tensor for one in teacher.parameters())


def test_a_teacher_counts_like_one_that_is_given():
    model, teacher = nn.Linear(64, 64), nn.Linear(64, 64)

    def step(model, teacher, inputs):
        (model(inputs) - teacher(inputs).detach()).square().mean().backward()
        model.zero_grad()

    given = estimate_memory(step, model, teacher, INPUTS)
    read = estimate_memory(lambda one, inputs: step(one, teacher, inputs), model, INPUTS)
    assert (read.peak_bytes, read.kinds) == (given.peak_bytes, given.kinds)
    assert not teacher.weight._backward_hooks


def test_an_averaged_model_from_a_closure_is_as_before():
    model = nn.Linear(64, 64)
    mean = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.9))
    optimizer = torch.optim.SGD(model.parameters(), 0.1)

    def step(model, optimizer, inputs):
        model(inputs).sum().backward()
        optimizer.step()
        mean.update_parameters(model)

    before = repr(mean.state_dict())
    assert estimate_memory(step, model, optimizer, INPUTS).obstacle is None
    assert repr(mean.state_dict()) == before


def test_a_teacher_that_is_trained_is_refused():
    model, teacher = nn.Linear(64, 64), nn.Linear(64, 64)

    def step(model, inputs):
        (model(inputs) - teacher(inputs)).square().mean().backward()

    with pytest.raises(UsageError, match="trains a parameter that was made outside") as refused:
        estimate_memory(step, model, INPUTS)
    assert refused.value.what.endswith(": teacher.bias")
    for words in (
        "estimate_memory(step, model, teacher, ...) with teacher as an argument",
        "teacher.requires_grad_(False)",
        "use teacher under torch.no_grad()",
    ):
        assert words in refused.value.fix
    assert (teacher.weight.grad, teacher.bias.grad) == (None, None)
    assert not teacher.weight._backward_hooks
    teacher.requires_grad_(False)
    assert estimate_memory(step, model, INPUTS).obstacle is None


class Distillation:
    def __init__(self, teacher):
        self.parts = [SimpleNamespace(teacher=teacher)]

    def step(self, model, inputs):
        (model(inputs) - self.parts[0].teacher(inputs)).sum().backward()


def subtract(teacher, model, inputs):
    return (model(inputs) - teacher(inputs)).sum()


def use_models(models):
    return lambda one, inputs: subtract(models["a"], one, inputs).backward()


def use_weight(teacher):
    return functools.partial(
        lambda one, inputs, teacher=None: (one(inputs) * teacher.weight.sum()).sum().backward(),
        teacher=teacher,
    )


def use_scale(scale):
    return lambda one, inputs: (one(inputs) * scale.sum()).sum().backward()


TEACHER = nn.Sequential(nn.Linear(64, 64))
STEPS = {
    "TEACHER.0.bias": lambda _: lambda one, inputs: subtract(TEACHER, one, inputs).backward(),
    "given.bias": lambda teacher: (
        lambda one, inputs, given=teacher: subtract(given, one, inputs).backward()
    ),
    "models['a'].bias": lambda teacher: use_models({"a": teacher}),
    "self.parts[0].teacher.bias": lambda teacher: Distillation(teacher).step,
    "teacher.weight": use_weight,
    "scale": lambda teacher: use_scale(teacher.weight),
}


@pytest.mark.parametrize("name", STEPS)
def test_a_refused_parameter_is_called_as_the_step_calls_it(name):
    step = STEPS[name](nn.Linear(64, 64))
    with pytest.raises(UsageError, match="outside of it") as refused:
        estimate_memory(step, nn.Linear(64, 64), INPUTS)
    assert refused.value.what.endswith(f": {name}")
    assert f"{name.rpartition('.')[0] or name}".removesuffix(".0") in refused.value.fix


def test_a_model_beside_its_copy_is_named_with_what_helps():
    model = nn.Linear(64, 64)

    def step(one, inputs):
        (one(inputs) + model(inputs)).sum().backward()

    with pytest.raises(UsageError, match="beside its copy") as refused:
        estimate_memory(step, model, INPUTS)
    assert refused.value.what.endswith(": model.weight")
    assert "not model" in refused.value.fix


@pytest.mark.filterwarnings("error")
def test_a_scheduler_from_a_closure_does_not_warn_and_stays_as_it_is():
    model = nn.Linear(64, 64)
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 1)

    def step(model, optimizer, inputs):
        model(inputs).sum().backward()
        optimizer.step()
        scheduler.step()

    estimate_memory(step, model, optimizer, INPUTS)
    assert (scheduler.last_epoch, optimizer.param_groups[0]["lr"]) == (0, 0.1)
    step(model, optimizer, INPUTS)
    assert scheduler.last_epoch == 1


TABLES = {
    "dictionary": lambda model: {model: 1, "other": 2},
    "ordered dictionary": lambda model: OrderedDict({"other": 2, model: 1}),
    "defaultdict": lambda model: defaultdict(int, {model: 1}),
    "counter": lambda model: Counter([model, "other"]),
    "weak keys": lambda model: weakref.WeakKeyDictionary({model: 1}),
    "ids": lambda model: {id(model): 1},
    "parameters": lambda model: {model.weight: 1, model.bias: 2},
    "set": lambda model: {model},
    "weak set": lambda model: weakref.WeakSet([model]),
}


@pytest.mark.parametrize("name", TABLES)
def test_a_table_by_models_is_found_by_the_models_copy(name):
    model = nn.Linear(64, 64)
    table, found = TABLES[name](model), []
    before = list(table.items() if hasattr(table, "items") else table)

    def step(model, inputs):
        model(inputs).sum().backward()
        keys = [one for one in (model, id(model), model.weight) if one in table]
        found.extend(keys)
        assert len(keys) == 1
        if hasattr(table, "items"):
            table[keys[0]] += 1

    estimate_memory(step, model, INPUTS)
    after = list(table.items() if hasattr(table, "items") else table)
    assert len(after) == len(before)
    assert repr(after) == repr(before)
    assert found == []
    step(model, INPUTS)
    gc.collect()


@pytest.mark.parametrize(
    ("context", "word"),
    [(torch.no_grad, "torch.no_grad()"), (torch.inference_mode, "torch.inference_mode()")],
    ids=["no_grad", "inference_mode"],
)
def test_gradients_that_are_off_at_the_call_are_said(context, word):
    model = nn.Linear(64, 64)
    with pytest.raises(UsageError, match="does not require grad") as caught, context():
        estimate_memory(lambda model, inputs: model(inputs).sum().backward(), model, INPUTS)
    assert word in caught.value.cause


def test_inference_is_said_to_turn_gradients_off():
    model = nn.Linear(64, 64)

    def step(model, inputs):
        model(inputs).sum().backward()

    with pytest.raises(UsageError, match="does not require grad") as caught:
        estimate_memory(step, model, INPUTS, inference=True)
    assert "inference=True" in caught.value.cause
    with pytest.raises(UsageError, match="does not require grad") as caught:
        estimate_memory(lambda inputs: inputs.sum().backward(), INPUTS)
    assert "gradients are off" not in caught.value.cause


@pytest.mark.filterwarnings("ignore:Anomaly Detection")
@pytest.mark.parametrize("where", ["in the step", "around it"])
def test_a_search_for_nans_is_no_decision(where):
    def step(model, inputs):
        with torch.autograd.set_detect_anomaly(
            where == "in the step" or torch.is_anomaly_enabled()
        ):
            model(inputs).sum().backward()

    with torch.autograd.set_detect_anomaly(where == "around it"):
        estimate = estimate_memory(step, nn.Linear(64, 64), INPUTS)
    assert (estimate.notes, estimate.lowest_bytes) == ((), None)


def test_an_operator_without_a_fake_version_is_named(tmp_path):
    (tmp_path / "weights").write_bytes(bytes(1024))

    def step(model, inputs):
        model(inputs + torch.from_file(str(tmp_path / "weights"), size=64)).sum().backward()

    obstacle = estimate_memory(step, nn.Linear(64, 64), INPUTS).obstacle
    assert (obstacle.operator, obstacle.reason) == ("aten::from_file", "has no fake version")


def test_a_counter_of_a_real_module_is_not_written_through_its_views():
    bank = nn.BatchNorm1d(64, affine=False)
    place = torch.zeros(1, dtype=torch.long)

    def step(model, inputs):
        begin = int(place)
        place[0] = begin + len(inputs)
        place.view(-1)[:1].add_(1)
        bank(model(inputs)).sum().backward()

    estimate = estimate_memory(step, nn.Linear(64, 64), INPUTS)
    assert estimate.obstacle is None
    assert (int(place), int(bank.num_batches_tracked)) == (0, 0)


class Sampler:
    """An object of a program's own with iterators and generators in its attributes."""

    def __init__(self):
        self.numbers, self.batches = itertools.count(5), itertools.cycle([INPUTS])
        self.kept = {"pairs": zip([1, 2, 3, 4], "abcd", strict=True), "list": iter([1, 2, 3, 4])}
        self.pythons, self.torchs = random.Random(1), torch.Generator().manual_seed(2)
        self.numpys, self.old = np.random.default_rng(3), np.random.RandomState(4)

    def draw(self):
        self.pythons.shuffle([1, 2, 3])
        torch.randperm(4, generator=self.torchs)
        self.numpys.permutation(4)
        self.old.permutation(4)

    def take(self):
        self.draw()
        next(self.batches)
        return next(self.numbers), next(self.kept["pairs"]), next(self.kept["list"])


def test_iterators_and_generators_in_attributes_stay_where_they_are():
    sampler = Sampler()

    def step(model, inputs):
        model(inputs).sum().backward()
        sampler.take()

    def draw(one):
        bits = one.numpys.bit_generator.state
        return repr((one.pythons.random(), bits, one.old.rand(), one.torchs.get_state().sum()))

    estimate_memory(step, nn.Linear(64, 64), INPUTS)
    assert draw(sampler) == draw(Sampler())
    assert Sampler().take() == sampler.take()


def make_counting():
    """A class whose methods' closure counts, as those of a notebook's cell or a factory do."""
    counts, losses = Counter(), []

    class Counting:
        calls = 0

        def run(self, model, inputs):
            counts["run"] += 1
            type(self).calls += 1
            losses.append(model(inputs).sum())

    return Counting(), lambda: (dict(counts), losses, Counting.calls)


def test_what_the_class_of_an_argument_keeps_is_put_back():
    counting, read = make_counting()
    estimate_memory(lambda one, model: one.run(model, INPUTS), counting, nn.Linear(64, 64))
    assert read() == ({}, [], 0)


def test_what_a_function_among_the_arguments_keeps_is_put_back():
    losses = []
    hooks = [lambda loss: losses.append(loss)]  # noqa: PLW0108
    estimate_memory(
        lambda model, hooks: [one(model(INPUTS).sum()) for one in hooks], nn.Linear(64, 64), hooks
    )
    assert losses == []


def make_queue(kind):
    made = kind()
    made.put(1)
    return made


@pytest.mark.parametrize("kind", [queue.Queue, queue.LifoQueue, multiprocessing.SimpleQueue])
def test_a_queue_from_before_gives_a_step_nothing_and_takes_nothing(kind):
    held = make_queue(kind)

    def step(model, inputs):
        model(inputs).sum().backward()
        held.get()

    with pytest.raises(UsageError, match=f"takes from a {type(held).__name__} that was made"):
        estimate_memory(step, nn.Linear(64, 64), INPUTS)

    def give(model, inputs):
        model(inputs).sum().backward()
        held.put(2)
        own = make_queue(kind)
        assert own.get() == 1

    notes = estimate_memory(give, nn.Linear(64, 64), INPUTS).notes
    assert any("that was made before is dropped" in note for note in notes)
    assert held.get() == 1
    assert held.empty()


def test_a_pickler_writes_what_it_would_have_written():
    written = []
    for estimates in (False, True):
        with io.BytesIO() as file:
            pickler = pickle.Pickler(file)
            record = {"loss": [1]}

            def step(model, inputs, pickler=pickler, record=record):
                model(inputs).sum().backward()
                pickler.dump(record)

            if estimates:
                estimate_memory(step, nn.Linear(64, 64), INPUTS)
            step(nn.Linear(64, 64), INPUTS)
            written.append(file.getvalue())
    assert written[0] == written[1]


class Attributes(dict):
    """A dictionary with attributes, as many programs keep their settings in one."""

    __getattr__ = dict.__getitem__
    __setattr__ = dict.__setitem__


class Refusing:
    """An object that raises for each attribute that it does not have."""

    def __getattr__(self, name):
        raise RuntimeError(name)


SETTINGS, REFUSING = Attributes(steps=0, nested=Attributes(losses=[])), Refusing()
HISTORY = np.empty(2, dtype=object)
HISTORY[0] = []


@pytest.mark.parametrize("given", [False, True])
def test_an_object_whose_attributes_raise_other_errors_is_followed(given):
    def step(model, settings):
        loss = model(INPUTS).sum()
        loss.backward()
        settings.steps += 1
        settings.nested.losses.append(loss.item())
        HISTORY[0].append(loss.detach())
        assert isinstance(REFUSING, Refusing)

    model = nn.Linear(64, 64)
    if given:
        estimate_memory(step, model, SETTINGS)
    else:
        estimate_memory(lambda model: step(model, SETTINGS), model)
    assert (SETTINGS, HISTORY[0]) == ({"steps": 0, "nested": {"losses": []}}, [])


RAW = {
    "storage": lambda one: one.untyped_storage().fill_(0),
    "element of a storage": lambda one: one.untyped_storage().__setitem__(0, 7),
    "bytes": lambda one: one.untyped_storage().byteswap(torch.float32),
    "typed storage": lambda one: one.storage().fill_(7.0),
    "shared memory": lambda one: one.share_memory_(),
    "DLPack": lambda one: np.from_dlpack(one).fill(3),
    "a function of elements": lambda one: one.apply_(lambda value: 0.0),
    "a function of pairs": lambda one: one.map_(one, lambda value, other: 0.0),
    "a copy of a storage": lambda one: copy.deepcopy(one.untyped_storage()),
}


@pytest.mark.filterwarnings("ignore:TypedStorage is deprecated")
@pytest.mark.parametrize("name", RAW)
def test_the_memory_of_a_tensor_from_outside_is_as_before(name):
    values = torch.arange(6.0)

    def step():
        RAW[name](values)
        made = values * 2
        RAW[name](made)
        return made

    assert estimate_memory(lambda: step).obstacle is None
    assert values.tolist() == [0, 1, 2, 3, 4, 5]
    assert not values.is_shared()


@pytest.mark.parametrize("size", [0, 100])
def test_a_tensor_from_outside_keeps_its_memory(size):
    values = torch.arange(6.0)

    def step():
        values.untyped_storage().resize_(size)
        return torch.ones(6) * 2

    obstacle = estimate_memory(lambda: step).obstacle
    assert obstacle.operator == "UntypedStorage.resize_()"
    assert "from outside the step" in str(obstacle)
    assert values.untyped_storage().nbytes() == 24
    assert values.tolist() == [0, 1, 2, 3, 4, 5]


@pytest.mark.parametrize("size", [0, 4000])
def test_a_step_resizes_what_it_has_made(size):
    def make():
        def step():
            made = torch.ones(500)
            made.untyped_storage().resize_(size)
            return torch.ones(400) * 2

        return step

    estimate = estimate_memory(make)
    assert estimate.obstacle is None
    assert estimate.peak_bytes == size + 3200 == pytest.approx(measure_twice(make), rel=0.005)
