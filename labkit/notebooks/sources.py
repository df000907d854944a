"""Finds and reads the notebooks of a run: a notebook file, or a lab's reference version.

Parameters are papermill's: a cell with the tag ``parameters`` holds the defaults, and a cell with
the tag ``injected-parameters`` is put after it (https://papermill.readthedocs.io).
"""

from __future__ import annotations

import ast
import contextlib
import json
import keyword
import logging
import math
import re
import shlex
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from labkit.errors import UsageError
from labkit.files import name_kind, read_regular
from labkit.notebooks.fences import (
    BLOCKS_KEY,
    KNITR_ENGINES,
    LANGUAGE_KEY,
    LINES_KEY,
    NO_CODE,
    OPTION_KEY,
    SHELLS,
    WITHOUT_MAGIC,
    apply_options,
    count_blocks,
    declare_language,
    drop_unread,
    hide_break,
    is_declared,
    is_of_jupytext,
    leave_blocks,
    leave_engines,
    read_common,
    read_lines,
    show_break,
    split_header,
    unindent_chunks,
)
from labkit.notebooks.headers import HeaderError, RCode, check_header, split_lines
from labkit.notebooks.quarto import describe_kernel, read_quarto
from labkit.text import escape_controls, first_line, plural

# A name with one of these endings is a file; jupytext reads all but the first and the last.
SUFFIXES = (".ipynb", ".py", ".md", ".myst", ".Rmd", ".qmd")
# Of the files of a folder, a .md or a .py is the least likely to be a notebook.
LIKELIEST = (".ipynb", ".qmd", ".Rmd", ".myst", ".py", ".md")
CELL_TYPES = ("code", "markdown", "raw")
# Levels of lists and objects: nbformat and the JSON encoder recurse; Python's limit is 1000.
DEEPEST = 200


@dataclass(frozen=True)
class Source:
    """A notebook to run, not read yet; a lab has no file, ``make`` makes its notebook."""

    name: str
    path: Path
    make: Callable[[], Any] | None = None

    @property
    def is_lab(self) -> bool:
        """True for a lab's reference version."""
        return self.make is not None


def is_path(word: str) -> bool:
    """True if the word names a file, not a lab."""
    return word.endswith(SUFFIXES) or "/" in word


def find_file(word: str) -> Source:
    """The notebook file at that path. Raises UsageError if there is none."""
    path, shown = Path(word), escape_controls(word)
    if not path.is_file():
        cause = f"{escape_controls(str(path.parent.resolve()))} has no file of that name"
        with contextlib.suppress(OSError):
            cause = f"{shown} is {name_kind(path.lstat().st_mode)}, not a file"
        fix = None
        if path.is_dir():
            pattern = _find_pattern(path)
            fix = f"labkit run {pattern}" if pattern else "labkit run --all   # the lab's own"
            cause = cause if pattern else f"it is a folder, and has none of {', '.join(SUFFIXES)}"
        raise UsageError(f"there is no notebook {shown}", cause=cause, fix=fix)
    if path.suffix not in SUFFIXES:
        raise UsageError(
            f"{shown} is not a notebook", cause=f"its name ends in none of {', '.join(SUFFIXES)}"
        )
    return Source(path.stem, path)


def _find_pattern(folder: Path) -> str | None:
    """What a shell expands to notebooks of the folder, or of a folder in it; None without any."""
    inner: list[Path] = []
    with contextlib.suppress(OSError):
        inner = sorted(one for one in folder.iterdir() if one.name[0] != "." and one.is_dir())
    for one in (folder, *inner):
        for suffix in LIKELIEST:
            with contextlib.suppress(OSError):
                if any(file.is_file() for file in one.glob(f"[!.]*{suffix}")):
                    return f"{escape_controls(shlex.quote(str(one)))}/*{suffix}"
    return None


def load_notebook(source: Source) -> Any:
    """The notebook (nbformat 4) of a source. Raises UsageError with file and cause if invalid."""
    if source.make is not None:
        return source.make()
    try:
        text = read_regular(source.path).decode("utf-8-sig")  # also with a byte order mark
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"{source.path} cannot be read", cause=str(error)) from error
    is_json = source.path.suffix == ".ipynb"
    notebook = (_parse_ipynb if is_json else _parse_script)(source.path, text)
    if not any(cell.source.strip() for cell in notebook.cells if cell.cell_type != "raw"):
        cause = "its cells are empty" if notebook.cells else "it has no cells"
        cause = cause if text.strip() else "the file is empty"
        raise UsageError(f"{source.path} has no code", cause=cause)
    return notebook


