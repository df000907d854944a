"""``estimate_memory``: the same bytes as the step takes for real, without taking them."""

from __future__ import annotations

import asyncio
import copy
import datetime
import functools
import gzip
import io
import logging
import math
import os
import pickle
import random
import secrets
import shutil
import sys
import threading
import time
import timeit
import uuid
from os import _exit as leave
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader

from labkit.errors import UsageError
from labkit.memory.balance.read import read_resident_bytes
from labkit.memory.estimate import draws, measured
from labkit.memory.estimate.cuda import find_number
from labkit.memory.estimate.fake import COMPILED
from labkit.memory.estimate.limits import Limits
from labkit.memory.estimate.play import FORWARD_ALONE, estimate_memory, find_largest_batch
from labkit.memory.estimate.tracer import CONVERGENCE, OVERFLOW
from labkit.memory.estimate.values import Assumptions, make_unknown
from labkit.memory.track.model import CATEGORIES, sum_categories
from labkit.memory.track.storages import StorageTracer
from labkit.memory.track.tracker import track_memory
from tests.fakes.models import MODELS, OPTIMIZERS, make_training, run_twice
from tests.fakes.record import Record

GIB = 2**30
CASES = [(model, optimizer) for model in MODELS for optimizer in OPTIMIZERS]


@pytest.mark.slow
@pytest.mark.parametrize(("model", "optimizer"), CASES)
def test_the_estimate_is_within_two_percent_of_what_is_measured(model, optimizer):
    make_step = make_training(model, optimizer)
    estimate = estimate_memory(make_step, batch=4)
    run_twice(make_step, 4)
    with StorageTracer() as tracer:
        run_twice(make_step, 4)
    with track_memory("cpu", tensors=True) as tracked:
        run_twice(make_step, 4)
    level = tracer.levels["cpu"]
    by_profiler = tracked.use.find_span("tensors").peak_bytes
    assert estimate.obstacle is None
    # What batch norm takes for itself in backward, the profiler sees and the tracer does not.
    taken = estimate.peak_bytes - level.peak_bytes
    assert taken in (0, by_profiler - level.peak_bytes)
    kinds = sum_categories(level.list_at_peak())
    assert estimate.kinds == {**kinds, "gradients": kinds["gradients"] + taken}
    assert abs(estimate.peak_bytes - by_profiler) <= 0.02 * by_profiler


@pytest.mark.parametrize("model", MODELS)
def test_inference_keeps_nothing_for_backward(model):
    def make_run(batch):
        net, inputs, _ = MODELS[model](batch)
        net.eval()
        return lambda: net(inputs)

    estimate = estimate_memory(make_run, batch=4, inference=True)
    with torch.no_grad():
        run_twice(make_run, 4)
        with track_memory("cpu", tensors=True) as tracked:
            run_twice(make_run, 4)
    by_profiler = tracked.use.find_span("tensors").peak_bytes
    assert abs(estimate.peak_bytes - by_profiler) <= 0.02 * by_profiler
    assert estimate.kinds["gradients"] == estimate.kinds["optimizer"] == 0
    assert estimate.peak_bytes < estimate_memory(make_training(model, "SGD"), batch=4).peak_bytes


def test_the_kinds_and_the_lines_add_up_to_the_peak():
    estimate = estimate_memory(make_training("gpt", "Adam"), batch=8)
    assert tuple(estimate.kinds) == CATEGORIES
    assert sum(estimate.kinds.values()) == estimate.peak_bytes
    assert sum(line.held_bytes for line in estimate.lines) <= estimate.peak_bytes
    assert estimate.lines[0].frame.where.startswith("models.py:")


def test_a_terabyte_is_estimated_without_taking_it():
    before = read_resident_bytes()
    estimate = estimate_memory(
        lambda: nn.Linear(2**19, 2**19, bias=False)(torch.ones(1, 2**19)), device="H100"
    )
    assert estimate.peak_bytes > 2**40
    assert estimate.fits is False
    assert read_resident_bytes() - before < 2**30


def train(model, optimizer, inputs):
    optimizer.zero_grad()
    model(inputs).pow(2).mean().backward()
    optimizer.step()


def test_a_real_model_is_estimated_and_stays_as_it_is():
    model, inputs = nn.Sequential(nn.Linear(64, 64), nn.BatchNorm1d(64)), torch.randn(8, 64)
    optimizer = torch.optim.Adam(model.parameters())
    before, state = copy.deepcopy(model.state_dict()), torch.random.get_rng_state()
    estimate = estimate_memory(train, model, optimizer, inputs)
    assert all(torch.equal(one, before[name]) for name, one in model.state_dict().items())
    assert all(one.grad is None for one in model.parameters())
    assert not optimizer.state
    assert torch.equal(torch.random.get_rng_state(), state)
    with StorageTracer() as tracer:
        for _ in range(2):
            train(model, optimizer, inputs)
    assert estimate.peak_bytes == tracer.levels["cpu"].peak_bytes
    assert estimate.kinds == sum_categories(tracer.levels["cpu"].list_at_peak())


def test_an_optimizer_that_has_stepped_keeps_its_state():
    model, inputs = nn.Linear(64, 64, bias=False), torch.randn(8, 64)
    optimizer = torch.optim.Adam(model.parameters())
    train(model, optimizer, inputs)
    estimate = estimate_memory(train, model, optimizer, inputs)
    assert estimate.kinds["parameters"] == estimate.kinds["gradients"] == 64 * 64 * 4
    assert estimate.kinds["optimizer"] >= 2 * 64 * 64 * 4


def test_a_model_on_the_meta_device_is_played_on_the_cpu():
    model, inputs = nn.Linear(64, 64, device="meta"), torch.ones(8, 64, device="meta")
    optimizer = torch.optim.SGD(model.parameters())
    here = nn.Linear(64, 64), torch.ones(8, 64)
    expected = estimate_memory(train, here[0], torch.optim.SGD(here[0].parameters()), here[1])
    assert estimate_memory(train, model, optimizer, inputs).kinds == expected.kinds


def test_what_arguments_share_they_still_share():
    model = nn.Linear(8, 8, bias=False)
    tied = nn.ModuleList([model, nn.Linear(8, 8, bias=False)])
    tied[1].weight = model.weight
    estimate = estimate_memory(lambda net, one: net[1](net[0](one)), tied, torch.ones(1, 8))
    assert estimate.kinds["parameters"] == 8 * 8 * 4


def test_an_argument_counts_whether_or_not_the_step_looks_at_it():
    model, inputs = nn.Linear(10, 10, bias=False), torch.ones(5)
    kinds = estimate_memory(lambda model, inputs: None, model, inputs).kinds
    assert (kinds["parameters"], kinds["other"]) == (400, 20)


def test_a_model_from_outside_that_is_trained_is_refused():
    model = nn.Linear(4, 4)
    with pytest.raises(UsageError, match="trains a parameter that was made outside of it"):
        estimate_memory(lambda: model(torch.ones(1, 4)).sum().backward())
    assert model.weight.grad is None


def test_a_constant_from_outside_is_counted():
    table = torch.ones(100)
    estimate = estimate_memory(lambda: nn.functional.relu(table))
    assert estimate.peak_bytes == 800


def test_torch_is_as_before():
    swap, item, copying = torch.utils.swap_tensors, torch.Tensor.item, torch.Tensor.__deepcopy__
    with pytest.raises(UsageError):
        estimate_memory(lambda model: 1 / 0, nn.Linear(2, 2), device="H100")
    assert torch.utils.swap_tensors is swap
    assert torch.Tensor.item is item
    assert "item" not in vars(torch.Tensor)
    assert torch.Tensor.__deepcopy__ is copying
    assert type(torch.zeros(1)) is torch.Tensor


