"""The autograd lab's exercises: their cases, hints and known wrong answers."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch

from labkit.lessons.exercises import Case, Exercise, NotThisWay, WrongAnswer
from labkit.lessons.value_repr import format_value

Tensor = torch.Tensor


def cubic(x: Any) -> Any:
    """The lesson's function, x³ + 2x² - 5x + 3."""
    return x**3 + 2 * x**2 - 5 * x + 3


def slope(x: Any) -> Tensor:
    """Its derivative by hand, 3x² + 4x - 5, as a tensor; float32 for a number."""
    x = x if isinstance(x, Tensor) else torch.tensor(float(x))
    return 3 * x**2 + 4 * x - 5


def complain_of_traces(_got: Tensor, arguments: tuple[Any, ...]) -> str | None:
    """A sentence where an argument that came in bare was marked or got a gradient."""
    for number, given in enumerate(arguments, start=1):
        if isinstance(given, Tensor) and given.requires_grad:
            return NotThisWay(
                f"argument number {number} came without requires_grad "
                "and was given it: everything computed from it later would be tracked"
            )
    return None


def complain_of_filled_grad(_got: Tensor, arguments: tuple[Any, ...]) -> str | None:
    """A sentence where the argument's own .grad was filled."""
    if arguments[0].grad is not None:
        return NotThisWay("the argument's own .grad was filled on the way")
    return None


def make_cubic_cases() -> Iterator[Case]:
    """Numbers, tensors of several shapes and dtypes, and one that is tracked already."""
    yield Case((2.0,), slope, "the number 2.0")
    yield Case((-0.5,), slope, "the number -0.5")
    yield Case((3,), slope, "the whole number 3")
    generator = torch.Generator().manual_seed(3)
    for shape in ((), (1,), (4,), (2, 3)):
        x = torch.randn(shape, generator=generator)
        yield Case((x,), slope, f"a tensor of shape {shape}", judge=complain_of_traces)
    yield Case((torch.linspace(-2, 2, 5, dtype=torch.float64),), slope, "a float64 tensor")
    x = torch.tensor([1.0, 2.0], requires_grad=True)
    note = "a tensor that requires grad already"
    yield Case((x,), lambda x: slope(x.detach()), note, judge=complain_of_filled_grad)


def own_leaf(x: Any) -> Tensor:
    """A tracked leaf with the values of x."""
    x = x if isinstance(x, Tensor | list) else float(x)
    return torch.as_tensor(x).detach().requires_grad_()


def mark_callers_tensor(x: Any) -> Tensor:
    """The caller's own tensor, tracked from now on."""
    return x.requires_grad_() if isinstance(x, Tensor) else own_leaf(x)


def slope_after_clearing(x: Any) -> Tensor:
    """The derivative by hand, with a name in it that belongs to autograd."""
    if isinstance(x, Tensor):
        x.grad = None
    return slope(x).detach()


def by_backward(
    x: Any,
    leaf: Callable[[Any], Tensor] = own_leaf,
    total: Callable[[Tensor], Tensor] = torch.sum,
) -> Tensor:
    """The gradient over ``leaf(x)``, as a learner may write it."""
    tracked = leaf(x)
    total(cubic(tracked)).backward()
    assert tracked.grad is not None
    return tracked.grad


CUBIC = Exercise(
    name="cubic",
    title="The gradient of a cubic",
    hints=(
        "`backward` needs two things: a leaf that requires grad, and a single number to start "
        "from. Which operation makes one number of many, and lets each keep its own derivative?",
        "A number becomes a tensor with `torch.as_tensor`; a whole number needs a floating point "
        "dtype. Do not change the caller's tensor: what gives you its values without its graph?",
    ),
    cases=make_cubic_cases,
    restrictions=("by_hand",),
    wrong_answers=(
        WrongAnswer(
            "takes finite differences in float32",
            lambda x: (cubic(torch.as_tensor(x) + 1e-5) - cubic(torch.as_tensor(x) - 1e-5)) / 2e-5,
            "wrong_values",
        ),
        WrongAnswer(
            "marks the caller's own tensor",
            partial(by_backward, leaf=mark_callers_tensor),
            "forbidden",
            hint=1,
        ),
        WrongAnswer(
            "takes the number out",
            lambda x: by_backward(x).item(),
            "wrong_type",
            hint="The answer is a tensor: leave out `.item()`.",
        ),
        WrongAnswer("wraps a number in a list", lambda x: by_backward([x]), "wrong_shape", hint=1),
        WrongAnswer(
            "brings all to float32",
            lambda x: by_backward(torch.as_tensor(x).float()),
            "wrong_dtype",
            hint="A floating point x keeps its dtype. Only a whole number needs another one.",
        ),
        WrongAnswer(
            "calls backward on many values", partial(by_backward, total=lambda y: y), "raised"
        ),
        WrongAnswer("writes the derivative down by hand", slope, "forbidden"),
        WrongAnswer("clears .grad and writes it by hand", slope_after_clearing, "forbidden"),
    ),
)


