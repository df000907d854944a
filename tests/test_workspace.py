from __future__ import annotations

import contextlib
import errno
import json
import os
import re
import socket
import stat
import subprocess
import sys
import tempfile
from collections.abc import Callable
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from labkit import files
from labkit.errors import LabkitError
from labkit.files import Disk, hold_lock, place_new
from labkit.jupyter.usage import short_address
from labkit.lessons import workspace
from labkit.lessons.catalog import Lab, listed_labs
from labkit.lessons.notebooks import read_digests
from labkit.lessons.progress import clear_progress, record_attempt
from labkit.lessons.workspace import LabUpdate, Update, reset_lab, restore_saves, update_workspace
from tests.fakes.small_labs import write_labs

DAY = datetime(2026, 11, 23, 9, 30, tzinfo=timezone.utc)
NAME = "01_small.ipynb"


def notebook(*sources: str, **cell: Any) -> bytes:
    cells = [
        {"cell_type": "code", "metadata": {}, "outputs": [], "source": source, **cell}
        for source in sources
    ]
    value = {"cells": cells, "metadata": {}, "nbformat": 4, "nbformat_minor": 5}
    return json.dumps(value).encode()


def read_digest(path: Path) -> str | None:
    found = read_digests(path)
    return found.content if found else None


class QuickDisk(Disk):
    """A disk that does not wait for the platters; tests would take minutes."""

    def write_new(self, path: Path, data: bytes, mode: int = 0o644) -> None:
        with path.open("xb") as file:
            file.write(data)

    def sync(self, folder: Path) -> None:
        pass


class World:
    """A workspace, and a lab that its maintainers can change."""

    def __init__(self, folder: Path) -> None:
        self.work = folder / "work"
        self.path = self.work / NAME
        (self.lab,) = listed_labs(write_labs(folder / "labs"))
        self.set_version(1)

    def set_version(self, version: int) -> None:
        self.version = version
        self.lab.lesson.write_text(f"# version {version}\n")

    def make(self, lab: Lab) -> bytes:
        return notebook(f"version = {lab.lesson.read_text().split()[-1]}")

    def update(self, disk: Disk | None = None) -> Update:
        disk = disk or QuickDisk()
        return update_workspace(self.work, [self.lab], make=self.make, disk=disk, now=DAY)

    def reset(self, disk: Disk | None = None) -> tuple[str, str | None]:
        disk = disk or QuickDisk()
        done = reset_lab(self.work, self.lab, make=self.make, disk=disk, now=DAY)
        return done.file, done.backup

    def act(self) -> tuple[str, str]:
        (lab,) = self.update().labs
        return lab.action, lab.file

    def names(self) -> list[str]:
        return sorted(path.name for path in self.work.iterdir() if path.name != ".labkit")

    def last_update(self) -> dict[str, Any]:
        return dict(json.loads((self.work / ".labkit/manifest.json").read_bytes())["last_update"])


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path)


def test_a_notebook_is_placed_once(world: World) -> None:
    assert world.act() == ("placed", NAME)
    assert world.path.read_bytes() == notebook("version = 1")
    assert world.act() == ("unchanged", NAME)


def test_an_untouched_notebook_is_replaced(world: World) -> None:
    world.update()
    world.set_version(2)

    assert world.act() == ("replaced", NAME)
    assert world.path.read_bytes() == notebook("version = 2")
    assert world.names() == [NAME]
    assert not list((world.work / ".labkit").glob("replaced-*"))


@pytest.mark.parametrize(
    "added",
    [
        {"outputs": [{"output_type": "stream", "name": "stdout", "text": "1"}]},
        {"metadata": {"tags": ["mine"]}},
    ],
    ids=["outputs", "cell metadata"],
)
def test_an_update_keeps_what_was_added_to_an_unedited_notebook(
    world: World, added: dict[str, Any]
) -> None:
    world.update()
    mine = notebook("version = 1", **added)
    world.path.write_bytes(mine)
    world.set_version(2)

    update = world.update()

    assert update.files("replaced") == [NAME]
    assert world.path.read_bytes() == notebook("version = 2")
    assert (world.work / "01_small.yours-2026-11-23.ipynb").read_bytes() == mine
    assert "01_small.yours-2026-11-23.ipynb" in update.notes[0]
    assert world.last_update()["notes"] == list(update.notes)


