"""The history's page in a real browser, from a file, with nothing to be reached."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.remote.webdriver import WebDriver

from labkit.memory.allocations.analysis import analyse
from labkit.memory.allocations.page import make_page
from labkit.memory.allocations.snapshot import read_recording
from tests.browser.driver import open_browser
from tests.fakes.allocator import make_training, take_snapshot
from tests.test_history_shown import HOSTILE

pytestmark = pytest.mark.browser


@pytest.fixture(scope="module", params=[False, True], ids=["light", "dark"])
def page(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[WebDriver, bool]]:
    own = {"max_entries": 30, "sources": [["/home/ada/train.py", 20, HOSTILE]]}
    history = analyse(read_recording(take_snapshot(make_training(max_entries=30), **own)))
    path: Path = tmp_path_factory.mktemp("history") / "history.html"
    path.write_text(make_page(history, HOSTILE), encoding="utf-8")
    with open_browser(tmp_path_factory.mktemp("profile"), dark=request.param) as driver:
        driver.get(path.as_uri())
        yield driver, request.param


def read_brightness(driver: WebDriver, selector: str, name: str) -> int:
    """How bright a colour of an element is, from 0 to 255."""
    colour = driver.find_element(By.CSS_SELECTOR, selector).value_of_css_property(name)
    return max(int(part) for part in colour[colour.index("(") + 1 : -1].split(",")[:3])


def test_it_follows_the_systems_theme(page):
    driver, dark = page
    paper = read_brightness(driver, "body", "background-color")
    for selector, name in (("body", "color"), (".reserved", "stroke"), (".plot .strong", "fill")):
        ink = read_brightness(driver, selector, name)
        assert (paper < 60 < 200 < ink) if dark else (ink < 60 < 200 < paper), selector


def test_the_timeline_is_read_with_the_keyboard(page):
    driver, _ = page
    slider = driver.find_element(By.CSS_SELECTOR, ".read input")
    told = driver.find_element(By.CSS_SELECTOR, ".read output")
    assert told.text == "point at the picture, or move this"
    slider.send_keys(Keys.END)
    assert told.text == "event 30 (29 ms): 6.0 MiB live, 12.0 MiB reserved"
    slider.send_keys(Keys.ARROW_LEFT)
    assert told.text == "event 29 (28 ms): 7.0 MiB live, 12.0 MiB reserved"
    assert slider.get_attribute("aria-valuetext") == told.text
    cursor = driver.find_element(By.CSS_SELECTOR, ".cursor")
    assert 800 < float(cursor.get_attribute("x1")) < 900


def test_a_stack_opens_on_demand(page):
    driver, _ = page
    stack = driver.find_element(By.CSS_SELECTOR, "details pre")
    assert not stack.is_displayed()
    driver.find_element(By.CSS_SELECTOR, "summary").send_keys(Keys.ENTER)
    assert stack.text.splitlines() == [
        "/opt/venv/lib/python3.12/site-packages/torch/nn/modules/linear.py:134 forward",
        "/home/ada/train.py:20 forward",
        "/home/ada/train.py:40 <module>",
    ]


def test_it_loads_nothing_and_has_nothing_to_complain_of(page):
    driver, _ = page
    loaded = driver.execute_script("return performance.getEntriesByType('resource').length")
    assert loaded == 0
    assert [entry["message"] for entry in driver.get_log("browser")] == []
    assert driver.title.endswith("labkit history")


def test_it_fits_a_narrow_window(page):
    driver, _ = page
    driver.set_window_size(520, 900)
    wide = "return document.documentElement.scrollWidth - document.documentElement.clientWidth"
    assert driver.execute_script(wide) <= 0
