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
# # Many processes, one training
#
# A batch or a model that is too large for one device is trained by several processes, each with a
# device of its own. They share no memory. What one of them needs from another is sent, and sending
# costs time. Run the two folded cells below with Shift+Enter: the second one measures how much, on
# this machine.

# %% jupyter={"source_hidden": true}
# Imports: run this cell first.
import os
import time
from datetime import timedelta

import matplotlib.pyplot as plt
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.optim import ZeroRedundancyOptimizer
from torch.distributed.tensor import Replicate, Shard, distribute_tensor
from torch.nn.parallel import DistributedDataParallel as DDP
from torch.utils.data import DataLoader, DistributedSampler, TensorDataset

from labkit import check, claim, claim_raises, predict, run_on_ranks, track_memory
from labkit.lessons.pictures import use_lab_style

use_lab_style()
ON_GPUS = torch.cuda.device_count() >= 2 and dist.is_nccl_available()
BACKEND = "nccl" if ON_GPUS else "gloo"
MIB = 2**20

# %% jupyter={"source_hidden": true}
# A sum within a process and one across two: run this cell, then compare the times.
def my_device():
    """The device of the rank that asks."""
    return torch.device("cuda", dist.get_rank()) if ON_GPUS else torch.device("cpu")


def seconds_of(function, calls=7):
    """The shortest of several calls, on this rank's device."""
    times = []
    for _ in range(calls):
        start = time.perf_counter()
        function()
        if ON_GPUS:
            torch.cuda.synchronize()
        times.append(time.perf_counter() - start)
    return min(times)


def time_sums():
    x = torch.ones(4 * MIB, device=my_device())
    total = torch.empty_like(x)
    return seconds_of(lambda: torch.add(x, x, out=total)), seconds_of(lambda: dist.all_reduce(x))


def run(function, *arguments, **options):
    return run_on_ranks(function, *arguments, backend=BACKEND, **options)


alone, together = (max(times) for times in zip(*run(time_sums)))
print(f"adding 16 MiB within a process: {1000 * alone:.1f} ms; across two: {1000 * together:.1f} ms")
print(f"a sum across processes takes {together / alone:.0f} times as long here, by {BACKEND}")

# %% [markdown]
# Remember the factor. It is why the rest of this lab sends little, sends seldom, and computes while
# data is on its way.
#
# ## Ranks
#
# `run(f)` starts two processes, calls `f()` in each, and returns what the calls returned, as a
# list. Each process is a *rank* and knows its number and the number of ranks, the *world size*,
# from its environment. `torchrun` sets the same variables for a script:
# `torchrun --nproc-per-node 2 train.py`. `dist.init_process_group()` reads them and connects the
# processes; here that has happened already.

# %%
def introduce():
    words = "RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR"
    print("I am", dist.get_rank(), "of", dist.get_world_size(), "in process", os.getpid())
    return os.getpid(), {word: os.environ[word] for word in words}


(first_id, first), (second_id, second) = run(introduce)
claim("the ranks count from 0", (first["RANK"], second["RANK"]), ("0", "1"))
claim("both see the same world size", first["WORLD_SIZE"] == second["WORLD_SIZE"] == "2")
claim("they are processes: neither is the other, nor this notebook's kernel",
      len({first_id, second_id, os.getpid()}), 3)

# %% [markdown]
# Each rank has a copy of what the function uses. A change in one of them reaches nobody else, not
# even this notebook. That is what makes ranks safe, and what makes collectives necessary.

# %%
seen = {"calls": 0}


def count():
    seen["calls"] += 1 + dist.get_rank()
    return seen["calls"]


counted = run(count)

# %% jupyter={"source_hidden": true}
# A question: run this cell, then choose.
predict("distributed.copies", "Each rank added to `seen['calls']`: rank 0 one, rank 1 two. What is it "
        "in this notebook now?", [0, 1, 2, 3], seen=lambda: seen["calls"],
        because="Each rank has changed a copy of its own, which ended with its process.")
