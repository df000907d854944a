"""Whole logs as they come: the causes in them, in the order in which to mend them."""

from __future__ import annotations

import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from labkit.host.distribution import UNKNOWN, Distribution
from labkit.known_errors import KNOWN_ERRORS
from labkit.known_errors.match import explain_text, format_explanation

LOGS = {
    "a build behind an inspecting proxy": (
        """\
#9 [lab 4/9] RUN pip install --require-hashes -r torch-cpu.txt
#9 2.114 WARNING: Retrying (Retry(total=4)) after connection broken by
#9 2.114 'SSLError(SSLCertVerificationError(1, '[SSL: CERTIFICATE_VERIFY_FAILED] certificate
#9 2.114 verify failed: unable to get local issuer certificate'))'
#9 9.870 ERROR: Could not find a version that satisfies the requirement torch==2.13.0+cpu
#9 9.871 ERROR: No matching distribution found for torch==2.13.0+cpu
""",
        [("changed-certificate", 3), ("no-build", 5)],
    ),
    "a build without a name server": (
        """\
Err:1 http://mirror.example trixie InRelease
  Temporary failure resolving 'mirror.example'
ERROR: No matching distribution found for numpy==2.4.0
""",
        [("no-name-server", 2), ("no-build", 3)],
    ),
    "a GPU container on a host without the toolkit": (
        """\
 Container labkit-cuda-1  Starting
Error response from daemon: could not select device driver "nvidia" with capabilities: [[gpu]]
""",
        [("no-gpu-driver-in-engine", 2)],
    ),
    "a container that lost its GPU overnight": (
        """\
$ nvidia-smi
Failed to initialize NVML: Unknown Error
$ python train.py
RuntimeError: CUDA unknown error - this may be due to an incorrectly set up environment, e.g.
changing env variable CUDA_VISIBLE_DEVICES after program start.
""",
        [("nvml-unknown-error", 2), ("nvidia-uvm", 4)],
    ),
    "training that ran out of shared memory": (
        """\
Traceback (most recent call last):
RuntimeError: unable to write to file </torch_29_17_0>: No space left on device (28)
RuntimeError: DataLoader worker (pid 12) is killed by signal: Bus error. It is possible that
dataloader's workers are out of shared memory. Please try to raise your shared memory limit.
RuntimeError: DataLoader worker (pid(s) 12) exited unexpectedly
""",
        [("shared-memory-full", 2), ("worker-exited", 5)],
    ),
    "workers that the kernel ended": (
        """\
RuntimeError: DataLoader worker (pid(s) 88) exited unexpectedly
RuntimeError: DataLoader worker (pid 88) is killed by signal: Killed.
""",
        [("out-of-memory-killed", 2), ("worker-exited", 1)],
    ),
    "a forked worker that used CUDA": (
        """\
RuntimeError: Cannot re-initialize CUDA in forked subprocess. To use CUDA with multiprocessing,
you must use the 'spawn' start method
RuntimeError: DataLoader worker (pid(s) 4, 5) exited unexpectedly
""",
        [("cuda-after-fork", 1), ("worker-exited", 3)],
    ),
    "a kernel module that was never signed": (
        """\
modprobe: ERROR: could not insert 'nvidia': Key was rejected by service
NVIDIA-SMI has failed because it couldn't communicate with the NVIDIA driver.
nvidia-container-cli: initialization error: load library failed: libnvidia-ml.so.1: cannot open
""",
        [("secure-boot", 1), ("driver-not-loaded", 2), ("no-driver-library", 3)],
    ),
    "a new card with the closed module": (
        """\
$ nvidia-smi
No devices were found
$ sudo dmesg | grep NVRM
NVRM: installed in this system requires use of the NVIDIA open kernel modules.
NVRM: GPU 0000:02:00.0: RmInitAdapter failed! (0x22:0x56:884)
$ python train.py
RuntimeError: No CUDA GPUs are available
""",
        [
            ("needs-open-modules", 4),
            ("gpu-not-attached", 5),
            ("no-devices", 2),
            ("torch-without-driver", 7),
        ],
    ),
    "a kernel update that took the module along": (
        """\
Error! Your kernel headers for kernel 6.12.0-3-amd64 cannot be found at /lib/modules/6.12.0-3-amd64
modprobe: FATAL: Module nvidia not found in directory /lib/modules/6.12.0-3-amd64
NVIDIA-SMI has failed because it couldn't communicate with the NVIDIA driver.
RuntimeError: Found no NVIDIA driver on your system.
""",
        [
            ("no-kernel-headers", 1),
            ("no-module-for-kernel", 2),
            ("driver-not-loaded", 3),
            ("torch-without-driver", 4),
        ],
    ),
    "a clock that stands in the wrong year": (
        """\
#5 1.2 SSLError(SSLCertVerificationError(1, 'certificate verify failed: certificate is not yet valid
ERROR: No matching distribution found for torch==2.13.0+cpu
""",
        [("clock-wrong", 1), ("no-build", 2)],
    ),
    "CUDA broken by a program of the user's own": (
        """\
NVRM: Xid (PCI:0000:01:00): 31, pid=7, name=python, MMU Fault: ENGINE GRAPHICS
RuntimeError: CUDA error: an illegal memory access was encountered
""",
        [("gpu-program-fault", 1), ("illegal-access", 2)],
    ),
    "a GPU that died in the middle": (
        """\
[88123.4] NVRM: Xid (PCI:0000:41:00): 79, pid=2212, GPU has fallen off the bus.
No devices were found
RuntimeError: No CUDA GPUs are available
""",
        [("gpu-off-the-bus", 1), ("no-devices", 2), ("torch-without-driver", 3)],
    ),
    "two faults that have nothing to do with each other": (
        """\
listen tcp4 127.0.0.1:8888: bind: address already in use
fatal error: Python.h: No such file or directory
""",
        [("port-taken", 1), ("no-python-headers", 2)],
    ),
    "a full GPU that cuDNN tripped over": (
        """\
RuntimeError: cuDNN error: CUDNN_STATUS_NOT_INITIALIZED
torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB.
""",
        [("gpu-memory-full", 2), ("cudnn-not-initialized", 1)],
    ),
    "a card that is too old for Triton": (
        """\
GPUTooOldForTriton: Found Quadro P2000 which is too old to be supported by the triton GPU compiler
TritonMissing: Cannot find a working triton installation.
""",
        [("gpu-too-old-for-triton", 1), ("no-triton", 2)],
    ),
    "a disk that filled up while pip was at work": (
        """\
OSError: [Errno 28] No space left on device
zipfile.BadZipFile: File is not a zip file
ERROR: THESE PACKAGES DO NOT MATCH THE HASHES FROM THE REQUIREMENTS FILE.
""",
        [("disk-full", 1), ("hashes-differ", 3), ("unreadable-archive", 2)],
    ),
}


