"""Snapshots from files: torch's own are read, and nothing that is in one is run or believed."""

from __future__ import annotations

import bz2
import copyreg
import gzip
import io
import lzma
import pickle
import pickletools
import struct
import subprocess

import pytest

from labkit.errors import LabkitError, UsageError
from labkit.memory.allocations.analysis import analyse
from labkit.memory.allocations.page import make_page
from labkit.memory.allocations.snapshot import (
    DEEPEST_STACK,
    PlainUnpickler,
    StackReader,
    load_snapshot,
    read_recording,
    save_snapshot,
    write_file,
)
from labkit.memory.track.frames import Frame
from tests.fakes.allocator import frame, make_training, take_snapshot


class Hostile:
    """What unpickling calls: here it would leave a file behind."""

    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return subprocess.check_call, (["touch", self.path],)


def write(tmp_path, content):
    path = tmp_path / "snapshot.pickle"
    path.write_bytes(content)
    return path


@pytest.mark.parametrize("protocol", range(6), ids=[f"protocol {n}" for n in range(6)])
def test_a_snapshot_comes_back_as_it_was(tmp_path, protocol):
    snapshot = take_snapshot(make_training())
    assert load_snapshot(write(tmp_path, pickle.dumps(snapshot, protocol))) == snapshot


# The opcodes that the viewer at pytorch.org/memory_viz knows.
VIEWER_KNOWS = (
    "PROTO FRAME STOP MARK MEMOIZE BINGET LONG_BINGET BINPUT LONG_BINPUT NONE NEWTRUE NEWFALSE"
    " BININT BININT1 BININT2 LONG1 BINFLOAT SHORT_BINUNICODE BINUNICODE EMPTY_LIST EMPTY_DICT"
    " EMPTY_TUPLE TUPLE TUPLE1 TUPLE2 TUPLE3 LIST DICT APPEND APPENDS SETITEM SETITEMS"
)


def test_what_is_written_is_what_torchs_viewer_reads(tmp_path):
    own = {"max_entries": None, "names": {"é" * 300: "In[1]"}, "sources": [["a.py", 70_000, "x"]]}
    snapshot = take_snapshot(make_training(), **own)
    path = save_snapshot(tmp_path / "out.pickle", snapshot)
    content = path.read_bytes()
    assert {one.name for one, _, _ in pickletools.genops(content)} <= {*VIEWER_KNOWS.split()}
    assert pickle.loads(content) == snapshot
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("place", ["alone", "deep inside"])
def test_no_code_of_a_pickle_is_run(tmp_path, place):
    trap = Hostile(tmp_path / "taken")
    snapshot = take_snapshot(make_training())
    if place == "alone":
        snapshot = trap
    else:
        snapshot["segments"][0]["blocks"][0]["frames"] = [trap]
    path = write(tmp_path, pickle.dumps(snapshot))
    with pytest.raises(UsageError) as caught:
        load_snapshot(path)
    assert "subprocess.check_call" in caught.value.cause
    assert not (tmp_path / "taken").exists()
    pickle.loads(path.read_bytes())  # the trap is a real one
    assert (tmp_path / "taken").exists()


@pytest.mark.parametrize("name", ["builtins eval", "builtins dict"])
def test_not_even_a_harmless_class_is_loaded(name):
    module, attribute = name.split()
    with pytest.raises(pickle.UnpicklingError, match=f"{module}.{attribute}"):
        PlainUnpickler(io.BytesIO(f"c{module}\n{attribute}\n.".encode())).load()


