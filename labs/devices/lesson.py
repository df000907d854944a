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
# # Devices
#
# Training a network is mostly matrix products. How fast is this machine at them? Run the two folded
# cells below with Shift+Enter: they measure it here, beside what one GPU reached.

# %% jupyter={"source_hidden": true}
# Imports: run this cell first.
import os
import statistics
import time
import warnings
import weakref
from pathlib import Path

import matplotlib.pyplot as plt
import torch
from torch.nn import functional

from labkit import best_device, check, claim, claim_raises, estimate_memory, predict, track_memory
from labkit.lessons.pictures import use_lab_style

torch.manual_seed(0)
use_lab_style()

# %% jupyter={"source_hidden": true}
# Matrix products here and on a GPU: run this cell, then compare the bars.
def product_rate(device, size, repeats=5):
    """Billion operations a second in a float32 product: the fastest of a few."""
    a = torch.randn(size, size, device=device)
    fastest = float("inf")
    for _ in range(repeats):
        start = time.perf_counter()
        a @ a
        if device.type != "cpu":
            torch.accelerator.synchronize()
        fastest = min(fastest, time.perf_counter() - start)
    return 2 * size**3 / fastest / 1e9


rates = {"this CPU, float32": product_rate(torch.device("cpu"), 768)}
if torch.accelerator.is_available():
    rates[f"this {best_device().type}, float32"] = product_rate(best_device(), 2048)
# Measured by `labkit prove` on 2026-11-27; the file is docs/results/ in labkit's repository.
rates["an H100, float32"] = 51_600
rates["an H100, bfloat16"] = 813_600

figure, axes = plt.subplots(figsize=(7, 2.6), layout="constrained")
axes.bar_label(axes.barh(list(rates), list(rates.values())), fmt="{:,.0f}", padding=4)
axes.set(xscale="log", xlabel="billion operations a second", xlim=(1, 1e7))
axes.set_title("One matrix product, measured here and on an H100 (2026-11-27)")
axes.invert_yaxis()
plt.show()

# %% [markdown]
# A tensor lives on a device, and an operation runs where its tensors live. This lab is about
# choosing that place, moving between places, and measuring what a place brings: time, rounding
# error, memory. No GPU here? Most of it still runs, with a second device that every machine has.
# Where a fact needs a GPU, the page says what a real one showed.
#
# Before most facts you are asked what you expect: choose, then look.

# %% [markdown]
# ## Choosing a device
#
# The classic way asks for CUDA and falls back to the CPU. AMD's GPUs answer to it as well (torch
# built for ROCm calls them `cuda`), Apple's and Intel's do not. `torch.accelerator` asks for
# whatever this machine has, and labkit's `best_device()` wraps that question.

# %%
if torch.cuda.is_available():
    device = torch.device("cuda")
else:
    device = torch.device("cpu")

print("torch", torch.__version__)
print("the classic way chooses:", device)
print("the accelerator here:   ", torch.accelerator.current_accelerator(check_available=True))
print("best_device() chooses:  ", best_device())

# %% jupyter={"source_hidden": true}
# What holds on every machine: run this cell.
claim("a tensor is on the CPU unless you say otherwise", torch.zeros(2).device.type, "cpu")
claim(
    "torch.cuda.is_available() is True exactly where there is a CUDA device to use",
    torch.cuda.is_available(),
    torch.cuda.device_count() > 0,
)
claim(
    "a tensor can be made on best_device(), whatever it is",
    torch.ones(2, device=best_device()).sum().item(),
    2.0,
)

# %% [markdown]
# `check_available=True` matters: without it, `current_accelerator()` says what torch was *built*
# for, so a CUDA build answers `cuda` on a machine without a GPU.

# %% jupyter={"source_hidden": true}
# A question: run this cell, then choose.
predict(
    "devices.name_only",
    'What does `torch.device("cuda:99")` do on this machine?',
    {"it gives a name, and nothing else": 99, "it raises: there is no such device": None},
    seen=torch.device("cuda:99").index,
    because="A `torch.device` is a name. Only using it fails, if the device is not there.",
)
claim("a device can be named where there is none", torch.device("cuda:99").index, 99)
claim("cuda and cuda:0 are different names", torch.device("cuda") == torch.device("cuda:0"), False,
      shown=True)
claim_raises(
    "a kind of device that torch does not know is refused",
    RuntimeError,
    lambda: torch.device("gpu"),
    match="Expected one of cpu, cuda",
)

# %% [markdown]
# `cuda` (whichever is current) is another name than `cuda:0`. So compare `.type`.
#
# ## Moving a tensor
#
# `.to(device)` moves, on any machine. `.cuda()` raises where there is no CUDA, so portable code
# uses `.to`. The product below runs on the device, because its inputs are there. `.cpu()` brings
# the result back, for NumPy, for plots and for files.

# %%
device = best_device()

x = torch.randn(1000, 1000)
x_gpu = x.to(device)

if torch.cuda.is_available():
    x_gpu = x.cuda()
else:
    claim_raises("x.cuda() raises where torch finds no CUDA", Exception, lambda: x.cuda())

y_gpu = x_gpu @ x_gpu
y_cpu = y_gpu.cpu()
print("x:", x.device, " x_gpu:", x_gpu.device, " y_gpu:", y_gpu.device, " y_cpu:", y_cpu.device)

# %%
on_cpu = x @ x
difference = ((y_cpu - on_cpu).norm() / on_cpu.norm()).item()

claim("a result is where its inputs are", y_gpu.device == x_gpu.device)
claim("the device changes the answer by rounding only", difference < 1e-3)
print(f"relative difference between {device} and cpu: {difference:.1e}")

# %% [markdown]
# ### Nothing to do
#
# The function below moves its argument to the device and adds one to what it has moved.

# %%
def add_one(values, device):
    moved = values.to(device)
    moved += 1  # whose values are these?
    return moved


original = torch.zeros(3)
add_one(original, device)
print("this machine's device:", device.type)

