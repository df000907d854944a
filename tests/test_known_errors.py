"""Each known error text gives exactly its error; several in one log are ranked by cause."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest

from labkit.host.distribution import Distribution
from labkit.host.packages import Fix
from labkit.known_errors import KNOWN_ERRORS
from labkit.known_errors.catalog import read_catalogs
from labkit.known_errors.match import explain_text
from labkit.known_errors.model import CERTAINTIES, KnownError
from labkit.known_errors.page import format_page
from tests.fakes.error_texts import ORDINARY
from tests.snapshots import RENEW_VARIABLE


def names(text):
    """The errors found in the text, in their ranking."""
    return [found.error.name for found in explain_text(text).found]


# pytest takes milliseconds for each test: those that hold for each entry of the catalogs are one
# test, which lists the entries that break it.
SAMPLES = [(error.name, text) for error in KNOWN_ERRORS for text in error.samples]


def is_found_however_pasted(name, text):
    log = f"step 1 of 9\r\n\x1b[31mboth of these lines are harmless\x1b[0m\r\n{text}\r\nend"
    wrapped = text if "\n" in text or "nvrm" in text.lower() else text.replace(" ", "\n", 1)
    # Wrapped, it may be missed, but is never taken for another one.
    return names(text) == names(log) == [name] and names(f"> {wrapped}") in ([name], [])


@pytest.mark.parametrize("part", range(4))
def test_each_sample_gives_exactly_its_known_error_however_it_is_pasted(part):
    wrong = [each for each in SAMPLES[part::4] if not is_found_however_pasted(*each)]
    assert wrong == []


def test_a_text_that_only_resembles_a_known_error_is_not_taken_for_it():
    unlike = [(error.name, text) for error in KNOWN_ERRORS for text in error.unlike]
    assert [(name, text) for name, text in unlike if name in names(text)] == []


def test_names_are_single_and_what_a_known_error_brings_is_known():
    known = [error.name for error in KNOWN_ERRORS]
    assert len(set(known)) == len(known)
    assert {name for error in KNOWN_ERRORS for name in error.brings} <= set(known)


def test_no_known_error_brings_itself_about():
    left = {error.name: set(error.brings) for error in KNOWN_ERRORS}
    while roots := set(left) - set().union(*left.values()):
        left = {name: brings for name, brings in left.items() if name not in roots}
    assert left == {}  # what is left stands in a circle


def says_all_it_must(error):
    return (
        error.cause
        and not error.cause.endswith(".")
        and error.fix.anywhere
        and error.certainty in CERTAINTIES
        and re.fullmatch(r"[\w.-]+/[\w./-]+(?:#\d+)?", error.source)
        and error.samples
        and error.unlike
    )


def test_each_known_error_says_all_it_must():
    assert [error.name for error in KNOWN_ERRORS if not says_all_it_must(error)] == []


LIBRARY_LOG = """\
starting the lab
Failed to initialize NVML: Driver/library version mismatch
python train.py
RuntimeError: No CUDA GPUs are available
"""


@pytest.mark.parametrize(
    ("log", "ranked"),
    [
        pytest.param(
            LIBRARY_LOG, ["driver-library-mismatch", "torch-without-driver"], id="driver then torch"
        ),
        pytest.param(
            "No matching distribution found for torch\n[Errno -3] Temporary failure in name "
            "resolution",
            ["no-name-server", "no-build"],
            id="the cause stands below its symptom",
        ),
        pytest.param(
            "RuntimeError: No CUDA GPUs are available\n"
            "NVIDIA-SMI has failed because it couldn't communicate with the NVIDIA driver.\n"
            "modprobe: ERROR: could not insert 'nvidia': Key was rejected by service",
            ["secure-boot", "driver-not-loaded", "torch-without-driver"],
            id="a chain of three",
        ),
        pytest.param(
            "DataLoader worker (pid(s) 12) exited unexpectedly\n"
            "unable to write to file </torch_1_2>: No space left on device (28)\n"
            "write /data/x: no space left on device",
            ["shared-memory-full", "disk-full", "worker-exited"],
            id="shared memory and a disk",
        ),
        pytest.param(
            "Invalid credentials\nlisten tcp: address already in use",
            ["port-taken", "token-rejected"],
            id="the surer one first",
        ),
    ],
)
def test_several_known_errors_are_ranked_by_which_causes_which(log, ranked):
    assert names(log) == ranked


def test_a_symptom_names_its_cause():
    found = explain_text(LIBRARY_LOG).found
    assert [(each.line_number, each.caused_by) for each in found] == [
        (2, None),
        (4, "driver-library-mismatch"),
    ]


def test_the_line_is_quoted_whole():
    found = explain_text("one\n   two: No space left on device  \nthree").first
    assert (found.line_number, found.line) == (2, "two: No space left on device")


def test_a_very_long_line_is_cut_around_the_sign():
    found = explain_text("x" * 5000 + " No space left on device " + "y" * 5000).first
    assert len(found.line) <= 200


def test_a_long_line_with_the_known_error_far_out_shows_it():
    found = explain_text("x" * 5000 + " Cannot re-initialize CUDA in forked subprocess").first
    assert "Cannot re-initialize CUDA in forked subprocess" in found.line


@pytest.mark.parametrize(
    "text",
    [
        pytest.param("", id="nothing"),
        pytest.param("all is well\n[I ServerApp] Jupyter Server 2.17 is running\n", id="healthy"),
        pytest.param("\x00\ufffd\x1b[31m" * 50, id="garbage"),
        pytest.param("Could not resolve all dependencies of the crossword", id="near miss"),
        pytest.param("bash: unexpected EOF while looking for matching quote", id="a shell's EOF"),
    ],
)
def test_what_is_not_known_gives_no_cause(text):
    assert explain_text(text).found == ()
    assert explain_text(text).first is None


@pytest.mark.parametrize("log", ORDINARY.values(), ids=ORDINARY.keys())
def test_an_ordinary_log_gives_no_cause(log):
    assert names(log) == []


@pytest.mark.parametrize("page", ["CHANGELOG.md", "Makefile", "compose.yaml", "pyproject.toml"])
def test_our_own_pages_give_no_cause(page):
    assert names((Path(__file__).parents[1] / page).read_text(encoding="utf-8")) == []


def test_our_own_lessons_show_no_error_but_those_they_teach():
    folder = Path(__file__).parents[1] / "labs"
    found = {
        path.relative_to(folder).as_posix(): names(path.read_text(encoding="utf-8"))
        for path in folder.rglob("*.py")
    }
    assert {path: errors for path, errors in found.items() if errors} == {}


def test_the_fix_is_the_one_of_the_distribution():
    text = 'could not select device driver "" with capabilities: [[gpu]]'
    found = explain_text(text)
    fedora = found.describe(Distribution("Fedora 43", "fedora"))["found"][0]
    assert fedora["fix"].startswith("sudo dnf install nvidia-container-toolkit && ")
    assert found.describe()["found"][0]["fix"].startswith("install the NVIDIA Container Toolkit")
    assert sorted(fedora["fix_elsewhere"]) == ["arch", "debian", "fedora", "suse"]


def test_the_page_of_known_errors_is_current():
    page = Path(__file__).parents[1] / "docs" / "known-errors.md"
    text = format_page(read_catalogs())
    if os.environ.get(RENEW_VARIABLE):
        page.write_text(text, encoding="utf-8")
    assert page.read_text("utf-8") == text, "renew it with: pytest --renew-snapshots"


def test_a_known_error_of_ones_own_serves_too():
    error = KnownError("tea", (r"teapot \d+",), "it is a teapot", Fix("make coffee"))
    found = explain_text("I am\na teapot   418", (error,)).first
    assert (found.error.name, found.line_number) == ("tea", 2)
