"""Reads Quarto's markdown (.qmd) as a notebook, without Quarto.

Jupytext reads it by running ``quarto convert``, a program of 300 MB. What a run needs of the format
is small: the header names the kernel, and cells are fenced blocks such as ````` ```{python} `````
with options in their first lines (https://quarto.org/docs/computations/execution-options.html).
Blocks of other languages than the kernel's are text, as in Quarto's engine for Jupyter; their cells
carry the language in their metadata, and the run notes them.
"""

from __future__ import annotations

import re
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from labkit.notebooks.fences import (
    LANGUAGE_KEY,
    LINES_KEY,
    OPTION_KEY,
    WITHOUT_MAGIC,
    apply_options,
    read_engine,
    read_engine_option,
    read_fence_options,
    read_lines,
    read_yaml,
    split_header,
)
from labkit.notebooks.headers import check_header, split_lines

OPENING = re.compile(r"^\s*(?P<fence>`{3,}|~{3,})\s*(?P<rest>.*?)\s*$")
# Blocks that Quarto draws itself.
DIAGRAMS = {"mermaid", "dot", "ojs"}
KERNELS = {"python": "python3", "r": "ir"}


class Part(NamedTuple):
    """Lines of the file, and the language and code of a block; None for text.

    ``words`` are all that its braces have, and ``line`` is where the block begins, from 0.
    """

    text: str
    language: str | None = None
    code: str = ""
    words: str = ""
    line: int = 0


def read_quarto(text: str) -> Any:
    """The notebook (nbformat 4) of a Quarto document. Raises ValueError if its YAML is invalid.

    The tags of a cell's options are its tags. With ``eval: false`` a cell is not executed, and with
    ``error: true`` it may raise; the header's ``execute:`` sets both for all cells, and knitr's
    ``eval=FALSE`` in the braces does the same.
    """
    from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_raw_cell

    whole = split_lines(text)
    header, lines = split_header(whole, is_quarto=True)
    before = len(whole) - len(lines)
    settings = read_yaml("\n".join(header), first=2)
    check_header(header, 2, is_quarto=True)
    parts = list(_split_parts(lines))
    spec = _find_kernelspec(settings, parts)
    common = settings.get("execute")
    notebook = new_notebook(metadata={"kernelspec": spec})
    if header:
        notebook.cells.append(new_raw_cell("\n".join(["---", *header, "---"])))
    for part in parts:
        if part.language == spec["language"].lower():
            cell = new_code_cell(part.code)
            shared = common if isinstance(common, Mapping) else {}
            options = read_lines(part.code, before + part.line + 2)
            own = {**read_fence_options(part.words), **options}
            apply_options(cell, {**shared, **own})
            if OPTION_KEY in cell.metadata:
                cell.metadata[LINES_KEY] = [before + part.line + 1]
            notebook.cells.append(cell)
        elif part.text.strip():
            marks: dict[str, Any] = {}
            if part.language:
                marks = {LANGUAGE_KEY: part.language, LINES_KEY: [before + part.line + 1]}
            notebook.cells.append(new_markdown_cell(part.text.strip("\n"), metadata=marks))
    return notebook


def _split_parts(lines: Sequence[str]) -> Iterator[Part]:
    """The document's blocks with a language in braces, and the text between them."""
    words: list[str] = []
    place = 0
    while place < len(lines):
        opening = OPENING.match(lines[place])
        if opening is None:
            words.append(lines[place])
            place += 1
            continue
        end = _find_end(lines, place + 1, opening["fence"])
        language, _ = read_engine(opening["rest"])
        if not language or language in DIAGRAMS:  # only shown
            words += lines[place : end + 1]
        else:
            yield Part("\n".join(words))
            words = []
            code = textwrap.dedent("\n".join(lines[place + 1 : end]))
            language = read_engine_option(lines[place + 1 : end]) or language
            yield Part("\n".join(lines[place : end + 1]), language, code, opening["rest"], place)
        place = end + 1
    yield Part("\n".join(words))


def _find_end(lines: Sequence[str], start: int, fence: str) -> int:
    """The line that closes the block: at least as many of the same character, and nothing else."""
    for place in range(start, len(lines)):
        line = lines[place].strip()
        if len(line) >= len(fence) and set(line) == {fence[0]}:
            return place
    return len(lines)


def describe_kernel(language: str) -> dict[str, str]:
    """The ``kernelspec`` of a document that names only the language of its code."""
    name = KERNELS.get(language, language)
    return {"display_name": name, "language": language, "name": name}


def _find_kernelspec(settings: Mapping[str, Any], parts: Sequence[Part]) -> dict[str, str]:
    """The kernel of the header's ``jupyter:``, else of the first language that surely has one.

    Without one, it is that of the first block: Quarto asks Jupyter for each language's kernel.
    """
    languages = [part.language for part in parts if part.language] or ["python"]
    first = next((one for one in languages if one in (*KERNELS, *WITHOUT_MAGIC)), languages[0])
    named = settings.get("jupyter")
    spec = named.get("kernelspec", named) if isinstance(named, Mapping) else {"name": named}
    known = spec if isinstance(spec, Mapping) else {}
    words = {key: str(known[key]) for key in ("display_name", "language") if known.get(key)}
    if (name := known.get("name")) and isinstance(name, str):
        words = {"display_name": name, "name": name, **words}
    return {**describe_kernel(first), **words}
