"""What `labkit prove` makes of cards that are played, and the limits that it judges them by."""

from __future__ import annotations

import json
from pathlib import Path

import jsonschema
import pytest
from msgspec.structs import replace

from labkit.cli import main
from labkit.devices.detect import Detection, Device
from labkit.doctor.check import Finding
from labkit.errors import DeviceMissingError, UsageError
from labkit.notebooks.result import ClaimOutcome, NotebookResult
from labkit.prove.judge import VARIABLES, find_best, judge_device, judge_proof, list_variables
from labkit.prove.limits import find_limit
from labkit.prove.model import (
    DeviceProof,
    Figure,
    HardwareFacts,
    Proof,
    ProofFact,
    format_schema,
    read_proof,
    scrub,
)
from labkit.prove.run import ProofRun, ProveOptions, choose_devices, find_stored
from labkit.prove.view import render_proof
from tests.fakes.played_cards import (
    CARDS,
    H100,
    PlayedStream,
    make_detection,
    make_figure,
    make_tools,
    play_card,
)

PATH = "labkit/prove/proof.schema.json"


def prove(*scripts, detection=None, options=None, findings=(), keep=None, **facts):
    """The proof of a played machine, by default with one H100."""
    stream = PlayedStream(*scripts)
    run = ProofRun(
        detection or make_detection(),
        options or ProveOptions(seconds=10_000),
        make_tools(stream, *findings, **facts),
        say=lambda words: None,
        keep=keep or (lambda proof: None),
    )
    return run.run()


def get_figure(proof, key):
    return next(figure for _, figure in proof.figures if figure.key == key)


def list_found(causes):
    return [cause.name for cause in causes if cause.found]


# The played cards


def test_a_healthy_card_is_well():
    proof = prove(CARDS["healthy"])
    assert (proof.status, int(proof.exit_code)) == ("well", 0)
    assert proof.devices[0].alarms == ()
    bfloat16 = get_figure(proof, "matmul.bfloat16")
    assert bfloat16.limit == pytest.approx(1070.5, abs=0.1)
    assert get_figure(proof, "copy.device").limit == pytest.approx(3352.3, abs=0.1)
    assert get_figure(proof, "copy.to.pinned").limit == pytest.approx(63.0, abs=0.1)
    assert {fact.status for fact in proof.facts} == {"ok"}


@pytest.mark.parametrize(
    ("card", "low", "cause", "word"),
    [
        ("throttled", "matmul.bfloat16", "heat", "TEMPERATURE"),
        ("throttled", "sustained.hold", "heat", "TEMPERATURE"),
        ("capped", "sustained.rate", "power limit", "POWER"),
        ("x4-linked", "copy.to.pinned", "link", "pcie.link.width"),
    ],
)
def test_a_slow_card_is_low_and_its_cause_is_found(card, low, cause, word):
    proof = prove(CARDS[card])
    assert (proof.status, int(proof.exit_code)) == ("low", 1)
    figure = get_figure(proof, low)
    assert figure.status == "low"
    found = next(one for one in figure.causes if one.name == cause)
    assert found.found
    assert word in (found.command or "")
    assert cause in list_found(proof.devices[0].alarms)


def test_clocks_below_the_maximum_at_the_default_power_limit_are_no_cause():
    device = prove(CARDS["healthy"], options=ProveOptions(seconds=10_000)).devices[0]
    slow = replace(device, figures=(Figure("matmul.bfloat16", unit="TFLOP/s", value=300.0),))
    judged = judge_proof(Proof(devices=(slow,))).devices[0].figures[0]
    assert judged.status == "low"
    assert list_found(judged.causes) == []


def test_a_card_with_bad_memory_is_broken_whatever_its_speed():
    proof = prove(CARDS["worn"])
    assert (proof.status, int(proof.exit_code)) == ("broken", 1)
    assert all(figure.status != "low" for _, figure in proof.figures)
    assert "3 uncorrected ECC errors" in proof.devices[0].alarms[0].words


