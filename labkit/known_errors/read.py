"""Decodes a log to plain lines: encodings, terminal codes, prefixes, long lines."""

from __future__ import annotations

import codecs
import html
import json
import re
from collections.abc import Iterable, Iterator
from typing import NamedTuple

from labkit.text import strip_ansi

# A longer line is read in overlapping pieces, which bounds time and memory.
PIECE_CHARACTERS = 4000
OVERLAP_CHARACTERS = 600
# Of a log's start so much shows its encoding.
SAMPLE_BYTES = 4096
BYTE_ORDER_MARKS = (
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)


class NumberedLines(NamedTuple):
    """Lines, and the number of each (from 1); a long line is in several pieces with one number."""

    numbers: list[int]
    lines: list[str]

    def add(self, other: NumberedLines) -> NumberedLines:
        """These, and the other ones after them."""
        return NumberedLines(self.numbers + other.numbers, self.lines + other.lines)


def decode_blocks(blocks: Iterable[bytes]) -> Iterator[str]:
    """The text of a log's blocks: UTF-8, or UTF-16 and UTF-32 by their marks (BOM) or zero bytes.

    Invalid bytes become the replacement character.
    """
    decoder = None
    for block in blocks:
        if decoder is None:
            decoder = codecs.getincrementaldecoder(guess_encoding(block))(errors="replace")
        yield decoder.decode(block)
    if decoder is not None:
        yield decoder.decode(b"", final=True)


