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
# # Compiling with torch.compile
#
# `torch.compile` takes a model as it is and makes faster code from it, where it can. This lab
# measures what that costs and what it brings on *your* machine, and shows what happens inside:
# what is captured, what breaks it, what makes it compile again.
#
# The first compile of all takes a while: seconds on a fast machine, more on a slow one. That is not
# a fault; it is one of the things we measure.

# %%
import contextlib
import gc
import logging
import math
import statistics
import textwrap
import time
import warnings

import matplotlib.pyplot as plt
import torch
import torch._dynamo
import torch._inductor
from torch import nn
from torch._dynamo.utils import counters
from torch._inductor import metrics
from torch._inductor.runtime.cache_dir_utils import cache_dir
from torch._inductor.utils import fresh_cache

from labkit import check, claim, claim_raises
from labkit.lessons.needs import has_compiler, has_cuda_compiler
from labkit.lessons.pictures import use_lab_style

torch.manual_seed(0)
use_lab_style()

# %% [markdown]
# On a CPU, the compiler behind `torch.compile` writes C++ and calls a C++ compiler. On a CUDA
# device it writes Triton kernels, for which the GPU must be a Volta or newer (compute capability
# 7.0): on an older one this lab uses the CPU. Where no compiler is found, the few cells that need
# one say so and are skipped. Most of this lab does without.

# %%
device = torch.device("cuda" if has_cuda_compiler() else "cpu")
can_compile = has_compiler()
# On recent GPUs the compiler suggests TF32 each time. The devices lab is about that, not this one.
warnings.filterwarnings("ignore", message="TensorFloat32 tensor cores")
print("torch", torch.__version__, "on", device)
print("a compiler was", "found" if can_compile else "not found: cells that compile are skipped")

# %% [markdown]
# ## One line, the same model
#
# The call takes a model and gives back one that is used in the same way. It is a wrapper: the
# parameters are the very same tensors, so training one trains the other.
#
# One thing does change: the names in `state_dict()` get a prefix. Save the model that you
# wrapped, not the wrapper, and a checkpoint fits both. Or call `model.compile()`, which takes the
# same arguments: it compiles the model in place, without a wrapper, and the names stay.


# %%
class MyModel(nn.Module):
    """A residual block: normalize, widen, narrow, add."""

    def __init__(self, width=64, hidden=256):
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.widen = nn.Linear(width, hidden)
        self.narrow = nn.Linear(hidden, width)

    def forward(self, x):
        return x + self.narrow(nn.functional.gelu(self.widen(self.norm(x))))


torch.manual_seed(0)
torch.compiler.reset()
model = MyModel().to(device)
compiled_model = torch.compile(model)
input_data = torch.randn(64, 64, device=device)

claim("the compiled model is a module too", isinstance(compiled_model, nn.Module))
claim("both share their parameters", compiled_model.widen.weight is model.widen.weight)
claim(
    "every name in its state_dict has the prefix _orig_mod.",
    all(name.startswith("_orig_mod.") for name in compiled_model.state_dict()),
)

in_place = MyModel()
in_place.compile()
claim("model.compile() leaves the class and the names as they were",
      (type(in_place), list(in_place.state_dict())), (MyModel, list(model.state_dict())))

# %% [markdown]
# ## What the first call costs
#
# Nothing has been compiled yet. That happens in the first call, while your program waits. Later
# calls run the code that was made.
#
# The compiler keeps what it made in a cache on disk, so a second run of this notebook would look
# too good. `fresh_cache()` gives it an empty folder for the length of a block. We time every call
# on its own; on CUDA we wait for the device each time, since calls return before it is done.


# %%
def time_calls(function, calls):
    """The seconds that each of the calls took, as a list."""
    seconds = []
    for _ in range(calls):
        start = time.perf_counter()
        function()
        if device.type == "cuda":
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - start)
    return seconds


model.eval()
with torch.no_grad():
    eager_seconds = time_calls(lambda: model(input_data), 60)
    if can_compile:
        torch.compiler.reset()
        with fresh_cache():
            compiled_seconds = time_calls(lambda: compiled_model(input_data), 60)
        output = compiled_model(input_data)

claim(
    "the compiled model gives what the model gives, up to rounding",
    lambda: output,
    lambda: model(input_data).detach(),
    within=1e-4,
    needs="compiler",
)

# %% [markdown]
# Look at the first point, and then at where the two rows of points come to lie. The scale is
# logarithmic: each line is ten times the one below.

# %%
if can_compile:
    figure, axes = plt.subplots()
    numbers = range(1, 61)
    axes.semilogy(numbers, eager_seconds, "o", label="eager")
    axes.semilogy(numbers, compiled_seconds, "s", label="compiled")
    axes.set(xlabel="call", ylabel="seconds", title="Each call, one after the other")
    axes.legend()
    plt.show()

    first = compiled_seconds[0]
    later = statistics.median(compiled_seconds[10:])
    eager = statistics.median(eager_seconds[10:])
    print(f"first call {first:.1f} s")
    print(f"later calls: eager {eager * 1e6:.0f} µs, compiled {later * 1e6:.0f} µs (medians)")
    if later < eager:
        calls = math.ceil((first - later) / (eager - later))
        print(f"here the first call has paid for itself after about {calls:,} calls")
    else:
        print("here the compiled model is no faster at this size: the first call never pays")
