"""The blocks of a markdown document: which of them are code, and what their options ask for.

A README shows commands that nobody asked to run, so a plain ``.md`` runs the blocks of its own
language alone; its header can say more (``jupytext:``, ``jupyter:``, ``kernelspec:``). A chunk of
R Markdown or Quarto has knitr's options, in its fence or in its first lines
(https://yihui.org/knitr/options/).
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import takewhile
from typing import Any, NamedTuple

from labkit.notebooks.headers import (
    HeaderError,
    RCode,
    find_nameless,
    has_keys,
    list_empty,
    load_yaml,
    split_lines,
)

# In the metadata of a text cell: the language of the code in it, or a list of them, which is not
# run.
LANGUAGE_KEY = "labkit_language"
# Beside it, or in the metadata of a code cell that an option keeps from running: the lines of the
# document, from 1, in which these blocks begin.
LINES_KEY = "labkit_lines"
# In the metadata of a code cell: the option that keeps it from running, as it is written.
OPTION_KEY = "labkit_not_run"

NO_CODE = "it has no code of the kernel's language"

# In the metadata of a text cell: how many blocks of Python it has, which jupytext left in it.
BLOCKS_KEY = "labkit_blocks"

# What shows a document instead of computing in it.
MARKUP = ("html", "latex", "markdown", "svg")
SHELLS = ("bash", "sh", "script", "shell", "zsh", "fish", "console", "powershell")
PYTHONS = ("python", "python3")
# Languages with a kernel of their own, for which IPython has no magic.
WITHOUT_MAGIC = ("r", "julia", "octave", "matlab", "stata", "sas", "scala")
# Of R Markdown's engines those that run in the kernel beside its own language, as knitr runs them.
ENGINES = (*PYTHONS, "bash", "sh")
# Those that knitr, or a package for it, has and Jupyter does not.
KNITR_ENGINES = (
    *("sql", "stan", "rcpp", "c", "cc", "fortran", "fortran95", "awk", "sed", "gawk", "haskell"),
    *("coffee", "css", "sass", "scss", "lein", "node", "go", "groovy", "psql", "mysql", "eviews"),
    *("targets", "bslib", "proof", "block", "block2", "glue", "gluesql", "webr", "pyodide"),
)
# Those that compute nothing: knitr or the page shows what they have.
SHOWN = ("asis", "cat", "comment", "dot", "embed", "mermaid", "ojs", "tikz", "verbatim", "exercise")


def split_header(
    lines: Sequence[str], *, is_script: bool = False, is_quarto: bool = False
) -> tuple[list[str], list[str]]:
    """The lines of the YAML header without its dashes, and the rest.

    Dashes with a blank line below them are a thematic break of a document, as for Quarto and
    pandoc, unless jupytext has written its own keys below it. A script has none.
    """
    if not lines or lines[0].rstrip() != "---":
        return [], list(lines)
    end = next((at for at, one in enumerate(lines[1:], 1) if one.rstrip() in ("---", "...")), 0)
    is_break = not is_script and not any(map(str.strip, lines[1:2]))
    if not end or (is_break and (is_quarto or not any(map(_DECLARATION.match, lines[1:end])))):
        return [], list(lines)
    return list(lines[1:end]), list(lines[end + 1 :])


def is_declared(text: str) -> bool:
    """True if the document's header says that it is a notebook.

    >>> is_declared("---\\njupytext:\\n  formats: md\\n---\\n"), is_declared("---\\ntitle: a\\n---")
    (True, False)
    """
    return any(value not in _NOTHING for _, _, value in _find_declarations(split_lines(text)))


def is_of_jupytext(text: str) -> bool:
    """True if the document's header has the part ``jupyter:`` that jupytext writes.

    >>> is_of_jupytext("---\\nA text.\\njupyter:\\n  jupytext: {}\\n---\\n")
    True
    """
    found = _find_declarations(split_lines(text))
    return any(key == "jupyter" and value == "{" for _, key, value in found)


def drop_unread(text: str, *, is_myst: bool) -> str:
    """The document for jupytext, without the lines of its header that jupytext cannot read.

    These are a header without keys, a value after ``jupytext:`` that is no mapping, and in MyST
    keys without a value. A kernel of MyST gets the display name that jupytext asks for.
    """
    lines = text.split("\n")
    dropped = {
        number
        for number, key, value in _find_declarations(lines)
        if value in _NOTHING or (key == "jupytext" and value[:1] != "{")
    }
    kept = [line for number, line in enumerate(lines) if number not in dropped]
    header, rest = split_header(kept)
    if len(rest) < len(kept) and has_keys(header) is None:
        return "\n".join(rest)
    for number in list_empty(header) if is_myst else ():
        kept[number + 1] = ""
    if is_myst and (found := find_nameless(header)):
        kept.insert(found[0] + 1, found[1])
    return "\n".join(kept)


# What jupytext takes for the beginning of a header, and the same break in other marks.
DASHES, STARS = "---", "***"


def hide_break(text: str, *, is_markdown: bool) -> str:
    """The document for jupytext, with stars for the dashes of a thematic break at its top.

    For jupytext they begin a header. In ``markdown`` the same are dashes around a text or a list.
    Raises HeaderError if keys follow them, and no dashes end the header.
    """
    lines = split_lines(text)
    if not text.startswith(DASHES):
        return text
    header, rest = split_header(lines)
    if len(rest) < len(lines) and (not is_markdown or has_keys(header) is not False):
        return text
    if is_markdown and lines[0].rstrip() == DASHES and _KEY.match("".join(lines[1:2])):
        last = next((at for at, line in enumerate(lines[1:], 1) if not line.strip()), len(lines))
        problem = f"its header begins in line 1 ({DASHES}) and has no end"
        raise HeaderError(problem, f"add a line below it: {DASHES}", last)
    return STARS + text.removeprefix(DASHES)


def show_break(cells: Sequence[Any], text: str) -> None:
    """Gives the first cell of this text the dashes back that `hide_break` has replaced."""
    if text.startswith(DASHES) and cells and cells[0].source.startswith(STARS):
        cells[0].source = DASHES + cells[0].source.removeprefix(STARS)


_KEY = re.compile(r"[A-Za-z][\w-]*:(?:\s|$)")
_DECLARATION = re.compile(r"(?P<key>jupytext|jupyter|kernelspec)\s*:(?:\s+(?P<value>[^#\s][^#]*))?")
_NOTHING = ("", "false", "no", "off", "null", "~", "[]", "{}", "''", '""')


def _find_declarations(lines: Sequence[str]) -> Iterator[tuple[int, str, str]]:
    """The lines of the header that may say that it is a notebook: number, key, value.

    The value is in lower case; "{" if it is a mapping on the next lines.
    """
    header, _ = split_header(lines)
    for number, line in enumerate(header):
        if found := _DECLARATION.match(line):
            value = (found["value"] or "").strip().lower()
            following = next(filter(str.strip, header[number + 1 :]), "")
            yield number + 1, found["key"], value or "{" * following[:1].isspace()


def declare_language(text: str, language: str) -> str:
    """The document with a header that names the language of its code, in jupytext's words."""
    named = ["jupyter:", "  jupytext:", f"    main_language: {language}"]
    header, rest = split_header(split_lines(text))
    return "\n".join(["---", *header, *named, "---", *([] if header else [""]), *rest])


