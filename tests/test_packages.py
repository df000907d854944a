"""What each distribution is told to type: its own tools only, and no restart of the machine."""

from __future__ import annotations

import re

import pytest

from labkit.host import packages
from labkit.host.distribution import FAMILIES, UNKNOWN, Distribution, read_distribution
from labkit.host.gpu import is_virtual
from labkit.host.packages import (
    INSTALL_COMMANDS,
    INSTALL_TOOLKIT,
    OPEN_FROM,
    PARENTS,
    Fix,
    adapt_command,
    advise_driver,
    choose_target,
    find_last_branch,
    install,
    is_dropped,
)

FIXES = {name: value for name, value in vars(packages).items() if isinstance(value, Fix)}
TOOLS = {
    "apt-get": ("debian", "ubuntu"),
    "ubuntu-drivers": ("ubuntu",),
    "add-apt-repository": ("ubuntu",),
    "update-initramfs": ("debian", "ubuntu"),
    "dnf": ("fedora", "rhel"),
    "akmods": ("fedora",),
    "zypper": ("suse",),
    "pacman": ("arch",),
    "mkinitcpio": ("arch",),
    "apk": ("alpine",),
}


@pytest.mark.parametrize(
    ("family", "command"),
    [
        ("ubuntu", "sudo apt-get install a"),
        ("rhel", "sudo dnf install b"),
        ("alpine", "see the page"),
        (None, "see the page"),
    ],
)
def test_a_family_without_its_own_command_takes_its_parents_then_the_common_one(family, command):
    fix = install("see the page", debian="a", fedora="b")
    assert fix.on(Distribution("x", family)) == command


def test_every_family_has_an_install_command():
    assert set(INSTALL_COMMANDS) == set(FAMILIES.values()) - {"nixos"}  # which has a file instead
    assert set(PARENTS) | set(PARENTS.values()) <= set(INSTALL_COMMANDS)


@pytest.mark.parametrize("family", [*INSTALL_COMMANDS, None])
@pytest.mark.parametrize("name", FIXES)
def test_a_command_names_only_tools_that_its_distribution_has(name, family):
    command = FIXES[name].on(Distribution("x", family)).partition("   #")[0]
    foreign = {tool for tool, families in TOOLS.items() if family not in families}
    assert not foreign & set(re.findall(r"[\w-]+", command)), command


