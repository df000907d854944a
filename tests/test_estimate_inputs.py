"""What a step takes from iterators, loaders and models that were made before its estimate."""

from __future__ import annotations

import copy
import csv
import io
import itertools
import math
import multiprocessing
import sys
import threading
import zipfile
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional
from torch.utils.data import DataLoader, Dataset, IterableDataset, TensorDataset

from labkit.errors import UsageError
from labkit.memory.estimate.play import estimate_memory
from tests.fakes.steps import measure_twice

BATCHES = [torch.full((4, 8), float(place)) for place in range(8)]


def make_loader(**options):
    return DataLoader(TensorDataset(torch.arange(192.0).view(24, 8)), 4, **options)


def repeat(loader):
    while True:
        for (batch,) in loader:
            yield batch


def number_batches():
    yield from enumerate(BATCHES)


# Makes an iterator, of batches or of what has one as its first or its last part.
LIVE = {
    "a loader": lambda: iter(make_loader()),
    "workers": lambda: iter(make_loader(num_workers=1)),
    "enumerate": lambda: enumerate(make_loader()),
    "zip": lambda: zip(make_loader(), BATCHES, strict=False),
    "map": lambda: map(torch.clone, BATCHES),
    "cycle": lambda: itertools.cycle(BATCHES[:2]),
    "cycle of a loader": lambda: itertools.cycle(make_loader()),
    "part of a chain": lambda: itertools.islice(itertools.chain(BATCHES, BATCHES), 2, 12),
    "list": lambda: iter(BATCHES),
    "generator": lambda: repeat(make_loader()),
    "generator of pairs": number_batches,
    "generator expression": lambda: (one + 1 for one in BATCHES),
}


def find_batch(value):
    while not isinstance(value, torch.Tensor):
        value = next(one for one in value if not isinstance(one, int))
    return value


def train(model, iterator):
    model(find_batch(next(iterator))).sum().backward()


def list_next(iterator, count=7):
    return [find_batch(one).tolist() for one in itertools.islice(iterator, count)]


class Trainer:
    """An object of the user's that keeps an iterator."""

    def __init__(self, batches):
        self.batches = batches


@pytest.mark.filterwarnings("ignore:.*itertools:DeprecationWarning")
@pytest.mark.parametrize("as_argument", [True, False], ids=["argument", "closure"])
@pytest.mark.parametrize("name", LIVE)
def test_a_live_iterator_gives_the_step_batches_and_stays_where_it_is(name, as_argument):
    live, expected = LIVE[name](), list_next(LIVE[name]())
    model, trainer = nn.Linear(8, 64), Trainer(live)
    if as_argument:
        found = estimate_memory(train, model, live)
    else:
        found = estimate_memory(lambda model: train(model, trainer.batches), model)

    assert found.obstacle is None and found.kinds["gradients"] == 4 * 64 * 9
    assert list_next(live) == expected


@pytest.mark.parametrize("started", [True, False])
def test_workers_that_persist_are_not_the_simulations(started):
    loader = make_loader(num_workers=1, persistent_workers=True)
    live = iter(loader) if started else None
    kept = loader._iterator
    estimate_memory(lambda model: model(next(iter(loader))[0]), nn.Linear(8, 8), inference=True)
    assert loader._iterator is kept
    assert len(list(live if started else loader)) == 6


def begin():
    made = repeat(make_loader())
    next(made)
    return made


def read_lines():
    file = io.TextIOWrapper(io.BufferedReader(io.BytesIO(b"1\n2\n3\n")))
    next(file)
    return file


@pytest.mark.parametrize(
    ("make", "kind", "fix"),
    [
        (begin, "generator (repeat)", "instead of its iterator"),
        (lambda: csv.reader(["1", "2"]), "reader", "instead of its iterator"),
        (read_lines, "TextIOWrapper", "let the step open it"),
    ],
)
def test_what_cannot_be_copied_is_refused_before_it_gives_anything(make, kind, fix):
    live = make()
    expected = [next(one) for one in [make()]]

    def step(model):
        try:
            next(live)
        except Exception:
            model(BATCHES[0])

    with pytest.raises(UsageError) as error:
        estimate_memory(step, nn.Linear(8, 8))
    assert kind in error.value.what and fix in error.value.fix
    assert str(next(live)) == str(expected[0])


