"""Headless Chromium, as the tests drive it: the distribution's own, with an empty profile."""

from __future__ import annotations

import contextlib
import importlib.util
import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from selenium import webdriver
from selenium.common.exceptions import (
    ElementClickInterceptedException,
    ElementNotInteractableException,
    StaleElementReferenceException,
)
from selenium.webdriver.chrome.service import Service
from selenium.webdriver.common.action_chains import ActionChains
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.remote.webdriver import WebDriver
from selenium.webdriver.remote.webelement import WebElement

from labkit.launch.server import wait_until
from tests.servers import LabServer

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
NOT_YET = (
    StaleElementReferenceException,
    ElementClickInterceptedException,
    ElementNotInteractableException,
)


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


def run_all_cells(
    driver: WebDriver, server: LabServer, name: str, *, timeout_seconds: float
) -> dict[str, Any]:
    """Opens a notebook and runs all of it through the menu; the notebook as it was saved then."""
    notebook = server.workspace / name
    open_notebook(driver, server, name)
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
    item = f'.lm-Menu-item[data-command="{command}"]'

    def has_clicked() -> bool:
        # A page that still loads opens no menu, or closes one that has just been opened.
        with contextlib.suppress(*NOT_YET):
            if not find_shown(driver, item):
                titles = find_shown(driver, ".lm-MenuBar-item")
                for title in [one for one in titles if one.text.strip() == menu]:
                    title.click()
                wait_until(lambda: bool(find_shown(driver, item)), timeout_seconds=10)
            for shown in find_shown(driver, item)[:1]:
                shown.click()
                return True
        return False

    assert wait_until(has_clicked, timeout_seconds=60), f"{menu} never offered {command}"


def act_until(act: Callable[[], object], is_done: Callable[[], object], never: str) -> None:
    """Acts until the effect is there: a page that still loads takes neither keys nor clicks.

    Nothing is done if the effect is there already, and each try waits for it. Raises
    AssertionError with ``never`` after two minutes.
    """

    def done_now() -> bool:
        try:
            return bool(is_done())
        except NOT_YET:
            return False

    def has_worked() -> bool:
        if done_now():
            return True
        with contextlib.suppress(*NOT_YET, IndexError):
            act()
        return wait_until(done_now, timeout_seconds=10)

    assert wait_until(has_worked, timeout_seconds=120), never


def press(driver: WebDriver, *keys: str) -> None:
    """Presses keys as a person does, the modifiers first."""
    chain = ActionChains(driver)
    for key in keys[:-1]:
        chain.key_down(key)
    chain.send_keys(keys[-1])
    for key in reversed(keys[:-1]):
        chain.key_up(key)
    chain.perform()


def save_until(
    driver: WebDriver, path: Path, holds: Callable[[dict[str, Any]], bool]
) -> dict[str, Any]:
    """Saves the notebook until its file is as expected; what is in the file then."""
    act_until(
        lambda: press(driver, Keys.CONTROL, "s"),
        lambda: holds(read_notebook(path)),
        f"{path.name} was never saved as expected",
    )
    return read_notebook(path)


def open_notebook(driver: WebDriver, server: LabServer, name: str) -> None:
    """Returns once the notebook is shown, has the focus, and its kernel is connected and idle."""
    # &reset: without the tabs that an earlier test left open.
    driver.get(server.url(f"lab/tree/{name}") + "&reset")
    click(driver, ".jp-Notebook .jp-Cell", timeout_seconds=60)

    def is_idle() -> bool:
        # The toolbar shows "idle" before the kernel is connected, and cells run then are lost;
        # the status bar tells the two apart once the notebook has the focus.
        return "| Idle" in driver.find_element(By.ID, "jp-main-statusbar").text

    assert wait_until(is_idle, timeout_seconds=60), "the kernel never came"


def click(driver: WebDriver, selector: str, *, timeout_seconds: float) -> None:
    """Clicks the first element found that can be seen, once there is one."""

    def has_clicked() -> bool:
        # The page redraws as it loads: what was found may be gone before it is clicked.
        try:
            find_shown(driver, selector)[0].click()
        except (IndexError, *NOT_YET):
            return False
        return True

    assert wait_until(has_clicked, timeout_seconds=timeout_seconds), f"{selector} never came"


def wait_for(driver: WebDriver, selector: str, *, timeout_seconds: float) -> None:
    """Returns once there is an element that can be seen."""

    def is_there() -> bool:
        try:
            return bool(find_shown(driver, selector))
        except StaleElementReferenceException:
            return False

    assert wait_until(is_there, timeout_seconds=timeout_seconds), f"{selector} never came"


def find_shown(driver: WebDriver, selector: str) -> list[WebElement]:
    """The elements found that can be seen."""
    found = driver.find_elements(By.CSS_SELECTOR, selector)
    return [element for element in found if element.is_displayed()]


# No word of the page's: a file asked for in vain, and what Chromium says when a network interface
# of the host comes or goes, as an engine's do.
NOT_THE_PAGES = ("favicon", "net::ERR_NETWORK_CHANGED")


def severe_messages(driver: WebDriver) -> list[str]:
    """What the page itself reported as an error."""
    return [
        entry["message"]
        for entry in driver.get_log("browser")
        if entry["level"] == "SEVERE"
        and not any(known in entry["message"] for known in NOT_THE_PAGES)
    ]


RUN_AXE = """
const [selector, without, done] = arguments;
const context = {include: [[selector]], exclude: without ? [[without]] : []};
axe.run(context, {resultTypes: ["violations"]})
    .then(found => done(found.violations), error => done(String(error)));
"""


def find_violations(
    driver: WebDriver,
    selector: str = "html",
    *,
    without: str | None = None,
    impacts: tuple[str, ...] = ("serious", "critical"),
) -> list[str]:
    """What axe-core finds wrong in the elements of ``selector``, but for those of ``without``.

    One line for each element: the rule, its impact, the element and what is wrong with it. Raises
    AssertionError if ``selector`` finds nothing, as that would pass.
    """
    assert driver.find_elements(By.CSS_SELECTOR, selector), f"there is no {selector}"
    if not driver.execute_script("return typeof axe === 'object'"):
        driver.execute_script(f"{find_axe().read_text(encoding='utf-8')}; window.axe = axe;")
    found = driver.execute_async_script(RUN_AXE, selector, without)
    assert isinstance(found, list), found
    return [
        f"{violation['id']} ({violation['impact']}): {node['html'][:200]}: "
        + " ".join(node["failureSummary"].split())
        for violation in found
        if violation["impact"] in impacts
        for node in violation["nodes"]
    ]


def find_axe() -> Path:
    """axe-core's file, as the locked package selenium-axe-python carries it.

    Its wheel is installed with a hash, like all others: the tests need no network. Its Python,
    which pastes options into scripts as text, is not used.
    """
    spec = importlib.util.find_spec("selenium_axe_python")
    assert spec and spec.origin, "install docker/locks/test.txt: selenium-axe-python is missing"
    return Path(spec.origin).parent / "axe-core" / "axe.min.js"
