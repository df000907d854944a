"""What a step imports for the first time is imported for real: the real step finds it whole."""

from __future__ import annotations

import importlib
import os
import random
import sys
import threading
import time

import pytest
import torch
from torch import nn

from labkit.errors import UsageError
from labkit.memory.estimate.play import estimate_memory

REGISTRY = []
MODULE = """
import os, random, threading
import torch
from tests.test_estimate_imports import REGISTRY

REGISTRY.append(__name__)
os.environ["LABKIT_TEST_IMPORTED"] = "1"
LOCK, CALLS = threading.Lock(), []
NUMBER, TABLE = random.random(), torch.rand(4)
MASKS = {}

def find_mask(size):
    CALLS.append(size)
    if size not in MASKS:
        MASKS[size] = torch.ones(size)
    return MASKS[size]
"""


@pytest.fixture
def late(tmp_path, monkeypatch):
    """The name of a module that nobody has imported, and that another one imports."""
    (tmp_path / "labkit_late.py").write_text(MODULE)
    (tmp_path / "labkit_later.py").write_text("import labkit_late as late\nVALUE = 3\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("LABKIT_TEST_IMPORTED", "0")
    monkeypatch.setattr(sys.modules[__name__], "REGISTRY", REGISTRY)
    REGISTRY.clear()
    yield "labkit_late"
    for name in ("labkit_late", "labkit_later"):
        sys.modules.pop(name, None)


def train():
    import labkit_later

    layer = nn.Linear(4, 4)
    layer(labkit_later.late.find_mask(4) * labkit_later.late.TABLE).sum().backward()


def test_the_real_step_finds_what_the_import_has_done(late):
    before = random.getstate(), torch.get_rng_state()
    estimate = estimate_memory(lambda: train)
    assert estimate.obstacle is None and estimate.notes == ()
    assert random.getstate() == before[0] and torch.equal(torch.get_rng_state(), before[1])
    module = sys.modules[late]
    assert [late] == REGISTRY and os.environ["LABKIT_TEST_IMPORTED"] == "1"
    assert type(module.LOCK) is type(threading.Lock())
    assert type(module.TABLE) is torch.Tensor
    # What the step has done in it is put back.
    assert module.CALLS == [] and module.MASKS == {}
    train()
    assert module.CALLS == [4] and type(module.MASKS[4]) is torch.Tensor


def test_a_step_that_catches_everything_imports_all_the_same(late):
    def step():
        try:
            import labkit_late
        except:  # noqa: E722
            raise RuntimeError("not imported") from None
        labkit_late.find_mask(4).requires_grad_().sum().backward()

    assert estimate_memory(lambda: step).obstacle is None
    assert [late] == REGISTRY and sys.modules[late].MASKS == {}


def test_what_cannot_be_imported_is_the_steps_own_affair(late, tmp_path):
    (tmp_path / "labkit_late.py").write_text("import labkit_is_not_there\n")

    def step():
        try:
            import labkit_late  # noqa: F401
        except ImportError:
            torch.ones(5, requires_grad=True).sum().backward()

    assert estimate_memory(lambda: step).peak_bytes > 0
    assert late not in sys.modules
    with pytest.raises(UsageError, match="raised ModuleNotFoundError: No module named"):
        estimate_memory(lambda: train)


def test_a_path_that_the_step_itself_adds_is_followed(late, tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "path", [one for one in sys.path if one != str(tmp_path)])

    def step():
        sys.path.insert(0, str(tmp_path))
        train()

    assert estimate_memory(lambda: step).obstacle is None
    assert str(tmp_path) not in sys.path
    assert type(sys.modules[late].TABLE) is torch.Tensor


def test_a_module_that_another_thread_imports_meanwhile_is_whole(tmp_path, monkeypatch):
    text = "from tests.test_estimate_imports import WAIT\nimport time\nBEGUN = 1\n"
    text += "while not WAIT:\n    time.sleep(0.01)\nENDED = 1\n"
    (tmp_path / "labkit_slow.py").write_text(
        f"from tests.test_estimate_imports import WAIT\n{text}"
    )
    monkeypatch.syspath_prepend(tmp_path)
    WAIT.clear()
    thread = threading.Thread(target=importlib.import_module, args=("labkit_slow",))
    thread.start()
    while not hasattr(sys.modules.get("labkit_slow"), "BEGUN"):
        time.sleep(0.01)
    timer = threading.Timer(0.3, WAIT.append, (1,))
    timer.start()
    estimate_memory(lambda: lambda: [time.sleep(0.01) for _ in range(100)] and torch.ones(3) * 2)
    WAIT.append(1)
    thread.join()
    assert sys.modules.pop("labkit_slow").ENDED == 1


READING = """
import os, sys, torch
SIZE, WORDS, TABLE = os.environ.get("LABKIT_TEST_SIZE"), sys.argv[1:], torch.ones(3)
WEIGHT = torch.nn.Linear(2, 2).weight * 2
os.environ["LABKIT_TEST_IMPORTED"] = "1"
sys.path.append("/labkit/of/the/module")
"""


def test_a_module_is_imported_with_what_the_step_has_set(late, tmp_path, monkeypatch):
    (tmp_path / "labkit_late.py").write_text(READING)
    monkeypatch.setattr(sys, "argv", ["program"])
    monkeypatch.setattr(sys, "path", [one for one in sys.path if one != str(tmp_path)])
    monkeypatch.delenv("LABKIT_TEST_SIZE", raising=False)

    def step():
        os.environ["LABKIT_TEST_SIZE"] = "1000"
        sys.argv.append("word")
        sys.path.insert(0, str(tmp_path))
        torch.set_default_dtype(torch.float64)
        with torch.no_grad():
            import labkit_late
        torch.set_default_dtype(torch.float32)
        labkit_late.TABLE.clone().requires_grad_().sum().backward()

    assert estimate_memory(lambda: step).obstacle is None
    module = sys.modules[late]
    assert (module.SIZE, module.WORDS, module.TABLE.dtype) == ("1000", ["word"], torch.float64)
    assert type(module.TABLE) is torch.Tensor and not module.WEIGHT.requires_grad
    # What the step has set is put back, and what the module has set stays.
    assert "LABKIT_TEST_SIZE" not in os.environ and sys.argv == ["program"]
    assert os.environ["LABKIT_TEST_IMPORTED"] == "1"
    assert sys.path[-1] == "/labkit/of/the/module" and str(tmp_path) not in sys.path
    assert torch.get_default_dtype() is torch.float32 and torch.is_grad_enabled()


def test_a_module_that_ends_the_program_as_it_is_imported_is_the_steps_own_affair(late, tmp_path):
    (tmp_path / "labkit_late.py").write_text("raise SystemExit(3)\n")

    def step():
        try:
            import labkit_late  # noqa: F401
        except SystemExit:
            torch.ones(5, requires_grad=True).sum().backward()

    assert estimate_memory(lambda: step).peak_bytes > 0


WAIT = []
