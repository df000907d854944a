from __future__ import annotations

import contextlib
import functools
import sys
import threading
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from torch.autograd import forward_ad

from labkit.launch.server import wait_until
from labkit.lessons.calls import (
    call_with_limit,
    copy_arguments,
    find_violation,
    notice_slow_calls,
)
from labkit.lessons.checks import choose_hints, judge_function
from labkit.lessons.exercises import Case, Exercise, Verdict, WrongAnswer
from labkit.lessons.value_repr import find_difference

X = torch.tensor([[1.0, 2.0], [3.0, 6.0]])


def judge(
    function: Any, *cases: Case, restrictions: tuple[str, ...] = (), limit_seconds: float = 30
) -> Verdict:
    exercise = Exercise(
        "one", "One", ("a", "b"), lambda: cases, restrictions, sized=lambda n: (torch.ones(n, n),)
    )
    return judge_function(exercise, "lab.one", function, limit_seconds)


DOUBLED = Case((X,), X * 2, "a square")


@pytest.mark.parametrize(
    ("function", "status", "message"),
    [
        pytest.param(lambda x: x * 2, "passed", "right in the one case", id="right"),
        pytest.param(
            lambda x: x.sum(),
            "wrong_shape",
            "the answer must have the shape (2, 2), but has ()",
            id="shape",
        ),
        pytest.param(
            lambda x: x.double() * 2,
            "wrong_dtype",
            "the answer must have the dtype torch.float32, but has torch.float64",
            id="dtype",
        ),
        pytest.param(
            lambda x: x * torch.tensor([2.0, 2.5]),
            "wrong_values",
            "2 of 4 values differ; largest difference at [1, 1]: expected 12, got 15, off by 3",
            id="values",
        ),
        pytest.param(
            lambda x: torch.where(x == 2, float("nan"), x * 2),
            "wrong_values",
            "1 of 4 values differ; largest difference at [0, 1]: expected 4, got nan, off by nan",
            id="nan is furthest",
        ),
        pytest.param(
            lambda x: None,
            "wrong_type",
            "the answer is None: does every path of the function end in `return`?",
            id="nothing returned",
        ),
        pytest.param(
            lambda x: ...,
            "wrong_type",
            "the answer is `...`: the function still returns the placeholder",
            id="placeholder",
        ),
        pytest.param(
            lambda x: x.numpy() * 2,
            "wrong_type",
            "the answer must be a tensor of shape (2, 2), but is a NumPy array",
            id="array",
        ),
        pytest.param(
            torch.ones(2),
            "wrong_type",
            '`check` needs the function itself, as in `check("lab.one", f)`, but got a '
            "tensor of shape (2,)",
            id="no function",
        ),
    ],
)
def test_each_way_to_be_wrong_has_its_own_verdict(function: Any, status: str, message: str) -> None:
    verdict = judge(function, DOUBLED)

    assert (verdict.status, verdict.message) == (status, message)


def test_a_failing_verdict_tells_the_case_expected_and_got() -> None:
    verdict = judge(lambda x: x * 2 if len(x) > 1 else x, DOUBLED, Case((X[:1],), X[:1] * 2))

    assert verdict.case == "case 2 of 2"
    assert verdict.expected == "tensor([[2., 4.]])"
    assert verdict.got == "tensor([[1., 2.]])"


def test_the_case_is_named_by_its_note() -> None:
    assert judge(lambda x: x, DOUBLED).case == "case 1 of 1: a square"


@pytest.mark.parametrize(
    "error", [NotImplementedError("write your code here"), NotImplementedError()], ids=str
)
def test_the_stub_is_not_started(error: Exception) -> None:
    def stub(x: torch.Tensor) -> torch.Tensor:
        raise error

    verdict = judge(stub, DOUBLED)

    assert verdict.status == "not_started"


def test_torchs_own_not_implemented_is_an_exception_like_any_other() -> None:
    def answer(x: torch.Tensor) -> torch.Tensor:
        raise NotImplementedError("Could not run 'aten::foo' with arguments from the 'CPU'")

    assert judge(answer, DOUBLED).status == "raised"