def test_a_step_that_kills_its_process_fails_alone_and_the_rest_is_measured():
    whole = CARDS["healthy"]
    place = whole.index({"start": "attention"}) + 1
    crash = [*whole[:place], "CUDA error: an illegal memory access was encountered"]
    rest = play_card(steps=("transfers", "overheads", "sustained"))
    stream = PlayedStream(crash, rest)
    run = ProofRun(
        make_detection(), ProveOptions(seconds=10_000), make_tools(stream), say=lambda words: None
    )
    proof = run.run()
    assert proof.status == "broken"
    failed = get_figure(proof, "attention")
    assert failed.status == "failed"
    assert "illegal memory access" in failed.why
    assert get_figure(proof, "copy.to.pinned").status == "well"
    assert stream.plans[1]["steps"][0] == "transfers"


def test_a_card_on_which_torch_cannot_start_is_unusable():
    script = [{"idle": {}}, {"start": "import"}, "RuntimeError: No CUDA GPUs are available"]
    proof = prove(script)
    assert (proof.status, int(proof.exit_code)) == ("unusable", 5)
    assert "No CUDA GPUs" in proof.verdict


def test_a_driver_that_does_not_answer_is_unusable():
    detection = make_detection(gpu=False, cpu=True, driver_trouble="the driver is not loaded")
    facts = {
        "build": {"version": "2.11.0+cu130", "cuda": "13.0", "hip": None, "xpu": None},
        "devices": [{"torch_name": "cpu"}],
        "architectures": [],
        "refusal": None,
        "forked": False,
    }
    script = [{"start": "import"}, {"facts": facts}, {"hardware": {}}]
    script += [{"step": "allocate"}, make_figure("sum.float32", "GB/s", 9.0), {"step": "end"}]
    proof = prove(script, detection=detection)
    assert proof.status == "unusable"
    assert "not loaded" in proof.verdict


def test_a_failed_check_of_the_doctor_breaks_the_proof():
    finding = Finding("failed", "no /dev/nvidia-uvm", "not loaded", "sudo modprobe", check="uvm")
    proof = prove(CARDS["healthy"], findings=[finding])
    assert proof.status == "broken"
    assert [fact.fix for fact in proof.facts if fact.status == "failed"] == ["sudo modprobe"]


def test_what_the_self_test_found_counts_as_devices_verify_does():
    script = [event for event in CARDS["healthy"] if event.get("step") != "compute"]
    place = script.index({"step": "allocate", "seconds": 0.1, "words": "64 MiB"}) + 1
    script.insert(place, {"step": "compute", "error": "RuntimeError: a matmul is 66 away"})
    proof = prove(script)
    failed = next(fact for fact in proof.facts if fact.group == "verify")
    assert (proof.status, failed.status) == ("broken", "failed")
    assert "66 away" in failed.found


@pytest.mark.parametrize(
    ("answer", "status", "word"),
    [
        ({"memory.used": "1536"}, "ok", "to the MiB"),
        ({"memory.used": "4000"}, "warning", "memory.used is 4000 MiB there"),
        ({"trouble": "nvidia-smi: not found"}, "unknown", "not found"),
    ],
)
def test_the_balance_is_compared_with_nvidia_smi(answer, status, word):
    script = [event for event in CARDS["healthy"] if "smi" not in event]
    script.insert(-1, {"smi": answer})
    fact = next(one for one in prove(script).facts if one.group == "balance")
    assert fact.status == status
    assert word in fact.found


# Interrupted, out of time, skipped


def test_ctrl_c_keeps_what_is_done():
    place = CARDS["healthy"].index({"start": "copies"})
    kept = []
    proof = prove([*CARDS["healthy"][:place], KeyboardInterrupt], keep=kept.append)
    assert (proof.status, int(proof.exit_code)) == ("interrupted", 130)
    assert get_figure(proof, "matmul.bfloat16").value == 722.0
    assert kept[-1].status == "interrupted"
    assert "interrupted" in proof.verdict


def test_while_it_runs_the_kept_proof_says_so():
    kept = []
    prove(CARDS["healthy"], keep=kept.append)
    assert [proof.status for proof in kept] == ["running"] * (len(kept) - 1) + ["well"]
    assert len(kept) > 2


def test_a_step_without_time_left_is_skipped_and_labs_say_how_to_get_it():
    events = [*CARDS["healthy"][:-1], {"left_out": "compile"}, {"step": "end"}]
    proof = prove(events, options=ProveOptions(seconds=5))
    assert get_figure(proof, "compile").status == "skipped"
    labs = next(step for step in proof.steps if step.name == "labs")
    assert labs.status == "skipped"
    assert "--seconds" in labs.words


