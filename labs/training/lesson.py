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
# # Training a network, and what makes it faster
#
# You train a small network that writes the next character of a text. First you compute gradients by
# hand, then with torch's modules and optimizers. Then you try what is said to make training faster
# or smaller (bfloat16, `torch.compile`, activation checkpointing), and measure on this machine what
# each of them brings. The other labs took torch apart; this one puts the parts together.
#
# The cells below show where you start: a text by a model that knows nothing, and one by a model
# that has counted which character follows which. Your network will do better than both.

# %% jupyter={"source_hidden": true}
# Imports: run this cell first.
import copy
import math
import time

import matplotlib.pyplot as plt
import torch
from torch import nn
from torch.nn import functional as F
from torch.profiler import ProfilerActivity, profile
from torch.utils.checkpoint import checkpoint

from labkit import check, claim, claim_raises, predict, track_memory
from labkit.lessons.catalog import find_labs
from labkit.lessons.pictures import use_lab_style

torch.manual_seed(0)
use_lab_style()
device = torch.device("cuda" if torch.cuda.is_available() else "cpu")

# %% [markdown]
# ## The data: text as numbers
#
# The text is that of the labs themselves. A network takes numbers, so each character becomes its
# place in a list of all characters, the *vocabulary*. A tenth of the text is *held out*: the
# network never trains on it, so its loss there shows whether the network learned the language or
# only this text.

# %%
text = "\n".join(lab.lesson.read_text(encoding="utf-8") for lab in find_labs())
text = "".join(c for c in text if c == "\n" or 32 <= ord(c) < 127)
vocabulary = sorted(set(text))
number_of = {character: number for number, character in enumerate(vocabulary)}
ids = torch.tensor([number_of[character] for character in text])
SIZE = len(vocabulary)

split = len(ids) * 9 // 10
train_ids, held_out_ids = ids[:split], ids[split:]
print(f"{len(text):,} characters, {SIZE} different ones; this lab trains on {device}")

claim("a text is numbers and back, with nothing lost",
      "".join(vocabulary[i] for i in ids[:500]) == text[:500])
claim("character numbers are int64, as embeddings and cross_entropy want them", ids.dtype,
      torch.int64)

# %% jupyter={"source_hidden": true}
# Two models without a network: run this cell, then read what they write.
def write_text(chances, length=70):
    """Characters drawn from a table: row i has the chances of each character after character i."""
    draw = torch.Generator().manual_seed(0)
    written = [number_of["T"]]
    for _ in range(length):
        written.append(int(torch.multinomial(chances[written[-1]], 1, generator=draw)))
    return "".join(vocabulary[i] for i in written)


def perplexity(chances):
    """Between how many characters the table hesitates, on the held-out text."""
    return chances[held_out_ids[:-1], held_out_ids[1:]].log().mean().neg().exp().item()


uniform = torch.full((SIZE, SIZE), 1 / SIZE)
pairs = torch.full((SIZE, SIZE), 0.1).index_put_(
    (train_ids[:-1], train_ids[1:]), torch.tensor(1.0), accumulate=True
)
counted = pairs / pairs.sum(dim=1, keepdim=True)
for name, chances in {"knows nothing": uniform, "counted pairs": counted}.items():
    print(f"{name}: perplexity {perplexity(chances):.1f}, writes {write_text(chances)!r}")

# %% [markdown]
# The *perplexity* says between how many equally likely characters a model hesitates. It is the
# exponential of the loss that you will train with.

# %% [markdown]
# ## Exercise: every window is an example
#
# To learn, the network sees a *context* of a few characters and predicts the next one. A text of n
# characters has n - length such examples, one at each place.
#
# Write `context_pairs(ids, length)`. `ids` has shape `(n,)` with n > length. Return a tuple
# `(contexts, targets)`: `contexts` has shape `(n - length, length)`, and row i holds the
# characters i to i + length - 1; `targets` has shape `(n - length,)`, and entry i is the
# character that follows that row. For `ids = [5, 6, 7, 8]` and `length = 2` the contexts are
# `[[5, 6], [6, 7]]` and the targets are `[7, 8]`. The text is long: do it without a loop.

