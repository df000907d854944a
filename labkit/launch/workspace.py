"""Makes the workspace ready for whoever the lab runs as, and reads what was put into it."""

from __future__ import annotations

import contextlib
import json
import os
import shlex
from pathlib import Path
from typing import Any

from labkit.errors import UsageError
from labkit.host.machine import read_folder
from labkit.launch.settings import Checkout, Identity
from labkit.text import format_bytes

LEAST_FREE_BYTES = 64 * 1024**2
ROOT_ID = 0


def prepare_workspace(checkout: Checkout) -> None:
    """Makes ``work/`` where it is missing. Raises UsageError where it cannot be used."""
    workspace = checkout.workspace
    quoted = shlex.quote(str(workspace))
    with contextlib.suppress(OSError):
        workspace.mkdir(exist_ok=True)
    facts = read_folder(workspace)
    if not facts.is_folder:
        raise UsageError(
            f"the workspace {workspace} is not a folder",
            cause="something else has its name" if facts.exists else "it could not be made",
            fix=f"ls -ld {quoted} {shlex.quote(str(workspace.parent))}",
        )
    if not facts.writable:
        raise UsageError(
            f"the workspace {workspace} is not writable",
            cause=f"it belongs to uid {facts.owner_id}, and you are uid {os.getuid()}",
            fix=f"sudo chown -R $(id -u):$(id -g) {quoted}",
        )
    if facts.free_bytes is not None and facts.free_bytes < LEAST_FREE_BYTES:
        raise UsageError(
            f"the workspace's disk is full: {format_bytes(facts.free_bytes)} left",
            cause="a notebook that cannot be saved is lost",
            fix=f"df -h {quoted}",
        )


def hand_over(checkout: Checkout, identity: Identity) -> None:
    """Gives the workspace and the token to the unprivileged user that the lab runs as.

    Only where the host's user is root: everybody else owns them already.
    """
    if os.geteuid() != 0 or identity.is_root:
        return
    os.chown(checkout.token_file, identity.user_id, identity.group_id)
    # Resolved, so that a workspace that is a link elsewhere is handed over, not the link.
    workspace = checkout.workspace.resolve()
    if not identity.owns_workspace:
        os.chown(workspace, identity.user_id, identity.group_id)
    # What root made there, with RUNTIME=local or an editor; other users' files stay theirs.
    # By folder descriptor: the workspace's user could put a link where a folder was.
    for _, folders, files, descriptor in os.fwalk(workspace):
        for name in (*folders, *files):
            if os.stat(name, dir_fd=descriptor, follow_symlinks=False).st_uid == ROOT_ID:
                os.chown(
                    name,
                    identity.user_id,
                    identity.group_id,
                    dir_fd=descriptor,
                    follow_symlinks=False,
                )


def describe_update(checkout: Checkout) -> list[str]:
    """What the last start put into the workspace, a line a kind; none where nothing changed."""
    kinds = {
        "placed": "put into {folder}: {names}",
        "replaced": "updated, untouched until now: {names}",
        "laid_beside": "new versions laid beside your own: {names}",
    }
    update = _read_manifest(checkout).get("last_update") or {}
    folder = f"{checkout.workspace.name}/"
    lines = [
        text.format(folder=folder, names=", ".join(update[kind]))
        for kind, text in kinds.items()
        if update.get(kind)
    ]
    return [*lines, *(update.get("notes") or ())]


def read_update_time(checkout: Checkout) -> str | None:
    """When the workspace was last updated, or None where it never was."""
    return (_read_manifest(checkout).get("last_update") or {}).get("at")


def find_first_notebook(checkout: Checkout) -> str | None:
    """The name of the workspace's first lab notebook, to open on; None where there is none."""
    names = sorted(path.name for path in checkout.workspace.glob("0*.ipynb"))
    return names[0] if names else None


def _read_manifest(checkout: Checkout) -> dict[str, Any]:
    path = Path(checkout.workspace) / ".labkit" / "manifest.json"
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return manifest if isinstance(manifest, dict) else {}
