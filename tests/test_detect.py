"""Which devices there are, which one torch takes, and the sentence that says why not a GPU."""

from __future__ import annotations

import sys

import pytest

from labkit.devices.detect import (
    NOT_PASSED,
    ORDER_UNKNOWN,
    SPLIT,
    Accelerator,
    choose_mig_instance,
    describe_mac,
    detect_devices,
    hides_all,
    join_facts,
    name_gpus,
)
from labkit.devices.nvml import SENTENCES, NvmlFacts, NvmlGpu, Trouble
from labkit.devices.torch_devices import best_device
from labkit.host.cpu import CpuFacts
from labkit.host.torch_builds import InstalledTorch, find_torch_folder, read_torch_build

GIB = 2**30
CPU = CpuFacts("AMD EPYC", 2, 4, 4, 16 * GIB, None, ("AVX2",))
CUDA_BUILD = InstalledTorch("2.13.0+cu130", "13.0")
CPU_BUILD = InstalledTorch("2.13.0+cpu", None)


def make_gpu(index, name="NVIDIA H200", **changes):
    return NvmlGpu(index, f"GPU-{index}{index}aa", name, 141 * GIB, "9.0", False)._replace(
        **changes
    )


def make_nvml(*gpus, cuda="13.0"):
    return NvmlFacts("580.95.05", cuda, gpus)


def make_trouble(kind):
    return Trouble(kind, SENTENCES[kind])


ALIKE = (make_gpu(0), make_gpu(1), make_gpu(2))
UNLIKE = (make_gpu(0, "NVIDIA T400"), make_gpu(1), make_gpu(2))
HALVED = make_gpu(
    0,
    mig_enabled=True,
    mig_instances=(
        NvmlGpu(0, "MIG-1a1a", "NVIDIA H200 MIG 3g.71gb", 70 * GIB, "9.0"),
        NvmlGpu(0, "MIG-2b2b", "NVIDIA H200 MIG 3g.71gb", 70 * GIB, "9.0"),
    ),
)
BY_BUS = {"CUDA_DEVICE_ORDER": "PCI_BUS_ID"}


@pytest.mark.parametrize(
    ("gpus", "visible", "order", "numbers"),
    [
        pytest.param(ALIKE, None, {}, (0, 1, 2), id="alike, all visible"),
        pytest.param(UNLIKE, None, {}, (None, None, None), id="unlike, fastest first"),
        pytest.param(UNLIKE, None, BY_BUS, (0, 1, 2), id="unlike, by bus"),
        pytest.param(UNLIKE[:1], None, {}, (0,), id="one alone"),
        pytest.param(ALIKE, "", {}, (None, None, None), id="empty"),
        pytest.param(ALIKE, "-1", {}, (None, None, None), id="minus one"),
        pytest.param(ALIKE, "NoDevFiles", {}, (None, None, None), id="no number"),
        pytest.param(ALIKE, "2,0", {}, (1, None, 0), id="indices in another order"),
        pytest.param(ALIKE, " 1 , 2 ", {}, (None, 0, 1), id="indices with blanks"),
        pytest.param(ALIKE, "0,-1,2", {}, (0, None, None), id="ended by minus one"),
        pytest.param(ALIKE, "0,7,2", {}, (0, None, None), id="ended by no such GPU"),
        pytest.param(ALIKE, "1,1", {}, (None, None, None), id="repeated index"),
        pytest.param(UNLIKE, "2,0", {}, (None, None, None), id="unlike, indices"),
        pytest.param(UNLIKE, "2,0", BY_BUS, (1, None, 0), id="unlike, indices by bus"),
        pytest.param(UNLIKE, "GPU-22aa,GPU-00aa", {}, (1, None, 0), id="UUIDs settle it"),
        pytest.param(UNLIKE, "GPU-1", {}, (None, 0, None), id="the beginning of a UUID"),
        pytest.param(ALIKE, "GPU-", {}, (None, None, None), id="a beginning of several"),
        pytest.param(ALIKE, "GPU-00,GPU-9,GPU-11", {}, (0, None, None), id="ended by no such UUID"),
        pytest.param(ALIKE, "GPU-00,GPU-00", {}, (None, None, None), id="repeated UUID"),
        pytest.param(ALIKE, "MIG-1234", {}, (None, None, None), id="MIG"),
    ],
)
def test_the_number_that_torch_gives_a_gpu(gpus, visible, order, numbers):
    environment = order if visible is None else {**order, "CUDA_VISIBLE_DEVICES": visible}
    expected = [None if number is None else f"cuda:{number}" for number in numbers]
    assert name_gpus(gpus, environment) == expected


