"""The same error on another kind of host: a pod, podman, nerdctl, LXC, another rendezvous port."""

from __future__ import annotations

import pytest

from labkit.host.distribution import UNKNOWN, Distribution
from labkit.known_errors import KNOWN_ERRORS
from labkit.known_errors.commands import LogHost
from labkit.known_errors.match import explain_text, format_explanation

SHM = "RuntimeError: DataLoader worker (pid 12) is killed by signal: Bus error."
NO_GPU = "RuntimeError: No CUDA GPUs are available"
CRI = "2026-11-29T10:00:00.123456789Z stderr F "
DENIED = "PermissionError: [Errno 13] Permission denied: "
SMI = "Failed to initialize NVML: Unknown Error"
TIMED_OUT = "The client socket has timed out after 60000ms while trying to connect to (node1, {})"


def show(text, distribution=UNKNOWN):
    return format_explanation(explain_text(text), distribution)


@pytest.mark.parametrize(
    ("text", "expected", "barred"),
    [
        (CRI + SHM, "emptyDir", "try: docker"),
        (CRI.replace("F", "P").replace("Z", "+08:00") + SHM, "emptyDir", "try: docker"),
        ("$ kubectl logs a-0\nRuntimeError: No HIP GPUs are available", "amd.com/gpu", "usermod"),
        (CRI + "RuntimeError: No HIP GPUs are available", "supplementalGroups", "usermod"),
        (f"kubectl logs a-0\nrocm-smi: MI300X\n{NO_GPU}", "amd.com/gpu", "nvidia.com/gpu"),
        ("kubectl logs a-0\nopen /dev/nvidiactl: permission denied", "securityContext", "usermod"),
        (f"$ podman run -v ./data:/data t\n{DENIED}'/data/out.txt'", ":Z", "chown -R"),
        (
            f"$ podman run --rm -v $PWD:/data t\n{DENIED}'/data/m.pt'",
            "--userns=keep-id",
            "chown -R",
        ),
        (f"$ podman run --volume d:/data t\n{DENIED}'/data/m.pt'", ":Z,U", "chown -R"),
        (f"$ lxc exec ai -- python t.py\n{NO_GPU}", "lxc config device add", "docker"),
        (f"$ incus exec ai -- python t.py\n{NO_GPU}", "incus config device add", "lxc config"),
        (f"$ pct enter 104\n{NO_GPU}", "pct set", "docker"),
        (f"$ incus exec ai -- nvidia-smi\n{SMI}", "lxc.cgroup2.devices.allow", "docker"),
        ("could not open /dev/nvidia0: Operation not permitted", "no-cgroups", "nvidia-modprobe"),
        (TIMED_OUT.format(29400), "--rdzv-endpoint", "MASTER_PORT"),
    ],
)
def test_the_fix_is_for_the_host_that_the_text_shows(text, expected, barred):
    shown = show(text)
    assert expected in shown
    assert barred not in shown


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (f"2026-11-29 10:00:00 stderr F {SHM}", "docker run --shm-size"),
        (f"stderr F {SHM}", "docker run --shm-size"),
        ("RuntimeError: No HIP GPUs are available", "usermod"),
        (f"$ podman run t\n{DENIED}'/data/out.txt'", "ls -ld"),
        (f"$ docker run -v ./data:/data t\n{DENIED}'/data/out.txt'", "ls -ld"),
        (f"Proxmox VE 8\n{NO_GPU}", "nvidia-smi"),
        (f"$ lxc exec ai -- docker run --gpus all t\n{NO_GPU}", "docker run"),
        ("could not open /dev/nvidia0: No such file or directory", "nvidia-modprobe"),
        (TIMED_OUT.format(29500), "MASTER_PORT"),
    ],
)
def test_a_text_that_resembles_it_gets_the_usual_fix(text, expected):
    assert expected in show(text)


def test_a_mount_and_a_refused_file_are_told_apart():
    names = {
        "mknod: /dev/nvidia0: Operation not permitted": None,
        "could not open /dev/nvidia0: Operation not permitted": "nvml-unknown-error",
        "could not open /dev/nvidia0: Permission denied": "gpu-device-refused",
        "could not open /dev/nvidia0: No such file or directory": "device-files-missing",
    }
    for text, name in names.items():
        first = explain_text(text).first
        assert (first and first.error.name) == name


@pytest.mark.parametrize("engine", ["nerdctl", "podman"])
def test_another_engine_is_not_asked_about_snaps_docker(engine):
    host = LogHost(signs=frozenset({engine, "container"}), family="ubuntu")
    for error in KNOWN_ERRORS:
        if error.name not in ("container-not-killed", "desktop-on-wsl1"):
            assert "snap list docker" not in host.write(error.adapt(host.signs, {}).fix.anywhere)


def test_debian_is_named_as_this_machines_only_where_it_is():
    libraries = "nvidia-container-cli: initialization error: load library failed: libnvidia-ml.so.1"
    assert "as on this machine" not in show(libraries)
    assert "on Debian, as on this machine" in show(libraries, Distribution("debian", "debian"))
    paste = f'File "/usr/lib/python3/dist-packages/a.py", line 3, in f\n{libraries}'
    for family in ("debian", "fedora"):
        shown = show(paste, Distribution(family, family))
        assert "as on this machine" not in shown
        assert "apt-get" in shown


@pytest.mark.parametrize(
    ("text", "start"),
    [
        (
            "NVRM: The temporary file path specified via the NVreg_TemporaryFilePath\nNVRM: module"
            " parameter does not exist. Defaulting to /tmp.",
            "sudo sed -i",
        ),
        (
            "modprobe: ERROR: command_do() Error running install command '/bin/false' for module"
            " nvidia: retcode 1",
            "sudo sed -i",
        ),
        (
            'expected cgroupsPath to be of format "slice:prefix:name" for systemd cgroups, got',
            "sudo sed -i",
        ),
        (
            "E: Conflicting values set for option Signed-By regarding source"
            " https://nvidia.github.io/libnvidia-container/stable/ubuntu18.04/amd64/ /: /usr/a != ",
            "sudo mv",
        ),
        (
            "Hypervisor detected: KVM\nNVRM: Xid (PCI:0000:41:00): 79, GPU has fallen off the bus.",
            "stop the virtual machine",
        ),
    ],
)
def test_a_fix_begins_with_what_mends_where_the_text_is_sure(text, start):
    found = explain_text(text).first
    assert found.write_fixes(UNKNOWN)[0].startswith(start)


@pytest.mark.parametrize(
    ("text", "start"),
    [
        ("NVRM: No NVIDIA GPU found.", "sudo dmesg"),
        (
            "E: Conflicting values set for option Signed-By regarding source"
            " https://developer.download.nvidia.com/compute/cuda/repos/debian12/x86_64/ /: a != ",
            "grep -rlE",
        ),
        ('cgroupsPath "system.slice:a" is not of format "slice:prefix:name"', "grep -A6"),
    ],
)
def test_a_fix_begins_with_a_look_where_the_text_is_not(text, start):
    found = explain_text(text).first
    assert found.write_fixes(UNKNOWN)[0].startswith(start)
