"""Runs the harness of ``nothing_lost``: 50 sequences, or LABKIT_SEQUENCES of them."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.nothing_lost import FILE_SYSTEMS, NOT_HERE

SEQUENCES = int(os.environ.get("LABKIT_SEQUENCES", "50"))
# Other seeds than the last run's: LABKIT_SEED=1000.
SEED = int(os.environ.get("LABKIT_SEED", "1"))


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.parametrize(
    "file_system",
    [
        pytest.param(name, marks=pytest.mark.root) if name == "full" else name
        for name in FILE_SYSTEMS
    ],
)
def test_nothing_that_a_learner_wrote_is_lost(file_system: str) -> None:
    count = -(-SEQUENCES // len(FILE_SYSTEMS))
    # In a process of its own: the harness forks, and pytest may have threads.
    words = [sys.executable, "-m", "tests.nothing_lost", file_system, str(SEED), str(count)]
    root, limit = Path(__file__).parents[1], 60 + 5 * count
    done = subprocess.run(
        words, cwd=root, capture_output=True, text=True, timeout=limit, check=False
    )

    if done.returncode == NOT_HERE:
        pytest.skip(done.stdout.strip())
    assert done.returncode == 0, done.stdout + done.stderr
