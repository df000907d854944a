"""The locks: what `make lock` writes, and that what is checked in can be trusted."""

from __future__ import annotations

import io
import re
from pathlib import Path

import pytest

from labkit.errors import EngineError, UsageError
from labkit.host.torch_builds import BUILDS, CUDA_BUILDS, TORCH_VERSION
from labkit.launch import dev
from labkit.launch.dev import describe_change
from labkit.launch.progress import Steps
from tests.fakes.host import make_checkout, write_program

FOLDER = Path(__file__).parents[1] / "docker" / "locks"
TORCH_LOCKS = [f"{build.torch_lock}.txt" for build in BUILDS.values()]
LOCKS = (*(f"{name}.txt" for name in dev.LOCKS), *TORCH_LOCKS)


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


# Plays uv: writes the lock that -o names; asked for torch alone, does as the case says.
RESOLVER = """\
lock=
for word; do case "$word" in *.txt) lock=$word ;; esac; done
echo "$* [$UV_RESOLUTION$PIP_TARGET]" >> calls
[ -n "$lock" ] || { {torch}; }
{script}"""
WRITE = 'echo "numpy==2.4.1" > "$lock"'
# Prints what uv 0.13.9 printed for the input, asked of an index with these wheels.
TORCH = (
    """cat "$3" >> asked; echo "torch==2.13.0 ; sys_platform == 'linux' --hash=sha256:aa"; exit 0"""
)


@pytest.fixture
def play(tmp_path, monkeypatch):
    """Call it with what uv does; it gives the checkout."""
    checkout = make_checkout(tmp_path / "a lab")
    monkeypatch.setenv("UV_RESOLUTION", "lowest")
    monkeypatch.setenv("PIP_TARGET", "/elsewhere")

    def play(script=WRITE, torch=TORCH):
        text = RESOLVER.replace("{script}", script).replace("{torch}", torch)
        program = write_program(checkout.root / "resolver", "uv", text)
        monkeypatch.setattr(dev, "prepare_tools", lambda *_: program.parent)
        return checkout

    return play


def update(checkout):
    return dev.update_locks(checkout, Steps(io.StringIO()))


def read_calls(checkout):
    return (checkout.root / "docker" / "locks" / "calls").read_text().splitlines()


def test_the_locks_are_resolved_for_every_python_with_hashes_and_without_an_index(play):
    checkout = play()
    assert update(checkout) == [
        "lab: numpy 2.4.0 -> 2.4.1",
        *(f"{name}: + numpy 2.4.1" for name in ("test", "docs", "tools", "hub", "models")),
        *(f"cuda-{name}: + numpy 2.4.1, - nvidia-cublas" for name in ("cu130", "cu126")),
        *(f"torch-{name}: renewed" for name in ("cpu", "cu130", "cu126")),
    ]
    always = (
        "--universal --no-python-downloads --generate-hashes --no-annotate --no-emit-index-url"
        " --python-version 3.10 --no-emit-package rfc3987-syntax"
    )
    calls = read_calls(checkout)
    assert calls[0] == f"pip compile lab.in --quiet {always} -o lab.txt --upgrade []"
    assert [call for call in calls if always not in call or not call.endswith(" []")] == []


def test_the_header_that_dependabot_reads_is_in_the_locks_that_it_renews(play):
    checkout = play()
    update(checkout)
    headless = [call.split()[2] for call in read_calls(checkout) if "--no-header" in call]
    assert len(headless) == 7
    assert headless[:4] == ["hub.in", "models.in", "cuda-cu130.in", "cuda-cu126.in"]


def test_a_lock_on_top_leaves_out_torch_and_what_the_lab_has_already(play):
    checkout = play()
    update(checkout)
    left_out = "--no-emit-package torch --no-emit-package numpy"
    found = [call.split()[2] for call in read_calls(checkout) if left_out in call]
    assert found == ["hub.in", "models.in", "cuda-cu130.in", "cuda-cu126.in"]


@pytest.mark.parametrize("name", LOCKS)
def test_no_lock_has_what_takes_half_of_a_servers_start(name):
    assert f"\n{dev.SLOW_START}==" not in (FOLDER / name).read_text(encoding="utf-8")


