"""What each rank of several would hold of a step: DDP, ZeRO-1 or FSDP2, without starting them.

The step runs once on fake tensors, as for any estimate, while its modules and optimizers are
recorded. What a rank holds of them follows from the way that torch shards:

- ddp: everything, and buckets of the gradients' size (none with gradient_as_bucket_view).
- zero1: as DDP, but ``ZeroRedundancyOptimizer`` gives each parameter's state to one rank, the
  largest first, to the rank that has least.
- fsdp: ``fully_shard`` cuts dimension 0 of each parameter in pieces of ceil(rows / ranks), padded.
  It is assumed to be called on each module in a ModuleList or Sequential, and on the model. While
  a layer runs, it is gathered whole, and the next one as well; what is in no layer stays gathered.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from labkit.errors import UsageError
from labkit.memory.estimate.model import Estimate
from labkit.text import format_bytes, plural

STRATEGIES = ("ddp", "zero1", "fsdp")
# More than any run has; the time and the list grow with the number of ranks.
MOST_RANKS = 16384
# The layer that runs, and the one that is gathered meanwhile.
LAYERS_AT_ONCE = 2


class ParameterSize(NamedTuple):
    """A parameter: shape, bytes for one number, whether it is trained, its layer (None: none).

    ``state_bytes`` is the optimizer's state that has the parameter's shape, ``other_bytes`` the
    rest of it, which is not cut. ``group`` is its place among the optimizers' groups, None if no
    optimizer has it.
    """

    shape: tuple[int, ...]
    itemsize: int
    trained: bool
    layer: int | None
    state_bytes: int = 0
    other_bytes: int = 0
    group: int | None = None

    @property
    def bytes(self) -> int:
        """The bytes of the whole parameter."""
        return math.prod(self.shape) * self.itemsize

    def cut(self, ranks: int, rank: int) -> tuple[int, int]:
        """The bytes of a rank's piece, with and without its padding.

        >>> ParameterSize((5, 2), 4, True, None).cut(2, 1)
        (24, 16)
        """
        rows = self.shape[0] if self.shape else 1
        row_bytes = self.bytes // rows if rows else 0
        piece = -(-rows // ranks)
        own = min(max(rows - rank * piece, 0), piece)
        return piece * row_bytes, own * row_bytes


class RankShare(NamedTuple):
    """What one rank holds, in bytes; ``peak_bytes`` is the peak of its tensors.

    ``buckets_bytes`` is what is exchanged: DDP's buckets, or FSDP's buffers of an all_gather.
    ``gathered_bytes`` is what FSDP puts together of the other ranks' parameters.
    """

    rank: int
    parameters_bytes: int
    gradients_bytes: int
    optimizer_bytes: int
    buckets_bytes: int
    gathered_bytes: int
    peak_bytes: int


@dataclass
class RecordedModel:
    """The parameters of the models that a step runs, each once."""

    sizes: dict[int, ParameterSize] = field(default_factory=dict)
    _depth: int = 0

    def watch(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """The function, which begins a new record: an estimate may run it more than once."""

        @functools.wraps(function)
        def make(*arguments: Any, **named: Any) -> Any:
            self.sizes.clear()
            self._depth = 0
            return function(*arguments, **named)

        return make

    @contextlib.contextmanager
    def open(self) -> Iterator[None]:
        """Records models and optimizers that run in the block."""
        from torch.nn.modules import module as modules
        from torch.optim import optimizer as optimizers

        handles = [
            modules.register_module_forward_pre_hook(self._enter),
            modules.register_module_forward_hook(self._leave, always_call=True),
            optimizers.register_optimizer_step_post_hook(self._end_step),
        ]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def count_parameters(self) -> tuple[int, int]:
        """The number of elements of all parameters, and of those that are trained."""
        counts = [(math.prod(one.shape), one.trained) for one in self.sizes.values()]
        return sum(count for count, _ in counts), sum(count for count, own in counts if own)

    def _enter(self, module: Any, arguments: Any) -> None:
        if not self._depth:
            layers = number_layers(module)
            for name, one in module.named_parameters():
                if id(one) not in self.sizes:
                    layer = next((n for prefix, n in layers if name.startswith(prefix)), None)
                    shape, size = tuple(one.shape), one.element_size()
                    self.sizes[id(one)] = ParameterSize(shape, size, one.requires_grad, layer)
        self._depth += 1

    def _leave(self, module: Any, arguments: Any, result: Any) -> None:
        self._depth = max(0, self._depth - 1)

    def _end_step(self, optimizer: Any, arguments: Any, named: Any) -> None:
        for place, group in enumerate(optimizer.param_groups):
            for parameter in group["params"]:
                if id(parameter) in self.sizes:
                    self.sizes[id(parameter)] = self.sizes[id(parameter)]._replace(group=place)
        for parameter, state in optimizer.state.items():
            known = self.sizes.get(id(parameter))
            if known is not None:
                tensors = [one for one in state.values() if hasattr(one, "untyped_storage")]
                alike = [one for one in tensors if one.shape == parameter.shape]
                whole = sum(one.nbytes for one in alike)
                rest = sum(one.nbytes for one in tensors) - whole
                self.sizes[id(parameter)] = known._replace(state_bytes=whole, other_bytes=rest)


def number_layers(model: Any) -> list[tuple[str, int]]:
    """The names of the model's layers, each with a dot at its end and a number.

    A layer is a module in a ModuleList or Sequential that has parameters, the outermost such.
    """
    import torch

    found: list[str] = []
    for name, module in model.named_modules():
        if isinstance(module, torch.nn.ModuleList | torch.nn.Sequential):
            start = f"{name}." if name else ""
            for key, child in module.named_children():
                prefix = f"{start}{key}."
                inside = any(prefix.startswith(one) for one in found)
                if not inside and any(True for _ in child.parameters()):
                    found.append(prefix)
    return [(prefix, number) for number, prefix in enumerate(found)]


def share_out(
    sizes: list[ParameterSize], estimate: Estimate, *, world_size: int, shard: str
) -> tuple[RankShare, ...]:
    """What each rank holds, and its peak: the estimate's, with these parts replaced.

    Raises UsageError for an unknown strategy or world size, or without a recorded model.
    """
    check_ranks(world_size, shard)
    if not sizes:
        raise UsageError(
            f"{estimate.name} runs no torch.nn.Module with parameters",
            cause="only modules and their optimizers can be sharded",
        )
    owners = _own_states(sizes, world_size)
    whole = _hold(sizes, "ddp", 1, 0, owners)
    shares = []
    for rank in range(world_size):
        share = _hold(sizes, shard, world_size, rank, owners)
        shares.append(share._replace(peak_bytes=_find_peak(estimate, whole, share)))
    return tuple(shares)


def check_ranks(world_size: int, shard: str) -> None:
    """Raises UsageError for an unknown strategy, or a world size that cannot be estimated."""
    if shard not in STRATEGIES:
        raise UsageError(f"invalid --shard {shard!r}", cause=f"it is {', '.join(STRATEGIES)}")
    if not 1 <= world_size <= MOST_RANKS:
        raise UsageError(
            f"invalid --world-size {world_size}",
            cause=f"it is a number of ranks from 1 to {MOST_RANKS}",
            fix="labkit estimate --help",
        )


def _hold(
    sizes: list[ParameterSize], shard: str, ranks: int, rank: int, owners: list[int]
) -> RankShare:
    trained = [one for one in sizes if one.trained]
    if shard == "fsdp":
        pieces = sum(one.cut(ranks, rank)[0] for one in sizes)
        gradients = sum(one.cut(ranks, rank)[0] for one in trained)
        state = sum(_cut_state(one, ranks, rank) for one in sizes)
        gathered = _gather(sizes, ranks)
        return RankShare(rank, pieces, gradients, state, gathered, gathered, 0)
    gradients = sum(one.bytes for one in trained)
    state = sum(
        one.state_bytes + one.other_bytes
        for one, owner in zip(sizes, owners, strict=True)
        if shard == "ddp" or owner == rank
    )
    buckets = gradients if ranks > 1 else 0
    return RankShare(rank, sum(one.bytes for one in sizes), gradients, state, buckets, 0, 0)


def _cut_state(one: ParameterSize, ranks: int, rank: int) -> int:
    own = one.cut(ranks, rank)[1]
    return (one.state_bytes * own // one.bytes if one.bytes else 0) + one.other_bytes


def _gather(sizes: list[ParameterSize], ranks: int) -> int:
    """The bytes that are gathered at one time, at most."""
    layers: dict[int | None, int] = {}
    for one in sizes:
        whole = ranks * one.cut(ranks, 0)[0]
        layers[one.layer] = layers.get(one.layer, 0) + whole
    rest = layers.pop(None, 0)
    return rest + sum(sorted(layers.values(), reverse=True)[:LAYERS_AT_ONCE])


def _own_states(sizes: list[ParameterSize], ranks: int) -> list[int]:
    """The rank that holds each parameter's state, as ZeroRedundancyOptimizer deals them out."""
    held = [0] * ranks
    owners = [0] * len(sizes)
    optimized = [number for number, one in enumerate(sizes) if one.group is not None]
    order = sorted(optimized, key=lambda n: (sizes[n].group, -math.prod(sizes[n].shape)))
    for number in order:
        owners[number] = held.index(min(held))
        held[owners[number]] += math.prod(sizes[number].shape)
    return owners


