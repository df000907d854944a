"""Loads in the process itself what a DataLoader's worker processes would load.

A worker is a fork of the process, where fake tensors cannot be sent from. Here each worker's
batches are loaded in its turn, with its ``get_worker_info()``.
"""

from __future__ import annotations

import contextlib
import sys
from collections import deque
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch.utils._python_dispatch import _disable_current_modes
from torch.utils.data import _utils, dataloader, default_collate, sampler

from labkit.memory.estimate.cuda import replace_attributes

# A longer list is a sequence of numbers: its length is its size.
LONGEST = 16
COMPARED_SAMPLES = 32


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
NOTE = (
    "samples of unequal size come in a random order: the figure is of one order, and another may"
    " need more or less"
)


class _Order:
    """Notes once that samples of unequal size come in a random order."""

    def __init__(self, note: Callable[[str], object]) -> None:
        self._note, self._is_random = note, False
        # Of each dataset, by its id, the sizes that its samples have.
        self._sizes: dict[int, set[Any]] = {}

    def watch_order(self, iterate: Callable[..., Any]) -> Callable[..., Any]:
        """The sampler's ``__iter__``."""

        def answer(order: Any) -> Any:
            self._is_random = True
            return iterate(order)

        return answer

    def watch_samples(self, fetch: Callable[..., Any]) -> Callable[..., Any]:
        """The fetcher's ``fetch``, for the samples of a batch."""

        def answer(fetcher: Any, index: Any) -> Any:
            if self._is_random and fetcher.auto_collation:
                self._compare(fetcher, len(index))
            return fetch(fetcher, index)

        return answer

    def _compare(self, fetcher: Any, count: int) -> None:
        """Looks at some samples; torch's own ``collate_fn`` takes only samples of one size."""
        data = fetcher.dataset
        if (fetcher.collate_fn is default_collate and count > 1) or id(data) in self._sizes:
            return
        sizes = self._sizes[id(data)] = set()
        with _disable_current_modes(), contextlib.suppress(Exception):
            for place in range(0, len(data), max(1, len(data) // COMPARED_SAMPLES)):
                sizes.add(_measure(data[place]))
        if len(sizes) > 1:
            self._note(NOTE)


def _measure(sample: Any, depth: int = 3) -> Any:
    """The shapes and lengths of what a sample is made of; a number has none."""
    if hasattr(sample, "shape"):
        return tuple(sample.shape)
    if isinstance(sample, dict):
        return tuple((name, _measure(one, depth - 1)) for name, one in sample.items())
    if isinstance(sample, list | tuple) and depth and len(sample) < LONGEST:
        return tuple(_measure(one, depth - 1) for one in sample)
    return len(sample) if isinstance(sample, list | tuple | str | bytes) else None


@contextlib.contextmanager
def _entered(worker: Any) -> Iterator[None]:
    """Makes ``get_worker_info()`` return the worker's."""
    with replace_attributes(_utils.worker, _worker_info=worker):
        yield


def load_here(
    loads_ahead: Callable[[], bool], note: Callable[[str], object]
) -> contextlib.ExitStack:
    """Makes a DataLoader with workers load in the process itself, until exit.

    ``loads_ahead`` decides for each iteration whether its workers are ahead of the step. ``note``
    takes a sentence where samples of unequal size come in a random order.
    """

    def iterate(loader: Any) -> Any:
        return _LoadingIterator(loader, ahead=loads_ahead())

    def find_worker() -> Any:
        # Torch's own code would put the batch in memory that processes share.
        collating = sys._getframe(1).f_code.co_filename == _utils.collate.__file__
        return None if collating else _utils.worker._worker_info

    order = _Order(note)
    fetcher = _utils.fetch._MapDatasetFetcher
    stack = replace_attributes(fetcher, fetch=order.watch_samples(fetcher.fetch))
    for kind in SHUFFLING:
        watched = order.watch_order(kind.__iter__)
        stack.enter_context(replace_attributes(kind, __iter__=watched))
    stack.enter_context(replace_attributes(dataloader, _MultiProcessingDataLoaderIter=iterate))
    stack.enter_context(replace_attributes(torch.utils.data, get_worker_info=find_worker))
    return stack


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
