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
# # Autograd
#
# To train a network you need the derivative of one number, the loss, by every weight. The cell
# below does it for 2,000 weights in two ways: by moving each weight a little and calling the
# function again, and by one `backward`. Run the two folded cells with Shift+Enter.

# %% jupyter={"source_hidden": true}
# Imports: run this cell first.
import time
import warnings
import weakref

import matplotlib.pyplot as plt
import numpy as np
import torch
from torch.autograd.graph import saved_tensors_hooks

from labkit import check, claim, claim_raises, predict
from labkit.lessons.pictures import draw_graph, use_lab_style

torch.manual_seed(0)
use_lab_style()

# %% jupyter={"source_hidden": true}
# 2,000 derivatives in two ways: run this cell, then compare the times.
def loss_of(weights):
    return (table @ weights).tanh().square().mean()


def by_autograd():
    weights.grad = None
    loss_of(weights).backward()
    return weights.grad


def by_moving_each_weight(step=1e-2):
    with torch.no_grad():
        before, moved = loss_of(weights), weights.clone()
        gradient = torch.empty_like(weights)
        for i in range(len(weights)):
            moved[i] += step
            gradient[i] = (loss_of(moved) - before) / step
            moved[i] -= step
        return gradient


def seconds_of(compute):
    start = time.perf_counter()
    compute()
    return time.perf_counter() - start


table = torch.randn(100, 2000) / 50
weights = torch.randn(2000, requires_grad=True)
by_autograd()  # the first call loads what it needs
fast = min(seconds_of(by_autograd) for _ in range(5))
slow = seconds_of(by_moving_each_weight)
print(f"2,000 derivatives by moving each weight: {slow * 1e3:9.2f} ms")
print(f"2,000 derivatives by one backward:       {fast * 1e3:9.2f} ms, {slow / fast:,.0f} times as fast")

# %% [markdown]
# One `backward` costs about as much as a few calls of the function, however many weights there are.
# For a model with a billion weights, nothing else would do.
#
# PyTorch manages it with a *graph*: each operation on a tracked tensor adds a node, and `backward`
# goes through the nodes in reverse. In this lab you look at the graph, use it, break it on purpose,
# and weigh it. Before most facts you are asked what you expect: choose, then look.

# %% [markdown]
# ## Ask for a gradient
#
# `requires_grad=True` says: build the graph of everything computed from this tensor. `backward()`
# then goes through the graph from the result to the start and puts the gradient into `.grad`.
#
# Take $y = x^2 + 3x + 1$. By hand, $dy/dx = 2x + 3$, which is 7 at $x = 2$.

# %%
x = torch.tensor([2.0], requires_grad=True)
y = x**2 + 3 * x + 1
claim("before backward there is no gradient", x.grad is None)

y.backward()
print(x.grad)

claim("backward leaves dy/dx in x.grad", x.grad, torch.tensor([7.0]), shown=True)
claim("the result is tracked too, because x is", y.requires_grad)

# %% [markdown]
# A tensor that you made is a **leaf**. A tensor that was computed from tracked ones is not: it
# has a `grad_fn`, the node that made it.

# %%
def compute(keep_gradient):
    x = torch.tensor([2.0], requires_grad=True)
    h = 3 * x
    if keep_gradient:
        h.retain_grad()
    y = h**2
    y.backward()
    return x, h


# %% jupyter={"source_hidden": true}
# A question: run this cell, then choose.
def gradient_on_the_way():
    _, h = compute(keep_gradient=False)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch warns that h is not a leaf
        return "nothing: it is None" if h.grad is None else f"{h.grad.item():.0f}"


predict(
    "autograd.non_leaf",
    "After `compute(keep_gradient=False)`, `x.grad` is 36. What is in `h.grad`?",
    ["12", "36", "nothing: it is None"],
    seen=gradient_on_the_way,
    because="Gradients are kept for leaves only. To keep one for a tensor on the way, call "
    "`retain_grad()` on it before backward.",
)
x, h = compute(keep_gradient=True)
claim("x is a leaf, h is not", (x.is_leaf, h.is_leaf), (True, False))
claim("a leaf has no grad_fn", x.grad_fn is None)
claim("dy/dh was kept because we asked for it", h.grad, 2 * h.detach())

# %% [markdown]
# ## What has no gradient
#
# A derivative needs a number that can move a little. Integers cannot.

# %% jupyter={"source_hidden": true}
# A question: run this cell, then choose.
def backward_from_three():
    x = torch.ones(3, requires_grad=True)
    try:
        (x * 2).backward()
    except RuntimeError:
        return "it raises an error"
    return f"{x.grad.tolist()}"


predict(
    "autograd.many_results",
    "`x` holds three ones. What does `(x * 2).backward()` leave in `x.grad`?",
    ["[2.0, 2.0, 2.0]", "[6.0, 6.0, 6.0]", "it raises an error"],
    seen=backward_from_three,
    because="Backward starts from one number. Of a result with many, reduce it first, or say how much "
    "each value counts: `backward(torch.tensor([1.0, 10.0, 100.0]))`.",
)
claim_raises(
    "an integer tensor cannot require grad",
    RuntimeError,
    lambda: torch.tensor([1, 2], requires_grad=True),
    match="Only Tensors of floating point",
)

