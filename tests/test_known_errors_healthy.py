"""A log whose errors are counters at zero, or passed, is healthy."""

from __future__ import annotations

import pytest

from labkit.cli import main
from labkit.known_errors.match import explain_text


@pytest.mark.parametrize(
    "line",
    [
        '{"level":"error","count":0}',
        '{"level": "error", "total": 0}',
        '{"severity":"critical","count": 0}',
        "errors=0 warnings=2",
        '"error": null',
        '{"status":"ok","error":null}',
        '{"error": false, "ok": true}',
        "error: none",
        "Error: None",
        "errors: 0",
        "failed: 0",
        "Failed: 0, Passed: 12",
        "error: 0",
        "validation error: 0.231",
        "val error: 0.29, val accuracy: 0.71",
        "rel error: 1.2e-4",
        "Error: 0.0312  Accuracy: 99.1%",
        "step 3 error: -0.5 lr=1e-3",
        "ERROR: 0",
        "fatal: 0",
        "ERRORS - 0",
        '{"errors":[],"failed":0}',
        '{"error":""}',
        '{"level":"error","message":"","value":0}',
        "error_count=0",
        "level=error count=0",
        "[error] 0",
        "Errors: none",
        "critical: 0",
        "error: false",
        "error: no",
        "ERROR count - 0",
        "exit code: 0",
        "exited with code 0",
        "status=0/SUCCESS",
        "0 failed, 12 passed",
        '{"log_level":"error"}',
        '{"level":"error"}',
        "log level: error",
        "LOG_LEVEL=ERROR - set",
        "setting log level to ERROR - ok",
        '{"counters":{"error":0,"fatal":0}}',
        "ERROR 0 - WARN 0 - INFO 12",
        "Error: 0 of 12",
        "error: 0%",
        "PLAY RECAP host : ok=3 changed=0 unreachable=0 failed=0",
        "Tests: 0 failed",
        "last error: none",
        "Last Error: None",
        "lastError: <nil>",
        "error: nil",
        "err=<nil>",
        'level=error msg="" err=<nil>',
        "failed=0",
        '{"level":"error","n":0.0}',
        "OOM: 0",
        "oom_kill 0",
        "Xid errors: 0",
        "CUDA out of memory: 0",
        '"oom": 0',
        "num_ooms 0",
        "uncorrectable ECC errors: 0",
        "retries: 0",
    ],
)
def test_a_counter_at_zero_or_an_empty_field_is_no_failure(line):
    found = explain_text(line)
    assert (found.found, found.failure, found.has_failed) == ((), None, False)


@pytest.mark.parametrize(
    "line",
    [
        '{"level":"error","msg":"boom"}',
        '{"level":"error","count":3}',
        '{"level":"error","count":0,"msg":"boom"}',
        "error: 3 files failed",
        "error: none of the files exist",
        "Error: nothing found",
        '{"error":"x failed","level":"error"}',
        'level=error msg="x" count=0',
        "error: 0x80070005",
        "error: 0.5 is not a valid value",
        "ValueError: 0.5",
        "critical: 0.5",
        "error: 0 is not a valid value",
        '{"level":"error","message":"connect failed","retries":0}',
    ],
)
def test_an_error_beside_a_zero_is_a_failure(line):
    assert explain_text(line).has_failed


FULL = "torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB."


@pytest.mark.parametrize(
    "log",
    [
        "OOM, retrying with batch 8 … ok, step done",
        "WARNING: CUDA out of memory (batch 16), retrying with batch 8 ... ok, step done",
        f"{FULL}\nretrying with batch_size=8 ... ok",
        f"{FULL}\nOOM, retrying with batch 8\nstep 12 done",
        f"{FULL}\ncaught OOM, retrying with batch size 8\nstep 11: ok",
        f"epoch 1\n{FULL}\ncaught OOM, retrying with batch size 8\nstep 11 done, loss 2.0",
    ],
)
def test_an_error_that_a_retry_got_over_is_no_failure(log, tmp_path, capsys):
    found = explain_text(log)
    assert (found.found, found.has_failed) == ((), False)
    path = tmp_path / "log"
    path.write_text(log)
    assert main(["doctor", "--explain", str(path)]) == 0
    output = capsys.readouterr()
    assert output.err == ""
    assert output.out.startswith("no error found in this text")


@pytest.mark.parametrize(
    "log",
    [
        FULL,
        f"{FULL}\nretrying with batch 8",
        f"step 12 done\n{FULL}",
        f"{FULL}\nretrying with batch 8\nstep 12 done\n{FULL}",
    ],
)
def test_an_error_without_progress_after_it_stays(log):
    assert explain_text(log).first.error.name == "gpu-memory-full"


@pytest.mark.parametrize(
    "log",
    [
        'Sentence: "CUDA out of memory is the most common error" label=1 pred=1',
        'text="No space left on device" label=disk score=0.98',
        '{"input": "RuntimeError: CUDA out of memory", "label": 1}',
        '"CUDA out of memory" is one of the most frequent questions',
        'a1b2c3 Fix RuntimeError: CUDA out of memory\nd4e5f6 Handle "No space left on device" well',
        "* 9f3a add a test for CUDA out of memory",
    ],
)
def test_a_text_of_a_data_set_or_a_list_of_commits_shows_no_error(log):
    found = explain_text(log)
    assert (found.found, found.failure, found.has_failed) == ((), None, False)


@pytest.mark.parametrize(
    "log",
    [
        'prompt: "a cat"\nRuntimeError: CUDA out of memory',
        "input: batch 3: CUDA out of memory. Tried to allocate 2.00 GiB.",
        "abcdef RuntimeError: CUDA out of memory",
        "a1b2c3 RuntimeError: CUDA out of memory",
    ],
)
def test_an_error_beside_a_prompt_or_a_number_stays(log):
    assert explain_text(log).first.error.name == "gpu-memory-full"
