"""The devices lab's exercises: what each check asks for, and wrong answers it must tell apart."""

from __future__ import annotations

import contextlib
import statistics
import sys
from collections.abc import Callable, Iterator
from typing import Any

import torch

from labkit.lessons.exercises import Case, Exercise, NotThisWay, WrongAnswer

META = torch.device("meta")
Step = Callable[[torch.Tensor], torch.Tensor]


def usable_devices() -> list[torch.device]:
    """The CPU and, where torch can use one, the accelerator."""
    accelerator = torch.accelerator.current_accelerator(check_available=True)
    return [torch.device("cpu")] + ([accelerator] if accelerator else [])


def reference_positions(x: torch.Tensor) -> torch.Tensor:
    """What add_positions must give, shape (n, d): computed row by row."""
    return torch.stack([row + index for index, row in enumerate(x)]).to(x.dtype)


def judge_same_place(got: torch.Tensor, arguments: tuple[torch.Tensor]) -> str | None:
    """Whether the answer has the device, shape and dtype of the argument."""
    ours, theirs = ((t.device, tuple(t.shape), t.dtype) for t in (got, arguments[0]))
    if ours == theirs:
        return None
    return f"the answer must have x's device, shape and dtype, {theirs}, but has {ours}"


def add_positions_cases() -> Iterator[Case]:
    """Small cases with values on each device here, then one on the meta device."""
    for device in usable_devices():
        x = torch.randn(3, 2, generator=torch.Generator().manual_seed(1)).to(device)
        yield Case((x,), reference_positions, f"three rows on {device}", judge=judge_same_place)
    yield Case((torch.full((1, 4), 2.5),), reference_positions, "a single row")
    yield Case((torch.ones(4, 3, dtype=torch.float16),), reference_positions, "float16 stays")
    # A meta tensor has no values that could be compared, before or after.
    yield Case(
        (torch.empty(5, 2, device=META),),
        note="x on another device",
        judge=judge_same_place,
        keeps_arguments=False,
    )
    whole = torch.arange(8, dtype=torch.int32).reshape(4, 2)
    yield Case((whole,), reference_positions, "int32 stays")


def positions_changing_x(x: torch.Tensor) -> torch.Tensor:
    """A wrong answer: right values, but the caller's tensor is changed."""
    x += torch.arange(x.shape[0], device=x.device)[:, None]
    return x


X_DTYPE = "The numbers can have x's dtype from the start: torch.arange takes `dtype=` too."
ADD_POSITIONS = Exercise(
    name="add_positions",
    title="Add each row's number",
    hints=(
        "Where does a tensor go that you make with torch.arange(n), and where is x?",
        "A new tensor takes its device when it is made; x knows its own. "
        "Then look at the shapes: row numbers change from row to row, not from column to column.",
    ),
    cases=add_positions_cases,
    wrong_answers=(
        WrongAnswer(
            "makes the positions on the CPU wherever x is",
            lambda x: x + torch.arange(x.shape[0])[:, None],
            "raised",
        ),
        WrongAnswer(
            "numbers the columns",
            lambda x: x + torch.arange(x.shape[1], device=x.device),
            "wrong_values",
            hint=1,
        ),
        WrongAnswer(
            "lines the numbers up with the columns",
            lambda x: x + torch.arange(x.shape[0], device=x.device),
            "raised",
            hint="The numbers have the shape (n,), which lines up with the columns. As a column, "
            "of shape (n, 1), they line up with the rows.",
        ),
        WrongAnswer(
            "begins with 1",
            lambda x: x + torch.arange(1, x.shape[0] + 1, device=x.device)[:, None],
            "wrong_values",
            hint="The first row gets 0.",
        ),
        WrongAnswer(
            "goes through the CPU, where a tensor cannot always go",
            lambda x: x.cpu() + torch.arange(x.shape[0])[:, None],
            "raised",
            hint="Nothing has to move: make the numbers where x is.",
        ),
        WrongAnswer(
            "returns a list of rows",
            lambda x: [row + index for index, row in enumerate(x)],
            "wrong_type",
            hint="torch.stack makes one tensor of rows.",
        ),
        WrongAnswer(
            "makes float32 positions whatever x is",
            lambda x: x + torch.arange(x.shape[0], dtype=torch.float32, device=x.device)[:, None],
            "wrong_dtype",
            hint=X_DTYPE,
        ),
        WrongAnswer(
            "leaves the positions int64, which widens narrower integers",
            lambda x: x + torch.arange(x.shape[0], device=x.device)[:, None],
            "wrong_dtype",
            hint=X_DTYPE,
        ),
        WrongAnswer(
            "changes x in place",
            positions_changing_x,
            "changed_argument",
            hint="`x += ...` writes into the caller's tensor; `x + ...` makes a new one.",
        ),
    ),
)