@pytest.mark.parametrize(
    "odd",
    [make_gpu(1, trouble=make_trouble("gpu lost")), make_gpu(1, mig_enabled=True)],
    ids=["lost", "split by MIG"],
)
def test_a_gpu_that_cuda_may_leave_out_makes_the_numbers_unknown(odd):
    assert name_gpus((make_gpu(0), odd), BY_BUS) == [None, None]


@pytest.mark.parametrize(
    ("visible", "names"),
    [
        ("GPU-11aa", [None, "cuda:0", None]),
        ("GPU-11aa,GPU-00aa,GPU-22aa", [None, "cuda:0", None]),
        ("GPU-00aa,GPU-22aa", [None, None, None]),
    ],
    ids=["alone", "before the lost one", "after the lost one"],
)
def test_uuids_name_gpus_up_to_a_lost_one(visible, names):
    gpus = (make_gpu(0, trouble=make_trouble("gpu lost")), make_gpu(1), make_gpu(2))
    assert name_gpus(gpus, {"CUDA_VISIBLE_DEVICES": visible}) == names


def join(nvml, build=CUDA_BUILD, environment=None, accelerators=()):
    return join_facts(nvml, CPU, build, environment or {}, accelerators)


def test_the_best_device_is_the_first_that_torch_sees():
    detection = join(make_nvml(*ALIKE), environment={"CUDA_VISIBLE_DEVICES": "2,0"})
    assert detection.best == "cuda:0"
    assert [device.torch_name for device in detection.devices] == ["cuda:1", None, "cuda:0", "cpu"]
    assert detection.notes == ()


@pytest.mark.parametrize(
    ("capability", "version", "best"),
    [
        ("6.1", "2.13.0+cu130", "cpu"),
        ("6.1", "2.13.0+cu126", "cuda:0"),
        ("6.1", "2.13.0", "cuda:0"),  # somebody's own build: its list is not known
        (None, "2.13.0+cu130", "cuda:0"),
    ],
)
def test_a_gpu_that_this_build_has_no_code_for_is_not_the_best(capability, version, best):
    nvml = make_nvml(make_gpu(0, "Tesla P40", compute_capability=capability))
    found = join(nvml, InstalledTorch(version, "13.0"))
    assert found.best == best
    assert ["no code for Tesla P40" in note for note in found.notes] == [True] * (best == "cpu")


def test_a_gpu_and_the_cpu_behind_it_carry_their_facts():
    gpu, cpu = join(make_nvml(make_gpu(0))).devices
    assert (gpu.kind, gpu.name, gpu.uuid) == ("cuda", "NVIDIA H200", "GPU-00aa")
    assert (gpu.total_bytes, gpu.compute_capability) == (141 * GIB, "9.0")
    assert (gpu.driver, gpu.cuda, gpu.mig) == ("580.95.05", "13.0", False)
    assert (cpu.kind, cpu.torch_name, cpu.name, cpu.uuid) == ("cpu", "cpu", "AMD EPYC", None)
    assert (cpu.cores, cpu.physical_cores, cpu.logical_cores) == (4, 2, 4)


def test_unlike_gpus_leave_the_number_open_and_say_how_to_settle_it():
    detection = join(make_nvml(*UNLIKE))
    assert detection.best == "cuda"
    assert detection.notes == (ORDER_UNKNOWN,)


LOST = make_gpu(0, trouble=make_trouble("gpu lost"))
NO_LIBRARY = NvmlFacts(trouble=make_trouble("no library"))
MISSED = "no NVIDIA driver here: libnvidia-ml.so.1 was not found"
ONE = make_nvml(make_gpu(0))
SPLIT_GPU = make_nvml(HALVED)
UNSPLIT = make_nvml(make_gpu(0, mig_enabled=True))
HALF_LOST = make_gpu(
    0,
    mig_enabled=True,
    mig_instances=(NvmlGpu(0, trouble=make_trouble("gpu lost")), HALVED.mig_instances[0]),
)
CPU_WORDS = "torch 2.13.0+cpu is a CPU build"
NO_CUDA = InstalledTorch("2.13.0", None)
CU129 = InstalledTorch("2.13.0+cu129", "12.9")
OLD_DRIVER = "the NVIDIA driver 580.95.05 (CUDA 12.2) is too old for torch 2.13.0+cu130 (CUDA 13.0)"


