"""An unknown failure is quoted by the message that says the matter, with the right address."""

from __future__ import annotations

import io

import pytest

from labkit.cli import main
from labkit.host.distribution import UNKNOWN
from labkit.known_errors.match import explain_file, explain_text

LINKER = """\
gcc -O2 -c main.c -o main.o
gcc main.o -o app -lbent
/usr/bin/ld: cannot find -lbent: No such file or directory
collect2: error: ld returned 1 exit status
make: *** [Makefile:12: app] Error 1
"""
REFERENCE = """\
checking for widgets... not found
[ 50%] Linking CXX executable app
/usr/bin/ld: app.dir/main.cpp.o: in function `main':
main.cpp:(.text+0x15): undefined reference to `bend(int)'
collect2: error: ld returned 1 exit status
make[2]: *** [app.dir/build.make:84: app] Error 1
make: *** [Makefile:84: all] Error 2
"""
GENERATOR = """\
python gen.py
gen: table width 12 exceeds 10
make: *** [Makefile:3: gen] Error 1
"""
NINJA = """\
[1/4] Generating proto
protoc: proto/x.proto: File does not reside within any path specified
ninja: build stopped: subcommand failed.
"""
MODULE = """\
node:internal/modules/cjs/loader:1080
  throw err;
  ^

Error: Cannot find module './lib/thing'
Require stack:
- /srv/app/index.js
    at Module._load (node:internal/modules/cjs/loader:922:27) {
"""
THROWN = """\
/srv/app/index.js:10
    throw new ConfigProblem("missing port");
    ^

ConfigProblem: missing port
    at Object.<anonymous> (/srv/app/index.js:10:11)
"""
PANIC = """\
     Running `target/debug/app`
thread 'main' panicked at src/main.rs:4:5:
index out of bounds: the len is 3 but the index is 99
note: run with `RUST_BACKTRACE=1` environment variable to display a backtrace
"""
RAISED = """\
INFO start
Traceback (most recent call last):
  File "/home/u/main.py", line 88, in <module>
    run()
  File "/home/u/flow.py", line 17, in run
    raise StopPipeline
flow.StopPipeline
"""
LOGGED = """\
ERROR:root:the flow ended
Traceback (most recent call last):
  File "/home/u/flow.py", line 17, in run
    raise StopPipeline("no rows")
flow.StopPipeline: no rows
"""
PREFIXED = """\
(EngineCore pid=7) ERROR 09-28 15:47:24 [core.py:718] the core ended
(EngineCore pid=7) ERROR 09-28 15:47:24 [core.py:718] Traceback (most recent call last):
(EngineCore pid=7) ERROR 09-28 15:47:24 [core.py:718]   File "/home/u/flow.py", line 17, in run
(EngineCore pid=7) ERROR 09-28 15:47:24 [core.py:718]     self.stop()
(EngineCore pid=7) ERROR 09-28 15:47:24 [core.py:718]     ^^^^^^^^^^^
(EngineCore pid=7) ERROR 09-28 15:47:24 [core.py:718] flow.StopPipeline
"""
GO = """\
panic: table is bent

goroutine 1 [running]:
main.main()
\t/tmp/x.go:7 +0x1d
exit status 2
"""
JAVA = """\
Exception in thread "main" java.lang.RuntimeException: start failed
\tat com.x.Main.main(Main.java:5)
Caused by: java.lang.IllegalStateException: no bean
\tat com.x.Beans.find(Beans.java:77)
\t... 1 more
"""
WEBPACK = "ERROR in ./src/index.js\nModule not found: can't resolve './thing'\nnpm ERR! code 1\n"
NPM = "npm ERR! code ELIFECYCLE\nnpm ERR! errno 1\nnpm ERR! app@1.0.0 build: `webpack`\n"
CMAKE = """\
CMake Error at CMakeLists.txt:10 (find_package):
  Could not find a package configuration file provided by "Bent" with any of
  the following names:
"""
GRADLE = """\
FAILURE: Build failed with an exception.

* What went wrong:
Execution failed for task ':app:compileJava'.
"""
CARGO = """\
error: failed to run custom build command for `bent-sys v0.9.80`
Caused by:
  process didn't exit successfully: `/x/build-script-main` (exit status: 101)
  --- stderr
  thread 'main' panicked at build.rs:3:5:
  no folder with the headers of bent
"""
SAID = {
    "CMake": (CMAKE, 2, "CMakeLists.txt:10"),
    "Gradle": (GRADLE, 4, None),
    "cargo": (CARGO, 6, "build.rs:3:5"),
    "Maven": ("[ERROR] Failures: \n[ERROR]   AppTest.testAdd:12 expected:<4>\n", 2, None),
    "a test of Go's": ("--- FAIL: TestAdd (0.00s)\n    add_test.go:9: got 3, want 4\n", 2, None),
    "a linker": (LINKER, 3, None),
    "a reference": (REFERENCE, 4, None),
    "a tool of make's": (GENERATOR, 2, None),
    "a tool of ninja's": (NINJA, 2, None),
    "a module of Node's": (MODULE, 5, None),
    "Node": (THROWN, 5, "/srv/app/index.js:10"),
    "Rust": (PANIC, 3, "src/main.rs:4:5"),
    "Python": (RAISED, 7, "/home/u/flow.py:17"),
    "a logger": (LOGGED, 5, "/home/u/flow.py:17"),
    "a prefix": (PREFIXED, 6, "/home/u/flow.py:17"),
    "Go": (GO, 1, "/tmp/x.go:7"),
    "Java": (JAVA, 3, "Beans.java:77"),
    "webpack": (WEBPACK, 2, None),
    "npm": (NPM, 3, None),
    "a symptom alone": ("make: *** [Makefile:3: gen] Error 1\n", 1, None),
    "a header alone": ("Traceback (most recent call last):\n", 1, None),
}


