"""When an image is stale, and how far its build is."""

from __future__ import annotations

import re
import subprocess

import pytest

from labkit import __version__
from labkit.launch.image import (
    TEST_INPUTS,
    build_variables,
    digest_inputs,
    follow_build,
    read_image_digest,
    read_revision,
)
from tests.fakes.host import make_checkout, write_program


@pytest.fixture
def checkout(tmp_path, monkeypatch):
    """A checkout with one file of each kind, and no build settings around it."""
    proxies = ("HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY", "http_proxy", "https_proxy", "no_proxy")
    for name in ("BASE_IMAGE", "TORCH_INDEX", "LABKIT_CA_FILE", "LABKIT_CA_KEEP", *proxies):
        monkeypatch.delenv(name, raising=False)
    checkout = make_checkout(tmp_path / "a lab")
    for name in ("labkit/cli/run.py", "labs/tensors/lesson.py", "docker/steps/install.sh"):
        path = checkout.root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("content\n")
    return checkout


def test_the_digest_is_short_and_stable(checkout):
    digest = digest_inputs(checkout)
    assert len(digest) == 16
    assert int(digest, 16) >= 0
    assert digest_inputs(checkout) == digest


def change_content(root):
    (root / "labkit/cli/run.py").write_text("other\n")


def add_file(root):
    (root / "labs/tensors/exercises.py").write_text("")


def rename_file(root):
    (root / "labs/tensors/lesson.py").rename(root / "labs/tensors/lessons.py")


def make_executable(root):
    (root / "docker/steps/install.sh").chmod(0o755)


def change_a_lock(root):
    (root / "docker/locks/lab.txt").write_text("numpy==2.4.1\n")


def remove_file(root):
    (root / "labs/tensors/lesson.py").unlink()


@pytest.mark.parametrize(
    "change",
    [change_content, add_file, rename_file, make_executable, change_a_lock, remove_file],
    ids=lambda change: change.__name__,
)
def test_a_change_of_an_input_changes_the_digest(checkout, change):
    before = digest_inputs(checkout)
    change(checkout.root)
    assert digest_inputs(checkout) != before


def test_another_base_changes_the_digest(checkout, monkeypatch):
    before = digest_inputs(checkout)
    monkeypatch.setenv("BASE_IMAGE", "another")
    assert digest_inputs(checkout) != before


def test_a_mirror_does_not_as_every_file_is_held_to_its_hash(checkout, monkeypatch):
    before = digest_inputs(checkout)
    monkeypatch.setenv("TORCH_INDEX", "https://mirror.example/whl/cpu")
    assert digest_inputs(checkout) == before


def test_a_certificate_counts_where_the_image_keeps_it(checkout, monkeypatch, tmp_path):
    before = digest_inputs(checkout)
    certificate = tmp_path / "ca.pem"
    certificate.write_text("-----BEGIN CERTIFICATE-----\none\n")
    monkeypatch.setenv("LABKIT_CA_FILE", str(certificate))
    assert digest_inputs(checkout) == before
    monkeypatch.setenv("LABKIT_CA_KEEP", "1")
    kept = digest_inputs(checkout)
    certificate.write_text("-----BEGIN CERTIFICATE-----\nanother\n")
    assert len({before, kept, digest_inputs(checkout)}) == 3


@pytest.mark.parametrize(
    "name",
    [
        "work/01_tensors.ipynb",
        "labkit/__pycache__/x.pyc",
        "labs/tensors/.ipynb_checkpoints/lesson.py",
        "notes.txt",
        "tests/test_x.py",
    ],
)
def test_what_is_not_in_the_image_does_not_count(checkout, name):
    before = digest_inputs(checkout)
    path = checkout.root / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("content\n")
    assert digest_inputs(checkout) == before


def test_the_tests_count_for_the_test_image_alone(checkout):
    (checkout.root / "tests").mkdir()
    before = digest_inputs(checkout, TEST_INPUTS)
    (checkout.root / "tests" / "test_x.py").write_text("")
    assert digest_inputs(checkout, TEST_INPUTS) != before


@pytest.mark.parametrize(
    ("script", "digest"),
    [
        pytest.param("echo 0123456789abcdef", "0123456789abcdef", id="built by us"),
        pytest.param("echo", None, id="no such label"),
        pytest.param("echo 'No such image: labkit:cpu' >&2; exit 1", None, id="no such image"),
    ],
)
def test_the_digest_that_an_image_was_built_from(tmp_path, script, digest):
    client = write_program(tmp_path, "docker", script)
    assert read_image_digest(str(client), "labkit:cpu") == digest


def test_no_engine_has_no_image():
    assert read_image_digest("no-such-program", "labkit:cpu") is None


def test_outside_of_git_the_revision_is_not_known(checkout):
    assert read_revision(checkout) is None
    assert build_variables(checkout, "0123") == {
        "LABKIT_VERSION": __version__,
        "LABKIT_REVISION": "unknown",
        "LABKIT_INPUTS": "0123",
        "BUILDKIT_PROGRESS": "plain",
        "LABKIT_KEPT_CA": "",
    }


