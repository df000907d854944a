# ---
# jupyter:
#   jupytext:
#     text_representation:
#       extension: .py
#       format_name: percent
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Function transforms with torch.func
#
# `loss.backward()` gives one gradient for a whole batch. Sometimes you need one *for each example*:
# to find a wrong label, to clip each one, to measure noise. The usual answer is a loop over the
# examples. Run the folded cells below (click one, then Shift+Enter): they measure that loop against
# two transforms of `torch.func`. By the end of this lab, each line of their code is clear.

# %% jupyter={"source_hidden": true}
# Imports: run this cell first.
import time
import warnings

import matplotlib.pyplot as plt
import torch
from torch import nn
from torch.func import (
    functional_call,
    grad,
    grad_and_value,
    hessian,
    jacfwd,
    jacrev,
    jvp,
    vjp,
    vmap,
)
from torch.fx.experimental.proxy_tensor import make_fx
from torch.utils.benchmark import Timer
from torch.utils.flop_counter import FlopCounterMode

from labkit import best_device, check, claim, claim_raises, predict
from labkit.lessons.pictures import use_lab_style

torch.manual_seed(0)
use_lab_style()

# %% jupyter={"source_hidden": true}
# 256 gradients, by a loop and by transforms: run this cell.
def median_milliseconds(statement, **names):
    # One thread: threads that wait for each other on a busy machine make short times swing wildly.
    timer = Timer(statement, globals=names, num_threads=1)
    return timer.blocked_autorange(min_run_time=0.1).median * 1e3


def squared_error(weights, x, y):
    return (torch.tanh(x @ weights).sum() - y) ** 2


def gradients_by_a_loop(weights, xs, ys):
    tracked = weights.clone().requires_grad_()
    rows = [torch.autograd.grad(squared_error(tracked, x, y), tracked) for x, y in zip(xs, ys)]
    return torch.stack([row for (row,) in rows])


gradients_by_transforms = vmap(grad(squared_error), in_dims=(None, 0, 0))

device = best_device()
case = {"w": torch.randn(8, 16), "xs": torch.randn(256, 8), "ys": torch.randn(256)}
case = {name: tensor.to(device) for name, tensor in case.items()}
loop_ms = median_milliseconds("f(w, xs, ys)", f=gradients_by_a_loop, **case)
transforms_ms = median_milliseconds("f(w, xs, ys)", f=gradients_by_transforms, **case)
ratio = loop_ms / transforms_ms

# %% jupyter={"source_hidden": true}
# A question: run this cell, then choose.
predict("functional.speed",
        "256 gradients, by a loop and by the transforms: how much faster are the transforms here?",
        ["slower", "1 to 3 times as fast", "3 to 10 times as fast", "more than 10 times as fast"],
        seen="slower" if ratio < 1 else "1 to 3 times as fast" if ratio < 3
        else "3 to 10 times as fast" if ratio < 10 else "more than 10 times as fast")
claim("the loop and the transforms give the same 256 gradients",
      gradients_by_transforms(*case.values()), gradients_by_a_loop(*case.values()), within=1e-4)

# %%
print(f"256 gradients on {device}: a loop takes {loop_ms:.1f} ms, "
      f"vmap(grad(f)) takes {transforms_ms:.2f} ms")
print(f"the transforms are {ratio:.1f} times as fast on this machine")

# %% [markdown]
# `torch.func` works on functions. `grad` takes a function and gives you its derivative as a new
# function; `vmap` takes a function of one example and gives you one of a whole batch. The result
# is a function again, so you can put one transform inside another. That is how this lab gets to
# Jacobians, Hessians and per-sample gradients.

# %% [markdown]
# ## grad: a function in, its derivative out
#
# `grad(f)` does not run `f`. It returns a function with the same arguments as `f`, which gives
# the gradient with respect to the first one. There is no `backward()`.

# %%
def f(x):
    return (x**2).sum()


grad_f = grad(f)
x = torch.randn(3)
gradient_of_f = grad_f(x)

# %% jupyter={"source_hidden": true}
# A question: run this cell, then choose.
predict("functional.grad_attribute", "`grad_f(x)` has run, and `x` does not require grad. What is "
        "`x.grad` now?", {"None": None, "the gradient, 2 * x": gradient_of_f}, seen=x.grad,
        because="`grad` returns the gradient. It needs no `requires_grad=True`, and writes nothing "
        "to `.grad`.")
claim("grad of the sum of squares is 2x", grad_f(x), 2 * x)
claim("x was left alone: no requires_grad, no .grad", (x.requires_grad, x.grad), (False, None))

# %% [markdown]
# With `argnums` you choose other arguments, or several. An argument may also be a dictionary or list
# of tensors; the gradient then has the same structure. `grad_and_value` gives both from one run.

# %%
def weighted_error(weights, bias, example):
    return ((weights * example).sum() + bias) ** 2


weights, bias, example = torch.tensor([1.0, 2.0]), torch.tensor(0.5), torch.tensor([3.0, -1.0])
by_weights, by_bias = grad(weighted_error, argnums=(0, 1))(weights, bias, example)
gradient, value = grad_and_value(weighted_error)(weights, bias, example)
print("by weights:", by_weights, " by bias:", by_bias, " value:", value)

claim("argnums=(0, 1) gives two gradients", (by_weights, by_bias),
      (2 * 1.5 * example, torch.tensor(2 * 1.5)))
claim("grad_and_value gives the gradient, then the value", (gradient, value),
      (by_weights, weighted_error(weights, bias, example)))

# %% [markdown]
# `grad` needs a function whose result is a scalar, and an argument that is a floating point tensor.
# A vector does not have one gradient, but one for each of its entries: that is the Jacobian,
# further down.

# %% jupyter={"source_hidden": true}
# A question: run this cell, then choose.
def accepts_shape_1():
    try:
        grad(lambda x: x**2)(torch.ones(1))
    except RuntimeError:
        return "no"
    return "yes"