def test_a_model_can_be_moved_and_made_smaller():
    def make_step():
        model = nn.Linear(100, 100, bias=False).to("cpu").bfloat16()
        return lambda: model(torch.ones(1, 100, dtype=torch.bfloat16)).sum().backward()

    estimate = estimate_memory(make_step)
    assert estimate.kinds["parameters"] == 2 * 100 * 100


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:`torch.jit.script_method` is deprecated")
def test_a_compiled_model_is_estimated_as_an_eager_one():
    def make_step(wrap):
        model = wrap(nn.Sequential(nn.Linear(64, 64), nn.ReLU()))
        return lambda: model(torch.ones(8, 64)).sum().backward()

    compiled = estimate_memory(lambda: make_step(torch.compile), device="1 MiB")
    assert (compiled.excess, compiled.fits) == (COMPILED, None)
    compiled = estimate_memory(lambda: make_step(torch.compile))
    assert compiled.kinds == estimate_memory(lambda: make_step(lambda model: model)).kinds


def stop(batch=4):
    """Makes 4000 bytes a sample, and then reads a size."""
    return range(int(torch.randn(batch, 1000).sum().item()))


def branch(batch=4):
    """Makes 4000 bytes a sample, and a hundred times as many if the values say so."""
    values = torch.randn(batch, 1000)
    return values.repeat(100, 1) if values.sum() > 0 else values


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
@pytest.mark.parametrize(
    ("ask", "operator", "reason"),
    [
        (lambda: torch.randn(3).argsort().numpy(), "numpy()", "reads whole numbers"),
        (
            lambda: torch.ones(3).split(torch.randn(3).argsort().numpy().tolist()),
            "numpy()",
            "reads",
        ),
        (
            lambda: range(torch.randn(3).long().sum().item()),
            "aten._local_scalar_dense.default",
            "reads",
        ),
        (lambda: [0, 1][int(torch.randn(1).item())], "aten._local_scalar_dense.default", "reads"),
        # What torch itself cannot do with fake tensors is not the step's error.
        (
            lambda: torch.nested.nested_tensor([torch.randn(2), torch.randn(3)]),
            "aten._nested_tensor_from_tensor_list.default",
            "has no fake version",
        ),
    ],
    ids=["numpy", "sizes by numpy", "a count", "an index", "a nested tensor"],
)
def test_what_cannot_be_known_is_named_with_its_line(ask, operator, reason):
    estimate = estimate_memory(ask)
    assert estimate.obstacle.operator == operator
    assert reason in estimate.obstacle.reason
    assert estimate.obstacle.frame.where.startswith("test_estimate.py:")


def test_an_operator_without_a_fake_version_is_named():
    @torch.library.custom_op("labkit_tests::double", mutates_args=())
    def double(values: torch.Tensor) -> torch.Tensor:
        return values * 2

    obstacle = estimate_memory(lambda: double(torch.ones(3))).obstacle
    assert obstacle.operator == "labkit_tests::double"
    assert obstacle.reason == "has no fake version"


def test_a_bound_never_says_that_it_fits():
    estimate = estimate_memory(stop, device="H100")
    assert (estimate.fits, estimate.peak_bytes) == (None, 16_384 + 512)  # and the sum
    assert "a lower bound: aten._local_scalar_dense.default at test_estimate.py:" in repr(estimate)
    assert "unknown whether it fits H100" in repr(estimate)


def test_a_bound_can_say_that_it_does_not_fit():
    estimate = estimate_memory(stop, batch=2**30, device="H100")
    assert estimate.fits is False
    assert "does not fit H100" in repr(estimate)


def test_a_branch_on_an_unknown_value_is_taken_both_ways():
    estimate = estimate_memory(branch)
    assert (estimate.lowest_bytes, estimate.peak_bytes) == (16_005, 1_616_000)
    assert "test_estimate.py" in estimate.notes[0]
    between = estimate_memory(branch, batch=10**5, device="24 GiB")
    assert (between.fits, between.obstacle) == (None, None)


@pytest.mark.parametrize(
    ("select", "low", "high"),
    [
        (lambda values: values.nonzero(), 0, 80_000),
        (lambda values: values[values > 0], 0, 20_000),
        (lambda values: torch.masked_select(values.t(), values.t() > 0), 0, 20_000),
        # What it counts and sorts meanwhile is more than what it returns.
        (lambda values: torch.masked_select(values, values > 0), 0, 0),
        (lambda values: values.round().unique(), 0, 0),
    ],
    ids=["nonzero", "a mask", "masked_select", "a dense mask", "unique"],
)
def test_what_values_select_is_all_or_nothing(select, low, high):
    estimate = estimate_memory(lambda: select(torch.randn(50, 100)))
    assert estimate.obstacle is None
    assert estimate.peak_bytes - estimate.lowest_bytes >= high - low
    assert "simulated both ways" in estimate.notes[0] or "at least" in estimate.notes[0]


def test_a_loop_without_an_end_is_an_obstacle():
    def step():
        loss = torch.randn(1)
        while loss.sum() > 0:
            loss = loss + 1

    assert estimate_memory(step).obstacle.operator == "aten._local_scalar_dense.default"


def test_constants_are_known():
    def make_step():
        rates = [one.item() for one in torch.linspace(0, 0.1, 12)]
        assert [f"{rates[0]:.1f}", f"{rates[-1]:.1f}"] == ["0.0", "0.1"]
        visible = torch.ones(4, 16, dtype=torch.bool).tril()
        assert not visible.all()
        assert visible.nonzero().shape == (10, 2)
        assert visible.sum().item() == 10
        counts = torch.zeros(3)
        counts[1] += 2
        assert counts.tolist() == [0, 2, 0]
        counts += torch.randn(3)
        layer = nn.Linear(8, 8)
        nn.init.trunc_normal_(layer.weight, std=0.02)
        return lambda: layer(torch.ones(1, 8)).sum().backward()

    estimate = estimate_memory(make_step)
    assert (estimate.obstacle, estimate.notes) == (None, ())


def test_what_is_made_of_numbers_and_shapes_alone_is_known():
    def make_step():
        chunks = torch.div(7, 2, rounding_mode="trunc")
        ids = torch.randint(0, 9, (4, 8))
        mask = torch.ones_like(ids)
        mask[:, 4:] = 0
        assert int(mask.sum()) == 16 and ids.new_zeros(3).tolist() == [0, 0, 0]
        return lambda: torch.zeros(int(chunks), 1000)

    estimate = estimate_memory(make_step)
    assert (estimate.obstacle, estimate.notes) == (None, ())


def test_experts_that_values_choose_get_all_tokens_or_none():
    def make_step():
        experts = nn.ModuleDict({f"expert_{n}": nn.Linear(100, 100) for n in range(4)})
        values, chosen = torch.randn(64, 100), torch.randn(4, 64) > 0

        def step():
            made = torch.zeros_like(values)
            for number in chosen.any(1).nonzero():
                (tokens,) = torch.where(chosen[number].squeeze(0))
                made.index_add_(0, tokens, experts[f"expert_{number[0]}"](values[tokens]))
            return made.sum()

        return step

    estimate = estimate_memory(make_step)
    assert estimate.obstacle is None
    # The values and the output of one expert's tokens.
    assert estimate.peak_bytes - estimate.lowest_bytes >= 2 * 64 * 100 * 4


def test_a_tensor_is_split_in_parts_of_unknown_sizes():
    def make_step():
        experts = [nn.Linear(100, 100) for _ in range(4)]
        counts = (torch.randn(64, 4) > 0).long().sum(0)

        def step():
            parts = torch.randn(64, 100).split(counts.tolist())
            made = [expert(part) for expert, part in zip(experts, parts, strict=True)]
            torch.cat(made).sum().backward()

        return step

    estimate = estimate_memory(make_step)
    assert estimate.obstacle is None
    assert estimate.lowest_bytes > 0.9 * estimate.peak_bytes