def _find_peak(estimate: Estimate, whole: RankShare, share: RankShare) -> int:
    """The estimate's peak with the parts that are cut scaled, and what is exchanged added."""
    # A step that wraps its model in DDP itself has buckets already.
    peak = estimate.peak_bytes - estimate.kinds["buckets"]
    peak += share.buckets_bytes + share.gathered_bytes
    parts = (
        ("parameters", whole.parameters_bytes, share.parameters_bytes),
        ("gradients", whole.gradients_bytes, share.gradients_bytes),
        ("optimizer", whole.optimizer_bytes, share.optimizer_bytes),
    )
    for name, all_bytes, own_bytes in parts:
        held = (
            min(estimate.kinds[name], all_bytes) if name == "parameters" else estimate.kinds[name]
        )
        if all_bytes:
            peak -= held - held * own_bytes // all_bytes
    return peak


@dataclass(frozen=True)
class RanksEstimate:
    """The estimate of one process, and what each rank of several would hold of it."""

    estimate: Estimate
    shard: str
    shares: tuple[RankShare, ...]

    @property
    def most_bytes(self) -> int:
        """Bytes that are certainly enough for the rank that needs most."""
        beside = self.estimate.most_bytes - self.estimate.peak_bytes
        return max(one.peak_bytes for one in self.shares) + beside

    @property
    def fits(self) -> bool | None:
        """True or False if it is certain that every rank fits; None if it is close or unknown."""
        capacity, estimate = self.estimate.target.capacity_bytes, self.estimate
        if capacity is None:
            return None
        beside = estimate.least_bytes - estimate.peak_bytes
        # The peak of the ranks is an upper bound: what is gathered need not all be there at once.
        least = max(one.peak_bytes - one.gathered_bytes - one.buckets_bytes for one in self.shares)
        if least + beside > capacity:
            return None if estimate.excess else False
        return True if self.most_bytes <= capacity and estimate.obstacle is None else None


