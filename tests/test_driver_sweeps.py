"""A driver that fails anywhere: at every query in turn, and with every code.

Neither ``labkit devices`` nor ``labkit memory`` may fall, tell a wrong figure, or keep silent.
"""

from __future__ import annotations

import json

import pytest

from tests.fakes.nvml import GIB, PlayedHost, build_driver, script_driver, script_gpu

pytest.importorskip("pynvml", reason="needs nvidia-ml-py")

SECOND = "GPU-00000001"
UNKNOWN_ERROR = "NVML failed: Unknown Error (code 999)"
BUSY = f"process 5000001 {GIB}"
SPLIT = (
    script_gpu(1, "mig 1"),
    script_gpu(4, f"memory {10 * GIB} 0 {4 * GIB}", BUSY, kind="slice"),
    script_gpu(5, f"memory {5 * GIB} 0 {5 * GIB}", kind="slice"),
)
FIGURES = ("name", "uuid", "capability", "memory", "memory_v2", "mig", "compute", "graphics")
QUERIES = ("driver", "cuda", "cuda_v2", "handle", "slices", "index", *FIGURES)

# Runs both commands in both forms on each script, in one process: hundreds of failures in seconds.
SWEEP = """
import contextlib, io, json, os, sys
from labkit.cli import main
results = []
for path in sys.argv[1:]:
    os.environ["FAKE_NVML_SCRIPT"] = path
    row = {}
    for command in ("devices", "memory"):
        for form in ("--json", "--no-color"):
            # A file of another name is a driver that has not been asked yet.
            os.replace(path, f"{path}{command}{form}")
            path = f"{path}{command}{form}"
            os.environ["FAKE_NVML_SCRIPT"] = path
            output = io.StringIO()
            with contextlib.redirect_stdout(output):
                code = main([command, form])
            row[command + form] = (code, output.getvalue())
    results.append(row)
print(json.dumps(results))
"""
RAW = ("uuid", "name", "total_bytes", "free_bytes", "driver_reserved_bytes")


@pytest.fixture
def host(tmp_path, tmp_path_factory):
    return PlayedHost(tmp_path, build_driver(tmp_path_factory.mktemp("driver")))


def sweep(host, scripts):
    """What both commands tell as JSON on each script, by command; all must exit with 0."""
    paths = [str(host.write_script(text, f"s{n}")) for n, text in enumerate(scripts)]
    done = host.run_python("", "-c", SWEEP, *paths)
    assert done.stderr == ""
    rows = json.loads(done.stdout)
    for row in rows:
        assert {code for code, _ in row.values()} == {0}
        assert not any(
            "None" in row[f"{command}--no-color"][1] for command in ("devices", "memory")
        )
    return [
        {command: json.loads(row[f"{command}--json"][1]) for command in ("devices", "memory")}
        for row in rows
    ]


def find_gpu(devices, uuid):
    return next((one for one in devices if one["uuid"] == uuid), None)


def check_figures(told, sound):
    """A figure is the right one or unknown, and the CPU is always there."""
    assert told["devices"][-1]["kind"] == "cpu"
    for gpu in told["devices"][:-1]:
        whole = find_gpu(sound["devices"], gpu["uuid"])
        if gpu["uuid"] and whole:
            assert all(gpu[key] in (None, whole[key]) for key in RAW if key in gpu)


def tells_why(told):
    troubles = [one["trouble"] for one in told["devices"]]
    return any(UNKNOWN_ERROR in text for text in (*told["notes"], *filter(None, troubles)))


@pytest.mark.slow
def test_a_driver_that_fails_at_the_nth_query_never_takes_a_command_down(host):
    parts = (script_gpu(0), *SPLIT, script_gpu(3))
    script = [script_driver(f"fail any 999 {after}", *parts) for after in range(70)]
    sound, *failing = sweep(host, [script_driver(*parts), *script])
    for told in failing:
        for command in ("devices", "memory"):
            check_figures(told[command], sound[command])
            # Asked for more than there are queries, it never comes to fail.
            whole = told[command]["devices"][:-1] == sound[command]["devices"][:-1]
            assert tells_why(told[command]) is not whole
    assert failing[-1]["memory"]["devices"][:-1] == sound["memory"]["devices"][:-1]


@pytest.mark.slow
@pytest.mark.parametrize("code", [3, 4, 6, 7, 13, 15, 25, 999])
def test_a_query_that_is_refused_leaves_its_own_figure_unknown_and_no_other_gpus(host, code):
    scripts = [
        script_driver(script_gpu(0, f"fail {query} {code}", BUSY), script_gpu(1))
        for query in QUERIES
    ]
    sound, *refused = sweep(host, [script_driver(script_gpu(0, BUSY), script_gpu(1)), *scripts])
    for told in refused:
        for command in ("devices", "memory"):
            check_figures(told[command], sound[command])
            other = find_gpu(told[command]["devices"], SECOND)
            assert other is not None
            assert (other["total_bytes"], other["trouble"]) == (24 * GIB, None)