# %% jupyter={"source_hidden": true}
# A question: run this cell, then choose.
predict(
    "devices.nothing_to_move",
    "What does `original` hold now, on this machine?",
    {"zeros: the moved tensor was changed": 0.0, "ones: the original was changed": 3.0},
    seen=original.sum().item(),
    because="Where the tensor is already as you ask, `.to`, `.cpu` and `.cuda` give you the same "
    "tensor, not a copy. The same code changes the original on a laptop and not on a GPU.",
)
claim("x.to('cpu') is x itself when x is on the CPU", x.to("cpu") is x, shown=True)
claim("the same goes for a dtype that it has already", x.to(torch.float32) is x)
claim("copy=True always copies", x.to("cpu", copy=True) is x, False)
claim(
    "the change in place reached the original exactly where nothing had to move",
    original.sum().item() == 3.0,
    device.type == "cpu",
)

# %% [markdown]
# ## A second device that every machine has
#
# The **meta** device holds tensors with shape, dtype and strides, but without values. Large models
# are laid out on it before there is memory for them. To us it is a real second device, even on a
# laptop.

# %%
shadow = x.to("meta")
print(shadow)

# %% jupyter={"source_hidden": true}
# A question: run this cell, then choose.
def make_petabyte():
    try:
        return torch.empty(2**50, dtype=torch.uint8, device="meta").nbytes
    except RuntimeError:
        return 0


predict(
    "devices.petabyte",
    "A petabyte: what does `torch.empty(2**50, dtype=torch.uint8, device='meta')` give?",
    {"a tensor": 2**50, "an error: no machine has that memory": 0},
    seen=make_petabyte,
    because="A meta tensor has a shape, and no values. It takes no memory.",
)
petabyte = torch.empty(2**50, dtype=torch.uint8, device="meta")
claim(
    "moving gives a new tensor and leaves the old one where it was",
    (x.device.type, shadow.device.type),
    ("cpu", "meta"),
)
claim("on meta, only the shape of an answer is computed", (shadow @ shadow[:, :3]).shape, (1000, 3))
claim("so a meta tensor can be larger than any memory", petabyte.nbytes, 2**50)
claim_raises(
    "what has no values cannot come back from meta",
    NotImplementedError,
    lambda: shadow.cpu(),
    match="Cannot copy out of meta tensor",
    shown=True,
)

# %% [markdown]
# ### Modules move in place, tensors do not
#
# `tensor.to(...)` returns the moved tensor, and you must keep what it returns. `module.to(...)`
# moves the module itself.

# %%
class Scale(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.ones(3))
        self.register_buffer("mean", torch.zeros(3))
        self.plain = torch.zeros(3)


scale = Scale()
moved_scale = scale.to("meta")

# %% jupyter={"source_hidden": true}
# A question: run this cell, then choose.
predict(
    "devices.module_parts",
    "After `scale.to('meta')`, which of its three tensors are on meta?",
    {
        "all three": ("meta", "meta", "meta"),
        "weight and mean": ("meta", "meta", "cpu"),
        "weight only": ("meta", "cpu", "cpu"),
    },
    seen=(scale.weight.device.type, scale.mean.device.type, scale.plain.device.type),
    because="What moves is what the module knows about: parameters and buffers. A plain tensor in an "
    "attribute stays behind.",
)
claim("module.to() returns the module itself", moved_scale is scale, shown=True)
claim(
    "its parameter and its buffer moved, the plain attribute did not",
    (scale.weight.device.type, scale.mean.device.type, scale.plain.device.type),
    ("meta", "meta", "cpu"),
)

# %% [markdown]
# Does an optimizer that was made before the move still hold the right parameters? It does where
# the `Parameter` objects stay and only what is in them changes.

# %% jupyter={"source_hidden": true}
# A question: run this cell, then choose.
def keeps_its_weight(target):
    layer = torch.nn.Linear(3, 2)
    weight = layer.weight
    layer.to(target)
    return layer.weight is weight


predict(
    "devices.same_parameters",
    "An optimizer holds a layer's `Parameter` objects. Which move keeps them?",
    {
        "to another dtype, and to meta": (True, True),
        "to another dtype only": (True, False),
        "neither": (False, False),
    },
    seen=(keeps_its_weight(torch.float64), keeps_its_weight("meta")),
    because="For a change of dtype, and for a move to CUDA, only what is in them changes. Make the "
    "optimizer after the move, and both cases are right.",
)
claim("a change of dtype keeps the Parameter objects", keeps_its_weight(torch.float64))
claim("a move to meta makes new ones", keeps_its_weight("meta"), False)
claim("a move to CUDA keeps them", lambda: keeps_its_weight("cuda"), needs="cuda")

# %% [markdown]
# ### Better than moving: made in the right place
#
# Say `device=` when you make a tensor. Many programs make it first and move it then, as in
# `torch.zeros(3, requires_grad=True).to("cuda")`.

# %%
w = torch.zeros(3, requires_grad=True)
with torch.device("meta"):
    inside = torch.ones(4)
outside = torch.ones(4)

# %% jupyter={"source_hidden": true}
# A question: run this cell, then choose.
predict(
    "devices.moved_leaf",
    "`w` requires grad. Is `w.to('meta')` a leaf, with a `.grad` that backward fills?",
    {"yes": True, "no": False},
    seen=w.to("meta").is_leaf,
    because="A move is an operation in the graph, so a moved tensor is a result: its `.grad` stays "
    "empty, and an optimizer refuses it. On the CPU, where nothing moves, the mistake goes unnoticed.",
)
claim("a moved tensor is not a leaf", w.to("meta").is_leaf, False)
claim_raises("an optimizer refuses a moved tensor", ValueError,
             lambda: torch.optim.SGD([w.to("meta")], lr=0.1), match="non-leaf", shown=True)
claim("where nothing moves, it stays one", w.to("cpu").is_leaf)
claim("made in place, it is a leaf", torch.zeros(3, device=device, requires_grad=True).is_leaf)
claim("zeros_like goes where its example is", torch.zeros_like(shadow).device.type, "meta")
claim(
    "`with torch.device(...)` sets the default for a block",
    (inside.device.type, outside.device.type),
    ("meta", "cpu"),
)

# %% [markdown]
# ## Exercise: add each row's number
#
# `add_positions(x)` takes a tensor of shape (n, d), and returns a new one with 0 added to its first
# row, 1 to the second, and so on. The answer has the shape, the dtype (a float or an integer) and
# *the device* of `x`, and `x` stays as it is. `[[5., 5.], [5., 5.]]` gives `[[5., 5.], [6., 6.]]`.