# Blocks of a plain document.

# The words in the braces of a chunk, whose quoted texts may have braces, too.
_WORDS = r"(?:[^{}\"']|\"(?:\\.|[^\"\\])*\"|'(?:\\.|[^'\\])*')*"
# What knitr runs begins with a letter: `{.python}` and `{=html}` are pandoc's.
_ENGINE = re.compile(rf"\{{\s*(?P<engine>[A-Za-z][\w+#-]*)(?=[\s,}}])(?P<words>{_WORDS})\}}\s*$")
# The options among these words. Knitr's ``engine`` names another one than the chunk's first word.
_NAMED = re.compile(
    r"(?P<name>[\w.-]+)\s*=\s*(?P<value>\"(?:\\.|[^\"\\])*\"|'(?:\\.|[^'\\])*'|[^\s,]+)"
)
_CHUNK = re.compile(r"^(?P<before>[ \t>]*)(?P<ticks>`{3,})\s*(?P<rest>.*)$")


def unindent_chunks(text: str) -> str:
    """The document with the chunks that knitr runs in lists and quotes at the lines' start.

    >>> unindent_chunks("1. So:\\n   ```{python}\\n   x = 1\\n   ```")
    '1. So:\\n```{python}\\nx = 1\\n```'
    """
    lines, before, ticks = text.split("\n"), "", ""
    for number, line in enumerate(lines):
        found = _CHUNK.match(line)
        if ticks:
            lines[number] = line.removeprefix(before)
            if found and found["ticks"].startswith(ticks) and not found["rest"].strip():
                lines[number] = found["ticks"] if before else line
                ticks = ""
        elif found:
            is_chunk = _ENGINE.match(found["rest"])
            before, ticks = found["before"] if is_chunk else "", found["ticks"]
            lines[number] = line.removeprefix(before)
    return "\n".join(lines)


