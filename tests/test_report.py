"""The report of a run: complete, honest, harmless, small, quick, and readable offline."""

from __future__ import annotations

import base64
import itertools
import random
import re
import time
from html.parser import HTMLParser
from pathlib import Path

import pytest

from labkit.errors import LabkitError
from labkit.notebooks.report.notebook import describe_counts
from labkit.notebooks.report.page import describe_verdict, format_moment, write_page, write_report
from labkit.notebooks.result import parse_run
from tests.fakes.runs import (
    MIB,
    code,
    make_cell,
    make_notebook,
    make_result,
    markdown,
    prints,
    shows,
    write_run,
)

LOADING = ("src", "srcset", "href", "xlink:href", "action", "data", "poster", "background")
VOID = ("meta", "br", "hr", "img", "col", "wbr")


class Page(HTMLParser):
    """A page taken apart: what it would load, its tags, its text, and whether it is well nested."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.loads: list[tuple[str, str, str]] = []
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str]] = []
        self.open: list[str] = []
        self.text = ""
        self.source = text
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += [(name, value or "") for name, value in attrs]
        self.loads += [(tag, name, value or "") for name, value in attrs if name in LOADING]
        self.loads += [(tag, "style", value) for name, value in attrs if "url(" in (value or "")]
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] == "style":
            self.loads += [("style", "css", found) for found in re.findall(r"url\(.*?\)", data)]
            assert "@import" not in data
        elif not self.open or self.open[-1] != "script":
            self.text += data


def report_of(folder: Path, *notebooks, executed=None, **facts) -> Page:
    write_run(folder, make_result(*notebooks, **facts), executed)
    return Page(write_report(folder).read_text(encoding="utf-8"))


def assert_opens_offline(page: Page) -> None:
    for tag, name, value in page.loads:
        plain_link = tag == "a" and name == "href"
        assert plain_link or value.startswith(("data:", "#", "url(#")), (tag, name, value)
    assert page.open == []


def test_the_report_lies_beside_the_result_and_opens_offline(tmp_path):
    folder = write_run(tmp_path / "run", make_result(), {"tensors.ipynb": [code("x = 1")]})

    path = write_report(folder)

    assert path == folder / "report.html"
    page = Page(path.read_text(encoding="utf-8"))
    assert page.source.startswith("<!DOCTYPE html>")
    assert_opens_offline(page)
    assert sorted(file.name for file in folder.iterdir()) == [
        "report.html",
        "result.json",
        "tensors.ipynb",
    ]


def test_the_head_says_what_came_of_it_when_and_in_what_time(tmp_path):
    page = report_of(tmp_path)
    assert "labkit run · 23 November 2026, 06:10 UTC · took 12.5 s" in page.text
    assert "tensors passed" in page.text
    assert "2 of 2 cells ran, 1 of 1 claim held, 1 of 1 check passed." in page.text


def test_the_machine_and_the_way_of_measuring_are_told(tmp_path):
    text = report_of(tmp_path).source
    for name, value in (
        ("Ran on", "cpu"),
        ("Devices", "AMD EPYC (cpu)"),
        ("Memory", "8.0 GiB"),
        ("Python", "3.12.1"),
        ("PyTorch", "2.13.0+cpu"),
        ("Process memory", "the kernel&#x27;s high-water mark"),
        ("CUDA memory", "not measured"),
        ("Cost of measuring", "2 ms a cell"),
    ):
        assert f"<dt>{name}</dt><dd>{value}</dd>" in text


@pytest.mark.parametrize(
    ("statuses", "verdict"),
    [
        ([], "No notebook was run"),
        (["passed"], "n0 passed"),
        (["passed", "passed"], "n0 and n1 passed"),
        (["passed"] * 3, "n0, n1 and n2 passed"),
        (["passed"] * 5, "All 5 notebooks passed"),
        (["failed"], "n0 failed"),
        (["timed_out"], "n0 timed out"),
        (["died"], "n0 died"),
        (["invalid"], "n0 could not be read"),
        (["interrupted"], "n0 was interrupted"),
        (["running"], "n0 was cut short"),
        (["died", "not_run"], "None of the 2 notebooks passed"),
        (["passed", "failed", "not_run"], "2 of 3 notebooks did not pass"),
    ],
    ids=lambda value: value if isinstance(value, str) else ",".join(value) or "none",
)
def test_the_verdict_is_one_line(statuses, verdict):
    notebooks = [make_notebook(f"n{place}", status) for place, status in enumerate(statuses)]
    result = {**make_result(), "notebooks": notebooks}
    assert describe_verdict(parse_run(result, Path("result.json"))) == verdict


STATUSES = ["passed", "failed", "died", "timed_out", "invalid", "interrupted", "not_run", "running"]


@pytest.mark.parametrize("status", STATUSES)
def test_every_status_makes_a_page(tmp_path, status):
    page = report_of(tmp_path, make_notebook(status=status, cells=[make_cell(0, status)]))
    assert status.replace("_", " ") in page.text
    assert ("What did not hold" in page.text) == (status not in ("passed", "not_run"))


def test_failures_come_first_with_source_traceback_and_what_to_try(tmp_path):
    error = {
        "kind": "out_of_memory",
        "what": "cell 2 of 2 raised OutOfMemoryError: 20 GiB",
        "name": "OutOfMemoryError",
        "cell_index": 3,
        "source": "x = torch.empty(5 << 30)",
        "traceback": "Traceback\n  line 1\nOutOfMemoryError",
        "hint": "try a smaller `batch`",
        "balance": {"total_bytes": 80 * 2**30, "free_bytes": None},
    }
    page = report_of(
        tmp_path,
        make_notebook("fine"),
        make_notebook("full", "failed", error=error, cells=[make_cell(1), make_cell(3, "failed")]),
    )
    text = page.text
    assert text.index("What did not hold") < text.index("The machine") < text.index("fine")
    assert "<p>try a smaller <code>batch</code></p>" in page.source
    assert "<dt>Balance</dt><dd>asked unknown<br>total 80.0 GiB<br>free unknown<br>" in page.source
    assert "x = torch.empty(5 &lt;&lt; 30)" in page.source
    assert "Traceback\n  line 1\nOutOfMemoryError" in text
    assert 'href="#n1-c3"' in page.source


def test_failed_claims_and_checks_are_failures_and_skipped_ones_have_their_reason(tmp_path):
    page = report_of(
        tmp_path,
        make_notebook(
            status="failed",
            claims=[
                {"statement": "`a` is b", "held": False, "skipped": None},
                {"statement": "streams overlap", "held": None, "skipped": "needs cuda"},
                {"statement": "it holds", "held": True, "skipped": None},
            ],
            checks=[{"name": "tensors.center", "status": "wrong_shape"}],
        ),
    )
    failures = page.text[: page.text.index("The machine")]
    assert "Claim does not hold: a is b" in failures
    assert "Check did not pass: tensors.center (wrong shape)" in failures
    assert "streams overlap (needs cuda)" in page.text
    assert "1 claim did not hold" in page.text
    assert "1 of 3 claims held, 1 did not, 1 skipped, 0 of 1 check passed." in page.text


def test_a_run_that_was_cut_short_says_so(tmp_path):
    page = report_of(tmp_path, make_notebook(status="running", seconds=None))
    assert "The run was cut short while it ran." in page.text


def test_unknown_is_said_and_never_drawn(tmp_path):
    cell = make_cell(0, seconds=None, memory=None, output_bytes=None)
    notebook = make_notebook(
        cells=[cell], seconds=None, startup_seconds=None, timeline=[], executed=None
    )
    page = report_of(
        tmp_path, notebook, seconds=None, started_at=None, environment={}, measuring={}
    )
    assert "svg" not in page.tags
    assert "It took not measured" in page.text
    assert "The executed notebook was not kept." in page.text
    assert "<dt>Ran on</dt><dd>unknown</dd>" in page.source
    assert re.search(r"\b(None|null|nan)\b", page.text) is None


def test_cells_are_tabled_with_time_peak_change_and_output(tmp_path):
    memory = {"before_bytes": 300 * MIB, "peak_bytes": 400 * MIB, "after_bytes": 200 * MIB}
    cells = [
        make_cell(1),
        make_cell(2, "skipped", seconds=None, memory=None, output_bytes=0),
        make_cell(5, memory=memory, truncated=True, raised="ValueError"),
    ]
    text = report_of(tmp_path, make_notebook(cells=cells)).source
    first = "".join(
        f'<td class="n">{value}</td>' for value in ("250 ms", "300.0 MiB", "+20.0 MiB", "2.0 KiB")
    )
    last = "".join(
        f'<td class="n">{value}</td>'
        for value in ("250 ms", "400.0 MiB", "−100.0 MiB", "2.0 KiB (cut)")
    )
    assert f'<td><span class="good">passed</span></td>{first}' in text
    assert f'<td><span class="good">passed</span> (raised ValueError)</td>{last}' in text
    assert '<a href="#n0-c2">tagged</a>' in text  # a skipped cell has no number
    assert '<a href="#n0-c5">2</a>' in text


def test_cuda_shows_only_where_it_was_measured(tmp_path):
    cuda = [
        {"device": "cuda:0", "before_bytes": 0, "peak_bytes": 64 * MIB, "after_bytes": 1},
        {"device": "cuda:1", "before_bytes": 0, "peak_bytes": None, "after_bytes": 1},
    ]
    with_cuda = make_notebook(
        cells=[make_cell(0, cuda=cuda)], timeline=[[0, MIB, 0], [1, MIB, 8 * MIB]]
    )
    page = report_of(tmp_path / "cuda", with_cuda, executed={"tensors.ipynb": [code("x")]})
    assert "The most is allocated in cell 1: 64.0 MiB." in page.text
    assert "cuda:0 peak 64.0 MiB, cuda:1 peak unknown" in page.text
    assert "reserved on CUDA" in page.text
    assert "CUDA per cell" not in report_of(tmp_path / "cpu").text


def test_plots_have_words_for_those_who_do_not_see_them(tmp_path):
    page = report_of(tmp_path)
    labels = [value for name, value in page.attributes if name == "aria-label"]
    assert labels == [
        "Time per cell. The slowest is cell 1 with 250 ms; the median is 250 ms.",
        "Memory per cell. The process is largest in cell 1, with 300.0 MiB.",
        "Memory over the seconds of the run. 3 samples from the run’s start to its end.",
    ]


def test_the_page_is_accessible_in_structure(tmp_path):
    page = report_of(tmp_path, executed={"tensors.ipynb": [markdown("# Start"), code("x = 1")]})
    assert page.tags.count("h1") == 1
    levels = [int(tag[1]) for tag in page.tags if re.fullmatch("h[1-6]", tag)]
    assert all(after - before <= 1 for before, after in itertools.pairwise(levels))
    assert page.tags.count("caption") == page.tags.count("table")
    assert ("lang", "en") in page.attributes
    ids = [value for name, value in page.attributes if name == "id"]
    assert len(ids) == len(set(ids))
    targets = {value[1:] for tag, _, value in page.loads if tag == "a" and value[:1] == "#"}
    assert targets - set(ids) <= {"n0-c3"}  # a cell that the small notebook above does not have


def test_light_dark_and_paper_are_all_thought_of(tmp_path):
    source = report_of(tmp_path).source
    assert "prefers-color-scheme: dark" in source
    assert "@media print" in source
    assert '<meta name="color-scheme" content="light dark">' in source


def test_only_the_pages_own_script_may_run(tmp_path):
    page = report_of(tmp_path)
    policy = next(value for name, value in page.attributes if "default-src" in value)
    assert policy.startswith("default-src 'none'; img-src data:; style-src 'unsafe-inline'; ")
    assert "script-src 'sha256-" in policy
    assert page.tags.count("script") == 1


HOSTILE = '"><script>alert(1)</script><img src=x onerror=alert(2)>\0\x1b[31m\ud800'


def test_hostile_words_anywhere_stay_words(tmp_path):
    cell = make_cell(0, first_line=HOSTILE, raised=HOSTILE)
    notebook = make_notebook(
        HOSTILE,
        HOSTILE,
        path=HOSTILE,
        cells=[cell],
        executed="x.ipynb",
        claims=[{"statement": HOSTILE, "held": False, "skipped": HOSTILE}],
        checks=[{"name": HOSTILE, "status": HOSTILE}],
        error={"what": HOSTILE, "source": HOSTILE, "traceback": HOSTILE, HOSTILE: HOSTILE},
    )
    outputs = [
        prints(HOSTILE),
        shows(text_html=HOSTILE),
        shows(text_plain=HOSTILE),
        shows(image_png=HOSTILE, text_plain=HOSTILE),
        shows(image_svg=HOSTILE),
        {"output_type": "error", "ename": HOSTILE, "evalue": HOSTILE, "traceback": [HOSTILE]},
    ]
    page = report_of(
        tmp_path,
        notebook,
        executed={"x.ipynb": [markdown(f"# {HOSTILE}"), code(HOSTILE, *outputs)]},
        status=HOSTILE,
        started_at=HOSTILE,
        environment=dict.fromkeys(("labkit", "python", "platform", "device"), HOSTILE),
        measuring={"how": {"process": HOSTILE}},
    )
    assert page.tags.count("script") == 1
    assert [name for name, _ in page.attributes if name.startswith("on")] == []
    assert_opens_offline(page)
    assert "\0" not in page.source


def test_unicode_comes_through(tmp_path):
    words = "Ähre 数 🜁 עברית"
    page = report_of(
        tmp_path,
        make_notebook(words, executed="n.ipynb"),
        executed={"n.ipynb": [code(f"# {words}", prints(words))]},
    )
    assert page.text.count(words) >= 5


def test_an_executed_notebook_is_looked_for_in_the_run_folder_alone(tmp_path):
    write_run(tmp_path / "other", make_result(), {"secret.ipynb": [code("secret = 1")]})
    notebook = make_notebook(executed="../other/secret.ipynb")
    page = report_of(tmp_path / "run", notebook)
    assert "secret = 1" not in page.text
    assert "The executed notebook secret.ipynb cannot be read." in page.text


def _flood(index: int) -> list[dict]:
    noise = random.Random(index).randbytes(120_000)
    table = "<table>" + "<tr><td style='color: red'>1</td></tr>" * 2000 + "</table>"
    return [
        prints("a line of text\n" * 20_000),
        shows(text_html=table, text_plain="table"),
        shows(image_png=base64.b64encode(noise).decode(), text_plain="<Figure>"),
    ]


@pytest.mark.slow
def test_a_notebook_of_200_cells_that_flood_is_reported_small_and_soon(tmp_path):
    cells = [make_cell(index, seconds=0.01 * index) for index in range(200)]
    timeline = [[0.1 * number, number * MIB, number * MIB] for number in range(600)]
    folder = write_run(
        tmp_path,
        make_result(make_notebook(cells=cells, timeline=timeline)),
        {"tensors.ipynb": [code(f"x = {index}", *_flood(index)) for index in range(200)]},
    )
    started = time.perf_counter()

    path = write_report(folder)

    # It takes under 2 s on a machine that does nothing else; a test machine may do much else.
    assert time.perf_counter() - started < 60
    assert path.stat().st_size < 3_000_000
    page = Page(path.read_text(encoding="utf-8"))
    assert re.search(r"image/png of 156\.\d KiB is left out to keep this page small", page.text)
    assert "200 cells with what they showed" in page.text
    assert_opens_offline(page)


@pytest.mark.slow
def test_thousands_of_cells_keep_the_page_small(tmp_path):
    cells = [make_cell(index, first_line="é" * 200) for index in range(6000)]
    claims = [{"statement": "s" * 5000, "held": True, "skipped": None}] * 6000
    executed = {"tensors.ipynb": [code("x" * 3000, prints("y" * 3000)) for _ in range(6000)]}
    report_of(tmp_path, make_notebook(cells=cells, claims=claims), executed=executed)
    assert (tmp_path / "report.html").stat().st_size < 3_000_000
    text = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert "The 1,000 slowest of 6,000 cells." in text
    assert "5,000 more claims in result.json" in text
    assert "5,000 more cells in tensors.ipynb" in text


def test_a_page_that_cannot_be_written_is_named_and_leaves_nothing(tmp_path):
    (tmp_path / "report.html").mkdir()
    with pytest.raises(LabkitError, match=r"report\.html cannot be written"):
        write_page(tmp_path / "report.html", "page")
    assert [path.name for path in tmp_path.iterdir()] == ["report.html"]


def test_counts_leave_out_what_a_notebook_does_not_have():
    assert describe_counts([]) == "0 of 0 cells ran."


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("2026-01-02T03:04:05Z", "2 January 2026, 03:04 UTC"),
        ("2026-01-02T03:04:05+02:00", "2 January 2026, 01:04 UTC"),
        ("2026-01-02T03:04:05", "2 January 2026, 03:04 UTC"),
        ("yesterday", "yesterday"),
        (None, ""),
    ],
    ids=["Z", "offset", "naive", "words", "unknown"],
)
def test_moments_are_written_in_utc(text, shown):
    assert format_moment(text) == shown