predict("functional.scalar", "Does `grad(lambda x: x**2)` accept an `x` of shape `(1,)`?",
        ["yes", "no"], seen=accepts_shape_1,
        because="The result has the shape `(1,)`, which is not the scalar shape `()`.")
claim_raises("grad of a vector-valued function raises", RuntimeError,
             lambda: grad(lambda x: x**2)(torch.ones(3)), match="scalar")
claim_raises("shape (1,) is not a scalar either", RuntimeError,
             lambda: grad(lambda x: x**2)(torch.ones(1)), match="scalar")
claim_raises("a Python number is not a tensor", ValueError,
             lambda: grad(lambda x: x**2)(2.0), match="Tensor")
claim_raises("integers cannot be differentiated", RuntimeError,
             lambda: grad(lambda x: x**2)(torch.tensor(2)), match="floating point")

# %% [markdown]
# ## Derivatives of derivatives
#
# The derivative is a function, so `grad` takes it as well. Here is $f(x) = x^3 + 2x^2 - 5x + 3$.
# By hand, $f'(x) = 3x^2 + 4x - 5$, $f''(x) = 6x + 4$ and $f'''(x) = 6$.

# %%
def cubic(x):
    return x**3 + 2 * x**2 - 5 * x + 3


two = torch.tensor(2.0)
claim("f'(2) = 15", grad(cubic)(two).item(), 15.0)
claim("f''(2) = 16", grad(grad(cubic))(two).item(), 16.0)
claim("f'''(2) = 6", grad(grad(grad(cubic)))(two).item(), 6.0)

# %% [markdown]
# `grad` records its own graph, also under a `no_grad` that is around it. What about a `no_grad`
# inside the function?

# %%
def square_hidden_from_grad(x):
    with torch.no_grad():
        y = x**2
    return y.sum()


with torch.no_grad():
    outside = grad(cubic)(two)

inside = grad(square_hidden_from_grad)(torch.ones(3))

# %% jupyter={"source_hidden": true}
# A question: run this cell, then choose.
predict("functional.no_grad", "`square_hidden_from_grad` squares under `no_grad`. What does `grad` "
        "of it give for three ones?",
        {"[2, 2, 2]": 2 * torch.ones(3), "[0, 0, 0]": torch.zeros(3), "an error": None},
        seen=inside,
        because="What `no_grad` covers counts as a constant, without an error or a warning.")
claim("no_grad around grad changes nothing", outside.item(), 15.0)
claim("no_grad inside the function silently gives zeros",
      inside, torch.zeros(3))

# %% [markdown]
# ## vmap: write it for one example, run it for all
#
# `vmap(single_fn)` returns a function that takes a batch. You write `single_fn` for one example,
# without a batch dimension.

# %%
shapes_seen = []


def single_fn(x):
    shapes_seen.append(tuple(x.shape))
    return x**2


batched_fn = vmap(single_fn)
batch = torch.randn(10, 3)
shapes_seen.clear()
result = batched_fn(batch)

# %% jupyter={"source_hidden": true}
# A question: run this cell, then choose.
predict("functional.runs", "`batch` has 10 examples. How often did the body of `single_fn` run?",
        ["once", "10 times"], seen="once" if len(shapes_seen) == 1 else f"{len(shapes_seen)} times",
        because="This is not a loop: each operation is carried out for all examples together.")
claim("the result has the batch dimension in front", result.shape, (10, 3))
claim("inside, the function saw one example of shape (3,), once", shapes_seen, [(3,)])

shapes_seen.clear()
in_chunks = vmap(single_fn, chunk_size=4)(batch)
claim("10 examples in chunks of at most 4 take three runs", len(shapes_seen), 3)
claim("chunk_size does not change the values", in_chunks, batched_fn(batch))

with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    counted = vmap(lambda x: torch.histc(x, bins=4, min=-2, max=2))(batch)
claim("an operator without a batched form still gives the right result", counted,
      torch.stack([torch.histc(x, bins=4, min=-2, max=2) for x in batch]))
claim("and warns", any("performance drop" in str(each.message) for each in caught))

# %% [markdown]
# All examples at once also means that the intermediate results of all of them are in memory at
# once. `vmap(f, chunk_size=4)` runs the function once for each chunk of 4 examples. A few
# operators, such as `torch.histc`, do not have a batched form yet: for those `vmap` loops inside,
# and warns of a performance drop.
#
# For `x**2` you do not need `vmap`: elementwise operations take a batch anyway. You need it when
# the function does not: `torch.dot` takes two vectors and nothing else.

# %%
left, right = torch.randn(10, 3), torch.randn(10, 3)

claim_raises("torch.dot refuses a batch", RuntimeError, lambda: torch.dot(left, right))
claim("vmap(torch.dot) takes one, and agrees with a loop", vmap(torch.dot)(left, right),
      torch.stack([torch.dot(a, b) for a, b in zip(left, right)]), within=1e-6)

# %% [markdown]
# ## in_dims and out_dims: which dimension is the batch
#
# `in_dims` has one entry for each argument: its batch dimension, or `None` for an argument that
# all examples share. `out_dims` says which dimension of the result is the batch. Below, `torch.mv`
# multiplies one shared matrix by each column of `columns`.

# %%
matrix = torch.randn(4, 3)
columns = torch.randn(3, 10)

by_column = vmap(torch.mv, in_dims=(None, 1))

# %% jupyter={"source_hidden": true}
# A question: run this cell, then choose.
predict("functional.in_dims", "`matrix` is `(4, 3)`, `columns` is `(3, 10)`. Which shape does "
        "`by_column(matrix, columns)` have?", [(4, 10), (10, 4), (3, 4)],
        seen=tuple(by_column(matrix, columns).shape),
        because="Each column gives a vector of shape `(4,)`, and the batch of 10 comes in front, "
        "unless `out_dims` says otherwise. With `out_dims=1` this is `matrix @ columns`.")