def test_what_jupyterlab_writes_by_itself_is_not_kept(world: World) -> None:
    world.update()
    value = json.loads(notebook("version = 1", execution_count=3, id="a1"))
    value["metadata"] = {"kernelspec": {"name": "python3"}, "language_info": {"version": "3.12"}}
    world.path.write_text(json.dumps(value, indent=1))
    world.set_version(2)

    world.act()
    assert world.names() == [NAME]


def test_beside_a_touched_notebook_the_new_version_is_laid_once(world: World) -> None:
    world.update()
    mine = notebook("version = 1", "mine")
    world.path.write_bytes(mine)
    world.set_version(2)

    assert world.act() == ("laid_beside", "01_small.new-2026-11-23.ipynb")
    assert world.act() == ("unchanged", NAME)
    assert world.path.read_bytes() == mine
    assert (world.work / "01_small.new-2026-11-23.ipynb").read_bytes() == notebook("version = 2")


def test_each_version_is_laid_beside_under_a_name_of_its_own(world: World) -> None:
    world.update()
    world.path.write_bytes(notebook("mine"))
    for version in (2, 3):
        world.set_version(version)
        world.update()

    assert world.names() == [
        NAME,
        "01_small.new-2026-11-23-2.ipynb",
        "01_small.new-2026-11-23.ipynb",
    ]


def test_every_version_that_was_laid_is_known_as_labkits_own(world: World) -> None:
    world.update()
    world.path.write_bytes(notebook("mine"))
    for version in (2, 3, 4):
        world.set_version(version)
        world.update()

    # `labkit check` must not take one of them for the learner's work.
    known = (world.work / ".labkit" / "manifest.json").read_text(encoding="utf-8")
    laid = [read_digest(path) for path in world.work.glob("01_small.new-*.ipynb")]
    assert len(set(laid)) == 3
    assert [digest for digest in laid if str(digest) not in known] == []
    assert str(read_digest(world.path)) not in known


def test_a_new_version_that_was_laid_and_thrown_away_stays_away(world: World) -> None:
    world.update()
    world.path.write_bytes(notebook("mine"))
    world.set_version(2)
    world.update()
    (world.work / "01_small.new-2026-11-23.ipynb").unlink()
    (world.lab.folder.parent / "labs.toml").touch()

    assert world.act() == ("unchanged", NAME)
    assert world.names() == [NAME]


def test_a_deleted_notebook_comes_back_only_through_reset(world: World) -> None:
    world.update()
    world.path.unlink()
    world.set_version(2)

    assert world.act() == ("missing", NAME)
    assert world.act() == ("missing", NAME)
    assert world.reset() == (NAME, None)
    assert world.path.read_bytes() == notebook("version = 2")
    assert world.act() == ("unchanged", NAME)


def test_reset_keeps_a_backup_each_time(world: World) -> None:
    world.update()
    world.path.write_bytes(notebook("mine"))

    assert world.reset() == (NAME, "01_small.old-2026-11-23.ipynb")
    assert world.reset() == (NAME, "01_small.old-2026-11-23-2.ipynb")
    assert (world.work / "01_small.old-2026-11-23.ipynb").read_bytes() == notebook("mine")


def test_a_file_that_was_there_first_is_never_replaced(world: World) -> None:
    world.work.mkdir()
    world.path.write_text("a shopping list")

    assert world.act() == ("laid_beside", "01_small.new-2026-11-23.ipynb")
    world.set_version(2)
    world.update()
    assert world.path.read_text() == "a shopping list"


@pytest.mark.parametrize(
    "data", [notebook("version = 1")[:-9], b"", b"{"], ids=["truncated", "empty", "hand-broken"]
)
def test_a_broken_notebook_counts_as_touched(world: World, data: bytes) -> None:
    world.update()
    world.path.write_bytes(data)
    world.set_version(2)

    assert world.act()[0] == "laid_beside"
    assert world.path.read_bytes() == data


