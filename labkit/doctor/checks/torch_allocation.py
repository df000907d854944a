"""Does an allocation on the best device work?"""

from __future__ import annotations

from labkit.doctor.checks.torch_trial import make_trial_check

CHECK = make_trial_check("allocation", "a tensor on the best device", "torch-build")
