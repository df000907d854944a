"""Known errors of NVIDIA's driver and the GPU: kernel module, libraries, kernel log, CUDA."""

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
        "the driver is installed, but its kernel module is not loaded (was the kernel updated?)",
        Fix("sudo modprobe nvidia   # if it fails, it says why"),
        otherwise="after a kernel update: reinstall the driver, then reboot",
        brings=("torch-without-driver", "nvidia-uvm", "no-devices"),
    ),
    KnownError(
        "no-devices",
        (r"^No devices were found", r"nvml error: no devices? found"),
        "the driver runs but has no GPU to use: another driver holds it, or it failed to start",
        Fix("sudo dmesg | grep -iE 'nvrm|nouveau|vfio'   # shows its driver, or what failed"),
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
        Fix("labkit doctor   # on the host: shows where the GPU is lost"),
        "likely",
        otherwise="unset CUDA_VISIBLE_DEVICES",
    ),
    KnownError(
        "wsl-blocked",
        (r"GPU access blocked by the operating system",),
        "WSL2: Windows gives this distribution no access to the GPU (an old WSL, or the driver "
        "for Linux is installed inside it)",
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
            r"CUDA_ERROR_UNSUPPORTED_PTX_VERSION",
            r"provided PTX was compiled with an unsupported toolchain",
        ),
        "this program is built for a newer CUDA than the driver can run (CUDA 13 needs driver 580, "
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
        "the driver was updated without a reboot, or a compat libcuda is found before the driver's",
        REBOOT,
        "likely",
        otherwise="take the cuda/compat folder out of LD_LIBRARY_PATH",
    ),
    KnownError(
        "error-804",
        (r"forward compatibility was attempted on non supported HW",),
        "a compat libcuda is found before the driver's, and this card (a GeForce) cannot use it",
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
        "GPUs on an NVSwitch need the fabric manager, in exactly the driver's version",
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
        "the GPU is in exclusive mode and another process has it, or MIG is on without an instance",
        Fix("nvidia-smi --query-compute-apps=pid,name --format=csv   # shows the process"),
        "likely",
        otherwise="sudo nvidia-smi -c DEFAULT",
    ),
    KnownError(
        "ecc-error",
        (r"uncorrectable ECC error encountered", r"NVRM: Xid \(.{1,40}\): (?:48|94|95)\b"),
        "the GPU's memory has an error that it cannot correct",
        Fix("nvidia-smi -q -d ECC,ROW_REMAPPER   # reset the GPU; if it happens again, replace it"),
    ),
    KnownError(
        "needs-open-modules",
        (r"requires use of the NVIDIA open kernel modules",),
        "this card (Blackwell or newer) needs the open kernel module; the closed one is installed",
        INSTALL_OPEN_MODULE,
        brings=("gpu-init-failed", "no-devices", "torch-without-driver"),
    ),
    KnownError(
        "gpu-firmware-hung",
        (r"NVRM: Xid \(.{1,40}\): (?:119|120)\b", r"Timeout (?:after \S+ of )?waiting for RPC"),
        "the GPU's own firmware (GSP) stopped answering the driver",
        Fix("sudo nvidia-smi --gpu-reset -i 0   # if programs still use it: sudo reboot"),
        "likely",
        otherwise="install a newer driver if it happens again",
        brings=("no-devices", "torch-without-driver", "gpu-init-failed"),
    ),
    KnownError(
        "gpu-init-failed",
        (r"RmInitAdapter failed!", r"rm_init_adapter failed"),
        "the driver found the card and could not start it: wrong module, power, or a broken card",
        Fix("sudo dmesg | grep -i nvrm   # the line above it says why"),
        "likely",
        brings=("no-devices", "torch-without-driver"),
    ),
    KnownError(
        "gpu-program-fault",
        (r"NVRM: Xid \(.{1,40}\): (?:13|31|43)\b",),
        "a program accessed GPU memory that is not its own; the card itself works",
        Fix("CUDA_LAUNCH_BLOCKING=1 python your_program.py   # shows the line"),
        "likely",
        brings=("illegal-access",),
    ),
    KnownError(
        "no-module-for-kernel",
        (
            r"modprobe: FATAL: Module nvidia(?:[-_]\w+)? not found in directory",
            r"modprobe: ERROR: could not insert 'nvidia'.{0,40}Exec format error",
        ),
        "no NVIDIA module was built for the running kernel: the kernel was updated",
        INSTALL_DRIVER,
        otherwise="sudo dkms autoinstall   # if the driver was installed as source (DKMS)",
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
        (r"nvidia-smi: (?:command )?not found", r"command not found: nvidia-smi"),
        "no driver is installed (on a host), or no GPU was passed on (in a container)",
        Fix("labkit doctor   # on the host: shows which of the two it is"),
        "likely",
    ),
)