@pytest.mark.parametrize(("log", "expected"), LOGS.values(), ids=LOGS.keys())
def test_a_log_is_ranked_and_each_line_quoted(log, expected):
    found = explain_text(log).found
    assert [(each.error.name, each.line_number) for each in found] == expected
    lines = log.splitlines()
    assert all(each.line == lines[each.line_number - 1].strip() for each in found)


@pytest.mark.parametrize(("log", "expected"), LOGS.values(), ids=LOGS.keys())
def test_line_ends_and_prefixes_change_nothing(log, expected):
    names = [name for name, _ in expected]
    windows = log.replace("\n", "\r\n")
    assert [each.error.name for each in explain_text(windows).found] == names


@settings(deadline=None)  # the first text compiles all patterns
@given(st.text(max_size=2000))
def test_any_text_is_read_and_every_quoted_line_is_in_it(text):
    for found in explain_text(text).found:
        assert found.line in text
        assert found.line_number >= 1


@settings(deadline=None)
@given(st.permutations([text for text, _ in LOGS.values()]))
def test_causes_stand_above_what_they_bring_whatever_the_order_of_the_log(logs):
    found = explain_text("\n".join(logs)).found
    places = {each.error.name: place for place, each in enumerate(found)}
    for each in found:
        if each.caused_by:
            assert places[each.caused_by] < places[each.error.name]


@pytest.mark.parametrize("family", [None, "debian", "ubuntu", "fedora", "suse", "arch", "alpine"])
def test_every_known_error_has_a_command_for_every_distribution(family):
    for error in KNOWN_ERRORS:
        assert error.fix.on(Distribution("any", family)).strip()


def test_nothing_found_is_nothing_said():
    assert format_explanation(explain_text("all is well"), UNKNOWN) == ""


RETRY = (
    "#9 2.1 WARNING: Retrying (Retry(total=4)) after connection broken by 'NewConnectionError("
    "[Errno -3] Temporary failure in name resolution')': /whl/cu130/torch/\n"
)
FAILED = (
    '#12 ERROR: process "/bin/sh -c ./check" did not complete successfully: exit code: 1\n'
    'failed to solve: process "/bin/sh -c ./check" did not complete successfully: exit code: 1\n'
)


@pytest.mark.parametrize(
    ("log", "certainties"),
    [
        pytest.param(
            RETRY + "#9 3.0 Downloading torch-2.13.0-cp312.whl (190 MB)\n" + FAILED,
            {"buildkit-step-failed": "possible"},
            id="the retry succeeded, and another step failed",
        ),
        pytest.param(RETRY, {"no-name-server": "possible"}, id="nothing after the retry"),
        pytest.param(
            RETRY + "#9 9.9 ERROR: No matching distribution found for torch\n",
            {"no-name-server": "certain", "no-build": "likely"},
            id="the retries failed",
        ),
        pytest.param(
            RETRY + "#10 3.0 Downloading numpy-2.4.0.whl (19 MB)\n",
            {"no-name-server": "possible"},
            id="another stage went on",
        ),
        pytest.param(
            "RuntimeError: CUDA out of memory.\nretrying with batch size 8\nstep 1/9 loss=2.3",
            {},
            id="a smaller batch fits",
        ),
        pytest.param(
            "RuntimeError: CUDA out of memory.\nreducing the batch size to 8",
            {"gpu-memory-full": "possible"},
            id="a smaller batch begins",
        ),
        pytest.param(
            "RuntimeError: CUDA out of memory.\nINFO step 300 loss 1.0",
            {"gpu-memory-full": "certain"},
            id="one step, which may be of another process, or from a buffer",
        ),
        pytest.param(
            "RuntimeError: CUDA out of memory.\nstep 300 loss 1.0\nstep 301 loss 1.0",
            {},
            id="the training goes on",
        ),
        pytest.param(
            "WARNING: CUDA out of memory, skipping batch 3\nstep 4 loss 0.1",
            {},
            id="the program says that it goes on",
        ),
        pytest.param(
            "[rank0]: torch.OutOfMemoryError: CUDA out of memory.\nstep 9/9 loss=2.3",
            {"gpu-memory-full": "certain"},
            id="another rank went on",
        ),
        pytest.param(
            "bind: address already in use\nThe Jupyter Server is running at http://127.0.0.1:8889/",
            {},
            id="the next port was free",
        ),
    ],
)
def test_a_retry_counts_only_as_far_as_the_log_shows_that_it_failed(log, certainties):
    found = explain_text(log).found
    assert {each.error.name: each.error.certainty for each in found} == certainties