else:
    print("skipped: with a compiler, a plot of each call's time would stand here")

# %% [markdown]
# Whatever your machine printed, believe it more than any figure that you have read. A small model
# on a CPU spends its time in matrix products, which eager PyTorch already does with tuned
# libraries. There is little left to win, and each compiled call has checks of its own to do. On a
# GPU a small model spends its time on launching kernels, and fewer kernels can pay.

# %% [markdown]
# ## Exercise: when has it paid?
#
# Write `calls_until_paid(first, eager, later)`. All three are seconds: the first compiled call
# (compiling included), an eager call, a later compiled call. Return the smallest number of calls
# `n`, at least 1, for which the compiled way takes no longer in all than the eager way. The
# compiled way is one first call and `n - 1` later ones. Return `None` where that never comes.
#
# Example: `calls_until_paid(10.0, 0.5, 0.25)` is 39.


# %%
def calls_until_paid(first: float, eager: float, later: float) -> int | None:
    """Returns after how many calls compiling has paid for itself, or None if it never does."""
    ### BEGIN SOLUTION
    if first <= eager:
        return 1
    if later >= eager:
        return None
    return math.ceil((first - later) / (eager - later))
    ### END SOLUTION


# %%
check("compile.calls_until_paid", calls_until_paid)

# %% [markdown]
# ## Where the gain comes from: fusion
#
# Eager PyTorch runs one operation at a time. Each reads its input from memory and writes a whole
# new tensor. `wave` below is ten operations, so ten trips through memory. The compiler writes
# *one* loop (a kernel) that reads `x` once, does all ten steps on the values in registers, and
# writes once.
#
# That pays most where memory is the limit: long chains of cheap operations on large tensors. On
# tiny tensors there is nothing to save. `dynamic=True` asks for code that fits every size, so
# this cell compiles once.


# %%
def wave(x):
    return torch.sigmoid(x) * torch.tanh(x) + torch.exp(-x * x) - torch.sin(x) * x


if can_compile:
    torch.compiler.reset()
    counters.clear()
    metrics.reset()
    compiled_wave = torch.compile(wave, dynamic=True)
    sizes = [2**power for power in range(4, 21, 2)]
    eager_best, compiled_best, errors = [], [], []
    for size in sizes:
        x = torch.randn(size, device=device)
        errors.append((compiled_wave(x) - wave(x)).abs().max().item())
        # The best of several: other programs on the machine can only make a call slower.
        eager_best.append(min(time_calls(lambda: wave(x), 25)))
        compiled_best.append(min(time_calls(lambda: compiled_wave(x), 25)))

claim(
    "ten operations were captured, in one graph",
    lambda: (counters["stats"]["calls_captured"], counters["stats"]["unique_graphs"]),
    (10, 1),
    needs="compiler",
)
claim("the ten became one kernel", lambda: metrics.generated_kernel_count, 1, needs="compiler")
claim(
    "at every size the results agree up to rounding",
    lambda: max(errors),
    0.0,
    within=1e-5,
    needs="compiler",
)

# %%
if can_compile:
    figure, (left, right) = plt.subplots(1, 2, figsize=(10, 3.8))
    left.loglog(sizes, eager_best, "o-", label="eager")
    left.loglog(sizes, compiled_best, "s-", label="compiled")
    left.set(xlabel="numbers in x", ylabel="seconds (best of 25)", title="Time of one call")
    left.legend()
    ratios = [slow / fast for slow, fast in zip(eager_best, compiled_best)]
    right.semilogx(sizes, ratios, "o-", color="C2")
    right.set_yscale("log", base=2)
    right.yaxis.set_major_formatter("{x:g}")
    right.axhline(1, color="C1", linewidth=1, linestyle="--")
    right.set(xlabel="numbers in x", ylabel="eager time / compiled time", title="Above 1 it pays")
    figure.tight_layout()
    plt.show()
    slower = [size for size, ratio in zip(sizes, ratios) if ratio < 1]
    print("compiled was slower here for these sizes:", slower or "none")
else:
    print("skipped: with a compiler, eager and compiled times over the size of x")

# %% [markdown]
# ## What "the same result" means
#
# Fused code rounds at other places than eager code. So compare with a tolerance, never with
# `torch.equal`. In `bfloat16`, with its 8 bits of precision, the difference is easy to see: eager
# rounds after every operation, while the fused loop computes in `float32` and rounds once, at the
# end. We measure both against `float64`. (A GPU before Ampere does not compute in `bfloat16`, and
# the compiler leaves such code alone. There we take `float16`.)

# %%
narrow = torch.bfloat16
if device.type == "cuda" and not torch.cuda.is_bf16_supported(including_emulation=False):
    narrow = torch.float16

if can_compile:
    torch.compiler.reset()
    compiled_wave = torch.compile(wave)
    x = torch.randn(4096, device=device).to(narrow)
    exact = wave(x.double())
    errors = {}
    for name, function in (("eager", wave), ("compiled", compiled_wave)):
        errors[name] = (function(x).double() - exact).abs().mean().item()
        print(f"{narrow}, {name:>8}: mean error {errors[name]:.5f}")
else:
    print("skipped: with a compiler, the errors of eager and of compiled code would stand here")