def find_misplaced(
    got: Any, was: Any, device: torch.device, place: str = "the answer"
) -> str | None:
    """What in ``got`` is not ``was`` with its tensors on ``device``; None where all is well."""
    if type(got) is not type(was):
        return f"{place} was of type {type(was).__name__}, and is of type {type(got).__name__}"
    if isinstance(was, torch.Tensor):
        if got.device.type != device.type:
            return f"{place} must be on {device}, and is on {got.device}"
        same = got.shape == was.shape and got.dtype == was.dtype
        return None if same else f"{place} has another shape or dtype than before"
    if not isinstance(was, dict | list | tuple):
        return None if got == was else f"{place} was {was!r}, and is {got!r}"
    keys = list(was) if isinstance(was, dict) else range(len(was))
    if len(got) != len(was) or (isinstance(was, dict) and list(got) != keys):
        return f"{place} has not the items that it had"
    parts = (find_misplaced(got[key], was[key], device, f"{place}[{key!r}]") for key in keys)
    return next((text for text in parts if text), None)


def judge_moved(got: Any, arguments: tuple[Any, torch.device]) -> str | None:
    """Whether the answer is the batch on the device, and the batch itself was left alone."""
    batch, device = arguments
    made = make_batch() if isinstance(batch, dict) else make_pair()
    changed = find_misplaced(batch, made, torch.device("cpu"), "the batch")
    if changed:
        return f"the batch that was given must stay as it was: {changed}"
    return find_misplaced(got, batch, device)


def make_batch() -> dict[str, Any]:
    """A batch as data loaders give it: tensors, names and numbers, nested."""
    return {
        "image": torch.ones(2, 3),
        "names": ["first", "second"],
        "target": ({"label": torch.tensor([0, 1]), "weight": 0.5}, [torch.zeros(1), None]),
    }


def make_pair() -> tuple[Any, ...]:
    """A batch as other data loaders give it: inputs and a list of targets."""
    return torch.ones(2, 3), [torch.zeros(2), {"name": "third"}]


def move_batch_cases() -> Iterator[Case]:
    """A nested batch to the devices here, then to meta, whose tensors cannot be compared."""
    for device in usable_devices():
        yield Case((make_batch(), device), make_batch(), f"to {device}", judge=judge_moved)
    for batch, note in ((make_batch(), "to meta"), (make_pair(), "a tuple to meta")):
        yield Case((batch, META), note=note, judge=judge_moved, keeps_arguments=False)


def move_with_lists(batch: Any, device: torch.device) -> Any:
    """A wrong answer: every tuple comes back as a list."""
    if isinstance(batch, torch.Tensor):
        return batch.to(device)
    if isinstance(batch, dict):
        return {key: move_with_lists(value, device) for key, value in batch.items()}
    if isinstance(batch, list | tuple):
        return [move_with_lists(value, device) for value in batch]
    return batch


def move_in_place(batch: Any, device: torch.device) -> Any:
    """A wrong answer: the dicts and lists that it was given hold the moved tensors."""
    if isinstance(batch, torch.Tensor):
        return batch.to(device)
    if isinstance(batch, tuple):
        return tuple(move_in_place(value, device) for value in batch)
    if isinstance(batch, dict | list):
        for key in batch if isinstance(batch, dict) else range(len(batch)):
            batch[key] = move_in_place(batch[key], device)
    return batch