def read_engine(rest: str) -> tuple[str, str]:
    """The engine that knitr runs for a fence's braces, in lower case, and their other words.

    Both are "" for braces that are not of a chunk.

    >>> read_engine('{python, engine="bash", echo=FALSE}')
    ('bash', ', engine="bash", echo=FALSE')
    """
    found = _ENGINE.match(rest)
    if found is None:
        return "", ""
    options = {one["name"]: one["value"] for one in _NAMED.finditer(found["words"])}
    engine = options.get("engine", "").strip("\"'") or found["engine"]
    return engine.lower(), found["words"].rstrip()


_ENGINE_OPTION = re.compile(r"(?:^|,)\s*engine\s*[:=]\s*[\"']?(?P<engine>[A-Za-z][\w+#-]*)")


def read_engine_option(lines: Iterable[str]) -> str:
    """The engine that a chunk's first lines name, in lower case; "" if they name none.

    >>> read_engine_option(["#| echo: false", "#| engine: bash", "ls"])
    'bash'
    """
    options = takewhile(bool, map(OPTION.match, lines))
    found = (_ENGINE_OPTION.search(one[1]) for one in options if one)
    return next((one["engine"].lower() for one in found if one), "")


def leave_engines(text: str, known: Sequence[str], *, has_magics: bool) -> LeftBlocks:
    """R Markdown, for jupytext, with the chunks of engines that do not run marked as text.

    ``known`` are jupytext's languages: it would run any other chunk as Python. Of these only
    `ENGINES` and languages with a kernel run, unless the document ``has_magics`` (jupytext
    wrote it, or it loads them). The fence of a chunk that runs gets jupytext's form: three
    backticks, no blank before the engine, which is the one that knitr's ``engine=`` names. Chunks
    in lists are not found: `unindent_chunks` comes before.
    """
    lines, marks, chunks = text.split("\n"), dict[str, tuple[str, str]](), list[int]()

    def mark(number: int, ticks: str, language: str = "") -> None:
        name = f"{ticks}labkit_{number}"
        marks[name] = lines[number].rstrip(), language
        lines[number] = name

    place = 0
    while place < len(lines):
        opening = _CHUNK.match(lines[place])
        if opening is None or opening["before"]:
            place += 1
            continue
        ticks, start = opening["ticks"], place
        end = _find_close(lines, start + 1, ticks)
        engine, words = read_engine(opening["rest"])
        engine = (engine and read_engine_option(lines[start + 1 : end])) or engine
        runs = engine in known and (has_magics or engine in (*ENGINES, *WITHOUT_MAGIC))
        inner = [at for at in range(start + 1, end) if lines[at].startswith("```")]
        if not runs:
            # `count_blocks` counts those of Python.
            is_code = engine and engine not in SHOWN and not _OF_PYTHON.fullmatch(engine)
            # Without their backticks these are text for jupytext, too.
            mark(start, "```" if len(ticks) == 3 else ".", engine if is_code else "")
            for at in [*inner, *range(end, min(end + 1, len(lines)))] if len(ticks) > 3 else inner:
                mark(at, ".")
        else:
            chunks.append(start)
            # jupytext counts the brackets in a quoted text, too.
            words = _QUOTED.sub(lambda text: re.sub(r"[{}()\[\]]", "", text[0]), words)
            lines[start] = f"```{{{_spell_engine(opening['rest'], engine)}{words}}}"
            lines[end : end + 1] = ["```"] * (end < len(lines))
            for at in inner if len(ticks) > 3 else ():
                mark(at, ".")
        place = end + 1
    return LeftBlocks("\n".join(lines), marks, chunks)


def _spell_engine(rest: str, engine: str) -> str:
    """The engine as the fence spells it; in lower case if an option names it."""
    found = _ENGINE.match(rest)
    return found["engine"] if found and found["engine"].lower() == engine else engine


def _find_close(lines: Sequence[str], start: int, ticks: str) -> int:
    """The line that closes a block: at least as many backticks, and nothing else."""
    for place in range(start, len(lines)):
        line = lines[place].strip()
        if line.startswith(ticks) and not line.strip("`"):
            return place
    return len(lines)


