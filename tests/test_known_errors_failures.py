"""The forms in which programs report a failure whose cause the doctor does not know."""

from __future__ import annotations

import pytest

from labkit.cli import main
from labkit.known_errors.match import explain_text

FAILURES = [
    "mytool: fatal error: files a and b have the same name",
    "foo.c:1:2: fatal error: 'x.h' file not found",
    "/usr/bin/ld: fatal error: cannot open map file",
    "clang: fatal error: no input files",
    "src/a.ts(1,2): error TS2304: Cannot find name 'x'.",
    "src/a.ts:1:2 - error TS2304: Cannot find name 'x'.",
    "LINK : fatal error LNK1104: cannot open file 'x.lib'",
    "ptxas fatal   : Unresolved extern function 'x'",
    "ptxas error   : Entry function 'x' uses too much shared data",
    "PHP Fatal error:  Uncaught TypeError",
    "ERROR:__main__:could not load the config",
    "CRITICAL:root:model is gone",
    "ERROR:trainer.loop:step went wrong",
    "FATAL:app:broken",
    "2026-01-01 10:00:00,123 ERROR trainer: step went wrong",
    "2026-01-01 10:00:00,123 - trainer - ERROR - step went wrong",
    "2026-01-01 10:00:00 ERROR step went wrong",
    "2026-01-01T10:00:00.123456Z ERROR my_crate::run: step went wrong",
    "2026-01-01T10:00:00.123456Z ERROR step went wrong",
    "[2026-01-01T10:00:00Z ERROR my_crate] step went wrong",
    "2026/01/01 10:00:00 ERROR step went wrong key=1",
    "26/01/01 10:00:00 ERROR SparkContext: step went wrong",
    "2026-01-01 10:00:00,123 [ERROR] trainer: step went wrong",
    "2026-01-01 10:00:00,123 ERROR [main] com.foo.Bar: step went wrong",
    "10:00:00.123 [main] ERROR com.foo.Bar - step went wrong",
    "10:00:00 ERROR trainer: step went wrong",
    "2026-01-01 10:00:00,123 CRITICAL trainer: step went wrong",
    "2026-01-01 10:00:00,123 FATAL trainer: step went wrong",
    "[2026-01-01 10:00:00,123: ERROR/MainProcess] consumer: lost it",
    "[ERROR|trainer.py:123] 2026-01-01 10:00:00,123 >> step went wrong",
    "[2026-01-01 10:00:00] production.ERROR: step went wrong",
    "E, [2026-01-01T10:00:00.123456 #123] ERROR -- : step went wrong",
    '2026-01-01 10:00:00.123 UTC [123] ERROR:  relation "x" does not exist',
    '2026-01-01 10:00:00.123 UTC [123] FATAL:  role "x" does not exist',
    "2026-01-01 10:00:00.123 | ERROR    | module:func:12 - step went wrong",
    (
        "2026-01-01 10:00:00.123 | CRITICAL |"
        " a.very.long.package.name.that.goes.on.and.on.module:function_name:12 - step went wrong"
    ),
    "ERROR | step went wrong",
    "ERROR    | module:func:12 - step went wrong",
    "2026-01-01 10:00:00 | ERROR | step went wrong",
    "2026-01-01 10:00:00 ERROR 404: Not Found.",
    "2026-01-01T10:00:00.000Z\tERROR\tcontroller/run.go:12\tstep went wrong",
    "ERRO[0000] step went wrong",
    "FATA[0012] step went wrong",
    '10:00AM ERR step went wrong error="boom"',
    "E1129 10:00:00.123456 123 file.cc:99] step went wrong",
    "E1129 10:00:00.123456 140 main.py:99] step went wrong",
    "E20261129 10:00:00.123456 123 file.cc:99] step went wrong",
    "[rank0]:E1129 10:00:00.123000 123 torch/distributed/foo.py:99] step went wrong",
    "2026-01-01 10:00:00.123456: E tensorflow/core/platform/x.cc:12] step went wrong",
    "Training failed: loss diverged",
    "Build failed: 3 targets",
    "FAILED: 3 of 8",
    "Failed: 3",
    "FAILED: foo.o",
    "Tests failed: 2",
    "Job 17 failed: node lost",
    "Tests:       1 failed, 2 passed, 3 total",
    "FAIL src/a.test.js",
    "  3 failing",
    "1 failed, 2 passed in 0.12s",
    "not ok 1 - adds numbers",
    "[  FAILED  ] Suite.Test (3 ms)",
    "FAIL: test_x (mod.Class)",
    "ERROR: test_x (mod.Class)",
    "[INFO] BUILD FAILURE",
    "test foo ... FAILED",
    "The following tests FAILED:",
    "2/3 Test #2: foo ..........***Failed    0.01 sec",
    "BUILD FAILED in 3s",
    "FAILURE: Build failed with an exception.",
    "SEVERE: step went wrong",
    "Fatal Python error: init_fs_encoding",
    "An error occurred (AccessDenied) when calling the PutObject operation: Access Denied",
    '{"level":50,"time":1531171074631,"msg":"boom"}',
    "time=2026-01-01T10:00:00Z level=ERROR msg=boom",
    "a.out: a.c:3: f: Assertion `x > 0' failed.",
    "srun: error: node1: task 0: Exited with exit code 1",
    "fail: Microsoft.Hosting[11]",
    "[Nest] 123  - 01/01/2026, 10:00:00 AM   ERROR [ExceptionsHandler] boom",
    "[12:00:00.123] ERROR (123): boom",
    "2026-01-01 10:00:00,123 trainer ERROR step went wrong",
    "2026-01-01 10:00:00,123 [123] ERROR trainer: step went wrong",
    "Jan 01 10:00:00 host app[12]: ERROR step went wrong",
    "ERROR step went wrong",
    "[rank0]:[E1129 10:00:00.123456789 ProcessGroupNCCL.cpp:616] step went wrong",
    "error: 0.5 is not a valid value",
    "test error: 3 tests did not end",
    "max error: 0.5 exceeds the tolerance 0.1",
    "validation error: 3 fields are missing",
    "quantization error: 0.5 is above the limit",
    "Error: 404 Not Found",
    "error: 2.13.0 is not compatible",
    "error: 7",
    "link error: 2",
    "relative error: 0.3 too large",
    "error: 0.1.2",
    "==4411==ERROR: AddressSanitizer: heap-buffer-overflow on address 0x602000000014 at pc 0x",
    "bash: line 3: 5512 Aborted   ./sim",
    "Error in f(a) : object 'b' not found",
    "Execution halted",
    "app.rb:3:in `fetch': key not found (KeyError)",
    "lua: x.lua:3: attempt to index a nil value (global 'a')",
    "** (MatchError) no match of right hand side value: 3",
    "Fortran runtime error: Index '11' of dimension 1 of array 'a' above upper bound of 10",
    "prog: Prelude.head: empty list",
    "cp: cannot stat 'x': No such file or directory",
    "ls: cannot access 'x': No such file or directory",
    "cat: in.txt: No such file or directory",
    "tar: Error is not recoverable: exiting now",
    "awk: cmd. line:1: fatal: division by zero attempted",
    "<crit> render: lost the device",
    "10:00:03.123 E/Camera  (  811): preview died",
    "FEHLER: Schritt 3 ist gescheitert",
    "Login Test                 | FAIL |",
    "2 errors generated.",
    "Parse error near line 3: no such column: x",
    "Giving up on upload after 5 attempts",
    "Could not open input file data.csv, exiting",
    "Unable to parse config: line 3",
    "ERROR 11-29 10:00:00 [file.py:1] engine went wrong",
    "/tmp/run.sh: line 12:    77 Floating point exception   ./solve",
    "zsh: abort      ./sim",
    "Abort trap: 6",
    "SUMMARY: ThreadSanitizer: data race a.c:3 in f",
    "==12== ERROR SUMMARY: 3 errors from 2 contexts (suppressed: 0 from 0)",
    "a.c:3:5: runtime error: signed integer overflow: 2147483647 + 1",
    "Uncaught (in promise) Boom: no tenant",
    "app.rb:3:in 'Hash#fetch': key not found: :a (Shop::Missing)",
    "/usr/bin/lua5.4: cannot open x.lua",
    "** (EXIT from #PID<0.93.0>) shutdown",
    "** exception error: no match of right hand side value 3",
    "forrtl: severe (24): end-of-file during read, unit 10, file /data/in.dat",
    "ERROR STOP 3",
    "prog: Uncaught exception ghc-internal:GHC.Internal.Exception.ErrorCall:",
    "prog: Main.hs:3:1-20: Non-exhaustive patterns in function f",
    "CallStack (from HasCallStack):",
    "Undefined subroutine &main::f called at x.pl line 3.",
    "thread 12 panic: index out of bounds: index 3, len 3",
    "chmod: changing permissions of 'x': Operation not permitted",
    "/bin/sort: cannot read: in.txt: No such file or directory",
    "head: invalid number of lines: 'x'",
    "gzip: stdin: not in gzip format",
    "10:00:03 <error> net: link is lost",
    "E/Camera  (  811): preview died",
    "11-29 10:00:03.123   811   822 E Camera  : preview died",
    "ERREUR: le fichier manque",
    "[10:00:00] ОШИБКА: нет связи",
    "ERREUR: aucun fichier en entrée",
    "错误：找不到文件",
    "a.c:3:1: Fehler: unbekannter Typ",
    "SCHWERWIEGEND: Start misslungen",
    "1 warning and 2 errors generated.",
    "Found 3 errors in 1 file (checked 2 source files)",
    "upload: giving up after 5 retries",
    "Config is missing, aborting.",
    "Cannot connect to the store: timed out",
]
# Lines that resemble them: metrics, counters, levels that are set, other levels, retries.
NEAR_MISSES = [
    "test error: 12.3 %",
    "training error: 0.3 test error: 0.4",
    "quantization error: 0.001 max 0.02",
    "MSE error: 1.2e-3 +/- 4e-5",
    "CUDA out of memory retries: 0",
    "max relative error: 1.2e-4",
    "mean absolute error: 0.21 (best 0.19)",
    "error: 12.3 %",
    "test error: 12 %",
    "test error 12.3%",
    "epoch 3 error: 3.1e-2 time: 12.3",
    "word error rate: 12.3",
    "train_error: 0.3, val_error: 0.4",
    "reconstruction error: 0.3 +- 0.1",
    "Error: 3%",
    "generalization error: 0.3 ± 0.02",
    "L2 error: 0.2, Linf error: 0.3",
    "top-1 error: 23.1 top-5 error: 6.5",
    "top-1 error: 23",
    "residual error: 1e-12 after 34 iterations",
    "error: 0.25 -> 0.11",
    "training error: 0.3 (best: 0.2 at epoch 4)",
    "error: 0.3, lr 1e-4",
    "|   error: 0.31 | loss: 0.2 |",
    "Tests failed: 0",
    "FAILED: 0 of 8",
    "failed: 0/12",
    "0 of 8 failed",
    "jobs failed: 0",
    "Failed tests: 0",
    "Tests run: 3, Failures: 0, Errors: 0",
    "Tests:       0 failed, 2 passed, 2 total",
    "  0 failing",
    "I1129 10:00:00.123456 123 file.cc:99] error: nothing",
    "W1129 10:00:00.123456 123 file.cc:99] failed: trying again",
    "INFO:root:ERROR threshold set to 3",
    "2026-01-01 10:00:00,123 INFO trainer: ERROR count 0",
    "2026-01-01 10:00:00 | INFO | module:func:12 - ERROR level set",
    "INFO | ERROR handling enabled",
    "WARNING:root:could not load apex",
    "2026-01-01 10:00:00,123 WARNING trainer: slow",
    "ERROR    0",
    "ERROR  | 0",
    "ERROR:root:attempt 1 failed, retrying in 5 s",
    "2026-01-01 10:00:00,123 ERROR trainer: attempt 1 of 3, retrying",
    "Connection failed: retrying in 2 seconds",
    "loading apex failed: falling back to torch",
    "ERROR rate: 0.01",
    "# ERROR handling",
    "ERROR HANDLING",
    "E1129",
    "ok 1 - not an error",
    "cuda OOM retries: 0",
    "num_alloc_retries: 0",
    "out of memory errors: 0",
    "CUDA out of memory count: 0",
    "CUDA OOMs: 0 retries: 0",
    "|    Cudamalloc retries: 0         |        cuda OOMs: 0            |",
    "oom_retries=0",
    "nccl errors: 0",
    "timeouts: 0",
    "CUDA out of memory events: 0",
    "Out of memory kills: 0",
    "no CUDA out of memory",
    "CUDA out of memory retries: 0, steps: 12",
    "0 CUDA out of memory errors",
    "word error rate: 12.3 %",
    "error rate: 0.3",
    "reprojection error: 0.35 px",
    "val error: 0.21 (best 0.19)",
    "test error: 0.12 on test",
    "epoch 3 | error: 0.3 | time: 12",
    "epoch: 3 error: 0.3 lr: 1e-3",
    ("E0000 00:00:1732632000.123456     123 cuda_dnn.cc:8310] Unable to register cuDNN factory"),
    (
        "2026-01-01 10:00:00.123456: E"
        " xla/stream_executor/cuda/cuda_blas.cc:1515] Unable to register cuBLAS factory"
    ),
    (
        "E0000 00:00:1732632000.123456     123"
        " computation_placer.cc:177] computation placer already registered. Please check linkage"
    ),
    "==1== ERROR SUMMARY: 0 errors from 0 contexts (suppressed: 0 from 0)",
    "========= ERROR SUMMARY: 0 errors",
    "(node:12) DeprecationWarning: Buffer() is deprecated",
    "Trace: here",
    "Node.js v20.11.0",
    "+    throw new Boom('no tenant');",
    "Stack traces: off",
    "lua: 5.4.6",
    "lua: enabled",
    "** (note) all good",
    "Fortran runtime: libgfortran 5",
    "Fortran compiler: gfortran 13.2",
    "rm: cannot remove 'x': No such file or directory",
    "kill: (123) - No such process",
    "mkdir: cannot create directory 'x': File exists",
    "config: no such file or directory, using defaults",
    "cat: 3 images",
    "head: 12 layers",
    "install: done",
    "file: data.csv",
    "sort: by date",
    "find: 3 files",
    "<error> none </error>",
    "10:00:03.123 I/Camera  (  811): preview up",
    "10:00:03.123 W/Camera  (  811): preview slow",
    "11-29 10:00:03.123   811   822 I Camera  : up",
    "FEHLER: 0",
    "Fehler: 0.31",
    "Fehler: keine",
    "ERREUR: aucune",
    "ОШИБКА: нет",
    "FEHLERQUOTE: 0.1",
    "Hata: 0",
    "Fehlerquote: 3 %",
    "错误: 0",
    "GRAVEL road",
    "grave: a sound",
    "| Login Test | PASS | FAIL |",
    "| PASS | FAIL |",
    "Login Test | PASS |",
    "0 errors generated.",
    "1 warning generated.",
    "Found 0 errors.",
    "Found 3 errors (3 fixed, 0 remaining).",
    "Parse error rate: 0.1",
    "parse error recovery enabled",
    "Giving up the lock",
    "Giving up on the metadata service, using defaults",
    "never giving up",
    "Training done, exiting",
    "no more work, exiting.",
    "Unable to load extension x: skipping",
    "Could not find TensorRT",
    "Cannot find config.json: using the default",
    "Cannot connect to telemetry: off",
    "INFO 11-29 10:00:00 [file.py:1] engine went up",
    "WARNING 11-29 10:00:00 [file.py:1] slow tokenizer",
    "Aborted by the user",
    "Aborted: 0",
    "Uncaught exception handler installed",
    "Error in prediction: 0.3",
    "Execution time: 3 s",
    "Prelude: done",
    "du: cannot read directory './x': Permission denied",
    "GRAVE - a word",
    "Could not find a cached model, downloading: x",
    "Error in L2 norm : 0.3",
    "Invalid users removed: 3, exiting",
    "tar: Removing leading `/' from member names",
    "[1]+  Terminated              sleep 100",
    "Unable to find image 'busybox:latest' locally",
    "bash: warning: setlocale: LC_ALL: cannot change locale (en_US.UTF-8)",
    "Found 12 errors in the old log, all fixed",
    "Fehler: 12 %",
]


