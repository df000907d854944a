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
# # Tensors
#
# A tensor is a block of numbers with a shape. If you know NumPy, you know most of it already:
# this lab is about where the two differ, where they share memory, and which shapes go together.
# Each fact is stated as a *claim*, which runs here and says what it saw. The exercises
# answer as soon as you run the cell below them.

# %%
import subprocess
import tempfile
import warnings
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import torch

from labkit import check, claim, claim_raises
from labkit.lessons.pictures import draw_shapes, use_lab_style

np.random.seed(0)
torch.manual_seed(0)
use_lab_style()

# %% [markdown]
# ## Which PyTorch is this?
#
# What follows is PyTorch 2. One trap comes before the first import: in
# `pip install torch>=2.0` the shell reads `>` as "write the output into a file". Put quotes
# around it: `pip install "torch>=2.0"`. The cell plays it through with a stand-in for pip that
# only repeats what it was given, so nothing is installed.

# %%
print("PyTorch", torch.__version__, "and NumPy", np.__version__)

with tempfile.TemporaryDirectory() as folder:
    stand_in = 'pip() { echo "pip was given: $@"; }; '
    subprocess.run(["sh", "-c", stand_in + "pip install torch>=2.0"], cwd=folder, check=True)
    files = [file.name for file in Path(folder).iterdir()]
    pip_was_given = (Path(folder) / "=2.0").read_text().strip()

claim("this is PyTorch 2", int(torch.__version__.split(".")[0]) >= 2)
claim("without quotes, the shell leaves a file called `=2.0`", files, ["=2.0"])
claim("and pip never sees the version", pip_was_given, "pip was given: install torch")

# %% [markdown]
# ## From 0 to 4 dimensions
#
# | dimensions | name | example |
# |---|---|---|
# | 0 | scalar | one number: a temperature, a loss |
# | 1 | vector | a row of numbers: a signal over time |
# | 2 | matrix | a table: one row an example, one column a feature |
# | 3 | 3D tensor | an image: color channels, height, width |
# | 4 | 4D tensor | a batch of images |
#
# The shape lists the length of each dimension, the outermost first. Each square below is one
# value.

# %%
scalar = torch.tensor(5)
vector = torch.tensor([1, 2, 3])
matrix = torch.tensor([[1, 2], [3, 4]])
image = torch.rand(3, 4, 5)
batch = torch.rand(2, 3, 4, 5)

draw_shapes(scalar=scalar, vector=vector, matrix=matrix, values=True)
draw_shapes(image=image, batch=batch)

# %%
tensors = [scalar, vector, matrix, image, batch]
for tensor in tensors:
    print(f"{tensor.ndim} dimensions, {tensor.numel():4} values, shape {tuple(tensor.shape)}")

claim("they have 0 to 4 dimensions", [t.ndim for t in tensors], [0, 1, 2, 3, 4])
claim("a scalar's shape is empty, and yet it holds one value", scalar.numel(), 1)
claim("a shape's lengths multiply to the number of values", batch.numel(), 2 * 3 * 4 * 5)
claim("an index takes the outermost dimension away", batch[0].shape, image.shape)
claim_raises(
    "every row must have the same length",
    ValueError,
    lambda: torch.tensor([[1, 2], [3]]),
    match="expected sequence of length 2",
)

# %% [markdown]
# ### Which dimension is the color?
#
# Files, NumPy and matplotlib keep an image as (height, width, channels), and many tables of
# tensors list it so, next to a batch as (batch, channels, height, width). PyTorch's own layers
# want the channels *before* height and width, for one image as for a batch. `permute` puts the
# dimensions into another order.

# %%
photo = torch.rand(32, 48, 3)  # (height, width, channels), as a file gives it
weight = torch.rand(8, 3, 3, 3)  # a convolution that takes 3 channels and gives 8
channels_first = photo.permute(2, 0, 1)
features = torch.nn.functional.conv2d(channels_first, weight)
print(tuple(photo.shape), "->", tuple(channels_first.shape), "->", tuple(features.shape))

