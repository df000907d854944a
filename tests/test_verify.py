"""``labkit devices --verify`` as its user sees it, on the played torch and the played driver."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from labkit.cli import main
from labkit.devices.detect import Device
from labkit.devices.nvml import SENTENCES
from labkit.devices.verify import FORKED, fit_driver
from labkit.launch.server import wait_until
from tests.fakes.nvml import PlayedHost, build_driver, script_driver, script_gpu
from tests.fakes.played_torch import install_torch
from tests.snapshots import assert_snapshot

pytest.importorskip("pynvml", reason="needs nvidia-ml-py")


@pytest.fixture(scope="module")
def driver(tmp_path_factory):
    return build_driver(tmp_path_factory.mktemp("driver"))


@pytest.fixture
def host(tmp_path, driver):
    host = PlayedHost(tmp_path, driver)
    install_torch(tmp_path)
    return host


H200 = {"name": "NVIDIA GeForce RTX 4090", "uuid": "00000000", "capability": (8, 9)}
TWO_GPUS = script_driver(script_gpu(0), script_gpu(1))


def verify(host, script, torch, *words, **environment):
    """What --verify prints as JSON on the played driver and torch, and its exit code."""
    # Without a compiler on its PATH, torch.compile is skipped: the played one compiles nothing.
    environment = {"PATH": "", "FAKE_TORCH": json.dumps(torch), **environment}
    done = host.run(script, "devices", "--json", "--verify", *words, **environment)
    return json.loads(done.stdout), done


@pytest.mark.slow
def test_sound_gpus_and_the_cpu_are_verified(host):
    gpus = [H200, {**H200, "uuid": "00000001"}]
    printed, done = verify(host, TWO_GPUS, {"gpus": gpus})
    assert done.returncode == 0
    assert done.stderr.splitlines() == [
        "asking torch for its devices ...",
        "cuda:0: allocating, computing, compiling ...",
        "cuda:1: allocating, computing, compiling ...",
        "cpu: allocating, computing, compiling ...",
    ]
    assert printed["best"] == "cuda:0"
    assert printed["torch"] == {"version": "2.13.0+cu130", "cuda": "13.0", "hip": None, "xpu": None}
    told = [(one["torch_name"], one["uuid"], one["verified"]) for one in printed["verified"]]
    assert told == [
        ("cuda:0", "GPU-00000000", True),
        ("cuda:1", "GPU-00000001", True),
        ("cpu", None, True),
    ]
    steps = printed["verified"][2]["steps"]
    assert [step["name"] for step in steps] == ["import", "allocate", "compute", "compile"]
    assert steps[3]["skipped"] == "there is no C++ compiler (g++) here"


@pytest.mark.slow
def test_one_that_crashes_takes_nobody_else_down(host):
    sick = {**H200, "compute": {"die": "SIGSEGV"}}
    printed, done = verify(host, TWO_GPUS, {"gpus": [sick, {**H200, "uuid": "00000001"}]})
    assert done.returncode == 1
    assert [one["verified"] for one in printed["verified"]] == [False, True, True]
    assert printed["verified"][0]["cause"] == (
        "it does not compute: the process was ended by SIGSEGV"
    )


@pytest.mark.slow
@pytest.mark.parametrize(
    ("script", "torch", "environment", "code", "cause", "fix"),
    [
        pytest.param(
            script_driver(script_gpu(0, "fail handle 15")),
            {},
            {},
            5,
            SENTENCES["gpu lost"],
            None,
            id="lost",
        ),
        pytest.param(
            script_driver(script_gpu(0, "fail handle 4")),
            {},
            {},
            5,
            SENTENCES["no permission"],
            None,
            id="no permission",
        ),
        pytest.param(
            script_driver("fail init 9", script_gpu(0)),
            {},
            {},
            5,
            SENTENCES["driver not loaded"],
            None,
            id="driver not loaded",
        ),
        pytest.param(
            script_driver(script_gpu(0)).replace("cuda 13000", "cuda 12020"),
            {"refusal": "The NVIDIA driver on your system is too old (found version 12020)."},
            {},
            5,
            "the NVIDIA driver 580.95.05 (CUDA 12.2) is too old for torch 2.13.0+cu130 (CUDA 13.0)",
            "pip install --force-reinstall torch torchvision --index-url https://download.pytorch.org/whl/cu126",
            id="driver too old",
        ),
        pytest.param(
            script_driver(script_gpu(0)),
            {},
            {"CUDA_VISIBLE_DEVICES": "-1"},
            0,
            "it is hidden by CUDA_VISIBLE_DEVICES='-1'",
            "unset CUDA_VISIBLE_DEVICES",
            id="hidden",
        ),
        pytest.param(
            script_driver(script_gpu(0)),
            {"forked": True, "refusal": "Cannot re-initialize CUDA in forked subprocess."},
            {},
            0,
            FORKED,
            "torch.multiprocessing.set_start_method('spawn')   # the first line below if",
            id="forked",
        ),
        pytest.param(
            script_driver(script_gpu(0)),
            {"build": {"version": "2.13.0+cpu", "cuda": None}},
            {},
            0,
            "torch 2.13.0+cpu is a CPU build",
            None,
            id="a CPU build",
        ),
        pytest.param(
            script_driver(script_gpu(0)),
            {"refusal": "CUDA driver initialization failed: Error 802: system not yet initialized"},
            {"CUDA_VISIBLE_DEVICES": "0"},
            5,
            "GPUs on an NVSwitch need the fabric manager, in exactly the driver's version",
            "sudo systemctl enable --now nvidia-fabricmanager",
            id="asked for, and the driver refuses",
        ),
        pytest.param(
            script_driver(script_gpu(0)),
            {
                "gpus": [
                    {
                        **H200,
                        "capability": (6, 1),
                        "compute": {
                            "raise": "CUDA error: no kernel image is available for execution on"
                            " the device"
                        },
                    }
                ]
            },
            {},
            1,
            "torch has no kernel for its compute capability 6.1, only for sm_80, sm_90",
            "pip install --force-reinstall torch torchvision --index-url https://download.pytorch.org/whl/cu126"
            "   # or cu130 (RTX 50 and newer: cu128 at least)",
            id="no kernel for its architecture",
        ),
        pytest.param(
            script_driver(script_gpu(0)),
            {"gpus": [{**H200, "allocate": {"raise": "CUDA out of memory. Tried to allocate"}}]},
            {},
            1,
            "it cannot allocate: the GPU's memory is full: this process or others use it",
            "labkit memory   # shows what uses it",
            id="full",
        ),
        pytest.param(
            script_driver(script_gpu(0)),
            {"gpus": [{**H200, "compute": {"wrong": True}}]},
            {},
            1,
            "it does not compute: RuntimeError: a matmul is 1 away from the CPU's float64",
            None,
            id="computes wrongly",
        ),
    ],
)
def test_a_gpu_that_cannot_be_used_is_one_sentence(
    host, script, torch, environment, code, cause, fix
):
    printed, done = verify(host, script, torch, **environment)
    assert done.returncode == code
    (gpu,) = [one for one in printed["verified"] if one["kind"] == "cuda"]
    assert (gpu["verified"], gpu["cause"], bool(gpu["fix"])) == (False, cause, bool(fix))
    # Where the distribution has a package for it, its installation stands before.
    assert (fix or "") in (gpu["fix"] or "")
    (cpu,) = [one for one in printed["verified"] if one["kind"] == "cpu"]
    assert cpu["verified"] is True


@pytest.mark.parametrize(
    ("ending", "cause"),
    [
        ({"raise": "libc10.so is odd"}, "torch cannot be imported: RuntimeError: libc10.so is odd"),
        ({"die": "SIGILL"}, "torch cannot be imported: the process was ended by SIGILL"),
    ],
    ids=["raises", "crashes"],
)
def test_a_torch_that_cannot_be_imported_is_everybodys_cause(host, ending, cause):
    printed, done = verify(host, script_driver(script_gpu(0)), {"import": ending})
    assert done.returncode == 5
    assert [(one["kind"], one["cause"]) for one in printed["verified"]] == [
        ("cuda", cause),
        ("cpu", cause),
    ]
    assert printed["torch"] is None


def test_a_gpu_that_computes_needs_no_nvml(host):
    """As in a container after systemd's daemon-reload, where CUDA was already open."""
    printed, done = verify(host, script_driver("fail init 999"), {"gpus": [H200]})
    assert done.returncode == 0
    assert [(one["torch_name"], one["verified"]) for one in printed["verified"]] == [
        ("cuda:0", True),
        ("cpu", True),
    ]
    assert printed["notes"] == ["NVML failed: Unknown Error (code 999)"]