claim("each rank changes its own copy", counted, [1, 2])
claim("the notebook's is as it was", seen["calls"], 0)

# %% [markdown]
# ## Collectives
#
# A *collective* is a call that every rank of the group makes, in the same order. It returns when
# this rank's part is done. In the cell below each rank starts with its own tensor, rank 0 with
# `[0, 1]` and rank 1 with `[10, 11]`. Work out what each call leaves in each rank; the cell after it
# asks you for one of them.

# %%
def try_collectives():
    rank, device = dist.get_rank(), my_device()
    mine = torch.tensor([0.0, 1.0], device=device) + 10 * rank
    found = {}

    x = mine.clone()
    dist.broadcast(x, src=0)  # everyone gets rank 0's
    found["broadcast"] = x

    x = mine.clone()
    dist.all_reduce(x)  # everyone gets the sum
    found["all_reduce"] = x

    parts = [torch.empty(2, device=device) for _ in range(dist.get_world_size())]
    dist.all_gather(parts, mine)  # everyone gets all
    found["all_gather"] = torch.cat(parts)

    part = torch.empty(1, device=device)
    dist.reduce_scatter(part, list(mine.chunk(2)))  # everyone gets a part of the sum
    found["reduce_scatter"] = part
    return found


zero, one = run(try_collectives)

# %% jupyter={"source_hidden": true}
# A question: run this cell, then choose.
predict("distributed.reduce_scatter", "Rank 0 has [0, 1] and rank 1 has [10, 11]. What does rank 1 "
        "hold after the reduce_scatter?", ["[10, 12]", "[10]", "[12]", "[11]"],
        seen=lambda: str([int(x) for x in one["reduce_scatter"].tolist()]),
        because="The sum is [10, 12], and rank 1 gets the second part of it.")
claim("broadcast: rank 0's tensor in both", (zero["broadcast"], one["broadcast"]),
      (torch.tensor([0.0, 1.0]), torch.tensor([0.0, 1.0])))
claim("all_reduce: the sum in both", torch.equal(zero["all_reduce"], one["all_reduce"]))
claim("the sum is [10, 12]", zero["all_reduce"], torch.tensor([10.0, 12.0]))
claim("all_gather: both tensors in both", one["all_gather"], torch.tensor([0.0, 1, 10, 11]))
claim("reduce_scatter: each has its part of the sum",
      torch.cat([zero["reduce_scatter"], one["reduce_scatter"]]), zero["all_reduce"], shown=True)

# %% [markdown]
# The last of these facts is worth a second look: reduce_scatter followed by all_gather is an all_reduce.
# Sharded training, further down, is built on this: it stops halfway and keeps only its part.
#
# Under the collectives are `dist.send(tensor, dst)` and `dist.recv(tensor, src)` between two
# ranks. `recv` waits until something has come. `send` may wait until the other side receives, so
# two ranks that both send first can wait for each other for ever. `dist.isend` returns at once
# with a handle, whose `wait()` says that the tensor may be changed again.

# %%
def pass_on():
    rank, device = dist.get_rank(), my_device()
    given = torch.full((3,), float(rank + 1), device=device)
    got = torch.empty(3, device=device)
    sending = dist.isend(given, dst=1 - rank)
    dist.recv(got, src=1 - rank)
    sending.wait()
    return got


claim("the two have changed places", run(pass_on), [torch.full((3,), 2.0), torch.ones(3)])

# %% [markdown]
# ## Exercise: a sum around the ring
#
# Write `ring_sum(x)`, an all_reduce by hand. Every rank calls it with its own `x`, all of the same
# shape, and gets the sum of all of them; `x` stays as it is. Each rank may send to its right
# neighbor only, rank `(rank + 1) % world`, and receive from its left one. No collective: only
# `send`, `recv`, `isend` and `irecv`. It must work for any number of ranks, also for one.