def test_requirements_that_exclude_each_other(play):
    checkout = play("echo 'No solution found' >&2; exit 1")
    with pytest.raises(EngineError, match=r"lab\.in failed: No solution found") as caught:
        update(checkout)
    assert caught.value.fix == "edit docker/locks/lab.in, then: make lock"


def test_extras_are_locked_beside_the_lab_and_taken_out_again(play, tmp_path):
    checkout = play('[ -n "$3" ] && cat "$3" >> asked; echo "pandas==3.1" > "$lock"')
    wanted = tmp_path / "requirements.txt"
    wanted.write_text("pandas>=3\n")
    steps = Steps(io.StringIO())
    assert dev.lock_extras(checkout, str(wanted), steps) == "extras: + pandas 3.1"
    assert dev.lock_extras(checkout, "pandas seaborn", steps) == "extras: unchanged"
    asked = (checkout.root / "docker" / "locks" / "asked").read_text().split()
    assert asked == ["pandas>=3", "pandas", "seaborn"]
    call = read_calls(checkout)[0]
    assert "--no-emit-package torch" in call and "--no-emit-package numpy" in call
    assert "-c lab.txt" in call and call.split(" [")[0].endswith("-o extras.txt")
    assert "EXTRAS=pandas seaborn" in checkout.lock_file("extras").read_text()
    assert dev.lock_extras(checkout, "none", steps) == "extras: - pandas"
    assert not checkout.lock_file("extras").exists()


def test_extras_bound_to_a_build_of_torch_are_refused(play):
    with pytest.raises(UsageError, match="torchvision") as caught:
        dev.lock_extras(play(), "pandas torchvision>=0.2", Steps(io.StringIO()))
    assert "--index-url" in str(caught.value.fix)


def test_torch_is_asked_of_its_builds_own_index(play):
    checkout = play()
    update(checkout)
    asked = (checkout.root / "docker" / "locks" / "asked").read_text().splitlines()
    assert asked == [
        'torch==2.13.0+cpu ; sys_platform == "linux"',
        'torch===2.13.0 ; sys_platform == "darwin"',
        'torch==2.13.0 ; sys_platform == "linux"',
        'torch==2.13.0+cu126 ; sys_platform == "linux"',
    ]
    indexes = [re.findall(r"--index-url \S*/(\w+)", call) for call in read_calls(checkout)[-3:]]
    assert indexes == [["cpu"], [], ["cu126"]]


def test_torchs_locks_are_renewed_and_then_unchanged(play):
    checkout = play()
    update(checkout)
    names = ["torch-cpu", "torch-cu130", "torch-cu126"]
    assert update(checkout)[-3:] == [f"{name}: unchanged" for name in names]
    text = checkout.lock_file("torch-cpu").read_text()
    assert "lab.txt has them" in text
    assert text.endswith("torch==2.13.0 ; sys_platform == 'linux' --hash=sha256:aa\n")


def test_the_default_indexs_torch_is_pinned_so_that_no_other_build_fits(play):
    checkout = play()
    update(checkout)
    text = checkout.lock_file("torch-cu130").read_text()
    assert text.splitlines()[-1].startswith("torch===2.13.0 ; ")


def test_an_index_of_pytorch_that_does_not_answer_leaves_the_lock(play):
    checkout = play(
        torch="""case "$*" in *--index-url*) echo 'no route' >&2; exit 1;; esac; """ + TORCH
    )
    before = checkout.lock_file("torch-cpu").read_text()
    kept = [line for line in update(checkout) if "kept" in line]
    assert [line.split(":")[0] for line in kept] == ["torch-cpu", "torch-cu126"]
    assert "no route" in kept[0]
    assert checkout.lock_file("torch-cpu").read_text() == before


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


@pytest.mark.parametrize("name", ["lab", "test", "docs", "tools", "cuda-cu126"])
def test_everything_that_is_asked_for_is_locked(name):
    asked = {
        re.split(r"[<>=;~ \[]", line)[0].lower()
        for line in (FOLDER / f"{name}.in").read_text().splitlines()
        if line and line[0] not in "#-"
    }
    locked = {line.partition("==")[0].lower() for line in read_requirements(f"{name}.txt")}
    assert asked <= locked