@pytest.mark.parametrize(
    "line",
    [
        "I fixed a {} error last week and training now runs with 0 errors",
        "We solved the {} error with a smaller batch.",
        "The {} error is gone after the update.",
        "The {} went away with batch 2.",
        "After lowering the batch I no longer get {}.",
        "I finally got rid of the dreaded {}.",
        "{} no longer occurs.",
    ],
)
def test_an_error_that_a_person_says_is_over_is_none(line):
    assert explain_text(line.format("CUDA out of memory")).found == ()


@pytest.mark.parametrize(
    "line",
    [
        "I fixed the driver but now get {}.",
        "I solved the import error, and then {}.",
        "A smaller batch did not fix the {} error.",
        "I have not fixed the {} error",
        "I fixed the batch size to 8: {}",
        "The {} never went away.",
        "RuntimeError: {}. The cache was resolved and is gone",
    ],
)
def test_an_error_beside_one_that_is_over_is_one(line):
    found = explain_text(line.format("CUDA out of memory")).found
    assert [each.error.name for each in found] == ["gpu-memory-full"]


OVER = """\
Traceback (most recent call last):
  File "/home/u/train.py", line 41, in <module>
RuntimeError: CUDA out of memory.
step 300 loss 1.0
step 301 loss 1.0
"""


@pytest.mark.parametrize(
    ("log", "passed", "failure"),
    [
        pytest.param(OVER, ["gpu-memory-full"], None, id="nothing else failed"),
        pytest.param(
            OVER + "error: the widget is bent\n", ["gpu-memory-full"], 6, id="another failure"
        ),
        pytest.param("error: bent\n" * 300 + OVER, ["gpu-memory-full"], 1, id="one long before"),
        pytest.param(OVER + OVER[:140], [], 1, id="it came again"),
    ],
)
def test_what_the_log_goes_on_after_is_kept_as_passed(log, passed, failure):
    explanation = explain_text(log)
    assert [each.error.name for each in explanation.passed] == passed
    assert (explanation.failure and explanation.failure.line_number) == failure
    assert explanation.has_failed


REFUSED = "curl: (7) Failed to connect to localhost port 8000 after 0 ms: Connection refused\n"


@pytest.mark.parametrize(
    ("after", "is_over"),
    [
        ('{"status":"ok"}', True),
        ("HTTP/1.1 200 OK", True),
        ("vllm is ready after 41 s", True),
        ("Connection to db 5432 port [tcp/postgresql] succeeded!", True),
        ("", False),
        ("the server is not ready", False),
        ("Is the server up?", False),
    ],
)
def test_a_wait_for_a_service_is_no_error_once_it_answers(after, is_over):
    found = explain_text(REFUSED + "waiting (1/30)\n" + REFUSED + after).found
    assert (found == ()) is is_over


@pytest.mark.parametrize(
    ("host", "name"),
    [
        ("localhost", "connection-refused"),
        ("192.168.1.5", "connection-refused"),
        ("::1", "connection-refused"),
        ("vllm", "connection-refused"),
        ("files.example", "curl-failed"),
    ],
)
@pytest.mark.parametrize("reason", ["Connection refused", "Could not connect to server"])
def test_a_wait_that_never_ends_gives_one_answer(host, name, reason):
    line = f"curl: (7) Failed to connect to {host} port 8000 after 0 ms: {reason}\n"
    found = explain_text(f"{line}waiting (1/2)\n{line}giving up on the wait\n").found
    assert [each.error.name for each in found] == [name]


# What breaks a machine that works, or deletes what somebody needs.
HARMFUL = re.compile(
    r"(?<!cache )purge|--unregister|system reset|[;&] ?(?:sudo )?reboot\b(?!,)|^sudo reboot"
    r"|--gpu-reset -i \d|\bdrain \b|rm -rf? (?!/var/lib/(?:apt/lists|dkms/\{)|~/\.|unsloth_)\S"
)


def list_fixes(error):
    for each in (error, *error.variants):
        yield each.otherwise or ""
        yield from (each.fix.anywhere, *each.fix.by_family().values()) if each.fix else ()


def test_no_fix_harms_a_machine_that_works():
    fixes = [(error.name, fix) for error in KNOWN_ERRORS for fix in list_fixes(error)]
    assert [(name, fix) for name, fix in fixes if HARMFUL.search(fix)] == []


def test_what_a_command_ends_or_deletes_besides_is_noted_below_it():
    shown = format_explanation(explain_text("unknown or invalid runtime name: nvidia"), UNKNOWN)
    assert "  note: a restart of docker stops its running containers" in shown.splitlines()


def test_the_group_docker_is_not_advised_without_a_word_on_what_it_grants():
    text = "permission denied while trying to connect to the docker API at unix:///x.sock"
    shown = format_explanation(explain_text(text), UNKNOWN)
    assert "usermod -aG docker" in shown
    assert "can become root" in shown