def test_a_read_only_notebook_counts_as_touched(world: World) -> None:
    world.update()
    world.path.chmod(0o444)
    world.set_version(2)

    assert world.act()[0] == "laid_beside"
    assert world.path.read_bytes() == notebook("version = 1")


def test_a_link_in_the_notebooks_place_is_neither_followed_nor_replaced(
    world: World, tmp_path: Path
) -> None:
    world.update()
    outside = tmp_path / "outside.ipynb"
    outside.write_bytes(notebook("version = 1"))
    world.path.unlink()
    world.path.symlink_to(outside)
    world.set_version(2)

    assert world.act()[0] == "laid_beside"
    assert outside.read_bytes() == notebook("version = 1")

    assert world.reset() == (NAME, "01_small.old-2026-11-23.ipynb")
    assert (world.work / "01_small.old-2026-11-23.ipynb").readlink() == outside
    assert not world.path.is_symlink()
    assert outside.read_bytes() == notebook("version = 1")


def test_a_folder_in_the_notebooks_place_is_moved_whole_by_reset(world: World) -> None:
    (world.path / "deep").mkdir(parents=True)

    assert world.act()[0] == "laid_beside"
    assert world.reset()[1] == "01_small.old-2026-11-23.ipynb"
    assert (world.work / "01_small.old-2026-11-23.ipynb" / "deep").is_dir()


@pytest.mark.parametrize("name", [".labkit", ".labkit/manifest.json"])
def test_a_link_for_labkits_own_notes_is_refused(world: World, tmp_path: Path, name: str) -> None:
    outside = tmp_path / "outside"
    if name == ".labkit":
        outside.mkdir()
        world.work.mkdir()
    else:
        outside.write_text("mine")
        (world.work / ".labkit").mkdir(parents=True)
    (world.work / name).symlink_to(outside)

    with pytest.raises(LabkitError, match="is a symbolic link") as caught:
        world.update()
    assert caught.value.fix == f"rm {world.work / name}"
    assert outside.is_dir() or outside.read_text() == "mine"


@pytest.mark.parametrize(
    "data",
    [b"{", b'{"labs": 3}', b'{"labs": {"small": {"file": "../../etc/passwd"}}}', b"\xff"],
    ids=["truncated", "another shape", "a path out", "not text"],
)
def test_a_broken_manifest_is_kept_and_nothing_is_overwritten(world: World, data: bytes) -> None:
    world.update()
    world.path.write_bytes(notebook("mine"))
    (world.work / ".labkit/manifest.json").write_bytes(data)

    update = world.update()

    (said,) = update.notes
    assert "the manifest could not be read" in said
    assert "kept as .labkit/manifest.broken-2026-11-23.json" in said
    assert world.last_update()["notes"] == [said]
    assert (world.work / ".labkit/manifest.broken-2026-11-23.json").read_bytes() == data
    assert world.path.read_bytes() == notebook("mine")


