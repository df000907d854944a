"""The commands that install or configure software, for each distribution.

A distribution without such a command gets the fix in words. No command here restarts the machine:
if a restart is needed, a comment says so.
"""

from __future__ import annotations

from dataclasses import dataclass

from labkit.host.distribution import Distribution

# A family without an own entry uses its parent's.
PARENTS = {"ubuntu": "debian", "rhel": "fedora"}
INSTALL_COMMANDS = {
    "debian": "sudo apt-get install",
    "ubuntu": "sudo apt-get install",
    "fedora": "sudo dnf install",
    "rhel": "sudo dnf install",
    "suse": "sudo zypper install",
    "arch": "sudo pacman -S",
    "alpine": "sudo apk add",
}


@dataclass(frozen=True)
class Fix:
    """A command for each family of distributions; ``anywhere`` is for every other one."""

    anywhere: str
    debian: str | None = None
    ubuntu: str | None = None
    fedora: str | None = None
    rhel: str | None = None
    suse: str | None = None
    arch: str | None = None
    alpine: str | None = None

    def on(self, distribution: Distribution) -> str:
        """The command for this distribution: its family's, its parent family's, or the common one.

        >>> Fix("see the manual", debian="apt-get install x").on(Distribution(family="ubuntu"))
        'apt-get install x'
        """
        family = distribution.family or ""
        commands = self.by_family()
        return commands.get(family) or commands.get(PARENTS.get(family, "")) or self.anywhere

    def by_family(self) -> dict[str, str]:
        """Each family's own command, by the family's name, without the common one."""
        return {name: text for name, text in vars(self).items() if name != "anywhere" and text}


def install(anywhere: str, *, after: str = "", **names: str) -> Fix:
    """The fix that installs packages, by the names that each family has for them.

    ``after`` follows every command, such as " && systemctl restart docker" or a comment.

    >>> install("install venv", debian="python3-venv").on(Distribution(family="debian"))
    'sudo apt-get install python3-venv'
    """
    commands = {
        family: f"{INSTALL_COMMANDS[family]} {packages}{after}"
        for family, packages in names.items()
    }
    return Fix(anywhere, **commands)


THEN_REBOOT = "   # then reboot"

# The container engine.
START_DOCKER = Fix(
    "sudo systemctl enable --now docker",
    alpine="sudo rc-update add docker && sudo service docker start",
)
INSTALL_COMPOSE = install(
    "install Compose 2 (docs.docker.com/compose/install)",
    debian="docker-compose-plugin",
    ubuntu="docker-compose-v2",
    fedora="docker-compose",
    rhel="docker-compose-plugin",
    suse="docker-compose",
    arch="docker-compose",
    alpine="docker-cli-compose",
)
INSTALL_PODMAN_COMPOSE = install(
    "install podman-compose by your distribution's package",
    debian="podman-compose",
    fedora="podman-compose",
    suse="podman-compose",
    arch="podman-compose",
    alpine="podman-compose",
)
INSTALL_BUILDX = install(
    "install buildx (docs.docker.com/build/install-buildx)",
    debian="docker-buildx",
    fedora="docker-buildx-plugin",
    suse="docker-buildx",
    arch="docker-buildx",
)
LEAVE_SNAP = Fix(
    "sudo snap remove docker   # then install docker: docs.docker.com/engine/install",
    debian="sudo snap remove docker && sudo apt-get install docker.io docker-compose",
    ubuntu="sudo snap remove docker && sudo apt-get install docker.io docker-compose-v2",
    fedora="sudo snap remove docker && sudo dnf install moby-engine docker-compose",
    rhel="sudo snap remove docker   # then install docker: docs.docker.com/engine/install",
)

# The NVIDIA Container Toolkit.
RESTART_DOCKER = (
    "sudo nvidia-ctk runtime configure --runtime=docker && sudo systemctl restart docker"
)
MAKE_CDI_SPEC = "sudo nvidia-ctk cdi generate --output=/etc/cdi/nvidia.yaml"
INSTALL_TOOLKIT = install(
    f"install the NVIDIA Container Toolkit, then: {RESTART_DOCKER}",
    after=f" && {RESTART_DOCKER}",
    debian="nvidia-container-toolkit",
    fedora="nvidia-container-toolkit",
    suse="nvidia-container-toolkit",
    arch="nvidia-container-toolkit",
)
UPDATE_TOOLKIT = Fix(
    "update the NVIDIA Container Toolkit to 1.17.8 or newer",
    debian="sudo apt-get update && sudo apt-get install --only-upgrade nvidia-container-toolkit",
    fedora="sudo dnf upgrade nvidia-container-toolkit",
    suse="sudo zypper update nvidia-container-toolkit",
    arch="sudo pacman -Syu nvidia-container-toolkit",
)

