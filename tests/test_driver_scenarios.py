"""Whatever state the driver is in: right figures, None for the unknown, and one sentence why.

Each scenario is played to ``labkit devices`` and ``labkit memory``, as text and as JSON, through
the real nvidia-ml-py.
"""

from __future__ import annotations

import json
from typing import NamedTuple

import pytest

from labkit.devices.detect import ORDER_UNKNOWN
from labkit.devices.detect import SPLIT as SPLIT_NOTE
from labkit.devices.nvml import SENTENCES
from labkit.memory.balance.read import sees_host_ids
from tests.fakes.nvml import GIB, MIB, PlayedHost, build_driver, script_driver, script_gpu

pytest.importorskip("pynvml", reason="needs nvidia-ml-py")

# Above the kernel's largest process id: no process of the machine the tests run on has it.
TRAINER = 5_000_001
LOST = SENTENCES["gpu lost"]
DENIED = SENTENCES["no permission"]
UNKNOWN_ERROR = "NVML failed: Unknown Error (code 999)"
NO_GPU = "the NVIDIA driver is loaded but there is no GPU"
MACHINE = "the machine's"
RTX = "NVIDIA GeForce RTX 4090"


class Listed(NamedTuple):
    """A GPU as ``labkit devices`` is to list it."""

    uuid: str | None = "GPU-00000000"
    total: int | str | None = 24 * GIB
    trouble: str | None = None
    torch_name: str | None = "cuda:0"


class Held(NamedTuple):
    """A GPU as ``labkit memory`` is to account for it; unaccounted follows from the rest."""

    uuid: str | None = "GPU-00000000"
    total: int | str | None = 24 * GIB
    free: int | str | None = 20 * GIB
    reserved: int | None = 512 * MIB
    others: int | None = 0
    trouble: str | None = None


class Scenario(NamedTuple):
    """A driver's script, what both commands are to tell, and a sentence that both show.

    ``noted`` is what ``labkit devices`` remarks where ``labkit memory`` says it at the GPU.
    """

    script: str
    listed: tuple[Listed, ...] = ()
    held: tuple[Held, ...] = ()
    notes: tuple[str, ...] = ()
    noted: tuple[str, ...] = ()
    sentence: str = ""
    environment: tuple[tuple[str, str], ...] = ()


def refuse(*queries, code=3):
    return [f"fail {query} {code}" for query in queries]


def busy(used: int | str, pid=TRAINER):
    return f"process {pid} {used}"


def broken(code, sentence, query="init"):
    script = script_driver(f"fail {query} {code}", script_gpu())
    return Scenario(script, notes=(sentence,), sentence=f"note: {sentence}")


def numbered(count):
    return [f"GPU-0000000{index:x}" for index in range(count)]


NOTHING = Held(None, None, None, None, None)
SECOND, THIRD = "GPU-00000001", "GPU-00000002"
MEMORY = ("memory", "memory_v2")
SPLIT = (
    script_gpu(0, "mig 1"),
    script_gpu(1, f"memory {10 * GIB} 0 {4 * GIB}", busy(6 * GIB), kind="slice"),
    script_gpu(2, f"memory {5 * GIB} 0 {5 * GIB}", kind="slice"),
)
HALVES = (
    Held("MIG-00000001", 10 * GIB, 4 * GIB, 0, 6 * GIB),
    Held("MIG-00000002", 5 * GIB, 5 * GIB, 0, 0),
)
WHOLE = Listed(torch_name=None)
INSTANCES = (
    Listed("MIG-00000001", 10 * GIB, torch_name=None),
    Listed("MIG-00000002", 5 * GIB, torch_name=None),
)