def test_one_device_can_be_asked_for_by_name(host):
    printed, done = verify(host, TWO_GPUS, {"gpus": [H200, {**H200, "uuid": "00000001"}]}, "cuda:1")
    assert done.returncode == 0
    assert [one["torch_name"] for one in printed["verified"]] == ["cuda:1"]


@pytest.mark.parametrize(
    ("asked", "script", "environment", "cause", "fix"),
    [
        pytest.param(
            "cuda",
            script_driver(script_gpu(0)),
            {"CUDA_VISIBLE_DEVICES": ""},
            "NVIDIA GeForce RTX 4090: it is hidden by CUDA_VISIBLE_DEVICES=''",
            "unset CUDA_VISIBLE_DEVICES",
            id="hidden",
        ),
        pytest.param(
            "cuda:3",
            script_driver(),
            {},
            "the NVIDIA driver is loaded but there is no GPU",
            "labkit devices",
            id="none",
        ),
        pytest.param(
            "mps",
            script_driver(script_gpu(0)),
            {"CUDA_VISIBLE_DEVICES": "0"},
            "torch lists cpu",
            "labkit devices",
            id="of another kind",
        ),
    ],
)
def test_a_device_asked_for_that_is_not_here_is_missing(
    host, asked, script, environment, cause, fix
):
    printed, done = verify(host, script, {}, asked, **environment)
    assert done.returncode == 3
    # Where no labkit is on the PATH, its command names this Python.
    assert printed["error"].pop("fix").endswith(fix)
    assert printed["error"] == {
        "what": f"--verify {asked}: torch has no such device here",
        "cause": cause,
        "exit_code": 3,
    }


