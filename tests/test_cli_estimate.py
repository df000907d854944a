"""``labkit estimate`` as people and programs see it."""

from __future__ import annotations

import json
import sys

import pytest

from labkit.cli import main
from labkit.cli.estimate import MODULE_NAME

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
    if torch.ones(batch).sum() > 0:
        pass

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
TEXT = """\
make_step, batch 8
        ████████████████████████████▓▓▓▓▓▓▓▓▓▓▓▓▓▓▓▓▓▓▓▓▓▓▓▓▓▓▓▓╱╱╱░░░░░
        █ parameters                                    19.5 KiB
        ▓ gradients                                     19.5 KiB
        ╱ activations                                    1.6 KiB
        ░ inputs                                         3.1 KiB
          tensors at the peak                           43.8 KiB

no device was named: nothing to fit
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
    assert shown.out.startswith(TEXT)
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
    assert shown.err.startswith("loss ?\nloss ?\ntries batch 50000000\ntries batch ")
    assert shown.err.count("loss") == 2


def test_json_names_the_obstacle(folder, capsys):
    assert main(["estimate", "train.py:decide", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert (told["complete"], told["fits"]) == (False, None)
    assert told["obstacle"]["operator"] == "aten._local_scalar_dense.default"
    assert told["obstacle"]["line"] == 21


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        pytest.param(
            ["train.py"],
            "error: 'train.py' names no function\n"
            "  cause: a file and a function in it are needed, with a colon between them\n"
            "  try: labkit estimate train.py:make_step\n",
            id="no function",
        ),
        pytest.param(
            ["tran.py:make_step"],
            "error: there is no file tran.py\n"
            "  cause: in ./ there are: net.py, train.py\n"
            "  try: labkit estimate train.py:make_step\n",
            id="no file",
        ),
        pytest.param(
            ["train.py:make_stp"],
            "error: train.py has no function 'make_stp'\n"
            "  cause: its functions are: make_step, evaluate, decide, broken\n"
            "  try: labkit estimate train.py:make_step\n",
            id="a near match",
        ),
        pytest.param(
            ["train.py:size"],
            "error: train.py has no function 'size'\n"
            "  cause: its functions are: make_step, evaluate, decide, broken\n"
            "  try: labkit estimate train.py:make_step\n",
            id="no function of that name",
        ),
        pytest.param(
            ["train.py:broken"],
            "error: broken raised RuntimeError: a and b must have same reduction dim,"
            " but got [8, 7] X [100, 50].\n"
            "  cause: train.py:25: return Net()(torch.ones(batch, 7))\n"
            "  try: run it once for real with a small batch; --debug shows the traceback\n",
            id="an error of its own",
        ),
        pytest.param(
            ["train.py:make_step", "--batch", "0"],
            "error: a batch of 0 samples\n  try: a batch of 1 or more\n",
            id="no batch",
        ),
    ],
)
def test_what_is_wrong_is_said_without_a_traceback(folder, capsys, words, expected):
    assert main(["estimate", *words]) == 2
    shown = capsys.readouterr()
    assert (shown.out, shown.err) == ("", expected)


@pytest.mark.parametrize(
    ("source", "what", "cause"),
    [
        ("def f(:\n", "bad.py is not Python: invalid syntax", "bad.py:1: def f(:"),
        ("import nowhere\n", "bad.py raised ModuleNotFoundError: No module named 'nowhere'", ""),
        ("raise SystemExit\n", "bad.py raised SystemExit: without a word", "bad.py:1"),
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


def test_a_file_that_is_no_python_is_refused(folder, capsys):
    (folder / "notes.txt").write_text("hello")
    assert main(["estimate", "notes.txt:f"]) == 2
    assert "error: notes.txt is no Python file\n" in capsys.readouterr().err


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
