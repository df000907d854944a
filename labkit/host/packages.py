"""The commands that install or configure software, for each distribution, and NVIDIA's drivers.

A distribution without such a command gets the fix in words. No command here restarts the machine:
if a restart is needed, a comment says so.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Literal

from labkit.host.distribution import Distribution

Capability = tuple[int, int]

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
    """A command for each family of distributions; ``anywhere`` is for every other one.

    Windows, macOS and NixOS count as families, too.
    """

    anywhere: str
    debian: str | None = None
    ubuntu: str | None = None
    fedora: str | None = None
    rhel: str | None = None
    suse: str | None = None
    arch: str | None = None
    alpine: str | None = None
    nixos: str | None = None
    windows: str | None = None
    mac: str | None = None

    def on(
        self,
        distribution: Distribution,
        capability: Capability | None = None,
        *,
        wsl: bool = False,
    ) -> str:
        """The command for this distribution: its family's, its parent family's, or the common one.

        A fix that installs a driver also depends on the GPU's ``capability`` and on WSL2.

        >>> Fix("see the manual", debian="apt-get install x").on(Distribution(family="ubuntu"))
        'apt-get install x'
        """
        family = distribution.family or ""
        commands = self.by_family()
        return commands.get(family) or commands.get(PARENTS.get(family, "")) or self.anywhere

    def by_family(self) -> dict[str, str]:
        """Each family's own command, by the family's name, without the common one."""
        return {name: text for name, text in vars(self).items() if name != "anywhere" and text}


COMMENT = "   # "
_TITLES = {"debian": "Debian", "ubuntu": "Ubuntu", "fedora": "Fedora", "arch": "Arch"}


def install(anywhere: str, *, after: str = "", **names: str) -> Fix:
    """The fix that installs packages, by the names that each family has for them.

    ``after`` follows every command, such as " && systemctl restart docker" or a comment. NixOS,
    Windows and macOS have a whole command instead of names. Where nothing says which system it is,
    the command of each is in the comment.

    >>> install("install venv", debian="python3-venv").on(Distribution(family="debian"))
    'sudo apt-get install python3-venv'
    """
    commands = {
        family: f"{INSTALL_COMMANDS[family]} {packages}{after}"
        if family in INSTALL_COMMANDS
        else packages
        for family, packages in names.items()
    }
    if anywhere.startswith("install ") and COMMENT not in anywhere and not after:
        anywhere += COMMENT + "; ".join(
            f"{_TITLES[name]}: {commands[name].partition(COMMENT)[0]}"
            for name in _TITLES
            if name in names
        )
    return Fix(anywhere, **commands)


THEN_REBOOT = "   # then reboot"

# The container engine.
_REBUILD = "   # in configuration.nix; then: sudo nixos-rebuild switch"
_START_DESKTOP = "start Docker Desktop   # wait until it says that the engine is running"
START_DOCKER = Fix(
    "sudo systemctl enable --now docker",
    alpine="sudo rc-update add docker && sudo service docker start",
    nixos=f"virtualisation.docker.enable = true;{_REBUILD}",
    windows=_START_DESKTOP,
    mac=_START_DESKTOP,
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
TOOLKIT = "nvidia-container-toolkit"
TOOLKIT_GUIDE = "docs.nvidia.com/datacenter/cloud-native/container-toolkit"
_TOOLKIT_SITE = "https://nvidia.github.io/libnvidia-container"
_TOOLKIT_KEY = f"/usr/share/keyrings/{TOOLKIT}-keyring.gpg"
_TOOLKIT_REPO = f"{_TOOLKIT_SITE}/stable/rpm/{TOOLKIT}.repo"
# Only Arch has the toolkit among its own packages: elsewhere NVIDIA's source is added first.
ADD_TOOLKIT_SOURCE = Fix(
    f"add NVIDIA's package source of the toolkit ({TOOLKIT_GUIDE})",
    debian=f"curl -fsSL {_TOOLKIT_SITE}/gpgkey | sudo gpg --dearmor --yes -o {_TOOLKIT_KEY}"
    f" && curl -fsSL {_TOOLKIT_SITE}/stable/deb/{TOOLKIT}.list"
    f" | sed 's#deb https://#deb [signed-by={_TOOLKIT_KEY}] https://#'"
    f" | sudo tee /etc/apt/sources.list.d/{TOOLKIT}.list && sudo apt-get update",
    fedora=f"curl -fsSL {_TOOLKIT_REPO} | sudo tee /etc/yum.repos.d/{TOOLKIT}.repo",
    suse=f"sudo zypper addrepo {_TOOLKIT_REPO}",
)
TOOLKIT_SOURCE_APT = ADD_TOOLKIT_SOURCE.debian
TOOLKIT_SOURCE_RPM, TOOLKIT_SOURCE_ZYPPER = ADD_TOOLKIT_SOURCE.fedora, ADD_TOOLKIT_SOURCE.suse
_INSTALL_TOOLKIT = {
    family: f"{source} && {INSTALL_COMMANDS[family]} {TOOLKIT}"
    for family, source in ADD_TOOLKIT_SOURCE.by_family().items()
} | {"arch": f"{INSTALL_COMMANDS['arch']} {TOOLKIT}"}
# A rootless Docker has settings of its own.
CONFIGURE_ROOTLESS = (
    "nvidia-ctk runtime configure --runtime=docker --config=$HOME/.config/docker/daemon.json "
    "&& systemctl --user restart docker"
)
_ROOTLESS_CGROUPS = "sudo nvidia-ctk config --in-place --set nvidia-container-cli.no-cgroups=true"
_NO_MUSL_TOOLKIT = (
    "run it on a host with glibc, such as Debian or Ubuntu   # NVIDIA has neither a driver"
    " nor its toolkit for Alpine's C library; an image of Alpine is fine"
)
_TOOLKIT_IN_NIXOS = (
    f"hardware.nvidia-container-toolkit.enable = true;{_REBUILD}; docker run --device"
    " nvidia.com/gpu=all ..."
)


def _install_toolkit(then: str, **own: str) -> Fix:
    """The fix that installs the toolkit and then runs a command; ``own`` are whole commands."""
    return Fix(
        f"install the NVIDIA Container Toolkit ({TOOLKIT}) from NVIDIA's package source"
        f" ({TOOLKIT_GUIDE}), then: {then}",
        **{family: f"{command} && {then}" for family, command in _INSTALL_TOOLKIT.items()},
        alpine=_NO_MUSL_TOOLKIT,
        nixos=_TOOLKIT_IN_NIXOS,
        **own,
    )


INSTALL_TOOLKIT = _install_toolkit(
    RESTART_DOCKER,
    windows="update Docker Desktop, with its WSL 2 engine, and NVIDIA's driver in Windows   # the"
    " toolkit is part of Docker Desktop: docker run --gpus all ...",
    mac="run it on a machine with an NVIDIA GPU   # containers on macOS have no GPU",
)
# Podman needs no configuration: it finds the specification.
INSTALL_TOOLKIT_FOR_PODMAN = _install_toolkit(MAKE_CDI_SPEC)
INSTALL_TOOLKIT_FOR_ROOTLESS = _install_toolkit(f"{_ROOTLESS_CGROUPS} && {CONFIGURE_ROOTLESS}")


def choose_toolkit_fix(engine: str, *, rootless: bool = False) -> Fix:
    """The fix that installs the toolkit for an engine, docker or podman."""
    if engine == "podman":
        return INSTALL_TOOLKIT_FOR_PODMAN
    return INSTALL_TOOLKIT_FOR_ROOTLESS if rootless else INSTALL_TOOLKIT


UPDATE_TOOLKIT = Fix(
    "update the NVIDIA Container Toolkit to 1.17.8 or newer",
    debian=f"sudo apt-get update && sudo apt-get install --only-upgrade {TOOLKIT}",
    fedora=f"sudo dnf upgrade {TOOLKIT}",
    suse=f"sudo zypper update {TOOLKIT}",
    arch=f"sudo pacman -Syu {TOOLKIT}",
)

# NVIDIA's driver: which branch, variant and package serves a generation of GPUs. Facts from
# NVIDIA's driver installation guide and the distributions' package indexes.
# The last branches for GPUs before compute capability 3.0, 5.0 and 7.5.
LAST_FERMI, LAST_KEPLER, LAST_VOLTA = 390, 470, 580
OPEN_FROM: Capability = (7, 5)  # Turing: the open modules need its system processor
OPEN_ONLY_FROM: Capability = (10, 0)  # Blackwell: the closed modules do not know it
# NVIDIA's first branch for each CUDA, the newest first.
FIRST_BRANCHES = {
    (13, 1): 590,
    (13, 0): 580,
    (12, 9): 575,
    (12, 8): 570,
    (12, 6): 560,
    (12, 5): 555,
    (12, 4): 550,
    (12, 3): 545,
    (12, 2): 535,
    (12, 1): 530,
    (12, 0): 525,
    (11, 8): 520,
    (11, 7): 515,
}
# Within a major version, the builds of torch for a newer CUDA run on the first branch too.
CUDA_12, CUDA_13 = FIRST_BRANCHES[12, 0], FIRST_BRANCHES[13, 0]
GUIDE = "docs.nvidia.com/datacenter/tesla/driver-installation-guide"
CPU_LAB = "make up FLAVOR=cpu"
# What gives an LXC container its host's GPU.
GIVE_TO_LXC = (
    "pct set <id> --dev0 /dev/nvidia0 --dev1 /dev/nvidiactl --dev2 /dev/nvidia-uvm"
    "   # on the Proxmox host, as root; Incus: incus config device add <name> gpu gpu"
)
# A virtual GPU takes the driver that belongs to its host's; the ordinary one does not know it.
GUEST_DRIVER = (
    "install the guest driver (NVIDIA-Linux-x86_64-...-grid.run) of the host's vGPU release, then"
    " reboot   # from the provider or NVIDIA's licensing portal: the ordinary driver does not serve"
    " a virtual GPU"
)
# WSL2 uses Windows' driver; a Linux driver would hide it.
UPDATE_WINDOWS_DRIVER = "wsl.exe --shutdown   # after updating NVIDIA's driver in Windows"

Variant = Literal["open", "closed"]


@dataclass(frozen=True)
class DriverAdvice:
    """The driver for a GPU on a distribution, and the command that installs it.

    ``branch`` is the one to install, or the newest that supports the GPU; None if any from 580 on
    does. ``package`` is None if the distribution has none, and ``variant`` if both are right.
    """

    command: str
    branch: int | None = None
    package: str | None = None
    variant: Variant | None = None


def find_last_branch(capability: Capability) -> int | None:
    """The last branch of NVIDIA's driver that supports the GPU; None while new ones do.

    >>> find_last_branch((6, 1)), find_last_branch((8, 9))
    (580, None)
    """
    if capability < (5, 0):
        return LAST_FERMI if capability < (3, 0) else LAST_KEPLER
    return LAST_VOLTA if capability < OPEN_FROM else None


def is_dropped(capability: Capability, driver_major: int) -> bool:
    """True if a driver of this branch is too new for the GPU and ignores it."""
    last = find_last_branch(capability)
    return last is not None and driver_major > last


def find_variant(capability: Capability) -> Variant | None:
    """The variant of the kernel modules that the GPU needs; None if both work."""
    if capability < OPEN_FROM:
        return "closed"
    return "open" if capability >= OPEN_ONLY_FROM else None


_IN_NIXOS = (
    f'services.xserver.videoDrivers = [ "nvidia" ]; hardware.graphics.enable = true;{_REBUILD}'
)
# The package and the commands by family: for GPUs before Turing, and from Turing on. A kernel
# module without CUDA's libraries is not enough: RPM Fusion has them in packages of their own, and
# SUSE's kmp-meta packages bring them. `module switch-to` also enables a stream that is new here.
_BEFORE_TURING: dict[str, tuple[str, str]] = {
    "debian": (
        "nvidia-driver",
        "sudo apt-get install nvidia-driver nvidia-smi"
        f"   # from Debian's non-free; from NVIDIA's source at most {LAST_VOLTA}",
    ),
    "ubuntu": ("nvidia-driver-580", "sudo apt-get install nvidia-driver-580"),
    "fedora": (
        "akmod-nvidia-580xx",
        "sudo dnf install akmod-nvidia-580xx xorg-x11-drv-nvidia-580xx-cuda --allowerasing"
        "   # from RPM Fusion",
    ),
    "rhel": (
        "nvidia-driver:580-dkms",
        "sudo dnf module switch-to nvidia-driver:580-dkms --allowerasing && "
        "sudo dnf install cuda-drivers   # from NVIDIA's source",
    ),
    "suse": (
        "nvidia-driver-G06-kmp-meta",
        "sudo zypper install nvidia-driver-G06-kmp-meta   # from NVIDIA's source",
    ),
    "arch": ("nvidia-580xx-dkms", "build nvidia-580xx-dkms and nvidia-580xx-utils from the AUR"),
    "nixos": (
        "legacy_580",
        "hardware.nvidia.open = false; hardware.nvidia.package = "
        f"config.boot.kernelPackages.nvidiaPackages.legacy_580; {_IN_NIXOS}",
    ),
}
_FROM_TURING: dict[str, tuple[str, str]] = {
    "debian": ("nvidia-driver", "sudo apt-get install nvidia-driver nvidia-smi   # from non-free"),
    "ubuntu": ("nvidia-driver-580-open", "sudo apt-get install nvidia-driver-580-open"),
    "fedora": (
        "akmod-nvidia",
        "sudo dnf install akmod-nvidia xorg-x11-drv-nvidia-cuda --allowerasing   # from RPM Fusion",
    ),
    "rhel": (
        "nvidia-driver:open-dkms",
        "sudo dnf module switch-to nvidia-driver:open-dkms --allowerasing && "
        "sudo dnf install nvidia-open   # from NVIDIA's source",
    ),
    "suse": (
        "nvidia-open-driver-G07-signed-kmp-meta",
        "sudo zypper install nvidia-open-driver-G07-signed-kmp-meta   # from NVIDIA's source",
    ),
    "arch": (
        "nvidia-open",
        "sudo pacman -Syu nvidia-open   # other kernels than linux: nvidia-open-dkms, headers",
    ),
    "nixos": ("nvidia", f"hardware.nvidia.open = true; {_IN_NIXOS}"),
}
# nvidia-open is built for the kernel linux alone.
_ARCH_DKMS = "nvidia-open-dkms"
# RHEL 10 has no modules. Its cuda-drivers is for the newest branch alone, so the lock would clash.
_RHEL_10_BEFORE_TURING = (
    "kmod-nvidia-latest-dkms",
    "sudo dnf install python3-dnf-plugin-versionlock && "
    f"sudo dnf versionlock add '*nvidia*{LAST_VOLTA}*' && "
    "sudo dnf install kmod-nvidia-latest-dkms nvidia-driver nvidia-driver-cuda"
    "   # from NVIDIA's source; remove a newer driver first",
)
_RHEL_10_FROM_TURING = (
    "nvidia-open",
    "sudo dnf install nvidia-open --allowerasing   # from NVIDIA's source",
)
_MANJARO = "sudo mhwd -a pci nonfree 0300"  # chooses the driver by the GPU's PCI id
_ON_IMAGES = "Bazzite, Bluefin, Aurora: rebase to the image with -nvidia instead"
# The driver in Debian's own releases, by their numbers: too old for Blackwell and for CUDA 13.
_IN_DEBIAN = {11: 470, 12: 535, 13: 550}
# RHEL and its rebuilds, and Amazon Linux 2023, have modules; RHEL 10 has none.
_MODULAR = (8, 9, 2023)


def choose_target(capabilities: Iterable[Capability]) -> Capability | None:
    """The GPU of a host that a new driver is chosen for; None without one.

    It is the oldest of those that one driver serves: Kepler counts only where there is no newer
    GPU, and what needs the closed modules only where no GPU needs the open ones.

    >>> choose_target([(3, 5), (8, 9)]), choose_target([(6, 1), (8, 6)])
    ((8, 9), (6, 1))
    >>> choose_target([(6, 1), (12, 0)])
    (12, 0)
    """
    found = list(capabilities)
    known = [each for each in found if each >= (5, 0)] or found
    if any(find_variant(each) == "open" for each in known):
        known = [each for each in known if each >= OPEN_FROM]
    return min(known, default=None)


def advise_driver(
    distribution: Distribution,
    capability: Capability | None = None,
    *,
    wsl: bool = False,
    least: int = CUDA_12,
    installed: int | None = None,
    virtual: bool = False,
) -> DriverAdvice:
    """The driver for a GPU of this compute capability (None: unknown) on this distribution.

    ``least`` is the branch that the GPU's build of torch needs, ``installed`` the one that is here.
    ``virtual`` is True for a vGPU, the part of a GPU that a virtual machine gets.
    GPUs before Maxwell get the CPU lab: no build of torch has code for them.

    >>> advise_driver(Distribution("Ubuntu", "ubuntu"), (8, 9)).command
    'sudo apt-get install nvidia-driver-580-open   # then reboot'
    """
    if wsl:
        return DriverAdvice(UPDATE_WINDOWS_DRIVER)
    if virtual:
        return DriverAdvice(GUEST_DRIVER)
    if capability is not None and capability < (5, 0):
        last = find_last_branch(capability)
        why = f"its last driver is {last}, and no build of torch has code for it"
        return DriverAdvice(f"{CPU_LAB}   # {why}", last, None, "closed")
    if distribution.family == "alpine":
        return DriverAdvice(f"{CPU_LAB}   # NVIDIA has no driver for Alpine's C library")
    if capability is None:
        return DriverAdvice(_name_any(distribution))
    return _advise_for(distribution, capability, least, installed or 0)


def _advise_for(
    distribution: Distribution, capability: Capability, least: int, installed: int
) -> DriverAdvice:
    last, variant = find_last_branch(capability), find_variant(capability)
    least = CUDA_13 if variant == "open" else least
    if (distribution.name or "").startswith("Manjaro"):
        return DriverAdvice(_then_reboot(_MANJARO), last, None, variant)
    found = _find_package(distribution, before_turing=bool(last))
    if found is None or _is_beyond_own(distribution, last, max(least, installed)):
        return _take_from_nvidia(last, variant)
    package, command = found
    if distribution.family == "debian":
        variant = "closed"
    if not last and (kernel := distribution.arch_kernel):
        package, command = _ARCH_DKMS, f"sudo pacman -Syu {_ARCH_DKMS} {kernel}-headers"
    return DriverAdvice(_then_reboot(command), last, package, variant)


def _find_package(distribution: Distribution, *, before_turing: bool) -> tuple[str, str] | None:
    """The package and the command of the distribution; None if it has none."""
    family = distribution.family or ""
    found = (_BEFORE_TURING if before_turing else _FROM_TURING).get(family)
    major = (distribution.version or (9,))[0]
    if family == "rhel" and major not in _MODULAR:
        if major < min(_MODULAR):
            return None
        return _RHEL_10_BEFORE_TURING if before_turing else _RHEL_10_FROM_TURING
    if found and distribution.image_based:
        command = adapt_to_image(found[1])
        return found[0], f"{command}; {_ON_IMAGES}" if COMMENT in command else command
    return found


def adapt_to_image(command: str) -> str:
    """The command for a system that is an image, to which packages are layered."""
    command = re.sub(r"sudo dnf (?:install|upgrade)\b", "sudo rpm-ostree install", command)
    command = command.replace(" --allowerasing", "")
    # What was layered is there after a restart of the machine.
    return re.sub(r"(rpm-ostree install [\w. -]+?) && ", rf"\1{COMMENT}then reboot, and: ", command)


def _is_beyond_own(distribution: Distribution, last: int | None, least: int) -> bool:
    """True if the distribution's own release has no driver that is new, or old, enough."""
    if distribution.family == "ubuntu":
        return distribution.is_older_than(22, 4)
    if distribution.family != "debian":
        return False
    own = _IN_DEBIAN.get((distribution.version or (0,))[0])
    if own is None:  # a newer release may have a branch that dropped the GPU
        return last is not None or least > max(_IN_DEBIAN.values())
    return own < least


