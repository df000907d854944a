"""Whatever a notebook or an output holds: the run ends in time, with its result and its report."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest
from nbformat.v4 import new_code_cell

from labkit.cli import main
from labkit.notebooks.execute import RunOptions
from labkit.notebooks.schedule import run_notebooks
from labkit.notebooks.sources import Source, has_alias_bomb
from tests.notebooks import make_file, make_notebook, run_cells


def run_to_a_report(folder, *paths, exit_code=0):
    """The notebooks of the result of ``labkit run``, which wrote a report too."""
    output = folder / "run"
    started = time.monotonic()
    assert main(["run", *map(str, paths), "--output", str(output)]) == exit_code
    assert time.monotonic() - started < 60
    assert (output / "report.html").stat().st_size > 0
    return json.loads((output / "result.json").read_text())["notebooks"]


NEST = """from IPython.display import display
inner = nested = {}
for _ in range(450):
    inner["a"] = {}
    inner = inner["a"]
display({"application/json": nested, "text/plain": "x"}, raw=True)"""
HTML = """from IPython.display import HTML, display
display(HTML("a <![ b"), HTML("<a " * 13_500), HTML("<div>" * 80_000))"""


@pytest.mark.slow
def test_odd_outputs_end_neither_the_run_nor_the_report(tmp_path):
    deep = make_file(tmp_path / "deep.ipynb", NEST)
    odd = make_file(tmp_path / "odd.ipynb", HTML)
    nested, html = run_to_a_report(tmp_path, deep, odd)
    assert (nested["status"], html["status"]) == ("passed", "passed")
    assert nested["cells"][0]["truncated"]
    kept = json.loads((tmp_path / "run" / "deep.ipynb").read_text())
    assert "nested more than" in str(kept["cells"][0]["outputs"][0]["data"])


def test_a_file_nested_too_deep_is_invalid_by_itself(tmp_path):
    notebook = json.loads(Path(make_file(tmp_path / "a.ipynb", "1")).read_text())
    depths = {"deep": 300, "deeper": 900}
    for name, depth in depths.items():
        data = "[" * depth + "]" * depth
        output = '{"output_type": "display_data", "metadata": {}, "data": {"application/json": %s}}'
        notebook["cells"][0]["outputs"] = ["OUTPUT"]
        text = json.dumps(notebook).replace('"OUTPUT"', output % data)
        (tmp_path / f"{name}.ipynb").write_text(text)
    (tmp_path / "deepest.ipynb").write_text("[" * 100_000)
    names = [*depths, "deepest"]
    paths = [tmp_path / f"{name}.ipynb" for name in names]
    results = run_to_a_report(tmp_path, *paths, tmp_path / "a.ipynb", exit_code=2)
    assert [result["status"] for result in results] == ["invalid"] * 3 + ["passed"]
    assert all("nested" in result["error"]["what"] for result in results[:3])


def test_an_error_that_nobody_expects_is_told_and_the_rest_runs(tmp_path):
    def load(source):
        if source.name == "odd":
            raise KeyError("odd")
        return make_notebook("1")

    sources = [Source(name, tmp_path / f"{name}.ipynb") for name in ("odd", "fine")]
    odd, fine = run_notebooks(sources, RunOptions(), load=load)
    assert (odd.status, odd.error.kind, fine.status) == ("invalid", "invalid", "passed")
    assert "KeyError" in odd.error.what
    assert "raise KeyError" in odd.error.traceback


def nest_aliases(line="{name}: &{name} [{values}]\n"):
    """YAML of 1 kB that means 10^9 values."""
    lines, before = ["a0: &a0 [x]\n"], "a0"
    for number in range(1, 10):
        values = ", ".join([f"*{before}"] * 10)
        lines.append(line.format(name=f"a{number}", values=values))
        before = f"a{number}"
    return "".join(lines)


HEADER = f"---\njupyter:\n  x: 1\n{nest_aliases()}---\n\n```python\n1\n```\n"
COMMENTED = "".join(f"# {line}\n" for line in HEADER.splitlines()[:-4]) + "\n# %%\n1\n"
MYST = (
    "---\njupytext:\n  text_representation:\n    format_name: myst\n---\n\n"
    "```{code-cell}\n---\n" + nest_aliases() + "---\n1\n```\n"
)


@pytest.mark.parametrize(
    ("name", "text"),
    [("header.md", HEADER), ("header.py", COMMENTED), ("cell.md", MYST), ("cell.myst", MYST)],
)
def test_aliases_of_aliases_in_a_script_are_refused_at_once(tmp_path, name, text):
    assert len(text) < 1500
    (tmp_path / name).write_text(text)
    (result,) = run_to_a_report(tmp_path, tmp_path / name, exit_code=2)
    assert result["status"] == "invalid"
    assert "aliases" in result["error"]["what"]


def test_a_few_aliases_and_emphasis_in_prose_are_no_bomb():
    assert not has_alias_bomb("---\na: &a [1]\nb: *a\nc: *a\n---\n" + "some *words* " * 100)
    assert not has_alias_bomb("text\n\n```python\nf(*args)\n```\n" + "R&D, *many* " * 100)


def test_a_script_may_begin_with_a_byte_order_mark(tmp_path):
    (tmp_path / "bom.py").write_bytes(b'\xef\xbb\xbf# %%\nprint("bom")\n')
    (result,) = run_to_a_report(tmp_path, tmp_path / "bom.py")
    assert (result["status"], len(result["cells"])) == ("passed", 1)


# What ipywidgets' Output does, without ipywidgets: a comm whose msg_id takes the cell's output.
WIDGET = """from comm import create_comm
from IPython import get_ipython
state = {"_model_module": "@jupyter-widgets/output", "_model_name": "OutputModel",
         "outputs": [], "msg_id": ""}
widget = create_comm(target_name="jupyter.widget", data={"state": state})
"""
CAPTURE = """parent = get_ipython().kernel.get_parent("shell")["header"]["msg_id"]
widget.send({"method": "update", "state": {"msg_id": parent}})
print("in the widget")
widget.send({"method": "update", "state": {"msg_id": ""}})"""


def test_an_output_widget_does_not_wait_out_the_timeout(tmp_path):
    cells = [new_code_cell(CAPTURE) for _ in range(40)]
    result, _ = run_cells(tmp_path, WIDGET, *cells, timeout_seconds=30.0)
    assert result.status == "passed"
    assert max(cell.seconds for cell in result.cells) < 10


def test_an_output_nested_too_deep_is_said_to_be_left_out(tmp_path, capsys):
    assert main(["run", make_file(tmp_path / "deep.ipynb", NEST), "--no-output"]) == 0
    assert "an output was left out, nested too deep: of '" in capsys.readouterr().out
