"""Explains a log: its known errors, the line of each, the cause and the fix, root causes first."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import chain, islice
from typing import BinaryIO

from labkit.host.distribution import UNKNOWN, Distribution
from labkit.known_errors import KNOWN_ERRORS
from labkit.known_errors.block import ErrorPlace
from labkit.known_errors.catalog import find_status
from labkit.known_errors.context import (
    Context,
    compare_versions,
    correct_host,
    judge_idle,
    judge_memory,
    name_driver,
    suit_python,
)
from labkit.known_errors.failures import BY_FORM, FAILURE, OWN_EXCEPTION
from labkit.known_errors.mention import WARNING
from labkit.known_errors.message import Message, Surroundings
from labkit.known_errors.model import CERTAINTIES, KnownError
from labkit.known_errors.parallel import count_workers, read_parallel
from labkit.known_errors.read import decode_blocks, read_pieces
from labkit.known_errors.scan import LONGEST_TRACEBACK, Scan, repeat_ends
from labkit.process import name_command

BLOCK_BYTES = 2**18
# For so few blocks it takes longer to start processes than to read them.
BLOCKS_ALONE = 2

# What a command of a fix does besides, to say so next to it.
_NOTES = (
    (r"restart docker\b", "a restart of docker stops its running containers"),
    (r"snap remove docker", "this deletes docker's images, containers and volumes: save them"),
    (r"system prune", "prune deletes stopped containers and their data: read its list first"),
    (r"wsl\.exe --shutdown", "--shutdown ends all programs that run in WSL"),
    (r"-aG docker\b", "whoever is in the group docker can become root on this machine"),
    (
        r"^unset LD_(?:LIBRARY_PATH|PRELOAD)",
        "unset is for this shell alone: take the line that sets it out of ~/.bashrc, too",
    ),
    (r"apt-get -f install", "apt asks before it removes packages: read its list first"),
)


def list_notes(*fixes: str | None) -> list[str]:
    """What the commands of an error's fixes end, delete or remove besides."""
    text = "\n".join(filter(None, fixes))
    return [note for command, note in _NOTES if re.search(command, text, re.MULTILINE)]


@dataclass(frozen=True)
class Match:
    """A known error, the line number where it was found (from 1), and the error that caused it.

    ``line`` quotes that line, safe to print. ``context`` is what the text says of its machine.
    """

    error: KnownError
    line_number: int
    line: str
    caused_by: str | None = None
    context: Context = field(default_factory=Context, compare=False, repr=False)

    def write_fixes(self, distribution: Distribution) -> tuple[str, str | None]:
        """The fix, and the second one if there is one, as the text's machine runs them."""
        host = self.context.describe_host(distribution)
        error = self.error
        fix = host.write(error.fix.on(distribution))
        otherwise = error.otherwise and host.write_second(error.otherwise)
        return name_command(fix), otherwise and name_command(otherwise)

    def describe(self, distribution: Distribution) -> dict[str, object]:
        """The match as ``--json`` prints it, with the fix for this distribution."""
        fix, otherwise = self.write_fixes(distribution)
        return {
            "sign": self.error.name,
            "certainty": self.error.certainty,
            "line_number": self.line_number,
            "line": self.line,
            "cause": self.error.cause,
            "fix": fix,
            "fix_elsewhere": self.error.fix.by_family(),
            "otherwise": otherwise,
            "notes": list_notes(fix, otherwise),
            "caused_by": self.caused_by,
        }


