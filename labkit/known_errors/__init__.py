"""The known errors: for each error text its cause and its fix, read from the catalogs.

To add a known error, add a block to the catalog of its area (`labkit.known_errors.catalog` tells
the format), with a sample and a text that only resembles it: the tests read both from there. The
order of the blocks has no meaning.
"""

from __future__ import annotations

from labkit.known_errors.catalog import read_catalogs
from labkit.known_errors.model import Certainty, KnownError

KNOWN_ERRORS: tuple[KnownError, ...] = tuple(error for _, error in read_catalogs())

__all__ = ["KNOWN_ERRORS", "Certainty", "KnownError"]
