"""Finds the message of a failure that no known error explains: what says the matter, and where.

The first line that shows a failure is often only its symptom (`make: *** [x] Error 1`) or its
header (`Traceback`): what went wrong stands above or below.
"""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import NamedTuple

from labkit.known_errors.block import quote_line
from labkit.known_errors.read import NumberedLines, clean_lines
from labkit.known_errors.translate import read_in_english
from labkit.text import strip_ansi

# So many lines before and after a failure are read; a traceback may be long.
ABOVE, BELOW = 60, 200
# From a header to its message, and from there to the place that it names.
_HOPS, _NEAR = 3, 8

_FRAME = re.compile(r'(?P<before>.*?)File "(?P<file>[^"]{1,240})", line (?P<line>\d{1,7})')
_MARKS = re.compile(r"\s*[~^]+\s*$")
_EXCEPTION = re.compile(r"(?:[\w.]{1,80}\.)?\w{0,60}(?:Error|Exception|Exit|Interrupt)(?:: |$)")
_TRACEBACK = re.compile(r".{0,200}?Traceback \(most recent call last\)")
_PANIC = re.compile(r"thread '[^']{0,60}' (?:\(\d+\) )?panicked at (?P<where>\S{1,200}:\d+:\d+):$")
_CMAKE = re.compile(r"CMake Error at (?P<where>\S{1,200}:\d+) \(\w+\):$")
# Node shows the source that raises, and marks the place in the next line.
_SOURCE_PLACE = re.compile(r"\s{0,4}(?P<where>(?!node:)\S{1,200}:\d+)$")
_NODE_FRAME = re.compile(
    r"\s{0,12}at (?:.{1,120} \()?(?:file://)?(?P<where>(?!node:|internal/)[^\s()]{1,200}:\d+:\d+)\)?$"
)
_GO_FRAME = re.compile(r"\s{0,8}(?P<where>/\S{1,200}\.go:\d+)")
_JAVA_FRAME = re.compile(r"\s{0,8}at [\w.$<>/]{1,200}\((?P<where>\w{1,80}\.\w{1,8}:\d+)\)")
_SYMPTOM = re.compile(
    r"(?:\w{0,4}make(?:\[\d+\])?: )?\*\*\* .{1,200} Error -?\d+$"
    r"|(?:collect2|clang(?:\+\+)?(?:-\d+)?): error: (?:ld returned|linker command failed)"
    r"|ninja: build stopped|npm (?:ERR!|error) (?:code|errno|Exit status|Failed at)\b"
    r"|(?:ERR_PNPM\w*|.{0,40}\bELIFECYCLE)\b|error Command failed with exit code"
    r"|(?:##\[error\]|Error: )Process completed with exit code"
    r"|error: (?:command .{1,200} failed|recipe for target|subprocess-exited)"
    r"|(?:\S{1,80} )?(?:exited|failed|returned|finished) (?:with )?(?:exit )?(?:code|status)\b"
)
_NPM_CODE = re.compile(r"npm (?:ERR!|error) (?:code|errno)\b")
_NPM = re.compile(
    r"npm (?:ERR!|error) (?!(?:code|errno|syscall|path|dest|stack|Exit status|A complete log"
    r"|Failed at|This is probably)\b)\S"
)
_STEP_FAILED = re.compile(r"FAILED: (?:\[code=\d+\] )?\S+(?: \S+)*$")
_SAYS = re.compile(
    r"undefined (?:reference|symbol)|cannot find|multiple definition|\berror\b|\bfatal\b"
    r"|no such file|not found|\b(?:cannot|can't|could ?n[o']t|unable to|failed|invalid|missing)\b"
    r"|\b(?:unexpected|exceeds?|denied|unknown|undefined|unresolved|exception|refused)\b",
    re.IGNORECASE,
)
# A program that names itself before what it says.
_PROGRAM_SAYS = re.compile(r"[\w./+-]{1,60}: (?!(?:warning|note|info)\b)\S")
_NO_MESSAGE = re.compile(r".{0,200}?\b(?:warning|note|info)\s?: |\s*$|checking ", re.IGNORECASE)
# Where a build's step begins: its number, or the command that it runs.
_STEP = re.compile(
    r"\[ {0,2}\d+%\]|\[\d+/\d+\]|\w{0,4}make(?:\[\d+\])?: (?:Entering|Leaving)|> \S"
    r"|(?:\S{0,120}/)?(?:gcc|g\+\+|cc|c\+\+|clang|clang\+\+|nvcc|ar|cd|cmake|python[\d.]*|node) \S"
)

