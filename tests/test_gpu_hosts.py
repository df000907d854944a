"""Whole hosts, healthy and broken, from their commands' answers to the lines that `make up` says.

Each host is played to the real probes, and the plan made from what they found.
"""

from __future__ import annotations

import io
from dataclasses import replace

import pytest

from labkit.errors import DeviceMissingError, EngineError, ExitCode, LabkitError, UsageError
from labkit.launch.plan import announce_choices, choose_image_build, make_plan, probe_host
from labkit.launch.progress import Steps
from labkit.launch.settings import CPU, Flavor, Settings, read_settings
from tests.fakes import gpu_hosts as played
from tests.fakes.gpu_hosts import docker_host, podman_host, sees
from tests.fakes.host import (
    ADA,
    DOCKER_FINE,
    NO_DAEMON,
    SMI_REFUSES,
    SMI_WITHOUT_DRIVER,
    FakeRunner,
    fails,
    hangs,
    make_checkout,
    says,
)
from tests.snapshots import assert_snapshot

H200 = "NVIDIA H200, 580.65.06, 0, GPU-aaaa, 9.0, Disabled"
H200_TOO = "NVIDIA H200, 580.65.06, 1, GPU-bbbb, 9.0, Disabled"
RTX_4090 = "NVIDIA GeForce RTX 4090, 550.54.15, 0, GPU-aaaa, 8.9, [N/A]"
GTX_1080 = "NVIDIA GeForce GTX 1080, 580.65.06, 0, GPU-aaaa, 6.1, [N/A]"
RTX_5090 = "NVIDIA GeForce RTX 5090, 580.65.06, 1, GPU-bbbb, 12.0, [N/A]"
EARLY_5090 = "NVIDIA GeForce RTX 5090, 570.86.15, 0, GPU-aaaa, 12.0, [N/A]"
V100_OLD = "Tesla V100-SXM2-32GB, 470.182.03, 0, GPU-aaaa, [N/A]"
WSL_4070 = "NVIDIA GeForce RTX 4070, 581.29, 0, GPU-aaaa, 8.9, [N/A]"
WSL_OLD = "NVIDIA GeForce RTX 3060, 516.94, 0, GPU-aaaa, 8.6, [N/A]"
MIG = "NVIDIA A100-SXM4-80GB, 580.65.06, 0, GPU-aaaa, 8.0, Enabled"
MIG_LIST = says(
    "GPU 0: NVIDIA A100-SXM4-80GB (UUID: GPU-aaaa)\n"
    "  MIG 3g.40gb     Device  0: (UUID: MIG-1111)\n"
    "  MIG 3g.40gb     Device  1: (UUID: MIG-2222)"
)
SEEN = sees("NVIDIA H200")


@pytest.fixture
def checkout(tmp_path, monkeypatch):
    for name in ("BASE_IMAGE", "LABKIT_IMAGE"):
        monkeypatch.delenv(name, raising=False)
    return make_checkout(tmp_path / "a lab")


@pytest.fixture
def root(tmp_path):
    folder = tmp_path / "root"
    (folder / "etc").mkdir(parents=True)
    (folder / "etc" / "os-release").write_text('ID=debian\nPRETTY_NAME="Debian 13"\n')
    return folder


@pytest.fixture
def plan(checkout, root):
    """The plan on a host that answers so."""

    def play(answers, settings=Settings(), machine=ADA, **options):  # noqa: B008
        run = FakeRunner({start: answer for start, answer in answers.items() if answer})
        played = {"machine": machine, "find_program": str}  # each program is installed
        facts = probe_host(checkout, settings, Steps(io.StringIO()), run, root, **played)
        return make_plan(checkout, settings, facts, **options)

    return play


def say(plan):
    screen = io.StringIO()
    announce_choices(plan, Steps(screen, clock=lambda: 0.0))
    return screen.getvalue()


def cuda(build, *gpus, way="reservation"):
    return Flavor("cuda", build, gpus or ("all",), way)


