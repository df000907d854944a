"""The live memory panel in a real JupyterLab: it moves, it notices that nothing comes any more."""

from __future__ import annotations

import json
import re
from pathlib import Path

import nbformat
import pytest
from selenium.webdriver.common.by import By
from selenium.webdriver.remote.webdriver import WebDriver

from labkit.launch.server import wait_until
from tests.browser.driver import (
    RUN_ALL,
    click,
    click_menu,
    open_browser,
    open_notebook,
    save_until,
    severe_messages,
    wait_for,
)
from tests.fakes.sampling import play_cpu, play_gpu, play_utc, snap
from tests.servers import LabServer
from tests.test_panel import play_panel

pytestmark = pytest.mark.browser

CELLS = (
    "import labkit\npanel = labkit.watch_memory(minutes=10)",
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
    """The panel's words as a reader sees them; it is replaced as it is read, so in one go.

    A page that has just been opened, or a panel that is being replaced, has none for a moment.
    """
    script = "return document.querySelector('.labkit-panel')?.innerText"
    seen: list[str] = []
    assert wait_until(
        lambda: seen.append(driver.execute_script(script)) or seen[-1], timeout_seconds=60
    )
    return seen[-1]


def read_held(driver: WebDriver) -> int:
    """MiB of this process, as the panel says."""
    return int(re.search(r"this process ([\d,]+) MiB", read_panel(driver))[1].replace(",", ""))


def says_late(driver: WebDriver) -> bool:
    script = (
        "const one = document.querySelector('.labkit-late');"
        "return one !== null && getComputedStyle(one).visibility === 'visible'"
    )
    return driver.execute_script(script)


def shows_panel(notebook: dict) -> bool:
    return any("labkit-panel" in str(cell["outputs"]) for cell in notebook["cells"])


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
        wait_for(driver, ".labkit-panel", timeout_seconds=60)

        assert wait_until(lambda: read_held(driver) > 300, timeout_seconds=60)
        moment = read_panel(driver).splitlines()[1]
        moves = wait_until(lambda: read_panel(driver).splitlines()[1] != moment, timeout_seconds=60)
        assert moves, "it stood still while a cell ran"
        assert not says_late(driver)
        signal.touch()

        click_menu(driver, "Kernel", "kernelmenu:restart")
        click(driver, ".jp-Dialog .jp-mod-accept", timeout_seconds=60)
        assert wait_until(lambda: says_late(driver), timeout_seconds=60)
        assert re.search(r"not measured since\s+\d{4}-\d\d-\d\d \d\d:\d\d:\d\d", read_panel(driver))
        assert len(driver.find_elements(By.CSS_SELECTOR, ".labkit-panel")) == 1
        last = read_panel(driver)

        output = find_output(save_until(driver, path, shows_panel))
        assert set(output["data"]) == {"text/html", "text/plain"}
        open_notebook(driver, lab_server, path.name)
        assert wait_until(lambda: says_late(driver), timeout_seconds=60)
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
        wait_for(driver, ".labkit-panel", timeout_seconds=60)
        words = read_panel(driver)
        assert re.match(r"memory\s*not measured since 1970-01-01 00:16:40 UTC\n", words)
        assert "cuda:0 A GPU" in words
        assert "tensors 1,024 MiB" in words
        assert driver.find_elements(By.CSS_SELECTOR, ".labkit-panel svg") == []
        assert says_late(driver)


def test_clearing_the_output_ends_the_panel(lab_server: LabServer, tmp_path: Path):
    # The kernel looks at the file now and then: what it has seen decides when the test goes on.
    saw = "panel._is_cleared.__self__._was_there"
    cells = (
        CELLS[0],
        f"import time\nwhile not {saw}:\n    time.sleep(0.1)\nprint('it was saved')",
        "while panel.running:\n    time.sleep(0.1)\nprint('it has ended')",
    )
    path = write_notebook(lab_server, "panel-cleared.ipynb", cells)

    def says(words: str) -> bool:
        shown = driver.find_elements(By.CSS_SELECTOR, ".jp-OutputArea-output")
        return any(words == one.text.strip() for one in shown)

    with open_browser(tmp_path) as driver:
        open_notebook(driver, lab_server, path.name)
        click_menu(driver, "Run", RUN_ALL)
        wait_for(driver, ".labkit-panel", timeout_seconds=60)
        save_until(driver, path, shows_panel)
        assert wait_until(lambda: says("it was saved"), timeout_seconds=60)
        click_menu(driver, "Edit", "editmenu:clear-all")
        save_until(driver, path, lambda notebook: not shows_panel(notebook))
        assert wait_until(lambda: says("it has ended"), timeout_seconds=60)
