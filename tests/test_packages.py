"""What each distribution is told to type: its own tools only, and no restart of the machine."""

from __future__ import annotations

import re

import pytest

from labkit.host import packages
from labkit.host.distribution import FAMILIES, UNKNOWN, Distribution
from labkit.host.packages import INSTALL_COMMANDS, PARENTS, Fix, install

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
    assert set(INSTALL_COMMANDS) == set(FAMILIES.values())
    assert set(PARENTS) | set(PARENTS.values()) <= set(INSTALL_COMMANDS)


@pytest.mark.parametrize("family", [*INSTALL_COMMANDS, None])
@pytest.mark.parametrize("name", FIXES)
def test_a_command_names_only_tools_that_its_distribution_has(name, family):
    command = FIXES[name].on(Distribution("x", family)).partition("   #")[0]
    foreign = {tool for tool, families in TOOLS.items() if family not in families}
    assert not foreign & set(re.findall(r"[\w-]+", command)), command


@pytest.mark.parametrize("name", FIXES)
def test_no_command_goes_on_to_restart_the_machine(name):
    for command in (FIXES[name].on(UNKNOWN), *FIXES[name].by_family().values()):
        assert not re.search(r"(?:&&|;|\|\|)\s*(?:sudo )?reboot", command)