@pytest.mark.parametrize("line", FAILURES)
def test_a_failure_in_the_form_of_its_program_is_unknown_not_healthy(line):
    found = explain_text(f"done\n{line}\n")
    assert (found.first, found.failure and found.failure.line_number) == (None, 2)


@pytest.mark.parametrize("line", NEAR_MISSES)
def test_a_line_that_resembles_a_failure_is_healthy(line):
    found = explain_text(f"step 1\n{line}\n")
    assert (found.found, found.failure, found.has_failed) == ((), None, False)


@pytest.mark.parametrize("line", [FAILURES[0], "ERROR:__main__:no config", "ERROR | step failed"])
def test_an_unknown_failure_says_what_to_collect(line, tmp_path, capsys):
    path = tmp_path / "log"
    path.write_text(f"using CUDA 12.8\n{line}\n")
    assert main(["doctor", "--explain", str(path)]) == 1
    assert "collect: labkit doctor" in capsys.readouterr().out


@pytest.mark.parametrize(
    "line",
    [
        "RuntimeError: CUDA out of memory",
        "GPU 0 CUDA out of memory errors",
        "CUDA out of memory: 0x2",
    ],
)
def test_a_counter_is_told_from_an_error_with_a_number(line):
    assert explain_text(line).first.error.name == "gpu-memory-full"


