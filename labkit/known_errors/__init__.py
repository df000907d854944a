"""The catalogs of known errors: for each error text its cause and its fix.

To add a known error, add it to the catalog of its area and its text to the tests. The order of the
catalogs has no meaning.
"""

from __future__ import annotations

from labkit.known_errors.driver import DRIVER_ERRORS
from labkit.known_errors.engine import BUILD_ERRORS, ENGINE_ERRORS
from labkit.known_errors.gpu_access import GPU_ACCESS_ERRORS
from labkit.known_errors.model import Certainty, KnownError
from labkit.known_errors.python import PYTHON_ERRORS
from labkit.known_errors.training import TRAINING_ERRORS

KNOWN_ERRORS: tuple[KnownError, ...] = (
    *DRIVER_ERRORS,
    *GPU_ACCESS_ERRORS,
    *ENGINE_ERRORS,
    *BUILD_ERRORS,
    *PYTHON_ERRORS,
    *TRAINING_ERRORS,
)

__all__ = ["KNOWN_ERRORS", "Certainty", "KnownError"]
