"""Which distribution this is, and a command that differs between distributions."""

from __future__ import annotations

import shlex
from dataclasses import dataclass
from pathlib import Path

# The package tool's family for the names that /etc/os-release gives in ID and ID_LIKE.
FAMILIES = {
    "debian": "debian",
    "ubuntu": "ubuntu",
    "fedora": "fedora",
    "rhel": "rhel",
    "centos": "rhel",
    "amzn": "rhel",
    "suse": "suse",
    "opensuse": "suse",
    "sles": "suse",
    "arch": "arch",
    "alpine": "alpine",
}


@dataclass(frozen=True)
class Distribution:
    """A distribution by its own name ("Debian GNU/Linux 12") and family; None is unknown."""

    name: str | None = None
    family: str | None = None


@dataclass(frozen=True)
class Fix:
    """A command that mends something; ``anywhere`` serves where a family has none of its own."""

    anywhere: str
    debian: str | None = None
    ubuntu: str | None = None
    fedora: str | None = None
    rhel: str | None = None
    suse: str | None = None
    arch: str | None = None
    alpine: str | None = None

    def on(self, distribution: Distribution) -> str:
        """The command for this distribution: its family's, its parent's, or the common one."""
        family = distribution.family
        parent = {"ubuntu": "debian", "rhel": "fedora"}.get(family or "")
        for name in (family, parent):
            command = getattr(self, name) if name else None
            if command:
                return str(command)
        return self.anywhere

    def by_family(self) -> dict[str, str]:
        """Every family's own command, by the family's name, without the common one."""
        return {name: text for name, text in vars(self).items() if name != "anywhere" and text}


UNKNOWN = Distribution()


def read_distribution(root: Path = Path("/")) -> Distribution:
    """The distribution of the system below ``root``, by its /etc/os-release."""
    try:
        return parse_os_release((root / "etc/os-release").read_text("utf-8", errors="replace"))
    except OSError:
        return UNKNOWN


def parse_os_release(text: str | None) -> Distribution:
    """The distribution that /etc/os-release tells of; all unknown where there is no such file.

    >>> parse_os_release('ID=linuxmint\\nID_LIKE="ubuntu debian"\\nPRETTY_NAME="Mint 22"')
    Distribution(name='Mint 22', family='ubuntu')
    """
    fields = {}
    for line in (text or "").splitlines():
        key, separator, value = line.partition("=")
        if separator:
            fields[key.strip()] = _unquote(value)
    names = [fields.get("ID", ""), *fields.get("ID_LIKE", "").split()]
    known = [
        FAMILIES[name.partition("-")[0]] for name in names if name.partition("-")[0] in FAMILIES
    ]
    return Distribution(fields.get("PRETTY_NAME") or None, known[0] if known else None)


def _unquote(value: str) -> str:
    try:
        return " ".join(shlex.split(value))
    except ValueError:  # an unbalanced quote: take it as it stands
        return value.strip().strip("\"'")


def packages(debian: str, fedora: str, suse: str, arch: str, anywhere: str) -> Fix:
    """The fix that installs a package under the name each distribution has for it."""
    return Fix(
        anywhere,
        debian=f"sudo apt-get install {debian}",
        fedora=f"sudo dnf install {fedora}",
        suse=f"sudo zypper install {suse}",
        arch=f"sudo pacman -S {arch}",
    )


# Commands that signs and checks share.
RESTART_DOCKER = (
    "sudo nvidia-ctk runtime configure --runtime=docker && sudo systemctl restart docker"
)
MAKE_CDI_SPEC = "sudo nvidia-ctk cdi generate --output=/etc/cdi/nvidia.yaml"
INSTALL_TOOLKIT = packages(
    f"nvidia-container-toolkit && {RESTART_DOCKER}",
    f"nvidia-container-toolkit && {RESTART_DOCKER}",
    f"nvidia-container-toolkit && {RESTART_DOCKER}",
    f"nvidia-container-toolkit && {RESTART_DOCKER}",
    f"install the NVIDIA Container Toolkit, then: {RESTART_DOCKER}",
)
UPDATE_TOOLKIT = Fix(
    "update the NVIDIA Container Toolkit to 1.17.8 or newer",
    debian="sudo apt-get update && sudo apt-get install --only-upgrade nvidia-container-toolkit",
    fedora="sudo dnf upgrade nvidia-container-toolkit",
    suse="sudo zypper update nvidia-container-toolkit",
    arch="sudo pacman -Syu nvidia-container-toolkit",
)
INSTALL_DRIVER = Fix(
    "install NVIDIA's driver 580 or newer for this system, then: sudo reboot",
    # Debian 12 has 535 and 13 has 550.
    debian="sudo apt-get install nvidia-driver && sudo reboot   # 580 or newer: from NVIDIA",
    ubuntu="sudo ubuntu-drivers install && sudo reboot",
    fedora="sudo dnf install akmod-nvidia && sudo reboot   # from RPM Fusion",
    rhel="sudo dnf module install nvidia-driver:open-dkms && sudo reboot",
    suse="sudo zypper install nvidia-open-driver-G06-signed-kmp-meta && sudo reboot",
    arch="sudo pacman -S nvidia-open && sudo reboot",
)
INSTALL_COMPOSE = Fix(
    "install Compose 2 (docs.docker.com/compose/install)",
    debian="sudo apt-get install docker-compose-plugin",
    ubuntu="sudo apt-get install docker-compose-v2",
    fedora="sudo dnf install docker-compose",
    rhel="sudo dnf install docker-compose-plugin",
    suse="sudo zypper install docker-compose",
    arch="sudo pacman -S docker-compose",
    alpine="sudo apk add docker-cli-compose",
)
INSTALL_COMPILER = packages(
    "g++ python3-dev",
    "gcc-c++ python3-devel",
    "gcc-c++ python3-devel",
    "gcc",
    "install g++ and Python's headers",
)