def test_an_open_file_is_read_again_from_where_it_is():
    with open(__file__) as file:  # noqa: PTH123
        file.readline()
        place = file.tell()
        estimate_memory(lambda model: model(torch.ones(len(file.read(8)), 8)), nn.Linear(8, 8))
        assert file.tell() == place


class Uncopied:
    """An object of a program's own that refuses to be copied."""

    def __reduce_ex__(self, protocol):
        raise TypeError("not this one")


def test_an_argument_that_cannot_be_copied_is_named():
    model = nn.Linear(8, 8)
    model.kept = Uncopied()
    with pytest.raises(UsageError, match=r"argument 2, a Linear: not this one"):
        estimate_memory(lambda batch, model: model(batch), BATCHES[0], model)


class HoldingTrainer:
    """What scripts pass to their step: a model with a lock, log files and a condition."""

    def __init__(self, folder):
        self.model, self.lock, self.ready = nn.Linear(8, 8), threading.Lock(), threading.Event()
        self.log, self.math = (folder / "log.txt").open("w"), math
        self.rows, self.words = csv.writer(self.log), (folder / "words.txt").open()
        self.archive = zipfile.ZipFile(folder / "images.zip", "w")
        self.count, self.threads = multiprocessing.Value("i", 0), ThreadPoolExecutor(1)

    def run(self, batch):
        with self.lock:
            self.model(batch).sum().backward()
            self.log.write("a loss\n")
            self.rows.writerow([self.math.pi])
            self.archive.writestr(self.words.readline(), "an image")
            self.count.value += 1
            self.ready.set()
            assert self.threads.submit(int).result() == 0

    def close(self):
        self.log.close()
        self.words.close()
        self.archive.close()
        self.threads.shutdown()


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_an_argument_may_hold_what_cannot_be_copied(tmp_path):
    (tmp_path / "words.txt").write_text("first\nsecond\n")
    trainer = HoldingTrainer(tmp_path)
    trainer.log.write("mine\n")
    notes = estimate_memory(lambda one, batch: one.run(batch), trainer, BATCHES[0]).notes
    assert (trainer.count.value, trainer.ready.is_set(), trainer.words.tell()) == (0, False, 0)
    trainer.run(BATCHES[0])  # the real one
    trainer.close()
    assert (tmp_path / "log.txt").read_text() == f"mine\na loss\n{math.pi}\n"
    assert zipfile.ZipFile(tmp_path / "images.zip").namelist() == ["first\n"]
    assert len([note for note in notes if "open before" in note]) == 1
    assert not [note for note in notes if "cannot be copied" in note]


def test_a_progress_bar_of_a_loader_is_an_argument(capsys):
    tqdm = pytest.importorskip("tqdm")
    bar = tqdm.tqdm(make_loader())
    shown = capsys.readouterr()

    def step(model, bar):
        for (batch,) in bar:
            model(batch).sum().backward()
            bar.set_postfix(loss=1)

    assert estimate_memory(step, nn.Linear(8, 8), bar).obstacle is None
    assert not any(capsys.readouterr()) and shown.err
    bar.close()


def test_an_iterator_that_ends_too_early_is_named():
    with pytest.raises(UsageError) as error:
        estimate_memory(train, nn.Linear(8, 8), iter(BATCHES[:1]))
    assert "instead of its iterator" in error.value.fix


class Lengths(Dataset):
    """Samples of these lengths; which is known without reading them, if ``known``."""

    def __init__(self, lengths, *, known=False, name="x.png"):
        self.read, self.name = lengths, name
        if known:
            self.lengths = lengths

    def __len__(self):
        return len(self.read)

    def __getitem__(self, place):
        return torch.ones(self.read[place], 8), self.name * (place % 3)


class Streamed(IterableDataset):
    """The same samples, one after the other."""

    def __init__(self, samples):
        self.samples = samples

    def __iter__(self):
        return (self.samples[place] for place in range(len(self.samples)))


