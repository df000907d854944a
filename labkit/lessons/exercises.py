"""Defines an exercise: its cases, hints, restrictions, and known wrong answers."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import KW_ONLY, dataclass
from typing import Any, Final

PASSED, NOT_STARTED, RAISED = "passed", "not_started", "raised"
WRONG_TYPE, WRONG_SHAPE, WRONG_DTYPE = "wrong_type", "wrong_shape", "wrong_dtype"
WRONG_VALUES, CHANGED_ARGUMENT, FORBIDDEN = "wrong_values", "changed_argument", "forbidden"
# No result within the limit; and: the cell that defines the function failed, so it is an older one.
TIMED_OUT, NOT_RUN = "timed_out", "not_run"

STATUSES = (
    PASSED,
    NOT_STARTED,
    RAISED,
    WRONG_TYPE,
    WRONG_SHAPE,
    WRONG_DTYPE,
    WRONG_VALUES,
    CHANGED_ARGUMENT,
    FORBIDDEN,
    TIMED_OUT,
    NOT_RUN,
)
# What an exercise can forbid: a loop over the values, a derivative without autograd, and one by
# autograd. The lesson's text must say so; ``calls.py`` finds the violations.
LOOP, BY_HAND, AUTOGRAD = "loop", "by_hand", "autograd"
RESTRICTIONS = (LOOP, BY_HAND, AUTOGRAD)


class _Unset:
    def __repr__(self) -> str:
        return "UNSET"


UNSET: Final = _Unset()


class NotThisWay(str):
    """A judge's sentence for an answer with the right values and a forbidden method.

    >>> NotThisWay("they are a copy")
    'the values are right, but they are a copy'
    """

    __slots__ = ()

    def __new__(cls, but: str) -> NotThisWay:
        """Makes the sentence from the part after "but"."""
        return super().__new__(cls, f"the values are right, but {but}")


Judge = Callable[[Any, tuple[Any, ...]], "str | None"]


@dataclass(frozen=True)
class Case:
    """One call of the learner's function, and the result that it must give.

    ``expected`` is the value (a tensor, number, string, or tuple, list or dict of them), or a
    function of the same arguments that returns it. ``judge(got, arguments)`` runs after this
    comparison, or without one: it returns None for a right answer, else a sentence that says
    what is wrong (NotThisWay if the values are right and the method is not). Tensors are
    compared with torch.testing's tolerances for their dtype, or with ``rtol`` and ``atol``.
    If ``raises`` is given, the call must raise that instead, and the judge is given None.
    With ``ranks``, ``harness(function, *arguments)`` runs in so many processes of one process
    group, and the answer is the list of what it returns, by rank.
    """

    arguments: tuple[Any, ...]
    expected: object = UNSET
    note: str = ""
    _: KW_ONLY
    rtol: float | None = None
    atol: float | None = None
    judge: Judge | None = None
    keeps_arguments: bool = True
    raises: type[Exception] | None = None
    ranks: int | None = None
    harness: Callable[..., object] | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.arguments, tuple):
            raise TypeError(f"a Case takes its arguments as a tuple, not {self.arguments!r}")
        if self.expected is UNSET and self.judge is None and self.raises is None:
            raise TypeError("a Case needs an expected value, a judge or an exception")


@dataclass(frozen=True)
class WrongAnswer:
    """A plausible wrong answer and the verdict that it must get; the gate checks this.

    ``description`` continues "an answer that": a learner whose answer does the same sees it.
    ``hint`` is the place, from 0, of the exercise's hint that helps here, or a hint of its own.
    """

    description: str
    function: Callable[..., object]
    verdict: str
    hint: int | str = 0

    def __post_init__(self) -> None:
        if self.verdict not in STATUSES or self.verdict == PASSED:
            raise ValueError(f"{self.verdict!r} is not a verdict for a wrong answer")


@dataclass(frozen=True)
class Exercise:
    """An exercise that a lab's ``exercises.py`` defines; its full name is ``<lab>.<name>``.

    ``sized(n)`` makes arguments with n values along each dimension that a loop could go through;
    the restriction "loop" needs it.
    """

    name: str
    title: str
    hints: tuple[str, ...]
    cases: Callable[[], Iterable[Case]]
    restrictions: tuple[str, ...] = ()
    wrong_answers: tuple[WrongAnswer, ...] = ()
    sized: Callable[[int], tuple[Any, ...]] | None = None

    def __post_init__(self) -> None:
        unknown = [one for one in self.restrictions if one not in RESTRICTIONS]
        if unknown:
            raise ValueError(f"{self.name}: unknown restriction {unknown[0]!r}")
        if LOOP in self.restrictions and self.sized is None:
            raise ValueError(f"{self.name}: the restriction 'loop' needs sized=")


@dataclass(frozen=True)
class Verdict:
    """The result of a check: the status, a sentence, and, if known, the expected and got values.

    ``mistake`` describes the known wrong answer that does the same, and ``hint`` is its hint.
    """

    exercise: str
    status: str
    message: str
    case: str | None = None
    expected: str | None = None
    got: str | None = None
    mistake: str | None = None
    hint: int | str = 0

    @property
    def passed(self) -> bool:
        """True if the answer is right and breaks no restriction."""
        return self.status == PASSED