# %%
def ring_sum(x: torch.Tensor) -> torch.Tensor:
    """Returns the sum of all ranks' x, with messages to the right neighbor only."""
    ### BEGIN SOLUTION
    rank, world = dist.get_rank(), dist.get_world_size()
    total, moving = x.clone(), x.clone()
    for _ in range(world - 1):
        coming = torch.empty_like(x)
        sending = dist.isend(moving, dst=(rank + 1) % world)
        dist.recv(coming, src=(rank - 1) % world)
        sending.wait()
        total += coming
        moving = coming
    return total
    ### END SOLUTION


# %%
check("distributed.ring_sum", ring_sum)

# %% [markdown]
# Your ring sends the whole tensor `world - 1` times. gloo and NCCL cut it into `world` pieces
# first and send each piece around: less than two tensors per rank, however many ranks there are.
#
# ## One step on one process, the same step on two
#
# *Data parallel* training gives every rank the whole model and a part of the batch. Each computes
# the gradient of its part; then the gradients are averaged. With equal parts, the mean of the
# parts' means is the mean of the batch, so nothing else changes.

# %%
WIDTH, BATCH = 512, 64


def make_model():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.ReLU(), nn.Linear(WIDTH, WIDTH),
                         nn.ReLU(), nn.Linear(WIDTH, 10))


def make_batch():
    draw = torch.Generator().manual_seed(1)
    inputs = torch.randn(BATCH, WIDTH, generator=draw)
    return inputs, torch.randint(10, (BATCH,), generator=draw)


def my_part(batch):
    """This rank's share of each tensor of the batch."""
    return [one.chunk(dist.get_world_size())[dist.get_rank()].to(my_device()) for one in batch]


model = make_model()
inputs, wanted = make_batch()
nn.functional.cross_entropy(model(inputs), wanted).backward()
on_one_process = [parameter.grad.clone() for parameter in model.parameters()]
print(f"{sum(p.numel() for p in model.parameters()) * 4 / MIB:.1f} MiB of parameters")

# %% [markdown]
# ## Exercise: average the gradients
#
# Write `average_gradients(model)`, to be called on every rank after `backward()`: each
# parameter's `.grad` becomes the mean over all ranks, in place. Parameters without a gradient
# stay without one; every rank has the same of them.

# %%
def average_gradients(model: nn.Module) -> None:
    """Replaces each gradient by its mean over the ranks."""
    ### BEGIN SOLUTION
    for parameter in model.parameters():
        if parameter.grad is not None:
            dist.all_reduce(parameter.grad)
            parameter.grad /= dist.get_world_size()
    ### END SOLUTION


# %%
check("distributed.average_gradients", average_gradients)

# %% [markdown]
# ## DistributedDataParallel
#
# DDP does this while backward is still running: it collects gradients in *buckets* of up to
# 25 MiB, and starts the all_reduce of a bucket as soon as its last gradient is there. When it is
# made, it also sends rank 0's parameters to everyone.

# %%
def take_step(wrap):
    model = make_model().to(my_device())
    wrapped = DDP(model) if wrap else model
    inputs, wanted = my_part(make_batch())
    nn.functional.cross_entropy(wrapped(inputs), wanted).backward()
    return [parameter.grad for parameter in model.parameters()]


def furthest(some, others):
    return max((a - b).abs().max().item() for a, b in zip(some, others, strict=True))


first, second = run(take_step, True)
without_first, without_second = run(take_step, False)

# %% jupyter={"source_hidden": true}
# A question: run this cell, then choose.
predict("distributed.gradients", "Under DDP, each of two ranks has half of the batch. What are "
        "their gradients after `backward()`?",
        ["those of one process with the whole batch", "half as large", "twice as large",
         "different in each rank"],
        seen=lambda: "those of one process with the whole batch"
        if max(furthest(one, on_one_process) for one in (first, second)) < 1e-5 else "something else",
        because="The mean of the means of equal parts is the mean of all.")