def test_skipped_steps_are_not_asked_for():
    stream = PlayedStream(CARDS["healthy"])
    options = ProveOptions(skip=frozenset({"compile", "sustained", "doctor"}), seconds=10_000)
    tools = make_tools(stream)
    proof = ProofRun(make_detection(), options, tools, say=lambda words: None).run()
    assert not {"compile", "verify-compile", "sustained"} & set(stream.plans[0]["steps"])
    assert not [fact for fact in proof.facts if fact.group == "doctor"]


@pytest.mark.parametrize(
    ("notebook", "status", "broken"),
    [
        (NotebookResult("tensors", status="passed"), "well", ()),
        (NotebookResult("tensors", status="timed_out"), "well", ()),
        (NotebookResult("tensors", status="died"), "broken", ()),
        (
            NotebookResult("tensors", status="failed", claims=(ClaimOutcome("2 is 3", False),)),
            "broken",
            ("2 is 3",),
        ),
    ],
    ids=["passed", "out of time", "died", "a claim"],
)
def test_claims_that_do_not_hold_break_the_proof(notebook, status, broken):
    proof = prove(CARDS["healthy"], labs=lambda *_: (notebook,))
    assert proof.status == status
    assert proof.labs[0].broken == broken


def test_the_lab_runs_in_the_time_that_is_left():
    asked = []

    def labs(limit_seconds, environment, asks_cuda, say):
        asked.append((limit_seconds, environment, asks_cuda))
        return ()

    prove(CARDS["healthy"], labs=labs, options=ProveOptions(seconds=5_000))
    (limit, environment, asks_cuda) = asked[0]
    assert 0 < limit < 5_000
    assert (environment, asks_cuda) == ({}, True)


# Devices


def test_a_device_that_is_not_here_is_missing():
    with pytest.raises(DeviceMissingError):
        choose_devices(make_detection(gpu=False, cpu=True), "cuda:1")
    assert choose_devices(make_detection(cpu=True), "cuda")[0].kind == "cuda"
    assert [one.kind for one in choose_devices(make_detection(cpu=True), None)] == ["cuda", "cpu"]


def test_a_gpu_whose_number_is_unknown_is_torchs_first():
    unnamed = make_detection()._replace(best="cuda", devices=(Device("cuda", None, H100),))
    assert choose_devices(unnamed, None)[0].name == H100


def test_copies_between_gpus_are_judged_beside_each_other():
    links = [make_figure(f"peer.{n}", "GB/s", rate)["figure"] for n, rate in enumerate((90, 88, 9))]
    figures = tuple(Figure(one["key"], unit="GB/s", value=one["value"]) for one in links)
    judged = judge_proof(Proof(links=figures)).links
    assert [one.status for one in judged] == ["well", "well", "low"]


# Limits: each published peak from its clock, SMs and rates


@pytest.mark.parametrize(
    ("name", "capability", "sms", "mhz", "dtype", "teraflops"),
    [
        ("Tesla V100-SXM2", "7.0", 80, 1530, "float16", 125),
        ("NVIDIA A100-SXM4-40GB", "8.0", 108, 1410, "bfloat16", 312),
        ("NVIDIA A100-SXM4-40GB", "8.0", 108, 1410, "tf32", 156),
        ("NVIDIA A100-SXM4-40GB", "8.0", 108, 1410, "float32", 19.5),
        ("NVIDIA GeForce RTX 3090", "8.6", 82, 1695, "float16", 71),
        ("NVIDIA A40", "8.6", 84, 1740, "float16", 149.7),
        ("NVIDIA GeForce RTX 4090", "8.9", 128, 2520, "bfloat16", 165.2),
        ("NVIDIA L4", "8.9", 58, 2040, "bfloat16", 121),
        ("NVIDIA H100 80GB HBM3", "9.0", 132, 1830, "bfloat16", 989.4),
        ("NVIDIA H100 80GB HBM3", "9.0", 132, 1830, "float8", 1979),
        ("NVIDIA B200", "10.0", 148, 1850, "bfloat16", 2250),
        ("NVIDIA GeForce RTX 5090", "12.0", 170, 2407, "bfloat16", 209.5),
    ],
)
def test_the_limit_of_matrix_products_is_the_published_peak(
    name, capability, sms, mhz, dtype, teraflops
):
    facts = HardwareFacts(compute_capability=capability, sm_count=sms, max_sm_mhz=mhz)
    limit = find_limit(f"matmul.{dtype}", DeviceProof("cuda", name=name, hardware=facts))
    assert limit is not None
    assert limit.value == pytest.approx(teraflops, rel=0.01)
    assert "whitepaper" in limit.source or "brief" in limit.source