claim("in_dims=(None, 1): one shared matrix, and each column of the other",
      by_column(matrix, columns).shape, (10, 4))
claim("out_dims=1 puts the batch last, and this is a matrix product",
      vmap(torch.mv, in_dims=(None, 1), out_dims=1)(matrix, columns), matrix @ columns,
      within=1e-5)
claim_raises("mapped dimensions must have the same size", ValueError,
             lambda: vmap(torch.dot)(torch.ones(4, 3), torch.ones(5, 3)),
             match="same size in the mapped dimension")

# %% [markdown]
# `vmap` inside `vmap` gives two batch dimensions. Read the code below from the inside: one row of
# `table` with each of the `queries`, then that for every row of `table`.

# %%
def similarity(a, b):
    return torch.dot(a, b) / (a.norm() * b.norm())


table, queries = torch.randn(5, 3), torch.randn(2, 3)
one_against_all = vmap(similarity, in_dims=(None, 0))
all_against_all = vmap(one_against_all, in_dims=(0, None))
claim("two vmaps, two batch dimensions", all_against_all(table, queries).shape, (5, 2))

# %% [markdown]
# ## Exercise: every pair
#
# Write `pairwise(distance, left, right)`. `distance` is any function of two vectors of shape
# `(d,)` that returns a scalar. `left` is `(n, d)`, `right` is `(m, d)`. Return the matrix of
# shape `(n, m)` whose entry `[i, j]` is `distance(left[i], right[j])`, without a loop over the
# rows.
#
# With the Euclidean distance, `left = [[0, 0], [3, 4]]` and `right = [[0, 0]]`, the answer is
# `[[0], [5]]`.

