"""Predictions: what a learner expects, asked before a lesson's claims show what is seen.

In a notebook with somebody at it, a question has buttons (ipywidgets), or ``answer=`` where there
are none. Runs do not ask, and nothing waits: the claims that follow run in any case.
"""

from __future__ import annotations

import math
import re
import uuid
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from labkit.errors import LabkitError, UsageError
from labkit.files import find_workspace
from labkit.lessons.cards import (
    GOOD,
    NEWS,
    QUIET,
    Card,
    card_html,
    card_text,
    find_kernel_shell,
    inline_html,
    show_bundle,
)
from labkit.lessons.checks import somebody_is_there
from labkit.lessons.folds import Fold, begin_fold
from labkit.lessons.progress import (
    Prediction,
    Score,
    count_score,
    read_progress,
    record_prediction,
)
from labkit.lessons.value_repr import PLAIN_FUNCTIONS, format_value, same_value
from labkit.text import near_match, plural

WAITING = "Choose first, or open this to see what this machine showed"

# Buttons wrap on a narrow page. Those of an ended kernel are gone: JupyterLab shows an error in
# their place, and this says what to do.
_STYLE = """<style>
.labkit-question .jupyter-button{white-space:normal;height:auto;line-height:1.5;padding:2px 10px}
.jp-OutputArea:has(.labkit-asked) .jp-OutputArea-output.jupyter-widgets:not(:has(*))
{visibility:hidden;font-size:0}
.jp-OutputArea:has(.labkit-asked) .jp-OutputArea-output.jupyter-widgets:not(:has(*))::after
{content:"Run this cell to choose.";visibility:visible;
font-size:var(--jp-content-font-size1,14px)}
</style>"""

# Commas that can only group digits: "0,500" and "1.5,000" may mean a decimal point.
_GROUPED = re.compile(r"[-+]?[1-9]\d*(,\d{3})+(\.\d*)?([eE][-+]?\d+)?")
_DECIMAL_COMMA = re.compile(r"[-+]?\d+,\d+")

# The predictions of this process, used if there is no workspace.
_made: dict[str, Prediction] = {}


class NoSuchChoice(LabkitError):
    """What was seen is none of the choices of a lesson's question."""


@dataclass(frozen=True)
class Question:
    """A question with its choices (label and value); without choices, a number is typed.

    ``seen`` is the value that this machine gave, and ``because`` explains it.
    """

    name: str
    text: str
    choices: Mapping[str, object]
    seen: object
    because: str = ""
    within: float = 0.0

    @property
    def lab(self) -> str:
        """The lab's name, before the dot."""
        return self.name.partition(".")[0]

    def seen_label(self) -> str:
        """What was seen, as the label of a choice. Raises NoSuchChoice if there is none."""
        if not self.choices:
            return _label(self.seen)
        for label, value in self.choices.items():
            if same_value(self.seen, value) or label == _label(self.seen):
                return label
        raise NoSuchChoice(
            f"{self.name}: {_label(self.seen)} is none of the choices",
            cause=f"the choices are {', '.join(self.choices)}",
        )

    def judge(self, expected: str) -> Prediction:
        """The prediction that the learner makes with this label, or with this number."""
        seen = self.seen_label()
        if self.choices:
            return Prediction(expected, seen, expected == seen)
        near = abs(float(expected) - float(self.seen)) <= self.within  # type: ignore[arg-type]
        return Prediction(expected, seen, near)

    def read(self, answer: object) -> str:
        """The label of a choice, or a typed number as text. Raises UsageError for anything else."""
        text = _label(answer).strip()
        if not self.choices:
            return f"{_read_number(text):.12g}"
        if text in self.choices:
            return text
        near = near_match(text, self.choices)
        raise UsageError(
            f"{text!r} is none of the choices",
            cause=f"the choices are {', '.join(self.choices)}",
            fix=f"answer={near!r}" if near else None,
        )


def _read_number(text: str) -> float:
    """A finite number, with commas between groups of three digits: "1,000.5". Raises UsageError.

    >>> _read_number("1,234,567"), _read_number("2e-3")
    (1234567.0, 0.002)
    """
    plain = text.replace(",", "") if _GROUPED.fullmatch(text) else text
    try:
        number = float(plain)
    except ValueError as error:
        example = text.replace(",", ".") if _DECIMAL_COMMA.fullmatch(text) else "12 or 0.5"
        raise UsageError(f"{text!r} is not a number here: type it as {example}") from error
    if not math.isfinite(number):
        raise UsageError(f"{text!r} is not a finite number")
    return number


def predict(
    name: str,
    question: str,
    choices: Sequence[object] | Mapping[str, object] = (),
    *,
    seen: object,
    because: str = "",
    within: float = 0.0,
    answer: object = None,
) -> None:
    """Asks the learner what they expect; the claims that follow in the cell are shown afterwards.

    ``name`` is ``<lab>.<question>``. ``choices`` are values, or labels with their values; without
    any, a number is typed, which may be off by ``within``. ``seen`` is the value on this machine,
    or a function that gives it, and ``because`` a sentence that explains it. ``answer`` answers
    without buttons. The first answer is kept with the workspace's progress.

    >>> predict("sums.two", "What is 2 + 2?", [4, 5], seen=lambda: 2 + 2)
    not asked: What is 2 + 2? (seen 4)
    """
    labels = choices if isinstance(choices, Mapping) else {_label(one): one for one in choices}
    value = seen() if isinstance(seen, PLAIN_FUNCTIONS) else seen
    asked = Question(name, question, labels, value, because, within)
    seen_label = asked.seen_label()
    if not somebody_is_there():
        begin_fold()
        _show(Card(QUIET, "not asked", question, f"seen {seen_label}"))
        return
    made = _find_prediction(asked)
    if made is None and answer is not None:
        made = _keep(asked, asked.read(answer))
    if made is not None:
        begin_fold()
        _show(_make_card(asked, made, f"{question} "))
        return
    fold = begin_fold(waiting=WAITING)
    assert fold is not None
    _Asked(asked, fold).show()


