"""Each known error text gives exactly its sign; several in one log are ranked by cause."""

from __future__ import annotations

import time

import pytest

from labkit.doctor.distribution import Distribution, Fix
from labkit.doctor.explain import explain_text, format_explanation
from labkit.doctor.signs import SIGNS
from labkit.doctor.signs.sign import CERTAINTIES, Sign

# The texts as programs print them, by the sign each must give.
TEXTS = [
    (
        "secure-boot",
        "modprobe: ERROR: could not insert 'nvidia': Key was rejected by service",
    ),
    ("secure-boot", "modprobe: ERROR: could not insert 'nvidia': Required key not available"),
    ("gpu-off-the-bus", "NVRM: Xid (PCI:0000:41:00): 79, pid=2212, GPU has fallen off the bus."),
    (
        "driver-library-mismatch",
        "Failed to initialize NVML: Driver/library version mismatch\nNVML library version: 580.95",
    ),
    (
        "driver-library-mismatch",
        "nvidia-container-cli: initialization error: nvml error: driver/library version mismatch: "
        "unknown",
    ),
    (
        "driver-library-mismatch",
        "NVRM: API mismatch: the client has the version 580.95.05, but\n"
        "NVRM: this kernel module has the version 580.65.06.",
    ),
    (
        "driver-not-loaded",
        "NVIDIA-SMI has failed because it couldn't communicate with the NVIDIA driver. Make sure "
        "that the latest NVIDIA driver is installed and running.",
    ),
    (
        "driver-not-loaded",
        "nvidia-container-cli: initialization error: nvml error: driver not loaded: unknown",
    ),
    ("no-devices", "No devices were found"),
    ("torch-without-driver", "RuntimeError: Found no NVIDIA driver on your system."),
    ("torch-without-driver", "RuntimeError: No CUDA GPUs are available"),
    (
        "wsl-blocked",
        "Failed to initialize NVML: GPU access blocked by the operating system\n"
        "Failed to properly shut down NVML: GPU access blocked by the operating system",
    ),
    (
        "driver-too-old",
        "RuntimeError: The NVIDIA driver on your system is too old (found version 12040). Please "
        "update your GPU driver by downloading and installing a new version",
    ),
    (
        "driver-too-old",
        "CUDA error: CUDA driver version is insufficient for CUDA runtime version",
    ),
    (
        "error-803",
        "Error 803: system has unsupported display driver / cuda driver combination (Triggered "
        "internally at /pytorch/c10/cuda/CUDAFunctions.cpp:109.)",
    ),
    (
        "error-804",
        "UserWarning: CUDA initialization: Unexpected error from cudaGetDeviceCount(). Error 804: "
        "forward compatibility was attempted on non supported HW",
    ),
    (
        "fabric-manager",
        "RuntimeError: Unexpected error from cudaGetDeviceCount(). Error 802: system not yet "
        "initialized",
    ),
    ("fabric-manager", "cuda runtime error (802) : system not yet initialized at THCGeneral.cpp"),
    (
        "nvidia-uvm",
        "RuntimeError: CUDA unknown error - this may be due to an incorrectly set up environment, "
        "e.g. changing env variable CUDA_VISIBLE_DEVICES after program start.",
    ),
    ("gpu-busy", "CUDA error: all CUDA-capable devices are busy or unavailable"),
    ("ecc-error", "RuntimeError: CUDA error: uncorrectable ECC error encountered"),
    (
        "no-gpu-driver-in-engine",
        'docker: Error response from daemon: could not select device driver "" with capabilities: '
        "[[gpu]].",
    ),
    (
        "no-gpu-driver-in-engine",
        'Error response from daemon: could not select device driver "nvidia" with capabilities: '
        "[[gpu]]",
    ),
    (
        "unknown-nvidia-runtime",
        "docker: Error response from daemon: unknown or invalid runtime name: nvidia.",
    ),
    ("no-cdi-spec", "Error: setting up CDI devices: unresolvable CDI devices nvidia.com/gpu=all"),
    ("no-cdi-spec", "Error: stat nvidia.com/gpu=0: no such file or directory"),
    (
        "stale-cdi-spec",
        "Error: setting up CDI devices: failed to inject devices: failed to stat CDI host device "
        '"/dev/dri/renderD129": no such file or directory',
    ),
    (
        "no-driver-library",
        "nvidia-container-cli: initialization error: load library failed: libnvidia-ml.so.1: "
        "cannot open shared object file: no such file or directory: unknown.",
    ),
    (
        "driver-requirement",
        "nvidia-container-cli: requirement error: unsatisfied condition: cuda>=12.8, please "
        "update your driver to a newer version, or use an earlier cuda container: unknown.",
    ),
    ("nvml-unknown-error", "Failed to initialize NVML: Unknown Error"),
    ("nvml-permissions", "Failed to initialize NVML: Insufficient Permissions"),
    (
        "rootless-cgroups",
        "nvidia-container-cli: mount error: failed to add device rules: unable to find any "
        "existing device filters attached to the cgroup: bpf_prog_query(BPF_CGROUP_DEVICE) "
        "failed: operation not permitted",
    ),
    (
        "unknown-device",
        "nvidia-container-cli: device error: 3: unknown device: unknown",
    ),
    ("unknown-device", "RuntimeError: CUDA error: invalid device ordinal"),
    ("gpu-device-refused", "cannot open: Permission denied: '/dev/nvidia0'"),
    (
        "daemon-not-running",
        "Cannot connect to the Docker daemon at unix:///var/run/docker.sock. Is the docker daemon "
        "running?",
    ),
    (
        "daemon-refuses",
        "permission denied while trying to connect to the Docker daemon socket at "
        "unix:///var/run/docker.sock",
    ),
    (
        "daemon-refuses",
        "permission denied while trying to connect to the docker API at "
        "unix:///var/run/docker.sock",
    ),
    ("no-compose", "docker: 'compose' is not a docker command.\nSee 'docker --help'"),
    ("no-compose", "unknown flag: --profile\nSee 'docker --help'."),
    ("no-compose", "docker-compose version 1.29.2, build unknown"),
    ("no-compose", "Error: looking up compose provider failed"),
    ("compose-file-too-new", "Unsupported config option for services.cpu: 'profiles'"),
    (
        "port-taken",
        "Bind for 127.0.0.1:8888 failed: port is already allocated",
    ),
    ("port-taken", "listen tcp4 127.0.0.1:8888: bind: address already in use"),
    ("token-rejected", "[W ServerApp] Invalid credentials"),
    (
        "work-folder-refused",
        "PermissionError: [Errno 13] Permission denied: '/work'",
    ),
    (
        "missing-bind-source",
        'invalid mount config for type "bind": bind source path does not exist: /home/ada/work',
    ),
    ("read-only", "OSError: [Errno 30] Read-only file system: '/opt/lab/lib/x'"),
    ("no-user-name", "KeyError: 'getpwuid(): uid not found: 1234'"),
    ("no-user-name", "OSError: getpwuid(): uid not found: 1234"),
    ("wrong-architecture", "exec /usr/bin/tini: exec format error"),
    ("out-of-memory-killed", "DataLoader worker (pid 77) is killed by signal: Killed."),
    ("out-of-memory-killed", "Out of memory: Killed process 4711 (python) total-vm:81234kB"),
    ("out-of-memory-killed", "g++: fatal error: Killed signal terminated program cc1plus"),
    ("too-many-watches", "OSError: [Errno 28] inotify watch limit reached"),
    ("disk-full", "write /var/lib/docker/tmp/GetImageBlob1: no space left on device"),
    ("disk-full", "OSError: [Errno 28] No space left on device"),
    ("no-name-server", "curl: (6) Could not resolve host: index.example"),
    ("no-name-server", "dial tcp: lookup registry.example on 10.0.0.2:53: no such host"),
    ("no-name-server", "[Errno -3] Temporary failure in name resolution"),
    (
        "changed-certificate",
        "[SSL: CERTIFICATE_VERIFY_FAILED] certificate verify failed: self signed certificate in "
        "certificate chain",
    ),
    ("changed-certificate", "tls: failed to verify: x509: certificate signed by unknown authority"),
    ("proxy-refuses", "OSError: Tunnel connection failed: 407 Proxy Authentication Required"),
    ("index-unreachable", "Get https://registry.example/v2/: net/http: TLS handshake timeout"),
    ("hashes-differ", "ERROR: THESE PACKAGES DO NOT MATCH THE HASHES FROM THE REQUIREMENTS FILE."),
    ("no-build", "ERROR: No matching distribution found for torch==2.13.0+cpu"),
    ("no-venv", "The virtual environment was not created: ensurepip is not available."),
    ("pull-limit", "toomanyrequests: You have reached your unauthenticated pull rate limit."),
    ("image-not-there", "pull access denied for labkit, repository does not exist"),
    ("unreadable-archive", "failed to register layer: unexpected EOF"),
    ("externally-managed", "error: externally-managed-environment"),
    ("old-libc", "/lib/x86_64-linux-gnu/libc.so.6: version `GLIBC_2.38' not found"),
    (
        "no-compiler",
        "RuntimeError: Failed to find C compiler. Please specify via CC environment variable or "
        "set triton.knobs.build.impl.",
    ),
    (
        "no-compiler",
        "torch._inductor.exc.InvalidCxxCompiler: No working C++ compiler found in "
        "torch._inductor.config.cpp.cxx: (None, 'g++')",
    ),
    (
        "no-python-headers",
        "main.c:5:10: fatal error: Python.h: No such file or directory",
    ),
    ("no-openmp-header", "fatal error: omp.h: No such file or directory"),
    (
        "noexec-cache",
        "ImportError: /tmp/torchinductor_lab/x.so: failed to map segment from shared object",
    ),
    ("ptxas-too-old", "ptxas fatal   : Value 'sm_121a' is not defined for option 'gpu-name'"),
    ("no-libcuda-link", "AssertionError: libcuda.so cannot found!"),
    ("no-libcuda-link", "/usr/bin/ld: cannot find -lcuda: No such file or directory"),
    ("no-triton", "TritonMissing: Cannot find a working triton installation."),
    (
        "gpu-too-old-for-triton",
        "GPUTooOldForTriton: Found Quadro P2000 which is too old to be supported by the triton "
        "GPU compiler, which is used as the backend.",
    ),
    (
        "no-architecture",
        "RuntimeError: CUDA error: no kernel image is available for execution on the device",
    ),
    (
        "no-architecture",
        "NVIDIA GeForce RTX 5090 with CUDA capability sm_120 is not compatible with the current "
        "PyTorch installation.",
    ),
    ("no-cuda-build", "AssertionError: Torch not compiled with CUDA enabled"),
    (
        "mixed-cuda-libraries",
        "libcusparse.so.12: undefined symbol: __nvJitLinkComplete_12_4, version libnvJitLink.so.12",
    ),
    ("mixed-cuda-libraries", "ImportError: libcudnn.so.9: cannot open shared object file"),
    ("illegal-instruction", "Illegal instruction (core dumped)"),
    (
        "shared-memory-full",
        "RuntimeError: DataLoader worker (pid 12) is killed by signal: Bus error. It is possible "
        "that dataloader's workers are out of shared memory. Please try to raise your shared "
        "memory limit.",
    ),
    (
        "shared-memory-full",
        "Error while creating shared memory segment /dev/shm/nccl-Xy12Ab (size 9637888), error: "
        "No space left on device (28)",
    ),
    (
        "shared-memory-full",
        "RuntimeError: unable to write to file </torch_29_17_0>: No space left on device (28)",
    ),
    ("worker-exited", "RuntimeError: DataLoader worker (pid(s) 31, 32) exited unexpectedly"),
    (
        "cuda-after-fork",
        "RuntimeError: Cannot re-initialize CUDA in forked subprocess. To use CUDA with "
        "multiprocessing, you must use the 'spawn' start method",
    ),
    ("gpu-memory-full", "torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB."),
    ("cudnn-not-initialized", "RuntimeError: cuDNN error: CUDNN_STATUS_NOT_INITIALIZED"),
    ("device-assert", "RuntimeError: CUDA error: device-side assert triggered"),
    ("illegal-access", "CUDA error: an illegal memory access was encountered"),
    ("nccl-unreachable", "ncclSystemError: System call (e.g. socket, malloc) failed"),
    ("too-many-files", "OSError: [Errno 24] Too many open files"),
]


