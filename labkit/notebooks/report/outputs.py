"""The cells of an executed notebook as html: what each showed, harmless and bounded."""

from __future__ import annotations

import base64
import binascii
import json
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from labkit.notebooks.report.sanitize import clean_html
from labkit.render import escape, escape_block
from labkit.text import format_bytes

MAX_TEXT_CHARACTERS = 16_000
MAX_SOURCE_CHARACTERS = 12_000
MAX_HTML_CHARACTERS = 400_000
MAX_IMAGE_CHARACTERS = 1_500_000
IMAGES = ("image/svg+xml", "image/png", "image/jpeg", "image/gif", "image/webp")
TEXTS = ("text/markdown", "text/latex", "application/json", "text/plain")
HEADING = re.compile(r"^(#{1,6})\s+(.+?)\s*#*$", re.MULTILINE)
FENCED = re.compile(r"^(```|~~~).*?^\1", re.MULTILINE | re.DOTALL)
UNSEEN = re.compile(r"<(script|style)\b.*?</\1\s*>", re.IGNORECASE | re.DOTALL)
SHOWS_SOMETHING = re.compile(r"[^<>\s](?=[^<>]*(?:<|\Z))|<(?:img|svg|table|hr|meter|progress)\b")


@dataclass(frozen=True)
class Piece:
    """One output (or source) that may be shown: about how many bytes of html, and how to make it.

    ``what`` names it where it is left out.
    """

    what: str
    size_bytes: int
    make: Callable[[], str]


@dataclass(frozen=True)
class ShownCell:
    """A code cell of the executed notebook: the headings just above it, its source, its outputs."""

    index: int
    headings: tuple[str, ...]
    source: Piece
    outputs: tuple[Piece, ...]


def read_cells(path: Path, prefix: str) -> tuple[ShownCell, ...] | None:
    """The code cells of the notebook at ``path``; None where it cannot be read.

    ``prefix`` sets the ids in its outputs apart from those of other notebooks.
    """
    try:
        notebook = json.loads(path.read_text(encoding="utf-8", errors="replace"))
    except (OSError, ValueError, RecursionError):
        return None
    cells = notebook.get("cells") if isinstance(notebook, dict) else None
    return tuple(_read_cells(cells, prefix)) if isinstance(cells, list) else None


def _read_cells(cells: list[Any], prefix: str) -> Iterator[ShownCell]:
    headings: list[str] = []
    for index, cell in enumerate(cells):
        if not isinstance(cell, Mapping):
            continue
        source = _join(cell.get("source"))
        if cell.get("cell_type") == "markdown":
            headings += [match[2] for match in HEADING.finditer(FENCED.sub("", source))]
        elif cell.get("cell_type") == "code" and source.strip():
            outputs = cell.get("outputs")
            pieces = _list_outputs(outputs if isinstance(outputs, list) else [], prefix, index)
            yield ShownCell(index, tuple(headings), show_source(source), tuple(pieces))
            headings = []


def show_source(source: str) -> Piece:
    """A cell's source, in the notebook's own letters."""
    return _show_text(source.rstrip("\n"), "source", "source", MAX_SOURCE_CHARACTERS)


def _list_outputs(outputs: list[Any], prefix: str, index: int) -> Iterator[Piece]:
    for number, output in enumerate(_merge_streams(outputs)):
        kind = output.get("output_type")
        if kind == "stream":
            css = "stderr" if output.get("name") == "stderr" else "stdout"
            yield _show_text(_join(output.get("text")), f"text on {css}", css)
        elif kind == "error":
            traceback = "\n".join(str(line) for line in output.get("traceback") or ())
            text = traceback or f"{output.get('ename')}: {output.get('evalue')}"
            yield _show_text(text, "traceback", "error")
        elif isinstance(output.get("data"), Mapping):
            metadata = output.get("metadata")
            yield _show_bundle(
                output["data"],
                metadata if isinstance(metadata, Mapping) else {},
                f"{prefix}-{index}-{number}-",
            )