def move_without_lists(batch: Any, device: torch.device) -> Any:
    """A wrong answer: a list stays as it is, with the tensors in it."""
    if isinstance(batch, torch.Tensor):
        return batch.to(device)
    if isinstance(batch, dict):
        return {key: move_without_lists(value, device) for key, value in batch.items()}
    if isinstance(batch, tuple):
        return tuple(move_without_lists(value, device) for value in batch)
    return batch


def move_and_drop(batch: Any, device: torch.device) -> Any:
    """A wrong answer: its last line is missing."""
    if isinstance(batch, torch.Tensor):
        return batch.to(device)
    if isinstance(batch, dict):
        return {key: move_and_drop(value, device) for key, value in batch.items()}
    if isinstance(batch, list | tuple):
        return type(batch)(move_and_drop(value, device) for value in batch)
    return None


MOVE_BATCH = Exercise(
    name="move_batch",
    title="Move a whole batch",
    hints=(
        "What should the function do with a tensor? With a string? With a list of things, "
        "each of which may be any of these?",
        "A function may call itself for the parts of a container. Build a new container of the "
        "same type, and remember that .to() returns the moved tensor.",
    ),
    cases=move_batch_cases,
    wrong_answers=(
        WrongAnswer(
            "takes .to() to move a tensor in place",
            lambda batch, device: (batch["image"].to(device), batch)[1],
            "wrong_values",
            hint=1,
        ),
        WrongAnswer("turns tuples into lists", move_with_lists, "wrong_values", hint=1),
        WrongAnswer(
            "moves tensors at the top, and none that are deeper",
            lambda batch, device: {
                key: value.to(device) if isinstance(value, torch.Tensor) else value
                for key, value in batch.items()
            },
            "wrong_values",
            hint=1,
        ),
        WrongAnswer(
            "puts the moved tensors into the batch that it was given",
            move_in_place,
            "wrong_values",
            hint="The caller keeps the batch: build a new dict, list or tuple at each level.",
        ),
        WrongAnswer(
            "goes into tuples and dicts alone",
            move_without_lists,
            "wrong_values",
        ),
        WrongAnswer(
            "returns nothing for what is neither a tensor nor a container",
            move_and_drop,
            "wrong_type",
            hint="A string or a number is neither. What must become of it?",
        ),
        WrongAnswer(
            "calls .to() on whatever is in there",
            lambda batch, device: {key: value.to(device) for key, value in batch.items()},
            "raised",
        ),
        WrongAnswer(
            "returns the tensors alone",
            lambda batch, device: batch["image"].to(device),
            "wrong_type",
        ),
    ),
)


class FakeDevice:
    """A device with its own clock: a launch comes back in 1 ms, its work is done later."""

    def __init__(self, *work_seconds: float) -> None:
        self.work_seconds = work_seconds
        self.launches = 0
        self.now = 0.0
        self.idle_from = 0.0

    def launch(self) -> None:
        """Queues the next piece of work; the last one repeats."""
        work = self.work_seconds[min(self.launches, len(self.work_seconds) - 1)]
        self.launches += 1
        self.now += 0.001
        self.idle_from = max(self.idle_from, self.now) + work

    def synchronize(self) -> None:
        """Lets the clock run until the queue is empty."""
        self.now = max(self.now, self.idle_from)

    def clock(self) -> float:
        """Seconds since the device was made."""
        return self.now


def time_median_cases() -> Iterator[Case]:
    """Devices that are slow at first, slow once, and still busy when the warm-up ends."""
    for device, warmups, repeats, answer, note in (
        (FakeDevice(0.010), 0, 3, 0.011, "a steady device"),
        (FakeDevice(0.010, 0.020, 0.040, 0.090), 0, 4, 0.031, "an even number of repeats"),
        (FakeDevice(3.0, 0.5, 0.010), 2, 1, 0.011, "a slow start, one repeat"),
        (FakeDevice(0.1, 0.020, 0.022, 0.4, 0.021, 0.024), 1, 5, 0.023, "one slow run in five"),
    ):
        arguments = (device.launch, device.synchronize, device.clock, warmups, repeats)
        yield Case(arguments, answer, note, atol=1e-6, judge=judge_launches)


