"""Which expressions are asked for in a text: few in an ordinary log, the right one in each."""

from __future__ import annotations

from functools import cache
from itertools import count

import pytest

from labkit.host.packages import Fix
from labkit.known_errors import KNOWN_ERRORS, block, scan
from labkit.known_errors.failures import BY_FORM
from labkit.known_errors.index import TEXTS_COUNTED, Index, join_digits, split_letters
from labkit.known_errors.match import explain_text
from labkit.known_errors.model import Expression, KnownError
from labkit.known_errors.scan import SHORT_CHARACTERS, SHORT_TEXTS

# Lines of healthy logs, with words that many known errors have.
HEALTHY = {
    "kubelet": 'I1128 10:00:00.1 77 kubelet.go:23] "SyncLoop: event for pod" pod="ml/cuda-job-1"',
    "kernel": "[   12.345678] nvidia-nvlink: Nvlink Core is being initialized, major device 511",
    "journal": "Nov 28 10:00:00 node-1 systemd[1]: Started session-7.scope - Session of User u.",
    "server": "INFO 11-28 10:00:00 [loggers.py:127] Engine 000: Avg prompt throughput: 9 tokens/s",
    "pip": "Requirement already satisfied: torch in ./venv/lib/python3.12/site-packages (2.13.0)",
    "training": "INFO trainer step=7 loss=0.123 grad_norm=0.3 mem=71.2GiB no errors, 4 workers",
    "prose": "The value of the name is not found in the list if the module has no such class.",
}


@pytest.mark.parametrize("line", HEALTHY.values(), ids=HEALTHY.keys())
def test_an_ordinary_line_runs_almost_no_expression(line, monkeypatch):
    searched = []
    list_hits = block.Chunk.list_hits
    monkeypatch.setattr(
        block.Chunk, "list_hits", lambda self, plan: searched.append(plan) or list_hits(self, plan)
    )
    assert explain_text(f"{line}\n" * 20).found == ()
    assert len(searched) <= 3


def ask(pattern, text):
    index = Index([KnownError("x", (pattern,), "cause", Fix("fix"))])
    there = index.find_runs(split_letters(text.lower()))
    return index.list_possible(there, join_digits(text), ()) == [0]


@pytest.mark.parametrize(
    ("text", "asked"),
    [
        ("error: no such driver", True),
        ("No such\ndriver", True),
        ("NVRM: no NVRM: such NVRM: driver", True),
        ("no driver of such a kind", False),
        ("nosuch driver", False),
        ("no such", False),
    ],
)
def test_two_words_of_an_expression_are_asked_for_only_next_to_each_other(text, asked):
    assert ask(r"\bno such driver\b", text) is asked


@pytest.mark.parametrize(
    ("text", "asked"),
    [("it was not found", True), ("it is not there", True), ("not so: it is found", False)],
)
def test_of_alternatives_each_has_its_own_words(text, asked):
    assert ask("it (?:was not found|is not there)", text) is asked


def test_an_expression_without_two_words_is_asked_for_by_its_one():
    assert ask("RendezvousTimeout: ", "raise RendezvousTimeout: 3")
    assert not ask("RendezvousTimeout: ", "raise TimeoutRendezvous: 3")


@pytest.mark.parametrize(
    ("text", "asked"),
    [
        ("exit code (0xc0000005)", True),
        ("exit code c0000142", True),
        ("exit code 1", False),
        ("exit code 5 at 10:42", False),
    ],
)
def test_an_expression_with_a_number_is_asked_for_only_where_its_digits_are(text, asked):
    assert ask(r"exit code (?:0x|\()?\W{0,3}(?:c0000005|c0000142)", text) is asked


def test_texts_of_a_group_are_joined_to_what_is_around_it():
    expression = Expression(r"cannot open (?P<what>lib\w+\.so) file: (?:no|bad) (?P<more>path)")
    assert expression.texts == [("cannot open lib",), (".so file: no path", ".so file: bad path")]
    assert Expression(r"please use (?P<name>\w+)").texts == [("please use ",)]


def test_what_is_rare_in_a_log_decides_what_is_asked_for():
    known = KnownError("x", ("frobnicate .{1,60} quickly",), "cause", Fix("fix"))
    other = KnownError("y", ("frobnicate never",), "cause", Fix("fix"))
    index = Index([known, other])

    def list_possible(text):
        return index.list_possible(index.find_runs(split_letters(text)), b"", ())

    for _ in range(TEXTS_COUNTED):
        assert list_possible("frobnicate it") == []
    assert list_possible("frobnicate it quickly") == [0]
    assert list_possible("frobnicate never") == [1]


def test_every_sample_is_possible_for_its_own_error():
    index = Index(KNOWN_ERRORS)
    for error in KNOWN_ERRORS:
        for sample in error.samples:
            plans = list_possible(index, sample)
            assert any(plan.error is error for plan in plans), sample