def _take_from_nvidia(last: int | None, variant: Variant | None) -> DriverAdvice:
    branch = f"{last}" if last else f"{CUDA_13} or newer"
    kind = "closed" if last else "open"
    words = f"install NVIDIA's driver {branch} ({kind} modules) from its own source ({GUIDE})"
    return DriverAdvice(f"{words}, then reboot", last, None, variant)


def _name_any(distribution: Distribution) -> str:
    """What installs a driver if the GPU is unknown: it must not be the wrong one for any."""
    if (distribution.name or "").startswith("Manjaro"):
        return _then_reboot(_MANJARO)
    if distribution.family == "ubuntu":
        return f"sudo ubuntu-drivers install{THEN_REBOOT}"
    if distribution.family == "debian" and _IN_DEBIAN.get((distribution.version or (12,))[0]):
        return _then_reboot(f"{_FROM_TURING['debian'][1]}; a Blackwell needs NVIDIA's own")
    new = _find_package(distribution, before_turing=False)
    old = _find_package(distribution, before_turing=True)
    if not new or not old or distribution.family == "debian":
        return f"install NVIDIA's driver {CUDA_13} or newer ({GUIDE}), then reboot"
    if kernel := distribution.arch_kernel:
        new = (_ARCH_DKMS, f"sudo pacman -Syu {_ARCH_DKMS} {kernel}-headers")
    if distribution.family == "nixos":
        return f"{new[1]}, and reboot; before Turing: {old[0]}"
    return f"{new[1].partition(COMMENT)[0]}{COMMENT}before Turing: {old[0]}; then reboot"