def _parse_ipynb(path: Path, text: str) -> Any:
    import nbformat

    raw = _parse_json(path, text)
    try:
        # nbformat logs what it finds wrong. nbclient runs the notebook anyway: saved outputs that
        # do not fit the schema do not matter.
        with warnings.catch_warnings(), _quiet_log("traitlets"):
            warnings.simplefilter("ignore")
            notebook = nbformat.reads(text, as_version=4)
    except Exception as error:
        # A broken file can raise anything in nbformat: KeyError, AttributeError, its own errors.
        cause = find_defect(raw, text) or _describe(error)
        raise UsageError(f"{path} is not a valid notebook", cause=cause) from error
    defect = find_defect(raw, text)
    if defect:
        raise UsageError(f"{path} is not a valid notebook", cause=defect)
    return notebook


def _parse_json(path: Path, text: str) -> Any:
    """The file's content. Raises UsageError with line and column if it is not JSON."""
    try:
        raw = json.loads(text)
    except json.JSONDecodeError as error:
        place = f"line {error.lineno} column {error.colno}"
        cause = name_content(text) or f"{place}: {error.msg}"
        raise UsageError(f"{path} is not a notebook", cause=cause) from error
    except (RecursionError, ValueError) as error:  # ValueError: a number of too many digits
        raise UsageError(f"{path} is not a notebook", cause=_describe(error)) from error
    if is_nested_too_deep(raw):
        raise UsageError(
            f"{path} is not a valid notebook", cause=f"it is nested more than {DEEPEST} levels deep"
        )
    return raw


def name_content(text: str) -> str | None:
    """What a file holds instead of a notebook, and what to do; None if it is not known.

    >>> name_content("")
    'the file is empty'
    """
    if not text.strip():
        return "the file is empty"
    if text.startswith("version https://git-lfs."):
        return "it is a pointer of Git LFS; git lfs pull fetches the notebook"
    if re.search(r"^<{7} ", text, re.MULTILINE) and re.search(r"^>{7}", text, re.MULTILINE):
        return "it has the marks of a merge conflict (<<<<<<<); resolve it with git mergetool"
    if text.lstrip()[:1] == "<":
        return "it is a page of HTML, not the file; on GitHub download the raw file"
    return None


def find_defect(raw: Any, text: str) -> str | None:
    """Why this content cannot run as a notebook, with the line; None if it can."""
    if not isinstance(raw, dict) or not isinstance(raw.get("nbformat"), int):
        return "it is JSON, but has no nbformat number"
    if raw["nbformat"] < 4:
        return None  # an older format, which nbformat converts
    cells = raw.get("cells")
    if not isinstance(cells, list):
        return "it has no list of cells"
    if not isinstance(raw.get("metadata"), dict):
        return "it has no metadata"
    for number, cell in enumerate(cells, start=1):
        defect = _find_cell_defect(cell)
        if defect:
            return f"line {_find_line(text, number)}: cell {number} {defect}"
    return None


def _find_cell_defect(cell: Any) -> str | None:
    if not isinstance(cell, dict):
        return "is not an object"
    if cell.get("cell_type") not in CELL_TYPES:
        return f"has the cell_type {cell.get('cell_type')!r}, not {', '.join(CELL_TYPES)}"
    source = cell.get("source")
    lines = source if isinstance(source, list) else [source]
    if not all(isinstance(line, str) for line in lines):
        return "has no source text"
    return None if isinstance(cell.get("metadata"), dict) else "has no metadata"


def _find_line(text: str, number: int) -> int:
    """The line at which the cell with this number (from 1) starts."""
    decoder = json.JSONDecoder()
    start = re.search(r'"cells"\s*:\s*\[', text)
    position = start.end() if start else 0
    with contextlib.suppress(json.JSONDecodeError):  # another "cells" came before the real one
        for _ in range(number - 1):
            _, position = decoder.raw_decode(text, _skip(text, position))
    return text.count("\n", 0, _skip(text, position)) + 1


def _skip(text: str, position: int) -> int:
    """The next position that is neither white space nor a comma."""
    found = re.compile(r"[\s,]*").match(text, position)
    return found.end() if found else position