# The forms of failure of common tools; none of these texts is a known error.
FAILURES = """make[2]: *** [CMakeFiles/x.dir/build.make:76: x.cpp.o] Error 1
make: *** No rule to make target 'foo'.  Stop.
#12 33.1 make: *** [all] Error 2
ninja: build stopped: subcommand failed.
CMake Error at CMakeLists.txt:10 (find_package):
npm ERR! code EWIDGET
panic: runtime error: index out of range [3] with length 3
thread 'main' panicked at src/main.rs:4:5:
FAILED tests/test_a.py::test_b - assert 1 == 2
tests/test_a.py::test_b FAILED                           [ 50%]
=================== 1 failed, 3 passed in 0.12s ===================
--- FAIL: TestX (0.00s)
test result: FAILED. 3 passed; 1 failed; 0 ignored; 0 measured
"POST /v1/chat/completions HTTP/1.1" 500 Internal Server Error
10.0.0.1 - - [24/Nov/2026:09:12:01 +0000] "GET /api HTTP/1.1" 502 157 "-" "curl/8"
requests.exceptions.HTTPError: 404 Client Error: Not Found for url: https://x.example/y
error[E0425]: cannot find value `x` in this scope
{"level":"error","ts":1.2,"msg":"widget bent"}
E1124 09:12:01.123456    4711 widget.go:123] "Widget is bent"
x.service: Main process exited, code=exited, status=1/FAILURE""".splitlines()
# What the same tools write when all is well.
SUCCESSES = """make: Nothing to be done for 'all'.
make[1]: [Makefile:12: clean] Error 1 (ignored)
npm warn deprecated inflight@1.0.6: This module is not supported
============ 12 passed, 1 skipped in 4.02s =============
test result: ok. 12 passed; 0 failed; 0 ignored; 0 measured
tests/test_oom.py::test_error_500 PASSED                 [ 33%]
10.0.0.1 - - [24/Nov/2026:09:12:01 +0000] "GET /favicon.ico HTTP/1.1" 404 157
"GET /health HTTP/1.1" 200 OK
server returned status code 200
-- Performing Test HAVE_FLAG_ERROR - Failed
{"level":"info","error":null}
I1124 09:12:01.123456    4711 widget.go:123] "Starting"
epoch 500 Server loss 0.1
""".splitlines()


def test_a_tools_failure_is_not_taken_for_a_healthy_log():
    assert [line for line in FAILURES if not explain_text(f"step 1\n{line}\n").failure] == []
    assert [line for line in SUCCESSES if explain_text(f"step 1\n{line}\n").failure] == []


def test_a_conflict_of_other_packages_is_not_blamed_on_the_driver():
    conflict = (
        "The following packages have unmet dependencies:\n"
        " {} : Depends: {} but it is not going to be installed\n"
    )
    of_desktop = explain_text(conflict.format("gnome-shell", "libmutter-14-0 (>= 46)")).first
    of_driver = explain_text(conflict.format("nvidia-driver-580", "libnvidia-gl-580")).first
    assert (of_desktop.error.name, of_driver.error.name) == ("unmet-packages", "held-packages")


def test_a_driver_of_windows_below_an_nvidia_smi_of_linux_is_wsl():
    smi = "| NVIDIA-SMI 555.42.03              Driver Version: {}         CUDA Version: 12.5     |"
    assert "wsl" in explain_text(smi.format("555.85")).context.signs
    assert "wsl" not in explain_text(smi.format("555.42.03")).context.signs


def test_a_failed_build_does_not_quote_an_earlier_retry_as_its_cause():
    assert explain_text(RETRY + "#9 3.0 Collecting torch\n" + FAILED).sure is None
    assert explain_text(RETRY + FAILED).sure is None


@pytest.mark.parametrize(
    "line",
    [
        "3f2a9c1 fix: CUDA out of memory in the second epoch (#1234)",
        "* Handle 'No space left on device' in the cache",
        "- Avoid the illegal memory access was encountered when the batch is empty",
        "$ sudo dmesg | grep 'GPU has fallen off the bus'",
        "If you get CUDA error: device-side assert triggered, check the labels.",
        "| `no kernel image is available for execution on the device` | install cu126 |",
        "There was no CUDA out of memory",
        'raise SystemExit(1) if "CUDA out of memory" in str(error) else error',
        "Segmentation fault happens when two OpenMP libraries are loaded",
        "The bug behind `Key was rejected by service` was fixed in 1.2",
        "  * elf.c (read): Fix a segmentation fault on bad input.",
        "    segmentation fault.",
        "when it fails with CUDA out of memory, retry",
        "When the run hits CUDA out of memory, it goes on",
        "If I ever see CUDA out of memory again, I sell the card",
        "- Resolved an issue where the container fails with NVML: Unknown Error",
        "Bump torch: CUDA error: device-side assert triggered",
    ],
)
def test_a_sentence_about_an_error_gives_no_cause(line):
    assert explain_text(f"before\n{line}\nafter").found == ()


@pytest.mark.parametrize(
    "line",
    [
        "Since the update I get CUDA out of memory when I start training.",
        'When I run the model, I have met "CUDA out of memory". When I look, it is half empty',
        "If I use bf16 on this card, we keep getting CUDA out of memory",
        "Whenever I load it, it crashes with {}",
        "When I start the trainer I'm hitting: {}",
        "After upgrading, nvidia-smi shows {} and nothing works.",
        "We hit the dreaded `no space left on device` last week.",
        "Our users saw \u201c{}\u201d for hours.",
        "Most people who see Key was rejected by service have Secure Boot turned on.",
        "In this article we look at the error {}.",
        "> I tried that but still get RuntimeError: No CUDA GPUs are available",
        "Subject: Re: {}",
        'alice: did you ever fix the "{}" thing?',
        'dave: "{}" is what you get without a restart.',
    ],
)
def test_an_error_in_a_sentence_is_at_most_possible(line):
    mismatch = "Failed to initialize NVML: Driver/library version mismatch"
    reported = line.format(mismatch)
    assert [each.error.certainty for each in explain_text(reported).found] == ["possible"]
    # The log's own line, wherever it stands, decides.
    both = explain_text(f"{reported}\n{mismatch}\n{reported}").found
    sure = next(each for each in both if each.error.name == "driver-library-mismatch")
    assert (sure.error.certainty, sure.line_number) == ("certain", 2)


