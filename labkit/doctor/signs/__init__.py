"""The error texts the doctor knows, by area; each is data, and the order means nothing."""

from __future__ import annotations

from labkit.doctor.signs.building import BUILDING_SIGNS
from labkit.doctor.signs.compiling import COMPILING_SIGNS
from labkit.doctor.signs.driver import DRIVER_SIGNS
from labkit.doctor.signs.engine import ENGINE_SIGNS
from labkit.doctor.signs.hardware import HARDWARE_SIGNS
from labkit.doctor.signs.libraries import LIBRARY_SIGNS
from labkit.doctor.signs.notebook import NOTEBOOK_SIGNS
from labkit.doctor.signs.passing import PASSING_SIGNS
from labkit.doctor.signs.setup import SETUP_SIGNS
from labkit.doctor.signs.sign import Certainty, Sign
from labkit.doctor.signs.training import TRAINING_SIGNS

SIGNS: tuple[Sign, ...] = (
    *HARDWARE_SIGNS,
    *DRIVER_SIGNS,
    *PASSING_SIGNS,
    *ENGINE_SIGNS,
    *SETUP_SIGNS,
    *BUILDING_SIGNS,
    *COMPILING_SIGNS,
    *LIBRARY_SIGNS,
    *TRAINING_SIGNS,
    *NOTEBOOK_SIGNS,
)

__all__ = ["SIGNS", "Certainty", "Sign"]
