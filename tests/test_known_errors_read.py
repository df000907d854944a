"""Any log is read: its encoding, its dress, its size, and lines made to be slow."""

from __future__ import annotations

import io
import re
import time
import tracemalloc

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from labkit.known_errors import KNOWN_ERRORS, context, match, mention, read
from labkit.known_errors.match import BLOCK_BYTES, explain_file, explain_text
from labkit.known_errors.model import compile_pattern, list_required_words
from labkit.known_errors.read import (
    PIECE_CHARACTERS,
    clean_line,
    clean_lines,
    decode_blocks,
)

# What is not literal text in a pattern.
SYNTAX = re.compile(r"\\([^a-zA-Z0-9])|\\.|\(\?[:!=<]*|[][()|?*+^$.]|\{\d*,?\d*\}")
FULL = "OSError: [Errno 28] No space left on device"
EXPRESSIONS = [(error, expression) for error in KNOWN_ERRORS for expression in error.expressions]


def names(text):
    return [each.error.name for each in explain_text(text).found]


def explain_bytes(*blocks):
    return [each.error.name for each in explain_file(io.BytesIO(b"".join(blocks))).found]


# Encodings


@pytest.mark.parametrize(
    "encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "utf-32", "latin-1"]
)
def test_a_log_in_any_encoding_is_read(encoding):
    assert explain_bytes(f"step 1\n\u00e9t\u00e9\n{FULL}\n".encode(encoding)) == ["disk-full"]


@settings(deadline=None)  # on a busy machine the first text takes longest
@given(st.lists(st.binary(max_size=50), max_size=8))
def test_any_bytes_are_decoded(blocks):
    text = "".join(decode_blocks(blocks))
    assert isinstance(explain_text(text).found, tuple)


# What collectors, terminals and people put around a line


@pytest.mark.parametrize(
    "prefix",
    [
        "cuda-1  | ",
        "#14 812.3 ",
        "138.5 ",
        "2026-05-03T11:12:13.456789Z ",
        "2026-05-03T11:12:13.4+00:00 stderr F ",
        "Nov 24 09:12:01 host dockerd[77]: ",
        "[88123.456] ",
        "[88123.456] [   T1203] ",
        "[Sat Nov 28 09:12:01 2026] ",
        "kern  :err   : [Sat Nov  8 09:12:01 2026] ",
        "2026-11-24T09:12:01.123456+01:00 host kernel: [88123.456] ",
        "2026-11-24T09:12:01+0100 host dockerd[77]: ",
        "Tue 2026-11-24 09:12:01 UTC host kernel: ",
        "[rank3]: ",
        "12: ",
        "[1,0]<stderr>:",
        "> ",
        "> > cuda-1 | 2026-05-03 11:12:13,456 ",
    ],
)
def test_an_error_wrapped_under_a_prefix_is_found(prefix):
    first, second = FULL.split(" on ")
    log = f"{prefix}step 1\n{prefix}{first}\n{prefix}on {second}\n"
    found = explain_text(log).found
    assert [(each.error.name, each.line_number) for each in found] == [("disk-full", 2)]


@pytest.mark.parametrize(
    ("line", "clean"),
    [
        ('{"log":"a\\u001b[0m \\"b\\"\\n","stream":"stderr"}', 'a\x1b[0m "b" '),
        ('msg="driver \\"nvidia\\""', 'msg="driver "nvidia""'),
        (r"at C:\\x\\new\\torch\nOSError: \"x\"", r'at C:\x\new\torch OSError: "x"'),
        ("&quot;a&quot; &amp;&lt;b&gt;", '"a" &<b>'),
        ("\x1b[31mred\x1b[0m", "red"),
        ("plain: text | of 3 lines", "plain: text | of 3 lines"),
    ],
    ids=["docker", "journal", "paths of Windows", "html", "colors", "plain"],
)
def test_a_line_is_cleaned(line, clean):
    assert clean_line(line) == clean


PARTS = [
    *("cuda-1  | ", "#14 812.3 ", "[rank3]: ", "> ", "  ", "2026-05-03T11:12:13.4+00:00 stderr F "),
    *(
        "Nov 24 09:12:01 host dockerd[77]: ",
        '{"log":"a\\n"}',
        "\\n",
        '\\"',
        "&lt;",
        "&#10;",
        "error",
    ),
]


