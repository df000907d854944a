"""Each known error text gives exactly its error; several in one log are ranked by cause."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path

import pytest

from labkit.host.distribution import Distribution
from labkit.host.packages import Fix
from labkit.known_errors import KNOWN_ERRORS
from labkit.known_errors.catalog import read_catalogs
from labkit.known_errors.match import explain_text
from labkit.known_errors.model import CERTAINTIES, KnownError
from labkit.known_errors.page import format_page
from tests.fakes.error_texts import ORDINARY
from tests.snapshots import RENEW_VARIABLE


def names(text):
    """The errors found in the text, in their ranking."""
    return [found.error.name for found in explain_text(text).found]


# pytest takes milliseconds for each test: those that hold for each entry of the catalogs are one
# test, which lists the entries that break it.
SAMPLES = [(error.name, text) for error in KNOWN_ERRORS for text in error.samples]


def is_found_however_pasted(name, text):
    log = f"step 1 of 9\r\n\x1b[31mboth of these lines are harmless\x1b[0m\r\n{text}\r\nend"
    wrapped = text if "\n" in text or "nvrm" in text.lower() else text.replace(" ", "\n", 1)
    # Wrapped, it may be missed, but is never taken for another one.
    return names(text) == names(log) == [name] and names(f"> {wrapped}") in ([name], [])


@pytest.mark.parametrize("part", range(4))
def test_each_sample_gives_exactly_its_known_error_however_it_is_pasted(part):
    wrong = [each for each in SAMPLES[part::4] if not is_found_however_pasted(*each)]
    assert wrong == []


def test_a_text_that_only_resembles_a_known_error_is_not_taken_for_it():
    unlike = [(error.name, text) for error in KNOWN_ERRORS for text in error.unlike]
    assert [(name, text) for name, text in unlike if name in names(text)] == []


# The statuses of NVIDIA's documents (CUDA runtime and driver API, cuBLAS, cuDNN, NVML).
RUNTIME_STATUSES = """
InvalidValue MemoryAllocation InitializationError CudartUnloading ProfilerDisabled
InvalidConfiguration InvalidPitchValue InvalidSymbol InvalidHostPointer InvalidDevicePointer
InvalidTexture InvalidTextureBinding InvalidChannelDescriptor InvalidMemcpyDirection
InvalidFilterSetting InvalidNormSetting StubLibrary InsufficientDriver CallRequiresNewerDriver
InvalidSurface DuplicateVariableName DuplicateTextureName DuplicateSurfaceName DevicesUnavailable
IncompatibleDriverContext MissingConfiguration LaunchMaxDepthExceeded LaunchFileScopedTex
LaunchFileScopedSurf SyncDepthExceeded LaunchPendingCountExceeded InvalidDeviceFunction NoDevice
InvalidDevice DeviceNotLicensed SoftwareValidityNotEstablished StartupFailure InvalidKernelImage
DeviceUninitialized MapBufferObjectFailed UnmapBufferObjectFailed ArrayIsMapped AlreadyMapped
NoKernelImageForDevice AlreadyAcquired NotMapped NotMappedAsArray NotMappedAsPointer
ECCUncorrectable UnsupportedLimit DeviceAlreadyInUse PeerAccessUnsupported InvalidPtx
InvalidGraphicsContext NvlinkUncorrectable JitCompilerNotFound UnsupportedPtxVersion
JitCompilationDisabled UnsupportedExecAffinity UnsupportedDevSideSync Contained InvalidSource
FileNotFound SharedObjectSymbolNotFound SharedObjectInitFailed OperatingSystem
InvalidResourceHandle IllegalState LossyQuery SymbolNotFound NotReady IllegalAddress
LaunchOutOfResources LaunchTimeout LaunchIncompatibleTexturing PeerAccessAlreadyEnabled
PeerAccessNotEnabled SetOnActiveProcess ContextIsDestroyed Assert TooManyPeers
HostMemoryAlreadyRegistered HostMemoryNotRegistered HardwareStackError IllegalInstruction
MisalignedAddress InvalidAddressSpace InvalidPc LaunchFailure CooperativeLaunchTooLarge
TensorMemoryLeak NotPermitted NotSupported SystemNotReady SystemDriverMismatch
CompatNotSupportedOnDevice MpsConnectionFailed MpsRpcFailure MpsServerNotReady
MpsMaxClientsReached MpsMaxConnectionsReached MpsClientTerminated CdpNotSupported
CdpVersionMismatch StreamCaptureUnsupported StreamCaptureInvalidated StreamCaptureMerge
StreamCaptureUnmatched StreamCaptureUnjoined StreamCaptureIsolation StreamCaptureImplicit
CapturedEvent StreamCaptureWrongThread Timeout GraphExecUpdateFailure ExternalDevice
InvalidClusterSize FunctionNotLoaded InvalidResourceType InvalidResourceConfiguration Unknown
"""
DRIVER_STATUSES = """
INVALID_VALUE OUT_OF_MEMORY NOT_INITIALIZED DEINITIALIZED PROFILER_DISABLED STUB_LIBRARY
DEVICE_UNAVAILABLE NO_DEVICE INVALID_DEVICE DEVICE_NOT_LICENSED INVALID_IMAGE INVALID_CONTEXT
CONTEXT_ALREADY_CURRENT MAP_FAILED UNMAP_FAILED ARRAY_IS_MAPPED ALREADY_MAPPED NO_BINARY_FOR_GPU
ALREADY_ACQUIRED NOT_MAPPED ECC_UNCORRECTABLE UNSUPPORTED_LIMIT CONTEXT_ALREADY_IN_USE
PEER_ACCESS_UNSUPPORTED INVALID_PTX INVALID_GRAPHICS_CONTEXT NVLINK_UNCORRECTABLE
JIT_COMPILER_NOT_FOUND UNSUPPORTED_PTX_VERSION JIT_COMPILATION_DISABLED INVALID_SOURCE
FILE_NOT_FOUND SHARED_OBJECT_SYMBOL_NOT_FOUND SHARED_OBJECT_INIT_FAILED OPERATING_SYSTEM
INVALID_HANDLE ILLEGAL_STATE NOT_FOUND NOT_READY ILLEGAL_ADDRESS LAUNCH_OUT_OF_RESOURCES
LAUNCH_TIMEOUT PEER_ACCESS_ALREADY_ENABLED PEER_ACCESS_NOT_ENABLED CONTEXT_IS_DESTROYED ASSERT
TOO_MANY_PEERS HOST_MEMORY_ALREADY_REGISTERED HOST_MEMORY_NOT_REGISTERED HARDWARE_STACK_ERROR
ILLEGAL_INSTRUCTION MISALIGNED_ADDRESS INVALID_ADDRESS_SPACE INVALID_PC LAUNCH_FAILED
COOPERATIVE_LAUNCH_TOO_LARGE NOT_PERMITTED NOT_SUPPORTED SYSTEM_NOT_READY SYSTEM_DRIVER_MISMATCH
COMPAT_NOT_SUPPORTED_ON_DEVICE MPS_CONNECTION_FAILED MPS_RPC_FAILURE MPS_SERVER_NOT_READY
MPS_MAX_CLIENTS_REACHED MPS_MAX_CONNECTIONS_REACHED MPS_CLIENT_TERMINATED
STREAM_CAPTURE_UNSUPPORTED STREAM_CAPTURE_INVALIDATED TIMEOUT GRAPH_EXEC_UPDATE_FAILURE
EXTERNAL_DEVICE UNKNOWN
"""
CUBLAS_STATUSES = """
NOT_INITIALIZED ALLOC_FAILED INVALID_VALUE ARCH_MISMATCH MAPPING_ERROR EXECUTION_FAILED
INTERNAL_ERROR NOT_SUPPORTED LICENSE_ERROR
"""
CUDNN_STATUSES = """
NOT_INITIALIZED SUBLIBRARY_VERSION_MISMATCH SERIALIZATION_VERSION_MISMATCH DEPRECATED
LICENSE_ERROR RUNTIME_IN_PROGRESS RUNTIME_FP_OVERFLOW SUBLIBRARY_LOADING_FAILED VERSION_MISMATCH
ALLOC_FAILED INTERNAL_ERROR ARCH_MISMATCH MAPPING_ERROR EXECUTION_FAILED
EXECUTION_FAILED_CUDA_DRIVER EXECUTION_FAILED_CUBLAS EXECUTION_FAILED_CUDART
INTERNAL_ERROR_HOST_ALLOCATION_FAILED INTERNAL_ERROR_DEVICE_ALLOCATION_FAILED BAD_PARAM
BAD_PARAM_NULL_POINTER BAD_PARAM_STREAM_MISMATCH BAD_PARAM_SHAPE_MISMATCH NOT_SUPPORTED
NOT_SUPPORTED_GRAPH_PATTERN NOT_SUPPORTED_ARCH_MISMATCH NOT_SUPPORTED_LAYOUT INVALID_VALUE
"""
NVML_STATUSES = """
Uninitialized InvalidArgument NotSupported NoPermission AlreadyInitialized NotFound
InsufficientSize InsufficientPower DriverNotLoaded Timeout IrqIssue LibraryNotFound
FunctionNotFound CorruptedInforom GpuIsLost ResetRequired OperatingSystem LibRmVersionMismatch
InUse Memory NoData VgpuEccNotSupported InsufficientResources Unknown
"""


@pytest.mark.parametrize(
    ("form", "statuses"),
    [
        ("terminate called: cudaError{}", RUNTIME_STATUSES),
        ("cuInit returned CUDA_ERROR_{}", DRIVER_STATUSES),
        ("RuntimeError: CUDA error: CUBLAS_STATUS_{} when calling x", CUBLAS_STATUSES),
        ("RuntimeError: cuDNN error: CUDNN_STATUS_{}", CUDNN_STATUSES),
        ("pynvml.NVMLError_{}: x", NVML_STATUSES),
    ],
    ids=["runtime", "driver", "cublas", "cudnn", "nvml"],
)
def test_every_status_that_nvidia_lists_is_explained(form, statuses):
    found = {status: explain_text(form.format(status)).first for status in statuses.split()}
    assert [status for status, first in found.items() if first is None] == []
    unlisted = "a status that this list does not have"
    assert [status for status, first in found.items() if unlisted in first.error.cause] == []


def test_names_are_single_and_what_a_known_error_brings_is_known():
    known = [error.name for error in KNOWN_ERRORS]
    assert len(set(known)) == len(known)
    assert {name for error in KNOWN_ERRORS for name in error.brings} <= set(known)


def test_no_known_error_brings_itself_about():
    left = {error.name: set(error.brings) for error in KNOWN_ERRORS}
    while roots := set(left) - set().union(*left.values()):
        left = {name: brings for name, brings in left.items() if name not in roots}
    assert left == {}  # what is left stands in a circle


def says_all_it_must(error):
    return (
        error.cause
        and not error.cause.endswith(".")
        and error.fix.anywhere
        and error.certainty in CERTAINTIES
        and re.fullmatch(r"[\w.-]+/[\w./-]+(?:#\d+)?", error.source)
        and error.samples
        and error.unlike
    )


def test_each_known_error_says_all_it_must():
    assert [error.name for error in KNOWN_ERRORS if not says_all_it_must(error)] == []


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
def test_several_known_errors_are_ranked_by_which_causes_which(log, ranked):
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


@pytest.mark.parametrize("before", [0, 10, 120, 190, 240, 4000])
@pytest.mark.parametrize("after", [0, 60, 400])
def test_a_long_line_is_quoted_by_whole_words(before, after):
    words = [f"word{number:03}" for number in range(before // 8)]
    line = " ".join([*words, "No space left on device:", *["behind"] * (after // 7)])
    found = explain_text(line).first
    assert "No space left on device:" in found.line
    assert len(found.line) <= 200
    quoted = found.line.removeprefix("... ").removesuffix(" ...").split()
    assert set(quoted) <= set(line.split())
    assert found.line.startswith("... ") == (quoted[0] != line.split()[0])
    assert found.line.endswith(" ...") == (not line.endswith(" ".join(quoted)))
    is_far_out = line.index("No space left on device") > 180
    assert found.line.startswith("... ") == (is_far_out and len(line) > 200)


def test_a_long_line_with_escaped_quotes_shows_the_known_error():
    said = 'exec: "nvidia-smi": executable file not found in $PATH'
    line = json.dumps({"log": "word " * 90 + said})
    assert "executable file not found" in explain_text(line).first.line


def test_a_long_line_with_the_known_error_far_out_shows_it():
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


@pytest.mark.parametrize("log", ORDINARY.values(), ids=ORDINARY.keys())
def test_an_ordinary_log_gives_no_cause(log):
    assert names(log) == []


@pytest.mark.parametrize("page", ["CHANGELOG.md", "Makefile", "compose.yaml", "pyproject.toml"])
def test_our_own_pages_give_no_cause(page):
    assert names((Path(__file__).parents[1] / page).read_text(encoding="utf-8")) == []


def test_our_own_lessons_show_no_error_but_those_they_teach():
    folder = Path(__file__).parents[1] / "labs"
    found = {
        path.relative_to(folder).as_posix(): names(path.read_text(encoding="utf-8"))
        for path in folder.rglob("*.py")
    }
    assert {path: errors for path, errors in found.items() if errors} == {}


def test_the_fix_is_the_one_of_the_distribution():
    text = 'could not select device driver "" with capabilities: [[gpu]]'
    found = explain_text(text)
    fedora = found.describe(Distribution("Fedora 43", "fedora"))["found"][0]
    assert "/etc/yum.repos.d/" in fedora["fix"].split(" && ")[0]
    assert fedora["fix"].split(" && ")[1] == "sudo dnf install nvidia-container-toolkit"
    assert found.describe()["found"][0]["fix"].startswith("install the NVIDIA Container Toolkit")
    assert {"arch", "debian", "fedora", "suse", "windows"} <= set(fedora["fix_elsewhere"])


def test_the_page_of_known_errors_is_current():
    page = Path(__file__).parents[1] / "docs" / "known-errors.md"
    text = format_page(read_catalogs())
    if os.environ.get(RENEW_VARIABLE):
        page.write_text(text, encoding="utf-8")
    assert page.read_text("utf-8") == text, "renew it with: pytest --renew-snapshots"


def test_a_known_error_of_ones_own_serves_too():
    error = KnownError("tea", (r"teapot \d+",), "it is a teapot", Fix("make coffee"))
    found = explain_text("I am\na teapot   418", (error,)).first
    assert (found.error.name, found.line_number) == ("tea", 2)
