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
# Press Shift+Enter: it runs a cell, also a folded one, and goes on to the next. Run the two folded
# cells below. The second one fits a line to forty points, twice, with the same data and the same
# loss. Only one *shape* differs, and PyTorch reports no error.

# %% jupyter={"source_hidden": true}
# Imports: run this cell first.
import subprocess
import tempfile
import warnings
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import torch

from labkit import check, claim, claim_raises, predict
from labkit.lessons.pictures import draw_shapes, use_lab_style

np.random.seed(0)
torch.manual_seed(0)
use_lab_style()
print("PyTorch", torch.__version__, "and NumPy", np.__version__)

# %% jupyter={"source_hidden": true}
# One shape differs: run this cell, then look at the dashed line.
draw = torch.Generator().manual_seed(0)
true_slope = 2.0
inputs = torch.linspace(-1, 1, 40)
targets = true_slope * inputs + 0.3 * torch.randn(40, generator=draw)  # (40,)
column = inputs.unsqueeze(1)  # (40, 1), as a linear layer takes and gives it

slopes = torch.linspace(-2, 4, 121)
wrong_loss = torch.stack([((w * column - targets) ** 2).mean() for w in slopes])
right_loss = torch.stack([((w * inputs - targets) ** 2).mean() for w in slopes])
wrong_best, right_best = slopes[wrong_loss.argmin()], slopes[right_loss.argmin()]

figure, axes = plt.subplots(layout="constrained")
axes.plot(inputs, targets, ".", color="0.5", label="data")
axes.plot(inputs, right_best * inputs, label="predictions of shape (40,)")
axes.plot(inputs, wrong_best * inputs, "--", label="predictions of shape (40, 1)")
axes.set(title="The same data, the same loss, one shape apart", xlabel="input", ylabel="target")
axes.legend()
plt.show()

# %% [markdown]
# After this lab you know why, and you see it before you run it. If you know NumPy, you know most of
# the rest already: this lab is about where the two differ, where they share memory, and which
# shapes fit together.
#
# The lab asks first. Each question has buttons; choose what you *expect*, even if you are not sure
# (by keyboard: Shift+Tab goes back to the buttons, and Enter chooses). Then the facts appear, proven
# on your machine, and the page keeps your score. A surprise is worth more than a right guess. Click
# a folded cell to see its code. In an exercise, you write the function, run its cell, and then run
# the cell below it, which checks your answer.

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
claim("a scalar's shape is empty, and yet it holds one value", scalar.numel(), 1, shown=True)
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
# Files, NumPy and matplotlib keep an image as (height, width, channels). PyTorch's own layers want
# the channels *before* height and width, for one image as for a batch. `permute` puts the
# dimensions into another order.

# %%
photo = torch.rand(32, 48, 3)  # (height, width, channels), as a file gives it
weight = torch.rand(8, 3, 3, 3)  # a convolution that takes 3 channels and gives 8
channels_first = photo.permute(2, 0, 1)

# %% jupyter={"source_hidden": true}
# A question: run this cell, then choose.
def convolve_photo():
    """What a convolution makes of (height, width, channels), in one word."""
    try:
        return f"{tuple(torch.nn.functional.conv2d(photo, weight).shape)}"
    except RuntimeError:
        return "an error"


predict(
    "tensors.channels_last",
    "What does `conv2d(photo, weight)` give for the photo as the file has it, shape (32, 48, 3)?",
    ["a result of shape (8, 30, 46)", "a result of some other shape", "an error"],
    seen=convolve_photo,
    because="The first dimension counts as channels: 32 of them, where the weight expects 3.",
)
claim("permute(2, 0, 1) moves the channels to the front", channels_first.shape, (3, 32, 48))
claim("and moves each value with them", channels_first[0, 5, 7], photo[5, 7, 0])
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