STACKS = {
    "Node": (
        "/srv/app/index.js:10\n    throw new Boom('no tenant');\n    ^\n\nBoom: no tenant\n"
        "    at Object.<anonymous> (/srv/app/index.js:10:11)\n"
        "    at Module._compile (node:internal/modules/cjs/loader:1554:14)\n\nNode.js v20.11.0\n",
        2,
    ),
    "Node, a call on several lines": (
        "/srv/app/index.js:10\nthrow new Boom(\n^\n\nBoom: no tenant\n",
        2,
    ),
    "a stack alone": ("start\nBoom: no tenant\n    at async run (file:///srv/a.mjs:10:11)\n", 2),
    "Lua": ("start\nstack traceback:\n\t[C]: in ?\n", 2),
    "R": ("start\nError in f(a) :\n  object 'b' not found\nCalls: f\nExecution halted\n", 2),
}


@pytest.mark.parametrize(("log", "line"), STACKS.values(), ids=STACKS)
def test_an_uncaught_error_of_another_language_is_unknown_not_healthy(log, line):
    found = explain_text(log)
    assert (found.first, found.failure and found.failure.line_number) == (None, line)


@pytest.mark.parametrize(
    "log",
    [
        "(node:1) Warning: slow\n    at run (/srv/app/index.js:10:11)\n",
        "Trace: here\n    at run (/srv/app/index.js:10:11)\n",
        "Boom: no tenant\nserved at /srv/app/index.js\n",
        "+ throw new Boom('no tenant');\n+ }\n",
    ],
)
def test_a_stack_of_a_warning_is_healthy(log):
    assert not explain_text(log).has_failed