print(f"furthest apart: ranks under DDP {furthest(first, second):.1e},"
      f" DDP and one process {furthest(first, on_one_process):.1e},"
      f" ranks without DDP {furthest(without_first, without_second):.1e}")

claim("under DDP both ranks hold the same gradients", furthest(first, second), 0.0)
claim("and they are those of one process with the whole batch",
      furthest(first, on_one_process), 0.0, within=1e-5)
claim("without DDP each rank has the gradient of its part",
      furthest(without_first, without_second) > 1e-4)

# %% [markdown]
# The gradients are equal, so the parameters stay equal, if they were equal at the start and the
# optimizer does the same in every rank. Nobody checks this. A dropout mask may differ between
# ranks; a parameter that only one rank changes breaks the training without an error.
#
# ### What it holds
#
# `track_memory(kinds=True)` splits each rank's peak. Every rank holds all parameters, all
# gradients and the whole state of the optimizer, and DDP's buckets come on top: as large as the
# gradients. What the batch needs is halved; the rest is not.

# %%
def hold_by(arrange):
    """What one rank holds at the peak of a training step, in bytes, by category."""
    model = make_model().to(my_device())
    model, optimizer = arrange(model)
    inputs, wanted = my_part(make_batch())

    def step():
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(inputs), wanted).backward()
        optimizer.step()

    step()
    step()
    with track_memory(my_device().type, kinds=True) as tracked:
        step()
    # At the peak, the optimizer's temporaries count with its state: count the state alone.
    optimizer = getattr(optimizer, "optim", optimizer)
    state = [one for held in optimizer.state.values() for one in held.values()]
    return {**tracked.kinds, "optimizer": sum(own_part(one).nbytes for one in state)}


def own_part(tensor):
    """What this rank holds of a tensor."""
    return tensor.to_local() if hasattr(tensor, "to_local") else tensor


def plain(model):
    return model, torch.optim.Adam(model.parameters())


def data_parallel(model):
    model = DDP(model)
    return model, torch.optim.Adam(model.parameters())


held = {"one process": run(hold_by, plain, world_size=1)[0], "DDP": run(hold_by, data_parallel)[0]}
parameter_bytes = sum(p.numel() * 4 for p in make_model().parameters())
buckets_share = held["DDP"]["buckets"] / parameter_bytes

# %% jupyter={"source_hidden": true}
# A question: run this cell, then choose.
predict("distributed.buckets", "The gradients take 2 MiB. How much do DDP's buckets take in each "
        "rank, besides?", {"nothing": 0.0, "1 MiB": 0.5, "2 MiB": 1.0, "4 MiB": 2.0},
        seen=lambda: round(buckets_share, 2),
        because="Each gradient is copied into its place in a bucket, which is sent.")
for name, kinds in held.items():
    print(f"{name:12}", {kind: f"{count / MIB:.1f} MiB" for kind, count in kinds.items() if count})

claim("DDP: each rank holds all parameters", held["DDP"]["parameters"], parameter_bytes)
claim("and the whole state of Adam: two numbers for each parameter",
      held["DDP"]["optimizer"] / (2 * parameter_bytes), 1.0, within=0.001)
claim("and buckets of the gradients' size", held["DDP"]["buckets"], parameter_bytes)
claim("one process has no buckets", held["one process"]["buckets"], 0)

# %% [markdown]
# `DDP(model, gradient_as_bucket_view=True)` lets each `.grad` be a view of its bucket. Then the
# gradients are held once.
#
# ## Exercise: a sharded optimizer
#
# The state of Adam is twice the parameters, and every rank holds all of it to compute the same
# thing. *ZeRO-1* gives each rank the state of a part of the parameters: it updates those and sends
# them to the others.
#
# Write `shard_optimizer(parameters, make_optimizer)`. `parameters` is a list, and
# `make_optimizer(some)` makes an optimizer for some of them. Rank r owns parameter i if
# `i % world == r`. Return a function `step()` that updates the owned parameters and brings all
# others up to date. There are at least as many parameters as ranks.