def _then_reboot(command: str) -> str:
    return f"{command}; then reboot" if COMMENT in command else f"{command}{THEN_REBOOT}"


@dataclass(frozen=True)
class DriverFix(Fix):
    """The fix that installs the driver for a GPU; without its capability, for any GPU.

    ``capability``, ``wsl``, ``installed`` (the branch that is there) and ``virtual`` (a vGPU) are
    what a text tells of the GPU and the system. A family's own command, where it has one, is for
    every GPU.
    """

    capability: Capability | None = None
    wsl: bool = False
    installed: int | None = None
    virtual: bool = False

    def on(
        self,
        distribution: Distribution,
        capability: Capability | None = None,
        *,
        wsl: bool = False,
    ) -> str:
        """The command of ``advise_driver``; what the text tells comes before the arguments."""
        known, wsl = self.capability or capability, self.wsl or wsl
        own = vars(self).get(distribution.family or "")
        on_linux = distribution.family not in ("windows", "mac")
        if own and not wsl and not (self.virtual and on_linux):
            return str(own)
        return advise_driver(
            distribution, known, wsl=wsl, installed=self.installed, virtual=self.virtual
        ).command

    def by_family(self) -> dict[str, str]:
        """Each family's command, by the family's name."""
        return {name: self.on(Distribution(name, name)) for name in INSTALL_COMMANDS}