def names(text):
    """The signs found in the text, in their ranking."""
    return [found.sign.name for found in explain_text(text).found]


@pytest.mark.parametrize(
    ("name", "text"),
    [pytest.param(name, text, id=f"{name}-{number}") for number, (name, text) in enumerate(TEXTS)],
)
def test_a_real_text_gives_exactly_its_sign(name, text):
    assert names(text) == [name]


@pytest.mark.parametrize(("name", "text"), TEXTS, ids=[str(n) for n in range(len(TEXTS))])
def test_a_text_is_known_in_the_middle_of_a_wrapped_and_coloured_log(name, text):
    wrapped = (
        text.replace(" ", "\n", 1) if "\n" not in text and "nvrm" not in text.lower() else text
    )
    log = f"step 1 of 9\r\n\x1b[31mboth of these lines are harmless\x1b[0m\r\n{text}\r\ndone"
    assert names(log) == [name]
    assert names(f"> {wrapped}") in ([name], [])  # never another one


def test_every_sign_has_a_real_text():
    assert {name for name, _ in TEXTS} == {sign.name for sign in SIGNS}


def test_names_are_single_and_what_a_sign_brings_is_known():
    known = [sign.name for sign in SIGNS]
    assert len(set(known)) == len(known)
    assert {name for sign in SIGNS for name in sign.brings} <= set(known)