x = torch.ones(3, requires_grad=True)
claim("turning a tracked tensor into integers ends the tracking", x.long().requires_grad, False)
claim_raises(
    "backward does not start from three numbers",
    RuntimeError,
    lambda: (x * 2).backward(),
    match="only for scalar outputs",
    shown=True,
)
claim_raises(
    "and not from a result that is not tracked",
    RuntimeError,
    lambda: torch.ones(3).sum().backward(),
    match="does not require grad",
)

(x * 2).backward(torch.tensor([1.0, 10.0, 100.0]))
claim("weights for the three results make it work", x.grad, torch.tensor([2.0, 20.0, 200.0]))

# %% [markdown]
# ## Look at the graph
#
# Here is the graph of $y = x^2 + 3x + 1$: not a sketch, but the nodes that PyTorch holds, found
# from `y.grad_fn`. Each box is one operation's backward step, with the shape of the gradient that
# enters it. Arrows show the way the gradient travels, from the result down to the leaf.

# %%
x = torch.tensor([2.0], requires_grad=True)
y = x**2 + 3 * x + 1
draw_graph(y, {"x": x, "y": y})

# %% [markdown]
# A common sketch of this graph has $x$, $x^2$ and $3x$ side by side, all feeding one plus. PyTorch
# has a node for each operation that ran: two additions, one power, one product. The constants are
# not in it, because they do not require grad. And `x`, used twice, is there once: two arrows lead
# to it, and their gradients are added.

# %%
y = x**2 + 3 * x + 1
last = y.grad_fn
plus, constant = last.next_functions[0][0], last.next_functions[1][0]
claim("the last operation was the + 1", last.name(), "AddBackward0")
claim("its second input, the constant, has no node", constant is None)

power, product = plus.next_functions[0][0], plus.next_functions[1][0]
x_by_power, x_by_product = power.next_functions[0][0], product.next_functions[0][0]
claim("both paths end at the same node", x_by_power is x_by_product)
claim("which puts its gradient into x", x_by_power.variable is x)

# %% [markdown]
# ## By hand
#
# For the rest of this lab we need a function whose derivative we know:
#
# $$f(x) = x^3 + 2x^2 - 5x + 3$$
# $$f'(x) = 3x^2 + 4x - 5$$
#
# At $x = 2$ it is $3 \cdot 4 + 4 \cdot 2 - 5 = 15$. NumPy computes what you derived; a mistake in
# your derivation would go unseen.


# %%
def f(x):
    return x**3 + 2 * x**2 - 5 * x + 3


def df(x):
    """The derivative, by hand."""
    return 3 * x**2 + 4 * x - 5


at = np.float64(2.0)
print(f"f({at}) = {f(at)}")
print(f"f'({at}) = {df(at)}")
claim("the derivative at 2, by hand", df(at), 15.0)

# %% [markdown]
# ## By finite differences
#
# Without a derivative you can still measure: take two points a step $h$ to either side and
# divide.
#
# $$f'(x) \approx \frac{f(x + h) - f(x - h)}{2h}$$
#
# On paper the error shrinks with $h^2$. So a tiny step should be best.


# %%
def central_difference(f, at: float, h: float, dtype: torch.dtype) -> float:
    x, h = torch.tensor(at, dtype=dtype), torch.tensor(h, dtype=dtype)
    return ((f(x + h) - f(x - h)) / (2 * h)).item()


# %% jupyter={"source_hidden": true}
# A question: run this cell, then choose.
predict(
    "autograd.tiny_step",
    "The true derivative is 15. In float32, what does the formula give for `h = 1e-8`?",
    {"about 15.0000": 15.0, "about 15.3": 15.3, "0": 0.0},
    seen=central_difference(f, 2.0, 1e-8, torch.float32),
    because="After 2.0 the next float32 is 2.4e-7 away. A step shorter than half that gap is lost when "
    "it is added: both points are the same number.",
)
two = torch.tensor(2.0)
gap = torch.nextafter(two, torch.tensor(3.0)) - two
claim(
    "float64 with a step of 1e-5 comes close",
    central_difference(f, 2.0, 1e-5, torch.float64),
    15.0,
    within=1e-8,
)
claim(
    "float32 with the same step is off in the second decimal",
    0.01 < abs(central_difference(f, 2.0, 1e-5, torch.float32) - 15) < 0.1,
)
claim(
    "float32 with a step of 1e-8 sees no change at all",
    central_difference(f, 2.0, 1e-8, torch.float32),
    0.0,
)
claim("2 + 1e-8 is 2 in float32", (two + 1e-8).item(), 2.0)
claim("but not in float64", (two.double() + 1e-8).item() > 2.0)

