"""The collection under tests/notebooks: run by labkit as plain nbclient runs it, side by side."""

from __future__ import annotations

import asyncio
import json
import shutil
from concurrent.futures import ThreadPoolExecutor

import jupytext
import nbformat
import pytest
from jsonschema import Draft202012Validator
from jupyter_client.kernelspec import NoSuchKernel
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError

from labkit.cli.run import find_source
from labkit.notebooks.execute import RunOptions
from labkit.notebooks.result import DeviceName, Environment, NotebookResult, RunAccount
from labkit.notebooks.schedule import run_notebooks
from labkit.notebooks.sources import load_notebook
from tests.notebooks import FOLDER

SCHEMA = json.loads((FOLDER.parents[1] / "labkit/notebooks/result.schema.json").read_text())
SOUND = [
    "figure.ipynb",
    "gallery_script.py",
    "invalid_outputs.ipynb",
    "magics.ipynb",
    "markdown_page.md",
    "myst_page.md",
    "old_minor.ipynb",
    "own_namespace.ipynb",
    "percent_script.py",
    "plain_script.py",
    "rich_outputs.ipynb",
    "tagged_cells.ipynb",
    "version_3.ipynb",
]
FAILING = {
    "fails_halfway.ipynb": "KeyError",
    "stops_itself.ipynb": "SystemExit",
}
FOREIGN = "foreign_kernel.ipynb"
ALL = [*SOUND, *FAILING, FOREIGN]


@pytest.fixture(scope="module")
def by_labkit(tmp_path_factory):
    """Each file's result and executed notebook, from one run of two notebooks at a time."""
    folder = tmp_path_factory.mktemp("by_labkit") / "notebooks"
    shutil.copytree(FOLDER, folder)
    executed = {}

    def keep(place, result, notebook):
        executed[ALL[place]] = (result, notebook)
        return result

    sources = [find_source(str(folder / name)) for name in ALL]
    run_notebooks(sources, RunOptions(keep_going=True, jobs=2), keep=keep)
    return executed


@pytest.fixture(scope="module")
def by_nbclient(tmp_path_factory):
    """Each file's failure (None: none) and executed notebook, from nbclient alone."""
    folder = tmp_path_factory.mktemp("by_nbclient") / "notebooks"
    shutil.copytree(FOLDER, folder)
    with ThreadPoolExecutor(2) as pool:
        return dict(zip(ALL, pool.map(lambda name: run_plainly(folder / name), ALL), strict=True))


def run_plainly(path):
    notebook = read_plainly(path)
    client = NotebookClient(notebook, resources={"metadata": {"path": str(path.parent)}})
    try:
        asyncio.run(client.async_execute())
    except (CellExecutionError, NoSuchKernel) as error:
        return error, notebook
    return None, notebook


def read_plainly(path):
    if path.suffix != ".ipynb":
        return jupytext.read(path)
    return nbformat.read(path, as_version=4)


def show(notebook):
    """What a notebook's cells are and what they put out, without times and the folder's name."""
    cells = []
    for cell in notebook.cells:
        outputs = [dict(output) for output in cell.get("outputs", ())]
        for output in outputs:
            output.get("data", {}).pop("image/png", None)
        cells.append((cell.cell_type, cell.source, cell.get("execution_count"), merge(outputs)))
    return cells


def merge(outputs):
    """Neighbouring texts of one stream as one: how a kernel cuts them up is chance."""
    merged = []
    for output in outputs:
        last = merged[-1] if merged else {}
        if output["output_type"] == "stream" and output.get("name") == last.get("name"):
            last["text"] += output["text"]
        else:
            merged.append(dict(output))
    return json.loads(json.dumps(merged))


# Reading a notebook without ids warns, as it does under nbclient.
pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore::nbformat.validator.MissingIDFieldWarning"),
]


@pytest.mark.parametrize("name", ALL)
def test_cells_outputs_and_failure_are_those_of_plain_nbclient(by_labkit, by_nbclient, name):
    result, ours = by_labkit[name]
    error, plain = by_nbclient[name]
    assert show(ours) == show(plain)
    if name == FOREIGN:
        assert isinstance(error, NoSuchKernel)
        assert (result.status, result.error.kind) == ("invalid", "no_kernel")
    elif name in FAILING:
        assert (result.status, result.error.name) == ("failed", FAILING[name])
        assert (error.ename, error.evalue) == (result.error.name, error.evalue)
        assert error.evalue in result.error.what
    else:
        assert (result.status, error) == ("passed", None)


def test_every_cell_that_ran_was_measured(by_labkit):
    cells = [cell for result, _ in by_labkit.values() for cell in result.cells]
    ran = [cell for cell in cells if cell.seconds is not None]
    assert len(ran) > 40
    for cell in ran:
        assert cell.memory.before_bytes > 10_000_000
        assert cell.memory.peak_bytes >= max(cell.memory.before_bytes, cell.memory.after_bytes)
        assert cell.cuda is None


def test_nothing_of_ours_is_seen_from_within(by_labkit):
    _, notebook = by_labkit["own_namespace.ipynb"]
    shown = [cell.outputs[0].data["text/plain"] for cell in notebook.cells if cell.outputs]
    assert shown[1:3] == ["(False, False)", "['names', 'shell', 'sys']"]


BROKEN = [
    ("from_the_future.ipynb", "is not a valid notebook: Unsupported nbformat version 9"),
    ("no_source.ipynb", "is not a valid notebook: line 10: cell 2 has no source text"),
    ("not_a_notebook.ipynb", "is not a valid notebook: it is JSON, but has no nbformat number"),
    ("truncated.ipynb", "is not a notebook: line 21 column 4: Unterminated string starting at"),
    (
        "unknown_cell_type.ipynb",
        "is not a valid notebook: line 20: cell 3 has the cell_type 'kode', not code, markdown,"
        " raw",
    ),
]


@pytest.fixture(scope="module")
def broken():
    sources = [find_source(str(FOLDER / "broken" / name)) for name, _ in BROKEN]
    return run_notebooks(sources, RunOptions(keep_going=True))


@pytest.mark.parametrize("place", range(len(BROKEN)), ids=[name for name, _ in BROKEN])
def test_a_broken_file_is_named_with_the_line(broken, place):
    name, trouble = BROKEN[place]
    assert (broken[place].status, broken[place].error.kind) == ("invalid", "invalid")
    assert broken[place].error.what == f"{FOLDER / 'broken' / name} {trouble}"


def test_the_lines_named_are_where_the_cells_begin():
    lines = (FOLDER / "broken" / "unknown_cell_type.ipynb").read_text().splitlines()
    assert lines[19] == "  {"
    assert lines[20] == '   "cell_type": "kode",'


def test_a_cell_marked_for_sphinx_gallery_is_split_at_its_bars():
    notebook = load_notebook(find_source(str(FOLDER / "gallery_script.py")))
    assert [cell.cell_type for cell in notebook.cells].count("markdown") == 1


def test_the_result_keeps_to_its_schema(by_labkit, broken):
    Draft202012Validator.check_schema(SCHEMA)
    waiting = NotebookResult("later", "later.ipynb", "not_run")
    notebooks = (*[result for result, _ in by_labkit.values()], *broken, waiting)
    environment = Environment("0", "3", "Linux", None, None, "cpu", None, (DeviceName("cpu"),))
    described = RunAccount(environment).describe(notebooks).describe()
    Draft202012Validator(SCHEMA).validate(json.loads(json.dumps(described)))