def test_a_check_of_the_step_itself_passes_on_both_ways():
    def step():
        values = torch.randn(1000)
        if not torch.isfinite(values).all():
            raise ValueError("values")
        return torch.randn(1000) if values.sum() > 0 else torch.randn(5000)

    estimate = estimate_memory(lambda: step)
    assert estimate.obstacle is None
    assert estimate.lowest_bytes < 12_000 and estimate.peak_bytes == 24_000
    # torch's own checks hold.
    assert not estimate_memory(lambda: torch.distributions.Gamma(torch.rand(9), 1.0)).notes


def test_a_way_that_cannot_be_followed_makes_a_lower_bound():
    def choose():
        chosen = "big" if torch.randn(3).sum() > 0 else "small"
        if torch.randn(3).sum() > 0:
            chosen = "big"
        return torch.zeros({"small": 10}[chosen])

    estimate = estimate_memory(lambda: choose)
    assert "one way only" in str(estimate.obstacle) and "big" in str(estimate.obstacle)


def test_an_earlier_decision_than_the_latest_can_end_in_an_error():
    def make_step():
        model, values = nn.ModuleList(nn.Linear(64, 64) for _ in range(3)), torch.randn(8, 64)

        def step():
            made = values
            for layer in model:
                made = made if torch.rand(1).item() < 0.5 else layer(made)
            loss = made.sum()
            print("high" if loss.item() > 2 else "low")
            loss.backward()

        return step

    estimate = estimate_memory(make_step)
    assert estimate.obstacle is None and estimate.lowest_bytes < estimate.peak_bytes


def test_what_was_written_over_with_unknown_values_is_unknown():
    def step():
        counts = torch.zeros(3)
        other = counts[:2]
        counts += torch.randn(3)
        return other.tolist()

    notes = estimate_memory(step).notes
    assert "the value of a tensor at test_estimate.py" in notes[0]


@pytest.mark.parametrize(
    "draw",
    [
        lambda: torch.zeros(4).uniform_(),
        lambda: torch.ones(4).bernoulli_(0.5),
        lambda: torch.rand(4, out=torch.zeros(4)),
        lambda: nn.init.normal_(torch.zeros(4)),
        lambda: nn.functional.dropout(torch.ones(4)),
    ],
)
@pytest.mark.parametrize(
    "decide", [lambda drawn: any(drawn > 0.5), lambda drawn: drawn[0] and 1, lambda drawn: drawn[0]]
)
def test_layers_that_drawn_values_drop_make_a_range(draw, decide):
    def make_step(batch=64):
        model = nn.ModuleList(nn.Linear(64, 64) for _ in range(2))

        def step():
            hidden = model[0](torch.randn(batch, 64))
            (model[1](hidden).sum() if decide(draw()) else hidden.sum()).backward()

        return step

    estimate = estimate_memory(make_step)
    assert estimate.obstacle is None
    assert estimate.lowest_bytes < estimate.peak_bytes
    assert "unknown values decide" in estimate.notes[0]


PYTHONS, NUMPYS = random.Random(3), np.random.default_rng(3)
# What a step draws its decisions from, outside of torch: true for half of the draws.
DECIDING = {
    "Python": lambda: random.random() < 0.5,
    "a generator of Python": lambda: PYTHONS.randint(0, 1) == 0,
    "the system's generator": lambda: secrets.randbelow(100) < 50,
    "the system's bytes": lambda: os.urandom(1)[0] < 128,
    "NumPy": lambda: np.random.rand() < 0.5,
    "one of an array": lambda: np.random.uniform(size=1) < 0.5,
    "a generator of NumPy": lambda: NUMPYS.random() < 0.5,
    "a generator made in the step": lambda: np.random.default_rng().integers(2) == 0,
    "an old generator of NumPy": lambda: np.random.RandomState().choice([0, 1]) == 0,
    "torch": lambda: torch.rand(()) < 0.5,
    "bits": lambda: PYTHONS.getrandbits(8) < 128,
    "one of several": lambda: random.choices([0, 1]) == [0],
    "a normal distribution": lambda: PYTHONS.gauss(0, 1) < 0,
    "NumPy's normal distribution": lambda: NUMPYS.normal() < 0,
    "NumPy's counts": lambda: np.random.poisson(3, 1)[0] < 3,
    "a token": lambda: secrets.token_hex(8) < "8",
    "an identifier": lambda: uuid.uuid4().bytes[0] < 128,
}


def make_layers(decides, width=64, skipped=None):
    """A step through layers that it leaves out by what ``decides()`` says, and such a step alone.

    The input takes no gradient, so a pass through no layer ends in an error.
    """
    model, values = (
        nn.ModuleList(nn.Linear(width, width) for _ in range(4)),
        torch.randn(512, width),
    )

    def step():
        model.zero_grad()
        made = values
        for place, layer in enumerate(model):
            if place not in skipped if skipped is not None else not decides():
                made = layer(made).relu()
        made.sum().backward()

    return step


@pytest.mark.parametrize("name", DECIDING)
def test_layers_that_a_draw_leaves_out_make_a_range(name):
    ends = [
        estimate_memory(functools.partial(make_layers, None, skipped=skipped))
        for skipped in ((), (0, 1, 2))
    ]
    state = NUMPYS.bit_generator.state, random.getstate()
    estimate = estimate_memory(lambda: make_layers(DECIDING[name]))
    assert (estimate.peak_bytes, estimate.lowest_bytes) == tuple(one.peak_bytes for one in ends)
    assert estimate.obstacle is None and "test_estimate.py" in estimate.notes[0]
    assert "both ways" not in estimate.notes[0]
    assert state == (NUMPYS.bit_generator.state, random.getstate())
    assert type(NUMPYS) is np.random.Generator


@pytest.mark.parametrize(
    ("read", "hour"),
    [
        (time.time, 3_600),
        (time.perf_counter, 3_600),
        (time.monotonic, 3_600),
        (time.monotonic_ns, 3_600 * 10**9),
        (timeit.default_timer, 3_600),
        (lambda: datetime.datetime.now(datetime.timezone.utc), datetime.timedelta(hours=1)),
        (lambda: datetime.date.today().toordinal() * 24, 1),
    ],
)
def test_what_is_done_after_an_hour_makes_a_range(read, hour):
    started = read()

    def step(values):
        return values.repeat(100) if read() - started > hour else values

    estimate = estimate_memory(step, torch.ones(1000))
    assert (estimate.lowest_bytes, estimate.peak_bytes) == (4_000, 404_000)


def write_everywhere(model):
    """Writes files in each way that steps do, and reads some of them again."""
    state = model.state_dict()
    Path("folder").mkdir(exist_ok=True)
    with Path("kept.pt").open("wb") as file:
        torch.save(state, file)
        os.fsync(file.fileno())
    with Path("kept.pt").open("rb") as file:
        model.load_state_dict(torch.load(file))
    with open("kept.pkl", "wb") as file:  # noqa: PTH123
        pickle.dump(state, file)
    np.save("kept.npy", np.ones(3))
    np.savez("kept.npz", values=np.ones(3))
    with gzip.open("kept.gz", "wt") as file:
        file.write("new")
    with Path("kept.log").open("a") as file:
        file.write("more")
    assert Path("kept.log").read_text() in {"kept.logmore", "more"}
    Path("half.txt").write_text("new")
    os.replace("half.txt", "kept.txt")  # noqa: PTH105
    assert Path("kept.txt").read_text() == "new"
    assert not os.path.exists("half.txt")  # noqa: PTH110
    shutil.copy("kept.npy", "kept.gz")
    Path("kept.npz").rename("kept.npy")
    shutil.move("kept.log", "kept.pkl")
    with pytest.raises(FileExistsError), Path("kept.pkl").open("x"):
        pass
    os.remove("kept.pt")  # noqa: PTH107
    for old in Path().glob("kept.*"):
        old.unlink()
    shutil.rmtree("folder")
    with pytest.raises(FileNotFoundError):
        Path("missing/x").write_text("new")