# %%
for h in (1e-1, 1e-3, 1e-5, 1e-8):
    single = central_difference(f, 2.0, h, torch.float32)
    double = central_difference(f, 2.0, h, torch.float64)
    print(f"h = {h:<6g} float32: {single:<20.12f} float64: {double:.12f}")
print(f"the next float32 after 2 is {gap.item():.3g} away")

# %% [markdown]
# Now all steps at once. To the right of each valley the formula is too coarse: the error falls
# with $h^2$, a straight line on these axes. To the left rounding takes over: two nearly equal
# numbers are subtracted, and what is left of them is divided by something tiny. On the flat top of
# the float32 curve the two are the same number: the estimate is zero, and the error is the whole
# derivative.

# %% jupyter={"source_hidden": true}
# The error over the step: run this cell.
steps = torch.logspace(-12, 0, 97, dtype=torch.float64).tolist()
errors = {
    dtype: np.array([abs(central_difference(f, 2.0, h, dtype) - 15) for h in steps])
    for dtype in (torch.float32, torch.float64)
}

figure, axes = plt.subplots()
for dtype, error in errors.items():
    shown = np.where(error > 0, error, np.nan)  # an error of zero has no place on a log axis
    axes.loglog(steps, shown, label=str(dtype).removeprefix("torch."))
axes.set_xlabel("step h")
axes.set_ylabel("error of the derivative")
axes.set_title("A smaller step is better, until it is not")
axes.legend()
plt.show()

for dtype, error in errors.items():
    # The middle of the valley: the best of neighboring steps is a matter of luck.
    smooth = np.exp(np.convolve(np.log(error + 1e-16), np.ones(9) / 9, mode="valid"))
    print(f"{dtype}: best around h = {steps[smooth.argmin() + 4]:.0e}")

coarse = [central_difference(f, 2.0, h, torch.float64) - 15 for h in (0.1, 0.05)]
claim("half the step, a quarter of the error", coarse[0] / coarse[1], 4.0, within=1e-6)
claim(
    "the typical error is over a thousand times larger in float32",
    bool(np.median(errors[torch.float32]) > 1000 * np.median(errors[torch.float64])),
)

# %% [markdown]
# ## By autograd
#
# Autograd takes no steps. It multiplies the exact derivatives of the operations that ran, so
# there is no step to choose and nothing to subtract.

# %%
x = torch.tensor([2.0], requires_grad=True)
y = x**3 + 2 * x**2 - 5 * x + 3
y.backward()

print(f"f({x.item()}) = {y.item()}")
print(f"f'({x.item()}) = {x.grad.item()}")
claim("autograd has the derivative exactly, in float32", x.grad.item(), 15.0, shown=True)

draw_graph(y, {"x": x, "y": y})

# %% [markdown]
# Three terms use `x`, three arrows lead to `x.grad`. Each brings its own share, and the node adds
# them up. You can ask for the shares one by one with `torch.autograd.grad`, which returns the
# gradient to you and leaves `.grad` alone.

# %%
x = torch.tensor([2.0], requires_grad=True)
shares = [torch.autograd.grad(term, x)[0].item() for term in (x**3, 2 * x**2, -5 * x)]
print(shares)

claim("the shares of the three terms add up to the derivative", sum(shares), 15.0)
claim("torch.autograd.grad left x.grad alone", x.grad is None)

# %% [markdown]
# ## Exercise: the gradient of a cubic
#
# Write `gradient(x)`: the derivative of $f(x) = x^3 + 2x^2 - 5x + 3$ at each value of `x`, by
# autograd (backward, `torch.func` or forward mode), and not from the formula for $f'$.
#
# - `x` is a number (a float or an int), or a floating point tensor of any shape that
#   has values.
# - The answer is a tensor with the shape and dtype of `x` (for a number: shape `()`, float32).
# - The caller's tensor stays as it was: neither its `requires_grad` nor its `.grad` changes.
#
# `gradient(2.0)` is `tensor(15.)`, and `gradient(torch.tensor([0.0, 1.0]))` is
# `tensor([-5., 2.])`.


# %%
def gradient(x: float | torch.Tensor) -> torch.Tensor:
    """The derivative of the cubic at each value of x, with the shape and dtype of x."""
    ### BEGIN SOLUTION
    x = x if isinstance(x, torch.Tensor) else torch.tensor(float(x))
    leaf = x.detach().requires_grad_()
    y = leaf**3 + 2 * leaf**2 - 5 * leaf + 3
    (slope,) = torch.autograd.grad(y.sum(), leaf)
    return slope
    ### END SOLUTION


# %%
check("autograd.cubic", gradient)

# %% [markdown]
# ## Calling backward again
#
# A training loop calls `backward` in every round, each time on a new graph. Here `x` stays the
# same, so the derivative is 15 each time.

# %%
x = torch.tensor([2.0], requires_grad=True)
seen = []
for _ in range(3):
    f(x).backward()
    seen.append(x.grad.item())

