"""What read_nvml makes of a driver's answers and refusals, played by a fake pynvml."""

from __future__ import annotations

import ctypes
import sys
from types import SimpleNamespace

import pytest

from labkit.devices import nvml
from labkit.devices.nvml import NvmlFacts, NvmlGpu, read_nvml

GIB = 2**30


class FakeNvmlError(Exception):
    """An error of the fake binding, with NVML's return code."""

    def __init__(self, value):
        super().__init__(f"code {value}")
        self.value = value


class FakeBinding:
    """A pynvml whose GPUs are dictionaries; an int in place of an answer is raised as a code."""

    NVMLError = FakeNvmlError

    def __init__(self, gpus=(), *, init=None, driver="580.95.05", cuda=13000):
        self.gpus = list(gpus)
        self.init, self.driver, self.cuda = init, driver, cuda
        self.calls = []

    def nvmlInit(self):
        self.calls.append("init")
        if self.init:
            raise FakeNvmlError(self.init)

    def nvmlShutdown(self):
        self.calls.append("shutdown")

    def nvmlSystemGetDriverVersion(self):
        return answer(self.driver)

    def nvmlSystemGetCudaDriverVersion_v2(self):
        return self.cuda if self.cuda else answer(nvml.FUNCTION_NOT_FOUND)

    def nvmlDeviceGetCount(self):
        return len(self.gpus)

    def nvmlDeviceGetHandleByIndex(self, index):
        gpu = self.gpus[index]
        return gpu if isinstance(gpu, dict) else answer(gpu)

    def nvmlDeviceGetUUID(self, gpu):
        return answer(gpu["uuid"])

    def nvmlDeviceGetName(self, gpu):
        return answer(gpu["name"])

    def nvmlDeviceGetCudaComputeCapability(self, gpu):
        return answer(gpu["capability"])

    def nvmlDeviceGetMemoryInfo(self, gpu):
        return SimpleNamespace(total=answer(gpu["total"]))

    def nvmlDeviceGetMigMode(self, gpu):
        return answer(gpu["mig"])


def answer(value):
    if isinstance(value, int) and value < 1000:
        raise FakeNvmlError(value)
    return value


def make_gpu(**changes):
    return {
        "uuid": "GPU-aaaa",
        "name": "NVIDIA H200",
        "capability": (9, 0),
        "total": 141 * GIB,
        "mig": [0, 0],
        **changes,
    }


H200 = NvmlGpu(0, "GPU-aaaa", "NVIDIA H200", 141 * GIB, "9.0", False)


def test_a_healthy_gpu_is_read_in_full():
    assert read_nvml(FakeBinding([make_gpu()])) == NvmlFacts("580.95.05", "13.0", (H200,))


@pytest.mark.parametrize(
    ("code", "kind", "sentence"),
    [
        pytest.param(
            12,
            "no library",
            "no NVIDIA driver here: libnvidia-ml.so.1 was not found",
            id="library not found",
        ),
        pytest.param(
            9,
            "driver not loaded",
            "the NVIDIA driver is installed but not loaded into the kernel",
            id="driver not loaded",
        ),
        pytest.param(
            4,
            "no permission",
            "this user may not open the NVIDIA driver's device files (/dev/nvidia*)",
            id="no permission",
        ),
        pytest.param(
            18,
            "version mismatch",
            "the NVIDIA driver was updated while loaded: its library and kernel module differ"
            " until the module is reloaded or the machine restarted",
            id="driver and library differ",
        ),
        pytest.param(999, "other", "NVML failed: code 999 (code 999)", id="unknown error"),
    ],
)
def test_a_refused_start_is_named(code, kind, sentence):
    facts = read_nvml(FakeBinding(init=code))
    assert facts.gpus == ()
    assert facts.trouble is not None
    assert (facts.trouble.kind, facts.trouble.sentence) == (kind, sentence)


def test_a_python_without_the_binding_says_so(monkeypatch):
    monkeypatch.setitem(sys.modules, "pynvml", None)
    trouble = read_nvml().trouble
    assert trouble is not None
    assert trouble.kind == "no binding"
    assert trouble.sentence.endswith("nvidia-ml-py is not installed in this Python")


def test_a_machine_without_gpus_is_no_trouble():
    assert read_nvml(FakeBinding()) == NvmlFacts("580.95.05", "13.0", ())


def test_a_lost_gpu_does_not_hide_the_healthy_ones():
    binding = FakeBinding([nvml.GPU_IS_LOST, make_gpu()])
    lost, healthy = read_nvml(binding).gpus
    assert lost.trouble is not None
    assert lost.trouble.kind == "gpu lost"
    assert lost.name is None
    assert healthy == H200._replace(nvml_index=1)


def test_a_gpu_lost_midway_keeps_the_name_it_gave():
    (gpu,) = read_nvml(FakeBinding([make_gpu(total=nvml.GPU_IS_LOST)])).gpus
    assert (gpu.name, gpu.total_bytes) == ("NVIDIA H200", None)
    assert gpu.trouble is not None
    assert gpu.trouble.kind == "gpu lost"


@pytest.mark.parametrize(
    ("field", "attribute"),
    [
        ("total", "total_bytes"),
        ("mig", "mig_enabled"),
        ("capability", "compute_capability"),
        ("uuid", "uuid"),
        ("name", "name"),
    ],
)
@pytest.mark.parametrize("code", [3, 4, 6, 13], ids=["unsupported", "denied", "absent", "old"])
def test_a_figure_that_is_refused_is_unknown(field, attribute, code):
    (gpu,) = read_nvml(FakeBinding([make_gpu(**{field: code})])).gpus
    assert gpu == H200._replace(**{attribute: None})


