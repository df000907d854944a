"""The start page, the status bar and its panel, as a learner with a keyboard meets them."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from selenium.webdriver.common.action_chains import ActionChains
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.remote.webdriver import WebDriver
from selenium.webdriver.remote.webelement import WebElement

from labkit.jupyter.usage import Answers
from labkit.launch.server import wait_until
from labkit.lessons.notebooks import read_digests
from labkit.lessons.progress import record_attempt
from tests.browser.driver import (
    NOT_YET,
    act_until,
    click,
    find_violations,
    open_browser,
    press,
    severe_messages,
    wait_for,
)
from tests.fakes.sampling import GIB, PlayedReader, play_cpu, snap
from tests.servers import LabServer, start_server

pytestmark = pytest.mark.browser

PAGE, STATUS, PANEL = ".labkit-start", ".labkit-status", ".labkit-side"
WIDTHS = (390, 800, 1280)


def read(driver: WebDriver, selector: str) -> str:
    """The words of the first such element that can be seen; "" while there is none."""
    try:
        found = driver.find_elements(By.CSS_SELECTOR, selector)
        return next((one.text for one in found if one.is_displayed()), "")
    except NOT_YET:
        return ""


def open_start(driver: WebDriver, server: LabServer) -> None:
    """Opens the printed URL, in a workspace of the browser without tabs of earlier tests."""

    def has_come() -> bool:
        # Loaded again if the browser lost a file: a host's network interfaces come and go.
        driver.get(server.url("lab") + "&reset")
        return wait_until(lambda: bool(read(driver, ".labkit-next")), timeout_seconds=60)

    assert wait_until(has_come, timeout_seconds=120), "the start page never came"


def focused(driver: WebDriver) -> str:
    return driver.execute_script("return document.activeElement.className")


def press_enter_on_next(driver: WebDriver) -> None:
    """Presses Enter where the focus is on the link to go on, until its notebook is in front."""

    def press_there() -> None:
        if focused(driver) == "labkit-next":
            press(driver, Keys.ENTER)

    act_until(press_there, lambda: not read(driver, PAGE), "the link opened nothing")


def write_a_cell(driver: WebDriver, text: str) -> None:
    """Adds a cell below by keyboard, in JupyterLab's command mode, and types into it."""

    def count_cells() -> int:
        return len(driver.find_elements(By.CSS_SELECTOR, ".jp-Notebook .jp-CodeCell"))

    def is_editing() -> bool:
        return "cm-content" in focused(driver)

    had = count_cells()
    act_until(lambda: press(driver, "b"), lambda: count_cells() > had, "no cell was added")
    act_until(lambda: press(driver, Keys.ENTER), is_editing, "the cell takes no text")
    press(driver, text)
    act_until(lambda: press(driver, Keys.ESCAPE), lambda: not is_editing(), "it is still edited")


def test_from_the_url_into_the_first_lab_and_back_by_keyboard(tmp_path: Path):
    # A server of its own: where the page leads depends on what was edited and tried before.
    with start_server(tmp_path) as server, open_browser(tmp_path / "profile") as driver:
        notebook = server.workspace / "01_tensors.ipynb"
        open_start(driver, server)
        assert wait_until(lambda: focused(driver) == "labkit-next", timeout_seconds=60)
        assert "0 of 5 passed" in read(driver, ".labkit-card")
        press_enter_on_next(driver)
        wait_for(driver, ".jp-Notebook .jp-Cell", timeout_seconds=60)
        assert wait_until(lambda: "01_tensors" in driver.title, timeout_seconds=60)
        assert wait_until(lambda: "kernel " in read(driver, STATUS), timeout_seconds=60)

        click(driver, ".jp-Notebook .jp-Cell", timeout_seconds=60)
        write_a_cell(driver, "7")
        before = read_digests(notebook)
        act_until(
            lambda: press(driver, Keys.CONTROL, "s"),
            lambda: read_digests(notebook) not in (None, before),
            "the notebook was never saved",
        )
        record_attempt(server.workspace, "tensors.own_tensor", passed=True)

        act_until(
            lambda: press(driver, Keys.CONTROL, Keys.SHIFT, "["),
            lambda: "Continue where you were" in read(driver, ".labkit-next"),
            "the start page never came back",
        )
        assert "1 of 5 passed" in read(driver, ".labkit-card")
        press_enter_on_next(driver)
        driver.refresh()  # who reloads the page stays where they were
        wait_for(driver, ".jp-Notebook .jp-Cell", timeout_seconds=60)
        assert "01_tensors" in driver.title
        act_until(
            lambda: press(driver, Keys.CONTROL, Keys.SHIFT, "l"),
            lambda: read(driver, ".jp-LauncherCard"),
            "the launcher never came",
        )
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
                driver, f'body[data-jp-theme-light="{str(not dark).lower()}"]', timeout_seconds=60
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
        act_until(
            lambda: button.send_keys(Keys.ENTER),
            lambda: "cpu" in read(driver, PANEL),
            "the panel never came",
        )
        assert "The kernel of 02_autograd.ipynb" in read(driver, PANEL)
        script = "return document.querySelector('.labkit-side .labkit-panel > div').clientHeight"
        assert driver.execute_script(script) < 30, "the moment of measuring is broken into lines"
        assert wait_until(
            lambda: driver.find_elements(By.CSS_SELECTOR, f"{PANEL} svg path"), timeout_seconds=60
        )
        assert find_violations(driver, PANEL) == []
        driver.execute_script("document.querySelector('.jp-WindowedPanel-outer').scrollBy(0, 9999)")
        assert driver.find_element(By.CSS_SELECTOR, PANEL).is_displayed()
        act_until(
            lambda: button.send_keys(Keys.ENTER),
            lambda: not read(driver, PANEL),
            "the panel never went",
        )
        assert severe_messages(driver) == []


