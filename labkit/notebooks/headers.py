"""Reads the YAML of a document, and names what is wrong with it: the line, its text and an edit.

PyYAML and jupytext name neither the line of a date that does not exist nor of a kernelspec that is
a number, and jupytext runs R Markdown whose header is invalid, which R Markdown does not.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from functools import cache
from typing import Any

from labkit.text import escape_controls

# The ends of lines in a document; U+2028, a form feed and the like are characters of a line.
_ENDS = re.compile(r"\r\n|\r|\n")
_ODD_END = re.compile(r"[\x85\u2028\u2029]")
# Signs that look like a blank or a colon, and are neither for YAML.
_LOOKALIKE = re.compile(
    r"^(?P<key>\s*(?:- )?[^\s:#\"'\uff1a]+)"
    r"(?P<sign>:[\xa0\u2000-\u200b\u202f\u3000\ufeff]+|\uff1a\s*)"
)
# A value with a quoted text and more behind it.
_QUOTED_TEXT = re.compile(r"(['\"])(?P<text>.*)\1")
# The line of a key, up to its value.
_VALUE = re.compile(r"(?P<key>\s*(?:- )?[^\s:#\"'][^:#]*:\s+)(?P<value>\S.*?)\s*$")
_CONTROL = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x84\x86-\x9f]")
RULES = "write it as `key: value`, and a value with one of : # @ ` [ { * & ! in quotes"
SPEC = "{name: python3, display_name: Python 3}"


class RCode(str):
    """A value that is R code, which is not evaluated here."""

    __slots__ = ()


class HeaderError(ValueError):
    """What is wrong with a document's YAML; ``fix`` is the edit that mends it, in ``line``.

    The line is None where it is not known.
    """

    def __init__(self, problem: str, fix: str, line: int | None = None) -> None:
        super().__init__(problem)
        self.fix = fix
        self.line = line


def load_yaml(text: str, first: int | None = None, *, tags: bool = True) -> Any:
    """The value of the YAML; a value with knitr's tag ``!expr`` is RCode, other tags are left out.

    ``first`` is the number of its first line in the document, if that is known. Raises HeaderError
    if it is invalid; without ``tags`` it is so with any but those of YAML, and with tabs between
    words, as for jupytext.
    """
    import yaml

    try:
        # A safe loader, too.
        return yaml.load(text, Loader=_make_loader() if tags else yaml.SafeLoader)  # noqa: S506
    except yaml.reader.ReaderError as error:
        line = len(_ENDS.findall(text, 0, error.position))
        raise _name_control(split_lines(text), line, first) from error
    except yaml.MarkedYAMLError as error:
        raise _name_mark(error, text, first) from error
    except (ValueError, OverflowError) as error:  # a date or a number that does not exist
        raise _name_value(text, first, error) from error


def split_lines(text: str) -> list[str]:
    """The lines of a document, without their ends.

    >>> split_lines("a\\u2028b\\r\\nc")
    ['a\\u2028b', 'c']
    """
    return _ENDS.split(text)


@cache
def _make_loader() -> Any:
    import yaml

    class Loader(yaml.SafeLoader):  # type: ignore[misc]  # PyYAML has no types
        """PyYAML's, which knows all tags, and tabs between words as libyaml and js-yaml do."""

        def scan_to_next_token(self) -> None:
            super().scan_to_next_token()
            while self.peek() == "\t" and (self.flow_level or not self.allow_simple_key):
                self.forward()
                super().scan_to_next_token()

        def scan_plain_spaces(self, indent: int, start_mark: Any) -> Any:
            length = 0
            while self.peek(length) in " \t":
                length += 1
            blanks = self.prefix(length)
            if "\t" not in blanks:
                return super().scan_plain_spaces(indent, start_mark)
            self.forward(length)
            is_end = self.peek() in "\0\r\n\x85\u2028\u2029"
            return super().scan_plain_spaces(indent, start_mark) if is_end else [blanks]

    Loader.add_multi_constructor("!", _construct)
    return Loader


def _construct(loader: Any, tag: str, node: Any) -> Any:
    import yaml

    if isinstance(node, yaml.ScalarNode):
        value = loader.construct_scalar(node)
        return RCode(value) if tag == "expr" else value
    is_list = isinstance(node, yaml.SequenceNode)
    return (loader.construct_sequence if is_list else loader.construct_mapping)(node, deep=True)


def _quote_line(line: str) -> str:
    return escape_controls(line.strip())


