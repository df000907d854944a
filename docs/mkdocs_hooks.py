"""Pages of the site that are made at build time: from the repository's root, and from docstrings.

mkdocs calls ``on_files``; mkdocstrings loads ``FenceDoctests``. The source is read, never imported.
"""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import griffe
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

ROOT = Path(__file__).parents[1]

# Files at the repository's root that are pages of the site.
ROOT_PAGES = {
    "README.md": "index.md",
    "CONTRIBUTING.md": "contributing.md",
    "SECURITY.md": "security.md",
    "CHANGELOG.md": "changelog.md",
}

# The sections of the reference, in their order: a name belongs to the folder that its module is in.
SECTIONS = {
    "memory": "Memory",
    "devices": "Devices",
    "lessons": "Lessons",
    "jupyter": "Notebooks",
    "errors": "Errors",
}

LINK = re.compile(r"(\]\()(?!https?:|mailto:|#)([^)#\s]+)")
DOCTEST = re.compile(r"^>>> .*(?:\n.+)*", flags=re.MULTILINE)


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Adds the pages that are not in docs/."""
    for source, page in ROOT_PAGES.items():
        text = (ROOT / source).read_text(encoding="utf-8")
        content = point_links_into_site(text, str(config.repo_url))
        files.append(File.generated(config, page, content=content))
    content = write_reference(read_exports(ROOT / "labkit" / "__init__.py"))
    files.append(File.generated(config, "reference.md", content=content))
    return files


def point_links_into_site(text: str, repository: str) -> str:
    """Markdown of the repository's root with its relative links turned into the site's own.

    What is not part of the site becomes an address in the repository.

    >>> point_links_into_site("[a](docs/memory.md) [b](README.md) [c](LICENSE)", "https://host/x")
    '[a](memory.md) [b](index.md) [c](https://host/x/blob/main/LICENSE)'
    """

    def replace(match: re.Match[str]) -> str:
        opening, target = match.groups()
        if target in ROOT_PAGES:
            return opening + ROOT_PAGES[target]
        if target.startswith("docs/"):
            return opening + target.removeprefix("docs/")
        kind = "tree" if target.endswith("/") else "blob"
        return f"{opening}{repository.rstrip('/')}/{kind}/main/{target}"

    return LINK.sub(replace, text)


def read_exports(source: Path) -> dict[str, str]:
    """Labkit's public names and the module that each is in, from the table ``_EXPORTS``."""
    for node in ast.parse(source.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "_EXPORTS":
            return dict(ast.literal_eval(node.value))
    raise LookupError(f"{source} has no table _EXPORTS")


def write_reference(exports: dict[str, str]) -> str:
    """The page of the API reference: each public name, and the classes that it returns."""
    package = griffe.load("labkit", search_paths=[str(ROOT)])
    parts = ["# API reference", "The names that `import labkit` gives, from their docstrings."]
    shown: set[str] = set()
    folders = {name: module.split(".")[1] for name, module in exports.items()}
    unknown = sorted({*folders.values()} - {*SECTIONS})
    for folder in (*SECTIONS, *unknown):
        names = [name for name in exports if folders[name] == folder]
        if names:
            parts.append(f"## {SECTIONS.get(folder, folder.capitalize())}")
        for name in names:
            found = find_object(package, exports[name], name)
            # The signature of a module that can be called would read "__call__()".
            call = found.name == "__call__"
            heading = f"labkit.{name}()" if call else f"labkit.{name}"
            parts.append(write_entry(found.path, heading, show_signature=not call))
            for returned in find_returned_classes(found):
                if returned.path not in shown:
                    shown.add(returned.path)
                    parts.append(write_entry(returned.path, returned.name))
    return "\n\n".join(parts) + "\n"


def write_entry(path: str, heading: str, *, show_signature: bool = True) -> str:
    """The directive that shows one object under a heading."""
    options: dict[str, object] = {"heading": heading, "toc_label": heading}
    if not show_signature:
        options |= {"show_signature": False, "separate_signature": False}
    lines = [f"      {name}: {json.dumps(value)}" for name, value in options.items()]
    return "\n".join([f"::: {path}", "    options:", *lines])


def find_object(package: Any, module: str, name: str) -> Any:
    """The function or class behind a public name; of a module that can be called, ``__call__``."""
    home = package.modules_collection[module]
    found = home.members[name]
    found = found.final_target if found.is_alias else found
    if not found.is_attribute:
        return found
    for member in home.classes.values():
        if any(str(base).endswith("ModuleType") for base in member.bases):
            return member.members["__call__"]
    raise LookupError(f"{module}.{name} is neither a function nor a class")


def find_returned_classes(found: Any) -> Iterator[Any]:
    """The classes of labkit that a function's annotation says it returns."""
    returns = getattr(found, "returns", None)
    if isinstance(returns, griffe.Expr):
        for part in returns.iterate(flat=True):
            path = getattr(part, "canonical_path", "")
            if path.startswith("labkit."):
                target = found.modules_collection[path]
                yield target.final_target if target.is_alias else target


class FenceDoctests(griffe.Extension):
    """Puts a docstring's doctests into code fences: in Markdown ``>>>`` is a block quote."""

    def on_instance(self, *, obj: Any, **_: Any) -> None:
        """Changes the docstring of each object that is read."""
        if obj.docstring is not None:
            obj.docstring.value = fence_doctests(obj.docstring.value)


def fence_doctests(text: str) -> str:
    r"""The text with each doctest in a fence.

    >>> fence_doctests("Adds.\n\n>>> 1 + 1\n2")
    'Adds.\n\n```pycon\n>>> 1 + 1\n2\n```'
    """
    return DOCTEST.sub(lambda match: f"```pycon\n{match.group()}\n```", text)
