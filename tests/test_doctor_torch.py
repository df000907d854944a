"""The doctor's checks of torch: its build, the trials it runs in one Python, and its caches."""

from __future__ import annotations

import sys

import pytest

from labkit.devices.torch_devices import InstalledTorch, best_device
from labkit.doctor import trials
from labkit.doctor.checks import system
from labkit.doctor.checks import torch as torch_module
from labkit.host.distribution import Distribution
from labkit.lessons.needs import missing_need
from labkit.process import CommandResult, run_command
from tests.fakes.host import fails, says
from tests.fakes.sick_hosts import play_host

DEBIAN = Distribution("Debian", "debian")
ALL = f"{sys.executable} -m labkit.doctor.trials allocation matmul compile"
HELD = "allocation: 64 MiB on cpu\nmatmul: a product on cpu is within 2e-05 of the CPU's float64\n"
NO_KERNEL = "RuntimeError: CUDA error: no kernel image is available for execution on the device"


@pytest.mark.parametrize(
    ("facts", "status", "found"),
    [
        pytest.param(
            torch_module.BuildFacts(None),
            "ok",
            "no torch in this Python: the lab brings its own",
            id="no torch",
        ),
        pytest.param(
            torch_module.BuildFacts(InstalledTorch("2.13.0+cpu")),
            "ok",
            "torch 2.13.0+cpu, for the CPU",
            id="CPU",
        ),
        pytest.param(
            torch_module.BuildFacts(InstalledTorch("2.13.0+cpu"), "580.95.05", ((9, 0),)),
            "warning",
            "torch 2.13.0+cpu",
            id="a CPU build beside a GPU",
        ),
        pytest.param(
            torch_module.BuildFacts(InstalledTorch("2.13.0+cu130", "13.0"), "580.95.05", ((9, 0),)),
            "ok",
            "torch 2.13.0+cu130 fits driver 580.95.05",
            id="CUDA 13 on H200",
        ),
        pytest.param(
            torch_module.BuildFacts(InstalledTorch("2.13.0+cu130", "13.0"), "570.86.10", ((9, 0),)),
            "failed",
            "torch 2.13.0+cu130",
            id="CUDA 13 on an older driver",
        ),
        pytest.param(
            torch_module.BuildFacts(InstalledTorch("2.13.0+cu130", "13.0"), "580.95.05", ((7, 0),)),
            "failed",
            "torch 2.13.0+cu130",
            id="CUDA 13 on Volta",
        ),
        pytest.param(
            torch_module.BuildFacts(
                InstalledTorch("2.13.0+cu126", "12.6"), "580.95.05", ((12, 0),)
            ),
            "failed",
            "torch 2.13.0+cu126",
            id="CUDA 12.6 on Blackwell",
        ),
        pytest.param(
            torch_module.BuildFacts(
                InstalledTorch("2.13.0+cu126", "12.6"), "535.230.02", ((6, 1),)
            ),
            "ok",
            "torch 2.13.0+cu126 fits driver 535.230.02",
            id="CUDA 12.6 on Pascal",
        ),
        pytest.param(
            torch_module.BuildFacts(InstalledTorch("2.20.0+cu150", "15.0"), None, ((99, 0),)),
            "ok",
            "torch 2.20.0+cu150 fits the CPU",
            id="a build of tomorrow",
        ),
    ],
)
def test_a_torch_build(facts, status, found):
    finding = torch_module.judge_torch_build(facts, DEBIAN)
    assert (finding.status, finding.found) == (status, found)


def cut_short(stdout, seconds=6.5):
    """Trials that were ended at their limit, after they had printed this."""
    return CommandResult(("python",), None, stdout, seconds=seconds, timed_out=True)


@pytest.mark.parametrize(
    ("answer", "deep", "status", "found"),
    [
        pytest.param(
            says(f"a warning\n{HELD}compile: fine"),
            False,
            "ok",
            "a product on cpu is within 2e-05 of the CPU's float64",
            id="fine",
        ),
        pytest.param(
            cut_short(HELD),
            False,
            "ok",
            "a product on cpu is within 2e-05 of the CPU's float64",
            id="the compile after it was cut short",
        ),
        pytest.param(
            cut_short("allocation: 64 MiB on cpu\n"),
            False,
            "unknown",
            "not done after 6 s, which may be all right",
            id="cut short itself",
        ),
        pytest.param(
            cut_short("allocation: 64 MiB on cpu\n", 240),
            True,
            "failed",
            "no end after 240 s",
            id="hangs for minutes",
        ),
        pytest.param(says(""), False, "unknown", "the trial said nothing", id="silence"),
        pytest.param(says("matmul"), False, "unknown", "the trial said nothing", id="garbage"),
        pytest.param(
            fails(NO_KERNEL, stdout="allocation: 64 MiB on cuda:0\n"),
            False,
            "failed",
            NO_KERNEL,
            id="a known sign",
        ),
        pytest.param(
            CommandResult(("python",), -11),
            False,
            "failed",
            "python was killed by SIGSEGV",
            id="a crash",
        ),
    ],
)
def test_a_trial(answer, deep, status, found):
    facts = torch_module.TrialFacts("matmul", answer, deep)
    finding = torch_module.judge_trial(facts, DEBIAN)
    assert (finding.status, finding.found) == (status, found)