def test_no_sign_brings_itself_about():
    left = {sign.name: set(sign.brings) for sign in SIGNS}
    while roots := set(left) - set().union(*left.values()):
        left = {name: brings for name, brings in left.items() if name not in roots}
    assert left == {}  # what is left stands in a circle


@pytest.mark.parametrize("sign", SIGNS, ids=lambda sign: sign.name)
def test_each_sign_says_all_it_must(sign):
    assert sign.cause and not sign.cause.endswith(".")
    assert sign.fix.anywhere
    assert sign.certainty in CERTAINTIES


LIBRARY_LOG = """\
starting the lab
Failed to initialize NVML: Driver/library version mismatch
python train.py
RuntimeError: No CUDA GPUs are available
"""


@pytest.mark.parametrize(
    ("log", "ranked"),
    [
        pytest.param(
            LIBRARY_LOG, ["driver-library-mismatch", "torch-without-driver"], id="driver then torch"
        ),
        pytest.param(
            "No matching distribution found for torch\n[Errno -3] Temporary failure in name "
            "resolution",
            ["no-name-server", "no-build"],
            id="the cause stands below its symptom",
        ),
        pytest.param(
            "RuntimeError: No CUDA GPUs are available\n"
            "NVIDIA-SMI has failed because it couldn't communicate with the NVIDIA driver.\n"
            "modprobe: ERROR: could not insert 'nvidia': Key was rejected by service",
            ["secure-boot", "driver-not-loaded", "torch-without-driver"],
            id="a chain of three",
        ),
        pytest.param(
            "DataLoader worker (pid(s) 12) exited unexpectedly\n"
            "unable to write to file </torch_1_2>: No space left on device (28)\n"
            "write /data/x: no space left on device",
            ["shared-memory-full", "disk-full", "worker-exited"],
            id="shared memory and a disk",
        ),
        pytest.param(
            "Invalid credentials\nlisten tcp: address already in use",
            ["port-taken", "token-rejected"],
            id="the surer one first",
        ),
    ],
)
def test_several_signs_are_ranked_by_which_causes_which(log, ranked):
    assert names(log) == ranked


