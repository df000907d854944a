"""The checks of the lab "functional": torch.func's transforms, and how they compose."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, grad_and_value, hessian, jacrev, jvp, vjp, vmap

from labkit.lessons.exercises import Case, Exercise, NotThisWay, WrongAnswer

Distance = Callable[[Tensor, Tensor], Tensor]
ScalarFunction = Callable[[Tensor], Tensor]


def _euclidean(a: Tensor, b: Tensor) -> Tensor:
    return torch.linalg.vector_norm(a - b)


def _excess(a: Tensor, b: Tensor) -> Tensor:
    # Not symmetric, and torch.dot takes single vectors only: broadcasting cannot replace vmap.
    return torch.dot(a, a) - torch.dot(a, b)


def _pairs_by_loop(distance: Distance, left: Tensor, right: Tensor) -> Tensor:
    return torch.stack([torch.stack([distance(a, b) for b in right]) for a in left])


def pairwise_cases() -> Iterator[Case]:
    """Euclidean and asymmetric distances, square and oblong, and a single pair."""
    draw = torch.Generator().manual_seed(11)
    left, right = torch.randn(4, 3, generator=draw), torch.randn(6, 3, generator=draw)
    corner = torch.tensor([[0.0, 0.0], [3.0, 4.0]]), torch.zeros(1, 2)
    yield Case((_euclidean, *corner), torch.tensor([[0.0], [5.0]]), "the example of the text")
    yield Case((_euclidean, left, right), _pairs_by_loop, "4 rows against 6, Euclidean")
    yield Case((_excess, left, right), _pairs_by_loop, "a distance that is not symmetric")
    yield Case((_excess, right, right), _pairs_by_loop, "as many rows on either side")
    yield Case((_excess, left[:1], right[:1]), _pairs_by_loop, "one row against one")
    yield Case(
        (_excess, left.double(), right.double()), _pairs_by_loop, "double precision stays double"
    )


def _sine_wave(x: Tensor) -> Tensor:
    return torch.sin(3 * x)


def _cube(x: Tensor) -> Tensor:
    return x**3


def _growth(x: Tensor) -> Tensor:
    # torch.dot refuses a batch of numbers: f has to be given one at a time, or through vmap.
    powers = torch.stack([x, x**2])
    return torch.dot(powers, powers)


def slope_and_bend_cases() -> Iterator[Case]:
    """Functions with derivatives known by hand, one of which takes single numbers only."""
    example = torch.tensor([1.0, 2.0])
    yield Case(
        (_cube, example),
        (torch.tensor([3.0, 12.0]), torch.tensor([6.0, 12.0])),
        "the example of the text",
    )
    x = torch.linspace(-2, 2, 9)
    near = {"rtol": 1e-4, "atol": 1e-4}
    waves = 3 * torch.cos(3 * x), -9 * torch.sin(3 * x)
    yield Case((_sine_wave, x), waves, "sin(3x)", **near)
    growth = 2 * x + 4 * x**3, 2 + 12 * x**2
    yield Case((_growth, x), growth, "a function that takes only single numbers", **near)
    yield Case((_cube, torch.tensor([-3.0])), (torch.tensor([27.0]), torch.tensor([-18.0])), "one")
    y = torch.linspace(-1, 1, 5, dtype=torch.float64)
    yield Case((_cube, y), (3 * y**2, 6 * y), "double precision, by which differences are seen")


def _slope_by_loop(f: ScalarFunction, x: Tensor) -> tuple[Tensor, ...]:
    return tuple(torch.stack([g(point) for point in x]) for g in (grad(f), grad(grad(f))))


def _plane(x: Tensor) -> Tensor:
    return torch.stack([x[0] * x[1], x[0] ** 2 - x[1], torch.sin(x[1])])


def _wave(x: Tensor) -> Tensor:
    return torch.sin(x) * x


def _mix(x: Tensor) -> Tensor:
    return torch.cumsum(x**2, dim=0)


def push_forward_cases() -> Iterator[Case]:
    """Oblong and square Jacobians, and one too large for any memory: 8 million squared."""
    draw = torch.Generator().manual_seed(12)
    x = torch.tensor([1.0, 2.0], dtype=torch.float64)
    v = torch.tensor([1.0, -1.0], dtype=torch.float64)
    expected = torch.stack([x[1] - x[0], 2 * x[0] + 1, -torch.cos(x[1])])
    yield Case((_plane, x, v), expected, "2 inputs, 3 outputs", rtol=1e-10, atol=1e-10)
    x, v = torch.randn(2, 5, generator=draw)
    yield Case((_mix, x, v), torch.cumsum(2 * x * v, dim=0), "as many outputs as inputs")
    yield Case((_mix, x, torch.zeros(5)), torch.zeros(5), "the zero direction")
    many, along = torch.rand(2, 8_000_000, generator=draw)
    yield Case(
        (_wave, many, along),
        (torch.cos(many) * many + torch.sin(many)) * along,
        "8 million inputs and outputs: the Jacobian would take 256 terabytes",
        rtol=1e-4,
        atol=1e-5,
    )


def _bowl(x: Tensor) -> Tensor:
    return (x[0] - 1) ** 2 + 3 * x[1] ** 2


def _tilted_bowl(x: Tensor) -> Tensor:
    return x[0] ** 2 + x[0] * x[1] + 2 * x[1] ** 2 - 3 * x[0] + x[2] ** 2 + x[1] * x[2]


def _steep(x: Tensor) -> Tensor:
    return torch.exp(x).sum() - x.sum() + 0.5 * x.prod()


def _newton_by_autograd(f: ScalarFunction, x: Tensor) -> Tensor:
    slope = torch.autograd.functional.jacobian(f, x)
    bend = torch.autograd.functional.hessian(f, x)
    return x - torch.linalg.solve(bend, slope)


def newton_step_cases() -> Iterator[Case]:
    """Quadratics, which one step solves, diagonal and not; and functions that are not quadratic."""
    draw = torch.Generator().manual_seed(13)
    yield Case(
        (_bowl, torch.tensor([-4.0, 2.5])), torch.tensor([1.0, 0.0]), "the example of the text"
    )
    x = torch.randn(3, generator=draw, dtype=torch.float64)
    yield Case((_tilted_bowl, x), _newton_by_autograd, "a quadratic whose axes are tilted")
    yield Case((_steep, x), _newton_by_autograd, "a function that is not quadratic")
    yield Case(
        (_steep, torch.tensor([0.5, -0.25])),
        _newton_by_autograd,
        "single precision stays single",
        rtol=1e-4,
    )


class CountingModel(nn.Module):
    """Two layers that count how often they are run."""

    def __init__(self, inputs: int, hidden: int, outputs: int) -> None:
        super().__init__()
        self.first = nn.Linear(inputs, hidden)
        self.second = nn.Linear(hidden, outputs)
        self.calls = 0

    def forward(self, x: Tensor) -> Tensor:
        """The model's answers, shape (..., outputs)."""
        self.calls += 1
        return self.second(torch.tanh(self.first(x)))