SCENARIOS = {
    "two GPUs, one of them in use": Scenario(
        script_driver(
            script_gpu(0), script_gpu(1, f"memory {80 * GIB} {GIB} {30 * GIB}", busy(49 * GIB))
        ),
        (Listed(torch_name=None), Listed(SECOND, 80 * GIB, torch_name=None)),
        (Held(), Held(SECOND, 80 * GIB, 30 * GIB, GIB, 49 * GIB)),
        noted=(ORDER_UNKNOWN,),
    ),
    "two unlike GPUs in the order of the bus, turned round": Scenario(
        script_driver(script_gpu(0), script_gpu(1, "capability 12 0")),
        (Listed(torch_name="cuda:1"), Listed(SECOND)),
        (Held(), Held(SECOND)),
        environment=(("CUDA_DEVICE_ORDER", "PCI_BUS_ID"), ("CUDA_VISIBLE_DEVICES", "1,0")),
    ),
    "hidden by an empty list": Scenario(
        script_driver(script_gpu(0)),
        (Listed(torch_name=None),),
        (Held(),),
        noted=("CUDA_VISIBLE_DEVICES='' hides every GPU",),
        environment=(("CUDA_VISIBLE_DEVICES", ""),),
    ),
    "split by MIG, an instance chosen": Scenario(
        script_driver(*SPLIT),
        (WHOLE, INSTANCES[0], INSTANCES[1]._replace(torch_name="cuda:0")),
        HALVES,
        environment=(("CUDA_VISIBLE_DEVICES", "MIG-00000002"),),
    ),
    "split by MIG, the whole refused": Scenario(
        script_driver("\n".join([SPLIT[0], *refuse(*MEMORY, "compute", code=4)]), *SPLIT[1:]),
        (WHOLE._replace(total=None), *INSTANCES),
        HALVES,
        noted=(SPLIT_NOTE,),
    ),
    "split by MIG, an instance lost": Scenario(
        script_driver(SPLIT[0], f"{SPLIT[1]}\nfail handle 15", SPLIT[2]),
        (WHOLE, Listed(None, None, LOST, None), INSTANCES[1]),
        (NOTHING._replace(trouble=LOST), HALVES[1]),
        noted=(SPLIT_NOTE, f"a MIG instance of GPU 0 ({RTX}): {LOST}"),
        sentence=LOST,
    ),
    "split by MIG, without instances": Scenario(
        script_driver(SPLIT[0]),
        (WHOLE,),
        (Held(),),
        noted=(f"GPU 0 ({RTX}): it is split by MIG, and none of its MIG instances is visible",),
    ),
    "in the machine's memory, refused": Scenario(
        script_driver(script_gpu(0, "name NVIDIA GB10", *refuse(*MEMORY))),
        (Listed(total=MACHINE),),
        (Held(total=MACHINE, free=MACHINE, reserved=None),),
        sentence="shared with the system",
    ),
    "processes with ids of the host": Scenario(
        script_driver(script_gpu(0, busy(GIB), busy(GIB, 1))),
        (Listed(),),
        (Held(others=2 * GIB),),
    ),
    "a lost GPU beside healthy ones": Scenario(
        script_driver(script_gpu(0), script_gpu(1, "fail handle 15"), script_gpu(2)),
        (
            Listed(torch_name=None),
            Listed(None, None, LOST, None),
            Listed(THIRD, torch_name=None),
        ),
        (Held(), NOTHING._replace(trouble=LOST), Held(THIRD)),
        noted=(
            ORDER_UNKNOWN,
            f"GPU 1 (unknown): {LOST}",
        ),
        sentence=LOST,
    ),
    "a GPU lost while it is read": Scenario(
        script_driver(script_gpu(0), script_gpu(1, "fail any 15 3")),
        (Listed(torch_name=None), Listed(SECOND, None, LOST, None)),
        (Held(), NOTHING._replace(uuid=SECOND, trouble=LOST)),
        noted=(
            ORDER_UNKNOWN,
            f"GPU 1 ({RTX}): {LOST}",
        ),
        sentence=LOST,
    ),
    "no permission for one GPU": Scenario(
        script_driver(script_gpu(0, "fail handle 4")),
        (Listed(None, None, DENIED, None),),
        (NOTHING._replace(trouble=DENIED),),
        noted=(f"GPU 0 (unknown): {DENIED}",),
        sentence=DENIED,
    ),
    "no GPU": Scenario(script_driver(), notes=(NO_GPU,), sentence=f"note: {NO_GPU}"),
    "sixteen GPUs": Scenario(
        script_driver(*(script_gpu(index) for index in range(16))),
        tuple(Listed(uuid, torch_name=f"cuda:{n}") for n, uuid in enumerate(numbered(16))),
        tuple(Held(uuid) for uuid in numbered(16)),
    ),
    "a shutdown that fails": Scenario(
        script_driver("fail shutdown 999", script_gpu(0)), (Listed(),), (Held(),)
    ),
    "driver not loaded": broken(9, SENTENCES["driver not loaded"]),
    "an unknown error": broken(999, UNKNOWN_ERROR),
}