@dataclass(frozen=True)
class Explanation:
    """The known errors found in a text: causes first, their effects after them.

    ``failure`` is the first line that shows that something failed, None if no line does: without
    a known error it tells a text with an unknown error from a healthy log. ``passed`` are errors
    after which the log goes on; ``has_failed`` is true if something failed, even if it passed.
    ``is_cause_unknown``: what was found only follows from ``failure``, an exception of one rank.
    ``message`` is what the failure says, on its line or near it, None where there is none.
    """

    found: tuple[Match, ...] = ()
    context: Context = field(default_factory=Context)
    failure: Match | None = None
    passed: tuple[Match, ...] = ()
    has_failed: bool = False
    is_cause_unknown: bool = False
    message: Message | None = None

    @property
    def first(self) -> Match | None:
        """The cause to fix first, or None if the text has no error known by more than its form."""
        if self.is_cause_unknown:
            return None
        return next((one for one in self.found if one.error.general != "log"), None)

    @property
    def sure(self) -> Match | None:
        """The first match if it is a cause of more than "possible" certainty, to show unasked."""
        first = self.first
        is_sure = first and first.error.certainty != "possible" and not first.caused_by
        return first if is_sure else None

    @property
    def is_known_by_form(self) -> bool:
        """True if the failure is one of those found, of which only the form is known."""
        if self.first or not self.failure or self.is_cause_unknown:
            return False
        start = self.failure.line_number
        return any(0 <= each.line_number - start <= LONGEST_TRACEBACK for each in self.found)

    def describe(self, distribution: Distribution = UNKNOWN) -> dict[str, object]:
        """The explanation as ``--json`` prints it."""
        distribution = self.context.choose_distribution(distribution)
        return {
            "found": [each.describe(distribution) for each in self.found],
            "unexplained": None if self.first else self._describe_failure(),
            "passed": [each.describe(distribution) for each in self.passed],
            "read_from_text": {**self.context.values, "signs": sorted(self.context.signs)},
        }

    def _describe_failure(self) -> dict[str, object] | None:
        if self.message:
            said: dict[str, object] = {
                "line_number": self.message.number,
                "line": self.message.line,
            }
            return {**said, "where": self.message.where} if self.message.where else said
        if self.failure is None:
            return None
        return {"line_number": self.failure.line_number, "line": self.failure.line}


def explain_text(
    text: str, known: tuple[KnownError, ...] = KNOWN_ERRORS, *, signs: Collection[str] = ()
) -> Explanation:
    """The known errors in ``text``: causes before effects, then by certainty, then by line.

    ``signs``: what is known of the machine besides the text, such as "rootless"; "lab" if this lab
    wrote the text, so that its own commands help.

    >>> explain_text("OSError: [Errno 28] No space left on device").first.error.name
    'disk-full'
    """
    # With the last line's end, the whole text is one block.
    scan = Scan(known, Context(set(signs)))
    around = Surroundings(lambda: _find_failure(scan))
    for lines in around.watch(repeat_ends(read_pieces([text + "\n"]))):
        scan.read_lines(lines)
    return _rank_matches(scan, known, around)


def explain_file(file: BinaryIO, workers: int | None = None) -> Explanation:
    """The known errors in a log of any size and encoding; only few blocks are in memory at a time.

    A larger one is read by ``workers`` processes: as many as there are cores, but at most four.
    After the first megabyte, facts of the machine are read only near errors.
    """
    scan = Scan(KNOWN_ERRORS, Context())
    workers = workers or count_workers()
    # Of the blocks that processes read, the first one's answer comes last.
    around = Surroundings(lambda: _find_failure(scan), workers + 2)
    pieces = read_pieces(decode_blocks(iter(lambda: file.read(BLOCK_BYTES), b"")))
    blocks = around.watch(repeat_ends(pieces))
    for lines in islice(blocks, BLOCKS_ALONE):
        scan.read_lines(lines)
    if following := next(blocks, None):
        read_parallel(scan, chain([following], blocks), workers)
    return _rank_matches(scan, KNOWN_ERRORS, around)


def _find_failure(scan: Scan) -> int | None:
    failure = scan.places.get(FAILURE)
    return failure and failure.number


# Errors whose fixes help only where there is a GPU.
GPU_ERRORS = {"no-cuda-build", "torch-without-driver"}
NO_GPU_HINT = (
    "cause: this machine has no NVIDIA GPU, so no tensor can be made on cuda\n"
    'try: device = labkit.best_device()   # then device=device instead of device="cuda"'
)


def hint_at(text: str, distribution: Distribution, *, has_gpu: bool = True) -> str | None:
    """The cause and the fix, one line each, to print below an error; None if none is certain.

    Without a GPU the hint for its errors is another device, not another build of torch.

    >>> hint = hint_at("AssertionError: Torch not compiled with CUDA enabled", UNKNOWN)
    >>> print(hint.partition("   #")[0])
    cause: this torch is a build for the CPU
    try: pip install --force-reinstall torch torchvision --index-url https://download.pytorch.org/whl/cu130
    """
    found = explain_text(text, signs={"lab"}).sure
    if found is None:
        return None
    if found.error.name in GPU_ERRORS and not has_gpu:
        return NO_GPU_HINT
    return f"cause: {found.error.cause}\ntry: {found.error.fix.on(distribution)}"