@pytest.mark.parametrize(
    ("log", "line"),
    [
        ("INFO 11-29 10:00:00 [a.py:1] up\nERROR 11-29 10:00:00 [file.py:1] no engine\n", 2),
        ("up\n(EngineCore pid=7) ERROR 11-29 10:00:00 [core.py:7] EngineCore is gone.\n", 2),
    ],
)
def test_the_level_of_vllm_says_that_a_line_is_a_failure(log, line):
    found = explain_text(log)
    assert (found.first, found.failure and found.failure.line_number) == (None, line)


@pytest.mark.parametrize(
    ("log", "name", "quoted"),
    [
        (
            "terminate called after throwing an instance of 'app::Odd'\n"
            "  what():  no input file\nAborted (core dumped)\n",
            "program-threw",
            "what():  no input file",
        ),
        (
            "F0301 10:00:00.123456   123 solver.cc:9] Check failed: a == b (1 vs. 2)\n",
            "native-check-failed",
            "F0301 10:00:00.123456   123 solver.cc:9] Check failed: a == b (1 vs. 2)",
        ),
        (
            "Traceback (most recent call last):\n"
            '  File "/srv/fetch.py", line 3, in <module>\n    fetch()\nacme.Quota: daily limit\n',
            "program-raised",
            "acme.Quota: daily limit",
        ),
    ],
    ids=["C++", "glog", "Python"],
)
def test_an_error_of_the_program_itself_is_quoted_but_not_explained(log, name, quoted):
    found = explain_text(log)
    assert (found.first, found.has_failed) == (None, True)
    assert (found.found[0].error.name, found.found[0].line) == (name, quoted)
    assert "pip install" not in found.found[0].error.fix.anywhere