def is_nested_too_deep(value: Any, limit: int = DEEPEST) -> bool:
    """True if lists and objects are nested more than ``limit`` levels deep.

    >>> is_nested_too_deep([[1]], limit=1), is_nested_too_deep([1, 2], limit=1)
    (True, False)
    """
    level, depth = [value], 0
    while level:
        level = [one for one in level if isinstance(one, Mapping | list | tuple)]
        depth += bool(level)
        if depth > limit:
            return True
        level = [
            inner for one in level for inner in (one.values() if isinstance(one, Mapping) else one)
        ]
    return False


@contextlib.contextmanager
def _quiet_log(name: str) -> Iterator[None]:
    log = logging.getLogger(name)
    before, log.disabled = log.disabled, True
    try:
        yield
    finally:
        log.disabled = before


def _describe(error: Exception) -> str:
    if isinstance(error, RecursionError):
        return "it is nested too deep"
    return first_line(str(error)) or type(error).__name__


def _parse_script(path: Path, text: str) -> Any:
    if has_alias_bomb(text):
        raise UsageError(
            f"{path} is not a notebook",
            cause=f"its YAML header uses more than {MOST_ALIASES} aliases",
            fix="write the values out",
        )
    try:
        notebook = _read_script(path, text)
    except Exception as error:
        # jupytext does not wrap the exceptions of its readers.
        known = error if isinstance(error, HeaderError) else _find_header_error(path, text)
        fix = _name_edit(path, known) if known else None
        raise UsageError(
            f"{path} is not a notebook", cause=_describe(known or error), fix=fix
        ) from error
    if is_nested_too_deep(notebook):
        raise UsageError(
            f"{path} is not a notebook", cause=f"it is nested more than {DEEPEST} levels deep"
        )
    return notebook


def _name_edit(path: Path, error: HeaderError) -> str:
    where = "" if error.line is None else f", line {error.line}"
    return f"edit {path}{where}: {error.fix}"


def _find_header_error(path: Path, text: str) -> HeaderError | None:
    """What is wrong with the header of a document or script that jupytext cannot read."""
    lines, is_script = split_lines(text), path.suffix == ".py"
    if is_script:
        lines = [_COMMENT.sub("", line) for line in lines]
    start = next((number for number, line in enumerate(lines) if line.strip()), 0)
    header, _ = split_header(lines[start:], is_script=is_script)
    try:
        check_header(header, start + 2, tags=path.suffix == ".Rmd")
    except HeaderError as error:
        return error
    except RecursionError:
        return None
    return None


def _read_script(path: Path, text: str) -> Any:
    if path.suffix == ".qmd":  # jupytext needs Quarto's program for it
        return read_quarto(text)
    import jupytext
    from jupytext.languages import _JUPYTER_LANGUAGES

    kind, known = path.suffix[1:], [one.lower() for one in _JUPYTER_LANGUAGES]
    blocks, is_notebook = None, is_declared(text)
    before = text.count("\n")
    # jupytext runs what R Markdown refuses: any text beside the header's part that is its own.
    if kind == "Rmd" and not is_of_jupytext(text):
        check_header(split_header(split_lines(text))[0], 2)
    whole = text
    if kind != "py":
        text = hide_break(text, is_markdown=kind != "Rmd")
        text = drop_unread(text, is_myst=kind == "myst" or "{code-cell}" in text)
    before -= text.count("\n")  # lines of the header
    if kind == "Rmd":
        has_magics = is_notebook or "%load_ext" in text
        blocks = leave_engines(unindent_chunks(text), known, has_magics=has_magics)
        text = blocks.text
    if kind == "md" and not is_notebook:
        blocks = leave_blocks(text, known)
        text = blocks.text
    notebook = jupytext.reads(text, fmt=kind)
    if kind == "Rmd" and _find_main_language(notebook) in SHELLS and not is_notebook:
        # Knitr runs a shell's chunks beside those of another language.
        others = {cell.source.partition("\n")[0] for cell in notebook.cells}
        main = "R" if "%%R" in others and not {"%%python", "%%python3"} & others else "python"
        notebook = jupytext.reads(declare_language(text, main), fmt=kind)
    if blocks:
        blocks.restore(notebook.cells, before)
        _number_chunks(notebook.cells, [before + 1 + place for place in blocks.chunks])
    if kind != "py":
        show_break(notebook.cells, whole)
    _mark_left(notebook, kind, known)
    return notebook