HEALTHY = {
    "Docker with the toolkit": (docker_host(H200, reservation=SEEN), cuda("cu130")),
    "Docker by CDI, two GPUs": (
        docker_host(H200, H200_TOO, cdi=sees("NVIDIA H200", "NVIDIA H200")),
        cuda("cu130", way="cdi"),
    ),
    "a driver of CUDA 12": (docker_host(RTX_4090, reservation=SEEN), cuda("cu126")),
    "Pascal with a driver of CUDA 13": (docker_host(GTX_1080, reservation=SEEN), cuda("cu126")),
    "Pascal and Blackwell": (
        docker_host(GTX_1080, RTX_5090, reservation=SEEN),
        cuda("cu130", "1"),
    ),
    "Podman with a specification": (podman_host(H200, cdi=SEEN), cuda("cu130", way="cdi")),
    "rootless Docker, configured": (
        {**docker_host(H200, reservation=SEEN), **played.ROOTLESS},
        cuda("cu130"),
    ),
    "MIG": (
        {**docker_host(MIG, reservation=sees("NVIDIA A100-SXM4-80GB")), "nvidia-smi -L": MIG_LIST},
        cuda("cu130"),
    ),
    "WSL2": (docker_host(WSL_4070, reservation=SEEN), cuda("cu130")),
    "no engine": (played.lists(H200), cuda("cu130", way=None)),
    "no GPU": ({**DOCKER_FINE}, CPU),
    "a remote context, and a GPU of its own": (
        {**docker_host(H200, reservation=SEEN), **played.REMOTE},
        cuda("cu130", way=None),
    ),
    "an engine that is down": (
        {**docker_host(H200, reservation=SEEN), "docker info": fails(NO_DAEMON)},
        cuda("cu130", way=None),
    ),
}
BROKEN = {
    "no toolkit": docker_host(H200),
    "no toolkit, two GPUs": docker_host(H200, H200_TOO),
    "neither toolkit nor specification": docker_host(H200, cdi=played.NO_SPEC),
    "snap's docker": {**docker_host(H200, reservation=played.NO_LIBRARY), **played.SNAP},
    "rootless Docker without the toolkit": {**docker_host(H200), **played.ROOTLESS},
    "Docker Desktop on Linux": {**docker_host(H200), **played.DESKTOP},
    "the driver's library does not reach the container": docker_host(
        H200, reservation=played.NO_LIBRARY
    ),
    "rootless Docker, not configured": {
        **docker_host(H200, reservation=played.ROOTLESS_CGROUPS),
        **played.ROOTLESS,
    },
    "insufficient permissions": docker_host(H200, reservation=played.NVML_REFUSED),
    "WSL2, blocked": docker_host(WSL_4070, reservation=played.BLOCKED),
    "the container hangs": docker_host(H200, reservation=hangs("docker", 20.0)),
    "the container prints garbage": docker_host(H200, reservation=says("\x1b]0;owned\x07\x00")),
    "no image and no network": {
        **docker_host(H200),
        "docker image inspect": fails("No such image"),
        "docker pull": fails(
            "Error response from daemon: lookup registry-1.docker.io: no such host"
        ),
    },
    "Podman without a specification": podman_host(H200),
    "Podman with the specification of an older driver": podman_host(
        H200, cdi=played.PODMAN_STALE_SPEC
    ),
    "a driver of CUDA 11": {
        **docker_host(reservation=SEEN),
        played.SMI: SMI_REFUSES,
        "nvidia-smi --query-gpu=name,driver_version,index,uuid,mig": says(V100_OLD),
    },
    "Blackwell with a driver of CUDA 12": docker_host(EARLY_5090, reservation=SEEN),
    "MIG without instances": {
        **docker_host(MIG, reservation=SEEN),
        "nvidia-smi -L": says("GPU 0: NVIDIA A100"),
    },
    "the driver is not loaded": {**DOCKER_FINE, **SMI_WITHOUT_DRIVER},
    "nvidia-smi hangs": {**DOCKER_FINE, "nvidia-smi": hangs("nvidia-smi")},
    "nvidia-smi prints garbage": {**DOCKER_FINE, "nvidia-smi": says("Segmentation fault")},
}


