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
# `torch.compile(f)` makes faster code from `f`, if it can. Is it worth it? Run the cells below
# (click one, then Shift+Enter). They measure one function, called as it is ("eager") and compiled.
# The first compile takes seconds, on a slow machine a minute: that is one of the results.

# %% jupyter={"source_hidden": true}
# Imports: run this cell first.
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

from labkit import check, claim, claim_raises, predict
from labkit.lessons.needs import has_compiler, has_cuda_compiler
from labkit.lessons.pictures import use_lab_style

torch.manual_seed(0)
use_lab_style()

# %% jupyter={"source_hidden": true}
# The device and a stopwatch: run this cell.
device = torch.device("cuda" if has_cuda_compiler() else "cpu")
can_compile = has_compiler()
# On recent GPUs the compiler suggests TF32 each time. The devices lab is about that, not this one.
warnings.filterwarnings("ignore", message="TensorFloat32 tensor cores")


def time_calls(function, calls):
    """The seconds that each of the calls took, as a list."""
    seconds = []
    for _ in range(calls):
        start = time.perf_counter()
        function()
        if device.type == "cuda":
            torch.cuda.synchronize()  # a call returns before the device is done
        seconds.append(time.perf_counter() - start)
    return seconds


print("torch", torch.__version__, "on", device)

# %%
def wave(x):
    return torch.sigmoid(x) * torch.tanh(x) + torch.exp(-x * x) - torch.sin(x) * x

# %% jupyter={"source_hidden": true}
# A million numbers, eager and compiled: run this cell, then look at the first call.
if can_compile:
    million = torch.randn(2**20, device=device)
    compiled_wave = torch.compile(wave)
    eager_seconds = time_calls(lambda: wave(million), 30)
    # The compiler keeps its results on disk. An empty cache shows what the first call really costs.
    with fresh_cache():
        compiled_seconds = time_calls(lambda: compiled_wave(million), 30)

    figure, axes = plt.subplots()
    axes.semilogy(range(1, 31), eager_seconds, "o", label="eager")
    axes.semilogy(range(1, 31), compiled_seconds, "s", label="compiled")
    axes.set(xlabel="call", ylabel="seconds", title="A million numbers: the time of each call")
    axes.legend()
    plt.show()
    ratio = statistics.median(eager_seconds) / statistics.median(compiled_seconds)
    print(f"first compiled call: {compiled_seconds[0]:.1f} s")
    print(f"later calls: {ratio:.1f} times as fast as eager on this machine (medians)")
else:
    print("no compiler was found: the few cells that need one say so and are skipped")

# %% [markdown]
# The vertical scale is logarithmic: each line is ten times the one below. The first compiled call
# includes the compiling; the later ones run the code that was made: C++ on a CPU, Triton kernels on
# a CUDA device (of compute capability 7.0 or newer). This lab explains where the gain comes from,
# what is compiled, and what makes torch compile a second time in the middle of your program.

# %% [markdown]
# ## One line, the same model
#
# `torch.compile(model)` returns a wrapper that you use like the model.

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

# %% jupyter={"source_hidden": true}
# A question: run this cell, then choose.
in_place = MyModel()
in_place.compile()
predict("compile.shared", "You train `compiled_model`, and then save `model.state_dict()`. Which "
        "values are in the file?", ["the trained ones", "those from before the training"],
        seen="the trained ones" if compiled_model.widen.weight is model.widen.weight
        else "those from before the training",
        because="Both hold the same tensors. Only the names differ: those in "
        "`compiled_model.state_dict()` have a prefix.")
claim("the compiled model is a module too", isinstance(compiled_model, nn.Module))
claim("both share their parameters", compiled_model.widen.weight is model.widen.weight)
claim(
    "every name in its state_dict has the prefix _orig_mod.",
    all(name.startswith("_orig_mod.") for name in compiled_model.state_dict()),
)
claim("model.compile() leaves the class and the names as they were",
      (type(in_place), list(in_place.state_dict())), (MyModel, list(model.state_dict())))

# %% [markdown]
# So save the `state_dict` of the model that you wrapped. Or call `model.compile()`, with the same
# arguments: it compiles the model in place, without a wrapper, and the names stay.