def format_explanation(explanation: Explanation, distribution: Distribution) -> str:
    """The explanation for a person: a block for each known error, in the order to fix them.

    Where none of them explains that something failed, those that passed follow. The fixes are those
    of the distribution that the text names, else of ``distribution``.
    """
    distribution = explanation.context.choose_distribution(distribution)
    blocks = [_format_match(each, distribution) for each in explanation.found]
    if explanation.has_failed and not explanation.first:
        remark = "but the log goes on after it: it may have passed"
        blocks += [_format_match(each, distribution, remark) for each in explanation.passed]
    return "\n\n".join(blocks)


def _format_match(found: Match, distribution: Distribution, remark: str = "") -> str:
    error = found.error
    lines = [f"{error.name} ({error.certainty})", f"  line {found.line_number}: {found.line}"]
    lines += [f"  {remark}"] if remark else []
    if found.caused_by:  # its own fix would mend nothing as long as the cause is there
        return "\n".join([*lines, f"  comes from: {found.caused_by}"])
    fix, otherwise = found.write_fixes(distribution)
    lines += [f"  cause: {error.cause}", f"  try: {fix}"]
    if otherwise:
        lines.append(f"  else: {otherwise}")
    lines += [f"  note: {note}" for note in list_notes(fix, otherwise)]
    return "\n".join(lines)


# A failure that programs often survive, so far above a failed end that it does not belong to it.
_REMARK = re.compile(
    r"Failed (?:to|with) |\bHTTP/[\d.]{1,3}\"? 5\d\d\b|\b50[0234] (?:Internal|Bad|Service|Gateway)"
)
FAR = 3


def _rank_matches(scan: Scan, known: Sequence[KnownError], around: Surroundings) -> Explanation:
    failed = scan.places.get(FAILURE)
    # One that came again did not pass.
    over = {error: scan.passed[error] for error in scan.passed if error not in scan.places}
    found = _list_matches(scan.places, known, scan.context)
    if own := _find_own_exception(scan, found):
        cause = f"line {own.number}, an error that the doctor does not know"
        found = tuple(replace(each, caused_by=each.caused_by or cause) for each in found)
        failed = own
    message = None if own else around.find_message()
    if not found and not scan.passed and (failed is None or _REMARK.search(failed.line)):
        end = scan.find_ending()
        if end and (failed is None or end.number - failed.last >= FAR):
            failed, message = end, None
    return Explanation(
        found,
        scan.context,
        failed and Match(FAILURE, failed.number, failed.line),
        _list_matches(over, known, scan.context),
        failed is not None or FAILURE in scan.passed,
        own is not None,
        message,
    )


def _find_own_exception(scan: Scan, found: Sequence[Match]) -> ErrorPlace | None:
    """The exception of one rank, unknown here, from which follows all that was found."""
    own = scan.places.get(OWN_EXCEPTION)
    if own is None or not found or not _RANK.match(own.line) or own.reported:
        return None
    follows = {error.name: error.follows for error in scan.places}
    if not all(each.caused_by or follows[each.error.name] for each in found):
        return None
    return None if _is_later(own.line, scan.context.values.get("rank")) else own


