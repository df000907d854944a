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
    if it is invalid; without ``tags`` it is so with any but those of YAML, as for jupytext.
    """
    import yaml

    try:
        # A safe loader, too.
        return yaml.load(text, Loader=_make_loader() if tags else yaml.SafeLoader)  # noqa: S506
    except yaml.reader.ReaderError as error:
        line = text.count("\n", 0, error.position)
        raise _name_control(text.split("\n"), line, first) from error
    except yaml.MarkedYAMLError as error:
        raise _name_mark(error, text, first) from error
    except (ValueError, OverflowError) as error:  # a date or a number that does not exist
        raise _name_value(text, first, error) from error


@cache
def _make_loader() -> Any:
    import yaml

    class Loader(yaml.SafeLoader):  # type: ignore[misc]  # PyYAML has no types
        """PyYAML's, which knows all tags."""

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
    lines = text.splitlines()
    problem, context = error.problem or error.context or str(error), error.context or ""
    mark, fix = error.problem_mark or error.context_mark, None
    if error.context_mark and "quoted scalar" in context:
        mark = error.context_mark
        quote = lines[mark.line][mark.column : mark.column + 1]
        problem, fix = f"its quote ({quote}) has no end", f"{lines[mark.line].strip()}{quote}"
    elif error.context_mark and "while parsing a flow" in context:
        mark = error.context_mark
        end = "]" if "sequence" in context else "}"
        fix = f"{lines[mark.line].strip()}{end}" if end not in lines[mark.line] else None
    line = min(mark.line, len(lines)) if mark else 0
    if problem.startswith("mapping values") and line and _has_no_key(lines[line - 1]):
        line, problem = line - 1, "it has no colon"
        fix = f"{lines[line].split()[0]}: {' '.join(lines[line].split()[1:])}".rstrip()
    fix = fix or _find_edit(lines[line] if line < len(lines) else "", problem)
    return _make_error(lines, line, first, problem, fix)


def _find_edit(line: str, problem: str) -> str:
    """The line as YAML reads it, where it is certain what was meant."""
    if "\t" in line and "'\\t'" in problem:
        return f"indent it with blanks, not with tabs: {line.expandtabs(2).rstrip()}"
    found = _VALUE.match(line)
    if found is None or not re.search(r"^[@`%*&!|>\"']|:(?:\s|$)|\s#", found["value"]):
        is_indented = problem.startswith("mapping values") and line[:1].isspace()
        return f"do not indent it: {line.strip()}" if is_indented else RULES
    return f"put the value in quotes: {found['key'].lstrip()}{_quote(found['value'])}"


def _has_no_key(line: str) -> bool:
    return bool(line.strip()) and not re.search(r":(?:\s|$)|^\s*[-#]", line)


def _quote(value: str) -> str:
    if '"' in value or "\\" in value:
        return "'" + value.replace("'", "''") + "'"
    return f'"{value}"'


def _name_value(text: str, first: int | None, error: Exception) -> HeaderError:
    """The value that PyYAML cannot make a date or a number of."""
    import yaml

    lines, loader = text.splitlines(), _make_loader()("")
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
    if not tags and root is not None and root.id != "mapping":
        problem = f"it is {_name_kind(root)}, not keys with values"
        raise _make_error(lines, root.start_mark.line, first, problem, "title: ...", what=WRONG)
    jupyter = _find(root, "jupyter")
    spec = _find(jupyter, "kernelspec")
    if spec is not None and not (is_quarto and _is_empty(spec)):
        _check_spec(lines, first, spec, is_quarto=is_quarto)
    inner = _find(jupyter, "jupytext")
    if not is_quarto and inner is not None and isinstance(inner.value, str):
        problem = f"jupytext is {_name_kind(inner)}, not a mapping"
        raise _make_error(lines, inner.start_mark.line, first, problem, "delete it", what=WRONG)


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