@pytest.mark.parametrize(
    "log",
    [
        "F0301 10:00:00.123456   123 ProcessGroupNCCL.cpp:9] Check failed: a == b\n",
        "F external/xla/xla/shape_tree.cc:54] Check failed: a >= 0 (0 vs. -1)\n",
    ],
)
def test_a_check_of_a_framework_that_fails_still_advises_another_version(log):
    assert "pip install --upgrade" in explain_text(log).found[0].error.fix.anywhere


@pytest.mark.parametrize(
    ("message", "advice"),
    [
        (
            "Can't locate Foo/Bar.pm in @INC (you may need to install the Foo::Bar module) at x.pl"
            " line 3.",
            "install the Foo::Bar module",
        ),
        ("error: no driver (you must set mode (or MODE) first) in x", "set mode (or MODE) first"),
        ("error: no driver, you must set mode (or MODE) first", "set mode (or MODE) first"),
    ],
)
def test_advice_in_a_message_ends_at_its_bracket(message, advice):
    assert explain_text(message).first.error.fix.anywhere.partition("   #")[0] == advice


@pytest.mark.parametrize(
    ("log", "said"),
    [
        ("zorp: cannot connect to broker", "zorp: cannot connect to broker"),
        ("stage 1 ok\nstage 2 failed\n", "stage 2 failed"),
        ("loading\nterminated: lease lost\nroot@box:~# ", "terminated: lease lost"),
        ("Abort: bad magic", "Abort: bad magic"),
        ("frob: invalid argument 'x'\nUsage: frob [OPTION]" + "\n  -x  fail" * 30, "frob: invalid"),
        ("submitting\nrejected by server", "rejected by server"),
        ("worker 3 crashed", "worker 3 crashed"),
        ("connection to 10.0.0.3 lost\n\n\n", "connection to 10.0.0.3 lost"),
        ("step 12 timed out after 300 s", "step 12 timed out"),
        ("checksum mismatch for part 7", "checksum mismatch"),
        ("model.bin is not a valid archive\n", "model.bin"),
        ("loading\nzorp: permission denied\n\n", "zorp: permission denied"),
        ("reading header\nunexpected end of data", "unexpected end of data"),
    ],
)
def test_a_log_that_ends_with_a_failure_in_plain_words_is_no_healthy_one(log, said):
    found = explain_text(log)
    assert found.failure.line.startswith(said)
    assert found.found == ()
    # Within a log that goes on, the same words are often of something optional.
    assert explain_text(f"{log}\n" + "step done\n" * 20).failure is None


