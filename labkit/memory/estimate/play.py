"""``estimate_memory()``: whether a step fits, without a GPU and without using its memory.

The step runs on fake tensors under labkit's own ``StorageTracer``. torch's tracker
``torch.distributed._tools.mem_tracker.MemTracker`` is not used, because it takes about ten times
as long and fails on ``nn.TransformerEncoder``.
"""

from __future__ import annotations

import contextlib
import contextvars
import dataclasses
import functools
import gc
import inspect
import io
import math
import re
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

from labkit.errors import LabkitError, UsageError
from labkit.memory.estimate.model import Estimate, EstimateObstacle, Target, find_target
from labkit.memory.track.frames import find_check, find_user_frames, list_error_frames
from labkit.text import first_line, format_bytes, shorten

if TYPE_CHECKING:
    import torch

    from labkit.memory.estimate.fake import Simulation
    from labkit.memory.estimate.values import Assumptions

LINES_SHOWN = 8
BATCH_NAMES = ("batch", "batch_size")
MOST_TRIES = 24
ORDER = "what the process has run before decides the order of a double backward pass"
MOST_CHECKS = 6
BY_ROWS = "a mask is assumed to select one element in each row (all, and none, end in an error): {}"
BY_SHAPE = (
    "a mask is assumed to select {} elements in each row, as the shape says that they get: {}"
)
COPIED = "{} may copy arguments that are not contiguous"
DRAWN, AHEAD = "random numbers or the time", "the batches that workers load ahead"
FORWARD_ALONE = "the forward pass alone: a training step is a function that calls backward() too"


def estimate_memory(
    step: Callable[..., object],
    *arguments: object,
    batch: int | None = None,
    device: str | int | torch.device | None = None,
    inference: bool = False,
    say: Callable[[str], object] | None = None,
) -> Estimate:
    """The peak of a training or inference step in bytes, found without running it for real.

    ``step`` runs on fake tensors: shapes and storages without data or memory. Two ways to call it:

    - ``estimate_memory(train_step, model, optimizer, inputs)``: the step and its arguments, real
      or fake. The step gets fake copies; the arguments do not change. A model is a step too, its
      forward pass: ``estimate_memory(model, inputs, inference=True)``.
    - ``estimate_memory(make_step, batch=32)``: ``make_step(batch)`` makes model, optimizer and
      inputs and returns the step, a function without arguments. If its parameter ``batch`` has a
      default, ``batch=`` is not needed.

    The step runs twice, so that the state which an optimizer creates in its first step counts.
    If it keeps more memory after the second run than after the first, it runs once more: a step
    whose memory grows fits only for a number of steps, which the verdict names.
    ``device`` is the target: a size ("24 GiB"), a GPU's name ("H100"), or "cuda:0" or "cpu" of
    this machine. If the step does not fit and there is a batch size, the largest that fits is
    searched, assuming that more samples never need less memory. ``inference=True`` runs
    the step without gradients. ``say`` is called with a line about each batch size that is tried.

    For a GPU the estimate includes the allocator's rounding and cache, and CUDA's context as a
    range. What cuDNN's convolutions allocate while they run comes on top: a note says so. If fake
    tensors cannot continue (the step branches on a value, or an operator has no fake version), the
    estimate names the line and is a lower bound; so it is for cuDNN's recurrent networks. A
    ``loss.item()`` that is only printed or added up is allowed, with a note.

    A thread waits for the estimate of another one. What the step sets for the process is put back.

    Raises UsageError if the step itself fails, LabkitError if another thread traces.

    >>> import torch
    >>> layer = torch.nn.Linear(1000, 1000, bias=False)
    >>> estimate_memory(lambda layer: None, layer, inference=True).peak_bytes
    4000000
    """
    from labkit.memory.estimate.state import keep_variables

    with _take_turn(), keep_variables():
        return _estimate(step, arguments, batch, device, inference=inference, say=say)


# Which thread estimates; only one can, as torch is changed for the whole process. And the one that
# imports a module for its step, which may estimate meanwhile.
_TURN = threading.Lock()
_turns: list[int] = []
_lent: list[int] = []
LONGEST_TURN_SECONDS = 600