# %% jupyter={"source_hidden": true}
# A question: run this cell, then choose.
predict(
    "autograd.accumulate",
    "What is in `seen`?",
    {"[15, 15, 15]": [15, 15, 15], "[15, 30, 45]": [15, 30, 45], "[15, 225, 3375]": [15, 225, 3375]},
    seen=seen,
    because="`backward` does not write into `.grad`, it adds to it.",
)
claim("three times backward, three times the gradient", seen, [15.0, 30.0, 45.0])

# %% [markdown]
# So a training loop clears the gradient in each round. There are two ways: `x.grad.zero_()` writes
# zeros into the tensor, and `zero_grad()` is a method of every model and optimizer.

# %%
x = torch.tensor([2.0], requires_grad=True)
f(x).backward()
x.grad.zero_()

layer = torch.nn.Linear(3, 1)
layer(torch.ones(2, 3)).sum().backward()
layer.zero_grad()

# %% jupyter={"source_hidden": true}
# A question: run this cell, then choose.
predict(
    "autograd.zero_grad",
    "What is `layer.weight.grad` after `layer.zero_grad()`?",
    {"a tensor of zeros": False, "None": True},
    seen=layer.weight.grad is None,
    because="This frees the memory, and an optimizer skips parameters whose gradient is None. With "
    "`set_to_none=False` they are zeros.",
)
claim("zero_grad sets gradients to None", layer.weight.grad is None)
claim("zero_ leaves a tensor of zeros", x.grad, torch.tensor([0.0]))
f(x).backward()
claim("and the next backward gives the plain gradient again", x.grad.item(), 15.0)

layer(torch.ones(2, 3)).sum().backward()
layer.zero_grad(set_to_none=False)
claim("or to zeros, if you say so", layer.weight.grad, torch.zeros(1, 3))

# %% [markdown]
# Does the difference matter? An optimizer with weight decay pulls every parameter toward zero.


# %%
def step_with(grad: torch.Tensor | None) -> float:
    """A parameter of 1 after one step of SGD with weight decay."""
    parameter = torch.ones(1, requires_grad=True)
    parameter.grad = grad
    torch.optim.SGD([parameter], lr=0.1, weight_decay=0.1).step()
    return parameter.item()


# %% jupyter={"source_hidden": true}
# A question: run this cell, then choose.
predict(
    "autograd.weight_decay",
    "In which case does the parameter change?",
    {
        "with a gradient of zero, and with None": (True, True),
        "with a gradient of zero only": (True, False),
        "in neither: the gradient is zero": (False, False),
    },
    seen=(step_with(torch.zeros(1)) < 1.0, step_with(None) < 1.0),
    because="A gradient of zero is a gradient: the optimizer makes its step, weight decay included.",
)
claim("with a gradient of None the parameter stays", step_with(None), 1.0)
claim("with a gradient of zero it shrinks", step_with(torch.zeros(1)) < 1.0)

# %% [markdown]
# ## Exercise: one gradient from many small batches
#
# Adding up is also useful. A batch too large for the memory can be worked through in pieces, one
# small graph after the other, while `.grad` collects.
#
# Write `small_batches(weights, batches)`. `weights` has shape `(d,)` and requires grad. `batches`
# is a list of pairs: inputs `(n, d)` and targets `(n,)`, where `n` differs from batch to batch.
# Return the gradient, shape `(d,)`, of the **mean** squared error over **all** $N$ samples of all
# batches, where sample $i$ has the input $x_i$ and the target $y_i$:
#
# $$\frac{1}{N} \sum_{i=1}^{N} (x_i \cdot \text{weights} - y_i)^2$$
#
# Something may be left in `weights.grad` from before. It must not count.


# %%
def small_batches(
    weights: torch.Tensor, batches: list[tuple[torch.Tensor, torch.Tensor]]
) -> torch.Tensor:
    """The gradient of the mean squared error over all samples, shape (d,)."""
    ### BEGIN SOLUTION
    samples = sum(len(targets) for _, targets in batches)
    weights.grad = None
    for inputs, targets in batches:
        loss = ((inputs @ weights - targets) ** 2).sum() / samples
        loss.backward()
    return weights.grad
    ### END SOLUTION


# %%
check("autograd.small_batches", small_batches)

# %% [markdown]
# ## Changing a leaf in place
#
# `x += 1` writes into the memory of `x`. But `x` is what you asked to differentiate by: if its
# value moved, the graph would no longer start where you think. So autograd refuses, for a view
# of the leaf as well. `x = x + 1` is safe, because it makes a new tensor.

# %%
def add_in_place(x):
    x += 1


def write_into_view(x):
    x[0] = 5.0


x = torch.tensor([1.0], requires_grad=True)
old = x
x = x + 1  # creates a new tensor (safe)
(x**2).backward()

# %% jupyter={"source_hidden": true}
# A question: run this cell, then choose.
predict(
    "autograd.renamed",
    "Where is the gradient now?",
    {"in x.grad": "x", "in old.grad": "old", "in both": "both"},
    seen="old" if old.grad is not None and not x.is_leaf else "x",
    because="After `x = x + 1` the name `x` means the new tensor, which is not a leaf.",
)
claim("the new x is not a leaf any more", x.is_leaf, False)
claim("the gradient went to the old one", old.grad, torch.tensor([4.0]))
x = torch.tensor([1.0], requires_grad=True)
claim_raises(
    "x += 1 on a leaf raises",
    RuntimeError,
    lambda: add_in_place(x),
    match="a leaf Variable that requires grad",
    shown=True,
)
claim_raises(
    "so does writing into a view of it",
    RuntimeError,
    lambda: write_into_view(x),
    match="a view of a leaf Variable",
)