def case(name, nvml, best, *notes, build=CUDA_BUILD, visible=None, **environment):
    """The facts, torch's best device and the starts of the notes."""
    if visible is not None:
        environment["CUDA_VISIBLE_DEVICES"] = visible
    return pytest.param(nvml, build, environment, best, notes, id=name)


@pytest.mark.parametrize(
    ("nvml", "build", "environment", "best", "notes"),
    [
        case("no driver", NO_LIBRARY, "cpu", MISSED),
        case("no driver and a CPU build", NO_LIBRARY, "cpu", MISSED, CPU_WORDS, build=CPU_BUILD),
        case("the cuda lab without a GPU", NO_LIBRARY, "cpu", NOT_PASSED, LABKIT_IN_CONTAINER="1"),
        case("no GPU", make_nvml(), "cpu", "the NVIDIA driver is loaded but there is no GPU"),
        case("a GPU and a CPU build", ONE, "cpu", CPU_WORDS, build=CPU_BUILD),
        case("no CUDA", ONE, "cpu", "torch 2.13.0 is built without CUDA", build=NO_CUDA),
        case("no torch", ONE, None, "torch is not installed", build=None),
        case("hidden", ONE, "cpu", "CUDA_VISIBLE_DEVICES='' hides every GPU", visible=""),
        case("hidden by UUID", ONE, "cpu", "'GPU-9' hides every GPU", visible="GPU-9"),
        case("driver too old", make_nvml(make_gpu(0), cuda="12.2"), "cpu", OLD_DRIVER),
        case("of the same major", make_nvml(make_gpu(0), cuda="12.2"), "cuda:0", build=CU129),
        case("lost", make_nvml(LOST), "cpu", "GPU 0 (NVIDIA H200): the GPU is lost", visible="0"),
        case("a MIG instance", SPLIT_GPU, "cuda:0", visible="MIG-2b"),
        case("none chosen", SPLIT_GPU, "cuda", SPLIT),
        case("no such instance", SPLIT_GPU, "cpu", "'MIG-9' hides every GPU", visible="MIG-9"),
        case(
            "an instance that NVML does not show",
            UNSPLIT,
            "cuda",
            "GPU 0 (NVIDIA H200): it is split by MIG, and none",
            visible="MIG-1",
        ),
        case(
            "a lost instance beside a healthy one",
            make_nvml(HALF_LOST),
            "cuda:0",
            "a MIG instance of GPU 0 (NVIDIA H200): the GPU is lost",
            visible="MIG-1a",
        ),
    ],
)
def test_why_torch_takes_what_it_takes(nvml, build, environment, best, notes):
    detection = join(nvml, build, environment)
    assert detection.best == best
    assert len(detection.notes) == len(notes)
    assert all(words in note for words, note in zip(notes, detection.notes, strict=True))


def test_a_gpu_that_torch_cannot_use_has_no_name_in_torch():
    assert join(make_nvml(make_gpu(0)), CPU_BUILD).devices[0].torch_name is None


@pytest.mark.parametrize(
    ("visible", "uuid"),
    [
        (None, None),
        ("", None),
        ("0", None),
        ("MIG-1a1a", "MIG-1a1a"),
        (" MIG-2b ", "MIG-2b2b"),
        ("MIG-2b2b,MIG-1a1a", "MIG-2b2b"),
        ("MIG-9,MIG-1a1a", None),
        ("MIG-", None),
    ],
)
def test_the_mig_instance_that_torch_gets_is_the_first_that_is_named(visible, uuid):
    environment = {} if visible is None else {"CUDA_VISIBLE_DEVICES": visible}
    assert choose_mig_instance((HALVED,), environment) == uuid


