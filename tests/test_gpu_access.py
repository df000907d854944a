"""Whether a container sees the GPU: what is run, in which order, and what is made of it."""

from __future__ import annotations

import os

import pytest

from labkit.host.gpu_access import (
    INSPECT_SECONDS,
    PULL_SECONDS,
    TEST_SECONDS,
    GpuAccessTest,
    find_image,
    name_cdi_device,
    probe_gpu_access,
)
from tests.fakes.host import FakeRunner, fails, hangs, says

BASE = "debian:bookworm-slim"
GPU_LINE = "GPU 0: NVIDIA H200 (UUID: GPU-f0a1b2c3-0000-1111-2222-333344445555)"
MIG_LINE = "MIG 1g.18gb Device  0: (UUID: MIG-51c2b1b8-9b65-5f2f-8a0b-5c2a2d6d9a11)"
NO_TOOLKIT = (
    'docker: Error response from daemon: could not select device driver "" with capabilities:'
    " [[gpu]].\n\nRun 'docker run --help' for more information"
)
NO_LIBRARY = (
    "docker: Error response from daemon: failed to create task for container: failed to create"
    " shim task: OCI runtime create failed: runc create failed: unable to start container process:"
    " error during container init: error running prestart hook #0: exit status 1, stdout: , stderr:"
    " Auto-detected mode as 'legacy'\n"
    "nvidia-container-cli: initialization error: load library failed: libnvidia-ml.so.1: cannot"
    " open shared object file: no such file or directory\n"
)
NO_SPEC = (
    "docker: Error response from daemon: CDI device injection failed: unresolvable CDI devices"
    " nvidia.com/gpu=all"
)
HERE = {"docker image inspect": says("sha256:1d0747c5"), "podman image inspect": says("1d0747c5")}
GPUS, DEVICE, PODMAN_DEVICE = "docker run --gpus", "docker run --device", "podman run --device"


def test_docker_with_the_toolkit_passes_it_on_by_reservation():
    run = FakeRunner({**HERE, GPUS: says(GPU_LINE)})
    assert probe_gpu_access("docker", BASE, run) == (GpuAccessTest("reservation", (GPU_LINE,)),)
    assert run.calls == [
        "docker image inspect --format {{.Id}} debian:bookworm-slim",
        f"docker run --gpus all --rm --name labkit-gpu-test-{os.getpid()}-reservation"
        " --network none --cap-drop ALL --security-opt no-new-privileges --read-only"
        " --entrypoint nvidia-smi debian:bookworm-slim -L",
    ]
    assert run.limits == [INSPECT_SECONDS, TEST_SECONDS]


def test_docker_with_a_specification_alone_passes_it_on_by_cdi():
    run = FakeRunner({**HERE, GPUS: fails(NO_TOOLKIT, 125), DEVICE: says(GPU_LINE)})
    first, second = probe_gpu_access("docker", BASE, run)
    assert first == GpuAccessTest(
        "reservation",
        (),
        'docker: Error response from daemon: could not select device driver "" with'
        " capabilities: [[gpu]].",
    )
    assert second == GpuAccessTest("cdi", (GPU_LINE,))
    assert run.calls[-1].startswith("docker run --device nvidia.com/gpu=all --rm")


def test_podman_is_asked_for_cdi_alone():
    run = FakeRunner({**HERE, PODMAN_DEVICE: says(GPU_LINE)})
    assert probe_gpu_access("podman", BASE, run) == (GpuAccessTest("cdi", (GPU_LINE,)),)


