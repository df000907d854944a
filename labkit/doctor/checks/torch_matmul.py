"""Does the best device multiply as it should?"""

from __future__ import annotations

from labkit.doctor.check import Check
from labkit.doctor.checks.torch_trial import judge_trial, probe_trial

CHECK = Check(
    "torch-matmul",
    "a matmul against the CPU",
    probe_trial("matmul", limit_seconds=40),
    judge_trial,
    ("torch-allocation",),
    patience_seconds=90,
)