# %% [markdown]
# ## The version counter
#
# Tensors that are not leaves may be changed in place, as long as no backward step needs the old
# values. Some operations **save** tensors for their backward step, and need them unchanged.


# %%
def exp_then_add():
    x = torch.ones(3, requires_grad=True)
    h = x.exp()
    h += 1
    h.sum().backward()
    return x.grad


def double_then_add():
    x = torch.ones(3, requires_grad=True)
    h = x * 2
    h += 1
    h.sum().backward()
    return x.grad


# %% jupyter={"source_hidden": true}
# A question: run this cell, then choose.
def raising(*functions):
    """The names of the functions that raise."""
    names = []
    for function in functions:
        try:
            function()
        except RuntimeError:
            names.append(function.__name__)
    return names


predict(
    "autograd.saved_tensor",
    "Both functions change `h` in place. Which of them raises?",
    {
        "neither": [],
        "exp_then_add only": ["exp_then_add"],
        "double_then_add only": ["double_then_add"],
        "both": ["exp_then_add", "double_then_add"],
    },
    seen=raising(exp_then_add, double_then_add),
    because="`exp` saves its result, because that is its own derivative. `x * 2` saves nothing of "
    "`x`: its derivative is 2 everywhere.",
)
t = torch.ones(3)
versions = [t._version]
t += 1
versions.append(t._version)
t[0] = 5
versions.append(t._version)
claim("each in-place change counts", versions, [0, 1, 2])
claim_raises(
    "exp needs the values that were overwritten",
    RuntimeError,
    exp_then_add,
    match="modified by an inplace operation",
    shown=True,
)
claim("after x * 2 a change in place is fine", double_then_add(), torch.full((3,), 2.0))

# %% [markdown]
# Autograd finds out by counting. Each in-place change raises a tensor's version by one. A saved
# tensor remembers its version, and `backward` compares. The text of the error names the shape of
# the tensor, the operation it came from, the version it has and the version it should have. The
# cure is most often to write `h = h + 1`.

# %% [markdown]
# ## Computing without a graph
#
# Where you will never call `backward`, the graph is waste. Under `torch.no_grad()` none is
# built. A leaf may be changed in place there: an optimizer's step is not part of the function, so
# it must not be in the graph.

# %%
model = torch.nn.Linear(2, 1)
inputs = torch.ones(4, 2)

with torch.no_grad():
    y = model(inputs)  # no graph

claim("under no_grad the result is not tracked", y.requires_grad, False)
claim("though the weights still are", model.weight.requires_grad)

x = torch.tensor([1.0], requires_grad=True)
with torch.no_grad():
    x += 1
claim("under no_grad a leaf may change in place", x.detach(), torch.tensor([2.0]))
claim("and remains a leaf that requires grad", (x.is_leaf, x.requires_grad), (True, True))

draw_graph(y, {"y": y})

# %% [markdown]
# `torch.inference_mode()` goes further: its tensors keep no version either, which saves a little
# more. The price comes later.

# %%
with torch.inference_mode():
    features = model(inputs)

weight = torch.ones(1, requires_grad=True)


# %% jupyter={"source_hidden": true}
# A question: run this cell, then choose.
def features_plus_weight():
    return features + weight


def features_times_weight():
    return features * weight


predict(
    "autograd.inference_mode",
    "The mode is over, and `weight` is tracked. Which raises: `features + weight`, or "
    "`features * weight`?",
    {
        "neither": [],
        "only the product": ["features_times_weight"],
        "both": ["features_plus_weight", "features_times_weight"],
    },
    seen=raising(features_plus_weight, features_times_weight),
    because="A sum saves nothing of an inference tensor. A product would have to save it. A `clone()` "
    "outside the mode gives a normal tensor.",
)
claim("what inference_mode makes is marked", features.is_inference())
claim("a sum with it is tracked", (features + weight).requires_grad)
claim_raises(
    "a product with it cannot be recorded, though the mode is long over",
    RuntimeError,
    lambda: features * weight,
    match="Inference tensors cannot be saved for backward",
)
claim_raises(
    "it has no version to read",
    RuntimeError,
    lambda: features._version,
    match="do not track version counter",
)

(features.clone() * weight).sum().backward()
claim("a clone works", weight.grad.item(), features.sum().item(), within=1e-6)

# %% [markdown]
# ## Exercise: walk downhill
#
# Write `descend(f, start, rate, steps)`: gradient descent in its plainest form. `f` takes a tensor
# and returns a single number. Beginning at `start`, go `steps` times
#
# $$x \leftarrow x - \text{rate} \cdot \nabla f(x)$$
#
# and return where you arrive: a tensor of the shape of `start` that does not require grad.
# `start` belongs to the caller and keeps its values; it does not require grad.
#
# For `f(x) = (x - 3)²` from `0.0` with rate `0.1`, one step arrives at `0.6`.


