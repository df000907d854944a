"""The start page, the status bar and its panel, as a learner with a keyboard meets them."""

from __future__ import annotations

from pathlib import Path

import pytest
from selenium.webdriver.common.action_chains import ActionChains
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.remote.webdriver import WebDriver

from labkit.launch.server import wait_until
from labkit.lessons.notebooks import read_digests
from labkit.lessons.progress import record_attempt
from tests.browser.driver import (
    NOT_YET,
    find_violations,
    open_browser,
    severe_messages,
    wait_for,
)
from tests.servers import LabServer

pytestmark = pytest.mark.browser

PAGE, STATUS, PANEL = ".labkit-start", ".labkit-status", ".labkit-side"
WIDTHS = (390, 800, 1280)


def press(driver: WebDriver, *keys: str) -> None:
    """Presses keys as a person does, the modifiers first."""
    chain = ActionChains(driver)
    for key in keys[:-1]:
        chain.key_down(key)
    chain.send_keys(keys[-1])
    for key in reversed(keys[:-1]):
        chain.key_up(key)
    chain.perform()


def press_until_shown(driver: WebDriver, *keys: str, selector: str) -> None:
    """Presses a shortcut until its effect is there: a page that still loads takes no shortcuts."""

    def is_there() -> bool:
        press(driver, *keys)
        return wait_until(lambda: bool(read(driver, selector)), timeout_seconds=3)

    assert wait_until(is_there, timeout_seconds=60), f"{selector} never came"


def read(driver: WebDriver, selector: str) -> str:
    """The words of the first such element that can be seen; "" while there is none."""
    try:
        found = driver.find_elements(By.CSS_SELECTOR, selector)
        return next((one.text for one in found if one.is_displayed()), "")
    except NOT_YET:
        return ""


def open_start(driver: WebDriver, server: LabServer) -> None:
    """Opens the printed URL, in a workspace of the browser without tabs of earlier tests."""
    driver.get(server.url("lab") + "&reset")
    wait_for(driver, ".labkit-next", timeout_seconds=60)


def focused(driver: WebDriver) -> str:
    return driver.execute_script("return document.activeElement.className")


def test_from_the_url_into_the_first_lab_and_back_by_keyboard(
    lab_server: LabServer, tmp_path: Path
):
    notebook = lab_server.workspace / "01_tensors.ipynb"
    with open_browser(tmp_path) as driver:
        open_start(driver, lab_server)
        assert wait_until(lambda: focused(driver) == "labkit-next", timeout_seconds=10)
        assert "0 of 5 passed" in read(driver, ".labkit-card")
        press(driver, Keys.ENTER)
        wait_for(driver, ".jp-Notebook .jp-Cell", timeout_seconds=60)
        assert wait_until(lambda: "01_tensors" in driver.title, timeout_seconds=10)
        assert wait_until(lambda: "kernel " in read(driver, STATUS), timeout_seconds=60)

        before = read_digests(notebook)
        driver.find_element(By.CSS_SELECTOR, ".jp-Notebook .jp-Cell").click()
        press(driver, Keys.SHIFT, Keys.ENTER)
        press(driver, Keys.ESCAPE)
        for key in ("b", Keys.ENTER, "7", Keys.ESCAPE):  # a cell of the learner's own below
            press(driver, key)
        press(driver, Keys.CONTROL, "s")
        assert wait_until(lambda: read_digests(notebook) not in (None, before), timeout_seconds=20)
        record_attempt(lab_server.workspace, "tensors.own_tensor", passed=True)

        press(driver, Keys.CONTROL, Keys.SHIFT, "[")
        assert wait_until(
            lambda: "Continue where you were" in read(driver, ".labkit-next"), timeout_seconds=20
        )
        assert "1 of 5 passed" in read(driver, ".labkit-card")
        press(driver, Keys.ENTER)
        assert wait_until(lambda: not read(driver, PAGE), timeout_seconds=20)
        driver.refresh()  # who reloads the page stays where they were
        wait_for(driver, ".jp-Notebook .jp-Cell", timeout_seconds=60)
        assert "01_tensors" in driver.title
        press_until_shown(driver, Keys.CONTROL, Keys.SHIFT, "l", selector=".jp-LauncherCard")
        assert "Jupytext" not in read(driver, "body")  # its contents manager is not the lab's
        assert severe_messages(driver) == []


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_the_page_fits_and_axe_finds_nothing_serious(
    lab_server: LabServer, tmp_path: Path, dark: bool
):
    with open_browser(tmp_path, dark=dark) as driver:
        for width in WIDTHS:
            size = {"width": width, "height": 844, "deviceScaleFactor": 1, "mobile": False}
            driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
            open_start(driver, lab_server)
            wait_for(
                driver, f'body[data-jp-theme-light="{str(not dark).lower()}"]', timeout_seconds=20
            )
            assert find_violations(driver, PAGE) == []
            assert find_violations(driver, STATUS) == []
            node = f"document.querySelector('{PAGE}')"
            script = f"return {node}.scrollWidth <= {node}.clientWidth && {node}.clientWidth > 250"
            assert driver.execute_script(script), f"it does not fit {width} px"
            assert "no GPU" in read(driver, STATUS) or "of" in read(driver, STATUS)


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_the_memory_opens_its_panel_in_the_side_area(
    lab_server: LabServer, tmp_path: Path, dark: bool
):
    with open_browser(tmp_path, dark=dark) as driver:
        driver.get(lab_server.url("lab/tree/02_autograd.ipynb") + "&reset")
        wait_for(driver, ".jp-Notebook .jp-Cell", timeout_seconds=60)
        assert wait_until(lambda: "kernel " in read(driver, STATUS), timeout_seconds=60)
        button = driver.find_element(By.CSS_SELECTOR, f"{STATUS} button")
        button.send_keys(Keys.ENTER)
        assert wait_until(lambda: "cpu" in read(driver, PANEL), timeout_seconds=20)
        assert "The kernel of 02_autograd.ipynb" in read(driver, PANEL)
        assert wait_until(
            lambda: driver.find_elements(By.CSS_SELECTOR, f"{PANEL} svg path"), timeout_seconds=20
        )
        assert find_violations(driver, PANEL) == []
        driver.execute_script("document.querySelector('.jp-WindowedPanel-outer').scrollBy(0, 9999)")
        assert driver.find_element(By.CSS_SELECTOR, PANEL).is_displayed()
        button.send_keys(Keys.ENTER)
        assert wait_until(lambda: not read(driver, PANEL), timeout_seconds=10)
        assert severe_messages(driver) == []
