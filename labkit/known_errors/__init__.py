"""The error texts the doctor knows, by area; each is data, and the order means nothing."""

from __future__ import annotations

from labkit.known_errors.building import BUILD_ERRORS
from labkit.known_errors.driver import DRIVER_ERRORS, HARDWARE_ERRORS
from labkit.known_errors.engine import ENGINE_ERRORS, ENGINE_SETUP_ERRORS
from labkit.known_errors.gpu_access import GPU_ACCESS_ERRORS
from labkit.known_errors.model import Certainty, KnownError
from labkit.known_errors.python import COMPILE_ERRORS, LIBRARY_ERRORS, NOTEBOOK_ERRORS
from labkit.known_errors.training import TRAINING_ERRORS

KNOWN_ERRORS: tuple[KnownError, ...] = (
    *HARDWARE_ERRORS,
    *DRIVER_ERRORS,
    *GPU_ACCESS_ERRORS,
    *ENGINE_ERRORS,
    *ENGINE_SETUP_ERRORS,
    *BUILD_ERRORS,
    *COMPILE_ERRORS,
    *LIBRARY_ERRORS,
    *TRAINING_ERRORS,
    *NOTEBOOK_ERRORS,
)

__all__ = ["KNOWN_ERRORS", "Certainty", "KnownError"]