def _judge_norms(got: Tensor, arguments: tuple[nn.Module, Tensor, Tensor]) -> str | None:
    model, inputs, _ = arguments
    if any(parameter.grad is not None for parameter in model.parameters()):
        return NotThisWay("the model's parameters were left with a .grad")
    if got.requires_grad:
        return NotThisWay("the result requires grad: it holds a graph in memory")
    if isinstance(model, CountingModel) and model.calls >= len(inputs) > 1:
        return NotThisWay(
            f"the model was run {model.calls} times for {len(inputs)} examples; vmap runs it once"
        )
    return None


def _norms_by_loop(model: nn.Module, inputs: Tensor, targets: Tensor) -> Tensor:
    norms = []
    for x, y in zip(inputs, targets, strict=True):
        loss = ((model(x) - y) ** 2).sum()
        parts = torch.autograd.grad(loss, list(model.parameters()))
        norms.append(torch.cat([part.flatten() for part in parts]).norm())
    return torch.stack(norms)


def gradient_norms_cases() -> Iterator[Case]:
    """One layer, two layers, double precision with a single output, and a single example."""
    torch.manual_seed(14)
    x, y = torch.randn(8, 3), torch.randn(8, 2)
    cases = (
        (nn.Linear(3, 2), x, y, "one linear layer"),
        (CountingModel(3, 5, 2), x, y, "two layers"),
        (CountingModel(3, 4, 1).double(), x.double(), y.double()[:, :1], "double precision"),
        (CountingModel(3, 4, 2), x[:1], y[:1], "a single example"),
    )
    for *arguments, note in cases:
        yield Case(tuple(arguments), _norms_by_loop, note, rtol=1e-5, judge=_judge_norms)


