"""Does the best device multiply as it should?"""

from __future__ import annotations

from labkit.doctor.checks.torch_trial import make_trial_check

CHECK = make_trial_check("matmul", "a matmul against the CPU", "torch-allocation")
