"""The checks of the lab ``distributed``: answers run in processes of their own, as ranks."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from labkit.lessons.exercises import Case, Exercise, NotThisWay, WrongAnswer

# What a ring may use: messages between two ranks. The peer is the third argument.
MESSAGES = ("c10d::send", "c10d::recv_", "c10d::recv_any_source_")


class _Calls(TorchDispatchMode):
    """Lists the calls of torch.distributed by their operators' names, and who was sent to."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []
        self.sent_to: set[int] = set()

    def __torch_dispatch__(self, operator: Any, types: Any, args: Any = (), kwargs: Any = None):  # type: ignore[no-untyped-def]
        name = operator._schema.name
        if name.startswith(("c10d::", "_c10d_functional::")):
            self.names.append(name)
        if name == "c10d::send":
            self.sent_to.add(args[2])
        return operator(*args, **(kwargs or {}))


def _draw(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


# ring_sum


def _run_ring(
    function: Callable[..., Any], all_of_them: Tensor
) -> tuple[Any, Tensor, list[str], set[int]]:
    """The rank's answer, its argument afterwards, what it sent and received by, and to whom."""
    mine = all_of_them[dist.get_rank()].clone()
    calls = _Calls()
    with calls:
        got = function(mine)
    return got, mine, calls.names, calls.sent_to


def _ring_case(note: str, all_of_them: Tensor) -> Case:
    def judge(got: list[Any], arguments: tuple[Any, ...]) -> str | None:
        total = all_of_them.sum(dim=0)
        for rank, (answer, argument, names, sent_to) in enumerate(got):
            if not isinstance(answer, Tensor):
                return f"rank {rank} returned {type(answer).__name__}, not a tensor"
            if answer.shape != total.shape or answer.dtype != total.dtype:
                return f"rank {rank} returned {tuple(answer.shape)} {answer.dtype}"
            if not torch.allclose(answer, total, atol=1e-5):
                return f"rank {rank} returned {answer.flatten()[:4].tolist()}, not the sum"
            if not torch.equal(argument, all_of_them[rank]):
                return f"rank {rank}'s x has changed"
            others = sorted({name for name in names if name not in MESSAGES})
            right = (rank + 1) % len(all_of_them)
            if others:
                said = f"{others[0]} is a collective, and this exercise asks for a ring"
            elif sent_to - {right}:
                said = f"rank {rank} sent to rank {min(sent_to - {right})}, not to {right} alone"
            else:
                continue
            return NotThisWay(said)
        return None

    return Case((all_of_them,), note=note, judge=judge, ranks=len(all_of_them), harness=_run_ring)


def ring_sum_cases() -> Iterator[Case]:
    """Two, three and one rank, whole numbers, and tensors that no send can buffer."""
    yield _ring_case("2 ranks", torch.tensor([[1.0, 2.0], [10.0, 20.0]]))
    yield _ring_case("3 ranks", torch.randn(3, 2, 5, generator=_draw(1)))
    yield _ring_case("1 rank", torch.ones(1, 3))
    yield _ring_case("4 ranks, whole numbers", torch.arange(8).reshape(4, 2) ** 2)
    yield _ring_case("2 ranks, 4 MiB each", torch.randn(2, 2**20, generator=_draw(2)))


def _ring_wrong(x: Tensor, **changes: bool) -> Tensor:
    """The ring with one part done in another way."""
    rank, world = dist.get_rank(), dist.get_world_size()
    total, moving = (x if changes.get("in_place") else x.clone()), x.clone()
    for _ in range(world if changes.get("once_more") else world - 1):
        coming = torch.empty_like(x)
        if changes.get("blocks"):
            dist.recv(coming, src=(rank - 1) % world)
            dist.send(moving, dst=(rank + 1) % world)
        else:
            sending = dist.isend(moving, dst=(rank + 1) % world)
            dist.recv(coming, src=(rank - 1) % world)
            sending.wait()
        total += coming
        moving = x if changes.get("own_again") else coming
    return total


def _send_to_all(x: Tensor) -> Tensor:
    rank, total, coming = dist.get_rank(), x.clone(), torch.empty_like(x)
    others = [one for one in range(dist.get_world_size()) if one != rank]
    sent = [dist.isend(x, dst=one) for one in others]
    for one in others:
        dist.recv(coming, src=one)
        total += coming
    for one in sent:
        one.wait()
    return total


def _reduce_copy(x: Tensor) -> Tensor:
    total = x.clone()
    dist.all_reduce(total)
    return total


NOT_A_CLONE = "`total += ...` writes into the argument, if total is not a clone of it."
RING_SUM = Exercise(
    name="ring_sum",
    title="A sum around the ring",
    hints=(
        "After one round each rank knows its own tensor and its left neighbor's. What must it "
        "send in the second round? And if it hangs: who receives while all ranks wait in `send`?",
        "Send on what you received last, `world - 1` times. Start the send with `isend`, receive, "
        "and wait for the send after that: nobody sends while all ranks wait in `recv`.",
    ),
    cases=ring_sum_cases,
    wrong_answers=(
        WrongAnswer(
            "asks all_reduce",
            _reduce_copy,
            "forbidden",
            hint="The text rules out collectives: only messages between two ranks are left.",
        ),
        WrongAnswer(
            "sends to others than its right neighbor",
            _send_to_all,
            "forbidden",
            hint="What you received goes on to the right neighbor: it passes all ranks so.",
        ),
        WrongAnswer(
            "receives before anyone has sent", lambda x: _ring_wrong(x, blocks=True), "timed_out", 1
        ),
        WrongAnswer(
            "sends its own tensor in every round",
            lambda x: _ring_wrong(x, own_again=True),
            "wrong_values",
        ),
        WrongAnswer(
            "goes around once too often",
            lambda x: _ring_wrong(x, once_more=True),
            "wrong_values",
            1,
        ),
        WrongAnswer(
            "adds into its argument",
            lambda x: _ring_wrong(x, in_place=True),
            "wrong_values",
            hint=NOT_A_CLONE,
        ),
        WrongAnswer(
            "adds into its argument, and goes around once too often",
            lambda x: _ring_wrong(x, in_place=True, once_more=True),
            "wrong_values",
            hint=NOT_A_CLONE,
        ),
    ),
)


# average_gradients


class _Branches(nn.Module):
    """Three layers: one is frozen, and one is not used."""

    def __init__(self) -> None:
        super().__init__()
        self.used, self.frozen, self.unused = nn.Linear(3, 2), nn.Linear(2, 2), nn.Linear(2, 1)
        self.frozen.requires_grad_(False)

    def forward(self, x: Tensor) -> Tensor:
        """What the first two layers make of x."""
        return self.frozen(self.used(x))


def _run_average(function: Callable[..., Any], seed: int) -> tuple[list[Tensor | None], bool]:
    """The rank's gradients after the answer has averaged them, and whether parameters are kept."""
    torch.manual_seed(seed)
    model = _Branches()
    x = torch.randn(4, 3, generator=_draw(seed + 1 + dist.get_rank()))
    (model(x) ** 2).sum().backward()
    before = [parameter.detach().clone() for parameter in model.parameters()]
    function(model)
    kept = all(map(torch.equal, before, model.parameters()))
    return [parameter.grad for parameter in model.parameters()], kept


def _average_case(note: str, ranks: int, seed: int) -> Case:
    def judge(got: list[Any], arguments: tuple[Any, ...]) -> str | None:
        torch.manual_seed(seed)
        model = _Branches()
        losses = [
            (model(torch.randn(4, 3, generator=_draw(seed + 1 + rank))) ** 2).sum()
            for rank in range(ranks)
        ]
        (sum(losses) / ranks).backward()  # type: ignore[union-attr]
        names = [name for name, _ in model.named_parameters()]
        expected = [parameter.grad for parameter in model.parameters()]
        for rank, (gradients, kept) in enumerate(got):
            if not kept:
                return f"on rank {rank}, the parameters have changed"
            for name, right, there in zip(names, expected, gradients, strict=True):
                if (right is None) != (there is None):
                    words = "no gradient" if there is None else "a gradient"
                    return f"on rank {rank}, {name} has {words} afterwards"
                if right is not None and not torch.allclose(right, there, atol=1e-5):
                    return f"on rank {rank}, {name}.grad is not the mean over the ranks"
        return None

    return Case((seed,), note=note, judge=judge, ranks=ranks, harness=_run_average)


def average_gradients_cases() -> Iterator[Case]:
    """Two and three ranks, and one alone; one layer is frozen, and one has no gradient."""
    yield _average_case("2 ranks", 2, 3)
    yield _average_case("3 ranks", 3, 7)
    yield _average_case("1 rank", 1, 11)


def _average_wrong(model: nn.Module, **changes: bool) -> None:
    """Averaging with one part done in another way."""
    for parameter in model.parameters():
        if parameter.grad is None:
            if not changes.get("fills"):
                continue
            parameter.grad = torch.zeros_like(parameter)
        if changes.get("copies"):
            gradient = parameter.grad.clone()
            dist.all_reduce(gradient)
            gradient /= dist.get_world_size()
            continue
        if changes.get("alone") and dist.get_rank():
            return
        dist.all_reduce(parameter.grad)
        if not changes.get("adds"):
            parameter.grad /= 2 if changes.get("halves") else dist.get_world_size()


def _average_parameters(model: nn.Module) -> None:
    with torch.no_grad():
        for parameter in model.parameters():
            dist.all_reduce(parameter)
            parameter.div_(dist.get_world_size())


AVERAGE_GRADIENTS = Exercise(
    name="average_gradients",
    title="Average the gradients",
    hints=(
        "`dist.all_reduce` adds up, in place. What makes a mean of a sum, and of how many? Has "
        "every parameter a gradient?",
        "Go over `model.parameters()`; one without a gradient has `.grad is None`, in every rank. "
        "Change the tensor in `.grad` itself.",
    ),
    cases=average_gradients_cases,
    wrong_answers=(
        WrongAnswer(
            "adds up and does not divide", lambda m: _average_wrong(m, adds=True), "wrong_values"
        ),
        WrongAnswer(
            "divides by 2, whatever the world size",
            lambda m: _average_wrong(m, halves=True),
            "wrong_values",
            hint="`dist.get_world_size()` says how many ranks there are.",
        ),
        WrongAnswer("averages the parameters", _average_parameters, "wrong_values", 1),
        WrongAnswer("averages a copy", lambda m: _average_wrong(m, copies=True), "wrong_values", 1),
        WrongAnswer(
            "gives a gradient to those without one",
            lambda m: _average_wrong(m, fills=True),
            "wrong_values",
            1,
        ),
        WrongAnswer(
            "gives a gradient to those without one, and does not divide",
            lambda m: _average_wrong(m, fills=True, adds=True),
            "wrong_values",
            1,
        ),
        WrongAnswer(
            "calls the collective on rank 0 only",
            lambda m: _average_wrong(m, alone=True),
            "timed_out",
        ),
    ),
)


# shard_optimizer


def _make_parameters(shapes: list[tuple[int, ...]]) -> list[Any]:
    draw = _draw(17)
    return [nn.Parameter(torch.randn(shape, generator=draw)) for shape in shapes]


def _set_gradients(parameters: list[Any], turn: int) -> None:
    """The same gradients in every rank, as after an all_reduce."""
    draw = _draw(100 + turn)
    for parameter in parameters:
        parameter.grad = torch.randn(parameter.shape, generator=draw)


def _run_sharded(
    function: Callable[..., Any], shapes: list[tuple[int, ...]]
) -> tuple[list[Tensor], list[int]]:
    """The parameters after three steps, and the numbers of those that it made optimizers for."""
    parameters = _make_parameters(shapes)
    number_of = {id(one): number for number, one in enumerate(parameters)}
    owned: list[int] = []

    def make_optimizer(some: Any) -> torch.optim.Optimizer:
        some = list(some)
        owned.extend(number_of.get(id(one), -1) for one in some)
        return torch.optim.Adam(some, lr=0.1)

    step = function(parameters, make_optimizer)
    for turn in range(3):
        _set_gradients(parameters, turn)
        step()
    return [one.detach().clone() for one in parameters], owned


def _sharded_case(note: str, ranks: int, shapes: list[tuple[int, ...]]) -> Case:
    def judge(got: list[Any], arguments: tuple[Any, ...]) -> str | None:
        parameters = _make_parameters(shapes)
        adam = torch.optim.Adam(parameters, lr=0.1)
        for turn in range(3):
            _set_gradients(parameters, turn)
            adam.step()
        behind = [
            f"{number} on rank {rank}"
            for rank, (values, _) in enumerate(got)
            for number, (right, there) in enumerate(zip(parameters, values, strict=True))
            if not torch.allclose(right.detach(), there, atol=1e-5)
        ]
        if behind:
            return f"these parameters are not what Adam makes of them: {', '.join(behind)}"
        for rank, (_, owned) in enumerate(got):
            wanted = list(range(rank, len(shapes), ranks))
            if sorted(owned) != wanted:
                held = f"rank {rank} has the state of {sorted(owned)}, and owns {wanted}"
                return NotThisWay(held)
        return None

    return Case((shapes,), note=note, judge=judge, ranks=ranks, harness=_run_sharded)


def shard_optimizer_cases() -> Iterator[Case]:
    """Two and three ranks whose parameters do not divide evenly, and one rank."""
    yield _sharded_case("2 ranks, 2 parameters", 2, [(3, 2), (4,)])
    yield _sharded_case("2 ranks, 5 parameters", 2, [(2, 2), (2,), (3, 2), (3,), (1,)])
    yield _sharded_case("3 ranks, 4 parameters", 3, [(2,), (2, 3), (3,), (1, 1)])
    yield _sharded_case("1 rank", 1, [(2,), (3,)])


def _shard_wrong(parameters: list[Any], make_optimizer: Any, **changes: bool) -> Any:
    """The sharded optimizer with one part done in another way."""
    rank, world = dist.get_rank(), dist.get_world_size()
    owned = parameters if changes.get("everything") else parameters[rank::world]
    optimizer = make_optimizer(owned)

    def step() -> None:
        nonlocal optimizer
        if changes.get("forgets"):
            optimizer = make_optimizer(owned)
        optimizer.step()
        if changes.get("keeps"):
            return
        for number, parameter in enumerate(parameters):
            source = 0 if changes.get("from_first") else number % world
            dist.broadcast(parameter.detach(), src=source)

    return step


SHARD_OPTIMIZER = Exercise(
    name="shard_optimizer",
    title="A sharded optimizer",
    hints=(
        "`parameters[rank::world]` are this rank's. Make the optimizer once, before `step`: its "
        "state must last. Who knows the new value of parameter 3 after the optimizer's step?",
        "`dist.broadcast(tensor, src=...)` is a collective: every rank calls it for every "
        "parameter, in the same order, and the source differs. Broadcast `parameter.detach()`, "
        "which has the same memory.",
    ),
    cases=shard_optimizer_cases,
    wrong_answers=(
        WrongAnswer(
            "does not send its updates",
            lambda p, make: _shard_wrong(p, make, keeps=True),
            "wrong_values",
        ),
        WrongAnswer(
            "takes every parameter from rank 0",
            lambda p, make: _shard_wrong(p, make, from_first=True),
            "wrong_values",
            1,
        ),
        WrongAnswer(
            "keeps the whole state in every rank",
            lambda p, make: _shard_wrong(p, make, everything=True),
            "forbidden",
        ),
        WrongAnswer(
            "makes a new optimizer in every step",
            lambda p, make: _shard_wrong(p, make, forgets=True),
            "wrong_values",
        ),
    ),
)


# part_of


def _run_parts(function: Callable[..., Any], length: int, epoch: int) -> tuple[Any, Any, bool]:
    """The part of this rank, the same call again, and whether the random state is as before."""
    torch.manual_seed(dist.get_rank())
    before = torch.get_rng_state()
    rank, world = dist.get_rank(), dist.get_world_size()
    got = function(length, rank, world, epoch)
    return got, function(length, rank, world, epoch), torch.equal(before, torch.get_rng_state())


def _judge_parts(parts: list[list[int]], length: int) -> str | None:
    read = [one for part in parts for one in part]
    sizes = sorted(map(len, parts))
    if len(set(read)) < len(read):
        return f"{len(read) - len(set(read))} samples are read twice"
    if sorted(read) != list(range(length)):
        return f"together the ranks read {len(read)} of {length} samples"
    if sizes[-1] - sizes[0] > 1:
        return f"one rank reads {sizes[0]} samples and another one {sizes[-1]}"
    if length > 50 and any(part == sorted(part) for part in parts):
        return "the samples are in order: they are not shuffled"
    return None


def _parts_case(note: str, length: int, ranks: int, epoch: int) -> Case:
    def judge(got: list[Any], arguments: tuple[Any, ...]) -> str | None:
        for rank, (part, again, kept) in enumerate(got):
            if not isinstance(part, list) or any(type(one) is not int for one in part):
                return f"rank {rank} returned {part!r:.60}, not a list of whole numbers"
            if part != again:
                return f"rank {rank} got two different lists for the same epoch"
            if not kept:
                return NotThisWay("torch's global random state has changed")
        return _judge_parts([part for part, _, _ in got], length)

    return Case((length, epoch), note=note, judge=judge, ranks=ranks, harness=_run_parts)


def _run_epochs(function: Callable[..., Any], length: int) -> list[Any]:
    return [function(length, dist.get_rank(), dist.get_world_size(), epoch) for epoch in range(3)]


def _epochs_case() -> Case:
    def judge(got: list[Any], arguments: tuple[Any, ...]) -> str | None:
        for rank, epochs in enumerate(got):
            if len({tuple(part) for part in epochs}) < len(epochs):
                return f"rank {rank} reads the same list in two epochs"
            if len({tuple(sorted(part)) for part in epochs}) < len(epochs):
                return f"rank {rank} reads the same samples in every epoch, in another order"
        return None

    return Case((100,), note="3 epochs", judge=judge, ranks=2, harness=_run_epochs)


def part_of_cases() -> Iterator[Case]:
    """Even and uneven divisions, fewer samples than ranks, none, and several epochs."""
    yield _parts_case("100 samples on 2 ranks", 100, 2, 0)
    # Parts of 26, or of 25 with the rest for the last rank, would not differ by at most one.
    yield _parts_case("102 samples on 4 ranks", 102, 4, 4)
    yield _parts_case("2 samples on 3 ranks", 2, 3, 1)
    yield _parts_case("no samples", 0, 2, 1)
    yield _epochs_case()


def _order(length: int, epoch: int) -> list[int]:
    return torch.randperm(length, generator=_draw(epoch)).tolist()


def _padded(length: int, rank: int, world: int, epoch: int) -> list[int]:
    order = _order(length, epoch)
    return (order + order[: -length % world])[rank::world]


def _global_seed(length: int, rank: int, world: int, epoch: int) -> list[int]:
    torch.manual_seed(epoch)
    return torch.randperm(length).tolist()[rank::world]  # type: ignore[no-any-return]


PART_OF = Exercise(
    name="part_of",
    title="Parts without repetition",
    hints=(
        "All ranks must see the same shuffled order, and take different parts of it. What must "
        "the seed depend on, and what must it not depend on?",
        "`torch.randperm(n, generator=...)` with a generator of your own leaves the global state "
        "alone. `order[rank::world]` needs no division, and takes nothing twice.",
    ),
    cases=part_of_cases,
    wrong_answers=(
        WrongAnswer("pads, as DistributedSampler does", _padded, "wrong_values", 1),
        WrongAnswer(
            "drops what does not divide",
            lambda n, rank, world, epoch: _order(n, epoch)[: n - n % world][rank::world],
            "wrong_values",
            1,
        ),
        WrongAnswer(
            "shuffles in each rank with a seed of its own",
            lambda n, rank, world, epoch: _order(n, 31 * epoch + rank)[rank::world],
            "wrong_values",
        ),
        WrongAnswer(
            "does not shuffle",
            lambda n, rank, world, epoch: list(range(n))[rank::world],
            "wrong_values",
        ),
        WrongAnswer(
            "forgets the epoch",
            lambda n, rank, world, epoch: _order(n, 5)[rank::world],
            "wrong_values",
        ),
        WrongAnswer(
            "shuffles its own part only",
            lambda n, rank, world, epoch: [
                list(range(rank, n, world))[place]
                for place in _order(len(range(rank, n, world)), epoch)
            ],
            "wrong_values",
        ),
        WrongAnswer("sets the seed of the whole process", _global_seed, "forbidden", 1),
    ),
)


# run_together


def _run_uneven(function: Callable[..., Any], sizes: list[int]) -> tuple[Any, list[int]]:
    """What the answer returned, and the batches that it took."""
    rank, taken = dist.get_rank(), []

    def step(batch: int) -> None:
        x = torch.tensor([float(batch)])
        dist.all_reduce(x)
        taken.append(batch)

    return function([100 * rank + number for number in range(sizes[rank])], step), taken


def _uneven_case(note: str, sizes: list[int]) -> Case:
    def judge(got: list[Any], arguments: tuple[Any, ...]) -> str | None:
        for rank, (count, taken) in enumerate(got):
            wanted = [100 * rank + number for number in range(min(sizes))]
            if taken != wanted:
                return f"rank {rank} took the batches {taken}, not {wanted}"
            if type(count) is not int or count != min(sizes):
                return f"rank {rank} returned {count!r}, not {min(sizes)}"
        return None

    return Case((sizes,), note=note, judge=judge, ranks=len(sizes), harness=_run_uneven)


def run_together_cases() -> Iterator[Case]:
    """The shortest list on either rank, equal ones, an empty one, and three ranks."""
    yield _uneven_case("3 and 5 batches", [3, 5])
    yield _uneven_case("4 and 2 batches", [4, 2])
    yield _uneven_case("2 and 2 batches", [2, 2])
    yield _uneven_case("no batch on rank 1", [2, 0])
    yield _uneven_case("3 ranks", [3, 1, 2])


def _together_wrong(batches: list[Any], step: Any, **changes: Any) -> int:
    count = torch.tensor(len(batches))
    dist.all_reduce(count, op=changes.get("by", dist.ReduceOp.MIN))
    for batch in batches[: count.item()]:
        step(batch)
    return int(count.item())


def _step_alone(batches: list[Any], step: Any) -> int:
    for batch in batches:
        step(batch)
    return len(batches)


def _trust_first(batches: list[Any], step: Any) -> int:
    count = torch.tensor(len(batches))
    dist.broadcast(count, src=0)
    for batch in batches[: count.item()]:
        step(batch)
    return int(count.item())


RUN_TOGETHER = Exercise(
    name="run_together",
    title="Stop together",
    hints=(
        "The ranks have to agree before the first step. Which collective tells each of them the "
        "smallest of all numbers?",
        "`dist.all_reduce(tensor, op=dist.ReduceOp.MIN)` on a tensor of one number. Every rank "
        "must call it, also one without batches.",
    ),
    cases=run_together_cases,
    wrong_answers=(
        WrongAnswer("takes all of its own batches", _step_alone, "timed_out"),
        WrongAnswer("does what rank 0 says", _trust_first, "timed_out"),
        WrongAnswer(
            "agrees on the largest number",
            lambda batches, step: _together_wrong(batches, step, by=dist.ReduceOp.MAX),
            "timed_out",
            1,
        ),
        WrongAnswer(
            "returns the number of its own batches",
            lambda batches, step: _together_wrong(batches, step) and len(batches),
            "wrong_values",
        ),
        WrongAnswer(
            "takes no batch, and returns the number of its own",
            lambda batches, step: _together_wrong(batches[:0], step) or len(batches),
            "wrong_values",
        ),
        WrongAnswer(
            "takes no batch",
            lambda batches, step: _together_wrong(batches[:0], step),
            "wrong_values",
        ),
    ),
)

EXERCISES = (RING_SUM, AVERAGE_GRADIENTS, SHARD_OPTIMIZER, PART_OF, RUN_TOGETHER)