def test_an_exception_names_type_text_and_the_learners_own_line() -> None:
    def answer(x: torch.Tensor) -> torch.Tensor:
        return inner(x)

    def inner(x: torch.Tensor) -> torch.Tensor:
        return x @ torch.ones(3)

    verdict = judge(answer, DOUBLED)

    line = inner.__code__.co_firstlineno + 1
    first, second = verdict.message.splitlines()
    assert verdict.status == "raised"
    assert first.startswith("RuntimeError: size mismatch")
    assert second == f"in line {line} of `inner`: `return x @ torch.ones(3)`"


def test_a_changed_argument_is_told_before_wrong_values() -> None:
    verdict = judge(lambda x: x.mul_(3), DOUBLED)

    assert verdict.status == "changed_argument"
    assert verdict.message == (
        "the function changed its argument number 1: it was tensor([[1., 2.], [3., 6.]]), "
        "and is now tensor([[ 3., 6.], [ 9., 18.]])"
    )


def test_a_case_may_let_its_arguments_change() -> None:
    case = Case((X,), X * 2, keeps_arguments=False)

    assert judge(lambda x: x.mul_(2), case).passed


def test_every_call_gets_arguments_of_its_own() -> None:
    case = Case((X,), X * 2, keeps_arguments=False)

    assert judge(lambda x: x.mul_(2), case, case).passed
    assert X[0, 0] == 1


@pytest.mark.parametrize(
    ("expected", "got", "status"),
    [
        pytest.param(2.0, 2, "passed", id="float expected, int got"),
        pytest.param(2, 2.0, "wrong_type", id="int expected, float got"),
        pytest.param(2.0, torch.tensor(2.0), "wrong_type", id="tensor for a number"),
        pytest.param(2.0, np.float64(2.0), "passed", id="numpy number"),
        pytest.param(2.0, 2.1, "wrong_values", id="number off"),
        pytest.param(float("nan"), float("nan"), "passed", id="nan"),
        pytest.param(1, True, "wrong_type", id="bool for int"),
        pytest.param(True, 1, "wrong_type", id="int for bool"),
        pytest.param(True, False, "wrong_values", id="bools"),
        pytest.param((2, 3), [2, 3], "passed", id="list for tuple"),
        pytest.param((2, 3), torch.Size([2, 3]), "passed", id="shape for tuple"),
        pytest.param((2, 3), (2,), "wrong_shape", id="too few"),
        pytest.param((2, 3), 5, "wrong_type", id="one for many"),
        pytest.param((X, 1), (X + 1, 1), "wrong_values", id="tensor in a tuple"),
        pytest.param({"a": 1}, {"a": 2}, "wrong_values", id="dict"),
        pytest.param({"a": 1}, {"b": 1}, "wrong_values", id="keys"),
        pytest.param({"a": 1}, 1, "wrong_type", id="no dict"),
        pytest.param("cpu", "cuda", "wrong_values", id="text"),
        pytest.param(torch.float32, torch.float64, "wrong_values", id="dtype as value"),
        pytest.param(torch.tensor([1 + 1j]), torch.tensor([1 - 1j]), "wrong_values", id="complex"),
        pytest.param(torch.tensor([True]), torch.tensor([False]), "wrong_values", id="bool tensor"),
        pytest.param(torch.empty(0, 3), torch.empty(0, 3), "passed", id="empty"),
    ],
)
def test_answers_of_every_kind_are_compared(expected: object, got: object, status: str) -> None:
    assert judge(lambda: got, Case((), expected)).status == status


def test_a_difference_inside_says_where() -> None:
    verdict = judge(lambda: (X, {"b": 2.5}), Case((), (X, {"b": 2.0})))

    assert verdict.message == (
        "in the answer[1]['b'], the value differs: expected 2.0, got 2.5, off by 0.5"
    )