@given(st.lists(st.lists(st.sampled_from(PARTS), max_size=6).map("".join), min_size=1, max_size=9))
def test_lines_are_cleaned_together_as_each_alone(lines):
    assert clean_lines("\n".join(lines))[0].split("\n") == [clean_line(line) for line in lines]


@pytest.mark.parametrize("ending", ["\r\n", "\r", "\n"])
def test_line_ends_of_every_system_are_counted(ending):
    found = explain_text(ending.join(["a", "b", FULL, "c"])).first
    assert (found.line_number, found.line) == (3, FULL)


def test_a_sentence_about_an_error_is_not_the_error():
    assert names('"address already in use" -> choose another port') == []
    assert names("Exit status 137 means that the container was killed") == []
    assert names("error: exit status 137") == ["out-of-memory-killed"]


def test_what_is_quoted_cannot_act_on_a_terminal():
    found = explain_text(f"\x1b]0;title\x07\x9b2J{FULL} \u202e").first
    assert found.error.name == "disk-full"
    assert not re.search("[\x1b\x07\x9b\u202e]", found.line)


# Size


def test_an_error_at_the_border_of_two_blocks_is_found_once_with_its_line():
    line = b"step 17 loss 0.1\n"
    for shift in range(0, 60, 7):
        before = line * ((BLOCK_BYTES - shift) // len(line))
        found = explain_file(
            io.BytesIO(before + b"x" * 20 + FULL.encode() + b"\n" + line * 99)
        ).found
        assert [(each.error.name, each.line_number) for each in found] == [
            ("disk-full", before.count(b"\n") + 1)
        ]


@pytest.mark.parametrize("place", [0, PIECE_CHARACTERS - 20, 3 * PIECE_CHARACTERS, 4_999_000])
def test_an_error_anywhere_in_a_line_of_5_mb_is_found_and_its_surroundings_are_quoted(place):
    line = b"x" * place + b" " + FULL.encode() + b" " + b"y" * (5_000_000 - place)
    found = explain_file(io.BytesIO(line)).found
    assert [each.error.name for each in found] == ["disk-full"]
    assert FULL in found[0].line
    assert len(found[0].line) <= 200


class Repeated(io.RawIOBase):
    """A file of many bytes that are never in memory together."""

    def __init__(self, unit, total):
        super().__init__()
        self.unit, self.left = unit, total

    def read(self, size=-1):
        size = min(size, self.left)
        self.left -= size
        return (self.unit * (size // len(self.unit) + 1))[:size]


@pytest.mark.slow
def test_a_large_log_takes_little_memory():
    line = b"2026-11-23 10:00:00 INFO step=17 loss=0.123 lr=3e-4 worker 7 found no file\n"
    explain_text("warm")
    tracemalloc.start()
    assert explain_file(Repeated(line, 20_000_000)).found == ()
    assert tracemalloc.get_traced_memory()[1] < 15_000_000
    tracemalloc.stop()


# Lines made to be slow


def test_an_ordinary_log_is_read_at_more_than_a_megabyte_a_second():
    # The measured rate is over ten times this; the bound is for a busy machine.
    line = "2026-11-23 10:00:00 INFO step=17 loss=0.123 lr=3e-4 no trouble at all, file found\n"
    log = (line * 60_000).encode()
    started = time.process_time()
    assert explain_file(io.BytesIO(log)).found == ()
    assert time.process_time() - started < len(log) / 1e6


@pytest.mark.slow
def test_no_expression_is_slow_on_long_lines_of_its_own_fragments():
    """160 kB of one pattern's fragments took 84 s: a pattern that backtracks shows in 3 kB."""
    started = time.process_time()
    for _, expression in EXPRESSIONS:
        fragments = SYNTAX.sub(r"\1", expression.pattern)
        for text in {fragments, fragments.replace(" ", ""), fragments.split()[0]}:
            expression.regex.search(text * (3_000 // max(1, len(text))))
    assert time.process_time() - started < 30


# Ends that an expression reads far into, and that do not let it match.
ENDS = tuple(
    word * (3_000 // len(word)) + "\x00"
    for word in (" a-word.of", " these,words", "word", " a", "/of/a(path)", "1.2.3-")
)


@pytest.mark.slow
@pytest.mark.parametrize("module", [context, match, mention, read])
def test_no_expression_of_the_code_is_slow_on_a_long_line(module):
    """A sentence of 400 characters took minutes: a repeat within a repeat backtracks."""
    expressions = [each for each in vars(module).values() if isinstance(each, re.Pattern)]
    texts = [each.pattern for each in expressions if isinstance(each.pattern, str)]
    assert texts
    started = time.process_time()
    for expression in (each for each in expressions if isinstance(each.pattern, str)):
        for word in {*re.findall(r"[A-Za-z]{2,}", expression.pattern), "errors", "at 12:30"}:
            for end in ENDS:
                expression.search(f" {word}{end}")
    assert time.process_time() - started < 30


def test_an_error_that_repeats_takes_no_longer_each_time():
    text = "".join(f"KeyError: {number}\n" for number in range(40_000))
    started = time.process_time()
    assert names(text) == ["exception-line"]
    assert time.process_time() - started < 30


def has_a_word_and_bounded_repeats(expression):
    anchored = "^" in expression.pattern  # such a line is found by its beginning
    letters = len("".join((*expression.words.whole, *expression.words.parts)))
    unbounded = r"(?<!\\)[*+]|\d,\}"
    return (
        (anchored or len(expression.words.rarest) >= 2)
        and letters >= (1 if anchored else 3)
        and not re.search(unbounded, re.sub(r"\[[^]]*\]", "", expression.regex.pattern))
    )


def test_every_pattern_has_a_word_to_look_for_and_bounded_repeats():
    wrong = [each.pattern for _, each in EXPRESSIONS if not has_a_word_and_bounded_repeats(each)]
    assert wrong == []


def test_the_words_of_a_pattern_are_in_every_match():
    for error, expression in EXPRESSIONS:
        words = (*expression.words.whole, *expression.words.parts)
        for text in error.samples:
            if expression.regex.search(text):
                assert all(word in text.lower() for word in words), (expression.pattern, text)


@pytest.mark.parametrize(
    ("pattern", "whole", "parts"),
    [
        ("fallen off the bus", ("off", "the"), ("fallen", "bus")),
        (r"a+b? (?:c|d) \bword\b", ("word",), ("a",)),
        (r"x\.(\d+)y[z]{2}", (), ("x", "y")),
        (r"OutOfMemoryError:\x20\S", (), ("outofmemoryerror",)),
    ],
)
def test_only_what_a_match_must_contain_is_required(pattern, whole, parts):
    assert list_required_words(pattern) == (whole, parts)
    compile_pattern(pattern)


def test_alternatives_outside_of_a_group_are_refused():
    with pytest.raises(ValueError, match="split"):
        list_required_words("one|two")


@pytest.mark.parametrize("encoding", ["utf-16-le", "utf-16-be"])
@pytest.mark.parametrize(
    "start",
    [
        "Ошибка: устройство не найдено, процесс завершён аварийно, смотрите журнал ниже",
        "错误:设备未找到,进程一直异常结束,请参阅下面的日志内容",
        "日志" * 300,
        "エラー: デバイスが見つかりません",
    ],
    ids=["Russian", "Chinese", "a long line", "Japanese"],
)
def test_utf_16_without_a_mark_is_read_in_any_language(encoding, start):
    log = f"{start}\r\n{FULL}\r\n".encode(encoding)
    assert explain_bytes(log) == ["disk-full"]


@pytest.mark.parametrize(
    "log",
    [
        f"a\0b\n{FULL}\n".encode(),
        f"Ошибка\0: файл\n{FULL}\n".encode(),
        f"错误\0:文件\n{FULL}\n".encode(),
        f"\x1b[31mred\0\x1b[0m\n{FULL}\n".encode(),
    ],
    ids=["ASCII", "Russian", "Chinese", "colors"],
)
def test_a_zero_byte_in_utf_8_does_not_make_it_utf_16(log):
    assert explain_bytes(log) == ["disk-full"]
