"""Live blocks by the line of code that allocated them.

The line is the innermost one that is not torch's, Python's own or labkit's. Where that is in
another package, the user's line that led there is told as well.
"""

from __future__ import annotations

import functools
import re
import sysconfig
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from labkit.memory.frames import Frame
from labkit.memory.history.replay import Held

OWN, PACKAGE, USER = "own", "package", "user"
# Packages that carry out what the line of somebody else's asked for.
FOLDED = re.compile(
    r"[/\\](?:site|dist)-packages[/\\](?:torch|torchgen|functorch|triton|labkit|IPython|ipykernel"
    r"|traitlets|tornado|zmq|nbclient|jupyter_client|_pytest|pluggy)(?:[/\\]|\.py$)"
    r"|[/\\]pytorch[/\\]torch[/\\]|[/\\]torchinductor_[^/\\]*[/\\]"
    r"|^<(?:frozen |eval_with_key)"
)
PACKAGES = re.compile(r"[/\\](?:site|dist)-packages[/\\]")
STANDARD_LIBRARY = re.compile(r"[/\\]lib[/\\]python3\.\d+[/\\]|[/\\]Python3\d+[/\\]Lib[/\\]")
OWN_FOLDERS = (f"{Path(__file__).parents[2]}/", f"{sysconfig.get_path('stdlib')}/")
STACKS_KEPT = 3

BEFORE = "before the first event"
NO_STACK = "no Python line: most likely the backward pass, which runs in a thread of torch's"


class Place(NamedTuple):
    """Where blocks come from: a frame, or words where there is none; ``via``: the user's line."""

    frame: Frame | None
    words: str = ""
    via: Frame | None = None


class Stack(NamedTuple):
    """A whole stack, innermost first, with the bytes that it allocated."""

    frames: tuple[Frame, ...]
    held_bytes: int


class Group(NamedTuple):
    """All live blocks of one place; the largest of its stacks, and how many there are in all."""

    place: Place
    held_bytes: int
    blocks: int
    stacks: tuple[Stack, ...] = ()
    stack_count: int = 0


@functools.lru_cache(maxsize=65_536)
def judge_file(file: str) -> str:
    """Whose code a file is: "own" (torch, Python, labkit), "package", or "user".

    >>> judge_file("/home/a/train.py"), judge_file("/x/lib/python3.11/site-packages/torch/_ops.py")
    ('user', 'own')
    """
    if FOLDED.search(file):
        return OWN
    if PACKAGES.search(file):
        return PACKAGE
    if STANDARD_LIBRARY.search(file) or file.startswith(OWN_FOLDERS):
        return OWN
    return USER


def find_place(held: Held) -> Place:
    """The place that a block comes from."""
    innermost: Frame | None = None
    package: Frame | None = None
    for frame in held.frames:
        innermost = innermost or frame
        whose = judge_file(frame.file)
        if whose == USER:
            return Place(package, via=frame) if package else Place(frame)
        if whose == PACKAGE and package is None:
            package = frame
    if innermost is None:
        return Place(None, BEFORE if held.event is None else NO_STACK)
    return Place(package or innermost)


def group_by_line(blocks: Iterable[Held]) -> tuple[Group, ...]:
    """The blocks by their place, the one with most bytes first."""
    found: dict[Place, list[Held]] = {}
    for held in blocks:
        found.setdefault(find_place(held), []).append(held)
    groups = [_sum_up(place, held) for place, held in found.items()]
    return tuple(sorted(groups, key=lambda group: -group.held_bytes))


def _sum_up(place: Place, blocks: list[Held]) -> Group:
    stacks: dict[tuple[Frame, ...], int] = {}
    for held in blocks:
        stacks[held.frames] = stacks.get(held.frames, 0) + held.size_bytes
    largest = sorted(stacks.items(), key=lambda pair: -pair[1])[:STACKS_KEPT]
    kept = tuple(Stack(frames, count) for frames, count in largest if frames)
    total = sum(held.size_bytes for held in blocks)
    return Group(place, total, len(blocks), kept, len(stacks))