def _label(value: object) -> str:
    return value if isinstance(value, str) else format_value(value).removeprefix("torch.")


def _read_predictions() -> Mapping[str, Prediction]:
    workspace = find_workspace()
    return {**_made, **read_progress(workspace).predictions} if workspace else _made


def _find_prediction(question: Question) -> Prediction | None:
    """The prediction made before; None for one that the question no longer offers."""
    made = _read_predictions().get(question.name)
    try:
        return made and question.judge(question.read(made.expected))
    except UsageError:
        return None


def _keep(question: Question, expected: str) -> Prediction:
    """Keeps the prediction; a workspace that cannot be written is no reason to stop."""
    made = question.judge(expected)
    workspace = find_workspace()
    try:
        if workspace is not None:
            record_prediction(workspace, question.name, made)
            return made
    except (LabkitError, OSError):
        pass
    _made[question.name] = made
    return made


def _show(card: Card, display_id: str | None = None, *, update: bool = False) -> None:
    bundle = {"text/html": card_html(card), "text/plain": card_text(card)}
    show_bundle(bundle, display_id, update=update)


def _make_card(question: Question, made: Prediction, before: str = "") -> Card:
    score = _describe_score(count_score(_read_predictions(), question.lab))
    because = f" {question.because}" if question.because else ""
    if made.as_expected:
        return Card(GOOD, "as expected", f"{before}`{made.seen}`.{because}", score)
    text = f"{before}You expected `{made.expected}` and saw `{made.seen}`.{because}"
    return Card(NEWS, "a surprise", text, score)


def _describe_score(score: Score) -> str:
    predictions = plural(score.predicted, "prediction")
    return f"{score.as_expected} of {predictions} as expected in this lab so far"


class _Asked:
    """A question on the page: its text, its buttons, and the fold of the facts that follow."""

    def __init__(self, question: Question, fold: Fold) -> None:
        self._question = question
        self._fold = fold
        self._ids = (uuid.uuid4().hex, uuid.uuid4().hex)
        self._card: Card | None = None

    def show(self) -> None:
        """Displays the question and below it the buttons, or what to write without them."""
        card = Card(QUIET, "what do you expect?", self._question.text)
        html = f'<div class="labkit-asked">{card_html(card)}{_STYLE}</div>'
        show_bundle({"text/html": html, "text/plain": card_text(card)}, self._ids[0])
        how = self._how_without_buttons()
        bundle: dict[str, object] = {"text/html": inline_html(how), "text/plain": how}
        widget = self._make_widget()
        if widget is not None:
            view = {"version_major": 2, "version_minor": 0, "model_id": widget.model_id}
            bundle["application/vnd.jupyter.widget-view+json"] = view
        show_bundle(bundle, self._ids[1])

    def _how_without_buttons(self) -> str:
        choices = ", ".join(f"`{one}`" for one in self._question.choices) or "a number"
        return f"No buttons here: add `answer=...` to predict in this cell and run it; {choices}"

    def _make_widget(self) -> Any:
        try:
            import ipywidgets
        except ImportError:
            return None
        self._said = ipywidgets.HTML()
        if self._question.choices:
            row = self._make_buttons(ipywidgets, self._question.choices)
        else:
            row = self._make_entry(ipywidgets)
        box = ipywidgets.VBox([row, self._said])
        box.add_class("labkit-question")
        return box

    def _make_buttons(self, ipywidgets: Any, choices: Iterable[str]) -> Any:
        buttons = [
            ipywidgets.Button(description=one, layout=ipywidgets.Layout(width="auto"))
            for one in choices
        ]
        for button in buttons:
            button.tooltip = self._question.text.replace("`", "")  # read out after the choice
            button.on_click(lambda pressed: self._answer(pressed.description, pressed))
        return ipywidgets.HBox(buttons, layout=ipywidgets.Layout(flex_flow="row wrap"))

    def _make_entry(self, ipywidgets: Any) -> Any:
        entry = ipywidgets.Text(description="Number:", layout=ipywidgets.Layout(width="12em"))
        entry.style.description_width = "initial"
        button = ipywidgets.Button(description="That is what I expect")
        button.layout.width = "auto"
        button.on_click(lambda pressed: self._answer(entry.value, pressed))
        return ipywidgets.HBox([entry, button], layout=ipywidgets.Layout(flex_flow="row wrap"))

    def _answer(self, text: str, button: Any) -> None:
        if self._card:
            return
        try:
            made = _keep(self._question, self._question.read(text))
        except UsageError as error:
            self._said.value = f'<span role="alert">{inline_html(error.what)}</span>'
            return
        self._card = _make_card(self._question, made)
        button.icon = "check"
        self._said.value = f'<div role="alert">{card_html(self._card)}</div>'
        self._fold.waiting = None
        self._fold.refresh()
        _when_next_cell_runs(self._put_to_rest)

    def _put_to_rest(self) -> None:
        """Replaces the buttons by the answer, which a stored notebook can show without a kernel.

        Not at once: the focus is on the pressed button.
        """
        assert self._card
        whole = replace(self._card, sentence=f"{self._question.text} {self._card.sentence}")
        _show(whole, self._ids[0], update=True)
        show_bundle({"text/html": "", "text/plain": ""}, self._ids[1], update=True)


def _when_next_cell_runs(act: Callable[[], None]) -> None:
    events = find_kernel_shell().events

    def once(*_: object) -> None:
        events.unregister("pre_run_cell", once)
        act()

    events.register("pre_run_cell", once)
