"""The live memory panel in a real JupyterLab: it moves, it notices that nothing comes any more."""

from __future__ import annotations

import json
import re
import time
from pathlib import Path

import nbformat
import pytest
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.remote.webdriver import WebDriver

from labkit.launch.server import wait_until
from tests.browser.driver import (
    RUN_ALL,
    click,
    click_menu,
    open_browser,
    open_notebook,
    severe_messages,
    wait_for,
)
from tests.fakes.sampling import play_cpu, play_gpu, play_utc, snap
from tests.servers import LabServer
from tests.test_panel import play_panel

pytestmark = pytest.mark.browser

CELLS = (
    "import labkit\npanel = labkit.watch_memory(minutes=1)",
    "held = bytearray(300 * 2**20)\nheld[::4096] = bytes(len(held[::4096]))",
    # A cell that runs long: the panel goes on meanwhile, and stays where it is.
    "import time\nwhile not __import__('pathlib').Path('go-on').exists():\n    time.sleep(0.1)",
)


def write_notebook(server: LabServer, name: str, cells: tuple[str, ...] = CELLS) -> Path:
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(cell) for cell in cells])
    notebook.metadata["kernelspec"] = {
        "name": "python3",
        "display_name": "Python 3 (ipykernel)",
        "language": "python",
    }
    path = server.workspace / name
    nbformat.write(notebook, path)
    return path


def read_panel(driver: WebDriver) -> str:
    """The panel's words as a reader sees them; it is replaced as it is read, so in one go."""
    return driver.execute_script("return document.querySelector('.labkit-panel').innerText")


def read_held(driver: WebDriver) -> int:
    """MiB of this process, as the panel says."""
    return int(re.search(r"this process ([\d,]+) MiB", read_panel(driver))[1].replace(",", ""))


def says_late(driver: WebDriver) -> bool:
    script = "return getComputedStyle(document.querySelector('.labkit-late')).visibility"
    return driver.execute_script(script) == "visible"


def save(driver: WebDriver, path: Path) -> dict:
    """Saves the notebook; what is in the file then."""
    before = path.stat().st_mtime_ns
    driver.switch_to.active_element.send_keys(Keys.CONTROL, "s")
    assert wait_until(lambda: path.stat().st_mtime_ns != before, timeout_seconds=10)
    return json.loads(path.read_text(encoding="utf-8"))


def find_output(notebook: dict) -> dict:
    ((output,), *others) = [cell["outputs"] for cell in notebook["cells"]]
    assert others == [[], []]
    return output


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_the_panel_moves_and_tells_when_it_no_longer_does(
    lab_server: LabServer, tmp_path: Path, dark: bool
):
    path = write_notebook(lab_server, f"panel-{dark}.ipynb")
    signal = lab_server.workspace / "go-on"
    signal.unlink(missing_ok=True)
    with open_browser(tmp_path, dark=dark) as driver:
        open_notebook(driver, lab_server, path.name)
        click_menu(driver, "Run", RUN_ALL)
        wait_for(driver, ".labkit-panel", timeout_seconds=30)

        assert wait_until(lambda: read_held(driver) > 300, timeout_seconds=20)
        moments = {read_panel(driver).splitlines()[1] for _ in range(20) if not time.sleep(0.15)}
        assert len(moments) >= 2, "it stood still while a cell ran"
        assert not says_late(driver)
        signal.touch()

        click_menu(driver, "Kernel", "kernelmenu:restart")
        click(driver, ".jp-Dialog .jp-mod-accept", timeout_seconds=10)
        assert wait_until(lambda: says_late(driver), timeout_seconds=15)
        assert re.search(r"not measured since\s+\d{4}-\d\d-\d\d \d\d:\d\d:\d\d", read_panel(driver))
        assert len(driver.find_elements(By.CSS_SELECTOR, ".labkit-panel")) == 1
        last = read_panel(driver)

        output = find_output(save(driver, path))
        assert set(output["data"]) == {"text/html", "text/plain"}
        open_notebook(driver, lab_server, path.name)
        assert wait_until(lambda: says_late(driver), timeout_seconds=15)
        assert read_panel(driver) == last
        assert severe_messages(driver) == []


def test_a_notebook_that_is_not_trusted_shows_when_it_was_taken(
    lab_server: LabServer, tmp_path: Path
):
    path = write_notebook(lab_server, "panel-strange.ipynb", CELLS[:1])
    notebook = json.loads(path.read_text(encoding="utf-8"))
    panel, screen, _ = play_panel(snap(play_gpu(), play_cpu()))
    with play_utc():
        panel.show_once()
    html = screen.html
    output = nbformat.v4.new_output("display_data", {"text/html": html, "text/plain": "memory"})
    notebook["cells"][0]["outputs"] = [output]
    notebook["cells"][0]["execution_count"] = 1
    path.write_text(json.dumps(notebook), encoding="utf-8")
    with open_browser(tmp_path) as driver:
        open_notebook(driver, lab_server, path.name)
        wait_for(driver, ".labkit-panel", timeout_seconds=30)
        words = read_panel(driver)
        assert re.match(r"memory\s*not measured since 1970-01-01 00:16:40 UTC\n", words)
        assert "cuda:0 A GPU" in words
        assert "tensors 1,024 MiB" in words
        assert driver.find_elements(By.CSS_SELECTOR, ".labkit-panel svg") == []
        assert says_late(driver)


def test_clearing_the_output_ends_the_panel(lab_server: LabServer, tmp_path: Path):
    cells = (CELLS[0], "panel.running")
    path = write_notebook(lab_server, "panel-cleared.ipynb", cells)
    with open_browser(tmp_path) as driver:
        open_notebook(driver, lab_server, path.name)
        click_menu(driver, "Run", RUN_ALL)
        wait_for(driver, ".labkit-panel", timeout_seconds=30)
        assert "labkit-panel" in str(save(driver, path))
        time.sleep(3)  # the kernel looks at the file every two seconds
        click_menu(driver, "Edit", "editmenu:clear-all")
        assert "labkit-panel" not in str(save(driver, path))
        time.sleep(3)
        driver.find_elements(By.CSS_SELECTOR, ".jp-CodeCell .cm-content")[-1].click()
        driver.switch_to.active_element.send_keys(Keys.CONTROL, Keys.ENTER)
        assert wait_until(
            lambda: "False" in driver.find_element(By.CSS_SELECTOR, ".jp-Notebook").text,
            timeout_seconds=10,
        )