Batches = list[tuple[Tensor, Tensor]]


def gradient_of_all(weights: Tensor, batches: Batches) -> Tensor:
    """The gradient of the mean squared error over all samples at once, in closed form."""
    inputs = torch.cat([inputs for inputs, _ in batches])
    targets = torch.cat([targets for _, targets in batches])
    return 2 * inputs.T @ (inputs @ weights.detach() - targets) / len(targets)


def make_batches_cases() -> Iterator[Case]:
    """One batch, equal ones, unequal ones, and weights that bring a gradient from before."""
    generator = torch.Generator().manual_seed(4)
    for sizes, stale in (((5,), False), ((4, 4), False), ((6, 3, 1), False), ((2, 5), True)):
        weights = torch.randn(3, generator=generator).requires_grad_()
        if stale:
            weights.grad = torch.full((3,), 100.0)
        batches = [
            (torch.randn(n, 3, generator=generator), torch.randn(n, generator=generator))
            for n in sizes
        ]
        note = f"batches of {', '.join(map(str, sizes))}"
        note += ", and weights.grad is full of an earlier step" if stale else ""
        yield Case((weights, batches), gradient_of_all, note, rtol=1e-4, atol=1e-5)


def accumulate(
    weights: Tensor, batches: Batches, *, by_size: bool = True, clear: bool = True
) -> Tensor:
    """The gradient batch by batch, with each batch's share by its size or the same for all."""
    samples = sum(len(targets) for _, targets in batches)
    if clear:
        weights.grad = None
    for inputs, targets in batches:
        share = len(targets) / samples if by_size else 1 / len(batches)
        (((inputs @ weights - targets) ** 2).mean() * share).backward()
    assert weights.grad is not None
    return weights.grad


BATCHES = Exercise(
    name="small_batches",
    title="One gradient from many small batches",
    hints=(
        "Gradients of sums add up by themselves. So write the mean over all samples as a sum "
        "with one term for each batch: what must each batch's loss be divided by?",
        "Two things spoil the sum: a batch of one sample that weighs as much as a batch of six, "
        "and whatever was in `weights.grad` before you began.",
    ),
    cases=make_batches_cases,
    wrong_answers=(
        WrongAnswer(
            "takes the mean of the means", partial(accumulate, by_size=False), "wrong_values"
        ),
        WrongAnswer(
            "leaves the earlier gradient in",
            partial(accumulate, clear=False),
            "wrong_values",
            hint=1,
        ),
        WrongAnswer(
            "returns the loss",
            lambda w, b: sum(((x @ w - y) ** 2).sum() for x, y in b) / sum(len(y) for _, y in b),
            "wrong_shape",
            hint="The answer is the gradient: it has the shape of the weights.",
        ),
        WrongAnswer(
            "calls backward on the losses of single samples",
            lambda w, b: [((x @ w - y) ** 2).backward() for x, y in b],
            "raised",
            hint="`backward` starts from one number: add up a batch's squared errors first.",
        ),
    ),
)


def walk_down(f: Callable[[Tensor], Tensor], start: Tensor, rate: float, steps: int) -> Tensor:
    """Gradient descent through torch.func, which leaves no traces."""
    point = start.detach()
    for _ in range(steps):
        point = point - rate * torch.func.grad(f)(point)
    return point


def complain_of_live_point(got: Tensor, _arguments: tuple[Any, ...]) -> str | None:
    """A sentence where the point that was found still requires grad."""
    if got.requires_grad:
        return NotThisWay("the answer still requires grad, and plain values were asked for")
    return None


def make_descend_cases() -> Iterator[Case]:
    """A bowl, a narrow valley, the lesson's cubic, and no step at all."""
    for f, start, rate, steps, note in (
        (bowl_at_three, torch.tensor([0.0, 10.0]), 0.1, 1, "one step in a bowl"),
        (bowl_at_three, torch.tensor([0.0, 10.0]), 0.1, 25, "25 steps in a bowl"),
        (valley, torch.tensor([[1.0, -1.0]]), 0.02, 40, "40 steps in a narrow valley"),
        (cubic, torch.tensor(2.0), 0.05, 30, "30 steps down the cubic, from a scalar"),
        (bowl_at_three, torch.tensor([5.0]), 0.1, 0, "no step at all"),
    ):
        yield Case(
            (f, start, rate, steps),
            walk_down,
            note,
            rtol=1e-4,
            atol=1e-5,
            judge=complain_of_live_point,
        )