@pytest.mark.parametrize(("log", "number", "where"), SAID.values(), ids=SAID)
def test_the_message_is_quoted_not_its_symptom_or_header(log, number, where):
    found = explain_text("all is well\n" + log)
    assert found.message is not None
    assert (found.message.number, found.message.where) == (number + 1, where)
    assert found.message.line == log.splitlines()[number - 1].strip()


def test_the_message_is_found_behind_prefixes_and_colors():
    log = "".join(f"\x1b[31mapp-1  | {line}\x1b[0m\n" for line in RAISED.splitlines())
    found = explain_text(log).message
    assert (found.number, found.where) == (7, "/home/u/flow.py:17")


def test_the_place_is_printed_below_the_message(tmp_path, capsys):
    (tmp_path / "log").write_text(PANIC)
    assert main(["doctor", "--explain", str(tmp_path / "log")]) == 1
    said = capsys.readouterr().out
    assert "line 3: index out of bounds: the len is 3 but the index is 99\nat: src/main.rs" in said


@pytest.mark.parametrize("workers", [1, 2])
def test_the_message_is_found_in_a_log_of_many_blocks(workers):
    filler = "".join(f"step {number} is done\n" for number in range(60_000))
    found = explain_file(io.BytesIO((filler + PANIC + filler).encode()), workers)
    assert found.message.where == "src/main.rs:4:5"
    assert found.describe(UNKNOWN)["unexplained"] == {
        "line_number": 60_003,
        "line": "index out of bounds: the len is 3 but the index is 99",
        "where": "src/main.rs:4:5",
    }


TRACKER = "its own tracker"
GLOG = "E0301 10:00:00.123456 1234 {}_pool.cc:77] queue is stuck\n"
ASKED = {
    "Rust": (PANIC, TRACKER, "RUST_BACKTRACE=1"),
    "Rust beside a GPU": (f"using CUDA 12.8\n{PANIC}", TRACKER, "RUST_BACKTRACE=1"),
    "Node in docker": (f"docker run app\n{THROWN}", TRACKER, "npm ls"),
    "Go": (GO, TRACKER, "GOTRACEBACK"),
    "a build": (LINKER, TRACKER, "make V=1"),
    "Python": (RAISED, TRACKER, "the whole log"),
    "Python with torch": (f"import torch\n{RAISED}", "discuss.pytorch.org", "labkit doctor"),
    "a driver": ("nvidia: loading\nERROR: bent\n", "forums.developer.nvidia.com", "nvrm"),
    "a container": ("nvidia docker: x\nERROR: bent\n", "nvidia-container-toolkit", "nvrm"),
    "vLLM": (f"vllm serve x\n{RAISED}", "vllm-project/vllm", "the whole log"),
    "a file of one's own": (GLOG.format("cuda"), TRACKER, "the whole log"),
    "a message about CUDA": (
        f"{PANIC}".replace("index out", "CUDA index out"),
        "forums.developer.nvidia.com",
        "nvrm",
    ),
}


@pytest.mark.parametrize(("log", "address", "collect"), ASKED.values(), ids=ASKED)
def test_where_to_ask_follows_from_what_failed(log, address, collect, tmp_path, capsys):
    (tmp_path / "log").write_text(log)
    assert main(["doctor", "--explain", str(tmp_path / "log")]) == 1
    said = capsys.readouterr().out
    assert address in said.partition("ask: ")[2]
    assert collect in said.partition("collect: ")[2].partition("ask: ")[0]
    if address == TRACKER:
        assert "nvrm" not in said


CRASHES = {
    "a prompt": "u@h:~$ ./app --in x.bin\nloading\nSegmentation fault (core dumped)\n",
    "a script": "./run.sh: line 3: 12345 Segmentation fault      (core dumped) ./app --fast\n",
    "the kernel": "kernel: app[1234]: segfault at 0 ip 00007f00 sp 00007ffe error 4 in libx.so\n",
    "zsh": "zsh: segmentation fault  ./app\n",
    "a job": "[1]    12345 segmentation fault (core dumped)  ./app -v\n",
}


@pytest.mark.parametrize("log", CRASHES.values(), ids=CRASHES)
def test_a_crash_of_a_program_that_is_not_pythons_gets_its_own_advice(log):
    found = explain_text(log).first
    fix, otherwise = found.write_fixes(UNKNOWN)
    assert found.error.name == "segfault"
    assert "gdb" in fix
    assert "python" not in f"{fix} {otherwise}"


@pytest.mark.parametrize(
    "log",
    [
        "u@h:~$ python train.py\nSegmentation fault (core dumped)\n",
        "u@h:~$ CUDA_VISIBLE_DEVICES=0 python3 -m x\nSegmentation fault\n",
        "./run.sh: line 3: 12345 Segmentation fault      (core dumped) python train.py\n",
        "zsh: segmentation fault  torchrun x.py\n",
        "./train.sh\nSegmentation fault\n",
    ],
)
def test_a_crash_of_python_is_still_asked_for_its_line(log):
    assert "faulthandler" in explain_text(log).first.write_fixes(UNKNOWN)[0]
