"""Signs of the driver: its kernel module, its libraries, and what CUDA says of both.

Signs of the card and its module: what the kernel's log and the installer say of them.
"""

from __future__ import annotations

from labkit.host.packages import (
    ENROLL_KEY,
    INSTALL_DRIVER,
    INSTALL_HEADERS,
    INSTALL_OPEN_MODULE,
    Fix,
)
from labkit.known_errors.model import KnownError

REBOOT = Fix("sudo reboot")
OLDER_BUILD = "pip install torch --index-url https://download.pytorch.org/whl/cu126"

DRIVER_ERRORS = (
    KnownError(
        "secure-boot",
        (r"Key was rejected by service", r"nvidia.{0,80}Required key not available"),
        "Secure Boot refuses the NVIDIA module: it is not signed with a key this machine trusts",
        ENROLL_KEY,
        brings=("driver-not-loaded", "no-driver-library", "torch-without-driver"),
    ),
    KnownError(
        "gpu-off-the-bus",
        (
            r"GPU has fallen off the bus",
            r"NVRM: Xid \(.{1,40}\): 79\b",
            r"Unable to determine the device handle for GPU",
            r"GPU is lost\. Reboot the system to recover",
        ),
        "the GPU stopped answering on PCIe: power, heat, a riser, or the card itself",
        Fix("sudo dmesg | grep -i xid   # then power off, reseat the card and start again"),
        brings=("driver-not-loaded", "no-devices", "nvml-unknown-error", "torch-without-driver"),
    ),
    KnownError(
        "driver-library-mismatch",
        (
            r"Driver/library version mismatch",
            r"API mismatch: the client has the version",
            r"nvml error: driver/library version mismatch",
        ),
        "the driver was updated while its old kernel module stayed loaded",
        REBOOT,
        brings=("torch-without-driver", "error-803"),
    ),
    KnownError(
        "driver-not-loaded",
        (
            r"couldn't communicate with the NVIDIA driver",
            r"nvml error: driver not loaded",
            r"Failed to initialize NVML: Driver Not Loaded",
        ),
        "the driver is installed, but its kernel module is not loaded (a new kernel without it?)",
        Fix("sudo modprobe nvidia   # where it refuses, it says why"),
        otherwise="after a kernel update: install the driver anew and reboot",
        brings=("torch-without-driver", "nvidia-uvm", "no-devices"),
    ),
    KnownError(
        "no-devices",
        (r"^No devices were found", r"nvml error: no devices? found"),
        "the driver runs but has no GPU it can use: another driver holds it, or it failed to start",
        Fix("sudo dmesg | grep -iE 'nvrm|nouveau|vfio'   # says who has it, or what failed"),
        "likely",
        brings=("torch-without-driver",),
    ),
    KnownError(
        "torch-without-driver",
        (
            r"Found no NVIDIA driver on your system",
            r"No CUDA GPUs are available",
            r"CUDA driver initialization failed, you might not have a CUDA gpu",
            r"Error 100: no CUDA-capable device is detected",
        ),
        "torch sees no GPU: none was passed to this container, or CUDA_VISIBLE_DEVICES hides it",
        Fix("labkit doctor   # on the host: says where the GPU is lost"),
        "likely",
        otherwise="unset CUDA_VISIBLE_DEVICES",
    ),
    KnownError(
        "wsl-blocked",
        (r"GPU access blocked by the operating system",),
        "WSL2: Windows does not let this distribution at the GPU (old WSL, or the driver for "
        "Linux installed inside it)",
        Fix(
            "wsl.exe --update && wsl.exe --shutdown   # in Windows, with its NVIDIA driver current"
        ),
        "likely",
        otherwise="remove any NVIDIA driver that was installed inside WSL2",
    ),
    KnownError(
        "driver-too-old",
        (
            r"NVIDIA driver on your system is too old \(found version \d+\)",
            r"CUDA driver version is insufficient for CUDA runtime version",
        ),
        "this torch is built for a newer CUDA than the driver can run (CUDA 13 needs driver 580, "
        "CUDA 12 needs 525)",
        Fix(OLDER_BUILD),
        otherwise="install a newer driver",
        brings=("torch-without-driver",),
    ),
    KnownError(
        "error-803",
        (
            r"Error 803: system has unsupported display driver",
            r"unsupported display driver / cuda driver combination",
        ),
        "the driver was updated without a reboot, or a compat libcuda is found before the real one",
        REBOOT,
        "likely",
        otherwise="take the cuda/compat folder out of LD_LIBRARY_PATH",
    ),
    KnownError(
        "error-804",
        (r"forward compatibility was attempted on non supported HW",),
        "a compat libcuda is in front of the driver's own, and this card (a GeForce) cannot use it",
        Fix("unset LD_LIBRARY_PATH   # or take the cuda/compat folder out of it"),
    ),
    KnownError(
        "fabric-manager",
        (
            r"Error 802: system not yet initialized",
            r"system not yet initialized \(error 802\)",
            r"CUDA_ERROR_SYSTEM_NOT_READY",
            r"error \(802\)\s*: system not yet initialized",
        ),
        "GPUs on an NVSwitch need the fabric manager, of exactly the driver's version",
        Fix("sudo systemctl enable --now nvidia-fabricmanager"),
        "likely",
        brings=("torch-without-driver",),
    ),
    KnownError(
        "nvidia-uvm",
        (r"CUDA unknown error - this may be due to an incorrectly set up environment",),
        "the nvidia-uvm module is not loaded, or CUDA_VISIBLE_DEVICES changed after CUDA started",
        Fix("sudo nvidia-modprobe -u -c=0"),
        "likely",
        otherwise="restart the kernel, and set CUDA_VISIBLE_DEVICES before importing torch",
    ),
    KnownError(
        "gpu-busy",
        (r"all CUDA-capable devices are busy or unavailable",),
        "the GPU is in exclusive mode and another process has it, or a MIG device is not made yet",
        Fix("nvidia-smi --query-compute-apps=pid,name --format=csv   # who has it"),
        "likely",
        otherwise="sudo nvidia-smi -c DEFAULT",
    ),
    KnownError(
        "ecc-error",
        (r"uncorrectable ECC error encountered", r"NVRM: Xid \(.{1,40}\): (?:48|94|95)\b"),
        "the GPU's memory has an error that it cannot correct",
        Fix("nvidia-smi -q -d ECC,ROW_REMAPPER   # reset the GPU; if it comes back, replace it"),
    ),
)


