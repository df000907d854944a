"""The exercises of the compile lab: what each asks, and how an answer is judged."""

from __future__ import annotations

import contextlib
import io
import math
import random
from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch._dynamo
from torch.nn import functional

from labkit.lessons.exercises import Case, Exercise, WrongAnswer
from labkit.lessons.value_repr import describe_type
from labkit.text import plural


class GraphRecorder:
    """A backend that compiles nothing: it keeps the inputs of each graph and runs it as it is."""

    def __init__(self) -> None:
        self.inputs: list[list[object]] = []

    def __call__(self, graph: torch.fx.GraphModule, inputs: list[object]) -> Any:
        """The graph's own forward, once its inputs are noted."""
        self.inputs.append(inputs)
        return graph.forward


def _seeded(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def _require_function(got: object) -> None:
    # The framework turns an error here into the verdict "wrong type".
    if not callable(got):
        raise TypeError("a function was asked for, which can be called later")


def _run_eagerly(function: Callable[..., Any], x: torch.Tensor) -> tuple[Any, str | None]:
    given = x.clone()
    with contextlib.redirect_stdout(io.StringIO()):
        try:
            answer = function(given)
        except Exception as error:
            reason = str(error).strip().partition("\n")[0]
            return None, f"the function you return raised {type(error).__name__}: {reason}"
    return answer, None if torch.equal(given, x) else "the function you return changes its x"


def _find_compile_fault(function: Callable[..., Any], inputs: list[torch.Tensor]) -> str | None:
    """Why the function is not one graph for all of these inputs of one shape, or None if it is."""
    torch._dynamo.reset()
    recorder = GraphRecorder()
    compiled = torch.compile(function, backend=recorder, fullgraph=True)
    with contextlib.redirect_stdout(io.StringIO()):
        for x in inputs:
            try:
                compiled(x.clone())
            except Exception as error:
                return f"with fullgraph=True it raises {_explain(error)}"
    if len(recorder.inputs) != 1:
        return f"it took {len(recorder.inputs)} graphs for inputs of one shape, and one was asked"
    return None


def _run_uncompiled(function: Callable[..., Any], x: torch.Tensor) -> tuple[Any, str | None]:
    """As _run_eagerly; an answer that is compiled already is not compiled for its values."""
    with torch.compiler.set_stance("force_eager"):
        return _run_eagerly(function, x)


def _explain(error: Exception) -> str:
    """Dynamo's error as a sentence: its first line says what, or where Dynamo stopped."""
    first, *rest = str(error).strip().splitlines()
    if "data-dependent" in first.lower():
        return (
            f"{type(error).__name__}: an `if`, `.item()` or `float()` needs a value, which is not "
            "known while the graph is captured"
        )
    explained = [line.strip() for line in rest if line.strip().startswith("Explanation: ")]
    reason = explained[0].removeprefix("Explanation: ") if explained else first
    return f"{type(error).__name__}: {reason}"


def _calls_until_paid_cases() -> Iterator[Case]:
    # Powers of two: these seconds are exact in floating point, so that "as soon as" is too.
    yield Case((10.0, 0.5, 0.25), 39, "evens out exactly")
    yield Case((10.0, 0.5, 0.125), 27, "evens out between two calls")
    yield Case((3.0, 0.25, 0.25), None, "compiled is as fast as eager, never faster")
    yield Case((3.0, 0.25, 0.5), None, "compiled is slower than eager")
    yield Case((0.5, 0.5, 0.25), 1, "the first call costs no more than an eager one")
    yield Case((0.25, 0.5, 0.125), 1, "the first call is already cheaper")
    yield Case((0.25, 0.5, 1.0), 1, "only the first call is cheaper")
    draw = random.Random(5)
    for _ in range(20):
        first, eager, later = (draw.randint(1, most) for most in (6400, 64, 64))
        arguments = (first / 64, eager / 64, later / 64)
        # By trying: with whole sixty-fourths it pays within 6400 calls or never.
        paid = (n for n in range(1, 6401) if first + (n - 1) * later <= n * eager)
        yield Case(arguments, next(paid, None), "seconds in sixty-fourths")


def _paid(
    first: float,
    eager: float,
    later: float,
    *,
    extra: float = 0.0,
    whole: Callable[[float], int] = math.ceil,
    never: object = None,
) -> object:
    """The right answer but for what is given: the wrong answers' common part."""
    if first <= eager:
        return 1
    return never if later >= eager else whole((first - later + extra) / (eager - later))


CALLS_UNTIL_PAID = Exercise(
    name="calls_until_paid",
    title="When does it pay off?",
    hints=(
        "Write both totals down for n calls: n eager ones, and one first call with n - 1 later "
        "ones. Where do the two lines cross, and do they always?",
        "Each later call wins back eager - later seconds. What must be won back is what the first "
        "call cost beyond a later one. Round up, and think of a win of zero or less.",
    ),
    cases=_calls_until_paid_cases,
    wrong_answers=(
        WrongAnswer(
            "takes the first call as an extra on top of n later ones",
            lambda first, eager, later: _paid(first, eager, later, extra=later),
            "wrong_values",
            hint=1,
        ),
        WrongAnswer(
            "leaves the first call out of the count",
            lambda first, eager, later: _paid(first, eager, later, extra=later - eager),
            "wrong_values",
            hint="The first compiled call is one of the n calls.",
        ),
        WrongAnswer(
            "rounds to the nearest whole number",
            lambda first, eager, later: _paid(first, eager, later, whole=round),
            "wrong_values",
            hint=1,
        ),
        WrongAnswer(
            "rounds down and adds one, also where it comes out even",
            lambda first, eager, later: _paid(
                first, eager, later, whole=lambda calls: math.floor(calls) + 1
            ),
            "wrong_values",
            hint="If the two totals are equal after n calls, compiling has paid off with that n. "
            "Which function rounds up, and leaves a whole number as it is?",
        ),
        WrongAnswer(
            "asks whether later calls are faster before it looks at the first one",
            lambda first, eager, later: (
                None if later >= eager else max(1, math.ceil((first - later) / (eager - later)))
            ),
            "wrong_type",
            hint="If the first call costs no more than an eager one, one call has paid off, "
            "whatever later calls cost.",
        ),
        WrongAnswer(
            "gives infinity where it never pays",
            lambda first, eager, later: _paid(first, eager, later, never=math.inf),
            "wrong_type",
            hint="Where there is no such n, the text asks for None.",
        ),
        WrongAnswer(
            "divides by zero where a later call costs what an eager one costs",
            lambda first, eager, later: (
                1 if first <= eager else math.ceil((first - later) / (eager - later))
            ),
            "raised",
            hint=1,
        ),
        WrongAnswer("knows the example alone", lambda first, eager, later: 39, "wrong_values"),
        WrongAnswer(
            "forgets that it may never pay",
            lambda first, eager, later: max(
                1, math.ceil((first - later) / ((eager - later) or 1e-9))
            ),
            "wrong_type",
        ),
        WrongAnswer(
            "gives a float, where a number of calls is an int",
            lambda first, eager, later: (first - later) / (eager - later),
            "wrong_type",
            hint=1,
        ),
    ),
)


def _check_normalized_values(got: Any, _: tuple[Any, ...]) -> str | None:
    _require_function(got)
    for shape in ((6, 4), (5,), (2, 3, 4)):
        x = _seeded(*shape) * 3 + 5
        answer, fault = _run_uncompiled(got, x)
        fault = fault or _find_pair_fault(answer, x)
        if fault:
            return fault
    return None


def _check_one_graph(got: Any, _: tuple[Any, ...]) -> str | None:
    return _find_compile_fault(got, [_seeded(6, 4, seed=seed) for seed in range(2)])


def _find_pair_fault(answer: object, x: torch.Tensor) -> str | None:
    if not isinstance(answer, tuple) or len(answer) != 2:
        return (
            "the function you return must give a pair, (normalized, mean), and yours gives "
            + describe_type(answer)
        )
    normalized, mean = answer
    if not isinstance(mean, torch.Tensor) or mean.shape != ():
        return f"the mean must be a tensor of shape (), and yours is {describe_type(mean)}"
    if not torch.allclose(mean, x.mean()):
        return f"the mean of a test input is {x.mean():.4f}, and yours is {mean:.4f}"
    wanted = (x - x.mean()) / x.std()
    if not isinstance(normalized, torch.Tensor) or normalized.shape != wanted.shape:
        return f"the normalized values must be a tensor of shape {tuple(wanted.shape)}"
    if not torch.allclose(normalized, wanted, atol=1e-5):
        return "the normalized values are not (x - mean) / std"
    return None


def _normalize_with_print(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    mean = x.mean()
    print("mean", mean)
    return (x - mean) / x.std(), mean


def _normalize_in_place(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    mean = x.mean()
    x -= mean
    x /= x.std()
    return x, mean


BUILD_NORMALIZER = Exercise(
    name="build_normalizer",
    title="Remove the graph break",
    hints=(
        "What in the function is done by Python and not by torch? Who else could do it, later, "
        "if the function handed out what is needed?",
        "A graph can return several tensors. Leave the printing to the caller, and give the mean "
        "back as it is, without turning it into a Python number.",
    ),
    cases=lambda: (
        Case((), judge=_check_normalized_values, note="the values"),
        Case((), judge=_check_one_graph, note="one graph"),
    ),
    wrong_answers=(
        WrongAnswer("still prints", lambda: _normalize_with_print, "wrong_values"),
        WrongAnswer(
            "gives the mean as a Python number",
            lambda: lambda x: ((x - x.mean()) / x.std(), x.mean().item()),
            "wrong_values",
            hint=1,
        ),
        WrongAnswer(
            "drops the mean with the print",
            lambda: lambda x: (x - x.mean()) / x.std(),
            "wrong_values",
            hint=1,
        ),
        WrongAnswer(
            "gives the mean first",
            lambda: lambda x: (x.mean(), (x - x.mean()) / x.std()),
            "wrong_values",
            hint="The pair is (normalized, mean), in this order.",
        ),
        WrongAnswer(
            "normalizes each column by itself",
            lambda: lambda x: ((x - x.mean(0)) / x.std(0), x.mean(0)),
            "wrong_values",
            hint="The text's function takes one mean of all values: `x.mean()`, without `dim`.",
        ),
        WrongAnswer(
            "changes x",
            lambda: _normalize_in_place,
            "wrong_values",
            hint="`x - mean` makes a new tensor; `x -= mean` writes into the caller's.",
        ),
        WrongAnswer(
            "normalizes an x itself",
            lambda x: ((x - x.mean()) / x.std(), x.mean()),
            "raised",
            hint="`build_normalizer()` takes nothing. Define a function of x in it, and return "
            "that function, without calling it.",
        ),
        WrongAnswer(
            "returns a result where a function was asked for",
            lambda: (torch.zeros(2), torch.zeros(())),
            "wrong_type",
        ),
    ),
)


def _scale_to_limit(x: torch.Tensor, limit: float) -> torch.Tensor:
    norm = x.norm()
    return x * (limit / norm) if norm > limit else x


def _check_clipper(got: Any, arguments: tuple[Any, ...]) -> str | None:
    _require_function(got)
    limit, *shape = arguments
    direction = _seeded(*shape) / _seeded(*shape).norm()
    inputs = [direction * limit * factor for factor in (4.0, 0.25, 0.0)]
    for x, kind in zip(inputs, ("longer than", "shorter than", "zero, far below"), strict=True):
        answer, fault = _run_uncompiled(got, x)
        if fault:
            return fault
        wanted = _scale_to_limit(x, limit)
        if not isinstance(answer, torch.Tensor) or answer.shape != wanted.shape:
            return "the function you return must give a tensor of the shape of x"
        if not torch.allclose(answer, wanted, atol=1e-6):
            return f"for an x that is {kind} the limit: expected {wanted}, got {answer}"
    return _find_compile_fault(got, inputs)


def _clipper_case(limit: float, *shape: int) -> Case:
    """A clipper with this limit must be right for tensors of this shape."""

    def judge(got: Any, arguments: tuple[Any, ...]) -> str | None:
        return _check_clipper(got, (*arguments, *shape))

    return Case((limit,), judge=judge, note=f"limit {limit:g}, shape {shape}")


def _clip_by_masks(limit: float) -> Callable[[torch.Tensor], torch.Tensor]:
    def clip(x: torch.Tensor) -> torch.Tensor:
        too_long = x.norm() > limit
        return too_long * (x * (limit / x.norm())) + ~too_long * x

    return clip


def _clip_rows(limit: float) -> Callable[[torch.Tensor], torch.Tensor]:
    def clip(x: torch.Tensor) -> torch.Tensor:
        norm = x.norm(dim=-1, keepdim=True)
        return torch.where(norm > limit, x * (limit / norm), x)

    return clip


def _clip_in_place(limit: float) -> Callable[[torch.Tensor], torch.Tensor]:
    def clip(x: torch.Tensor) -> torch.Tensor:
        norm = x.norm()
        return x.mul_(torch.where(norm > limit, limit / norm, 1.0))

    return clip


ONE_NORM = (
    "There is one norm, of the whole tensor, and one factor for all of its values. "
    "What is compared with the limit?"
)
MAKE_CLIPPER = Exercise(
    name="make_clipper",
    title="Clip by norm",
    hints=(
        "The `if` asks for a value while the graph is being written. Can both answers be "
        "computed, and the choice be left to an operation on tensors?",
        "torch.where takes a condition, and picks from two tensors. Try your function on zeros "
        "as well: 0 times infinity is nan, and nan times zero is nan still.",
    ),
    cases=lambda: (
        _clipper_case(1.0, 5),
        _clipper_case(0.5, 5),
        _clipper_case(2.0, 4, 3),
    ),
    wrong_answers=(
        WrongAnswer(
            "keeps the if",
            lambda limit: lambda x: _scale_to_limit(x, limit),
            "wrong_values",
        ),
        WrongAnswer(
            "always scales",
            lambda limit: lambda x: x * (limit / x.norm()),
            "wrong_values",
            hint="What must happen to an x that is shorter than the limit? torch.where can pick.",
        ),
        WrongAnswer("multiplies by masks: nan at zero", _clip_by_masks, "wrong_values", hint=1),
        WrongAnswer("clips each row by itself", _clip_rows, "wrong_values", hint=ONE_NORM),
        WrongAnswer(
            "limits each value, and not the norm",
            lambda limit: lambda x: x.clamp(-limit, limit),
            "wrong_values",
            hint=ONE_NORM,
        ),
        WrongAnswer(
            "compares each value with the limit, and not the norm",
            lambda limit: lambda x: torch.where(x > limit, x * (limit / x.norm()), x),
            "wrong_values",
            hint=ONE_NORM,
        ),
        WrongAnswer(
            "scales where the norm is below the limit",
            lambda limit: lambda x: torch.where(x.norm() < limit, x * (limit / x.norm()), x),
            "wrong_values",
            hint="torch.where(condition, a, b) takes a where the condition holds. Which of the two "
            "is for a norm above the limit?",
        ),
        WrongAnswer(
            "gives zeros for an x that is short enough",
            lambda limit: lambda x: torch.where(x.norm() > limit, x * (limit / x.norm()), 0),
            "wrong_values",
            hint="An x that is short enough stays as it is: that is the third argument.",
        ),
        WrongAnswer(
            "scales x in place",
            _clip_in_place,
            "wrong_values",
            hint="`x * factor` makes a new tensor; `x.mul_` and `x[:] =` write into the caller's.",
        ),
        WrongAnswer(
            "takes the tensor where the limit comes in",
            lambda limit: limit.norm(),
            "raised",
        ),
    ),
)


def _two_graphs(x: torch.Tensor) -> torch.Tensor:
    y = x.sin()
    torch._dynamo.graph_break()
    return y.cos()


def _count_compiles_cases() -> Iterator[Case]:
    # What earlier checks compiled would count towards Dynamo's limit on recompiling.
    torch._dynamo.reset()
    x = _seeded(3, 4)
    yield Case((lambda x: x * 2, [x, x + 1, x - 1]), 1, "one shape, other values")
    yield Case((lambda x: x + 1, [x, x.double(), x]), 2, "float32, float64, float32 again")
    sizes = [_seeded(rows, 4) for rows in (3, 5, 7, 9)]
    yield Case((lambda x: x * 3, sizes), 2, "3, 5, 7 and 9 rows")
    square = _seeded(4, 4)
    yield Case(
        (lambda x: x / 2, [square, square.t(), square.t() + 0]), 2, "a square and its transpose"
    )
    yield Case((_two_graphs, [x, x]), 2, "a function with a graph break")


def _count(function: Callable[..., Any], inputs: list[torch.Tensor], **options: bool) -> int:
    torch._dynamo.reset()
    recorder = GraphRecorder()
    compiled = torch.compile(function, backend=recorder, **options)
    for x in inputs:
        compiled(x)
    return len(recorder.inputs)


DEFAULTS = (
    "The text asks for default settings: torch.compile gets the function and your backend, "
    "and nothing else."
)
COUNT_COMPILES = Exercise(
    name="count_compiles",
    title="Count the compiles",
    hints=(
        "A backend is any function that takes a graph and example inputs, and returns something "
        "to call. What can it do besides?",
        "Make the backend note down that it was called, and return graph.forward. Compile the "
        "function once with it, call the result on each input, and count the notes.",
    ),
    cases=_count_compiles_cases,
    wrong_answers=(
        WrongAnswer("counts the calls", lambda function, inputs: len(inputs), "wrong_values"),
        WrongAnswer(
            "thinks that only shapes count",
            lambda function, inputs: len({x.shape for x in inputs}),
            "wrong_values",
        ),
        WrongAnswer(
            "looks at the first input alone",
            lambda function, inputs: torch._dynamo.explain(function)(inputs[0]).graph_count,
            "wrong_values",
        ),
        WrongAnswer(
            "thinks that shapes and dtypes are all that counts",
            lambda function, inputs: len({(x.shape, x.dtype) for x in inputs}),
            "wrong_values",
        ),
        WrongAnswer(
            "compiles with dynamic=False",
            lambda function, inputs: _count(function, inputs, dynamic=False),
            "wrong_values",
            hint=DEFAULTS,
        ),
        WrongAnswer(
            "compiles with dynamic=True",
            lambda function, inputs: _count(function, inputs, dynamic=True),
            "wrong_values",
            hint=DEFAULTS,
        ),
        WrongAnswer(
            "compiles with fullgraph=True",
            lambda function, inputs: _count(function, inputs, fullgraph=True),
            "raised",
            hint=DEFAULTS,
        ),
        WrongAnswer(
            "returns the notes, and not how many",
            lambda function, inputs: [function(x) for x in inputs],
            "wrong_type",
            hint=1,
        ),
    ),
)


def _row_scores(x: torch.Tensor) -> torch.Tensor:
    return (x * x).sum(dim=1).sqrt()


def _row_shares(x: torch.Tensor) -> torch.Tensor:
    return x.softmax(dim=1)


COLUMNS = 6


def _check_buckets(got: Any, arguments: tuple[Any, ...]) -> str | None:
    _require_function(got)
    function, bucket, recorder = arguments
    torch._dynamo.reset()
    lengths = [1, bucket - 3, bucket, bucket + 1, 2 * bucket, 2 * bucket + 5, 4 * bucket]
    for rows in lengths:
        x = _seeded(rows, COLUMNS, seed=rows)
        answer, fault = _run_eagerly(got, x)
        if fault:
            return fault
        wanted = function(x)
        if not isinstance(answer, torch.Tensor) or answer.shape != wanted.shape:
            shape = tuple(answer.shape) if isinstance(answer, torch.Tensor) else answer
            given = f"for {plural(rows, 'row')} the shape must be {tuple(wanted.shape)}"
            return f"{given}, and yours is {shape}"
        if not torch.allclose(answer, wanted, atol=1e-6):
            return f"for {plural(rows, 'row')} the values are not those of the function"
    return _find_bucket_fault(recorder, bucket, lengths)


def _find_bucket_fault(recorder: GraphRecorder, bucket: int, lengths: list[int]) -> str | None:
    rows = []
    for inputs in recorder.inputs:
        if any(isinstance(one, torch.SymInt) for one in inputs):
            return "a graph was compiled for any number of rows, and fixed shapes were asked for"
        columns = {one.shape[1] for one in inputs if isinstance(one, torch.Tensor)}
        if columns != {COLUMNS}:
            return f"a graph was compiled for {max(columns)} columns, and x has {COLUMNS}"
        rows += [one.shape[0] for one in inputs if isinstance(one, torch.Tensor)]
    if not rows:
        return "the backend that your function was given got no graph"
    wanted = sorted({-(-length // bucket) * bucket for length in lengths})
    if sorted(set(rows)) != wanted:
        return f"graphs were compiled for {sorted(set(rows))} rows, and {wanted} are needed"
    if len(recorder.inputs) != len(wanted):
        return f"the backend was given {len(recorder.inputs)} graphs, and {len(wanted)} are needed"
    return None


def _pad(x: torch.Tensor, bucket: int) -> torch.Tensor:
    return functional.pad(x, (0, 0, 0, -x.shape[0] % bucket))


def _pad_always(
    function: Callable[..., Any], bucket: int, backend: Any
) -> Callable[[torch.Tensor], torch.Tensor]:
    compiled = torch.compile(function, backend=backend, dynamic=False)

    def call(x: torch.Tensor) -> torch.Tensor:
        rows = x.shape[0]
        return compiled(functional.pad(x, (0, 0, 0, bucket - rows % bucket)))[:rows]

    return call


COMPILE_IN_BUCKETS = Exercise(
    name="compile_in_buckets",
    title="Many lengths, few graphs",
    hints=(
        "Let every x that reaches the compiled function have one of a few heights. How many rows "
        "of zeros must be added, and what must happen to the rows that come out of them?",
        "-rows % bucket says how many rows are missing. Look up torch.nn.functional.pad for the "
        "order of its numbers, and keep Dynamo from making the number of rows dynamic.",
    ),
    cases=lambda: (
        Case((_row_scores, 16, GraphRecorder()), judge=_check_buckets, note="one number a row"),
        Case((_row_shares, 8, GraphRecorder()), judge=_check_buckets, note="a row for a row"),
    ),
    wrong_answers=(
        WrongAnswer(
            "compiles each length",
            lambda function, bucket, backend: torch.compile(
                function, backend=backend, dynamic=False
            ),
            "wrong_values",
        ),
        WrongAnswer(
            "makes the rows dynamic instead",
            lambda function, bucket, backend: torch.compile(
                function, backend=backend, dynamic=True
            ),
            "wrong_values",
            hint=1,
        ),
        WrongAnswer(
            "pads, and lets Dynamo make the rows dynamic from the second bucket on",
            lambda function, bucket, backend: (
                lambda x: torch.compile(function, backend=backend)(_pad(x, bucket))[: x.shape[0]]
            ),
            "wrong_values",
            hint=1,
        ),
        WrongAnswer(
            "pads the columns",
            lambda function, bucket, backend: (
                lambda x: torch.compile(function, backend=backend, dynamic=False)(
                    functional.pad(x, (0, -x.shape[0] % bucket))
                )
            ),
            "wrong_values",
            hint=1,
        ),
        WrongAnswer(
            "pads in front of the rows",
            lambda function, bucket, backend: (
                lambda x: torch.compile(function, backend=backend, dynamic=False)(
                    functional.pad(x, (0, 0, -x.shape[0] % bucket, 0))
                )[: x.shape[0]]
            ),
            "wrong_values",
            hint=1,
        ),
        WrongAnswer(
            "leaves out the backend",
            lambda function, bucket, backend: (
                lambda x: torch.compile(function, backend="eager", dynamic=False)(_pad(x, bucket))[
                    : x.shape[0]
                ]
            ),
            "wrong_values",
            hint="Hand the backend on: `torch.compile(function, backend=backend, ...)`.",
        ),
        WrongAnswer(
            "pads a full bucket once more",
            _pad_always,
            "wrong_values",
            hint=1,
        ),
        WrongAnswer(
            "leaves the padding in the answer",
            lambda function, bucket, backend: (
                lambda x: torch.compile(function, backend=backend, dynamic=False)(_pad(x, bucket))
            ),
            "wrong_values",
        ),
        WrongAnswer(
            "calls at once",
            lambda function, bucket, backend: torch.compile(function, backend=backend)(
                torch.ones(bucket, 6)
            ),
            "wrong_type",
        ),
    ),
)


EXERCISES = (
    CALLS_UNTIL_PAID,
    BUILD_NORMALIZER,
    MAKE_CLIPPER,
    COUNT_COMPILES,
    COMPILE_IN_BUCKETS,
)