@pytest.mark.parametrize(
    ("bits", "mhz", "gigabytes"),
    [(5120, 2619, 3352), (6144, 3201, 4917), (384, 10501, 1008), (256, 5001, 320)],
    ids=["H100", "H200", "RTX 4090", "T4"],
)
def test_the_limit_of_copies_is_the_bus(bits, mhz, gigabytes):
    facts = HardwareFacts(bus_width_bits=bits, max_memory_mhz=mhz)
    limit = find_limit("copy.device", DeviceProof("cuda", hardware=facts))
    assert limit is not None
    assert limit.value == pytest.approx(gigabytes, rel=0.001)


def test_a_mig_instance_has_its_share_of_the_memorys_rate():
    facts = HardwareFacts(
        bus_width_bits=5120,
        max_memory_mhz=2619,
        mig_enabled=True,
        memory_bytes=10 * 2**30,
        total_bytes=80 * 2**30,
    )
    limit = find_limit("copy.device", DeviceProof("cuda", hardware=facts))
    assert limit is not None
    assert limit.value == pytest.approx(3352.3 / 8, rel=0.001)


@pytest.mark.parametrize(
    "facts",
    [HardwareFacts(), HardwareFacts(compute_capability="13.0", sm_count=200, max_sm_mhz=2000)],
    ids=["nothing known", "a newer architecture"],
)
def test_an_unknown_card_is_measured_and_not_judged(facts):
    figure = Figure("matmul.bfloat16", unit="TFLOP/s", value=5.0)
    device = DeviceProof("cuda", name="new", hardware=facts, figures=(figure,))
    judged = judge_proof(Proof(devices=(device,))).devices[0].figures[0]
    assert (judged.status, judged.limit) == ("unjudged", None)


# Stored proofs


def test_a_card_below_its_own_model_in_a_stored_proof_is_low():
    stored = prove(CARDS["healthy"])
    slower = prove(play_card(values={"matmul.bfloat16": 600.0}))
    assert slower.status == "well"
    judged = judge_proof(slower, [stored])
    figure = get_figure(judged, "matmul.bfloat16")
    assert (judged.status, figure.status, figure.stored) == ("low", "low", 722.0)
    other = replace(stored, devices=(replace(stored.devices[0], name="NVIDIA H200"),))
    assert judge_proof(slower, [other]).status == "well"


def test_figures_that_depend_on_the_machine_are_not_compared_with_stored_ones():
    stored = [prove(CARDS["healthy"])]
    older_link = {"max_link_generation": 4}
    card = play_card(
        hardware=older_link,
        load={"link_generation": 4},
        values={"copy.to.pinned": 26.0, "copy.from.pinned": 26.0},
    )
    judged = judge_proof(prove(card), stored)
    assert (judged.status, get_figure(judged, "copy.to.pinned").stored) == ("well", None)
    part = judge_proof(prove(play_card(hardware={"mig_enabled": True})), stored)
    assert get_figure(part, "matmul.bfloat16").stored is None


def test_low_figures_of_stored_proofs_are_no_reference():
    assert (H100, "sustained.rate") not in find_best([prove(CARDS["capped"])])


# Variables


def test_variables_that_slow_torch_down_are_named():
    environment = {"CUDA_LAUNCH_BLOCKING": "1", "TORCH_COMPILE_DISABLE": "0", "HOME": "/h"}
    assert list_variables(environment) == {"CUDA_LAUNCH_BLOCKING": "1"}
    proof = prove(CARDS["healthy"], environment=environment)
    assert proof.status == "low"
    assert proof.devices[0].alarms[0].command == "unset CUDA_LAUNCH_BLOCKING"


@pytest.mark.parametrize(
    ("gain", "cores", "status"),
    [(0.77, 2, "low"), (1.25, 2, "low"), (1.4, 2, "well"), (4.8, 16, "low"), (5.6, 16, "well")],
)
def test_the_gain_of_threads_grows_with_the_cores(gain, cores, status):
    figure = Figure("threads.gain", "gain of all threads", "x", gain)
    facts = HardwareFacts(threads=cores, cores=cores)
    device = DeviceProof(kind="cpu", torch_name="cpu", hardware=facts, figures=(figure,))
    [judged] = judge_device(device, {}, {}).figures
    assert judged.status == status
    assert "cores share" in judged.why


