"""A build behind a proxy that opens TLS: works with LABKIT_CA_FILE, and keeps nothing of it."""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from labkit.process import CommandResult, run_command
from tests.fakes.proxy import NAME, OPENED_HOST, PASSWORD, InspectingProxy, make_certificates
from tests.image.clones import Clone

pytestmark = [
    pytest.mark.engine,
    pytest.mark.timeout(1500),
    pytest.mark.skipif(not shutil.which("openssl"), reason="needs the openssl command"),
]
IMAGE = "labkit:behind-a-proxy"
# The build's steps on the host's own loopback, where the proxy listens.
ON_LOOPBACK = "services: {cpu: {build: {network: host}}}\n"
# What labkit's own wheel is built with; the rest of the lab's lock has no part in this.
BUILD_BACKEND = ("hatchling", "hatch-fancy-pypi-readme")
NEEDED = (*BUILD_BACKEND, "packaging", "pathspec", "pluggy", "trove-classifiers", "tomli")


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("certificates")
    make_certificates(folder)
    return folder


@pytest.fixture(scope="module")
def proxy(certificates: Path) -> Iterator[InspectingProxy]:
    made = InspectingProxy(certificates)
    made.start()
    yield made
    made.stop()


@pytest.fixture
def small_clone(fresh_clone: Clone, proxy: InspectingProxy) -> Iterator[Clone]:
    """A checkout whose torch is the proxy's wheel, and whose lab is next to nothing."""
    locks = fresh_clone.root / "docker" / "locks"
    pin = f"torch==99.0+cpu --hash=sha256:{proxy.wheel_digest}\n"
    (locks / "torch-cpu.txt").write_text(pin)
    entries = re.split(r"^(?=\S)", (locks / "lab.txt").read_text(), flags=re.MULTILINE)
    needed = [entry for entry in entries if entry.startswith(tuple(f"{name}==" for name in NEEDED))]
    (locks / "lab.txt").write_text("".join(needed))
    (fresh_clone.root / "loopback.yaml").write_text(ON_LOOPBACK)
    yield fresh_clone
    remove_image()


def remove_image() -> None:
    """Also before another takes its name, or it would stay without one."""
    run_command(["docker", "image", "rm", "--force", IMAGE], timeout_seconds=60)


def build(clone: Clone, proxy: InspectingProxy, **variables: str) -> CommandResult:
    """The image, built as labkit does, behind the proxy."""
    program = (
        "import sys; from labkit.launch import image, settings;"
        "checkout = settings.find_checkout();"
        "variables = image.build_variables(checkout, image.digest_inputs(checkout));"
        "import os, subprocess;"
        "sys.exit(subprocess.run(sys.argv[1:], env={**os.environ, **variables}).returncode)"
    )
    compose = ["docker", "compose", "--project-name", clone.checkout.project]
    files = ["--file", "compose.yaml", "--file", "loopback.yaml"]
    given = clone.environment(
        LABKIT_IMAGE=IMAGE,
        TORCH_INDEX=f"https://{OPENED_HOST}/whl/cpu",
        HTTPS_PROXY=proxy.address,
        https_proxy=proxy.address,
        **variables,
    )
    return run_command(
        ["python3", "-c", program, *compose, *files, "--profile", "cpu", "build", "cpu"],
        timeout_seconds=1200,
        environment=given,
        folder=clone.root,
    )


def find_traces(image: str, traces: dict[str, bytes], scratch: Path) -> list[str]:
    """Which of the traces are in the image: its layers' bytes, its history, its configuration."""
    archive = scratch / "image.tar"
    saved = run_command(["docker", "save", "--output", str(archive), image], timeout_seconds=300)
    assert saved.ok, saved.stderr
    said = run_command(["docker", "history", "--no-trunc", image], timeout_seconds=60).stdout
    said += run_command(["docker", "image", "inspect", image], timeout_seconds=60).stdout
    found = {name for name, trace in traces.items() if trace.decode("latin-1") in said}
    longest = max(len(trace) for trace in traces.values())
    end = b""
    with archive.open("rb") as file:
        while chunk := file.read(1 << 24):
            window = end + chunk
            found |= {name for name, trace in traces.items() if trace in window}
            end = window[-longest:]
    archive.unlink()
    return sorted(found)


def list_traces(certificates: Path) -> dict[str, bytes]:
    """What must not be found: the certificate in either form, its owner, the proxy's password."""
    lines = (certificates / "ca.pem").read_text().splitlines()
    return {
        "certificate": "\n".join(lines[2:5]).encode(),
        "owner": NAME.encode(),
        "password": PASSWORD.encode(),
        "file": str(certificates).encode(),
    }


def test_a_build_behind_an_inspecting_proxy(
    small_clone: Clone, proxy: InspectingProxy, certificates: Path, tmp_path: Path
):
    without = build(small_clone, proxy)
    assert not without.ok
    assert "CERTIFICATE_VERIFY_FAILED" in without.stdout + without.stderr
    assert proxy.opened == []

    certificate = str(certificates / "ca.pem")
    trusting = build(small_clone, proxy, LABKIT_CA_FILE=certificate)
    assert trusting.ok, trusting.stdout[-3000:]
    assert "/whl/cpu/torch/" in proxy.opened
    traces = list_traces(certificates)
    assert find_traces(IMAGE, traces, tmp_path) == []
    remove_image()

    keeping = build(small_clone, proxy, LABKIT_CA_FILE=certificate, LABKIT_CA_KEEP="1")
    assert keeping.ok, keeping.stdout[-3000:]
    # The certificate itself, and nothing of how it came or of the way through the proxy.
    assert find_traces(IMAGE, traces, tmp_path) == ["certificate"]
    asked = "import ssl; print(ssl.create_default_context().get_ca_certs())"
    trusted = run_command(
        ["docker", "run", "--rm", "--network", "none", IMAGE, "python", "-c", asked],
        timeout_seconds=60,
    )
    assert NAME in trusted.stdout


def test_the_traces_would_be_found(certificates: Path, tmp_path: Path):
    """The scan itself: an image that copies the certificate in is caught."""
    (tmp_path / "Dockerfile").write_text(
        "FROM scratch\nARG HTTPS_PROXY\nLABEL proxy=$HTTPS_PROXY"
        f" where={certificates}\nCOPY ca.pem /\n"
    )
    shutil.copy(certificates / "ca.pem", tmp_path / "ca.pem")
    arguments = ["--build-arg", f"HTTPS_PROXY=http://a:{PASSWORD}@127.0.0.1:1"]
    name = f"labkit:traces-{os.getpid()}"
    built = run_command(
        ["docker", "build", "--quiet", "--tag", name, *arguments, str(tmp_path)],
        timeout_seconds=120,
    )
    assert built.ok, built.stderr
    try:
        found = find_traces(name, list_traces(certificates), tmp_path)
        assert found == ["certificate", "file", "password"]
        assert json.loads(run_command(["docker", "inspect", name], timeout_seconds=30).stdout)
    finally:
        run_command(["docker", "image", "rm", "--force", name], timeout_seconds=60)