# %%
def add_positions(x: torch.Tensor) -> torch.Tensor:
    """Returns x with each row's number added to the row, shape (n, d), where x is."""
    ### BEGIN SOLUTION
    positions = torch.arange(x.shape[0], dtype=x.dtype, device=x.device)
    return x + positions[:, None]
    ### END SOLUTION

# %%
check("devices.add_positions", add_positions)

# %% [markdown]
# ## When devices mix
#
# Torch never moves a tensor behind your back: a hidden copy would be slow, and you would not see
# why. So an operation on two devices raises. There are two exceptions.

# %%
number = torch.tensor(2.0)
rows = torch.tensor([0, 2])

# %% jupyter={"source_hidden": true}
# A question: run this cell, then choose.
def raising(**calls):
    """The names of the calls that raise."""
    names = []
    for name, call in calls.items():
        try:
            call()
        except RuntimeError:
            names.append(name)
    return names


predict(
    "devices.mixed",
    "`x`, `number` and `rows` are on the CPU, `shadow` on meta. Which raises?",
    {
        "only x + shadow": ["sum"],
        "x + shadow, and shadow * number": ["sum", "product"],
        "x + shadow, shadow * number and shadow[rows]": ["sum", "product", "rows"],
    },
    seen=raising(
        sum=lambda: x + shadow, product=lambda: shadow * number, rows=lambda: shadow[rows]
    ),
    because="A CPU tensor without dimensions counts as a number, and indices may stay on the CPU.",
)
claim_raises(
    "a CPU tensor and a meta tensor do not add",
    RuntimeError,
    lambda: x + shadow,
    match="is not on the expected device",
    shown=True,
)
claim_raises(
    "a layer here and its input there do not meet",
    RuntimeError,
    lambda: torch.nn.Linear(1000, 2)(shadow),
    match="is not on the expected device",
)
claim_raises(
    "nor do CPU and CUDA",
    RuntimeError,
    lambda: torch.ones(2) + torch.ones(2, device="cuda"),
    match="Expected all tensors to be on the same device",
    needs="cuda",
)
claim_raises(
    "NumPy knows the CPU's memory only",
    TypeError,
    lambda: shadow.numpy(),
    match="Use Tensor.cpu() to copy the tensor to host memory first",
)
claim_raises(
    "it says the same of a CUDA tensor",
    TypeError,
    lambda: torch.ones(2, device="cuda").numpy(),
    match="Use Tensor.cpu() to copy the tensor to host memory first",
    needs="cuda",
)
claim("a CPU tensor without dimensions goes anywhere", (shadow * number).device.type, "meta")
claim("CPU indices may pick from a tensor elsewhere", shadow[rows].shape, (2, 1000))
claim_raises(
    "a number from elsewhere does not come to the CPU",
    RuntimeError,
    lambda: x * number.to("meta"),
    match="is not on the expected device",
)
claim(
    "with CUDA it is the same: numbers and indices may come from the CPU",
    lambda: (torch.ones(3, device="cuda") * number)[rows].device.type,
    "cuda",
    needs="cuda",
)

# %% [markdown]
# Neither exception works the other way round. With CUDA the error reads `Expected all tensors to be
# on the same device`. Read it as a question: which of my tensors was made without `device=`, or not
# moved?

# %% [markdown]
# The usual culprits, in the order in which people meet them:
#
# | what raised | what was forgotten |
# |---|---|
# | the first layer | the batch was not moved, or the model was not |
# | the loss | the labels were not moved, or the loss's own class weights |
# | an addition in `forward` | a tensor made there without `device=x.device` |
# | an operation on an attribute | a plain tensor that should be a buffer |
#
# ## Exercise: move a whole batch
#
# Batches come as dictionaries, lists and tuples, nested, with strings and numbers among the
# tensors. `move_batch(batch, device)` returns the same structure (a dict stays a dict, a list a
# list, a tuple a plain tuple) with every tensor in it on `device` and everything else as it was.
# The batch that was given is not changed. `{"x": tensor, "name": "a"}` gives `{"x": tensor on
# device, "name": "a"}`.

# %%
def move_batch(batch, device: torch.device):
    """Returns the batch with all tensors in it, however deep, on the device."""
    ### BEGIN SOLUTION
    if isinstance(batch, torch.Tensor):
        return batch.to(device)
    if isinstance(batch, dict):
        return {key: move_batch(value, device) for key, value in batch.items()}
    if isinstance(batch, (list, tuple)):
        return type(batch)(move_batch(value, device) for value in batch)
    return batch
    ### END SOLUTION

# %%
check("devices.move_batch", move_batch)

# %% [markdown]
# ## The call comes back, the work goes on
#
# A CUDA operation is put in a queue, and the call returns at once: Python runs ahead while the GPU
# works. So a naive stopwatch measures how long it takes to *ask*. `torch.accelerator.synchronize()`
# waits until the queue is empty. On the CPU the work is done when the call comes back.

# %%
def wait_for(device):
    """Waits until the device has done all it was asked; the CPU has done it already."""
    if device.type != "cpu":
        torch.accelerator.synchronize()

# %% jupyter={"source_hidden": true}
# Twenty products, asked for and done: run this cell.
size = 512 if device.type == "cpu" else 4096
a = torch.randn(size, size, device=device)
a @ a
wait_for(device)

start = time.perf_counter()
for _ in range(20):
    a @ a
asked = time.perf_counter() - start
wait_for(device)
finished = time.perf_counter() - start

print(f"20 products of {size} x {size} on {device}")
print(f"  the calls had come back after {asked * 1e3:8.2f} ms")
print(f"  the work was done after       {finished * 1e3:8.2f} ms")
if device.type == "cpu":
    claim("on the CPU there is next to nothing left to wait for", finished - asked < asked / 2)
claim(
    "on CUDA the calls come back long before the work is done",
    lambda: asked < finished / 2,
    needs="cuda",
)

# %% [markdown]
# Some innocent calls wait too, because Python needs the value: `.item()`, `.cpu()`, `print(t)`,
# `if t > 0`, `nonzero`. With one of them in the training loop, Python no longer runs ahead.
# `torch.cuda.set_sync_debug_mode("error")` makes such calls raise, to find them.