# %% jupyter={"source_hidden": true}
# A question: run this cell, then choose.
predict(
    "tensors.default_dtype",
    "Which dtypes do `np_zeros` and `pt_zeros` have?",
    {
        "both float64": (np.float64, torch.float64),
        "NumPy float64, PyTorch float32": (np.float64, torch.float32),
        "both float32": (np.float32, torch.float32),
    },
    seen=(np_zeros.dtype.type, pt_zeros.dtype),
    because="This holds for floating point numbers. Integers are int64 in both.",
)
claim("a tensor made of Python integers is int64", pt_tensor.dtype, torch.int64)
claim("NumPy makes float64 where nothing else is said", np_zeros.dtype, np.float64)
claim("PyTorch makes float32", pt_zeros.dtype, torch.float32)
claim("one decimal point is enough for float32", torch.tensor([1, 2, 3.0]).dtype, torch.float32)

# %% [markdown]
# `torch.tensor` and `torch.Tensor`, with a capital letter, are two different functions.

# %%
torch.manual_seed(7)
first = torch.randn(3, 4)
torch.manual_seed(7)
second = torch.randn(3, 4)

# %% jupyter={"source_hidden": true}
# A question: run this cell, then choose.
predict(
    "tensors.capital_letter",
    "What is `torch.Tensor(3)`, with a capital T?",
    {"the number 3": (), "a tensor of three values": (3,), "an error": None},
    seen=torch.Tensor(3).shape,
    because="`torch.Tensor(3)` is memory for three values that were never set: they are whatever was "
    "there before. `torch.tensor(3)` is the number three.",
)
claim("the same seed gives the same numbers", torch.equal(first, second))
claim("torch.tensor(3) has no dimensions", torch.tensor(3).shape, ())
claim("torch.Tensor(3) has one, of length 3", torch.Tensor(3).shape, (3,))

# %% [markdown]
# ## Dtypes: range and precision
#
# A dtype fixes how many bytes a number takes, and so how large the gap to the next number is.
# Floating point numbers lie closer together near zero and farther apart where they are large.
# The plot shows, for each dtype, the gap between a number and the next larger one. Both axes are
# logarithmic.

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
big = torch.tensor(2.0**24)  # 16,777,216, in float32
largest_half = torch.finfo(torch.float16).max
gap = torch.nextafter(big, torch.tensor(torch.inf)) - big

# %% jupyter={"source_hidden": true}
# A question: run this cell, then choose.
predict(
    "tensors.float32_gap",
    "`big` is 2**24 in float32, or 16,777,216. What is `big + 1`?",
    {"16777216, the same number": 2.0**24, "16777217": 2.0**24 + 1, "16777218": 2.0**24 + 2},
    seen=(big + 1).item(),
    because="The gap above 2**24 is 2: the odd numbers are not there any more.",
)
claim("in float32, the gap above 2**24 is 2", gap, 2)
claim("in float32, 2**24 + 1 is 2**24", big + 1 == big, shown=True)
claim("float64 can still tell them apart", big.double() + 1 != big.double())
claim("float16 ends early: twice its largest number is inf",
      torch.tensor(largest_half, dtype=torch.float16) * 2, torch.inf)
claim("uint8 starts again after 255", torch.tensor([200], dtype=torch.uint8) + 100,
      [(200 + 100) % 256])

# %% [markdown]
# ### When dtypes meet
#
# Element-wise operations convert to a common dtype. Matrix products convert nothing.

# %%
singles = torch.ones(2, 2)
doubles = torch.ones(2, 2, dtype=torch.float64)
whole = torch.tensor([1, 2, 3])

# %% jupyter={"source_hidden": true}
# A question: run this cell, then choose.
predict(
    "tensors.promotion",
    "`whole` is int64, 64 bits an element. What is the dtype of `whole + torch.ones(3).half()`?",
    [torch.int64, torch.float16, torch.float32, torch.float64],
    seen=(whole + torch.ones(3).half()).dtype,
    because="A float beats an integer of any size. Of two floats, the result can hold both ranges. A "
    "tensor without dimensions counts, like a Python number, only if it is of a higher kind.",
)
claim("float32 + float64 is float64", (singles + doubles).dtype, torch.float64)
claim("int64 + float16 is float16", (whole + torch.ones(3).half()).dtype, torch.float16)
claim("bfloat16 + float16 is float32", (singles.bfloat16() + singles.half()).dtype, torch.float32,
      shown=True)