def test_no_file_that_a_step_writes_is_touched(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names = [f"kept.{kind}" for kind in ("pt", "pkl", "npy", "npz", "gz", "log", "txt")]
    for name in names:
        Path(name).write_text(name)
    Path("folder").mkdir()

    def make_step():
        model = nn.Linear(100, 100)
        return lambda: write_everywhere(model)

    assert estimate_memory(make_step).obstacle is None
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(["folder", *names])
    assert [Path(name).read_text() for name in names] == names


def test_arrays_of_draws_keep_their_shape():
    generator = np.random.default_rng(0)
    shapes = Record()

    def step():
        drawn = (generator.random(8), generator.random((3, 1)), np.random.random((5, 1)))
        shapes.append([each.shape for each in drawn])
        shapes.append([np.random.randint(0, 5, (4,)).shape])
        torch.ones(1 + (generator.random() < 2))

    estimate_memory(lambda: step)
    assert shapes.take()[:2] == [[(8,), (3, 1), (5, 1)], [(4,)]]


def test_a_recurrent_layer_is_not_taken_for_one_without_gradients():
    layer, values = nn.LSTM(64, 128), torch.randn(60, 32, 64)

    def make_step():
        model, inputs = nn.LSTM(64, 128), torch.randn(60, 32, 64)
        return lambda: model(inputs)[0].mean().backward()

    alone = estimate_memory(make_step).peak_bytes
    measured._measured.clear()
    without = estimate_memory(layer, values, inference=True).peak_bytes
    assert estimate_memory(make_step).peak_bytes == alone > 2 * without


@pytest.mark.parametrize("other", [False, True], ids=["its own thread", "another one"])
def test_the_time_leaps_for_the_steps_threads_alone(other):
    seen, stop = Record(), threading.Event()

    def watch():
        while not stop.wait(0.002):
            seen.append(time.monotonic())

    def compute():
        if time.monotonic() - started > 3_600:
            torch.ones(1000)

    def step():
        if other:
            thread = threading.Thread(target=compute)
            thread.start()
            thread.join()
        else:
            compute()
        seen.append(loop.time())

    started, loop = time.monotonic(), asyncio.new_event_loop()
    before = threading.Thread(target=watch)
    before.start()
    estimate = estimate_memory(lambda: step)
    stop.set()
    before.join()
    loop.close()

    assert estimate.lowest_bytes < estimate.peak_bytes == 4000
    assert max(seen.take()) - started < 3_600


# Texts in which a whole number is printed, and what does more with it.
SHOWN = {
    "int": lambda value: f"{int(value)}",
    "int with places": lambda value: f"{int(value):5d}",
    "percent": lambda value: "%d" % value,  # noqa: UP031
    "percent of two": lambda value: "%s %d" % ("loss", value),  # noqa: UP031
    "logging": lambda value: logging.getLogger("labkit-shown").error("%d", value),
    "round": lambda value: f"{round(value)}",
    "floor": lambda value: f"{math.floor(value)}",
    "ceil": lambda value: f"{math.ceil(value):>4}",
}
READ = {
    "int": lambda value: torch.ones(int(value)),
    "int in an f-string's expression": lambda value: f"{torch.ones(int(value)).shape}",
    "int beside a remainder": lambda value: 7 % int(value),
    "round": lambda value: torch.arange(round(value)),
    "floor": lambda value: [0] * math.floor(value),
    "hash": lambda value: {value},
    "divmod": lambda value: divmod(value, 2),
}


@pytest.mark.parametrize("name", SHOWN)
def test_a_whole_number_that_is_only_printed_is_allowed(name):
    def step(layer):
        loss = layer(torch.ones(2, 4)).mean()
        loss.backward()
        SHOWN[name](loss.item())

    estimate = estimate_memory(step, nn.Linear(4, 4))
    assert estimate.obstacle is None and "is no result" in estimate.notes[0]


@pytest.mark.parametrize("name", READ)
def test_a_whole_number_that_is_used_makes_a_lower_bound(name):
    def step(layer):
        READ[name](layer(torch.ones(2, 4)).mean().item())

    assert "reads a value" in estimate_memory(step, nn.Linear(4, 4)).obstacle.reason


@pytest.mark.parametrize(
    "test",
    [lambda value: abs(value) > 3, lambda value: value % 3 > 1, lambda value: 7 % value > 1],
    ids=["abs", "remainder", "remainder by it"],
)
def test_what_is_computed_of_an_unknown_number_is_unknown(test):
    def step(layer):
        if test(layer(torch.ones(2, 4)).mean().item()):
            torch.ones(1000)

    estimate = estimate_memory(step, nn.Linear(4, 4))
    assert estimate.peak_bytes - estimate.lowest_bytes > 3500


def test_the_remainder_of_a_count_has_ends():
    def step(batch=4):
        scores = torch.randn(100, 8)
        return lambda: torch.ones(1000 * ((scores.argmax(1) == 0).sum().item() % 4 + 1))

    estimate = estimate_memory(step)
    assert estimate.peak_bytes - estimate.lowest_bytes == 12_000


def test_draws_that_decide_nothing_are_no_range():
    def make_step(batch=4):
        model = nn.Linear(8, 8)
        return lambda: model(torch.randn(batch, 8) * random.random() * time.time()).sum().backward()

    estimate = estimate_memory(make_step)
    assert (estimate.lowest_bytes or estimate.peak_bytes, estimate.notes) == (
        estimate.peak_bytes,
        (),
    )


def test_a_draw_until_it_suits_ends():
    def step(values):
        while random.random() > 0.2 or NUMPYS.integers(9) < 5:
            values = values + 1
        return values

    assert estimate_memory(step, torch.ones(3)).obstacle is None


def shuffle(order, shuffled):
    shuffled(order)
    return order


@pytest.mark.parametrize(
    "draw",
    [
        lambda: shuffle([0, 1], random.shuffle),
        lambda: random.sample([0, 1], 2),
        lambda: shuffle([0, 1], random.Random(1).shuffle),
        lambda: shuffle(np.arange(2), NUMPYS.shuffle),
        lambda: np.random.permutation(2),
        lambda: NUMPYS.normal(size=2) > 0,
    ],
)
def test_what_is_shuffled_is_noted_as_one_draw(draw):
    states = random.getstate(), NUMPYS.bit_generator.state, np.random.get_state()[1].tolist()
    estimate = estimate_memory(lambda values: values if draw()[0] else values + 1, torch.ones(4))
    assert "one draw" in estimate.notes[-1]
    assert states == (
        random.getstate(),
        NUMPYS.bit_generator.state,
        np.random.get_state()[1].tolist(),
    )


def test_a_date_of_a_step_is_a_real_one():
    seen = Record()

    def step(values):
        seen.append(datetime.datetime(2020, 1, 1))
        seen.append(datetime.datetime.now())
        seen.append(datetime.date.today())
        assert isinstance(datetime.datetime.now(), datetime.datetime) and isinstance(
            EARLY, datetime.date
        )

    estimate_memory(step, torch.ones(4))
    assert [type(one) for one in seen.take()[:3]] == [
        datetime.datetime,
        datetime.datetime,
        datetime.date,
    ]


EARLY = datetime.date(2020, 1, 1)


def test_a_generator_and_an_optimizer_with_its_own_attributes_are_arguments():
    def step(model, optimizer, batch, generator):
        def close():
            optimizer.zero_grad()
            loss = (model(batch) * torch.rand(4, 1, generator=generator)).mean()
            loss.backward()
            return loss

        optimizer.step(close)

    model, generator = nn.Linear(100, 10), torch.Generator().manual_seed(1)
    optimizer = torch.optim.LBFGS(model.parameters(), max_iter=2)
    state = generator.get_state()
    found = estimate_memory(step, model, optimizer, torch.rand(4, 100), generator)
    assert found.obstacle is None
    assert torch.equal(generator.get_state(), state) and not optimizer.state


@pytest.mark.parametrize(
    ("lengths", "shuffle", "notes"),
    [((10, 400), True, 1), ((10, 400), False, 0), ((10, 10), True, 0)],
    ids=["unequal", "in order", "equal"],
)
def test_unequal_samples_in_a_random_order_are_noted(lengths, shuffle, notes):
    samples = [torch.ones(lengths[place >= 48], 8) for place in range(64)]
    loader = DataLoader(samples, 8, shuffle=shuffle, collate_fn=nn.utils.rnn.pad_sequence)

    def step(model, loader):
        model(next(iter(loader))).mean().backward()

    found = estimate_memory(step, nn.Linear(8, 64), loader)
    assert len([one for one in found.notes if "random order" in one]) == notes


def test_a_package_that_gains_the_name_of_a_draw_is_searched_again(monkeypatch):
    module = ModuleType("a_package")
    module.__file__ = "/usr/lib/python3/site-packages/a_package.py"
    monkeypatch.setitem(sys.modules, "a_package", module)

    def list_found():
        names = draws._list_names(len, (), {find_number(random.gauss)})
        return [name for name, value, _ in names if value is random.gauss and name == "draw_one"]

    assert (list_found(), list_found()) == ([], [])
    module.draw_one = random.gauss
    assert list_found() == ["draw_one"]


def test_a_seed_alone_is_no_draw():
    def step(values):
        random.seed(1)
        PYTHONS.seed(1)
        np.random.seed(1)
        return values

    state = PYTHONS.getstate()
    assert estimate_memory(step, torch.ones(4)).notes == ()
    assert PYTHONS.getstate() == state


def test_a_loader_that_shuffles_is_no_range_and_no_bound():
    def make_step(batch=4):
        data = torch.utils.data.TensorDataset(torch.randn(16, 8))
        loader, model = torch.utils.data.DataLoader(data, batch, shuffle=True), nn.Linear(8, 8)

        def run_epoch():
            for (values,) in loader:
                model(values).sum().backward()

        return run_epoch

    estimate = estimate_memory(make_step)
    assert (estimate.obstacle, estimate.lowest_bytes) == (None, None)
    assert not any("one draw" in note for note in estimate.notes)


class Counted(torch.utils.data.IterableDataset):
    """Samples that the workers share among them."""

    def __iter__(self):
        worker = torch.utils.data.get_worker_info()
        for _ in range(worker.id, 21, worker.num_workers):
            yield torch.randn(8)


def draw_again(data):
    return torch.utils.data.RandomSampler(data, replacement=True, num_samples=20)


def draw_by_weights(data):
    return torch.utils.data.WeightedRandomSampler(torch.rand(len(data)), 20)


@pytest.mark.parametrize(
    ("data", "options", "sizes"),
    [
        (torch.arange(16.0), {"num_workers": 2}, [6, 6, 4]),
        (torch.arange(16.0), {"num_workers": 1, "persistent_workers": True}, [6, 6, 4]),
        (Counted(), {"num_workers": 2}, [6, 6, 5, 4]),
        (torch.arange(16.0), {"sampler": draw_again(range(16))}, [6, 6, 6, 2]),
        (torch.arange(16.0), {"sampler": draw_by_weights(range(16))}, [6, 6, 6, 2]),
    ],
)
def test_a_loader_loads_in_the_process_itself(data, options, sizes):
    seen = []

    def make_step():
        loader = torch.utils.data.DataLoader(data, 6, **options)
        return lambda: seen.append([len(values) for values in loader])

    estimate = estimate_memory(make_step)
    assert estimate.obstacle is None
    assert all(each == sizes for each in seen)
    # Workers may be two batches ahead, each.
    ahead = min(2 * options.get("num_workers", 0), len(sizes) - 1)
    assert (estimate.lowest_bytes is not None) == (ahead > 0)
    assert any("workers load ahead decide at" in one for one in estimate.notes) == (ahead > 0)
    assert not any("random" in one for one in estimate.notes)
    assert estimate_memory(make_step, device="H100").lowest_bytes is None


def make_lazy():
    model = nn.Sequential(
        nn.LazyConv2d(8, 3), nn.LazyBatchNorm2d(), nn.Flatten(), nn.LazyLinear(10)
    )
    images, made = torch.randn(4, 3, 12, 12), []

    def step():
        loss = model(images).square().mean()
        made[:] = made or [torch.optim.Adam(model.parameters())]
        made[0].zero_grad()
        loss.backward()
        made[0].step()

    return step


def test_lazy_modules_that_the_step_makes_are_exact():
    run_twice(lambda batch: make_lazy(), 4)
    with track_memory("cpu", tensors=True) as tracked:
        run_twice(lambda batch: make_lazy(), 4)
    estimate = estimate_memory(make_lazy)
    assert estimate.obstacle is None and estimate.kinds["optimizer"] > 0
    assert estimate.peak_bytes == pytest.approx(tracked.use.find_span("tensors").peak_bytes, 0.005)


def save_by_torch(state, path):
    buffer = io.BytesIO()
    torch.save({"state": state, "epoch": 3}, buffer)
    return torch.load(io.BytesIO(buffer.getvalue()), weights_only=True)["state"]


def save_by_file(state, path):
    torch.save(state, f=path.with_suffix(".new"))
    path.with_suffix(".new").replace(path)
    shutil.copyfile(path, f"{path}.best")
    return torch.load(f"{path}.best", map_location="cpu")


def test_a_pickled_tensor_is_made_again():
    estimate = estimate_memory(lambda one: pickle.loads(pickle.dumps(one)), torch.randn(1000))
    assert (estimate.obstacle, estimate.peak_bytes) == (None, 8_000)


SAVING = {
    "torch": save_by_torch,
    "a file": save_by_file,
    "a copy": lambda state, path: {name: copy.copy(one) for name, one in state.items()},
}


@pytest.mark.parametrize("save", SAVING.values(), ids=SAVING)
def test_what_a_step_saves_it_loads_again_and_no_file_is_replaced(save, tmp_path):
    path = tmp_path / "model.pt"

    def make_step():
        model, values = nn.Sequential(nn.Linear(64, 64), nn.BatchNorm1d(64)), torch.randn(8, 64)
        optimizer, kept = torch.optim.Adam(model.parameters()), []

        def step():
            state = model.state_dict() | {"tied": model[0].weight}
            kept[:] = [save(state, path)]  # how its storages are shared counts
            assert kept[0]["1.num_batches_tracked"] >= 0
            model.load_state_dict({name: kept[0][name] for name in model.state_dict()})
            optimizer.zero_grad()
            model(values).sum().backward()
            optimizer.step()

        return step

    run_twice(lambda batch: make_step(), 4)
    with track_memory("cpu", tensors=True) as tracked:
        run_twice(lambda batch: make_step(), 4)
    for one in tmp_path.iterdir():
        one.write_bytes(b"the user's")
    estimate = estimate_memory(make_step)
    assert (estimate.obstacle, estimate.lowest_bytes) == (None, None)
    assert estimate.peak_bytes == pytest.approx(tracked.use.find_span("tensors").peak_bytes, 0.005)
    assert all(one.read_bytes() == b"the user's" for one in tmp_path.iterdir())


# Each function that the simulation replaces, called with torch's names of its parameters.
BY_NAME = [
    lambda x: x.split(split_size=[2, 6], dim=1),
    lambda x: torch.split(tensor=x, split_size_or_sections=4, dim=1),
    lambda x: torch.Tensor.split(self=x, split_size=4),
    lambda x: x.to(tensor=x.double(), non_blocking=True),
    lambda x: x.to(torch.float64, False, True),
    lambda x: x.to(device=None, dtype=torch.float64, memory_format=torch.preserve_format),
    lambda x: x.cpu(memory_format=torch.preserve_format),
    lambda x: x.pin_memory(device="cuda") if not x.is_pinned(device="cuda") else 1 / 0,
    lambda x: x.new_tensor(data=[1.0], dtype=torch.float64, requires_grad=True),
    lambda x: torch.tensor(data=[1.0], device=None, pin_memory=False),
    lambda x: torch.asarray(obj=[1.0], copy=True),
    lambda x: x.sum().__format__(format_spec=".3f"),
    lambda x: nn.functional.ctc_loss(
        log_probs=x.log_softmax(-1)[:, None],
        targets=torch.tensor([[1, 2]]),
        input_lengths=torch.tensor([8]),
        target_lengths=torch.tensor([2]),
    ),
    lambda x: torch.ctc_loss(
        log_probs=x.log_softmax(-1)[:, None],
        targets=torch.tensor([[1, 2]]),
        input_lengths=torch.tensor([8]),
        target_lengths=torch.tensor([2]),
    ),
    lambda x: copy.deepcopy(x=x.detach()),
]


@pytest.mark.parametrize("device", [None, "H100"])
@pytest.mark.parametrize("call", BY_NAME)
def test_what_the_simulation_replaces_takes_torchs_names(call, device):
    def make_step(batch=8):
        model = nn.Linear(8, 8)
        return lambda: call(model(torch.randn(batch, 8)))

    assert estimate_memory(make_step, device=device).obstacle is None


def test_a_copy_that_is_asked_for_is_made():
    def step(same):
        tensor = torch.ones(1000)
        return tensor, tensor.to(torch.float32, False, not same)

    peaks = [estimate_memory(step, same, inference=True).peak_bytes for same in (True, False)]
    assert peaks == [4000, 8000]


def test_views_of_parameters_are_played_in_inference_mode():
    weight = nn.Parameter(torch.randn(4, 8))

    @torch.inference_mode()
    def step(weight):
        return [part.expand(3, 8) + 1 for _ in range(2) for part in (*weight, weight[None][0, 0])]

    with StorageTracer() as tracer:
        step(weight)
    assert estimate_memory(step, weight).peak_bytes == tracer.levels["cpu"].peak_bytes


def test_the_values_of_a_small_mask_that_is_given_are_known():
    def attend(inputs, mask):
        return inputs if mask.all() else inputs * mask

    inputs, mask = torch.randn(4, 8), torch.ones(4, 8, dtype=torch.bool)
    assert estimate_memory(attend, inputs, mask).notes == ()


def test_a_teacher_with_buffers_is_copied():
    def make_step(batch=4):
        net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8))
        teacher = copy.deepcopy(net)
        return lambda: net(torch.randn(batch, 3, 8, 8)) + teacher(torch.ones(4, 3, 8, 8))

    run_twice(make_step, 4)
    with StorageTracer() as tracer:
        run_twice(make_step, 4)
    assert estimate_memory(make_step).peak_bytes == tracer.levels["cpu"].peak_bytes


