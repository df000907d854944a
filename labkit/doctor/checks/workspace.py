"""Is the workspace a folder that the lab may write to?"""

from __future__ import annotations

from dataclasses import dataclass

from labkit.doctor.check import Check, Finding, failed, ok, warning
from labkit.doctor.distribution import Distribution
from labkit.doctor.host import Host
from labkit.host.folders import FolderFacts, read_folder


@dataclass(frozen=True)
class WorkspaceFacts:
    """The workspace's folder (None: not known where), and who asks."""

    folder: FolderFacts | None
    user_id: int | None = None


def probe(host: Host) -> WorkspaceFacts:
    """The folder's owner and whether this user may write there; nothing is written to find out."""
    folder = read_folder(host.workspace) if host.workspace else None
    return WorkspaceFacts(folder, host.machine.user_id)


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
    chown = f'sudo chown -R "$(id -u):$(id -g)" {folder.path}'
    if not folder.writable:
        cause = f"user {folder.owner_id} owns it" if foreign else "its mode or its disk forbids it"
        fix = chown if foreign else f"ls -ld {folder.path}"
        return failed(f"{folder.path} cannot be written", cause, fix)
    if foreign:
        return warning(
            f"{folder.path} belongs to user {folder.owner_id}",
            "files made inside the lab may not be yours outside, or the other way round",
            chown,
        )
    return ok(f"{folder.path} can be written")


CHECK = Check("workspace", "the workspace's owner", probe, judge)
