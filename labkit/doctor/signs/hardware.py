"""Signs of the card and its module: what the kernel's log and the installer say of them."""

from __future__ import annotations

from labkit.doctor.distribution import INSTALL_DRIVER, Fix, packages
from labkit.doctor.signs.sign import Sign

INSTALL_OPEN_MODULE = Fix(
    "install the open variant of NVIDIA's driver 570 or newer, then: sudo reboot",
    debian="sudo apt-get install nvidia-open-kernel-dkms && sudo reboot",
    ubuntu="sudo apt-get install nvidia-driver-580-open && sudo reboot",
    fedora="echo '%_with_kmod_nvidia_open 1' | sudo tee /etc/rpm/macros.nvidia-kmod "
    "&& sudo akmods --force --rebuild && sudo reboot",
    rhel="sudo dnf module switch-to nvidia-driver:open-dkms && sudo reboot",
    suse="sudo zypper install nvidia-open-driver-G06-signed-kmp-meta && sudo reboot",
    arch="sudo pacman -S nvidia-open && sudo reboot",
)
INSTALL_HEADERS = packages(
    'linux-headers-"$(uname -r)"',
    'kernel-devel-"$(uname -r)"',
    "kernel-default-devel",
    "linux-headers",
    "install the headers of the running kernel, then the driver anew",
)

HARDWARE_SIGNS = (
    Sign(
        "needs-open-modules",
        (r"requires use of the NVIDIA open kernel modules",),
        "this card (Blackwell and newer) runs with the open kernel module alone, and the closed "
        "one is installed",
        INSTALL_OPEN_MODULE,
        brings=("gpu-init-failed", "no-devices", "torch-without-driver"),
    ),
    Sign(
        "gpu-firmware-hung",
        (r"NVRM: Xid \(.{1,40}\): (?:119|120)\b", r"Timeout (?:after \S+ of )?waiting for RPC"),
        "the GPU's own firmware (GSP) stopped answering the driver",
        Fix("sudo nvidia-smi --gpu-reset -i 0   # where programs still hold it: sudo reboot"),
        "likely",
        otherwise="a newer driver, where it comes back",
        brings=("no-devices", "torch-without-driver", "gpu-init-failed"),
    ),
    Sign(
        "gpu-init-failed",
        (r"RmInitAdapter failed!", r"rm_init_adapter failed"),
        "the driver found the card and could not start it: the wrong module, power, or the card",
        Fix("sudo dmesg | grep -i nvrm   # the line above it says why"),
        "likely",
        brings=("no-devices", "torch-without-driver"),
    ),
    Sign(
        "gpu-program-fault",
        (r"NVRM: Xid \(.{1,40}\): (?:13|31|43)\b",),
        "a program read or wrote GPU memory that is not its own; the card is all right",
        Fix("CUDA_LAUNCH_BLOCKING=1 python your_program.py   # names the line"),
        "likely",
        brings=("illegal-access",),
    ),
    Sign(
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
    Sign(
        "no-kernel-headers",
        (
            r"kernel headers for kernel \S+ cannot be found",
            r"Unable to find the kernel source tree for the currently running kernel",
        ),
        "the running kernel's headers are missing, so the driver's module cannot be built",
        INSTALL_HEADERS,
        brings=("no-module-for-kernel", "driver-not-loaded"),
    ),
    Sign(
        "no-nvidia-smi",
        (r"nvidia-smi: (?:command )?not found",),
        "the driver's programs are not here: no driver on a host, no GPU passed on in a container",
        Fix("labkit doctor   # on the host: says which of the two it is"),
        "likely",
    ),
)
