"""``labkit estimate hf:NAME`` and ``timm:NAME``: a model by its name or configuration."""

from __future__ import annotations

import argparse
import contextlib
import functools
import itertools
import re
import sys
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from labkit.cli import can_print, fit_bar, print_json
from labkit.errors import ExitCode, UsageError
from labkit.text import format_bytes

if TYPE_CHECKING:
    from labkit.memory.estimate.model import Estimate, NamedPlan, Target
    from labkit.memory.estimate.named import NamedWork, Remedy
    from labkit.memory.estimate.shards import ParameterSize, RanksEstimate, RecordedModel

# How many places of a table its note names.
FALLS_SHOWN = 3


def add_named_options(parser: argparse.ArgumentParser) -> None:
    """Adds the options for models by name."""
    from labkit.memory.estimate.formats import DTYPES, FORMATS, OPTIMIZERS, TASKS

    group = parser.add_argument_group(
        "for hf:NAME, hf:config.json and timm:NAME",
        "--batch and --sequence also take several sizes, for a table: --batch 1,4,16",
    )
    group.add_argument("--task", choices=TASKS, help="(default: train)")
    group.add_argument("--optimizer", choices=OPTIMIZERS, help="for training (default: adamw)")
    group.add_argument("--dtype", choices=DTYPES, help="of weights (default: float32)")
    group.add_argument(
        "--sequence",
        type=functools.partial(parse_sizes, option="--sequence"),
        metavar="N",
        help="tokens of a sequence (default: 512)",
    )
    group.add_argument(
        "--context",
        type=functools.partial(parse_sizes, option="--context"),
        metavar="N",
        help="for generation: tokens of the cache",
    )
    group.add_argument(
        "--lora", metavar="r=16", help="train adapters: r, alpha, dropout, targets, dora"
    )
    group.add_argument("--weights", choices=FORMATS, help="quantized weights of linear layers")
    group.add_argument(
        "--checkpointing", action="store_true", help="recompute activations in backward"
    )
    group.add_argument(
        "--remedies",
        action="store_true",
        help="show what would save memory, also where the model fits",
    )


def parse_sizes(word: str, *, option: str = "--batch") -> tuple[int, ...]:
    """The sizes of ``4`` or ``1,4,16``; raises UsageError for what is not a size.

    >>> parse_sizes("1,4,16")
    (1, 4, 16)
    """
    parts = word.split(",")
    wrong = next((one for one in parts if not re.fullmatch(r" *0*[1-9]\d{0,9} *", one)), None)
    if wrong is not None:
        raise UsageError(
            f"invalid {option} {word!r}" + (f": {wrong!r} is not a size" if len(parts) > 1 else ""),
            cause="a size is a whole number from 1 to 9,999,999,999; commas separate several",
            fix=f"{option} 32, or for a table of a model by name {option} 8,16,32",
        )
    return tuple(map(int, parts))


def take_one(sizes: Sequence[int] | None) -> int | None:
    """The one size of a step in a file; raises UsageError for several."""
    if sizes and len(sizes) > 1:
        raise UsageError(
            f"--batch {','.join(map(str, sizes))} has several sizes",
            cause="a table is made for models by name only",
            fix=f"--batch {sizes[0]}",
        )
    return sizes[0] if sizes else None


NAMED_OPTIONS = (
    "task", "optimizer", "dtype", "sequence", "context", "lora", "weights", "checkpointing",
    "remedies",
)  # fmt: skip


def refuse_named_options(arguments: argparse.Namespace) -> None:
    """Raises UsageError for options of models by name beside a step in a file."""
    given = [f"--{name}" for name in NAMED_OPTIONS if getattr(arguments, name)]
    if given:
        raise UsageError(
            f"{', '.join(given)} cannot change the step in {arguments.step}",
            cause="only models by name (hf:NAME, hf:config.json, timm:NAME) take these options",
            fix="write it into the step, and omit the option here",
        )


