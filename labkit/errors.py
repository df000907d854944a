"""The errors labkit raises on purpose, and the exit codes they end a command with.

Every error says what failed (with the value), the likely cause, and the exact next command.
"""

from __future__ import annotations

from enum import IntEnum


class ExitCode(IntEnum):
    """What a labkit command's exit status means."""

    OK = 0
    FAILED = 1  # a lab, a claim or a check failed
    USAGE = 2  # a bad argument, name, port or folder
    DEVICE_MISSING = 3  # a device that was asked for by name is not there
    TIMEOUT = 4
    ENGINE = 5  # the container engine, the driver stack or the environment is unusable
    INTERRUPTED = 130


class LabkitError(Exception):
    """Something failed in a way that labkit can explain.

    ``what`` failed, with the value; its likely ``cause``; and ``fix``, the exact next command.
    """

    exit_code = ExitCode.FAILED

    def __init__(self, what: str, *, cause: str | None = None, fix: str | None = None) -> None:
        super().__init__(what)
        self.what = what
        self.cause = cause
        self.fix = fix

    def __str__(self) -> str:
        # In a notebook or a script only the traceback shows the cause and the next command.
        lines = [self.what]
        if self.cause:
            lines.append(f"  cause: {self.cause}")
        if self.fix:
            lines.append(f"  try: {self.fix}")
        return "\n".join(lines)


class UsageError(LabkitError):
    """An invalid request: a wrong name, port or folder."""

    exit_code = ExitCode.USAGE


class DeviceMissingError(LabkitError):
    """A device that was asked for by name is not on this machine."""

    exit_code = ExitCode.DEVICE_MISSING


class TimedOutError(LabkitError):
    """Something took longer than its limit."""

    exit_code = ExitCode.TIMEOUT


class EngineError(LabkitError):
    """The engine, the driver stack or the environment below the lab cannot be used."""

    exit_code = ExitCode.ENGINE


def format_error(error: LabkitError) -> str:
    """The error for a person: what failed, cause and next command, one line each.

    >>> print(format_error(LabkitError("port 80 is taken", fix="make up PORT=8889")))
    error: port 80 is taken
      try: make up PORT=8889
    """
    return f"error: {error}"


def describe_error(error: LabkitError) -> dict[str, object]:
    """The error as ``--json`` prints it, under the key ``error``."""
    return {
        "what": error.what,
        "cause": error.cause,
        "fix": error.fix,
        "exit_code": int(error.exit_code),
    }