def bowl_at_three(x: Tensor) -> Tensor:
    """A round bowl with its lowest point where every coordinate is 3."""
    return ((x - 3) ** 2).sum()


def valley(x: Tensor) -> Tensor:
    """A valley ten times steeper across than along."""
    return (x**2 * torch.tensor([1.0, 10.0])).sum()


def descend_badly(
    *, clear: bool = True, record: bool = False, alias: bool = False
) -> Callable[..., Tensor]:
    """A descent that leaves gradients in, records its moves, or moves the caller's start."""

    def descend(f: Callable[[Tensor], Tensor], start: Tensor, rate: float, steps: int) -> Tensor:
        point = (start.detach() if alias else start.clone()).requires_grad_()
        for _ in range(steps):
            f(point).backward()
            with torch.set_grad_enabled(record):
                point -= rate * point.grad
            if clear:
                point.grad = None
        return point.detach()

    return descend


DESCEND = Exercise(
    name="descend",
    title="Walk downhill",
    hints=(
        "Each step has three parts: compute and call `backward`, move, clear the gradient. Which "
        "of them must not be in the graph?",
        "Where do your values live? `start.detach()` shares memory with `start`. And after the "
        "first step: is the name you differentiate still a leaf?",
    ),
    cases=make_descend_cases,
    wrong_answers=(
        WrongAnswer("never clears the gradient", descend_badly(clear=False), "wrong_values"),
        WrongAnswer("moves the leaf while it is tracked", descend_badly(record=True), "raised"),
        WrongAnswer(
            "moves the caller's start", descend_badly(alias=True), "changed_argument", hint=1
        ),
        WrongAnswer(
            "returns the height",
            lambda f, start, *_: f(start),
            "wrong_shape",
            hint="The answer is the point where the walk ends, and not f of it.",
        ),
        WrongAnswer(
            "returns the leaf itself",
            lambda f, start, rate, steps: walk_down(f, start, rate, steps).requires_grad_(),
            "forbidden",
            hint="Plain values were asked for, without a graph: what does `.detach()` do?",
        ),
    ),
)


def complain_of_gradient(got: Tensor, arguments: tuple[Any, ...]) -> str | None:
    """A sentence where the gradient does not come through the rounding unchanged."""
    (x,) = arguments
    if not got.requires_grad:
        return NotThisWay("the answer has no graph: no gradient can reach x")
    sent = torch.linspace(1, 2, got.numel(), dtype=got.dtype).reshape(got.shape)
    (arrived,) = torch.autograd.grad((got * sent.to(got.device)).sum(), x, allow_unused=True)
    if arrived is None:
        return NotThisWay("the graph does not lead to x")
    if not torch.allclose(arrived.cpu(), sent):
        return NotThisWay(
            "the gradient must come through unchanged: "
            f"sent {format_value(sent)}, arrived {format_value(arrived)}"
        )
    return None


def make_round_cases() -> Iterator[Case]:
    """Tracked tensors of several shapes, halves and negative numbers among them."""
    generator = torch.Generator().manual_seed(5)
    halves = torch.tensor([-1.5, -0.5, 0.5, 1.5, 2.4])
    for x, note in (
        (torch.tensor([0.2, 0.7, 1.4, -2.6]), "four numbers"),
        (halves, "halves and negative numbers"),
        (3 * torch.randn(2, 3, generator=generator), "shape (2, 3)"),
        (torch.tensor(1.7, dtype=torch.float64), "a float64 scalar"),
    ):
        yield Case(
            (x.requires_grad_(),), lambda x: x.detach().round(), note, judge=complain_of_gradient
        )


def round_in_place(x: Tensor) -> Tensor:
    """Rounds the caller's own values, behind autograd's back."""
    with torch.no_grad():
        x.round_()
    return x