def test_tolerances_are_those_of_the_case() -> None:
    near = X + 0.01

    assert judge(lambda: near, Case((), X)).status == "wrong_values"
    assert judge(lambda: near, Case((), X, atol=0.1)).passed
    assert judge(lambda: 3, Case((), 2, atol=1)).passed


def test_expected_may_be_a_function_of_the_arguments() -> None:
    assert judge(lambda x: x * 2, Case((X,), lambda x: x + x)).passed


@pytest.mark.parametrize(
    ("complaint", "status"), [(None, "passed"), ("it is a copy", "wrong_values")], ids=str
)
def test_a_judge_decides_on_properties(complaint: str | None, status: str) -> None:
    verdict = judge(lambda x: x, Case((X,), judge=lambda got, arguments: complaint))

    assert verdict.status == status
    assert complaint is None or verdict.message == complaint


def test_a_judge_sees_the_very_arguments_of_the_call() -> None:
    def shares(got: torch.Tensor, arguments: tuple[torch.Tensor]) -> str | None:
        return None if got.data_ptr() == arguments[0].data_ptr() else "it shares no memory"

    assert judge(lambda x: x.view(-1), Case((X,), judge=shares)).passed
    assert judge(lambda x: x.flatten().clone(), Case((X,), judge=shares)).status == "wrong_values"


def test_a_judge_that_cannot_look_means_a_wrong_type() -> None:
    verdict = judge(lambda x: 3, Case((X,), judge=lambda got, arguments: got.grad))

    assert verdict.status == "wrong_type"
    assert verdict.message.startswith("the answer is an int, which cannot be what was asked for")


@pytest.mark.parametrize(
    "got",
    [X.to_sparse(), X.to("meta")],
    ids=["sparse", "no data"],
)
def test_a_tensor_of_a_strange_kind_gets_a_verdict_too(got: torch.Tensor) -> None:
    assert judge(lambda: got, Case((), X)).status == "wrong_type"


def test_judging_leaves_the_callers_random_state_and_defaults() -> None:
    torch.manual_seed(5)
    before = torch.get_rng_state()
    torch.set_default_dtype(torch.float64)
    try:
        verdict = judge(lambda: torch.rand(3), Case((), lambda: torch.rand(3) * 0))
        assert torch.get_default_dtype() == torch.float64
    finally:
        torch.set_default_dtype(torch.float32)

    assert "float64" not in (verdict.got or "")
    assert torch.equal(torch.get_rng_state(), before)


def test_the_same_random_numbers_come_in_every_judgement() -> None:
    draw = Case((), torch.zeros(3))

    assert judge(lambda: torch.rand(3), draw).got == judge(lambda: torch.rand(3), draw).got


def test_judging_works_with_gradients_turned_off_around_it() -> None:
    def slope(x: torch.Tensor) -> torch.Tensor:
        (gradient,) = torch.autograd.grad((x * x).sum(), x)
        return gradient

    with torch.no_grad():
        verdict = judge(slope, Case((torch.ones(2, requires_grad=True),), torch.full((2,), 2.0)))
    assert verdict.passed


def test_copies_keep_what_an_exercise_may_look_at() -> None:
    base = torch.arange(6.0)
    leaf = torch.ones(2, requires_grad=True)
    leaf.grad = torch.full((2,), 7.0)
    arguments = (base, base.view(2, 3).T, leaf, leaf * 2, [base], torch.Generator(), len)

    copied = copy_arguments(arguments)

    assert copied[0].data_ptr() != base.data_ptr()
    assert copied[1].stride() == (1, 3)
    assert copied[1].data_ptr() == copied[0].data_ptr()
    assert copied[2].grad.tolist() == [7.0, 7.0] and copied[2].is_leaf
    assert copied[3].requires_grad and copied[3].tolist() == [2.0, 2.0]
    assert copied[4][0] is copied[0]
    assert copied[6] is len