claim(
    "in 16 bits, compiled is nearer to float64 than eager",
    lambda: errors["compiled"] < errors["eager"],
    needs="compiler",
)

# %% [markdown]
# Gradients go through as well: the compiler makes a second graph for the backward pass. Compiled
# and eager gradients agree up to rounding.


# %%
def gradients_of(function):
    """The gradient of every parameter of the model after one backward pass."""
    model.zero_grad()
    function(input_data).square().mean().backward()
    return torch.cat([parameter.grad.flatten() for parameter in model.parameters()])


if can_compile:
    torch.compiler.reset()
    model.train()

claim(
    "compiled gradients agree with eager ones",
    lambda: gradients_of(compiled_model),
    lambda: gradients_of(model),
    within=1e-4,
    needs="compiler",
)


# %% [markdown]
# Random numbers are the exception. The compiler brings its own generator, so the same seed drops
# other values than in eager mode. The compiled function itself does repeat. Where you must have
# eager's numbers, while you debug for instance, `fallback_random` gives them back.


# %%
def drop(x):
    return nn.functional.dropout(x, 0.5)


def seeded(function):
    torch.manual_seed(0)
    return function(torch.ones(1000, device=device))


def with_fallback_random():
    torch.compiler.reset()
    with torch._inductor.config.patch(fallback_random=True):
        return torch.equal(seeded(drop), seeded(torch.compile(drop)))


torch.compiler.reset()
compiled_drop = torch.compile(drop)
claim(
    "with one seed, compiled dropout repeats itself",
    lambda: torch.equal(seeded(compiled_drop), seeded(compiled_drop)),
    needs="compiler",
)
claim(
    "with the same seed, compiled and eager dropout do not agree",
    lambda: torch.equal(seeded(drop), seeded(compiled_drop)),
    False,
    needs="compiler",
)
claim("with fallback_random they agree", with_fallback_random, needs="compiler")

# %% [markdown]
# ## Warm-up and the cache
#
# What was compiled lives in two places: in this process, and in a folder on disk. A new process
# finds its graphs in the folder and skips most of the work. `torch.compiler.reset()` forgets what
# the process holds, so with it we can see the folder at work.
#
# The environment variable `TORCHINDUCTOR_CACHE_DIR` moves the folder. It is a cache: keyed by
# graph, options and version, and safe to delete.

# %%
print("the compiler's cache is in", cache_dir())


def first_call_seconds():
    """Seconds for the first call of a model that this process knows nothing about."""
    torch.compiler.reset()
    counters.clear()
    compiled = torch.compile(model)
    return time_calls(lambda: compiled(input_data), 1)[0]


if can_compile:
    model.eval()
    with torch.no_grad(), fresh_cache():
        cold_seconds = first_call_seconds()
        cold_misses = counters["inductor"]["fxgraph_cache_miss"]
        warm_seconds = first_call_seconds()
        warm_misses = counters["inductor"]["fxgraph_cache_miss"]
    figure, axes = plt.subplots(figsize=(7, 2.4))
    names = ["first call, empty cache", "first call, warm cache", "later call"]
    bars = axes.barh(names, [cold_seconds, warm_seconds, later], color=["C1", "C0", "C2"])
    axes.bar_label(bars, fmt=" %.2g s")
    axes.set(xscale="log", xlabel="seconds", title="What is paid again, and when")
    axes.invert_yaxis()
    axes.margins(x=0.2)
    plt.show()

claim("with an empty cache the graph is missing", lambda: cold_misses, 1, needs="compiler")
claim("with a warm one nothing is missing", lambda: warm_misses, 0, needs="compiler")

# %% [markdown]
# A service therefore **warms up**: before it takes the first request, it calls the model once for
# each kind of input that it will meet: the real shapes, the real dtype, under the same grad mode.
# Keep the cache folder on a disk that outlives the container, and a restart is cheap too. What
# counts as "another kind of input" is the subject of the second half of this lab.

# %% [markdown]
# ## The modes, and what each truly does
#
# `mode=` is a name for a handful of options, nothing more. You can ask which ones:

# %%
modes = torch._inductor.list_mode_options()
for name, options in modes.items():
    listed = ", ".join(f"{key}={value}" for key, value in options.items()) or "nothing"
    print(f"{name:<28}{textwrap.shorten(listed, 84, placeholder=' ...')}")

# %% [markdown]
# `mode="reduce-overhead"` does **not** save memory. The overhead
# in its name is the Python and launch time of each call. Its one option turns on *CUDA graphs*: the
# calls to the GPU are recorded once and then replayed as a whole. A replay needs the very same
# addresses each time, so the memory of inputs and intermediate results is held between calls. It
# spends memory to save time. On a CPU the option does nothing.
#
# `max-autotune` tries several ways to write each matrix product and keeps the fastest. It uses CUDA
# graphs as well, which its name does not say. `max-autotune-no-cudagraphs` does without them.

