"""The doctor's checks of torch: its build, the self-test, and the compile caches."""

from __future__ import annotations

import json
import sys

import pytest

from labkit.devices.torch_devices import best_device
from labkit.doctor.check import Host
from labkit.doctor.checks import system
from labkit.doctor.checks import torch as torch_module
from labkit.host.distribution import Distribution
from labkit.host.torch_builds import InstalledTorch
from labkit.lessons.needs import missing_need
from labkit.process import CommandResult, run_command
from tests.fakes.host import says
from tests.fakes.sick_hosts import play_host

DEBIAN = Distribution("Debian", "debian")
NO_KERNEL = "RuntimeError: CUDA error: no kernel image is available for execution on the device"


CPU_BUILD = InstalledTorch("2.13.0+cpu")
CU130 = InstalledTorch("2.13.0+cu130", "13.0")
CU126 = InstalledTorch("2.13.0+cu126", "12.6")
TOMORROW = InstalledTorch("2.20.0+cu150", "15.0")


@pytest.mark.parametrize(
    ("build", "driver", "capability", "status", "found"),
    [
        (None, None, None, "ok", "no torch in this Python: the lab has its own"),
        (CPU_BUILD, None, None, "ok", "torch 2.13.0+cpu, for the CPU"),
        (CPU_BUILD, "580.95.05", (9, 0), "warning", "torch 2.13.0+cpu"),
        (CU130, "580.95.05", (9, 0), "ok", "torch 2.13.0+cu130 fits driver 580.95.05"),
        (CU130, "570.86.10", (9, 0), "failed", "torch 2.13.0+cu130"),
        (CU130, "580.95.05", (7, 0), "failed", "torch 2.13.0+cu130"),
        (CU126, "580.95.05", (12, 0), "failed", "torch 2.13.0+cu126"),
        (CU126, "535.230.02", (6, 1), "ok", "torch 2.13.0+cu126 fits driver 535.230.02"),
        (TOMORROW, None, (99, 0), "ok", "torch 2.20.0+cu150 fits the CPU"),
    ],
)
def test_a_torch_build(build, driver, capability, status, found):
    capabilities = (capability,) if capability else ()
    facts = torch_module.InstalledTorchFacts(driver, capabilities, build=build)
    finding = torch_module.judge_installed_torch(facts, DEBIAN)
    assert (finding.status, finding.found) == (status, found)


ALLOCATED = '{"step": "allocate", "seconds": 1, "words": "64 MiB"}\n'
HELD = (
    '{"step": "device", "words": "cuda:0"}\n'
    + ALLOCATED
    + '{"step": "compute", "seconds": 1, "words": "within 2e-05 of the CPU\'s float64"}\n'
)
COMPUTED = "a product on cuda:0 is within 2e-05 of the CPU's float64"


def cut_short(stdout, seconds=6.5):
    """A self-test that was ended at its limit, after it had printed this."""
    return CommandResult(("python",), None, stdout, seconds=seconds, timed_out=True)


@pytest.mark.parametrize(
    ("answer", "deep", "status", "found"),
    [
        pytest.param(says(f"a warning\n{HELD}"), False, "ok", COMPUTED, id="fine"),
        pytest.param(cut_short(HELD), False, "ok", COMPUTED, id="its compile was cut short"),
        pytest.param(
            cut_short(ALLOCATED), False, "unknown", "not finished after 6 s", id="cut short"
        ),
        pytest.param(
            cut_short(ALLOCATED, 240), True, "failed", "not finished after 240 s", id="hangs"
        ),
        pytest.param(says(""), False, "unknown", "reported nothing", id="silence"),
        pytest.param(says("[1]\n{]"), False, "unknown", "reported nothing", id="garbage"),
        pytest.param(
            says(json.dumps({"step": "compute", "error": NO_KERNEL})),
            False,
            "failed",
            NO_KERNEL,
            id="a known error",
        ),
        pytest.param(
            says(json.dumps({"step": "compute", "error": "RuntimeError: off by one"})),
            False,
            "failed",
            "RuntimeError: off by one",
            id="an unknown error",
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
def test_a_step_of_the_self_test(answer, deep, status, found):
    facts = torch_module.SelfTestFacts("compute", answer, deep)
    finding = torch_module.judge_self_test(facts, DEBIAN)
    assert finding.status == status
    assert found in finding.found


def test_a_step_that_was_cut_short_can_be_given_minutes():
    facts = torch_module.SelfTestFacts("compile", cut_short(HELD))
    finding = torch_module.judge_self_test(facts, DEBIAN)
    assert finding.fix.startswith("labkit doctor --deep")
    assert torch_module.TORCH_COMPILE_CHECK.late.startswith("labkit doctor --deep")


@pytest.mark.parametrize(("deep", "limit"), [(False, 6.5), (True, 240)], ids=["quick", "deep"])
def test_all_steps_share_one_self_test_in_a_process_of_its_own(tmp_path, deep, limit):
    host = play_host(tmp_path, answers={sys.executable: says(HELD)}, deep=deep)
    for check in (torch_module.TORCH_ALLOCATION_CHECK, torch_module.TORCH_MATMUL_CHECK):
        assert check.judge(check.probe(host), DEBIAN).status == "ok"
    assert host.run_long.calls == [
        f"{sys.executable} -m labkit.devices.self_test prove {limit * 20:g}"
    ]
    assert host.run_long.limits == [limit]


@pytest.mark.slow
def test_the_real_self_test_passes_here():
    if missing_need("compiler"):
        pytest.skip("needs compiler: apt-get install g++")
    command, limit = torch_module.make_self_test_command(deep=True)
    answer = run_command(command, timeout_seconds=limit)
    for step in torch_module.SENTENCES:
        finding = torch_module.judge_self_test(torch_module.SelfTestFacts(step, answer), DEBIAN)
        assert finding.status == "ok", finding
        assert str(best_device()) in finding.found


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
    assert finding.found == "/cache is not writable"
    assert (finding.safe.arguments if finding.safe else None) == arguments


def test_the_self_test_imports_what_this_python_does(monkeypatch, tmp_path):
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    (tmp_path / "only_here.py").write_text("print('imported')")
    command = [sys.executable, "-m", "only_here"]
    assert Host().run_shared(command, timeout_seconds=30).stdout == "imported\n"
    assert not Host().run(command, timeout_seconds=30).ok


@pytest.mark.parametrize(
    ("capabilities", "in_wsl", "words"),
    [
        (((12, 0),), False, "(open modules) from its own source"),
        (((6, 1),), False, "580 (closed modules) from its own source"),
        (((3, 5), (12, 0)), False, "(open modules) from its own source"),
        (((12, 0),), True, "wsl.exe"),
    ],
    ids=["Blackwell", "Pascal", "Kepler and Blackwell", "WSL2"],
)
def test_a_driver_that_a_fault_of_torch_asks_for_is_one_for_the_gpu(capabilities, in_wsl, words):
    error = "The NVIDIA driver on your system is too old (found version 10020)"
    answer = says(json.dumps({"step": "allocate", "error": error}))
    facts = torch_module.SelfTestFacts("allocate", answer, False, capabilities, in_wsl)
    assert words in str(torch_module.judge_self_test(facts, DEBIAN).fix)