@pytest.mark.parametrize(
    "log",
    [
        "12 tests passed\n0 failed",
        "failed: 0",
        "INFO: could not find the cache, will create it",
        "connection closed\nbye",
        "shutdown requested\nexiting",
        "Finished with 0 errors and 3 warnings",
        "Usage: frob [options]\n  --strict  refuse what is not valid",
        "could not find x, using the default",
        "Is the file not found? See below.",
        "the option was removed. The value is not set by the user, and is not found then",
        "- unknown option: now an error",
        "rm: cannot remove 'x': not found",
        # What follows shows that the program went on, or the log.
        "connection lost, retrying\nconnected to broker",
        "zorp: cannot read shard 7\nstep 41 loss 0.30",
        "Nov 29 10:00:00 box chronyd[701]: Can't synchronise: no sources",
        "[    0.61] pci 0000:00:1c.0: BAR 13: failed to assign [io  size 0x1000]",
        "GET /../etc 403 forbidden",
        "login for admin denied from 10.9.20.11",
        "7 samples were rejected by the filter",
        "unknown token id: 0",
        "Output: The ship was lost at sea.",
        "car crashed at x=3.1, return -12",
        "config.toml not found, writing one",
        "Failed to check for processor microcode upgrades.\nNo services need to be restarted.",
        'fatal: [web1]: FAILED! => {"msg": "x"}\n...ignoring\nweb1 : ok=5 failed=0 ignored=1',
    ],
)
def test_a_log_whose_last_lines_resemble_a_failure_is_healthy(log):
    found = explain_text(log)
    assert (found.found, found.failure, found.has_failed) == ((), None, False)


