"""What a step imports for the first time is imported for real: the real step finds it whole."""

from __future__ import annotations

import contextlib
import importlib
import importlib.abc
import importlib.util
import os
import py_compile
import random
import runpy
import sys
import tempfile
import threading
import time
import types
import zipfile
from pathlib import Path

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


SMALL = """
import torch
from tests.test_estimate_imports import REGISTRY

REGISTRY.append(__name__)
TABLE = torch.ones(4)
"""


class OwnFinder(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Finds and loads a module in a way of the program's own."""

    def find_spec(self, name, path, target=None):
        return importlib.util.spec_from_loader(name, self) if name == "labkit_late" else None

    def create_module(self, spec):
        return None

    def exec_module(self, module):
        exec(SMALL, vars(module))


def put_in_archive(folder, monkeypatch):
    with zipfile.ZipFile(folder / "late.zip", "w") as archive:
        archive.writestr("labkit_late.py", SMALL)
    monkeypatch.syspath_prepend(folder / "late.zip")


def compile_alone(folder, monkeypatch):
    (folder / "source.py").write_text(SMALL)
    py_compile.compile(str(folder / "source.py"), cfile=str(folder / "labkit_late.pyc"))


def add_finder(folder, monkeypatch):
    monkeypatch.setattr(sys, "meta_path", [*sys.meta_path, OwnFinder()])


def make_namespace(folder, monkeypatch):
    (folder / "labkit_late").mkdir()
    (folder / "labkit_late" / "part.py").write_text(SMALL)


def rewrite_assertions(folder, monkeypatch):
    (folder / "labkit_late_rewritten.py").write_text(SMALL)
    pytest.register_assert_rewrite("labkit_late_rewritten")


def load_lazily(folder, monkeypatch):
    (folder / "labkit_late.py").write_text(SMALL)
    make_lazy("labkit_late")


def make_lazy(name):
    spec = importlib.util.find_spec(name)
    spec.loader = importlib.util.LazyLoader(spec.loader)
    sys.modules[name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(sys.modules[name])
    return sys.modules[name]


def load_lazily_by_finder(folder, monkeypatch):
    add_finder(folder, monkeypatch)
    make_lazy("labkit_late")


NAMES = {make_namespace: "labkit_late.part", rewrite_assertions: "labkit_late_rewritten"}
LOADING = [
    put_in_archive, compile_alone, add_finder, make_namespace, rewrite_assertions, load_lazily,
    load_lazily_by_finder,
]  # fmt: skip


@pytest.fixture
def empty(late, tmp_path):
    """A folder on the path without modules."""
    for one in tmp_path.iterdir():
        one.unlink()
    importlib.invalidate_caches()
    yield tmp_path
    for name in [name for name in sys.modules if name.startswith("labkit_late")]:
        del sys.modules[name]


def use(table):
    (torch.ones(4, requires_grad=True) * table).sum().backward()


@pytest.mark.parametrize("prepare", LOADING)
def test_a_module_is_imported_for_real_whatever_loads_it(prepare, empty, monkeypatch):
    prepare(empty, monkeypatch)
    name = NAMES.get(prepare, "labkit_late")

    def step():
        use(importlib.import_module(name).TABLE)

    estimate = estimate_memory(lambda: step)
    assert (estimate.obstacle, estimate.notes, REGISTRY) == (None, (), [name])
    assert type(sys.modules[name].TABLE) is torch.Tensor
    step()
    assert [name] == REGISTRY


def test_a_library_in_c_is_imported_for_real(monkeypatch):
    for name in [name for name in sys.modules if name.partition(".")[0] == "yaml"]:
        monkeypatch.delitem(sys.modules, name)

    def step():
        import yaml

        use(len(yaml.dump({})))

    assert estimate_memory(lambda: step).notes == ()
    import yaml

    assert yaml.dump({"a": 1}) == "a: 1\n"


def test_a_lazy_module_that_the_step_does_not_use_stays_unloaded(empty, monkeypatch):
    load_lazily(empty, monkeypatch)
    kept = {"module": sys.modules["labkit_late"]}
    assert estimate_memory(lambda: lambda: use(len(kept))).notes == ()
    assert type(kept["module"]) is importlib.util._LazyModule and not REGISTRY


def load_by_hand(path):
    spec = importlib.util.spec_from_file_location("labkit_late", path)
    module = sys.modules["labkit_late"] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.TABLE


def execute_by_hand(path):
    module = sys.modules["labkit_late"] = types.ModuleType("labkit_late")
    exec(path.read_text(), vars(module))
    return importlib.import_module("labkit_late").TABLE


def run_path(path):
    return runpy.run_path(str(path))["TABLE"]


def run_module(path):
    return runpy.run_module("labkit_late")["TABLE"]


@pytest.mark.parametrize("caches", [False, True])
@pytest.mark.parametrize("load", [load_by_hand, execute_by_hand, run_path, run_module])
def test_what_the_step_loads_by_hand_is_forgotten(load, caches, empty, monkeypatch):
    monkeypatch.setattr(sys, "dont_write_bytecode", not caches)
    (empty / "labkit_late.py").write_text(SMALL)
    step = lambda: use(load(empty / "labkit_late.py"))  # noqa: E731
    assert estimate_memory(lambda: step).notes == ()
    assert "labkit_late" not in sys.modules and not REGISTRY
    step()
    assert len(REGISTRY) == 1


def test_a_module_that_the_step_runs_again_is_as_before(empty):
    (empty / "labkit_late.py").write_text(SMALL + "CALLS = []\n")
    module = importlib.import_module("labkit_late")
    table, calls = module.TABLE, module.CALLS
    calls.append(1)

    def step():
        importlib.reload(module)
        assert not module.CALLS
        use(module.TABLE)

    assert estimate_memory(lambda: step).notes == ()
    assert module.TABLE is table and module.CALLS is calls and calls == [1]
    assert len(REGISTRY) == 1


def test_a_module_that_the_step_takes_out_and_imports_again_is_as_before(empty):
    (empty / "labkit_late.py").write_text(SMALL)
    module = importlib.import_module("labkit_late")

    def step():
        del sys.modules["labkit_late"]
        use(importlib.import_module("labkit_late").TABLE)

    assert estimate_memory(lambda: step).notes == ()
    assert sys.modules["labkit_late"] is module


def test_a_thread_of_the_step_imports_for_real(late):
    def step():
        thread = threading.Thread(target=importlib.import_module, args=(late,))
        thread.start()
        thread.join()
        use(sys.modules[late].TABLE)

    assert estimate_memory(lambda: step).notes == ()
    assert [late] == REGISTRY and type(sys.modules[late].TABLE) is torch.Tensor


def catch_all(name):
    try:
        return importlib.import_module(name).TABLE
    except BaseException:
        SEEN.append(torch.ones(4) * 2)
        SEEN.append("went on")


def return_anyway(name):
    with contextlib.suppress(BaseException):
        return importlib.import_module(name).TABLE


def import_another(name):
    try:
        return importlib.import_module(name).TABLE
    except BaseException:
        return importlib.import_module("labkit_later").late.TABLE


@pytest.mark.parametrize("take", [catch_all, return_anyway, import_another])
def test_a_step_cannot_swallow_what_stops_it_at_an_import(take, late):
    SEEN.clear()
    estimate = estimate_memory(lambda: lambda: use(take(late)))
    assert (estimate.obstacle, estimate.notes) == (None, ())
    assert [late] == REGISTRY and "labkit_later" not in sys.modules
    assert SEEN == []


WRITTEN = "import torch\nTABLE = torch.ones(1000)\n"


def write_module(folder):
    (folder / "labkit_late.py").write_text(WRITTEN)
    return importlib.import_module("labkit_late").TABLE


def write_package(folder):
    (folder / "labkit_late").mkdir(exist_ok=True)
    (folder / "labkit_late" / "__init__.py").write_text("from . import part\n")
    (folder / "labkit_late" / "part.py").write_text(WRITTEN)
    importlib.invalidate_caches()
    return importlib.import_module("labkit_late").part.TABLE


def write_elsewhere(folder):
    made = Path(tempfile.mkdtemp())
    (made / "labkit_late.py").write_text(WRITTEN)
    sys.path.insert(0, str(made))
    return importlib.import_module("labkit_late").TABLE


def write_archive(folder):
    with zipfile.ZipFile(folder / "late.zip", "w") as archive:
        archive.writestr("labkit_late.py", WRITTEN)
    sys.path.insert(0, str(folder / "late.zip"))
    return importlib.import_module("labkit_late").TABLE


def write_and_run(folder):
    (folder / "labkit_late.py").write_text(WRITTEN)
    return run_path(folder / "labkit_late.py")


def write_and_load(folder):
    (folder / "labkit_late.py").write_text(WRITTEN)
    return load_by_hand(folder / "labkit_late.py")


@pytest.mark.parametrize(
    "write",
    [write_module, write_package, write_elsewhere, write_archive, write_and_run, write_and_load],
)
def test_a_module_that_the_step_has_written_is_imported_from_what_it_wrote(
    write, empty, monkeypatch
):
    monkeypatch.setattr(sys, "path", sys.path[:])

    def step():
        table = write(empty)
        table.clone().requires_grad_().sum().backward()

    estimate = estimate_memory(lambda: step)
    assert (estimate.obstacle, estimate.notes) == (None, ())
    # The module's table, its copy and the gradient.
    assert estimate.peak_bytes >= 12_000
    assert not any(name.startswith("labkit_late") for name in sys.modules)
    assert not list(empty.iterdir())
    assert type(write(empty)) is torch.Tensor


def test_a_module_that_the_step_has_changed_is_imported_as_changed(empty):
    (empty / "labkit_late.py").write_text("SIZE = 10\n")

    def step():
        (empty / "labkit_late.py").write_text("SIZE = 1000\n")
        use(torch.ones(importlib.import_module("labkit_late").SIZE, 1))

    assert estimate_memory(lambda: step).peak_bytes >= 4_000
    assert importlib.import_module("labkit_late").SIZE == 10


ESTIMATING = """
import torch
from labkit import estimate_memory
from tests.test_estimate_imports import REGISTRY

def double(values):
    import labkit_later
    return values * labkit_later.VALUE

REGISTRY.append(__name__)
PEAK = estimate_memory(double, torch.ones(100)).peak_bytes
TABLE = torch.ones(4)
"""


def test_a_module_may_estimate_as_it_is_imported_in_a_step(late, tmp_path):
    (tmp_path / "labkit_late.py").write_text(ESTIMATING)
    (tmp_path / "labkit_later.py").write_text("VALUE = 3\n")

    def step():
        use(importlib.import_module(late).TABLE)

    assert estimate_memory(lambda: step).notes == ()
    assert [late] == REGISTRY and sys.modules[late].PEAK == 800


def test_a_step_that_estimates_is_refused_with_its_line():
    step = lambda: estimate_memory(lambda: list)  # noqa: E731
    with pytest.raises(UsageError, match="while its own is estimated") as caught:
        estimate_memory(lambda: step)
    assert "test_estimate_imports.py:" in caught.value.cause


WAIT, SEEN = [], []