@contextlib.contextmanager
def _take_turn() -> Iterator[None]:
    """Waits for another thread's estimate; raises LabkitError in the step of one."""
    number = threading.get_ident()
    if number in _turns:
        frames = find_user_frames()
        raise UsageError(
            "a step cannot estimate memory while its own is estimated",
            cause="a simulated step has called estimate_memory()"
            + (f" at {frames[0].where}" if frames else ""),
            fix="call it outside of the step",
        )
    is_lent = number in _lent
    if not is_lent and not _TURN.acquire(timeout=LONGEST_TURN_SECONDS):
        raise LabkitError(
            f"another thread has estimated for {LONGEST_TURN_SECONDS // 60} minutes",
            cause="two threads cannot estimate at once, and its step may wait for this one",
            fix="call estimate_memory() in one thread",
        )
    _turns.append(number)
    try:
        yield
    finally:
        _turns.clear()
        if not is_lent:
            _TURN.release()


@contextlib.contextmanager
def _lend_turn() -> Iterator[None]:
    """Lets a module that is imported for the step estimate, between two simulations."""
    turns, number = _turns[:], threading.get_ident()
    _turns.clear()
    _lent.append(number)
    try:
        yield
    finally:
        _lent.remove(number)
        _turns[:] = turns


def _estimate(
    step: Callable[..., object],
    arguments: tuple[object, ...],
    batch: int | None,
    device: str | int | torch.device | None,
    *,
    inference: bool,
    say: Callable[[str], object] | None,
) -> Estimate:
    target = find_target(device)
    if arguments and batch is not None:
        name = getattr(step, "__name__", type(step).__name__)
        raise UsageError(
            f"{name} has arguments and batch={batch!r}",
            cause="a batch size is for a function that makes the step and takes nothing else",
            fix=f"estimate_memory({name}, ...) with inputs of {batch!r} samples and without batch=,"
            " or estimate_memory(make_step, batch=32)",
        )
    work = make_work(step, arguments, batch, inference=inference)
    estimate = estimate_work(work, target)
    if not (estimate.peak_bytes or arguments or estimate.obstacle):
        raise UsageError(
            f"{work.name} makes no tensors: there is nothing to estimate",
            cause="a function without arguments must make model and inputs and return the step",
            fix="labkit estimate --help",
        )
    judged = target.capacity_bytes is not None and estimate.obstacle is None
    grows = estimate.growth_bytes > 0 and estimate.fits is None
    if not judged or estimate.fits is True or grows or work.batch is None:
        return estimate
    # What does not depend on the batch may not fit alone.
    fixed = sum(estimate.kinds[one] for one in ("parameters", "gradients", "optimizer"))
    fixed += (estimate.workspace_bytes or 0) + (estimate.context_bytes or (0, 0))[1]
    if fixed > (target.capacity_bytes or 0):
        return dataclasses.replace(estimate, largest_batch=0)

    def measure(size: int) -> int | None:
        if say:
            say(f"trying batch {size}")
        try:
            with contextlib.redirect_stdout(io.StringIO()):  # the first run has printed it
                found = estimate_work(work._replace(batch=size), target)
        except UsageError:
            return None  # some models cannot run a batch of one
        return found.most_bytes if found.obstacle is None else None

    capacity = target.capacity_bytes or 0
    found = find_largest_batch(measure, capacity, work.batch, estimate.most_bytes)
    return dataclasses.replace(estimate, largest_batch=found)


class Work(NamedTuple):
    """The work to estimate: the function, its arguments, its batch size, gradients on or off."""

    function: Callable[..., object]
    arguments: tuple[object, ...]
    batch: int | None
    inference: bool

    @property
    def name(self) -> str:
        """The function's name, for messages."""
        return getattr(self.function, "__name__", type(self.function).__name__)


class ModelCall:
    """A model's forward pass as a step, which takes the model as an argument."""

    def __init__(self, model: object) -> None:
        self.__name__ = type(model).__name__

    def __call__(self, model: Callable[..., object], *inputs: object) -> object:
        """The model's output for the inputs."""
        return model(*inputs)