@pytest.mark.parametrize(
    "line",
    [
        "Failed to initialize NVML: Driver/library version mismatch",
        "OSError: [Errno 28] No space left on device: '/data/x'",
        "write /data/x: no space left on device",
        "E1124 10:00:00.1 7 x.go:12] failed with: no space left on device",
        "tar: x: Cannot write: No space left on device",
        "ERROR: Could not install packages due to an OSError: [Errno 28] No space left on device",
    ],
)
def test_a_line_of_a_log_stays_certain(line):
    assert explain_text(line).first.error.certainty == "certain"


@pytest.mark.parametrize(
    "source",
    [
        '    raise RuntimeError("CUDA out of memory")',
        '+        raise ValueError(\n+            "CUDA error: device-side assert triggered"',
        '--> 263     raise OSError(\n    264         f"CUDA out of memory: {error}"',
        '    "CUDA out of memory: the batch "\n    "is too large"',
        'TORCH_CHECK(code == 0, "CUDA error: out of memory");',
        "except torch.OutOfMemoryError as error:",
        "    if isinstance(error, torch.OutOfMemoryError):",
        "from .errors import InvalidCxxCompiler, TritonMissing",
        "    GatedRepoError,",
        "class GatedRepoError(RepositoryNotFoundError):",
        "    throw std::bad_alloc();",
        "  } catch (const std::bad_alloc &e) {",
        "    case CUFFT_INTERNAL_ERROR:",
        '      "CUDA error: device-side assert triggered");',
    ],
)
def test_the_source_of_a_program_gives_no_cause(source):
    assert explain_text(f"before\n{source}\nafter").found == ()


def test_a_string_in_a_list_of_a_log_is_no_source():
    log = '"outputs": [\n  "RuntimeError: CUDA out of memory.",\n  "x"\n]'
    assert explain_text(log).first.error.name == "gpu-memory-full"
    log = "failed: RuntimeError('CUDA out of memory.')"
    assert explain_text(log).first.error.name == "gpu-memory-full"


NO_ENGINE = 'could not select device driver "" with capabilities: [[gpu]]'
OUT = (
    "CUDA out of memory. Tried to allocate {}. GPU 0 has a total capacity of {} of which {} is "
    "free. Of the allocated memory {} is allocated by PyTorch, and {} is reserved by PyTorch but"
    " unallocated."
)


