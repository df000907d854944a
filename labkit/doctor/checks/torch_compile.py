"""Does torch.compile work, from the compiler to the cache?"""

from __future__ import annotations

from labkit.doctor.checks.torch_trial import make_trial_check

CHECK = make_trial_check("compile", "torch.compile", "torch-matmul")