def estimate_ranks(
    function: Callable[..., object],
    estimate: Callable[[Callable[..., object]], Estimate],
    *,
    world_size: int,
    shard: str,
) -> RanksEstimate:
    """The estimate of one process, and what each rank of several would hold.

    ``estimate`` is called once, with the function whose batch is that of one rank.
    """
    check_ranks(world_size, shard)
    record = RecordedModel()
    with record.open():
        made = estimate(record.watch(function))
    sizes = list(record.sizes.values())
    shares = share_out(sizes, made, world_size=world_size, shard=shard)
    return RanksEstimate(made, shard, shares)


# The numbers of GPUs that a remedy names.
RANKS = (2, 4, 8, 16, 32, 64)


def list_shardings(sizes: list[ParameterSize], estimate: Estimate) -> Iterator[RanksEstimate]:
    """FSDP over two GPUs, and over the fewest that certainly fit; over eight if none do."""
    made = [
        RanksEstimate(estimate, "fsdp", share_out(sizes, estimate, world_size=ranks, shard="fsdp"))
        for ranks in RANKS
    ]
    enough = next((one for one in made if one.fits), made[RANKS.index(8)])
    yield made[0]
    if enough is not made[0]:
        yield enough


def describe_ranks(found: RanksEstimate) -> dict[str, object]:
    """What ``--json`` prints besides the estimate of one process."""
    return {
        "world_size": len(found.shares),
        "shard": found.shard,
        "ranks": [one._asdict() for one in found.shares],
        "ranks_fit": found.fits,
    }


HEADS = ("parameters", "gradients", "optimizer", "exchanged", "gathered", "peak")
ASSUMPTIONS = {
    "ddp": "buckets as DistributedDataParallel makes them by default",
    "zero1": "ZeroRedundancyOptimizer over DistributedDataParallel",
    "fsdp": "fully_shard on each module in a ModuleList or Sequential, and on the model",
}


def format_ranks(found: RanksEstimate) -> str:
    """A line for each rank, equal ones together, and whether each fits its device."""
    estimate, shares = found.estimate, found.shares
    batch = f", batch {estimate.batch} in each rank" if estimate.batch is not None else ""
    lines = [f"{estimate.name}{batch}, {plural(len(shares), 'rank')}, {found.shard}", ""]
    lines.append(f"{'rank':<12}" + "".join(f"{head:>12}" for head in HEADS))
    for held, alike in itertools.groupby(shares, key=lambda one: one[1:]):
        ranks = [one.rank for one in alike]
        name = str(ranks[0]) if len(ranks) == 1 else f"{ranks[0]} to {ranks[-1]}"
        lines.append(f"{name:<12}" + "".join(f"{format_bytes(count):>12}" for count in held))
    lines += ["", _say_fit(found), f"assumed: {ASSUMPTIONS[found.shard]}"]
    if estimate.obstacle is not None:
        lines.append(f"a lower bound: {estimate.obstacle}")
    lines += [f"note: {note}" for note in estimate.notes]
    return "\n".join(lines)


def _say_fit(found: RanksEstimate) -> str:
    target = found.estimate.target
    if target.capacity_bytes is None:
        return "no verdict: no device was named"
    words = f"{format_bytes(found.most_bytes)} of {format_bytes(target.capacity_bytes)}"
    if found.fits:
        return f"each rank fits {target.name}: at most {words}"
    if found.fits is False:
        return f"a rank does not fit {target.name}: it needs up to {words}"
    return f"close: whether each rank fits {target.name} is not certain; up to {words}"