def test_a_gpu_that_may_not_be_opened_is_listed_with_the_reason():
    denied, _ = read_nvml(FakeBinding([nvml.NO_PERMISSION, make_gpu()])).gpus
    assert denied.trouble is not None
    assert denied.trouble.kind == "no permission"


def test_mig_is_told():
    (gpu,) = read_nvml(FakeBinding([make_gpu(mig=[1, 1])])).gpus
    assert gpu.mig_enabled is True


def test_a_binding_without_a_query_leaves_its_figure_unknown(monkeypatch):
    monkeypatch.delattr(FakeBinding, "nvmlDeviceGetMigMode")
    (gpu,) = read_nvml(FakeBinding([make_gpu()])).gpus
    assert gpu == H200._replace(mig_enabled=None)


@pytest.mark.parametrize(
    ("number", "text"), [(12040, "12.4"), (13000, "13.0"), (11080, "11.8"), (0, None)]
)
def test_the_cuda_version_is_written_as_people_do(number, text):
    assert read_nvml(FakeBinding(cuda=number)).cuda_version == text


def test_an_old_driver_answers_the_first_version_of_the_query():
    binding = FakeBinding(cuda=0)
    binding.nvmlSystemGetCudaDriverVersion = lambda: 11040
    assert read_nvml(binding).cuda_version == "11.4"


def test_a_driver_that_goes_away_is_trouble_and_not_a_crash():
    facts = read_nvml(FakeBinding([make_gpu()], driver=999))
    assert facts.trouble is not None
    assert facts.trouble.kind == "other"


@pytest.mark.parametrize("driver", ["580.95.05", 999], ids=["read", "failed"])
def test_what_was_opened_is_closed(driver):
    binding = FakeBinding([make_gpu()], driver=driver)
    read_nvml(binding)
    assert binding.calls == ["init", "shutdown"]


def test_the_real_binding_raises_what_the_gate_expects():
    pynvml = pytest.importorskip("pynvml")
    try:
        ctypes.CDLL("libnvidia-ml.so.1")
    except OSError:
        trouble = read_nvml(pynvml).trouble
        assert trouble is not None
        assert trouble.kind == "no library"
    else:
        assert read_nvml(pynvml).driver_version or read_nvml(pynvml).trouble


# The health of one GPU, for `labkit prove`


class HealthBinding(FakeBinding):
    """A binding whose GPUs answer every query by its name; a query that is missing is refused."""

    def __getattr__(self, name):
        if not name.startswith("nvmlDeviceGet"):
            raise AttributeError(name)

        def query(gpu, *arguments):
            found = gpu.get(name.removeprefix("nvmlDeviceGet"), nvml.NOT_SUPPORTED)
            return answer(found[arguments[0]] if isinstance(found, dict) else found)

        return query

    def nvmlDeviceGetMemoryInfo(self, gpu, version=None):
        if version is None:
            return SimpleNamespace(total=gpu["total"])
        return SimpleNamespace(total=gpu["total"], used=gpu["used"])


HEALTH = {
    "used": 3 * GIB,
    "PowerUsage": 699_500,
    "CurrentClocksEventReasons": 0x1004,
    "ClockInfo": {1: 1290, 2: 2619},
    "MaxClockInfo": {1: 1980, 2: 2619},
    "EnforcedPowerLimit": 350_000,
    "PowerManagementDefaultLimit": 700_000,
    "RemappedRows": (1, 2, 0, 1),
    "MemoryBusWidth": 5120,
    "CurrPcieLinkWidth": 1004,
}


def test_a_meter_reads_the_gpu_of_its_uuid_and_leaves_refused_figures_unknown():
    gpus = [nvml.GPU_IS_LOST, make_gpu(uuid="GPU-bbbb"), make_gpu(**HEALTH)]
    binding = HealthBinding(gpus)
    with nvml.GpuMeter("GPU-aaaa", binding) as meter:
        load, hardware = meter.read_load(), meter.read_hardware()
    assert load == nvml.GpuLoad(1290, 2619, 699.5, None, ("power cap",), None, 1004)
    assert (hardware.power_limit_watts, hardware.default_power_limit_watts) == (350.0, 700.0)
    assert (hardware.remapped_rows, hardware.row_remap_failed) == (3, True)
    assert (hardware.ecc_errors, hardware.processes) == (None, None)
    assert (hardware.total_bytes, hardware.used_bytes) == (141 * GIB, 3 * GIB)
    assert binding.calls == ["init", "shutdown"]


@pytest.mark.parametrize(
    ("gpus", "uuid", "found"),
    [
        ([make_gpu(**HEALTH)], "GPU-other", True),
        ([make_gpu(**HEALTH), make_gpu(uuid="GPU-bbbb")], "GPU-other", False),
        ([], None, False),
    ],
    ids=["the only one", "one of two", "none"],
)
def test_a_meter_without_a_match_takes_only_the_only_gpu(gpus, uuid, found):
    with nvml.GpuMeter(uuid, HealthBinding(gpus)) as meter:
        assert (meter.read_load().sm_mhz is not None) is found


def test_a_meter_without_a_driver_knows_nothing():
    with nvml.GpuMeter("GPU-aaaa", FakeBinding(init=9)) as meter:
        assert meter.read_load() == nvml.GpuLoad()
        assert meter.read_hardware() == nvml.GpuHardware()
