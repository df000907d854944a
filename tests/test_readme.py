"""The README and the changelog against what is there: commands, targets, counts, links."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from labkit.cli import FAMILIES
from labkit.known_errors import KNOWN_ERRORS
from labkit.lessons.catalog import find_labs
from labkit.lessons.gate import count_lab

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
MAKEFILE = (ROOT / "Makefile").read_text(encoding="utf-8")


def test_the_counts_are_those_of_the_labs():
    counts = [count_lab(lab) for lab in find_labs()]
    claims = sum(count.claims for count in counts)
    exercises = sum(count.exercises for count in counts)

    assert claims >= 100
    assert f"**claim** that runs on your own machine: {claims} of them" in README
    assert f"with {exercises} exercises that answer at once" in README
    for lab in find_labs():
        assert re.search(rf"\| `{lab.notebook[:-6]}` \|.*\| {lab.minutes} \|", README)
    changelog = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    assert f"{claims} claims and {exercises} exercises" in changelog


def test_every_command_it_names_exists():
    named = set(re.findall(r"labkit ([a-z]+)", " ".join(re.findall(r"`[^`]+`|\$ .+", README))))

    assert named
    assert named <= set(FAMILIES)


def test_every_make_target_it_names_exists():
    targets = set(re.findall(r"^([a-z]+):", MAKEFILE, flags=re.MULTILINE))
    named = set(re.findall(r"(?:\$ |`)make ([a-z]+)", README))

    assert named
    assert named <= targets


def test_every_variable_of_the_makefile_is_told():
    for name in ("RUNTIME", "FLAVOR", "PORT", "BIND", "LABS", "PYTHON"):
        assert f"| `{name}` |" in README
        assert name in MAKEFILE


def test_every_variable_of_compose_is_told():
    compose = (ROOT / "compose.yaml").read_text(encoding="utf-8")
    for name in ("LABKIT_MEMORY", "LABKIT_CPUS", "LABKIT_PIDS", "LABKIT_SHM_SIZE"):
        assert f"${{{name}:-" in compose
        assert f"`{name}`" in README


@pytest.mark.parametrize("lab", find_labs(), ids=lambda lab: lab.name)
def test_each_lab_is_told_with_its_minutes(lab):
    row = re.search(rf"^\| `{Path(lab.notebook).stem}` \|.*\| (\d+) \|$", README, re.MULTILINE)

    assert row
    assert int(row.group(1)) == lab.minutes


def test_every_local_link_leads_somewhere():
    links = re.findall(r"\]\((?!https?:)([^)#]+)\)", README)

    assert len(links) >= 5
    assert [link for link in links if not (ROOT / link).exists()] == []


def test_the_known_errors_are_counted():
    assert f"it knows {len(KNOWN_ERRORS)} errors," in README