RELEASES = {
    "Debian 11": ("debian", 11),
    "Debian 12": ("debian", 12),
    "Debian 13": ("debian", 13),
    "Ubuntu 20.04": ("ubuntu", 20, 4),
    "Ubuntu 24.04": ("ubuntu", 24, 4),
    "Fedora 43": ("fedora", 43),
    "Rocky 9": ("rhel", 9, 6),
    "Rocky 10": ("rhel", 10),
    "Oracle 9": ("rhel", 9, 6),
    "Amazon 2": ("rhel", 2),
    "Tumbleweed": ("suse", 20260101),
    "Leap 15.6": ("suse", 15, 6),
    "NixOS": ("nixos", 26, 5),
    "Silverblue": ("fedora", 43),
    "Manjaro": ("arch",),
    "Arch": ("arch",),
    "Alpine": ("alpine", 3, 22),
}
CARDS = {
    "K40": (3, 5),
    "P100": (6, 0),
    "GTX 1080": (6, 1),
    "V100": (7, 0),
    "T4": (7, 5),
    "RTX 4090": (8, 9),
    "RTX 5080": (12, 0),
    "any": None,
}
# GPU, distribution: the package (-: none), the variant, and a word of the command.
ADVICE = """
K40      | Ubuntu 24.04 | -                                      | closed | FLAVOR=cpu
K40      | Arch         | -                                      | closed | FLAVOR=cpu
GTX 1080 | Arch         | nvidia-580xx-dkms                      | closed | AUR
P100     | Tumbleweed   | nvidia-driver-G06-kmp-meta             | closed | zypper
P100     | Leap 15.6    | nvidia-driver-G06-kmp-meta             | closed | zypper
V100     | Rocky 9      | nvidia-driver:580-dkms                 | closed | cuda-drivers
V100     | Rocky 10     | kmod-nvidia-latest-dkms                | closed | add '*nvidia*580*'
V100     | Oracle 9     | nvidia-driver:580-dkms                 | closed | cuda-drivers
V100     | Amazon 2     | -                                      | closed | NVIDIA's driver 580
V100     | NixOS        | legacy_580                             | closed | nvidia.open = false
GTX 1080 | Fedora 43    | akmod-nvidia-580xx                     | closed | nvidia-580xx-cuda
GTX 1080 | Silverblue   | akmod-nvidia-580xx                     | closed | rpm-ostree install akmod
GTX 1080 | Manjaro      | -                                      | closed | mhwd
GTX 1080 | Ubuntu 24.04 | nvidia-driver-580                      | closed | apt-get
GTX 1080 | Ubuntu 20.04 | -                                      | closed | NVIDIA's driver 580
GTX 1080 | Debian 13    | nvidia-driver                          | closed | apt-get
GTX 1080 | Debian 11    | -                                      | closed | NVIDIA's driver 580
T4       | Debian 12    | nvidia-driver                          | closed | apt-get
RTX 4090 | Ubuntu 24.04 | nvidia-driver-580-open                 | -      | apt-get
RTX 4090 | Arch         | nvidia-open                            | -      | pacman -Syu
RTX 4090 | Rocky 9      | nvidia-driver:open-dkms                | -      | module switch-to
RTX 4090 | Silverblue   | akmod-nvidia                           | -      | rpm-ostree install akmod
RTX 5080 | Fedora 43    | akmod-nvidia                           | open   | xorg-x11-drv-nvidia-cuda
RTX 5080 | NixOS        | nvidia                                 | open   | nvidia.open = true
RTX 5080 | Debian 13    | -                                      | open   | 580 or newer (open
RTX 5080 | Rocky 10     | nvidia-open                            | open   | dnf
RTX 5080 | Tumbleweed   | nvidia-open-driver-G07-signed-kmp-meta | open   | zypper
RTX 5080 | Alpine       | -                                      | -      | FLAVOR=cpu
any      | Ubuntu 24.04 | -                                      | -      | ubuntu-drivers
any      | Arch         | -                                      | -      | before Turing
any      | Fedora 43    | -                                      | -      | before Turing
any      | Rocky 9      | -                                      | -      | before Turing: nvidia
any      | Rocky 10     | -                                      | -      | install nvidia-open
any      | NixOS        | -                                      | -      | nixos-rebuild switch
any      | Manjaro      | -                                      | -      | mhwd
"""


def read_advice():
    for row in ADVICE.strip().splitlines():
        card, release, *expected = (cell.strip() for cell in row.split("|"))
        yield pytest.param(card, release, *expected, id=f"{card} on {release}")


def play_release(name):
    family, *version = RELEASES[name]
    return Distribution(name, family, tuple(version) or None, image_based=name == "Silverblue")


@pytest.mark.parametrize(("card", "release", "package", "variant", "words"), list(read_advice()))
def test_the_driver_for_a_gpu_on_a_distribution(card, release, package, variant, words):
    advice = advise_driver(play_release(release), CARDS[card])
    assert (advice.package or "-", advice.variant or "-") == (package, variant)
    assert words in advice.command


@pytest.mark.parametrize("release", RELEASES)
@pytest.mark.parametrize("card", CARDS)
def test_no_advice_harms(card, release):
    capability = CARDS[card]
    command = advise_driver(play_release(release), capability).command
    assert not re.search(r"(?:&&|;|\|\|)\s*(?:sudo )?reboot", command)
    if capability and capability < OPEN_FROM:  # the open modules ignore it
        assert "open" not in command.replace("open = false", "")
    assert "wsl.exe" in advise_driver(play_release(release), capability, wsl=True).command


@pytest.mark.parametrize("release", RELEASES)
@pytest.mark.parametrize("card", CARDS)
def test_a_foreign_package_tool_is_never_named(card, release):
    family = play_release(release).family
    command = advise_driver(play_release(release), CARDS[card]).command.partition("   #")[0]
    foreign = {tool for tool, families in TOOLS.items() if family not in families}
    foreign |= {"dnf"} if release == "Silverblue" else set()
    assert not foreign & set(re.findall(r"[\w-]+", command)), command
    # The modules of RHEL 8 and 9 are gone in 10.
    assert release != "Rocky 10" or " module " not in command