# %%
def shard_optimizer(parameters: list, make_optimizer):
    """Returns step(), which updates this rank's parameters and receives the others'."""
    ### BEGIN SOLUTION
    rank, world = dist.get_rank(), dist.get_world_size()
    optimizer = make_optimizer(parameters[rank::world])

    def step():
        optimizer.step()
        for number, parameter in enumerate(parameters):
            dist.broadcast(parameter.detach(), src=number % world)

    return step
    ### END SOLUTION


# %%
check("distributed.shard_optimizer", shard_optimizer)

# %% [markdown]
# ## DTensor: one tensor, many holders
#
# Sharding can go on: gradients and parameters too. A `DTensor` is a tensor whose parts are on
# different ranks. It has the shape of the whole, and `to_local()` is what this rank holds.
# Its *placement* says how: `Shard(0)` cuts dimension 0 into equal pieces, the last ones shorter or
# empty; `Replicate()` gives everyone all.

# %%
def make_dtensor(rows):
    mesh = init_device_mesh(my_device().type, (dist.get_world_size(),))
    whole = torch.arange(rows * 4.0, device=my_device()).reshape(rows, 4)
    sharded = distribute_tensor(whole, mesh, [Shard(0)])
    everywhere = sharded.redistribute(placements=[Replicate()])
    shapes = [tuple(one.shape) for one in (sharded, sharded.to_local(), everywhere.to_local())]
    return *shapes, sharded.sum(dim=1).full_tensor()


six_rows, five_rows = run(make_dtensor, 6), run(make_dtensor, 5)

# %% jupyter={"source_hidden": true}
# A question: run this cell, then choose.
predict("distributed.uneven", "A DTensor with 5 rows on two ranks, `Shard(0)`: how many rows do rank 0 "
        "and rank 1 hold?", ["3 and 2", "2 and 3", "3 and 3", "it raises"],
        seen=lambda: " and ".join(str(rank[1][0]) for rank in five_rows),
        because="Rows are dealt out in pieces of ceil(5 / 2); the last one is shorter.")
claim("5 rows do not divide: 3 and 2", [rank[1] for rank in five_rows], [(3, 4), (2, 4)])
zero, one = six_rows
claim("both see the whole shape", (zero[0], one[0]), ((6, 4), (6, 4)))
claim("each holds half of the rows", (zero[1], one[1]), ((3, 4), (3, 4)))
claim("Replicate() brings all rows to everyone", (zero[2], one[2]), ((6, 4), (6, 4)))
claim("operators work on the parts: the sums of all rows are right",
      zero[3], torch.arange(24.0).reshape(6, 4).sum(dim=1))

# %% [markdown]
# ## FSDP2: shard everything
#
# `fully_shard(module)` turns the module's parameters into DTensors with `Shard(0)`. Before the
# module runs, an all_gather brings its whole parameters to every rank; after it, they are freed.
# Backward gathers them once more, and a reduce_scatter leaves each rank its part of the gradients.
# Call it on each layer, then on the whole: what is gathered at one time is one layer.

# %%
def fully_sharded(model):
    mesh = init_device_mesh(my_device().type, (dist.get_world_size(),))
    for layer in model:
        if isinstance(layer, nn.Linear):
            fully_shard(layer, mesh=mesh)
    fully_shard(model, mesh=mesh)
    return model, torch.optim.Adam(model.parameters())


def look_at_shards():
    model, _ = fully_sharded(make_model().to(my_device()))
    inputs, wanted = my_part(make_batch())
    nn.functional.cross_entropy(model(inputs), wanted).backward()
    local = sum(p.to_local().numel() * 4 for p in model.parameters())
    return local, [p.grad.full_tensor() for p in model.parameters()]


