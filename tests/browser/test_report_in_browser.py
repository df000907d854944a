"""The report in a real browser, from a file, with nothing to be reached."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from selenium.webdriver.common.by import By
from selenium.webdriver.remote.webdriver import WebDriver

from labkit.notebooks.report.page import write_report
from tests.browser.driver import find_violations, open_browser
from tests.fakes.runs import code, make_notebook, make_result, prints, shows, write_run

pytestmark = pytest.mark.browser

HOSTILE = (
    "<p onclick='document.title = 1' id='n0'>shown</p><script>document.title = 'taken'</script>"
    "<img src=x onerror=\"document.title = 'taken'\"><svg onload=\"document.title = 'taken'\"/>"
    "<a href=\"javascript:document.title = 'taken'\" id='trap'>link</a>"
    "</div></details></section><p style='position: fixed; top: 0'>over everything</p>"
)
# Each would lie over the page if its output did not hold it.
COVERS = (
    "<div class='cover' style='margin: -2000px; width: 9999px; height: 9999px'>1</div>"
    "<div style='margin-top: calc(0px - 3000px); height: 9999px; background: red'>2</div>"
    "<div style='transform: scale(99) translateY(-999px); z-index: 9; position: absolute'>3</div>"
    "<svg width='9999' height='9999' style='margin: -3000px'><g transform='translate(-4000 -4000)'>"
    "<rect width='9999' height='9999' fill='red'/></g></svg>"
    "<img width='9999' height='9999' style='float: left'><p style='position: sticky'>4</p>"
)


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    cells = [
        code("x = 1", prints("a line\n")),
        code("show()", shows(text_html=HOSTILE), shows(text_html=COVERS)),
    ]
    notebook = make_notebook(
        status="failed", error={"what": "cell 2 of 2 raised ValueError: no", "cell_index": 1}
    )
    notebook["cells"][0]["index"], notebook["cells"][1]["index"] = 0, 1
    folder = tmp_path_factory.mktemp("run")
    write_run(folder, make_result(notebook, status="failed"), {"tensors.ipynb": cells})
    return write_report(folder)


@pytest.fixture(scope="module", params=[False, True], ids=["light", "dark"])
def page(
    request: pytest.FixtureRequest, report: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[WebDriver, bool]]:
    with open_browser(tmp_path_factory.mktemp("profile"), dark=request.param) as driver:
        driver.get(report.as_uri())
        yield driver, request.param


def test_axe_finds_what_is_wrong_with_a_page(tmp_path: Path):
    page = tmp_path / "page.html"
    gray = "<p class='gray' style='color: #bbb; background: #fff'>hard to read</p>"
    page.write_text(f"<html><title>t</title>{gray}<p class='good'>text</p><img src='x'></html>")
    with open_browser(tmp_path / "profile") as driver:
        driver.get(page.as_uri())
        rules = sorted(line.split()[0] for line in find_violations(driver))
        assert rules == ["color-contrast", "html-has-lang", "image-alt"]
        assert [line.split()[0] for line in find_violations(driver, ".gray")] == ["color-contrast"]
        assert find_violations(driver, ".good") == []


def test_axe_finds_nothing_serious(page):
    driver, _ = page
    driver.find_element(By.CSS_SELECTOR, "button[data-open=yes]").click()
    # A picture in a notebook's own HTML may lack a text, and no report can give it one.
    assert find_violations(driver, without=".rich > *") == []


def read_brightness(driver: WebDriver, name: str) -> int:
    """How bright a colour of the page's body is, from 0 to 255."""
    color = driver.find_element(By.TAG_NAME, "body").value_of_css_property(name)
    return max(int(part) for part in color[color.index("(") + 1 : -1].split(",")[:3])


def test_it_follows_the_systems_theme(page):
    driver, dark = page
    paper = read_brightness(driver, "background-color")
    ink = read_brightness(driver, "color")
    assert (paper < 60 < 200 < ink) if dark else (ink < 60 < 200 < paper)


def test_nothing_of_an_output_runs_or_leaves_its_place(page):
    driver, _ = page
    driver.find_element(By.CSS_SELECTOR, "button[data-open=yes]").click()
    driver.find_element(By.XPATH, "//p[text()='shown']").click()
    driver.find_element(By.XPATH, "//a[text()='link']").click()
    assert driver.title == "tensors failed - labkit run"
    over = driver.find_element(By.XPATH, "//p[text()='over everything']")
    assert over.value_of_css_property("position") == "static"
    assert len(driver.find_elements(By.CSS_SELECTOR, "article.cell .rich p")) == 3


def test_no_output_lies_over_the_page(page):
    driver, _ = page
    driver.find_element(By.CSS_SELECTOR, "button[data-open=yes]").click()
    for box in driver.find_elements(By.CSS_SELECTOR, ".rich"):
        assert box.value_of_css_property("contain") in ("content", "layout style paint", "strict")
        assert box.rect["height"] <= 44 * 16 + 1
    # What is seen at any place of the page outside of the outputs is not part of an output.
    covered = driver.execute_script("""
        const inside = (x, y) => [...document.querySelectorAll('.rich')].some(box => {
            const r = box.getBoundingClientRect();
            return x >= r.left && x <= r.right && y >= r.top && y <= r.bottom;
        });
        let covered = 0;
        for (let top = 0; top < document.body.scrollHeight; top += 300) {
            window.scrollTo(0, top);
            for (let x = 5; x < innerWidth; x += 40) for (let y = 5; y < innerHeight; y += 40) {
                const seen = document.elementFromPoint(x, y);
                covered += !inside(x, y) && seen !== null && seen.closest('.rich') !== null;
            }
        }
        return covered;
    """)
    assert covered == 0


def test_the_buttons_and_the_links_open_what_is_closed(page):
    driver, _ = page
    driver.find_element(By.CSS_SELECTOR, "button[data-open=no]").click()
    assert driver.find_elements(By.CSS_SELECTOR, "details[open]") == []
    driver.find_element(By.LINK_TEXT, "to the cell and what it showed").click()
    assert driver.find_element(By.ID, "n0-c1").is_displayed()
    assert len(driver.find_elements(By.CSS_SELECTOR, "details[open]")) == 1


def test_it_loads_nothing_and_has_nothing_to_complain_of(page):
    driver, _ = page
    loaded = driver.execute_script("return performance.getEntriesByType('resource').length")
    assert loaded == 0
    complaints = [entry["message"] for entry in driver.get_log("browser")]
    assert complaints == []
