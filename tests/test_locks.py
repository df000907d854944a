"""The locks: what `make lock` writes, and that what is checked in can be trusted."""

from __future__ import annotations

import io
import re
from pathlib import Path

import pytest

from labkit.errors import EngineError
from labkit.launch import locks
from labkit.launch.locks import describe_change, format_torch_lock
from labkit.launch.steps import Steps
from tests.fakes.host import make_checkout, write_program

FOLDER = Path(__file__).parents[1] / "docker" / "locks"
LOCKS = ("lab.txt", "test.txt", "torch-cpu.txt")


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
    )
)


def pin(requirement, *digests):
    hashes = [f"    --hash=sha256:{digest * 64}" for digest in digests]
    return " \\\n".join([requirement, *hashes]) + "\n"


def test_torchs_lock_has_every_wheel_for_linux_and_macos_and_no_other():
    text = format_torch_lock(PAGE, "2.13.0")
    assert text == (
        locks.TORCH_HEADER
        + pin('torch==2.13.0+cpu ; sys_platform == "linux"', "a", "b", "c")
        + pin('torch==2.13.0 ; sys_platform == "darwin"', "d")
    )


def test_without_a_build_for_macos_there_is_no_line_for_it():
    text = format_torch_lock(PAGE, "2.12.1")
    assert text == locks.TORCH_HEADER + pin('torch==2.12.1+cpu ; sys_platform == "linux"', "1")


@pytest.mark.parametrize("page", ["", "<html>404</html>", PAGE], ids=["empty", "another", "older"])
def test_a_page_without_that_version_gives_no_lock(page):
    assert format_torch_lock(page, "2.14.0") is None


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


RESOLVER = """\
for word; do case "$word" in *.txt) lock=$word ;; esac; done
echo "$*" >> calls
{script}"""


@pytest.fixture
def checkout(tmp_path, monkeypatch):
    """A checkout whose index of PyTorch does not answer."""

    def fail(address, timeout):
        raise OSError("no route to host")

    monkeypatch.setattr(locks.urllib.request, "urlopen", fail)
    return make_checkout(tmp_path / "a lab")


def play_resolver(checkout, monkeypatch, script):
    program = write_program(checkout.root / "resolver", "uv", RESOLVER.format(script=script))
    monkeypatch.setattr(locks, "_prepare_resolver", lambda checkout, steps: program)


def test_the_locks_are_resolved_for_every_python_with_hashes_and_without_an_index(
    checkout, monkeypatch
):
    play_resolver(checkout, monkeypatch, 'echo "numpy==2.4.1" > "$lock"')
    lines = locks.update_locks(checkout, Steps(io.StringIO()))
    assert lines == [
        "lab: numpy 2.4.0 -> 2.4.1",
        "test: + numpy 2.4.1",
        "torch-cpu: kept, as PyTorch's index does not answer (no route to host)",
    ]
    calls = (checkout.root / "docker" / "locks" / "calls").read_text().splitlines()
    assert calls[0] == (
        "pip compile lab.in -o lab.txt --quiet --universal --python-version 3.10"
        " --generate-hashes --no-header --no-annotate --no-emit-index-url --upgrade"
    )


def test_requirements_that_exclude_each_other(checkout, monkeypatch):
    play_resolver(checkout, monkeypatch, "echo 'No solution found' >&2; exit 1")
    with pytest.raises(EngineError) as caught:
        locks.update_locks(checkout, Steps(io.StringIO()))
    assert caught.value.what == "resolving lab.in failed: No solution found"
    assert caught.value.fix == "edit docker/locks/lab.in, then: make lock"


class FakePage(io.BytesIO):
    """What urlopen gives."""


def test_torchs_lock_is_renewed_and_then_unchanged(checkout, monkeypatch):
    play_resolver(checkout, monkeypatch, ":")
    page = PAGE.encode()
    monkeypatch.setattr(locks.urllib.request, "urlopen", lambda address, timeout: FakePage(page))
    steps = Steps(io.StringIO())
    assert locks.update_locks(checkout, steps)[-1] == "torch-cpu: renewed"
    assert locks.update_locks(checkout, steps)[-1] == "torch-cpu: unchanged"
    lock = checkout.root / "docker" / "locks" / "torch-cpu.txt"
    assert lock.read_text() == format_torch_lock(PAGE, "2.13.0")


def test_an_index_without_that_torch_leaves_the_lock(checkout, monkeypatch):
    play_resolver(checkout, monkeypatch, ":")
    monkeypatch.setattr(locks.urllib.request, "urlopen", lambda address, timeout: FakePage(b""))
    lines = locks.update_locks(checkout, Steps(io.StringIO()))
    assert lines[-1] == "torch-cpu: kept, as PyTorch's index has no torch 2.13.0"


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
        if not re.match(r"[\w.-]+(\[[\w,-]+\])?==\S+ .*--hash=sha256:[0-9a-f]{64}", line)
    ]
    assert wrong == []


@pytest.mark.parametrize("name", [*LOCKS, "lab.in", "test.in"])
def test_no_address_is_in_a_lock(name):
    text = (FOLDER / name).read_text(encoding="utf-8")
    assert not re.search(r"https?:|file:|--(extra-)?index-url|--find-links", text)


def test_torch_is_in_its_own_lock_alone():
    def has_torch(name):
        return any(re.match(r"torch\b(?!-)", line) for line in read_requirements(name))

    assert [name for name in LOCKS if has_torch(name)] == ["torch-cpu.txt"]


def test_torchs_lock_is_of_the_version_that_make_lock_takes():
    versions = {line.split()[0] for line in read_requirements("torch-cpu.txt")}
    assert versions == {f"torch=={locks.TORCH_VERSION}+cpu", f"torch=={locks.TORCH_VERSION}"}


def test_what_both_locks_pin_they_pin_alike():
    def read_pins(name):
        return {line.split()[0] for line in read_requirements(name)}

    names = {pin.partition("==")[0] for pin in read_pins("lab.txt")}
    shared = {pin for pin in read_pins("test.txt") if pin.partition("==")[0] in names}
    assert shared <= read_pins("lab.txt")
    assert shared


@pytest.mark.parametrize("name", ["lab", "test"])
def test_everything_that_is_asked_for_is_locked(name):
    asked = {
        re.split(r"[<>=;~ ]", line)[0].lower()
        for line in (FOLDER / f"{name}.in").read_text().splitlines()
        if line and line[0] not in "#-"
    }
    locked = {line.partition("==")[0].lower() for line in read_requirements(f"{name}.txt")}
    assert asked <= locked