def make_work(
    step: object, arguments: tuple[object, ...], batch: int | None, *, inference: bool
) -> Work:
    """The step and its arguments as work; raises UsageError if it is not a step."""
    import torch

    if isinstance(step, torch.nn.Module):
        if not arguments:
            raise UsageError(
                f"{type(step).__name__} is a model, not a step",
                cause="a model cannot be run without its inputs",
                fix="estimate_memory(model, inputs, inference=True)",
            )
        arguments, step = (step, *arguments), ModelCall(step)
    if not callable(step):
        raise UsageError(
            f"cannot estimate {step!r}: it is not a step",
            cause="a step is a function",
            fix="estimate_memory(train_step, model, optimizer, inputs)",
        )
    size = _find_batch(step, arguments, batch)
    _refuse_signature(step, arguments, size)
    return Work(step, arguments, size, inference)


def _refuse_signature(
    step: Callable[..., object], arguments: tuple[object, ...], batch: int | None
) -> None:
    """Raises UsageError where a function that makes a step needs more than the batch size."""
    if arguments:
        return  # those of the step are its own
    name = getattr(step, "__name__", type(step).__name__)
    try:
        signature = inspect.signature(step)
    except (TypeError, ValueError):  # no signature
        return
    try:
        signature.bind(*([] if batch is None else [batch]))
    except TypeError as error:
        words = [
            one.name
            for one in signature.parameters.values()
            if one.default is one.empty and one.kind not in {one.VAR_POSITIONAL, one.VAR_KEYWORD}
        ]
        shown, alone = ", ".join(words), len(words) == 1 and batch is None
        raise UsageError(
            f"{name}({shown}) cannot make a step: {error}",
            cause="a function that makes a step is called with the batch size only",
            fix="--batch 32, or estimate_memory(make_step, batch=32)"
            if alone
            else f"def {name}(batch=32), with a default for each other parameter;"
            " or estimate_memory(step, model, ...) for a step with arguments",
        ) from error


def find_largest_batch(
    measure: Callable[[int], int | None], capacity_bytes: int, too_large: int, needed_bytes: int
) -> int:
    """The largest batch below ``too_large`` whose measured bytes fit the capacity; 0 for none.

    Interpolates between measured batches, as memory mostly grows with the batch, and measures
    its answer. ``measure`` returns None for a batch that cannot run.

    >>> find_largest_batch(lambda size: 100 + 10 * size, 205, 64, 740)
    10
    """
    below, below_bytes, above, above_bytes = 0, None, too_large, needed_bytes
    for turn in range(MOST_TRIES):
        if above - below <= 1:
            break
        guess = (below + above) // 2
        # The allocator's segments make the line a staircase. Guesses slightly below and slightly
        # above it, in turn, enclose the answer. Near the end, bisection is as good.
        if below_bytes is not None and above - below > 0.03 * below:
            share = (capacity_bytes - below_bytes) / (above_bytes - below_bytes)
            aim = (below + share * (above - below)) * (1.01 if turn % 2 else 0.99)
            guess = min(max(int(aim), below + 1), above - 1)
        found = measure(guess)
        if found is not None and found <= capacity_bytes:
            below, below_bytes = guess, found
        else:
            above, above_bytes = guess, found if found is not None else above_bytes
    return below


def _find_batch(
    step: Callable[..., object], arguments: tuple[object, ...], batch: int | None
) -> int | None:
    """The given batch size, or the default of the parameter ``batch``."""
    found: object = batch
    if batch is None and not arguments:
        with contextlib.suppress(TypeError, ValueError):  # no signature
            first = next(iter(inspect.signature(step).parameters.values()), None)
            if first is not None and first.name in BATCH_NAMES and type(first.default) is int:
                found = first.default
    if found is None:
        return None
    if type(found) is not int or found < 1:
        raise UsageError(
            f"invalid batch size {found!r}",
            cause="a batch has a whole number of samples, at least 1",
            fix="--batch 32, or estimate_memory(make_step, batch=32)",
        )
    return found


class Way(NamedTuple):
    """One way that the step can go: its estimate, or why it fails, and the decisions.

    ``reached`` has the figures of what was simulated until the error, None without one.
    """

    made: Estimate | UsageError
    assumptions: Assumptions
    reached: dict[str, Any] | None

    @property
    def fails(self) -> bool:
        """Whether the way ends in an error of the step."""
        return isinstance(self.made, UsageError)