@pytest.mark.parametrize(
    ("text", "fix"),
    [
        (
            "NVIDIA GeForce RTX 5090\nno kernel image is available for execution on the device",
            "whl/cu130",
        ),
        ("Tesla V100-SXM2-16GB\nno kernel image is available for execution on the device", "cu126"),
        ("CUDA capability sm_61 is not compatible with the current PyTorch", "whl/cu126"),
        (
            "NVIDIA GeForce GTX 1080\nDriver Version: 595.71\ncouldn't communicate with the NVIDIA "
            "driver\n:: pacman -Syu",
            "580xx",
        ),
        ("Linux 5.15.0-microsoft-standard-WSL2\nNo CUDA GPUs are available", "Windows"),
        (
            "Debian 11\nTesla P100\nNVIDIA-SMI has failed because it couldn't communicate with the "
            "NVIDIA driver",
            "linux-headers",
        ),
        (
            'File "/x/lib/python3.11/site-packages/datasets/arrow_writer.py", line 575, in w\n'
            "OSError: [Errno 28] No space left on device",
            "HF_HOME",
        ),
        (
            "from_pretrained(name, trust_remote_code=True)\nImportError: cannot import name "
            "'is_x_available' from 'transformers.utils' (/x.py)",
            "grep transformers_version",
        ),
        (
            "platform:5070ti Torch: 2.0.1+cu117\nCUDA error: no kernel image is available for "
            "execution on the device",
            "whl/cu130",
        ),
        (
            "xFormers was built for:\n  PyTorch 2.0.1+cu118 with CUDA 1108 (you have 2.0.1)\n"
            "  Python  3.8.16 (you have 3.8.13)",
            "whl/cu124",
        ),
        (
            "nixos kernel: x\nNVRM: The NVIDIA probe routine was not called for 1 device(s).",
            "blacklistedKernelModules",
        ),
        (
            "the system suspends\nCUDA initialization: CUDA unknown error - this may be due to an "
            "incorrectly set up environment",
            "rmmod nvidia_uvm",
        ),
        ("Failed to dlopen libcuda.so in WSL", "/usr/lib/wsl/lib"),
        ("docker run x\nFailed to dlopen libcuda.so in WSL", "docker run --gpus all"),
        (
            "Podman version is 3.0.1\nError: stat nvidia.com/gpu=0: no such file or directory",
            "podman to 4.1",
        ),
        (
            "gpu-driver-container\nfabric manager NVIDIA GPU driver interface version 590.48.01 "
            "don't match with driver version 580.126.09",
            "driver.version",
        ),
        (
            "$ docker run a/curl huggingface.co\ncurl: (6) Could not resolve host: huggingface.co",
            "--dns",
        ),
        ("OSError: [Errno 30] Read-only file system: '/nonexistent'", "-e HF_HOME"),
        (
            "torch.cuda.is_available() returns False with ROCm 6.1\n2 user accounts",
            "usermod -aG render,video",
        ),
        (
            "torch 2.0.0\nCould not load library libcudnn_cnn_infer.so.8",
            "LD_LIBRARY_PATH",
        ),
        (
            "failing on Python 3.10.14\nmain.c:5:10: fatal error: Python.h: No such file or "
            "directory",
            "python3.10-dev",
        ),
        (
            "torch 2.6.0\nImportError: /x/flash_attn_2_cuda.cpython-312-x86_64-linux-gnu.so: "
            "undefined symbol: "
            "_ZN3c105ErrorC2ENS_14SourceLocationENSt7",
            "flash-attn==2.7.4.post1",
        ),
        (
            "<ipython-input-3-0c>\nmtrand.pyx in init numpy.random.mtrand()\nValueError: "
            "numpy.dtype size changed, may indicate binary incompatibility. Expected 96 from C "
            "header, got 88",
            "restart the kernel",
        ),
        ("/snap/docker/x\nload library failed: libnvidia-ml.so.1: cannot open", "snap remove"),
        ("docker run x\nFailed to initialize NVML: Unknown Error", "no-cgroups = false"),
        ("docker exec x\nFailed to initialize NVML: Unknown Error", "docker restart"),
        ("labkit-1f-cuda-1 | Failed to initialize NVML: Unknown Error", "make down up"),
        ("labkit-1f-cpu-1  | exec /usr/bin/tini: exec format error", "make build"),
        ("web-1  | exec /usr/bin/tini: exec format error", "docker image inspect"),
        ("web-1  | mkdir: cannot create directory '../x': Permission denied", "compose exec"),
        ("nvcc -O3 x.cu\nKilled", "MAX_JOBS"),
        ("libcudart.so.13: cannot open shared object file", "cu130"),
        ("libcudart.so.12: cannot open shared object file", "cu126"),
        (f"{NO_ENGINE}\ndesktop-linux *   Docker Desktop", "context use default"),
        (f"{NO_ENGINE}\nnvidia-container-cli 1.9.0", "snap list docker"),
        ("k3s[7]: Detected non-NVML platform: could not load NVML library", "runtimeClassName"),
        ("cli-version: 1.14.0\ndevices.allow: permission denied", "1.14.1"),
        ("cli-version: 1.14.1\ndevices.allow: permission denied", "no-cgroups=true"),
        ("systemctl daemon-reload\nFailed to initialize NVML: Unknown Error", "--device"),
        ("after suspend:\nunspecified launch failure", "rmmod nvidia_uvm"),
        ("in suspense:\nunspecified launch failure", "CUDA_LAUNCH_BLOCKING"),
        ("SecureBoot enabled\ncouldn't communicate with the NVIDIA driver", "mokutil"),
        ("docker run x\nNCCL error: unhandled system error", "--shm-size"),
        ("gfx1151\nhipErrorOutOfMemory", "6.16.9"),
        (
            "pve proxmox\nFailed to initialize NVML: Driver/library version mismatch",
            "kernel-modules",
        ),
        ("cpu-manager-policy=static\nFailed to initialize NVML: Unknown Error", "passDeviceSpecs"),
        ("i915\nclGetPlatformIDs error -1001", "intel-opencl-icd"),
        (
            "Starting System Suspend...\nwatchdog: BUG: soft lockup - CPU#1 stuck for 26s! [a:1]",
            "PreserveVideoMemory",
        ),
        (
            "rpm-ostree status\nmodprobe: FATAL: Module nvidia not found in directory /lib",
            "rpm-ostree upgrade",
        ),
        ("NVRM: GPU 0000:00:10.0\nNVRM: BAR1 is 0M @ 0x0", "opt/ovmf"),
        ("truenas\nNVRM: not supported by open nvidia.ko", "TrueNAS"),
        ("-tegra\nRequired: driver version >= 580", "JetPack"),
        ("sh: 1: lsmod: not found\nROCk module is NOT loaded", "ls -l /dev/kfd"),
        (
            "NVRM: installed in this system is not supported by open nvidia.ko\n-- akmods",
            "akmod-nvidia-580xx",
        ),
        (
            "NVIDIA Corporation Device 2b85\ncouldn't communicate with the NVIDIA driver",
            "nvidia-driver-580-open",
        ),
        ("Failed to build nvidia/470.256.02\n/nvidia/nv.c:7:1: error: x", "older kernel"),
        ("after resume:\nNVRM: Xid (PCI:0000:01:00): 13, pid=7", "PreserveVideoMemory"),
        ("NVIDIA driver on your system is too old (found version 12040)", "whl/cu126"),
        ("NVIDIA driver on your system is too old (found version 10020)", "driver 580 or newer"),
        (
            "modprobe: FATAL: Module nvidia not found in directory /lib/modules/6.12.1-arch1-1",
            "/pkgbase)-headers",
        ),
        ('File "D:\\x\\cuda.py", line 1\nImportError: No module named vllm._C', "wsl --install"),
        ("/x/libonnxruntime_providers_cuda.so with error: libcudnn.so.8: gone", "cuDNN 8"),
        (OUT.format("9.27 GiB", "79.11 GiB", "6.20 GiB", "52.11 GiB", "17.31 GiB"), "expandable"),
        (
            r"E:\\x"
            + "\n"
            + OUT.format("90.00 MiB", "24 GiB", "5.75 GiB", "13.09 GiB", "0.19 GiB"),
            "page file",
        ),
        (OUT.format("90.00 MiB", "8.00 GiB", "0 bytes", "7.13 GiB", "127.09 MiB"), "checkpointing"),
        (OUT.format("2.00 GiB", "24.00 GiB", "1.00 GiB", "3.00 GiB", "0.10 GiB"), "nvidia-smi"),
    ],
)
def test_what_the_text_says_of_its_machine_chooses_the_fix(text, fix):
    shown = format_explanation(explain_text(text), UNKNOWN)
    assert fix in shown.partition("try: ")[2].partition("\n")[0]


