"""Headless Chromium, as the tests drive it: the distribution's own, with an empty profile."""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from selenium import webdriver
from selenium.webdriver.chrome.service import Service
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.remote.webdriver import WebDriver

from labkit.launch.health import wait_until

FLAGS = (
    "--headless",
    "--no-sandbox",  # Chromium's own needs rights that neither root nor a container has
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--disable-dev-shm-usage",
    "--window-size=1500,1000",
)
RUN_ALL = "runmenu:run-all"


@contextlib.contextmanager
def open_browser(profile: Path, *, dark: bool = False) -> Iterator[WebDriver]:
    """A browser with an empty profile, closed in every case."""
    options = webdriver.ChromeOptions()
    options.binary_location = "/usr/bin/chromium"
    for flag in (*FLAGS, f"--user-data-dir={profile}"):
        options.add_argument(flag)
    if dark:
        options.add_argument("--blink-settings=preferredColorScheme=0")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = webdriver.Chrome(options=options, service=Service("/usr/bin/chromedriver"))
    try:
        yield driver
    finally:
        driver.quit()


def run_all_cells(driver: WebDriver, notebook: Path, *, timeout_seconds: float) -> dict[str, Any]:
    """Runs every cell of the open notebook through the menu; the notebook as it was saved then."""
    wait_for(driver, ".jp-Notebook .jp-Cell", timeout_seconds=60)
    wait_idle(driver, timeout_seconds=60)
    click_menu(driver, "Run", RUN_ALL)

    def count_left() -> int:
        driver.switch_to.active_element.send_keys(Keys.CONTROL, "s")
        time.sleep(0.5)  # the browser saves when it likes; there is no event to wait for
        return sum(not cell["execution_count"] for cell in code_cells(read_notebook(notebook)))

    finished = wait_until(
        lambda: count_left() == 0, timeout_seconds=timeout_seconds, interval_seconds=1
    )
    assert finished, f"{count_left()} cells have not run after {timeout_seconds} s"
    return read_notebook(notebook)


def read_notebook(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text(encoding="utf-8"))


def code_cells(notebook: dict[str, Any]) -> list[dict[str, Any]]:
    return [
        cell
        for cell in notebook["cells"]
        if cell["cell_type"] == "code" and "".join(cell["source"]).strip()
    ]


def errors_in(notebook: dict[str, Any]) -> list[str]:
    """The error outputs of a notebook, each as "Name: text"."""
    return [
        f"{output['ename']}: {output['evalue']}"
        for cell in code_cells(notebook)
        for output in cell["outputs"]
        if output["output_type"] == "error"
    ]


def click_menu(driver: WebDriver, menu: str, command: str) -> None:
    """Clicks an item of JupyterLab's menu bar, as a person does."""
    for item in driver.find_elements(By.CSS_SELECTOR, ".lm-MenuBar-item"):
        if item.text.strip() == menu:
            item.click()
            break
    wait_for(driver, f'.lm-Menu-item[data-command="{command}"]', timeout_seconds=10).click()


def wait_idle(driver: WebDriver, *, timeout_seconds: float) -> None:
    """Returns once the open notebook's kernel is connected and has nothing to do.

    The toolbar's circle shows "idle" before the kernel is connected, and cells run then are
    lost; the status bar tells the two apart.
    """

    def is_idle() -> bool:
        found = driver.find_elements(By.CSS_SELECTOR, "#jp-main-statusbar")
        return bool(found) and "| Idle" in found[0].text

    assert wait_until(is_idle, timeout_seconds=timeout_seconds), "the kernel never came"


def wait_for(driver: WebDriver, selector: str, *, timeout_seconds: float) -> Any:
    """The first element that ``selector`` finds, once there is one that can be seen."""

    def find() -> list[Any]:
        found = driver.find_elements(By.CSS_SELECTOR, selector)
        return [element for element in found if element.is_displayed()]

    seen: Callable[[], bool] = lambda: bool(find())  # noqa: E731
    assert wait_until(seen, timeout_seconds=timeout_seconds), f"{selector} never came"
    return find()[0]


def severe_messages(driver: WebDriver) -> list[str]:
    """What the page itself reported as an error, except for files it asks for in vain."""
    return [
        entry["message"]
        for entry in driver.get_log("browser")
        if entry["level"] == "SEVERE" and "favicon" not in entry["message"]
    ]