def _list_matches(
    places: Mapping[KnownError, ErrorPlace], known: Sequence[KnownError], context: Context
) -> tuple[Match, ...]:
    places = {error: places[error] for error in places if error not in BY_FORM}
    first_rank = context.values.get("rank")
    brought = {error.name: set(error.brings) for error in known}
    following = [error for error in places if error.follows]
    kills = [error for error in places if error.name in _KILLS]
    for error, place in places.items():
        later = [] if _is_later(place.line, first_rank) else _list_later_kills(place, places, kills)
        names = _list_brought(error, places, [*following, *later], brought)
        brought[error.name] = names
    places = _leave_out_general(places, brought)
    causes: dict[str, list[str]] = {}
    for error in places:
        for name in _list_effects(error.name, brought):
            causes.setdefault(name, []).append(error.name)
    conditions, values = context.list_conditions(), context.list_values()
    found = []
    for error, place in places.items():
        named = {f"{name}-{text}" if text else name for name, text in place.values.items()}
        named |= {name.replace(".", "-") for name in named}
        sizes = place.values
        reasons = (judge_memory(sizes), judge_idle(sizes), compare_versions(sizes))
        named |= {reason for reason in reasons if reason}
        if "free" in place.values and not _compute_share(place.values):
            named.add("nearly-full")
        if float(_compute_share(place.values).get("share", 0)) >= NEARLY_FREE:
            named.add("nearly-free")
        corrected = correct_host(place.values)
        if corrected:
            named.add("misspelled")
        named |= {f"{name}-{sign}" for name in named for sign in conditions}
        shown = {
            **values,
            **place.values,
            **_compute_share(place.values),
            **suit_python(place.values),
            **name_driver(place.values),
            **corrected,
            **_read_status(place.values),
            **_end_advice(place.values),
        }
        adapted = error.adapt(conditions | named, shown, context.capability)
        # A retry may have succeeded later; a sentence may tell of another time or machine.
        if place.retried or place.reported:
            adapted = replace(adapted, certainty="possible")
        cause = next(iter(causes.get(error.name, ())), None)
        found.append(Match(adapted, place.number, place.line, cause, context))
    return tuple(sorted(found, key=lambda each: _rank(each, causes, first_rank)))


# With so much of a GPU's memory to ask for, nothing of note uses it.
NEARLY_FREE = 0.93


def _compute_share(values: Mapping[str, str]) -> Mapping[str, str]:
    """The ``share`` of a GPU's memory to ask for where ``free`` of its ``total`` GiB are free."""
    try:
        share = float(values["free"]) / float(values["total"]) - 0.03
    except (KeyError, ValueError, ZeroDivisionError):
        return {}
    return {"share": f"{share:.2f}"} if share >= 0.1 else {}


def _read_status(values: Mapping[str, str]) -> Mapping[str, str]:
    """The ``meaning`` of a ``status`` of CUDA, a ``lib`` or ``nvml``, and the ``advice``."""
    area = next((name for name in ("lib", "nvml") if name in values), "")
    status = find_status(values.get("status", ""), area)
    return {"meaning": status.meaning, "advice": status.advice} if status else {}


def _end_advice(values: Mapping[str, str]) -> Mapping[str, str]:
    """The ``advice`` of a message up to the end of the brackets around it."""
    advice, depth = values.get("advice", ""), 0
    for at, sign in enumerate(advice):
        depth += (sign in "([{") - (sign in ")]}")
        if depth < 0:
            return {"advice": advice[:at].rstrip()}
    return {}


_GENERAL = {None: 0, "line": 1, "advice": 2, "log": 3}


# The line with which a process ends, whatever stands before it: its rank, a level, a time.
_ENDED = re.compile(
    r"(?:^|[\s:\])])(?:[A-Za-z_]\w{0,40}\.){0,6}(?!\w{0,40}Warning)"
    r"(?:[A-Z]\w{0,40}(?:Error|Exception|Interrupt)|OutOfMemoryError)(?:: |$)"
)


_OWN_NAME = re.compile(r"(?:[a-z_]\w{0,40}\.){1,6}[A-Z]\w{0,40}: \S")
# Errors that say that a process was ended from outside, and what says that memory was the reason. A
# launcher ends the other processes after the first one has failed.
_KILLS = {"process-got-sigkill", "out-of-memory-killed"}
_FULL_MEMORY = re.compile(r"oom|out of me|low on memory|due to memory|memory cgroup", re.IGNORECASE)


def _list_later_kills(
    place: ErrorPlace, places: Mapping[KnownError, ErrorPlace], kills: Sequence[KnownError]
) -> list[KnownError]:
    """The kills below an error's place, but those of a memory that was full."""
    return [
        kill
        for kill in kills
        if places[kill].number > place.end and not _FULL_MEMORY.search(places[kill].line)
    ]


