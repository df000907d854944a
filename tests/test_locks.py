"""The locks: what `make lock` writes, and that what is checked in can be trusted."""

from __future__ import annotations

import io
import re
from pathlib import Path

import pytest

from labkit.errors import EngineError
from labkit.host.torch_builds import BUILDS, CPU_BUILD, CUDA_BUILDS, TORCH_VERSION
from labkit.launch import dev
from labkit.launch.build import find_build
from labkit.launch.dev import describe_change, format_torch_lock
from labkit.launch.progress import Steps
from tests.fakes.host import make_checkout, write_program

FOLDER = Path(__file__).parents[1] / "docker" / "locks"
TORCH_LOCKS = [f"{build.torch_lock}.txt" for build in BUILDS.values()]
LOCKS = (*(f"{name}.txt" for name in dev.LOCKS), *TORCH_LOCKS)


def wheel(name, digest):
    return f'<a href="/whl/cpu/{name}#sha256={digest * 64}" data-dist-info="x">{name}</a><br/>\n'


PAGE = "".join(
    wheel(f"torch-{name}.whl", digest)
    for name, digest in (
        ("2.13.0%2Bcpu-cp312-cp312-manylinux_2_28_x86_64", "b"),
        ("2.13.0%2Bcpu-cp310-cp310-manylinux_2_28_x86_64", "a"),
        ("2.13.0%2Bcpu-cp312-cp312-manylinux_2_28_aarch64", "c"),
        ("2.13.0-cp312-cp312-macosx_11_0_arm64", "d"),
        # None of these belongs in it.
        ("2.12.1%2Bcpu-cp312-cp312-manylinux_2_28_x86_64", "1"),
        ("2.13.0%2Bcpu-cp39-cp39-manylinux_2_28_x86_64", "2"),
        ("2.13.0%2Bcpu-cp313-cp313t-manylinux_2_28_x86_64", "3"),
        ("2.13.0%2Bcpu-cp312-cp312-win_amd64", "4"),
        ("2.13.0%2Bcu130-cp312-cp312-manylinux_2_28_x86_64", "5"),
        ("2.13.0%2Bcu126-cp311-cp311-manylinux_2_28_x86_64", "6"),
        ("2.13.0%2Bcu126-cp314-cp314-manylinux_2_28_aarch64", "7"),
    )
)


def pin(requirement, *digests):
    hashes = [f"    --hash=sha256:{digest * 64}" for digest in digests]
    return " \\\n".join([requirement, *hashes]) + "\n"


CPU_HEADER = """\
# torch's build cpu: every wheel of it that PyTorch publishes for Linux and macOS.
# Installed alone, without dependencies (lab.txt has them): only this step knows PyTorch's index.
"""


def test_torchs_lock_has_every_wheel_for_linux_and_macos_and_no_other():
    assert format_torch_lock(PAGE, "2.13.0", CPU_BUILD) == (
        CPU_HEADER
        + pin('torch==2.13.0+cpu ; sys_platform == "linux"', "a", "b", "c")
        + pin('torch==2.13.0 ; sys_platform == "darwin"', "d")
    )


def test_a_cuda_builds_lock_has_its_own_wheels_for_linux_alone():
    text = format_torch_lock(PAGE, "2.13.0", find_build("cu126"))
    assert text == (
        "# torch's build cu126: every wheel of it that PyTorch publishes for Linux.\n"
        "# Installed alone, without dependencies (cuda-cu126.txt and lab.txt have them):"
        " only this step knows PyTorch's index.\n"
        + pin('torch==2.13.0+cu126 ; sys_platform == "linux"', "6", "7")
    )


def test_without_a_build_for_macos_there_is_no_line_for_it():
    text = format_torch_lock(PAGE, "2.12.1", CPU_BUILD)
    assert text == CPU_HEADER.replace(" and macOS", "") + pin(
        'torch==2.12.1+cpu ; sys_platform == "linux"', "1"
    )


@pytest.mark.parametrize("page", ["", "<html>404</html>", PAGE], ids=["empty", "another", "older"])
def test_a_page_without_that_version_gives_no_lock(page):
    assert format_torch_lock(page, "2.14.0", CPU_BUILD) is None


@pytest.mark.parametrize(
    ("before", "after", "line"),
    [
        ({}, {"numpy": "2.4.0"}, "lab: + numpy 2.4.0"),
        ({"numpy": "2.4.0"}, {"numpy": "2.4.0"}, "lab: unchanged"),
        ({"numpy": "2.4.0"}, {"numpy": "2.4.1"}, "lab: numpy 2.4.0 -> 2.4.1"),
        ({"numpy": "2.4.0"}, {}, "lab: - numpy"),
    ],
)
def test_how_a_lock_changed(before, after, line):
    assert describe_change("lab", before, after) == line