claim("permute(2, 0, 1) moves the channels to the front", channels_first.shape, (3, 32, 48))
claim("and takes each value along", channels_first[0, 5, 7], photo[5, 7, 0])
claim_raises(
    "a convolution does not take (height, width, channels)",
    RuntimeError,
    lambda: torch.nn.functional.conv2d(photo, weight),
    match="to have 3 channels",
)

# %% [markdown]
# ## Making tensors
#
# The names are nearly those of NumPy. One difference in the calls: NumPy wants the shape as a
# tuple, PyTorch takes it either way.

# %%
# NumPy
np_arr = np.array([1, 2, 3])
np_zeros = np.zeros((3, 4))
np_rand = np.random.randn(3, 4)

# PyTorch
pt_tensor = torch.tensor([1, 2, 3])
pt_zeros = torch.zeros(3, 4)
pt_rand = torch.randn(3, 4)

print(f"{'':14}{'NumPy':10}PyTorch")
print(f"{'[1, 2, 3]':14}{np_arr.dtype!s:10}{pt_tensor.dtype}")
print(f"{'zeros':14}{np_zeros.dtype!s:10}{pt_zeros.dtype}")
print(f"{'randn':14}{np_rand.dtype!s:10}{pt_rand.dtype}")

claim("a tensor made of Python integers is int64", pt_tensor.dtype, torch.int64)
claim("NumPy makes float64 where nothing else is said", np_zeros.dtype, np.float64)
claim("PyTorch makes float32", pt_zeros.dtype, torch.float32)
claim("one decimal point is enough for float32", torch.tensor([1, 2, 3.0]).dtype, torch.float32)

# %% [markdown]
# So "the default is float64 in NumPy and float32 in PyTorch" holds for *floating point* numbers.
# Integers stay integers in both. To start from the same random numbers each time, set the seed.
#
# Mind the capital letter: `torch.tensor(3)` is the number three, `torch.Tensor(3)` is a tensor
# of three values that nobody has set.

# %%
torch.manual_seed(7)
first = torch.randn(3, 4)
torch.manual_seed(7)
second = torch.randn(3, 4)

claim("the same seed gives the same numbers", torch.equal(first, second))
claim("torch.tensor(3) has no dimensions", torch.tensor(3).shape, ())
claim("torch.Tensor(3) has one, of length 3", torch.Tensor(3).shape, (3,))

# %% [markdown]
# ## Dtypes: how much a number can say
#
# A dtype fixes how many bytes a number takes, and so how finely it can be told from the next one.
# Floating point numbers lie closer together near zero and farther apart where they are large.
# The plot asks each dtype for the gap above a number. Both axes are logarithmic.

# %%
dtypes = [torch.bfloat16, torch.float16, torch.float32, torch.float64]
places = torch.logspace(-3, 6, 200, dtype=torch.float64)
figure, axes = plt.subplots()
for dtype in dtypes:
    number = places.to(dtype)
    gap = torch.nextafter(number, torch.tensor(torch.inf, dtype=dtype)) - number
    seen = gap.isfinite()  # float16 ends early: above its largest number comes infinity
    axes.loglog(places[seen], gap[seen].double(), label=f"{dtype}"[6:])
axes.set(xlabel="number", ylabel="gap to the next number")
axes.legend(loc="upper left", bbox_to_anchor=(1, 1))
plt.show()

for dtype in dtypes:
    info = torch.finfo(dtype)
    print(f"{dtype}: {info.bits // 8} bytes, largest {info.max:.3g}, gap above 1: {info.eps:.3g}")

# %%
big = torch.tensor(2.0**24)
largest_half = torch.finfo(torch.float16).max
gap = torch.nextafter(big, torch.tensor(torch.inf)) - big

claim("in float32, the gap above 2**24 is 2", gap, 2)
claim("so 2**24 + 1 is 2**24", big + 1 == big)
claim("float64 can still tell them apart", big.double() + 1 != big.double())
claim("float16 ends early: twice its largest number is inf",
      torch.tensor(largest_half, dtype=torch.float16) * 2, torch.inf)