@pytest.mark.parametrize(
    ("answer", "problem"),
    [
        pytest.param(
            fails(NO_LIBRARY, 127), " ".join(NO_LIBRARY.split("\n")).strip(), id="no driver library"
        ),
        pytest.param(
            fails("", 255, "Failed to initialize NVML: Unknown Error\n"),
            "Failed to initialize NVML: Unknown Error",
            id="told on stdout",
        ),
        pytest.param(
            says("GPU access blocked by the operating system"),
            "GPU access blocked by the operating system",
            id="WSL2",
        ),
        pytest.param(says("No devices found."), "No devices found.", id="well, and no GPU"),
        pytest.param(fails("", 3), "exit code 3", id="without a word"),
        pytest.param(hangs("docker", 20.0), "docker did not answer in 20 s", id="it hangs"),
        pytest.param(
            fails(
                "Unable to find image 'debian:bookworm-slim' locally\nStatus: Downloaded newer"
                f" image for debian:bookworm-slim\n{NO_TOOLKIT}",
                125,
            ),
            'docker: Error response from daemon: could not select device driver "" with'
            " capabilities: [[gpu]].",
            id="after a pull",
        ),
        pytest.param(
            says("\x00garbage\nGPUs are nice"), r"\x00garbage GPUs are nice", id="garbage"
        ),
    ],
)
def test_why_no_gpu_is_seen_in_the_engines_own_words(answer, problem):
    run = FakeRunner({**HERE, GPUS: answer, DEVICE: fails(NO_SPEC, 125)})
    first, second = probe_gpu_access("docker", BASE, run)
    assert first == GpuAccessTest("reservation", (), problem)
    assert second.problem == NO_SPEC


def test_a_container_whose_client_was_ended_is_removed():
    run = FakeRunner({**HERE, PODMAN_DEVICE: hangs("podman", 20.0)})
    probe_gpu_access("podman", BASE, run)
    assert run.calls[-1] == f"podman rm --force labkit-gpu-test-{os.getpid()}-cdi"
    assert run.limits[-1] == INSPECT_SECONDS


@pytest.mark.parametrize(
    ("gpus", "reservation", "cdi"),
    [
        pytest.param(("all",), "all", ["all"], id="all"),
        pytest.param(("1",), '"device=1"', ["1"], id="one"),
        pytest.param(("0", "GPU-ab"), '"device=0,GPU-ab"', ["0", "GPU-ab"], id="two"),
        pytest.param(("MIG-ab",), '"device=MIG-ab"', ["MIG-ab"], id="a part of one"),
    ],
)
def test_which_gpus_are_asked_for(gpus, reservation, cdi):
    run = FakeRunner({**HERE, GPUS: fails(NO_TOOLKIT), DEVICE: says(GPU_LINE)})
    probe_gpu_access("docker", BASE, run, gpus=gpus)
    assert run.calls[1].startswith(f"docker run --gpus {reservation} --rm ")
    devices = " ".join(f"--device nvidia.com/gpu={name}" for name in cdi)
    assert run.calls[2].startswith(f"docker run {devices} --rm ")


def test_a_gpu_in_parts_is_seen_with_its_parts():
    run = FakeRunner({**HERE, GPUS: says(f"{GPU_LINE}\n  {MIG_LINE}")})
    assert probe_gpu_access("docker", BASE, run)[0].seen == (GPU_LINE, MIG_LINE)


def test_it_runs_as_who_the_lab_will_run_as():
    run = FakeRunner({**HERE, GPUS: says(GPU_LINE)})
    probe_gpu_access("docker", BASE, run, user=("--user", "1000:1000"))
    assert " --gpus all --user 1000:1000 --rm " in run.calls[1]


def test_an_image_that_is_not_here_is_pulled():
    run = FakeRunner(
        {"docker image inspect": fails("No such image"), "docker pull": says(BASE), GPUS: says("")}
    )
    probe_gpu_access("docker", BASE, run)
    assert run.calls[1] == "docker pull --quiet debian:bookworm-slim"
    assert run.limits[1] == PULL_SECONDS


def test_without_an_image_nothing_is_tried():
    run = FakeRunner(
        {
            "docker image inspect": fails("No such image"),
            "docker pull": fails("Error response from daemon: no route to host"),
        }
    )
    assert probe_gpu_access("docker", BASE, run) == (
        GpuAccessTest(
            "reservation",
            (),
            "no image to try it with: Error response from daemon: no route to host",
        ),
    )
    assert len(run.calls) == 2


def test_the_first_image_that_is_here_is_taken():
    run = FakeRunner({"docker image inspect --format {{.Id}} labkit:cpu": says("sha256:12")})
    assert find_image("docker", ["labkit:cu130", "labkit:cpu", BASE], run) == "labkit:cpu"
    assert find_image("docker", ["labkit:cu130"], run) is None


def test_a_gpus_name_in_cdi():
    assert name_cdi_device("GPU-ab") == "nvidia.com/gpu=GPU-ab"
