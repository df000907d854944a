"""A learner's first minutes, in a real browser on the real server."""

from __future__ import annotations

from pathlib import Path

import nbformat
import pytest
from selenium.webdriver.common.keys import Keys

from labkit.lessons.progress import read_progress
from tests.browser.driver import (
    act_until,
    code_cells,
    errors_in,
    find_shown,
    open_browser,
    open_notebook,
    run_all_cells,
    severe_messages,
    wait_for,
)
from tests.servers import LabServer

pytestmark = pytest.mark.browser


def test_the_printed_url_opens_the_first_lab_and_every_cell_runs(
    lab_server: LabServer, tmp_path: Path
):
    with open_browser(tmp_path) as driver:
        executed = run_all_cells(driver, lab_server, "01_tensors.ipynb", timeout_seconds=240)

        assert "01_tensors" in driver.title
        assert errors_in(executed) == []
        assert severe_messages(driver) == []
    claims = [
        output["data"]["application/vnd.labkit.claim+json"]
        for cell in code_cells(executed)
        for output in cell["outputs"]
        if "application/vnd.labkit.claim+json" in output.get("data", {})
    ]
    assert len(claims) >= 28
    assert [claim["statement"] for claim in claims if claim["held"] is False] == []


def test_the_address_bar_does_not_keep_the_token(lab_server: LabServer, tmp_path: Path):
    with open_browser(tmp_path) as driver:
        driver.get(lab_server.url("lab"))
        wait_for(driver, ".jp-DirListing-item", timeout_seconds=60)

        assert lab_server.token not in driver.current_url


@pytest.mark.parametrize(
    ("dark", "theme"), [(False, "true"), (True, "false")], ids=["light", "dark"]
)
def test_the_page_follows_the_systems_theme(
    lab_server: LabServer, tmp_path: Path, dark: bool, theme: str
):
    with open_browser(tmp_path, dark=dark) as driver:
        open_notebook(driver, lab_server, "01_tensors.ipynb")

        wait_for(driver, f'body[data-jp-theme-light="{theme}"]', timeout_seconds=60)


def test_a_question_is_answered_with_the_keyboard(lab_server: LabServer, tmp_path: Path):
    pytest.importorskip("ipywidgets")
    source = """
from labkit import claim, predict
predict("sums.two", "What is 2 + 2?", [4, 5], seen=4)
claim("the sum is four", 2 + 2, 4)
"""
    kernel = {"kernelspec": {"name": "python3", "display_name": "Python 3"}}
    cells = [nbformat.v4.new_code_cell(source)]
    notebook = nbformat.v4.new_notebook(cells=cells, metadata=kernel)
    (lab_server.workspace / "sums.ipynb").write_text(nbformat.writes(notebook))
    with open_browser(tmp_path) as driver:
        run_all_cells(driver, lab_server, "sums.ipynb", timeout_seconds=60)
        wait_for(driver, ".labkit-question button", timeout_seconds=60)
        button = find_shown(driver, ".labkit-question button")[1]
        driver.execute_script("arguments[0].focus()", button)
        act_until(
            lambda: driver.switch_to.active_element.send_keys(Keys.ENTER),
            lambda: find_shown(driver, ".labkit-question [role=alert]"),
            "the button answered nothing",
        )

        said = find_shown(driver, ".labkit-question [role=alert]")[0].text
        assert "You expected 5 and saw 4" in said
        assert driver.switch_to.active_element.text == "5"
        assert "What is 2 + 2?" in driver.switch_to.active_element.get_attribute("title")
    assert read_progress(lab_server.workspace).predictions["sums.two"].expected == "5"