def _gradients_of_each(
    model: nn.Module, parameters: dict[str, Tensor], inputs: Tensor, targets: Tensor
) -> dict[str, Tensor]:
    def loss(parameters: dict[str, Tensor], x: Tensor, y: Tensor) -> Tensor:
        return ((functional_call(model, parameters, (x,)) - y) ** 2).sum()

    return vmap(grad(loss), in_dims=(None, 0, 0))(parameters, inputs, targets)


def _join(gradients: dict[str, Tensor]) -> Tensor:
    return torch.cat([each.flatten(1) for each in gradients.values()], dim=1)


def _join_first(model: nn.Module, inputs: Tensor, targets: Tensor) -> Tensor:
    parameters = {name: p.detach() for name, p in model.named_parameters()}
    first, *_ = _gradients_of_each(model, parameters, inputs, targets).values()
    return first.flatten(1)


def _norm_of_the_batch(model: nn.Module, inputs: Tensor, targets: Tensor) -> Tensor:
    loss = ((model(inputs) - targets) ** 2).sum()
    parts = torch.autograd.grad(loss, list(model.parameters()))
    return torch.cat([part.flatten() for part in parts]).norm()


def _add_up_norms(model: nn.Module, inputs: Tensor, targets: Tensor) -> Tensor:
    parameters = {name: p.detach() for name, p in model.named_parameters()}
    gradients = _gradients_of_each(model, parameters, inputs, targets)
    return torch.stack([each.flatten(1).norm(dim=1) for each in gradients.values()]).sum(dim=0)


def _keep_the_graph(model: nn.Module, inputs: Tensor, targets: Tensor) -> Tensor:
    parameters = dict(model.named_parameters())
    return _join(_gradients_of_each(model, parameters, inputs, targets)).norm(dim=1)


def _leave_grads(model: nn.Module, inputs: Tensor, targets: Tensor) -> Tensor:
    norms = []
    for x, y in zip(inputs, targets, strict=True):
        model.zero_grad()
        ((model(x) - y) ** 2).sum().backward()
        norms.append(torch.cat([p.grad.flatten() for p in model.parameters()]).norm())
    return torch.stack(norms)


BOTH = "Return two tensors, the first derivative and then the second: `return first, second`."
NEW_POINT = "Return a new tensor, x plus the step: `x -= ...` and `x.sub_` write into the caller's."