# What systemd says of a unit that failed, a unit's name, and the sender of a journal's line.
_UNIT = re.compile(
    r"Main process exited, code=|\bFailed with result '|^\s{0,12}Active: failed \(Result: "
    r"|Process: \d+ \w+=.{1,200}status=[1-9]"
)
_UNITS = re.compile(r"([\w@-]{2,80})\.(?:service|socket|mount|timer|scope)\b")
_RECORD = re.compile(
    r"\d\d:\d\d:\d\d\S{0,20} \S{1,80} (?!systemd)(?P<name>[\w.@-]{2,80})\[\d+\]: \S"
)

# The language of what failed, by forms of its compiler, runtime or tools.
_LANGUAGES = tuple(
    (name, re.compile(pattern, re.MULTILINE))
    for name, pattern in (
        ("rust", r"^thread '.{0,60}panicked at |\berror\[E\d{4}\]|\bcargo\b|\.rs:\d+"),
        ("go", r"^goroutine \d|\.go:\d+|^panic: |^go: "),
        (
            "node",
            r"\bnode:\w+|\bat .{0,200}\.[cm]?[jt]sx?:\d+:\d+|^npm (?:ERR!|error)|^Node\.js v"
            r"|ELIFECYCLE|ERR_PNPM|\bwebpack\b|\bTS\d{4}:",
        ),
        ("ruby", r"\.rb:\d+:in [`']"),
        (
            "java",
            r"^\s*at [\w.$<>/]+\(\w+\.(?:java|kt|scala):\d+\)|^Exception in thread|\bgradle\b"
            r"|\[INFO\] BUILD FAILURE|\bmaven\b",
        ),
        ("dotnet", r"^Unhandled exception\. [A-Z]|\.cs:line \d|\berror (?:CS|MSB|NETSDK)\d+"),
        ("python", r"^\s*File \".{1,240}\", line \d|Traceback \(most recent|\.py[:\"\s]"),
        (
            "build",
            r"\.(?:c|cc|cpp|cxx|h|hpp|cu|cuh):\d+(?::\d+)?: (?:fatal )?error|\bld: |^collect2"
            r"|undefined reference to|\bmake(?:\[\d+\])?: \*\*\*|^ninja: |^CMake Error",
        ),
        ("c", r"\.(?:c|cc|cpp|cxx|h|hpp|cu|cuh)[:(]\d+|^terminate called|^Aborted"),
        ("shell", r": line \d+: |^(?:ba|z|da)?sh: "),
    )
)


class Message(NamedTuple):
    """What a failure says: the line's number and quote, the place, and the language.

    ``where`` is the file and line that raised it, ``language`` one of "rust", "go", "node", "ruby",
    "java", "dotnet", "python", "build" (of C and C++), "c" and "shell"; each is None where the text
    does not show it.
    """

    number: int
    line: str
    where: str | None
    language: str | None


class Surroundings:
    """The lines of a log around a failure, kept while its blocks are read.

    ``find`` tells the number of the failure's line, None as long as there is none; ``most`` is how
    many blocks may have been drawn before the failure of the first of them is known.
    """

    def __init__(self, find: Callable[[], int | None], most: int = 2) -> None:
        self._find = find
        self._recent: deque[NumberedLines] = deque(maxlen=most)
        self._number: int | None = None
        self._lines: dict[int, str] = {}

    def watch(self, blocks: Iterable[NumberedLines]) -> Iterator[NumberedLines]:
        """The blocks as they are."""
        for each in blocks:
            self._keep()
            self._recent.append(each)
            yield each

    def find_message(self) -> Message | None:
        """The message of the failure; None where there is none, or its lines were not kept."""
        self._keep()
        number = self._find()
        return find_message(self._lines, number) if number in self._lines else None

    def _keep(self) -> None:
        number = self._find()
        if number is None:
            return
        if number != self._number:
            self._number, self._lines = number, {}
        wanted = range(number - ABOVE, number + BELOW)
        if wanted[-1] in self._lines:
            return
        for block in self._recent:
            if block.numbers[-1] >= wanted[0] and block.numbers[0] <= wanted[-1]:
                for at, line in zip(block.numbers, block.lines, strict=True):
                    if at in wanted:
                        self._lines.setdefault(at, line)


