"""A learner's first minutes, in a real browser on the real server."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.browser.driver import (
    code_cells,
    errors_in,
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

        wait_for(driver, f'body[data-jp-theme-light="{theme}"]', timeout_seconds=20)