claim("a Python number does not widen a tensor", (singles + 0.5).dtype, torch.float32)
claim("nor does a float64 tensor without dimensions",
      (singles + torch.tensor(0.5, dtype=torch.float64)).dtype, torch.float32)
claim("among integers it decides the kind", (whole + torch.tensor(0.5)).dtype, torch.float32)
claim("dividing integers gives float32", (whole / 2).dtype, torch.float32)

# %% jupyter={"source_hidden": true}
# A question: run this cell, then choose.
def multiply_doubles():
    """The dtype of float64 @ float32, or that it raises."""
    try:
        return (doubles @ singles).dtype
    except RuntimeError:
        return "an error"


predict(
    "tensors.mixed_product",
    "`doubles + singles` is float64. What is the dtype of the matrix product `doubles @ singles`?",
    [torch.float64, torch.float32, "an error"],
    seen=multiply_doubles,
    because="NumPy's default is float64, and a model's weights are float32: NumPy data in a model "
    "raises this error until you convert it.",
)
claim_raises("float64 @ float32 raises", RuntimeError, lambda: doubles @ singles,
             match="expected m1 and m2 to have the same dtype", shown=True)
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
# array's dtype. `.numpy()` goes the other way, and shares as well. `torch.tensor` always copies.

# %%
np_arr = np.array([1, 2, 3])

# NumPy -> PyTorch
tensor = torch.from_numpy(np_arr)

# PyTorch -> NumPy
array = tensor.numpy()  # only for tensors on the CPU that need no gradient

np_arr[0] = 100
array[1] = 200

source = np.zeros(3)
copied = torch.tensor(source)
source[0] = 100

# %% jupyter={"source_hidden": true}
# A question: run this cell, then choose.
predict(
    "tensors.sharing",
    "After these lines, what does `tensor` hold?",
    {"[1, 2, 3]": [1, 2, 3], "[100, 2, 3]": [100, 2, 3], "[100, 200, 3]": [100, 200, 3]},
    seen=tensor,
    because="`np_arr`, `tensor` and `array` are three names for one piece of memory.",
)
claim("from_numpy shares memory", np.shares_memory(np_arr, tensor.numpy()))
claim("the tensor sees what is written to the arrays", tensor, [100, 200, 3], shown=True)
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
claim("torch.tensor copies: the change does not arrive", copied, [0, 0, 0])
claim("torch.tensor keeps an array's float64", copied.dtype, torch.float64)
claim("a list of the same numbers becomes float32", torch.tensor(source.tolist()).dtype,
      torch.float32)

# %% [markdown]
# ### When the sharing ends
#
# `a` and `t` share memory. First `a` changes, and then it changes again:

# %%
a = np.zeros(3)
t = torch.from_numpy(a)
a += 1
after_in_place = t.clone()

a = a + 1

# %% jupyter={"source_hidden": true}
# A question: run this cell, then choose.
predict(
    "tensors.sharing_ends",
    "`a` holds [2, 2, 2] now. What does `t` hold?",
    {"[0, 0, 0]": [0, 0, 0], "[1, 1, 1]": [1, 1, 1], "[2, 2, 2]": [2, 2, 2]},
    seen=t,
    because="`a += 1` writes into the memory that `a` has. `a = a + 1` computes into new memory and "
    "gives it the old name; the tensor keeps the old memory.",
)
claim("after `a += 1` they still share", after_in_place, [1, 1, 1])
claim("after `a = a + 1` they do not", not np.shares_memory(a, t.numpy()))
claim("the array went on, the tensor stayed behind", (a[0].item(), t[0].item()), (2, 1), shown=True)

float32_array = np.zeros(3, dtype=np.float32)
still_shared = torch.from_numpy(float32_array).float()
claim("`.float()` on float32 copies nothing", np.shares_memory(float32_array, still_shared.numpy()))

# %% [markdown]
# ### Arrays that cannot be shared
#
# A reversed array is the same memory read backwards: its step from one value to the next is
# negative. A read-only array is memory that must not be written.