class Backwards(torch.utils.data.Sampler):
    """A sampler of the user's; it can name batches too."""

    def __init__(self, count, batch=None):
        self.count, self.batch = count, batch

    def __iter__(self):
        for place in reversed(range(self.count)):
            yield place if self.batch is None else [place] * self.batch


def pad(samples):
    return nn.utils.rnn.pad_sequence([values for values, _ in samples])


def share(samples, *, shuffle):
    return torch.utils.data.DistributedSampler(samples, 2, 0, shuffle=shuffle)


# One in 32 samples is long, none of them at a multiple of 32 and none in the first batch.
FEW = Lengths([400 if place % 32 == 31 else 10 for place in range(1024)])
TWO = Lengths([*[10] * 40, *[400] * 24])
RARE = Lengths([400 if place == 77_777 else 10 for place in range(100_000)], known=True)
SAME = Lengths([10] * 64)
UNEQUAL = {
    "few": (FEW, {"shuffle": True}, "random order"),
    "known": (RARE, {"shuffle": True}, "random order"),
    "equal": (SAME, {"shuffle": True}, None),
    "own": (TWO, {"sampler": Backwards(64)}, "sampler's own"),
    "batches": (TWO, {"batch_size": 1, "batch_sampler": Backwards(64, 8)}, "sampler's own"),
    "parts": (TWO, {"sampler": share(TWO, shuffle=True)}, "random order"),
    "parts in order": (TWO, {"sampler": share(TWO, shuffle=False)}, None),
    "stream": (Streamed(TWO), {"batch_size": 64}, "a stream"),
    "stream of equal": (Streamed(SAME), {}, None),
}


@pytest.mark.parametrize("name", UNEQUAL)
def test_samples_of_unequal_size_are_noted_where_another_batch_may_come(name):
    data, options, order = UNEQUAL[name]
    loader = DataLoader(data, **{"batch_size": 8, "collate_fn": pad, **options})

    def step(model):
        model(next(iter(loader))).mean().backward()

    found = estimate_memory(step, nn.Linear(8, 64))
    notes = [one for one in found.notes if "unequal size" in one]
    assert len(notes) == (order is not None)
    assert order is None or order in notes[0]
    assert name not in {"few", "own"} or ("3200 elements" in notes[0]) is (name == "few")


@pytest.mark.parametrize("goes_on", [True, False])
def test_longer_samples_in_later_batches_are_noted_where_the_steps_go_on_to_them(goes_on):
    loader = DataLoader(TWO, 8, collate_fn=pad)

    def make_step():
        model, batches = nn.Linear(8, 64), iter(loader)
        return lambda: model(next(batches if goes_on else iter(loader))).mean().backward()

    notes = [one for one in estimate_memory(make_step).notes if "later batches" in one]
    assert len(notes) == goes_on
    assert not goes_on or "need more: one sample has 3200 elements" in notes[0]


def test_an_order_of_very_many_samples_is_known():
    loader = DataLoader(range(300_000), 4, shuffle=True)
    found = estimate_memory(
        lambda model: model(next(iter(loader)).float()[:, None]), nn.Linear(1, 8), inference=True
    )
    assert (found.obstacle, found.lowest_bytes, found.notes) == (None, None, ())


def test_whole_numbers_that_nobody_knows_become_a_tensor_of_whole_numbers():
    def make_step():
        words, model = torch.randint(0, 50, (20,)).tolist(), nn.Embedding(50, 64)
        return lambda: model(torch.tensor(words[2:10])).sum().backward()

    assert estimate_memory(make_step).obstacle is None


def test_a_copied_parameter_is_a_parameter():
    def step(model):
        copied = copy.deepcopy(model)
        copied.weight = copy.deepcopy(model).weight
        assert not isinstance(copy.deepcopy(torch.ones(3)), nn.Parameter)
        copied(BATCHES[0]).sum().backward()

    assert estimate_memory(step, nn.Linear(8, 64)).obstacle is None