def _make_error(
    lines: Sequence[str],
    line: int,
    first: int | None,
    problem: str,
    fix: str,
    *,
    what: str = "its YAML is invalid",
) -> HeaderError:
    where = "" if first is None else f" in line {first + line}"
    # An end that is missed is found in the line after the last one.
    found = _quote_line(lines[line]) if line < len(lines) else ""
    shown = f" ({found})" if found else ""
    number = None if first is None else first + line
    return HeaderError(f"{what}{where}{shown}: {problem}", escape_controls(fix), number)


def _name_control(lines: Sequence[str], line: int, first: int | None) -> HeaderError:
    found = _CONTROL.search(lines[line])
    sign = found[0] if found else ""
    problem = f"it has the control character U+{ord(sign):04X}" if sign else "a character"
    return _make_error(
        lines, line, first, problem, f"delete it: {_CONTROL.sub('', lines[line]).strip()}"
    )


def _name_mark(error: Any, text: str, first: int | None) -> HeaderError:
    """What PyYAML's scanner or parser found, in the line where it begins."""
    lines = split_lines(text)
    problem, context = error.problem or error.context or str(error), error.context or ""
    mark, fix = error.problem_mark or error.context_mark, None
    for each in (error.context_mark, error.problem_mark):
        if each:  # PyYAML counts U+2028 and the like as ends of lines
            each.line = len(_ENDS.findall(text, 0, each.index))
    last = min(mark.line if mark else 0, len(lines) - 1)
    for line in range(last, -1, -1):
        if wrong := _find_odd_end(lines[line]) or _find_lookalike(lines[line]):
            return _make_error(lines, line, first, *wrong)
    if wrong := _find_wrong_tag(lines[last], problem):
        return _make_error(lines, last, first, *wrong)
    if "unknown escape character" in problem:
        problem = "a backslash begins an escape between double quotes"
        fix = f"put the value in single quotes: {_change_quotes(lines[last])}"
    elif error.context_mark and "quoted scalar" in context:
        mark = error.context_mark
        quote = lines[mark.line][mark.column : mark.column + 1]
        problem, fix = f"its quote ({quote}) has no end", f"{lines[mark.line].strip()}{quote}"
    elif error.context_mark and "while parsing a flow" in context:
        mark = error.context_mark
        end = "]" if "sequence" in context else "}"
        fix = f"{lines[mark.line].strip()}{end}" if end not in lines[mark.line] else None
    line = min(mark.line, len(lines)) if mark else 0
    if problem.startswith("mapping values") and line and _has_no_key(lines[line - 1]):
        line = line - 1
        problem, fix = _add_colon(lines[line])
    fix = fix or _find_edit(lines[line] if line < len(lines) else "", problem)
    return _make_error(lines, line, first, problem, fix)


def _find_odd_end(line: str) -> tuple[str, str] | None:
    found = _ODD_END.search(line)
    return found and (f"U+{ord(found[0]):04X} ends a line in YAML", "type a blank instead of it")


def _find_lookalike(line: str) -> tuple[str, str] | None:
    """The problem and the edit of a key whose colon or blank is another character."""
    found = _LOOKALIKE.match(line)
    if found is None:
        return None
    sign = found["sign"].lstrip(":")[:1]
    meant = "colon" if sign == "\uff1a" else "blank"
    problem = f"it has U+{ord(sign):04X}, which is not a {meant}"
    rest = line[found.end() :].strip()
    return problem, f"type a colon and a blank: {found['key'].strip()}: {rest}"


def _find_wrong_tag(line: str, problem: str) -> tuple[str, str] | None:
    """The problem and the edit of a tag that is not known."""
    found = re.search(r"constructor for the tag '(?P<tag>[^']+)'", problem)
    if found is None:
        return None
    name = found["tag"].replace("tag:yaml.org,2002:", "!!")
    value = _VALUE.match(line)
    fix = (
        f"put the value in quotes: {value['key'].lstrip()}{_quote(value['value'])}" if value else ""
    )
    return f"the tag {name} is not known", fix or f"delete the tag {name}"


def _add_colon(line: str) -> tuple[str, str]:
    """The problem and the edit of a line without a key."""
    key, colon, value = line.strip().partition(":")
    if colon and value and " " not in key:
        return "it has no blank after its colon", f"{key}: {value}"
    words = line.split()
    if not re.fullmatch(r"[\w-]+", words[0]):
        return "it has no key", f"title: {_quote(line.strip())}"
    return "it has no colon", f"{words[0]}: {' '.join(words[1:])}".rstrip()