def show_named(arguments: argparse.Namespace, source: tuple[str, str]) -> int:
    """Prints the estimate, the table or the remedies; exits 1 where it does not surely fit."""
    import dataclasses

    from labkit.memory.estimate.model import Target, find_target
    from labkit.memory.estimate.shards import RecordedModel

    target = find_target(arguments.device)
    if arguments.device is None:
        target = Target("a GPU", "cuda")
    plans = _list_plans(arguments, source)
    if arguments.world_size is not None:
        return _show_ranks(arguments, plans, target)
    record = RecordedModel()
    with contextlib.redirect_stdout(sys.stderr):
        found = [(plan, *_estimate(plan, target, record)) for plan in plans]
        plan, estimate, cache = found[0]
        counts = None if plan.weights else record.count_parameters()
        wanted = arguments.remedies or (target.capacity_bytes is not None and not estimate.fits)
        remedies: list[Remedy] = []
        if wanted and len(found) == 1:
            sizes = list(record.sizes.values())
            remedies = _compute_remedies(plan, estimate, target, sizes)
    if arguments.json:
        table = [_describe_cell(*one) for one in found] if len(found) > 1 else None
        print_json(
            {
                "model": f"{plan.library}:{plan.name}",
                "plan": dataclasses.asdict(plan) | {"lora": plan.lora and dict(plan.lora)},
                "parameter_count": counts and counts[0],
                "trained_count": counts and counts[1],
                "cache_bytes": cache,
                **_describe(estimate),
                "table": table,
                "table_notes": note_falls(found) if table else [],
                "remedies": [
                    {
                        "change": one.words,
                        "peak_bytes": one.peak_bytes,
                        "saved_bytes": one.saved_bytes,
                        "fits": one.fits,
                    }
                    for one in remedies
                ],
            }
        )
    elif len(found) > 1:
        print(format_table(found))
    else:
        _print_one(estimate, counts, cache, remedies)
    judged = target.capacity_bytes is not None
    return ExitCode.FAILED if judged and not all(one[1].fits for one in found) else ExitCode.OK


def _refuse_conflicts(arguments: argparse.Namespace) -> None:
    """Raises UsageError for options of which one says that the model is trained, another not."""
    if arguments.inference and arguments.task == "train":
        raise UsageError(
            "--inference conflicts with --task train",
            cause="one runs the model without gradients, the other trains it",
            fix="leave out --inference to train it, or --task train to run it",
        )
    kind = "--inference" if arguments.inference else f"--task {arguments.task}"
    trains = not arguments.inference and arguments.task in {None, "train"}
    if arguments.optimizer and not trains:
        raise UsageError(
            f"--optimizer {arguments.optimizer} conflicts with {kind}",
            cause="only training has an optimizer",
            fix=f"leave out --optimizer, or {kind}",
        )
    if (arguments.lora or arguments.checkpointing) and not trains:
        given = [f"--{one}" for one in ("lora", "checkpointing") if getattr(arguments, one)]
        raise UsageError(
            f"{' and '.join(given)} conflict{'s' * (len(given) == 1)} with {kind}",
            cause="they change how a model is trained",
            fix=f"leave out {' and '.join(given)}, or {kind}",
        )