# Writes the lock it is told to; asked for torch alone, it prints that.
RESOLVER = """\
lock=
for word; do case "$word" in *.txt) lock=$word ;; esac; done
echo "$*" >> calls
[ -n "$lock" ] || { echo "torch==2.13.0 ; sys_platform == 'linux'"; exit 0; }
{script}"""


@pytest.fixture
def checkout(tmp_path, monkeypatch):
    """A checkout whose index of PyTorch does not answer."""

    def fail(address, timeout):
        raise OSError("no route to host")

    monkeypatch.setattr(dev.urllib.request, "urlopen", fail)
    return make_checkout(tmp_path / "a lab")


def play_resolver(checkout, monkeypatch, script):
    text = RESOLVER.replace("{script}", script)
    program = write_program(checkout.root / "resolver", "uv", text)
    monkeypatch.setattr(dev, "_prepare_resolver", lambda checkout, steps: program)


def read_calls(checkout):
    return (checkout.root / "docker" / "locks" / "calls").read_text().splitlines()


def test_the_locks_are_resolved_for_every_python_with_hashes_and_without_an_index(
    checkout, monkeypatch
):
    play_resolver(checkout, monkeypatch, 'echo "numpy==2.4.1" > "$lock"')
    lines = dev.update_locks(checkout, Steps(io.StringIO()))
    assert lines == [
        "lab: numpy 2.4.0 -> 2.4.1",
        "test: + numpy 2.4.1",
        "cuda-cu130: + numpy 2.4.1, - nvidia-cublas",
        "cuda-cu126: + numpy 2.4.1, - nvidia-cublas",
        "torch-cpu: kept, as PyTorch's index does not answer (no route to host)",
        "torch-cu130: renewed",
        "torch-cu126: kept, as PyTorch's index does not answer (no route to host)",
    ]
    always = (
        "--quiet --universal --no-python-downloads --generate-hashes --no-header --no-annotate"
        " --no-emit-index-url --python-version 3.10"
    )
    calls = read_calls(checkout)
    assert calls[0] == f"pip compile lab.in {always} -o lab.txt --upgrade"
    assert all(always in call for call in calls)


def test_a_cuda_lock_leaves_out_torch_and_what_the_lab_has_already(checkout, monkeypatch):
    play_resolver(checkout, monkeypatch, 'echo "numpy==2.4.1" > "$lock"')
    dev.update_locks(checkout, Steps(io.StringIO()))
    left_out = "--no-emit-package torch --no-emit-package numpy"
    assert [left_out in call for call in read_calls(checkout)] == [False, False, True, True, False]


def test_requirements_that_exclude_each_other(checkout, monkeypatch):
    play_resolver(checkout, monkeypatch, "echo 'No solution found' >&2; exit 1")
    with pytest.raises(EngineError) as caught:
        dev.update_locks(checkout, Steps(io.StringIO()))
    assert caught.value.what == "resolving lab.in failed: No solution found"
    assert caught.value.fix == "edit docker/locks/lab.in, then: make lock"


class FakePage(io.BytesIO):
    """What urlopen gives."""


def answer_with(monkeypatch, page):
    """Lets PyTorch's index answer with a page; the addresses that were asked for."""
    asked = []

    def fetch(address, timeout):
        asked.append(address)
        return FakePage(page)

    monkeypatch.setattr(dev.urllib.request, "urlopen", fetch)
    return asked


def test_torchs_locks_are_renewed_and_then_unchanged(checkout, monkeypatch):
    play_resolver(checkout, monkeypatch, ":")
    asked = answer_with(monkeypatch, PAGE.encode())
    steps = Steps(io.StringIO())
    names = ["torch-cpu", "torch-cu130", "torch-cu126"]
    assert dev.update_locks(checkout, steps)[-3:] == [f"{name}: renewed" for name in names]
    assert dev.update_locks(checkout, steps)[-3:] == [f"{name}: unchanged" for name in names]
    assert asked[:2] == [
        "https://download.pytorch.org/whl/cpu/torch/",
        "https://download.pytorch.org/whl/cu126/torch/",
    ]
    for build in (CPU_BUILD, find_build("cu126")):
        lock = checkout.root / "docker" / "locks" / f"{build.torch_lock}.txt"
        assert lock.read_text() == format_torch_lock(PAGE, "2.13.0", build)


def test_the_default_indexs_torch_is_pinned_so_that_no_other_build_fits(checkout, monkeypatch):
    play_resolver(checkout, monkeypatch, ":")
    dev.update_locks(checkout, Steps(io.StringIO()))
    text = (checkout.root / "docker" / "locks" / "torch-cu130.txt").read_text()
    assert text.splitlines()[-1] == "torch===2.13.0 ; sys_platform == 'linux'"
    assert text.startswith("# torch's build cu130: the one on the default index.\n")