def _change_quotes(line: str) -> str:
    """The line with its value in single quotes, in which a backslash is one."""
    found = _VALUE.match(line)
    text = _QUOTED_TEXT.fullmatch(found["value"]) if found else None
    if found is None or text is None:
        return line.strip().replace("\\", "\\\\")
    return f"{found['key'].lstrip()}'" + text["text"].replace("'", "''") + "'"


def _find_edit(line: str, problem: str) -> str:
    """The line as YAML reads it, where it is certain what was meant."""
    if "\t" in line and "'\\t'" in problem:
        indent = line[: len(line) - len(line.lstrip())]
        if "\t" in indent:
            return f"indent it with blanks, not with tabs: {line.expandtabs(2).rstrip()}"
        return "type a blank instead of the tab: " + re.sub(r" *\t\s*", " ", line.strip())
    if "unhashable" in problem and not re.match(r"[^\s:{\[]+:\s", line.strip()):
        return RULES
    found = _VALUE.match(line)
    if found is None or not re.search(r"^(?:[@`%*&!|>\"']|\{\{)|:(?:\s|$)|\s#", found["value"]):
        is_indented = problem.startswith("mapping values") and line[:1].isspace()
        return f"do not indent it: {line.strip()}" if is_indented else RULES
    return f"put the value in quotes: {found['key'].lstrip()}{_quote_again(found['value'])}"


def _quote_again(value: str) -> str:
    """The value in quotes; where it has the outer ones already, in those that fit its text."""
    text = _QUOTED_TEXT.fullmatch(value)
    is_whole = text is not None and (value[0] == "'" or text["text"].count('"') % 2 == 1)
    return _quote(text["text"] if text and is_whole else value)


def _has_no_key(line: str) -> bool:
    return bool(line.strip()) and not re.search(r":(?:\s|$)|^\s*[-#]", line)


def _quote(value: str) -> str:
    if '"' in value or "\\" in value:
        return "'" + value.replace("'", "''") + "'"
    return f'"{value}"'


def _name_value(text: str, first: int | None, error: Exception) -> HeaderError:
    """The value that PyYAML cannot make a date or a number of."""
    import yaml

    lines, loader = split_lines(text), _make_loader()("")
    for node in _list_scalars(yaml.compose(text, Loader=_make_loader())):
        try:
            loader.construct_object(node)
        except (ValueError, OverflowError) as own:
            kind = "date" if node.tag.endswith(":timestamp") else "number"
            problem = f"{node.value} is not a {kind} that exists: {own}"
            line = lines[node.start_mark.line].strip()
            fix = f"{line.replace(node.value, _quote(node.value), 1)}   # a text; or correct it"
            return _make_error(lines, node.start_mark.line, first, problem, fix)
    return HeaderError(f"its YAML is invalid: {error}", RULES)


def _list_scalars(root: Any) -> Iterator[Any]:
    waiting, seen = [root], set[int]()
    while waiting:
        node = waiting.pop(0)
        if id(node) in seen or node is None:
            continue
        seen.add(id(node))
        if isinstance(node.value, str):
            yield node
        else:
            waiting += [
                each for one in node.value for each in (one if isinstance(one, tuple) else (one,))
            ]


# What Jupyter needs of a document's header.


WRONG = "its header is wrong"


def has_keys(lines: Sequence[str]) -> bool | None:
    """True if a header has keys with values, False if it is a text or a list; None if it is empty.

    One that is meant to have keys counts as such: an invalid one, and one with other characters
    than a colon and a blank.
    """
    import yaml

    try:
        root = yaml.compose("\n".join(lines), Loader=_make_loader())
    except (yaml.YAMLError, RecursionError):
        return True
    if root is None:
        return None
    return bool(root.id == "mapping" or any(map(_find_lookalike, lines)))


def list_empty(lines: Sequence[str]) -> set[int]:
    """The lines, from 0, of a header's keys without a value, which jupytext cannot read in MyST."""
    import yaml

    try:
        root = yaml.compose("\n".join(lines), Loader=_make_loader())
    except (yaml.YAMLError, RecursionError):
        return set()
    found: set[int] = set()
    _find_empty(root, found)
    return found


def find_nameless(lines: Sequence[str]) -> tuple[int, str] | None:
    """Of a MyST header's kernel without a display name: the line of its name, and one with both.

    MyST-NB needs no display name; jupytext does.
    """
    import yaml

    try:
        spec = _find(yaml.compose("\n".join(lines), Loader=_make_loader()), "kernelspec")
    except (yaml.YAMLError, RecursionError):
        return None
    name = _find(spec, "name")
    if name is None or spec.flow_style or _find(spec, "display_name") or name.id != "scalar":
        return None
    line = name.start_mark.line
    return line, " " * spec.start_mark.column + f"display_name: {_quote(name.value)}"