# %%
def pairwise(distance, left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
    """Returns distance(left[i], right[j]) for every i and j, shape (n, m)."""
    ### BEGIN SOLUTION
    one_to_all = vmap(distance, in_dims=(None, 0))
    return vmap(one_to_all, in_dims=(0, None))(left, right)
    ### END SOLUTION

# %%
check("functional.pairwise", pairwise)

# %% [markdown]
# ## Composing: vmap of grad
#
# `grad(cubic)` takes one number. `vmap(grad(cubic))` takes a vector of them, and
# `vmap(grad(grad(cubic)))` gives the second derivative at each. That is enough for a plot.

# %%
points = torch.linspace(-4, 3, 701)
slope = vmap(grad(cubic))
curvature = vmap(grad(grad(cubic)))

claim("vmap(grad(f)) is 3x² + 4x - 5 at every point", slope(points),
      3 * points**2 + 4 * points - 5, within=1e-4)
claim("vmap(grad(grad(f))) is 6x + 4 at every point", curvature(points), 6 * points + 4,
      within=1e-4)

# %% jupyter={"source_hidden": true}
# A plot of the function and its derivatives: run this cell.
turns = points[1:][slope(points).sign().diff() != 0]

figure, axes = plt.subplots(figsize=(7.5, 4.2))
axes.plot(points, cubic(points), linewidth=2.4, label="f")
axes.plot(points, slope(points), linestyle="--", label="f' by vmap(grad(f))")
axes.plot(points, curvature(points), linestyle=":", linewidth=2,
          label="f'' by vmap(grad(grad(f)))")
axes.scatter(turns, cubic(turns), s=70, zorder=3, label="f' changes its sign")
axes.axhline(0, color="gray", linewidth=0.8)
axes.set(xlabel="x", ylim=(-30, 40), title="A function and its first two derivatives")
axes.legend()
plt.show()

# %% [markdown]
# ## Exercise: slope and bend
#
# Write `slope_and_bend(f, x)`. `f` takes a scalar tensor and returns a scalar tensor; it need
# not accept a vector. `x` has shape `(n,)`. Return a tuple of two tensors of shape `(n,)`: the
# first and the second derivative of `f` at every point, without a loop over the points.
#
# For $f(x) = x^3$ and `x = [1, 2]` the answer is `([3, 12], [6, 12])`.

# %%
def slope_and_bend(f, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns f'(x) and f''(x) at every point, each of shape (n,)."""
    ### BEGIN SOLUTION
    first = grad(f)
    second = grad(first)
    return vmap(first)(x), vmap(second)(x)
    ### END SOLUTION

# %%
check("functional.slope_and_bend", slope_and_bend)

# %% [markdown]
# ## Jacobians: every output by every input
#
# A function from $n$ numbers to $m$ numbers has $m \times n$ partial derivatives: the Jacobian.
# `jacrev` and `jacfwd` both give it, also for tensors of more dimensions.

# %%
scores = torch.tensor([2.0, 1.0, 0.0, -1.0, 0.5, 1.5])


def softmax(x):
    return torch.softmax(x, dim=0)


by_reverse, by_forward = jacrev(softmax)(scores), jacfwd(softmax)(scores)
p = softmax(scores)

sums_jacobian = jacrev(lambda x: x.sum(dim=0))(torch.ones(2, 3))

# %% jupyter={"source_hidden": true}
# A question: run this cell, then choose.
predict("functional.jacobian_shape", "`x.sum(dim=0)` takes the shape `(2, 3)` to `(3,)`. Which "
        "shape does its Jacobian have?", [(2, 3, 3), (3, 2, 3), (3, 6)],
        seen=tuple(sums_jacobian.shape), because="The output's shape comes first.")
claim("jacrev and jacfwd agree", by_reverse, by_forward, within=1e-6)
claim("softmax has the Jacobian diag(p) - p pᵀ", by_reverse, torch.diag(p) - torch.outer(p, p),
      within=1e-6)
claim("shape: the output's (3,), then the input's (2, 3)",
      sums_jacobian.shape, (3, 2, 3))

# %% [markdown]
# The picture shows three Jacobians. Row $i$ shows which inputs change output $i$: for a running
# sum all inputs up to $i$, for a moving average its neighbors, for a softmax all of them. In a
# softmax, raising a score raises its own probability and lowers all the others.

# %% jupyter={"source_hidden": true}
# Three Jacobians: run this cell.
def moving_average(x):
    return nn.functional.avg_pool1d(x.view(1, 1, -1), kernel_size=3, stride=1, padding=1).flatten()


signal = torch.randn(12)
wide_scores = torch.randn(12)
jacobians = {
    "cumsum": jacfwd(lambda x: x.cumsum(dim=0))(signal),
    "moving average": jacfwd(moving_average)(signal),
    "softmax": jacfwd(softmax)(wide_scores),
}

figure, panels = plt.subplots(1, 3, figsize=(11, 3.6), layout="constrained")
for panel, (title, jacobian) in zip(panels, jacobians.items()):
    limit = jacobian.abs().max().item()
    image = panel.imshow(jacobian, cmap="PuOr", vmin=-limit, vmax=limit)
    panel.set(title=title, xlabel="input", ylabel="output")
    panel.grid(False)
    figure.colorbar(image, ax=panel, shrink=0.8)
plt.show()

claim("the Jacobian of cumsum is the lower triangle of ones",
      jacobians["cumsum"], torch.tril(torch.ones(12, 12)))

# %% [markdown]
# ## Which is cheaper, jacrev or jacfwd?
#
# `jacrev` runs one backward pass for each output, and gets the matrix row by row. `jacfwd` runs
# one forward pass for each input, and gets it column by column. Both batch their passes with
# `vmap`. The next cell counts the floating point operations in matrix products, for functions of
# 64 inputs and of 1 to 1024 outputs. (`FlopCounterMode` leaves out products of a matrix and a
# single vector: here the forward pass, the same for both.)

# %% jupyter={"source_hidden": true}
# Counts the operations of both: run this cell.
INPUTS, HIDDEN = 64, 128


def make_layers(outputs):
    first = torch.randn(HIDDEN, INPUTS) / INPUTS**0.5
    second = torch.randn(outputs, HIDDEN) / HIDDEN**0.5
    return lambda x: second @ torch.tanh(first @ x)


def count_operations(function, x):
    with FlopCounterMode(display=False) as counter:
        function(x)
    return counter.get_total_flops()


point = torch.randn(INPUTS)
output_sizes = [1, 4, 16, 64, 256, 1024]
functions = {outputs: make_layers(outputs) for outputs in output_sizes}
operations = {
    transform: {m: count_operations(transform(fn), point) for m, fn in functions.items()}
    for transform in (jacrev, jacfwd)
}

# %% jupyter={"source_hidden": true}
# A question: run this cell, then choose.
predict("functional.jacobian_cost", "1024 outputs, 64 inputs: which one needs fewer operations?",
        ["jacrev", "jacfwd", "both the same"],
        seen="jacfwd" if operations[jacfwd][1024] < operations[jacrev][1024] else "jacrev",
        because="64 forward passes are fewer than 1024 backward passes.")
claim("one output, 64 inputs: jacrev needs fewer operations",
      operations[jacrev][1] < operations[jacfwd][1])
claim("as many outputs as inputs: the same number",
      operations[jacrev][64] == operations[jacfwd][64])
claim("1024 outputs, 64 inputs: jacfwd needs fewer",
      operations[jacfwd][1024] < operations[jacrev][1024])

# %% jupyter={"source_hidden": true}
# The operations counted, and the times measured here: run this cell.
times = {
    transform: [median_milliseconds("run(x)", run=transform(fn), x=point)
                for fn in functions.values()]
    for transform in (jacrev, jacfwd)
}

figure, (counted, timed) = plt.subplots(1, 2, figsize=(10.5, 3.8), layout="constrained")
for transform, marker in ((jacrev, "o"), (jacfwd, "s")):
    counted.loglog(output_sizes, list(operations[transform].values()), marker=marker,
                   label=transform.__name__)
    timed.loglog(output_sizes, times[transform], marker=marker, label=transform.__name__)
for panel in (counted, timed):
    panel.axvline(INPUTS, color="gray", linestyle=":", label="outputs = inputs")
    panel.set_xlabel(f"outputs (inputs: {INPUTS})")
    panel.legend()
counted.set(title="Counted", ylabel="operations in matrix products")
timed.set(title="Measured here", ylabel="milliseconds, median")
plt.show()

# %% [markdown]
# The counted lines cross where there are as many outputs as inputs. The measured lines may cross
# elsewhere: for small sizes most of the time goes into starting operations, and the two transforms
# start different ones. Take the count as a first guess, and measure your own case.
# `jacrev(f, chunk_size=...)` computes a large Jacobian in chunks.

# %% [markdown]
# ## jvp and vjp: the product without the matrix
#
# Often you need the Jacobian only to multiply it by a vector. `jvp(f, (x,), (v,))` gives $f(x)$
# and $J v$ from one forward pass. `vjp(f, x)` gives $f(x)$ and a function that computes $J^T u$.
# Neither computes $J$ itself.

# %%
def four_outputs(x):
    return torch.stack([x[0] * x[1], torch.sin(x).sum(), x[2] ** 2, x.prod()])


here = torch.tensor([1.0, 2.0, 3.0])
direction = torch.tensor([1.0, 0.0, -1.0])
cotangent = torch.tensor([1.0, -1.0, 0.5, 2.0])

output, pushed = jvp(four_outputs, (here,), (direction,))
output_again, pull = vjp(four_outputs, here)
(pulled,) = pull(cotangent)
J = jacrev(four_outputs)(here)

claim("jvp gives f(x) and J v", (output, pushed), (four_outputs(here), J @ direction),
      within=1e-5)
claim("vjp gives a function for Jᵀ u", pulled, J.T @ cotangent, within=1e-5)

# %% [markdown]
# ## Exercise: push forward
#
# Write `push_forward(f, x, v)`. `f` maps a vector `(n,)` to a vector `(m,)`; `x` and `v` are
# `(n,)`. Return the directional derivative $J(x)\,v$, shape `(m,)`, in `x`'s dtype.
#
# In one of the cases, $n$ is so large that the Jacobian does not fit into any computer's memory.

# %%
def push_forward(f, x: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    """Returns the Jacobian of f at x times v, shape (m,)."""
    ### BEGIN SOLUTION
    _, product = jvp(f, (x,), (v,))
    return product
    ### END SOLUTION

# %%
check("functional.push_forward", push_forward)

# %% [markdown]
# ## The Hessian is the Jacobian of the gradient
#
# `hessian(f)` is a composition: `jacfwd(jacrev(f))`. For a function with one output, the inner
# backward pass gives all $n$ first derivatives at once, and the outer forward passes differentiate
# each of those.

# %%
def valley(p):
    """Rosenbrock's function: a curved valley with its lowest point at (1, 1)."""
    return (1 - p[0]) ** 2 + 100 * (p[1] - p[0] ** 2) ** 2


start = torch.tensor([-1.2, 1.0], dtype=torch.float64)
H = hessian(valley)(start)
print(H)

# %% jupyter={"source_hidden": true}
# A question: run this cell, then choose.
seven = torch.randn(7, 2)
predict("functional.hessian", "`seven` holds 7 points, in the shape `(7, 2)`. Which shape does "
        "`vmap(hessian(valley))(seven)` have?", [(7, 2), (7, 2, 2), (14, 14)],
        seen=tuple(vmap(hessian(valley))(seven).shape),
        because="A Hessian of 2 by 2 for each point. No point depends on another, so a matrix of "
        "14 by 14 would be zero but for these.")
a, b = start.tolist()
by_hand = torch.tensor([[2 - 400 * b + 1200 * a**2, -400 * a], [-400 * a, 200.0]])
claim("hessian is what you get by hand", H, by_hand, within=1e-3)
claim("hessian(f) is jacfwd(jacrev(f))", H, jacfwd(jacrev(valley))(start), within=1e-9)
claim("it is symmetric", H, H.T, within=1e-9)
claim("vmap(hessian(f)): one matrix for each point",
      vmap(hessian(valley))(seven).shape, (7, 2, 2))

along = torch.tensor([1.0, 1.0], dtype=torch.float64)
_, hessian_times_vector = jvp(grad(valley), (start,), (along,))
claim("jvp of grad is the Hessian times a vector", hessian_times_vector, H @ along, within=1e-9)

# %% [markdown]
# A product with the Hessian does not need the Hessian itself: `jvp(grad(f), (x,), (v,))` costs as
# much as a few runs of `f`, however many inputs there are.

# %% [markdown]
# ## Exercise: a Newton step
#
# Gradient descent uses the first derivative. Newton's method uses the second one too: it steps to
# where the gradient would be zero if the function were exactly quadratic. With gradient $g$ and
# Hessian $H$ at $x$, the step $s$ solves $H s = -g$.
#
# Write `newton_step(f, x)`: `f` maps `(n,)` to a scalar, `x` is `(n,)`. Return the point after
# one step, shape `(n,)`. For $f(x) = (x_0 - 1)^2 + 3 x_1^2$ it is `[1, 0]` from anywhere.

# %%
def newton_step(f, x: torch.Tensor) -> torch.Tensor:
    """Returns x after one Newton step on f, shape (n,)."""
    ### BEGIN SOLUTION
    return x - torch.linalg.solve(hessian(f)(x), grad(f)(x))
    ### END SOLUTION

# %%
check("functional.newton_step", newton_step)

# %% [markdown]
# The next picture compares your `newton_step` with gradient descent. It shows your steps once the
# exercise is solved: run the cell again then.

# %% jupyter={"source_hidden": true}
# Both ways down the valley: run this cell, again once newton_step is solved.
def walk(step, position, steps):
    path = [position]
    for _ in range(steps):
        path.append(step(valley, path[-1]))
    return torch.stack(path)


def descent_step(f, x):
    return x - 1e-3 * grad(f)(x)


paths = {"gradient descent, 500 steps": walk(descent_step, start, 500)}
try:
    paths["your newton_step, 7 steps"] = walk(newton_step, start, 7)
except Exception as problem:
    print(f"your newton_step is not drawn yet, because it raised {problem!r}")

grid_x, grid_y = torch.linspace(-2, 2, 161), torch.linspace(-3.6, 2.4, 161)
height = vmap(vmap(valley))(torch.cartesian_prod(grid_x, grid_y).view(161, 161, 2))

figure, axes = plt.subplots(figsize=(7.5, 5.2), layout="constrained")
axes.contour(grid_x, grid_y, height.T, levels=torch.logspace(-1, 3.5, 14).tolist(),
             colors="gray", linewidths=0.7)
for (name, path), marker in zip(paths.items(), (".", "o")):
    axes.plot(*path.T, marker=marker, markersize=6 if marker == "o" else 3, linewidth=1.2,
              label=f"{name}: ends at height {valley(path[-1]).item():.1e}")
axes.plot(1, 1, marker="*", markersize=14, linestyle="none", label="the lowest point")
axes.set(xlabel="x₀", ylabel="x₁", title="Newton's method and gradient descent")
figure.legend(loc="outside lower center")
plt.show()

# %% [markdown]
# ## functional_call: the parameters as an argument
#
# `grad` differentiates with respect to an argument, but a module's parameters are not arguments of
# the call. `functional_call(module, parameters, arguments)` runs the module with the parameters
# that you pass, and leaves its own as they are. A parameter that you do not pass is taken from the
# module.

# %%
torch.manual_seed(0)
model = nn.Sequential(nn.Linear(2, 16), nn.Tanh(), nn.Linear(16, 1)).to(device)
parameters = {name: parameter.detach() for name, parameter in model.named_parameters()}
inputs = torch.randn(5, 2).to(device)

zeros = {name: torch.zeros_like(parameter) for name, parameter in parameters.items()}
misspelled = {**zeros, "2.bais": torch.ones(1, device=device)}
misspelled_result = functional_call(model, misspelled, (inputs,))

# %% jupyter={"source_hidden": true}
# A question: run this cell, then choose.
predict("functional.misspelled", "All parameters are zeros, and `2.bais` (not `2.bias`) is 1. What "
        "does the model give?", {"all zeros": torch.zeros(5, 1), "all ones": torch.ones(5, 1),
        "a KeyError": None}, seen=misspelled_result.cpu(),
        because="An unknown name is ignored. `strict=True` makes it an error.")
claim("with its own parameters it is the same model",
      functional_call(model, parameters, (inputs,)), model(inputs).detach(), within=1e-6)
claim("with zeros as parameters, the result is zero", functional_call(model, zeros, (inputs,)),
      torch.zeros(5, 1, device=device))
claim("and the module still has its own weights", model[0].weight.detach(),
      parameters["0.weight"])
claim("a misspelled name changes nothing and raises nothing",
      misspelled_result, torch.zeros(5, 1, device=device))
claim_raises("strict=True catches it", RuntimeError,
             lambda: functional_call(model, misspelled, (inputs,), strict=True),
             match="2.bais")

# %% [markdown]
# ## One gradient for each example
#
# Now you can write the code from the start of this lab for a real module. Compose three things: a
# loss of one example, `grad` with respect to the parameters, `vmap` over the examples. The
# parameters are shared (`None`); the data has its batch in dimension `0`.

# %%
def loss_of_one(parameters, x, y):
    prediction = functional_call(model, parameters, (x,))
    return ((prediction - y) ** 2).sum()


EXAMPLES = 200
data = torch.randn(EXAMPLES, 2).to(device)
target = torch.sin(data[:, :1]) + 0.5 * data[:, 1:]

gradient_of_each = vmap(grad(loss_of_one), in_dims=(None, 0, 0))
gradients = gradient_of_each(parameters, data, target)

# %% jupyter={"source_hidden": true}
# A question: run this cell, then choose.
def loop_over_examples(model, data, target):
    rows = []
    for x, y in zip(data, target):
        loss = ((model(x) - y) ** 2).sum()
        rows.append(torch.autograd.grad(loss, list(model.parameters())))
    return [torch.stack(column) for column in zip(*rows)]


one_by_one = loop_over_examples(model, data, target)
farthest = max((a - b).abs().max().item() for a, b in zip(gradients.values(), one_by_one))
of_the_mean = torch.autograd.grad(((model(data) - target) ** 2).mean(), model[0].weight)[0]
attached = dict(model.named_parameters())

predict("functional.per_sample", "`0.weight` has the shape `(16, 2)`, and there are 200 examples. "
        "Which shape does `gradients['0.weight']` have?", [(16, 2), (200, 16, 2), (200, 16)],
        seen=tuple(gradients["0.weight"].shape),
        because="One gradient for each example, none of them added up. Their mean is what "
        "`backward()` gives for the mean loss.")
claim("vmap(grad(loss)) and the loop give the same gradients", farthest, 0.0, within=1e-4)
claim("the mean of all gradients is the gradient of the mean loss",
      gradients["0.weight"].mean(dim=0), of_the_mean, within=1e-4)
claim("from attached parameters, the gradients have a graph of their own",
      gradient_of_each(attached, data, target)["0.weight"].requires_grad)
claim("from detached ones they do not", gradients["0.weight"].requires_grad, False)

# %% [markdown]
# `parameters` was made with `.detach()`. From attached parameters, ordinary autograd would record
# the computation of the gradients too, and keep that graph in memory.
#
# The next cell measures a loop and `vmap` for several batch sizes: medians, on one CPU thread.

# %% jupyter={"source_hidden": true}
# The times for several batch sizes: run this cell.
batch_sizes = [1, 10, 50, EXAMPLES]
loop_times, vmap_times = [], []
for size in batch_sizes:
    names = {"model": model, "p": parameters, "x": data[:size], "y": target[:size]}
    loop_times.append(median_milliseconds("loop(model, x, y)", loop=loop_over_examples, **names))
    vmap_times.append(median_milliseconds("each(p, x, y)", each=gradient_of_each, **names))

print(f"{EXAMPLES} examples on {device}: "
      f"loop {loop_times[-1]:.2f} ms, vmap {vmap_times[-1]:.2f} ms")

figure, axes = plt.subplots(figsize=(6.5, 3.6))
axes.loglog(batch_sizes, loop_times, marker="o", label="loop")
axes.loglog(batch_sizes, vmap_times, marker="s", label="vmap(grad(loss))")
axes.set(xlabel="examples", ylabel="milliseconds, median", title=f"Measured here, on {device}")
axes.legend()
plt.show()

# %% [markdown]
# Can these gradients find a wrong label? Below, the label of one example of the 200 is wrong by 6,
# and the model is trained a little, with the wrong label among the others. The training loop is
# functional too: each step makes new parameters, and nothing changes in place.

# %%
WRONG = 42
labels = target.clone()
labels[WRONG] += 6.0


def mean_loss(parameters):
    return ((functional_call(model, parameters, (data,)) - labels) ** 2).mean()


trained = parameters
for _ in range(150):
    slopes = grad(mean_loss)(trained)
    trained = {name: trained[name] - 0.05 * slopes[name] for name in trained}

# %% jupyter={"source_hidden": true}
# A question: run this cell, then choose.
trained_gradients = gradient_of_each(trained, data, labels)
norms = torch.cat([g.flatten(1) for g in trained_gradients.values()], dim=1).norm(dim=1).cpu()
order = norms.argsort(descending=True).tolist()
first, second = order[:2]
predict("functional.wrong_label", "Sort the 200 examples by the norm of their gradients, the "
        "largest first. Where is the one with the wrong label?",
        ["first", "2nd to 10th", "further down: training has fitted it too"],
        seen="first" if first == WRONG else "2nd to 10th" if WRONG in order[:10]
        else "further down: training has fitted it too",
        because="199 right labels agree with each other, and pull the model away from the wrong "
        "one. Still, a large gradient is a hint, not a proof: the second largest belongs to a "
        "right label, of the input farthest from 0.")
claim("the wrong label has the largest gradient", first, WRONG)
claim("the second largest belongs to the input farthest from 0", second,
      data.norm(dim=1).argmax().item())
claim("training this way left the module's weights alone", model[0].weight.detach(),
      parameters["0.weight"])

# %% jupyter={"source_hidden": true}
# The norm of each example's gradient: run this cell.
figure, axes = plt.subplots(figsize=(8, 3.4))
axes.vlines(range(EXAMPLES), 0, norms, linewidth=1.2)
axes.plot(WRONG, norms[WRONG], marker="o", markersize=9, color="C1", linestyle="none",
          label=f"example {WRONG}: the wrong label")
axes.plot(second, norms[second], marker="s", markersize=7, color="C2", linestyle="none",
          label=f"example {second}: right, but farthest from 0")
axes.set(xlabel="example", ylabel="norm of its gradient",
         title="The norm of each example's gradient")
axes.legend()
plt.show()

# %% [markdown]
# ## Exercise: gradient norms
#
# Write `gradient_norms(model, inputs, targets)`. `inputs` is `(n, d)`, `targets` is `(n, k)`,
# and the loss of one example is `((model(x) - y) ** 2).sum()`. Return the norm of each example's
# gradient over *all* parameters together, shape `(n,)`: the square root of the sum of all
# squared entries.
#
# Run the model once for all examples, not once for each. Leave no `.grad` behind, and no graph:
# the result does not require grad.

# %%
def gradient_norms(model, inputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Returns the norm of each example's gradient over all parameters, shape (n,)."""
    ### BEGIN SOLUTION
    parameters = {name: p.detach() for name, p in model.named_parameters()}

    def loss(parameters, x, y):
        return ((functional_call(model, parameters, (x,)) - y) ** 2).sum()

    each = vmap(grad(loss), in_dims=(None, 0, 0))(parameters, inputs, targets)
    squares = [(g**2).flatten(start_dim=1).sum(dim=1) for g in each.values()]
    return torch.stack(squares).sum(dim=0).sqrt()
    ### END SOLUTION

# %%
check("functional.gradient_norms", gradient_norms)

# %% [markdown]
# ## Randomness: vmap asks what you mean
#
# Should each example draw its own random numbers, or all examples the same ones? `randomness=` says
# which. Dropout is the usual case: `"different"` drops other entries in each example, `"same"`
# drops the same ones in all.

# %%
def add_noise(x):
    return x + torch.randn_like(x)


def drop_half(x):
    return nn.functional.dropout(x, p=0.5)


quiet = torch.zeros(4, 3)
same = vmap(add_noise, randomness="same")(quiet)
different = vmap(add_noise, randomness="different")(quiet)

# %% jupyter={"source_hidden": true}
# A question: run this cell, then choose.
def noise_without_randomness():
    try:
        rows = vmap(add_noise)(quiet)
    except RuntimeError:
        return "an error"
    return "the same noise in all rows" if bool((rows == rows[0]).all()) else "different noise"


predict("functional.randomness", "`vmap(add_noise)(quiet)`, without `randomness=`: what does it "
        "give?", ["different noise", "the same noise in all rows", "an error"],
        seen=noise_without_randomness, because="Both kinds make sense, so you must choose.")
claim_raises("a random operation raises by default", RuntimeError,
             lambda: vmap(add_noise)(quiet), match="randomness")
claim_raises("so does dropout", RuntimeError, lambda: vmap(drop_half)(torch.ones(4, 3)),
             match="randomness")
claim("'same': all rows got the same noise", bool((same == same[0]).all()))
claim("'different': each row got its own", len(different.unique(dim=0)), 4)

# %% [markdown]
# ## The limits of vmap
#
# Inside `vmap`, a tensor stands for all examples at once. Here are two ways to write the absolute
# value of one number.

# %%
def absolute_by_if(x):
    return x if x > 0 else -x


def absolute_by_where(x):
    return torch.where(x > 0, x, -x)

# %% jupyter={"source_hidden": true}
# A question: run this cell, then choose.
numbers = torch.tensor([3.0, -4.0, 0.0])


def raises_under_vmap(function):
    try:
        vmap(function)(numbers)
    except RuntimeError:
        return True
    return False


predict("functional.limits", "Which of these raise under `vmap`: `absolute_by_if`, "
        "`absolute_by_where`, `lambda x: x.item()`?",
        {"only .item()": (False, False, True), "the if and .item()": (True, False, True),
         "all three": (True, True, True), "none": (False, False, False)},
        seen=tuple(map(raises_under_vmap,
                       (absolute_by_if, absolute_by_where, lambda x: x.item()))),
        because="An `if` and `.item()` need the value of one example. `torch.where` computes both "
        "branches for all of them, and then selects.")
claim_raises(".item() raises", RuntimeError, lambda: vmap(lambda x: x.item())(numbers),
             match=".item()")
claim_raises("an if on a tensor raises", RuntimeError, lambda: vmap(absolute_by_if)(numbers),
             match="data-dependent control flow")
claim_raises("a mask raises: rows would differ in length", RuntimeError,
             lambda: vmap(lambda row: row[row > 0])(torch.randn(3, 4)), match="dynamic shape")
claim("torch.where works", vmap(absolute_by_where)(numbers), numbers.abs())

# %% [markdown]
# `torch.where` computes both branches. `root_or_zero` uses it for the square root of `x` where `x`
# is positive, and 0 elsewhere. The values are right. What about the derivatives?

# %%
def root_or_zero(x):
    return torch.where(x > 0, x.sqrt(), 0.0)


def safe_root_or_zero(x):
    harmless = torch.where(x > 0, x, 1.0)
    return torch.where(x > 0, harmless.sqrt(), 0.0)


inputs_to_root = torch.tensor([4.0, 0.0, -1.0])
naive = vmap(grad(root_or_zero))(inputs_to_root)

# %% jupyter={"source_hidden": true}
# A question: run this cell, then choose.
predict("functional.where", "`root_or_zero(-1.0)` is 0. What is its derivative there, by `grad`?",
        {"0": 0.0, "nan": "nan", "-0.5": -0.5},
        seen=lambda: "nan" if naive[2].isnan() else naive[2],
        because="The backward pass goes through both branches, and zero times an infinite or "
        "undefined derivative is nan. The fix: first replace the input of that branch.")
claim("the values are right, but two of the three slopes are nan", naive.isnan().tolist(),
      [False, True, True])
claim("with a harmless input the slopes are right",
      vmap(grad(safe_root_or_zero))(inputs_to_root), torch.tensor([0.25, 0.0, 0.0]))

# %% [markdown]
# ### Optional: two more limits
#
# A tensor from `torch.zeros` inside the function is one tensor, not one for each example: a batch
# cannot be written into it in place. One from `x.new_zeros` or `torch.zeros_like(x)` is batched as
# `x` is. Batch normalization, in training mode, updates its running statistics in place and mixes
# the examples of a batch: for per-sample gradients, use `GroupNorm` or `LayerNorm`.

# %% jupyter={"source_hidden": true}
# In place, and batch normalization: run this cell.
def total_in_one_tensor(x):
    total = torch.zeros(3)
    return total.add_(x)


def total_in_a_batch(x):
    total = x.new_zeros(3)
    return total.add_(x)


torch.manual_seed(0)
normalized = nn.Sequential(nn.Linear(2, 4), nn.BatchNorm1d(4), nn.Linear(4, 1))
its_parameters = {name: p.detach() for name, p in normalized.named_parameters()}


def normalized_loss(parameters, x, y):
    prediction = functional_call(normalized, parameters, (x.unsqueeze(0),))
    return ((prediction - y) ** 2).sum()


claim_raises("in place into a tensor that is not batched raises", RuntimeError,
             lambda: vmap(total_in_one_tensor)(torch.ones(4, 3)))
claim("new_zeros makes a batched one, and it works", vmap(total_in_a_batch)(torch.ones(4, 3)),
      torch.ones(4, 3))
claim_raises("per-sample gradients through BatchNorm in training raise", RuntimeError,
             lambda: vmap(grad(normalized_loss), in_dims=(None, 0, 0))(
                 its_parameters, torch.randn(4, 2), torch.randn(4, 1)))

# %% [markdown]
# ## Optional: transforms and torch.compile
#
# While a call runs, the transforms turn it into ordinary operations on whole tensors. `make_fx`
# traces `vmap(grad(cubic))` and lists them: the operations of the backward pass are among them,
# and the list is the same for 10 points as for 1000.

# %%
def list_operations(function, example):
    graph = make_fx(function)(example).graph
    return [str(node.target) for node in graph.nodes if node.op == "call_function"]


for_ten = list_operations(slope, torch.randn(10))
print(f"{len(for_ten)} operations:", ", ".join(dict.fromkeys(for_ten)))

for_thousand = list_operations(slope, torch.randn(1000))
claim("the same operations for 1000 points as for 10", for_thousand == for_ten)

# %% [markdown]
# So `torch.compile` can capture the composed function as one graph. The backend below keeps the
# graph that it gets, and compiles nothing.

# %%
graphs = []


def keep_graph(graph_module, example_inputs):
    graphs.append(graph_module)
    return graph_module.forward


torch.compiler.reset()
graphs.clear()
captured = torch.compile(slope, backend=keep_graph, fullgraph=True)

claim("the captured function gives the same values", captured(points), slope(points), within=1e-4)
claim("vmap(grad(f)) was captured as one graph", len(graphs), 1)

# %% [markdown]
# The default backend fuses the operations of that list as far as it can. The first call compiles,
# which takes seconds on a CPU; a later session finds the result in a cache on disk. Compiling pays
# off where the function is called often enough to make up for the first call.

# %%
many_points = torch.linspace(-4, 3, 500_000)


def compiled_slope():
    plain_ms = median_milliseconds("f(x)", f=slope, x=many_points)
    torch.compiler.reset()
    fast = torch.compile(slope)
    started = time.perf_counter()
    slopes_there = fast(many_points)
    first_seconds = time.perf_counter() - started
    fast_ms = median_milliseconds("f(x)", f=fast, x=many_points)
    print(f"first call: {first_seconds:.1f} s")
    print(f"later calls: {fast_ms:.2f} ms; without the compiler: {plain_ms:.2f} ms")
    return slopes_there


claim("compiled, vmap(grad(f)) gives the same slopes", compiled_slope,
      slope(many_points), within=1e-3, needs="cpu_compiler")

# %% [markdown]
# ## Key takeaways
#
# | you want | write |
# |---|---|
# | a gradient as a function | `grad(f)`; with the value, `grad_and_value(f)` |
# | the same for a batch | `vmap(...)`, with `in_dims=None` for what is shared |
# | a Jacobian | `jacrev(f)` for few outputs, `jacfwd(f)` for few inputs |
# | only its product with a vector | `jvp`, `vjp` |
# | second derivatives | `hessian(f)`, or `jvp(grad(f), ...)` for a product |
# | derivatives with respect to a module's parameters | `functional_call` inside any of these |
# | a gradient for each example | `vmap(grad(loss), in_dims=(None, 0, 0))` |
#
# Next: [Training](06_training.ipynb), where all of the labs come together in one small network.