@pytest.mark.slow
def test_lbfgs_fills_its_history_and_says_so():
    def make_step():
        model = nn.Linear(64, 64, bias=False)
        optimizer = torch.optim.LBFGS(model.parameters(), history_size=40)

        def close():
            optimizer.zero_grad()
            loss = model(torch.ones(1, 64)).square().mean()
            loss.backward()
            return loss

        return lambda: optimizer.step(close)

    estimate = estimate_memory(make_step, device="24 GiB")
    assert estimate.kinds["optimizer"] >= 2 * 40 * 64 * 64 * 4
    assert (estimate.excess, estimate.growth_bytes) == (CONVERGENCE, 0)
    assert "an upper bound: assumes that L-BFGS does not converge" in str(estimate)


@pytest.mark.parametrize("kept", [True, False])
def test_a_parallel_module_is_simulated_in_one_process(kept):
    def make_step(wrap=True):
        layer = nn.Linear(64, 64, bias=False)
        if wrap:
            layer = nn.parallel.DistributedDataParallel(layer, gradient_as_bucket_view=kept)
        return lambda: layer(torch.ones(1, 64)).sum().backward()

    more = (
        estimate_memory(make_step).peak_bytes - estimate_memory(lambda: make_step(False)).peak_bytes
    )
    assert more == (0 if kept else 64 * 64 * 4)