def test_what_was_cut_short_can_be_given_its_minutes():
    finding = torch_module.judge_trial(torch_module.TrialFacts("compile", cut_short(HELD)), DEBIAN)
    assert finding.fix.startswith("labkit doctor --deep")
    assert torch_module.TORCH_COMPILE_CHECK.late.startswith("labkit doctor --deep")


@pytest.mark.parametrize(("deep", "limit"), [(False, 6.5), (True, 240)], ids=["quick", "deep"])
def test_the_trials_run_once_in_a_python_of_their_own(tmp_path, deep, limit):
    host = play_host(tmp_path, answers={sys.executable: says(HELD + "compile: fine")}, deep=deep)
    for check in (torch_module.TORCH_ALLOCATION_CHECK, torch_module.TORCH_COMPILE_CHECK):
        assert check.judge(check.probe(host), DEBIAN).status == "ok"
    assert host.run_long.calls == [ALL]
    assert host.run_long.limits == [limit]


def test_the_real_trials_hold_here_and_each_says_so_at_once(capsys):
    trials.main(["allocation", "matmul"])
    lines = capsys.readouterr().out.splitlines()
    assert [line.partition(":")[0] for line in lines] == ["allocation", "matmul"]
    assert lines[0] == f"allocation: 64 MiB on {best_device()}"
    assert lines[1].startswith(f"matmul: a product on {best_device()} is within ")


def test_a_trial_that_breaks_ends_the_rest_after_what_held_was_said(capsys, monkeypatch):
    def broken(torch, device):
        raise RuntimeError("no such card")

    monkeypatch.setattr(trials, "best_device", lambda: "cpu")
    held = trials.Trial(lambda torch, device: "64 MiB", "{words} on {device}")
    monkeypatch.setitem(trials.TRIALS, "allocation", held)
    monkeypatch.setitem(trials.TRIALS, "matmul", trials.Trial(broken, ""))
    with pytest.raises(RuntimeError, match="no such card"):
        trials.main(["allocation", "matmul", "compile"])
    assert capsys.readouterr().out == "allocation: 64 MiB on cpu\n"


@pytest.mark.slow
def test_the_real_compile_holds_here():
    if missing_need("compiler"):
        pytest.skip("needs compiler: apt-get install g++")
    command = [sys.executable, "-m", "labkit.doctor.trials", "compile"]
    answer = run_command(command, timeout_seconds=240)
    assert answer.stdout == (
        f"compile: a compiled function on {best_device()} gives the same as uncompiled\n"
    )


# The caches


def test_caches_are_named_and_judged(tmp_path, monkeypatch):
    host = play_host(tmp_path, environment={"TORCHINDUCTOR_CACHE_DIR": "/cache/inductor"})
    facts = system.probe_caches(host)
    assert facts.folders == ("/cache/inductor", "/tmp")
    assert system.judge_caches(facts, DEBIAN).status == "ok"
    assert not (tmp_path / "cache").exists()
    monkeypatch.setattr(system, "is_noexec", lambda path: True)
    finding = system.judge_caches(system.probe_caches(host), DEBIAN)
    assert (finding.status, finding.found) == ("failed", "/cache/inductor is mounted noexec")


def test_without_a_named_cache_inductors_own_folder_is_looked_at(tmp_path):
    assert system.probe_caches(play_host(tmp_path)).folders == ("/tmp", "/tmp/torchinductor_ada")


@pytest.mark.parametrize(
    ("owned", "arguments"),
    [(("/cache",), ("chmod", "u+rwx", "/cache")), ((), None)],
    ids=["mine", "another's"],
)
def test_only_a_cache_of_ones_own_can_be_opened_up(owned, arguments):
    facts = system.CacheFacts(("/cache",), unwritable=("/cache",), owned=owned)
    finding = system.judge_caches(facts, DEBIAN)
    assert finding.found == "/cache cannot be written"
    assert (finding.safe.arguments if finding.safe else None) == arguments
