"""Verdicts on devices from recorded endings of self-tests, and how torch's devices are joined."""

from __future__ import annotations

import json

import pytest

from labkit.devices.detect import Device
from labkit.devices.torch_devices import TorchDevice, TorchFacts
from labkit.devices.verify import (
    FORKED,
    Advice,
    explain_end,
    find_unlisted,
    judge_self_test,
    judge_unlisted,
    match_devices,
    read_events,
)
from labkit.host.torch_builds import InstalledTorch
from labkit.process import CommandResult

BUILD = InstalledTorch("2.13.0+cu130", "13.0")
CPU = Device("cpu", "cpu", "AMD EPYC")
TORCH_CPU = TorchDevice("cpu")
GPU = Device("cuda", None, "NVIDIA H200", "GPU-0a1b", driver="580.95.05", cuda="13.0")
NOTHING = TorchFacts(BUILD, (TORCH_CPU,), refusal="No CUDA GPUs are available")


def know(text):
    """A doctor that knows one text."""
    return Advice("a known cause", "a command") if "known" in text else None


def ended(*events, exit_code: int | None = 0, stderr="", timed_out=False):
    stdout = "\n".join(json.dumps(event) for event in events)
    return CommandResult(("python",), exit_code, stdout, stderr, 135.0, timed_out=timed_out)


IMPORTED = {"step": "import", "seconds": 1.5}
ALLOCATED = {"step": "allocate", "seconds": 0.1, "words": "64 MiB"}
COMPUTED = {"step": "compute", "seconds": 0.2, "words": "near enough"}
COMPILED = {"step": "compile", "seconds": 3.5, "words": "the same"}
END = {"step": "end"}
LISTED = TorchDevice("cuda:0", "NVIDIA P40", "0a1b", 24 * 2**30, "6.1")


@pytest.mark.parametrize(
    ("answer", "cause", "fix"),
    [
        pytest.param(ended(IMPORTED, ALLOCATED, COMPUTED, COMPILED, END), None, None, id="sound"),
        pytest.param(
            ended(IMPORTED, ALLOCATED, COMPUTED, {"step": "compile", "skipped": "no g++"}, END),
            None,
            None,
            id="not compiled",
        ),
        pytest.param(
            ended(IMPORTED, {"step": "allocate", "error": "RuntimeError: known"}, END),
            "it cannot allocate: a known cause",
            "a command",
            id="cannot allocate, cause known",
        ),
        pytest.param(
            ended(IMPORTED, ALLOCATED, {"step": "compute", "error": "E: odd\nmore"}, END),
            "it does not compute: E: odd",
            None,
            id="does not compute, cause not known",
        ),
        pytest.param(
            ended(IMPORTED, ALLOCATED, COMPUTED, {"step": "compile", "error": "E: odd"}, END),
            "torch.compile fails on it: E: odd",
            None,
            id="does not compile",
        ),
        pytest.param(
            ended(IMPORTED, ALLOCATED, exit_code=-11),
            "it does not compute: the process was ended by SIGSEGV",
            None,
            id="crashed",
        ),
        pytest.param(
            ended(IMPORTED, exit_code=-200),
            "it cannot allocate: the process was ended by signal 200",
            None,
            id="ended by a signal without a name",
        ),
        pytest.param(
            ended(IMPORTED, ALLOCATED, exit_code=-4, stderr="known"),
            "it does not compute: a known cause",
            "a command",
            id="crashed with known words",
        ),
        pytest.param(
            ended(IMPORTED, ALLOCATED, exit_code=1, stderr="Timeout (0:02:00)!\nknown"),
            "it does not compute: no result in 120 s of work, the driver or a library hangs",
            None,
            id="hung and ended itself",
        ),
        pytest.param(
            ended(exit_code=None, timed_out=True),
            "torch cannot be imported: no result in 120 s of work, the driver or a library hangs",
            None,
            id="hung and was ended",
        ),
        pytest.param(
            ended(exit_code=1, stderr="ModuleNotFoundError: No module named 'torch'"),
            "torch is not installed in this Python",
            "python -m pip install torch",
            id="not installed",
        ),
        pytest.param(
            ended(exit_code=1, stderr="Traceback\nImportError: libfoo.so\n"),
            "torch cannot be imported: ImportError: libfoo.so",
            None,
            id="not imported",
        ),
        pytest.param(
            ended(IMPORTED, ALLOCATED, COMPUTED, COMPILED, exit_code=-6),
            "torch.compile fails on it: the process was ended by SIGABRT",
            None,
            id="died at the end",
        ),
    ],
)
def test_a_self_test_ends_in_a_verdict(answer, cause, fix):
    verdict = judge_self_test(LISTED, answer, 120, (), know)
    assert (verdict.verified, verdict.cause, verdict.fix) == (cause is None, cause, fix)


