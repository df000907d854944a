"""The shape of the house: no import circles, bare wings, one class a name, views over models."""

from __future__ import annotations

import ast
import json
import re
import subprocess
import sys
import threading
from collections import defaultdict
from pathlib import Path

import pytest

import labkit
from tests.house.count_files import LIMITS, FileCounter, count
from tests.house.imports import (
    Graph,
    describe_chain,
    find_chain,
    find_circles,
    find_files,
    read_graph,
)

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "labkit"

# What runs on a host with nothing but Python: the ground, and the wings that stand on it.
GROUND = ("errors", "text", "files", "process", "render", "charts")
BARE_WINGS = (*GROUND, "host", "known_errors", "launch", "doctor")

MODELS, VIEWS, PAGES = ("model", "result"), ("view", "page", "console"), "report"
WINGS_WITH_MODELS = ("memory", "notebooks", "prove")

BANNED = ("moot", "anew", "told", "crew", "floods", "loners", "Pretence")

PUBLIC_NAMES = {
    "LabkitError",
    "__version__",
    "best_device",
    "check",
    "claim",
    "claim_raises",
    "estimate_memory",
    "load_ipython_extension",
    "memory",
    "plot_memory",
    "predict",
    "record_allocations",
    "sample_memory",
    "solution",
    "track_memory",
    "unload_ipython_extension",
    "watch_memory",
}
HEAVY = {"torch", "numpy", "pynvml", "IPython", "matplotlib", "nbclient", "nbformat", "jupytext"}


@pytest.fixture(scope="module")
def graph() -> Graph:
    return read_graph(PACKAGE)


# Import circles


def test_no_file_imports_itself_through_others(graph):
    circles = [describe_chain(graph, circle, ROOT) for circle in find_circles(graph)]
    assert not circles, f"{len(circles)} import circles:\n" + "\n\n".join(circles)


@pytest.mark.parametrize(
    "line",
    [
        "from house.a import x",
        "import house.a",
        "from house import a",
        "from .a import x",
        "from . import a",
        "def f():\n    from house.a import x",
        "if TYPE_CHECKING:\n    from house.a import x",
        "def f():\n    import_module('house.a')",
    ],
    ids=["from", "import", "submodule", "relative", "sibling", "lazy", "types", "by name"],
)
def test_a_circle_is_found_however_it_is_written(tmp_path, line):
    write_package(tmp_path, a="from house.b import y", b="import house.c", c=line)
    circles = find_circles(read_graph(tmp_path / "house"))
    assert [set(circle) for circle in circles] == [{"house.a", "house.b", "house.c"}]


def test_two_files_that_import_a_third_are_no_circle(tmp_path):
    write_package(tmp_path, a="from house import b, c", b="from house import c", c="import json")
    assert find_circles(read_graph(tmp_path / "house")) == []


def write_package(folder, **modules):
    (folder / "house").mkdir()
    for name, text in {"__init__": "", **modules}.items():
        (folder / "house" / f"{name}.py").write_text(text)


# A bare interpreter


def test_the_bare_wings_are_there():
    missing = [wing for wing in BARE_WINGS if not list_wing(wing)]
    assert missing == []


def test_bare_wings_import_without_any_package():
    names = [name for wing in BARE_WINGS for name in list_wing(wing)]
    assert import_bare(ROOT, names) == {}


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("import torch", "labkit.tried imports torch"),
        ("from os import path, nothing", "ImportError: cannot import name 'nothing'"),
        ("try:\n    import torch\nexcept ImportError:\n    torch = None", "imports torch"),
    ],
    ids=["a package", "a broken import", "a package if it is there"],
)
def test_what_a_bare_interpreter_lacks_is_named(tmp_path, text, problem):
    (tmp_path / "labkit").mkdir()
    (tmp_path / "labkit" / "__init__.py").touch()
    (tmp_path / "labkit" / "tried.py").write_text(text)
    problems = import_bare(tmp_path, ["labkit", "labkit.tried"])
    assert list(problems) == ["labkit.tried"]
    assert problem in problems["labkit.tried"][0]


def list_wing(wing: str) -> list[str]:
    """The modules of a wing, which is a file or a folder."""
    prefix = f"labkit.{wing}"
    names = find_files(PACKAGE)
    return [name for name in names if name == prefix or name.startswith(f"{prefix}.")]