@pytest.mark.parametrize(
    ("capabilities", "target"),
    [
        ([], None),
        ([(3, 5)], (3, 5)),
        ([(3, 5), (8, 9)], (8, 9)),
        ([(6, 1), (8, 6)], (6, 1)),
        ([(6, 1), (12, 0)], (12, 0)),
        ([(3, 5), (7, 0), (7, 5), (10, 0)], (7, 5)),
    ],
)
def test_the_gpu_that_a_driver_is_chosen_for(capabilities, target):
    assert choose_target(capabilities) == target


def test_a_debian_whose_newer_driver_dropped_the_gpu_keeps_to_its_source():
    for name, words in (("Debian 12", "from its own source"), ("Ubuntu 24.04", "apt-get")):
        assert words in advise_driver(play_release(name), (6, 1), installed=595).command


@pytest.mark.parametrize("release", RELEASES)
def test_a_virtual_gpu_gets_the_guest_driver_of_its_host(release):
    advice = advise_driver(play_release(release), (8, 6), virtual=True)
    assert (advice.command, advice.package) == (packages.GUEST_DRIVER, None)
    assert packages.INSTALL_DRIVER.on(play_release(release), (8, 6)) != packages.GUEST_DRIVER


@pytest.mark.parametrize(
    ("name", "virtual"),
    [
        ("NVIDIA A40-8Q", True),
        ("GRID A100D-10C", True),
        ("GRID A100-1-5C", True),
        ("Tesla T4-4Q", True),
        ("NVIDIA RTX6000-Ada-48Q", True),
        ("GRID V100DX-32B", True),
        ("NVIDIA A100-SXM4-80GB", False),
        ("NVIDIA A100 80GB PCIe MIG 1g.10gb", False),
        ("Tesla V100-PCIE-16GB", False),
        ("NVIDIA GeForce RTX 4090", False),
        ("NVIDIA RTX 6000 Ada Generation", False),
        ("NVIDIA H100 NVL", False),
    ],
)
def test_the_name_of_a_gpu_says_whether_it_is_virtual(name, virtual):
    assert is_virtual(name) is virtual


@pytest.mark.parametrize(
    ("kernel", "command"),
    [
        ("6.18.2-arch1-1", "sudo pacman -Syu nvidia-open "),
        ("6.12.62-1-lts", "sudo pacman -Syu nvidia-open-dkms linux-lts-headers "),
        ("6.18.2-zen2-1-zen", "sudo pacman -Syu nvidia-open-dkms linux-zen-headers "),
        (
            "6.17.13-hardened1-1-hardened",
            "sudo pacman -Syu nvidia-open-dkms linux-hardened-headers ",
        ),
        (
            "6.18.2-3-cachyos-lts",
            "sudo pacman -Syu nvidia-open-dkms linux-cachyos-lts-headers ",
        ),
        (None, "sudo pacman -Syu nvidia-open "),
    ],
)
def test_arch_builds_the_modules_for_another_kernel_than_linux(kernel, command):
    arch = Distribution("Arch Linux", "arch", kernel=kernel)
    assert advise_driver(arch, (8, 9)).command.startswith(command)
    assert advise_driver(arch).command.startswith(command)
    assert "580xx" in advise_driver(arch, (6, 1)).command
    assert Distribution("Ubuntu", "ubuntu", kernel="6.8.0-1-lts").arch_kernel is None


def test_the_running_kernel_is_read_with_the_distribution(tmp_path):
    (tmp_path / "etc").mkdir()
    (tmp_path / "etc/os-release").write_text("ID=arch")
    (tmp_path / "proc/sys/kernel").mkdir(parents=True)
    (tmp_path / "proc/sys/kernel/osrelease").write_text("6.12.62-1-lts\n")
    assert read_distribution(tmp_path).arch_kernel == "linux-lts"


