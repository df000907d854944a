"""The first fix is the one that the pasted text itself calls for, and no advice it contradicts."""

from __future__ import annotations

import re

import pytest

from labkit.host.distribution import UNKNOWN
from labkit.known_errors import KNOWN_ERRORS
from labkit.known_errors.match import explain_text, format_explanation

OUT = (
    "torch.OutOfMemoryError: CUDA out of memory. Tried to allocate {}. GPU 0 has a total capacity"
    " of 23.64 GiB of which {} is free. Process 1 has 22.00 GiB memory in use. Of the allocated"
    " memory {} is allocated by PyTorch, and {} is reserved by PyTorch but unallocated. If reserved"
    " but unallocated memory is large try setting PYTORCH_CUDA_ALLOC_CONF=expandable_segments:True"
)


def write_answer(text, part):
    """The first fix ("try"), the second one ("else") or the cause of the first known error."""
    shown = format_explanation(explain_text(text), UNKNOWN).partition("\n\n")[0]
    return shown.partition(f"  {part}: ")[2].partition("\n")[0]


@pytest.mark.parametrize(
    ("sizes", "part", "is_advised"),
    [
        (("2.00 GiB", "1.00 GiB", "20.00 GiB", "120.00 MiB"), "else", False),
        (("500.00 MiB", "100.00 MiB", "22.00 GiB", "1.10 GiB"), "else", True),
        (("2.00 GiB", "1.00 GiB", "4.00 GiB", "120.00 MiB"), "else", False),
        (("2.00 GiB", "0.10 GiB", "18.00 GiB", "4.00 GiB"), "try", True),
    ],
    ids=["little is unused", "enough is unused", "others have it", "much is unused"],
)
def test_pieces_are_joined_only_where_they_would_have_been_enough(sizes, part, is_advised):
    assert ("expandable_segments" in write_answer(OUT.format(*sizes), part)) == is_advised


def test_a_remainder_of_a_full_card_is_not_memory_that_the_driver_refused():
    old = (
        "torch.cuda.OutOfMemoryError: CUDA out of memory. Tried to allocate 26.00 MiB (GPU 0; 3.81"
        " GiB total capacity; 2.73 GiB already allocated; {} free; 2.78 GiB reserved in total"
    )
    assert "own tensors fill" in write_answer(old.format("29.75 MiB"), "cause")
    assert "refused" in write_answer(old.format("929.75 MiB"), "cause")


def test_a_full_memory_of_unknown_parts_is_not_called_pieces():
    shown = format_explanation(explain_text("RuntimeError: CUDA out of memory."), UNKNOWN)
    assert "expandable_segments" not in shown


SLURM = "slurmstepd: error: *** JOB 17 ON n3 CANCELLED AT 2026-11-24T10:00:00 DUE TO {} ***"


@pytest.mark.parametrize(
    ("reason", "named", "others"),
    [
        ("TIME LIMIT", "time limit", ("preempt", "node of it")),
        ("PREEMPTION", "preemption", ("time limit", "node of it")),
        ("NODE FAILURE", "node of the job", ("time limit", "preempt")),
    ],
)
def test_a_cause_of_slurms_names_no_other_reason(reason, named, others):
    cause = write_answer(SLURM.format(reason), "cause")
    assert named in cause
    assert not any(each in cause for each in others)


def test_a_rendezvous_without_a_port_in_the_text_names_none():
    shown = write_answer("RendezvousConnectionError: The connection to the store failed.", "try")
    assert "--rdzv-endpoint" in shown
    assert "29400" not in shown
    assert "29500" not in shown


def test_no_unknown_value_leaves_a_gap_in_a_sentence():
    gaps = []
    for error in KNOWN_ERRORS:
        for condition in ("", *(each.condition for each in error.variants)):
            one = error.adapt({condition}, {})
            texts = [one.cause, one.otherwise, *one.fix.by_family().values()]
            gaps += [
                (error.name, condition, text)
                for text in filter(None, texts)
                if re.search(r"\w  \w| \(\)", text.partition("   #")[0])
            ]
    assert gaps == []