EXERCISES = (
    Exercise(
        name="pairwise",
        title="Every pair",
        hints=(
            "One vmap takes one dimension apart. Here there are two: how do you get from one "
            "row against one row to one row against all, and from there to all against all?",
            "First map over the rows of `right` and hold `a` fixed: which entry of `in_dims` "
            "is None then? The vmap on the outside holds the other argument fixed, and its "
            "dimension is the first of the result.",
        ),
        cases=pairwise_cases,
        restrictions=("loop",),
        sized=lambda n: (_excess, torch.randn(n, 3), torch.randn(n, 3)),
        wrong_answers=(
            WrongAnswer(
                "maps over both at once: rows by pairs",
                lambda distance, left, right: vmap(distance)(left, right),
                "raised",
            ),
            WrongAnswer(
                "nests the vmaps the other way round",
                lambda distance, a, b: vmap(vmap(distance, in_dims=(0, None)), in_dims=(None, 0))(
                    a, b
                ),
                "wrong_shape",
                hint=1,
            ),
            WrongAnswer(
                "ignores the distance that it is given",
                lambda distance, a, b: torch.cdist(a, b),
                "wrong_values",
                hint="`distance` may be any function of two vectors: the matrix is made of what it "
                "returns.",
            ),
            WrongAnswer(
                "gives distance its two vectors in the other order",
                lambda distance, a, b: _pairs_by_loop(lambda x, y: distance(y, x), a, b),
                "wrong_values",
                hint="The entry [i, j] is distance(left[i], right[j]): the row of `left` comes "
                "first.",
            ),
            WrongAnswer("goes through the rows", _pairs_by_loop, "forbidden"),
        ),
    ),
    Exercise(
        name="slope_and_bend",
        title="Slope and bend",
        hints=(
            "Solve it for one number first. `grad(f)` is a function: what else can you hand "
            "to `grad`? Only then think of many points.",
            "You have two functions of one number, the first derivative and the second. "
            "Which transform makes a function of one number into one of a whole axis?",
        ),
        cases=slope_and_bend_cases,
        restrictions=("loop",),
        sized=lambda n: (_growth, torch.linspace(-2, 2, n)),
        wrong_answers=(
            WrongAnswer(
                "takes f'' for the square of f', as the notation d²f tempts to",
                lambda f, x: (vmap(grad(f))(x), vmap(grad(f))(x) ** 2),
                "wrong_values",
            ),
            WrongAnswer(
                "hands the whole axis to grad",
                lambda f, x: (grad(f)(x), grad(grad(f))(x)),
                "raised",
                hint=1,
            ),
            WrongAnswer(
                "returns one tensor for the two",
                lambda f, x: torch.stack([vmap(grad(f))(x), vmap(grad(grad(f)))(x)]),
                "wrong_type",
                hint=BOTH,
            ),
            WrongAnswer(
                "returns the first derivative alone",
                lambda f, x: vmap(grad(f))(x),
                "wrong_type",
                hint=BOTH,
            ),
            WrongAnswer(
                "returns the second derivative first",
                lambda f, x: (vmap(grad(grad(f)))(x), vmap(grad(f))(x)),
                "wrong_values",
                hint=BOTH,
            ),
            WrongAnswer(
                "returns the values of f in place of a derivative",
                lambda f, x: vmap(grad_and_value(f))(x),
                "wrong_values",
                hint="`grad_and_value` gives the derivative and the value of f. Which function has "
                "the second derivative of f as its derivative?",
            ),
            WrongAnswer(
                "returns the whole Jacobian",
                lambda f, x: (jacrev(vmap(f))(x), jacrev(jacrev(vmap(f)))(x)),
                "wrong_shape",
                hint=1,
            ),
            WrongAnswer("goes through the points", _slope_by_loop, "forbidden", hint=1),
        ),
    ),
    Exercise(
        name="push_forward",
        title="Push forward",
        hints=(
            "One of the two products with the Jacobian takes a direction among the inputs, the "
            "other one among the outputs. In which space does `v` live?",
            "The section before this one computes J v from one forward pass. Look at what that "
            "call returns: there are two things, and you want one of them.",
        ),
        cases=push_forward_cases,
        wrong_answers=(
            WrongAnswer(
                "builds the Jacobian and multiplies",
                lambda f, x, v: jacrev(f)(x) @ v,
                "raised",
                hint=1,
            ),
            WrongAnswer("takes vjp for jvp", lambda f, x, v: vjp(f, x)[1](v)[0], "raised"),
            WrongAnswer(
                "takes a difference quotient",
                lambda f, x, v: (f(x + 1e-4 * v) - f(x)) / 1e-4,
                "wrong_values",
                hint="A difference of two runs of f is never exact. The section before this one "
                "computes J v from one forward pass.",
            ),
            WrongAnswer(
                "returns f(x) as well", lambda f, x, v: jvp(f, (x,), (v,)), "wrong_type", hint=1
            ),
            WrongAnswer("returns f(x)", lambda f, x, v: jvp(f, (x,), (v,))[0], "wrong_values", 1),
            WrongAnswer(
                "takes the derivative at v along x",
                lambda f, x, v: jvp(f, (v,), (x,))[1],
                "wrong_values",
                hint="Which of the two is the point, and which one the direction?",
            ),
            WrongAnswer(
                "gives jvp tensors where it takes tuples",
                lambda f, x, v: jvp(f, x, v)[1],
                "raised",
                hint="f could have several arguments, so jvp takes a tuple of points and a tuple "
                "of directions: `(x,)` is a tuple of one.",
            ),
            WrongAnswer(
                "takes grad of a function with several outputs",
                lambda f, x, v: grad(f)(x) * v,
                "raised",
                hint=1,
            ),
        ),
    ),
    Exercise(
        name="newton_step",
        title="A Newton step",
        hints=(
            "The gradient is a vector and the Hessian a matrix, so `/` is not the division you "
            "need. What do you call the task of finding s in H s = -g?",
            "`torch.linalg` solves linear systems without inverting the matrix. Check the sign "
            "on the bowl of the text: one step has to land at [1, 0].",
        ),
        cases=newton_step_cases,
        wrong_answers=(
            WrongAnswer(
                "makes a gradient step",
                lambda f, x: x - grad(f)(x),
                "wrong_values",
                hint="The gradient alone is the step of gradient descent. Newton's step s solves "
                "H s = -g: where does H come in?",
            ),
            WrongAnswer(
                "steps the wrong way",
                lambda f, x: x + torch.linalg.solve(hessian(f)(x), grad(f)(x)),
                "wrong_values",
                hint=1,
            ),
            WrongAnswer(
                "returns the step, and not the point after it",
                lambda f, x: torch.linalg.solve(hessian(f)(x), -grad(f)(x)),
                "wrong_values",
                hint="This is s. Where is one after that step from x?",
            ),
            WrongAnswer(
                "multiplies by the Hessian",
                lambda f, x: x - hessian(f)(x) @ grad(f)(x),
                "wrong_values",
                hint=1,
            ),
            WrongAnswer(
                "gives solve a vector where it takes the matrix",
                lambda f, x: x - torch.linalg.solve(grad(f)(x), hessian(f)(x)),
                "raised",
                hint="`torch.linalg.solve(A, b)` takes the matrix first. Is yours of shape (n, n)?",
            ),
            WrongAnswer(
                "looks for a zero of f, and not of its gradient",
                lambda f, x: x - f(x) / grad(f)(x),
                "wrong_values",
                hint="Newton's method for a minimum looks for a zero of the gradient: it needs the "
                "Hessian.",
            ),
            WrongAnswer(
                "divides by the matrix entry by entry",
                lambda f, x: x - grad(f)(x) / hessian(f)(x),
                "wrong_shape",
            ),
            WrongAnswer(
                "takes the Hessian for its diagonal: bends along the axes only",
                lambda f, x: x - grad(f)(x) / hessian(f)(x).diagonal(),
                "wrong_values",
            ),
            WrongAnswer(
                "moves the point it was given",
                lambda f, x: x.sub_(torch.linalg.solve(hessian(f)(x), grad(f)(x))),
                "changed_argument",
                hint=NEW_POINT,
            ),
        ),
    ),
    Exercise(
        name="gradient_norms",
        title="Gradient norms",
        hints=(
            "Write the loss of one example as a function of the parameters first. Which "
            "transform gives its gradient, and which one does it for all examples? Mind which "
            "arguments are shared.",
            "You get a dictionary with one tensor of shape (n, ...) for each parameter. The norm "
            "over all of them is not the sum of their norms: add up something else, and take "
            "the root last. And what keeps a graph alive if you do not detach it?",
        ),
        cases=gradient_norms_cases,
        wrong_answers=(
            WrongAnswer(
                "takes the norm of the batch's gradient", _norm_of_the_batch, "wrong_shape"
            ),
            WrongAnswer(
                "adds up the norms of the parameters", _add_up_norms, "wrong_values", hint=1
            ),
            WrongAnswer(
                "forgets the root",
                lambda model, x, y: _norms_by_loop(model, x, y) ** 2,
                "wrong_values",
                hint=1,
            ),
            WrongAnswer(
                "takes the mean over the outputs, and not the sum",
                lambda model, x, y: _norms_by_loop(model, x, y) / y.shape[1],
                "wrong_values",
                hint="The loss of one example is a sum: `((model(x) - y) ** 2).sum()`.",
            ),
            WrongAnswer(
                "leaves out all parameters but the first",
                lambda model, x, y: _join_first(model, x, y).norm(dim=1),
                "wrong_values",
                hint=1,
            ),
            WrongAnswer(
                "returns the gradients, and not their norms",
                lambda model, x, y: _gradients_of_each(model, dict(model.named_parameters()), x, y),
                "wrong_type",
                hint=1,
            ),
            WrongAnswer(
                "hands the module itself to grad",
                vmap(grad(lambda m, x, y: ((m(x) - y) ** 2).sum()), in_dims=(None, 0, 0)),
                "raised",
                hint="`grad` takes tensors, or dictionaries of them. `functional_call` runs a "
                "module with such a dictionary.",
            ),
            WrongAnswer("does not detach the parameters", _keep_the_graph, "forbidden", hint=1),
            WrongAnswer("runs the model once for each example", _norms_by_loop, "forbidden"),
            WrongAnswer("goes backward for each example", _leave_grads, "forbidden"),
        ),
    ),
)
