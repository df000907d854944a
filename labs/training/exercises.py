"""The exercises of the training lab: data, a gradient, an optimizer, a loop, an evaluation."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from labkit.lessons.exercises import Case, Exercise, NotThisWay, WrongAnswer

Batches = list[tuple[Tensor, Tensor]]
Pair = tuple[Tensor, Tensor]


def _draw(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


# context_pairs


def _pairs_by_loop(ids: Tensor, length: int) -> tuple[Tensor, Tensor]:
    rows = [ids[start : start + length] for start in range(len(ids) - length)]
    return torch.stack(rows), ids[length:]


def context_pairs_cases() -> Iterator[Case]:
    """Short and long texts, the shortest context, and a single example."""
    yield Case(
        (torch.tensor([5, 6, 7, 8]), 2),
        (torch.tensor([[5, 6], [6, 7]]), torch.tensor([7, 8])),
        "the example of the text",
    )
    yield Case((torch.randint(90, (50,), generator=_draw(1)), 8), _pairs_by_loop, "50 characters")
    yield Case((torch.arange(5), 1), _pairs_by_loop, "contexts of one character")
    yield Case((torch.arange(7), 6), _pairs_by_loop, "a text with a single example")
    yield Case((torch.arange(9, dtype=torch.int32), 3), _pairs_by_loop, "int32 stays int32")


CONTEXT_PAIRS = Exercise(
    name="context_pairs",
    title="Every window is an example",
    hints=(
        "The windows overlap: each begins one place after the one before. The lab on tensors took "
        "all windows of a signal as one view.",
        "`ids.unfold(0, length, 1)` gives n - length + 1 windows. Which of them has no next "
        "character?",
    ),
    cases=context_pairs_cases,
    restrictions=("loop",),
    sized=lambda n: (torch.arange(n + 3), 3),
    wrong_answers=(
        WrongAnswer(
            "keeps the last window, which has no next character",
            lambda ids, length: (ids.unfold(0, length, 1), ids[length:]),
            "wrong_shape",
            hint=1,
        ),
        WrongAnswer(
            "takes the windows' last character for the next one",
            lambda ids, length: (ids.unfold(0, length, 1)[:-1], ids[length - 1 : -1]),
            "wrong_values",
            hint="The target is the character after the window: entry i is `ids[i + length]`.",
        ),
        WrongAnswer(
            "cuts the text into pieces that do not overlap",
            lambda ids, length: (ids.unfold(0, length, length)[:-1], ids[length::length]),
            "wrong_shape",
        ),
        WrongAnswer("goes through the places", _pairs_by_loop, "forbidden"),
        WrongAnswer(
            "turns the numbers into floats",
            lambda ids, length: (ids.unfold(0, length, 1)[:-1].float(), ids[length:]),
            "wrong_dtype",
            hint="The numbers stay whole numbers, as an embedding and cross-entropy take them.",
        ),
    ),
)


# cross_entropy_gradient


def _softmax_gradient(logits: Tensor, targets: Tensor) -> Tensor:
    leaf = logits.detach().clone().requires_grad_()
    with torch.enable_grad():
        functional.cross_entropy(leaf, targets).backward()
    assert leaf.grad is not None
    return leaf.grad


def _must_be_plain(got: Any, _: tuple[Any, ...]) -> str | None:
    return NotThisWay("they require grad: a graph is kept with them") if got.requires_grad else None


def cross_entropy_gradient_cases() -> Iterator[Case]:
    """By hand, at random, with large logits, and with logits that require grad."""
    example = torch.zeros(2, 2), torch.tensor([0, 1])
    yield Case(example, torch.tensor([[-0.25, 0.25], [0.25, -0.25]]), "two equal classes")
    logits = torch.randn(6, 9, generator=_draw(2))
    targets = torch.randint(9, (6,), generator=_draw(3))
    yield Case((logits, targets), _softmax_gradient, "6 examples, 9 classes")
    yield Case((logits[:1], targets[:1]), _softmax_gradient, "a single example")
    yield Case((logits * 200, targets), _softmax_gradient, "logits in the hundreds")
    yield Case((logits.double(), targets), _softmax_gradient, "double precision stays double")
    tracked = torch.randn(4, 3, generator=_draw(4)).requires_grad_()
    yield Case(
        (tracked, torch.tensor([0, 2, 1, 1])),
        _softmax_gradient,
        "logits that require grad",
        judge=_must_be_plain,
    )


def _gradient_by_exponentials(logits: Tensor, targets: Tensor) -> Tensor:
    weights = logits.detach().exp()
    right = functional.one_hot(targets, logits.shape[1])
    return (weights / weights.sum(dim=1, keepdim=True) - right) / len(targets)


def _gradient_without_mean(logits: Tensor, targets: Tensor) -> Tensor:
    return logits.detach().softmax(1) - functional.one_hot(targets, logits.shape[1])


CROSS_ENTROPY_GRADIENT = Exercise(
    name="cross_entropy_gradient",
    title="The gradient of cross-entropy",
    hints=(
        "Start from the probabilities. At how many places of each row do they differ from the "
        "gradient, and by how much?",
        "Subtract 1 at the target of each row (`F.one_hot` makes those ones), and divide by the "
        "number of examples, since the loss is their mean.",
    ),
    cases=cross_entropy_gradient_cases,
    restrictions=("loop", "autograd"),
    sized=lambda n: (torch.randn(n, 4), torch.arange(n) % 4),
    wrong_answers=(
        WrongAnswer("forgets the mean", _gradient_without_mean, "wrong_values", hint=1),
        WrongAnswer(
            "divides by all entries",
            lambda logits, targets: _gradient_without_mean(logits, targets) / logits.numel(),
            "wrong_values",
            hint=1,
        ),
        WrongAnswer(
            "has the sign wrong",
            lambda logits, targets: -_softmax_gradient(logits, targets),
            "wrong_values",
            hint="Probability minus 1 for the right class: that entry is negative.",
        ),
        WrongAnswer(
            "takes the softmax over the examples",
            lambda logits, targets: (
                (logits.detach().softmax(0) - functional.one_hot(targets, logits.shape[1]))
                / len(targets)
            ),
            "wrong_values",
            hint="Each row is one example: along which dimension do probabilities add up to 1?",
        ),
        WrongAnswer("asks autograd", _softmax_gradient, "forbidden"),
        WrongAnswer(
            "overflows with large logits",
            _gradient_by_exponentials,
            "wrong_values",
            hint="exp(100) is infinite in float32; `torch.softmax` subtracts the largest logit "
            "first.",
        ),
        WrongAnswer(
            "keeps the graph of the logits",
            lambda logits, targets: (
                (logits.softmax(1) - functional.one_hot(targets, logits.shape[1])) / len(targets)
            ),
            "forbidden",
            hint="Plain values were asked for, without a graph: what does `.detach()` do?",
        ),
    ),
)


# adam_step


def _adam(
    p: Tensor, g: Tensor, averages: Pair, t: int, rate: float
) -> tuple[Tensor, Tensor, Tensor]:
    m, v = averages
    m, v = torch.lerp(m, g, 0.1), v.mul(0.999) + g * g * 0.001
    scale = (v / (1 - 0.999**t)).sqrt() + 1e-8
    return p - rate / (1 - 0.9**t) * m / scale, m, v


def adam_step_cases() -> Iterator[Case]:
    """The first step, later ones, zero and huge gradients, and double precision."""
    zero = torch.zeros(3)
    g = torch.tensor([1e-3, 1.0, -1e3])
    yield Case(
        (torch.ones(3), g, (zero, zero), 1, 0.01),
        (torch.tensor([0.99, 0.99, 1.01]), 0.1 * g, 0.001 * g**2),
        "the first step, by hand",
        rtol=1e-4,
        atol=1e-6,
    )
    near = {"rtol": 1e-5, "atol": 1e-7}
    p, g, m = torch.randn(3, 2, 4, generator=_draw(5))
    v = torch.rand(2, 4, generator=_draw(6))
    yield Case((p, g, (m, v), 7, 0.1), _adam, "the seventh step", **near)
    yield Case((p, g, (m, v), 10_000, 1e-3), _adam, "a late step", **near)
    tiny = torch.full((2,), 1e-8)  # as small as epsilon, which halves the step
    moved = torch.full((2,), -0.05), 0.1 * tiny, 0.001 * tiny**2
    nothing = torch.zeros(2)
    yield Case(
        (nothing, tiny, (nothing, nothing), 1, 0.1), moved, "tiny gradients", rtol=1e-3, atol=0.0
    )
    yield Case(
        (p, 0 * g, (0 * m, 0 * v), 1, 0.1), (p, 0 * m, 0 * v), "no gradient: no move, no nan"
    )
    p, g, m, v = (one.double() for one in (p, g, m, v))
    yield Case(
        (p, g, (m, v), 3, 0.1), _adam, "double precision stays double", rtol=1e-9, atol=1e-12
    )


def _adam_uncorrected(
    p: Tensor, g: Tensor, averages: Pair, t: int, rate: float
) -> tuple[Tensor, Tensor, Tensor]:
    m, v = averages
    m, v = 0.9 * m + 0.1 * g, 0.999 * v + 0.001 * g**2
    return p - rate * m / (v.sqrt() + 1e-8), m, v


def _adam_corrects_what_it_keeps(
    p: Tensor, g: Tensor, averages: Pair, t: int, rate: float
) -> tuple[Tensor, Tensor, Tensor]:
    m, v = averages
    m = (0.9 * m + 0.1 * g) / (1 - 0.9**t)
    v = (0.999 * v + 0.001 * g**2) / (1 - 0.999**t)
    return p - rate * m / (v.sqrt() + 1e-8), m, v


def _adam_without_root(
    p: Tensor, g: Tensor, averages: Pair, t: int, rate: float
) -> tuple[Tensor, Tensor, Tensor]:
    m, v = averages
    m, v = 0.9 * m + 0.1 * g, 0.999 * v + 0.001 * g**2
    return p - rate * m / (1 - 0.9**t) / (v / (1 - 0.999**t) + 1e-8), m, v


def _adam_in_place(
    p: Tensor, g: Tensor, averages: Pair, t: int, rate: float
) -> tuple[Tensor, Tensor, Tensor]:
    answer = _adam(p, g, averages, t, rate)
    g.mul_(0.1)
    return answer


ADAM_STEP = Exercise(
    name="adam_step",
    title="One step of Adam",
    hints=(
        "Write the three lines of the text down in their order: the averages first, then the "
        "corrected copies of them, then the step. What do you return: an average, or its "
        "corrected copy?",
        "The correction divides m by 1 - 0.9 ** t and v by 1 - 0.999 ** t, for this step only. "
        "The root is taken of the corrected v, and epsilon is added after the root.",
    ),
    cases=adam_step_cases,
    wrong_answers=(
        WrongAnswer("does not correct the averages", _adam_uncorrected, "wrong_values", hint=1),
        WrongAnswer("returns the corrected averages", _adam_corrects_what_it_keeps, "wrong_values"),
        WrongAnswer("forgets the root", _adam_without_root, "wrong_values", hint=1),
        WrongAnswer(
            "changes the gradient that it was given",
            _adam_in_place,
            "changed_argument",
            hint="`x *= ...` and methods that end in `_` write into the caller's tensor; "
            "`x * ...` makes a new one.",
        ),
        WrongAnswer(
            "counts the steps from 0",
            lambda p, g, averages, t, rate: _adam(p, g, averages, t + 1, rate),
            "wrong_values",
            hint="t is 1 for the first step already.",
        ),
        WrongAnswer(
            "goes with the gradient, not against it",
            lambda p, g, averages, t, rate: _adam(p, g, averages, t, -rate),
            "wrong_values",
            hint="A step goes down: minus.",
        ),
    ),
)


# run_epoch and mean_loss


class _Watched(nn.Module):
    """A linear model that notes, for each call, its mode and whether a graph is recorded."""

    def __init__(self, seed: int = 7) -> None:
        super().__init__()
        self.layer = nn.Linear(3, 4)
        with torch.no_grad():
            for parameter in self.parameters():
                parameter.copy_(torch.randn(parameter.shape, generator=_draw(seed)))
        self.modes: list[bool] = []
        self.records: list[bool] = []

    def forward(self, x: Tensor) -> Tensor:
        """Scores of four classes."""
        self.modes.append(self.training)
        self.records.append(torch.is_grad_enabled())
        # As dropout does: another answer in training mode.
        return self.layer(x) * (0.5 if self.training else 1.0)


def _make_batches(*sizes: int) -> Batches:
    draw = _draw(8)
    return [
        (torch.randn(size, 3, generator=draw), torch.randint(4, (size,), generator=draw))
        for size in sizes
    ]


def _expect_epoch(model: _Watched, batches: Batches, rate: float) -> tuple[float, nn.Module]:
    """The mean loss of plain SGD over the batches, and the trained copy."""
    trained = _Watched().train()
    trained.load_state_dict(model.state_dict())
    total = 0.0
    for inputs, targets in batches:
        loss = functional.cross_entropy(trained(inputs), targets)
        grads = torch.autograd.grad(loss, list(trained.parameters()))
        with torch.no_grad():
            for parameter, grad in zip(trained.parameters(), grads, strict=True):
                parameter.sub_(grad, alpha=rate)
        total += loss.item() * len(targets)
    return total / sum(len(targets) for _, targets in batches), trained


def _epoch_case(note: str, batches: Batches, *, training: bool = True, rate: float = 0.5) -> Case:
    model = _Watched().train(training)
    # A gradient is left from before, as after an evaluation that someone forgot to clear.
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    expected, trained = _expect_epoch(model, batches, rate)

    def judge(got: Any, arguments: tuple[Any, ...]) -> str | None:
        given = arguments[0]
        if not all(given.modes):
            return "the model was not in training mode in every call"
        weights = zip(given.parameters(), trained.parameters(), strict=True)
        if not all(torch.allclose(one, other, atol=1e-5) for one, other in weights):
            return "the parameters are not those after one step of SGD for each batch"
        return None

    optimizer = torch.optim.SGD(model.parameters(), lr=rate)
    return Case(
        (model, optimizer, batches),
        expected,
        note,
        rtol=1e-4,
        atol=1e-5,
        judge=judge,
        keeps_arguments=False,
    )


def run_epoch_cases() -> Iterator[Case]:
    """Equal batches, a shorter last one, a single one, and a model in evaluation mode."""
    yield _epoch_case("two batches of 8", _make_batches(8, 8))
    yield _epoch_case("the last batch is shorter", _make_batches(8, 8, 3))
    yield _epoch_case("a single batch", _make_batches(5))
    yield _epoch_case("the model comes in evaluation mode", _make_batches(6, 2), training=False)


def _epoch(model: Any, optimizer: Any, batches: Batches, **changes: bool) -> float:
    """An epoch with one part left out."""
    if not changes.get("keeps_mode"):
        model.train()
    total, examples, means = 0.0, 0, []
    for inputs, targets in batches:
        if not changes.get("keeps_gradients"):
            optimizer.zero_grad()
        loss = functional.cross_entropy(model(inputs), targets)
        loss.backward()
        if changes.get("clears_late"):
            optimizer.zero_grad()
        optimizer.step()
        total, examples = total + loss.item() * len(targets), examples + len(targets)
        means.append(loss.item())
    return sum(means) / len(means) if changes.get("mean_of_means") else total / examples


RUN_EPOCH = Exercise(
    name="run_epoch",
    title="One epoch",
    hints=(
        "Five things happen in an order that matters: clear the gradients, forward, loss, "
        "backward, step. What is left in .grad from the batch before?",
        "`F.cross_entropy` gives a batch's mean. Multiply it by the size of the batch, add up, "
        "and divide by the number of examples at the end.",
    ),
    cases=run_epoch_cases,
    wrong_answers=(
        WrongAnswer(
            "never clears the gradients",
            lambda *given: _epoch(*given, keeps_gradients=True),
            "wrong_values",
        ),
        WrongAnswer(
            "clears them between backward and step",
            lambda *given: _epoch(*given, clears_late=True),
            "wrong_values",
        ),
        WrongAnswer(
            "takes the mean of the batches' means",
            lambda *given: _epoch(*given, mean_of_means=True),
            "wrong_values",
            hint=1,
        ),
        WrongAnswer(
            "leaves the mode as it came",
            lambda *given: _epoch(*given, keeps_mode=True),
            "wrong_values",
            hint="The text asks for training mode: `model.train()`.",
        ),
        WrongAnswer(
            "returns a tensor",
            lambda *given: torch.tensor(_epoch(*given)),
            "wrong_type",
            hint="The answer is a Python float: `.item()` gives it.",
        ),
    ),
)


def _expect_mean(model: _Watched, batches: Batches) -> float:
    inputs, targets = (torch.cat(parts) for parts in zip(*batches, strict=True))
    layer = model.layer
    scores = inputs @ layer.weight.detach().T + layer.bias.detach()
    return functional.cross_entropy(scores, targets).item()


def _mean_case(note: str, batches: Batches, *, training: bool) -> Case:
    model = _Watched().train(training)

    def judge(got: Any, arguments: tuple[Any, ...]) -> str | None:
        given = arguments[0]
        if given.training != training:
            mode = "training" if training else "evaluation"
            return NotThisWay(f"the model came in {mode} mode and is left in the other one")
        if any(given.records):
            return NotThisWay("a graph was recorded")
        if not all(one.requires_grad for one in given.parameters()):
            return NotThisWay("the model's parameters no longer require grad")
        return None if math.isfinite(got) else "the mean is not finite"

    expected = _expect_mean(model, batches)
    return Case((model, batches), expected, note, rtol=1e-4, atol=1e-5, judge=judge)


def mean_loss_cases() -> Iterator[Case]:
    """Models in either mode, equal batches, and a shorter last one."""
    yield _mean_case("a model in training mode", _make_batches(8, 8), training=True)
    yield _mean_case("a model in evaluation mode", _make_batches(8, 8), training=False)
    yield _mean_case("the last batch is shorter", _make_batches(8, 3), training=True)


def _evaluate(model: Any, batches: Batches, **changes: bool) -> float:
    """An evaluation with one part left out."""
    was_training = model.training
    if not changes.get("keeps_mode"):
        model.eval()
    losses, sizes = [], [len(targets) for _, targets in batches]
    with torch.set_grad_enabled(bool(changes.get("records"))):
        for inputs, targets in batches:
            losses.append(functional.cross_entropy(model(inputs), targets).item())
    if changes.get("leaves_training"):
        model.train()
    elif not changes.get("leaves_evaluation"):
        model.train(was_training)
    if changes.get("mean_of_means"):
        return sum(losses) / len(losses)
    return sum(loss * size for loss, size in zip(losses, sizes, strict=True)) / sum(sizes)


MEAN_LOSS = Exercise(
    name="mean_loss",
    title="An evaluation without side effects",
    hints=(
        "Two switches have to be set for the loop, and one of them set back after it. Which one "
        "sets itself back?",
        "`model.training` says in which mode the model came, and `model.train(mode)` takes a bool.",
    ),
    cases=mean_loss_cases,
    wrong_answers=(
        WrongAnswer(
            "stays in training mode",
            lambda *given: _evaluate(*given, keeps_mode=True),
            "wrong_values",
        ),
        WrongAnswer(
            "leaves the model in evaluation mode",
            lambda *given: _evaluate(*given, leaves_evaluation=True),
            "forbidden",
            hint=1,
        ),
        WrongAnswer(
            "always switches to training mode",
            lambda *given: _evaluate(*given, leaves_training=True),
            "forbidden",
            hint=1,
        ),
        WrongAnswer("records a graph", lambda *given: _evaluate(*given, records=True), "forbidden"),
        WrongAnswer(
            "freezes the parameters",
            lambda model, batches: _evaluate(model.requires_grad_(False), batches),
            "forbidden",
            hint="Training goes on after the evaluation. `torch.no_grad()` ends with its block.",
        ),
        WrongAnswer(
            "takes the mean of the batches' means",
            lambda *given: _evaluate(*given, mean_of_means=True),
            "wrong_values",
            hint="The batches differ in size: multiply each one's mean by its number of examples.",
        ),
    ),
)

EXERCISES = (CONTEXT_PAIRS, CROSS_ENTROPY_GRADIENT, ADAM_STEP, RUN_EPOCH, MEAN_LOSS)