def test_quotes_that_a_journal_escapes_are_read_as_quotes():
    line = r'dockerd[22]: level=error msg="could not select device driver \"nvidia\" with '
    found = explain_text(line + 'capabilities: [[gpu]]"')
    assert [each.error.name for each in found.found] == ["no-gpu-driver-in-engine"]


def test_a_docker_whose_cdi_is_off_is_told_of_nothing_else():
    found = explain_text('could not select device driver "cdi" with capabilities: [[gpu]]')
    assert [each.error.name for each in found.found] == ["docker-cdi-off"]


WATCHDOG = "[rank0]: Watchdog caught collective operation timeout: WorkNCCL(SeqNum=12)\n"
RAISED = """\
[rank1]:   File "/home/u/train.py", line 41, in main
[rank1]:     loss = model(batch["labels"])
[rank1]: KeyError: 'labels'
"""


@pytest.mark.parametrize(
    ("log", "ranked"),
    [
        pytest.param(RAISED + WATCHDOG, ["program-raised", "nccl-timeout"], id="cause first"),
        pytest.param(WATCHDOG + RAISED, ["program-raised", "nccl-timeout"], id="cause last"),
        pytest.param(
            f"[rank1]: KeyError: 'labels'\n{WATCHDOG}",
            ["exception-line", "nccl-timeout"],
            id="only the exception's line",
        ),
        pytest.param(
            RAISED + "RuntimeError: expected scalar type Half but found Float\n",
            ["tensor-dtype"],
            id="a text that is known",
        ),
        pytest.param(RAISED + "[rank1]: Epoch 3: loss 0.2\n", [], id="the rank went on"),
    ],
)
def test_an_exception_of_one_rank_stands_above_what_the_others_report(log, ranked):
    assert [found.error.name for found in explain_text(log).found] == ranked


@pytest.mark.parametrize(
    ("text", "fix"),
    [
        pytest.param(
            'File "/x/site-packages/somelib/core.py", line 3, in <module>\n'
            "    from otherlib import gone\n"
            "ImportError: cannot import name 'gone' from 'otherlib'",
            "pip install --upgrade somelib otherlib",
            id="the package of the last frame",
        ),
        pytest.param(
            'File "/x/site-packages/somelib/core.py", line 3, in call\n'
            'File "/x/site-packages/torch/nn/modules/module.py", line 1964, in __getattr__\n'
            "AttributeError: 'Encoder' object has no attribute 'gone_part'",
            "pip install --upgrade somelib <the one that defines Encoder>",
            id="not torch, which only looks an attribute up",
        ),
        pytest.param(
            'File "/x/site-packages/awq/models/base.py", line 3, in save\n'
            "    self.gone(folder)\n"
            "ValueError: nothing to save",
            "pip install --upgrade autoawq",
            id="the package's name on the index",
        ),
        pytest.param(
            "ValueError: Saved in another form. Please use `load_other` instead.",
            "use `load_other` instead",
            id="the message's own advice",
        ),
        pytest.param(
            "ValueError: Free memory on device (12.0/24.0 GiB) on startup is less than desired GPU"
            " memory utilization (0.9, 21.6 GiB).",
            "--gpu-memory-utilization 0.47 ",
            id="the share of a busy GPU",
        ),
        pytest.param(
            "ValueError: Free memory on device (1.0/24.0 GiB) on startup is less than desired GPU"
            " memory utilization (0.9, 21.6 GiB).",
            "end those that are yours (a server",
            id="no share of a full GPU",
        ),
    ],
)
def test_the_fix_holds_what_the_text_says(text, fix):
    assert fix in explain_text(text).found[0].error.fix.anywhere


@pytest.mark.parametrize(
    ("line", "family"),
    [
        ('PRETTY_NAME="Rocky Linux 9.3 (Blue Onyx)"', "rhel"),
        ("Red Hat Enterprise Linux release 9.4 (Plow)", "rhel"),
        (" Operating System: Ubuntu 24.04.1 LTS", "ubuntu"),
        ("OS: Arch Linux x86_64", "arch"),
        ("[a@fedora ~]$ gcc x.c", "fedora"),
        ("FROM rockylinux:9", None),
        ("docker run debian:12 x", None),
    ],
)
def test_the_hosts_own_line_names_its_distribution(line, family):
    assert explain_text(f"{line}\nstep 1\n").context.family == family


@pytest.mark.parametrize(("prompt", "command"), [("C:\\Users> ", "certutil"), ("$ ", "certs.d")])
def test_a_group_of_the_pattern_and_a_sign_of_the_text_choose_the_fix_together(prompt, command):
    refused = "Error response from daemon: Get x: x509: certificate signed by unknown authority"
    found = explain_text(f"{prompt}docker pull hello-world\n{refused}\n").found
    assert command in found[0].error.fix.anywhere.partition("   #")[0]


@pytest.mark.parametrize(
    ("build", "needs"),
    [("19042.928", "21H2"), ("19045.5608", "--set-version"), ("", "ubuntu-drivers")],
)
def test_windows_gets_its_own_fix_for_the_library_that_docker_lacks(build, needs):
    where = f"Windows 10 Pro, {build}\n" if build else ""
    lost = "nvidia-container-cli: initialization error: load library failed: libnvidia-ml.so.1: x"
    explanation = explain_text(f"{where}{lost}\n")
    assert needs in explanation.found[0].error.fix.on(Distribution("Ubuntu", "ubuntu"))


def test_a_source_of_packages_for_kubernetes_does_not_make_a_machine_a_node():
    apt = "Err:1 https://apt.kubernetes.io kubernetes-xenial InRelease\n"
    lost = "  Temporary failure resolving 'apt.kubernetes.io'\n"
    fix = explain_text(f"{apt}{lost}").found[0].error.fix.anywhere
    assert "kubectl" not in fix
    assert "kubectl" in explain_text(f"$ kubectl get pods\n{lost}").found[0].error.fix.anywhere