# %%
backwards = np.arange(3)[::-1]
protected = np.arange(3)
protected.flags.writeable = False
print("steps in bytes:", backwards.strides)

with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    torch.set_warn_always(True)  # PyTorch would give this warning only once
    unprotected = torch.from_numpy(protected)
    torch.set_warn_always(False)

# %% jupyter={"source_hidden": true}
# A question: run this cell, then choose.
def share_backwards():
    """What from_numpy does with a reversed array."""
    try:
        return "shares it" if torch.from_numpy(backwards) is not None else ""
    except ValueError:
        return "raises an error"


predict(
    "tensors.reversed_array",
    "What does `torch.from_numpy(backwards)` do with the reversed array?",
    ["shares it", "copies it", "raises an error"],
    seen=share_backwards,
    because="PyTorch has no negative steps, so it asks for a copy. It has no read-only tensors "
    "either: there it warns, and nothing stops you from writing to what was meant to stay.",
)
unprotected[0] = 100
claim_raises("a reversed array raises", ValueError, lambda: torch.from_numpy(backwards),
             match="negative", shown=True)
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
# Two things a NumPy array cannot do: compute on a GPU, and keep the graph of how it was computed,
# so that gradients can be taken. They have labs of their own. Here is the line for each.

# %%
tracked = torch.tensor([2.0], requires_grad=True)
claim("a tensor can carry its graph for gradients", (tracked**2).requires_grad)
claim_raises("integer tensors cannot: they have no gradient", RuntimeError,
             lambda: torch.tensor([2], requires_grad=True), match="floating point")
claim("a tensor can live on a GPU", lambda: torch.ones(2).to("cuda").device.type, "cuda",
      needs="cuda")

# %% [markdown]
# ## Element by element, or row by column
#
# `+ - * /` work on values at the same place. The matrix product is `@`, and `torch.matmul` is its
# long name. In a product of (n, k) and (k, m) the inner lengths must agree, and the outer ones are
# left:
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
claim("a * b multiplies the entries at the same place", hadamard, [[5, 12], [21, 32]], shown=True)
claim("a @ b sums over rows of a times columns of b", product, by_hand, shown=True)
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

# %%
a = torch.tensor([[1], [2], [3]])  # (3, 1)
b = torch.tensor([10, 20, 30])  # (3,)
c = a + b  # automatic expansion
stretched_a, stretched_b = torch.broadcast_tensors(a, b)

draw_shapes(a=a, b=b, values=True)

# %% jupyter={"source_hidden": true}
# A question: run this cell, then choose.
predict(
    "tensors.broadcast",
    "`a` has shape (3, 1) and `b` has shape (3,). What is the shape of `a + b`?",
    {"(3,)": (3,), "(3, 1)": (3, 1), "(3, 3)": (3, 3), "an error": None},
    seen=c.shape,
    because="Aligned at the right, 1 meets 3 and is stretched, and 3 meets nothing.",
)
claim("(3, 1) + (3,) is (3, 3)", c.shape, (3, 3))
claim("c[i, j] is a[i] + b[j]", c[2, 0], a[2, 0] + b[0])
claim("stretched, a is still in the same memory", stretched_a.data_ptr() == a.data_ptr())
claim("the rule as a function", torch.broadcast_shapes((5, 1, 4), (3, 1)), (5, 3, 4))
claim_raises("(3,) + (4,) raises", RuntimeError, lambda: torch.ones(3) + torch.ones(4),
             match="must match the size")
claim_raises("(2, 3) + (2,) raises too: right to right, 3 meets 2", RuntimeError,
             lambda: torch.ones(2, 3) + torch.ones(2), match="at non-singleton dimension 1",
             shown=True)

# %% [markdown]
# Stretching takes no memory. In the picture, dashed squares are the same values read again:

# %%
draw_shapes(**{"a, stretched": stretched_a, "b, stretched": stretched_b, "a + b": c}, values=True)

# %% [markdown]
# ### keepdim, and the mistake that a square table hides
#
# A mean over the columns gives one value a row, and loses the dimension: (n, d) becomes (n,). With
# `keepdim=True` it stays (n, 1). Each row of this square table is to get the mean 0:

# %%
table = torch.tensor([[1.0, 3.0], [2.0, 6.0]])
row_means = table.mean(dim=1)
row_means_kept = table.mean(dim=1, keepdim=True)

draw_shapes(table=table, row_means=row_means, row_means_kept=row_means_kept, values=True)

# %% jupyter={"source_hidden": true}
# A question: run this cell, then choose.
predict(
    "tensors.keepdim",
    "What does `table - row_means` do, without keepdim?",
    {
        "takes each row's mean from that row": [[-1, 1], [-2, 2]],
        "takes the means from the wrong places, without an error": [[-1, -1], [0, 2]],
        "raises an error": None,
    },
    seen=table - row_means,
    because="Aligned at the right, (2,) stands for columns. A square table hides the mistake; one of "
    "shape (3, 4) would raise.",
)
claim("keepdim leaves a dimension of length 1", row_means_kept.shape, (2, 1))
claim("with it, every row's mean becomes 0", (table - row_means_kept).mean(dim=1), [0, 0])
claim("without it, a square table gives wrong numbers and no error",
      (table - row_means).mean(dim=1), [-1, 1], shown=True)
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
# Now the dashed line of the beginning. A model that ends in `nn.Linear(d, 1)` gives predictions of
# shape (n, 1), while the targets usually come as (n,). Here every prediction is exactly right:

# %%
prediction = torch.tensor([[1.0], [2.0], [3.0]])
target = torch.tensor([1.0, 2.0, 3.0])

with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    library_loss = torch.nn.functional.mse_loss(prediction, target)

# %% jupyter={"source_hidden": true}
# A question: run this cell, then choose.
predict(
    "tensors.loss_trap",
    "What does PyTorch's own `mse_loss(prediction, target)` give, where every prediction is right?",
    {"0": False, "more than 0, with a warning": True, "an error": None},
    seen=bool(library_loss > 0),
    because="The difference is not n values but n times n: every prediction against every target. A "
    "loss written by hand says nothing at all.",
)
claim("(3, 1) - (3,) is (3, 3)", (prediction - target).shape, (3, 3))
claim("every prediction is right, and yet this loss is not 0",
      ((prediction - target) ** 2).mean() > 0, shown=True)
claim("with equal shapes it is", ((prediction.squeeze(1) - target) ** 2).mean(), 0)
claim("mse_loss warns", "different to the input size" in str(caught[0].message))
claim("and then returns the wrong number", library_loss, ((prediction - target) ** 2).mean())

# %%
draw_shapes(prediction=prediction, target=target, difference=prediction - target, values=True)

# %% [markdown]
# What does it cost? For each slope that the model of the beginning might have, the loss is computed
# both ways. Each curve has its own lowest point, and that is where training would go.

# %%
figure, losses = plt.subplots(layout="constrained")
losses.plot(slopes, right_loss, label="same shapes")
losses.plot(slopes, wrong_loss, "--", label="(n, 1) against (n,)")
losses.plot([right_best, wrong_best], [right_loss.min(), wrong_loss.min()], "o", color="0.5")
losses.set(title="The two losses", xlabel="slope", ylabel="loss")
losses.legend()
plt.show()

print(f"true slope {true_slope}, best by the right loss {right_best:.2f}, "
      f"by the wrong one {wrong_best:.2f}")
claim("the right loss finds the slope", right_best, true_slope, within=0.2)
claim("the wrong one finds a flat line: each input is held against every target",
      wrong_best, 0.0, within=0.2, shown=True)

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
# at `[i, j]` is at place
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
claim("x.T is in the memory of x", x.T.data_ptr() == x.data_ptr())
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

# %% [markdown]
# `view` gives another shape to the same memory. `reshape` does as well, where it can.

# %%
t = torch.arange(6).reshape(2, 3)