def estimate_work(work: Work, target: Target) -> Estimate:
    """The estimate; of both ways that the step can go, by unknown values or backward's order."""
    from labkit.memory.estimate.imports import IMPORTS

    IMPORTS.forget()
    follow = functools.partial(_follow, work, target, began_ns=time.time_ns(), singles=set())
    ways = [follow(answer=True)]
    if ways[0].assumptions.has_ways:
        ways.append(follow(answer=False))
    failed = next((one for one in ways if one.fails), None)
    if failed is None:
        return _join_ways(ways)
    if all(one.fails for one in ways):
        return _estimate_by_rows(work, target, ways, follow)
    if _mixes_decisions(ways):
        # The branches of the way that fails, with the selections of the other one.
        answer = failed.assumptions.answer
        ways.append(follow(answer=answer, selects=not answer))
    return _join_failing(ways, failed)


def _mixes_decisions(ways: list[Way]) -> bool:
    """Whether values decide how much is selected, and something else too."""
    made = [one.assumptions for one in ways]
    return any(one.forks for one in made) and any(one.counts for one in made)


def _join_ways(ways: list[Way], reached: dict[str, Any] | None = None) -> Estimate:
    """The estimate of ways that the step can go: an interval, or a lower bound with an obstacle.

    ``reached`` has figures of a way that needs no more than those that end without an error.
    """
    found = [one.made for one in ways if isinstance(one.made, Estimate)]
    highest = max(found, key=lambda one: one.peak_bytes)
    least = min(found, key=lambda one: one.peak_bytes)
    if reached is not None and reached["peak_bytes"] < least.peak_bytes:
        least = dataclasses.replace(least, **reached)
    lowest = least.peak_bytes
    note = _note_ways([one.assumptions for one in ways], lowest, highest.peak_bytes)
    if note is None and len(found) == len(ways):
        return highest
    obstacle = next((one.obstacle for one in found if one.obstacle), None)
    # If a way is not known to its end, the real step needs at least the lowest figure.
    shown = highest if obstacle is None else least
    notes = shown.notes if note is None else (note, *shown.notes)
    return dataclasses.replace(shown, lowest_bytes=lowest, obstacle=obstacle, notes=notes)


def _join_failing(ways: list[Way], failed: Way) -> Estimate:
    """The estimate where one way, and perhaps a third, cannot be followed to its end.

    A real step selects no more than everything. If only nothing ends in an error, the peak is
    between what was reached then and that of everything. A branch that cannot be followed, or
    everything that ends in an error, may need more: the lowest figure is a lower bound.
    """
    blocked = ways[-1].fails
    if len(ways) == 2:
        blocked = any(one.assumptions.forks for one in ways)
    nothing = (one.reached for one in ways if one.fails and not one.assumptions.selects)
    reached = min((one for one in nothing if one), key=_read_peak, default=None)
    joined = _join_ways(ways, reached)
    if joined.obstacle is not None or not (failed.assumptions.selects or blocked):
        return joined
    reason = f"was followed one way only: {first_line(failed.made.what)}"  # type: ignore[union-attr]
    obstacle = EstimateObstacle("a decision by unknown values", reason)
    found = [
        one._replace(made=dataclasses.replace(one.made, obstacle=obstacle))
        if isinstance(one.made, Estimate)
        else one
        for one in ways
    ]
    return _join_ways(found, reached)


