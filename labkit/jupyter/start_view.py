"""The start page as HTML: the device, what is off, where to go on, and the labs as cards.

It is a part of JupyterLab's page, in JupyterLab's colors. A link leads to the notebook's own URL,
so that it opens in a new tab of the browser too; the extension opens a plain click in this one.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple
from urllib.parse import quote

from labkit.lessons.overview import LabCard, NextStep, Overview
from labkit.render import escape
from labkit.text import plural


class Notice(NamedTuple):
    """Something the doctor found: "failed" or "warning", its cause, and the command that helps."""

    status: str
    found: str
    cause: str | None = None
    fix: str | None = None


def render_start(
    overview: Overview, device: str, notices: Sequence[Notice] = (), base_url: str = "/"
) -> str:
    """The page's content; ``device`` is the live line, ``base_url`` the server's."""
    parts = [
        "<h1>PyTorch labs</h1>",
        f'<p class="labkit-device"><span data-labkit="device">{escape(device)}</span></p>',
        _render_notices(notices, overview.note),
        _render_next(overview, base_url),
        '<h2 id="labkit-labs">Labs</h2>',
        _render_total(overview),
        '<ol class="labkit-cards" aria-labelledby="labkit-labs">',
        *(_render_card(card, base_url) for card in overview.cards),
        "</ol>",
        '<p class="labkit-aside">The memory of the devices and of each kernel is in the status'
        " bar, at the bottom of this window: click it for the panel.</p>",
    ]
    return "".join(parts)


def _render_notices(notices: Sequence[Notice], note: str | None) -> str:
    failed = sum(notice.status == "failed" for notice in notices)
    listed = [*notices, *([Notice("warning", note)] if note else [])]
    listed.sort(key=lambda notice: notice.status)  # "failed" before "warning"
    if not listed:
        return ""
    items = "".join(_render_notice(notice) for notice in listed)
    more = f" (and {len(listed) - 1} more)" if len(listed) > 1 else ""
    title = f"{'Problem' if failed else 'Remark'}: {listed[0].found}{more}"
    opened = " open" if failed else ""
    kind = "failed" if failed else "warning"
    return (
        f'<details class="labkit-doctor" data-status="{kind}"{opened}>'
        f"<summary>{escape(title)}</summary><ul>{items}</ul></details>"
    )


def _render_notice(notice: Notice) -> str:
    word = "<strong>failed</strong> " if notice.status == "failed" else ""
    cause = f"<br>cause: {escape(notice.cause)}" if notice.cause else ""
    fix = f"<br>try: <code>{escape(notice.fix)}</code>" if notice.fix else ""
    return f"<li>{word}{escape(notice.found)}{cause}{fix}</li>"


def _render_next(overview: Overview, base_url: str) -> str:
    step = overview.next
    if step is not None:
        return _render_step(step, base_url, is_new=overview.passed == 0)
    if any(card.notebook for card in overview.cards) and overview.passed != overview.total:
        return ""  # the note says why nothing is known of where the learner was
    if overview.total and overview.passed == overview.total:
        return f"<p>You have passed all {plural(overview.total, 'exercise')}.</p>"
    return "<p>No lab's notebook is here: <code>labkit reset --all</code> puts them back.</p>"


def _render_step(step: NextStep, base_url: str, *, is_new: bool) -> str:
    title, exercise = escape(step.card.lab.title), escape(step.exercise)
    if step.begun:
        words = f"Continue where you were: <strong>{exercise}</strong> in {title}"
    elif is_new:
        words = f"Start with the first lab: <strong>{title}</strong>"
    else:
        words = f"Go on with the next lab: <strong>{title}</strong>"
    link = _make_link(step.card.notebook or "", base_url, step.cell)
    return f'<p><a class="labkit-next" {link}>{words}</a></p>'


def _render_total(overview: Overview) -> str:
    minutes = sum(card.lab.minutes for card in overview.cards)
    exercises = plural(overview.total, "exercise")
    done = exercises if overview.passed is None else f"{overview.passed} of {exercises} passed"
    return f"<p>{done}; {plural(len(overview.cards), 'lab')}, {minutes} minutes in all.</p>"


def _render_card(card: LabCard, base_url: str) -> str:
    lab, done, meter = card.lab, plural(card.total, "exercise"), ""
    title = escape(lab.title)
    if card.notebook is not None:
        title = f"<a {_make_link(card.notebook, base_url)}>{title}</a>"
    state = "passed" if card.total and card.passed == card.total else ""
    if card.passed is not None:
        done = f"{card.passed} of {card.total} passed"
        meter = (
            f'<progress max="{card.total or 1}" value="{card.passed}"'
            f' aria-label="{escape(lab.title)}: exercises passed">{done}</progress>'
        )
    missing = ""
    if card.trouble:
        missing = f"<p>{escape(card.trouble)}</p>"
    elif card.notebook is None:
        missing = (
            f"<p>You deleted its notebook: <code>labkit reset {escape(lab.name)}</code>"
            " puts a fresh one in place.</p>"
        )
    mark = " ✓" if state else ""
    return (
        f'<li class="labkit-card" data-state="{state}"><h3>{title}</h3>'
        f"<p>{escape(lab.summary)}</p>{missing}"
        f'<p class="labkit-figures"><span>{lab.minutes} minutes</span>'
        f"<span>{done}{mark}</span></p>{meter}</li>"
    )


def _make_link(path: str, base_url: str, cell: str | None = None) -> str:
    """The attributes of a link to a notebook, and to a cell in it."""
    fragment = "" if cell is None else f"#cell-id={quote(cell)}"
    address = f"{base_url.rstrip('/')}/lab/tree/{quote(path)}{fragment}"
    data = f'data-path="{escape(path)}" data-cell="{escape(cell or "")}"'
    return f'href="{escape(address)}" {data}'