_FENCE = re.compile(r"^(?P<fence>`{3,})[ \t]*(?P<language>[^\s`{]*)(?P<rest>[^`]*)$")


class Fence(NamedTuple):
    """The first line of a block: its number from 0, its backticks, language and the rest.

    ``is_hidden``: it is inside a comment of HTML.
    """

    number: int
    ticks: str
    language: str
    rest: str
    is_hidden: bool


class LeftBlocks(NamedTuple):
    """A document whose blocks in other languages are text, and what was written for each mark.

    With it is the block's language, "" in a comment of HTML: nobody sees that block. ``chunks`` are
    the lines, from 0, in which the chunks of R Markdown begin that are not marked.
    """

    text: str
    marks: Mapping[str, tuple[str, str]]
    chunks: Sequence[int] = ()

    def restore(self, cells: Iterable[Any], before: int) -> None:
        """Gives the lines of the blocks back, and notes in each cell which languages it has.

        ``before`` is how many lines the document has before this text.
        """
        for cell in cells:
            lines, left = cell.source.split("\n"), []
            for place, line in enumerate(lines):
                if line in self.marks:
                    lines[place], language = self.marks[line]
                    number = before + 1 + int(line.rpartition("_")[2])
                    left += [(language, number)] * bool(language)
            cell.source = "\n".join(lines)
            if left:
                cell.metadata[LANGUAGE_KEY] = [language for language, _ in left]
                cell.metadata[LINES_KEY] = [number for _, number in left]


def leave_blocks(text: str, known: Sequence[str]) -> LeftBlocks:
    """The document, for jupytext, with the blocks of all languages but its own marked as text.

    Its own is Python if it has a block of Python, else the most frequent of the ``known``
    languages that is neither a shell nor markup.
    """
    lines = text.split("\n")
    fences = [
        one
        for one in _find_fences(lines)
        if one.language.lower() in SHELLS or one.language.lower() in known
    ]
    own = _find_own({*PYTHONS}, fences) or {"python"}
    marks = {}
    for number, ticks, language, rest, is_hidden in fences:
        # jupytext's own word for a block that is not evaluated, and a name for the line.
        mark = f"{ticks}{language} .noeval .labkit_{number}"
        if is_hidden:
            marks[mark] = lines[number].rstrip(), ""
            lines[number] = mark
        elif language.lower() in PYTHONS and "python" in own:
            lines[number] = f"{ticks}python{rest}"  # jupytext: %%python3, a process of its own
        elif language.lower() not in own:
            marks[mark] = lines[number].rstrip(), language.lower()
            lines[number] = mark
    return LeftBlocks("\n".join(lines), marks)


def _find_own(pythons: set[str], fences: Sequence[Fence]) -> set[str]:
    languages = Counter(one.language.lower() for one in fences if not one.is_hidden)
    if pythons & languages.keys():
        return pythons
    found = [one for one, _ in languages.most_common() if one not in (*SHELLS, *MARKUP)]
    return set(found[:1])


def _find_fences(lines: Sequence[str]) -> Iterator[Fence]:
    """The opening lines of the blocks; a block inside another one is text of that one."""
    opened, is_hidden = "", False
    for number, line in enumerate(lines):
        found = _FENCE.match(line.rstrip())
        if found and not opened:
            yield Fence(number, found["fence"], found["language"], found["rest"], is_hidden)
            opened = "" if is_hidden else found["fence"]
        elif (
            found
            and len(found["fence"]) >= len(opened)
            and not (found["language"] or found["rest"])
        ):
            opened = ""
        elif not opened:
            is_hidden = _is_comment_open(line, is_hidden)


def _is_comment_open(line: str, is_open: bool) -> bool:
    """Whether a comment of HTML goes on after the line; one begins at the start of a line."""
    if is_open or re.match(" {0,3}<!--", line):
        return line.rfind("<!--") > line.rfind("-->") or (is_open and "-->" not in line)
    return False


# A block of Python that jupytext takes for text: indented, quoted, or in other marks.
_OTHER_FENCE = re.compile(
    r"^(?:[ \t>*+-]|\d+[.)] )*(?P<fence>`{3,}|~{3,})[ \t]*\{?[ \t]*\.?(?P<language>[\w.+-]*)"
)
_OF_PYTHON = re.compile(r"(?:i?python[\d.]*|py\d?)", re.IGNORECASE)