def _merge_streams(outputs: list[Any]) -> list[Mapping[str, Any]]:
    """The outputs, with neighbours that went to the same stream as one."""
    merged: list[Mapping[str, Any]] = []
    texts: list[str] = []
    for output in (one for one in outputs if isinstance(one, Mapping)):
        last = merged[-1] if merged else {}
        stream = output.get("output_type") == "stream"
        if (
            stream
            and last.get("output_type") == "stream"
            and last.get("name") == output.get("name")
        ):
            texts.append(_join(output.get("text")))
            merged[-1] = {**last, "text": texts}
        else:
            texts = [_join(output.get("text"))] if stream else []
            merged.append(output)
    return merged


def _show_bundle(data: Mapping[str, Any], metadata: Mapping[str, Any], prefix: str) -> Piece:
    """The richest of an output's forms that can be shown without running anything."""
    notes = []
    if "text/html" in data:
        text = _join(data["text/html"])
        if len(text) <= MAX_HTML_CHARACTERS:
            piece = _show_html(text, prefix, data)
            if piece:
                return piece
        notes.append(f"its html ({format_bytes(len(text))}) is not shown")
    for mime in IMAGES:
        image = _show_image(mime, data, metadata) if mime in data else None
        if image:
            return image
    for mime in TEXTS:
        if mime in data:
            value = data[mime]
            text = json.dumps(value, indent=1) if "json" in mime else _join(value)
            return _show_text(text, mime, "result", note="; ".join(notes))
    kinds = ", ".join(sorted(str(kind) for kind in data)) or "nothing"
    return _show_text(f"[an output of {kinds}]", "output", "result")


def _show_html(text: str, prefix: str, data: Mapping[str, Any]) -> Piece | None:
    """The cleaned html; None where it lives by its scripts and there is another form of it."""
    others = any(mime in data for mime in (*IMAGES, *TEXTS))
    if others and "<script" in text.lower() and not SHOWS_SOMETHING.search(UNSEEN.sub("", text)):
        return None
    return Piece("html", _measure(text), lambda: _wrap_html(clean_html(text, prefix)))


def _wrap_html(cleaned: str) -> str:
    return f'<div class="rich">{cleaned}</div>'


def _show_image(mime: str, data: Mapping[str, Any], metadata: Mapping[str, Any]) -> Piece | None:
    """The image as data in the page; None where its data is broken or beyond all bounds."""
    text = _join(data[mime])
    if mime == "image/svg+xml":
        encoded = base64.b64encode(text.encode(errors="replace")).decode()
    else:
        encoded = "".join(text.split())
        try:
            base64.b64decode(encoded, validate=True)
        except (binascii.Error, ValueError):
            return None
    if not encoded or len(encoded) > MAX_IMAGE_CHARACTERS:
        return None
    plain = _join(data.get("text/plain")).strip()
    alt = plain[:200] if plain and not plain.startswith("<") else "a picture the cell drew"
    paper = metadata.get("needs_background")
    css = f' class="on-{paper}"' if paper in ("light", "dark") else ""
    page = f'<img{css} src="data:{mime};base64,{encoded}" alt="{escape(alt)}">'
    return Piece(mime, len(page), lambda: f'<div class="rich">{page}</div>')


def _show_text(
    text: str, what: str, css: str, limit: int = MAX_TEXT_CHARACTERS, note: str = ""
) -> Piece:
    said = f'<p class="left-out">{escape(note)}</p>' if note else ""
    return Piece(
        what,
        min(_measure(text), 2 * limit),
        lambda: f'<pre class="{css}">{escape_block(text, limit)}</pre>{said}',
    )


def _measure(text: str) -> int:
    """About how many bytes the text takes in the page."""
    return len(text) if text.isascii() else len(text.encode(errors="replace"))


def _join(value: object) -> str:
    """A text of the notebook format, which may be kept as a list of its lines."""
    if isinstance(value, str):
        return value
    return "".join(str(line) for line in value) if isinstance(value, list) else ""
