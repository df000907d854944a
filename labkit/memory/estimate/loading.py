"""Loads in the process itself what a DataLoader's worker processes would load.

A worker is a fork of the process, where fake tensors cannot be sent from. Here each worker's
batches are loaded in its turn, with its ``get_worker_info()``.
"""

from __future__ import annotations

import contextlib
import dataclasses
import math
import random
import sys
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import _utils, dataloader, default_collate, sampler

from labkit.memory.estimate.cuda import replace_attributes

# A longer list is a sequence of numbers: its length is its size.
LONGEST = 16
# How many samples are looked at besides those that are loaded, and for how long.
MOST_SAMPLES, LEAST_SAMPLES, LOOKING_SECONDS = 2048, 4, 0.1


class _LoadingIterator(dataloader._SingleProcessDataLoaderIter):  # type: ignore[misc]
    """The batches of all workers, in the order in which they come.

    As many are loaded ahead as the workers may, or none.
    """

    def __init__(self, loader: Any, *, ahead: bool) -> None:
        count, start = loader.num_workers, loader.worker_init_fn
        self._most = count * (loader.prefetch_factor or 0) if ahead else 0
        with replace_attributes(loader, num_workers=0, timeout=0):
            super().__init__(loader)
        self._workers = [
            _utils.worker.WorkerInfo(
                id=place, num_workers=count, seed=place, dataset=loader.dataset
            )
            for place in range(count)
        ]
        for worker in self._workers:
            with _entered(worker):
                if start is not None:
                    start(worker.id)
        self._begin()

    def _begin(self) -> None:
        kinds, made = dataloader._DatasetKind, []
        for worker in self._workers:
            with _entered(worker):
                fetcher = kinds.create_fetcher(
                    self._dataset_kind, self._dataset, self._auto_collation, self._collate_fn,
                    self._drop_last,
                )  # fmt: skip
            made.append((worker, fetcher))
        self._turns, self._loaded = deque(made), deque[Any]()

    def _reset(self, loader: Any, first_iter: bool = False) -> None:
        super()._reset(loader, first_iter)
        self._begin()

    def _next_data(self) -> Any:
        with contextlib.suppress(StopIteration):
            while len(self._loaded) <= self._most:
                self._loaded.append(self._load())
        if not self._loaded:
            raise StopIteration
        return self._loaded.popleft()

    def _load(self) -> Any:
        while self._turns:
            worker, fetcher = self._turns.popleft()
            index = self._next_index()
            try:
                with _entered(worker):
                    data = fetcher.fetch(index)
            except StopIteration:  # this worker's part of an iterable dataset has ended
                continue
            self._turns.append((worker, fetcher))
            return _utils.pin_memory.pin_memory(data) if self._pin_memory else data
        raise StopIteration


SHUFFLING = (sampler.RandomSampler, sampler.SubsetRandomSampler, sampler.WeightedRandomSampler)
RANDOM, OWN = "come in a random order", "come in an order of the sampler's own"
STREAM, LATER = "come from a stream", "come in later batches than the simulated ones"
# Where a dataset or a sampler may know how long its samples are.
LENGTHS = ("lengths", "length", "sizes", "lens", "seq_lens", "num_tokens")


class _Samples:
    """The samples of a dataset: their shapes, and how many elements the largest loaded one has."""

    def __init__(self, iterator: Any) -> None:
        self.dataset, self.samplers = iterator._dataset, _list_samplers(iterator._index_sampler)
        self.order, self.moves_on = _find_order(iterator, self.samplers[-1]), False
        self.shapes: set[Any] = set()
        self.most = 0

    def look(self, sample: Any) -> None:
        """Takes the shapes of a loaded sample."""
        shapes = _list_shapes(sample)
        if shapes not in self.shapes:
            self.shapes.add(shapes)
            self.most = max(self.most, _count(shapes))

    def describe(self) -> str | None:
        """The note about batches of other samples; None where all are alike, or all the same."""
        if self.order == LATER and not self.moves_on:
            return None
        largest, unequal = self.most, len(self.shapes) > 1
        if self.order != STREAM:
            found = self._look_further()
            unequal = len(self.shapes | found) > 1 or self._has_lengths()
            largest = max(map(_count, found), default=0)
        if not unequal:
            return None
        direction = "more or less"
        if largest > self.most:
            direction = (
                f"more: one sample has {largest} elements, of the simulated ones the largest"
            )
            direction += f" {self.most}"
        return (
            f"samples of unequal size {self.order}: the figure is of one order, and another may"
            f" need {direction}"
        )

    def _look_further(self) -> set[Any]:
        """The shapes of the first, the last and random samples, as many as are quickly read."""
        found: set[Any] = set()
        with contextlib.suppress(Exception):
            count = len(self.dataset)
            more = random.Random(0).sample(range(count), min(count, MOST_SAMPLES))  # noqa: S311
            end = time.perf_counter() + LOOKING_SECONDS
            for number, place in enumerate((0, count - 1, *more)):
                if number >= LEAST_SAMPLES and time.perf_counter() > end:
                    break
                found.add(_list_shapes(self.dataset[place]))
        return found

    def _has_lengths(self) -> bool:
        """True where the dataset or a sampler says that its samples have different lengths."""
        for owner in (self.dataset, *self.samplers):
            columns = getattr(owner, "column_names", None) or ()
            for name in LENGTHS:
                with contextlib.suppress(Exception):
                    known = owner[name] if name in columns else getattr(owner, name)
                    if len(known) == len(self.dataset):
                        return bool(min(known) != max(known))
        return False