# %%
claim(
    "reduce-overhead does one thing: it turns on CUDA graphs",
    modes["reduce-overhead"],
    {"triton.cudagraphs": True},
)
claim("max-autotune uses CUDA graphs too", modes["max-autotune"].get("triton.cudagraphs"))
claim(
    "max-autotune-no-cudagraphs does not",
    "triton.cudagraphs" in modes["max-autotune-no-cudagraphs"],
    False,
)
claim("the default mode sets no option at all", modes["default"], {})
claim_raises(
    "a mode called memory-saving does not exist",
    RuntimeError,
    lambda: torch.compile(model, mode="memory-saving"),
    match="Unrecognized mode",
)
claim_raises(
    "a mode and options of your own exclude each other",
    RuntimeError,
    lambda: torch.compile(model, mode="max-autotune", options={"max_autotune": True}),
    match="Either mode or options",
)

# %% [markdown]
# A mode changes how the code is made, not what it computes.

# %%
# Default mode (balanced)
default_model = torch.compile(model)
# Searches for the fastest kernels: the longest compile
tuned_model = torch.compile(model, mode="max-autotune")
# CUDA graphs: less time per launch, at the cost of memory
replayed_model = torch.compile(model, mode="reduce-overhead")


def largest_difference(compiled):
    """How far the compiled model is from the model, at most."""
    torch.compiler.reset()
    with torch.no_grad(), torch._inductor.config.patch(autotune_num_choices_displayed=0):
        return (compiled(input_data) - model(input_data)).abs().max().item()


for name, compiled in (
    ("default", default_model),
    ("max-autotune", tuned_model),
    ("reduce-overhead", replayed_model),
):
    claim(
        f"in mode {name} the result is the model's, up to rounding",
        lambda compiled=compiled: largest_difference(compiled),
        0.0,
        within=1e-3,
        needs="compiler",
    )


# %% [markdown]
# Now the memory, measured on a CUDA device. After a few calls we drop the results and ask torch to
# hand unused memory back (`empty_cache`). What it still holds beyond the model and its input is
# what the mode keeps for itself.


# %%
def kept_bytes(mode):
    """Bytes that torch keeps on the GPU for a compiled model between calls."""
    torch.compiler.reset()
    wide = nn.Sequential(nn.Linear(512, 4096), nn.GELU(), nn.Linear(4096, 512)).to("cuda")
    batch = torch.randn(8192, 512, device="cuda")
    compiled = torch.compile(wide, mode=mode)
    with torch.no_grad():
        wide(batch)
        gc.collect()
        torch.cuda.empty_cache()
        before = torch.cuda.memory_reserved()
        for _ in range(4):
            compiled(batch)
    torch.cuda.synchronize()
    gc.collect()
    torch.cuda.empty_cache()
    return torch.cuda.memory_reserved() - before


if device.type == "cuda":
    kept = {mode: kept_bytes(mode) for mode in ("default", "reduce-overhead")}
    figure, axes = plt.subplots(figsize=(7, 2))
    bars = axes.barh(list(kept), [size / 2**20 for size in kept.values()], color=["C0", "C1"])
    axes.bar_label(bars, fmt=" %.0f MiB")
    axes.set(xlabel="MiB kept between calls", title="Which mode saves memory?")
    axes.margins(x=0.2)
    plt.show()
else:
    print("Skipped: this compiles for a CUDA device. It would plot the memory that the default mode")
    print("and reduce-overhead keep between calls, and show that reduce-overhead keeps more.")

claim(
    "reduce-overhead keeps more memory than the default mode",
    lambda: kept["reduce-overhead"] > kept["default"],
    needs="cuda_compiler",
)


# %% [markdown]
# Held addresses have another consequence. The first calls warm up and record; from the third
# on, each call is a replay and writes its result to the *same place*. So the next call overwrites
# the result before it. PyTorch raises if you touch an overwritten result of the first two calls.
# For results of replays there is **no error**: what you kept now holds the values of the last call.
#
# There are two ways out. `clone()` a result that must live on. Or say where an iteration begins,
# with `torch.compiler.cudagraph_mark_step_begin()`: then all results of one iteration stay intact
# until the next one begins.


# %%
def replayed_function(calls):
    """A function that replays a CUDA graph, called so many times before, and an input for it."""
    torch.compiler.reset()
    function = torch.compile(lambda x: x * 2 + 1, mode="reduce-overhead")
    x = torch.ones(4, device="cuda")
    for _ in range(calls):
        function(x)
    return function, x


def read_after_next_call(calls_before):
    function, x = replayed_function(calls_before)
    first = function(x)
    function(x + 1)
    return (first + 0).cpu()


def share_an_address():
    function, x = replayed_function(3)
    first, second = function(x), function(x + 1)
    return first.data_ptr() == second.data_ptr()


def read_clone():
    function, x = replayed_function(3)
    first = function(x).clone()
    function(x + 1)
    return first.cpu()


def read_both_of_one_step():
    function, x = replayed_function(3)
    for _ in range(3):
        torch.compiler.cudagraph_mark_step_begin()
        total = function(x) + function(x + 1)
    return total.cpu()


claim_raises(
    "a result of the first call raises after the second",
    RuntimeError,
    lambda: read_after_next_call(0),
    match="overwritten",
    needs="cuda_compiler",
)
claim("two replays write to one address", share_an_address, needs="cuda_compiler")
claim(
    "1 * 2 + 1 is 3, and after the next replay, for 2, the kept result says 5",
    lambda: read_after_next_call(3),
    torch.full((4,), 5.0),
    needs="cuda_compiler",
)
claim("a clone survives", read_clone, torch.full((4,), 3.0), needs="cuda_compiler")
claim(
    "results of one marked step live side by side",
    read_both_of_one_step,
    torch.full((4,), 8.0),
    needs="cuda_compiler",
)
torch.compiler.reset()