def test_without_time_left_the_cpu_is_not_measured_and_nothing_is_unusable():
    cpu = Device("cpu", "cpu", "a CPU")
    options = ProveOptions(skip=frozenset({"verify"}), seconds=0.0)
    proof = prove(detection=Detection("cpu", (cpu,), ()), options=options)
    [device] = proof.devices
    assert {figure.status for figure in device.figures} == {"skipped"}
    assert proof.status == "well"
    assert "nothing to judge" in proof.verdict


def test_a_limit_of_threads_is_no_alarm():
    proof = prove(CARDS["healthy"], environment={"OMP_NUM_THREADS": "4"})
    assert proof.status == "well"
    assert all(VARIABLES.values())


# The file


def test_the_proof_fits_its_schema_and_is_read_back(tmp_path):
    proof = prove(CARDS["x4-linked"])
    described = proof.describe()
    schema = json.loads(format_schema())
    jsonschema.validate(described, schema)
    (tmp_path / "proof.json").write_text(json.dumps(described))
    assert read_proof(tmp_path).describe() == described


def test_the_stored_schema_is_the_models():
    stored = (Path(__file__).parents[1] / PATH).read_text(encoding="utf-8")
    assert stored == format_schema(), f"python -m labkit.prove.model > {PATH}"


def test_no_name_of_the_machine_and_no_uuid_is_kept(monkeypatch):
    monkeypatch.setattr("socket.gethostname", lambda: "rack7.example")
    finding = Finding("ok", f"{make_detection().devices[0].uuid} on rack7", check="gpu")
    text = json.dumps(prove(CARDS["healthy"], findings=[finding]).describe())
    assert "5d1c0f2e" not in text
    assert "rack7" not in text
    assert "uuid:" in text


def test_only_whole_words_are_replaced():
    assert scrub(["gpu-box gpu-boxes"], {"gpu-box": "HOST"}) == ["HOST gpu-boxes"]


@pytest.mark.parametrize(
    ("text", "word"),
    [
        (None, "cannot be read"),
        ("{", "not a proof"),
        ("[]", "not a proof"),
        ('{"devices": 3}', "not a proof"),
        ('{"devices": [], "schema_version": 9}', "version 9"),
    ],
)
def test_what_is_no_proof_is_a_usage_error(tmp_path, text, word):
    if text is not None:
        (tmp_path / "proof.json").write_text(text)
    with pytest.raises(UsageError, match=word):
        read_proof(tmp_path)


def test_damaged_parts_are_unknown(tmp_path):
    broken = {"devices": [{"kind": "cuda", "figures": [{"key": "launch", "value": "fast"}]}]}
    (tmp_path / "proof.json").write_text(json.dumps(broken))
    assert read_proof(tmp_path).devices[0].figures[0].value is None


# The proofs that this project has stored

STORED = sorted((Path(__file__).parents[1] / "docs" / "results").glob("*/proof.json"))


@pytest.mark.parametrize("path", STORED, ids=lambda path: path.parent.name)
def test_a_stored_proof_fits_its_schema_and_is_judged_the_same_again(path):
    text = path.read_text(encoding="utf-8")
    jsonschema.validate(json.loads(text), json.loads(format_schema()))
    proof = read_proof(path)
    again = judge_proof(proof, [proof])
    assert (again.status, again.verdict) == (proof.status, proof.verdict)
    assert "GPU-" not in text


def test_stored_proofs_are_found():
    assert len(find_stored()) == len(STORED) > 0


def test_a_proof_without_a_figure_is_not_called_well():
    assert "nothing to judge" in judge_proof(Proof()).verdict


def test_a_fact_whose_status_is_foreign_is_shown_last():
    facts = (ProofFact(name="foreign", status="odd"), ProofFact(name="known", status="ok"))
    page = render_proof(Proof(facts=facts))
    assert page.index(">known<") < page.index(">foreign<")


def test_a_folder_that_takes_no_file_is_refused_before_anything_is_measured(capsys):
    assert main(["prove", "--output", "/proc/1", "--skip", "labs"]) == 2
    assert "--output /proc/1 cannot be written" in capsys.readouterr().err
