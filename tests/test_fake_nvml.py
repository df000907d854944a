"""The figures of one GPU in ``labkit devices`` and ``labkit memory``, on played drivers.

Everything is read through the real nvidia-ml-py. What several GPUs and broken drivers come to is
in test_driver_scenarios.py.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

import pytest

from labkit.devices.nvml import SENTENCES
from tests.fakes.nvml import GIB, MIB, PlayedHost, build_driver, script_driver, script_gpu

pytest.importorskip("pynvml", reason="needs nvidia-ml-py")

# Above the kernel's largest process id: no process of the machine the tests run on has it.
TRAINER, BROWSER = 5_000_001, 5_000_002
LOST = SENTENCES["gpu lost"]


@pytest.fixture(scope="module")
def driver(tmp_path_factory):
    return build_driver(tmp_path_factory.mktemp("driver"))


@pytest.fixture(scope="module")
def old_driver(tmp_path_factory):
    return build_driver(tmp_path_factory.mktemp("old"), old=True)


@pytest.fixture
def host(tmp_path, driver):
    return PlayedHost(tmp_path, driver)


def ask(host, script, command):
    """The one JSON object a command prints, which must exit with 0 and leave stderr empty."""
    done = host.run(script, command, "--json")
    assert (done.returncode, done.stderr) == (0, "")
    return json.loads(done.stdout)


def list_gpus(printed):
    return [device for device in printed["devices"] if device["kind"] != "cpu"]


def process(pid=TRAINER, used: int | str = GIB, *words):
    return " ".join(["process", str(pid), str(used), *words])


class Case(NamedTuple):
    """A GPU's script, and the figures that differ from those of the plain GPU."""

    script: str
    memory: Mapping[str, Any] = MappingProxyType({})
    device: Mapping[str, Any] = MappingProxyType({})


PLAIN_MEMORY = {
    "name": "NVIDIA GeForce RTX 4090",
    "uuid": "GPU-00000000",
    "total_bytes": 24 * GIB,
    "free_bytes": 20 * GIB,
    "driver_reserved_bytes": 512 * MIB,
    "used_bytes": 3584 * MIB,
    "other_processes_bytes": 0,
    "unaccounted_bytes": 3584 * MIB,
    "processes": [],
    "shared": False,
    "trouble": None,
}
PLAIN_DEVICE = {
    "torch_name": "cuda:0",
    "name": "NVIDIA GeForce RTX 4090",
    "uuid": "GPU-00000000",
    "total_bytes": 24 * GIB,
    "compute_capability": "8.9",
    "mig": False,
    "driver": "580.95.05",
    "cuda": "13.0",
    "trouble": None,
}
OWN_TERMS = ("allocated_bytes", "cached_bytes", "context_bytes")
TERMS = ("other_processes_bytes", "driver_reserved_bytes", "unaccounted_bytes", "free_bytes")
UNKNOWN_TOTALS = {
    "total_bytes": None,
    "free_bytes": None,
    "driver_reserved_bytes": None,
    "used_bytes": None,
    "unaccounted_bytes": None,
}
CASES = {
    "plain": Case(script_gpu()),
    "with a process": Case(
        script_gpu(0, process(used=3 * GIB)),
        {
            "other_processes_bytes": 3 * GIB,
            "unaccounted_bytes": 512 * MIB,
            "processes": [{"pid": TRAINER, "name": None, "used_bytes": 3 * GIB}],
        },
    ),
    "a process that computes and draws is counted once": Case(
        script_gpu(
            0, process(), process(TRAINER, GIB, "graphics"), process(BROWSER, 7, "graphics")
        ),
        {
            "other_processes_bytes": GIB + 7,
            "unaccounted_bytes": 2560 * MIB - 7,
            "processes": [
                {"pid": TRAINER, "name": None, "used_bytes": GIB},
                {"pid": BROWSER, "name": None, "used_bytes": 7},
            ],
        },
    ),
    "memory of a process unknown (WSL)": Case(
        script_gpu(0, process(used="unknown"), process(BROWSER, GIB)),
        {
            "other_processes_bytes": None,
            "processes": [
                {"pid": BROWSER, "name": None, "used_bytes": GIB},
                {"pid": TRAINER, "name": None, "used_bytes": None},
            ],
        },
    ),
    "processes not supported": Case(
        script_gpu(0, "fail compute 3"), {"other_processes_bytes": None, "processes": None}
    ),
    "version 2 refused": Case(
        script_gpu(0, "fail memory_v2 13"),
        {
            "driver_reserved_bytes": None,
            "used_bytes": 4 * GIB,
            "unaccounted_bytes": 4 * GIB,
        },
    ),
    "memory not supported": Case(
        script_gpu(0, "fail memory 3", "fail memory_v2 3"), UNKNOWN_TOTALS, {"total_bytes": None}
    ),
    "a total of nothing": Case(
        script_gpu(0, "memory 0 0 0"), UNKNOWN_TOTALS, {"total_bytes": None}
    ),
    "nothing supported": Case(
        script_gpu(
            0,
            *(
                f"fail {query} 3"
                for query in ("name", "uuid", "capability", "memory", "memory_v2", "mig", "compute")
            ),
        ),
        {
            **UNKNOWN_TOTALS,
            "name": None,
            "uuid": None,
            "other_processes_bytes": None,
            "processes": None,
        },
        {
            "name": None,
            "uuid": None,
            "compute_capability": None,
            "total_bytes": None,
            "mig": None,
        },
    ),
    "lost while it is read": Case(
        script_gpu(0, "fail memory 15", "fail memory_v2 15"),
        {**UNKNOWN_TOTALS, "other_processes_bytes": None, "processes": None, "trouble": LOST},
        {"total_bytes": None, "mig": None, "torch_name": None, "trouble": LOST},
    ),
    "its processes fail only later": Case(
        script_gpu(0, "fail compute 999"),
        {
            "other_processes_bytes": None,
            "processes": None,
            "trouble": "NVML failed: Unknown Error (code 999)",
        },
    ),
}


@pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())
def test_the_figures_of_a_gpu(host, case):
    printed = ask(host, script_driver(case.script), "memory")
    (gpu,) = list_gpus(printed)
    # This process is labkit's command, which has not loaded CUDA: it holds nothing.
    assert set(gpu["this_process"].values()) == {0}
    assert {key: gpu[key] for key in PLAIN_MEMORY} == {**PLAIN_MEMORY, **case.memory}
    for device in printed["devices"]:
        check_sum(device)


def check_sum(device):
    """The terms add up to the total."""
    terms = [device["this_process"][key] for key in OWN_TERMS] + [device[key] for key in TERMS]
    if device["free_bytes"] is not None:
        assert sum(term or 0 for term in terms) == device["total_bytes"]


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())
def test_the_facts_of_a_gpu(host, case):
    (gpu,) = list_gpus(ask(host, script_driver(case.script), "devices"))
    assert {key: gpu[key] for key in PLAIN_DEVICE} == {**PLAIN_DEVICE, **case.device}


@pytest.mark.parametrize("command", ["devices", "memory"])
def test_an_old_driver_lacks_symbols_and_tells_the_rest(tmp_path, old_driver, command):
    host = PlayedHost(tmp_path, old_driver)
    (gpu,) = list_gpus(ask(host, script_driver(script_gpu(0, process())), command))
    assert (gpu["total_bytes"], gpu["trouble"]) == (24 * GIB, None)
    if command == "memory":
        assert gpu["driver_reserved_bytes"] is None
        assert gpu["processes"] == [{"pid": TRAINER, "name": None, "used_bytes": GIB}]
        assert gpu["unaccounted_bytes"] == 3 * GIB


def test_without_a_driver_the_library_is_named_as_missing(tmp_path):
    host = PlayedHost(tmp_path, tmp_path)
    done = host.run_python("", "-c", "import pynvml; pynvml.nvmlInit()")
    if "NVMLError_LibraryNotFound" not in done.stderr:
        pytest.skip("this machine has an NVIDIA driver of its own")
    for command in ("devices", "memory"):
        printed = ask(host, "", command)
        assert any("libnvidia-ml.so.1 was not found" in note for note in printed["notes"])


CHANGING = """
from labkit.devices.detect import detect_devices
from labkit.memory.balance.read import take_snapshot
for _ in range(3):
    devices, snapshot = detect_devices(), take_snapshot()
    gpus = [one for one in snapshot.balances if one.kind == "cuda"]
    print([one.trouble for one in devices.devices if one.kind == "cuda"], list(devices.notes)[:1])
    print([(one.free_bytes, one.trouble) for one in gpus], list(snapshot.notes))
"""
UNKNOWN_ERROR = "NVML failed: Unknown Error (code 999)"
NO_GPU = "the NVIDIA driver is loaded but there is no GPU"


def full(free, trouble=None):
    return f"[({free}, {trouble!r})] []"


@pytest.mark.parametrize(
    ("script", "lines"),
    [
        pytest.param(
            script_driver(script_gpu(0, f"grow {GIB}")),
            # Each reading of the memory finds more in use, that of the total among them.
            ["[None] []", full(18 * GIB), "[None] []", full(16 * GIB), "[None] []", full(14 * GIB)],
            id="the memory fills up",
        ),
        pytest.param(
            script_driver("fail count 999 2", script_gpu(0)),
            ["[None] []", full(20 * GIB), *[f"[] ['{UNKNOWN_ERROR}']"] * 4],
            id="the driver fails only later, as after systemd's daemon-reload",
        ),
        pytest.param(
            script_driver(script_gpu(0, "fail handle 15 3")),
            [
                *("[None] []", full(20 * GIB), "[None] []", full(None, LOST)),
                *(f"[{LOST!r}] ['GPU 0 (unknown): {LOST}']", full(None, LOST)),
            ],
            id="a GPU gets lost",
        ),
        pytest.param(
            script_driver(script_gpu(0, "here 3 4")),
            [*[f"[] ['{NO_GPU}']"] * 2, "[None] []", full(20 * GIB), *[f"[] ['{NO_GPU}']"] * 2],
            id="a GPU is plugged in and out",
        ),
        pytest.param(
            script_driver("fail init 999 2 2", script_gpu(0)),
            [
                *("[None] []", full(20 * GIB), *[f"[] ['{UNKNOWN_ERROR}']"] * 2),
                *("[None] []", full(20 * GIB)),
            ],
            id="the driver comes back",
        ),
    ],
)
def test_each_reading_asks_again(host, script, lines):
    done = host.run_python(script, "-c", CHANGING)
    assert (done.stdout.splitlines(), done.stderr) == (lines, "")