def _estimate_by_rows(
    work: Work, target: Target, ways: list[Way], follow: Callable[..., Way]
) -> Estimate:
    """The estimate where a mask selects as many elements in each row: all and none end in an error.

    So it is where the rows are samples, and the mask is that of their classes: one in each row, or
    as many as the shape says that the selected ones get, which another number does not fit. If that
    ends in an error too, everything is selected, and other decisions are those of the second way.
    """
    from labkit.memory.estimate.values import Assumptions

    failure, assumed = ways[0].made, ways[-1].assumptions
    assert isinstance(failure, UsageError)
    chosen = [where for one in ways for where in one.assumptions.chosen]
    if not chosen:
        raise failure from failure.__cause__
    kept: Any = {"began_ns": assumed.began_ns, "singles": assumed.singles}
    rows: dict[str, int] = {}
    refuted: set[str] = set()
    where = ""
    for _ in range(MOST_CHECKS):
        assumptions = Assumptions(answer=True, by_rows=rows, **kept)
        try:
            made = _estimate_one(work, target, assumptions)
        except UsageError as error:
            if where == error.cause and rows:  # the latest one does not help
                refuted.add(rows.popitem()[0])
            where, ratio = error.cause or "", read_ratio(str(error.__cause__))
            lines = reversed(dict.fromkeys(assumptions.chosen))
            line = next((one for one in lines if one not in refuted | rows.keys()), None)
            if line is None or ratio is None:
                break
            rows[line] = ratio
        else:
            return dataclasses.replace(made, notes=(*_note_rows(rows, chosen), *made.notes))
    crossed = follow(answer=False, selects=True) if _mixes_decisions(ways) else ways[0]
    if not crossed.fails:
        return _join_failing([*ways, crossed], ways[0])
    lines_shown = shorten(", ".join(dict.fromkeys(chosen)), 200)
    cause = f"{failure.cause}; how many elements are selected was assumed at {lines_shown}"
    raise UsageError(failure.what, cause=cause, fix=failure.fix) from failure.__cause__


def _note_rows(rows: Mapping[str, int], chosen: Iterable[str]) -> list[str]:
    """How many elements masks are assumed to select in each row, by their lines."""
    notes = [BY_SHAPE.format(number, line) for line, number in rows.items()]
    single = [line for line in dict.fromkeys(chosen) if line not in rows]
    return notes + ([BY_ROWS.format(shorten(", ".join(single), 200))] if single else [])


# What torch says of sizes that do not fit: those that are wanted, and what there is.
MISFITS = (
    r"shape '\[(?P<wanted>[\d, ]+)\]' is invalid for input of size (?P<given>\d+)",
    r"sizes \[(?P<wanted>[\d, ]+)\] don't multiply up to the size of dim \d+ \((?P<given>\d+)\)",
    r"size of tensor a \((?P<wanted>\d+)\) must match the size of tensor b \((?P<given>\d+)\)",
    r"length (?P<given>\d+) at -(?P<place>\d+)! .*broadcastable to \[(?P<wanted>[\d, ]+)\]",
    r"input batch_size \((?P<wanted>\d+)\) to match target batch_size \((?P<given>\d+)\)",
)


def read_ratio(text: str) -> int | None:
    """How many times as many elements as there are a shape has, from an error of torch's.

    >>> read_ratio("shape '[8, 3]' is invalid for input of size 8")
    3
    """
    for pattern in MISFITS:
        found = re.search(pattern, text)
        if found:
            sizes = [int(one) for one in found["wanted"].split(",")]
            place = found.groupdict().get("place")
            wanted = math.prod(sizes) if place is None else sizes[-int(place)]
            low, high = sorted((wanted, int(found["given"])))
            return high // low if 0 < low < high and high % low == 0 else None
    return None


def _note_ways(ways: list[Assumptions], lowest: int, highest: int) -> str | None:
    """What decides which way a step goes, and how much; None if it is nothing that matters."""
    asked = list(dict.fromkeys(place for one in ways for place in one.places))
    drawn = list(dict.fromkeys(place for one in ways for place in one.drawn))
    ahead = list(dict.fromkeys(place for one in ways for place in one.ahead))
    same = lowest == highest
    if same and not asked:
        return None
    words = [*["unknown values"][: len(asked)], *[DRAWN][: len(drawn)], *[AHEAD][: len(ahead)]]
    copied = dict.fromkeys(name for one in ways for name in one.copied)
    note = COPIED.format(shorten(", ".join(copied), 200)) if copied else ORDER
    if words:
        lines = ", ".join(dict.fromkeys(asked + drawn + ahead))
        note = f"{' and '.join(words)} decide at {shorten(lines, 200)}"
    if not same:
        return f"{note}: the peak is at least {format_bytes(lowest)}"
    if any(one.changed for one in ways):
        return f"{note}: ways that end in an error were left out, and the others have the same peak"
    return f"{note}: simulated both ways, with the same peak"