def list_possible(index, text):
    chunk = block.Chunk(text, 0, range(text.count("\n") + 1))
    there = index.find_runs(chunk.letters)
    plans = [index.plans[number] for number in index.list_possible(there, chunk.digits, ())]
    return [plan for plan in plans if chunk.is_possible(plan, there)]


@pytest.mark.parametrize(
    ("pattern", "text", "possible"),
    [
        (r"^E\d{4} lost: \w+", "I1128 lost: x", False),
        (r"^E\d{4} lost: \w+", "web-1  | E1128 lost: x", True),
        (r"^\d+ frobs? lost", "2 frobs lost", True),
        (r"^\d+ frobs? lost", "that frob lost", False),
        (r"^(?:tar|zip): frob lost", "tar: frob lost", True),
        (r"^(?:tar|zip): frob lost", "rar: frob lost", False),
        (r"^[\[(]{0,2}(?-i:FROB|LOSS): \w", "[FROB: x", True),
        (r"^[\[(]{0,2}(?-i:FROB|LOSS): \w", "[frob: x", False),
        (r"^(?!\S{1,9} ok)frob \w+ lost", "frob a lost", True),
        (r"^frob\s+lost \w+", "frob\nlost it", True),
    ],
)
def test_a_line_that_begins_otherwise_or_in_another_case_is_not_searched(pattern, text, possible):
    index = Index([KnownError("x", (pattern,), "cause", Fix("fix"))])
    assert bool(list_possible(index, text)) == possible


def test_every_match_has_the_plain_words_of_its_expression():
    for error in KNOWN_ERRORS:
        for sample in error.samples:
            chunk = block.Chunk(sample, 0, range(sample.count("\n") + 1))
            for expression in error.expressions:
                if expression.regex.search("\n".join(chunk.own_lines)):
                    missing = [w for w in expression.plain_words if w not in chunk.squeezed]
                    assert not missing, (expression.pattern, sample)


@pytest.mark.parametrize(
    ("pattern", "words"),
    [
        (r"\x1berrors? in file\w", ["error", "file"]),
        (r"(?:could(?: not)?|will) open(?P<x>ed) [abcd]path{0,2} gone+", ["open", "gone"]),
        (r"path{0,2} nodes* Cuda\.core", ["node", "cuda", "core"]),
    ],
)
def test_plain_words_are_only_what_no_sign_makes_optional(pattern, words):
    assert Expression(pattern).plain_words == words


def test_a_short_text_is_asked_for_the_same_of_fewer_expressions():
    everything = Index(KNOWN_ERRORS)
    samples = [sample for error in KNOWN_ERRORS for sample in error.samples]
    for sample in samples[:: len(samples) // 12]:
        chunk = block.Chunk(sample, 0, range(sample.count("\n") + 1))
        few = Index(KNOWN_ERRORS, chunk.squeezed)
        assert len(few.plans) < len(everything.plans) / 4
        asked = [
            {index.plans[number].expression for number in numbers}
            for index in (few, everything)
            for there in [index.find_runs(chunk.letters)]
            for numbers in [index.list_possible(there, chunk.digits, ())]
        ]
        assert asked[0] == {e for e in asked[1] if all(w in chunk.squeezed for w in e.plain_words)}
        assert asked[0]


def test_after_a_few_short_texts_all_plans_are_read_once(monkeypatch):
    made, everything = [], Index((*KNOWN_ERRORS, *BY_FORM))
    monkeypatch.setattr(scan, "_texts_asked", count())
    monkeypatch.setattr(scan, "index_all", cache(lambda: made.append("all") or everything))
    text = "RuntimeError: CUDA error: no kernel image is available for execution on the device"
    first = explain_text(text)
    assert not made
    for _ in range(SHORT_TEXTS + 1):
        assert explain_text(text) == first
    assert made == ["all"]


def test_a_long_text_is_searched_for_all(monkeypatch):
    monkeypatch.setattr(scan, "_texts_asked", count())
    monkeypatch.setattr(scan, "index_all", cache(lambda: Index([])))
    text = "RuntimeError: CUDA error: no kernel image is available for execution on the device"
    assert explain_text(text).found
    assert not explain_text(f"{text}\n" * (SHORT_CHARACTERS // len(text) + 1)).found


ENCODED = "Zm9vYmFyZXJyb3I3bm90Zm91bmQ4ZXJyb3IxOWFiY2RlZjU2Nzg5MGFiY2RlZmdoaWo5MTI3"


def test_the_letters_of_an_encoded_file_are_no_words():
    chunk = block.Chunk(f"data: {ENCODED} end", 0, range(1))
    assert chunk.letters == [b"data", b"end"]
    path = "/opt/conda/lib/libtorch/share/dist/packages/torch/site/packages/modules/of/torch"
    assert b"conda" in block.Chunk(path, 0, range(1)).letters


def test_a_blank_that_may_be_missing_may_be_missing():
    regex = Expression(r"lost ?\(?frob").regex
    assert all(map(regex.search, ("lost frob", "lost(frob", "lost\n  (frob", "lostfrob")))
