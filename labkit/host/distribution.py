"""The Linux distribution of this host, from /etc/os-release."""

from __future__ import annotations

import re
import shlex
from dataclasses import dataclass, field, replace
from pathlib import Path

# The package tools' family, by the names in ID and ID_LIKE of /etc/os-release.
FAMILIES = {
    "debian": "debian",
    "ubuntu": "ubuntu",
    "fedora": "fedora",
    "rhel": "rhel",
    "centos": "rhel",
    "amzn": "rhel",
    "ol": "rhel",
    "suse": "suse",
    "opensuse": "suse",
    "sles": "suse",
    "arch": "arch",
    "alpine": "alpine",
    "nixos": "nixos",
}

# 6.12.10-1-lts, 6.18.2-zen2-1-zen, 6.18.2-2-cachyos, 6.16.8-hardened1-1-hardened; and of a build
# of CachyOS' with a name: 6.18.2-3-cachyos-lts.
_ARCH_KERNEL = re.compile(
    r"-((?:cachyos-)?(?:lts|zen|hardened|rt|rt-lts)|cachyos(?:-\w+)?)$|-(zen)\d"
)


@dataclass(frozen=True)
class Distribution:
    """A distribution by its own name ("Debian GNU/Linux 12") and family; None is unknown.

    ``version`` is the release in the family's own numbers, such as (24, 4); a derivative that
    counts its releases by itself (Mint 22) has none. ``image_based`` is True for a system whose
    packages are layered on an image (Silverblue, Bazzite). ``kernel`` is the running kernel's
    release, such as "6.12.10-1-lts".
    """

    name: str | None = None
    family: str | None = None
    version: tuple[int, ...] | None = None
    image_based: bool = field(default=False, repr=False)
    kernel: str | None = field(default=None, repr=False, compare=False)

    @property
    def arch_kernel(self) -> str | None:
        """The package of a kernel of Arch's other than "linux"; None for that, and elsewhere.

        >>> Distribution(family="arch", kernel="6.12.10-1-lts").arch_kernel
        'linux-lts'
        """
        if self.family != "arch":
            return None
        found = _ARCH_KERNEL.search(self.kernel or "")
        return f"linux-{found[1] or found[2]}" if found else None

    def is_older_than(self, *version: int) -> bool:
        """True if the release is known and older than ``version``."""
        return self.version is not None and self.version < version


UNKNOWN = Distribution()


def read_distribution(root: Path = Path("/")) -> Distribution:
    """The distribution of the system below ``root``, by its /etc/os-release."""
    try:
        found = parse_os_release((root / "etc/os-release").read_text("utf-8", errors="replace"))
    except OSError:
        return UNKNOWN
    try:
        kernel = (root / "proc/sys/kernel/osrelease").read_text("utf-8").strip()
    except OSError:
        kernel = None
    return replace(found, image_based=(root / "run/ostree-booted").exists(), kernel=kernel)


def parse_os_release(text: str) -> Distribution:
    """The distribution that the text of /etc/os-release describes.

    >>> parse_os_release('ID=linuxmint\\nID_LIKE="ubuntu debian"\\nPRETTY_NAME="Mint 22"')
    Distribution(name='Mint 22', family='ubuntu', version=None)
    """
    fields = {}
    for line in text.splitlines():
        key, separator, value = line.partition("=")
        if separator:
            fields[key.strip()] = _unquote(value)
    names = [fields.get("ID", ""), *fields.get("ID_LIKE", "").split()]
    families = (FAMILIES.get(name.partition("-")[0]) for name in names)
    family = next(filter(None, families), None)
    return Distribution(fields.get("PRETTY_NAME") or None, family, _read_version(fields, family))


def _read_version(fields: dict[str, str], family: str | None) -> tuple[int, ...] | None:
    """VERSION_ID as numbers; None if it counts in another way than the family does."""
    # The rebuilds of RHEL have its numbers.
    own = fields.get("ID") == family or family in ("rhel", "suse")
    text = fields.get("VERSION_ID", "")
    numbers = re.fullmatch(r"\d{1,6}(?:\.\d{1,6}){0,2}", text) if own else None
    return tuple(map(int, text.split("."))) if numbers else None


def _unquote(value: str) -> str:
    try:
        return " ".join(shlex.split(value))
    except ValueError:  # an unbalanced quote: take the value as it is
        return value.strip().strip("\"'")
