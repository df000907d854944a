"""The page docs/known-errors.md: every known error with a sample, its cause and its fixes."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from itertools import groupby

from labkit.host.packages import Fix
from labkit.known_errors.model import KnownError

TITLES = {
    "driver": "The driver and the GPU",
    "gpu_access": "Containers that do not get the GPU",
    "packages": "Package managers",
    "engine": "The container engine and the system",
    "build": "Builds, downloads and installations",
    "python": "Python packages, compilers and notebooks",
    "training": "Running programs, several GPUs, AMD and Apple",
    "models": "Libraries and servers of models, and errors known by their form",
    "apps": "Servers of models and other programs that use a GPU",
    "cluster": "Kubernetes, Slurm, JupyterHub and rented machines",
    "xid": "Xid numbers in the kernel's log",
}
INTRODUCTION = """\
# Known errors

`labkit doctor --explain FILE` finds these errors in a log and names the cause and the fix for the
machine that wrote it. This page is made from `labkit/known_errors/catalogs/` by
`pytest --renew-snapshots tests/test_known_errors.py`; edit the catalogs, not the page.
"""


def format_page(errors: Iterable[tuple[str, KnownError]]) -> str:
    """The page in Markdown, from pairs of area and error that are ordered by area."""
    parts = [INTRODUCTION]
    for area, pairs in groupby(errors, key=lambda pair: pair[0]):
        parts.append(f"## {TITLES[area]}\n")
        parts += [_format_error(error) for _, error in pairs]
    return "\n".join(parts)


def _format_error(error: KnownError) -> str:
    plain = error.adapt((), {})
    lines = [f"### {error.name}", "", "```text", *error.samples[0].split("\n"), "```", ""]
    lines += [f"Cause ({error.certainty}): {plain.cause}. Source: {_link(error.source)}", ""]
    lines += _list_fixes("Fix", plain.fix)
    if plain.otherwise:
        lines.append(f"- Or: `{plain.otherwise}`")
    for variant in error.variants:
        adapted = error.adapt((variant.condition,), {})
        if variant.cause:
            lines.append(f"- Cause where the log shows {variant.condition}: {adapted.cause}")
        if variant.fix:
            lines += _list_fixes(f"Fix where the log shows {variant.condition}", adapted.fix)
        if variant.otherwise and adapted.otherwise:
            lines.append(f"- Or, where the log shows {variant.condition}: `{adapted.otherwise}`")
    return "\n".join([*lines, ""])


def _list_fixes(title: str, fix: Fix) -> Iterator[str]:
    yield f"- {title}: `{fix.anywhere}`"
    for family, command in fix.by_family().items():
        yield f"- {title} on {family}: `{command}`"


def _link(source: str) -> str:
    issue = re.fullmatch(r"([\w.-]+/[\w.-]+)#(\d+)", source)
    if issue:
        return f"[{source}](https://github.com/{issue[1]}/issues/{issue[2]})"
    host = "" if "." in source.partition("/")[0] else "github.com/"
    return f"[{source}](https://{host}{source})"
