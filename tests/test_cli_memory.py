"""``labkit memory`` as people and programs see it, once and live."""

from __future__ import annotations

import argparse
import io
import json
import os
import re
import subprocess
import sys

import pytest

from labkit.cli import main
from labkit.cli import memory as command
from labkit.devices.nvml import SENTENCES
from labkit.memory.balance import read as snapshot_module
from labkit.memory.balance.model import Balance, DeviceProcess, Snapshot, ThisProcess, list_terms
from labkit.memory.balance.view import format_snapshot, render_balance
from tests.fakes.nvml import GIB, MIB, ROOT, PlayedHost, build_driver, script_driver, script_gpu

# The example of docs/memory.md.
GPU = Balance(
    "cuda",
    0,
    "cuda:0",
    "NVIDIA H100 80GB HBM3",
    "GPU-5d1c0f2e",
    total_bytes=81_559 * MIB,
    free_bytes=28_195 * MIB,
    driver_reserved_bytes=604 * MIB,
    this_process=ThisProcess(24_576 * MIB, 6_144 * MIB, 528 * MIB, 31_248 * MIB),
    other_processes_bytes=21_500 * MIB,
    processes=(
        DeviceProcess(4321, "python train.py", 31_248 * MIB),
        DeviceProcess(8765, None, 21_500 * MIB),
    ),
)
SNAPSHOT = Snapshot((GPU,), ("a note",))
TEXT = format_snapshot(SNAPSHOT) + "\n"


@pytest.fixture
def played(monkeypatch):
    """This machine has the GPU above, and no other device."""
    monkeypatch.setattr(snapshot_module, "take_snapshot", lambda: SNAPSHOT)
    monkeypatch.setattr(os, "environ", {})


class Terminal(io.StringIO):
    """A stdout that is a terminal, of an encoding."""

    def __init__(self, encoding="utf-8"):
        super().__init__()
        self._encoding = encoding

    @property
    def encoding(self):
        return self._encoding

    def isatty(self):
        return True


def test_the_command_prints_the_balance(played, capsys):
    assert main(["memory"]) == 0
    assert capsys.readouterr() == (TEXT, "")


def test_the_json_object_has_every_key_and_null_for_the_unknown(played, capsys):
    assert main(["memory", "--json"]) == 0
    out, err = capsys.readouterr()
    assert err == ""
    assert json.loads(out) == {
        "schema_version": 1,
        "devices": [
            {
                "kind": "cuda",
                "nvml_index": 0,
                "torch_name": "cuda:0",
                "name": "NVIDIA H100 80GB HBM3",
                "uuid": "GPU-5d1c0f2e",
                "total_bytes": 81_559 * MIB,
                "free_bytes": 28_195 * MIB,
                "driver_reserved_bytes": 604 * MIB,
                "this_process": {
                    "allocated_bytes": 24_576 * MIB,
                    "cached_bytes": 6_144 * MIB,
                    "context_bytes": 528 * MIB,
                    "used_bytes": 31_248 * MIB,
                },
                "other_processes_bytes": 21_500 * MIB,
                "processes": [
                    {"pid": 4321, "name": "python train.py", "used_bytes": 31_248 * MIB},
                    {"pid": 8765, "name": None, "used_bytes": 21_500 * MIB},
                ],
                "host_ids": False,
                "shared": False,
                "machine_bytes": None,
                "limit_bytes": None,
                "trouble": None,
                "used_bytes": 52_760 * MIB,
                "unaccounted_bytes": 12 * MIB,
            }
        ],
        "notes": ["a note"],
    }


@pytest.mark.parametrize(
    ("words", "environment", "colored"),
    [
        ([], {}, True),
        (["--no-color"], {}, False),
        ([], {"NO_COLOR": "1"}, False),
        ([], {"TERM": "dumb"}, False),
    ],
    ids=["terminal", "--no-color", "NO_COLOR", "dumb"],
)
def test_color_is_for_terminals_that_want_it(played, monkeypatch, words, environment, colored):
    terminal = Terminal()
    monkeypatch.setattr(sys, "stdout", terminal)
    monkeypatch.setattr(os, "environ", environment)
    assert main(["memory", *words]) == 0
    assert ("\x1b[94m█" in terminal.getvalue()) is colored
    assert colored or terminal.getvalue() == TEXT


def test_a_terminal_without_the_characters_gets_others(played, monkeypatch):
    terminal = Terminal("ascii")
    monkeypatch.setattr(sys, "stdout", terminal)
    assert main(["memory", "--no-color"]) == 0
    assert terminal.getvalue().isascii()
    assert "\n        ####" in terminal.getvalue()


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["--watch", "--json"], "--watch conflicts with --json"),
        (["--watch", "0"], "invalid --watch 0"),
        (["--watch", "-1"], "invalid --watch -1"),
        (["--watch", "nan"], "invalid --watch nan"),
        (["--watch", "inf"], "invalid --watch inf"),
        (["--watch", "soon"], "argument --watch: invalid float value: 'soon'"),
    ],
)
def test_what_cannot_be_watched_is_a_usage_error(played, capsys, words, sentence):
    assert main(["memory", *words]) == 2
    assert f"error: {sentence}\n" in capsys.readouterr().err


class Interrupt:
    """A sleep that is interrupted the third time; remembers how long each was."""

    def __init__(self):
        self.slept: list[float] = []

    def __call__(self, seconds):
        self.slept.append(seconds)
        if len(self.slept) == 3:
            raise KeyboardInterrupt