def _list_plans(arguments: argparse.Namespace, source: tuple[str, str]) -> list[NamedPlan]:
    import dataclasses

    from labkit.memory.estimate.formats import DTYPES, parse_lora
    from labkit.memory.estimate.model import NamedPlan
    from labkit.memory.estimate.named import follow_config

    _refuse_conflicts(arguments)
    task = arguments.task or "train"
    task = "infer" if arguments.inference and task == "train" else task
    if arguments.context and task != "generate":
        raise UsageError(
            "--context is for --task generate",
            cause="only generation has a cache",
            fix="--sequence, or --task generate",
        )
    if arguments.context and arguments.sequence:
        raise UsageError(
            "--context conflicts with --sequence",
            cause="a generation has as many tokens as its cache",
            fix=f"--context {arguments.context[0]} alone",
        )
    if task == "train" and arguments.weights and not arguments.lora:
        raise UsageError(
            f"--weights {arguments.weights} cannot be trained",
            cause="quantized weights have no gradients; adapters beside them have",
            fix=f"--weights {arguments.weights} --lora r=16",
        )
    plan = NamedPlan(
        *source,
        task=task,
        optimizer=arguments.optimizer or "adamw",
        dtype=DTYPES[arguments.dtype or "float32"],
        lora=parse_lora(arguments.lora),
        weights=arguments.weights,
        checkpointing=arguments.checkpointing,
    )
    plan = follow_config(plan)
    return [
        dataclasses.replace(plan, batch=batch, sequence=sequence)
        for sequence in arguments.context or arguments.sequence or (plan.sequence,)
        for batch in arguments.batch or (plan.batch,)
    ]


def _show_ranks(arguments: argparse.Namespace, plans: list[NamedPlan], target: Target) -> int:
    """Prints what each of several ranks would hold; exits 0 if each fits or none was named."""
    from labkit.memory.estimate.shards import (
        RanksEstimate,
        RecordedModel,
        check_ranks,
        share_out,
    )

    record, shard = RecordedModel(), arguments.shard or "ddp"
    check_ranks(arguments.world_size, shard)
    if len(plans) > 1:
        raise UsageError(
            f"--world-size {arguments.world_size} conflicts with several sizes",
            cause="the ranks are shown for one batch and one sequence",
            fix=f"--batch {plans[0].batch} --sequence {plans[0].sequence}",
        )
    with contextlib.redirect_stdout(sys.stderr):
        estimate, _ = _estimate(plans[0], target, record)
    sizes = list(record.sizes.values())
    shares = share_out(sizes, estimate, world_size=arguments.world_size, shard=shard)
    return print_ranks(RanksEstimate(estimate, shard, shares), as_json=arguments.json)


def print_ranks(found: RanksEstimate, *, as_json: bool) -> int:
    """Prints the estimate of several ranks; the exit code is 0 if all fit or none was named."""
    from labkit.memory.estimate.shards import describe_ranks, format_ranks

    if as_json:
        print_json({**_describe(found.estimate), **describe_ranks(found)})
    else:
        print(format_ranks(found))
    judged = found.estimate.target.capacity_bytes is not None
    return ExitCode.FAILED if judged and not found.fits else ExitCode.OK


def _estimate(
    plan: NamedPlan, target: Target, record: RecordedModel
) -> tuple[Estimate, int | None]:
    """The estimate of a plan, and the bytes of its cache; ``record`` gets its parameters."""
    import dataclasses

    from labkit.memory.estimate.model import EstimateObstacle
    from labkit.memory.estimate.named import make_named_work

    made = make_named_work(plan)
    print(f"estimating {plan.title}, batch {plan.batch}")
    try:
        estimate = _simulate(plan, made, target, record)
    except UsageError as error:
        if made.image is None:
            raise
        print(f"without images: {error.what}")  # as most models take them does not suit this one
        made = make_named_work(plan, shows_images=False)
        estimate = _simulate(plan, made, target, record)
    if made.is_blind and estimate.obstacle is None:
        estimate = dataclasses.replace(estimate, obstacle=EstimateObstacle(*NO_IMAGES))
    notes = (*dict.fromkeys(made.notes), *estimate.notes)
    # What labkit itself makes, such as the optimizer, is no line of the script that started it.
    script = getattr(sys.modules["__main__"], "__file__", None)
    lines = [one for one in estimate.lines if not (one.frame and one.frame.file == script)]
    named = dataclasses.replace(estimate, name=plan.title, notes=notes, lines=tuple(lines))
    return named, made.cache.get("bytes")


# What this model takes beside text is not known.
NO_IMAGES = ("its encoder of images", "does not run: the step has text alone")