# %% jupyter={"source_hidden": true}
# A question: run this cell, then choose.
predict(
    "tensors.reshape",
    "`t.reshape(6)` shares the memory of `t`. What does `t.T.reshape(6)` do?",
    {"shares it too": True, "copies": False, "raises an error": None},
    seen=t.T.reshape(6).data_ptr() == t.data_ptr(),
    because="No stride can describe the six values of `t.T` in their order. `view` raises there; "
    "`reshape` copies silently, and what you write to the copy does not reach the original.",
)
claim("the formula finds the values", matrix.flatten()[places_in_memory(matrix.T)],
      matrix.T.flatten())
claim("a matrix is contiguous", matrix.is_contiguous())
claim("its transpose is not", not matrix.T.is_contiguous())
claim("t.view(6) is a view", t.view(6).data_ptr() == t.data_ptr())
claim_raises("t.T.view(6) raises", RuntimeError, lambda: t.T.view(6),
             match="view size is not compatible", shown=True)
claim("t.T.reshape(6) works", t.T.reshape(6), [0, 3, 1, 4, 2, 5])
claim("because it copies", t.T.reshape(6).data_ptr() != t.data_ptr())
claim("t.reshape(6) does not copy", t.reshape(6).data_ptr() == t.data_ptr())
claim("contiguous() copies into the order of reading", t.T.contiguous().view(6), t.T.reshape(6))

# %% [markdown]
# ### Slices are views, lists copy
#
# A slice can be described by a stride, so it is a view. A list of rows or a mask cannot, so the
# values are copied.

# %%
x = torch.zeros(3, 2)
x[[0]][0] = 9
lost = x.clone()

x[[0]] = 9

# %% jupyter={"source_hidden": true}
# A question: run this cell, then choose.
predict(
    "tensors.list_index",
    "`x` was all zeros. What did `x[[0]][0] = 9` change in it?",
    {"the whole first row": [[9, 9], [0, 0], [0, 0]], "one value": [[9, 0], [0, 0], [0, 0]],
     "nothing": [[0, 0], [0, 0], [0, 0]]},
    seen=lost,
    because="It is two operations: `x[[0]]` makes a copy, and the 9 is written to the copy. "
    "`x[[0]] = 9` is one operation on `x`.",
)
claim("a slice is a view", x[0:1].data_ptr() == x.data_ptr())
claim("a list of rows copies", x[[0]].data_ptr() != x.data_ptr())
claim("a mask copies", x[x > 5].data_ptr() != x.data_ptr())
claim("writing to the copy is lost", lost, torch.zeros(3, 2))
claim("assigning through the list is not", x[0], [9, 9])

# %%
draw_shapes(**{"after x[[0]][0] = 9": lost, "after x[[0]] = 9": x}, values=True)

# %% [markdown]
# ### Writing to a stretched tensor
#
# The rows of an expanded tensor are one row, read again and again. Write to one and all change.
# Some operations notice and refuse, others do not. `clone` gives each row memory of its own.

# %%
rows = torch.zeros(3).expand(2, 3)
rows[0, 0] = 7
separate = torch.zeros(3).expand(2, 3).clone()
separate[0, 0] = 7

draw_shapes(rows=rows, separate=separate, values=True)
claim("one write shows in every row", rows[:, 0], [7, 7], shown=True)
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
# ## Aside: a trap before the first import
#
# This lab is about PyTorch 2. In `pip install torch>=2.0` the shell reads `>` as "write the output
# into a file". Put quotes around it: `pip install "torch>=2.0"`. The cell shows it with a
# stand-in for pip that only repeats its arguments, so nothing is installed.

# %% jupyter={"source_hidden": true}
# The trap: run this cell.
with tempfile.TemporaryDirectory() as folder:
    stand_in = 'pip() { echo "pip was given: $@"; }; '
    subprocess.run(["sh", "-c", stand_in + "pip install torch>=2.0"], cwd=folder, check=True)
    files = [file.name for file in Path(folder).iterdir()]
    pip_was_given = (Path(folder) / "=2.0").read_text().strip()

claim("this is PyTorch 2", int(torch.__version__.split(".")[0]) >= 2)
claim("without quotes, the shell leaves a file called `=2.0`", files, ["=2.0"])
claim("and pip never sees the version", pip_was_given, "pip was given: install torch")

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
# Next: [Autograd](02_autograd.ipynb), where PyTorch takes the derivatives.
