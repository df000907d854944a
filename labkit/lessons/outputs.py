"""The records that claims and checks leave in a notebook's outputs, and how to read them back.

Standard library only: whoever counts claims or collects verdicts needs neither torch nor IPython.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

CLAIM_MIME = "application/vnd.labkit.claim+json"
CHECK_MIME = "application/vnd.labkit.check+json"


def read_claims(notebook: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Each claim's record in the order shown: statement, held, skipped, expected, seen.

    ``held`` is None where the claim was skipped, and ``skipped`` is then the reason.
    """
    return list(_read_records(notebook, CLAIM_MIME))


def read_checks(notebook: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Each check's record in the order shown: exercise, status, message, and the rest."""
    return list(_read_records(notebook, CHECK_MIME))


def _read_records(notebook: Mapping[str, Any], mime: str) -> Iterator[dict[str, Any]]:
    for cell in notebook.get("cells", ()):
        for output in cell.get("outputs", ()):
            record = output.get("data", {}).get(mime)
            if isinstance(record, Mapping):
                yield dict(record)