@pytest.mark.parametrize("loss", ["mse_loss", "smooth_l1_loss", "huber_loss"])
def test_a_loss_of_nothing_is_one_of_the_ways(loss):
    def step(model):
        values = model(BATCHES[0])
        chosen = values[values > 0]
        getattr(functional, loss)(chosen, torch.zeros_like(chosen)).backward()

    found = estimate_memory(step, nn.Linear(8, 64))
    assert found.obstacle is None and found.lowest_bytes < found.peak_bytes


def make_layers():
    return nn.Sequential(nn.Linear(8, 64), nn.BatchNorm1d(64), nn.ReLU(), nn.Linear(64, 8))


def load_script():
    file = io.BytesIO()
    torch.jit.save(torch.jit.script(make_layers()), file)
    file.seek(0)
    return torch.jit.load(file)


SCRIPTED = {
    "script": lambda: torch.jit.script(make_layers()),
    "trace": lambda: torch.jit.trace(make_layers().eval(), BATCHES[0]),
    "load": load_script,
    "part": lambda: nn.Sequential(*[torch.jit.script(one) for one in make_layers()]),
}


def train_by(model, optimizer):
    optimizer.zero_grad()
    model(BATCHES[0]).sum().backward()
    optimizer.step()


@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")
@pytest.mark.parametrize("name", SCRIPTED)
def test_a_scripted_model_is_an_argument_and_stays_as_it_is(name):
    model, plain = SCRIPTED[name](), make_layers()
    found, expected = (
        estimate_memory(train_by, one, torch.optim.Adam(one.parameters())) for one in (model, plain)
    )
    assert found.obstacle is None
    # The operators of a scripted model keep other activations.
    assert found.kinds["gradients"] == expected.kinds["gradients"]
    assert found.kinds["optimizer"] == expected.kinds["optimizer"]
    kept = [*model.parameters(), *model.buffers()]
    assert all(type(one) in {nn.Parameter, torch.Tensor} for one in kept)
    assert all(one.grad is None for one in kept)


def test_a_model_that_is_cut_into_shards_is_named_with_the_way_out():
    class FSDPSequential(nn.Sequential):
        def __deepcopy__(self, memo):
            raise AssertionError("FSDP does not support deepcopy")

    with pytest.raises(UsageError, match="argument 1, a FSDPSequential: FSDP") as error:
        estimate_memory(lambda model: model(BATCHES[0]), FSDPSequential())
    assert "estimate_memory(make_step)" in error.value.fix


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore:.*quantize:UserWarning")
def test_a_quantized_model_is_a_lower_bound():
    kinds = {nn.Linear}
    model = torch.ao.quantization.quantize_dynamic(make_layers().eval(), kinds, torch.qint8)
    found = estimate_memory(lambda model: model(BATCHES[0]), model, inference=True)
    assert "affine_quantized" in found.obstacle.operator


@pytest.mark.filterwarnings("ignore:Sparse.*:UserWarning")
def test_a_sparse_tensor_is_a_lower_bound_as_an_argument_and_in_the_step():
    chosen = torch.eye(4)
    step = lambda model, mix: torch.sparse.mm(mix.to_sparse(), model(BATCHES[0])).sum().backward()  # noqa: E731
    for mix in (chosen, chosen.to_sparse()):
        found = estimate_memory(step, nn.Linear(8, 64), mix)
        assert "sparse_coo" in found.obstacle.operator and found.kinds["gradients"]


def test_a_model_that_the_step_exports_is_an_upper_bound():
    def make_step():
        model = torch.export.export(make_layers(), (BATCHES[0],)).module()
        return lambda: model(BATCHES[0]).sum().backward()

    assert "torch.export" in estimate_memory(make_step).excess


def test_arrays_of_samples_are_stacked_before_they_are_a_tensor(monkeypatch):
    numpy = pytest.importorskip("numpy")
    made = []
    create = torch.tensor
    monkeypatch.setattr(torch, "tensor", lambda *given: made.append(given) or create(*given))
    samples = [numpy.full(8, place, numpy.float32) for place in range(64)]

    def step(model):
        model(next(iter(DataLoader(samples, 32)))).sum().backward()

    assert estimate_memory(step, nn.Linear(8, 64)).obstacle is None
    assert len(made) == 2
    uneven = DataLoader([numpy.ones(3), numpy.ones(4)], 2)
    with pytest.raises(UsageError, match="stack"):
        estimate_memory(lambda: next(iter(uneven)))