PLAY_MEMORY = """
const real = window.fetch, said = %s;
window.fetch = (...asked) => String(asked[0].url ?? asked[0]).includes("/labkit/memory")
    ? Promise.resolve(new Response(JSON.stringify(said))) : real(...asked);
"""


def read_color(element: WebElement, name: str) -> tuple[float, ...]:
    """Red, green and blue from 0 to 1, as the page computed them; the color must be opaque."""
    *color, alpha = map(float, re.findall(r"[\d.]+", element.value_of_css_property(name)))
    assert alpha == 1, f"{name} is {element.value_of_css_property(name)}"
    return tuple(part / 255 for part in color)


def find_contrast(one: tuple[float, ...], other: tuple[float, ...]) -> float:
    """WCAG's contrast ratio of two colors, from 1 to 21."""

    def luminance(color: tuple[float, ...]) -> float:
        red, green, blue = (
            part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in color
        )
        return 0.2126 * red + 0.7152 * green + 0.0722 * blue

    dark, light = sorted((luminance(one), luminance(other)))
    return (light + 0.05) / (dark + 0.05)


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_memory_that_is_nearly_full_stands_out_and_can_be_read(
    lab_server: LabServer, tmp_path: Path, dark: bool
):
    said = Answers(kernel=False, reader=PlayedReader(snap(play_cpu(available=GIB))))
    script = PLAY_MEMORY % json.dumps(said.answer("status"))
    with open_browser(tmp_path, dark=dark) as driver:
        driver.execute_cdp_cmd("Page.addScriptToEvaluateOnNewDocument", {"source": script})
        open_start(driver, lab_server)
        wait_for(driver, f'body[data-jp-theme-light="{str(not dark).lower()}"]', timeout_seconds=60)
        assert wait_until(lambda: "memory nearly full" in read(driver, STATUS), timeout_seconds=60)
        button = driver.find_element(By.CSS_SELECTOR, f"{STATUS} button")
        bar = driver.find_element(By.ID, "jp-main-statusbar")
        # The style sheet may come after the words.
        assert wait_until(
            lambda: "(0, 0, 0, 0)" not in button.value_of_css_property("background-color"),
            timeout_seconds=60,
        )
        for pointed_at in (False, True):
            if pointed_at:
                ActionChains(driver).move_to_element(button).perform()
            warns, words = read_color(button, "background-color"), read_color(button, "color")
            assert find_contrast(words, warns) >= 4.5
            red, green, blue = warns
            assert red > green > 2 * blue, f"{warns} is not amber"
            assert warns != read_color(bar, "background-color")
        assert find_violations(driver, STATUS) == []


def test_a_window_that_becomes_narrow_keeps_the_page_in_sight(
    lab_server: LabServer, tmp_path: Path
):
    with open_browser(tmp_path) as driver:
        open_start(driver, lab_server)
        wait_for(driver, ".jp-DirListing-item", timeout_seconds=60)
        size = {"width": 390, "height": 844, "deviceScaleFactor": 1, "mobile": False}
        driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
        assert wait_until(
            lambda: driver.find_element(By.CSS_SELECTOR, PAGE).size["width"] > 250,
            timeout_seconds=60,
        )