def judge_launches(_got: float, arguments: tuple[Any, ...]) -> str | None:
    """Whether run() was called once for each warm-up and each repeat."""
    run, _, _, warmups, repeats = arguments
    calls: int = run.__self__.launches
    if calls == warmups + repeats:
        return None
    return f"run() was called {calls} times, for {warmups} warm-ups and {repeats} repeats"


def time_like(
    judge_seconds: Callable[[list[float]], object], left_out: str = ""
) -> Callable[..., object]:
    """A timer that leaves out "warmup", "settle" or "wait", for the wrong answers."""

    def time_wrongly(run: Any, synchronize: Any, clock: Any, warmups: int, repeats: int) -> object:
        for _ in range(0 if left_out == "warmup" else warmups):
            run()
        if left_out != "settle":
            synchronize()
        seconds = []
        for _ in range(repeats):
            start = clock()
            run()
            if left_out != "wait":
                synchronize()
            seconds.append(clock() - start)
        return judge_seconds(seconds)

    return time_wrongly


def time_all_together(run: Any, synchronize: Any, clock: Any, warmups: int, repeats: int) -> float:
    """A wrong answer: a mean, of runs that do not wait for each other."""
    for _ in range(warmups):
        run()
    synchronize()
    start: float = clock()
    for _ in range(repeats):
        run()
    synchronize()
    return (clock() - start) / repeats


