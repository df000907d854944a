"""The Linux distribution of this host, from /etc/os-release."""

from __future__ import annotations

import shlex
from dataclasses import dataclass
from pathlib import Path

# The package tools' family, by the names in ID and ID_LIKE of /etc/os-release.
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


UNKNOWN = Distribution()


def read_distribution(root: Path = Path("/")) -> Distribution:
    """The distribution of the system below ``root``, by its /etc/os-release."""
    try:
        return parse_os_release((root / "etc/os-release").read_text("utf-8", errors="replace"))
    except OSError:
        return UNKNOWN


def parse_os_release(text: str) -> Distribution:
    """The distribution that the text of /etc/os-release describes.

    >>> parse_os_release('ID=linuxmint\\nID_LIKE="ubuntu debian"\\nPRETTY_NAME="Mint 22"')
    Distribution(name='Mint 22', family='ubuntu')
    """
    fields = {}
    for line in text.splitlines():
        key, separator, value = line.partition("=")
        if separator:
            fields[key.strip()] = _unquote(value)
    names = [fields.get("ID", ""), *fields.get("ID_LIKE", "").split()]
    families = (FAMILIES.get(name.partition("-")[0]) for name in names)
    return Distribution(fields.get("PRETTY_NAME") or None, next(filter(None, families), None))


def _unquote(value: str) -> str:
    try:
        return " ".join(shlex.split(value))
    except ValueError:  # an unbalanced quote: take the value as it is
        return value.strip().strip("\"'")