def find_message(lines: dict[int, str], number: int) -> Message:
    """The message of the failure in the line ``number`` of these, by their numbers.

    >>> lines = {1: "thread 'main' panicked at src/main.rs:4:5:", 2: "no such key: port"}
    >>> find_message(lines, 1)
    Message(number=2, line='no such key: port', where='src/main.rs:4:5', language='rust')
    """
    numbers = sorted(lines)
    plain = [strip_ansi(lines[each]) for each in numbers]
    cleaned = clean_lines("\n".join(read_in_english(plain)))[0].split("\n")
    at = start = numbers.index(number)
    where: str | None = None
    for _ in range(_HOPS):
        place, found = _step(cleaned, plain, at)
        where = found or where
        if place == at:
            break
        at = place
    near = "\n".join(cleaned[max(0, min(at, start) - 2) : max(at, start) + _NEAR])
    language = next((name for name, form in _LANGUAGES if form.search(near)), None)
    line = lines[numbers[at]]
    return Message(numbers[at], quote_line(line, cleaned[at]), where, language)


def _step(lines: Sequence[str], plain: Sequence[str], at: int) -> tuple[int, str | None]:
    """The line that says more than this one, and the place that is named; else the same line."""
    line = lines[at].strip()
    if _UNIT.search(plain[at]):
        return _find_unit(plain, at), None
    if _TRACEBACK.match(line):
        return _find_exception(plain, at)
    # A logger's own words stand above the exception that it tells of.
    is_above = at + 1 < len(lines) and _TRACEBACK.match(lines[at + 1].strip())
    if is_above and not _EXCEPTION.match(line):
        place, where = _find_exception(plain, at + 1)
        return (place, where) if place > at + 1 else (at, None)
    if at + 1 < len(lines) and _JAVA_FRAME.match(lines[at + 1]):
        return _find_root(lines, at)
    find = next((find for form, find in _FINDERS if form.match(line)), None)
    return find(lines, at) if find else (at, None)


def _find_unit(plain: Sequence[str], at: int) -> int:
    """The last line that a failed unit wrote itself: above what systemd says, or below its state.

    The line of the failure where the unit wrote none nearby.
    """
    named = [name for line in plain[max(0, at - _NEAR) : at + 1] for name in _UNITS.findall(line)]
    above, below = (
        range(at - 1, max(-1, at - _NEAR - 1), -1),
        range(at + 1, min(len(plain), at + 30)),
    )
    for place in (*above, *reversed(below)) if "Active:" in plain[at] else above:
        record = _RECORD.search(plain[place])
        own = record and record["name"]
        if own and any(own in unit or unit in own for unit in named):
            return place
    return at


def _find_next(lines: Sequence[str], at: int) -> tuple[int, str | None]:
    """The next line with a text, and the place that a header of Rust or CMake names."""
    below = range(at + 1, min(len(lines), at + 4))
    header = _PANIC.match(lines[at].strip()) or _CMAKE.match(lines[at].strip())
    return next((each for each in below if lines[each].strip()), at), header and header["where"]


def _find_below(lines: Sequence[str], at: int) -> tuple[int, str | None]:
    """The message of the step that failed, below its name and its command."""
    below = range(at + 2, min(len(lines), at + ABOVE))
    end = next((each for each in below if _STEP.match(lines[each])), below.stop)
    return next((each for each in range(at + 2, end) if _is_message(lines[each])), at), None


def _find_gradle(lines: Sequence[str], at: int) -> tuple[int, str | None]:
    """The line below Gradle's question of what went wrong."""
    below = range(at + 1, min(len(lines), at + _NEAR) - 1)
    return next((e + 1 for e in below if lines[e].startswith("* What went wrong:")), at), None