claim("uint8 starts again after 255", torch.tensor([200], dtype=torch.uint8) + 100,
      [(200 + 100) % 256])

# %% [markdown]
# ### When dtypes meet
#
# Element-wise operations convert to a common dtype. A float beats an integer of any size, and of
# two floats the result can hold both ranges: bfloat16 with float16 gives float32. A tensor without
# dimensions, like a Python number, counts only if it is of a higher kind (a float among integers).
#
# Matrix products convert nothing: they raise. This is the first error that most people see when
# NumPy data meets a model, since NumPy's float64 comes along.

# %%
singles = torch.ones(2, 2)
doubles = torch.ones(2, 2, dtype=torch.float64)
whole = torch.tensor([1, 2, 3])

claim("float32 + float64 is float64", (singles + doubles).dtype, torch.float64)
claim("int64 + float16 is float16", (whole + torch.ones(3).half()).dtype, torch.float16)
claim("bfloat16 + float16 is float32", (singles.bfloat16() + singles.half()).dtype, torch.float32)
claim("a Python number does not widen a tensor", (singles + 0.5).dtype, torch.float32)
claim("nor does a float64 tensor without dimensions",
      (singles + torch.tensor(0.5, dtype=torch.float64)).dtype, torch.float32)
claim("among integers it decides the kind", (whole + torch.tensor(0.5)).dtype, torch.float32)
claim("dividing integers gives float32", (whole / 2).dtype, torch.float32)
claim_raises("float64 @ float32 raises", RuntimeError, lambda: doubles @ singles,
             match="expected m1 and m2 to have the same dtype")
claim("after .float() it works", doubles.float() @ singles, torch.full((2, 2), 2.0))
claim_raises("integers have no mean", RuntimeError, lambda: whole.mean(), match="Long")
claim_raises("in place, a tensor keeps its dtype", RuntimeError, lambda: whole.add_(0.5),
             match="can't be cast")

# %% [markdown]
# ## Exercise: a batch for the model
#
# `images` is a uint8 tensor of shape (batch, height, width, channels) with values from 0 to 255,
# as files give it. Return what a model takes: float32, shape (batch, channels, height, width),
# values from 0 to 1.
#
# Example: `images` of shape (10, 32, 48, 3) becomes (10, 3, 32, 48), and where
# `images[4, 5, 6, 1]` was 255, the result has 1.0 at `[4, 1, 5, 6]`.

# %%
def images_to_batch(images: torch.Tensor) -> torch.Tensor:
    """Returns the images as float32 from 0 to 1, shape (batch, channels, height, width)."""
    ### BEGIN SOLUTION
    return images.permute(0, 3, 1, 2).float() / 255
    ### END SOLUTION


# %%
check("tensors.images_to_batch", images_to_batch)

# %% [markdown]
# ## NumPy and PyTorch can share memory
#
# `torch.from_numpy` copies nothing. It puts a tensor around the array's own memory, with the
# array's dtype. `.numpy()` goes the other way, and shares as well. Whoever writes, both see it.

# %%
np_arr = np.array([1, 2, 3])

# NumPy -> PyTorch
tensor = torch.from_numpy(np_arr)

# PyTorch -> NumPy
array = tensor.numpy()  # only for tensors on the CPU that need no gradient

np_arr[0] = 100
array[1] = 200
print(tensor)

claim("from_numpy shares memory", np.shares_memory(np_arr, tensor.numpy()))
claim("the tensor sees what is written to the arrays", tensor, [100, 200, 3])
claim("from_numpy keeps float64", torch.from_numpy(np.zeros(3)).dtype, torch.float64)
claim_raises(
    "a tensor that needs a gradient has to be detached first",
    RuntimeError,
    lambda: torch.ones(2, requires_grad=True).numpy(),
    match="requires grad",
)
claim_raises(
    "a tensor on the GPU has to come back to the CPU first",
    TypeError,
    lambda: torch.ones(2).to("cuda").numpy(),
    match="Use Tensor.cpu()",
    needs="cuda",
)