@pytest.fixture(scope="module")
def driver(tmp_path_factory):
    return build_driver(tmp_path_factory.mktemp("driver"))


@pytest.fixture
def host(tmp_path, driver):
    return PlayedHost(tmp_path, driver)


def ask(host, scenario, command):
    """What a command prints as JSON and as text; it must exit with 0 and leave stderr empty."""
    environment = dict(scenario.environment)
    told = host.run(scenario.script, command, "--json", **environment)
    shown = host.run(scenario.script, command, **environment)
    assert (told.returncode, told.stderr) == (0, "")
    assert (shown.returncode, shown.stderr) == (0, "")
    return json.loads(told.stdout), shown.stdout


def mark_machine(value, cpu):
    """The mark for a figure that is the machine's own, which no test can know."""
    return MACHINE if value is not None and value == cpu else value


def each(scenarios=SCENARIOS):
    return pytest.mark.parametrize("scenario", scenarios.values(), ids=scenarios.keys())


@pytest.mark.slow
@each()
def test_labkit_devices_lists_what_is_there(host, scenario):
    printed, shown = ask(host, scenario, "devices")
    *gpus, cpu = printed["devices"]
    assert [
        Listed(
            gpu["uuid"],
            mark_machine(gpu["total_bytes"], cpu["limit_bytes"] or cpu["total_bytes"]),
            gpu["trouble"],
            gpu["torch_name"],
        )
        for gpu in gpus
    ] == list(scenario.listed)
    assert printed["notes"] == [*scenario.notes, *scenario.noted]
    assert all(f"note: {note}\n" in shown for note in printed["notes"])
    check_text(shown, scenario)


@pytest.mark.slow
@each()
def test_labkit_memory_accounts_for_what_is_there(host, scenario):
    printed, shown = ask(host, scenario, "memory")
    *gpus, cpu = printed["devices"]
    # The machine's free memory is never the same twice.
    shared = [gpu["shared"] for gpu in gpus]
    assert [
        Held(
            gpu["uuid"],
            mark_machine(gpu["total_bytes"], cpu["total_bytes"]),
            MACHINE if gpu["shared"] else gpu["free_bytes"],
            gpu["driver_reserved_bytes"],
            0 if gpu["shared"] else gpu["other_processes_bytes"],
            gpu["trouble"],
        )
        for gpu in gpus
    ] == list(scenario.held)
    assert shared == [one.free == MACHINE for one in scenario.held]
    assert printed["notes"] == list(scenario.notes)
    check_text(shown, scenario)
    for gpu in gpus:
        check_sum(gpu)


def check_sum(gpu):
    """The known terms add up to the total."""
    own = gpu["this_process"]
    # This process is labkit's command, which has not loaded CUDA: it holds nothing.
    assert set(own.values()) == {0}
    terms = [gpu[f"{key}_bytes"] for key in ("other_processes", "driver_reserved", "free")]
    if gpu["free_bytes"] is not None:
        assert sum(term or 0 for term in terms) + gpu["unaccounted_bytes"] == gpu["total_bytes"]
    else:
        assert gpu["unaccounted_bytes"] is None


def check_text(shown, scenario):
    """What is unknown is a word, and never what a language or the driver writes for it."""
    assert scenario.sentence in shown
    assert not [word for word in ("None", "N/A", "nan", "18446744073") if word in shown]
    assert "Traceback" not in shown


def test_ids_of_the_host_are_called_that_in_a_container(host):
    _, shown = ask(host, SCENARIOS["processes with ids of the host"], "memory")
    whose = "2 processes" if sees_host_ids() else "2 processes, ids of the host"
    assert f"        {whose}\n" in shown
