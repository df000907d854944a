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


DONE = (IMPORTED, ALLOCATED, COMPUTED)
NO_COMPILER = {"step": "compile", "skipped": "no g++"}
HANG = "no result in 120 s of work, the driver or a library hangs"


@pytest.mark.parametrize(
    ("answer", "cause"),
    [
        (ended(*DONE, COMPILED, END), None),
        (ended(*DONE, NO_COMPILER, END), None),
        (ended(IMPORTED, {"step": "allocate", "error": "known"}), "it cannot allocate: a known"),
        (
            ended(*DONE[:2], {"step": "compute", "error": "E: odd\nmore"}, END),
            "it does not compute: E: odd",
        ),
        (
            ended(*DONE, {"step": "compile", "error": "E: odd"}, END),
            "torch.compile fails on it: E: odd",
        ),
        (ended(*DONE[:2], exit_code=-11), "it does not compute: the process was ended by SIGSEGV"),
        (ended(IMPORTED, exit_code=-200), "the process was ended by signal 200"),
        (ended(*DONE[:2], exit_code=-4, stderr="known"), "it does not compute: a known cause"),
        (ended(*DONE[:2], exit_code=1, stderr="Timeout (0:02:00)!\nknown"), HANG),
        (ended(exit_code=None, timed_out=True), f"torch cannot be imported: {HANG}"),
        (
            ended(exit_code=1, stderr="ModuleNotFoundError: No module named 'torch'"),
            "torch is not installed in this Python",
        ),
        (ended(exit_code=1, stderr="Traceback\nImportError: libfoo.so\n"), "ImportError: libfoo"),
        (ended(*DONE, COMPILED, exit_code=-6), "torch.compile fails on it: the process was ended"),
    ],
)
def test_a_self_test_ends_in_a_verdict(answer, cause):
    verdict = judge_self_test(LISTED, answer, 120, (), know)
    assert verdict.verified is (cause is None)
    assert (cause or "") in (verdict.cause or "")
    fixes = {"a known": "a command", "torch is not installed": "python -m pip install torch"}
    expected = next((fix for words, fix in fixes.items() if words in (cause or "")), None)
    assert verdict.fix == expected


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


CPU_BUILD = NOTHING._replace(build=InstalledTorch("2.13.0+cpu"), refusal=None)
ONE_LISTED = TorchFacts(BUILD, (LISTED, TORCH_CPU))
FORKED_FACTS = NOTHING._replace(forked=True, refusal="known")
KNOWN = NOTHING._replace(refusal="known")
OLD = GPU._replace(cuda="12.2", driver="535.54.03")
ROCM = TorchFacts(InstalledTorch("2.13.0+rocm7.1", hip="7.1"), (TORCH_CPU,))
RADEON = Device("rocm", None, "AMD")
VISIBLE = "CUDA_VISIBLE_DEVICES"
TOO_OLD = "the NVIDIA driver 535.54.03 (CUDA 12.2) is too old for torch 2.13.0+cu130 (CUDA 13.0)"
OTHER_PART = "CUDA gives a process one MIG instance, and this is another one"


@pytest.mark.parametrize(
    ("device", "facts", "environment", "cause", "fix", "broken"),
    [
        (GPU._replace(trouble="it is lost"), NOTHING, {}, "it is lost", None, True),
        (GPU, None, {}, "no torch", "pip", True),
        (GPU, CPU_BUILD, {}, "torch 2.13.0+cpu is a CPU build", None, False),
        (RADEON, NOTHING, {}, "torch 2.13.0+cu130 is built for CUDA", None, False),
        (GPU, FORKED_FACTS, {VISIBLE: ""}, FORKED, "a command", False),
        (OLD, KNOWN, {VISIBLE: "0"}, TOO_OLD, "a command", True),
        (GPU, NOTHING, {VISIBLE: ""}, f"it is hidden by {VISIBLE}=''", f"unset {VISIBLE}", False),
        (
            GPU,
            ONE_LISTED,
            {VISIBLE: "1"},
            f"it is hidden by {VISIBLE}='1'",
            f"unset {VISIBLE}",
            False,
        ),
        (
            GPU._replace(torch_name="cuda:0"),
            KNOWN,
            {VISIBLE: "0"},
            "a known cause",
            "a command",
            True,
        ),
        (
            *(GPU, NOTHING._replace(refusal="Error 802: odd\nand so on"), {VISIBLE: "0"}),
            *("torch says: Error 802: odd", None, True),
        ),
        (GPU, ONE_LISTED, {}, "torch does not list it, without a reason", None, True),
        (
            *(GPU._replace(uuid="MIG-77", parent_uuid="GPU-0a1b"), ONE_LISTED, {}, OTHER_PART),
            *(f"export {VISIBLE}=MIG-77", False),
        ),
        (
            *(RADEON, ROCM, {"HIP_VISIBLE_DEVICES": "-1"}),
            *("it is hidden by HIP_VISIBLE_DEVICES='-1'", "unset HIP_VISIBLE_DEVICES", False),
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