# %% [markdown]
# What *does* save memory is fusion, in every mode: intermediate results that stay in registers are
# never written. On a CUDA device the peak shows it.


# %%
def peak_bytes(function, x):
    """The peak of allocated bytes on the GPU during one call, over what was there before."""
    function(x)
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    function(x)
    torch.cuda.synchronize()
    return torch.cuda.max_memory_allocated() - before


def fused_peak_is_lower():
    torch.compiler.reset()
    x = torch.randn(2**22, device="cuda")
    eager_peak, compiled_peak = peak_bytes(wave, x), peak_bytes(torch.compile(wave), x)
    print(f"peak: eager {eager_peak / 2**20:.0f} MiB, compiled {compiled_peak / 2**20:.0f} MiB")
    return compiled_peak < eager_peak


claim("the fused wave has a lower peak than the eager one", fused_peak_is_lower,
      needs="cuda_compiler")

# %% [markdown]
# ## What is captured
#
# Two parts work together. **Dynamo** reads your Python as it runs and writes down the tensor
# operations as a graph. A **backend** turns the graph into something to call; the default one,
# Inductor, is what wrote C++ or Triton above. A backend is a plain function, so we can bring our
# own. This one compiles nothing. It keeps each graph and runs it as it is: fast, and all we need
# to *watch* Dynamo.


# %%
class GraphCounter:
    """A backend that keeps each graph that Dynamo hands it, and runs it unchanged."""

    def __init__(self):
        self.graphs = []

    def __call__(self, graph, example_inputs):
        self.graphs.append(graph)
        return graph.forward

    @property
    def count(self):
        return len(self.graphs)


def thrice(x):
    for _ in range(3):
        x = x * 2
    return x.relu() if x.dim() == 2 else x


torch.compiler.reset()
counter = GraphCounter()
watched = torch.compile(thrice, backend=counter)
claim("wrapping alone captures nothing", counter.count, 0)

watched(torch.ones(2, 3))
print(counter.graphs[0].code)
claim("the first call captures one graph", counter.count, 1)

watched(torch.randn(2, 3))
claim("a second call with the same kind of input captures nothing new", counter.count, 1)

operations = [node.target for node in counter.graphs[0].graph.nodes if node.op.startswith("call")]
claim("the loop was unrolled, and the if decided: four operations are left", len(operations), 4)

# %% [markdown]
# Read the printed code. There is no loop and no `if`: the loop has a fixed length, and the `if`
# asks for the number of dimensions, which is known while capturing. What depends on *values* is
# another matter.

# %% [markdown]
# ## Graph breaks
#
# Sometimes Dynamo meets something that cannot go into a graph: a `print`, or an `if` on a value
# that exists only once the graph has run. It then ends the graph, lets Python do that step, and
# begins a new graph after it. Your program still gives the right answer. But each break costs a
# trip through Python, and nothing is fused across it.
#
# `torch._dynamo.explain` runs a function once and says what was captured and where it broke.


# %%
def talkative(x):
    y = x * 2
    print("half way")
    if y.sum() > 0:
        return y + 1
    return y - 1


explanation = torch._dynamo.explain(talkative)(torch.ones(4))
for reason in explanation.break_reasons:
    print(f"break at `{reason.user_stack[-1].line}`: {reason.reason.splitlines()[0]}")

claim("talkative is captured in three graphs", explanation.graph_count, 3)
claim("there are two breaks between them", explanation.graph_break_count, 2)

# %% [markdown]
# (`generic_jump` is Dynamo's word for an `if` on a tensor.) Drawn from that explanation: what runs
# compiled, and what Python does in between.

# %%
pieces = []
for index, graph_operations in enumerate(explanation.ops_per_graph):
    names = ", ".join(getattr(one, "__name__", str(one)) for one in graph_operations)
    pieces.append((f"graph {index + 1}\n{names}", "C0"))
    if index < len(explanation.break_reasons):
        pieces.append((explanation.break_reasons[index].user_stack[-1].line, "C1"))

figure, axes = plt.subplots(figsize=(9, 1.7))
for place, (text, color) in enumerate(pieces):
    axes.barh(0, 0.94, left=place, height=1, facecolor="none", edgecolor=color, linewidth=2.5)
    axes.text(place + 0.47, 0, text, ha="center", va="center", fontsize=10)
axes.set(title="talkative: compiled graphs (blue) and Python (orange)", ylim=(-0.6, 0.6),
         xlim=(-0.05, len(pieces)))
axes.set_axis_off()
plt.show()

# %% [markdown]
# Breaks are silent, and that is the danger. `fullgraph=True` makes them errors: if you want one
# graph, say so, and be told when you lose it. The message names the line.


# %%
def branching(x):
    if x.sum() > 0:
        return x * 2
    return x - 1


