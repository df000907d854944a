"""Draws the shapes of tensors of 0 to 4 dimensions: a picture has one square for each value."""

from __future__ import annotations

import itertools
import math
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

from labkit.errors import UsageError
from labkit.text import plural

MOST_DIMENSIONS = 4
# Most stacks, sheets, rows and columns drawn: more do not fit on a notebook's page.
MOST_DRAWN = (1, 4, 8, 8)
MOST_DRAWN_OF_STACKS = (3, 4, 5, 5)
LONGEST_VALUE = 5

_CELL = 30  # pixels
_SHEET_STEP = 9  # offset of each sheet from the one before it
_STACK_GAP = 20
_MARGIN = 24  # room for the labels of the dimensions

# JupyterLab's theme sets the variable; other pages use their own text color.
_INK = "var(--jp-content-font-color1, currentColor)"
_LINE = f"stroke: {_INK}; stroke-opacity: 0.55"
_OWN = f"fill: #1f83c4; fill-opacity: 0.3; {_LINE}"
_REPEATED = f"fill: none; stroke-dasharray: 3 3; {_LINE}"
_TEXT = f"fill: {_INK}; text-anchor: middle; dominant-baseline: central"


@dataclass(frozen=True)
class ShapePicture:
    """The picture of one tensor: its name, shape, dtype, and its values if they fit.

    ``repeated`` is true for the dimensions that repeat the same memory (stride 0).
    """

    name: str
    shape: tuple[int, ...]
    dtype: str
    repeated: tuple[bool, ...]
    values: tuple[tuple[str, ...], ...] | None = None


def draw_shapes(*tensors: Any, values: bool = False, **named: Any) -> None:
    """Shows pictures of the shapes side by side, a square for each value; prints text elsewhere.

    Takes torch tensors and NumPy arrays of 0 to 4 dimensions, by position or by keyword, which
    names the picture: ``draw_shapes(row=torch.arange(3), column=torch.ones(3, 1))``.
    ``values=True`` writes the values into pictures of up to two dimensions. Values that a
    broadcast repeats (stride 0) are dashed. Only the start of a long dimension is drawn; its
    label gives the length. Raises UsageError for no shape, or more than 4 dimensions.
    """
    subjects = [("", tensor) for tensor in tensors] + list(named.items())
    pictures = [read_picture(tensor, name=name, values=values) for name, tensor in subjects]
    text = "\n".join(describe_picture(picture) for picture in pictures)
    ipython = sys.modules.get("IPython")
    if ipython is None or ipython.get_ipython() is None:
        print(text)
        return
    from IPython.display import display

    display({"text/html": render_pictures(pictures), "text/plain": text}, raw=True)


def read_picture(tensor: Any, *, name: str = "", values: bool = False) -> ShapePicture:
    """The picture of a torch tensor or NumPy array; reads its values only with ``values=True``."""
    if not hasattr(tensor, "shape") or not hasattr(tensor, "dtype"):
        raise UsageError(
            f"draw_shapes got {tensor!r}, which has no shape",
            cause="it draws torch tensors and NumPy arrays",
            fix="draw_shapes(torch.tensor(...))",
        )
    shape = tuple(int(length) for length in tensor.shape)
    if len(shape) > MOST_DIMENSIONS:
        raise UsageError(
            f"draw_shapes got a tensor of {len(shape)} dimensions, shape {shape}",
            cause=f"it draws 0 to {MOST_DIMENSIONS} dimensions",
            fix="draw_shapes(x[0])",
        )
    strides = tensor.stride() if hasattr(tensor, "stride") else tensor.strides
    repeated = tuple(step == 0 and length > 1 for step, length in zip(strides, shape, strict=True))
    cells = _read_values(tensor, shape) if values else None
    return ShapePicture(name, shape, str(tensor.dtype).removeprefix("torch."), repeated, cells)


def _read_values(tensor: Any, shape: tuple[int, ...]) -> tuple[tuple[str, ...], ...] | None:
    """The drawn values as rows of short texts, or None if they do not fit."""
    if len(shape) > 2 or 0 in shape:
        return None
    drawn = tuple(slice(MOST_DRAWN[-1]) for _ in shape)
    rows = tensor[drawn].tolist()
    for _ in range(2 - len(shape)):
        rows = [rows]
    texts = tuple(tuple(format_cell(value) for value in row) for row in rows)
    fits = all(len(text) <= LONGEST_VALUE for row in texts for text in row)
    return texts if fits else None


def format_cell(value: complex) -> str:
    """A number as a short text, with at most three significant digits.

    >>> format_cell(2.0), format_cell(0.12345), format_cell(True)
    ('2', '0.123', 'T')
    """
    if isinstance(value, bool):
        return "T" if value else "F"
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def describe_picture(picture: ShapePicture) -> str:
    """The picture in one line, for a screen reader and for a terminal.

    >>> describe_picture(ShapePicture("x", (2, 3), "float32", (False, False)))
    'x: shape (2, 3), 2 dimensions, 6 values, float32'
    """
    count = math.prod(picture.shape)
    parts = [
        f"shape {picture.shape}",
        plural(len(picture.shape), "dimension"),
        plural(count, "value"),
        picture.dtype,
    ]
    parts += [f"dimension {at} repeats" for at, again in enumerate(picture.repeated) if again]
    if picture.values is not None:
        rows = "; ".join(" ".join(row) for row in picture.values)
        parts.append(f"{'values' if _drawn(picture) == _full(picture) else 'begins'} {rows}")
    text = ", ".join(parts)
    return f"{picture.name}: {text}" if picture.name else text


def _full(picture: ShapePicture) -> tuple[int, ...]:
    """The lengths as (stacks, sheets, rows, columns), 1 for each missing dimension."""
    return (1,) * (MOST_DIMENSIONS - len(picture.shape)) + picture.shape


