"""A clone of the checkout in a folder whose name has a space, and the lab started from it."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.image.clones import Clone, copy_checkout


@pytest.fixture(scope="session")
def clone(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Clone]:
    """A checkout of its own, with no lab running; whatever was started from it is removed."""
    made = copy_checkout(tmp_path_factory.mktemp("clone") / "my lab")
    yield made
    made.labkit("down", timeout_seconds=120)
    made.remove_volumes()
    shutil.rmtree(made.root, ignore_errors=True)


@pytest.fixture(scope="session")
def running(clone: Clone) -> Clone:
    """The clone with its lab up in a container."""
    result = clone.labkit("up", "--runtime", "docker", timeout_seconds=1800)
    assert result.ok, result.stderr
    return clone


@pytest.fixture
def fresh_clone(tmp_path: Path) -> Iterator[Clone]:
    """A checkout for one test that starts and breaks labs of its own."""
    made = copy_checkout(tmp_path / "my lab")
    yield made
    made.labkit("down", timeout_seconds=120)
    made.remove_volumes()