torch.compiler.reset()
claim_raises(
    "with fullgraph=True a print raises Unsupported",
    torch._dynamo.exc.Unsupported,
    lambda: torch.compile(talkative, backend="eager", fullgraph=True)(torch.ones(4)),
    match="print",
)
claim_raises(
    "an if on a value does so too",
    torch._dynamo.exc.Unsupported,
    lambda: torch.compile(branching, backend="eager", fullgraph=True)(torch.ones(4)),
    match="Data-dependent branching",
)

# %% [markdown]
# ## Exercise: take the break out
#
# This function normalizes its input and reports on the way:
#
# ```python
# def normalize_and_report(x):
#     mean = x.mean()
#     print("mean", mean)
#     return (x - mean) / x.std()
# ```
#
# Write `build_normalizer()`. It takes nothing and returns a *function* of `x` (any shape). That
# function returns the pair `(normalized, mean)`: the same shape as `x`, and a tensor of shape `()`.
# It must pass `torch.compile(..., fullgraph=True)` and leave `x` as it is. Whoever wants to see the
# mean can print it then, outside.


# %%
def build_normalizer():
    """Returns a function of x that gives (normalized, mean) and is one graph."""

    ### BEGIN SOLUTION
    def normalize(x):
        mean = x.mean()
        return (x - mean) / x.std(), mean

    return normalize
    ### END SOLUTION


# %%
check("compile.build_normalizer", build_normalizer)

# %% [markdown]
# ## An if that stays in the graph
#
# `torch.where(condition, a, b)` computes both sides and picks. That sounds wasteful; in a fused
# kernel it costs next to nothing, and the graph stays whole.


# %%
def selecting(x):
    return torch.where(x.sum() > 0, x * 2, x - 1)


claim(
    "torch.where breaks nothing",
    torch._dynamo.explain(selecting)(torch.ones(4)).graph_break_count,
    0,
)
for values in (torch.ones(4), -torch.ones(4)):
    claim(f"both give the same for {values.tolist()}", selecting(values), branching(values))

# %% [markdown]
# ## Exercise: clip by norm
#
# Gradient clipping scales a tensor down when it is too long:
#
# ```python
# def clip(x):
#     norm = x.norm()
#     if norm > limit:
#         return x * (limit / norm)
#     return x
# ```
#
# Write `make_clipper(limit)`. `limit` is a float over 0. It returns a function of `x` that does
# the same for every `x` of any shape, in one graph with `fullgraph=True`, and leaves `x` as it is.
# A tensor of zeros must come back as zeros.


# %%
def make_clipper(limit: float):
    """Returns a function that scales x down to the norm `limit` where it is longer."""

    ### BEGIN SOLUTION
    def clip(x):
        norm = x.norm()
        return torch.where(norm > limit, x * (limit / norm), x)

    return clip
    ### END SOLUTION


# %%
check("compile.make_clipper", make_clipper)

# %% [markdown]
# ## Guards: when is old code still right?
#
# A graph is made for one situation. With it Dynamo keeps **guards**: conditions under which the
# graph may be used again. Before each call they are checked. If none of the graphs at hand fits,
# Dynamo captures and compiles once more: a *recompile*, in the middle of your program.
#
# Torch tells why, if asked. Set the environment variable `TORCH_LOGS=recompiles` for a program;
# here we switch it on for a cell and catch the lines, to show in what each call differs from the
# first one.


# %%
@contextlib.contextmanager
def caught_logs(name):
    """The messages of one logger, in a list, and not on the screen."""
    lines = []
    catcher = logging.Handler()
    catcher.emit = lambda record: lines.append(record.getMessage())
    logger = logging.getLogger(name)
    before = logger.handlers, logger.propagate
    logger.handlers, logger.propagate = [catcher], False
    try:
        yield lines
    finally:
        logger.handlers, logger.propagate = before


def shift(x):
    return x + offset


def call_under(context, x):
    with context:
        watched(x)


torch.compiler.reset()
torch._logging.set_logs(recompiles=True)
counter = GraphCounter()
watched = torch.compile(shift, backend=counter)
offset = 1.0
x = torch.randn(4, 4)
counts = {}
with caught_logs("torch._dynamo.guards.__recompiles") as lines:
    for change, call in {
        "the first call": lambda: watched(x),
        "other values": lambda: watched(x + 1),
        "another dtype": lambda: watched(x.double()),
        "other strides (transposed)": lambda: watched(x.t()),
        "requires_grad": lambda: watched(x.clone().requires_grad_()),
        "no_grad": lambda: call_under(torch.no_grad(), x),
        "inference_mode": lambda: call_under(torch.inference_mode(), x),
        "the first kind again": lambda: watched(x),
    }.items():
        lines.clear()
        before = counter.count
        call()
        counts[change] = counter.count - before
        # Each graph at hand says why it does not fit; the last line is that of the first graph.
        why = lines[0].splitlines()[-1].partition(": ")[2] if lines else ""
        compiles = "compiled" if counts[change] else "        "
        print(f"{change:<28}{compiles}  {textwrap.shorten(why, 72, placeholder=' ...')}")
torch._logging.set_logs()

# %%
claim("other values need no recompile", counts["other values"], 0)
claim("another dtype recompiles", counts["another dtype"], 1)
claim("other strides recompile, although the shape is the same",
      counts["other strides (transposed)"], 1)
