"""The labs by `labkit run` on simulated GPUs of each generation: every claim and check holds.

CI takes each lab once: "compile" and "devices" on the GPU that is hardest for them, the others so
that each card has two labs. The rest of the table is slow.
"""

from __future__ import annotations

import pytest

from labkit.lessons.catalog import find_labs

# Above the limit of hosts.py.
pytestmark = [pytest.mark.simulated, pytest.mark.timeout(2000)]

# Work takes time, as on a GPU: products of this rate, and kernels of this length.
SPEEDS = {"LABKIT_SIM_GFLOPS": "5000", "LABKIT_SIM_KERNEL_NS": "5000"}
HOSTS = ("pascal", "t4", "large_a100", "h100")
# A lab that is not here runs on all of them.
IN_CI = {
    "tensors": "t4",
    "autograd": "large_a100",
    "devices": "h100",
    "compile": "t4",
    "functional": "large_a100",
    "training": "h100",
    "distributed": "t4",
}
# They begin first: a worker that began the longest one last would work alone.
LONGEST = ("compile", "training", "functional")
LABS = [*LONGEST, *(lab.name for lab in find_labs() if lab.name not in LONGEST)]
# The build for CUDA 13 sorts by a library that has no code path below Turing; the build for 12.6,
# which Pascal gets, has one.
NOT_PLAYED = {("training", "pascal")}
RUNS = [
    pytest.param(lab, host, marks=[] if IN_CI.get(lab, host) == host else pytest.mark.slow)
    for lab in LABS
    for host in HOSTS
    if (lab, host) not in NOT_PLAYED
]


@pytest.mark.parametrize(("lab", "host"), RUNS)
def test_every_claim_of_a_lab_holds(request, tmp_path, lab, host):
    found = request.getfixturevalue(host).run_labkit(
        "run",
        lab,
        "--json",
        "--output",
        str(tmp_path / "run"),
        TORCHINDUCTOR_CACHE_DIR=str(tmp_path / "compiled"),
        **SPEEDS,
    )
    [result] = found.json()["notebooks"]
    assert result["status"] == "passed"