# %%
def descend(f, start: torch.Tensor, rate: float, steps: int) -> torch.Tensor:
    """The point after so many steps against the gradient, with the shape of start."""
    ### BEGIN SOLUTION
    x = start.detach().clone().requires_grad_()
    for _ in range(steps):
        f(x).backward()
        with torch.no_grad():
            x -= rate * x.grad
        x.grad = None
    return x.detach()
    ### END SOLUTION


# %%
check("autograd.descend", descend)

# %% [markdown]
# ## detach: the same memory, without the graph
#
# `x.detach()` gives the values of `x` as a constant.

# %%
x = torch.tensor([3.0], requires_grad=True)
y = x.detach()  # y does not track gradients

half = x * x.detach()
full = x * x

# %% jupyter={"source_hidden": true}
# A question: run this cell, then choose.
predict(
    "autograd.detached_factor",
    "`x` is 3, and `half = x * x.detach()` is 9. What is the derivative of `half` by `x`?",
    {"0": 0.0, "3": 3.0, "6": 6.0},
    seen=torch.autograd.grad(half, x, retain_graph=True)[0].item(),
    because="The second factor counts as a number that happens to equal `x`: the derivative is "
    "`x`, not `2 * x`.",
)
claim("the detached tensor is not tracked", y.requires_grad, False)
claim("it has no copy of the values, but the same memory", y.data_ptr() == x.data_ptr())
claim(
    "with one factor detached the derivative is x",
    torch.autograd.grad(half, x, retain_graph=True)[0].item(),
    3.0,
)
claim("without, it is 2x", torch.autograd.grad(full, x, retain_graph=True)[0].item(), 6.0)

# %% [markdown]
# The picture shows one arrow to `x.grad` where `x * x` has two:

# %%
display(draw_graph(half, {"x": x, "half": half, "y": y}), draw_graph(full, {"x": x, "full": full}))

# %% [markdown]
# The same memory means that a write through the alias reaches the original. `detach` shares the
# version counter as well. The old attribute `.data` shares the memory and **not** the counter.


# %%
def gradient_after_zeroing(alias_of) -> torch.Tensor:
    x = torch.zeros(3, requires_grad=True)
    h = x.exp()  # the derivative of exp at 0 is 1
    alias_of(h).zero_()
    h.sum().backward()
    return x.grad


# %% jupyter={"source_hidden": true}
# A question: run this cell, then choose.
predict(
    "autograd.data",
    "The true gradient is 1 everywhere. What does `gradient_after_zeroing(lambda h: h.data)` give?",
    {"ones": torch.ones(3), "zeros": torch.zeros(3), "an error": None},
    seen=gradient_after_zeroing(lambda h: h.data),
    because="A write through `.data` goes unseen, and the gradient is simply wrong, without an error or "
    "a warning. This is why `.data` has no place in new code.",
)
claim_raises(
    "zeroing through detach() is noticed",
    RuntimeError,
    lambda: gradient_after_zeroing(lambda h: h.detach()),
    match="modified by an inplace operation",
    shown=True,
)
claim(
    "zeroing through .data gives zeros for a derivative of 1",
    gradient_after_zeroing(lambda h: h.data),
    torch.zeros(3),
)
claim(
    "a copy may be zeroed at will: detach().clone()",
    gradient_after_zeroing(lambda h: h.detach().clone()),
    torch.ones(3),
)

# %% [markdown]
# ## Turning the tracking off later
#
# `requires_grad` can be set on a leaf at any time, for instance to freeze a part of a model. On
# a computed tensor it cannot be unset, because the graph is there. Detach it instead.

# %%
x = torch.tensor([1.0], requires_grad=True)
y = x * 2


def untrack(tensor):
    tensor.requires_grad = False


claim_raises(
    "a computed tensor cannot be untracked",
    RuntimeError,
    lambda: untrack(y),
    match="you can only change requires_grad flags of leaf variables",
)

x.requires_grad = False
claim("what is computed from a frozen leaf is not tracked", (x * 2).requires_grad, False)
claim("what was computed before still is", y.requires_grad)

layers = torch.nn.Sequential(torch.nn.Linear(3, 3), torch.nn.ReLU(), torch.nn.Linear(3, 1))
layers[0].requires_grad_(False)
loss = layers(torch.ones(2, 3)).mean()
draw_graph(loss, {"loss": loss, **dict(layers.named_parameters())})

# %% [markdown]
# The frozen layer is not in the graph. Everything before the first tracked tensor is cut off, and
# so is the memory it would have held.

# %% [markdown]
# ## Exercise: round, and let the gradient through
#
# Rounding is flat almost everywhere, so its gradient is zero and nothing can be learned through
# it. Networks with quantized weights use a trick: round on the way forward, and on the way back
# pretend that nothing happened.
#
# Write `round_through(x)`. It returns a tensor with the values of `x.round()`. A gradient that
# arrives at it must reach `x` unchanged. `x` itself keeps its values, all of them finite.


