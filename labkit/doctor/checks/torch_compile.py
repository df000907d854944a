"""Does torch.compile work, from the compiler to the cache?"""

from __future__ import annotations

from labkit.doctor.check import Check
from labkit.doctor.checks.torch_trial import judge_trial, probe_trial

CHECK = Check(
    "torch-compile",
    "torch.compile",
    probe_trial("compile", limit_seconds=120),
    judge_trial,
    ("torch-matmul",),
    patience_seconds=220,
)