def make_socket(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as end, short_address(path.parent / "x") as address:
        end.bind(str(Path(address).with_name(path.name)))


def link_to_device(path: Path) -> None:
    """Links to an endless device: as root, who could rename /dev/zero, to one of its own."""
    device = Path("/dev/zero")
    if os.geteuid() == 0:
        with contextlib.suppress(PermissionError):  # a container without the capability
            own = Path(tempfile.mkdtemp(dir=path.parents[1])) / "zero"
            os.mknod(own, stat.S_IFCHR | 0o666, device.stat().st_rdev)
            device = own
    path.symlink_to(device)


def make_huge(path: Path) -> None:
    with path.open("wb") as file:
        file.truncate(2**40)  # takes no room


KINDS: dict[str, Callable[[Path], Any]] = {
    "folder": lambda path: (path / "inside").mkdir(parents=True),
    "pipe": os.mkfifo,
    "socket": make_socket,
    "link-to-itself": lambda path: path.symlink_to(path.name),
    "link-to-a-device": link_to_device,
    "huge": make_huge,
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", ["manifest.json", "lock", "", "../progress.json", f"../{NAME}"])
def test_whatever_has_the_name_of_a_file_it_is_named_and_kept(
    world: World, name: str, kind: str
) -> None:
    world.update()
    record_attempt(world.work, "small.center", passed=True)
    path = Path(os.path.normpath(world.work / ".labkit" / name))
    path.rename(world.work / "was")
    KINDS[kind](path)
    made = os.lstat(path)

    world.set_version(2)
    for act in (
        world.update,
        world.reset,
        lambda: record_attempt(world.work, "small.center", passed=True)[1],
        lambda: clear_progress(world.work, ["small"]),
    ):
        try:
            act()
        except LabkitError as error:
            assert error.cause and error.fix, error
            assert re.search(r" is a (file|folder|named pipe|socket|symbolic link)$", error.what)

    # Renamed at most: nothing is lost, and nothing is read or written through it.
    assert any(os.path.samestat(made, one.lstat()) for one in world.work.rglob("*"))


def test_the_last_update_is_told_to_the_launcher(world: World) -> None:
    world.update()
    assert world.last_update() == {
        "at": "2026-11-23T09:30:00+00:00",
        "placed": [NAME],
        "replaced": [],
        "laid_beside": [],
        "missing": [],
        "notes": [],
    }

    world.update()
    assert world.last_update()["placed"] == []


def test_an_update_with_nothing_new_converts_and_writes_nothing(world: World) -> None:
    world.update()
    world.update()

    def make(lab: Lab) -> bytes:
        raise AssertionError("converted")

    class NoDisk(Disk):
        def write_new(self, path: Path, data: bytes, mode: int = 0o644) -> None:
            raise AssertionError("written")

    update = update_workspace(world.work, [world.lab], make=make, disk=NoDisk(), now=DAY)
    assert update.labs == (LabUpdate("small", "unchanged", NAME),)


def test_a_lab_added_later_is_placed_beside_the_others(world: World, tmp_path: Path) -> None:
    world.update()
    (tmp_path / "labs" / "more").mkdir()
    (tmp_path / "labs" / "more" / "lesson.py").write_text("# version 9\n")
    more = Lab("more", "More", "", 5, (), "02_more.ipynb", tmp_path / "labs" / "more")

    update = update_workspace(world.work, [world.lab, more], make=world.make, disk=QuickDisk())

    assert [lab.action for lab in update.labs] == ["unchanged", "placed"]
    assert update.files("placed") == ["02_more.ipynb"]


def test_the_update_itself_needs_the_standard_library_only(world: World) -> None:
    script = (
        "import sys\n"
        "import labkit.lessons.workspace\n"
        "heavy = {'torch', 'numpy', 'IPython', 'jupytext', 'nbformat', 'nbclient'}\n"
        "print(sorted(heavy & set(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=True
    )
    assert done.stdout == "[]\n"


@pytest.mark.parametrize(
    ("number", "fix"),
    [
        (errno.ENOSPC, "free some space, then try again: no notebook was changed"),
        (errno.EROFS, "mount the workspace so that it can be written to"),
    ],
    ids=["full", "read-only"],
)
@pytest.mark.parametrize("change", [World.update, World.reset], ids=["update", "reset"])
def test_a_disk_that_refuses_is_explained_and_harms_nothing(
    world: World, change: Callable[..., Any], number: int, fix: str
) -> None:
    class Refusing(QuickDisk):
        def write_new(self, path: Path, data: bytes, mode: int = 0o644) -> None:
            path.write_bytes(data[:5])
            raise OSError(number, os.strerror(number), str(path))

    world.update()
    world.path.write_bytes(notebook("mine"))
    world.set_version(2)

    with pytest.raises(LabkitError) as caught:
        change(world, Refusing())

    assert caught.value.what == f"the workspace {world.work} could not be written to"
    assert os.strerror(number) in (caught.value.cause or "")
    assert caught.value.fix == fix
    assert world.names() == [NAME]
    assert world.path.read_bytes() == notebook("mine")
    assert not list((world.work / ".labkit").glob("tmp-*"))


class UnlinkableDisk(QuickDisk):
    """A disk without hard links, as FAT and some shares into containers are."""

    def link(self, source: Path, target: Path) -> None:
        raise OSError(errno.EPERM, "Operation not permitted", str(target))

    def rename_new(self, source: Path, target: Path) -> bool:
        return False


def test_without_hard_links_all_is_the_same(world: World) -> None:
    disk = UnlinkableDisk()
    assert world.update(disk).labs[0].action == "placed"
    world.set_version(2)
    assert world.update(disk).labs[0].action == "replaced"
    world.path.write_bytes(notebook("mine"))
    assert world.reset(disk) == (NAME, "01_small.old-2026-11-23.ipynb")
    assert (world.work / "01_small.old-2026-11-23.ipynb").read_bytes() == notebook("mine")

    with pytest.raises(FileExistsError):
        place_new(disk, world.path, b"other", world.work / ".labkit")


@pytest.mark.parametrize("disk", [QuickDisk, UnlinkableDisk], ids=["links", "no links"])
@pytest.mark.parametrize("after", [False, True], ids=["before it is taken", "after"])
@pytest.mark.parametrize("anew", [False, True], ids=["in place", "by renaming"])
@pytest.mark.parametrize("act", [World.update, World.reset], ids=["update", "reset"])
def test_what_is_saved_during_an_exchange_is_kept(
    world: World, act: Callable[..., Any], anew: bool, after: bool, disk: type[Disk]
) -> None:
    def save() -> None:
        if anew:
            world.path.unlink(missing_ok=True)
        world.path.write_bytes(notebook("saved just now"))

    class SavingDisk(disk):  # type: ignore[misc,valid-type]
        def replace(self, source: Path, target: Path) -> None:
            if source == world.path and not after:
                save()
            super().replace(source, target)
            if source == world.path and after:
                save()

    world.update()
    world.set_version(2)
    with contextlib.suppress(FileExistsError, LabkitError):
        act(world, SavingDisk())

    saved = notebook("saved just now")
    assert saved in [path.read_bytes() for path in world.work.glob("*.ipynb")]


def test_a_save_into_a_name_that_is_being_claimed_is_kept(world: World) -> None:
    class SavingDisk(UnlinkableDisk):
        def replace(self, source: Path, target: Path) -> None:
            if target == world.path:
                target.write_bytes(notebook("saved just now"))
            super().replace(source, target)

    world.update()
    world.set_version(2)
    world.update(SavingDisk())

    (kept,) = world.work.glob("01_small.yours-*.ipynb")
    assert kept.read_bytes() == notebook("saved just now")
    assert world.path.read_bytes() == notebook("version = 2")


@pytest.mark.skipif(sys.platform != "linux", reason="renameat2 is Linux's")
def test_without_links_a_rename_overwrites_nothing(tmp_path: Path) -> None:
    source, target = tmp_path / "new", tmp_path / "taken"
    source.write_bytes(b"new")
    target.write_bytes(b"the learner's")

    with pytest.raises(FileExistsError):
        Disk().rename_new(source, target)
    assert (source.read_bytes(), target.read_bytes()) == (b"new", b"the learner's")
    assert Disk().rename_new(source, tmp_path / "free")
    assert (tmp_path / "free").read_bytes() == b"new"
    assert not source.exists()


def test_an_immutable_notebook_holds_up_no_other(world: World) -> None:
    class ImmutableDisk(QuickDisk):
        def replace(self, source: Path, target: Path) -> None:
            if world.path in (source, target):
                raise PermissionError(errno.EPERM, "Operation not permitted", str(source))
            super().replace(source, target)

    world.update()
    world.set_version(2)
    update = world.update(ImmutableDisk())

    assert update.labs[0].action == "laid_beside"
    assert "could not be replaced" in update.notes[0]
    assert world.path.read_bytes() == notebook("version = 1")
    leaked = [path.name for path in (world.work / ".labkit").iterdir()]
    assert sorted(leaked) == ["lock", "manifest.json"]


def age(path: Path) -> None:
    os.utime(path, (1, 1))


@pytest.mark.parametrize("broken", [b"", b'{"cells": [ "half'], ids=["empty", "half"])
@pytest.mark.parametrize("act", ["update", "reset", "check"])
def test_a_save_that_was_killed_is_put_back(world: World, act: str, broken: bytes) -> None:
    world.update()
    mine = notebook("mine")
    world.path.write_bytes(broken)
    age(world.path)
    hidden = world.work / f".~{NAME}"
    hidden.write_bytes(mine)

    if act == "check":
        notes: tuple[str, ...] = restore_saves(world.work, now=DAY)
    elif act == "update":
        notes = world.update().notes
    else:
        notes = reset_lab(world.work, world.lab, make=world.make, now=DAY).notes

    held = world.path.with_name("01_small.old-2026-11-23.ipynb") if act == "reset" else world.path
    assert held.read_bytes() == mine
    assert not hidden.exists()
    assert NAME in notes[0] and "interrupted" in notes[0]
    kept = list(world.work.glob("01_small.broken-*"))
    assert [path.read_bytes() for path in kept] == [broken] * bool(broken)


@pytest.mark.parametrize(
    ("data", "hidden"),
    [(notebook("same"), notebook("same")), (b"", b""), (b"{", b"{"), (b"", b"{")],
    ids=["same", "both empty", "both broken", "no whole copy"],
)
def test_only_a_whole_copy_that_differs_is_put_back(
    world: World, data: bytes, hidden: bytes
) -> None:
    world.update()
    world.path.write_bytes(data)
    age(world.path)
    (world.work / f".~{NAME}").write_bytes(hidden)

    assert restore_saves(world.work) == ()
    assert world.path.read_bytes() == data
    assert (world.work / f".~{NAME}").read_bytes() == hidden


def test_a_copy_beside_a_whole_notebook_becomes_visible(world: World) -> None:
    """The file that was being saved was moved away by a reset, which placed a fresh one."""
    world.update()
    age(world.path)
    (world.work / f".~{NAME}").write_bytes(notebook("mine"))

    (note,) = world.update().notes

    kept = world.work / "01_small.yours-2026-11-23.ipynb"
    assert kept.read_bytes() == notebook("mine") and kept.name in note
    assert world.path.read_bytes() == notebook("version = 1")


def test_a_save_that_is_going_on_is_waited_for(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    world.update()
    world.path.write_bytes(b"")
    hidden = world.work / f".~{NAME}"
    hidden.write_bytes(notebook("before"))

    def complete(seconds: float) -> None:
        world.path.write_bytes(notebook("after"))
        hidden.unlink()

    monkeypatch.setattr(workspace.time, "sleep", complete)

    assert restore_saves(world.work) == ()
    assert world.path.read_bytes() == notebook("after")


def test_the_backup_sorts_after_the_labs_notebook(world: World) -> None:
    world.update()
    world.reset()

    assert sorted(path.name for path in world.work.glob("0*.ipynb"))[0] == NAME


def test_a_replacement_of_an_earlier_labkit_that_was_interrupted_is_completed(
    world: World,
) -> None:
    world.update()
    state = world.work / ".labkit"
    (state / f"replaced-{NAME}").write_bytes(notebook("saved meanwhile"))

    (note,) = world.update().notes

    assert "01_small.yours-2026-11-23.ipynb" in note
    kept = world.work / "01_small.yours-2026-11-23.ipynb"
    assert kept.read_bytes() == notebook("saved meanwhile")


def test_two_updates_at_once_wait_for_each_other(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    world.update()
    waited: list[float] = []
    clock = iter(range(100))
    monkeypatch.setattr(files.time, "sleep", waited.append)
    monkeypatch.setattr(files.time, "monotonic", lambda: float(next(clock) * 10))

    with hold_lock(world.work / ".labkit" / "lock"):  # noqa: SIM117
        with pytest.raises(LabkitError, match="being changed by another labkit process") as caught:
            world.update()

    assert caught.value.cause == f"{world.work / '.labkit' / 'lock'} has been locked for 30 s"
    assert waited
    assert world.act() == ("unchanged", NAME)


@pytest.mark.parametrize(
    ("number", "goes_on"), [(errno.ENOLCK, True), (errno.EIO, False)], ids=["no locks", "broken"]
)
def test_a_file_system_without_locks_is_worked_on_all_the_same(
    world: World, monkeypatch: pytest.MonkeyPatch, number: int, goes_on: bool
) -> None:
    import fcntl

    def refuse(handle: int, operation: int) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "flock", refuse)

    if goes_on:
        assert world.act() == ("placed", NAME)
    else:
        with pytest.raises(LabkitError, match="could not be written to"):
            world.update()


@pytest.mark.root
def test_as_root_what_is_written_belongs_to_the_folders_owner(world: World) -> None:
    world.work.mkdir()
    os.chown(world.work, 1234, 1234)

    world.update(Disk())

    paths = list(world.work.rglob("*"))
    assert len(paths) == 4
    assert {path.stat().st_uid for path in paths} == {1234}


class Died(BaseException):
    """The machine stopped here."""


class DyingDisk(QuickDisk):
    """Dies before, in or after its n-th step, and does nothing from then on."""

    def __init__(self, step: int, when: str) -> None:
        self.steps, self.when, self.dead = step, when, False

    def _die(self) -> None:
        self.dead = True
        raise Died

    def _step(self, act: Callable[[], None], half: Callable[[], None]) -> None:
        if self.dead:
            raise Died
        self.steps -= 1
        if self.steps > 0:
            act()
            return
        {"before": lambda: None, "half": half, "after": act}[self.when]()
        self._die()

    def write_new(self, path: Path, data: bytes, mode: int = 0o644) -> None:
        whole, half = data, data[: len(data) // 2]
        write = super().write_new
        self._step(lambda: write(path, whole), lambda: write(path, half))

    def link(self, source: Path, target: Path) -> None:
        link = super().link
        self._step(lambda: link(source, target), lambda: None)

    def replace(self, source: Path, target: Path) -> None:
        replace = super().replace
        self._step(lambda: replace(source, target), lambda: None)

    def remove(self, path: Path) -> None:
        remove = super().remove
        self._step(lambda: remove(path), lambda: None)


class UnlinkableDyingDisk(DyingDisk):
    """Dies as well, and has no hard links."""

    def link(self, source: Path, target: Path) -> None:
        if self.dead:
            raise Died
        raise OSError(errno.EPERM, "Operation not permitted", str(target))


class Learner:
    """Plays what a learner, a maintainer and bad luck may do, and keeps watch over the bytes."""

    def __init__(self, folder: Path) -> None:
        self.world = World(folder)
        self.written = 0

    def holdings(self) -> dict[str, bytes]:
        """Every file of the workspace that holds something the learner wrote."""
        found = {}
        for path in self.world.work.rglob("*"):
            if path.is_file() and b"mine-" in path.read_bytes():
                found[str(path)] = path.read_bytes()
        return found

    def edit(self, choice: int) -> None:
        path = self._choose(choice)
        if path is None:
            return
        self.written += 1
        try:
            sources = [cell["source"] for cell in json.loads(path.read_bytes())["cells"]]
        except ValueError:
            sources = []
        path.write_bytes(notebook(*sources, f"mine-{self.written}"))

    def break_by_hand(self, choice: int) -> None:
        path = self._choose(choice)
        if path is not None:
            self.written += 1
            path.write_bytes(f'{{"cells": [ mine-{self.written}'.encode())

    def run_cells(self, choice: int) -> None:
        path = self._choose(choice)
        if path is None or read_digest(path) is None:
            return
        sources = [cell["source"] for cell in json.loads(path.read_bytes())["cells"]]
        path.write_bytes(notebook(*sources, outputs=[{"output_type": "stream", "text": "1"}]))

    def rename(self, choice: int) -> None:
        path = self._choose(choice)
        if path is not None:
            self.written += 1
            path.rename(path.with_name(f"renamed-{self.written}.ipynb"))

    def delete(self, choice: int) -> None:
        path = self._choose(choice)
        if path is not None:
            path.unlink()

    def labkit(self, act: str, disk: Disk) -> None:
        """Lets labkit work, and looks whether everything the learner wrote is still there."""
        before = self.holdings()
        with contextlib.suppress(Died):
            self.world.update(disk) if act == "update" else self.world.reset(disk)
        after = self.holdings()
        for path, data in before.items():
            assert data in after.values(), f"lost what was in {path}"
            if act == "update" and ".labkit" not in path:
                assert after.get(path) == data, f"{path} was changed"

    def _choose(self, choice: int) -> Path | None:
        paths = sorted(self.world.work.glob("*.ipynb"))
        return paths[choice % len(paths)] if paths else None


CHOICE = st.integers(0, 3)
DISKS = st.one_of(
    st.builds(QuickDisk),
    st.builds(UnlinkableDisk),
    st.builds(DyingDisk, st.integers(1, 12), st.sampled_from(["before", "half", "after"])),
    st.builds(
        UnlinkableDyingDisk, st.integers(1, 12), st.sampled_from(["before", "half", "after"])
    ),
)
STEPS = st.lists(
    st.one_of(
        st.tuples(
            st.sampled_from(["edit", "break_by_hand", "run_cells", "rename", "delete"]), CHOICE
        ),
        st.tuples(st.just("new version"), CHOICE),
        st.tuples(st.sampled_from(["update", "reset"]), DISKS),
        st.tuples(st.sampled_from(["update", "reset"]), DISKS),
    ),
    max_size=14,
)


@pytest.mark.slow
@settings(
    max_examples=150,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(steps=STEPS)
def test_whatever_happens_no_byte_of_the_learners_is_lost(
    tmp_path_factory: pytest.TempPathFactory, steps: list[tuple[str, Any]]
) -> None:
    learner = Learner(tmp_path_factory.mktemp("world"))
    learner.labkit("update", QuickDisk())
    for step, detail in steps:
        if step == "new version":
            learner.world.set_version(detail + 2)
        elif step in ("update", "reset"):
            learner.labkit(step, detail)
        else:
            getattr(learner, step)(detail)

    # After all that, an update on a sound disk goes through, and a second one has nothing to do.
    learner.labkit("update", QuickDisk())
    (lab,) = learner.world.update().labs
    assert lab.action in ("unchanged", "missing")
    assert not list((learner.world.work / ".labkit").glob("tmp-*"))


@pytest.mark.parametrize("when", ["before", "half", "after"])
@pytest.mark.parametrize("disk", [DyingDisk, UnlinkableDyingDisk], ids=["links", "no links"])
@pytest.mark.parametrize("act", ["update", "reset"])
@pytest.mark.parametrize("touched", [True, False], ids=["touched", "untouched"])
def test_a_crash_at_any_step_leaves_every_notebook_whole(
    tmp_path: Path, touched: bool, act: str, disk: type[DyingDisk], when: str
) -> None:
    for step in range(1, 16):
        learner = Learner(tmp_path / str(step))
        learner.world.update()
        if touched:
            learner.edit(0)
        learner.world.set_version(2)
        dying = disk(step, when)
        learner.labkit(act, dying)

        learner.labkit("update", QuickDisk())
        assert read_digest(learner.world.path) is not None
        if not dying.dead:
            return
    raise AssertionError("the crash never came to an end of the steps")


def test_a_crash_before_the_laying_is_noted_lays_it_once(world: World) -> None:
    world.update()
    world.path.write_bytes(notebook("mine"))
    world.set_version(2)
    # The fourth step comes after the new version has its name, and before the manifest.
    with pytest.raises(Died):
        world.update(DyingDisk(4, "before"))
    assert world.names() == [NAME, "01_small.new-2026-11-23.ipynb"]

    assert world.act() == ("laid_beside", "01_small.new-2026-11-23.ipynb")
    assert world.names() == [NAME, "01_small.new-2026-11-23.ipynb"]


def test_a_link_that_leads_nowhere_is_not_a_deleted_notebook(world: World) -> None:
    world.update()
    world.path.unlink()
    world.path.symlink_to("gone.ipynb")
    world.set_version(2)

    assert world.act()[0] == "laid_beside"
    assert world.path.is_symlink()
