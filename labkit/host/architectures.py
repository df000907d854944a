"""NVIDIA's architectures by compute capability, and by the names of the GPUs that have them."""

from __future__ import annotations

import re

Capability = tuple[int, int]

# From each capability on, until the next one.
ARCHITECTURES: tuple[tuple[Capability, str], ...] = (
    ((3, 0), "Kepler"),
    ((5, 0), "Maxwell"),
    ((6, 0), "Pascal"),
    ((7, 0), "Volta"),
    ((7, 5), "Turing"),
    ((8, 0), "Ampere"),
    ((8, 9), "Ada"),
    ((9, 0), "Hopper"),
    ((10, 0), "Blackwell"),
    ((13, 0), "a newer architecture"),
)

# For a driver that does not tell the capability. Only series with one architecture throughout:
# an RTX 2050 is no Turing, a GTX 960M not like a GTX 960.
NAMES: tuple[tuple[str, Capability], ...] = (
    (r"GTX 9\d0\b|\bTesla M(4|6|40|60)\b|\bGTX TITAN X\b", (5, 2)),
    (r"\bP100\b", (6, 0)),
    (r"\bGTX? 10[3-8]0\b|\bTITAN Xp?\b|\bTesla P(4|6|40)\b|\bQuadro P\d{3,4}\b", (6, 1)),
    (r"\bV100S?\b|\bTITAN V\b|\bQuadro GV100\b", (7, 0)),
    (r"\bRTX 20[6-8]0\b|\bGTX 16[356]0\b|\bT4G?\b|\bTITAN RTX\b|\bQuadro RTX \d000\b", (7, 5)),
    (r"\bA100\b|\bA800\b|\bA30\b", (8, 0)),
    (r"\bRTX 30[6-9]0\b|\b(A2|A10G?|A16|A40)\b|\bRTX A\d000\b", (8, 6)),
    (r"\bRTX 40[5-9]0\b|\bL4\b|\bL40S?\b|\bRTX \d000 Ada\b", (8, 9)),
    (r"\bH100\b|\bH200\b|\bH800\b|\bGH200\b", (9, 0)),
    (r"\bG?B200\b", (10, 0)),
    (r"\bG?B300\b", (10, 3)),
    (r"\bRTX 50[5-9]0\b|\bRTX PRO \d000 Blackwell\b", (12, 0)),
    (r"\bGB10\b", (12, 1)),
)


def name_architecture(capability: Capability) -> str:
    """The architecture's name.

    >>> name_architecture((8, 6))
    'Ampere'
    """
    known = [name for first, name in ARCHITECTURES if first <= capability]
    return known[-1] if known else "an architecture before Kepler"


def infer_capability(name: str) -> Capability | None:
    """The compute capability of the GPU of this name, or None where the name alone leaves doubt.

    >>> infer_capability("NVIDIA GeForce RTX 3090")
    (8, 6)
    """
    found = (capability for pattern, capability in NAMES if re.search(pattern, name))
    return next(found, None)