def _mark_left(notebook: Any, kind: str, known: Sequence[str]) -> None:
    """Makes text of what does not run, by its language, and tags what is skipped by its options."""
    # In a script the magic is the author's own, and a run without it fails.
    _leave_other_languages(notebook, (*known, *WITHOUT_MAGIC) if kind != "py" else WITHOUT_MAGIC)
    if kind != "py":
        for cell in notebook.cells:
            is_left = isinstance(cell.metadata.get(LANGUAGE_KEY), str)  # it is counted already
            if cell.cell_type == "markdown" and not is_left:
                cell.metadata[BLOCKS_KEY] = count_blocks(cell.source)
    if kind == "Rmd":
        common = read_common(cell.source for cell in notebook.cells)
        for cell in notebook.cells:
            if cell.cell_type == "code":
                apply_options(cell, {**common, **_read_chunk_options(cell)})
    for cell in notebook.cells:
        if not {LANGUAGE_KEY, OPTION_KEY} & cell.metadata.keys():
            cell.metadata.pop(LINES_KEY, None)


def _number_chunks(cells: Sequence[Any], lines: Sequence[int]) -> None:
    """Notes in which line of the document each code cell begins, where each has one."""
    chunks = [cell for cell in cells if cell.cell_type == "code"]
    if len(chunks) == len(lines):
        for cell, line in zip(chunks, lines, strict=True):
            cell.metadata[LINES_KEY] = [line]


def _find_main_language(notebook: Any) -> str:
    return str(notebook.metadata.get("jupytext", {}).get("main_language", "python")).lower()


def _read_chunk_options(cell: Any) -> dict[str, Any]:
    """The options of a chunk of R Markdown: jupytext has those of its fence in the metadata."""
    mark = "#R_CODE#"  # jupytext's, of what it does not read
    fence = {
        name: RCode(value.removeprefix(mark))
        if isinstance(value, str) and value.startswith(mark)
        else value
        for name, value in cell.metadata.items()
        if name in ("eval", "error")
    }
    # A chunk of another language has its magic in the first line.
    found = _MAGIC.match(cell.source)
    place = next(iter(cell.metadata.get(LINES_KEY, ())), None)
    first = None if place is None else place + 1
    return {**fence, **read_lines(cell.source[found.end() :] if found else cell.source, first)}


_MAGIC = re.compile(r"%%(\S+)[^\n]*\n")
# Of the languages for which jupytext writes magics, those that IPython has by itself.
WITH_MAGIC = (
    *("bash", "sh", "script", "python", "python2", "python3", "pypy", "perl", "ruby"),
    *("javascript", "js", "html", "svg", "latex", "markdown"),
)


def _leave_other_languages(notebook: Any, known: Sequence[str]) -> None:
    """Names the kernel that the document's own language needs, and makes text of other blocks.

    Jupytext names none where the header does not: R would run as Python. ``known`` are the
    languages whose magics stand for blocks.
    """
    metadata = notebook.metadata
    language = _find_main_language(notebook)
    if "kernelspec" not in metadata and language != "python":
        metadata["kernelspec"] = describe_kernel(language)
    if any("%load_ext" in cell.source for cell in notebook.cells):
        return
    runs = WITH_MAGIC if find_language(notebook) == "python" else ()
    for cell in notebook.cells:
        found = _MAGIC.match(cell.source) if cell.cell_type == "code" else None
        name = found[1].lower() if found else ""
        if found and name in known and name not in runs:
            code = cell.source[found.end() :]
            cell.update(cell_type="markdown", source=f"```{name}\n{code}\n```")
            cell.metadata[LANGUAGE_KEY] = name
            for key in ("outputs", "execution_count"):
                cell.pop(key, None)


# Nested YAML aliases grow exponentially when they are traversed, as jupytext does.
MOST_ALIASES = 16
_ALIAS = re.compile(r"(?:^|[\s\[{,:-])\*[^\s\[\]{},]+")
_COMMENT = re.compile(r"^\s*(?:#|//|%|;)'?\s?")
_MYST_CELL = re.compile(r"^\s*[`~:]{3,}\s*\{")