class Order:
    """Watches which samples loaders load, to note how batches of others would differ."""

    def __init__(self, find_step: Callable[[], int]) -> None:
        self._find_step = find_step
        self._found: dict[tuple[int, str], _Samples] = {}

    def watch(self, iterator: Any) -> None:
        """Looks at what a new iterator loads."""
        collate, batches = iterator._collate_fn, iterator._auto_collation
        alike = collate is default_collate and type(iterator._index_sampler) is sampler.BatchSampler
        if alike and iterator._index_sampler.batch_size > 1:
            return  # torch stacks samples of one size alone
        made = _Samples(iterator)
        samples = self._found.setdefault((id(iterator._dataset), made.order), made)
        first: list[int] = []

        def look(loaded: Any) -> Any:
            step = self._find_step()
            samples.moves_on |= bool(first) and step != first[0]
            first.append(step)
            for one in loaded if batches else [loaded]:
                samples.look(one)
            return collate(loaded)

        iterator._collate_fn = look

    def describe(self) -> list[str]:
        """The notes, after the steps."""
        notes = [one.describe() for one in self._found.values()]
        return [one for one in notes if one is not None]


def _list_samplers(order: Any) -> list[Any]:
    """The sampler of batches, and the one of samples that it has."""
    found = [order]
    while type(found[-1]) is sampler.BatchSampler:
        found.append(found[-1].sampler)
    return found


def _find_order(iterator: Any, order: Any) -> str:
    if iterator._dataset_kind == dataloader._DatasetKind.Iterable:
        return STREAM
    if isinstance(order, sampler.SequentialSampler):
        return LATER
    if isinstance(order, torch.utils.data.DistributedSampler):
        return RANDOM if order.shuffle else LATER
    return RANDOM if isinstance(order, SHUFFLING) else OWN


def _list_shapes(sample: Any) -> tuple[tuple[int, ...], ...]:
    """The shapes of a sample's tensors and arrays, and its lists' lengths; else its texts'."""
    shapes: list[tuple[int, ...]] = []
    texts: list[tuple[int, ...]] = []
    _add_shapes(sample, 4, shapes, texts)
    return tuple(shapes or texts)


def _add_shapes(sample: Any, depth: int, shapes: list[Any], texts: list[Any]) -> None:
    size = getattr(sample, "size", None)
    if hasattr(sample, "shape"):
        shapes.append(tuple(sample.shape))
    elif isinstance(sample, str | bytes):
        texts.append((len(sample),))
    elif isinstance(size, tuple):  # an image of PIL
        shapes.append(size)
    elif isinstance(sample, Mapping) or dataclasses.is_dataclass(sample):
        for one in (sample if isinstance(sample, Mapping) else vars(sample)).values():
            _add_shapes(one, depth - 1, shapes, texts)
    elif isinstance(sample, list | tuple) and (not depth or len(sample) >= LONGEST):
        shapes.append((len(sample),))
    elif isinstance(sample, list | tuple):
        if isinstance(sample, list) and all(isinstance(one, int | float) for one in sample):
            shapes.append((len(sample),))
            return
        for one in sample:
            _add_shapes(one, depth - 1, shapes, texts)


def _count(shapes: tuple[tuple[int, ...], ...]) -> int:
    return sum(map(math.prod, shapes))


@contextlib.contextmanager
def _entered(worker: Any) -> Iterator[None]:
    """Makes ``get_worker_info()`` return the worker's."""
    with replace_attributes(_utils.worker, _worker_info=worker):
        yield


@contextlib.contextmanager
def load_here(loads_ahead: Callable[[], bool]) -> Iterator[None]:
    """Makes a DataLoader with workers load in the process itself, until exit.

    ``loads_ahead`` decides for each iteration whether its workers are ahead of the step.
    """

    def iterate(loader: Any) -> Any:
        return _LoadingIterator(loader, ahead=loads_ahead())

    def find_worker() -> Any:
        # Torch's own code would put the batch in memory that processes share.
        collating = sys._getframe(1).f_code.co_filename == _utils.collate.__file__
        return None if collating else _utils.worker._worker_info

    with (
        _stack_arrays(),
        replace_attributes(dataloader, _MultiProcessingDataLoaderIter=iterate),
        replace_attributes(torch.utils.data, get_worker_info=find_worker),
    ):
        yield


@contextlib.contextmanager
def _stack_arrays() -> Iterator[None]:
    """Makes ``default_collate`` stack arrays before they are a tensor: each would cost as much."""
    numpy, collaters = sys.modules.get("numpy"), _utils.collate.default_collate_fn_map
    each = None if numpy is None else collaters.get(numpy.ndarray)
    if numpy is None or each is None:
        yield
        return

    def stack(batch: Any, **named: Any) -> Any:
        first = batch[0]
        kind = first.shape, first.dtype
        if first.dtype.kind in "biufc" and all((one.shape, one.dtype) == kind for one in batch):
            return torch.tensor(numpy.stack(batch))  # of its own memory, as a stack is
        return each(batch, **named)

    collaters[numpy.ndarray] = stack
    try:
        yield
    finally:
        collaters[numpy.ndarray] = each


def make_iterator(loader: Any) -> Any:
    """The iterator that a loader with these settings would make."""
    workers = loader.num_workers > 0
    kind = "_MultiProcessingDataLoaderIter" if workers else "_SingleProcessDataLoaderIter"
    return getattr(dataloader, kind)(loader)


FOLDER = str(Path(dataloader.__file__).parent)
# The most frames between an operator's dispatch and the code that calls it.
DEPTH = 12


def is_loading() -> bool:
    """True where torch's own code of loaders and samplers runs the operator."""
    running: Any = sys._getframe(1)
    for _ in range(DEPTH):
        if running is None or running.f_code.co_filename.startswith(FOLDER):
            break
        running = running.f_back
    return running is not None and running.f_code.co_filename.startswith(FOLDER)