def test_a_gpu_that_torch_has_no_kernels_for_is_told_by_its_capability():
    answer = ended(IMPORTED, ALLOCATED, {"step": "compute", "error": "E: known"}, END)
    verdict = judge_self_test(LISTED, answer, 120, ("sm_75", "sm_90"), know)
    assert verdict.cause == (
        "torch has no kernel for its compute capability 6.1, only for sm_75, sm_90"
    )
    assert verdict.fix == "a command"


def test_the_steps_keep_their_seconds_and_reasons():
    skipped = {"step": "compile", "skipped": "no g++"}
    steps = judge_self_test(
        LISTED, ended(IMPORTED, ALLOCATED, COMPUTED, skipped, END), 1, (), know
    ).steps
    assert [(step.name, step.seconds, step.skipped) for step in steps] == [
        ("import", 1.5, None),
        ("allocate", 0.1, None),
        ("compute", 0.2, None),
        ("compile", None, "no g++"),
    ]


def test_a_line_that_was_cut_short_is_left_out():
    assert read_events('{"step": "import"}\n7\n{"step": "allo') == [{"step": "import"}]


def test_an_end_without_words_is_still_told():
    advice = explain_end(ended(exit_code=3), 60, "import", know)
    assert advice.cause == "torch cannot be imported: exit code 3"


@pytest.mark.parametrize(
    ("device", "facts", "environment", "cause", "fix", "broken"),
    [
        pytest.param(
            GPU._replace(trouble="the GPU is lost"),
            NOTHING,
            {},
            "the GPU is lost",
            None,
            True,
            id="lost",
        ),
        pytest.param(GPU, None, {}, "no torch", "pip", True, id="torch does not import"),
        pytest.param(
            GPU,
            NOTHING._replace(build=InstalledTorch("2.13.0+cpu"), refusal=None),
            {},
            "torch 2.13.0+cpu is a CPU build",
            None,
            False,
            id="a CPU build",
        ),
        pytest.param(
            Device("rocm", None, "AMD"),
            NOTHING,
            {},
            "torch 2.13.0+cu130 is built for CUDA",
            None,
            False,
            id="another maker's build",
        ),
        pytest.param(
            GPU,
            NOTHING._replace(forked=True, refusal="known"),
            {"CUDA_VISIBLE_DEVICES": ""},
            FORKED,
            "a command",
            False,
            id="forked",
        ),
        pytest.param(
            GPU._replace(cuda="12.2", driver="535.54.03"),
            NOTHING._replace(refusal="known"),
            {"CUDA_VISIBLE_DEVICES": "0"},
            "the NVIDIA driver 535.54.03 (CUDA 12.2) is too old for torch 2.13.0+cu130 (CUDA 13.0)",
            "a command",
            True,
            id="driver too old",
        ),
        pytest.param(
            GPU,
            NOTHING,
            {"CUDA_VISIBLE_DEVICES": ""},
            "it is hidden by CUDA_VISIBLE_DEVICES=''",
            "unset CUDA_VISIBLE_DEVICES",
            False,
            id="all hidden",
        ),
        pytest.param(
            GPU,
            TorchFacts(BUILD, (LISTED, TORCH_CPU)),
            {"CUDA_VISIBLE_DEVICES": "1"},
            "it is hidden by CUDA_VISIBLE_DEVICES='1'",
            "unset CUDA_VISIBLE_DEVICES",
            False,
            id="hidden, another is not",
        ),
        pytest.param(
            GPU._replace(torch_name="cuda:0"),
            NOTHING._replace(refusal="known"),
            {"CUDA_VISIBLE_DEVICES": "0"},
            "a known cause",
            "a command",
            True,
            id="asked for and refused",
        ),
        pytest.param(
            GPU,
            NOTHING._replace(refusal="Error 802: odd\nand so on"),
            {"CUDA_VISIBLE_DEVICES": "0"},
            "torch says: Error 802: odd",
            None,
            True,
            id="refused in words that nobody knows",
        ),
        pytest.param(
            GPU,
            TorchFacts(BUILD, (LISTED, TORCH_CPU)),
            {},
            "torch does not list it, without a reason",
            None,
            True,
            id="left out without a word",
        ),
        pytest.param(
            GPU._replace(uuid="MIG-77", parent_uuid="GPU-0a1b"),
            TorchFacts(BUILD, (LISTED, TORCH_CPU)),
            {},
            "CUDA gives a process one MIG instance, and this is another one",
            "export CUDA_VISIBLE_DEVICES=MIG-77",
            False,
            id="another MIG instance",
        ),
        pytest.param(
            Device("rocm", None, "AMD"),
            TorchFacts(InstalledTorch("2.13.0+rocm7.1", hip="7.1"), (TORCH_CPU,)),
            {"HIP_VISIBLE_DEVICES": "-1"},
            "it is hidden by HIP_VISIBLE_DEVICES='-1'",
            "unset HIP_VISIBLE_DEVICES",
            False,
            id="AMD, hidden",
        ),
    ],
)
def test_why_a_device_that_is_here_is_not_torchs(device, facts, environment, cause, fix, broken):
    verdict = judge_unlisted(device, facts, Advice("no torch", "pip"), know, environment)
    assert (verdict.cause, verdict.fix, verdict.broken) == (cause, fix, broken)
    assert (verdict.verified, verdict.listed, verdict.torch_name) == (False, False, None)