def _follow(
    work: Work, target: Target, *, answer: bool, selects: bool | None = None, **kept: Any
) -> Way:
    """The way with this answer to every unknown value; ``kept`` is what all ways share.

    A decision that ends in an error was a check of the step's own (``if not valid: raise``), or
    one decision too many of a kind (all layers are left out): the real step decides otherwise.
    """
    from labkit.memory.estimate.imports import IMPORTS
    from labkit.memory.estimate.values import Assumptions

    changed: set[Any] = set()
    tried: list[Any] = []
    asked = -1
    reached: dict[str, Any] | None = None
    singles = kept["singles"]
    while True:
        assumptions = Assumptions(answer=answer, changed=changed, selects=selects, **kept)
        made: Any = None
        known = len(singles)
        try:
            with IMPORTS.ask() as needed:
                made = _estimate_one(work, target, assumptions)
        except UsageError as error:
            made = error
        if needed:
            with _lend_turn():
                IMPORTS.import_now(needed[0])
            continue
        if len(singles) > known:
            continue
        if not isinstance(made, UsageError):
            return Way(made, assumptions, None)
        figures = (reached, assumptions.reached)
        reached = min((one for one in figures if one), key=_read_peak, default=None)
        if tried and assumptions.asked <= asked:
            changed.discard(tried[-1])  # the step came no further
        asked = max(asked, assumptions.asked)
        check = find_check(made.__cause__) if made.__cause__ else None
        change = assumptions.find_change(tried, check and check.where)
        if change is None or len(tried) == MOST_CHECKS:
            return Way(made, assumptions, reached)
        tried.append(change)
        changed.add(change)


def _read_peak(figures: dict[str, Any]) -> int:
    return int(figures["peak_bytes"])


def _list_figures(simulation: Simulation) -> dict[str, Any]:
    """The figures of an estimate that a simulation has, until its end or an error."""
    from labkit.memory.estimate.allocator import CachingAllocator
    from labkit.memory.track.model import Level, sum_categories, sum_lines

    on_cuda, device = simulation.target.kind == "cuda", simulation.device
    levels = simulation.tracer.levels
    level = levels.get(device, Level())
    held = level.list_at_peak()
    allocator = simulation.allocators.get(device, CachingAllocator())
    return {
        "peak_bytes": level.peak_bytes,
        "kinds": sum_categories(held),
        "lines": sum_lines(held, LINES_SHOWN),
        "host_bytes": levels.get("cpu", Level()).peak_bytes
        if on_cuda and device != "cpu"
        else None,
        "allocated_bytes": allocator.peak_allocated_bytes if on_cuda else None,
        "reserved_bytes": allocator.reserved_bytes if on_cuda else None,
        "workspace_bytes": simulation.workspace_bytes if on_cuda else None,
    }


def _estimate_one(work: Work, target: Target, assumptions: Assumptions) -> Estimate:
    from labkit.memory.estimate.cuda import CONTEXT_BYTES
    from labkit.memory.estimate.fake import COMPILED, EXPORTED
    from labkit.memory.estimate.tracer import CONVERGENCE, PRODUCT, SHARDED

    bounds = {COMPILED, CONVERGENCE, EXPORTED, PRODUCT, SHARDED}
    simulation, obstacle = _simulate(work, target, assumptions)
    simulation.note_left()
    growth, notes = simulation.growth_bytes, simulation.notes
    added = [FORWARD_ALONE] if isinstance(work.function, ModelCall) and not work.inference else []
    return Estimate(
        name=work.name,
        target=target,
        batch=work.batch,
        inference=work.inference,
        context_bytes=CONTEXT_BYTES if target.kind == "cuda" else None,
        obstacle=obstacle or simulation.tracer.obstacle or _name_gap(simulation.tracer.trouble),
        excess=next((one for one in notes if one in bounds), None),
        notes=(*added, *notes),
        growth_bytes=growth,
        steps=simulation.steps,
        **_list_figures(simulation),
    )


def _name_gap(trouble: str | None) -> EstimateObstacle | None:
    """The obstacle for tensors that were not followed: their memory is missing."""
    return None if trouble is None else EstimateObstacle("a part", f"is missing ({trouble})")


# torch 2.11 and 2.12 raise a plain RuntimeError with the first text, later ones the second.
MISMATCH = re.compile(r"found two different devices|found at least two devices")