# %%
def round_through(x: torch.Tensor) -> torch.Tensor:
    """The values of x rounded, shape of x, with the gradient of x itself."""
    ### BEGIN SOLUTION
    return x + (x.round() - x).detach()
    ### END SOLUTION


# %%
check("autograd.round_through", round_through)

# %% [markdown]
# ## What the graph holds
#
# The nodes are small. What takes memory is what they save for backward. A pair of hooks lets us see
# each tensor as it is saved, so we can count the bytes. Memory that the inputs hold anyway costs
# nothing extra, and two operations that save the same tensor share it: hence the dictionary.


# %%
def extra_bytes(f, x: torch.Tensor) -> int:
    """Bytes that the graph of f(x) keeps alive, besides those of x itself."""
    saved = {}

    def remember(tensor):
        storage = tensor.untyped_storage()
        saved[storage.data_ptr()] = storage.nbytes()
        return tensor

    with saved_tensors_hooks(remember, lambda tensor: tensor):
        result = f(x)
    saved.pop(x.untyped_storage().data_ptr(), None)
    del result  # alive until here, so that no saved memory was given to another tensor
    return sum(saved.values())


x = torch.randn(1000, 100, requires_grad=True)
operations = {
    "x + x": lambda x: x + x,
    "x * 2": lambda x: x * 2,
    "x * x": lambda x: x * x,
    "exp(x)": lambda x: x.exp(),
    "relu(x)": lambda x: x.relu(),
    "exp(x) + exp(-x)": lambda x: x.exp() + (-x).exp(),
    "exp(sin(2x))": lambda x: (2 * x).sin().exp(),
}
held = {name: extra_bytes(f, x) / x.nbytes for name, f in operations.items()}

# %% jupyter={"source_hidden": true}
# A question: run this cell, then choose.
predict(
    "autograd.extra_memory",
    "`x` is in memory anyway. How much more does the graph of `x * x` keep, in sizes of `x`?",
    {"0": 0.0, "1": 1.0, "2": 2.0},
    seen=held["x * x"],
    because="It saves `x` twice, and `x` is there anyway. `exp(x)` saves its result, one more of `x`.",
)
claim("a sum needs nothing for its backward step", held["x + x"], 0.0)
claim("x * x saves x, which is there anyway", held["x * x"], 0.0)
claim("exp keeps its result", held["exp(x)"], 1.0)
claim("sin keeps its input, exp its result", held["exp(sin(2x))"], 2.0, within=0.001)

# %%
figure, axes = plt.subplots()
axes.barh(list(held), list(held.values()))
axes.invert_yaxis()
axes.set_xlabel("kept for backward, in sizes of x")
axes.set_title("What a graph keeps in memory")
plt.show()

# %% [markdown]
# A deep function saves at every step, so the memory grows with the depth. This is why training
# needs so much more than inference, and why `no_grad` is worth its line.


# %% jupyter={"source_hidden": true}
# The memory over the depth: run this cell.
def stack(step, depth):
    def apply(x):
        x = x * 1.0
        for _ in range(depth):
            x = step(x)
        return x

    return apply


x = torch.randn(1000, 100, requires_grad=True)
depths = range(0, 41, 5)
mega = 1e6
sine = [extra_bytes(stack(torch.sin, depth), x) / mega for depth in depths]
sums = [extra_bytes(stack(lambda x: x + 1, depth), x) / mega for depth in depths]
with torch.no_grad():
    unrecorded = [extra_bytes(stack(torch.sin, depth), x) / mega for depth in depths]

figure, axes = plt.subplots()
axes.plot(depths, sine, marker="o", label="sin")
axes.plot(depths, sums, marker="s", label="x + 1")
axes.plot(depths, unrecorded, marker="x", linestyle="--", label="sin, under no_grad")
axes.set_xlabel("operations in a row")
axes.set_ylabel("kept for backward (MB)")
axes.set_title("Memory against depth")
axes.legend()
plt.show()

claim("twice as deep, twice the memory", sine[8] / sine[4], 2.0, within=0.001, shown=True)
claim("under no_grad nothing is kept, at any depth", sum(unrecorded), 0.0)

# %% [markdown]
# ## When the graph goes
#
# `backward` frees what was saved as it passes. A weak reference shows it: it sees a tensor without
# keeping it alive.


# %%
def product_with_constant(x):
    """y = sum(x * c), and a weak reference to c, which only the graph holds."""
    c = torch.ones(3)
    return (x * c).sum(), weakref.ref(c)


x = torch.ones(3, requires_grad=True)
y, constant = product_with_constant(x)
before = constant() is not None
y.backward()
after = constant() is not None