ROUND = Exercise(
    name="round_through",
    title="Round, and let the gradient through",
    hints=(
        "You need a sum of two parts: one whose gradient is 1, and one that autograd takes for "
        "a constant. What must the constant be, so that the sum is the rounded value?",
        "A detached part counts in the forward pass and not in the backward pass. Begin with x; "
        "how far is it from x to the rounded x?",
    ),
    cases=make_round_cases,
    wrong_answers=(
        WrongAnswer("rounds, with its gradient of zero", lambda x: x.round(), "forbidden"),
        WrongAnswer("detaches everything", lambda x: x.detach().round(), "forbidden", hint=1),
        WrongAnswer(
            "detaches the wrong part", lambda x: x.detach() + (x.round() - x), "forbidden", hint=1
        ),
        WrongAnswer(
            "rounds the caller's values",
            round_in_place,
            "changed_argument",
            hint="`x.round()` makes a new tensor; `x.round_()` writes into the caller's.",
        ),
        WrongAnswer(
            "rounds to whole numbers of int64",
            lambda x: x.round().long(),
            "wrong_dtype",
            hint="Keep the dtype of x: whole numbers of int64 have no gradient.",
        ),
    ),
)


Equation = Callable[[Tensor, Tensor], Tensor]


def make_slope_cases() -> Iterator[Case]:
    """Equations with known slopes; a is chosen to fit x, so that no solver is needed."""
    x = torch.tensor([0.5, 1.0, 3.0])
    yield Case((lambda x, a: x**2 - a, x, x**2), 1 / (2 * x), "x² = a", judge=complain_of_slope)
    x = torch.tensor(0.7, dtype=torch.float64)
    yield Case(
        (lambda x, a: x**3 + x - a, x, x**3 + x),
        1 / (3 * x**2 + 1),
        "x³ + x = a, a float64 scalar",
        judge=complain_of_slope,
    )
    x = torch.linspace(0.1, 1.2, 6).reshape(2, 3)
    a = x / x.cos()
    yield Case(
        (lambda x, a: x - a * x.cos(), x, a),
        x.cos() / (1 + a * x.sin()),
        "x = a cos x, shape (2, 3)",
        judge=complain_of_slope,
    )
    x = torch.tensor([2.0, 4.0])
    yield Case(
        (lambda x, a: x.log() + a, x, -x.log()),
        -x,
        "log x = -a, where x falls as a grows",
        judge=complain_of_slope,
    )


def complain_of_slope(got: Tensor, arguments: tuple[Any, ...]) -> str | None:
    """A sentence where the slope is tracked, or an argument was marked."""
    return complain_of_live_point(got, arguments) or complain_of_traces(got, arguments)


def find_partials(equation: Equation, x: Tensor, a: Tensor) -> tuple[Tensor, ...]:
    """The equation's slopes along x and along a, at the solution."""
    x, a = x.detach().requires_grad_(), a.detach().requires_grad_()
    return torch.autograd.grad(equation(x, a).sum(), (x, a))


def track_slope(equation: Equation, x: Tensor, a: Tensor) -> Tensor:
    """The right slope, still with a graph of its own."""
    x, a = x.detach().requires_grad_(), a.detach().requires_grad_()
    along = torch.autograd.grad(equation(x, a).sum(), (x, a), create_graph=True)
    return (-along[1] / along[0]).requires_grad_()


IMPLICIT = Exercise(
    name="implicit_slope",
    title="The derivative of a solution",
    hints=(
        "Move a by a little: x must move so that the equation stays at zero. Write that down as "
        "one line with the two derivatives of the equation, and solve it for dx/da.",
        "Autograd gives you both derivatives of `equation` in one call, from leaves of your own "
        "that hold the values of x and a. Mind the sign when you solve for dx/da.",
    ),
    cases=make_slope_cases,
    wrong_answers=(
        WrongAnswer(
            "drops the sign",
            lambda *given: torch.div(*find_partials(*given)[::-1]),
            "wrong_values",
            hint=1,
        ),
        WrongAnswer(
            "divides the other way round",
            lambda *given: -torch.div(*find_partials(*given)),
            "wrong_values",
        ),
        WrongAnswer(
            "takes x for a constant", lambda *given: find_partials(*given)[1], "wrong_values"
        ),
        WrongAnswer(
            "asks for a graph that the solver did not build",
            lambda g, x, a: torch.autograd.grad(x.sum(), a)[0],
            "raised",
            hint=1,
        ),
        WrongAnswer(
            "returns both derivatives",
            find_partials,
            "wrong_type",
            hint="dx/da is one tensor, which comes from both derivatives by a division.",
        ),
        WrongAnswer(
            "returns a derivative that is tracked",
            track_slope,
            "forbidden",
            hint="Plain values were asked for, without a graph: what does `.detach()` do?",
        ),
    ),
)


EXERCISES = (CUBIC, BATCHES, DESCEND, ROUND, IMPLICIT)