def test_neither_an_extension_nor_an_outside_object_is_loaded():
    copyreg.add_extension("subprocess", "check_call", 0xF0F0)
    try:
        with pytest.raises(pickle.UnpicklingError, match="subprocess"):
            PlainUnpickler(io.BytesIO(b"\x80\x02\x83\xf0\xf0.")).load()
    finally:
        copyreg.remove_extension("subprocess", "check_call", 0xF0F0)
    with pytest.raises(pickle.UnpicklingError, match="persistent"):
        PlainUnpickler(io.BytesIO(b"Pname\n.")).load()


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"hello",
        b"PK\x03\x04 a checkpoint of torch.save",
        b"\x80\x04\x95",
        b"\x80\x04]\x94(K\x01K\x02",
        b"\x80\x04\x8d" + struct.pack("<Q", 2**62),
        b"\x80\x02]r" + struct.pack("<I", 2**32 - 1) + b".",
        b"(lp0\ng0\na.)",
        b"I" + b"9" * 5000 + b"\n.",
        b"V\\ud8\n.",
    ],
    ids=[
        "empty",
        "text",
        "zip",
        "cut short",
        "no end",
        "a text of 4 EiB",
        "a memo of 64 GiB",
        "a list in itself",
        "a number of 5000 figures",
        "half a character",
    ],
)
def test_what_is_no_snapshot_is_refused_in_a_sentence(tmp_path, content):
    path = write(tmp_path, content)
    with pytest.raises(UsageError):
        read_recording(load_snapshot(path))


def test_a_file_that_is_not_there(tmp_path):
    with pytest.raises(UsageError, match=r"none\.pickle does not exist"):
        load_snapshot(tmp_path / "none.pickle")


def test_a_folder_is_no_snapshot(tmp_path):
    with pytest.raises(UsageError) as caught:
        load_snapshot(tmp_path)
    assert (caught.value.cause, caught.value.fix) == (
        "it is a folder, not a file",
        f"ls -l {tmp_path}",
    )


@pytest.mark.parametrize("folder", ["no", "file"])
def test_where_nothing_can_be_written_no_partial_file_is_left(tmp_path, folder):
    (tmp_path / "file").write_text("")
    with pytest.raises(LabkitError, match="cannot write") as caught:
        write_file(tmp_path / folder / "page.html", b"x")
    assert caught.value.fix.startswith("choose another folder")
    assert [one.name for one in tmp_path.iterdir()] == ["file"]


def event(**facts):
    return {"segments": [], "device_traces": [[facts]]}


def segment(**facts):
    plain = {"device": 0, "address": 0, "total_size": 512, "blocks": []}
    return {"segments": [{**plain, **facts}], "device_traces": []}


@pytest.mark.parametrize(
    ("snapshot", "cause"),
    [
        (3, "it is a int, not a dict"),
        ([1, 2], "a segment is not a dict"),
        ({"device_traces": []}, "it has no lists"),
        ({"segments": [], "device_traces": [3]}, "device_traces[0] is not a list"),
        ({"segments": [], "device_traces": [[7]]}, "an event is not a dict"),
        (event(addr=0, size=1), "an event has no action"),
        (event(action="alloc", addr=0, size=10**6000), "it has only 1 piece"),
        (segment(blocks=3), "the blocks of a segment are not a list"),
        (segment(blocks=[3]), "a block is not a dict"),
        (segment(total_size=1.5), "it has only 1 piece"),
    ],
)
def test_a_snapshot_of_another_shape_is_refused(snapshot, cause):
    with pytest.raises(UsageError) as caught:
        read_recording(snapshot)
    assert caught.value.cause.startswith(cause)


@pytest.mark.parametrize("bad", [{"addr": -1}, {"size": -512}, {"size": "big"}, {"size": True}])
def test_an_impossible_number_costs_one_entry(bad):
    snapshot = take_snapshot(make_training())
    whole = analyse(read_recording(snapshot)).devices[0]
    snapshot["device_traces"][0].append({"action": "alloc", "addr": 1, "size": 1, **bad})
    snapshot["segments"][0]["blocks"].append({"size": -1})
    history = analyse(read_recording(snapshot))
    assert history.devices[0].peak == whole.peak
    assert history.notes == ("left out: 2 pieces of data with impossible numbers",)
    assert "2 pieces of data" in make_page(history)