# %% [markdown]
# `torch.tensor` always copies. It keeps the array's dtype too, so what was float64 in NumPy
# is float64 here.

# %%
source = np.zeros(3)
copied = torch.tensor(source)
source[0] = 100

claim("torch.tensor copies: the change does not arrive", copied, [0, 0, 0])
claim("torch.tensor keeps an array's float64", copied.dtype, torch.float64)
claim("a list of the same numbers becomes float32", torch.tensor(source.tolist()).dtype,
      torch.float32)

# %% [markdown]
# ### When the sharing ends
#
# `a += 1` writes into the memory that `a` has. `a = a + 1` computes into new memory and
# gives it the old name. After that, the tensor and the array share nothing. The same goes for
# `.float()`: it copies if it must convert, and else gives back the very same tensor.

# %%
a = np.zeros(3)
t = torch.from_numpy(a)
a += 1
claim("after `a += 1` they still share", t, [1, 1, 1])

a = a + 1
claim("after `a = a + 1` they do not", not np.shares_memory(a, t.numpy()))
claim("the array went on, the tensor stayed behind", (a[0].item(), t[0].item()), (2, 1))

float32_array = np.zeros(3, dtype=np.float32)
still_shared = torch.from_numpy(float32_array).float()
claim("`.float()` on float32 copies nothing", np.shares_memory(float32_array, still_shared.numpy()))

# %% [markdown]
# ### Arrays that cannot be shared
#
# A reversed array is the same memory read backwards: its step from one value to the next is
# negative. PyTorch has no negative steps, so it refuses, and asks for a copy. An array that is
# read-only is taken, with a warning, because PyTorch has no read-only tensors. Take the warning
# seriously: nothing stops you from writing to what was meant to stay.

# %%
backwards = np.arange(3)[::-1]
protected = np.arange(3)
protected.flags.writeable = False

with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    torch.set_warn_always(True)  # PyTorch would give this warning only once
    unprotected = torch.from_numpy(protected)
    torch.set_warn_always(False)
unprotected[0] = 100

print("steps in bytes:", backwards.strides)
print(f"{len(caught)} warning: {str(caught[0].message)[:70]}...")
claim_raises("a reversed array raises", ValueError, lambda: torch.from_numpy(backwards),
             match="negative")
claim("its copy does not", torch.from_numpy(backwards.copy()), [2, 1, 0])
claim("a read-only array warns", "not writable" in str(caught[0].message))
claim("and can be written to through the tensor all the same", protected[0].item(), 100)

# %% [markdown]
# ## Exercise: a tensor of its own
#
# `array` is a NumPy array of integers, floats or booleans, of any shape, possibly reversed.
# Return a float32 tensor with the same values that shares no memory with it. The array stays as
# it was.
#
# Example: `np.array([1, 2, 3])[::-1]` becomes `tensor([3., 2., 1.])`.

# %%
def own_tensor(array: np.ndarray) -> torch.Tensor:
    """Returns the array's values as float32, in memory of the tensor's own."""
    ### BEGIN SOLUTION
    return torch.from_numpy(array.astype(np.float32))
    ### END SOLUTION


# %%
check("tensors.own_tensor", own_tensor)

# %% [markdown]
# ## What PyTorch adds
#
# Two things a NumPy array cannot do: compute on a GPU, and keep track of how it was computed, so
# that gradients can be taken. They have labs of their own. Here is the line for each.

# %%
tracked = torch.tensor([2.0], requires_grad=True)
claim("a tensor can carry its history for gradients", (tracked**2).requires_grad)
claim_raises("integer tensors cannot: they have no slope", RuntimeError,
             lambda: torch.tensor([2], requires_grad=True), match="floating point")
claim("a tensor can live on a GPU", lambda: torch.ones(2).to("cuda").device.type, "cuda",
      needs="cuda")