@pytest.mark.parametrize(
    ("gpus", "visible", "hidden"),
    [
        pytest.param((HALVED,), "MIG-1a1a", False, id="a MIG instance"),
        pytest.param((HALVED,), "MIG-9", True, id="no such MIG instance"),
        pytest.param((HALVED,), "MIG-GPU-00aa/1/0", False, id="a MIG instance named by numbers"),
        pytest.param((HALVED._replace(mig_instances=()),), "MIG-9", False, id="none listed"),
        pytest.param((make_gpu(0, mig_enabled=None),), "MIG-9", False, id="MIG not told"),
        pytest.param(ALIKE, "MIG-1a1a", True, id="no GPU is split"),
        pytest.param(ALIKE, "MIG-GPU-00aa/1/0", True, id="no GPU is split, by numbers"),
    ],
)
def test_a_name_that_matches_no_mig_instance_hides_all_where_they_are_known(gpus, visible, hidden):
    assert hides_all(gpus, {"CUDA_VISIBLE_DEVICES": visible}) is hidden


def test_mig_instances_are_devices_of_their_own_behind_their_gpu():
    environment = {"CUDA_VISIBLE_DEVICES": "MIG-2b2b"}
    gpu, first, second, _cpu = join(make_nvml(HALVED), environment=environment).devices
    assert (gpu.mig, gpu.torch_name, gpu.parent_uuid) == (True, None, None)
    assert (first.uuid, first.torch_name, first.parent_uuid) == ("MIG-1a1a", None, "GPU-00aa")
    assert (second.uuid, second.torch_name) == ("MIG-2b2b", "cuda:0")
    assert (second.total_bytes, second.compute_capability) == (70 * GIB, "9.0")


@pytest.mark.parametrize(
    ("gpu", "total", "unified"),
    [
        (make_gpu(0), 141 * GIB, False),
        (make_gpu(0, "NVIDIA GB10", total_bytes=None), 16 * GIB, True),
        (make_gpu(0, "NVIDIA GH200 480GB", total_bytes=96 * GIB), 96 * GIB, False),
        (make_gpu(0, total_bytes=None), None, None),
        (make_gpu(0, None, total_bytes=None), None, None),
        (make_gpu(0, "Orin", total_bytes=None, trouble=make_trouble("gpu lost")), None, None),
    ],
    ids=["of its own", "the machine's", "linked", "refused", "nameless", "lost"],
)
def test_unified_memory_is_the_machines(gpu, total, unified):
    device = join(make_nvml(gpu)).devices[0]
    assert (device.total_bytes, device.unified) == (total, unified)


def test_unified_memory_in_a_container_is_what_the_container_may_use():
    gb10 = make_nvml(make_gpu(0, "NVIDIA GB10", total_bytes=None))
    cpu = CPU._replace(limit_bytes=2 * GIB)
    assert join_facts(gb10, cpu, CUDA_BUILD, {}).devices[0].total_bytes == 2 * GIB


AMD = Accelerator("rocm", "AMD Instinct MI300X", 192 * GIB, "gfx942", False)
INTEL = Accelerator("xpu", "Intel GPU 0xe20b")
ROCM_BUILD = InstalledTorch("2.13.0+rocm7.1", hip="7.1")
XPU_BUILD = InstalledTorch("2.13.0+xpu", xpu="20260000")


FOR_ROCM = "torch 2.13.0+rocm7.1 is built for ROCm"
NO_KFD = AMD._replace(trouble="/dev/kfd does not exist")


@pytest.mark.parametrize(
    ("build", "accelerators", "environment", "best", "notes"),
    [
        (ROCM_BUILD, (AMD,), {}, "cuda:0", ()),
        (ROCM_BUILD, (AMD, AMD), {}, "cuda", ()),
        (ROCM_BUILD, (AMD,), {"HIP_VISIBLE_DEVICES": "0"}, "cuda", ()),
        (XPU_BUILD, (INTEL,), {}, "xpu:0", ()),
        (CUDA_BUILD, (AMD,), {}, "cpu", (f"{AMD.name}: torch 2.13.0+cu130 is not built for ROCm",)),
        (
            *(ROCM_BUILD, (INTEL,), {}, "cpu"),
            (FOR_ROCM, "Intel GPU 0xe20b: torch 2.13.0+rocm7.1 is not built for XPU"),
        ),
        (ROCM_BUILD, (NO_KFD,), {}, "cpu", (FOR_ROCM, f"{AMD.name}: /dev/kfd does not exist")),
        (None, (AMD,), {}, None, ()),
    ],
    ids=[
        "one",
        "two",
        "hidden",
        "Intel",
        "NVIDIA's-build",
        "Intel-and-AMD's-build",
        "not-passed-on",
        "no-torch",
    ],
)
def test_gpus_of_other_makers_need_a_torch_built_for_them(
    build, accelerators, environment, best, notes
):
    detection = join(NO_LIBRARY, build, environment, accelerators)
    missed = () if best not in ("cpu", None) else (MISSED,)
    assert (detection.best, detection.notes) == (best, (*missed, *notes))
    assert [device.kind for device in detection.devices[:-1]] == [
        found.kind for found in accelerators
    ]


