"""The cuda image without a GPU: what it carries, and that its CPU side works as in the CPU's."""

from __future__ import annotations

import json
import re

import pytest

from labkit.host.torch_builds import CUDA_BUILDS
from labkit.launch.image import digest_inputs, read_image_digest
from labkit.launch.settings import find_checkout
from labkit.process import CommandResult, run_command

# Compose runs labs like this: nothing can be written but these.
HELD = ["--rm", "--network", "none", "--read-only", "--cap-drop", "ALL"]
WRITABLE = [
    word
    for folder in ("/tmp", "/cache", "/work")
    for word in ("--tmpfs", f"{folder}:exec,mode=1777")
]


def find_images() -> list[str]:
    """The cuda builds whose image here was made of this checkout's own files."""
    digest = digest_inputs(find_checkout())
    return [
        build.name
        for build in CUDA_BUILDS
        if read_image_digest("docker", f"labkit:{build.name}") == digest
    ]


BUILT = find_images()
pytestmark = [
    pytest.mark.engine,
    pytest.mark.timeout(900),
    pytest.mark.skipif(not BUILT, reason="no cuda image of these files: make build FLAVOR=cuda"),
    pytest.mark.parametrize(
        "build", [b for b in CUDA_BUILDS if b.name in BUILT], ids=lambda b: b.name
    ),
]


def inside(build, *command: str, timeout_seconds: float = 300) -> CommandResult:
    """A command in a lab of this build that no GPU was passed into."""
    words = ["docker", "run", *HELD, *WRITABLE, f"labkit:{build.name}", *command]
    return run_command(words, timeout_seconds=timeout_seconds)


def ask_torch(build, program: str, timeout_seconds: float = 300) -> str:
    answer = inside(
        build, "python", "-c", f"import torch; {program}", timeout_seconds=timeout_seconds
    )
    assert answer.ok, answer.stderr
    return answer.stdout.strip()


def test_its_torch_is_the_builds_and_finds_no_gpu(build):
    said = ask_torch(
        build, "print(torch.__version__, torch.version.cuda, torch.cuda.is_available())"
    )
    assert said == f"{build.torch_version} {build.cuda} False"


def test_its_labels_and_variables(build):
    words = ["docker", "image", "inspect", "--format", "{{json .Config}}", f"labkit:{build.name}"]
    config = json.loads(run_command(words, timeout_seconds=30).stdout)
    labels = config["Labels"]
    assert labels["io.labkit.flavor"] == "cuda"
    assert labels["io.labkit.cuda"] == build.name
    assert labels["io.labkit.torch"] == build.torch_version
    assert re.fullmatch(
        r"[0-9a-f]{12}(-changed)?|unknown", labels["org.opencontainers.image.revision"]
    )
    assert "NVIDIA_VISIBLE_DEVICES=all" in config["Env"]
    assert "NVIDIA_DRIVER_CAPABILITIES=compute,utility" in config["Env"]
    assert f"LABKIT_TORCH_BUILD={build.name}" in config["Env"]
    assert config["User"] == "1000:1000"


def test_what_several_gpus_and_triton_need_is_there(build):
    """What was taken out to make the image smaller is none of it."""
    program = (
        "import ctypes, pathlib, triton, torch.distributed as d;"
        "site = pathlib.Path(torch.__file__).parents[1];"
        "[ctypes.CDLL(str(next(site.glob(f'nvidia/**/{name}')))) for name in"
        " ('libnccl.so.2', 'libcusparseLt.so.0', 'libnvshmem_host.so.3', 'libcudnn.so.9')];"
        "nvidia = pathlib.Path(triton.__file__).parent / 'backends' / 'nvidia';"
        "print(d.is_nccl_available(), (nvidia / 'bin' / 'ptxas').exists(),"
        " (nvidia / 'include' / 'cuda.h').exists(), torch.backends.cudnn.version() // 10000)"
    )
    assert ask_torch(build, program) == "True True True 9"


def test_nothing_that_nobody_needs_is_left(build):
    patterns = (
        r"\( -name 'lib*_static.a' -o -name 'libnvrtc*.alt.so*' -o -name '*cusolverMg.so*' \)"
    )
    found = inside(
        build,
        "sh",
        "-c",
        f"find /opt/lab {patterns}; ls /opt/lab/lib/python3*/site-packages/torch/test",
    )
    assert found.stdout == ""


def test_a_function_compiles_on_the_cpu(build):
    program = (
        "f = torch.compile(lambda x: torch.sin(x) * 2); x = torch.randn(64);"
        "torch.testing.assert_close(f(x), torch.sin(x) * 2); print('ok')"
    )
    assert ask_torch(build, program, timeout_seconds=600) == "ok"


def test_a_lab_runs_on_the_cpu(build):
    answer = inside(build, "labkit", "run", "tensors", timeout_seconds=600)
    assert answer.exit_code == 0, answer.stderr
    assert "tensors: passed" in answer.stdout


def test_devices_says_that_there_is_no_gpu(build):
    answer = inside(build, "labkit", "devices")
    assert answer.exit_code == 0, answer.stderr
    assert "best device: cpu" in answer.stdout
    assert "note: no GPU was passed into this container" in answer.stdout