@pytest.mark.parametrize(
    "line",
    [
        "##[error]Process completed with exit code 1.",
        "Finished: FAILURE",
        "Done. Your build exited with 1.",
        "** BUILD FAILED **",
        "web1 : ok=2    changed=0    unreachable=0    failed=1    ignored=0",
        "main.c:(.text+0x5): undefined reference to `foo'",
        "./main.go:5:2: undefined: foo",
        "./run.sh: line 3: FOO: unbound variable",
        "/usr/bin/python3: No module named foo",
        "srun: Job allocation 1881 has been revoked",
        "     Active: failed (Result: exit-code) since Fri 2024-11-29 10:00:00 UTC; 5s ago",
        "2024-11-29 10:00:00,123 INFO gave up: x entered FATAL state, too many start retries",
        "2024-11-29 10:00:00,123 WARN exited: x (exit status 1; not expected)",
        "x-1   0/1   CrashLoopBackOff   5   3m",
        "client_loop: send disconnect: Broken pipe",
        "Automatic merge failed; fix conflicts and then commit the result.",
        "** server can't find x: NXDOMAIN",
        "2 packets transmitted, 0 received, 100% packet loss, time 1001ms",
        "sha256sum: WARNING: 1 computed checksum did NOT match",
        "[         1 tests failed          ]",
        "Failed!  - Failed:     1, Passed:     4, Skipped:     0, Total:     5",
        "Tests: 5, Assertions: 10, Failures: 1.",
        "Monitored metric val_loss = nan is not finite. Previous best value was 0.2.",
    ],
)
def test_how_other_programs_say_that_something_failed_is_known(line):
    assert explain_text(f"start\n{line}\nbye\n").failure


@pytest.mark.parametrize(
    "line",
    [
        "Finished: SUCCESS",
        "Done. Your build exited with 0.",
        "web1 : ok=5    changed=0    unreachable=0    failed=0    ignored=0",
        "Process completed with exit code 0.",
        "[INFO] Tests run: 5, Failures: 0, Errors: 0, Skipped: 0",
        "[         0 tests failed          ]",
        "Passed!  - Failed:     0, Passed:     5, Skipped:     0, Total:     5",
        "     Active: active (running) since Fri 2024-11-29 10:00:00 UTC; 5s ago",
        "x-1   0/1   Completed   0   3m",
        "2 packets transmitted, 2 received, 0% packet loss, time 1001ms",
        "2024-11-29 10:00:00,123 INFO exited: x (exit status 0; expected)",
    ],
)
def test_what_other_programs_say_of_a_success_is_healthy(line):
    found = explain_text(f"start\n{line}\nbye\n")
    assert (found.found, found.failure) == ((), None)
