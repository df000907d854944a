"""Can what torch.compile builds be kept, and run from where it is kept?"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from labkit.doctor.check import Check, Finding, SafeFix, failed, ok
from labkit.doctor.distribution import Distribution
from labkit.doctor.host import Host

NAMES = ("TORCHINDUCTOR_CACHE_DIR", "TRITON_CACHE_DIR", "TMPDIR")


@dataclass(frozen=True)
class CacheFacts:
    """The cache folders, those of them that refuse writing or running, and those that are ours."""

    folders: tuple[str, ...] = ()
    unwritable: tuple[str, ...] = ()
    noexec: tuple[str, ...] = ()
    owned: tuple[str, ...] = ()


def probe(host: Host) -> CacheFacts:
    """Mode and mount options of each folder, or of the one it would be made in; writes nothing."""
    named = [host.environment[name] for name in NAMES if host.environment.get(name)]
    # Where no folder is named, inductor makes one of the user's name in the folder for temporaries.
    default = Path(host.environment.get("TMPDIR") or "/tmp")  # noqa: S108
    folders = [Path(name) for name in dict.fromkeys([*named, "/tmp"])]  # noqa: S108
    if not host.environment.get("TORCHINDUCTOR_CACHE_DIR") and host.machine.user_name:
        folders.append(default / f"torchinductor_{host.machine.user_name}")
    existing = {folder: _find_existing(host.root / str(folder).lstrip("/")) for folder in folders}
    return CacheFacts(
        tuple(str(folder) for folder in folders),
        tuple(str(each) for each, at in existing.items() if not os.access(at, os.W_OK | os.X_OK)),
        tuple(str(each) for each, at in existing.items() if is_noexec(at)),
        tuple(
            str(each)
            for each, at in existing.items()
            if each.name == at.name and at.stat().st_uid == host.machine.user_id
        ),
    )


def _find_existing(path: Path) -> Path:
    return next((each for each in (path, *path.parents) if each.exists()), path)


def is_noexec(path: Path) -> bool:
    """True where the mount that holds ``path`` forbids running programs from it."""
    return bool(os.statvfs(path).f_flag & os.ST_NOEXEC) if hasattr(os, "ST_NOEXEC") else False


def judge(facts: CacheFacts, distribution: Distribution) -> Finding:
    """Every cache folder must take files, and let what is in them run."""
    if facts.unwritable:
        folder = facts.unwritable[0]
        open_up = SafeFix(("chmod", "u+rwx", folder), "lets you write to a cache", as_root=False)
        return failed(
            f"{folder} cannot be written",
            "torch.compile keeps what it builds there",
            "export TORCHINDUCTOR_CACHE_DIR=$HOME/.cache/inductor",
            safe=open_up if folder in facts.owned else None,
        )
    if facts.noexec:
        return failed(
            f"{facts.noexec[0]} is mounted noexec",
            "what torch.compile builds there cannot be loaded",
            "export TORCHINDUCTOR_CACHE_DIR=$HOME/.cache/inductor TMPDIR=$HOME/.cache",
        )
    return ok(f"{', '.join(facts.folders)} can be written and run from")


CHECK = Check("caches", "caches of torch.compile", probe, judge, ("torch-build",))
