"""The error texts the doctor knows, by area; each is data, and the order means nothing."""

from __future__ import annotations

from labkit.doctor.signs.building import BUILDING_SIGNS
from labkit.doctor.signs.compiling import COMPILING_SIGNS
from labkit.doctor.signs.driver import DRIVER_SIGNS
from labkit.doctor.signs.engine import ENGINE_SIGNS
from labkit.doctor.signs.passing import PASSING_SIGNS
from labkit.doctor.signs.sign import Certainty, Sign
from labkit.doctor.signs.training import TRAINING_SIGNS

SIGNS: tuple[Sign, ...] = (
    *DRIVER_SIGNS,
    *PASSING_SIGNS,
    *ENGINE_SIGNS,
    *BUILDING_SIGNS,
    *COMPILING_SIGNS,
    *TRAINING_SIGNS,
)

__all__ = ["SIGNS", "Certainty", "Sign"]