def test_scratch_memory_that_nobody_knows_makes_a_bound():
    def make_step(batch=2):
        model, inputs = nn.LSTM(8, 8).cuda(), torch.ones(5, batch, 8, device="cuda")
        return lambda: model(inputs)[0].sum().backward()

    obstacle = estimate_memory(make_step, device="H100").obstacle
    assert obstacle.reason == "takes scratch memory of unknown size"
    assert obstacle.frame.source == "return lambda: model(inputs)[0].sum().backward()"


def test_a_loss_that_is_only_shown_goes_through(capsys):
    def make_step(batch=4):
        model, inputs, total = nn.Linear(8, 8), torch.ones(batch, 8), []

        def step():
            loss = model(inputs).mean()
            loss.backward()
            total.append(loss.item() / 2)
            print(f"loss {loss.item():.3f}, mean {sum(total) / len(total):.3f}")

        return step

    estimate = estimate_memory(make_step)
    assert estimate.obstacle is None
    assert capsys.readouterr().out == "loss ?, mean ?\n" * 2
    assert len(estimate.notes) == 2
    assert "is unknown" in estimate.notes[0]
    assert estimate.lowest_bytes is None


READS = {
    "float()": lambda loss: [float(loss)],
    "item()": lambda loss: math.exp(loss.item()),
    "a tensor": lambda items: (math.exp(items), items.tolist()),
}


@pytest.mark.filterwarnings("ignore:Converting a tensor with requires_grad")
@pytest.mark.parametrize("name", READS)
def test_the_note_of_an_unknown_value_names_what_the_line_calls(name):
    notes = estimate_memory(lambda inputs: READS[name](inputs.mean()), torch.ones(4)).notes
    assert len(notes) == 1 and notes[0].startswith(f"the value of {name} at test_estimate.py:")


@pytest.mark.parametrize("use", [bool, lambda one: one < 2, lambda one: one == 1])
def test_assumptions_decide_by_an_unknown_number(use):
    for answer in (True, False):
        assumptions = Assumptions(answer=answer)
        assert use(make_unknown(assumptions)) is answer
        assert assumptions.places.total() == 1