# %% [markdown]
# ## A model for which it may not pay
#
# The same measurement, with `MyModel`. Nothing has been compiled yet: that happens in the first
# call, while your program waits. (With `fresh_cache()`, a second run of this notebook does not find
# the results of the first one.)

# %%
model.eval()
with torch.no_grad():
    eager_seconds = time_calls(lambda: model(input_data), 60)
    if can_compile:
        torch.compiler.reset()
        with fresh_cache():
            compiled_seconds = time_calls(lambda: compiled_model(input_data), 60)
        output = compiled_model(input_data)

# %% jupyter={"source_hidden": true}
# A question: run this cell, then choose.
if can_compile:
    first = compiled_seconds[0]
    later = statistics.median(compiled_seconds[10:])
    eager = statistics.median(eager_seconds[10:])
    paid_off = math.ceil((first - later) / (eager - later)) if later < eager else math.inf
    predict("compile.pays", "After how many calls has the first compiled call paid off here?",
            ["fewer than 100", "100 to 10,000", "more than 10,000, or never"],
            seen="fewer than 100" if paid_off < 100
            else "100 to 10,000" if paid_off <= 10_000 else "more than 10,000, or never",
            because="The first call costs seconds. Each later call saves microseconds, if it "
            "saves any.")

claim(
    "the compiled model gives what the model gives, up to rounding",
    lambda: output,
    lambda: model(input_data).detach(),
    within=1e-4,
    needs="compiler",
)

# %% jupyter={"source_hidden": true}
# The times: run this cell.
if can_compile:
    print(f"first call {first:.1f} s")
    print(f"later calls: eager {eager * 1e6:.0f} µs, compiled {later * 1e6:.0f} µs (medians)")
    if later < eager:
        print(f"here the first call has paid off after about {paid_off:,} calls")
    else:
        print("here the compiled model is not faster at this size: the first call never pays off")
else:
    print("skipped: with a compiler, the times of the first call and of later calls")

# %% [markdown]
# A small model on a CPU spends its time in matrix products, which eager PyTorch already runs with
# tuned libraries: there is little left to gain. On a GPU, a small model spends its time launching
# kernels, and fewer kernels can pay off. Trust your own figures more than any that you read.

# %% [markdown]
# ## Exercise: when does it pay off?
#
# Write `calls_until_paid(first, eager, later)`. All three are seconds: of the first compiled call
# (compiling included), of an eager call, of a later compiled call. Return the smallest `n`, at
# least 1, for which one first call and `n - 1` later ones take no longer than `n` eager calls.
# Return `None` if there is no such `n`.
#
# Example: `calls_until_paid(10.0, 0.5, 0.25)` is 39.

# %%
def calls_until_paid(first: float, eager: float, later: float) -> int | None:
    """Returns after how many calls compiling has paid off, or None if it never does."""
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
# Eager PyTorch runs one operation at a time. Each reads its input from memory and writes a new
# tensor: for the ten operations of `wave`, data goes through memory ten times. The next cell
# compiles `wave`, and counts the loops ("kernels") that the compiler writes.

# %% jupyter={"source_hidden": true}
# Compiles wave for every size, and times it: run this cell.
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

# %% jupyter={"source_hidden": true}
# A question: run this cell, then choose.
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
    return peak_bytes(torch.compile(wave), x) < peak_bytes(wave, x)


if can_compile:
    predict("compile.kernels", "How many kernels does the compiler write for `wave`?",
            [1, 2, 5, 10], seen=metrics.generated_kernel_count,
            because="It reads `x` once, does all ten steps on the values in registers, and writes "
            "once. This is called fusion.")

claim(
    "ten operations were captured, in one graph",
    lambda: (counters["stats"]["calls_captured"], counters["stats"]["unique_graphs"]),
    (10, 1),
    needs="compiler",
)
claim("the ten operations became one kernel", lambda: metrics.generated_kernel_count, 1,
      needs="compiler")