claim("requires_grad recompiles", counts["requires_grad"], 1)
claim("another grad mode recompiles", counts["no_grad"], 1)
claim("inference mode recompiles", counts["inference_mode"], 1)
claim("graphs made earlier are kept and used again", counts["the first kind again"], 0)

# %% [markdown]
# Guards reach further than the arguments. `shift` reads `offset`, a global. Dynamo guards it, so a
# change is noticed and the answer is right, at the price of a compile. The same goes for
# `model.train()` and `model.eval()`.

# %%
torch.compiler.reset()
counter = GraphCounter()
watched = torch.compile(shift, backend=counter)
zeros = torch.zeros(3)
offset = 1.0
watched(zeros)
offset = 5.0
claim("a changed global is seen", watched(zeros), zeros + 5)
claim("and has cost a second compile", counter.count, 2)

counter = GraphCounter()
dropout = nn.Dropout(0.5)
watched_dropout = torch.compile(dropout, backend=counter)
ones = torch.ones(3)
watched_dropout(ones)
dropout.eval()
claim("in eval mode dropout lets everything through", watched_dropout(ones), ones)
claim("the switch to eval has cost a compile", counter.count, 2)

# %% [markdown]
# In a service or a test, a recompile that you did not plan for is better as an error.
# `torch.compiler.set_stance` makes it one.

# %%
torch.compiler.reset()
strict = torch.compile(selecting, backend="eager")
strict(torch.ones(4))
with torch.compiler.set_stance("fail_on_recompile"):
    claim("what is compiled still runs", strict(torch.ones(4)), selecting(torch.ones(4)))
    claim_raises(
        "a recompile raises",
        RuntimeError,
        lambda: strict(torch.ones(4).double()),
        match="dtype mismatch",
    )

# %% [markdown]
# ## Exercise: count the compiles
#
# Write `count_compiles(function, inputs)`. `inputs` is a list of tensors. Compile the function with
# a backend of your own and default settings, call it on each input in turn, and return as an `int`
# how many graphs the backend was given in all.
#
# Example: for `lambda x: x * 2` and the inputs `[x, x.double(), x]` it is 2.


# %%
def count_compiles(function, inputs: list[torch.Tensor]) -> int:
    """Returns how many graphs are compiled when the function is called on each input in turn."""
    ### BEGIN SOLUTION
    torch.compiler.reset()  # else Dynamo's limit counts the graphs of earlier calls
    graphs = []

    def backend(graph, example_inputs):
        graphs.append(graph)
        return graph.forward

    compiled = torch.compile(function, backend=backend)
    for x in inputs:
        compiled(x)
    return len(graphs)
    ### END SOLUTION


# %%
check("compile.count_compiles", count_compiles)

# %% [markdown]
# ## Changing shapes
#
# Real inputs differ in size: the last batch is smaller, sentences have lengths. What does Dynamo
# do? At first it takes each size as a constant. When a size changes, it compiles again, and now
# leaves that size open ("dynamic"). The argument `dynamic=` overrules it: `True` leaves sizes open
# from the start, `False` takes every size as a constant for ever.
#
# `mark_dynamic(x, 0)` says it for one dimension of one tensor, and is a promise that is held to.


# %%
def row_sums(x):
    return (x * 2 + 1).relu().sum(dim=1)


def compiles_over_shapes(shapes, mark=False, **options):
    """How many graphs were compiled so far, after each of the shapes."""
    torch.compiler.reset()
    counter = GraphCounter()
    compiled = torch.compile(row_sums, backend=counter, **options)
    totals = []
    for shape in shapes:
        x = torch.ones(shape)
        if mark:
            torch._dynamo.mark_dynamic(x, 0)
        compiled(x)
        totals.append(counter.count)
    return totals


shapes = [(3, 4), (5, 4), (7, 4), (9, 4), (1, 4), (11, 6)]
totals = {
    "default": compiles_over_shapes(shapes),
    "dynamic=True": compiles_over_shapes(shapes, dynamic=True),
    "dynamic=False": compiles_over_shapes(shapes, dynamic=False),
    "mark_dynamic(x, 0)": compiles_over_shapes(shapes, mark=True),
}

figure, axes = plt.subplots()
for place, (name, values) in enumerate(totals.items()):
    raised = [value + 0.06 * place for value in values]  # so that no line hides another
    axes.plot(range(len(shapes)), raised, "o-", label=name)
axes.set_xticks(range(len(shapes)), [str(shape) for shape in shapes])
axes.set(xlabel="shape, in the order of the calls", ylabel="graphs compiled so far",
         title="One function, six shapes")
axes.legend()
plt.show()

# %%
claim("by default the second size is a recompile, the next ones are not",
      totals["default"], [1, 2, 2, 2, 3, 4])
claim("dynamic=True leaves sizes open from the start",
      totals["dynamic=True"], [1, 1, 1, 1, 2, 2])
claim("dynamic=False compiles for each shape",
      totals["dynamic=False"], [1, 2, 3, 4, 5, 6])
claim("mark_dynamic opens the rows, not the columns",
      totals["mark_dynamic(x, 0)"], [1, 1, 1, 1, 2, 3])

# %% [markdown]
# Look at `(1, 4)`: every line climbs there, even that of `dynamic=True`. Sizes 0 and 1 always
# get graphs of their own: a size of 1 broadcasts, so other code may be right for it. A batch that
# is sometimes 1 costs one more compile. Meet it during warm-up.