def helper_with_loop(x: torch.Tensor) -> torch.Tensor:
    return torch.stack([row * 2 for row in x])


def calls_helper(x: torch.Tensor) -> torch.Tensor:
    return helper_with_loop(x)


def with_while(x: torch.Tensor) -> torch.Tensor:
    index = 0
    while index < len(x):
        index += 1
    return x * 2


def with_map(x: torch.Tensor) -> torch.Tensor:
    return torch.stack(list(map(torch.clone, x))) * 2


def with_recursion(x: torch.Tensor) -> torch.Tensor:
    return torch.cat([x[:1] * 2, with_recursion(x[1:])]) if len(x) else x


def with_lists(x: torch.Tensor) -> torch.Tensor:
    return torch.tensor([[2 * value for value in row] for row in x.tolist()])


class Answer:
    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        return helper_with_loop(x)


def find_loop(function: Any) -> str | None:
    exercise = Exercise("one", "One", (), list, ("loop",), sized=lambda n: (torch.ones(n, n),))
    return find_violation(exercise, function)


@pytest.mark.parametrize(
    "function",
    [
        calls_helper,
        with_while,
        with_map,
        with_recursion,
        with_lists,
        pytest.param(functools.partial(calls_helper), id="partial"),
        pytest.param(Answer(), id="object"),
        pytest.param(lambda x: sum(row for row in x), id="generator"),
    ],
)
def test_a_loop_over_the_values_is_found_however_it_is_written(function: Any) -> None:
    found = find_loop(function)

    assert found is not None and found.startswith("the function loops over the values")


def test_steps_of_a_first_call_do_not_hide_a_loop() -> None:
    calls = []

    def answer(x: torch.Tensor) -> torch.Tensor:
        calls.append(x)
        if len(calls) == 1:  # as an import does
            for _ in range(1000):
                pass
        return helper_with_loop(x)

    assert find_loop(answer) is not None


def over_the_shape(x: torch.Tensor) -> torch.Tensor:
    assert all(length > 0 for length in x.shape)
    for dim in range(x.dim()):
        x = x.movedim(dim, 0)
    return x * 2


@pytest.mark.parametrize(
    "function",
    [
        over_the_shape,
        pytest.param(torch.vmap(lambda x: x * 2), id="vmap"),
        pytest.param(torch.vmap(torch.func.grad(lambda x: (x * x).sum())), id="vmap of grad"),
        pytest.param(torch.sum, id="torch's own"),
        pytest.param(lambda x: torch.from_numpy(np.asarray(x) * 2), id="numpy"),
        pytest.param(lambda x: x / float(np.iinfo(np.uint8).max), id="a number from numpy"),
        pytest.param(lambda x: 1 / 0, id="a call that fails"),
    ],
)
def test_a_loop_over_the_shape_is_no_loop_over_the_values(function: Any) -> None:
    assert find_loop(function) is None


def square_by_dual_numbers(x: torch.Tensor) -> torch.Tensor:
    with forward_ad.dual_level():
        dual = forward_ad.make_dual(x, torch.ones_like(x))
        return forward_ad.unpack_dual(dual**2).tangent


def square_by_rows(x: torch.Tensor) -> torch.Tensor:
    from torch.autograd import grad as take

    x = x.detach().requires_grad_()
    return torch.stack([take((x**2)[0, i], x)[0][0, i] for i in range(x.shape[1])])[None]


@pytest.mark.filterwarnings("ignore:.*torch.jit")  # torch's own, at its first forward mode
@pytest.mark.parametrize(
    ("function", "status"),
    [
        (square_by_dual_numbers, "passed"),
        (square_by_rows, "passed"),
        pytest.param(torch.func.grad(lambda x: (x**2).sum()), "passed", id="torch.func"),
        pytest.param(lambda x: 2 * x, "forbidden", id="by hand"),
        pytest.param(lambda x: (setattr(x, "grad", None), 2 * x)[1], "forbidden", id="named"),
    ],
)
def test_a_gradient_is_autograds_if_a_derivative_ran(function: Any, status: str) -> None:
    row = X[:1]

    assert judge(function, Case((row,), 2 * row), restrictions=("by_hand",)).status == status