def import_bare(checkout: Path, names: list[str]) -> dict[str, list[str]]:
    """What goes wrong with each module where Python has no packages (-S) and no variables (-I)."""
    script = Path(__file__).parent / "house" / "bare_import.py"
    command = [sys.executable, "-I", "-S", "-B", str(script), str(checkout), *names]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


# Names


def test_every_class_name_is_defined_once():
    places = defaultdict(list)
    for path in find_files(PACKAGE).values():
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ClassDef):
                places[node.name].append(f"{path.relative_to(ROOT)}:{node.lineno}")
    assert len(places) > 50
    twice = [f"{name}: {', '.join(found)}" for name, found in places.items() if len(found) > 1]
    assert not twice, f"{len(twice)} class names are defined more than once:\n" + "\n".join(twice)


def test_banned_words_occur_nowhere():
    # As `grep -w`, at the start of a sentence too; a name like is_moot is one word, and not banned.
    words = "|".join({*BANNED, *(word.capitalize() for word in BANNED)})
    banned = re.compile(rf"\b({words})\b")
    found = []
    for path in list_texts():
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
            found += [f"{path.relative_to(ROOT)}:{number}: {one}" for one in banned.findall(line)]
    assert not found, f"{len(found)} banned words:\n" + "\n".join(found)


def list_texts() -> list[Path]:
    """Every text file of the package and its documentation."""
    pictures = {".png", ".pyc", ".woff2", ".ico"}
    inside = [path for name in ("labkit", "docs") for path in (ROOT / name).rglob("*")]
    texts = [path for path in inside if path.is_file() and path.suffix not in pictures]
    assert len(texts) > 50
    return [ROOT / "README.md", *texts]


# Views over models


def is_view(name: str) -> bool:
    parts = name.split(".")
    return parts[-1] in VIEWS or PAGES in parts


@pytest.mark.parametrize("wing", WINGS_WITH_MODELS)
def test_models_import_no_view(graph, wing):
    names = [name for name in list_wing(wing) if graph[name].last_name in MODELS]
    assert names, f"labkit/{wing} has no file named {' or '.join(MODELS)}"
    chains = [chain for name in names if (chain := find_chain(graph, name, is_view))]
    listing = "\n\n".join(describe_chain(graph, chain, ROOT) for chain in chains)
    assert not chains, f"{len(chains)} models import a view:\n{listing}"


# How many files a path runs through


@pytest.mark.slow
@pytest.mark.parametrize("path", LIMITS)
def test_a_path_runs_through_few_files(path):
    files = count(path)
    listing = "\n".join(files)
    assert len(files) <= LIMITS[path], f"{path} runs through {len(files)} files:\n{listing}"


def test_the_counter_takes_functions_on_every_thread_and_leaves_imports(tmp_path, monkeypatch):
    function = "def f():\n    return 1\n"
    body = "def f():\n    return 1\nclass C:\n    x = f()\n"
    write_package(tmp_path, called=function, on_thread=function, imported=body, unused=function)
    monkeypatch.syspath_prepend(tmp_path)
    from house import called, on_thread, unused  # noqa: F401

    with FileCounter(tmp_path / "house") as counter:
        called.f()
        thread = threading.Thread(target=on_thread.f)
        thread.start()
        thread.join()
        from house import imported  # noqa: F401

    assert counter.list_files() == ["house/called.py", "house/on_thread.py"]


# The public names


def test_the_public_names_stay():
    assert set(labkit.__all__) >= PUBLIC_NAMES


def test_every_public_name_resolves_and_loads_nothing_heavy():
    script = (
        "import sys, labkit\n"
        "for name in labkit.__all__:\n"
        "    getattr(labkit, name)\n"
        "    print(name, *{module.partition('.')[0] for module in sys.modules})"
    )
    command = [sys.executable, "-c", script]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    lines = [line.split() for line in done.stdout.splitlines()]
    # The first that loads something heavy: after it, all would have it.
    loading = [(name, HEAVY.intersection(loaded)) for name, *loaded in lines]
    assert next((each for each in loading if each[1]), None) is None