# %% jupyter={"source_hidden": true}
# A call that waits, on a CUDA device: run this cell.
def read_the_sum():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the switch announces itself as a prototype
        torch.cuda.set_sync_debug_mode("error")
    try:
        return a.sum().item()
    finally:
        torch.cuda.set_sync_debug_mode("default")


claim_raises(
    ".item() makes Python wait for the GPU",
    RuntimeError,
    read_the_sum,
    match="called a synchronizing CUDA operation",
    needs="cuda",
)

# %% [markdown]
# ### Optional: events, a stopwatch on the device
#
# An event is a mark in the queue. The device itself tells the time between two of them, without
# what Python does meanwhile. `elapsed_time` is in *milliseconds*, and the second event must have
# happened before you ask.

# %%
def time_with_events(run):
    start = torch.cuda.Event(enable_timing=True)
    stop = torch.cuda.Event(enable_timing=True)
    start.record()
    run()
    stop.record()
    stop.synchronize()
    return start.elapsed_time(stop) / 1000

# %% jupyter={"source_hidden": true}
# One product by two clocks, on a CUDA device: run this cell.
if torch.cuda.is_available():
    start = time.perf_counter()
    device_seconds = time_with_events(lambda: a @ a)
    wall_seconds = time.perf_counter() - start
    print(f"one product: {device_seconds * 1e3:.3f} ms by the device's clock,")
    print(f"{wall_seconds * 1e3:.3f} ms by the wall's")
else:
    print("skipped: with CUDA, the time of one product by the device's clock and by the wall's")

claim(
    "the device's own time is never more than the wall clock's around it",
    lambda: device_seconds <= wall_seconds,
    needs="cuda",
)

# %% [markdown]
# ## Warm up, repeat, take the median
#
# The first calls of anything are slow: libraries load, memory is fetched, clocks rise. Later calls
# are interrupted now and then. So call it a few times and forget those, then measure many, wait
# before *each* reading of the clock, and report the median.

# %%
def time_calls(run, repeats):
    """Seconds of each call, the first ones included."""
    seconds = []
    for _ in range(repeats):
        wait_for(device)
        start = time.perf_counter()
        run()
        wait_for(device)
        seconds.append(time.perf_counter() - start)
    return seconds

# %% jupyter={"source_hidden": true}
# The time of 300 calls: run this cell.
picture = torch.randn(300, 300, device=device)
seconds = time_calls(lambda: torch.fft.fft2(picture), 300)
warm = seconds[20:]
median, mean = statistics.median(warm), statistics.mean(warm)

figure, (left, right) = plt.subplots(1, 2, figsize=(10, 3.6), layout="constrained")
left.semilogy(range(1, 301), [s * 1e3 for s in seconds], ".")
left.axvline(20.5, linestyle=":", color="C4", label="warm-up ends")
left.set(title="Every call, in order", xlabel="call", ylabel="milliseconds")
left.legend()
right.hist([s * 1e3 for s in warm], bins=40, color="C0", alpha=0.75)
right.axvline(median * 1e3, color="C1", label=f"median {median * 1e3:.3f} ms")
right.axvline(mean * 1e3, color="C2", linestyle="--", label=f"mean {mean * 1e3:.3f} ms")
right.set(title="After the warm-up", xlabel="milliseconds", ylabel="calls")
right.legend()
plt.show()
print(f"a 2-d Fourier transform on {device}: the first call took {seconds[0] / median:.1f} times")
print(f"the median, and the slowest later one {max(warm) / median:.1f} times the median")

# %% [markdown]
# Why the median? Let one more call take a whole second, as when the machine is busy elsewhere:

# %%
disturbed = warm + [1.0]
moved_mean = statistics.mean(disturbed) - mean
moved_median = statistics.median(disturbed) - median
print(f"the mean moved by {moved_mean * 1e3:.4f} ms, the median by {moved_median * 1e3:.4f} ms")

claim("one slow call moves the mean more than the median", moved_mean > abs(moved_median))

# %% [markdown]
# ## Exercise: an honest stopwatch
#
# `time_median(run, synchronize, clock, warmups, repeats)` returns the median time of one `run()`,
# its work included. It calls `run()` `warmups` times without counting, then `repeats` times with
# the clock. `run()` may come back before its work is done; `synchronize()` waits for that;
# `clock()` gives the time in seconds. The check plays a device with a clock of its own, so it can
# tell what you measured. Afterwards it is yours to use: `time_median(lambda: a @ a,
# torch.cuda.synchronize, time.perf_counter, 3, 20)`.

# %%
def time_median(run, synchronize, clock, warmups: int, repeats: int) -> float:
    """Returns the median seconds of run() with its work done, after the warm-up."""
    ### BEGIN SOLUTION
    for _ in range(warmups):
        run()
    seconds = []
    for _ in range(repeats):
        synchronize()
        start = clock()
        run()
        synchronize()
        seconds.append(clock() - start)
    return statistics.median(seconds)
    ### END SOLUTION

# %%
check("devices.time_median", time_median)

# %% [markdown]
# ## What a transfer costs
#
# Each copy has a fixed price, however small it is, and a rate that only large copies reach. So move
# few large tensors rather than many small ones. The GPU can fetch on its own only from **pinned**
# memory, which the operating system leaves in place. Ordinary memory goes through a pinned buffer
# first, and the call waits for it. (Without a GPU, the plot shows copies within the CPU's memory.)

# %% jupyter={"source_hidden": true}
# The rate of copies of many sizes: run this cell.
sizes = [2**power for power in range(8, 27, 2)]


def copy_rates(pinned):
    """Gigabytes a second from the CPU's memory to the device, for each of the sizes."""
    rates = []
    for size in sizes:
        source = torch.ones(size, dtype=torch.uint8, pin_memory=pinned)
        target = torch.empty(size, dtype=torch.uint8, device=device)
        seconds = time_calls(lambda: target.copy_(source, non_blocking=pinned), 15)[5:]
        rates.append(size / statistics.median(seconds) / 1e9)
    return rates


rates = {"ordinary memory": copy_rates(pinned=False)}
if torch.cuda.is_available():
    rates["pinned memory"] = copy_rates(pinned=True)