# What an exception says that only tells of another process' end.
_OF_A_KILL = re.compile(
    r"kill|signal|\bexit|-9\b|\b137\b|\bdied\b|terminat|CalledProcess|ChildFailed|memory"
    r"|connection|timed? ?out|pipe",
    re.IGNORECASE,
)


def _is_besides(error: ErrorPlace, kill: ErrorPlace) -> bool:
    """Whether an exception below a kill, for which memory is no reason, has a cause of its own."""
    if error.number < kill.number or _FULL_MEMORY.search(kill.line):
        return False
    if _OF_A_KILL.search(error.line):
        return False
    return bool(_ENDED.search(error.line) or _OWN_NAME.match(error.line))


def _overlaps(here: ErrorPlace, there: ErrorPlace) -> bool:
    return here.number <= there.end and there.number <= here.end


def _list_brought(
    error: KnownError,
    places: Mapping[KnownError, ErrorPlace],
    following: Sequence[KnownError],
    brought: Mapping[str, Collection[str]],
) -> set[str]:
    """What an error brings, with those of these that follow from the end of any process."""
    own, place = set(error.brings), places[error]
    # On its own lines it is the same process that tells of it.
    names = {each.name for each in following if not _overlaps(place, places[each])}
    if error.follows or place.reported or not (names & own or _ENDED.search(place.line)):
        return own
    effects = {name: _list_effects(name, brought) for name in names}
    others = [name for name in names if error.name not in effects[name]]
    return own.union(others, *(effects[name] for name in others)) - {error.name}


def _leave_out_general(
    places: Mapping[KnownError, ErrorPlace], brought: Mapping[str, Collection[str]]
) -> Mapping[KnownError, ErrorPlace]:
    """Without the errors whose text is part of another one that says more: special, or a cause."""

    def is_part_of(error: KnownError, other: KnownError) -> bool:
        overlap = _overlaps(places[error], places[other])
        if other.name in _KILLS and not overlap and _is_besides(places[error], places[other]):
            return False
        is_cause = other.name in brought[error.name]
        if error.general in ("advice", "log") and other.general != error.general:
            return other.general != "log" and (overlap or not is_cause)
        # One that is known only by its form does not hide a special one that follows from it.
        brings = (
            error.name in brought[other.name] and _GENERAL[other.general] <= _GENERAL[error.general]
        )
        return overlap and (brings or (error.general == "line" and not other.general))

    bringing: dict[str, list[KnownError]] = {}
    for other in places:
        for name in brought[other.name]:
            bringing.setdefault(name, []).append(other)
    return {
        error: place
        for error, place in places.items()
        if not any(
            is_part_of(error, other)
            for other in (places if error.general else bringing.get(error.name, ()))
        )
    }


# The rank that wrote a line, as torch, torchrun and srun mark it, and vLLM its workers.
_RANK = re.compile(
    r"\s*\[?(?:default|rank ?)?(\d{1,5})\]?: ?|\(\w{1,40} (?:\w+=\S+ )?rank=(\d{1,5}) "
)


def _rank(
    found: Match, causes: Mapping[str, Sequence[str]], first_rank: str | None
) -> tuple[int, bool, int, bool, int]:
    error = found.error
    # A program goes on after a warning: an error that ended it comes first, if it is as sure.
    grade = 2 * CERTAINTIES.index(error.certainty)
    grade += error.certainty == "likely" and bool(WARNING.search(found.line))
    is_later = _is_later(found.line, first_rank)
    # A cause includes the effects of its effects, so it has fewer causes above it than they have.
    count = len(causes.get(error.name, ()))
    return count, is_later, grade, bool(error.general), found.line_number


def _is_later(line: str, first_rank: str | None) -> bool:
    """Whether a line is of another rank than torchrun names: that one failed first."""
    mark = _RANK.match(line)
    return bool(first_rank) and mark is not None and first_rank not in mark.groups()


def _list_effects(name: str, brought: Mapping[str, Collection[str]]) -> set[str]:
    """The names of all errors that this one causes, directly or indirectly."""
    effects: set[str] = set()
    waiting = list(brought.get(name, ()))
    while waiting:
        each = waiting.pop()
        if each not in effects:
            effects.add(each)
            waiting += brought.get(each, ())
    return effects - {name}