def _find_empty(node: Any, found: set[int]) -> bool:
    """Whether the node has no value; adds the lines of such keys in it."""
    if node is None or node.id != "mapping" or node.flow_style:
        return node is None or _is_empty(node)
    inner = [_find_empty(value, found) for _, value in node.value]
    found |= {
        key.start_mark.line
        for (key, _), is_empty in zip(node.value, inner, strict=True)
        if is_empty
    }
    return all(inner)


def check_header(
    lines: Sequence[str], first: int, *, is_quarto: bool = False, tags: bool = True
) -> None:
    """Raises HeaderError if the header's YAML is invalid, or names no kernel where it should.

    ``lines`` are the header's without its dashes, ``first`` is the number of the first one, and
    ``tags`` are those of `load_yaml`.
    """
    import yaml

    text = "\n".join(lines)
    load_yaml(text, first, tags=tags)
    root = yaml.compose(text, Loader=_make_loader())
    if not tags:
        _check_keys(lines, first, root)
    jupyter = _find(root, "jupyter")
    if not is_quarto and jupyter is not None and _is_empty(jupyter):
        line = jupyter.start_mark.line
        raise _make_error(lines, line, first, "jupyter has no value", "delete it", what=WRONG)
    # MyST has it beside ``jupytext:``.
    spec = _find(jupyter, "kernelspec") or (None if is_quarto else _find(root, "kernelspec"))
    if spec is not None and not (is_quarto and _is_empty(spec)):
        _check_spec(lines, first, spec, is_quarto=is_quarto)
    inner = _find(jupyter, "jupytext")
    if not is_quarto and inner is not None and isinstance(inner.value, str):
        problem = f"jupytext is {_name_kind(inner)}, not a mapping"
        raise _make_error(lines, inner.start_mark.line, first, problem, "delete it", what=WRONG)


def _check_keys(lines: Sequence[str], first: int, root: Any) -> None:
    """Raises HeaderError if a header's keys are not texts, as jupytext needs them."""
    for line, text in enumerate(lines):
        if root is not None and root.id == "scalar" and (wrong := _find_lookalike(text)):
            raise _make_error(lines, line, first, *wrong)
    for key, _ in root.value if root is not None and root.id == "mapping" else ():
        if key.id == "scalar" and not key.tag.endswith((":str", ":merge")):
            line = key.start_mark.line
            shown = lines[line].strip()
            fix = f"put the key in quotes: {shown.replace(key.value, _quote(key.value), 1)}"
            problem = f"its key {key.value} is not a text"
            raise _make_error(lines, line, first, problem, fix, what=WRONG)


def _check_spec(lines: Sequence[str], first: int, spec: Any, *, is_quarto: bool) -> None:
    line = spec.start_mark.line
    if not (isinstance(spec.value, list) and spec.id == "mapping"):
        problem = f"kernelspec is {_name_kind(spec)}, not a mapping with name and display_name"
        raise _make_error(lines, line, first, problem, f"kernelspec: {SPEC}", what=WRONG)
    for key in ("name", "display_name"):
        value = _find(spec, key)
        if value is None and not is_quarto:
            # The mapping begins in the line of its first key.
            name = _find(spec, "name")
            shown = name.value if name is not None else "python3"
            indent = " " * spec.start_mark.column
            fix = f"add a line below it: {indent}{key}: {shown}"
            problem = f"its kernelspec has no {key}, which Jupyter requires"
            raise _make_error(lines, line, first, problem, fix, what=WRONG)
        if value is not None and not value.tag.endswith(":str"):
            problem = f"{key} is {_name_kind(value)}, not a text"
            fix = f"{key}: {'python3' if key == 'name' else 'Python 3'}"
            raise _make_error(lines, value.start_mark.line, first, problem, fix, what=WRONG)


def _find(node: Any, key: str) -> Any:
    """The node of a mapping's value; None without it."""
    if node is None or node.id != "mapping":
        return None
    return next((value for name, value in node.value if name.value == key), None)


def _is_empty(node: Any) -> bool:
    return bool(node.tag.endswith(":null"))


def _name_kind(node: Any) -> str:
    if node.id != "scalar":
        return "a list" if node.id == "sequence" else "a mapping"
    if _is_empty(node):
        return "empty"
    is_number = node.tag.endswith((":int", ":float"))
    return f"the number {node.value}" if is_number else f"the text {node.value!r}"