(zero_bytes, zero_gradients), (one_bytes, _) = run(look_at_shards)
print(f"rank 0 holds {zero_bytes / MIB:.2f} MiB, rank 1 {one_bytes / MIB:.2f} MiB of"
      f" {parameter_bytes / MIB:.2f} MiB")

claim("together they hold each parameter once", zero_bytes + one_bytes, parameter_bytes)
claim("and each about half", abs(zero_bytes - one_bytes) < 0.01 * parameter_bytes)
claim("the gradients, put together, are those of one process",
      furthest(zero_gradients, on_one_process), 0.0, within=1e-5)

# %% [markdown]
# ### Who holds what
#
# Three ways to train the same model, and what one rank of two holds of it.

# %%
def zero_1(model):
    model = DDP(model)
    return model, ZeroRedundancyOptimizer(model.parameters(), torch.optim.Adam, lr=1e-3)


held["ZeRO-1"] = run(hold_by, zero_1)[0]
held["FSDP2"] = run(hold_by, fully_sharded)[0]

# %% jupyter={"source_hidden": true}
# A question: run this cell, then choose.
predict("distributed.state", "DDP holds the whole state of Adam in each of two ranks. Which share of it "
        "does each rank hold with FSDP2?", {"all": 1.0, "half": 0.5, "a quarter": 0.25},
        seen=lambda: round(held["FSDP2"]["optimizer"] / held["DDP"]["optimizer"], 2),
        because="The state has the shape of the parameters, and of these each rank has its half.")
kinds = "parameters", "gradients", "optimizer", "buckets"
print(f"{'MiB on rank 0':14}" + "".join(f"{kind:>12}" for kind in kinds))
for name, found in held.items():
    print(f"{name:14}" + "".join(f"{found[kind] / MIB:12.2f}" for kind in kinds))

figure, axes = plt.subplots(figsize=(7, 3))
left = [0.0] * len(held)
for kind in kinds:
    sizes = [found[kind] / MIB for found in held.values()]
    axes.barh(list(held), sizes, left=left, label=kind)
    left = [a + b for a, b in zip(left, sizes)]
axes.invert_yaxis()
axes.set(xlabel="MiB on rank 0", title="Who holds what")
axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.25), ncols=4)
plt.show()

claim("ZeRO-1: all parameters", held["ZeRO-1"]["parameters"], parameter_bytes)
claim("ZeRO-1: about half of the optimizer's state",
      held["ZeRO-1"]["optimizer"] / held["DDP"]["optimizer"], 0.5, within=0.05)
claim("FSDP2: half of the optimizer's state",
      held["FSDP2"]["optimizer"] / held["DDP"]["optimizer"], 0.5, within=0.02)

# %% [markdown]
# For a model as small as this one, FSDP2 gathers about as much at one time as it saves. With a
# hundred layers, that is one hundredth of the parameters. `labkit estimate train.py:make_step --world-size 8 --shard fsdp` says
# what each rank would hold, before you rent eight GPUs.
#
# ## The data: no sample twice
#
# Each rank reads its own part of the data. `DistributedSampler` shuffles the numbers of all
# samples with the same seed in every rank, and gives rank r each `world`-th of them. If the
# samples do not divide evenly, it repeats some, so that every rank has equally many: equal numbers
# of steps matter more than a sample that is seen twice.

# %%
def read_all(length, epochs=1, set_epoch=True):
    dataset = TensorDataset(torch.arange(length))
    sampler = DistributedSampler(dataset, shuffle=True)
    loader = DataLoader(dataset, batch_size=4, sampler=sampler)
    read = []
    for epoch in range(epochs):
        if set_epoch:
            sampler.set_epoch(epoch)
        read.append([int(x) for (batch,) in loader for x in batch])
    return read


sixteen, fifteen = run(read_all, 16), run(read_all, 15)

