"""``labkit devices`` as people and programs see it."""

from __future__ import annotations

import argparse
import json
import os
import shutil

import pytest

from labkit.cli import devices, main
from labkit.cli.devices import describe_detection, fold_screen, format_detection, format_devices
from labkit.devices import detect
from labkit.devices.detect import Detection, Device
from labkit.devices.telemetry import Telemetry
from tests.snapshots import assert_snapshot

GIB = 2**30
GPU = Device(
    "cuda",
    "cuda:0",
    "NVIDIA H200",
    "GPU-0a1b2c3d",
    141 * GIB,
    compute_capability="9.0",
    mig=False,
    driver="580.95.05",
    cuda="13.0",
)
CPU = Device(
    "cpu",
    "cpu",
    "AMD EPYC 9654",
    total_bytes=16 * GIB,
    limit_bytes=2 * GIB,
    cores=1.5,
    physical_cores=2,
    logical_cores=4,
    vector_extensions=("AVX", "AVX2"),
)

INSTANCE = Device(
    "cuda",
    name="NVIDIA H200 MIG 1g.18gb",
    uuid="MIG-11aa",
    total_bytes=18 * GIB,
    compute_capability="9.0",
    driver="580.95.05",
    cuda="13.0",
    parent_uuid="GPU-0a1b2c3d",
)
SPARK = Device("cuda", "cuda:0", "NVIDIA GB10", "GPU-77", 120 * GIB, unified=True)
OTHER = Device("rocm", None, "AMD Instinct MI300X", total_bytes=GIB, compute_capability="gfx942")

KEYS = (
    "kind torch_name name uuid total_bytes limit_bytes compute_capability mig driver cuda cores"
    " physical_cores logical_cores vector_extensions trouble parent_uuid unified"
)
DETECTIONS = (
    Detection("cuda:0", (GPU, CPU), ()),
    Detection("cuda:0", (INSTANCE, SPARK, OTHER), ()),
    Detection(None, (Device("cuda", mig=True), Device("cpu", "cpu")), ("a note", "another note")),
)


def test_the_screens_of_known_rare_and_unknown_devices():
    assert_snapshot("devices", "\n\n---\n\n".join(map(format_detection, DETECTIONS)) + "\n")


def test_a_name_cannot_act_on_the_terminal(monkeypatch, capsys):
    hostile = GPU._replace(name="H200\x1b]0;title\x07\u202e")
    monkeypatch.setattr(detect, "detect_devices", lambda: Detection("cuda:0", (hostile,), ()))
    assert main(["devices"]) == 0
    shown = capsys.readouterr().out
    assert "H200\\x1b]0;title\\x07\\u202e " in shown
    assert "\x1b" not in shown


@pytest.mark.parametrize(
    ("extensions", "words"), [((), "none"), (None, "unknown")], ids=["none", "unknown"]
)
def test_no_vector_extensions_is_not_unknown_ones(extensions, words):
    cpu = CPU._replace(vector_extensions=extensions)
    assert format_detection(Detection("cpu", (cpu,), ())).endswith(f"vectors     {words}")


def test_the_json_object_has_every_key_and_null_for_the_unknown():
    described = describe_detection(Detection("cuda:0", (GPU, CPU), ("a note",)))
    printed = json.loads(json.dumps(described))
    gpu, cpu = printed["devices"]
    assert (printed["best"], printed["notes"]) == ("cuda:0", ["a note"])
    assert " ".join(gpu) == KEYS
    assert (gpu["uuid"], gpu["total_bytes"], gpu["mig"]) == ("GPU-0a1b2c3d", 141 * GIB, False)
    assert (gpu["limit_bytes"], gpu["cores"], gpu["trouble"]) == (None, None, None)
    assert list(cpu) == list(gpu)
    assert (cpu["cores"], cpu["vector_extensions"], cpu["mig"]) == (1.5, ["AVX", "AVX2"], None)


def test_the_command_prints_the_screen(monkeypatch, capsys):
    monkeypatch.setattr(detect, "detect_devices", lambda: Detection("cuda:0", (GPU, CPU), ()))
    assert main(["devices"]) == 0
    assert capsys.readouterr() == (format_devices(DETECTIONS[0], Telemetry()) + "\n", "")
    assert main(["devices", "--all"]) == 0
    assert capsys.readouterr() == (format_detection(DETECTIONS[0]) + "\n", "")


def test_the_command_prints_one_json_object_of_this_machine(capsys):
    assert main(["devices", "--json"]) == 0
    out, err = capsys.readouterr()
    printed = json.loads(out)
    keys = ["schema_version", "best", "devices", "notes", "telemetry", "paths", "processes"]
    assert list(printed) == keys
    assert printed["devices"][-1]["kind"] == "cpu"
    assert err == ""


LOST = Device(
    "cuda", name="NVIDIA RTX PRO 6000 Blackwell Max-Q Workstation Edition", trouble="x " * 60
)
CROWDED = Detection("cuda:0", (GPU, INSTANCE, SPARK, OTHER, LOST, CPU), ("a note " * 20,))


@pytest.mark.parametrize("everything", [False, True], ids=["table", "all"])
@pytest.mark.parametrize("columns", [40, 60, 80, 200])
def test_the_lines_fold_at_the_terminals_width(columns, everything):
    screen = format_devices(CROWDED, Telemetry(), everything=everything, columns=columns)
    assert max(map(len, screen.splitlines())) <= columns
    whole = format_devices(CROWDED, Telemetry(), everything=everything)
    assert max(map(len, whole.splitlines())) > 100
    assert "141.0 GiB" in screen
    assert "6000 Blackwell" in " ".join(screen.split()) or columns >= 80


def test_commands_and_matrices_are_not_folded():
    command = f"        try: sudo nvidia-smi {'-i 0 ' * 20}"
    matrix = f"GPU0    -       {'NV18    ' * 10}"
    assert fold_screen(f"{command}\n{matrix}", 40) == f"{command}\n{matrix}"


@pytest.mark.parametrize("seconds", ["0", "-1", "nan", "inf", "1e12"])
def test_the_devices_are_watched_every_few_seconds_or_not_at_all(seconds, capsys):
    assert main(["devices", f"--watch={seconds}"]) == 2
    assert "--watch cannot be used with" in capsys.readouterr().err


def end_watching(seconds):
    raise KeyboardInterrupt


@pytest.mark.parametrize(("rows", "columns"), [(12, 60), (24, 80), (100, 200)])
def test_what_is_watched_does_not_scroll(rows, columns, monkeypatch, capsys):
    monkeypatch.setattr(detect, "detect_devices", lambda: CROWDED)
    monkeypatch.setattr(devices, "_read_telemetry", Telemetry)
    monkeypatch.setattr(devices, "is_terminal", lambda: True)
    monkeypatch.setattr(shutil, "get_terminal_size", lambda: os.terminal_size((columns, rows)))
    arguments = argparse.Namespace(json=False, watch=1, all=True)
    assert devices._watch(arguments, end_watching) == 0
    shown = capsys.readouterr().out
    assert shown.startswith(devices.CLEAR)
    lines = shown.removeprefix(devices.CLEAR).split("\n")
    assert sum(max(1, -(-len(line) // columns)) for line in lines) <= rows
    assert ("more lines" in shown) is (rows < 100)