# %% [markdown]
# ## Element by element, or row by column
#
# `+ - * /` work on values at the same place. `*` is not the matrix product: that is `@`, and
# `torch.matmul` is its long name. In a product of (n, k) and (k, m) the inner lengths
# must agree, and the outer ones are left:
#
# $$(A\,B)_{ij} = \sum_k A_{ik}\, B_{kj}$$

# %%
a = torch.tensor([[1, 2], [3, 4]], dtype=torch.float32)
b = torch.tensor([[5, 6], [7, 8]], dtype=torch.float32)

total = a + b  # element-wise addition
hadamard = a * b  # element-wise multiplication (Hadamard product)
product = a @ b  # matrix multiplication
long_name = torch.matmul(a, b)  # matrix multiplication

draw_shapes(a=a, b=b, **{"a + b": total, "a * b": hadamard, "a @ b": product}, values=True)
by_hand = torch.tensor([
    [1 * 5 + 2 * 7, 1 * 6 + 2 * 8],
    [3 * 5 + 4 * 7, 3 * 6 + 4 * 8],
])
claim("a * b multiplies what stands at the same place", hadamard, [[5, 12], [21, 32]])
claim("a @ b sums over rows of a times columns of b", product, by_hand)
claim("torch.matmul is @", torch.equal(product, long_name))
claim("the order counts: b @ a is something else", not torch.equal(product, b @ a))

# %%
left, right = torch.randn(2, 3), torch.randn(3, 4)
stack = torch.randn(10, 2, 3)

claim("(2, 3) @ (3, 4) is (2, 4)", (left @ right).shape, (2, 4))
claim("(2, 3) @ (3,) is (2,): a vector counts as a column", (left @ torch.ones(3)).shape, (2,))
claim("(10, 2, 3) @ (3, 4) is ten products at once", (stack @ right).shape, (10, 2, 4))
claim_raises("(2, 3) @ (2, 3) raises: 3 is not 2", RuntimeError, lambda: left @ left,
             match="shapes cannot be multiplied (2x3 and 2x3)")

# %% [markdown]
# ## Broadcasting
#
# Operands of different shapes are stretched to fit. Write the shapes one under the other, aligned
# at the *right*. In each column the lengths must be equal, or one of them must be 1 or missing;
# that one is stretched.
#
# ```
# a       3  1
# b          3
# a + b   3  3
# ```
#
# Stretching takes no memory. In the picture, dashed squares are the same values read again.

# %%
a = torch.tensor([[1], [2], [3]])  # (3, 1)
b = torch.tensor([10, 20, 30])  # (3,)
c = a + b  # (3, 3) automatic expansion
stretched_a, stretched_b = torch.broadcast_tensors(a, b)

draw_shapes(a=a, b=b, values=True)
draw_shapes(**{"a, stretched": stretched_a, "b, stretched": stretched_b, "a + b": c}, values=True)

claim("(3, 1) + (3,) is (3, 3)", c.shape, (3, 3))
claim("c[i, j] is a[i] + b[j]", c[2, 0], a[2, 0] + b[0])
claim("stretched, a still lies where it lay", stretched_a.data_ptr(), a.data_ptr())
claim("the rule as a function", torch.broadcast_shapes((5, 1, 4), (3, 1)), (5, 3, 4))
claim_raises("(3,) + (4,) raises", RuntimeError, lambda: torch.ones(3) + torch.ones(4),
             match="must match the size")
claim_raises("(2, 3) + (2,) raises too: right to right, 3 meets 2", RuntimeError,
             lambda: torch.ones(2, 3) + torch.ones(2), match="at non-singleton dimension 1")

# %% [markdown]
# ### keepdim, and the squares that hide its absence
#
# A sum over the columns gives one value a row, and loses the dimension: (3, 4) becomes (3,).
# Aligned at the right, that (3,) no longer stands for rows. With `keepdim=True` it stays
# (3, 1), and broadcasts back to the rows it came from.

# %%
table = torch.tensor([[1.0, 3.0], [2.0, 6.0]])
row_means = table.mean(dim=1)
row_means_kept = table.mean(dim=1, keepdim=True)

