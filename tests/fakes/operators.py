"""Torch's own database of operators, with samples of their arguments."""

from __future__ import annotations

import importlib
import sys
import types
import unittest
import warnings
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch

DATABASE = "torch.testing._internal.common_methods_invocations"


def survey(find: Callable[[Any], set[str]], monkeypatch: pytest.MonkeyPatch) -> set[str]:
    """What ``find`` finds in all operators of the database that take float32."""
    # Torch's own tests need this package, for other things than the database.
    expecttest = types.ModuleType("expecttest")
    expecttest.TestCase = unittest.TestCase  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "expecttest", expecttest)
    # torch formats the whole stack for each seed of each sample: a thread's own stack is short.
    with warnings.catch_warnings(), ThreadPoolExecutor(1) as thread:
        warnings.simplefilter("ignore")
        database = importlib.import_module(DATABASE).op_db
        infos = [one for one in database if torch.float32 in one.dtypes]
        return set().union(*thread.map(find, infos))