def _drawn(picture: ShapePicture) -> tuple[int, ...]:
    most = MOST_DRAWN_OF_STACKS if len(picture.shape) == MOST_DIMENSIONS else MOST_DRAWN
    return tuple(map(min, _full(picture), most))


def render_pictures(pictures: Sequence[ShapePicture]) -> str:
    """The pictures as one HTML fragment: figures side by side, wrapped on a narrow page."""
    style = "display: flex; flex-wrap: wrap; gap: 8px 28px; align-items: flex-end"
    return f'<div style="{style}">{"".join(map(_render_figure, pictures))}</div>'


def _render_figure(picture: ShapePicture) -> str:
    name = f"<b>{escape(picture.name)}</b><br/>" if picture.name else ""
    caption = f"{name}{picture.shape} {picture.dtype}"
    return (
        f'<figure style="margin: 0; text-align: center; color: {_INK}">{_render_svg(picture)}'
        f'<figcaption style="font-size: 13px; line-height: 1.4">{caption}</figcaption></figure>'
    )


def _render_svg(picture: ShapePicture) -> str:
    stacks, sheets, rows, columns = _drawn(picture)
    stack_width = columns * _CELL + (sheets - 1) * _SHEET_STEP
    width = stacks * stack_width + (stacks - 1) * _STACK_GAP
    height = rows * _CELL + (sheets - 1) * _SHEET_STEP
    if 0 in picture.shape:
        width, height = 3 * _CELL, _CELL
        body = [_rectangle(0, 0, width, height, _REPEATED), _text(width / 2, height / 2, "empty")]
    else:
        lefts = [at * (stack_width + _STACK_GAP) for at in range(stacks)]
        body = [part for at, x in enumerate(lefts) for part in _draw_stack(picture, at, x)]
    body += _draw_labels(picture, width, height)
    wide, high = width + 2 * _MARGIN, height + 2 * _MARGIN + 18 * (len(picture.shape) == 4)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" role="img" width="{wide:g}" height="{high:g}"'
        f' viewBox="{-_MARGIN} {-_MARGIN} {wide:g} {high:g}" style="overflow: visible"'
        f' aria-label="{escape(describe_picture(picture))}">{"".join(body)}</svg>'
    )


def _draw_stack(picture: ShapePicture, stack: int, x: float) -> Iterator[str]:
    """One stack of sheets, the farthest first; only the front sheet has all its cells drawn."""
    _, sheets, rows, columns = _drawn(picture)
    repeated = (False,) * (MOST_DIMENSIONS - len(picture.shape)) + picture.repeated

    def is_repeat(*position: int) -> bool:
        return any(at > 0 and again for at, again in zip(position, repeated, strict=True))

    for sheet in range(sheets - 1, 0, -1):
        top = (sheets - 1 - sheet) * _SHEET_STEP
        style = _REPEATED if is_repeat(stack, sheet, 0, 0) else _OWN
        yield _draw_edge(x + sheet * _SHEET_STEP, top, rows, columns, style)
    for row, column in itertools.product(range(rows), range(columns)):
        left, top = x + column * _CELL, (sheets - 1) * _SHEET_STEP + row * _CELL
        style = _REPEATED if is_repeat(stack, 0, row, column) else _OWN
        # Drawn slightly smaller, so that the dashes of neighbors do not overlap.
        inset = 2 if style == _REPEATED else 0
        yield _rectangle(left + inset, top + inset, _CELL - 2 * inset, _CELL - 2 * inset, style)
        if picture.values is not None:
            yield _text(left + _CELL / 2, top + _CELL / 2, picture.values[row][column], size=11)


def _draw_edge(x: float, y: float, rows: int, columns: int, style: str) -> str:
    """The visible part of a sheet behind another: a strip at its top and its right side."""
    width, height, step = columns * _CELL, rows * _CELL, _SHEET_STEP
    strokes = [f"M{x:g} {y:g}h{width}v{height}h{-step}v{step - height}h{step - width}z"]
    strokes += [f"M{x + column * _CELL:g} {y:g}v{step}" for column in range(1, columns)]
    right = x + width - step
    strokes += [f"M{right:g} {y + row * _CELL:g}h{step}" for row in range(1, rows)]
    return f'<path d="{"".join(strokes)}" style="{style}"/>'


def _draw_labels(picture: ShapePicture, width: float, height: float) -> Iterator[str]:
    """The number and length of each dimension, along its side of the picture."""
    dimensions = len(picture.shape)
    front_height = height if 0 in picture.shape else _drawn(picture)[2] * _CELL
    places = (
        (width / 2, height + 31, 0),
        (width / 2, -12, 0),
        (-12, height - front_height / 2, -90),
        (width / 2, height + 12, 0),
    )[MOST_DIMENSIONS - dimensions :]
    drawn = _drawn(picture)[MOST_DIMENSIONS - dimensions :]
    for number, (x, y, turn) in enumerate(places):
        length = picture.shape[number]
        cut = f", {drawn[number]} drawn" if drawn[number] < length else ""
        yield _text(x, y, f"dim {number}: {length}{cut}", turn=turn)


def _rectangle(x: float, y: float, width: float, height: float, style: str) -> str:
    place = f'x="{x:g}" y="{y:g}" width="{width:g}" height="{height:g}"'
    return f'<rect {place} style="{style}"/>'


def _text(x: float, y: float, text: str, *, size: int = 12, turn: int = 0) -> str:
    turned = f' transform="rotate({turn} {x:g} {y:g})"' if turn else ""
    style = f"{_TEXT}; font-size: {size}px"
    return f'<text x="{x:g}" y="{y:g}"{turned} style="{style}">{escape(text)}</text>'