figure, axes = plt.subplots()
for name, values in rates.items():
    axes.loglog(sizes, values, "o-", label=name)
title = "Copies within the CPU's memory" if device.type == "cpu" else f"Copies to {device}"
axes.set(title=title, xlabel="bytes in one copy", ylabel="GB per second")
axes.legend()
plt.show()

claim(
    "small copies are far from the best rate",
    rates["ordinary memory"][0] < max(rates["ordinary memory"]) / 2,
)

claim("a tensor is not pinned unless you ask", torch.ones(3).is_pinned(), False)
claim(
    "a pinned tensor is a CPU tensor still",
    lambda: torch.ones(3, pin_memory=True).device.type,
    "cpu",
    needs="cuda",
)
if not torch.accelerator.is_available():
    claim_raises("without an accelerator nothing can be pinned", RuntimeError, x.pin_memory)

# %% [markdown]
# In `x.pin_memory().to(device, non_blocking=True)`, a common idiom, `pin_memory()` copies `x` before
# the transfer even starts. Pin once what is sent often, or let the `DataLoader` do it in its own
# thread; then measure whether it helped.

# %% jupyter={"source_hidden": true}
# Three ways to send one batch, on a CUDA device: run this cell.
if torch.cuda.is_available():
    batch = torch.randn(4_000_000)
    pinned = batch.pin_memory()
    ways = {
        "batch.to(cuda)": lambda: batch.to("cuda"),
        "batch.pin_memory().to(cuda, non_blocking)": lambda: batch.pin_memory().to(
            "cuda", non_blocking=True
        ),
        "pinned before, .to(cuda, non_blocking)": lambda: pinned.to("cuda", non_blocking=True),
    }
    for name, way in ways.items():
        print(f"{name:42} {statistics.median(time_calls(way, 25)[5:]) * 1e3:7.2f} ms")
else:
    print("skipped: with CUDA, three ways to send one batch, with the time that each takes here")

# %% [markdown]
# ### Optional: non_blocking is a promise that you make
#
# With `non_blocking=True` and a pinned source, the call returns while the copy is still to come.
# You must not change the source until then, and torch does not check it. Nor is the way back safer:
# after `y.to("cpu", non_blocking=True)`, wait before you read. In the next cell, the GPU is kept
# busy, and Python overwrites the source while the copy waits in the queue.

# %% jupyter={"source_hidden": true}
# A source that is overwritten too early, on a CUDA device: run this cell.
def send_and_overwrite(wait):
    source = torch.ones(1_000_000, pin_memory=True)
    arrived = torch.full((1_000_000,), -1.0, device="cuda")
    busy = torch.randn(4096, 4096, device="cuda")
    busy @ busy
    torch.cuda.synchronize()
    for _ in range(50):
        busy @ busy
    arrived.copy_(source, non_blocking=True)
    if wait:
        torch.cuda.synchronize()
    source.zero_()
    torch.cuda.synchronize()
    return arrived.mean().item()


claim(
    "ones were sent, and overwritten too early: zeros arrive",
    lambda: send_and_overwrite(wait=False),
    0.0,
    needs="cuda",
)
claim("with a wait the ones arrive", lambda: send_and_overwrite(wait=True), 1.0, needs="cuda")
claim(
    "non_blocking copies nothing where there is nothing to move",
    x.to("cpu", non_blocking=True) is x,
)

# %% [markdown]
# ## Precision: fewer bits
#
# A float's bits are shared between range (the exponent) and fineness (the mantissa). `eps` is the
# step from 1 to the next number. bfloat16 keeps the range of float32 and gives up fineness; float16
# is finer, and overflows soon.

# %%
print(f"{'dtype':16}{'bytes':>6}{'eps':>12}{'largest':>12}")
for dtype in (torch.float64, torch.float32, torch.bfloat16, torch.float16):
    facts = torch.finfo(dtype)
    print(f"{str(dtype):16}{facts.bits // 8:6}{facts.eps:12.2g}{facts.max:12.2g}")

# %%
large = torch.tensor(70_000.0)
total = torch.tensor(0.0, dtype=torch.bfloat16)
for _ in range(1000):
    total += 1
ones = torch.ones(1000, dtype=torch.bfloat16)

# %% jupyter={"source_hidden": true}
# A question: run this cell, then type a number.
predict(
    "devices.stuck_total",
    "A thousand ones are added to a bfloat16 total, one at a time. What is the total?",
    seen=total.item(),
    because="From 256 on the next bfloat16 is 258: adding 1 changes nothing. Inside one `sum()` torch "
    "adds in float32 and rounds once at the end; it is your running totals that get stuck.",
)
claim("a thousand ones, added one at a time in bfloat16, make 256", total.item(), 256.0)
claim("because there 256 + 1 is 256", (torch.tensor(256.0).bfloat16() + 1).item(), 256.0)
claim("ones.sum() makes a thousand", ones.sum().item(), 1000.0)
claim("70,000 is too large for float16", large.to(torch.float16).isinf().item(), shown=True)
claim("it is not for bfloat16", large.to(torch.bfloat16).isfinite().item())
claim("but it is rounded", large.to(torch.bfloat16).item() != 70_000)

# %% [markdown]
# ### Error and speed of a product
#
# The next cell multiplies the same random matrices in each dtype. The error is relative to float64:
# $\|C - C_{64}\| / \|C_{64}\|$. The speed is what it is *here*, on one CPU thread or on the GPU: a
# dtype is fast only where the hardware has circuits for it.
#
# **TF32** is a way for NVIDIA GPUs (Ampere and newer) to multiply float32 matrices fast: inputs are
# rounded to ten bits of mantissa, while the tensors stay float32. It is off for matrix products
# until you call `torch.set_float32_matmul_precision("high")`.

# %% jupyter={"source_hidden": true}
# Error and speed in each dtype: run this cell.
kinds = {
    "float32": (torch.float32, "highest"),
    "float16": (torch.float16, "highest"),
    "bfloat16": (torch.bfloat16, "highest"),
}
if torch.cuda.is_available():
    kinds["TF32"] = (torch.float32, "high")