def git(root, *words):
    identity = ["-c", "user.name=a", "-c", "user.email=a@example"]
    subprocess.run(["git", "-C", str(root), *identity, *words], check=True, capture_output=True)


@pytest.fixture
def committed(checkout, monkeypatch):
    """The checkout with all of it in one commit of a known time."""
    monkeypatch.setenv("GIT_COMMITTER_DATE", "2026-01-02T03:04:05Z")
    git(checkout.root, "init", "--quiet")
    git(checkout.root, "add", "--all")
    git(checkout.root, "commit", "--quiet", "--message", "all")
    return checkout


def test_an_image_is_as_old_as_the_commit_it_was_made_from(committed):
    variables = build_variables(committed, "0123")
    assert variables["SOURCE_DATE_EPOCH"] == "1767323045"
    assert re.fullmatch(r"[0-9a-f]{12}", variables["LABKIT_REVISION"])


def test_a_revision_says_that_files_differ_from_it(committed):
    before = read_revision(committed)
    change_content(committed.root)
    assert read_revision(committed) == f"{before}-changed"


COMPOSE_BUILDKIT = """\
#0 building with "default" instance using docker driver
#1 [cpu internal] load build definition from Dockerfile
#5 [cpu os 1/2] FROM docker.io/library/debian:bookworm-slim@sha256:abc
#9 [cpu python 5/8] RUN --mount=type=secret,id=ca /steps/reach-network.sh /steps/install.sh lab
#9 1.532 Collecting jupyterlab==4.6.3 (from -r /locks/lab.txt (line 7))
#9 1.733   Downloading jupyterlab-4.6.3-py3-none-any.whl (12.4 MB)
#9 2.011 Collecting numpy==2.4.0 (from -r /locks/lab.txt (line 90))
#9 DONE 61.2s
#11 [cpu lab  2/9] COPY --from=python /opt/lab /opt/lab
"""
PLAIN_BUILDKIT = """\
#5 [python 3/8] COPY docker/locks/torch-cpu.txt /locks/
#6 [python 4/8] RUN install-python-packages.sh /locks/torch-cpu.txt
#6 0.9 Collecting torch==2.13.0+cpu (from -r /locks/torch-cpu.txt (line 3))
"""
PODMAN = """\
[1/2] STEP 1/3: FROM debian:bookworm-slim AS os
[1/2] STEP 2/3: RUN --mount=type=bind,source=docker/steps,target=/steps /steps/install.sh
Collecting numpy==2.4.0 (from -r /locks/lab.txt (line 90))
"""
CLASSIC = "STEP 3/9: COPY docker/jupyter /etc/labkit/jupyter\n"
INSTALLER = "#7 [installer 1/1] COPY docker/steps/reach-network.sh docker/steps/install.sh /\n"


@pytest.mark.parametrize(
    ("output", "notes"),
    [
        pytest.param(
            COMPOSE_BUILDKIT,
            [
                "os step 1 of 2: FROM docker.io/library/debian:bookworm-slim@sha256:abc",
                "python step 5 of 8: RUN /steps/install.sh lab",
                "python step 5 of 8: RUN /steps/install.sh lab - package 1, jupyterlab",
                "python step 5 of 8: RUN /steps/install.sh lab - package 2, numpy",
                "lab step 2 of 9: COPY --from=python /opt/lab /opt/lab",
            ],
            id="BuildKit under Compose",
        ),
        pytest.param(
            PLAIN_BUILDKIT,
            [
                "python step 3 of 8: COPY docker/locks/torch-cpu.txt /locks/",
                "python step 4 of 8: RUN install-python-packages.sh /locks/torch-cpu.txt",
                "python step 4 of 8: RUN install-python-packages.sh /locks/torch-cpu.txt"
                " - package 1, torch",
            ],
            id="plain BuildKit",
        ),
        pytest.param(
            PODMAN,
            [
                "step 1 of 3: FROM debian:bookworm-slim AS os",
                "step 2 of 3: RUN /steps/install.sh",
                "step 2 of 3: RUN /steps/install.sh - package 1, numpy",
            ],
            id="Podman",
        ),
        pytest.param(
            CLASSIC, ["step 3 of 9: COPY docker/jupyter /etc/labkit/jupyter"], id="one stage"
        ),
        pytest.param(
            INSTALLER,
            ["installer step 1 of 1: COPY docker/steps/reach-network.sh docker/steps/install.sh /"],
            id="a step that copies the wrapper",
        ),
        pytest.param("#9 CACHED\nsomething else\n\n", [], id="nothing to say"),
    ],
)
def test_how_far_a_build_is(output, notes):
    seen = []
    read_line = follow_build(seen.append)
    for line in output.splitlines():
        read_line(line)
    assert seen == notes


def test_a_long_step_is_cut():
    seen = []
    follow_build(seen.append)("STEP 1/1: RUN " + "x" * 100)
    assert seen == ["step 1 of 1: RUN " + "x" * 56]