_IN_WINDOWS = "install NVIDIA's current driver in Windows (nvidia.com/drivers), then restart it"
_NOT_ON_MAC = "use device 'mps' or 'cpu'   # macOS has no CUDA: NVIDIA has no driver for it"
INSTALL_DRIVER = DriverFix(
    f"install NVIDIA's driver {CUDA_13} or newer ({GUIDE}), then reboot",
    windows=_IN_WINDOWS,
    mac=_NOT_ON_MAC,
)
# For a card before Turing, whichever it is.
INSTALL_CLOSED_DRIVER = DriverFix(
    f"install NVIDIA's driver {LAST_VOLTA} with its closed modules ({GUIDE}), then reboot",
    capability=(6, 1),
    windows=f"{_IN_WINDOWS}   # {LAST_VOLTA} is the last branch for this card",
)
# For a card that the closed modules do not know, whichever it is.
INSTALL_OPEN_MODULE = DriverFix(
    f"install NVIDIA's driver {CUDA_13} or newer with its open modules ({GUIDE}), then reboot",
    capability=(12, 0),
    fedora="echo '%_with_kmod_nvidia_open 1' | sudo tee /etc/rpm/macros.nvidia-kmod "
    f"&& sudo akmods --force --rebuild{THEN_REBOOT}",
    windows=_IN_WINDOWS,
)
INSTALL_HEADERS = install(
    "install the headers of the running kernel, then reinstall the driver",
    debian='linux-headers-"$(uname -r)"',
    fedora='kernel-devel-"$(uname -r)"',
    suse="kernel-default-devel",
    arch='--needed "$(cat /usr/lib/modules/"$(uname -r)"/pkgbase)-headers"   '
    "# no such file: the kernel was just updated: reboot first",
)
_BLACKLIST = "echo blacklist nouveau | sudo tee /etc/modprobe.d/no-nouveau.conf"
DROP_NOUVEAU = Fix(
    f"{_BLACKLIST}   # then rebuild the initramfs (Debian, Ubuntu: sudo update-initramfs -u;"
    " Fedora, RHEL, openSUSE: sudo dracut --force; Arch: sudo mkinitcpio -P), and reboot",
    debian=f"{_BLACKLIST} && sudo update-initramfs -u{THEN_REBOOT}",
    fedora=f"{_BLACKLIST} && sudo dracut --force{THEN_REBOOT}",
    suse=f"{_BLACKLIST} && sudo dracut --force{THEN_REBOOT}",
    arch=f"{_BLACKLIST} && sudo mkinitcpio -P{THEN_REBOOT}",
)
DROP_NOUVEAU_ON_IMAGES = (
    "sudo rpm-ostree kargs --append-if-missing=rd.driver.blacklist=nouveau "
    f"--append-if-missing=modprobe.blacklist=nouveau{THEN_REBOOT}"
)
ENROLL_KEY = Fix(
    "sudo mokutil --import <the key that signed the module>   # Ubuntu's:"
    " /var/lib/shim-signed/mok/MOK.der; DKMS': /var/lib/dkms/mok.pub; akmods':"
    " /etc/pki/akmods/certs/public_key.der; then reboot and enroll it",
    debian="sudo mokutil --import /var/lib/dkms/mok.pub   # then reboot and enroll it",
    ubuntu="sudo update-secureboot-policy --enroll-key   # then reboot and enroll it",
    rhel="sudo mokutil --import /var/lib/dkms/mok.pub   # then reboot and enroll it",
    arch="sudo mokutil --import /var/lib/dkms/mok.pub   # then reboot and enroll it; without shim:"
    " sbctl's own keys must sign the modules",
    suse="sudo mokutil --import /var/lib/nvidia-pubkeys/MOK-nvidia-driver-*.der --root-pw   # then"
    " reboot and enroll it with root's password",
    fedora="sudo kmodgenca -a; sudo mokutil --import /etc/pki/akmods/certs/public_key.der   "
    "# then reboot and enroll it",
)
ADD_NVIDIA_SOURCE = Fix(
    f"add NVIDIA's own package source ({GUIDE})",
    debian="sudo sed -i '/^deb /s/ main.*/ main contrib non-free non-free-firmware/;"
    "/^Components:/s/main.*/main contrib non-free non-free-firmware/' /etc/apt/sources.list "
    "/etc/apt/sources.list.d/debian.sources; sudo apt-get update && sudo apt-get install"
    " nvidia-driver nvidia-smi   # then reboot; a Blackwell needs NVIDIA's own; Debian 11 and"
    " older: without non-free-firmware",
    ubuntu="sudo add-apt-repository restricted && sudo apt-get update && sudo ubuntu-drivers"
    " install   # then reboot",
    fedora="sudo dnf install https://mirrors.rpmfusion.org/free/fedora/rpmfusion-free-release-"
    '"$(rpm -E %fedora)".noarch.rpm https://mirrors.rpmfusion.org/nonfree/fedora/rpmfusion-'
    'nonfree-release-"$(rpm -E %fedora)".noarch.rpm && sudo dnf install akmod-nvidia'
    " xorg-x11-drv-nvidia-cuda   # before Turing: akmod-nvidia-580xx; wait until modinfo -F version"
    " nvidia names a version, then reboot",
    rhel=f"add NVIDIA's own package source ({GUIDE}), then: sudo dnf install nvidia-open   # before"
    f" Turing: {LAST_VOLTA}; then reboot; it needs EPEL for dkms",
    suse="sudo zypper addrepo --refresh https://download.nvidia.com/opensuse/tumbleweed nvidia   "
    '# Leap: .../opensuse/leap/"$(. /etc/os-release; echo $VERSION_ID)"; then: sudo zypper install'
    " nvidia-open-driver-G07-signed-kmp-meta (before Turing: nvidia-driver-G06-kmp-meta), and"
    " reboot",
)

