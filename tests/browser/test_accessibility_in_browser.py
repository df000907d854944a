"""What a learner sees, judged by axe-core in a real JupyterLab, in both themes.

The labs' pages as they are opened, and a notebook that shows each kind of output of the labs.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import nbformat
import pytest
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.remote.webdriver import WebDriver
from selenium.webdriver.remote.webelement import WebElement

from labkit.lessons.catalog import find_labs
from labkit.lessons.notebooks import read_lesson
from labkit.notebooks.report.page import write_report
from tests.browser.driver import (
    act_until,
    code_cells,
    errors_in,
    find_shown,
    find_violations,
    open_browser,
    open_notebook,
    read_notebook,
    run_all_cells,
    wait_for,
)
from tests.fakes.runs import make_cell, make_notebook, make_result, write_run
from tests.servers import LabServer

pytestmark = pytest.mark.browser

# Every kind of output that a lab has: cards, questions, pictures, plots and measurements.
GALLERY = (
    """%load_ext labkit
import labkit, matplotlib.pyplot as plt, torch
from labkit import best_device, check, claim, claim_raises, estimate_memory, predict, run_on_ranks
from labkit import track_memory
from labkit.lessons.pictures import draw_graph, draw_shapes, use_lab_style
use_lab_style()""",
    'claim("one and one are two", 1 + 1, 2)',
    """claim("folded", 1, 1)
claim_raises("an index too far raises", IndexError, lambda: [][1])
claim("skipped here", True, needs="cuda")""",
    'claim("it does not hold", 1, 2)',
    'predict("tensors.asked", "What is 2 + 2?", [4, 5], seen=4)\nclaim("hidden so far", 4, 4)',
    'predict("tensors.number", "How many are 2 + 2?", seen=4)',
    'predict("tensors.given", "And 2 + 3?", [5, 6], seen=5, because="It is so.", answer=6)',
    """from labkit.lessons.catalog import find_exercise
_, exercise = find_exercise("tensors.row_shares")
check("tensors.row_shares", lambda x: x)
check("tensors.row_shares", lambda x: x - x.mean(dim=0))
check("tensors.row_shares", 3)""",
    "draw_shapes(row=torch.arange(3), cube=torch.ones(2, 3, 4), values=True)",
    """x = torch.ones(2, requires_grad=True)
draw_graph((x * x).sin().sum(), {"x": x})""",
    """figure, axes = plt.subplots()
axes.plot([1, 2], [3, 4], label="a line")
axes.set(xlabel="x", ylabel="y", title="A plot")
plt.show()""",
    """model = torch.nn.Linear(4, 2)
with track_memory() as tracked:
    model(torch.ones(8, 4)).sum().backward()
display(tracked.use, estimate_memory(model, torch.ones(8, 4)), labkit.memory())""",
    "%%memory\ny = torch.ones(1000, 1000)",
    "panel = labkit.watch_memory(minutes=1)",
    "undefined_name",
)


@pytest.fixture(scope="module", params=[False, True], ids=["light", "dark"])
def lab_page(
    request: pytest.FixtureRequest, lab_server: LabServer, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[WebDriver]:
    with open_browser(tmp_path_factory.mktemp("profile"), dark=request.param) as driver:
        driver.set_script_timeout(120)
        yield driver


def test_the_gallery_shows_what_the_labs_show():
    source = "\n".join(GALLERY)
    lessons = "\n".join(map(read_lesson, find_labs()))
    shown = set(re.findall(r"^from labkit(?:\.lessons\.pictures)? import (.+)$", lessons, re.M))
    for name in {name for line in shown for name in line.split(", ")}:
        assert re.search(rf"\b{name}\b", source), f"add {name} to the gallery"


@pytest.mark.parametrize("name", [lab.notebook for lab in find_labs()])
def test_axe_finds_nothing_serious_in_a_labs_page(
    lab_page: WebDriver, lab_server: LabServer, name: str
):
    open_notebook(lab_page, lab_server, name)
    assert find_violations(lab_page, ".jp-RenderedMarkdown") == []
    # The imports are folded, and so are the questions; the first line says what a cell is.
    folded = find_shown(lab_page, ".jp-Placeholder-content")
    assert folded[0].text.startswith("# Imports")


# What their cells print, draw and ask is made while they run, by several processes too.
@pytest.mark.slow
@pytest.mark.timeout(2400)
@pytest.mark.parametrize("name", ["06_training.ipynb", "07_distributed.ipynb"])
def test_axe_finds_nothing_serious_in_an_executed_lab(
    lab_page: WebDriver, lab_server: LabServer, name: str
):
    notebook = lab_server.workspace / name
    if any(cell["execution_count"] for cell in code_cells(read_notebook(notebook))):
        open_notebook(lab_page, lab_server, name)  # executed for the other theme
        wait_for(lab_page, ".jp-OutputArea-output", timeout_seconds=60)
    else:
        run_all_cells(lab_page, lab_server, name, timeout_seconds=2000)
    assert find_violations(lab_page, ".jp-OutputArea-output") == []


def test_axe_finds_nothing_serious_in_any_output(
    lab_page: WebDriver, lab_server: LabServer, tmp_path: Path
):
    path = lab_server.workspace / "gallery.ipynb"
    write_gallery(path)
    executed = run_all_cells(lab_page, lab_server, path.name, timeout_seconds=120)
    assert [error.partition(":")[0] for error in errors_in(executed)] == [
        "ClaimFailed",
        "NameError",
    ]
    assert find_violations(lab_page, ".jp-OutputArea-output") == []
    # The same outputs in a run's report, with all of its folded parts open.
    cells = [cell for cell in executed["cells"] if cell["cell_type"] == "code"]
    result = make_result(make_notebook("gallery", cells=[make_cell(i) for i in range(len(cells))]))
    lab_page.get(
        write_report(write_run(tmp_path / "run", result, {"gallery.ipynb": cells})).as_uri()
    )
    lab_page.find_element(By.CSS_SELECTOR, "button[data-open=yes]").click()
    assert find_violations(lab_page) == []


def test_a_keyboard_opens_the_folded_facts(lab_page: WebDriver, lab_server: LabServer):
    open_notebook(lab_page, lab_server, "gallery.ipynb")

    def find_summary() -> WebElement:
        return find_shown(lab_page, ".jp-OutputArea details summary")[0]

    def is_open() -> bool:
        shown = find_shown(lab_page, ".jp-OutputArea details[open] > summary")
        return shown[:1] == [find_summary()]

    wait_for(lab_page, ".jp-OutputArea details summary", timeout_seconds=60)
    act_until(lambda: find_summary().send_keys(Keys.ENTER), is_open, "the facts never opened")
    outline = find_summary().value_of_css_property("outline-style")
    assert outline != "none", "the focus cannot be seen"


def write_gallery(path: Path) -> None:
    cells = []
    for source in GALLERY:
        cell = nbformat.v4.new_code_cell(source)
        if source.startswith(('claim("it does not', "undefined")):
            cell.metadata["tags"] = ["raises-exception"]
        cells.append(cell)
    notebook = nbformat.v4.new_notebook(cells=cells)
    notebook.metadata["kernelspec"] = {"name": "python3", "display_name": "Python 3"}
    nbformat.write(notebook, path)