# NVIDIA's driver.
INSTALL_DRIVER = Fix(
    "install NVIDIA's driver 580 or newer for this system, then reboot",
    # Debian 12 has 535 and 13 has 550.
    debian="sudo apt-get install nvidia-driver   # 580 or newer: from NVIDIA; then reboot",
    ubuntu=f"sudo ubuntu-drivers install{THEN_REBOOT}",
    fedora="sudo dnf install akmod-nvidia   # from RPM Fusion; then reboot",
    rhel=f"sudo dnf module install nvidia-driver:open-dkms{THEN_REBOOT}",
    suse=f"sudo zypper install nvidia-open-driver-G06-signed-kmp-meta{THEN_REBOOT}",
    arch=f"sudo pacman -S nvidia-open{THEN_REBOOT}",
)
INSTALL_OPEN_MODULE = Fix(
    "install the open variant of NVIDIA's driver 570 or newer, then reboot",
    debian=f"sudo apt-get install nvidia-open-kernel-dkms{THEN_REBOOT}",
    ubuntu=f"sudo apt-get install nvidia-driver-580-open{THEN_REBOOT}",
    fedora="echo '%_with_kmod_nvidia_open 1' | sudo tee /etc/rpm/macros.nvidia-kmod "
    f"&& sudo akmods --force --rebuild{THEN_REBOOT}",
    rhel=f"sudo dnf module switch-to nvidia-driver:open-dkms{THEN_REBOOT}",
    suse=f"sudo zypper install nvidia-open-driver-G06-signed-kmp-meta{THEN_REBOOT}",
    arch=f"sudo pacman -S nvidia-open{THEN_REBOOT}",
)
INSTALL_HEADERS = install(
    "install the headers of the running kernel, then reinstall the driver",
    debian='linux-headers-"$(uname -r)"',
    fedora='kernel-devel-"$(uname -r)"',
    suse="kernel-default-devel",
    arch="linux-headers",
)
_BLACKLIST = "echo blacklist nouveau | sudo tee /etc/modprobe.d/no-nouveau.conf"
DROP_NOUVEAU = Fix(
    f"{_BLACKLIST}   # then rebuild the initramfs and reboot",
    debian=f"{_BLACKLIST} && sudo update-initramfs -u{THEN_REBOOT}",
    fedora=f"{_BLACKLIST} && sudo dracut --force{THEN_REBOOT}",
    suse=f"{_BLACKLIST} && sudo dracut --force{THEN_REBOOT}",
    arch=f"{_BLACKLIST} && sudo mkinitcpio -P{THEN_REBOOT}",
)
ENROLL_KEY = Fix(
    "sudo mokutil --import <the key that signed the module>   # then reboot and enroll it",
    debian="sudo mokutil --import /var/lib/dkms/mok.pub   # then reboot and enroll it",
    ubuntu="sudo update-secureboot-policy --enroll-key   # then reboot and enroll it",
    rhel="sudo mokutil --import /var/lib/dkms/mok.pub   # then reboot and enroll it",
    fedora="sudo kmodgenca -a; sudo mokutil --import /etc/pki/akmods/certs/public_key.der   "
    "# then reboot and enroll it",
)
ADD_NVIDIA_SOURCE = Fix(
    "add NVIDIA's own source: docs.nvidia.com/datacenter/cloud-native/container-toolkit",
    debian="sudo sed -i '/^deb /s/ main.*/ main contrib non-free/;"
    "/^Components:/s/main.*/main contrib non-free/' /etc/apt/sources.list "
    "/etc/apt/sources.list.d/debian.sources; sudo apt-get update   "
    "# the driver; for the toolkit: nvidia.github.io/libnvidia-container",
    ubuntu="sudo add-apt-repository restricted && sudo apt-get update   "
    "# the driver; for the toolkit: nvidia.github.io/libnvidia-container",
)

# Python and compilers.
INSTALL_VENV = install(
    "python3 -m pip install virtualenv",
    debian="python3-venv",
    fedora="python3",
    suse="python3",
    arch="python",
)
INSTALL_COMPILER = install(
    "install g++ and Python's headers",
    debian="g++ python3-dev",
    fedora="gcc-c++ python3-devel",
    suse="gcc-c++ python3-devel",
    arch="gcc",
)
INSTALL_LIBGL = install(
    "install libGL",
    debian="libgl1",
    fedora="mesa-libGL",
    suse="Mesa-libGL1",
    arch="libglvnd",
)