def test_a_symptom_names_its_cause():
    found = explain_text(LIBRARY_LOG).found
    assert [(each.line_number, each.caused_by) for each in found] == [
        (2, None),
        (4, "driver-library-mismatch"),
    ]


def test_the_line_is_quoted_whole():
    found = explain_text("one\n   two: No space left on device  \nthree").first
    assert (found.line_number, found.line) == (2, "two: No space left on device")


def test_a_very_long_line_is_cut_around_the_sign():
    found = explain_text("x" * 5000 + " No space left on device " + "y" * 5000).first
    assert len(found.line) <= 200


def test_a_long_line_with_the_sign_far_out_shows_it():
    found = explain_text("x" * 5000 + " Cannot re-initialize CUDA in forked subprocess").first
    assert "Cannot re-initialize CUDA in forked subprocess" in found.line


@pytest.mark.parametrize(
    "text",
    [
        pytest.param("", id="nothing"),
        pytest.param("all is well\n[I ServerApp] Jupyter Server 2.17 is running\n", id="healthy"),
        pytest.param("\x00\ufffd\x1b[31m" * 50, id="garbage"),
        pytest.param("Could not resolve all dependencies of the crossword", id="near miss"),
        pytest.param("bash: unexpected EOF while looking for matching quote", id="a shell's EOF"),
    ],
)
def test_what_is_not_known_gives_no_cause(text):
    assert explain_text(text).found == ()
    assert explain_text(text).first is None


