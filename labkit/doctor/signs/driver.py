"""Signs of the driver: its kernel module, its libraries, and what CUDA says of both."""

from __future__ import annotations

from labkit.doctor.distribution import Fix
from labkit.doctor.signs.sign import Sign

REBOOT = Fix("sudo reboot")
OLDER_BUILD = "pip install torch --index-url https://download.pytorch.org/whl/cu126"

DRIVER_SIGNS = (
    Sign(
        "secure-boot",
        (r"Key was rejected by service", r"nvidia.{0,80}Required key not available"),
        "Secure Boot refuses the NVIDIA module: it is not signed with a key this machine trusts",
        Fix(
            "sudo mokutil --import <the key that signed the module>   # then reboot and enroll it",
            ubuntu="sudo update-secureboot-policy --enroll-key   # then reboot and enroll it",
        ),
        brings=("driver-not-loaded", "no-driver-library", "torch-without-driver"),
    ),
    Sign(
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
    Sign(
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
    Sign(
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
    Sign(
        "no-devices",
        (r"^No devices were found", r"nvml error: no devices? found"),
        "the driver runs but has no GPU it can use: another driver holds it, or it failed to start",
        Fix("sudo dmesg | grep -iE 'nvrm|nouveau|vfio'   # says who has it, or what failed"),
        "likely",
        brings=("torch-without-driver",),
    ),
    Sign(
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
    Sign(
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
    Sign(
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
    Sign(
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
    Sign(
        "error-804",
        (r"forward compatibility was attempted on non supported HW",),
        "a compat libcuda is in front of the driver's own, and this card (a GeForce) cannot use it",
        Fix("unset LD_LIBRARY_PATH   # or take the cuda/compat folder out of it"),
    ),
    Sign(
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
    Sign(
        "nvidia-uvm",
        (r"CUDA unknown error - this may be due to an incorrectly set up environment",),
        "the nvidia-uvm module is not loaded, or CUDA_VISIBLE_DEVICES changed after CUDA started",
        Fix("sudo nvidia-modprobe -u -c=0"),
        "likely",
        otherwise="restart the kernel, and set CUDA_VISIBLE_DEVICES before importing torch",
    ),
    Sign(
        "gpu-busy",
        (r"all CUDA-capable devices are busy or unavailable",),
        "the GPU is in exclusive mode and another process has it, or a MIG device is not made yet",
        Fix("nvidia-smi --query-compute-apps=pid,name --format=csv   # who has it"),
        "likely",
        otherwise="sudo nvidia-smi -c DEFAULT",
    ),
    Sign(
        "ecc-error",
        (r"uncorrectable ECC error encountered", r"NVRM: Xid \(.{1,40}\): (?:48|94|95)\b"),
        "the GPU's memory has an error that it cannot correct",
        Fix("nvidia-smi -q -d ECC,ROW_REMAPPER   # reset the GPU; if it comes back, replace it"),
    ),
)
