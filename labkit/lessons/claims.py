"""Claims: facts that a lesson states, and proves by running code in the same cell."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass

from labkit.errors import LabkitError
from labkit.lessons.folds import Fact, show_fact
from labkit.lessons.needs import missing_need
from labkit.lessons.value_repr import PLAIN_FUNCTIONS, format_value, same_value
from labkit.notebooks.result import CLAIM_MIME
from labkit.text import shorten


class ClaimFailed(LabkitError):
    """A claim of a lesson does not hold on this machine."""


@dataclass(frozen=True)
class ClaimResult:
    """The result of a claim; ``held`` is None if it was skipped, and ``reason`` says why."""

    statement: str
    held: bool | None
    skipped: str | None
    expected: str | None
    seen: str | None


def claim(
    statement: str,
    seen: object,
    expected: object = True,
    *,
    within: float | None = None,
    needs: str | None = None,
    shown: bool = False,
) -> None:
    """Shows that ``seen`` equals ``expected``; raises ClaimFailed if it does not.

    Tensors and arrays are compared by shape and values, not by dtype; other values by ``==``.
    ``within`` is an absolute tolerance. ``seen`` and ``expected`` may be functions without
    arguments, which are called for their values. If the machine lacks what ``needs`` names,
    they are not called, and the claim shows why.

    The claims of a cell that hold fold into one line with their count; ``shown`` keeps this one
    in sight.

    >>> claim("two and two make four", 2 + 2, 4)
    holds: two and two make four (seen 4)
    """
    __tracebackhide__ = True  # IPython hides such frames in a traceback
    skipped = missing_need(needs)
    if skipped:
        _settle(ClaimResult(statement, None, skipped, None, None), shown, needs)
        return
    wanted, error = _value_of(expected)
    got = None
    if error is None:
        got, error = _value_of(seen)
    wanted_text = format_value(wanted) + (f" within {within:g}" if within is not None else "")
    seen_text = format_value(got) if error is None else _describe(error)
    held = error is None and same_value(got, wanted, within)
    _settle(ClaimResult(statement, held, None, wanted_text, seen_text), shown, needs, error)


def claim_raises(
    statement: str,
    error: type[BaseException],
    call: Callable[[], object],
    *,
    match: str | None = None,
    needs: str | None = None,
    shown: bool = False,
) -> None:
    """Shows that ``call()`` raises ``error`` with ``match`` in its text; else raises ClaimFailed.

    The claim shows the exception's text, because learners will see it in their own code.
    """
    __tracebackhide__ = True  # IPython hides such frames in a traceback
    skipped = missing_need(needs)
    if skipped:
        _settle(ClaimResult(statement, None, skipped, None, None), shown, needs)
        return
    wanted = error.__name__ + (f" with {match!r} in its text" if match else "")
    raised: BaseException | None = None
    try:
        value = call()
    except error as caught:
        raised = caught
        held, seen = match is None or match in str(caught), _describe(caught)
    except Exception as caught:
        raised = caught
        held, seen = False, _describe(caught)
    else:
        held, seen = False, f"no error: it gave {format_value(value)}"
    _settle(ClaimResult(statement, held, None, wanted, seen), shown, needs, raised)


def _value_of(value: object) -> tuple[object, Exception | None]:
    # Only plain functions are called: a dtype, a class or a module is a value itself.
    if not isinstance(value, PLAIN_FUNCTIONS):
        return value, None
    try:
        return value(), None
    except Exception as error:
        return None, error


def _describe(error: BaseException) -> str:
    return shorten(f"{type(error).__name__}: {error}".strip(), 400)


def _settle(
    result: ClaimResult, shown: bool, need: str | None, error: BaseException | None = None
) -> None:
    __tracebackhide__ = True
    fact = Fact(result.statement, result.held, need, result.expected, result.seen, shown)
    show_fact(fact, CLAIM_MIME, asdict(result))
    if result.held is False:
        raise ClaimFailed(
            f"{result.statement}: expected {result.expected}, seen {result.seen}"
        ) from error