def test_the_screen_has_a_line_for_each_device(host):
    torch = {"gpus": [{**H200, "compute": {"die": "SIGKILL"}}]}
    done = host.run(
        TWO_GPUS,
        "devices",
        "--verify",
        PATH="",
        FAKE_TORCH=json.dumps(torch),
        CUDA_VISIBLE_DEVICES="GPU-00000000",
    )
    assert done.returncode == 1
    shown = done.stdout[done.stdout.index("verified:") :]
    assert_snapshot(
        "verified_devices", re.sub(r"(MiB|computed) in .*?([,;])", r"\1 in 0 s\2", shown)
    )


def test_the_screen_names_the_cpu_where_torch_is_missing(host):
    (host.folder / "torch/__init__.py").write_text("import nothing_of_that_name\n")
    done = host.run(script_driver(), "devices", "--verify")
    assert done.returncode == 5
    verified = done.stdout.rpartition("verified:\n")[2]
    assert verified.startswith("cpu     ")
    assert " cannot be used: torch cannot be imported: " in verified
    assert "nothing_of_that_name" in verified


@pytest.mark.slow
def test_the_real_cpu_is_verified(capsys):
    pytest.importorskip("torch")
    if not shutil.which("g++"):
        pytest.skip("needs g++, to compile for the CPU")
    assert main(["devices", "--verify", "cpu", "--json"]) == 0
    (cpu,) = json.loads(capsys.readouterr().out)["verified"]
    assert (cpu["torch_name"], cpu["verified"], cpu["cause"]) == ("cpu", True, None)
    assert [step["words"] for step in cpu["steps"]][3] == "the same as uncompiled"


@pytest.mark.parametrize("name", ["GPU", "cuda:", "cuda:-1", "0", "cuda 0", "nonsense"])
def test_a_word_that_is_no_device_is_a_usage_error(capsys, name):
    assert main(["devices", "--json", f"--verify={name}"]) == 2
    assert json.loads(capsys.readouterr().out)["error"]["what"] == f"invalid --verify {name!r}"


def test_help_lists_the_exit_codes(capsys):
    with pytest.raises(SystemExit):
        main(["devices", "--help"])
    shown = capsys.readouterr().out
    assert re.findall(r"\b(\d) (?:the|a|torch)", shown[shown.index("exit codes") :]) == list("0135")


def test_a_self_test_ends_with_its_parent(tmp_path):
    child = (
        "import os, pathlib, sys, time; from labkit.devices.self_test import end_with_parent; "
        "end_with_parent(0.05); pathlib.Path(sys.argv[1]).write_text(str(os.getpid())); "
        "time.sleep(60)"
    )
    noted = tmp_path / "pid"
    parent = (
        "import subprocess, sys, time, pathlib; "
        "subprocess.Popen([sys.executable, '-c', sys.argv[1], sys.argv[2]]); "
        "path = pathlib.Path(sys.argv[2])\nwhile not path.exists() or not path.read_text(): "
        "time.sleep(0.05)"
    )
    subprocess.run([sys.executable, "-c", parent, child, str(noted)], check=True, timeout=60)
    orphan = int(noted.read_text())

    def is_gone():
        try:
            state = Path(f"/proc/{orphan}/stat").read_text().rpartition(")")[2].split()[0]
        except FileNotFoundError:
            return True
        return state == "Z"  # nobody here waits for it

    assert wait_until(is_gone, timeout_seconds=30)


@pytest.mark.parametrize(
    ("capability", "driver", "words"),
    [
        ("12.0", "570.86.15", "580"),
        ("8.9", "570.86.15", None),
        ("6.1", "470.256.02", "driver"),
        ("3.5", "470.256.02", None),
        (None, "570.86.15", None),
    ],
    ids=["Blackwell", "Ada", "Pascal under 470", "Kepler", "unknown"],
)
def test_where_no_build_runs_on_the_driver_a_new_one_is_advised(capability, driver, words):
    """A Blackwell under 570 was told to install the build for CUDA 12.6, which lacks its code."""
    device = Device("cuda", driver=driver, compute_capability=capability)
    fix = fit_driver(device)
    assert (fix is None) == (words is None)
    assert words is None or words in str(fix)
    assert "cu126" not in str(fix)
