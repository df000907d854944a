"""``predict()`` and the fold of a cell's claims, in a kernel that is played."""

from __future__ import annotations

import contextlib
import functools
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from labkit.errors import UsageError
from labkit.launch.server import wait_until
from labkit.lessons import checks, needs, predictions
from labkit.lessons.calls import notice_slow_calls
from labkit.lessons.claims import ClaimFailed, claim, claim_raises
from labkit.lessons.folds import describe_seen
from labkit.lessons.needs import NEED_WORDS, find_proven
from labkit.lessons.predictions import NoSuchChoice, predict
from labkit.lessons.progress import Score, clear_progress, read_progress
from labkit.notebooks.result import CLAIM_MIME
from tests.fakes.small_labs import write_labs

VIEW = "application/vnd.jupyter.widget-view+json"
RESULTS = Path(__file__).resolve().parents[1] / "docs" / "results"


class Page:
    """The outputs of a played notebook: updates replace, as a front end does."""

    def __init__(self, shell: Any) -> None:
        self.shell = shell
        self.cell = 0
        self.next_cell()

    def next_cell(self) -> None:
        self.cell += 1
        self.shell.events.trigger("pre_run_cell", None)

    @property
    def outputs(self) -> list[dict[str, Any]]:
        shown: list[dict[str, Any]] = []
        for one in self.shell.display_pub.outputs:
            same = [old for old in shown if one["update"] and old["transient"] == one["transient"]]
            if same:
                same[0]["data"] = one["data"]
            else:
                shown.append(dict(one))
        return [one["data"] for one in shown]

    @property
    def html(self) -> str:
        return "\n".join(one.get("text/html", "") for one in self.outputs)


@pytest.fixture
def page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Page]:
    from IPython.core.displaypub import CapturingDisplayPublisher
    from IPython.core.interactiveshell import InteractiveShell

    (tmp_path / ".labkit").mkdir()
    monkeypatch.setenv("LABKIT_WORKSPACE", str(tmp_path))
    monkeypatch.delenv("LABKIT_REFERENCE", raising=False)
    monkeypatch.setattr(predictions, "_made", {})
    monkeypatch.setitem(sys.modules, "ipywidgets", None)
    shell: Any = InteractiveShell.instance()
    shell.display_pub = CapturingDisplayPublisher()
    shell.kernel = SimpleNamespace(_allow_stdin=True)
    played = Page(shell)
    shell.get_parent = lambda: {"header": {"msg_id": f"{tmp_path}-{played.cell}"}}
    yield played
    InteractiveShell.clear_instance()


def ask(answer: object = None, **options: Any) -> None:
    predict("sums.two", "What is 2 + 2?", [4, 5], seen=4, answer=answer, **options)