def test_a_gpu_of_amd_carries_its_architecture():
    device = join(NO_LIBRARY, ROCM_BUILD, accelerators=(AMD,)).devices[0]
    assert (device.compute_capability, device.total_bytes) == ("gfx942", 192 * GIB)


def test_a_mac_leaves_the_answer_to_torch():
    gpu, cpu = describe_mac(CPU._replace(name="Apple M3 Pro")).devices
    assert (gpu.kind, gpu.name, gpu.total_bytes) == ("mps", "Apple M3 Pro GPU", 16 * GIB)
    assert (gpu.torch_name, gpu.unified, cpu.kind) == (None, True, "cpu")


def test_a_mac_with_intels_processor_has_its_cpu_alone():
    detection = describe_mac(CPU)
    assert detection.best is None
    assert [device.kind for device in detection.devices] == ["cpu"]
    assert detection.notes[0].startswith("macOS has no NVIDIA driver")


@pytest.mark.parametrize(
    ("kind", "told"),
    [
        ("no library", None),
        ("no binding", None),
        ("version mismatch", SENTENCES["version mismatch"]),
    ],
)
def test_a_driver_that_is_not_here_is_none_that_is_out_of_order(kind, told):
    assert join(NvmlFacts(trouble=make_trouble(kind))).driver_trouble == told


def test_this_machine_ends_with_its_cpu():
    assert detect_devices().devices[-1].torch_name == "cpu"


VERSION_FILE = """from typing import Optional

__all__ = ['__version__', 'cuda']
__version__ = {version!r}
debug = False
cuda: Optional[str] = {cuda!r}
hip: Optional[str] = {hip!r}
xpu: Optional[str] = {xpu!r}
"""


@pytest.mark.parametrize(
    "build", [CUDA_BUILD, CPU_BUILD, ROCM_BUILD, XPU_BUILD], ids=["cuda", "cpu", "rocm", "xpu"]
)
def test_torchs_build_is_read_from_its_files(tmp_path, build):
    text = VERSION_FILE.format(**build._asdict())
    (tmp_path / "version.py").write_text(text)
    assert read_torch_build(tmp_path) == build


@pytest.mark.parametrize("text", [None, "nothing = 1\n"], ids=["no file", "another file"])
def test_a_torch_that_does_not_tell_is_unknown(tmp_path, text):
    if text:
        (tmp_path / "version.py").write_text(text)
    assert read_torch_build(tmp_path) is None


@pytest.mark.parametrize("there", [True, False], ids=["installed", "missing"])
def test_torch_is_found_on_the_path_without_importing_it(tmp_path, monkeypatch, there):
    if there:
        (tmp_path / "torch").mkdir()
        (tmp_path / "torch/__init__.py").write_text("raise AssertionError('imported')\n")
    monkeypatch.setattr(sys, "path", [str(tmp_path)])
    monkeypatch.delitem(sys.modules, "torch", raising=False)
    expected = tmp_path / "torch" if there else None
    assert find_torch_folder() == expected


def test_what_is_read_is_what_torch_says():
    torch = pytest.importorskip("torch")
    assert read_torch_build() == InstalledTorch(torch.__version__, torch.version.cuda)


def test_the_best_device_computes():
    torch = pytest.importorskip("torch")
    assert (torch.ones(2, device=best_device()) * 2).tolist() == [2.0, 2.0]


@pytest.mark.parametrize("kind", ["cuda", "mps", "xpu", None])
def test_the_best_device_is_the_accelerator_that_can_be_used(monkeypatch, kind):
    torch = pytest.importorskip("torch")
    # A build for CUDA names it where there is no GPU, too.
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda: torch.device(kind or 0))
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: kind is not None)
    assert best_device() == torch.device(kind or "cpu")
