"""A labs folder small enough to read: one lab with two exercises, made where a test wants it."""

from __future__ import annotations

from pathlib import Path

HEADER = """\
# ---
# jupyter:
#   jupytext:
#     text_representation:
#       extension: .py
#       format_name: percent
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---
"""

LESSON = (
    HEADER
    + '''
# %% [markdown]
# # Small
# One idea.

# %%
import torch
from labkit import check, claim

# %%
claim("ones sum to their number", torch.ones(3).sum(), 3)
claim("a device is there", lambda: torch.zeros(1, device="cuda").is_cuda, needs="cuda")

# %%
def center(x: torch.Tensor) -> torch.Tensor:
    """Returns x with each column's mean taken away."""
    ### BEGIN SOLUTION
    means = x.mean(dim=0, keepdim=True)
    return x - means
    ### END SOLUTION

# %%
check("small.center", center)

# %%
scale = 2.0


def double(x: torch.Tensor) -> torch.Tensor:
    """Returns x times two."""
    ### BEGIN SOLUTION
    return x * scale
    ### END SOLUTION

# %%
check("small.double", double)
'''
)

EXERCISES = """
import torch
from labkit.lessons.exercises import Case, Exercise, WrongAnswer


def center_cases():
    x = torch.randn(4, 3, generator=torch.Generator().manual_seed(0))
    yield Case((x,), x - x.mean(0), "four rows")
    yield Case((x[:1],), torch.zeros(1, 3), "one row")


def double_cases():
    yield Case((torch.ones(2),), torch.full((2,), 2.0))


EXERCISES = (
    Exercise(
        name="center",
        title="Center the columns",
        hints=("What shape has the mean?", "Which dimension goes away?"),
        cases=center_cases,
        restrictions=("loop",),
        sized=lambda n: (torch.rand(n, n),),
        wrong_answers=(
            WrongAnswer("gives the means", lambda x: x.mean(0), "wrong_shape"),
            WrongAnswer("goes row by row", lambda x: torch.stack([r - x.mean(0) for r in x]),
                        "forbidden"),
        ),
    ),
    Exercise(
        name="double",
        title="Double",
        hints=("Twice one is two.", "What is x + x?"),
        cases=double_cases,
        wrong_answers=(WrongAnswer("in place", lambda x: x.mul_(2), "changed_argument"),),
    ),
)
"""

TOML = """
[[lab]]
name = "small"
title = "Small"
summary = "One idea"
minutes = 5
needs = []
notebook = "01_small.ipynb"
"""


def write_labs(
    folder: Path, *, lesson: str = LESSON, exercises: str = EXERCISES, toml: str = TOML
) -> Path:
    """A labs folder with the lab ``small``, its parts as given; returns the folder."""
    (folder / "small").mkdir(parents=True, exist_ok=True)
    (folder / "labs.toml").write_text(toml)
    (folder / "small" / "lesson.py").write_text(lesson)
    (folder / "small" / "exercises.py").write_text(exercises)
    return folder