def has_alias_bomb(text: str) -> bool:
    """True if the YAML that jupytext reads in a script uses more than 16 aliases.

    >>> has_alias_bomb("---\\na: &a 1\\nb: [" + "*a, " * 17 + "]\\n---\\n")
    True
    """
    return any(len(_ALIAS.findall(line_block)) > MOST_ALIASES for line_block in _find_yaml(text))


def _find_yaml(text: str) -> Iterator[str]:
    """The YAML header between two lines of dashes, and the options of MyST cells."""
    lines = [_COMMENT.sub("", line).rstrip() for line in text.splitlines()]
    if "---" in lines:
        yield _read_block(lines, lines.index("---") + 1)
    for place, line in enumerate(lines):
        if _MYST_CELL.match(line):
            yield _read_options(lines, place + 1)


def _read_block(lines: Sequence[str], start: int) -> str:
    end = start
    while end < len(lines) and lines[end] not in ("---", "..."):
        end += 1
    return "\n".join(lines[start:end])


def _read_options(lines: Sequence[str], start: int) -> str:
    if lines[start : start + 1] == ["---"]:
        return _read_block(lines, start + 1)
    end = start
    while end < len(lines) and lines[end].startswith(":"):
        end += 1
    return "\n".join(lines[start:end])


# What is said of a notebook's cells.


def has_code(notebook: Any) -> bool:
    """True if the notebook has a code cell with a source."""
    return any(cell.cell_type == "code" and cell.source.strip() for cell in notebook.cells)


# What keeps an engine's chunks from running, besides that the kernel runs another language.
KERNEL_OF_ITS_OWN, OF_KNITR = "needs a kernel of its own", "runs in knitr alone"
# The most lines that a note lists of one kind.
MOST_LINES = 4


def note_not_run(notebook: Any) -> list[str]:
    """Which blocks of code a run leaves out, as notes; none if the kernel runs all of them."""
    left: dict[str, list[int | None]] = {}
    options: dict[str, list[int | None]] = {}
    for cell in notebook.cells:
        found = cell.metadata.get(LANGUAGE_KEY, [])
        languages = [found] if isinstance(found, str) else [str(one) for one in found]
        lines = cell.metadata.get(LINES_KEY) or [None] * max(1, len(languages))
        for language, line in zip(languages, lines, strict=False):
            left.setdefault(language, []).append(line)
        if OPTION_KEY in cell.metadata:
            options.setdefault(cell.metadata[OPTION_KEY], []).append(lines[0])
    notes = [] if has_code(notebook) else [NO_CODE]
    if left:
        counts = [_count_cells(lines, f"of {{{one}}}") for one, lines in left.items()]
        language = notebook.metadata.get("kernelspec", {}).get("language", "python")
        why = "".join(f", {{{one}}} {_explain(one)}" for one in left if _explain(one))
        notes.append(f"not run: {', '.join(counts)}; the document's kernel runs {language}{why}")
    blocks = sum(cell.metadata.get(BLOCKS_KEY, 0) for cell in notebook.cells)
    if blocks:
        notes.append(
            f"not run: {plural(blocks, 'block')} of Python, which {'is' if blocks == 1 else 'are'}"
            " text for jupytext: indented, quoted, in other marks than ```python, or beside"
            " {code-cell}"
        )
    if options:
        counts = [_count_cells(lines, f"with {one}") for one, lines in options.items()]
        unknown = any(not one.endswith("=FALSE") for one in options)
        why = "; R code in an option is not evaluated" if unknown else ""
        notes.append(f"not run: {', '.join(counts)}{why}")
    return notes


def _count_cells(lines: Sequence[int | None], words: str) -> str:
    """How many cells of a kind there are, and in which lines; some, where there are many."""
    count = f"{plural(len(lines), 'cell')} {words}"
    known = [str(line) for line in lines if line is not None]
    if len(known) < len(lines):
        return count
    shown = ", ".join(known[:MOST_LINES]) + " ..." * (len(known) > MOST_LINES)
    return f"{count} (line{'s' * (len(known) > 1)} {shown})"


def _explain(engine: str) -> str:
    if engine in WITHOUT_MAGIC:
        return KERNEL_OF_ITS_OWN
    return OF_KNITR if engine in KNITR_ENGINES else ""


# A cell of any language may begin with options, in comments of its language.
ANY_OPTION = re.compile(r"(?:#|//|--|%) ?\|")
LABEL = re.compile(ANY_OPTION.pattern + r"\s*label:\s*(?P<quote>[\"']?)(?P<label>.*\S)(?P=quote)$")