HARDWARE_ERRORS = (
    KnownError(
        "needs-open-modules",
        (r"requires use of the NVIDIA open kernel modules",),
        "this card (Blackwell and newer) runs with the open kernel module alone, and the closed "
        "one is installed",
        INSTALL_OPEN_MODULE,
        brings=("gpu-init-failed", "no-devices", "torch-without-driver"),
    ),
    KnownError(
        "gpu-firmware-hung",
        (r"NVRM: Xid \(.{1,40}\): (?:119|120)\b", r"Timeout (?:after \S+ of )?waiting for RPC"),
        "the GPU's own firmware (GSP) stopped answering the driver",
        Fix("sudo nvidia-smi --gpu-reset -i 0   # where programs still hold it: sudo reboot"),
        "likely",
        otherwise="a newer driver, where it comes back",
        brings=("no-devices", "torch-without-driver", "gpu-init-failed"),
    ),
    KnownError(
        "gpu-init-failed",
        (r"RmInitAdapter failed!", r"rm_init_adapter failed"),
        "the driver found the card and could not start it: the wrong module, power, or the card",
        Fix("sudo dmesg | grep -i nvrm   # the line above it says why"),
        "likely",
        brings=("no-devices", "torch-without-driver"),
    ),
    KnownError(
        "gpu-program-fault",
        (r"NVRM: Xid \(.{1,40}\): (?:13|31|43)\b",),
        "a program read or wrote GPU memory that is not its own; the card is all right",
        Fix("CUDA_LAUNCH_BLOCKING=1 python your_program.py   # names the line"),
        "likely",
        brings=("illegal-access",),
    ),
    KnownError(
        "no-module-for-kernel",
        (
            r"modprobe: FATAL: Module nvidia(?:[-_]\w+)? not found in directory",
            r"modprobe: ERROR: could not insert 'nvidia'.{0,40}Exec format error",
        ),
        "no NVIDIA module was built for the running kernel: the kernel was updated since",
        INSTALL_DRIVER,
        otherwise="sudo dkms autoinstall   # where the driver came as source",
        brings=("driver-not-loaded", "no-driver-library", "torch-without-driver"),
    ),
    KnownError(
        "no-kernel-headers",
        (
            r"kernel headers for kernel \S+ cannot be found",
            r"Unable to find the kernel source tree for the currently running kernel",
        ),
        "the running kernel's headers are missing, so the driver's module cannot be built",
        INSTALL_HEADERS,
        brings=("no-module-for-kernel", "driver-not-loaded"),
    ),
    KnownError(
        "no-nvidia-smi",
        (r"nvidia-smi: (?:command )?not found",),
        "the driver's programs are not here: no driver on a host, no GPU passed on in a container",
        Fix("labkit doctor   # on the host: says which of the two it is"),
        "likely",
    ),
)
