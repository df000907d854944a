"""The self-test of a device, step by step: on the real CPU, and on played GPUs that fail."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from labkit.devices.self_test import find_compiler_gap, run_steps
from labkit.devices.torch_devices import TorchDevice, has_kernels, read_torch_devices
from labkit.devices.verify import read_events
from labkit.host.torch_builds import InstalledTorch
from tests.fakes.played_torch import NO_GPUS, install_torch, make_torch

ROOT = Path(__file__).parents[1]
H200 = {
    "name": "NVIDIA H200",
    "uuid": "0a1b",
    "capability": (9, 0),
    "gcnArchName": "NVIDIA H200",  # on NVIDIA's GPUs torch gives the name here
}


def run_trial(folder, *words, **script):
    """A self-test in a Python of its own, whose torch is played."""
    install_torch(folder)
    return subprocess.run(
        [sys.executable, "-m", "labkit.devices.self_test", *words],
        env={"PYTHONPATH": f"{folder}:{ROOT}", "FAKE_TORCH": json.dumps(script), "PATH": ""},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def take_steps(gpu, **script):
    events = []
    torch = make_torch({"gpus": [{**H200, **gpu}], **script})
    run_steps(torch, "cuda:0", events.append, iter(range(99)).__next__)
    return events


@pytest.fixture
def compilers(monkeypatch):
    """A machine with everything that torch.compile needs."""
    monkeypatch.setattr("labkit.devices.self_test.find_compiler_gap", lambda torch, device: None)


@pytest.mark.usefixtures("compilers")
def test_a_sound_gpu_takes_every_step():
    allocate, compute, compiled = take_steps({})
    assert allocate == {"step": "allocate", "seconds": 1, "words": "64 MiB"}
    assert (compute["step"], compute["seconds"]) == ("compute", 1)
    assert compute["words"].endswith("of the CPU's float64")
    assert compiled == {"step": "compile", "seconds": 1, "words": "the same as uncompiled"}


@pytest.mark.usefixtures("compilers")
@pytest.mark.parametrize(
    ("gpu", "last"),
    [
        pytest.param(
            {"allocate": {"raise": "CUDA out of memory"}},
            {"step": "allocate", "error": "RuntimeError: CUDA out of memory"},
            id="cannot allocate",
        ),
        pytest.param(
            {"allocate": {"wrong": True}},
            {
                "step": "allocate",
                "error": "RuntimeError: its memory does not return the values written to it",
            },
            id="forgets",
        ),
        pytest.param(
            {"compute": {"raise": "no kernel image"}},
            {"step": "compute", "error": "RuntimeError: no kernel image"},
            id="cannot compute",
        ),
        pytest.param(
            {"compute": {"wrong": True}},
            {
                "step": "compute",
                "error": "RuntimeError: a matmul is 1 away from the CPU's float64",
            },
            id="computes wrongly",
        ),
        pytest.param(
            {"compile": {"wrong": True}},
            {
                "step": "compile",
                "error": "RuntimeError: a compiled function is 2.68 away from the plain one",
            },
            id="compiles wrongly",
        ),
    ],
)
def test_the_first_step_that_fails_is_the_last(gpu, last):
    events = take_steps(gpu)
    assert events[-1] == last
    assert all("seconds" in event for event in events[:-1])


def find_all(name):
    return f"/usr/bin/{name}"


def find_none(name):
    return None


@pytest.mark.parametrize(
    ("device", "capability", "find", "find_module", "environment", "gap"),
    [
        ("cpu", None, find_all, find_none, {}, None),
        ("cpu", None, find_none, find_none, {}, "there is no C++ compiler (g++) here"),
        (
            "cpu",
            None,
            {"g++": 1}.get,
            find_none,
            {"CXX": "icpx -O2"},
            "there is no C++ compiler (icpx) here",
        ),
        ("cpu", None, {"clang++": 1}.get, find_none, {"CXX": " "}, None),
        ("cuda:0", (9, 0), find_all, find_all, {}, None),
        ("cuda:0", (9, 0), find_all, find_none, {}, "there is no Triton in this Python"),
        ("cuda:0", (9, 0), find_none, find_all, {}, "there is no C compiler (gcc) here"),
        (
            "cuda:0",
            (6, 1),
            find_all,
            find_all,
            {},
            "Triton needs compute capability 7.0, and this is 6.1",
        ),
        ("xpu:0", None, find_all, find_none, {}, "there is no Triton in this Python"),
        ("mps:0", None, find_none, find_none, {}, None),
    ],
    ids=[
        "cpu",
        "cpu without",
        "cpu with another named",
        "cpu with a blank name",
        "cuda",
        "cuda without Triton",
        "cuda without a compiler",
        "an old GPU",
        "xpu without Triton",
        "mps",
    ],
)
def test_what_compiling_needs_and_lacks(device, capability, find, find_module, environment, gap):
    torch = make_torch({"gpus": [{**H200, "capability": capability}]})
    assert find_compiler_gap(torch, device, find, find_module, environment) == gap


def test_a_compile_without_a_compiler_is_skipped_with_the_reason(monkeypatch):
    reason = "there is no C compiler (gcc) here"
    monkeypatch.setattr("labkit.devices.self_test.find_compiler_gap", lambda torch, device: reason)
    assert take_steps({})[-1] == {"step": "compile", "skipped": reason}


def test_a_gpu_of_amd_needs_no_capability_of_nvidias():
    torch = make_torch({"gpus": [H200], "build": {"cuda": None, "hip": "7.1"}})
    assert find_compiler_gap(torch, "cuda:0", find_all, find_all, {}) is None


@pytest.mark.slow
def test_a_process_that_hangs_ends_itself_and_leaves_what_it_came_to(tmp_path):
    done = run_trial(tmp_path, "try", "3", "cuda:0", gpus=[{**H200, "compute": {"hang": True}}])
    assert [event["step"] for event in read_events(done.stdout)] == ["import", "allocate"]
    assert "Timeout (" in done.stderr


def test_an_import_that_hangs_ends_too(tmp_path):
    done = run_trial(tmp_path, "list", "0.5", **{"import": {"hang": True}})
    assert (done.stdout, done.returncode) == ("", 1)
    assert "Timeout (" in done.stderr


def test_a_process_that_dies_leaves_what_it_came_to(tmp_path):
    gpu = {**H200, "compute": {"die": "SIGKILL"}}
    done = run_trial(tmp_path, "try", "30", "cuda:0", gpus=[gpu])
    assert [event["step"] for event in read_events(done.stdout)] == ["import", "allocate"]
    assert done.returncode == -9


def test_what_libraries_print_is_no_event(tmp_path):
    install_torch(tmp_path)
    start = tmp_path / "torch/__init__.py"
    start.write_text(
        "import os\nprint('{\"devices\": 1}')\nos.system('echo 7')\n" + start.read_text()
    )
    done = subprocess.run(
        [sys.executable, "-m", "labkit.devices.self_test", "list", "30"],
        env={"PYTHONPATH": f"{tmp_path}:{ROOT}", "FAKE_TORCH": "{}", "PATH": "/bin:/usr/bin"},
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    first, facts, last = (json.loads(line) for line in done.stdout.splitlines())
    assert (first["step"], last) == ("import", {"step": "end"})
    assert [device["torch_name"] for device in facts["devices"]] == ["cpu"]


BUILT = InstalledTorch("2.13.0+cu130", "13.0")


def test_torch_tells_its_devices_the_cpu_last():
    facts = read_torch_devices(make_torch({"gpus": [H200, {**H200, "uuid": "2c3d"}]}))
    assert (facts.build, facts.refusal, facts.forked) == (BUILT, None, False)
    assert facts.architectures == ("sm_80", "sm_90")
    assert facts.devices == (
        TorchDevice("cuda:0", "NVIDIA H200", "0a1b", 2**30, "9.0"),
        TorchDevice("cuda:1", "NVIDIA H200", "2c3d", 2**30, "9.0"),
        TorchDevice("cpu"),
    )


@pytest.mark.parametrize(
    ("script", "refusal"),
    [
        pytest.param({}, NO_GPUS, id="cuda"),
        pytest.param({"refusal": "driver too old\n"}, "driver too old", id="in its own words"),
        pytest.param({"refusal": None}, "torch starts CUDA and finds no GPU", id="none"),
        pytest.param({"build": {"cuda": None}}, None, id="a build for the CPU"),
    ],
)
def test_torch_is_asked_why_it_has_no_gpu(script, refusal):
    facts = read_torch_devices(make_torch(script))
    assert (facts.devices, facts.refusal) == ((TorchDevice("cpu"),), refusal)


def test_a_process_that_was_forked_after_cuda_says_so():
    assert read_torch_devices(make_torch({"forked": True})).forked is True


def test_a_device_that_tells_nothing_has_a_name():
    facts = read_torch_devices(make_torch({"kind": "mps", "gpus": [{}], "build": {"cuda": None}}))
    assert facts.devices == (TorchDevice("mps:0"), TorchDevice("cpu"))


def test_the_capability_of_an_amd_gpu_is_not_nvidias():
    gpu = {"name": "AMD Instinct MI300X", "gcnArchName": "gfx942:sramecc+", "capability": (9, 4)}
    facts = read_torch_devices(make_torch({"gpus": [gpu], "build": {"cuda": None, "hip": "7.1"}}))
    assert facts.devices[0].compute_capability is None
    assert facts.architectures == ()


@pytest.mark.parametrize(
    ("capability", "architectures", "can_run"),
    [
        ("9.0", ("sm_80", "sm_90"), True),
        ("8.9", ("sm_80",), True),
        ("8.0", ("sm_86",), False),
        ("12.1", ("sm_120",), True),
        ("12.0", ("sm_90",), False),
        ("6.1", ("sm_75", "sm_80"), False),
        ("12.0", ("sm_90", "compute_90"), True),
        ("7.0", ("compute_75",), False),
        ("9.0", ("sm_90a",), True),
        ("10.3", ("sm_100a",), False),
        ("10.3", ("sm_100f",), True),
        (None, ("sm_90",), True),
        ("9.0", (), True),
        ("9.4", ("gfx942",), True),
    ],
)
def test_which_gpus_a_torch_has_kernels_for(capability, architectures, can_run):
    assert has_kernels(capability, architectures) is can_run


def test_the_real_torch_tells_of_the_cpu():
    torch = pytest.importorskip("torch")
    facts = read_torch_devices(torch)
    assert facts.devices[-1] == TorchDevice("cpu")
    assert facts.build.version == torch.__version__


def test_the_real_cpu_allocates_and_computes(monkeypatch):
    torch = pytest.importorskip("torch")
    monkeypatch.setattr("labkit.devices.self_test.find_compiler_gap", lambda torch, device: "short")
    events = []
    run_steps(torch, "cpu", events.append, iter(range(99)).__next__)
    assert [event["step"] for event in events] == ["allocate", "compute", "compile"]
    assert not any("error" in event for event in events)
