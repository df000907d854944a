"""A GPU of this machine by torch's name, where no torch has started CUDA: on a played driver."""

from __future__ import annotations

import pytest

from labkit.errors import DeviceMissingError
from labkit.memory.balance import read
from labkit.memory.balance.model import Snapshot
from labkit.memory.estimate.model import find_target
from tests.fakes.nvml import GIB, MIB, PlayedHost, build_driver, script_driver, script_gpu

FIND = "import sys; from labkit.memory.estimate.model import find_target as find; "
FIND += "target = find(sys.argv[1]); print(target.name, target.kind, target.capacity_bytes)"
SMALL = script_gpu(0)
LARGE = script_gpu(1, "name NVIDIA H100", f"memory {80 * GIB} {512 * MIB} {70 * GIB}")
TWO = script_driver(SMALL, LARGE)


@pytest.fixture
def host(tmp_path):
    """A machine with a played driver."""
    pytest.importorskip("pynvml", reason="needs nvidia-ml-py")
    (tmp_path / "host").mkdir()
    return PlayedHost(tmp_path / "host", build_driver(tmp_path / "driver"))


@pytest.mark.parametrize(
    ("name", "shown", "expected"),
    [
        ("cuda", {"CUDA_DEVICE_ORDER": "PCI_BUS_ID"}, "cuda:0 (NVIDIA GeForce RTX 4090) cuda"),
        ("cuda:1", {"CUDA_DEVICE_ORDER": "PCI_BUS_ID"}, "cuda:1 (NVIDIA H100) cuda"),
        ("cuda:0", {"CUDA_VISIBLE_DEVICES": "GPU-00000001"}, "cuda:0 (NVIDIA H100) cuda"),
    ],
    ids=["the first", "the second", "the only one that is let through"],
)
def test_a_gpu_is_found_by_the_name_that_torch_will_give_it(host, name, shown, expected):
    found = host.run_python(TWO, "-c", FIND, name, **shown)
    capacity = (80 * GIB if "H100" in expected else 24 * GIB) - 512 * MIB
    assert (found.stdout, found.stderr) == (f"{expected} {capacity}\n", "")


def test_a_gpu_that_is_hidden_is_missing_for_that_reason(host):
    hidden = host.run_python(TWO, "-m", "labkit", "estimate", "x.py:f", "--device", "cuda:0",
                             CUDA_VISIBLE_DEVICES="")  # fmt: skip
    assert (hidden.returncode, hidden.stdout) == (3, "")
    assert "\n  cause: CUDA_VISIBLE_DEVICES='' hides every GPU\n" in hidden.stderr


def test_a_machine_that_tells_nothing_of_itself_has_no_capacity(monkeypatch):
    monkeypatch.setattr(read, "take_snapshot", lambda **_: Snapshot(()))
    with pytest.raises(DeviceMissingError, match="cpu is not on this machine, or its memory"):
        find_target("cpu")
