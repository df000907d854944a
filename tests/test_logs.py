"""A failed step quotes the end of its log, names the file, and says what is known of the cause."""

from __future__ import annotations

import pytest

from labkit.errors import EngineError, ExitCode, format_error
from labkit.launch.progress import QUOTED_LINES, StepLog, explain_failure


def test_the_whole_output_is_in_the_file(tmp_path):
    path = tmp_path / "logs" / "build.log"
    with StepLog(path) as log:
        for number in range(500):
            log.write(f"line {number}")
        assert path.read_text().endswith("line 499\n")
    assert len(path.read_text().splitlines()) == 500


def test_a_full_disk_does_not_hide_what_the_step_says(tmp_path):
    path = tmp_path / "log"
    path.symlink_to("/dev/full")
    with StepLog(path) as log:
        log.write("ERROR: no space left on device")
        error = log.failure("installing lab failed", "make up")
    assert "  | ERROR: no space left on device" in error.what
    assert error.cause.startswith("the disk is full")


def test_a_failure_quotes_no_control_characters(tmp_path):
    error = explain_failure(
        "it failed", ["a\x1b[31mred \x1b]0;title\x07b\u202e\x07"], tmp_path, "make up"
    )
    assert error.what.splitlines()[1] == r"  | ared b\u202e\x07"


def test_a_new_step_starts_a_new_file(tmp_path):
    path = tmp_path / "build.log"
    for word in ("first", "second"):
        with StepLog(path) as log:
            log.write(word)
    assert path.read_text() == "second\n"


def test_each_line_is_handed_on(tmp_path):
    seen = []
    with StepLog(tmp_path / "log", seen.append) as log:
        log.write("Collecting numpy")
    assert seen == ["Collecting numpy"]


def test_a_failure_as_a_person_reads_it(tmp_path):
    path = tmp_path / "install.log"
    with StepLog(path) as log:
        for line in ("Collecting numpy", "", "ERROR: it broke"):
            log.write(line)
        error = log.failure("installing lab failed", "make up")
    assert format_error(error) == (
        "error: installing lab failed\n"
        "  | Collecting numpy\n"
        "  | ERROR: it broke\n"
        f"  the whole log: {path}\n"
        "  try: make up"
    )
    assert error.exit_code == ExitCode.ENGINE


def test_only_the_end_is_quoted(tmp_path):
    lines = [f"line {number}" for number in range(100)]
    error = explain_failure("it failed", lines, tmp_path / "log", "make up")
    assert error.what.count("  | ") == QUOTED_LINES
    assert "line 88" in error.what
    assert "line 87\n" not in error.what


def test_a_program_that_said_nothing(tmp_path):
    error = explain_failure("it failed", [], tmp_path / "log", "make up")
    assert error.what == f"it failed (log: {tmp_path / 'log'})"
    assert (error.cause, error.fix) == (None, "make up")


@pytest.mark.parametrize(
    ("line", "cause"),
    [
        pytest.param(
            "write /var/lib/docker/tmp/x: no space left on device", "the disk is full", id="docker"
        ),
        pytest.param(
            "ERROR: Could not install packages due to an OSError: [Errno 28] No space left on "
            "device",
            "a file system that pip writes to is full",
            id="pip",
        ),
        pytest.param(
            "Failed to establish a new connection: [Errno -3] Temporary failure in name resolution",
            "name server",
            id="no DNS",
        ),
        pytest.param(
            "SSLError(SSLCertVerificationError(1, '[SSL: CERTIFICATE_VERIFY_FAILED] certificate "
            "verify failed: self signed certificate in certificate chain'))",
            "proxy",
            id="proxy",
        ),
        pytest.param(
            "ERROR: THESE PACKAGES DO NOT MATCH THE HASHES FROM THE REQUIREMENTS FILE.",
            "package",
            id="hashes",
        ),
        pytest.param(
            "ERROR: No matching distribution found for torch==2.13.0+cpu",
            "no such version",
            id="no build",
        ),
        pytest.param(
            "The virtual environment was not created successfully because ensurepip is not "
            "available.",
            "venv module",
            id="no venv",
        ),
    ],
)
def test_a_known_error_gives_cause_and_fix(tmp_path, line, cause):
    error = explain_failure("it failed", [line, *["after"] * 50], tmp_path / "log", "make up")
    assert isinstance(error, EngineError)
    assert cause in str(error.cause)
    assert error.fix not in (None, "make up")