draw_shapes(table=table, row_means=row_means, row_means_kept=row_means_kept, values=True)
print("lost:", (table - row_means).tolist(), "  kept:", (table - row_means_kept).tolist())

claim("keepdim leaves a dimension of length 1", row_means_kept.shape, (2, 1))
claim("with it, every row's mean becomes 0", (table - row_means_kept).mean(dim=1), [0, 0])
claim("without it, a square table gives wrong numbers and no error",
      (table - row_means).mean(dim=1), [-1, 1])
claim_raises("only a table that is not square complains", RuntimeError,
             lambda: torch.ones(3, 4) - torch.ones(3, 4).mean(dim=1), match="must match")

# %% [markdown]
# ## Exercise: shares of a row
#
# `table` has shape (n, d), and all its values are positive. Return a tensor of the same shape in
# which each row is divided by its own sum, without a loop over the values.
#
# Example: `[[1., 3.], [2., 2.]]` becomes `[[0.25, 0.75], [0.5, 0.5]]`.

# %%
def row_shares(table: torch.Tensor) -> torch.Tensor:
    """Returns the table with each row divided by its sum, shape (n, d)."""
    ### BEGIN SOLUTION
    return table / table.sum(dim=1, keepdim=True)
    ### END SOLUTION


# %%
check("tensors.row_shares", row_shares)

# %% [markdown]
# ## The trap that costs a day
#
# A model that ends in `nn.Linear(d, 1)` gives predictions of shape (n, 1), while the targets
# usually come as (n,). Their difference is not n values but n times n: every prediction against
# every target. The
# mean of that is a perfectly good-looking number. PyTorch's own loss says something, but it only
# warns, and code written by hand says nothing at all.

# %%
prediction = torch.tensor([[1.0], [2.0], [3.0]])
target = torch.tensor([1.0, 2.0, 3.0])

draw_shapes(prediction=prediction, target=target, difference=prediction - target, values=True)
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    library_loss = torch.nn.functional.mse_loss(prediction, target)
print(f"{len(caught)} warning: {str(caught[0].message)[:100]}...")

claim("(3, 1) - (3,) is (3, 3)", (prediction - target).shape, (3, 3))
claim("every prediction is right, and yet this loss is not 0",
      ((prediction - target) ** 2).mean() > 0)
claim("with equal shapes it is", ((prediction.squeeze(1) - target) ** 2).mean(), 0)
claim("mse_loss warns", "different to the input size" in str(caught[0].message))
claim("and then returns the wrong number", library_loss, ((prediction - target) ** 2).mean())

# %% [markdown]
# What does it cost? Below are points around a line with a known slope. For each slope that a
# model might have, the loss is computed both ways. Each curve has its own lowest point, and that
# is where training would go.

# %%
draw = torch.Generator().manual_seed(0)
true_slope = 2.0
inputs = torch.linspace(-1, 1, 40)
targets = true_slope * inputs + 0.3 * torch.randn(40, generator=draw)  # (40,)
column = inputs.unsqueeze(1)  # (40, 1), as a linear layer takes and gives it

slopes = torch.linspace(-2, 4, 121)
wrong_loss = torch.stack([((w * column - targets) ** 2).mean() for w in slopes])
right_loss = torch.stack([((w * inputs - targets) ** 2).mean() for w in slopes])
wrong_best, right_best = slopes[wrong_loss.argmin()], slopes[right_loss.argmin()]

figure, (points, losses) = plt.subplots(1, 2, figsize=(10, 3.8), layout="constrained")
points.plot(inputs, targets, ".", color="0.5")
points.plot(inputs, right_best * inputs, label="same shapes")
points.plot(inputs, wrong_best * inputs, "--", label="(n, 1) against (n,)")
points.set(title="the line each loss prefers", xlabel="input", ylabel="target")
losses.plot(slopes, right_loss, label="same shapes")
losses.plot(slopes, wrong_loss, "--", label="(n, 1) against (n,)")
losses.plot([right_best, wrong_best], [right_loss.min(), wrong_loss.min()], "o", color="0.5")
losses.set(title="the two losses", xlabel="slope", ylabel="loss")
losses.legend()
plt.show()