def watch_three(*, on_screen):
    """What is printed until the interrupt, with a picture that changes every time."""
    pictures = iter(["one\ntwo", "three", "four\nfive\nsix"])
    sleep = Interrupt()
    with pytest.raises(KeyboardInterrupt):
        command.watch(
            lambda: next(pictures),
            0.5,
            on_screen=on_screen,
            sleep=sleep,
            measure_height=lambda: 2,
        )
    return sleep


def test_a_watched_screen_is_drawn_in_place_and_given_back(capsys):
    sleep = watch_three(on_screen=True)
    assert sleep.slept == [0.5, 0.5, 0.5]
    assert capsys.readouterr().out == (
        "\x1b[?1049h\x1b[?25l\x1b[?7l"
        "\x1b[Hone\x1b[K\ntwo\x1b[K\x1b[J"
        "\x1b[Hthree\x1b[K\x1b[J"
        "\x1b[Hfour\x1b[K\n2 more lines in a higher window\x1b[K\x1b[J"
        "\x1b[?7h\x1b[?25h\x1b[?1049l"
    )


def test_a_watched_file_gets_one_picture_below_the_other(capsys):
    watch_three(on_screen=False)
    assert capsys.readouterr().out == "one\ntwo\n\nthree\n\nfour\nfive\nsix\n\n"


def test_ctrl_c_ends_watching_with_the_documented_code(played, monkeypatch, capsys):
    seen = []

    def watch(draw, interval_seconds, *, on_screen):
        seen.append((draw(), interval_seconds, on_screen))
        raise KeyboardInterrupt

    monkeypatch.setattr(command, "watch", watch)
    assert main(["memory", "--watch"]) == 130
    assert main(["memory", "--watch", "0.5"]) == 130
    assert seen == [(TEXT.rstrip("\n"), 2.0, False), (TEXT.rstrip("\n"), 0.5, False)]
    assert capsys.readouterr().err == "interrupted\ninterrupted\n"


def test_the_help_names_the_options():
    parser = argparse.ArgumentParser()
    command.add_commands(parser.add_subparsers())
    arguments = parser.parse_args(["memory", "--watch", "3"])
    assert (arguments.watch, arguments.json, arguments.run) == (3.0, False, command.show_memory)


@pytest.fixture(scope="module")
def driver(tmp_path_factory):
    pytest.importorskip("pynvml", reason="needs nvidia-ml-py")
    return build_driver(tmp_path_factory.mktemp("driver"))


@pytest.fixture
def host(tmp_path, driver):
    return PlayedHost(tmp_path, driver)


def test_a_played_driver_is_shown(host):
    used = f"process 5000001 {3 * GIB}"
    script = script_driver(script_gpu(0, used), script_gpu(1, "fail handle 15"))
    done = host.run(script, "memory")
    assert (done.returncode, done.stderr) == (0, "")
    assert re.findall(r"^\S.*", done.stdout, re.MULTILINE)[:2] == [
        "gpu 0   NVIDIA GeForce RTX 4090  GPU-00000000",
        "gpu 1   unknown",
    ]
    assert "other processes                          3,072 MiB\n" in done.stdout
    assert f"gpu 1   unknown\n        {SENTENCES['gpu lost']}\n" in done.stdout


def test_a_pipe_that_knows_only_ascii_gets_a_bar_of_it(host):
    done = host.run(script_driver(script_gpu()), "memory", PYTHONIOENCODING="ascii")
    assert done.returncode == 0
    assert "        ::??????????..." in done.stdout
    assert done.stdout.isascii()


# The image of the tests carries what the lab is made of; documentation is not.
in_checkout = pytest.mark.skipif(not (ROOT / "docs").is_dir(), reason="needs docs/: a checkout")


@in_checkout
def test_the_documentation_shows_what_the_command_prints():
    text = (ROOT / "docs/memory.md").read_text(encoding="utf-8")
    assert f"$ labkit memory\n{format_snapshot(Snapshot((GPU,)))}\n```" in text
    for words in {term.words for term in list_terms(GPU)}:
        assert f"\n- **{words}**: " in text


@in_checkout
def test_the_documentations_picture_is_what_the_product_draws():
    """Drawn anew: the file's text is ``render_balance(GPU, standalone=True)`` and a line's end."""
    drawn = (ROOT / "docs/pictures/balance.svg").read_text(encoding="utf-8")
    assert drawn == render_balance(GPU, standalone=True) + "\n"


@pytest.mark.slow
@in_checkout
def test_the_documentations_code_runs(capsys, tmp_path, monkeypatch):
    text = (ROOT / "docs/memory.md").read_text(encoding="utf-8")
    blocks = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    monkeypatch.chdir(tmp_path)
    shared: dict[str, object] = {}
    for block in blocks:  # one after the other, as a reader types them
        exec(compile(block, "docs/memory.md", "exec"), shared)
    printed = capsys.readouterr().out
    told = ("process: peak ", "parameters 2.0 MiB", "before the first event", "fits 24 GiB")
    assert [words for words in told if words not in printed] == []
    assert {path.name for path in tmp_path.iterdir()} == {"history.html", "history.pickle"}


LOADED = """
import contextlib, io, sys
from labkit.cli import main
with contextlib.redirect_stdout(io.StringIO()):
    main(["memory"])
print(*sorted({name.partition(".")[0] for name in sys.modules}))
"""


def test_nothing_heavy_is_loaded():
    done = subprocess.run(
        [sys.executable, "-c", LOADED], capture_output=True, text=True, check=True, timeout=60
    )
    loaded = set(done.stdout.split())
    assert "labkit" in loaded
    assert loaded.isdisjoint({"torch", "numpy", "IPython", "matplotlib", "dataclasses", "rich"})