def test_a_lab_fits_a_narrow_page(lab_server: LabServer, tmp_path: Path):
    # Its code has scroll bars of its own, and the first lines of folded cells are wrapped.
    with open_browser(tmp_path) as driver:
        size = {"width": 390, "height": 844, "deviceScaleFactor": 1, "mobile": False}
        driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
        driver.get(lab_server.url("lab/tree/01_tensors.ipynb") + "&reset")
        wait_for(driver, ".jp-Notebook .jp-PlaceholderText", timeout_seconds=60)
        page = "document.querySelector('.jp-WindowedPanel-outer')"
        script = f"return [{page}.scrollWidth, {page}.clientWidth]"

        def fits() -> bool:
            needed, there = driver.execute_script(script)
            return needed <= there and there > 250

        assert wait_until(fits, timeout_seconds=60), driver.execute_script(script)


# Goes down a screen, and says where the long name and the page end, once the name is there.
FIND_LONG_NAME = """
const page = document.querySelector('.jp-WindowedPanel-outer');
const name = [...page.querySelectorAll('.jp-RenderedHTMLCommon :not(pre) > code')].find(
    code => code.textContent.startsWith('torch.set_float32_matmul_precision') && code.offsetParent);
if (name) return [name.getBoundingClientRect().right, page.getBoundingClientRect().right];
const ended = page.scrollTop + page.clientHeight >= page.scrollHeight - 1;
page.scrollTop = ended ? 0 : page.scrollTop + page.clientHeight / 2;
return null;
"""


def test_a_long_name_in_the_text_is_not_cut_on_a_narrow_page(lab_server: LabServer, tmp_path: Path):
    with open_browser(tmp_path) as driver:
        size = {"width": 390, "height": 844, "deviceScaleFactor": 1, "mobile": False}
        driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
        driver.get(lab_server.url("lab/tree/03_devices.ipynb") + "&reset")
        wait_for(driver, ".jp-Notebook .jp-PlaceholderText", timeout_seconds=60)

        def ends_on_the_page() -> bool:
            found = driver.execute_script(FIND_LONG_NAME)
            return bool(found) and found[0] <= found[1]

        assert wait_until(ends_on_the_page, timeout_seconds=120)


# Goes through the page by screens; the texts that scroll sideways, and whether it has formulas.
FIND_WIDE = """
const page = document.querySelector('.jp-WindowedPanel-outer');
const wide = new Set();
let typeset = false;
page.scrollTop = 0;
const done = arguments[0];
const look = () => {
    for (const text of page.querySelectorAll('.jp-RenderedMarkdown')) {
        typeset ||= text.querySelector('mjx-container[display="true"]') !== null;
        if (text.scrollWidth > text.clientWidth) wide.add(text.textContent.trim().slice(0, 60));
    }
    if (page.scrollTop + page.clientHeight >= page.scrollHeight - 1) done([[...wide], typeset]);
    else { page.scrollTop += page.clientHeight / 2; setTimeout(look, 200); }
};
look();
"""


@pytest.mark.parametrize("name", ["01_tensors", "02_autograd", "06_training", "07_distributed"])
def test_no_text_scrolls_sideways_on_a_narrow_page(
    lab_server: LabServer, tmp_path: Path, name: str
):
    with open_browser(tmp_path) as driver:
        driver.set_script_timeout(300)
        size = {"width": 390, "height": 844, "deviceScaleFactor": 1, "mobile": False}
        driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
        driver.get(lab_server.url(f"lab/tree/{name}.ipynb") + "&reset")
        wait_for(driver, ".jp-Notebook .jp-PlaceholderText", timeout_seconds=60)

        def fits() -> bool:
            wide, typeset = driver.execute_async_script(FIND_WIDE)
            return not wide and (typeset or name == "07_distributed")  # which has no formula

        assert wait_until(fits, timeout_seconds=300), driver.execute_async_script(FIND_WIDE)


FAIL_TWICE = """
const real = window.fetch;
let left = 2;
const isStart = (asked) => String(asked.url ?? asked).includes("/labkit/start");
window.fetch = (...asked) => isStart(asked[0]) && left-- > 0
    ? Promise.reject(new TypeError("Failed to fetch")) : real(...asked);
"""


def test_a_page_whose_answer_was_lost_asks_again(lab_server: LabServer, tmp_path: Path):
    with open_browser(tmp_path) as driver:
        driver.execute_cdp_cmd("Page.addScriptToEvaluateOnNewDocument", {"source": FAIL_TWICE})
        open_start(driver, lab_server)
        assert len(driver.find_elements(By.CSS_SELECTOR, ".labkit-card")) >= 7