# Python and compilers.
_BUILD_TOOLS = (
    'winget install Microsoft.VisualStudio.2022.BuildTools --override "--passive --wait --add'
    ' Microsoft.VisualStudio.Workload.VCTools --includeRecommended"   # with the workload "Desktop'
    ' development with C++"'
)
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
    alpine="g++ python3-dev",
    nixos="nix-shell -p gcc python3   # or a development shell with both",
    windows=_BUILD_TOOLS,
    mac="xcode-select --install",
)
INSTALL_LIBGL = install(
    "install libGL",
    debian="libgl1 libglib2.0-0",
    fedora="mesa-libGL",
    suse="Mesa-libGL1",
    arch="libglvnd",
    alpine="mesa-gl",
    nixos="nix-shell -p libGL   # or in configuration.nix: programs.nix-ld with libGL",
)


# The packages of the programs that fixes run, for hosts that lack them.
_TOOLS_EVERYWHERE = ("debian", "fedora", "suse", "arch")
PROGRAMS: dict[str, Fix | None] = {
    "nvidia-ctk": Fix("", **_INSTALL_TOOLKIT),
    "lspci": install("install lspci", **dict.fromkeys(_TOOLS_EVERYWHERE, "pciutils")),
    "mokutil": install("install mokutil", **dict.fromkeys(_TOOLS_EVERYWHERE, "mokutil")),
    "curl": install("install curl", **dict.fromkeys((*_TOOLS_EVERYWHERE, "alpine"), "curl")),
    "gpg": install("", debian="gpg", fedora="gnupg2", suse="gpg2", arch="gnupg", alpine="gnupg"),
    "ubuntu-drivers": install("", ubuntu="ubuntu-drivers-common"),
    "add-apt-repository": install("", ubuntu="software-properties-common"),
    "dkms": install("install dkms", debian="dkms", fedora="dkms", arch="dkms"),
    **dict.fromkeys(("systemctl", "nvidia-modprobe", "dmesg", "setsebool", "resolvectl", "ss")),
    **dict.fromkeys(("akmods", "kmodgenca", "update-secureboot-policy", "timedatectl")),
    **dict.fromkeys(("mkinitcpio", "dracut", "update-initramfs", "prime-select", "mhwd")),
    **dict.fromkeys(("apt-get", "dnf", "zypper", "pacman", "nvidia-smi", "wsl.exe", "docker")),
}
Find = Callable[[str], object]