claim(
    "at every size the results agree up to rounding",
    lambda: max(errors),
    0.0,
    within=1e-5,
    needs="compiler",
)
claim("the fused wave has a lower peak than the eager one", fused_peak_is_lower,
      needs="cuda_compiler")

# %% [markdown]
# Fusion pays off most where memory is the limit: in long chains of cheap operations on large
# tensors. It saves memory too, because intermediate results that stay in registers are never
# written.

# %% jupyter={"source_hidden": true}
# The time of a call over the size of x: run this cell, then look at both plots.
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
    right.set(xlabel="numbers in x", ylabel="eager time / compiled time",
              title="Above 1 it pays off")
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
# `torch.equal`. The next cell measures the error of eager and of compiled code against `float64`.
# Both compute in `bfloat16`: with its 8 bits of precision, the difference is easy to see.

# %% jupyter={"source_hidden": true}
# The errors in 16 bits: run this cell.
narrow = torch.bfloat16
# A GPU before Ampere does not compute in bfloat16, and the compiler leaves such code as it is.
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
else:
    print("skipped: with a compiler, the errors of eager and of compiled code")

# %% jupyter={"source_hidden": true}
# A question: run this cell, then choose.
if can_compile:
    predict("compile.rounding", "In 16 bits, which is closer to the exact result?",
            ["eager", "compiled", "both the same"],
            seen="compiled" if errors["compiled"] < errors["eager"] else "eager",
            because="Eager code rounds to 16 bits after every operation. The fused loop computes "
            "in float32 and rounds once, at the end.")

claim(
    "in 16 bits, compiled is closer to float64 than eager",
    lambda: errors["compiled"] < errors["eager"],
    needs="compiler",
)

# %% [markdown]
# The compiler makes a second graph for the backward pass, so gradients are compiled as well.

# %% jupyter={"source_hidden": true}
# Gradients, eager and compiled: run this cell.
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
# Random numbers are another matter.

# %%
def drop(x):
    return nn.functional.dropout(x, 0.5)


def seeded(function):
    torch.manual_seed(0)
    return function(torch.ones(1000, device=device))


torch.compiler.reset()
compiled_drop = torch.compile(drop)

# %% jupyter={"source_hidden": true}
# A question: run this cell, then choose.
def with_fallback_random():
    torch.compiler.reset()
    with torch._inductor.config.patch(fallback_random=True):
        return torch.equal(seeded(drop), seeded(torch.compile(drop)))


if can_compile:
    predict("compile.dropout", "With one seed, do eager and compiled dropout drop the same values?",
            ["yes", "no"],
            seen="yes" if torch.equal(seeded(drop), seeded(compiled_drop)) else "no",
            because="Compiled code has a random number generator of its own. While you debug, "
            "`torch._inductor.config.fallback_random = True` makes it use eager's.")