def _simulate(plan: NamedPlan, made: NamedWork, target: Target, record: RecordedModel) -> Estimate:
    """The estimate of the work. Raises UsageError if the model's code raises."""
    from labkit.memory.estimate.play import estimate_work, make_work

    step = record.watch(made.make_step)
    work = make_work(step, made.arguments, plan.batch, inference=plan.task != "train")
    try:
        with record.open():
            return estimate_work(work, target)
    except UsageError as error:
        raise _explain(plan, error) from error.__cause__


def _explain(plan: NamedPlan, error: UsageError) -> UsageError:
    """The error of a model that was named, which nobody here can run with a small batch."""
    if "overflow" in error.what:
        return UsageError(
            f"batch {plan.batch} with sequence {plan.sequence} is too large",
            cause="a tensor of that size has more bytes than a 64-bit number counts",
            fix="--batch 1 --sequence 4096",
        )
    if " raised " not in error.what:  # labkit's own words
        return error
    return UsageError(
        error.what,
        cause=f"{error.cause}; or the model takes other inputs than labkit makes for it",
        fix="labkit estimate train.py:make_step, where make_step makes the model and its inputs",
    )


def _compute_remedies(
    plan: NamedPlan, estimate: Estimate, target: Target, sizes: list[ParameterSize]
) -> list[Remedy]:
    """The changes that save memory, each computed, those that save most first.

    Where none of them fits alone, the best pairs of them too. Training on several GPUs, which needs
    more than a change of the command, says so.
    """
    from labkit.memory.estimate.named import Remedy, list_remedies
    from labkit.memory.estimate.shards import RecordedModel, list_shardings

    def compute(remedy: Remedy) -> Remedy | None:
        try:
            changed, _ = _estimate(remedy.plan, target, RecordedModel())
        except UsageError as error:  # not every model has checkpointing or takes adapters
            print(f"{remedy.words}: {error.what}")
            return None
        saved = estimate.peak_bytes - changed.peak_bytes
        known = changed.obstacle is None and saved > 0
        made = Remedy(remedy.words, plan, changed.peak_bytes, saved, changed.fits)
        return made if known else None

    found = [one for each in list_remedies(plan) if (one := compute(each))]
    if target.capacity_bytes is not None and not any(one.fits for one in found):
        found += _compute_pairs(plan, found, compute)
    for ranks in list_shardings(sizes, estimate) if plan.task == "train" and sizes else ():
        count, peak = len(ranks.shares), max(one.peak_bytes for one in ranks.shares)
        words = f"with {count} GPUs: --world-size {count} --shard fsdp"
        found.append(Remedy(words, plan, peak, estimate.peak_bytes - peak, ranks.fits))
    return sorted((one for one in found if one.saved_bytes > 0), key=lambda one: -one.saved_bytes)


def _compute_pairs(
    plan: NamedPlan, singles: list[Remedy], compute: Callable[[Remedy], Remedy | None]
) -> list[Remedy]:
    """The pairs of changes that save most: those that fit, else the best one."""
    from labkit.memory.estimate.named import MOST_PAIRS, PAIRS_SHOWN, list_pairs

    pairs: list[Remedy] = []
    for pair in itertools.islice(list_pairs(plan, singles), MOST_PAIRS):
        made = compute(pair)
        pairs += [made] if made else []
        if sum(one.fits is True for one in pairs) == PAIRS_SHOWN:
            break
    pairs.sort(key=lambda one: -one.saved_bytes)
    return [one for one in pairs if one.fits] or pairs[:1]


def _print_one(
    estimate: Estimate,
    counts: tuple[int, int] | None,
    cache: int | None,
    remedies: list[Remedy],
) -> None:
    from labkit.memory.estimate.view import BAR_WIDTH, GLYPHS, INDENT, format_estimate

    plain = not can_print("".join(GLYPHS.values()))
    print(format_estimate(estimate, plain=plain, width=fit_bar(BAR_WIDTH, len(INDENT))))
    if counts:
        count, trained = counts
        some = f", {trained:,} of them trained" if 0 < trained < count else ""
        print(f"\n{count:,} parameters{some}")
    if cache is not None:
        none = "this model keeps no cache: it reads the whole sequence at once"
        print(f"\nthe cache holds {format_bytes(cache)} of it" if cache else f"\n{none}")
    if remedies:
        print("\nwhat would save memory, each line computed")
        for one in remedies:
            verdict = {True: "  fits", False: "  does not fit", None: ""}[one.fits]
            print(f"{INDENT}{format_bytes(one.saved_bytes):>10}  {one.words}{verdict}")