def _find_panic(lines: Sequence[str], at: int) -> tuple[int, str | None]:
    """The panic of a build script that cargo quotes."""
    below = range(at + 1, min(len(lines), at + ABOVE))
    return next((each for each in below if "panicked at " in lines[each]), at), None


def _find_go_place(lines: Sequence[str], at: int) -> tuple[int, str | None]:
    return at, _find_place(lines, at, _GO_FRAME, ABOVE)


def _find_exception(lines: Sequence[str], at: int) -> tuple[int, str | None]:
    """The line that ends a traceback of Python, and its innermost file and line."""
    where, edge = None, 0
    for place in range(at + 1, len(lines)):
        line = lines[place]
        if frame := _FRAME.match(line):
            where, edge = f"{frame['file']}:{frame['line']}", max(0, len(frame["before"]) - 2)
        elif (
            where and not _MARKS.match(line) and not line[edge : edge + 1].isspace() and line[edge:]
        ):
            return place, where
    return at, where


def _find_thrown(lines: Sequence[str], at: int) -> tuple[int, str | None]:
    """The message below the source that Node quotes, and where it was thrown."""
    above = _SOURCE_PLACE.match(lines[at - 1]) if at else None
    below = range(at + 1, min(len(lines), at + _NEAR))
    place = next((each for each in below if re.match(r"(?!\^)[\w$@]", lines[each])), at)
    where = above["where"] if above else _find_place(lines, place, _NODE_FRAME, _NEAR)
    return place, where


def _find_place(lines: Sequence[str], at: int, frame: re.Pattern[str], most: int) -> str | None:
    found = map(frame.match, lines[at + 1 : at + most])
    return next((each["where"] for each in found if each), None)


def _find_root(lines: Sequence[str], at: int) -> tuple[int, str | None]:
    """The last cause that Java names below an exception, and the place of it."""
    root = at
    for place in range(at + 1, len(lines)):
        line = lines[place]
        if line.startswith("Caused by: "):
            root = place
        elif not re.match(r"\s*(?:at |\.\.\. \d|$)", line):
            break
    return root, _find_place(lines, root, _JAVA_FRAME, 2)


def _is_message(line: str) -> bool:
    return bool(_SAYS.search(line)) and not (
        _NO_MESSAGE.match(line) or _SYMPTOM.match(line.strip()) or _STEP.match(line)
    )


def _find_above(lines: Sequence[str], at: int) -> tuple[int, str | None]:
    """The first message of the step that this symptom ends; the symptom where it has none."""
    above = range(at - 1, max(-1, at - ABOVE), -1)
    start = next((each for each in above if _STEP.match(lines[each])), above.stop)
    said = [each for each in range(start + 1, at) if _is_message(lines[each])]
    if said:
        return said[0], None
    below = [each for each in range(at + 1, min(len(lines), at + _NEAR)) if _NPM.match(lines[each])]
    if below and _NPM_CODE.match(lines[at]):
        return below[0], None
    own = lines[at - 1] if at else ""
    is_own = _PROGRAM_SAYS.match(own) and not _NO_MESSAGE.match(own) and not _SYMPTOM.match(own)
    return at - 1 if is_own else at, None


# What a line begins with that is only a header or a symptom, and how its message is found.
_FINDERS: tuple[tuple[re.Pattern[str], Callable[[Sequence[str], int], tuple[int, str | None]]], ...]
_FINDERS = (
    (_PANIC, _find_next),
    (re.compile(r"throw |node:internal/"), _find_thrown),
    (_STEP_FAILED, _find_below),
    (_SYMPTOM, _find_above),
    (re.compile(r"panic: "), _find_go_place),
    (_CMAKE, _find_next),
    (re.compile(r"FAILURE: Build failed with an exception"), _find_gradle),
    (re.compile(r"error: failed to run custom build command"), _find_panic),
    # Maven's summary, and other headings.
    (re.compile(r"\[?(?:ERROR|FATAL|FAILURE)\]?:? ?[\w ]{0,40}:$"), _find_next),
    # Go's tests.
    (re.compile(r"--- FAIL: "), _find_next),
    # webpack, R.
    (re.compile(r"ERROR in \S+(?: \d+:\d+.*)?$|Error in .{1,160} :$"), _find_next),
)