claim(
    "with the same seed, compiled dropout drops the same values each time",
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
# Compiled code is kept in this process, and in a cache folder on disk. (It is safe to delete, and
# `TORCHINDUCTOR_CACHE_DIR` moves it.) `torch.compiler.reset()` clears what the process keeps, not
# the folder. The next cell calls the model twice as if for the first time: with an empty folder,
# and, after `reset()`, with what the first call left there.

# %% jupyter={"source_hidden": true}
# Two first calls: run this cell.
print("the compiler's cache is in", cache_dir())


def first_call():
    """Seconds for the first call of a model that this process knows nothing about, and counts."""
    torch.compiler.reset()
    counters.clear()
    compiled = torch.compile(model)
    seconds = time_calls(lambda: compiled(input_data), 1)[0]
    return seconds, counters["stats"]["unique_graphs"], counters["inductor"]["fxgraph_cache_miss"]


if can_compile:
    model.eval()
    with torch.no_grad(), fresh_cache():
        cold_seconds, _, cold_misses = first_call()
        warm_seconds, warm_graphs, warm_misses = first_call()
else:
    print("skipped: with a compiler, the times of both")

# %% jupyter={"source_hidden": true}
# A question: run this cell, then choose.
if can_compile:
    predict("compile.cache", "What must be made again in the second first call, after `reset()`?",
            {"nothing": (0, 0), "the graph; its code is in the folder": (1, 0),
             "the graph and its code": (1, 1)}, seen=(warm_graphs, warm_misses),
            because="Your Python is read and captured once more. The code for the graph is found "
            "on disk, as it is in a new process.")
claim("with an empty cache, one graph is missing from it", lambda: cold_misses, 1, needs="compiler")
claim("with a warm cache, no graph is missing from it", lambda: warm_misses, 0, needs="compiler")

# %% jupyter={"source_hidden": true}
# The first call, without and with the cache: run this cell.
if can_compile:
    figure, axes = plt.subplots(figsize=(7, 2.4))
    names = ["first call, empty cache", "first call, warm cache", "later call"]
    bars = axes.barh(names, [cold_seconds, warm_seconds, later], color=["C1", "C0", "C2"])
    axes.bar_label(bars, fmt=" %.2g s")
    axes.set(xscale="log", xlabel="seconds", title="The first call, without and with the cache")
    axes.invert_yaxis()
    axes.margins(x=0.2)
    plt.show()

# %% [markdown]
# A service therefore **warms up**: before it takes the first request, it calls the model once for
# each kind of input that it will get. If the cache folder outlives the container, a restart is fast
# too. What counts as "another kind of input" is the subject of the second half of this lab.

# %% [markdown]
# ## The modes, and what each of them does
#
# `mode=` is a name for a few options. `mode="reduce-overhead"` is widely used. What does it reduce?

# %%
modes = torch._inductor.list_mode_options()

# %% jupyter={"source_hidden": true}
# A question: run this cell, then choose.
predict("compile.reduce_overhead", '`mode="reduce-overhead"` sets one option. What does it do?',
        ["it uses less memory", "it records the GPU's work and replays it", "it skips checks in each call"],
        seen="it records the GPU's work and replays it"
        if modes["reduce-overhead"] == {"triton.cudagraphs": True} else str(modes),
        because="The option turns on CUDA graphs. They need more memory, not less.")
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

# %%
for name, options in modes.items():
    listed = ", ".join(f"{key}={value}" for key, value in options.items()) or "nothing"
    print(f"{name:<28}{textwrap.shorten(listed, 84, placeholder=' ...')}")

# %% [markdown]
# The overhead in the name is the time that Python and the launches of each call take. *CUDA graphs*
# record the calls to the GPU once, and replay them as a whole. A replay needs the same addresses
# each time, so memory is held between calls ("at the cost of more memory usage", says torch's
# documentation). On a CPU the option does nothing.
#
# `max-autotune` tries several ways to write each matrix product and keeps the fastest: the longest
# compile. A mode changes how the code is made, not what it computes.

# %% jupyter={"source_hidden": true}
# The result of each mode: run this cell.
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
# ### Optional: what CUDA graphs keep
#
# The memory, measured on a CUDA device. After a few calls, the cell drops the results and lets
# torch return unused memory (`empty_cache`). What torch still holds, beyond the model and its
# input, is what the mode keeps between calls.

# %% jupyter={"source_hidden": true}
# Memory that each mode keeps, on a CUDA device: run this cell.
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
    axes.set(xlabel="MiB kept between calls", title="Memory that each mode keeps")
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
# Fixed addresses have another consequence. The first calls warm up and record; from the third call
# on, each call is a replay, and writes its result to the same address.

# %% jupyter={"source_hidden": true}
# A question: run this cell, then choose.
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


on_cuda = device.type == "cuda"
predict("compile.overwritten", "`f(x)` is `x * 2 + 1`, replayed. `first = f(1)`, then `f(2)`. What "
        "does `first` hold now?",
        {"3, its own result": 3.0, "5, the result of the next call": 5.0, "an error": None},
        # Without a CUDA device: what the H100 of docs/results/ showed in the claim below.
        seen=lambda: read_after_next_call(3)[0].item() if on_cuda else 5.0,
        because="There is no error: both calls write to one address."
        + ("" if on_cuda else " (No GPU is here: an H100 showed this.)"))
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
# There are two remedies. `clone()` a result that you need later. Or mark where an iteration begins,
# with `torch.compiler.cudagraph_mark_step_begin()`: then all results of one iteration stay valid
# until the next one begins. (For results of the first two calls, PyTorch raises.)

# %% [markdown]
# ## What is captured
#
# Two parts work together. **Dynamo** reads your Python bytecode before it runs, and captures the
# tensor operations as a *graph*. A **backend**, a plain function, turns the graph into a callable.
# The default one, Inductor, wrote the C++ or Triton above. The one below compiles nothing: it keeps
# each graph and runs it as it is, which shows what Dynamo does.

# %%
class GraphCounter:
    """A backend that keeps each graph that it gets from Dynamo, and runs it unchanged."""

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
counts = [counter.count]
for x in (torch.ones(2, 3), torch.randn(2, 3)):
    watched(x)
    counts.append(counter.count)

# %% jupyter={"source_hidden": true}
# A question: run this cell, then choose.
operations = [node.target for node in counter.graphs[0].graph.nodes if node.op.startswith("call")]
predict("compile.unrolled", "`thrice` has a loop of 3 rounds and an `if`. How many operations does "
        "its graph have?", [1, 2, 4, 7], seen=len(operations),
        because="The loop has a fixed length, and is unrolled. The number of dimensions is known "
        "while the graph is captured, so the `if` is decided.")
claim("the loop is unrolled and the if is decided: four operations are left", len(operations), 4)
claim("wrapping alone captures nothing", counts[0], 0)
claim("the first call captures one graph", counts[1], 1)
claim("a second call with the same kind of input captures nothing new", counts[2], 1)

# %% [markdown]
# This is the code of the graph. It has neither a loop nor an `if`.

# %%
print(counter.graphs[0].code)

# %% [markdown]
# ## Graph breaks
#
# Some code cannot be part of a graph: a `print`, or an `if` on a value that exists only after the
# graph has run. There Dynamo ends the graph, lets Python do that step, and begins a new graph: a
# *graph break*. It costs time in Python, and nothing is fused across it. `torch._dynamo.explain`
# runs a function once and reports its graphs and its breaks.

# %%
def talkative(x):
    y = x * 2
    print("half way")
    if y.sum() > 0:
        return y + 1
    return y - 1


explanation = torch._dynamo.explain(talkative)(torch.ones(4))

# %% jupyter={"source_hidden": true}
# A question: run this cell, then choose.
predict("compile.graphs", "As how many graphs is `talkative` captured?", [1, 2, 3, "none"],
        seen=explanation.graph_count,
        because="It breaks at the `print` and at the `if` on a value. The result is still right.")
claim("talkative is captured as three graphs", explanation.graph_count, 3)
claim("there are two breaks between them", explanation.graph_break_count, 2)

# %% jupyter={"source_hidden": true}
# The reason of each break, and a picture: run this cell.
for reason in explanation.break_reasons:
    print(f"break at `{reason.user_stack[-1].line}`: {reason.reason.splitlines()[0]}")

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
# (`generic_jump` is Dynamo's word for an `if` on a tensor.)
#
# Graph breaks are silent: your program only gets slower. `fullgraph=True` makes them errors, and
# the message names the line.

# %%
def branching(x):
    if x.sum() > 0:
        return x * 2
    return x - 1

# %% jupyter={"source_hidden": true}
# Graph breaks as errors: run this cell.
torch.compiler.reset()
claim_raises(
    "with fullgraph=True a print raises Unsupported",
    torch._dynamo.exc.Unsupported,
    lambda: torch.compile(talkative, backend="eager", fullgraph=True)(torch.ones(4)),
    match="print",
)
claim_raises(
    "with fullgraph=True an if on a value raises Unsupported too",
    torch._dynamo.exc.Unsupported,
    lambda: torch.compile(branching, backend="eager", fullgraph=True)(torch.ones(4)),
    match="Data-dependent branching",
)

# %% [markdown]
# ## Exercise: remove the graph break
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
# It must compile with `fullgraph=True`, and must not change `x`. The caller can then print the
# mean.

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
# `torch.where(condition, a, b)` computes both `a` and `b`, and then selects. In a fused kernel the
# second computation costs very little, and there is no graph break.

# %%
def selecting(x):
    return torch.where(x.sum() > 0, x * 2, x - 1)


claim(
    "torch.where causes no graph break",
    torch._dynamo.explain(selecting)(torch.ones(4)).graph_break_count,
    0,
)
for values in (torch.ones(4), -torch.ones(4)):
    claim(f"selecting and branching give the same for {values.tolist()}", selecting(values),
          branching(values))

# %% [markdown]
# ## Exercise: clip by norm
#
# Gradient clipping scales a tensor down if its norm is too large:
#
# ```python
# def clip(x):
#     norm = x.norm()
#     if norm > limit:
#         return x * (limit / norm)
#     return x
# ```
#
# Write `make_clipper(limit)`. `limit` is a float above 0. It returns a function of `x` that does
# the same for an `x` of any shape, as one graph with `fullgraph=True`, and does not change `x`. For
# a tensor of zeros it returns zeros.

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
# ## Guards: when may a graph be used again?
#
# With each graph Dynamo keeps **guards**: the conditions under which it may be used again. It checks
# them before each call. If no graph fits, Dynamo captures and compiles once more: a *recompile*, in
# the middle of your program. `watched` below is `shift`, compiled.

# %%
offset = 1.0


def shift(x):
    return x + offset

# %% jupyter={"source_hidden": true}
# Calls with several kinds of input, and the log of recompiles: run this cell.
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


def call_under(context, x):
    with context:
        watched(x)


torch.compiler.reset()
torch._logging.set_logs(recompiles=True)
counter = GraphCounter()
watched = torch.compile(shift, backend=counter)
x = torch.randn(4, 4)
counts, table = {}, []
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
        # The log says for each graph why it does not fit; the last line is about the first graph.
        why = lines[0].splitlines()[-1].partition(": ")[2] if lines else ""
        compiles = "compiled" if counts[change] else "        "
        table.append(f"{change:<28}{compiles}  {textwrap.shorten(why, 72, placeholder=' ...')}")
torch._logging.set_logs()

# %% jupyter={"source_hidden": true}
# A question: run this cell, then choose.
predict("compile.guards", "`watched` has compiled for a 4 by 4 tensor `x`. Which of these calls "
        "compile again: `watched(x + 1)`, `watched(x.t())`, `watched(x)` under `no_grad`?",
        {"none: shape and dtype are the same": (0, 0, 0), "x.t()": (0, 1, 0),
         "x.t(), and x under no_grad": (0, 1, 1), "all three": (1, 1, 1)},
        seen=(counts["other values"], counts["other strides (transposed)"], counts["no_grad"]),
        because="Values are not guarded. Strides and the grad mode are, because the code that "
        "was made depends on them.")
claim("other values need no recompile", counts["other values"], 0)
claim("another dtype recompiles", counts["another dtype"], 1)
claim("other strides recompile, although the shape is the same",
      counts["other strides (transposed)"], 1)
claim("requires_grad recompiles", counts["requires_grad"], 1)
claim("another grad mode recompiles", counts["no_grad"], 1)
claim("inference mode recompiles", counts["inference_mode"], 1)
claim("graphs made earlier are kept and used again", counts["the first kind again"], 0)

# %%
print("\n".join(table))

# %% [markdown]
# The table shows how each call differs from the first one. The reasons are from torch's log: the
# environment variable `TORCH_LOGS=recompiles` turns it on.
#
# Guards cover more than the arguments. `shift` reads `offset`, a global variable. What happens if
# it changes between two calls?

# %%
torch.compiler.reset()
counter = GraphCounter()
watched = torch.compile(shift, backend=counter)
zeros = torch.zeros(3)
offset = 1.0
watched(zeros)
offset = 5.0
after_change = watched(zeros)

# %% jupyter={"source_hidden": true}
# A question: run this cell, then choose.
predict("compile.global", "`offset` was 1 when `shift` was compiled, and is 5 now. What does "
        "`watched(zeros)` give?", {"1, as compiled": zeros + 1, "5, compiled again": zeros + 5,
        "an error": None}, seen=after_change,
        because="Globals that the code reads are guarded. So are attributes of a module: "
        "`model.eval()` costs a second compile too.")
claim("a changed global is seen", after_change, zeros + 5)
claim("the changed global costs a second compile", counter.count, 2)

counter = GraphCounter()
dropout = nn.Dropout(0.5)
watched_dropout = torch.compile(dropout, backend=counter)
ones = torch.ones(3)
watched_dropout(ones)
dropout.eval()
claim("in eval mode, dropout drops nothing", watched_dropout(ones), ones)
claim("the switch to eval mode costs a second compile", counter.count, 2)

# %% [markdown]
# In a service or a test, an unexpected recompile is better as an error.
# `torch.compiler.set_stance` makes it one.

# %%
torch.compiler.reset()
strict = torch.compile(selecting, backend="eager")
strict(torch.ones(4))
with torch.compiler.set_stance("fail_on_recompile"):
    claim("a call that fits a compiled graph still runs", strict(torch.ones(4)),
          selecting(torch.ones(4)))
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
# a backend of your own and default settings, call it on each input in turn, and return how many
# graphs the backend got in total, as an `int`.
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
# Real inputs differ in size: the last batch is smaller, and sentences have different lengths. At
# first Dynamo takes each size as a constant. It can also make a size *dynamic*: any number fits.
# `dynamic=True` does so from the start, `dynamic=False` never does, and `mark_dynamic(x, 0)` does
# it for one dimension of one tensor.

# %%
def row_sums(x):
    return (x * 2 + 1).relu().sum(dim=1)


shapes = [(3, 4), (5, 4), (7, 4), (9, 4), (1, 4), (11, 6)]

# %% jupyter={"source_hidden": true}
# Graphs compiled, after each of the shapes: run this cell.
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


totals = {
    "default": compiles_over_shapes(shapes),
    "dynamic=True": compiles_over_shapes(shapes, dynamic=True),
    "dynamic=False": compiles_over_shapes(shapes, dynamic=False),
    "mark_dynamic(x, 0)": compiles_over_shapes(shapes, mark=True),
}

# %% jupyter={"source_hidden": true}
# A question: run this cell, then choose.
predict("compile.sizes", "Default settings: calls with 3, 5, 7 and 9 rows, and then with 1 row. "
        "How many graphs?", [1, 2, 3, 5], seen=totals["default"][4],
        because="The second size recompiles, and makes the number of rows dynamic: 7 and 9 rows "
        "fit. The sizes 0 and 1 always get graphs of their own, since a size of 1 broadcasts.")
claim("by default, the second number of rows recompiles, and further ones do not",
      totals["default"], [1, 2, 2, 2, 3, 4])
claim("dynamic=True makes sizes dynamic from the start",
      totals["dynamic=True"], [1, 1, 1, 1, 2, 2])
claim("dynamic=False compiles for each shape",
      totals["dynamic=False"], [1, 2, 3, 4, 5, 6])
claim("mark_dynamic(x, 0) makes the rows dynamic, not the columns",
      totals["mark_dynamic(x, 0)"], [1, 1, 1, 1, 2, 3])
claim(
    "even with dynamic=True, 0 rows and 1 row get graphs of their own",
    compiles_over_shapes([(5, 4), (50, 4), (1, 4), (0, 4), (500, 4)], dynamic=True),
    [1, 1, 2, 3, 3],
)

# %% jupyter={"source_hidden": true}
# Graphs after each shape: run this cell, then look where each line rises.
figure, axes = plt.subplots()
for place, (name, values) in enumerate(totals.items()):
    raised = [value + 0.06 * place for value in values]  # so that no line hides another
    axes.plot(range(len(shapes)), raised, "o-", label=name)
axes.set_xticks(range(len(shapes)), [str(shape) for shape in shapes])
axes.set(xlabel="shape, in the order of the calls", ylabel="graphs compiled so far",
         title="One function, six shapes")
axes.legend()
plt.show()

# %% [markdown]
# Look at `(1, 4)`: every line rises there, even that of `dynamic=True`. A batch that is sometimes 1
# costs one more compile. Include it in the warm-up.
#
# `mark_dynamic` is a promise that the size may be any number. If your code makes it a constant, as
# in `if x.shape[0] == 4`, you get an error.

# %% jupyter={"source_hidden": true}
# A marked size that the code makes a constant: run this cell.
def knows_four(x):
    return x.sum() if x.shape[0] == 4 else x.mean()


def compile_marked():
    torch.compiler.reset()
    x = torch.ones(4, 3)
    torch._dynamo.mark_dynamic(x, 0)
    return torch.compile(knows_four, backend="eager")(x)


# The same error is also logged, with a long trace that is not shown here.
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
# Dynamo limits the number of graphs for one function.

# %% jupyter={"source_hidden": true}
# The limit, and a function that needs many graphs: run this cell.
limit = torch._dynamo.config.recompile_limit
print("most graphs for one function:", limit)
print("most graphs for all functions that share its code:",
      torch._dynamo.config.accumulated_recompile_limit)


def compile_many_sizes(sizes, **options):
    """The number of graphs compiled over vectors of so many sizes, each a constant."""
    torch.compiler.reset()
    counter = GraphCounter()
    compiled = torch.compile(thrice, backend=counter, dynamic=False, **options)
    for size in range(2, 2 + sizes):
        compiled(torch.ones(size))
    return counter.count

# %% jupyter={"source_hidden": true}
# A question: run this cell, then choose.
with caught_logs("torch._dynamo.convert_frame") as lines:
    predict("compile.limit", f"{limit} sizes are compiled, and no more is allowed. What happens in "
            "a call with one more size?",
            ["it raises", "it replaces the oldest graph", "it runs eagerly"],
            seen=lambda: "it runs eagerly" if compile_many_sizes(limit + 1) == limit
            else "it replaces the oldest graph",
            because="One warning in the log says so, which is easy to miss.")
    lines.clear()
    claim(f"{limit} sizes make {limit} graphs", compile_many_sizes(limit), limit)
    claim("up to the limit, nothing is logged", len(lines), 0)
    claim("three more sizes make no more graphs", compile_many_sizes(limit + 3), limit)
    claim("past the limit, one warning is logged", len(lines), 1)
    print(lines[0].splitlines()[0])
    claim_raises(
        "with fullgraph=True the limit is an error",
        torch._dynamo.exc.FailOnRecompileLimitHit,
        lambda: compile_many_sizes(limit + 3, fullgraph=True),
    )

# %% [markdown]
# You can raise the limit, but that is rarely the answer. Rather ask why there are so many kinds of
# input: make sizes dynamic, keep one dtype and one layout, or reduce the sizes to a few. The last
# one is the next exercise.

# %% [markdown]
# ## Exercise: many lengths, few graphs
#
# Sometimes a dynamic size is not possible: CUDA graphs, for example, replay fixed shapes. Then
# inputs are padded to the next multiple of a *bucket* size, and each bucket needs one graph.
#
# Write `compile_in_buckets(function, bucket, backend)`:
#
# - `function` takes `x` of shape `(n, d)` and computes each row independently. Its result has `n`
#   rows: its shape is `(n,)` or `(n, k)`.
# - Return a function of `x`, with `n >= 1`, that returns what `function(x)` returns. It does not
#   change `x`.
# - Compile with the given `backend`. The only sizes that it may get are the smallest multiples of
#   `bucket` that the inputs fit into, as fixed sizes, with one graph for each. There are at most
#   eight of them (Dynamo's limit for one function).
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
# - Measure on your machine, with your shapes: the first call, later calls, and the number of calls.
# - Compare with a tolerance. Warm up with every kind of input. Keep the cache.
# - Use `fullgraph=True` while you develop: a graph break that is an error gets fixed.
# - Shapes, dtypes, strides, the grad mode and even globals are guarded. Count your compiles.
# - `reduce-overhead` and `max-autotune` use CUDA graphs: faster launches, more memory.
# - `torch.compiler.reset()` clears what this process compiled.
#
# Next: [Functional transforms](05_functional.ipynb): gradients as functions, for a whole batch
# at once.