# %% jupyter={"source_hidden": true}
# A question: run this cell, then choose.
(zero,), (one,) = fifteen
predict("distributed.samples", "15 samples on two ranks: how many do both read together, in one epoch?",
        [14, 15, 16], seen=lambda: len(zero) + len(one),
        because="Every rank must take as many steps as the others, so one sample is read twice.")
claim("15 samples: 8 each all the same, so one is read twice",
      (len(zero), len(one), len(set(zero + one))), (8, 8, 15))

(zero,), (one,) = sixteen
claim("16 samples on two ranks: 8 each", (len(zero), len(one)), (8, 8))
claim("no sample twice, and none left out", sorted(zero + one), list(range(16)))

(epochs, _), (frozen, _) = run(read_all, 16, 2), run(read_all, 16, 2, False)
claim("set_epoch shuffles each epoch in its own way", epochs[0] != epochs[1])
claim("without it, every epoch has the same order", frozen[0], frozen[1])

# %% [markdown]
# ## Exercise: parts without repetition
#
# For an evaluation, a repeated sample makes the mean wrong. Write
# `part_of(length, rank, world, epoch)`: the list of sample numbers that this rank reads. In each
# epoch, all ranks together read each of the `length` samples exactly once; the numbers of samples
# of any two ranks differ by at most one; the order is shuffled, in another way in each epoch, and
# the same call gives the same list. torch's global random state stays as it is: other code draws
# from it, and it may differ between ranks.

# %%
def part_of(length: int, rank: int, world: int, epoch: int) -> list[int]:
    """Returns the samples of this rank in this epoch, each sample in exactly one rank."""
    ### BEGIN SOLUTION
    draw = torch.Generator().manual_seed(epoch)
    order = torch.randperm(length, generator=draw).tolist()
    return order[rank::world]
    ### END SOLUTION


# %%
check("distributed.part_of", part_of)

# %% [markdown]
# ## What goes wrong, and how it looks
#
# ### A hang
#
# A collective waits for every rank. If one rank leaves it out, the others wait: no error, no
# output, the GPU at 100 %. Below, only rank 0 calls `all_reduce`. The call has a limit of one
# second, and then says where each rank is. `labkit run --nproc-per-node 2 train.ipynb` says the
# same of a notebook. For a process that you cannot stop, `py-spy dump --pid` shows the line.

# %%
def only_the_first():
    if dist.get_rank() == 0:
        loss = torch.ones(1, device=my_device())
        dist.all_reduce(loss)
        print("loss", loss.item())


claim_raises("rank 0 waits and rank 1 has returned", Exception,
             lambda: run(only_the_first, timeout_seconds=1), match="rank 0 waits")

# %% [markdown]
# The usual forms of it: a `print` of a metric that reduces, inside `if rank == 0`; a checkpoint
# that only rank 0 gathers; a rank with one batch less than the others.
#
# ### A timeout
#
# Every group has one: 10 minutes for NCCL, 30 for gloo. Then the waiting rank gets an error, which
# names the collective but not the rank that is missing. Set it shorter while you debug.

# %%
def wait_half_a_second():
    group = dist.new_group(timeout=timedelta(seconds=0.5), backend="gloo")
    if dist.get_rank() == 0:
        dist.all_reduce(torch.ones(1), group=group)
    time.sleep(2)


claim_raises("gloo gives up after its own timeout", Exception,
             lambda: run(wait_half_a_second), match="Timed out waiting 500ms")

# %% [markdown]
# ### A rank that fails
#
# Its error is the first one. The others notice only that a connection was lost, and often print
# more than the rank that failed. Read the first error, not the last: `run` and `torchrun` name it.

# %%
def one_fails():
    if dist.get_rank() == 1:
        raise ValueError("this sample is broken")
    dist.barrier()


def one_dies():
    if dist.get_rank() == 1:
        os._exit(7)  # as the kernel does to a process when memory runs out
    dist.barrier()