@pytest.mark.parametrize(("answers", "flavor"), HEALTHY.values(), ids=HEALTHY)
def test_a_healthy_host_gets_the_lab_for_it(plan, answers, flavor):
    made = plan(answers)
    assert made.flavor.value == made.lab.flavor == flavor


@pytest.mark.parametrize("answers", BROKEN.values(), ids=BROKEN)
def test_a_broken_host_gets_the_cpu_lab(plan, answers):
    made = plan(answers)
    assert made.flavor.value == made.lab.flavor == CPU


def test_what_is_said_on_each_host(plan):
    hosts = {**{name: answers for name, (answers, _) in HEALTHY.items()}, **BROKEN}
    screens = [f"== {name}\n{say(plan(answers))}" for name, answers in hosts.items()]
    assert_snapshot("gpu_hosts", "\n".join(screens))


@pytest.mark.parametrize("answers", BROKEN.values(), ids=BROKEN)
def test_there_cuda_by_name_is_an_error_and_never_quietly_the_cpu(plan, answers):
    with pytest.raises(LabkitError) as caught:
        plan(answers, Settings(flavor="cuda"))
    error = caught.value
    assert error.exit_code in (ExitCode.ENGINE, ExitCode.DEVICE_MISSING)
    assert error.what.startswith("FLAVOR=cuda: ")
    assert error.cause
    assert error.fix


def test_the_build_for_its_gpus_is_made_while_the_engine_is_not_set_up(plan):
    made = plan(docker_host(GTX_1080), Settings(flavor="cuda"), demand=False)
    assert made.flavor.value == Flavor("cuda", "cu126")


@pytest.mark.parametrize("answers", BROKEN.values(), ids=BROKEN)
def test_there_a_cuda_lab_can_be_built_and_tested_all_the_same(plan, answers):
    made = plan(answers, Settings(flavor="cuda"), demand=False)
    assert made.flavor.value == Flavor("cuda", "cu130")
    assert made.flavor.reason.startswith("asked for by name; build cu130, without a GPU: ")
    by_build = plan(answers, Settings(cuda="cu126"), demand=False)
    assert by_build.flavor.value == Flavor("cuda", "cu126")


@pytest.mark.parametrize(
    ("answers", "reason"),
    [
        (docker_host(WSL_OLD, reservation=SEEN), "driver 516.94 is too old for CUDA"),
        (
            docker_host(EARLY_5090, reservation=SEEN),
            "no build of torch fits NVIDIA GeForce RTX 5090 with driver 570.86.15",
        ),
    ],
    ids=["too old for CUDA", "too old for the GPU"],
)
def test_in_wsl2_the_driver_to_update_is_windows_own(plan, root, answers, reason):
    (root / "dev").mkdir()
    (root / "dev" / "dxg").write_text("")
    made = plan(answers)
    assert (made.flavor.value, made.flavor.reason) == (CPU, reason)
    assert made.flavor.fix == "wsl.exe --shutdown   # after updating NVIDIA's driver in Windows"


def test_a_mac_has_no_nvidia_gpu(plan):
    made = plan({**DOCKER_FINE}, machine=replace(ADA, system="Darwin", architecture="arm64"))
    assert made.flavor.value == CPU
    assert made.flavor.warning is None