def guess_encoding(start: bytes) -> str:
    """The encoding of a text by its mark or its zero bytes; UTF-8 where neither says more."""
    for mark, encoding in BYTE_ORDER_MARKS:
        if start.startswith(mark):
            return encoding
    # Windows writes UTF-16 without a mark, too: every other byte of its ASCII is zero, and in any
    # language the ends of its lines and its blanks are.
    sample = start[: min(len(start), SAMPLE_BYTES) // 2 * 2]
    for offset, encoding in ((1, "utf-16-le"), (0, "utf-16-be")):
        zeros, others = sample[offset::2].count(0), sample[1 - offset :: 2].count(0)
        if len(sample) >= 4 and zeros * 2 > len(sample[offset::2]):
            return encoding
        if zeros > others and not _is_utf_8(sample) and _is_text(sample, encoding):
            return encoding
    return "utf-8"


def _is_utf_8(sample: bytes) -> bool:
    """Whether the sample is UTF-8, but for zeros and its end; controls are of another encoding."""
    text = sample.replace(b"\0", b"").decode(errors="replace")[:-3]
    return not re.search(r"[\x01-\x06\x0e-\x1a\ufffd]", text)


def _is_text(sample: bytes, encoding: str) -> bool:
    """Whether nearly all of the sample is letters, signs and blanks in this encoding."""
    # The sample can end within a character of two parts.
    text = sample.decode(encoding, errors="replace")[:-1]
    known = sum(character.isprintable() or character.isspace() for character in text)
    return bool(text) and known >= 0.95 * len(text) and "\ufffd" not in text


def read_pieces(texts: Iterable[str]) -> Iterator[NumberedLines]:
    """The lines of each text of a log; an incomplete last line continues in the next text."""
    number, rest = 1, ""
    for text in texts:
        lines = _normalize_line_ends(rest + text).split("\n")
        # A "\r" at the end may be half of "\r\n": it is kept for the next text.
        rest = lines.pop()
        pieces = NumberedLines(list(range(number, number + len(lines))), lines)
        if max(map(len, lines), default=0) > PIECE_CHARACTERS:
            pieces = _cut(pieces)
        number += len(lines)
        if len(rest) > 2 * PIECE_CHARACTERS:
            early = _cut(NumberedLines([number], [rest]))
            rest = early.lines.pop()
            early.numbers.pop()
            pieces = pieces.add(early)
        yield pieces
    if rest := rest.rstrip("\r"):
        yield _cut(NumberedLines([number], [rest]))


def _normalize_line_ends(text: str) -> str:
    if "\r" not in text:
        return text
    text = text.replace("\r\n", "\n")
    return text[:-1].replace("\r", "\n") + text[-1:]


def _cut(whole: NumberedLines) -> NumberedLines:
    """The pieces of lines that may be long."""
    pieces = NumberedLines([], [])
    step = PIECE_CHARACTERS - OVERLAP_CHARACTERS
    for number, line in zip(*whole, strict=True):
        for start in range(0, max(1, len(line) - OVERLAP_CHARACTERS), step):
            pieces.numbers.append(number)
            pieces.lines.append(line[start : start + PIECE_CHARACTERS])
    return pieces


_TIME = r"\d{4}-\d\d-\d\d[T ]\d\d:\d\d:\d\d(?:[.,]\d{1,9})?(?:Z|[+-]\d\d:?\d\d)?"
# The host and the program that journald and syslog name after the time; by itself, only a program
# with its number, or the kernel, differs from a level and a module of some program's own log.
_SENDER = r"\S{1,60} [\w.@/-]{1,60}(?:\[\d{1,9}\])?: "
_SURE_SENDER = r"\S{1,60} (?:kernel|[\w.@/-]{1,60}\[\d{1,9}\]): "
PREFIXES = re.compile(
    r"(?:"
    r"[^\S\n]{1,40}"
    r"|(?:> ?){1,5}"  # a quote in markdown or mail
    r"|(?!(?:ERROR|CRITICAL|FATAL)\b)[\w.-]{1,60} {0,30}\| ?"  # Compose; loguru's level is kept
    r"|\#\d{1,4} (?:\d{1,6}\.\d{1,4} )?"  # BuildKit, and its summary of a failed step:
    r"|\d{1,5}\.\d{1,3} (?=[ A-Za-z\[/*>'\"])"
    rf"|{_TIME} {_SURE_SENDER}"  # rsyslog, journalctl -o short-iso
    rf"|\[?{_TIME}\]? (?:std(?:out|err) [FP] )?"  # Kubernetes and many others
    # journald and syslog; journalctl -o short-full has a year.
    rf"|(?:[^\W\d]{{3,5}}\.? [ \d]\d|[A-Z][a-z]{{2}} \d{{4}}-\d\d-\d\d) \d\d:\d\d:\d\d"
    rf"(?:\.\d{{1,9}})?(?: [A-Z]{{3,5}})? {_SENDER}"
    # The kernel's log, with the process where it notes it; dmesg -x, -T.
    r"|(?:<\d{1,3}>)?\[ {0,8}\d{1,9}\.\d{1,9}\](?: ?\[ {0,8}[TC]\d{1,9}\])? "
    r"|(?:kern|user|daemon) {1,4}: ?\w{3,7} {0,4}: "
    r"|\[[^\W\d]{2,4}\.? [^\W\d]{3,5}\.? [ \d]\d \d\d:\d\d:\d\d \d{4}\] "
    r"|\[?(?:rank ?)?\d{1,5}\]?: "  # torchrun, srun
    r"|\(\w{1,40}[^()\n]{0,40} pid=\d{1,9}[^()\n]{0,40}\) {0,4}"  # Ray and vLLM's workers
    r"|(?:INFO|WARNING) \d\d-\d\d \d\d:\d\d:\d\d \[[\w./-]{1,80}:\d{1,6}\] "  # vLLM
    # Its level ERROR makes a plain line a failure; before a traceback it hides the traceback.
    r"|ERROR \d\d-\d\d \d\d:\d\d:\d\d \[[\w./-]{1,80}:\d{1,6}\] "
    r"(?=\s|$|Traceback|During handling|The above exception|(?:\w{1,40}\.){0,8}\w{0,40}"
    r"(?:Error|Exception|Interrupt)\b)"
    r"|\[\d{1,4},\d{1,5}\]<std(?:out|err)>: ?"  # mpirun
    r")"
)


_DOCKER_RECORD = '{"log":"'
# A path of Windows, or a quote or line break that a journal or a program has escaped.
_BACKSLASHES = re.compile(
    r"(?P<path>(?:\b[A-Za-z]:|\b(?:(?:site|dist)-packages|[Ll]ib|envs|venv|custom_nodes))"
    r"(?:\\{1,4}(?![nrt][A-Z\d])[\w.()~+@-]{1,80}){1,30})"
    r"|\\+(?P<sign>[\"'`/])|\\+(?:[nrt]|x0a)"
)


def unescape(text: str) -> str:
    r"""The text with spaces for escaped breaks, quotes unescaped, and paths of Windows kept.

    >>> unescape(r'at C:\\new\\torch\nOSError: \"x\"')
    'at C:\\new\\torch OSError: "x"'
    """
    return _BACKSLASHES.sub(_unescape, text) if "\\" in text else text


def _unescape(found: re.Match[str]) -> str:
    if found["path"]:
        return re.sub(r"\\{2,}", r"\\", found["path"])
    return found["sign"] or " "


# A prefix can be inside another's.
_ALL_PREFIXES = re.compile(rf"(?:{PREFIXES.pattern}){{0,4}}")
_LINE_WITH_PREFIX = re.compile(rf"\n((?:{PREFIXES.pattern}){{1,4}})")


def clean_line(line: str) -> str:
    """The program's own text, without log collectors' prefixes and terminal codes.

    >>> clean_line('web-1  | &quot;nvidia-smi&quot;: not found')
    '"nvidia-smi": not found'
    >>> clean_line("#14 812.3 on device")
    'on device'
    """
    text = strip_ansi(line)
    if text.lstrip().startswith(_DOCKER_RECORD):
        text = _read_docker_record(text)
    text = html.unescape(unescape(text))
    prefixes = _ALL_PREFIXES.match(text)
    return text[prefixes.end() if prefixes else 0 :].replace("\n", " ")


def clean_lines(text: str) -> tuple[str, str]:
    """The lines as `clean_line` cleans each, and the prefixes that they lose.

    >>> clean_lines("web-1  | no\\n#14 812.3 on device")
    ('no\\non device', 'web-1  | #14 812.3 ')
    """
    plain = text
    if "\\" in text:
        plain = "\n".join(map(unescape, text.split("\n")))
    plain = html.unescape(plain)
    if _DOCKER_RECORD in text or plain.count("\n") != text.count("\n"):
        return "\n".join(map(clean_line, text.split("\n"))), text
    parts = _LINE_WITH_PREFIX.split(f"\n{plain}")
    return "\n".join(parts[::2])[1:], "".join(parts[1::2])


def _read_docker_record(line: str) -> str:
    try:
        return str(json.loads(line)["log"])
    except (ValueError, KeyError, TypeError, RecursionError):
        return line.lstrip()[len(_DOCKER_RECORD) :]  # a piece of a long one