def test_a_large_log_is_read_in_little_time():
    log = "2026-11-23 10:00:00 INFO step=17 loss=0.123 lr=3e-4 no trouble at all here\n" * 20_000
    started = time.process_time()
    assert names(log + "OSError: [Errno 28] No space left on device") == ["disk-full"]
    assert time.process_time() - started < 20


def test_the_fix_is_the_one_of_the_distribution():
    text = 'could not select device driver "" with capabilities: [[gpu]]'
    found = explain_text(text)
    fedora = found.describe(Distribution("Fedora 43", "fedora"))["found"][0]
    assert fedora["fix"].startswith("sudo dnf install nvidia-container-toolkit && ")
    assert found.describe()["found"][0]["fix"].startswith("install the NVIDIA Container Toolkit")
    assert sorted(fedora["fix_elsewhere"]) == ["arch", "debian", "fedora", "suse"]


def test_an_explanation_as_a_person_reads_it():
    debian = Distribution("Debian GNU/Linux 13", "debian")
    assert format_explanation(explain_text(LIBRARY_LOG), debian) == (
        "driver-library-mismatch (certain)\n"
        "  line 2: Failed to initialize NVML: Driver/library version mismatch\n"
        "  cause: the driver was updated while its old kernel module stayed loaded\n"
        "  try: sudo reboot\n"
        "\n"
        "torch-without-driver (likely)\n"
        "  line 4: RuntimeError: No CUDA GPUs are available\n"
        "  cause: torch sees no GPU: none was passed to this container, or CUDA_VISIBLE_DEVICES "
        "hides it\n"
        "  try: labkit doctor   # on the host: says where the GPU is lost\n"
        "  else: unset CUDA_VISIBLE_DEVICES\n"
        "  comes from: driver-library-mismatch"
    )


def test_a_sign_of_ones_own_serves_too():
    sign = Sign("tea", (r"teapot \d+",), "it is a teapot", Fix("make coffee"))
    found = explain_text("I am\na teapot   418", (sign,)).first
    assert (found.sign.name, found.line_number) == ("tea", 2)