DRAWN = {
    "mixed": lambda values: torch.distributions.Beta(values, values),
    "shares": torch.distributions.Dirichlet,
    "waits": lambda values: torch.distributions.Gamma(values, values),
    "counts": lambda values: torch.distributions.Binomial(10, values / values.sum()),
}


@pytest.mark.parametrize("name", DRAWN)
def test_distributions_are_drawn_from_on_a_gpu(name):
    def step(values):
        drawn = DRAWN[name](values.exp())
        sample = drawn.rsample() if drawn.has_rsample else drawn.sample()
        (drawn.log_prob(sample) + sample).sum().backward()

    values = nn.Parameter(torch.ones(1000))
    assert estimate_memory(step, values, device="H100").obstacle is None


def test_fake_tensors_have_the_addresses_of_their_storages():
    def step(model, values):
        whole, part = values.data_ptr(), values[1:].data_ptr()
        assert values.untyped_storage().data_ptr() == whole == part - 8 * 4
        assert len({whole, model.weight.data_ptr(), model.bias.data_ptr()}) == 3
        model(values)

    assert estimate_memory(step, nn.Linear(8, 8), BATCHES[0]).obstacle is None


LATE = """
from datetime import datetime
from os import remove
from random import random
from time import time as read_time
from torch import load, save, tensor
"""


def test_a_module_that_a_step_imports_keeps_nothing_of_the_simulation(tmp_path, monkeypatch):
    (tmp_path / "imported_late.py").write_text(LATE)
    monkeypatch.syspath_prepend(tmp_path)

    def step(values):
        import imported_late

        imported_late.save(values, tmp_path / "values.pt")

    estimate_memory(step, torch.ones(3))
    late, expected = sys.modules["imported_late"], {}
    monkeypatch.delitem(sys.modules, "imported_late")
    exec(LATE, expected)
    names = expected.keys() - {"__builtins__"}
    assert {name: vars(late)[name] for name in names} == {name: expected[name] for name in names}


ARRAY = np.ones((40, 400), np.float32)
MADE = {
    "from_numpy": lambda: torch.from_numpy(ARRAY),
    "as_tensor": lambda: torch.as_tensor(ARRAY),
    "asarray": lambda: torch.asarray(ARRAY)[1:],
    "Tensor": lambda: torch.Tensor(ARRAY),
    "frombuffer": lambda: torch.frombuffer(ARRAY, dtype=torch.float32).view(40, 400),
    "tensor": lambda: torch.tensor(ARRAY),
    "a list": lambda: torch.tensor(ARRAY.tolist()),
    "converted": lambda: torch.from_numpy(ARRAY).double().float(),
}


@pytest.mark.parametrize("name", MADE)
def test_what_shares_the_memory_of_an_array_takes_none(name):
    def make():
        model = nn.Linear(400, 2)

        def step():
            model.zero_grad()
            for _ in range(2):
                model(MADE[name]() * 2).sum().backward()

        return step

    assert estimate_memory(make).peak_bytes == pytest.approx(measure_twice(make), rel=0.001)


@pytest.mark.parametrize("workers", [0, 2])
def test_batches_of_arrays_are_torchs_own_memory(workers):
    rows = [np.ones((100, 50), np.float32) for _ in range(8)]

    def make():
        model = nn.Linear(50, 4)
        loader = DataLoader(rows, batch_size=4, num_workers=workers)

        def step():
            for batch in loader:
                model.zero_grad()
                model(batch).sum().backward()

        return step

    estimate = estimate_memory(make)
    assert estimate.obstacle is None
    assert estimate.peak_bytes >= 4 * 100 * 50 * 4 * 2  # the next batch comes beside the last one
    if not workers:  # else another process makes the batches
        assert estimate.peak_bytes == pytest.approx(measure_twice(make), rel=0.001)