def test_an_index_without_that_torch_leaves_the_lock(checkout, monkeypatch):
    play_resolver(checkout, monkeypatch, ":")
    answer_with(monkeypatch, b"")
    lines = dev.update_locks(checkout, Steps(io.StringIO()))
    assert lines[-1] == "torch-cu126: kept, as PyTorch's index has no torch 2.13.0"


# What is checked in


def read_requirements(name):
    """Each requirement of a lock with everything that belongs to it, in one line."""
    text = (FOLDER / name).read_text(encoding="utf-8").replace("\\\n", " ")
    lines = (line.strip() for line in text.splitlines())
    return [line for line in lines if line and not line.startswith("#")]


@pytest.mark.parametrize("name", LOCKS)
def test_every_requirement_has_a_version_and_a_hash(name):
    requirements = read_requirements(name)
    assert requirements
    wrong = [
        line
        for line in requirements
        if not re.match(r"[\w.-]+(\[[\w,-]+\])?===?\S+ .*--hash=sha256:[0-9a-f]{64}", line)
    ]
    assert wrong == []


@pytest.mark.parametrize("name", [*LOCKS, *(f"{name}.in" for name in dev.LOCKS)])
def test_no_address_is_in_a_lock(name):
    text = (FOLDER / name).read_text(encoding="utf-8")
    assert not re.search(r"https?:|file:|--(extra-)?index-url|--find-links", text)


def test_torch_is_in_its_own_lock_alone():
    def has_torch(name):
        return any(re.match(r"torch\b(?!-)", line) for line in read_requirements(name))

    assert [name for name in LOCKS if has_torch(name)] == TORCH_LOCKS


@pytest.mark.parametrize(
    ("name", "pins"),
    [
        ("torch-cpu.txt", {f"torch=={TORCH_VERSION}+cpu", f"torch=={TORCH_VERSION}"}),
        ("torch-cu130.txt", {f"torch==={TORCH_VERSION}"}),
        ("torch-cu126.txt", {f"torch=={TORCH_VERSION}+cu126"}),
    ],
)
def test_torchs_locks_are_of_the_version_that_make_lock_takes(name, pins):
    assert {line.split()[0] for line in read_requirements(name)} == pins


@pytest.mark.parametrize("build", CUDA_BUILDS, ids=lambda build: build.name)
def test_a_builds_libraries_are_all_of_its_own_cuda(build):
    pins = dict(line.split()[0].split("==") for line in read_requirements(f"cuda-{build.name}.txt"))
    assert pins["cuda-toolkit"].startswith(str(build.cuda))
    assert pins["triton"]
    major = str(build.cuda).partition(".")[0]
    suffixed = [re.search(r"-cu(\d+)$", name) for name in pins]
    assert {found.group(1) for found in suffixed if found} == {major}
    runtime = pins.get("nvidia-cuda-runtime") or pins["nvidia-cuda-runtime-cu12"]
    jit_linker = pins.get("nvidia-nvjitlink") or pins["nvidia-nvjitlink-cu12"]
    assert runtime.startswith(f"{build.cuda}.")
    assert jit_linker.startswith(f"{build.cuda}.")


def test_the_cuda_libraries_are_those_of_this_torch():
    assert f"torch=={TORCH_VERSION} " in (FOLDER / "cuda-cu130.in").read_text()
    assert f"torch {TORCH_VERSION}+cu126" in (FOLDER / "cuda-cu126.in").read_text()


@pytest.mark.parametrize("build", BUILDS.values(), ids=BUILDS)
def test_no_package_is_in_two_locks_of_a_build(build):
    names = [
        {line.partition("==")[0] for line in read_requirements(f"{lock}.txt")}
        for lock in build.locks
    ]
    assert sum(len(found) for found in names) == len(set().union(*names))


def test_what_both_locks_pin_they_pin_alike():
    def read_pins(name):
        return {line.split()[0] for line in read_requirements(name)}

    names = {pin.partition("==")[0] for pin in read_pins("lab.txt")}
    shared = {pin for pin in read_pins("test.txt") if pin.partition("==")[0] in names}
    assert shared <= read_pins("lab.txt")
    assert shared


@pytest.mark.parametrize("name", ["lab", "test", "cuda-cu126"])
def test_everything_that_is_asked_for_is_locked(name):
    asked = {
        re.split(r"[<>=;~ \[]", line)[0].lower()
        for line in (FOLDER / f"{name}.in").read_text().splitlines()
        if line and line[0] not in "#-"
    }
    locked = {line.partition("==")[0].lower() for line in read_requirements(f"{name}.txt")}
    assert asked <= locked