print(f"true slope {true_slope}, best by the right loss {right_best:.2f}, "
      f"by the wrong one {wrong_best:.2f}")
claim("the right loss finds the slope", right_best, true_slope, within=0.2)
claim("the wrong one finds a flat line: each input is held against every target",
      wrong_best, 0.0, within=0.2)

# %% [markdown]
# ## Exercise: a loss that pairs
#
# `prediction` and `target` have n values each, in the shape (n,) or (n, 1), in any combination.
# Return the mean of the squared differences between each prediction and *its* target, as a
# tensor without dimensions.
#
# Example: `tensor([1., 2.])` and `tensor([[1.], [4.]])` give `tensor(2.)`.

# %%
def paired_loss(prediction: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """Returns the mean squared difference of n pairs, shape ()."""
    ### BEGIN SOLUTION
    return ((prediction.flatten() - target.flatten()) ** 2).mean()
    ### END SOLUTION


# %%
check("tensors.paired_loss", paired_loss)

# %% [markdown]
# ## Views: two shapes, one memory
#
# A tensor's values lie in memory one after the other. Shape and *stride* say how to read them:
# the stride is how many values to step over to get to the next index of a dimension. The value
# at `[i, j]` lies at place
#
# $$i \cdot \text{stride}_0 + j \cdot \text{stride}_1 .$$
#
# Transposing swaps shape and strides, and moves nothing. Such a second reading is a *view*.

# %%
x = torch.arange(6).reshape(2, 3)
memory = torch.arange(6)

draw_shapes(memory=memory, x=x, **{"x.T": x.T, "x[:, 1]": x[:, 1]}, values=True)
for name, tensor in {"x": x, "x.T": x.T, "x[:, 1]": x[:, 1]}.items():
    print(f"{name:8} shape {tuple(tensor.shape)!s:8} stride {tensor.stride()!s:8} "
          f"starts at place {tensor.storage_offset()}")

claim("x steps 3 values to the next row and 1 to the next column", x.stride(), (3, 1))
claim("x.T is the other way round", x.T.stride(), (1, 3))
claim("x.T lies where x lies", x.T.data_ptr(), x.data_ptr())
claim("a column of x begins one value later", x[:, 1].storage_offset(), 1)
claim("a stretched dimension has stride 0", torch.ones(3, 1).expand(3, 4).stride(), (1, 0))

# %%
x = torch.zeros(2, 3)
column = x[:, 1]
column += 5

draw_shapes(x=x, values=True)
claim("writing to a slice writes to the tensor", x, [[0, 5, 0], [0, 5, 0]])

# %% [markdown]
# ### Contiguous or not
#
# If reading row by row walks straight through memory, a tensor is *contiguous*. The plot follows
# the walk for a matrix and for its transpose.

# %%
def places_in_memory(tensor):
    """The place of each value in memory, in the order of reading row by row."""
    index = torch.cartesian_prod(*(torch.arange(length) for length in tensor.shape))
    return (index * torch.tensor(tensor.stride())).sum(dim=1) + tensor.storage_offset()


matrix = torch.arange(24).reshape(4, 6)
figure, axes = plt.subplots()
axes.plot(places_in_memory(matrix), "o-", label="matrix")
axes.plot(places_in_memory(matrix.T), "s--", label="matrix.T")
axes.set(xlabel="step in reading", ylabel="place in memory")
axes.legend(loc="upper left", bbox_to_anchor=(1, 1))
plt.show()

claim("the formula finds the values", matrix.flatten()[places_in_memory(matrix.T)],
      matrix.T.flatten())
claim("a matrix is contiguous", matrix.is_contiguous())
claim("its transpose is not", not matrix.T.is_contiguous())

# %% [markdown]
# `view` promises a view or nothing: where no stride could describe the new shape, it raises.
# `reshape` gives a view where it can, and else silently copies. Then what you write to the result
# does not reach the original.

# %%
t = torch.arange(6).reshape(2, 3)

claim("t.view(6) is a view", t.view(6).data_ptr(), t.data_ptr())
claim_raises("t.T.view(6) raises", RuntimeError, lambda: t.T.view(6),
             match="view size is not compatible")
claim("t.T.reshape(6) works", t.T.reshape(6), [0, 3, 1, 4, 2, 5])
claim("because it copies", t.T.reshape(6).data_ptr() != t.data_ptr())
claim("t.reshape(6) does not copy", t.reshape(6).data_ptr(), t.data_ptr())
claim("contiguous() copies into the order of reading", t.T.contiguous().view(6), t.T.reshape(6))

# %% [markdown]
# ### Slices are views, lists copy
#
# A slice can be described by a stride, so it is a view. A list of rows or a mask cannot, so the
# values are copied. To *assign* through a list works all the same, because `x[[0]] = 9` is one
# operation on `x`. `x[[0]][0] = 9` is two: the first makes a copy, the second writes to it.

# %%
x = torch.zeros(3, 2)
x[[0]][0] = 9
lost = x.clone()
x[[0]] = 9

draw_shapes(**{"after x[[0]][0] = 9": lost, "after x[[0]] = 9": x}, values=True)
claim("a slice is a view", x[0:1].data_ptr(), x.data_ptr())
claim("a list of rows copies", x[[0]].data_ptr() != x.data_ptr())
claim("a mask copies", x[x > 5].data_ptr() != x.data_ptr())
claim("writing to the copy is lost", lost, torch.zeros(3, 2))
claim("assigning through the list is not", x[0], [9, 9])

# %% [markdown]
# ### Writing to a stretched tensor
#
# The rows of an expanded tensor are one row, read again and again. Write to one and all change.
# Some operations refuse, others do as they are told. `clone` gives each row memory of its own.

# %%
rows = torch.zeros(3).expand(2, 3)
rows[0, 0] = 7
separate = torch.zeros(3).expand(2, 3).clone()
separate[0, 0] = 7

draw_shapes(rows=rows, separate=separate, values=True)
claim("one write shows in every row", rows[:, 0], [7, 7])
claim("after clone() it does not", separate[:, 0], [7, 0])
claim_raises("add_ notices and refuses", RuntimeError, lambda: rows.add_(1),
             match="single memory location")

# %% [markdown]
# ## Exercise: windows on a signal
#
# `signal` has shape (n,), and `size` is from 1 to n. Return all windows of that many neighbors,
# one window per row: shape (n - size + 1, size). Take no memory for it: the result must be a view
# of the signal.
#
# Example: `tensor([1., 2., 3., 4.])` with size 3 gives `[[1., 2., 3.], [2., 3., 4.]]`.
#
# `torch.as_strided(x, shape, stride)` reads the memory of `x` with any shape and stride you
# say. A signal may itself be a view, with a stride other than 1.

# %%
def windows(signal: torch.Tensor, size: int) -> torch.Tensor:
    """Returns every window of the signal as a view, shape (n - size + 1, size)."""
    ### BEGIN SOLUTION
    step = signal.stride(0)
    return torch.as_strided(signal, (len(signal) - size + 1, size), (step, step))
    ### END SOLUTION


# %%
check("tensors.windows", windows)

# %% [markdown]
# ## Key takeaways
#
# - NumPy's floating point default is float64, PyTorch's is float32, and matrix products do
#   not mix them.
# - `from_numpy` and `.numpy()` share memory. `torch.tensor` copies. `a = a + 1` ends the sharing.
# - `*` is element by element, `@` is the matrix product.
# - Broadcasting aligns shapes at the right. Look at the shapes before you subtract.
# - Slices, `.T`, `view` and `expand` are views. Lists and masks copy. `reshape` does either.
#
# The next lab lets PyTorch take the derivatives.