def adapt_command(command: str, distribution: Distribution, find: Find) -> str:
    """The command as this host can run it; ``find`` is like ``shutil.which``.

    Alternatives that are not installed are left out, ``service`` takes the place of a missing
    ``systemctl``, and a missing program comes with the command that installs it.

    >>> adapt_command("sudo nvidia-modprobe || sudo modprobe x", Distribution(), {}.get)
    'sudo modprobe x'
    """
    line, mark, comment = command.partition("   #")
    if distribution.image_based:
        line = adapt_to_image(line)
    if not find("systemctl") and find("service"):
        line = re.sub(r"systemctl (?:enable --now|start) (\S+)", r"service \1 start", line)
        line = re.sub(r"systemctl restart (\S+)", r"service \1 restart", line)
    choices = line.split(" || ")
    usable = [choice for choice in choices if not _list_missing(choice, find)]
    line = " || ".join(usable or choices)
    missing = [] if usable else _list_missing(line, find)
    if not missing:
        return f"{line}{mark}{comment}"
    packages = [PROGRAMS[each] for each in dict.fromkeys(missing)]
    commands = [each.on(distribution) for each in packages if each is not None]
    if len(commands) == len(packages) and all(commands):
        first = adapt_to_image(" && ".join(commands)) if distribution.image_based else None
        return f"{first or ' && '.join(commands)}   # then: {line}"
    return f"{line}   # {missing[0]} is not installed here: do the same by this system's own tool"


def _list_missing(line: str, find: Find) -> list[str]:
    """The programs that a line runs and the host lacks, of those that can be missing."""
    first = re.compile(r"(?:sudo\s+(?:-n\s+)?)?(?:\w+=\S+\s+)*(\S+)")
    missing = []
    for part in re.split(r"&&|\|\|?|;", line):
        found = first.match(part.strip())
        if found and found[1] in PROGRAMS and not find(found[1]):
            missing.append(found[1])
        if part.strip().startswith(tuple(INSTALL_COMMANDS.values())):
            break  # what follows may run what was installed
    return missing