def with_precision(precision, run):
    """What run() gives under this setting, which is put back afterwards."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision(precision)
    try:
        return run()
    finally:
        torch.set_float32_matmul_precision(before)


def product_error(size, dtype):
    generator = torch.Generator().manual_seed(size)
    a, b = torch.randn(2, size, size, generator=generator, dtype=torch.float64)
    exact = a @ b
    product = a.to(dtype).to(device) @ b.to(dtype).to(device)
    return ((product.cpu().double() - exact).norm() / exact.norm()).item()


def product_seconds(size):
    """Seconds of 25 products of each kind, taken in turns after five rounds of warm-up."""
    factors = {name: torch.randn(size, size, device=device).to(kinds[name][0]) for name in kinds}
    seconds = {name: [] for name in kinds}
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    for _ in range(30):
        for name, a in factors.items():
            seconds[name] += with_precision(kinds[name][1], lambda: time_calls(lambda: a @ a, 1))
    torch.set_num_threads(threads)
    return {name: values[5:] for name, values in seconds.items()}


def is_scattered(values):
    """True if the middle half of the values spreads over more than half of the median."""
    low, middle, high = statistics.quantiles(values, n=4)
    return high - low > middle / 2

matrix_sizes = (16, 32, 64, 128, 256)
timed_size = 256 if device.type == "cpu" else 4096
errors = {}
for name, (dtype, precision) in kinds.items():
    errors[name] = with_precision(
        precision, lambda: [product_error(size, dtype) for size in matrix_sizes]
    )
seconds = product_seconds(timed_size)
milliseconds = {name: statistics.median(values) * 1e3 for name, values in seconds.items()}
busy = any(map(is_scattered, seconds.values()))

figure, (left, right) = plt.subplots(1, 2, figsize=(10, 3.8), layout="constrained")
for index, name in enumerate(kinds):
    left.loglog(matrix_sizes, errors[name], "o-", color=f"C{index}", label=name)
    bar = right.bar(name, milliseconds[name], color=f"C{index}")
    right.bar_label(bar, fmt="%.3g ms")
left.set(title="Error against float64", xlabel="matrix size", ylabel="relative error")
left.set_xticks(matrix_sizes, matrix_sizes)
left.minorticks_off()
left.legend()
right.set(title=f"One product of {timed_size} x {timed_size} on {device}", ylabel="milliseconds")
right.set_yscale("log")
right.margins(y=0.2)
plt.show()

at_last = {name: values[-1] for name, values in errors.items()}
for name, value in at_last.items():
    ratio = milliseconds["float32"] / milliseconds[name]
    speed = "too busy here to tell" if busy else f"{ratio:.3g} times the speed of float32 here"
    print(f"{name:9} error {value:.1e}   {speed}")

claim(
    "float16 is finer than bfloat16, and float32 than both",
    at_last["float32"] < at_last["float16"] < at_last["bfloat16"],
)
claim(
    "each error is of the size of the dtype's eps, within a factor of ten",
    all(
        0.1 < at_last[name] / torch.finfo(kinds[name][0]).eps < 10
        for name in ("float32", "float16", "bfloat16")
    ),
)
claim(
    "TF32 costs accuracy where the GPU has it: its error is far above float32's",
    lambda: (
        torch.cuda.get_device_capability() < (8, 0) or at_last["TF32"] > 10 * at_last["float32"]
    ),
    needs="cuda",
)

# %% [markdown]
# Newer torch has one name for the setting in each library,
# `torch.backends.<library>.<operation>.fp32_precision`. Keep to one interface: after a change
# through the new name, reading the older `allow_tf32` flag raises.

# %% jupyter={"source_hidden": true}
# A question: run this cell, then choose.
def read_matmul_precision():
    return torch.backends.cuda.matmul.fp32_precision


predict(
    "devices.tf32",
    "Where may TF32 be used by default?",
    {
        "nowhere": ("ieee", "ieee"),
        "in cuDNN's convolutions": ("ieee", "tf32"),
        "in matrix products and convolutions": ("tf32", "tf32"),
    },
    seen=(
        with_precision("highest", read_matmul_precision),
        torch.backends.cudnn.conv.fp32_precision,
    ),
    because="Convolutions are less exact than matrix products by default, on a GPU that has TF32.",
)
claim("'high' allows TF32", with_precision("high", read_matmul_precision), "tf32")
claim("'highest' does not", with_precision("highest", read_matmul_precision), "ieee")
claim(
    "cuDNN's convolutions may use TF32 without being asked",
    torch.backends.cudnn.conv.fp32_precision,
    "tf32",
)

# %% [markdown]
# ### autocast: low where it is safe
#
# Inside `torch.autocast` each operation gets the dtype that suits it.

# %%
model = torch.nn.Linear(16, 4, device=device)
inputs = torch.randn(8, 16, device=device)
target = torch.zeros(8, 4, device=device)

with torch.autocast(device.type, dtype=torch.bfloat16):
    output = model(inputs)
    loss = functional.mse_loss(output, target)
loss.backward()

# %% jupyter={"source_hidden": true}
# A question: run this cell, then choose.
predict(
    "devices.autocast",
    "Which dtypes do `output`, `loss` and `model.weight.grad` have?",
    {
        "bfloat16, bfloat16, bfloat16": (torch.bfloat16, torch.bfloat16, torch.bfloat16),
        "bfloat16, float32, float32": (torch.bfloat16, torch.float32, torch.float32),
        "bfloat16, float32, bfloat16": (torch.bfloat16, torch.float32, torch.bfloat16),
    },
    seen=(output.dtype, loss.dtype, model.weight.grad.dtype),
    because="Products are computed in bfloat16, losses in float32. Parameters and their gradients stay "
    "float32.",
)
claim("autocast computes the layer in bfloat16", output.dtype, torch.bfloat16)
claim("the loss in float32", loss.dtype, torch.float32)
claim(
    "and leaves weight and gradient in float32",
    (model.weight.dtype, model.weight.grad.dtype),
    (torch.float32, torch.float32),
)

# %% [markdown]
# ## Exercise: a mean that does not get stuck
#
# `mean_of_batches(batches)` takes a list of vectors of one low-precision dtype (bfloat16 or
# float16), of different lengths, all on one device. It returns the mean over *all values*, as a
# float32 tensor of shape `()`, right to five digits. Two batches `[1., 2.]` and `[6.]` give `3.`.

# %%
def mean_of_batches(batches: list[torch.Tensor]) -> torch.Tensor:
    """Returns the mean over all values of all batches, float32, shape ()."""
    ### BEGIN SOLUTION
    total = sum(batch.sum(dtype=torch.float32) for batch in batches)
    return total / sum(batch.numel() for batch in batches)
    ### END SOLUTION

# %%
check("devices.mean_of_batches", mean_of_batches)

# %% [markdown]
# ## Where the memory is
#
# A tensor is a view of a storage, and the storage is what takes memory. On CUDA torch counts three
# things: **allocated** (storages that are alive), **reserved** (what torch has taken from the
# driver, its cache included) and the **peak** of each. On the CPU torch counts nothing, so we ask
# Linux how much of this process is in memory.

# %% jupyter={"source_hidden": true}
# Reads the memory in use: run this cell.
MIB = 2**20
STATM = Path("/proc/self/statm")


def read_memory():
    """Bytes by name: the GPU's two counts, else what of this process is in memory, else nothing."""
    if torch.cuda.is_available():
        return {
            "allocated": torch.cuda.memory_allocated(),
            "reserved": torch.cuda.memory_reserved(),
        }
    if STATM.exists():
        return {"in memory": int(STATM.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")}
    return {}

# %%
memory_device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
torch.cuda.empty_cache()  # a clean start; does nothing without CUDA
before = read_memory()
steps = {}


def note_step(name):
    steps[name] = {key: value - before[key] for key, value in read_memory().items()}


big = torch.empty(256 * MIB, dtype=torch.uint8, device=memory_device)
note_step("empty")
big.fill_(1)
note_step("fill_")
small = big[:1]
del big
note_step("view kept")
storage_of_view = small.untyped_storage().nbytes()
small = small.clone()
note_step("clone kept")
torch.cuda.empty_cache()
note_step("empty_cache")

# %% jupyter={"source_hidden": true}
# A question: run this cell, then choose.
predict(
    "devices.view_holds",
    "`small` is one byte of the 256 MiB, and `del big` has run. How much memory does `small` hold?",
    {"1 byte": 1, "256 MiB": 256 * MIB},
    seen=storage_of_view,
    because="A view of one value keeps the whole storage. A clone has a storage of its own.",
)
claim("a view of one byte holds the whole storage", storage_of_view, 256 * MIB)
claim("a clone of it has a storage of its own", small.untyped_storage().nbytes() < MIB)

if before:
    key = "allocated" if torch.cuda.is_available() else "in memory"
    claim(f"with the view alive, the 256 MiB stay {key}", steps["view kept"][key] > 200 * MIB)
    claim("with the clone they go", steps["clone kept"][key] < 56 * MIB)
if "in memory" in before:
    claim(
        "on the CPU, torch.empty takes addresses; memory comes with the first write",
        steps["empty"]["in memory"] < 56 * MIB and steps["fill_"]["in memory"] > 200 * MIB,
        shown=True,
    )
claim(
    "on CUDA, torch.empty takes the memory at once",
    lambda: steps["empty"]["allocated"] > 200 * MIB,
    needs="cuda",
)
claim(
    "freed GPU memory stays in torch's cache: reserved, not allocated",
    lambda: steps["clone kept"]["reserved"] >= 256 * MIB,
    needs="cuda",
)
claim(
    "empty_cache gives it back to the driver",
    lambda: steps["empty_cache"]["reserved"] < 56 * MIB,
    needs="cuda",
)

# %% jupyter={"source_hidden": true}
# The memory after each step: run this cell.
figure, axes = plt.subplots()
for index, key in enumerate(before):
    places = [place + 0.4 * index for place in range(len(steps))]
    axes.bar(places, [step[key] / MIB for step in steps.values()], width=0.36, label=key)
axes.set_xticks([place + 0.2 * (len(before) - 1) for place in range(len(steps))], list(steps))
axes.set(title=f"256 MiB on {memory_device}, step by step", ylabel="MiB above the start")
if before:
    axes.legend()
plt.show()

# %% [markdown]
# ### The peak is what must fit
#
# Between two lines a temporary can come and go. `torch.cuda.reset_peak_memory_stats()` begins a new
# measurement, and `max_memory_allocated()` reads the highest value since. Without CUDA the result
# is 0: *not measured*, not "none".

# %% jupyter={"source_hidden": true}
# The peak of two ways to compute: run this cell.
def peak_of(change):
    """MiB that change(x) needed above what was there before it, for an x of 64 MiB."""
    x = torch.ones(64 * MIB // 4, device="cuda")
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    change(x)
    return (torch.cuda.max_memory_allocated() - before) // MIB


claim(
    "(x * 2 + 1).sum() needs two more of x at its peak",
    lambda: peak_of(lambda x: (x * 2 + 1).sum()),
    128,
    needs="cuda",
)
claim(
    "in place it needs next to nothing",
    lambda: peak_of(lambda x: x.mul_(2).add_(1).sum()) < 8,
    needs="cuda",
)
if not torch.cuda.is_available():
    claim("without CUDA, allocated is 0: not measured", torch.cuda.memory_allocated(), 0)
if torch.accelerator.current_accelerator() is None:  # no accelerator in this build
    claim_raises(
        "torch.accelerator says that it cannot know",
        RuntimeError,
        torch.accelerator.memory_allocated,
    )

# %% [markdown]
# ### Ask before: will it fit?
#
# A peak can be known without the memory that it takes: torch's *fake* tensors have shapes and
# storages, and no bytes. labkit's `estimate_memory` runs a training step on them and counts what
# each storage is for. `track_memory` measures the real step, here on the CPU.

# %%
def train_step(model, inputs):
    model.zero_grad()
    model(inputs).square().mean().backward()


model = torch.nn.Sequential(
    torch.nn.Linear(512, 2048), torch.nn.GELU(), torch.nn.Linear(2048, 512)
)
estimates = {
    rows: estimate_memory(train_step, model, torch.randn(rows, 512)) for rows in (256, 512)
}
inputs = torch.randn(256, 512)
train_step(model, inputs)  # the first step makes the gradients that later ones write into
with track_memory("cpu", kinds=True) as tracked:
    train_step(model, inputs)

measured = sum(tracked.kinds.values())

# %% jupyter={"source_hidden": true}
# A question: run this cell, then choose.
predict(
    "devices.twice_the_rows",
    "With 512 rows instead of 256, what doubles?",
    {
        "activations, gradients and parameters": (2.0, 2.0),
        "the activations only": (2.0, 1.0),
        "nothing": (1.0, 1.0),
    },
    seen=tuple(
        round(estimates[512].kinds[kind] / estimates[256].kinds[kind], 1)
        for kind in ("activations", "parameters")
    ),
    because="Parameters, and so their gradients, do not depend on the batch. This is why a smaller "
    "batch mends an out-of-memory error, and why it helps less for a model of large layers.",
)
claim(
    "the estimate is within 2 % of the measured peak",
    abs(estimates[256].peak_bytes - measured) < 0.02 * measured,
)
claim(
    "twice the rows keep twice the activations",
    round(estimates[512].kinds["activations"] / estimates[256].kinds["activations"], 2),
    2.0,
)
claim(
    "and not a byte more of parameters",
    estimates[512].kinds["parameters"],
    tracked.kinds["parameters"],
)
estimates[256]

# %% [markdown]
# ## Out of memory, and back
#
# On CUDA, asking for more than is free raises `torch.OutOfMemoryError`, after torch has emptied its
# own cache and tried again. The process lives on and so does the GPU.

# %% jupyter={"source_hidden": true}
# A question: run this cell, then choose.
def ask_for_twice_the_card():
    _, total_bytes = torch.cuda.mem_get_info()
    return torch.empty(2 * total_bytes, dtype=torch.uint8, device="cuda")


def ask_for_petabyte():
    try:
        torch.empty(2**50, dtype=torch.uint8)
    except RuntimeError as error:
        return type(error).__name__
    return "granted"


predict(
    "devices.cpu_petabyte",
    "A petabyte on the CPU: what does `torch.empty(2**50, dtype=torch.uint8)` do?",
    {
        "it raises torch.OutOfMemoryError": "OutOfMemoryError",
        "it raises a plain RuntimeError": "RuntimeError",
        "it gives a tensor": "granted",
    },
    seen=ask_for_petabyte,
    because="Code that catches only `OutOfMemoryError` misses it. A merely too large request is granted, "
    "and when the pages are written Linux may end the process without a word to Python.",
)
claim_raises(
    "the CPU refuses a petabyte",
    RuntimeError,
    lambda: torch.empty(2**50, dtype=torch.uint8),
    match="DefaultCPUAllocator",
)
claim("out of memory is one kind of RuntimeError", issubclass(torch.OutOfMemoryError, RuntimeError))
claim_raises(
    "the GPU refuses twice what it has",
    torch.OutOfMemoryError,
    ask_for_twice_the_card,
    match="out of memory",
    needs="cuda",
)
claim(
    "and works on as if nothing had been",
    lambda: torch.ones(3, device="cuda").sum().item(),
    3.0,
    needs="cuda",
)

# %% [markdown]
# Why, then, does the next, smaller try so often fail as well? Here is such a failure, with a weak
# reference to watch the tensor without holding it:

# %%
def fail_with_a_tensor(watched):
    activations = torch.zeros(1000, device=device)
    watched.append(weakref.ref(activations))
    raise torch.OutOfMemoryError("let us say that the next layer did not fit")


watched = []
try:
    fail_with_a_tensor(watched)
except torch.OutOfMemoryError as error:
    kept_error = error
still_there = watched[0]() is not None

# %% jupyter={"source_hidden": true}
# A question: run this cell, then choose.
predict(
    "devices.error_holds",
    "The function has ended, and `kept_error` is all that is left. Is its tensor still in memory?",
    {"no: the function has ended": False, "yes: the error holds it": True},
    seen=still_there,
    because="The error keeps the failed call's frames, and the frames keep their tensors. A notebook "
    "stores the last error for you, in `sys.last_value` and `sys.last_traceback`, and from Python 3.12 "
    "on in `sys.last_exc` too.",
)
claim("as long as the error is kept, so is the tensor", still_there)
kept_error.__traceback__ = None
claim("without its traceback the tensor goes", watched[0]() is None)

# %% [markdown]
# So the way back is:
#
# 1. Leave the `except` block before you try again. What was raised is dropped at its end.
# 2. Drop what you hold yourself: `del` outputs and losses that you no longer need.
# 3. Ask for less: a smaller batch, lower precision, no gradients where none are wanted.
#
# `empty_cache()` does not help: it hands unused memory to *other* processes.
#
# ## Exercise: come back from out of memory
#
# `step(batch)` takes a tensor of shape (n, d) and returns one with a row for each row. It may raise
# `torch.OutOfMemoryError` if n is too large for it. `run_in_halves(step, batch)` returns what
# `step` would give for the whole batch, rows in order. It tries the whole batch first; what does
# not fit is cut into two halves (of 11 rows: 5 and 6), and each half is tried in the same way. No
# second try may run inside the `except` block. If a single row does not fit, the function raises
# its error, and so it does for every error of another kind.

# %%
def run_in_halves(step, batch: torch.Tensor) -> torch.Tensor:
    """Returns step's result for all rows of the batch, halving what does not fit."""
    ### BEGIN SOLUTION
    try:
        return step(batch)
    except torch.OutOfMemoryError:
        if len(batch) == 1:
            raise
    # Here the error is gone, and with it the tensors of the failed try.
    half = len(batch) // 2
    parts = [run_in_halves(step, batch[:half]), run_in_halves(step, batch[half:])]
    return torch.cat(parts)
    ### END SOLUTION

# %%
check("devices.run_in_halves", run_in_halves)

# %% [markdown]
# ## Key takeaways
#
# - Choose the device once, make tensors there, and write `device=x.device` inside functions.
# - `.to` on a tensor returns; on a module it acts. Where nothing changes, it returns the same
#   tensor.
# - Wait before you read the clock; warm up; take the median; say on which machine.
# - Fewer bits cost accuracy by a known amount, and give speed only where the hardware has it.
#   Measure both.
# - Memory follows storages, and the peak is what must fit: it can be asked for beforehand. After a
#   failure, let go of the error first.
#
# Next: [Compile](04_compile.ipynb), which makes one fast kernel of many operations.