def test_a_slow_check_says_so_until_its_verdict_comes(
    page: Page, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("LABKIT_LABS", str(write_labs(tmp_path / "labs")))
    at_once = functools.partial(notice_slow_calls, seconds=0)
    monkeypatch.setattr(checks, "notice_slow_calls", at_once)
    waited = []

    def answer(x: torch.Tensor) -> torch.Tensor:
        def is_said() -> bool:
            return "still running" in page.html and "stopped after 30 s" in page.html

        waited.append(wait_until(is_said, timeout_seconds=60))
        return x * 2

    checks.check("small.double", answer)

    assert waited == [True]
    assert "still running" not in page.html and "passed" in page.html
    assert [one["text/plain"] for one in page.outputs if "still" in str(one)] == []


def test_an_interrupted_check_leaves_no_notice(
    page: Page, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    shown = []

    @contextlib.contextmanager
    def interrupted(show: Callable[[float, float], None]) -> Iterator[None]:
        show(30, 0)
        shown.append("still running" in page.html)
        raise KeyboardInterrupt
        yield

    monkeypatch.setattr(checks, "notice_slow_calls", interrupted)
    monkeypatch.setenv("LABKIT_LABS", str(write_labs(tmp_path / "labs")))

    with pytest.raises(KeyboardInterrupt):
        checks.check("small.double", abs)

    assert shown == [True] and "still running" not in page.html


def test_facts_that_hold_are_one_line_with_their_count(page: Page):
    for number in range(3):
        claim(f"fact {number}", number, number)

    assert "<summary>3 facts held</summary>" in page.html
    assert [one[CLAIM_MIME]["statement"] for one in page.outputs] == ["fact 0", "fact 1", "fact 2"]
    assert page.html.count("fact 1") == 1


def test_each_cell_has_a_fold_of_its_own(page: Page):
    claim("first", 1, 1)
    page.next_cell()
    claim("second", 2, 2)

    assert "facts held" not in page.html
    assert "first" in page.html and "second" in page.html


def test_what_is_shown_stays_in_sight(page: Page):
    claim("folded", 1, 1)
    claim("in sight", 2, 2, shown=True)

    before, folded = page.html.split("<details>")
    assert "in sight" in before and "<summary>1 more fact held</summary>" in folded


def test_what_does_not_hold_is_open_and_first(page: Page):
    claim("one", 1, 1)
    claim("two", 2, 2)
    with pytest.raises(ClaimFailed):
        claim("three", 3, 4)

    assert page.html.index("three") < page.html.index("2 facts held")
    assert "expected 4, seen 3" in page.html.split("<details>")[0]


def test_an_open_question_does_not_hide_what_does_not_hold(page: Page):
    ask()
    with pytest.raises(ClaimFailed):
        claim("three", 3, 4)

    assert "three" in page.html.split("<details>")[0]


@pytest.mark.parametrize(
    ("seen", "said"),
    [
        ("True", ""),
        ("(True, False)", ""),
        ("None", ""),
        ("256.0", "seen 256.0"),
        ("tensor of shape (64, 64), float32", ""),
        ("1125899906842624", "seen 1125899906842624"),
        (str(0x7F0012345678), ""),
        ("<Node object at 0x7f0012345678>", "seen <Node object>"),
        ("RuntimeError: no", "seen RuntimeError: no"),
        ("RuntimeError: no\n\nUser stack:\n  File", "seen RuntimeError: no"),
        ("np.float64(15.0)", "seen 15.0"),
        ("np.True_", ""),
        ("(tensor(True), tensor(False))", ""),
    ],
)
def test_only_what_is_informative_is_shown(seen: str, said: str):
    assert describe_seen(seen) == said


def test_skipped_claims_say_what_a_real_gpu_showed(page: Page, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(needs.NEEDS, "cuda", lambda: False)
    proven = find_proven(RESULTS)
    assert proven is not None
    statement = "with a wait the ones arrive"
    assert statement in proven.held

    claim(statement, lambda: 1 / 0, needs="cuda")
    page.next_cell()
    claim("nobody has proven this", lambda: 1 / 0, needs="cuda")

    first, second = page.outputs
    assert f"on {proven.device}, {proven.date}, it held" in first["text/html"]
    assert proven.date not in second["text/html"] and "needs CUDA" in second["text/html"]


def test_two_skipped_claims_are_one_line(page: Page, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(needs.NEEDS, "cuda", lambda: False)
    claim("one", lambda: 1 / 0, needs="cuda")
    claim_raises("two", ValueError, lambda: 1 / 0, needs="cuda")

    assert "<summary>2 facts skipped: needs CUDA</summary>" in page.html


def test_every_need_has_words():
    assert set(NEED_WORDS) == set(needs.NEEDS)


def test_a_folder_without_a_run_proves_nothing(tmp_path: Path):
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "labs.json").write_text("{")

    assert find_proven(tmp_path) is None


def test_without_buttons_the_question_says_how_to_answer(page: Page):
    ask()
    claim("the sum is four", 2 + 2, 4)

    assert "What is 2 + 2?" in page.html and "answer=" in page.html
    assert f"<summary>{predictions.WAITING}</summary>" in page.html


def test_an_answer_is_kept_and_shown_again(page: Page, tmp_path: Path):
    ask("5", because="Count.")
    page.next_cell()
    ask("4", because="Count.")  # the first answer stays

    assert page.html.count("a surprise") == 2 and "Count." in page.html
    assert "0 of 1 prediction as expected" in page.html
    assert read_progress(tmp_path).score("sums") == Score(1, 0)


def test_a_prediction_that_the_question_no_longer_offers_is_asked_again(page: Page):
    ask("5")
    page.next_cell()
    predict("sums.two", "What is 2 + 2?", [3, 4], seen=4)
    page.next_cell()
    predict("sums.two", "How many are 2 and 2?", seen=4)

    assert "no buttons" in page.html.lower()
    assert page.html.count("a surprise") == 2  # a number may be 5


def test_a_cleared_prediction_is_asked_again(page: Page, tmp_path: Path):
    ask("5")
    clear_progress(tmp_path, ["sums"])
    page.next_cell()
    ask()

    assert predictions.WAITING not in page.html and "No buttons" in page.html


def test_the_claims_after_an_answer_are_not_hidden(page: Page):
    ask(4)
    claim("the sum is four", 2 + 2, 4)

    assert "as expected" in page.html and predictions.WAITING not in page.html


@pytest.mark.parametrize("answer", ["6", "", "4 or so"])
def test_an_answer_that_is_no_choice_is_an_error(page: Page, answer: str):
    with pytest.raises(UsageError, match="none of the choices"):
        ask(answer)


@pytest.mark.parametrize(("answer", "right"), [("1,000", False), (256, True), ("255", True)])
def test_a_number_is_typed(page: Page, tmp_path: Path, answer: object, right: bool):
    predict("sums.ones", "How many?", seen=256.0, within=1, answer=answer)

    assert read_progress(tmp_path).predictions["sums.ones"].as_expected is right


@pytest.mark.parametrize(
    ("typed", "kept"),
    [
        ("1,000", "1000"),
        ("-12,345,678.5", "-12345678.5"),
        (" 1,000e3 ", "1000000"),
        ("0.5", "0.5"),
        (".5", "0.5"),
        ("1e-3", "0.001"),
        ("+7", "7"),
    ],
)
def test_a_number_is_kept_as_it_was_meant(page: Page, tmp_path: Path, typed: str, kept: str):
    predict("sums.ones", "How many?", seen=256.0, answer=typed)

    assert read_progress(tmp_path).predictions["sums.ones"].expected == kept


@pytest.mark.parametrize(
    "typed",
    [
        *("0,5", "1,5", "0,500", "1,00", "1,0000", ",500", "1.5,000", "1,000,5", "1.000,5"),
        *("1,,000", "nan", "inf", "-Infinity", "1e999", "", ",", "12 MiB", "1 000", "0x10"),
    ],
)
def test_what_may_mean_another_number_is_asked_for_again(page: Page, tmp_path: Path, typed: str):
    with pytest.raises(UsageError, match="number") as raised:
        predict("sums.ones", "How many?", seen=256.0, answer=typed)

    assert repr(typed) in raised.value.what
    assert read_progress(tmp_path).predictions == {}


def test_a_decimal_comma_is_answered_with_the_point(page: Page):
    with pytest.raises(UsageError, match=r"'0,5'.* 0\.5"):
        predict("sums.ones", "How many?", seen=256.0, answer="0,5")


def test_labels_stand_for_values(page: Page, tmp_path: Path):
    predict("a.b", "Is it?", {"a view": True, "a copy": False}, seen=lambda: True, answer="a copy")

    made = read_progress(tmp_path).predictions["a.b"]
    assert (made.expected, made.seen) == ("a copy", "a view")


@pytest.mark.parametrize("why", ["a run", "a reference"])
def test_a_run_does_not_ask_and_the_claims_prove_themselves(
    page: Page, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, why: str
):
    if why == "a run":
        page.shell.kernel._allow_stdin = False
    else:
        monkeypatch.setenv("LABKIT_REFERENCE", "1")
    ask("4")
    claim("the sum is four", 2 + 2, 4)

    assert "not asked" in page.html and predictions.WAITING not in page.html
    assert not read_progress(tmp_path).predictions


def test_what_is_seen_must_be_a_choice(page: Page):
    with pytest.raises(NoSuchChoice, match="3 is none of the choices"):
        predict("sums.two", "What is 2 + 2?", [4, 5], seen=3)


def test_a_workspace_that_cannot_be_written_stops_nobody(
    page: Page, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    def refuse(*_: object) -> None:
        raise OSError("full")

    monkeypatch.setattr(predictions, "record_prediction", refuse)
    ask("5")
    ask()

    assert page.html.count("a surprise") == 2


@pytest.fixture
def widgets(page: Page, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "ipywidgets")
    pytest.importorskip("ipywidgets")


def find_box(page: Page) -> Any:
    """The widget of the page's only question: its buttons, and below them what was said."""
    (view,) = (one[VIEW] for one in page.outputs if VIEW in one)
    return sys.modules["ipywidgets.widgets.widget"]._instances[view["model_id"]]


def press(page: Page, label: str) -> None:
    (button,) = (one for one in find_box(page).children[0].children if one.description == label)
    button.click()


def test_a_button_answers_and_reveals(page: Page, widgets: None, tmp_path: Path):
    ask()
    claim("the sum is four", 2 + 2, 4)
    press(page, "5")

    assert predictions.WAITING not in page.html
    assert read_progress(tmp_path).score("sums") == Score(1, 0)
    assert any(VIEW in one for one in page.outputs)  # the focus is on the button

    page.next_cell()

    assert not any(VIEW in one for one in page.outputs)
    assert "What is 2 + 2? You expected" in page.html


def test_a_number_is_typed_into_a_field(page: Page, widgets: None, tmp_path: Path):
    predict("sums.ones", "How many?", seen=256.0)
    field = find_box(page).children[0].children[0]
    field.value = "many"
    press(page, "That is what I expect")
    assert "many" in find_box(page).children[1].value

    field.value = "1000"
    press(page, "That is what I expect")

    assert read_progress(tmp_path).predictions["sums.ones"].expected == "1000"
