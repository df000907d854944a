"""Errors say what, why and what next, and carry the promised exit codes."""

from __future__ import annotations

import traceback

import pytest

from labkit.errors import (
    DeviceMissingError,
    EngineError,
    ExitCode,
    LabkitError,
    TimedOutError,
    UsageError,
    describe_error,
    format_error,
)


@pytest.mark.parametrize(
    ("kind", "code"),
    [
        pytest.param(LabkitError, 1, id="failed"),
        pytest.param(UsageError, 2, id="usage"),
        pytest.param(DeviceMissingError, 3, id="device missing"),
        pytest.param(TimedOutError, 4, id="timeout"),
        pytest.param(EngineError, 5, id="engine"),
    ],
)
def test_each_kind_has_its_promised_exit_code(kind, code):
    assert kind("it failed").exit_code == code


def test_the_two_codes_that_no_error_has():
    assert (ExitCode.OK, ExitCode.INTERRUPTED) == (0, 130)


@pytest.mark.parametrize(
    ("error", "text"),
    [
        pytest.param(LabkitError("port 80 is taken"), "error: port 80 is taken", id="what alone"),
        pytest.param(
            UsageError("no lab named tensor", cause="the labs are: tensors", fix="make run"),
            "error: no lab named tensor\n  cause: the labs are: tensors\n  try: make run",
            id="all three",
        ),
        pytest.param(LabkitError("it", fix="make up"), "error: it\n  try: make up", id="no cause"),
    ],
)
def test_an_error_as_a_person_reads_it(error, text):
    assert format_error(error) == text


def test_an_error_as_json_prints_it():
    error = EngineError("no engine", cause="none is installed", fix="make up RUNTIME=local")
    assert describe_error(error) == {
        "what": "no engine",
        "cause": "none is installed",
        "fix": "make up RUNTIME=local",
        "exit_code": 5,
    }


def test_what_is_not_known_is_null():
    assert describe_error(LabkitError("it"))["cause"] is None
    assert describe_error(LabkitError("it"))["fix"] is None


def test_a_traceback_tells_the_cause_and_the_next_command_too():
    error = UsageError("no lab 'tensor'", cause="the labs are: tensors", fix="labkit run tensors")

    assert traceback.format_exception_only(error) == [
        "labkit.errors.UsageError: no lab 'tensor'\n"
        "  cause: the labs are: tensors\n"
        "  try: labkit run tensors\n"
    ]