def test_a_list_of_segments_is_a_snapshot_without_events():
    stack = [frame("/home/ada/train.py", 20, "forward")]
    old = {
        "size": 1024,
        "state": "active_allocated",
        "history": [{"real_size": 900, "frames": stack}],
    }
    listed = [{"device": 0, "address": 64, "total_size": 4096, "blocks": [old, {"size": 512}]}]
    (device,) = analyse(read_recording(listed)).devices
    assert (device.events, device.end.live_bytes, device.end.reserved_bytes) == (0, 1412, 4096)
    assert device.end.groups[0].place.frame.line == 20
    now = read_recording(take_snapshot(make_training())).traces[0].segments
    assert read_recording(take_snapshot(make_training())["segments"]).traces[0].segments == now


@pytest.mark.parametrize("module", [gzip, bz2, lzma], ids=["gz", "bz2", "xz"])
def test_a_compressed_snapshot(tmp_path, module):
    snapshot = take_snapshot(make_training())
    packed = module.compress(pickle.dumps(snapshot))
    assert load_snapshot(write(tmp_path, packed)) == snapshot
    for broken in (packed[: len(packed) // 2], packed[:30] + b"xx" + packed[32:]):
        with pytest.raises(UsageError):
            load_snapshot(write(tmp_path, broken))


def test_an_archive_is_named_with_what_unpacks_it(tmp_path):
    for start, program in ((b"PK\x03\x04", "unzip "), (b"(\xb5/\xfd", "unzstd ")):
        with pytest.raises(UsageError, match="is an archive") as caught:
            load_snapshot(write(tmp_path, start + b"00000000"))
        assert caught.value.fix.startswith(program)


def test_segments_without_a_list_of_events_are_read():
    segments = take_snapshot(make_training())["segments"]
    read = read_recording({"segments": segments})
    assert read == read_recording(segments)


def test_frames_of_another_shape_are_left_out():
    read = StackReader().read
    good = frame("a.py", 3, "f")
    broken = [7, None, {}, frame(7, 3, "f"), frame("a.py", "3", "f"), frame("a.py", True, "f")]
    assert read([good, *broken]) == (Frame("a.py", 3, "f"),)
    assert read("text") == read(None) == read({"a": 1}) == ()
    assert read([frame("a.py", 10**5000, "f")]) == (Frame("a.py", 0, "f"),)
    assert len(read([good] * 9999)) == DEEPEST_STACK


def test_odd_figures_make_a_page_all_the_same():
    largest = 2**63 - 1
    snapshot = {
        "segments": [
            {"device": 2**40, "address": largest, "total_size": largest, "blocks": [{"size": 0}]},
            {"device": 0, "address": 5, "total_size": 0, "blocks": [{"size": 9, "state": None}]},
        ],
        "device_traces": [
            [
                {"action": "alloc", "addr": largest, "size": largest, "time_us": -5},
                {"action": "alloc", "addr": largest, "size": largest, "time_us": 0},
                {"action": "???", "frames": 3},
                {"action": "oom", "size": 0},
                {"action": "segment_unmap", "addr": 0, "size": 0},
                {"action": "segment_free", "addr": 7, "size": 0, "time_us": largest},
            ]
        ],
        "labkit": {"max_entries": "many", "names": [1], "sources": [[1], ["a", 1]], "device": 3},
    }
    history = analyse(read_recording(snapshot))
    assert [device.device for device in history.devices] == ["cuda:0", "cuda:1099511627776"]
    assert '<section id="d1">' in make_page(history)
    assert "8192.0 PiB live" in repr(history)


def test_what_labkit_adds_is_read_back():
    names, sources = {"/tmp/1.py": "In[3]"}, [["a.py", 7, "x = 1"], ["b.py", "7", "no"], 3]
    own = {"names": {**names, 3: 4}, "sources": sources, "device": "cpu", "max_entries": 48}
    recording = read_recording(take_snapshot(make_training(), **own))
    assert recording.names == names
    assert recording.sources == {("a.py", 7): "x = 1"}
    (trace,) = recording.traces
    assert (trace.device, trace.max_entries, trace.has_cache) == ("cpu", 48, False)