def test_right_but_forbidden_is_said_only_of_right_values() -> None:
    sized = {"restrictions": ("loop",)}

    assert judge(helper_with_loop, DOUBLED, **sized).status == "forbidden"
    assert judge(helper_with_loop, Case((X,), X * 3), **sized).status == "wrong_values"


def spin(x: torch.Tensor) -> torch.Tensor:
    while True:
        with contextlib.suppress(Exception):  # the stop must pass a learner's handler
            x + 1


def test_a_check_that_cannot_run_here_is_no_failure_of_the_answer(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("labkit.notebooks.ranks.find_spec", lambda name: None)

    verdict = judge(lambda x: x, Case((X,), X, ranks=2))

    assert verdict.status == "not_run" and "pip install cloudpickle" in verdict.message


def test_an_endless_loop_ends_with_a_verdict() -> None:
    verdict = judge(spin, DOUBLED, limit_seconds=0.2)

    assert (verdict.status, verdict.case) == ("timed_out", "case 1 of 1: a square")
    assert "loop" in str(verdict.hint)
    assert not any(thread.name == "labkit-check" for thread in threading.enumerate())


def test_an_endless_loop_in_a_returned_function_ends_too() -> None:
    case = Case((X,), judge=lambda got, arguments: got(*arguments))

    assert judge(lambda x: spin, case, limit_seconds=0.2).status == "timed_out"


def test_the_learners_function_does_not_see_the_expected_value() -> None:
    def peek(x: torch.Tensor) -> torch.Tensor:
        frame = sys._getframe()
        while frame := frame.f_back:
            for value in frame.f_locals.values():
                if isinstance(value, Case):
                    return value.expected
        return x

    assert judge(peek, DOUBLED).status == "wrong_values"


def test_an_exception_that_the_case_asks_for_must_come_out() -> None:
    case = Case((X,), raises=KeyError, judge=lambda got, arguments: got)

    assert judge(lambda x: {}[1], case).passed
    assert judge(lambda x: x[9], case).status == "raised"
    assert judge(lambda x: x, case).status == "wrong_values"


def test_a_changed_array_is_a_changed_argument() -> None:
    assert judge(lambda x: x.fill(0), Case((np.ones(2),), None)).status == "changed_argument"


class Pair(NamedTuple):
    a: Any
    b: Any


def anything(got: object, arguments: object) -> None:
    """A judge who lets every answer pass."""


def spoil(values: torch.Tensor) -> None:
    values.add_(1)


@pytest.mark.parametrize(
    ("make", "function"),
    [
        pytest.param(lambda: (torch.ones(2), 3), lambda x: spoil(x[0]), id="tuple"),
        pytest.param(lambda: [torch.ones(2), 3], lambda x: spoil(x[0]), id="list"),
        pytest.param(lambda: [(1, {"k": torch.ones(2)})], lambda x: spoil(x[0][1]["k"]), id="deep"),
        pytest.param(lambda: Pair(torch.ones(2), 1), lambda x: spoil(x.a), id="named tuple"),
        pytest.param(lambda: (np.zeros(2),), lambda x: x[0].fill(5), id="array in a tuple"),
        pytest.param(lambda: ([1, 2],), lambda x: x[0].append(3), id="list in a tuple"),
        pytest.param(lambda: {"a": [1]}, lambda x: x.pop("a"), id="key taken away"),
        pytest.param(lambda: [1, torch.ones(2)], lambda x: x.reverse(), id="places changed"),
        pytest.param(
            # A tensor that is not a leaf cannot be copied deeply, and must not hide the other.
            lambda: [torch.ones(2, requires_grad=True) * 2, torch.ones(2)],
            lambda x: spoil(x[1]),
            id="beside a tensor with a graph",
        ),
    ],
)
def test_a_change_inside_an_argument_is_seen(make: Any, function: Any) -> None:
    assert judge(function, Case((make(),), judge=anything)).status == "changed_argument"


@pytest.mark.parametrize(
    "value",
    [
        pytest.param((torch.nn.Linear(1, 1), len), id="objects"),
        pytest.param([torch.tensor([float("nan")]), float("nan")], id="nan"),
        pytest.param((torch.ones(2, device="meta"),), id="no values"),
        pytest.param([torch.ones(2, requires_grad=True) * 2], id="a tensor with a graph"),
    ],
)
def test_an_argument_left_alone_is_not_a_change(value: Any) -> None:
    assert judge(lambda x: None, Case((value,), judge=anything)).passed


def test_values_that_share_memory_still_share_it_in_a_copy() -> None:
    base = torch.zeros(4)
    row = [base[:2]]

    (first, (second, again)) = copy_arguments((base, (row, row)))
    first[0] = 7

    assert second[0][0] == 7 and second is again


def test_a_known_mistake_is_named_with_its_hint() -> None:
    halves = WrongAnswer("halves", lambda x: x / 2, "wrong_values", hint=1)
    triples = WrongAnswer("triples", lambda x: x * 3, "wrong_values")
    exercise = Exercise("one", "One", ("a", "b"), lambda: [DOUBLED], (), (triples, halves))

    verdict = judge_function(exercise, "lab.one", lambda x: x * 0.5)
    other = judge_function(exercise, "lab.one", lambda x: x)

    assert (verdict.mistake, verdict.hint) == ("halves", 1)
    assert (other.mistake, other.hint) == (None, 0)


def test_of_mistakes_that_begin_alike_the_one_that_goes_on_alike_is_named() -> None:
    numbers = [torch.tensor([2.0]), torch.tensor([3.0]), torch.tensor([5.0])]
    cases = [Case((x,), x * 3) for x in numbers]
    squares = WrongAnswer("squares", lambda x: x * x, "wrong_values")
    doubles = WrongAnswer("doubles", lambda x: x * 2, "wrong_values", hint="Three times.")
    exercise = Exercise("one", "One", ("a", "b"), lambda: cases, (), (squares, doubles))

    named = [
        judge_function(exercise, "lab.one", answer).mistake
        for answer in (lambda x: x + x, lambda x: x**2, lambda x: x * 0 + 4)
    ]
    hints = choose_hints(exercise, judge_function(exercise, "lab.one", lambda x: 2 * x), 1)

    assert named == ["doubles", "squares", None]
    assert hints == ("Three times.",)


ONE, SIGN, BOTH = "drops the one", "has the sign wrong", "caps, and that cuts"


@pytest.mark.parametrize(
    ("answer", "named", "hint"),
    [
        pytest.param(lambda x: x * 2, ONE, 1, id="one alone"),
        pytest.param(lambda x: (2 * x.relu() + 1).clamp(max=5), BOTH, 0, id="in cases"),
        pytest.param(lambda x: -10 * (2 * x + 1), f"tenfold, and that {SIGN}", 0, id="product"),
        pytest.param(lambda x: x.double().sum(), "adds up", "Do not add up.", id="same shape"),
        pytest.param(lambda x: torch.full_like(x, 0.125), None, 0, id="neither"),
    ],
)
def test_of_two_mistakes_at_once_both_are_named(answer: Any, named: Any, hint: Any) -> None:
    known = (
        WrongAnswer(ONE, lambda x: x * 2, "wrong_values", hint=1),
        WrongAnswer("cuts", lambda x: 2 * x.relu() + 1, "wrong_values", hint=1),
        WrongAnswer("caps", lambda x: (2 * x + 1).clamp(max=5), "wrong_values"),
        WrongAnswer("tenfold", lambda x: 20 * x + 10, "wrong_values"),
        WrongAnswer(SIGN, lambda x: -2 * x - 1, "wrong_values"),
        WrongAnswer("adds up", lambda x: x.sum(), "wrong_shape", hint="Do not add up."),
    )
    numbers = [torch.tensor([1.0, 3.0]), torch.tensor([-0.5, -0.5]), torch.tensor([-2.0, -4.0])]
    cases = [Case((x,), x * 2 + 1) for x in numbers]
    exercise = Exercise("one", "One", ("a", "b"), lambda: cases, (), known)

    verdict = judge_function(exercise, "lab.one", answer)

    assert (verdict.mistake, verdict.hint) == (named, hint)


def test_what_an_answer_prints_is_printed_once_while_its_mistake_is_looked_for(
    capsys: Any,
) -> None:
    halves = WrongAnswer("halves", lambda x: x / 2, "wrong_values")
    cases = [DOUBLED, Case((X + 1,), X * 2 + 2)]
    exercise = Exercise("one", "One", ("a", "b"), lambda: cases, (), (halves,))

    def answer(x: torch.Tensor) -> torch.Tensor:
        print("half way")
        return x * 0.5

    assert judge_function(exercise, "lab.one", answer).mistake == "halves"
    assert capsys.readouterr().out == "half way\n"


def test_a_slow_call_is_noticed_once_with_its_limit() -> None:
    shown: list[tuple[float, float]] = []

    def wait_for_notice() -> bool:
        return wait_until(lambda: bool(shown), timeout_seconds=60)

    with notice_slow_calls(lambda *limits: shown.append(limits), seconds=0):
        assert call_with_limit(wait_for_notice, seconds=90, startup_seconds=30)
        assert call_with_limit(wait_for_notice, seconds=90)
    with notice_slow_calls(lambda *limits: shown.append(limits), seconds=600):
        call_with_limit(len, "a quick call")

    assert shown == [(90, 30)]


@pytest.mark.parametrize(
    ("got", "expected", "text"),
    [
        (X.double(), X, "but has torch.float64"),
        (7.0, 7, "must be an int, but is a float"),
        (lambda: X, X, "but is a function: is a call missing"),
        (0.1 + 0.2, 0.4, "expected 0.4, got 0.3, off by 0.1"),
        (X.double() + 1e-6, X.double(), "expected 2.0, got 2.000001, off by"),
    ],
    ids=["dtype", "number", "function", "float", "close"],
)
def test_a_difference_is_said_in_words_and_short_numbers(
    got: Any, expected: Any, text: str
) -> None:
    difference = find_difference(got, expected)

    assert difference is not None and text in difference.message
    assert " at 0x" not in f"{difference.got}"
    assert difference.got != difference.expected


def test_of_a_large_difference_only_the_place_is_shown() -> None:
    wanted = torch.zeros(4, 50)
    wrong = wanted.clone()
    wrong[2, 30] = 1

    verdict = judge(lambda: wrong, Case((), wanted))

    assert verdict.expected == "at [2, 27:33]: 0, 0, 0, 0, 0, 0"
    assert verdict.got == "at [2, 27:33]: 0, 0, 0, 1, 0, 0"


@pytest.mark.parametrize(
    ("make", "text"),
    [
        (lambda: Case([X], X), "a Case takes its arguments as a tuple"),
        (lambda: Case((X,)), "a Case needs an expected value"),
        (lambda: WrongAnswer("w", abs, "passed"), "'passed' is not a verdict for a wrong answer"),
        (lambda: WrongAnswer("w", abs, "wrong"), "'wrong' is not a verdict for a wrong answer"),
        (lambda: Exercise("e", "E", (), list, ("loops",)), "restriction 'loops'"),
        (lambda: Exercise("e", "E", (), list, ("loop",)), "needs sized"),
    ],
    ids=[
        "arguments",
        "nothing expected",
        "passed",
        "unknown verdict",
        "unknown restriction",
        "no sizes",
    ],
)
def test_a_misstated_exercise_is_refused_where_it_is_stated(make: Any, text: str) -> None:
    with pytest.raises((TypeError, ValueError), match=text):
        make()