claim_raises("the first error is rank 1's own", Exception, lambda: run(one_fails),
             match="rank 1 of 2 raised ValueError")
claim_raises("a death too is named, not the lost connection", Exception, lambda: run(one_dies),
             match="rank 1 of 2 died (exit code 7)")

# %% [markdown]
# ### Different calls
#
# The worst mistake raises no error. If the ranks call collectives in a different order, tensors are
# added up that do not belong together, and the training goes on with wrong numbers.

# %%
def cross_over():
    weight, bias = torch.full((2,), 1.0), torch.full((2,), 100.0)
    order = [weight, bias] if dist.get_rank() == 0 else [bias, weight]
    group = dist.new_group(backend="gloo")
    for one in order:
        dist.all_reduce(one, group=group)
    return weight.tolist()


def try_crossing():
    return run(cross_over)[0]

# %% jupyter={"source_hidden": true}
# A question: run this cell, then choose.
predict("distributed.crossing", "Both ranks have a weight of 1 and a bias of 100, and add them up in "
        "different orders. What is rank 0's weight then?",
        {"2": 2.0, "101": 101.0, "it raises": None, "it hangs": False},
        seen=lambda: try_crossing()[0],
        because="A collective knows the place of a call in the order, not the tensor's meaning.")
claim("rank 0's weight plus rank 1's bias: no error, and wrong", try_crossing, [101.0, 101.0])

# %% [markdown]
# `TORCH_DISTRIBUTED_DEBUG=DETAIL` compares every call across the ranks before it is made, and
# raises where they differ. It costs time; it costs less than a wrong model.
#
# ## Exercise: stop together
#
# Write `run_together(batches, step)`. Every rank has its own list of batches, and `step(batch)`
# contains a collective. Call `step` for the first batches of the list, as many as *every* rank
# has, in order, and return this number. Nothing about the other ranks is known beforehand; a rank
# may have no batches at all.

# %%
def run_together(batches: list, step) -> int:
    """Calls step for as many batches as every rank has; returns the number."""
    ### BEGIN SOLUTION
    count = torch.tensor(len(batches))
    dist.all_reduce(count, op=dist.ReduceOp.MIN)
    for batch in batches[:count.item()]:
        step(batch)
    return int(count.item())
    ### END SOLUTION


# %%
check("distributed.run_together", run_together)

# %% [markdown]
# ## Key takeaways
#
# | habit | why |
# |---|---|
# | every rank makes the same calls in the same order | a collective waits for all, or mixes what does not belong together |
# | no collective inside `if rank == 0` | the others never come |
# | the mean of equal parts is the mean | unequal parts need weights |
# | `sampler.set_epoch(epoch)` | else each epoch has the same order |
# | count what a rank holds | DDP: everything and buckets; ZeRO-1: a part of the state; FSDP2: a part of all, and one layer |
# | read the first error | the others follow from it |
# | a short timeout while you debug | by default, a rank waits for 10 minutes (NCCL) or 30 (gloo) |
#
# **Where to go from here.** This is the last lab.
#
# - Run a notebook of your own in two ranks: `labkit run train.ipynb --nproc-per-node 2`. Its report has
#   each rank's time and memory side by side.
# - Ask what each of eight ranks would hold of your model:
#   `labkit estimate train.py:make_step --world-size 8 --shard fsdp`.
# - `docs/scaling.md` goes on from there to Slurm and Kubernetes, with the same image.
# - Use the tools of the other labs on your own code: `%%memory` above a cell, `track_memory()`,
#   `draw_graph(loss)`.
# - Read on in PyTorch's own documentation: [tutorials](https://docs.pytorch.org/tutorials/),
#   [distributed training](https://docs.pytorch.org/docs/stable/distributed.html), and
#   [the notes](https://docs.pytorch.org/docs/stable/notes.html) on autograd, CUDA and
#   reproducibility.