def format_table(found: Sequence[tuple[NamedPlan, Estimate, int | None]]) -> str:
    """The needed memory by batch (rows) and sequence (columns), with the verdict."""
    columns = list(dict.fromkeys(plan.sequence for plan, *_ in found))
    rows = list(dict.fromkeys(plan.batch for plan, *_ in found))
    cells = {(plan.batch, plan.sequence): estimate for plan, estimate, _ in found}
    marks = {True: "fits", False: "too large", None: ""}
    lines = [
        found[0][1].name.replace(f", sequence {columns[0]}", ""),
        "memory that is needed, at most",
    ]
    lines.append(f"{'batch':>8}" + "".join(f"{f'sequence {one}':>24}" for one in columns))
    for batch in rows:
        line = f"{batch:>8}"
        for sequence in columns:
            one = cells[batch, sequence]
            line += f"{f'{format_bytes(one.most_bytes)} {marks[one.fits]}'.rstrip():>24}"
        lines.append(line)
    return "\n".join([*lines, *(f"note: {one}" for one in note_falls(found))])


def note_falls(found: Sequence[tuple[NamedPlan, Estimate, int | None]]) -> list[str]:
    """Where a table has less for a larger batch, or a longer sequence; and why, as one note.

    Tensors may need as much or more, and get it in segments of the allocator that happen to leave
    less unused.
    """
    by_size = {(plan.batch, plan.sequence): one for plan, one, _ in found}
    cells = [(size, by_size[size]) for size in sorted(by_size)]
    falls = [
        (larger, smaller)
        for place, (smaller, before) in enumerate(cells)
        for larger, after in cells[place + 1 :]
        if larger[1] >= smaller[1] and after.most_bytes < before.most_bytes
    ]
    if not falls:
        return []
    several = len({sequence for _, sequence in by_size}) > 1
    shown = [
        f"{_name_cell(larger, several=several)} less than {_name_cell(smaller, several=several)}"
        for larger, smaller in falls[:FALLS_SHOWN]
    ]
    more = f", and {len(falls) - FALLS_SHOWN} more" if len(falls) > FALLS_SHOWN else ""
    stopped = any(by_size[size].obstacle for fall in falls for size in fall)
    same = all(by_size[large].peak_bytes >= by_size[small].peak_bytes for large, small in falls)
    if stopped:
        why = "an estimate was stopped, and is a lower bound"
    elif same:
        why = "the tensors need no less; what segments of 2 and 20 MiB leave unused differs"
    else:
        why = "torch frees other tensors there, or computes in another way"
    return [f"{'; '.join(shown)}{more} ({why}): plan with the larger figure"]


def _name_cell(size: tuple[int, int], *, several: bool) -> str:
    batch, sequence = size
    return f"batch {batch}" + (f" with sequence {sequence}" if several else "")


def _describe_cell(plan: NamedPlan, estimate: Estimate, cache: int | None) -> dict[str, object]:
    sizes: dict[str, object] = {
        "batch": plan.batch,
        "sequence": plan.sequence,
        "cache_bytes": cache,
    }
    return sizes | {
        "peak_bytes": estimate.peak_bytes,
        "least_bytes": estimate.least_bytes,
        "most_bytes": estimate.most_bytes,
        "fits": estimate.fits,
    }


def _describe(estimate: Estimate) -> dict[str, object]:
    from labkit.memory.estimate.view import describe_estimate

    return describe_estimate(estimate)
