"""Does an allocation on the best device work?"""

from __future__ import annotations

from labkit.doctor.check import Check
from labkit.doctor.checks.torch_trial import judge_trial, probe_trial

CHECK = Check(
    "torch-allocation",
    "a tensor on the best device",
    probe_trial("allocation", limit_seconds=40),
    judge_trial,
    ("torch-build",),
    patience_seconds=45,
)