def _simulate(
    work: Work, target: Target, assumptions: Assumptions
) -> tuple[Simulation, EstimateObstacle | None]:
    """Runs the work on fake tensors, as similar as possible to a real run.

    Code that names no device is simulated as a whole on the GPU. If it names one, the rest stays
    on the host, as in a real run, except the arguments where they would not meet the rest.
    """
    from labkit.memory.estimate.cuda import NamesCudaError
    from labkit.memory.estimate.fake import Simulation
    from labkit.memory.estimate.whole import NeedsPartsError

    if target.kind == "cpu":
        simulation = Simulation(target, assumptions, placement="cpu")
        try:
            return simulation, _run(work, simulation)
        except NeedsPartsError:
            simulation = Simulation(target, assumptions, placement="cpu", by_parts=True)
            return simulation, _run(work, simulation)
    simulation = Simulation(target, assumptions, placement="gpu")
    try:
        return simulation, _run(work, simulation)
    except NamesCudaError:
        simulation = Simulation(target, assumptions, placement="named")
    try:
        return simulation, _run(work, simulation)
    except UsageError as error:
        if not work.arguments or not MISMATCH.search(str(error.__cause__)):
            raise
    simulation = Simulation(target, assumptions, placement="named", moves_arguments=True)
    return simulation, _run(work, simulation)


def _run(work: Work, simulation: Simulation) -> EstimateObstacle | None:
    """Runs the work in the simulation; returns the obstacle if fake tensors cannot continue.

    The program's handlers of signals run after it, and may raise what they like.
    """
    from labkit.memory.estimate.signals import DeferredSignals
    from labkit.memory.estimate.state import let_variables

    with DeferredSignals(let_variables).hold():
        try:
            return _play(work, simulation)
        except UsageError:
            simulation.assumptions.reached = _list_figures(simulation)
            raise


def _play(work: Work, simulation: Simulation) -> EstimateObstacle | None:
    from labkit.memory.estimate.fake import ASSUMED
    from labkit.memory.estimate.held import LiveIteratorError
    from labkit.memory.estimate.iterators import CopyError, refuse_copy, refuse_live
    from labkit.memory.estimate.objects import keep_objects
    from labkit.memory.estimate.obstacles import (
        LazyTensorError,
        RealTensorError,
        StalledStepError,
        read_obstacle,
        refuse_lazy,
        refuse_real,
        refuse_stalled,
    )
    from labkit.memory.estimate.uncopied import find_held

    try:
        files = simulation.checkpoints
        simulation.held, code = find_held(work.arguments)
        keeping = keep_objects(
            (work.function, *code, *simulation.held),
            simulation.note,
            files.is_step,
            files.refuse,
            pipes=files.pipes,
            locks=files.locks,
        )
        with simulation.open(), keeping as kept:
            simulation.tracer.lasting = kept.seen
            simulation.begin_step = kept.begin_step
            simulation.find_lock = kept.find_step_lock
            # What the step sets in a context variable ends with the copy.
            contextvars.copy_context().run(_run_steps, work, simulation, kept.rename_keys)
    except RealTensorError as error:
        has = {"has_arguments": bool(work.arguments), "inference": work.inference}
        raise refuse_real(work.function, work.name, error, **has) from error
    except LazyTensorError as error:
        raise refuse_lazy(work.name) from error
    except LiveIteratorError as error:
        raise refuse_live(work.name, *error.args) from error
    except StalledStepError as error:
        raise refuse_stalled(work.name, *error.args) from error
    except CopyError as error:
        raise refuse_copy(work.name, str(error)) from error
    except LabkitError:
        raise
    except (Exception, SystemExit) as error:  # whatever the user's code raises
        if "UninitializedParameter" in str(error):
            raise refuse_lazy(work.name) from error
        # What follows from assumed sizes is not the step's own error.
        assumed, stopped = simulation.tracer.obstacle, simulation.checkpoints.stopped
        obstacle = stopped or (
            assumed if assumed and assumed.reason == ASSUMED else read_obstacle(error)
        )
        if obstacle is None:
            raise explain_failure(work.name, error, inference=work.inference) from error
        return obstacle
    return simulation.checkpoints.stopped  # the step has gone on