SPLIT = GPU._replace(mig=True)
HALF = GPU._replace(uuid="MIG-1", parent_uuid="GPU-0a1b")
OTHER_HALF = GPU._replace(uuid="MIG-2", parent_uuid="GPU-0a1b")
AMD = Device("rocm", None, "AMD")


@pytest.mark.parametrize(
    ("devices", "listed", "matched", "left"),
    [
        pytest.param((GPU, CPU), (LISTED, TORCH_CPU), [GPU, CPU], [], id="by UUID"),
        pytest.param((GPU, CPU), (TORCH_CPU,), [CPU], [GPU], id="not listed"),
        pytest.param(
            (SPLIT, HALF, OTHER_HALF, CPU),
            (LISTED._replace(uuid="2"), TORCH_CPU),
            [OTHER_HALF, CPU],
            [HALF],
            id="a MIG instance by its UUID",
        ),
        pytest.param(
            (SPLIT, HALF, OTHER_HALF, CPU),
            (LISTED, TORCH_CPU),
            [HALF, CPU],
            [OTHER_HALF],
            id="a MIG instance by its GPU's UUID: CUDA takes the first",
        ),
        pytest.param(
            (SPLIT, HALF, OTHER_HALF._replace(torch_name="cuda:0"), CPU),
            (LISTED, TORCH_CPU),
            [OTHER_HALF._replace(torch_name="cuda:0"), CPU],
            [HALF],
            id="a MIG instance by its GPU's UUID, and picked",
        ),
        pytest.param((AMD, CPU), (LISTED, TORCH_CPU), [AMD, CPU], [], id="AMD, by kind"),
        pytest.param(
            (AMD._replace(trouble="lost"), GPU._replace(uuid=None), CPU),
            (LISTED, TORCH_CPU),
            [GPU._replace(uuid=None), CPU],
            [AMD._replace(trouble="lost")],
            id="a lost one is nobody's",
        ),
        pytest.param(
            (GPU._replace(trouble="NVML failed"), CPU),
            (LISTED, TORCH_CPU),
            [GPU._replace(trouble="NVML failed"), CPU],
            [],
            id="one that torch knows and NVML fails on",
        ),
        pytest.param((CPU,), (LISTED, TORCH_CPU), [CPU], [], id="one that only torch knows"),
    ],
)
def test_torchs_devices_are_joined_to_those_that_are_here(devices, listed, matched, left):
    found = match_devices(devices, listed)
    assert list(found.values()) == matched
    assert find_unlisted(devices, found.values()) == left
