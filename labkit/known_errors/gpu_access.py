"""Known errors of containers that do not get the host's GPU."""

from __future__ import annotations

from labkit.host.packages import (
    INSTALL_DRIVER,
    INSTALL_TOOLKIT,
    MAKE_CDI_SPEC,
    RESTART_DOCKER,
    UPDATE_TOOLKIT,
    Fix,
)
from labkit.known_errors.model import KnownError

SNAP_OR_DESKTOP = (
    "docker context use default   # if the desktop-linux context is in use; "
    "snap's docker cannot reach the driver: sudo snap remove docker, then install Docker's own"
)
NO_CGROUPS = (
    "sudo nvidia-ctk config --in-place --set nvidia-container-cli.no-cgroups={} "
    "&& {} restart docker"
)

GPU_ACCESS_ERRORS = (
    KnownError(
        "no-gpu-driver-in-engine",
        (r"could not select device driver \"(?!cdi\")\w*\" with capabilities: \[\[gpu\]\]",),
        "the NVIDIA Container Toolkit is missing, or the engine was not restarted after it was "
        "configured",
        INSTALL_TOOLKIT,
        "likely",
        otherwise=SNAP_OR_DESKTOP,
    ),
    KnownError(
        "unknown-nvidia-runtime",
        (r"unknown or invalid runtime name: nvidia", r"Unknown runtime specified nvidia"),
        "the engine does not know the nvidia runtime",
        Fix(RESTART_DOCKER),
    ),
    KnownError(
        "no-cdi-spec",
        (r"unresolvable CDI devices", r"stat nvidia\.com/gpu=\S+: no such file or directory"),
        "the engine has no CDI specification of the NVIDIA GPUs, or cannot read it",
        Fix(MAKE_CDI_SPEC),
        "likely",
        otherwise="sudo chmod a+r /etc/cdi/nvidia.yaml   # if it exists",
    ),
    KnownError(
        "docker-cdi-off",
        (r"could not select device driver \"cdi\" with capabilities",),
        "docker's CDI is off, which is the default before version 28",
        Fix(
            "sudo nvidia-ctk runtime configure --runtime=docker --cdi.enabled "
            "&& sudo systemctl restart docker"
        ),
        otherwise="nvidia-ctk before 1.14 has no such option: set features.cdi in "
        "/etc/docker/daemon.json",
    ),
    KnownError(
        "no-nvidia-smi-inside",
        (
            r"exec: \\?\"nvidia-smi\\?\": executable file not found",
            r"executable file `nvidia-smi`? not found",
        ),
        "the container was started without a GPU",
        Fix("labkit doctor   # on the host: shows where the GPU is lost"),
        "likely",
        otherwise="podman has no --gpus: use --device nvidia.com/gpu=all",
    ),
    KnownError(
        "driver-files-in-image",
        (r"file creation failed: \S+/libnvidia-ml\.so\.1: file exists",),
        "the image contains driver libraries in the place of the host's",
        Fix("make build   # the lab's image has none; in another image remove libnvidia-*"),
    ),
    KnownError(
        "toolkit-too-old",
        (r"container error: cgroup subsystem devices not found",),
        "this NVIDIA Container Toolkit is too old for cgroup v2",
        UPDATE_TOOLKIT,
        "likely",
    ),
    KnownError(
        "wrong-ldconfig",
        (r"ldcache error: open failed: \S*ldconfig",),
        "the toolkit is configured with a path of ldconfig that does not exist here",
        Fix(
            "sudo nvidia-ctk config --in-place --set nvidia-container-cli.ldconfig=@/sbin/ldconfig"
        ),
    ),
    KnownError(
        "stale-cdi-spec",
        (
            r"failed to stat CDI host device",
            r"CDI.{0,200}lib\S+\.so\.\d{3}\S*: no such file or dir",
        ),
        "the CDI specification names files of a driver that is no longer installed",
        Fix(MAKE_CDI_SPEC),
        "likely",
    ),
    KnownError(
        "no-driver-library",
        (
            r"load library failed: libnvidia-ml\.so\.1",
            r"libnvidia-ml\.so\.1: cannot open shared object file",
            r"NVML Shared Library Not Found",
        ),
        "no NVIDIA driver is installed on the host, or snap's docker cannot see it",
        INSTALL_DRIVER,
        "likely",
        otherwise=SNAP_OR_DESKTOP,
    ),
    KnownError(
        "driver-requirement",
        (r"unsatisfied condition: cuda\s*>=\s*[\d.]+", r"requirement error: unsatisfied condition"),
        "the image requires a newer driver than the host has",
        INSTALL_DRIVER,
        otherwise="NVIDIA_DISABLE_REQUIRE=true in the container's environment skips the check",
    ),
    KnownError(
        "nvml-unknown-error",
        (r"Failed to initialize NVML: Unknown Error", r"nvml error: unknown error"),
        "the container lost its GPU: `systemctl daemon-reload` on the host removed the devices "
        "from its cgroup (or an engine that runs as root has no-cgroups = true)",
        Fix("make down up"),
        "likely",
        otherwise=f"to prevent it, use CDI ({MAKE_CDI_SPEC}), or the cgroupfs driver",
        brings=("torch-without-driver", "nvidia-uvm"),
    ),
    KnownError(
        "nvml-permissions",
        (r"Failed to initialize NVML: Insufficient Permissions", r"nvml error: insufficient perm"),
        "SELinux denies access to the GPU, a rootless engine lacks no-cgroups = true, or MIG is on "
        "and no instance was passed on",
        Fix(
            NO_CGROUPS.format("true", "systemctl --user"),
            fedora="sudo setsebool -P container_use_devices on",
        ),
        "possible",
        otherwise="--security-opt label=disable shows whether SELinux is the cause",
        brings=("torch-without-driver",),
    ),
    KnownError(
        "rootless-cgroups",
        (
            r"bpf_prog_query\(BPF_CGROUP_DEVICE\) failed: operation not permitted",
            r"devices\.allow: permission denied",
        ),
        "a rootless engine may not write device rules, and the toolkit tries to",
        Fix(NO_CGROUPS.format("true", "systemctl --user")),
        otherwise=f"pass the GPU by CDI instead: {MAKE_CDI_SPEC}",
    ),
    KnownError(
        "unknown-device",
        (
            r"device error: .{0,60}unknown device",
            r"invalid device ordinal",
            r"nvidia-container-cli: device error",
        ),
        "no GPU of this host has the requested number or UUID",
        Fix("nvidia-smi -L   # lists numbers and UUIDs"),
    ),
    KnownError(
        "gpu-device-refused",
        (r"Permission denied: '?/dev/nvidia", r"open\(\"?/dev/nvidia\S* .{0,40}EACCES"),
        "this user may not open the GPU's device files",
        Fix("sudo usermod -aG video $USER   # then log out and in again"),
        "likely",
        brings=("torch-without-driver",),
    ),
)