# %% jupyter={"source_hidden": true}
# A question: run this cell, then choose.
predict(
    "autograd.second_backward",
    "`y.backward()` ran once. What does a second `y.backward()` do?",
    {"adds the same gradient again": [], "raises an error": ["backward"]},
    seen=raising(y.backward),
    because="What the graph had saved is gone: this keeps the peak low. `retain_graph=True` keeps it "
    "for another backward.",
)
claim("the graph keeps the constant alive", before)
claim("backward lets it go", not after)
claim_raises(
    "a second backward finds nothing saved",
    RuntimeError,
    y.backward,
    match="Trying to backward through the graph a second time",
    shown=True,
)

y, constant = product_with_constant(x)
y.backward(retain_graph=True)
claim("retain_graph keeps it", constant() is not None)
y.backward()
claim("until a backward without it", constant() is None)

y, constant = product_with_constant(x)
del y
claim("without any backward, it goes with the result", constant() is None)

# %% [markdown]
# As long as any result is alive, so is its whole graph. A training loop often sums up its losses
# for the log:

# %%
x = torch.ones(3, requires_grad=True)


def run_rounds(keep):
    """The summed loss of five rounds, and how many of their graphs are still alive."""
    total, constants = 0.0, []
    for _ in range(5):
        loss, constant = product_with_constant(x)
        total = total + keep(loss)
        constants.append(constant)
        del loss
    return total, sum(constant() is not None for constant in constants)


# %% jupyter={"source_hidden": true}
# A question: run this cell, then type a number.
predict(
    "autograd.summed_losses",
    "`run_rounds(lambda loss: loss)` sums five losses. How many of the five graphs are still alive?",
    seen=run_rounds(lambda loss: loss)[1],
    because="The sum is a result too, and its graph reaches all five. Sum `loss.item()` or "
    "`loss.detach()`.",
)
claim("summing the losses keeps all five graphs", run_rounds(lambda loss: loss)[1], 5)
claim("summing detached losses keeps none", run_rounds(lambda loss: loss.detach())[1], 0)
claim("summing plain numbers keeps none", run_rounds(lambda loss: loss.item())[1], 0)

# %% [markdown]
# ## A derivative without a graph
#
# Sometimes the graph is the wrong tool. Newton's method finds $\sqrt a$ in a few rounds, as the
# solution of $x^2 - a = 0$. You can differentiate through all the rounds, and pay for each:


# %%
def newton_sqrt(a: torch.Tensor, rounds: int = 20) -> torch.Tensor:
    """The square roots of a, as solutions of x² - a = 0."""
    x = a.clone()
    for _ in range(rounds):
        x = x - (x**2 - a) / (2 * x)
    return x


a = torch.rand(10_000) + 0.5
a.requires_grad_()
weights = {rounds: extra_bytes(lambda a: newton_sqrt(a, rounds), a) for rounds in (5, 20)}
for rounds, weight in weights.items():
    print(f"{rounds} rounds: {weight / a.nbytes:.0f} times the size of a")
claim("more rounds, more memory", weights[20] > 3 * weights[5])

(through_rounds,) = torch.autograd.grad(newton_sqrt(a).sum(), a)
claim(
    "the derivative through the rounds is right",
    through_rounds,
    1 / (2 * a.detach().sqrt()),
    within=1e-5,
)

# %% [markdown]
# Yet the derivative does not depend on how $x$ was found: the equation determines it. If $g(x, a) = 0$
# for every $a$, then moving $a$ must move $x$ so that $g$ stays at zero.

# %% [markdown]
# ## Exercise: the derivative of a solution
#
# Write `implicit_slope(equation, x, a)`. `equation(x, a)` is elementwise, and zero at the given
# `x` and `a`: tensors of the same shape that do not require grad, `x` found by some solver that
# built no graph. Return $dx/da$ at each element: same shape, not tracked.
#
# Do not set `requires_grad` on the caller's tensors. For `equation = x**2 - a` at `x = 3`, `a = 9` the answer is
# `1/6`.


# %%
def implicit_slope(equation, x: torch.Tensor, a: torch.Tensor) -> torch.Tensor:
    """dx/da along the solutions of equation(x, a) = 0, shape of x."""
    ### BEGIN SOLUTION
    x = x.detach().requires_grad_()
    a = a.detach().requires_grad_()
    along_x, along_a = torch.autograd.grad(equation(x, a).sum(), (x, a))
    return -along_a / along_x
    ### END SOLUTION


# %%
check("autograd.implicit_slope", implicit_slope)

# %% [markdown]
# ## Key takeaways
#
# - `requires_grad` starts a graph, `backward` goes through it once and frees it, `.grad` adds up.
# - You can look at the graph any time with `draw_graph(y, {"x": x})`.
# - Autograd is exact up to rounding. Finite differences are a check on it, in float64.
# - A change in place is fine where no operation saved the old values; the version counter checks it.
#   A change through `.data` is not checked.
# - `no_grad` for evaluation and updates, `inference_mode` where the results never come back,
#   `detach` for a constant with the same memory.
# - As long as a result is alive, so is its graph. For a log, keep `loss.item()`, not `loss`.
#
# Next: [Devices](03_devices.ipynb), where the tensors move to another device.
