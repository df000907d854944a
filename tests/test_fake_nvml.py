"""``labkit devices`` and ``labkit memory`` on played drivers, through the real nvidia-ml-py."""

from __future__ import annotations

import json
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

import pytest

from tests.fakes.nvml import GIB, MIB, PlayedHost, build_driver, script_driver, script_gpu

pytest.importorskip("pynvml", reason="needs nvidia-ml-py")

# Above the kernel's largest process id: no process of the machine the tests run on has it.
TRAINER, BROWSER = 5_000_001, 5_000_002
LOST = "the GPU is lost: it fell off the bus or its driver gave it up"
MISMATCH = (
    "the NVIDIA driver was updated while loaded: its library and kernel module differ"
    " until the module is reloaded or the machine restarted"
)


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
    "more processes between the two calls": Case(
        script_gpu(0, process(), "fail compute 7 1"),
        {"other_processes_bytes": None, "processes": None},
    ),
    "version 2 refused": Case(
        script_gpu(0, "fail memory_v2 13"),
        {
            "driver_reserved_bytes": None,
            "used_bytes": 4 * GIB,
            "unaccounted_bytes": 4 * GIB,
        },
    ),
    "version 2 of another size": Case(
        script_gpu(0, "fail memory_v2 25"),
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
    "no permission for any figure": Case(
        script_gpu(0, *(f"fail {query} 4" for query in ("memory", "memory_v2", "mig", "compute"))),
        {**UNKNOWN_TOTALS, "other_processes_bytes": None, "processes": None},
        {"total_bytes": None, "mig": None},
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
    (gpu,) = list_gpus(ask(host, script_driver(case.script), "memory"))
    # This process is labkit's command, which has not loaded CUDA: it holds nothing.
    assert set(gpu["this_process"].values()) == {0}
    assert {key: gpu[key] for key in PLAIN_MEMORY} == {**PLAIN_MEMORY, **case.memory}


@pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())
def test_the_facts_of_a_gpu(host, case):
    (gpu,) = list_gpus(ask(host, script_driver(case.script), "devices"))
    assert {key: gpu[key] for key in PLAIN_DEVICE} == {**PLAIN_DEVICE, **case.device}


@pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())
def test_the_terms_add_up_to_the_total(host, case):
    for device in ask(host, script_driver(case.script), "memory")["devices"]:
        own = device["this_process"]
        terms = [
            *(own[key] for key in ("allocated_bytes", "cached_bytes", "context_bytes")),
            *(device[f"{key}_bytes"] for key in ("other_processes", "driver_reserved")),
            *(device[f"{key}_bytes"] for key in ("unaccounted", "free")),
        ]
        if device["free_bytes"] is not None:
            assert sum(term or 0 for term in terms) == device["total_bytes"]


UNREACHABLE = {
    "driver not loaded": (
        "init",
        9,
        "the NVIDIA driver is installed but not loaded into the kernel",
    ),
    "no permission": (
        "init",
        4,
        "this user may not open the NVIDIA driver's device files (/dev/nvidia*)",
    ),
    "driver and library differ": ("init", 18, MISMATCH),
    "unknown error at the start": ("init", 999, "NVML failed: Unknown Error (code 999)"),
    "it does not tell how many": (
        "count",
        3,
        "the NVIDIA driver does not answer nvmlDeviceGetCount",
    ),
    "unknown error only later": ("count", 999, "NVML failed: Unknown Error (code 999)"),
}


@pytest.mark.parametrize("command", ["devices", "memory"])
@pytest.mark.parametrize(
    ("query", "code", "sentence"), UNREACHABLE.values(), ids=UNREACHABLE.keys()
)
def test_a_driver_that_does_not_answer_is_one_sentence(host, command, query, code, sentence):
    script = script_driver(f"fail {query} {code}", script_gpu())
    printed = ask(host, script, command)
    assert list_gpus(printed) == []
    assert [device["kind"] for device in printed["devices"]] == ["cpu"]
    assert printed["notes"] == [sentence]
    shown = host.run(script, command)
    assert (shown.returncode, shown.stderr) == (0, "")
    assert shown.stdout.endswith(f"note: {sentence}\n")


@pytest.mark.parametrize("command", ["devices", "memory"])
def test_a_driver_without_gpus_says_so(host, command):
    printed = ask(host, script_driver(), command)
    assert list_gpus(printed) == []
    assert printed["notes"] == ["the NVIDIA driver is loaded but there is no GPU"]


@pytest.mark.parametrize("command", ["devices", "memory"])
def test_a_shutdown_that_fails_takes_nothing_away(host, command):
    assert len(list_gpus(ask(host, script_driver("fail shutdown 999", script_gpu()), command))) == 1


@pytest.mark.parametrize("command", ["devices", "memory"])
def test_a_lost_gpu_does_not_hide_the_healthy_ones(host, command):
    script = script_driver(script_gpu(0), script_gpu(1, "fail handle 15"), script_gpu(2))
    first, lost, last = list_gpus(ask(host, script, command))
    assert (lost["trouble"], lost["total_bytes"], lost["uuid"]) == (LOST, None, None)
    assert [gpu["uuid"] for gpu in (first, last)] == ["GPU-00000000", "GPU-00000002"]
    assert {gpu["total_bytes"] for gpu in (first, last)} == {24 * GIB}
    assert {gpu["trouble"] for gpu in (first, last)} == {None}


