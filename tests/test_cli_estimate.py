"""``labkit estimate`` as people and programs see it."""

from __future__ import annotations

import json
import sys

import pytest

from labkit.cli import main
from labkit.cli.memory import MODULE_NAME
from labkit.cli.named import format_table, note_falls
from labkit.memory.estimate.model import Estimate, EstimateObstacle, NamedPlan, Target

TRAIN = """\
import torch
from net import Net

def make_step(batch=8):
    model = Net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    inputs = torch.ones(batch, 100)
    def step():
        optimizer.zero_grad()
        loss = model(inputs).mean()
        loss.backward()
        optimizer.step()
        print("loss", loss.item())
    return step

def evaluate(batch=8):
    model, inputs = Net(), torch.ones(batch, 100)
    return lambda: model(inputs)

def decide(batch=8):
    torch.ones(int(torch.randn(batch).exp().sum()))

def broken(batch=8):
    return Net()(torch.ones(batch, 7))

size = 3
"""
NET = """\
from torch import nn

class Net(nn.Linear):
    def __init__(self):
        super().__init__(100, 50, bias=False)
"""


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A folder with a training script and the model beside it."""
    (tmp_path / "train.py").write_text(TRAIN)
    (tmp_path / "net.py").write_text(NET)
    monkeypatch.chdir(tmp_path)
    monkeypatch.delitem(sys.modules, "net", raising=False)
    yield tmp_path
    for name in ("net", MODULE_NAME):
        sys.modules.pop(name, None)


def test_the_estimate_on_the_screen(folder, capsys):
    assert main(["estimate", "train.py:make_step"]) == 0
    shown = capsys.readouterr()
    assert shown.out.startswith("make_step, batch 8\n")
    assert "tensors at the peak                           43.8 KiB" in shown.out
    assert shown.err == "loss ?\nloss ?\n"
    assert str(folder) not in sys.path


@pytest.mark.parametrize(
    ("words", "code"),
    [
        (["train.py:make_step", "--device", "24 GiB"], 0),
        (["train.py:make_step", "--device", "100 MiB"], 1),
        (["train.py:make_step", "--device", "600 MiB"], 1),
        (["train.py:decide", "--device", "24 GiB"], 1),
        (["train.py:decide"], 0),
        (["train.py:evaluate", "--device", "24 GiB", "--inference"], 0),
    ],
    ids=["fits", "does not", "close", "not known", "nothing to fit", "inference"],
)
def test_the_exit_code_says_whether_it_fits(folder, capsys, words, code):
    assert main(["estimate", *words]) == code
    assert capsys.readouterr().out.startswith(words[0].partition(":")[2])


def test_json_is_one_object_and_the_users_prints_are_not_in_it(folder, capsys):
    words = ["train.py:make_step", "--batch", "100000000", "--device", "24 GiB", "--json"]
    assert main(["estimate", *words]) == 1
    shown = capsys.readouterr()
    told = json.loads(shown.out)
    assert told["schema_version"] == 1
    assert told["device"] == {
        "name": "24 GiB",
        "kind": "cuda",
        "capacity_bytes": 24 * 2**30,
        "taken_bytes": None,
    }
    assert (told["fits"], told["complete"], told["obstacle"]) == (False, True, None)
    assert told["needed_bytes"][0] == 24 * 2**30 - told["spare_bytes"]
    assert sum(told["kinds"].values()) == told["peak_bytes"]
    assert 1 < told["largest_batch"] < 100_000_000
    assert told["lines"][0]["file"] == str(folder / "train.py")
    assert shown.err.startswith("loss ?\nloss ?\ntrying batch 50000000\ntrying batch ")
    assert shown.err.count("loss") == 2


def test_json_names_the_obstacle(folder, capsys):
    assert main(["estimate", "train.py:decide", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert (told["complete"], told["fits"]) == (False, None)
    assert told["obstacle"]["operator"] == "aten._local_scalar_dense.default"
    assert told["obstacle"]["line"] == 21


def test_a_path_with_a_space_is_quoted_in_the_command(folder, capsys):
    (folder / "my step.py").write_text("def make_step(batch=2): ...")
    assert main(["estimate", "my step.py:make", "--json"]) == 2
    fix = json.loads(capsys.readouterr().out)["error"]["fix"]
    assert fix == "labkit estimate 'my step.py:make_step'"


@pytest.mark.parametrize(
    ("words", "what", "fix"),
    [
        (["train.py"], "'train.py' does not name a function", "train.py:make_step"),
        (["tran.py:make_step"], "tran.py does not exist", "train.py:make_step"),
        (["train.py:make_stp"], "no function 'make_stp'", "train.py:make_step"),
        (["train.py:size"], "no function 'size'", "train.py:make_step"),
        (["train.py:broken"], "broken raised RuntimeError: a and b", "--debug"),
        (["train.py:make_step", "--batch", "0"], "--batch '0'", "--batch 32"),
        (["notes.txt:f"], "notes.txt is not a Python file", "train.py:make_step"),
        (["train.py:make_step", "--task", "train", "--lora", "r=4"], "--task, --lora", "omit"),
        (["train.py:make_step", "--checkpointing"], "--checkpointing cannot change", "omit"),
    ],
    ids=[
        "no function",
        "no file",
        "a near match",
        "a number",
        "its own error",
        "no batch",
        "text",
        "options for models by name",
        "a switch for models by name",
    ],
)
def test_what_is_wrong_is_said_without_a_traceback(folder, capsys, words, what, fix):
    (folder / "notes.txt").write_text("hello")
    assert main(["estimate", *words, "--json"]) == 2
    shown = capsys.readouterr()
    error = json.loads(shown.out)["error"]
    assert what in error["what"]
    assert fix in error["fix"]
    assert error["cause"]
    assert "Traceback" not in shown.err


@pytest.mark.parametrize(
    ("words", "what", "fix"),
    [
        (["--inference", "--task", "train"], "--inference conflicts with --task train", "--task"),
        (
            ["--inference", "--optimizer", "sgd"],
            "--optimizer sgd conflicts",
            "--optimizer, or --inf",
        ),
        (["--task", "infer", "--lora", "r=4"], "--lora conflicts with --task infer", "--lora, or"),
        (
            ["--inference", "--lora", "r=4", "--checkpointing"],
            "--lora and --checkpointing conflict with --inference",
            "leave out --lora and --checkpointing, or --inference",
        ),
    ],
)
def test_options_that_contradict_each_other_are_refused(folder, capsys, words, what, fix):
    (folder / "config.json").write_text('{"model_type": "llama"}')
    assert main(["estimate", "hf:config.json", *words, "--json"]) == 2
    error = json.loads(capsys.readouterr().out)["error"]
    assert what in error["what"]
    assert fix in error["fix"]


@pytest.mark.parametrize(
    ("source", "what", "cause"),
    [
        ("def f(:\n", "bad.py is not valid Python: invalid syntax", "bad.py:1: def f(:"),
        ("import nowhere\n", "bad.py raised ModuleNotFoundError: No module named 'nowhere'", ""),
        ("raise SystemExit\n", "bad.py raised SystemExit: no message", "bad.py:1"),
    ],
    ids=["syntax", "import", "exit"],
)
def test_a_file_that_does_not_load(folder, capsys, source, what, cause):
    (folder / "bad.py").write_text(source)
    assert main(["estimate", "bad.py:f", "--json"]) == 2
    shown = capsys.readouterr()
    told = json.loads(shown.out)["error"]
    assert told["what"] == what
    assert cause in told["cause"]
    assert "Traceback" not in shown.err


def test_a_gpu_that_is_not_here_has_an_exit_code_of_its_own(folder, capsys):
    assert main(["estimate", "train.py:make_step", "--device", "cuda:42"]) == 3
    assert "cuda:42 is not on this machine" in capsys.readouterr().err


def test_a_terminal_that_knows_ascii_alone(folder, monkeypatch):
    import io

    output = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    monkeypatch.setattr(sys, "stdout", output)
    assert main(["estimate", "train.py:evaluate"]) == 0
    output.seek(0)
    assert "# parameters" in output.read()


SEGMENT = 2 * 2**20


@pytest.mark.parametrize(
    ("peaks", "reserved", "obstacle", "why"),
    [
        ((3, 4, 5), (24, 22, 22), None, "segments of 2 and 20 MiB"),
        ((5, 4, 6), (5, 4, 6), None, "computes in another way"),
        ((5, 1, 6), (5, 1, 6), EstimateObstacle("relu", "stops"), "lower bound"),
        ((3, 4, 5), (4, 4, 6), None, None),
    ],
    ids=["segments", "tensors", "stopped", "none"],
)
def test_a_table_in_which_a_larger_batch_needs_less_says_so(peaks, reserved, obstacle, why):
    found = [
        (
            NamedPlan("hf", "x", batch=batch, sequence=64),
            Estimate(
                "x, sequence 64",
                Target("24 GiB", "cuda", 24 * 2**30),
                peak * SEGMENT,
                {},
                reserved_bytes=held * SEGMENT,
                context_bytes=(0, 0),
                obstacle=obstacle if batch == 8 else None,
            ),
            None,
        )
        for batch, peak, held in zip((4, 8, 16), peaks, reserved, strict=True)
    ]
    notes = note_falls(found)
    assert len(notes) == bool(why)
    if why:
        assert "batch 8 less than batch 4" in notes[0]
        assert why in notes[0]
        assert format_table(found).endswith(f"note: {notes[0]}")