@contextlib.contextmanager
def _set_aside() -> Iterator[None]:
    """Keeps the garbage collector from the objects that are there already, until exit.

    A full collection would look at each of them, which takes longer than many steps.
    """
    if gc.get_freeze_count():  # the process's own way to do this
        yield
        return
    gc.collect(1)  # what is young and dead would not be found for long
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()


@_set_aside()
def _run_steps(
    work: Work, simulation: Simulation, rename_keys: Callable[[dict[int, Any]], object]
) -> None:
    arguments = simulation.copy_fake(work.arguments, rename_keys)
    draws = simulation.draws.open(work.function, arguments, simulation.replaced)
    with draws, simulation.hold_threads():
        _run_with(work, simulation, arguments)


def _run_with(work: Work, simulation: Simulation, arguments: tuple[Any, ...]) -> None:
    given = arguments if work.batch is None else (work.batch, *arguments)
    answer = _answer_draws(simulation)

    def run(function: Callable[..., object], *taken: object) -> object:
        simulation.assumptions.begin_step()
        simulation.begin_step()
        return function(*taken)

    # With arguments, calling the function is the first step.
    first = bool(arguments)
    with (
        _keep_gradients(off=work.inference and first),
        answer if first else contextlib.nullcontext(),
    ):
        made = run(work.function, *given)
    step = made if callable(made) else None
    _refuse_no_step(made, work.name)
    del made  # what a step returns is freed before the next one, as in a loop
    if step is None and not arguments:
        return
    with _keep_gradients(off=work.inference), _answer_draws(simulation):
        taken = (step,) if step else (work.function, *given)
        run_step = functools.partial(run, *taken)
        if step:
            run_step()
        if simulation.scripted:
            run_step()
            simulation.steps += 1
        simulation.measure_growth(run_step)


@contextlib.contextmanager
def _answer_draws(simulation: Simulation) -> Iterator[None]:
    """Answers what the block draws outside of torch; torch's draws are unknown values."""
    simulation.draws.active = True
    try:
        yield
    finally:
        simulation.draws.active = False


def _keep_gradients(*, off: bool) -> contextlib.AbstractContextManager[Any]:
    import torch

    return torch.no_grad() if off else contextlib.nullcontext()


def _refuse_no_step(made: object, name: str) -> None:
    import torch

    if isinstance(made, torch.nn.Module):
        raise UsageError(
            f"{name} returned a model, not a step",
            cause="a model cannot be run without its inputs",
            fix=f"return from {name} a function without arguments that runs the model once",
        )
    if inspect.isawaitable(made) or inspect.isgenerator(made):
        raise UsageError(
            f"{name} returned a {type(made).__name__}, which has not run",
            cause="calling a coroutine or a generator function does not run its body",
            fix=f"make {name} a plain function",
        )


NO_GRADIENT = "does not require grad and does not have a grad_fn"


def _find_gradients_off(*, inference: bool) -> str:
    """What has turned gradients off around the step; "" if they are on."""
    import torch

    if inference:
        return "inference=True"
    if torch.is_inference_mode_enabled():
        return "estimate_memory() is called inside torch.inference_mode()"
    called = "estimate_memory() is called inside torch.no_grad(), or after set_grad_enabled(False)"
    return "" if torch.is_grad_enabled() else called


def explain_failure(name: str, error: BaseException, *, inference: bool = False) -> UsageError:
    """The user's own error: what was raised, in which line, and how to see the whole traceback."""
    from labkit.memory.estimate.held import FIX

    frames = list_error_frames(error)
    if NO_GRADIENT in str(error) and (off := _find_gradients_off(inference=inference)):
        where = f" (at {frames[0].where})" if frames else ""
        return UsageError(
            f"{name} raised RuntimeError: {first_line(str(error))}{where}",
            cause=f"gradients are off: {off}",
            fix="for a training step, call estimate_memory() where they are on",
        )
    return UsageError(
        f"{name} raised {type(error).__name__}: {first_line(str(error)) or 'no message'}",
        cause=f"{frames[0].where}: {frames[0].source}" if frames else "not in a line of your code",
        fix=f"an iterator ends before the step has run two or three times: {FIX}"
        if isinstance(error, StopIteration)
        else "run it once for real with a small batch; --debug of labkit shows the traceback",
    )