# %%
claim(
    "even with dynamic=True, 0 rows and 1 row are compiled for themselves",
    compiles_over_shapes([(5, 4), (50, 4), (1, 4), (0, 4), (500, 4)], dynamic=True),
    [1, 1, 2, 3, 3],
)


# %% [markdown]
# `mark_dynamic` holds you to your word. If your code needs the size to be a certain number, the
# promise is broken, and you hear of it. (Left to itself, Dynamo would quietly compile for that
# number.)


# %%
def knows_four(x):
    return x.sum() if x.shape[0] == 4 else x.mean()


def compile_marked():
    torch.compiler.reset()
    x = torch.ones(4, 3)
    torch._dynamo.mark_dynamic(x, 0)
    return torch.compile(knows_four, backend="eager")(x)


# The same error is logged with a long trace; we keep that off the screen.
with caught_logs("torch._guards"):
    claim_raises(
        "a marked size that the code turns into a constant is an error",
        torch.fx.experimental.symbolic_shapes.ConstraintViolationError,
        compile_marked,
        match="marked",
    )

# %% [markdown]
# So, for a model whose batch size varies:

# %%
torch.compiler.reset()
counter = GraphCounter()
dynamic_model = torch.compile(model, dynamic=True, backend=counter)
with torch.no_grad():
    for rows in (8, 64, 13, 32):
        dynamic_model(torch.randn(rows, 64, device=device))
claim("with dynamic=True four batch sizes share one graph", counter.count, 1)

# %% [markdown]
# ## Limits
#
# Dynamo does not compile for ever. One piece of code may have so many graphs and no more. Past that,
# the graphs at hand stay in use, and whatever fits none of them runs eagerly. *One* warning in the
# log says so, easily missed, and much of your program is as slow as if you had never compiled. With
# `fullgraph=True` it raises instead.

# %%
limit = torch._dynamo.config.recompile_limit
print("graphs for one piece of code:", limit)
print("graphs in all for one piece of code:", torch._dynamo.config.accumulated_recompile_limit)


def compile_many_sizes(sizes, **options):
    """The number of graphs compiled over vectors of so many sizes, each a constant."""
    torch.compiler.reset()
    counter = GraphCounter()
    compiled = torch.compile(thrice, backend=counter, dynamic=False, **options)
    for size in range(2, 2 + sizes):
        compiled(torch.ones(size))
    return counter.count


with caught_logs("torch._dynamo.convert_frame") as lines:
    claim(f"{limit} sizes are compiled for", compile_many_sizes(limit), limit)
    claim("so far nothing is said", len(lines), 0)
    claim("with three more, no more graphs are made", compile_many_sizes(limit + 3), limit)
    claim("one warning was logged", len(lines), 1)
    print(lines[0].splitlines()[0])
    claim_raises(
        "with fullgraph=True the limit is an error",
        torch._dynamo.exc.FailOnRecompileLimitHit,
        lambda: compile_many_sizes(limit + 3, fullgraph=True),
    )

# %% [markdown]
# Raising the limit is possible (`torch._dynamo.config.recompile_limit`), and rarely the answer.
# Better ask why there are so many kinds of input: make sizes dynamic, keep one dtype and one
# layout, or bring the sizes down to a few. That last way is the next exercise.

# %% [markdown]
# ## Exercise: many lengths, few graphs
#
# Sometimes a dynamic size will not do: CUDA graphs, for one, replay fixed shapes. Then inputs are
# padded to the next multiple of a *bucket* size, and there are only as many graphs as buckets.
#
# Write `compile_in_buckets(function, bucket, backend)`:
#
# - `function` takes `x` of shape `(n, d)` and works on each row by itself: `n` rows come out, as
#   shape `(n,)` or `(n, k)`.
# - Return a function of `x` with `n >= 1` that gives what `function(x)` gives.
# - Compile with the `backend` given. It may only ever see the smallest multiples of `bucket` that
#   the inputs fit into, as fixed sizes, and one graph for each. There are at most eight (Dynamo's
#   limit for one function). `x` stays as it is.
#
# Example: with a bucket of 16, inputs of 1, 5, 16 and 17 rows make two graphs, for 16 and 32 rows.


# %%
def compile_in_buckets(function, bucket: int, backend):
    """Returns a compiled form of `function` that pads the rows of x to multiples of `bucket`."""
    ### BEGIN SOLUTION
    compiled = torch.compile(function, backend=backend, dynamic=False)

    def call_padded(x):
        rows = x.shape[0]
        missing = -rows % bucket
        padded = nn.functional.pad(x, (0, 0, 0, missing))
        return compiled(padded)[:rows]

    return call_padded
    ### END SOLUTION


# %%
check("compile.compile_in_buckets", compile_in_buckets)

# %% [markdown]
# ## Key takeaways
#
# - Measure here, on your shapes: the first call, later calls, and how many calls there will be.
# - Compare with a tolerance. Warm up with every kind of input. Keep the cache.
# - `fullgraph=True` while developing: a break that is an error gets fixed.
# - Shapes, dtypes, strides, grad mode and even globals are guarded. Count your compiles.
# - `reduce-overhead` and `max-autotune` use CUDA graphs: faster launches, more memory.