def find_label(source: str) -> str:
    """What a cell is called: its option ``#| label:``, else its first line of code; "" if empty.

    >>> find_label("#| echo: false\\nprint(1)"), find_label("#| label: fig-loss\\nplot()")
    ('print(1)', 'fig-loss')
    """
    lines = [line.strip() for line in source.splitlines() if line.strip()]
    for line in lines:
        found = LABEL.match(line)
        if found:
            return found["label"]
        if not ANY_OPTION.match(line):
            return line
    return lines[0] if lines else ""


# Parameters.

PARAMETERS_TAG = "parameters"
INJECTED_TAG = "injected-parameters"
CONSTANTS = {"True": True, "False": False, "None": None}


def parse_parameters(pairs: Sequence[Sequence[str]]) -> dict[str, Any]:
    """The names and values typed after ``-p``: True, False, None, numbers, and else text.

    Raises UsageError for a name that Python cannot assign to.

    >>> parse_parameters([("rate", "1e-3"), ("epochs", "3"), ("name", "adam")])
    {'rate': 0.001, 'epochs': 3, 'name': 'adam'}
    """
    for name, _ in pairs:
        if not name.isidentifier() or keyword.iskeyword(name):
            raise UsageError(
                f"invalid parameter name {escape_controls(name)!r}",
                cause="it is the name of a variable in the notebook",
                fix="labkit run NOTEBOOK -p NAME VALUE",
            )
    return {name: _parse_value(value) for name, value in pairs}


def _parse_value(text: str) -> Any:
    if text in CONSTANTS:
        return CONSTANTS[text]
    for kind in (int, float):
        with contextlib.suppress(ValueError):
            return kind(text)
    return text


def inject_parameters(notebook: Any, parameters: Mapping[str, Any]) -> list[str]:
    """Puts a cell that assigns the parameters into the notebook; returns notes for the reader.

    The cell replaces one of an earlier run, else follows the cell with the tag ``parameters``,
    else comes first. A note names each parameter that the notebook does not declare. Raises
    UsageError if the notebook's language is not Python.
    """
    if not parameters:
        return []
    from nbformat.v4 import new_code_cell

    language = find_language(notebook)
    if language != "python":
        raise UsageError(f"parameters cannot be set in {language}", cause="only Python is written")
    lines = [f"{name} = {_write_value(value)}" for name, value in parameters.items()]
    cell = new_code_cell("\n".join(["# Parameters", *lines]), metadata={"tags": [INJECTED_TAG]})
    declared = _find_tagged(notebook, PARAMETERS_TAG)
    earlier = _find_tagged(notebook, INJECTED_TAG)
    if earlier is not None:
        notebook.cells[earlier] = cell
    else:
        notebook.cells.insert(0 if declared is None else declared + 1, cell)
    if declared is None:
        return ["no cell has the tag 'parameters'; they are set before the first cell"]
    known = _list_assigned(notebook.cells[declared].source)
    unknown = [name for name in parameters if known is not None and name not in known]
    return [f"the cell with the tag 'parameters' does not assign {name}" for name in unknown]


def find_language(notebook: Any) -> str:
    """The notebook's language in lower case, ``python`` if it names none."""
    metadata = notebook.metadata
    for key, name in (("kernelspec", "language"), ("language_info", "name")):
        found = metadata.get(key)
        if isinstance(found, Mapping) and isinstance(found.get(name), str) and found[name]:
            return str(found[name]).lower()
    return "python"


def _write_value(value: Any) -> str:
    # repr() writes inf and nan as names that Python does not define.
    is_special = isinstance(value, float) and not math.isfinite(value)
    return f"float({str(value)!r})" if is_special else repr(value)


def _find_tagged(notebook: Any, tag: str) -> int | None:
    tagged = (
        place
        for place, cell in enumerate(notebook.cells)
        if cell.cell_type == "code" and tag in (cell.metadata.get("tags") or [])
    )
    return next(tagged, None)


def _list_assigned(source: str) -> set[str] | None:
    """The names that this code assigns at its top level; None if it is not plain Python."""
    try:
        body = ast.parse(source).body
    except SyntaxError:
        return None
    names = (node for statement in body for node in ast.walk(statement))
    return {
        node.id for node in names if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)
    }
