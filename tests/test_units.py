"""Bytes, seconds and near names as text; and the examples in every module's docstrings."""

from __future__ import annotations

import doctest
import importlib
from pathlib import Path

import pytest

import labkit
from labkit.text import format_bytes, format_clock, format_seconds, near_match

PACKAGE = Path(labkit.__file__).parent


def find_modules_with_examples():
    """The dotted names of labkit's modules that have a `>>>` in them."""
    return [
        ".".join(("labkit", *path.relative_to(PACKAGE).with_suffix("").parts))
        for path in sorted(PACKAGE.rglob("*.py"))
        if ">>> " in path.read_text(encoding="utf-8")
    ]


RANKS = "labkit.notebooks.ranks"  # its example starts two processes with torch


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=[pytest.mark.slow] if name == RANKS else [])
        for name in find_modules_with_examples()
    ],
)
def test_the_examples_in_docstrings_hold(name):
    result = doctest.testmod(importlib.import_module(name))
    assert result.attempted > 0
    assert result.failed == 0


def test_examples_are_found_where_they_are():
    assert {"labkit.text", "labkit.errors", "labkit.launch.dev"} <= set(
        find_modules_with_examples()
    )


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (None, "unknown"),
        (0, "0 B"),
        (1, "1 B"),
        (1023, "1023 B"),
        (1024, "1.0 KiB"),
        (-2048, "-2.0 KiB"),
        (141 * 1024**3, "141.0 GiB"),
        (1024**6, "1024.0 PiB"),
    ],
)
def test_bytes_as_text(count, text):
    assert format_bytes(count) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (None, "not measured"),
        (0, "0 ms"),
        (0.0000042, "0.0042 ms"),
        (0.05, "50 ms"),
        (1.0, "1 s"),
        (59.94, "59.9 s"),
        (60, "1 min 0 s"),
        (3725, "62 min 5 s"),
    ],
)
def test_seconds_as_text(seconds, text):
    assert format_seconds(seconds) == text


@pytest.mark.parametrize(
    ("seconds", "text"), [(0, "0:00"), (9.99, "0:09"), (60, "1:00"), (3600, "1:00:00")]
)
def test_a_clock_as_text(seconds, text):
    assert format_clock(seconds) == text


@pytest.mark.parametrize(
    ("name", "near"),
    [("dokcer", "docker"), ("local ", "local"), ("kubernetes", None), ("", None)],
)
def test_the_near_match_of_a_name(name, near):
    assert near_match(name, ("docker", "podman", "local")) == near