@pytest.mark.parametrize(
    ("line", "found"),
    [
        ("test_oom.py::test_message[CUDA out of memory] PASSED", False),
        ("test_oom.py::test_message[CUDA out of memory] PASSED          [ 50%]", False),
        ("1/1 Test #1: RuntimeError: CUDA out of memory .....   Passed    0.01 sec", False),
        ("test_oom.py::test_message[CUDA out of memory] FAILED", True),
        ("RuntimeError: CUDA out of memory. Tried to allocate 2.00 GiB", True),
    ],
)
def test_the_name_of_a_test_that_passed_is_no_error(line, found):
    assert bool(explain_text(line).found) is found


FULL = "torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total"
TRACEBACK = 'Traceback (most recent call last):\n  File "/home/u/train.py", line 4, in <module>\n'
WENT_ON = {
    "Ultralytics": (
        f"{FULL}\nWARNING Reducing to batch=32 and retrying (1/3).\n"
        "100 epochs completed in 0.713 hours."
    ),
    "fairseq": (
        "| WARNING | fairseq.trainer | OOM: Ran out of memory with exception: CUDA out of memory."
        " Tried to allocate 1.20 GiB\n| attempting to recover from OOM in forward/backward pass\n"
        "| done training in 1200.3 seconds"
    ),
    "a saved run": f"{FULL}\nreducing batch 64 to 32\nResults saved to runs/detect/train",
    "lm-eval": f"Detecting largest batch size\n{FULL}\nDetermined largest batch size: 8",
    "accelerate": f"{FULL}\nDecreasing batch size to: 64.\n{{'train_runtime': 812.3, 'epoch': 3}}",
    "a bar": f"{FULL}\nbatch size is now 64\nRunning: 100%|#######| 4000/4000 [10:00<00:00]",
    "Lightning": f"{FULL}\nTrying batch size 16\n`Trainer.fit` stopped: `max_epochs=3` reached.",
    "a run's last word": f"{FULL}\nOOM at batch 64, trying 32\n[10:20:00] finished successfully",
    "an emptied cache": f"step 12 ok\n{FULL}\nemptying cache and retrying\nstep 13 ok\nDone.",
    "an exit code": (
        "WARNING: caught CUDA out of memory. Tried to allocate 2.00 GiB; retry with batch 8\n"
        "Process finished with exit code 0"
    ),
    "a loop": f"Trying batch size 32\n  {FULL}\nTrying batch size 16\n  fits\njob completed",
    "a scheduler": f"{FULL}\nbatch 64 -> 32\nslurm: State: COMPLETED (exit code 0)",
    "a warning": "[WARN] sample 3: CUDA out of memory. Tried to allocate 2.00 GiB\nAll done.",
    "an accuracy": f"{FULL}\nbatch size reduced to 4\nTest accuracy: 93.1%",
    "a record": f"{FULL}\ncontinuing with half the batch\nwandb: Run finished: success",
    "a file": f"{FULL}\nclearing the cache\nModel saved to out/model.pt",
}


@pytest.mark.parametrize("log", WENT_ON.values(), ids=WENT_ON.keys())
def test_a_full_memory_after_which_the_program_ends_well_has_passed(log):
    found = explain_text(log)
    assert found.first is None
    assert [each.error.name for each in found.passed] == ["gpu-memory-full"]


def test_a_full_memory_after_the_last_retry_has_not_passed():
    log = f"{WENT_ON['accelerate']}\n{FULL}"
    assert explain_text(log).first.error.name == "gpu-memory-full"


@pytest.mark.parametrize(
    "end",
    [
        "Done.",
        "Job finished at Mon Mar  2 10:00:00",
        "Job completed with exit code 1",
        "The job did not finish successfully",
        "Cleanup completed successfully",
        "Shutdown finished successfully",
        "exit code: 0x1",
        "Memory snapshot saved to oom.pickle",
    ],
)
def test_a_full_memory_that_nobody_retried_has_not_passed(end):
    assert explain_text(f"{TRACEBACK}{FULL}\n{end}").first.error.name == "gpu-memory-full"


GUARDS = """\
INFO: CUDA out of memory handler registered
[INFO] installing CUDA out of memory hook
[INFO] memory snapshot will be dumped on CUDA out of memory
[INFO] trainer: oom_policy=retry on CUDA out of memory, halving the micro batch
INFO: auto_scale_batch_size: will catch CUDA out of memory
level=info msg="registering oom-kill event handler"
INFO: watching for OOMKilled pods
INFO: subscribed to oom_kill event
oom_linux.go:1] registered for "Out of memory: Killed process" events
expr: kube_pod_container_status_last_terminated_reason{reason="OOMKilled"} > 0
systemd[1]: Started Userspace Out-Of-Memory (OOM) Killer.
OOMPolicy=stop
"""


@pytest.mark.parametrize("line", GUARDS.splitlines())
def test_what_only_announces_a_guard_shows_no_error(line):
    assert explain_text(line).found == ()


@pytest.mark.parametrize(
    "line",
    [
        "slurmstepd: error: Detected 1 oom_kill event in StepId=7.0.",
        "slurmstepd: error: Detected 1 oom-kill event(s) in StepId=7.0.",
        "trainer-0   0/1   OOMKilled   3",
        "RuntimeError: CUDA out of memory. Tried to allocate 2.00 GiB; retry with less",
    ],
)
def test_an_event_itself_shows_its_error(line):
    assert explain_text(line).first