GLOG = "F0301 10:00:00.123456 1234 {}:77] Check failed: n > 0 (0 vs. 0)"


@pytest.mark.parametrize("file", ["cuda_pool.cc", "tensor_store.cc", "gpu_queue.cpp", "solver.cc"])
def test_a_check_in_a_programs_own_file_is_its_own(file):
    assert f"line 77 of its file {file}" in write_answer(GLOG.format(file), "cause")


@pytest.mark.parametrize("file", ["cuda_dnn.cc", "pjrt_client.cc", "hlo_pass.cc", "stream.cc"])
def test_a_check_in_a_librarys_file_is_not(file):
    assert "its file" not in write_answer(GLOG.format(file), "cause")


def test_a_build_that_ninja_stopped_does_not_ask_for_ninja():
    shown = format_explanation(explain_text("ninja: build stopped: subcommand failed."), UNKNOWN)
    assert "ninja-missing" not in shown
    assert "pip install ninja" not in shown


SMI = "| NVIDIA-SMI {0}    Driver Version: {0}    CUDA Version: 12.2     |\n"
FALSE = ">>> torch.cuda.is_available()\nFalse\n"
NO_DEVICE = 'docker: Error response from daemon: could not select device driver "" with'
NO_DEVICE += " capabilities: [[gpu]].\n"
FREE = "ValueError: Free memory on device ({}/79.25 GiB) on startup is less than desired GPU memory"
FREE += " utilization ({}, 79.25 GiB)."
WATCHDOG = "[rank{0}]:[E ProcessGroupNCCL.cpp:607] [Rank {0}] Watchdog caught collective operation"
WATCHDOG += " timeout: WorkNCCL(SeqNum={1}, OpType=ALLREDUCE, Timeout(ms)=600000) ran for 600060\n"
FIRST = {
    "a build for CUDA sees no GPU": (
        f"{FALSE}1.8.1+cu102\n{SMI.format('535.183.01')}",
        "torch.zeros(1).cuda()",
    ),
    "a driver before all builds": (FALSE + SMI.format("410.48"), "install NVIDIA's driver"),
    "a driver before CUDA 12": (FALSE + SMI.format("470.256.02"), "/whl/cu118"),
    "None after False": (
        'PS C:\\Users\\me> python -c "import torch; print(torch.cuda.is_available(),'
        ' torch.version.cuda)"\nFalse None\n' + SMI.format("550.76"),
        "/whl/cu128",
    ),
    "an old kernel of WSL": (f"{NO_DEVICE}4.19.121-microsoft-standard\n", "wsl.exe --update"),
    "Docker Desktop in WSL": (
        f"u@DESKTOP-AB12CD3:~$ sudo service docker stop\ndocker: unrecognized service\n{NO_DEVICE}",
        "wsl.exe --update",
    ),
    "an old Windows 10": (
        "Microsoft Windows [Version 10.0.19043.1288]\nnvidia-container-cli: initialization error:"
        " driver error: failed to process request: unknown.\n",
        "update Windows to 10 21H2",
    ),
    "a GPU that nobody uses": (FREE.format("79.1", "1.0"), "--gpu-memory-utilization 0.97"),
    "a GPU that others use": (FREE.format("40.1", "0.9"), "nvidia-smi"),
    "ranks in different steps": (
        WATCHDOG.format(0, 96120) + WATCHDOG.format(7, 64088),
        "look for collective calls",
    ),
    "ranks in one step": (
        WATCHDOG.format(0, 96120) + WATCHDOG.format(7, 96120),
        "init_process_group",
    ),
    "a ready llama.cpp": (
        "CUDA error: no kernel image is available for execution on the device\n"
        "  current device: 0, in function ggml_cuda_compute_forward at D:\\a\\box\\ggml-cuda.cu:9",
        "install the newest release",
    ),
    "an image's own driver": (
        "$ docker run --gpus all x nvidia-smi\nFailed to initialize NVML: Driver/library version"
        f" mismatch\nNVML library version: 565.57\n$ nvidia-smi\n{SMI.format('535.183.01')}",
        "docker run --rm",
    ),
    "a driver that docker does not see": (
        "$ sudo docker run --gpus all x\nnvidia-container-cli: initialization error: load library"
        " failed: libnvidia-ml.so.1: cannot open shared object file: no such file\n$ nvidia-smi\n"
        f"{SMI.format('530.30.02')}",
        "snap list docker; docker context ls",
    ),
    "a driver of Windows before TensorFlow's CUDA": (
        "Could not find cuda drivers on your machine, GPU will not be used.\nu@DESKTOP-AB12CD3:~$"
        f" nvidia-smi\n{SMI.format('471.41')}",
        "update NVIDIA's driver in Windows",
    ),
    "memory of the machine": (
        "alloc_tensor_range: failed to allocate CPU buffer of size 437944320\n"
        "llama_model_load: error loading model: unable to allocate CPU buffer\n",
        "free -h",
    ),
    "ollama before llama.cpp": (
        "ollama  | ggml_backend_cuda_buffer_type_alloc_buffer: allocating 35533.34 MiB on device 0:"
        " cudaMalloc failed: out of memory\nollama  | panic: unable to load model: /root/.ollama\n",
        "OLLAMA_CONTEXT_LENGTH",
    ),
    "an instruction of ARM": (
        ">>> import torch\nIllegal instruction (core dumped)\n$ cat /etc/nv_tegra_release\n",
        "export OPENBLAS_CORETYPE=ARMV8",
    ),
    "torchvision on a Jetson": (
        "torch-2.1.0a0+41361538.nv23.06 CUDA:0 (Orin)\n"
        "RuntimeError: operator torchvision::nms does not exist\n",
        "github.com/pytorch/vision",
    ),
    "a container from before an update": (
        "$ docker exec trainer nvidia-smi\nFailed to initialize NVML: Driver/library version"
        f" mismatch\n$ nvidia-smi\n{SMI.format('535.183.01')}",
        "docker restart",
    ),
    "a driver for Linux in WSL": (
        "AttributeError: /lib/x86_64-linux-gnu/libcuda.so: undefined symbol: cuGetProcAddress_v2\n"
        "5.15.90.1-microsoft-standard-WSL2\n",
        "export LD_LIBRARY_PATH=/usr/lib/wsl/lib",
    ),
    "a runtime of JetPack's": (
        "$ docker run --runtime nvidia dustynv/l4t-pytorch:r36.2.0\ndocker: Error response from"
        " daemon: unknown or invalid runtime name: nvidia.\n",
        "apt-get install nvidia-container &&",
    ),
    "a driver that was updated": (
        "$ docker run --gpus all x nvidia-smi\nFailed to initialize NVML: Driver/library version"
        " mismatch\nNVML library version: 565.57\n",
        "reboot",
    ),
}


@pytest.mark.parametrize(("text", "fix"), FIRST.values(), ids=FIRST)
def test_the_first_fix_is_what_the_text_shows(text, fix):
    assert fix in write_answer(text, "try").partition("   #")[0]


KILL = "srun: error: node1: task 1: Killed\n"
RAISED = (
    'Traceback (most recent call last):\n  File "/home/u/flow.py", line 9, in run\n'
    '    raise ConfigProblem("bad car")\nflow.ConfigProblem: bad car\n'
)


def test_an_exception_below_a_kill_is_shown_with_it():
    found = [each.error.name for each in explain_text(KILL + RAISED).found]
    assert found == ["process-got-sigkill", "program-raised"]


@pytest.mark.parametrize(
    "text",
    [
        KILL + RAISED.replace("bad car", "worker 1 was killed"),
        f"Out of memory: Killed process 7 (python)\n{RAISED}",
    ],
    ids=["it tells of the kill", "memory was full"],
)
def test_an_exception_that_follows_from_a_kill_is_not(text):
    assert "program-raised" not in [each.error.name for each in explain_text(text).found]
