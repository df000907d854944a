"""Is the workspace a folder that the lab may write to?"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from labkit.doctor.check import Check, Finding, SafeFix, failed, ok, warning
from labkit.doctor.distribution import Distribution
from labkit.doctor.host import Host
from labkit.host.folders import FolderFacts, read_folder


@dataclass(frozen=True)
class WorkspaceFacts:
    """The workspace's folder (None: not known where), who asks, and whether it is a checkout's own.

    Only a checkout's own ``work/``, no link to elsewhere, is a folder to change by itself.
    """

    folder: FolderFacts | None
    user_id: int | None = None
    group_id: int | None = None
    own: bool = False
    in_container: bool = False


def probe(host: Host) -> WorkspaceFacts:
    """The folder's owner and whether this user may write there; nothing is written to find out."""
    folder = read_folder(host.workspace) if host.workspace else None
    return WorkspaceFacts(
        folder,
        host.machine.user_id,
        host.machine.group_id,
        own=not host.in_container and is_own(host.workspace),
        in_container=host.in_container,
    )


def is_own(workspace: Path | None) -> bool:
    """True for the folder work/ that lies in a checkout itself."""
    if workspace is None or workspace.name != "work" or workspace.is_symlink():
        return False
    return (workspace.parent / "compose.yaml").is_file()


def judge(facts: WorkspaceFacts, distribution: Distribution) -> Finding:
    """Fine where it is this user's, writable, or not made yet."""
    folder = facts.folder
    if folder is None:
        return ok("no checkout here, so no workspace to look at")
    if not folder.exists:
        return ok(f"{folder.path} is not made yet; make up makes it")
    if not folder.is_folder:
        fix, cause = f"mv {folder.path} {folder.path}.old", "a file or a dead link is in its place"
        return failed(f"{folder.path} is not a folder", cause, fix)
    foreign = facts.user_id not in (None, 0) and folder.owner_id != facts.user_id
    place = "work   # on the host, in the checkout" if facts.in_container else folder.path
    chown = f'sudo chown -R "$(id -u):$(id -g)" {place}'
    safe = _give_back(facts, foreign) if facts.own else None
    if not folder.writable:
        cause = f"user {folder.owner_id} owns it" if foreign else "its mode or its disk forbids it"
        fix = chown if foreign else f"chmod u+rwx {folder.path}   # or look: ls -ld {folder.path}"
        return failed(f"{folder.path} cannot be written", cause, fix, safe=safe)
    if foreign:
        return warning(
            f"{folder.path} belongs to user {folder.owner_id}",
            "files made inside the lab may not be yours outside, or the other way round",
            chown,
            safe=safe,
        )
    return ok(f"{folder.path} can be written")


def _give_back(facts: WorkspaceFacts, foreign: bool) -> SafeFix | None:
    """The folder back in this user's hands, with what is in it; links in it are not followed."""
    path = str(facts.folder.path) if facts.folder else ""
    if not foreign:
        return SafeFix(("chmod", "u+rwx", path), "lets you write to your workspace", as_root=False)
    if facts.group_id is None:
        return None
    owner = f"{facts.user_id}:{facts.group_id}"
    return SafeFix(("chown", "-R", "-P", owner, path), "gives your workspace back to you")


CHECK = Check("workspace", "the workspace's owner", probe, judge)
