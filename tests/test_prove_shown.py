"""What `labkit prove` prints and writes: text, page, JSON, exit codes, and two proofs compared."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from html.parser import HTMLParser

import pytest
import torch
from msgspec.structs import replace

from labkit.cli import main, prove
from labkit.prove.model import Proof, read_proof
from labkit.prove.run import ProofRun, ProveOptions
from labkit.prove.view import (
    compare_proofs,
    format_proof,
    format_proof_comparison,
    format_value,
    render_proof,
    render_roofline,
)
from tests.fakes.played_cards import (
    CARDS,
    H100,
    PlayedStream,
    make_detection,
    make_tools,
    play_card,
)


def make_proof(card="healthy", **facts):
    script = CARDS[card] if isinstance(card, str) else card
    options = ProveOptions(seconds=10_000)
    tools = make_tools(PlayedStream(script), **facts)
    return ProofRun(make_detection(), options, tools, say=lambda words: None).run()


@pytest.fixture
def play(monkeypatch, tmp_path):
    """Call it with scripts of cards: the machine that `labkit prove` then runs on."""

    def play(*scripts, detection=None, **facts):
        monkeypatch.chdir(tmp_path)
        found = detection or make_detection()
        monkeypatch.setattr("labkit.devices.detect.detect_devices", lambda: found)
        tools = make_tools(PlayedStream(*scripts), clock=lambda: 0.0, **facts)
        monkeypatch.setattr(prove, "_make_tools", lambda: tools)
        monkeypatch.setattr("labkit.prove.run.find_stored", lambda: ())

    return play


# The command


def test_a_healthy_card_exits_with_0_and_leaves_two_files(play, capsys, tmp_path):
    play(CARDS["healthy"])
    assert main(["prove"]) == 0
    said = capsys.readouterr()
    assert "matmul, bfloat16" in said.out
    assert said.out.rstrip().endswith("all well")
    assert "proof.html" in said.err
    assert read_proof(tmp_path / "proof").command == "labkit prove"
    assert (tmp_path / "proof" / "proof.html").read_text().startswith("<!DOCTYPE html>")


@pytest.mark.parametrize(
    ("card", "code"), [("capped", 1), ("worn", 1), ("x4-linked", 1)], ids=["capped", "worn", "x4"]
)
def test_the_exit_code_is_the_verdicts(play, card, code):
    play(CARDS[card])
    assert main(["prove", "--output", "out"]) == code


def test_json_is_one_object_and_the_text_goes_to_stderr(play, capsys):
    play(CARDS["x4-linked"])
    assert main(["prove", "--json", "--skip", "labs"]) == 1
    said = capsys.readouterr()
    described = json.loads(said.out)
    assert (described["schema_version"], described["status"]) == (1, "low")
    assert described["command"] == "labkit prove --skip labs"
    assert "low: copy, to, pinned" in said.err


def test_ctrl_c_exits_with_130_and_the_files_are_there(play, tmp_path):
    play([*CARDS["healthy"][:14], KeyboardInterrupt])
    assert main(["prove"]) == 130
    assert read_proof(tmp_path / "proof").status == "interrupted"
    assert "Interrupted" in (tmp_path / "proof" / "proof.html").read_text()


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (["--device", "cuda:3"], 3, "no such device"),
        (["--device", "foo"], 2, "invalid --device 'foo'"),
        (["--device", "cuda:"], 2, "invalid --device 'cuda:'"),
        (["--skip", "lab"], 2, "labkit prove --skip labs"),
        (["--seconds", "-1"], 2, "above 0"),
        (["--compare", "a", "b"], 2, "cannot be read"),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else "",
)
def test_a_wrong_request_says_what_to_type(play, capsys, words, code, said):
    play(CARDS["healthy"])
    assert main(["prove", *words]) == code
    assert said in capsys.readouterr().err


def test_an_earlier_proof_is_kept(play, tmp_path, capsys):
    for status in (0, 0, 0):
        play(CARDS["healthy"])
        assert main(["prove"]) == status
    kept = {path.name for path in (tmp_path / "proof").iterdir()}
    assert len([name for name in kept if name.startswith("proof-2") and ".json" in name]) == 2
    assert {"proof.json", "proof.html"} <= kept
    assert "the earlier proof is kept: " in capsys.readouterr().err


@pytest.mark.parametrize("words", [["--skip", "measure"], []], ids=["skipped", "interrupted"])
def test_torchs_version_is_known_also_where_nothing_was_measured(play, tmp_path, words):
    play([KeyboardInterrupt])
    main(["prove", *words])
    assert read_proof(tmp_path / "proof").versions.torch == torch.__version__


def compare_written(tmp_path, capsys, changed, *options):
    """What --compare prints of a proof and of the same one with changed fields."""
    proof = {**make_proof("healthy").describe(), **changed}
    path = tmp_path / "changed.json"
    path.write_text(json.dumps(proof))
    code = main(["prove", "--compare", str(path), str(path), *options])
    return code, capsys.readouterr()


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"devices": []}, "has no devices"),
        ({"devices": [{"figures": "x"}]}, "is damaged"),
        ({"devices": [{"kind": "cpu", "figures": []}]}, "has no figures"),
        ({"status": 3}, "is damaged"),
    ],
    ids=str,
)
def test_a_damaged_proof_is_compared_with_a_warning(tmp_path, capsys, changed, words):
    code, said = compare_written(tmp_path, capsys, changed)
    assert code == 0
    assert said.err.count("warning: ") == 2
    assert words in said.err


@pytest.mark.parametrize("version", ["1", True, 0, None, 1.5])
def test_another_kind_of_schema_version_is_not_a_proof(tmp_path, capsys, version):
    code, said = compare_written(tmp_path, capsys, {"schema_version": version})
    assert code == 2
    assert "is not a proof" in said.err


def test_a_foreign_verdict_stays_in_its_line(tmp_path, capsys):
    _, said = compare_written(tmp_path, capsys, {"verdict": "well\n\nall\x1b[31m\u2028good"})
    assert [line for line in said.out.splitlines() if line.startswith("all")] == []
    assert "well  all" in said.out


def test_set_variables_are_in_the_text():
    proof = replace(make_proof("healthy"), variables={"OMP_NUM_THREADS": "1"})
    assert "OMP_NUM_THREADS=1: it limits the CPU's threads" in format_proof(proof)


def test_a_folder_that_cannot_be_made_is_named(play, tmp_path, capsys):
    play(CARDS["healthy"])
    (tmp_path / "taken").write_text("")
    assert main(["prove", "--output", "taken"]) == 2
    assert "taken" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("gpus", "quick", "seconds"),
    [(0, False, 110), (1, False, 95), (4, False, 275), (1, True, 50), (2, True, 100)],
)
def test_the_default_limit_grows_with_the_gpus(gpus, quick, seconds):
    assert prove._choose_seconds(gpus, quick=quick) == seconds


# The text


def test_a_low_figure_is_shown_with_its_causes_and_commands():
    said = format_proof(make_proof("capped"))
    assert "low: sustained, rate" in said
    assert "power limit: yes: the power limit is set to 350 W; the card's default is 700 W" in said
    assert "try: nvidia-smi -q -d POWER" in said
    assert "heat: no: not seen at 58 C" in said


def test_a_figure_without_a_value_says_why():
    proof = make_proof([*CARDS["healthy"][:-1], {"left_out": "compile"}, {"step": "end"}])
    assert re.search(r"compile +skipped: no time left", format_proof(proof))


@pytest.mark.parametrize(
    ("value", "unit", "said"),
    [
        (0.0042, "s", "0.004 s"),
        (0.733, "x", "0.733 x"),
        (15.86, "us", "15.9 us"),
        (1266.0, "TFLOP/s", "1,266 TFLOP/s"),
        (0.0, "x", "0 x"),
        (None, "s", "not measured"),
    ],
)
def test_values_have_three_digits(value, unit, said):
    assert format_value(value, unit) == said


# The page


class Page(HTMLParser):
    """Notes the tags that are open, what would be loaded, and the texts."""

    VOID = frozenset({"meta", "br", "path"})

    def __init__(self, text):
        super().__init__()
        self.open, self.loads = [], []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.loads += [value for name, value in attrs if name in ("src", "href", "data")]
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        pass

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


@pytest.mark.parametrize("card", CARDS)
def test_the_page_is_whole_and_loads_nothing(card):
    text = render_proof(make_proof(card))
    page = Page(text)
    assert page.open == []
    assert page.loads == []


def test_the_page_has_the_verdict_the_causes_the_limits_and_the_checks():
    text = render_proof(make_proof("x4-linked"))
    assert "figures measured: 2 low, 1 to look at" in text
    assert "PCIe 5.0 x4 under load" in text
    assert "132 SMs x 4,096 FLOP x 1980 MHz" in text
    assert 'aria-label="roofline: ' in text
    assert "driver 580.159.04" in text


def test_hostile_names_are_escaped():
    card = play_card()
    figure = next(event for event in card if "figure" in event)
    figure["figure"]["title"] = "<script>alert(1)</script>\x1b[2J"
    proof = make_proof(card)
    assert "<script>alert" not in render_proof(proof)
    assert "\x1b" not in format_proof(proof)


def test_an_empty_proof_can_be_shown():
    assert Page(render_proof(Proof())).open == []
    assert format_proof(Proof()) == ""


def test_a_roofline_needs_two_points():
    device = make_proof().devices[0]
    assert render_roofline(device).count('class="dot') == 5
    few = make_proof(play_card(steps=("transfers",))).devices[0]
    assert render_roofline(few) == ""


def test_the_matrix_of_links_has_a_row_for_each_gpu():
    links = [
        {"key": f"peer.{a}-{b}", "title": f"{a} to {b}", "unit": "GB/s", "value": 400.0}
        for a in range(3)
        for b in range(3)
        if a != b
    ]
    text = render_proof(read_from({"devices": [], "links": links}))
    assert text.count("to cuda:") == 3


def read_from(described):
    from labkit.notebooks.result import fit

    return fit(described, Proof)


# Two proofs


def test_two_proofs_are_compared_by_figure_and_setting():
    before, after = make_proof("capped"), make_proof("healthy")
    pairs = {one.title: one for one in compare_proofs(before, after)}
    assert pairs["sustained, rate"].better is True
    assert pairs["launch"].better is None
    said = format_proof_comparison(before, after)
    assert "power limit in W: 350.0 -> 700.0" in said
    assert re.search(r"sustained, rate +380 TFLOP/s +640 TFLOP/s +1.68 x  better", said)
    assert H100 in said


def test_a_longer_duration_is_worse():
    slow = make_proof(play_card(values={"launch": 30.0}))
    pairs = {one.title: one for one in compare_proofs(make_proof(), slow)}
    assert pairs["launch"].better is False


def test_compare_prints_json_too(tmp_path, capsys):
    for name, card in (("a", "healthy"), ("b", "x4-linked")):
        (tmp_path / name).mkdir()
        described = make_proof(card).describe()
        (tmp_path / name / "proof.json").write_text(json.dumps(described))
    assert main(["prove", "--json", "--compare", str(tmp_path / "a"), str(tmp_path / "b")]) == 0
    described = json.loads(capsys.readouterr().out)
    ratio = next(one for one in described["figures"] if one["title"] == "copy, to, pinned")
    assert ratio["ratio"] == pytest.approx(13.4 / 55.0)
    assert (described["a"]["status"], described["b"]["status"]) == ("well", "low")


# The whole command on this machine's CPU


@pytest.mark.slow
def test_a_quick_proof_of_the_cpu_measures_it(tmp_path):
    command = [sys.executable, "-m", "labkit", "prove", "--quick", "--device", "cpu"]
    command += ["--output", str(tmp_path), "--json", "--skip", "doctor"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=250, check=False)
    described = json.loads(done.stdout)
    figures = {one["key"]: one for one in described["devices"][0]["figures"]}
    assert figures["matmul.float32"]["value"] > 0
    assert figures["copy.device"]["unit"] == "GB/s"
    assert not [one for one in figures.values() if one["status"] == "failed"]
    assert [fact["status"] for fact in described["facts"]] == ["ok"]
    assert done.returncode in (0, 1)  # a busy machine is rightly low
    assert (tmp_path / "proof.html").is_file()