def count_blocks(text: str) -> int:
    """How many blocks of Python a text has, in any marks.

    >>> count_blocks("1. Run it:\\n\\n   ```python\\n   1\\n   ```\\n\\n> ~~~py\\n> 2\\n> ~~~")
    2
    """
    count, opened, is_hidden = 0, "", False
    for line in text.split("\n"):
        if not opened:
            is_hidden = _is_comment_open(line, is_hidden)
            if is_hidden:
                continue
        found = _OTHER_FENCE.match(line)
        if found and not opened:
            opened = found["fence"]
            engine, _ = read_engine(line[found.end("fence") :].strip())
            count += bool(_OF_PYTHON.fullmatch(engine or found["language"]))
        elif found and found["fence"].startswith(opened) and not found["language"]:
            opened = ""
    return count


# Options of a chunk.

# Formatters write "# |", which Quarto and knitr read, too.
OPTION = re.compile(r"^\s*# ?\| ?(.*)$")
_QUOTED = re.compile(r"\"(?:\\.|[^\"\\])*\"|'(?:\\.|[^'\\])*'")
_FENCE_OPTION = re.compile(r"(?:^|[\s,{])(eval|error)\s*=\s*((?:[^\s,()\[\]{}]|\([^()]*\))+)")
_GLOBAL_OPTIONS = re.compile(r"opts_chunk\$set\(((?:[^()]|\([^()]*\))*)\)")
_EXPRESSION = re.compile(r"^(?P<name>[\w.-]+):[ \t]*!expr[ \t]+(?P<code>.*)$", re.MULTILINE)
_TRUTHS = {"TRUE": True, "T": True, "true": True, "FALSE": False, "F": False, "false": False}


def read_yaml(text: str, first: int | None = None) -> dict[str, Any]:
    """The mapping that the YAML has, empty for another value.

    A value with knitr's tag ``!expr`` is RCode. ``first`` is the number of its first line in the
    document, if that is known. Raises HeaderError, a ValueError, if it is invalid, with the line.
    """
    expressions = {one["name"]: RCode(one["code"]) for one in _EXPRESSION.finditer(text)}
    found = load_yaml(_EXPRESSION.sub("", text), first)
    return {**(found if isinstance(found, dict) else {}), **expressions}


def read_fence_options(text: str) -> dict[str, Any]:
    """The options ``eval`` and ``error`` in the words of a chunk's fence, or of a call in R.

    >>> read_fence_options("python, eval=FALSE, fig.cap='error=TRUE'")
    {'eval': False}
    """
    found = _FENCE_OPTION.findall(_QUOTED.sub("''", text))
    return {name: _TRUTHS.get(value, RCode(value)) for name, value in found}


def read_lines(source: str, first: int | None = None) -> dict[str, Any]:
    """The options in a chunk's first lines, ``#| eval: false`` or ``#| eval=FALSE``.

    ``first`` is the number of the first one in the document, if that is known.
    """
    found = takewhile(bool, map(OPTION.match, source.splitlines()))
    lines = [option[1] for option in found if option]
    if re.match(r"\s*[\w.-]+\s*=", next(filter(str.strip, lines), "")):
        return read_fence_options(", ".join(lines))
    return read_yaml("\n".join(lines), first)


def read_common(sources: Iterable[str]) -> dict[str, Any]:
    """The options that the document's own R code sets for all its chunks."""
    calls = [call for source in sources for call in _GLOBAL_OPTIONS.findall(source)]
    return {key: value for call in calls for key, value in read_fence_options(call).items()}


def apply_options(cell: Any, options: Mapping[str, Any]) -> None:
    """Gives a code cell the tags that nbclient knows for what the options say of its execution."""
    tags = options.get("tags")
    named = [tags] if isinstance(tags, str) else tags if isinstance(tags, list) else []
    name = "eval" if "eval" in options else "enabled"
    value = options.get(name)
    skipped = value is False or isinstance(value, RCode)
    extra = ["skip-execution"] * skipped + ["raises-exception"] * (options.get("error") is True)
    all_tags = [*map(str, cell.metadata.get("tags") or []), *map(str, named), *extra]
    if all_tags:
        cell.metadata["tags"] = list(dict.fromkeys(all_tags))
    if skipped:
        cell.metadata[OPTION_KEY] = f"{name}={'FALSE' if value is False else value}"