def test_a_driver_without_nvidia_smi_is_found_by_its_module(plan, root):
    folder = root / "proc" / "driver" / "nvidia"
    (folder / "gpus" / "0000:01:00.0").mkdir(parents=True)
    (folder / "version").write_text("NVRM version: NVIDIA UNIX x86_64  535.183.01  Release\n")
    information = folder / "gpus" / "0000:01:00.0" / "information"
    information.write_text("Model: \t\t NVIDIA Graphics Device\nGPU UUID: \t GPU-aaaa\n")
    made = plan({**docker_host(reservation=SEEN), played.SMI: None})
    assert made.flavor.value == cuda("cu126")
    assert "535.183.01 alone" in made.flavor.reason


def play_card(root, device, place=1):
    folder = root / f"sys/bus/pci/devices/0000:0{place}:00.0"
    folder.mkdir(parents=True)
    for name, text in (("vendor", "0x10de"), ("class", "0x030000"), ("device", device)):
        (folder / name).write_text(f"{text}\n")


def test_an_lxc_container_is_not_told_to_install_a_driver(plan, root):
    play_card(root, "0x2684")
    (root / "run/systemd").mkdir(parents=True)
    (root / "run/systemd/container").write_text("lxc\n")
    made = plan({**DOCKER_FINE})
    assert (made.flavor.value, made.flavor.fix) == (CPU, None)
    with pytest.raises(DeviceMissingError) as caught:
        plan({**DOCKER_FINE}, Settings(flavor="cuda"))
    assert str(caught.value.fix).startswith("pct set <id> --dev0 /dev/nvidia0")


def test_the_driver_is_for_the_gpus_that_one_driver_serves(plan, root):
    play_card(root, "0x1b80")
    play_card(root, "0x2b85", 2)
    (root / "etc").mkdir(exist_ok=True)
    (root / "etc/os-release").write_text('ID=ubuntu\nVERSION_ID="24.04"\n')
    made = plan({**DOCKER_FINE})
    assert "nvidia-driver-580-open" in str(made.flavor.fix)
    assert "Blackwell" in str(made.flavor.warning)


def test_a_driver_under_a_stopped_module_is_not_tried(plan, root):
    """Each trial of a hung driver would take its whole limit."""
    folder = root / "proc" / "driver" / "nvidia"
    folder.mkdir(parents=True)
    (folder / "version").write_text("NVRM version: NVIDIA UNIX x86_64  580.65.06  Release\n")
    made = plan({**docker_host(reservation=SEEN), played.SMI: hangs("nvidia-smi")})
    assert made.flavor.value == CPU
    assert "did not answer in 10 s" in made.flavor.reason
    assert "will not be used" in str(made.flavor.warning)


# What is asked for by name


@pytest.mark.parametrize(
    ("answers", "options", "build"),
    [
        pytest.param({}, {"flavor": "cuda"}, "cu130", id="no GPU"),
        pytest.param({}, {"cuda": "cu126"}, "cu126", id="no GPU, a build by name"),
        pytest.param(played.lists(GTX_1080), {"flavor": "cuda"}, "cu126", id="Pascal"),
        pytest.param(played.lists(GTX_1080), {"cuda": "cu130"}, "cu130", id="for another host"),
        pytest.param(played.lists(H200), {"flavor": "cpu"}, "cpu", id="the cpu"),
    ],
)
def test_the_build_of_an_image_that_is_only_made(root, answers, options, build):
    run = FakeRunner(answers)
    assert choose_image_build(read_settings(options, {}), run, root).name == build
    assert {call.split()[0] for call in run.calls} == {"nvidia-smi"}


@pytest.mark.parametrize(
    ("options", "flavor"),
    [
        pytest.param({"cuda": "cu126"}, cuda("cu126"), id="a build"),
        pytest.param({"gpus": "1"}, cuda("cu130", "1"), id="an index"),
        pytest.param({"gpus": "GPU-bbbb"}, cuda("cu130", "1"), id="a UUID"),
        pytest.param({"gpus": "0,1", "flavor": "cuda"}, cuda("cu130", "0", "1"), id="a list"),
        pytest.param({"gpus": "all"}, cuda("cu130"), id="all"),
        pytest.param({"flavor": "cpu"}, CPU, id="the cpu"),
    ],
)
def test_what_is_asked_for_is_taken(plan, options, flavor):
    answers = docker_host(H200, H200_TOO, reservation=SEEN)
    assert plan(answers, read_settings(options, {})).flavor.value == flavor


