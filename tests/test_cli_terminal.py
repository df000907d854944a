"""What the commands do with outputs that are narrow, closed, full, or of few characters."""

from __future__ import annotations

import io
import os
import subprocess
import sys
from pathlib import Path

import pytest

from labkit import cli as cli_module
from labkit.cli import main
from tests.fakes.nvml import ROOT

MEMORY = (sys.executable, "-m", "labkit", "memory")
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(ROOT)}
FULL = Path("/dev/full")
SOURCE = """\
import torch

def evaluate():
    größe = torch.ones(10)  # and what makes this line of code a longer one than is ever shown
    return lambda: größe + 1
"""


class Screen(io.TextIOWrapper):
    """A terminal in memory."""

    def __init__(self, encoding: str = "utf-8") -> None:
        super().__init__(io.BytesIO(), encoding=encoding)

    def isatty(self) -> bool:
        """It is one."""
        return True


@pytest.mark.parametrize(("columns", "cells"), [(200, 64), (72, 64), (40, 32), (5, 10)], ids=str)
def test_a_bar_is_as_wide_as_the_terminal_lets_it(monkeypatch, columns, cells):
    monkeypatch.setattr(sys, "stdout", Screen())
    monkeypatch.setenv("COLUMNS", str(columns))
    assert cli_module.fit_bar(64, indent=8) == cells


def test_a_file_gets_the_whole_bar(monkeypatch):
    monkeypatch.setattr(sys, "stdout", io.StringIO())
    monkeypatch.setenv("COLUMNS", "20")
    assert cli_module.fit_bar(64, indent=8) == 64


def test_a_line_of_code_in_letters_that_the_terminal_lacks_is_shown(tmp_path, monkeypatch):
    (tmp_path / "train.py").write_text(SOURCE, encoding="utf-8")
    screen = Screen("ascii")
    monkeypatch.setattr(sys, "stdout", screen)
    assert main(["estimate", f"{tmp_path}/train.py:evaluate"]) == 0
    screen.seek(0)
    assert "train.py:4  gr??e = torch.ones(10)" in screen.read()


def test_with_the_standard_output_closed_nothing_breaks():
    command = 'exec "$@" >&-'
    closed = subprocess.run(
        ["sh", "-c", command, "sh", *MEMORY],
        env=ENVIRONMENT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert (closed.returncode, closed.stderr) == (0, "")


@pytest.mark.skipif(not FULL.exists(), reason="needs /dev/full")
@pytest.mark.parametrize("words", [(), ("--json",)], ids=["text", "json"])
def test_a_full_disk_is_told_once_without_a_traceback(words):
    with FULL.open("w") as full:
        ended = subprocess.run(
            [*MEMORY, *words],
            env=ENVIRONMENT,
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            check=False,
        )
    assert ended.returncode == 1
    assert ended.stderr == (
        "error: No space left on device\n  cause: the disk is full\n  try: df -h .\n"
    )