# %%
def context_pairs(ids: torch.Tensor, length: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns all contexts of the given length, and the character after each."""
    ### BEGIN SOLUTION
    return ids.unfold(0, length, 1)[:-1], ids[length:]
    ### END SOLUTION


# %%
check("training.context_pairs", context_pairs)

# %% [markdown]
# ## A first model: one table, gradients by hand
#
# The smallest model sees one character only. It has a table of `SIZE` rows; row c has a score (a
# *logit*) for each character that may follow c. Softmax turns scores into probabilities, and the
# loss is the *cross-entropy*: minus the logarithm of the probability that the model gave to the
# character that came next. At first all scores are 0, so every character is equally likely.

# %%
CONTEXT = 12


def examples_at(ids, places):
    """The contexts that begin at these places, and the character after each."""
    return ids[places[:, None] + torch.arange(CONTEXT)], ids[places + CONTEXT]


# The lab makes its own examples, so it works without your answer above.
contexts, targets = examples_at(train_ids, torch.arange(len(train_ids) - CONTEXT))
held_contexts, held_targets = examples_at(
    held_out_ids, torch.arange(len(held_out_ids) - CONTEXT)
)

table = torch.zeros(SIZE, SIZE)
first_loss = F.cross_entropy(table[contexts[:, -1]], targets)

# %% jupyter={"source_hidden": true}
# A question: run this cell, then choose.
predict("training.first_loss", f"All scores are 0, and there are {SIZE} characters. How large is "
        "the cross-entropy?", {"0": 0.0, "1": 1.0, f"log({SIZE}) = {math.log(SIZE):.2f}": "log",
        str(SIZE): float(SIZE)},
        seen=lambda: "log" if abs(first_loss.item() - math.log(SIZE)) < 1e-3 else first_loss.item(),
        because="Each character has the probability 1 / number of classes.")
claim("a model that knows nothing has a loss of log(number of classes)", first_loss.item(),
      math.log(SIZE), within=1e-3)
claim("cross_entropy is log_softmax, then the mean of minus the target's entry",
      F.cross_entropy(table[contexts[:9, -1]], targets[:9]),
      -F.log_softmax(table[contexts[:9, -1]], dim=1)[torch.arange(9), targets[:9]].mean())

# %% [markdown]
# Remember this first loss. If your own network starts far above it, the weights of its last layer
# are too large; if it starts far below, the target has leaked into the input.
#
# ## Exercise: the gradient of cross-entropy
#
# This gradient is simple: probability minus 1 for the right class, probability minus 0 for the
# others. (The cell after the exercise uses it: try before you look.)
#
# Write `cross_entropy_gradient(logits, targets)`: the gradient of the mean cross-entropy with
# respect to `logits`, of shape `(batch, classes)`, by hand: without autograd, and without a loop.
# Remember the mean: it divides by the batch size. The result must not require grad, even if
# `logits` does.

# %%
def cross_entropy_gradient(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Returns the gradient of F.cross_entropy(logits, targets) with respect to the logits."""
    ### BEGIN SOLUTION
    with torch.no_grad():
        right = F.one_hot(targets, logits.shape[1])
        return (logits.softmax(dim=1) - right) / len(targets)
    ### END SOLUTION


# %%
check("training.cross_entropy_gradient", cross_entropy_gradient)

# %% [markdown]
# With this gradient, a training loop does not need autograd. Each step takes a random batch, and
# adds up the gradient of each table row over the examples that used it. The best that the table can
# learn is the *bigram* counts: how often character b followed character a.

# %%
def train_table_by_hand(steps, rate, batch=512):
    draw = torch.Generator().manual_seed(1)
    table = torch.zeros(SIZE, SIZE)
    for _ in range(steps):
        rows = torch.randint(len(targets), (batch,), generator=draw)
        last, wanted = contexts[rows, -1], targets[rows]
        by_logits = (table[last].softmax(dim=1) - F.one_hot(wanted, SIZE)) / batch
        table.index_add_(0, last, by_logits, alpha=-rate)
    return table


trained_table = train_table_by_hand(steps=400, rate=50.0)
bigrams = counted.log()  # from the start of this lab


def held_out_loss(logits_of):
    return F.cross_entropy(logits_of(held_contexts), held_targets).item()


table_loss = held_out_loss(lambda contexts: trained_table[contexts[:, -1]])
bigram_loss = held_out_loss(lambda contexts: bigrams[contexts[:, -1]])
print(f"held-out loss: table by gradients {table_loss:.3f}, counted bigrams {bigram_loss:.3f}")

leaf = torch.randn(SIZE, SIZE, requires_grad=True)
F.cross_entropy(leaf[contexts[:64, -1]], targets[:64]).backward()
by_hand = torch.zeros(SIZE, SIZE).index_add_(
    0, contexts[:64, -1],
    (leaf.detach()[contexts[:64, -1]].softmax(dim=1) - F.one_hot(targets[:64], SIZE)) / 64,
)
claim("the gradient by hand is autograd's", by_hand, leaf.grad, within=1e-6)
claim("training by gradients comes close to the counted bigrams", table_loss, bigram_loss,
      within=0.25)

# %% [markdown]
# ## A module: parameters with names
#
# More context needs more layers, and computing their gradients by hand is too much work. An
# `nn.Module` collects the parameters of all its submodules, each under a name. An optimizer gets
# `model.parameters()`; a checkpoint saves `model.state_dict()`.

# %%
class Block(nn.Module):
    """A residual block: adds the output of two linear layers to its input."""

    def __init__(self, width):
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.up = nn.Linear(width, 4 * width)
        self.down = nn.Linear(4 * width, width)

    def forward(self, x):
        return x + self.down(F.gelu(self.up(self.norm(x))))


class NextCharacter(nn.Module):
    """The scores (logits) of the next character, from the last CONTEXT characters."""

    def __init__(self, width=96, blocks=2, dropout=0.0, checkpointed=False):
        super().__init__()
        self.embed = nn.Embedding(SIZE, 24)
        self.enter = nn.Linear(24 * CONTEXT, width)
        self.blocks = nn.ModuleList(Block(width) for _ in range(blocks))
        self.drop = nn.Dropout(dropout)
        self.leave = nn.Linear(width, SIZE)
        self.checkpointed = checkpointed

    def forward(self, contexts):
        x = self.enter(self.embed(contexts).flatten(1))
        for block in self.blocks:
            x = checkpoint(block, x, use_reentrant=False) if self.checkpointed else block(x)
        return self.leave(self.drop(x))


torch.manual_seed(0)
model = NextCharacter().to(device)
names = [name for name, _ in model.named_parameters()]
count = sum(p.numel() for p in model.parameters())
print(f"{count:,} parameters in {len(names)} tensors; the first are {names[:4]}")

in_a_block = 2 * 96 + (96 * 384 + 384) + (384 * 96 + 96)
claim("the count by hand: embedding, weights and biases", count,
      SIZE * 24 + (24 * CONTEXT * 96 + 96) + 2 * in_a_block + (96 * SIZE + SIZE))


class Forgetful(nn.Module):
    def __init__(self):
        super().__init__()
        self.layers = [nn.Linear(2, 2)]

# %% jupyter={"source_hidden": true}
# A question: run this cell, then choose.
predict("training.plain_list", "`Forgetful` keeps a layer (a weight and a bias) in a plain list. "
        "How many parameters does `parameters()` find?", [0, 1, 2],
        seen=len(list(Forgetful().parameters())),
        because="Use `nn.ModuleList`: a module does not look into lists.")
claim("the parameters of layers in a plain list are not found: they would never be trained",
      len(list(Forgetful().parameters())), 0)
claim("a fresh network starts near log(SIZE)",
      F.cross_entropy(model(contexts[:512].to(device)), targets[:512].to(device)).item(),
      math.log(SIZE), within=0.5)

# %% [markdown]
# ## The optimizer: what step() does
#
# An optimizer holds references to the parameters. `step()` changes them in place, using their
# `.grad`; `zero_grad()` clears the gradients. For SGD, a step is one line: parameter minus learning
# rate times gradient. The optimizer needs the *leaves* themselves, so move the model to its device
# first.

# %%
weight = nn.Parameter(torch.tensor([1.0, -2.0]))
sgd = torch.optim.SGD([weight], lr=0.1)
(weight**2).sum().backward()
sgd.step()
after_one = weight.detach().clone()
sgd.step()
after_two = weight.detach().clone()

# %% jupyter={"source_hidden": true}
# A question: run this cell, then choose.
predict("training.second_step", "The first step takes the weight from 1 to 0.8. What does a second "
        "`step()` give, without `backward()` in between?",
        {"0.8, there is no new gradient": 0.8, "0.6": 0.6, "0.64": 0.64},
        seen=round(after_two[0].item(), 4), because="`step()` does not clear `.grad`.")
claim("SGD: parameter - learning rate * gradient", after_one, torch.tensor([0.8, -1.6]))
claim("step() does not clear .grad: a second step uses the old gradient", after_two,
      torch.tensor([0.6, -1.2]))

# %%
sgd.zero_grad()
before = weight.detach().clone()
sgd.step()

# %% jupyter={"source_hidden": true}
# A question: run this cell, then choose.
predict("training.no_gradient", "After `zero_grad()`, what does `step()` do?",
        ["it changes nothing", "it raises", "it repeats the last step"],
        seen="it changes nothing" if torch.equal(weight.detach(), before) else "something else",
        because="`.grad` is None, and an optimizer skips parameters without a gradient.")
claim("after zero_grad(), .grad is None and step() skips the parameter",
      (weight.grad is None, torch.equal(weight.detach(), before)), (True, True))
claim_raises("the optimizer refuses a tensor that was computed", ValueError,
             lambda: torch.optim.SGD([torch.ones(2, requires_grad=True) * 2], lr=0.1),
             match="non-leaf")

# %% [markdown]
# ## Exercise: one step of Adam
#
# Adam keeps two running averages for each parameter: `m` of the gradients, and `v` of their
# squares. Both start at 0, so early averages are too small; dividing by `1 - beta ** t` corrects
# this. With t = 1 for the first step:
#
# $$m \leftarrow \beta_1 m + (1 - \beta_1) g$$
# $$v \leftarrow \beta_2 v + (1 - \beta_2) g^2$$
# $$p \leftarrow p - \text{rate} \cdot \frac{m / (1 - \beta_1^t)}{\sqrt{v / (1 - \beta_2^t)} + \epsilon}$$
#
# Write `adam_step(p, g, averages, t, rate)`, where `averages` is `(m, v)`, with $\beta_1 = 0.9$,
# $\beta_2 = 0.999$ and $\epsilon = 10^{-8}$. Return the new `(p, m, v)`. Do not change the
# arguments.

# %%
def adam_step(p: torch.Tensor, g: torch.Tensor, averages: tuple[torch.Tensor, torch.Tensor],
              t: int, rate: float) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Returns the parameter and both averages after one step of Adam."""
    ### BEGIN SOLUTION
    m, v = averages
    m = 0.9 * m + 0.1 * g
    v = 0.999 * v + 0.001 * g**2
    corrected_m, corrected_v = m / (1 - 0.9**t), v / (1 - 0.999**t)
    return p - rate * corrected_m / (corrected_v.sqrt() + 1e-8), m, v
    ### END SOLUTION


# %%
check("training.adam_step", adam_step)

# %% [markdown]
# In the next cell, three entries have gradients of very different sizes: 0.001, 1 and -1000. How
# far does the first step of Adam move each of them?

# %%
parameter = nn.Parameter(torch.tensor([1.0, 1.0, 1.0]))
adam = torch.optim.Adam([parameter], lr=0.01)
parameter.grad = torch.tensor([1e-3, 1.0, -1e3])
adam.step()

# %% jupyter={"source_hidden": true}
# A question: run this cell, then choose.
predict("training.adam", "How far does each entry move, with a learning rate of 0.01?",
        ["in proportion to its gradient", "all by 0.01", "only the last one moves"],
        seen="all by 0.01" if ((parameter.detach() - 1).abs() - 0.01).abs().max() < 1e-4
        else "in proportion to its gradient",
        because="In the first step, m / (1 - 0.9) is g, and v / (1 - 0.999) is g squared: the "
        "ratio is the sign of g.")
claim("the first step moves every entry by the learning rate, against the sign of its gradient",
      parameter.detach(), torch.tensor([0.99, 0.99, 1.01]), within=1e-4)

# %%
state = [key for key, one in adam.state[parameter].items() if one.shape == parameter.shape]

# %% jupyter={"source_hidden": true}
# A question: run this cell, then choose.
predict("training.adam_memory", "A model's parameters take 1 GiB. How much do the parameters, "
        "their gradients and the state of Adam take together?",
        {"2 GiB": 2, "3 GiB": 3, "4 GiB": 4},
        seen=2 + len(state), because="Adam keeps two tensors for each parameter: m and v.")
claim("Adam's state is two tensors of the parameter's shape: training with it needs memory for the"
      " parameters four times (value, gradient, m, v)",
      sorted(state), ["exp_avg", "exp_avg_sq"])

# %% [markdown]
# ## Exercise: one epoch
#
# Now the loop itself. Write `run_epoch(model, optimizer, batches)`. `batches` is a list of
# `(inputs, targets)`; for each, take one step on `F.cross_entropy(model(inputs), targets)`, with
# the model in training mode. Return the mean loss *per example* as a Python float. The last batch
# may be shorter: then this is not the mean of the batches' means.

# %%
def run_epoch(model, optimizer, batches) -> float:
    """Takes one step for each batch; returns the mean loss of an example."""
    ### BEGIN SOLUTION
    model.train()
    total, examples = 0.0, 0
    for inputs, targets in batches:
        optimizer.zero_grad()
        loss = F.cross_entropy(model(inputs), targets)
        loss.backward()
        optimizer.step()
        total += loss.item() * len(targets)
        examples += len(targets)
    return total / examples
    ### END SOLUTION


# %%
check("training.run_epoch", run_epoch)

# %% [markdown]
# ## First overfit one batch
#
# Before you train for an hour, train for seconds on *one* batch. A network that works learns 64
# examples by heart. If it does not, something is wrong in the loop, the loss or the shapes, and
# more data will not help.

# %%
def train(model, steps, batch=256, rate=3e-3, seed=0, few=None):
    """Trains in place on random batches; returns the losses as floats."""
    draw = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.AdamW(model.parameters(), lr=rate)
    model.train()
    losses = []
    for _ in range(steps):
        rows = few if few is not None else torch.randint(len(targets), (batch,), generator=draw)
        inputs, wanted = contexts[rows].to(device), targets[rows].to(device)
        optimizer.zero_grad()
        loss = F.cross_entropy(model(inputs), wanted)
        loss.backward()
        optimizer.step()
        losses.append(loss.detach())  # .item() here would wait for the device in every step
    return torch.stack(losses).tolist()


by_heart = train(copy.deepcopy(model), steps=100, few=torch.arange(64) * 97)
print(f"one batch of 64: loss {by_heart[0]:.2f} at first, {by_heart[-1]:.4f} after 100 steps")
claim("the network learns 64 examples by heart", by_heart[-1] < 0.1)

# %% [markdown]
# ## Then train
#
# The next cell takes some seconds.

# %%
@torch.no_grad()
def evaluate(model):
    """The held-out loss, in evaluation mode."""
    model.eval()
    parts = zip(held_contexts.split(4096), held_targets.split(4096), strict=True)
    losses = [F.cross_entropy(model(x.to(device)), y.to(device), reduction="sum").item()
              for x, y in parts]
    return sum(losses) / len(held_targets)


losses = train(model, steps=250)
network_loss = evaluate(model)

# %% jupyter={"source_hidden": true}
# A question: run this cell, then choose.
predict("training.beats", "On held-out text, which has the lower loss: the network, which sees 12 "
        "characters, after 250 steps, or the counted bigrams, which see one?",
        ["the network", "the bigrams"],
        seen="the network" if network_loss < bigram_loss else "the bigrams",
        because="A longer context says more about the next character.")
claim("with 12 characters of context, it beats the bigrams on held-out text",
      network_loss < bigram_loss)

# %% jupyter={"source_hidden": true}
# The loss while training: run this cell.
print(f"held-out loss: network {network_loss:.3f}, bigrams {bigram_loss:.3f}")

figure, axes = plt.subplots(figsize=(6.5, 3.4))
axes.plot(losses, label="network, on its training batch")
axes.axhline(network_loss, color="C1", linestyle="--", label="network, held out")
axes.axhline(bigram_loss, color="C2", linestyle=":", label="bigrams, held out")
axes.set(xlabel="step", ylabel="cross-entropy", title="The loss while training")
axes.legend()
plt.show()

# %% jupyter={"source_hidden": true}
# Text that the network writes: run this cell.
@torch.no_grad()
def write_on(model, start, length=160, seed=0):
    """The start, continued with characters drawn from the model's probabilities."""
    draw = torch.Generator().manual_seed(seed)
    model.eval()
    written = [number_of[c] for c in start]
    for _ in range(length):
        scores = model(torch.tensor([written[-CONTEXT:]], device=device))[0].cpu()
        likely = (scores / 0.7).softmax(dim=0)
        written.append(int(torch.multinomial(likely, 1, generator=draw)))
    return "".join(vocabulary[i] for i in written)


print(write_on(model, "# The gradient of "))

# %% [markdown]
# ## Two modes
#
# `model.train()` and `model.eval()` switch the layers that behave differently in training: dropout
# and batch normalization.

# %%
dropping = NextCharacter(dropout=0.5).to(device)
some = contexts[:8].to(device)
dropping.train()
same_in_training = torch.equal(dropping(some), dropping(some))
dropping.eval()

# %% jupyter={"source_hidden": true}
# A question: run this cell, then choose.
predict("training.eval", "The model is in evaluation mode. Does its result still have a graph?",
        ["yes", "no"], seen="yes" if dropping(some).requires_grad else "no",
        because="`eval()` switches layers. `torch.no_grad()` switches the recording of the graph.")
claim("eval() does not stop the recording of gradients", dropping(some).requires_grad)
claim("in training mode, two calls differ: dropout draws again", same_in_training, False)
claim("in evaluation mode they are equal", torch.equal(dropping(some), dropping(some)))

# %% [markdown]
# An evaluation needs `eval()` and `no_grad()`, and `train()` again afterwards.
#
# ## Exercise: an evaluation without side effects
#
# Write `mean_loss(model, batches)`: the mean cross-entropy per example over all batches, in
# evaluation mode and without recording a graph, as a Python float. Afterwards the model is in the
# mode that it was in before, also if that was evaluation mode.

# %%
def mean_loss(model, batches) -> float:
    """Returns the mean loss of an example; the model's mode is as before."""
    ### BEGIN SOLUTION
    was_training = model.training
    model.eval()
    total, examples = 0.0, 0
    with torch.no_grad():
        for inputs, targets in batches:
            total += F.cross_entropy(model(inputs), targets, reduction="sum").item()
            examples += len(targets)
    model.train(was_training)
    return total / examples
    ### END SOLUTION


# %%
check("training.mean_loss", mean_loss)

# %% [markdown]
# ## What does a step cost?
#
# The rest of the lab measures. A *step* is forward, backward and optimizer on one batch. The
# network is wider from here on, and the batch is doubled until a step takes 20 ms: on a fast GPU, a
# small batch would only measure how fast Python launches kernels. The time is that of the shortest
# of several steps, because other programs can only make a step slower; the memory is the peak of
# the tensors that are alive during one step.

# %%
spreads = []
WIDTH, BATCH = (256, 2048) if device.type == "cuda" else (192, 512)


def make_step(model, dtype=None):
    """A function that takes one training step on the fixed batch."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)

    def step():
        optimizer.zero_grad()
        with torch.autocast(device.type, dtype=dtype, enabled=dtype is not None):
            loss = F.cross_entropy(model(inputs), wanted)
        loss.backward()
        optimizer.step()

    return step


def milliseconds(step, calls=7):
    """The shortest time of a step, after two that do not count."""
    times = []
    for _ in range(calls + 2):
        start = time.perf_counter()
        step()
        if device.type == "cuda":
            torch.cuda.synchronize()
        times.append(1000 * (time.perf_counter() - start))
    spreads.append(max(times[2:]) / min(times[2:]))
    return min(times[2:])  # other programs can only make a step slower


def peak_mib(step):
    """The peak of the tensors during one step, in MiB; the state of Adam is there already."""
    with track_memory(device.type, kinds=True) as tracked:
        step()
    return sum(tracked.kinds.values()) / 2**20


def fresh(**options):
    torch.manual_seed(0)
    return NextCharacter(width=WIDTH, blocks=6, **options).to(device)


inputs, wanted = contexts[:BATCH].to(device), targets[:BATCH].to(device)
while len(wanted) < 65_536 and milliseconds(make_step(fresh()), calls=3) < 20:
    size = 2 * len(wanted)
    inputs, wanted = contexts[:size].to(device), targets[:size].to(device)
print(f"the batch has {len(wanted):,} examples")

plain = make_step(fresh())
results = {"float32": (milliseconds(plain), peak_mib(plain))}
print("float32: {:.1f} ms a step, {:.1f} MiB at its peak".format(*results["float32"]))

# %% [markdown]
# ## Where does the time go?
#
# The profiler says how much time each operator took. The cell prints *self* time: the time in an
# operator without the operators that it calls. (`addmm` and `mm` are matrix products.)

# %%
PRODUCTS = {"aten::addmm", "aten::mm"}
activities = [ProfilerActivity.CPU] + [ProfilerActivity.CUDA] * (device.type == "cuda")
with profile(activities=activities) as profiled:
    plain()

column = "self_device_time_total" if device.type == "cuda" else "self_cpu_time_total"
spent = {row.key: getattr(row, column) for row in profiled.key_averages()}
total_spent = sum(spent.values()) or 1
products = sum(spent[name] for name in spent if name in PRODUCTS or "gemm" in name) / total_spent

# %% jupyter={"source_hidden": true}
# A question: run this cell, then choose.
predict("training.profile", "What share of the time of a step is in matrix products?",
        ["less than 40%", "40 to 70%", "more than 70%"],
        seen="less than 40%" if products < 0.4 else "40 to 70%" if products < 0.7
        else "more than 70%",
        because="The other operators compute little and read and write much memory: copies, sums, "
        "the optimizer's updates. The next cell lists them.")
claim("the profiler saw the matrix products of forward and backward",
      {"aten::addmm", "aten::mm"} <= set(spent))

# %%
for name in sorted(spent, key=spent.get, reverse=True)[:6]:
    print(f"{spent[name] / total_spent:6.1%}  {name}")

# %% [markdown]
# ## bfloat16, by autocast
#
# Under `torch.autocast`, matrix products run in a 16-bit type; sums that need precision (softmax,
# normalization) stay in float32. bfloat16 has the range of float32 with fewer digits, so it does
# not need loss scaling.

# %%
halved = fresh()
with torch.autocast(device.type, dtype=torch.bfloat16):
    scores = halved(inputs)
    loss = F.cross_entropy(scores, wanted)
loss.backward()

# %% jupyter={"source_hidden": true}
# A question: run this cell, then choose.
predict("training.autocast", "The scores come out in bfloat16. In which dtype is the loss?",
        ["bfloat16", "float32"], seen=str(loss.dtype).removeprefix("torch."),
        because="Under autocast, the loss runs in float32. The parameters stay float32 too.")
claim("the products come out in bfloat16", scores.dtype, torch.bfloat16)
claim("the loss is float32", loss.dtype, torch.float32)
claim("parameters and gradients stay float32",
      {p.dtype for p in halved.parameters()} | {p.grad.dtype for p in halved.parameters()},
      {torch.float32})
claim("1 + 1/512 is 1 in bfloat16: small steps of an optimizer would be lost",
      (torch.tensor(1.0, dtype=torch.bfloat16) + 1 / 512).item(), 1.0)

# %%
step = make_step(halved, dtype=torch.bfloat16)
results["bfloat16"] = milliseconds(step), peak_mib(step)
ratio = results["bfloat16"][0] / results["float32"][0]

# %% jupyter={"source_hidden": true}
# A question: run this cell, then choose.
if max(spreads) > 3:
    print("Not asked: equal steps took very different times. This machine is too busy to tell.")
else:
    predict("training.bfloat16", "Is a step with bfloat16 faster on this machine?",
            ["at least 1.2 times as fast", "about the same", "slower"],
            seen="at least 1.2 times as fast" if ratio < 1 / 1.2 else "about the same" if ratio < 1.2
            else "slower",
            because="It depends on the hardware: GPUs since Ampere and CPUs with AMX have units "
            "for it.")

# %%
print("bfloat16: {:.1f} ms a step, {:.1f} MiB at its peak".format(*results["bfloat16"]))

# %% [markdown]
# ## Activation checkpointing: time for memory
#
# The backward pass needs values of the forward pass, so the forward pass keeps them: in each block
# the normalized input, and the wide layer before and after `gelu`. A checkpointed block keeps only
# its input, and computes the rest a second time in the backward pass.

# %%
checkpointed = fresh(checkpointed=True)
reference = fresh()
for one in (checkpointed, reference):
    F.cross_entropy(one(inputs), wanted).backward()
claim("the gradients are the same", checkpointed.blocks[0].up.weight.grad,
      reference.blocks[0].up.weight.grad, within=1e-5)

step = make_step(checkpointed)
results["checkpointed"] = milliseconds(step), peak_mib(step)
left = results["checkpointed"][1] / results["float32"][1]

# %% jupyter={"source_hidden": true}
# A question: run this cell, then choose.
predict("training.checkpoint", "How much of the peak memory of a plain step is left with "
        "checkpointing?", ["less than 60%", "60 to 90%", "more than 90%"],
        seen="less than 60%" if left < 0.6 else "60 to 90%" if left < 0.9
        else "more than 90%",
        because="Parameters, gradients and the state of Adam take as much as before.")
claim("checkpointing lowers the peak", results["checkpointed"][1] < results["float32"][1])

# %%
print("checkpointed: {:.1f} ms a step, {:.1f} MiB at its peak".format(*results["checkpointed"]))

# %% [markdown]
# ## torch.compile
#
# The compiler fuses the small operators between the matrix products, also in the backward pass.
# `model.compile()` compiles in place; `torch.compile(model)` returns a wrapper. The first step
# takes seconds, because it compiles. For such a small network on a CPU, the gain may be small, or
# none.

# %% jupyter={"source_hidden": true}
# A compiled step, measured: run this cell.
names = list(torch.compile(fresh()).state_dict())
claim("the wrapper of torch.compile puts a prefix before each name",
      all(name.startswith("_orig_mod.") for name in names))


def compile_and_measure():
    torch.compiler.reset()
    compiled = fresh()
    compiled.compile()
    step = make_step(compiled)
    start = time.perf_counter()
    step()
    first = time.perf_counter() - start
    results["compiled"] = milliseconds(step), None
    if device.type == "cuda":
        with track_memory("cuda") as tracked:
            step()
        results["compiled"] = results["compiled"][0], tracked.use.spans[0].peak_bytes / 2**20
    print(f"first step {first:.1f} s, then {results['compiled'][0]:.1f} ms")
    return list(compiled.state_dict())


claim("model.compile() leaves the names alone", compile_and_measure, list(fresh().state_dict()),
      needs="compiler")

# %% [markdown]
# ## What each of them brings on this machine
#
# The ratio is to plain float32: below 1 means faster, or smaller. On a CPU, the memory of the
# compiled step is not measured: tracking each tensor would turn the compiler off.

# %% jupyter={"source_hidden": true}
# Time and memory of a step, by way: run this cell.
if max(spreads) > 2:
    print(f"The times of equal steps differed by a factor of {max(spreads):.1f}: this machine is "
          "too busy to tell small differences.")
base_ms, base_mib = results["float32"]
print(f"{'':14}{'ms':>8}{'ratio':>8}{'MiB':>9}{'ratio':>8}")
for name, (ms, mib) in results.items():
    memory = f"{mib:9.1f}{mib / base_mib:8.2f}" if mib else f"{'not measured':>17}"
    print(f"{name:14}{ms:8.1f}{ms / base_ms:8.2f}{memory}")

figure, (left, right) = plt.subplots(1, 2, figsize=(8, 3))
left.barh(list(results), [ms for ms, _ in results.values()])
left.set(xlabel="milliseconds a step", title=f"Time, on {device}")
known = {name: mib for name, (_, mib) in results.items() if mib}
right.barh(list(known), list(known.values()), color="C1")
right.set(xlabel="MiB", title="Peak of the tensors")
for axes in (left, right):
    axes.invert_yaxis()
figure.tight_layout()
plt.show()

# %% [markdown]
# ## Key takeaways
#
# | habit | why |
# |---|---|
# | look at the first loss | it is log(number of classes), or something is wrong |
# | overfit one batch first | it takes seconds and finds most mistakes |
# | `zero_grad`, forward, `backward`, `step` | gradients add up until they are cleared |
# | `eval()` and `no_grad()` | they are two different switches |
# | the mean per example | the last batch is shorter |
# | keep `loss.detach()` in a list, not `loss` | each kept loss keeps its graph in memory |
# | measure each change by itself | what helps on a large GPU may be slower on this machine |
#
# Change this notebook: a longer `CONTEXT`, more blocks, dropout, your own text. Predict first how
# the held-out loss, the time of a step and the peak change.
#
# Next: [Distributed](07_distributed.ipynb): what one device cannot hold or compute in time is
# shared among several processes.