def test_where_the_cpu_is_asked_for_no_container_is_tried(checkout, root):
    run = FakeRunner(docker_host(H200, reservation=SEEN))
    probe_host(checkout, Settings(flavor="cpu"), Steps(io.StringIO()), run, root, machine=ADA)
    assert [call for call in run.calls if call.startswith("docker run")] == []


def test_a_container_is_tried_as_the_lab_will_be(checkout, root):
    run = FakeRunner(podman_host(H200, H200_TOO, cdi=SEEN))
    probe_host(checkout, Settings(gpus=("1",)), Steps(io.StringIO()), run, root, machine=ADA)
    [trial] = [call for call in run.calls if call.startswith("podman run")]
    assert trial.startswith(
        "podman run --device nvidia.com/gpu=1 --user 1000:1000 --userns keep-id --rm"
    )
    assert trial.endswith("--entrypoint nvidia-smi labkit:cpu -L")


@pytest.mark.parametrize(
    ("options", "kind", "what", "cause", "fix"),
    [
        pytest.param(
            {"gpus": "2"},
            DeviceMissingError,
            "GPUS=2: this host has no GPU 2",
            "it has: 0 NVIDIA H200 (GPU-aaaa); 1 NVIDIA H200 (GPU-bbbb)",
            "make up GPUS=0",
            id="a GPU that is not there",
        ),
        pytest.param(
            {"flavor": "cpu", "cuda": "cu130", "gpus": "0"},
            UsageError,
            "CUDA=cu130 GPUS=0 conflicts with FLAVOR=cpu",
            "the cpu flavor uses no GPU",
            "unset LABKIT_CUDA LABKIT_GPUS; make up FLAVOR=cpu",
            id="CUDA on the CPU",
        ),
        pytest.param(
            {"cuda": "cu128"},
            UsageError,
            "unknown CUDA build 'cu128'",
            "CUDA build is one of: auto, cu130, cu126",
            "make up CUDA=cu126",
            id="no such build",
        ),
        pytest.param(
            {"flavor": "gpu"},
            UsageError,
            "unknown flavor 'gpu'",
            "flavor is one of: auto, cpu, cuda",
            "make up FLAVOR=cuda",
            id="no such flavor",
        ),
    ],
)
def test_what_is_asked_for_and_cannot_be_had(plan, options, kind, what, cause, fix):
    with pytest.raises(kind) as caught:
        plan(docker_host(H200, H200_TOO, reservation=SEEN), read_settings(options, {}))
    assert (caught.value.what, caught.value.cause, caught.value.fix) == (what, cause, fix)


@pytest.mark.parametrize("options", [{"cuda": "cu130"}, {"gpus": "0"}], ids=["build", "GPU"])
def test_a_build_or_a_gpu_by_name_is_never_quietly_the_cpu(plan, options):
    settings = read_settings(options, {})
    [asked] = [f"{name.upper()}={value}" for name, value in options.items()]
    with pytest.raises(DeviceMissingError) as caught:
        plan({**DOCKER_FINE}, settings)
    assert caught.value.what == f"{asked}: this host has no NVIDIA GPU that its driver knows"
    with pytest.raises(EngineError) as refused:
        plan(docker_host(H200), settings)
    assert refused.value.what == f"{asked}: Docker does not pass the GPU on"
    assert "nvidia-container-toolkit" in str(refused.value.fix)


def test_a_build_for_another_host_is_made_by_name(plan):
    made = plan({**DOCKER_FINE}, Settings(flavor="cuda"), demand=False)
    assert made.flavor.value == Flavor("cuda", "cu130")
    assert "without a GPU" in made.flavor.reason