@pytest.mark.parametrize("use", [int, round, lambda one: one // 1])
def test_an_unknown_number_has_no_whole_one(use):
    with pytest.raises(RuntimeError):
        use(make_unknown(Assumptions(answer=False)))


def test_an_unknown_number_is_passed_on():
    number = make_unknown(Assumptions(answer=False))
    passed = [number + 1, 2 - number, number * 3, 1 / number, -number, number**2, round(number, 2)]
    assert {str(one) for one in passed} == {"?"}


def test_what_torch_asks_for_itself_is_answered():
    def make_step():
        model, inputs = nn.Linear(8, 8), torch.ones(4, 8)
        optimizer = torch.optim.ASGD(model.parameters())
        scaler = torch.amp.GradScaler("cpu")

        def step():
            scaler.scale(model(inputs).mean()).backward()
            scaler.unscale_(optimizer)
            nn.utils.clip_grad_norm_(model.parameters(), 1.0, error_if_nonfinite=True)
            scaler.step(optimizer)
            scaler.update()

        return step

    estimate = estimate_memory(make_step)
    assert (estimate.obstacle, estimate.notes) == (None, (OVERFLOW,))


@pytest.mark.parametrize(
    ("step", "what"),
    [
        (lambda: nn.Linear(2, 2), "returned a model"),
        (lambda: (one for one in "ab"), "returned a generator"),
        (lambda: 1 / 0, "raised ZeroDivisionError: division by zero"),
        (lambda: exit(3), "raised SystemExit: 3"),
        (lambda: os._exit(4), "raised SystemExit: 4"),
        (lambda: leave(5), "raised SystemExit: 5"),
        (lambda: [os.abort()], "raised SystemExit"),
        (lambda: nn.Linear(2, 2)(torch.ones(1, 3)), "raised RuntimeError: a and b must"),
        (lambda batch: None, "missing a required argument: 'batch'"),
        (lambda model, data: None, r"\(model, data\) cannot make a step: missing"),
    ],
)
def test_a_step_that_fails_by_itself_is_explained(step, what, caplog):
    with pytest.raises(UsageError, match=what) as caught:
        estimate_memory(step)
    assert caught.value.fix
    assert not caplog.records


def test_the_batch_is_the_functions_own_where_none_is_given():
    estimate = estimate_memory(lambda batch=7: torch.ones(batch) + 1)
    assert (estimate.batch, estimate.peak_bytes) == (7, 56)
    assert estimate_memory(lambda size=7: torch.ones(size)).batch is None
    assert estimate_memory(lambda one: None, torch.ones(1)).batch is None


@pytest.mark.slow
def test_the_largest_batch_is_found_and_the_next_one_does_not_fit():
    make_step = make_training("cnn", "Adam")
    tried = []
    estimate = estimate_memory(make_step, batch=5000, device="1.5 GiB", say=tried.append)
    largest = estimate.largest_batch
    assert estimate.fits is False
    assert estimate_memory(make_step, batch=largest, device="1.5 GiB").fits is True
    assert estimate_memory(make_step, batch=largest + 1, device="1.5 GiB").fits is not True
    assert tried[0] == "trying batch 2500"
    assert len(tried) < 14


@pytest.mark.parametrize(
    ("measure", "expected"),
    [
        (lambda size: 10 * size, 20),
        (lambda size: 100 + 10 * size, 10),
        (lambda size: 206, 0),
        (lambda size: 10 * size if size > 1 else None, 20),
        (lambda size: size * size, 14),
        (lambda size: 1 if size < 63 else 1000, 62),
        (lambda size: None, 0),
    ],
    ids=["linear", "affine", "never", "not one alone", "square", "a cliff", "never runs"],
)
def test_the_search_for_the_largest_batch(measure, expected):
    assert find_largest_batch(measure, 205, 64, 1000) == expected


def test_a_fit_has_no_largest_batch():
    estimate = estimate_memory(make_training("mlp", "SGD"), batch=4, device="H100")
    assert (estimate.fits, estimate.largest_batch) == (True, None)
    assert estimate.spare_bytes == estimate.target.capacity_bytes - estimate.most_bytes


def test_a_close_call_is_none_and_the_largest_batch_surely_fits():
    estimate = estimate_memory(make_training("mlp", "SGD"), batch=4, device="600 MiB")
    assert estimate.fits is None
    assert estimate.largest_batch == 0
    assert "close: whether it fits 600 MiB depends on CUDA's context" in repr(estimate)
    assert "not even a batch of 1 certainly fits" in repr(estimate)


def test_a_model_with_its_inputs_is_its_forward_pass():
    model, inputs = nn.Linear(100, 10, bias=False), torch.ones(5, 100)
    weight = model.weight
    estimate = estimate_memory(model, inputs, inference=True)
    assert (estimate.name, estimate.notes) == ("Linear", ())
    assert (estimate.kinds["parameters"], estimate.kinds["inputs"]) == (4000, 2000)
    assert estimate.peak_bytes == 4000 + 2000 + 200
    assert model.weight is weight
    assert type(weight) is nn.Parameter


def test_a_models_forward_pass_alone_is_not_taken_for_training():
    estimate = estimate_memory(nn.Linear(2, 2), torch.ones(1, 2))
    assert estimate.notes == (FORWARD_ALONE,)
    assert "calls backward() too" in str(estimate)


def test_a_model_from_outside_counts_once_where_it_is_not_trained():
    model, inputs = nn.Linear(64, 64), torch.ones(8, 64)
    given = estimate_memory(model, inputs, inference=True)
    read = estimate_memory(lambda inputs: model(inputs), inputs, inference=True)  # noqa: PLW0108
    assert (read.peak_bytes, read.kinds) == (given.peak_bytes, given.kinds)
    with pytest.raises(UsageError, match="reads a parameter that was made outside") as caught:
        estimate_memory(lambda one, inputs: model(one(inputs)), model, inputs, inference=True)
    assert "count twice" in caught.value.cause


@pytest.mark.filterwarnings("ignore:torch.quantize_per_tensor:UserWarning")
def test_a_tensor_that_cannot_be_faked_makes_a_lower_bound():
    quantized = torch.quantize_per_tensor(torch.ones(10), 0.1, 0, torch.qint8)
    estimate = estimate_memory(lambda one: one.dequantize(), quantized, device="24 GiB")
    assert (estimate.obstacle.operator, estimate.fits) == ("a tensor", None)
    assert "a lower bound: a tensor has no fake version" in str(estimate)


def test_where_the_context_alone_is_too_much_no_batch_is_tried():
    tried = Record()

    def make_step(batch):
        tried.append(batch)
        held = torch.ones(batch)
        return lambda: held + 1

    estimate = estimate_memory(make_step, batch=1000, device="100 MiB")
    assert (estimate.fits, estimate.largest_batch) == (False, 0)
    assert tried.take() == [1000]


def keep_outputs(batch=1024):
    """A step that keeps its output with its graph."""
    model = nn.Sequential(nn.Linear(1024, 1024), nn.ReLU(), nn.Linear(1024, 1024))
    inputs, kept = torch.randn(batch, 1024), []
    return lambda: kept.append(model(inputs))


def test_memory_that_grows_with_each_step_never_fits_for_good():
    estimate = estimate_memory(keep_outputs, device="24 GiB")
    # The outputs and the ReLU's, which the graph keeps; the inputs are there once.
    assert estimate.growth_bytes == 2 * 1024 * 4096
    assert (estimate.fits, estimate.largest_batch) == (None, None)
    assert estimate.steps_left == (24 * GIB - estimate.most_bytes) // estimate.growth_bytes
    assert f"for about {estimate.steps_left:,} more steps" in str(estimate)
    assert "a lower bound for more than 3 steps: each keeps 8.0 MiB more" in str(estimate)


def test_a_list_of_losses_does_not_change_the_verdict():
    def make_step(batch=8):
        model, inputs, losses = nn.Linear(8, 8), torch.ones(batch, 8), []
        return lambda: losses.append(model(inputs).mean().detach())

    estimate = estimate_memory(make_step, device="24 GiB")
    assert (estimate.growth_bytes, estimate.fits) == (512, True)


def test_what_only_the_second_step_makes_is_not_growth():
    def make_step(batch=8):
        model, inputs, kept = nn.Linear(8, 8), torch.ones(batch, 8), {}
        runs = iter(range(10))
        return lambda: (kept.update({min(1, next(runs)): torch.ones(9)}), model(inputs))[0]

    assert estimate_memory(make_step, device="24 GiB").growth_bytes == 0


@pytest.mark.parametrize("model", MODELS)
def test_training_does_not_grow(model):
    assert estimate_memory(make_training(model, "Adam"), batch=4).growth_bytes == 0


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize(
    "loss", ["mse_loss", "smooth_l1_loss", "soft_margin_loss", "binary_cross_entropy", "l1_loss"]
)
def test_a_loss_keeps_the_storage_that_it_really_keeps(loss, reduction):
    def make_step(batch=256):
        layer = nn.Linear(64, 64)
        inputs, targets = torch.rand(batch, 64), torch.rand(batch, 64)

        def step():
            wrong = getattr(nn.functional, loss)(
                layer(inputs).sigmoid(), targets, reduction=reduction
            )
            wrong.sum().backward()

        return step

    run_twice(make_step, 256)
    with track_memory("cpu", tensors=True) as tracked:
        run_twice(make_step, 256)
    measured = tracked.use.find_span("tensors").peak_bytes
    assert estimate_memory(make_step).peak_bytes == pytest.approx(measured, rel=0.001)


def test_a_cached_function_keeps_no_fake_tensor_for_the_real_step():
    @functools.lru_cache
    def make_table(size):
        return {"table": (torch.arange(size, dtype=torch.float32),)}

    estimate_memory(lambda: lambda: make_table(1000)["table"][0] * 2)
    assert type(make_table(1000)["table"][0]) is torch.Tensor


def test_a_count_of_unknown_values_is_added_up_and_is_a_size_between_none_and_all():
    def count(scores):
        right = 0
        for part in scores.split(4):
            right += (part.argmax(1) == 0).sum().item()
        return right / 16, int((scores > 0).sum()) / int((scores < 1).sum())

    assert estimate_memory(count, torch.randn(16, 8)).obstacle is None

    def select(scores):
        return torch.zeros(1000 * (scores.argmax(1) == 0).sum().item())

    estimate = estimate_memory(select, torch.randn(16, 8))
    assert estimate.obstacle is None
    assert estimate.lowest_bytes < 1000 < 64_000 < estimate.peak_bytes


SIZED = {
    "an integer": (lambda: torch.randint(2, 10, (1,)).item(), 2, 9),
    "half of an integer": (lambda: torch.randint(2, 10, ()).item() // 2, 1, 4),
    "a share": (lambda: int(torch.rand(1) * 100) + 1, 1, 100),
    "a root": (lambda: round(math.sqrt(torch.empty(1).uniform_(4.0, 400.0).item())), 2, 20),
    "the first of an order": (lambda: int(torch.randperm(10)[0]) + 1, 1, 10),
    "one by weights": (lambda: torch.multinomial(torch.ones(5), 1) + 1, 1, 5),
    "an array": (lambda: torch.randint(1, 4, (2,)).numpy().sum(), 2, 6),
    "a best place": (lambda: int(torch.randn(7).argmax()) + 1, 1, 7),
}


@pytest.mark.parametrize("name", SIZED)
def test_a_drawn_size_is_a_range_with_its_ends(name):
    draw, low, high = SIZED[name]

    def step(values):
        size = draw()  # its own tensors are gone then
        return values.repeat(1000 * int(size))

    estimate = estimate_memory(step, torch.ones(1))
    assert estimate.obstacle is None
    assert estimate.lowest_bytes == pytest.approx(4000 * low, abs=200)
    assert estimate.peak_bytes == pytest.approx(4000 * high, abs=200)


@pytest.mark.filterwarnings("ignore:.torch.jit.script. is deprecated")
def test_a_scripted_model_is_exact_from_the_first_estimate():
    def make_step():
        layers = nn.Conv2d(3, 16, 3), nn.BatchNorm2d(16), nn.ReLU(), nn.Flatten()
        model = torch.jit.script(nn.Sequential(*layers, nn.Linear(16 * 900, 10)))
        values = torch.randn(16, 3, 32, 32)
        return lambda: model(values).sum().backward()

    estimate = estimate_memory(make_step)  # no other test scripts an nn.Sequential
    with track_memory("cpu", tensors=True) as tracked:
        step = make_step()
        for _ in range(4):
            step()
    assert estimate.peak_bytes == tracked.use.find_span("tensors").peak_bytes


def test_numbers_that_become_a_tensor_stay_unknown():
    def step(values):
        made = torch.tensor([values[0], values[1]])
        rows = torch.tensor([[values.sum().item()], [1.0]])
        assert (made.shape, made.dtype, rows.shape) == ((2,), torch.float64, (2, 1))
        return values.repeat(1 + int((made + rows).sum() > 0))

    estimate = estimate_memory(step, torch.ones(100, dtype=torch.float64))
    assert estimate.obstacle is None and estimate.lowest_bytes < estimate.peak_bytes


def test_what_places_select_and_count_is_followed():
    def step(scores):
        order, kept = scores.sort(descending=True)[1], []
        while order.numel() > 1:
            kept.append(scores[order[0]])
            order = order[1:][scores[order[1:]] < 0.5]
        codes = torch.cat([scores.view(4, -1).argmax(1), torch.zeros(2, dtype=torch.long)])
        return torch.bincount(codes, minlength=25), [int(one) for one in codes]

    assert estimate_memory(step, torch.rand(100)).obstacle is None


@pytest.mark.parametrize(("least", "lowest"), [(0, 1), (50, 50), (100, 100), (150, 150)])
def test_values_between_limits_are_counted_from_the_lowest_to_the_highest(least, lowest):
    def step(scores):
        places = scores.argmax(1)
        return torch.bincount(places, minlength=least), torch.bincount(places, minlength=least)

    scores = torch.randn(2, 100)
    estimate = estimate_memory(step, scores)
    assert estimate.obstacle is None
    highest = max(100, least)
    found = estimate.lowest_bytes or estimate.peak_bytes, estimate.peak_bytes
    # The places are 16 bytes, and there are two results of whole numbers.
    assert found == (816 + 16 * lowest, 816 + 16 * highest)


def test_unknown_values_have_at_least_their_least_count():
    def step(values, least):
        return torch.bincount(values.long(), minlength=least)

    estimate = estimate_memory(step, torch.rand(4), 1000)
    assert "bincount" in str(estimate.obstacle) and "at least" in str(estimate.obstacle)
    assert estimate.peak_bytes == 16 + 32 + 8000
    assert "with minlength=" in str(estimate_memory(step, torch.rand(4), 0).obstacle)


def test_a_matrix_of_predicted_and_true_classes_has_a_known_size():
    def step(scores, labels):
        return torch.bincount(labels * 3 + scores.argmax(1), minlength=9).view(3, 3)

    estimate = estimate_memory(step, torch.randn(8, 3), torch.arange(8) % 3)
    assert (estimate.obstacle, estimate.lowest_bytes, estimate.notes) == (None, None, ())


def test_a_place_that_is_drawn_or_chosen_makes_no_range():
    texts = np.arange(1000)

    def step(values):
        starts = torch.randint(len(texts) - 50, (8,))
        torch.stack([torch.from_numpy(texts[one : one + 50]) for one in starts])
        begin, count = torch.randint(0, 8, (1,)), torch.randint(0, 90, ())
        values[begin : begin + count] = 0
        place = torch.randint(0, 8, (1,)).item()
        return values[place : place + 90] + values[torch.randint(0, 8, ())]

    estimate = estimate_memory(step, torch.randn(100, 10))
    assert (estimate.obstacle, estimate.lowest_bytes, estimate.notes) == (None, None, ())


@pytest.mark.parametrize(
    ("compare", "expected"),
    [
        (lambda one: one > 2, True),
        (lambda one: one + 1 >= 4, True),
        (lambda one: one < 3, False),
        (lambda one: one == 10, False),
        (lambda one: 2 * one != 5, True),
    ],
)
def test_limits_decide_a_comparison_alone(compare, expected):
    for answer in (True, False):
        number = make_unknown(Assumptions(answer=answer), Limits(3, 9))
        assert compare(number) is expected
        assert (number == 5) is answer


def test_a_loop_ends_where_a_known_value_decides_alone():
    def generate(scores):
        length, done = 0, torch.zeros(4, dtype=torch.bool)
        while not done.all():
            length += 1
            done = done | torch.full((4,), length == 5) | (scores.argmax(1) == 0)

    assert estimate_memory(generate, torch.randn(4, 8)).obstacle is None


def test_code_that_asks_sees_no_fake_tensor():
    asked = Record()
    estimate_memory(
        lambda one: asked.append(isinstance(one, torch._subclasses.FakeTensor)), torch.ones(2)
    )
    assert set(asked.take()) == {False}