MIDDLE = (
    "The median is the middle one of the sorted times; of an even number, the mean of the middle "
    "two. `statistics.median` gives it."
)
TIME_MEDIAN = Exercise(
    name="time_median",
    title="An honest stopwatch",
    hints=(
        "When run() comes back, is the work done? Read the clock only when you know what the "
        "device is doing at that moment.",
        "There are two moments to wait: one before the clock starts, one before it stops. "
        "And the first runs are called but not counted.",
    ),
    cases=time_median_cases,
    wrong_answers=(
        WrongAnswer("never waits", time_like(statistics.median, "wait"), "wrong_values"),
        WrongAnswer(
            "starts while busy",
            time_like(statistics.median, "settle"),
            "wrong_values",
            hint=1,
        ),
        WrongAnswer(
            "takes the mean",
            time_like(statistics.mean),
            "wrong_values",
            hint="One slow call moves a mean: the text asks for the median.",
        ),
        WrongAnswer("takes the fastest", time_like(min), "wrong_values", hint=MIDDLE),
        WrongAnswer(
            "takes the lower of two middle values",
            time_like(statistics.median_low),
            "wrong_values",
            hint=MIDDLE,
        ),
        WrongAnswer(
            "takes the upper of two middle values",
            time_like(statistics.median_high),
            "wrong_values",
            hint=MIDDLE,
        ),
        WrongAnswer(
            "takes the middle of the times without sorting them",
            time_like(lambda seconds: seconds[len(seconds) // 2]),
            "wrong_values",
            hint=MIDDLE,
        ),
        WrongAnswer(
            "gives milliseconds",
            time_like(lambda seconds: statistics.median(seconds) * 1000),
            "wrong_values",
            hint="The clock gives seconds, and so does the answer.",
        ),
        WrongAnswer(
            "divides the time of all runs together by their number",
            time_all_together,
            "wrong_values",
            hint="Of one total no median can be taken: read the clock before and after each run.",
        ),
        WrongAnswer(
            "skips the warm-up",
            time_like(statistics.median, "warmup"),
            "wrong_values",
            hint=1,
        ),
        WrongAnswer(
            "counts the warm-up too",
            lambda run, synchronize, clock, warmups, repeats: time_like(statistics.median)(
                run, synchronize, clock, 0, warmups + repeats
            ),
            "wrong_values",
            hint=1,
        ),
        WrongAnswer("returns all the times", time_like(list), "wrong_type", hint=MIDDLE),
    ),
)


def reference_mean(batches: list[torch.Tensor]) -> torch.Tensor:
    """The mean over all values, computed in float64 and given as float32, shape ()."""
    return torch.cat([batch.cpu().double() for batch in batches]).mean().float()


def make_batches(seed: int, sizes: tuple[int, ...], dtype: torch.dtype) -> list[torch.Tensor]:
    """Vectors of positive values with these lengths."""
    generator = torch.Generator().manual_seed(seed)
    return [(torch.rand(size, generator=generator) + 0.5).to(dtype) for size in sizes]


def mean_of_batches_cases() -> Iterator[Case]:
    """Many batches, batches of different sizes, and float16 values whose sum overflows."""
    for device in usable_devices():
        batches = [batch.to(device) for batch in make_batches(1, (10,) * 400, torch.bfloat16)]
        yield Case((batches,), reference_mean, f"400 batches on {device}", rtol=1e-5)
    uneven = make_batches(2, (1, 1000, 37), torch.bfloat16)
    yield Case((uneven,), reference_mean, "batches of different sizes", rtol=1e-5)
    large = [torch.full((100,), 30000.0, dtype=torch.float16) for _ in range(3)]
    yield Case((large,), reference_mean, "large float16 values", rtol=1e-5)
    many = [torch.full((5000,), 0.1, dtype=torch.float16), torch.ones(1, dtype=torch.float16)]
    yield Case((many,), reference_mean, "more values than float16 can count", rtol=1e-5)


def mean_with_total(dtype: torch.dtype) -> Callable[[list[torch.Tensor]], torch.Tensor]:
    """A mean with its total in ``dtype`` and each batch's sum in its own, for wrong answers."""

    def mean(batches: list[torch.Tensor]) -> torch.Tensor:
        total = torch.zeros((), dtype=dtype, device=batches[0].device)
        for batch in batches:
            total = total + batch.sum()
        return (total / sum(len(batch) for batch in batches)).float()

    return mean


FLOAT32 = "The answer is a float32 tensor without dimensions, as `x.float().mean()` gives it."
MEAN_OF_BATCHES = Exercise(
    name="mean_of_batches",
    title="A mean that does not get stuck",
    hints=(
        "In which dtype is your running total? Print it after some hundred batches.",
        "Rounding can strike in two places: in the sum of one batch and in the total of all. "
        "Both can be done in a wider dtype than the values have.",
    ),
    cases=mean_of_batches_cases,
    wrong_answers=(
        WrongAnswer("adds up in bfloat16", mean_with_total(torch.bfloat16), "wrong_values"),
        WrongAnswer(
            "rounds each batch's sum", mean_with_total(torch.float32), "wrong_values", hint=1
        ),
        WrongAnswer(
            "rounds the mean to the dtype of the values",
            lambda batches: torch.cat(batches).mean().float(),
            "wrong_values",
            hint="What was rounded once stays rounded: widen the values before they are added up.",
        ),
        WrongAnswer(
            "takes the mean of the batches' means",
            lambda batches: torch.stack([batch.float().mean() for batch in batches]).mean(),
            "wrong_values",
            hint="The batches have different lengths. Which of their values would weigh more?",
        ),
        WrongAnswer(
            "divides by the number of batches",
            lambda batches: torch.cat([batch.float() for batch in batches]).sum() / len(batches),
            "wrong_values",
            hint="The mean is over all values. How many are there?",
        ),
        WrongAnswer(
            "gives the answer in the dtype of the values",
            lambda batches: torch.cat(batches).mean(),
            "wrong_dtype",
            hint=FLOAT32,
        ),
        WrongAnswer(
            "gives a Python number",
            lambda batches: torch.cat([batch.float() for batch in batches]).mean().item(),
            "wrong_type",
            hint=FLOAT32,
        ),
        WrongAnswer(
            "gives a vector of one value",
            lambda batches: torch.cat([batch.float() for batch in batches]).mean(0, keepdim=True),
            "wrong_shape",
            hint=FLOAT32,
        ),
        WrongAnswer(
            "stacks batches, which differ in length",
            lambda batches: torch.stack(batches).float().mean(),
            "raised",
            hint="torch.cat joins vectors of any lengths; or add the batches up one by one.",
        ),
    ),
)


class SmallStep:
    """A step that runs out of memory over ``most_rows`` rows, and remembers what it was asked."""

    def __init__(self, most_rows: int, error: type[Exception] = torch.OutOfMemoryError) -> None:
        self.most_rows = most_rows
        self.error = error
        self.asked_rows: list[int] = []
        self.called_while_handling = False

    def __call__(self, batch: torch.Tensor) -> torch.Tensor:
        """Each row doubled, shape (n, d); raises the error for too many rows."""
        self.asked_rows.append(len(batch))
        self.called_while_handling |= sys.exc_info()[0] is torch.OutOfMemoryError
        if len(batch) > self.most_rows:
            raise self.error(f"{len(batch)} rows do not fit, {self.most_rows} do")
        return batch * 2

    def list_calls(self, rows: int) -> list[int]:
        """The rows of each call of a right answer, for a batch of so many rows."""
        if rows <= self.most_rows or rows == 1 or self.error is not torch.OutOfMemoryError:
            return [rows]
        return [rows, *self.list_calls(rows // 2), *self.list_calls(rows - rows // 2)]


def judge_halves(_got: object, arguments: tuple[SmallStep, torch.Tensor]) -> str | None:
    """Whether what does not fit was halved, and tried again outside of ``except``."""
    step, batch = arguments
    asked, wanted = step.asked_rows, step.list_calls(len(batch))
    if asked[:1] != wanted[:1]:
        return f"the whole batch must be tried first: {len(batch)} rows, not {asked[:1]}"
    if step.called_while_handling:
        return NotThisWay("step was called again inside the except block")
    # Which half comes first is free, and so is a second call that raises a single row's error.
    asked = wanted if len(batch) == 1 and set(asked) == {1} else asked
    if sorted(asked) != sorted(wanted):
        return f"step was called with {asked} rows, and {wanted} were asked for"
    return None


def run_in_halves_cases() -> Iterator[Case]:
    """Batches that fit, after one halving or several; a row that does not; another error."""
    rows = torch.arange(22.0).reshape(11, 2)
    notes = {100: "everything fits", 6: "one halving is enough", 3: "halves of halves", 1: "rows"}
    for most_rows, note in notes.items():
        for device in usable_devices():
            arguments = (SmallStep(most_rows), rows.to(device))
            yield Case(arguments, rows * 2, note, judge=judge_halves)
    for step, batch, note in (
        (SmallStep(0), rows[:1], "a single row that does not fit"),
        (SmallStep(0, ValueError), rows, "an error of another kind"),
        # torch's own is a RuntimeError, as are most of its errors.
        (SmallStep(0, RuntimeError), rows, "a RuntimeError that is not about memory"),
    ):
        yield Case((step, batch), note=note, raises=step.error, judge=judge_halves)


def halves_inside_except(step: Step, batch: torch.Tensor) -> torch.Tensor:
    """A wrong answer: tries again while the first error is still alive."""
    try:
        return step(batch)
    except torch.OutOfMemoryError:
        return torch.cat([halves_inside_except(step, half) for half in batch.tensor_split(2)])


def rows_after_failure(step: Step, batch: torch.Tensor) -> torch.Tensor:
    """A wrong answer: goes row by row as soon as the whole does not fit."""
    with contextlib.suppress(torch.OutOfMemoryError):
        return step(batch)
    return torch.cat([step(row) for row in batch.split(1)])


def first_half_only(step: Step, batch: torch.Tensor) -> torch.Tensor:
    """A wrong answer: makes the batch smaller and forgets the rest of it."""
    while True:
        try:
            return step(batch)
        except torch.OutOfMemoryError:
            batch = batch[: len(batch) // 2]


def halve_on(caught: type[Exception]) -> Callable[..., torch.Tensor]:
    """A wrong answer: takes every error of this kind for a shortage of memory."""

    def run(step: Step, batch: torch.Tensor) -> torch.Tensor:
        try:
            return step(batch)
        except caught:
            if len(batch) == 1:
                raise
        half = len(batch) // 2
        return torch.cat([run(step, part) for part in (batch[:half], batch[half:])])

    return run


def halve_once(step: Step, batch: torch.Tensor) -> torch.Tensor:
    """A wrong answer: the halves must fit."""
    with contextlib.suppress(torch.OutOfMemoryError):
        return step(batch)
    half = len(batch) // 2
    return torch.cat([step(batch[:half]), step(batch[half:])])


def halve_for_ever(step: Step, batch: torch.Tensor) -> torch.Tensor:
    """A wrong answer: a single row is halved too."""
    with contextlib.suppress(torch.OutOfMemoryError):
        return step(batch)
    half = len(batch) // 2
    return torch.cat([halve_for_ever(step, part) for part in (batch[:half], batch[half:])])


def list_of_parts(step: Step, batch: torch.Tensor) -> Any:
    """A wrong answer: the parts, which nothing joins."""
    with contextlib.suppress(torch.OutOfMemoryError):
        return step(batch)
    if len(batch) == 1:
        return step(batch)
    half = len(batch) // 2
    return [list_of_parts(step, batch[:half]), list_of_parts(step, batch[half:])]


def equal_parts(step: Step, batch: torch.Tensor) -> torch.Tensor:
    """A wrong answer: begins again with smaller parts of one size, whatever fitted before."""
    rows = len(batch)
    while rows > 1:
        with contextlib.suppress(torch.OutOfMemoryError):
            return torch.cat([step(part) for part in batch.split(rows)])
        rows //= 2
    return torch.cat([step(part) for part in batch.split(1)])


def halve_to_zeros(step: Step, batch: torch.Tensor) -> torch.Tensor:
    """A wrong answer: hides the error of a single row."""
    with contextlib.suppress(torch.OutOfMemoryError):
        return step(batch)
    if len(batch) == 1:
        return torch.zeros_like(batch)
    half = len(batch) // 2
    return torch.cat([halve_to_zeros(step, part) for part in (batch[:half], batch[half:])])


ONE_ROW = "A single row has no halves: its error goes to the caller."
OTHER_KINDS = "A smaller batch mends one kind of error. Catch torch.OutOfMemoryError, and no other."
RUN_IN_HALVES = Exercise(
    name="run_in_halves",
    title="Come back from out of memory",
    hints=(
        "If a batch does not fit, what can be said about its two halves? And about their halves?",
        "The function may call itself. But as long as the except block runs, its error keeps the "
        "failed try's frames, and their tensors: do the second try after it.",
    ),
    cases=run_in_halves_cases,
    wrong_answers=(
        WrongAnswer(
            "tries again inside the except block", halves_inside_except, "forbidden", hint=1
        ),
        WrongAnswer("goes row by row at once", rows_after_failure, "wrong_values"),
        WrongAnswer("tries equal parts of the whole, ever smaller", equal_parts, "wrong_values"),
        WrongAnswer("does not catch the error", lambda step, batch: step(batch), "raised"),
        WrongAnswer("halves once, and not again", halve_once, "raised"),
        WrongAnswer("forgets the second half", first_half_only, "wrong_shape"),
        WrongAnswer(
            "returns the parts as a list",
            list_of_parts,
            "wrong_type",
            hint="torch.cat joins the results of the two halves, in their order.",
        ),
        WrongAnswer(
            "gives zeros for a row that does not fit",
            halve_to_zeros,
            "wrong_values",
            hint=ONE_ROW,
        ),
        WrongAnswer("halves a single row, for ever", halve_for_ever, "raised", hint=ONE_ROW),
        WrongAnswer(
            "catches errors of every kind", halve_on(Exception), "wrong_values", hint=OTHER_KINDS
        ),
        WrongAnswer(
            "catches every RuntimeError, of which running out of memory is only one",
            halve_on(RuntimeError),
            "wrong_values",
            hint=OTHER_KINDS,
        ),
    ),
)

EXERCISES = (ADD_POSITIONS, MOVE_BATCH, TIME_MEDIAN, MEAN_OF_BATCHES, RUN_IN_HALVES)