@pytest.mark.parametrize("family", ["debian", "fedora", "rhel", "suse"])
def test_a_source_is_added_for_the_drivers_of_the_table(family):
    found = packages.ADD_NVIDIA_SOURCE.on(Distribution(family=family))
    current, older = ((8, 9), (6, 1))
    release = Distribution(family=family, version=(10,) if family == "rhel" else None)
    assert str(advise_driver(release, current).package) in found
    assert "Turing" in found or family == "debian"
    old = advise_driver(release, older, least=525).package
    assert old is None or old in found or family == "rhel"


def test_on_an_image_packages_are_layered():
    silverblue = play_release("Silverblue")
    adapted = adapt_command("sudo dnf install nvidia-container-toolkit", silverblue, str)
    assert adapted == "sudo rpm-ostree install nvidia-container-toolkit"


def test_a_debian_has_no_driver_of_cuda_13():
    assert advise_driver(play_release("Debian 13"), (8, 9), least=580).package is None
    assert advise_driver(play_release("Debian 13"), (8, 9), least=525).package == "nvidia-driver"


@pytest.mark.parametrize(
    ("capability", "last", "dropped_by_590"),
    [((3, 5), 470, True), ((6, 1), 580, True), ((7, 0), 580, True), ((7, 5), None, False)],
)
def test_the_last_branch_of_a_generation(capability, last, dropped_by_590):
    assert find_last_branch(capability) == last
    assert is_dropped(capability, 590) is dropped_by_590
    assert not is_dropped((6, 1), 580)


@pytest.mark.parametrize(
    ("command", "lacks", "adapted"),
    [
        ("sudo systemctl restart docker   # then", (), "sudo systemctl restart docker   # then"),
        ("sudo systemctl restart docker", ("systemctl",), "sudo service docker restart"),
        ("sudo systemctl enable --now docker", ("systemctl",), "sudo service docker start"),
        ("sudo a x || sudo modprobe y", (), "sudo a x || sudo modprobe y"),
        ("sudo nvidia-modprobe -u || sudo modprobe y", ("nvidia-modprobe",), "sudo modprobe y"),
        ("lspci -nnk", ("lspci",), "sudo apt-get install pciutils   # then: lspci -nnk"),
        ("sudo systemctl stop x", ("systemctl", "service"), "not installed here"),
        ("A=1 systemctl --user restart docker", ("systemctl",), "not installed here"),
        ("install it by hand", (), "install it by hand"),
        (
            "sudo apt-get install x && sudo nvidia-ctk y",
            ("nvidia-ctk",),
            "sudo apt-get install x && sudo nvidia-ctk y",
        ),
        (
            "curl x | sudo gpg y && sudo apt-get install z",
            ("curl", "gpg"),
            "sudo apt-get install curl && sudo apt-get install gpg"
            "   # then: curl x | sudo gpg y && sudo apt-get install z",
        ),
        (
            "sudo mokutil y",
            ("mokutil",),
            "sudo apt-get install mokutil   # then: sudo mokutil y",
        ),
    ],
)
def test_a_command_is_given_only_where_its_program_is_installed(command, lacks, adapted):
    ubuntu = Distribution("Ubuntu", "ubuntu")
    found = adapt_command(command, ubuntu, lambda name: None if name in lacks else name)
    assert adapted in found
    assert found == adapted or "not installed" in found


@pytest.mark.parametrize("name", FIXES)
def test_no_command_goes_on_to_restart_the_machine(name):
    for command in (FIXES[name].on(UNKNOWN), *FIXES[name].by_family().values()):
        assert not re.search(r"(?:&&|;|\|\|)\s*(?:sudo )?reboot", command)


@pytest.mark.parametrize(
    ("family", "source"),
    [
        ("debian", "/etc/apt/sources.list.d/"),
        ("ubuntu", "/etc/apt/sources.list.d/"),
        ("fedora", "/etc/yum.repos.d/"),
        ("rhel", "/etc/yum.repos.d/"),
        ("suse", "zypper addrepo "),
    ],
)
def test_the_toolkits_package_source_is_added_before_its_package(family, source):
    distribution = Distribution(family=family)
    install = f"{INSTALL_COMMANDS[family]} nvidia-container-toolkit"
    missing = adapt_command("sudo nvidia-ctk y", distribution, lambda _: None)
    for command in (INSTALL_TOOLKIT.on(distribution), missing):
        assert 0 < command.index(source) < command.index(install)