@pytest.mark.parametrize("command", ["devices", "memory"])
def test_a_gpu_that_may_not_be_opened_says_so(host, command):
    (gpu,) = list_gpus(ask(host, script_driver(script_gpu(0, "fail handle 4")), command))
    assert gpu["trouble"] == UNREACHABLE["no permission"][2]
    assert gpu["total_bytes"] is None


@pytest.mark.parametrize("command", ["devices", "memory"])
def test_sixteen_gpus_are_all_told(host, command):
    script = script_driver(*(script_gpu(index) for index in range(16)))
    gpus = list_gpus(ask(host, script, command))
    assert [gpu["uuid"] for gpu in gpus] == [f"GPU-0000000{index:x}" for index in range(16)]


def test_each_gpu_has_its_own_figures(host):
    busy = script_gpu(1, f"memory {80 * GIB} {GIB} {30 * GIB}", process(used=49 * GIB))
    idle, used = list_gpus(ask(host, script_driver(script_gpu(0), busy), "memory"))
    assert (idle["free_bytes"], idle["other_processes_bytes"]) == (20 * GIB, 0)
    assert (used["free_bytes"], used["other_processes_bytes"]) == (30 * GIB, 49 * GIB)
    assert used["unaccounted_bytes"] == 0


def script_slices(*extra):
    return script_driver(
        script_gpu(0, "mig 1", *extra),
        script_gpu(1, f"memory {10 * GIB} 0 {4 * GIB}", process(used=6 * GIB), kind="slice"),
        script_gpu(2, f"memory {5 * GIB} 0 {5 * GIB}", kind="slice"),
    )


def test_the_slices_of_a_split_gpu_stand_in_its_place(host):
    denied = ("fail memory 4", "fail memory_v2 4", "fail compute 4")
    first, second = list_gpus(ask(host, script_slices(*denied), "memory"))
    assert (first["uuid"], second["uuid"]) == ("MIG-00000001", "MIG-00000002")
    assert (first["total_bytes"], first["free_bytes"]) == (10 * GIB, 4 * GIB)
    assert (first["other_processes_bytes"], first["unaccounted_bytes"]) == (6 * GIB, 0)
    assert (second["free_bytes"], second["processes"]) == (5 * GIB, [])
    assert {first["trouble"], second["trouble"]} == {None}


def test_the_slices_of_a_split_gpu_are_listed_behind_it(host):
    printed = ask(host, script_slices(), "devices")
    gpu, first, second = list_gpus(printed)
    assert (gpu["mig"], gpu["torch_name"], gpu["parent_uuid"]) == (True, None, None)
    assert [part["uuid"] for part in (first, second)] == ["MIG-00000001", "MIG-00000002"]
    assert [part["total_bytes"] for part in (first, second)] == [10 * GIB, 5 * GIB]
    assert {part["parent_uuid"] for part in (first, second)} == {"GPU-00000000"}


def test_a_slice_is_named_where_the_environment_picks_it(host):
    done = host.run(script_slices(), "devices", "--json", CUDA_VISIBLE_DEVICES="MIG-00000002")
    printed = json.loads(done.stdout)
    names = [gpu["torch_name"] for gpu in list_gpus(printed)]
    assert (printed["best"], names) == ("cuda:0", [None, None, "cuda:0"])


def test_a_gpu_in_the_machines_memory_has_the_machines_figures(host):
    refused = ("name NVIDIA GB10", "fail memory 3", "fail memory_v2 3")
    gpu, cpu = ask(host, script_driver(script_gpu(0, *refused, process())), "memory")["devices"]
    assert gpu["shared"] is True
    assert gpu["total_bytes"] == cpu["total_bytes"]
    assert gpu["total_bytes"] == gpu["other_processes_bytes"] + gpu["free_bytes"]
    assert gpu["unaccounted_bytes"] == 0
    shown = host.run(script_driver(script_gpu(0, *refused)), "memory").stdout
    assert "        its memory is shared with the system\n" in shown


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
        assert "no NVIDIA driver here: libnvidia-ml.so.1 was not found" in printed["notes"]


TWO_READINGS = """
from labkit.memory.snapshot import take_snapshot
print([take_snapshot().balances[0].free_bytes for _ in range(3)])
"""


def test_figures_that_change_are_read_anew(host):
    script = script_driver(script_gpu(0, f"grow {GIB}"))
    done = host.run_python(script, "-c", TWO_READINGS)
    assert (done.stdout, done.stderr) == (f"{[19 * GIB, 18 * GIB, 17 * GIB]}\n", "")


FAILING_LATER = """
from labkit.memory.snapshot import take_snapshot
for _ in range(2):
    snapshot = take_snapshot()
    print(len(snapshot.balances), [one.trouble for one in snapshot.balances], snapshot.notes)
"""


def test_a_driver_that_fails_only_later_is_one_sentence_then(host):
    """As in a container after systemd's daemon-reload."""
    script = script_driver("fail count 999 1", script_gpu())
    done = host.run_python(script, "-c", FAILING_LATER)
    assert done.stdout.splitlines() == [
        "2 [None, None] ()",
        "1 [None] ('NVML failed: Unknown Error (code 999)',)",
    ]
