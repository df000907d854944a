"""The shell in the documentation: valid, and its commands take the options that it names."""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from labkit.cli import build_parser

ROOT = Path(__file__).parents[1]
PAGES = (*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), *(ROOT / "tests").rglob("README.md"))
FENCE = re.compile(r"^ *```(\w*)[^\n]*\n(.*?)^ *```", re.MULTILINE | re.DOTALL)
MAKEFILE = (ROOT / "Makefile").read_text(encoding="utf-8")
# Words after which the shell begins another command.
SEPARATORS = {"&&", "||", "|", ";", "&", ">", "<"}


def read_typed(language: str, body: str) -> str:
    """What a reader types of a block: the script, or the lines after a prompt."""
    if language != "console":
        return body
    typed, goes_on = [], False
    for line in map(str.strip, body.splitlines()):
        if line.startswith("$ ") or goes_on:
            typed.append(line.removeprefix("$ "))
            goes_on = line.endswith("\\")
    return "\n".join([*typed, ""])


def find_blocks() -> Iterator[tuple[str, str]]:
    """Each block of shell: its place, and what a reader types."""
    for page in sorted(PAGES):
        text = page.read_text(encoding="utf-8")
        for found in FENCE.finditer(text):
            if found[1] in ("bash", "sh", "shell", "console"):
                line = text.count("\n", 0, found.start()) + 1
                yield f"{page.relative_to(ROOT)}:{line}", read_typed(found[1], found[2])


BLOCKS = dict(find_blocks())


def check_shell(*words: str) -> str:
    """What a checker says of every block."""
    said = ""
    for place, script in BLOCKS.items():
        done = subprocess.run(words, check=False, input=script, text=True, capture_output=True)
        said += "" if done.returncode == 0 else f"{place}: {done.stdout}{done.stderr}\n"
    return said


def test_every_block_parses():
    assert len(BLOCKS) > 30
    assert check_shell("bash", "-n") == ""


@pytest.mark.skipif(not shutil.which("shellcheck"), reason="needs shellcheck")
def test_shellcheck_has_nothing_to_say():
    assert check_shell("shellcheck", "-s", "bash", "-") == ""


def split_line(line: str) -> list[str]:
    """The words of a line, which may be the end of a longer quotation."""
    lexer = shlex.shlex(line, posix=True, punctuation_chars="&|;<>")
    lexer.whitespace_split, lexer.commenters = True, "#"
    try:
        return list(lexer)
    except ValueError:
        return shlex.split(line.replace("'", ""), comments=True)


def list_calls(program: str) -> list[tuple[str, list[str]]]:
    """Each call of the program in a block: its place, and its words without the program."""
    calls = []
    for place, script in BLOCKS.items():
        for line in script.replace("\\\n", " ").splitlines():
            words = [*split_line(re.sub(r"\$\w+", "2", line)), "&&"]
            while words:
                end = next(n for n, word in enumerate(words) if word in SEPARATORS)
                call, words = words[:end], words[end + 1 :]
                if call[:1] == [program]:
                    calls.append((place, call[1:]))
    return calls


def test_labkits_commands_take_the_options():
    calls = list_calls("labkit")
    assert len(calls) > 20
    for place, words in calls:
        try:
            build_parser(words[0]).parse_args(words)
        except Exception as error:
            pytest.fail(f"{place}: labkit {shlex.join(words)}: {error}")


def test_makes_targets_and_variables_are_there():
    calls = list_calls("make")
    assert len(calls) > 10
    targets = set(re.findall(r"^([a-z]+):", MAKEFILE, re.MULTILINE))
    settings = "\n".join(
        path.read_text(encoding="utf-8")
        for path in sorted(
            [
                *(ROOT / "labkit" / "launch").glob("*.py"),
                ROOT / "Makefile",
                ROOT / "hub/compose.yaml",
            ]
        )
    )
    for place, words in calls:
        names = [word.partition("=")[0] for word in words if "=" in word]
        wrong = [word for word in words if "=" not in word and word not in targets]
        wrong += [name for name in names if not re.search(rf"\b{name}\b", settings)]
        assert wrong == [], place


def test_no_block_with_a_prompt_is_without_its_language():
    for page in PAGES:
        for language, body in FENCE.findall(page.read_text(encoding="utf-8")):
            assert language or not re.search(r"^ *\$ ", body, re.MULTILINE), page
