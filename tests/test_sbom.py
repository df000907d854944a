"""The SBOM: two tools' documents as one, and what is said where it cannot be made."""

from __future__ import annotations

import io
import json
import os

import pytest

from labkit.cli import main
from labkit.errors import EngineError, ExitCode
from labkit.launch import sbom
from labkit.launch.sbom import describe_image, merge_documents, write_sbom
from labkit.launch.steps import Steps
from tests.fakes.host import make_checkout, write_program
from tests.test_publish import ANSWERS, FakeDocker

LABELS = {
    "org.opencontainers.image.version": "0.1.0",
    "org.opencontainers.image.revision": "0123456789ab",
    "io.labkit.torch": "2.13.0+cu130",
    "io.labkit.cuda": "cu130",
    "com.docker.compose.version": "2.26.1",
}
PYTHON = {
    "metadata": {"tools": {"components": [{"type": "application", "name": "cyclonedx-py"}]}},
    "components": [
        {"type": "library", "name": "torch", "bom-ref": "torch==2.13.0"},
        {"type": "library", "name": "numpy", "bom-ref": "numpy==2.4.0"},
    ],
    "dependencies": [{"ref": "torch==2.13.0", "dependsOn": ["numpy==2.4.0"]}],
}
DEBIAN = {
    "metadata": {
        "component": {"type": "operating-system", "name": "Debian", "bom-ref": "debian"},
        "tools": {"components": [{"type": "application", "name": "debsbom"}]},
        "timestamp": "2026-01-01T00:00:00Z",
    },
    "components": [{"type": "library", "name": "g++", "bom-ref": "pkg:deb/debian/g++"}],
    "dependencies": [{"ref": "debian", "dependsOn": ["pkg:deb/debian/g++"]}],
    "serialNumber": "urn:uuid:1",
}


def test_the_image_holds_its_python_packages_and_its_distribution():
    document = merge_documents(PYTHON, DEBIAN, describe_image("labkit:cu130", LABELS))
    assert document["metadata"]["component"] == {
        "type": "container",
        "bom-ref": "image",
        "name": "labkit:cu130",
        "version": "0.1.0",
        "properties": [
            {"name": "revision", "value": "0123456789ab"},
            {"name": "io.labkit.cuda", "value": "cu130"},
            {"name": "io.labkit.torch", "value": "2.13.0+cu130"},
        ],
    }
    names = [component["name"] for component in document["components"]]
    assert names == ["Debian", "torch", "numpy", "g++"]
    assert document["dependencies"] == [
        {"ref": "image", "dependsOn": ["debian", "torch==2.13.0", "numpy==2.4.0"]},
        {"ref": "torch==2.13.0", "dependsOn": ["numpy==2.4.0"]},
        {"ref": "debian", "dependsOn": ["pkg:deb/debian/g++"]},
    ]


def test_the_same_image_gives_the_same_document():
    later = {**DEBIAN, "serialNumber": "urn:uuid:2"}
    later["metadata"] = {**DEBIAN["metadata"], "timestamp": "2027-01-01T00:00:00Z"}
    image = describe_image("labkit:cpu", LABELS)
    assert merge_documents(PYTHON, DEBIAN, image) == merge_documents(PYTHON, later, image)


# Plays docker and both tools: the records are a tar of two files, each tool writes its document.
RECORDS = """\
mkdir -p {work}/usr/lib {work}/var/lib/dpkg
mkdir -p {work}/opt/lab/lib/python3.11/site-packages/torch-2.13.0.dist-info
echo 'VERSION_ID="12"' > {work}/usr/lib/os-release
: > {work}/var/lib/dpkg/status
: > {work}/opt/lab/lib/python3.11/site-packages/torch-2.13.0.dist-info/METADATA
for target; do :; done
tar -C {work} -cf "$target" usr var opt"""
DEBSBOM = """\
while [ "$1" != --distro-version ]; do shift; done
[ "$2" = 12 ] || exit 1
for out; do :; done
cp {folder}/debian.json "$out.cdx.json" """
CYCLONEDX = """\
for python; do :; done
"$python" -c 'import sys' | grep -q site-packages || exit 1
while [ "$1" != --output-file ]; do shift; done
cp {folder}/python.json "$2" """


@pytest.fixture
def docker(tmp_path, monkeypatch):
    for name in [*filter(lambda name: name.startswith("LABKIT_"), os.environ)]:
        monkeypatch.delenv(name)
    fake = FakeDocker(tmp_path / "fake")
    records = RECORDS.format(work=tmp_path / "image")
    write_program(tmp_path, "records", records)
    fake.play(
        *ANSWERS,
        f"'image inspect'*) echo '{json.dumps(LABELS)}' ;;",
        f"cp*) {tmp_path}/records $3 ;;",
    )
    monkeypatch.setenv("PATH", f"{fake.folder}{os.pathsep}{os.environ['PATH']}")
    return fake


@pytest.fixture
def tools(tmp_path, monkeypatch):
    """The tools' folder; `python` is the validator."""
    folder = tmp_path / "tools"
    folder.mkdir()
    (folder / "debian.json").write_text(json.dumps(DEBIAN))
    (folder / "python.json").write_text(json.dumps(PYTHON))
    write_program(folder, "debsbom", DEBSBOM.format(folder=folder))
    write_program(folder, "cyclonedx-py", CYCLONEDX.format(folder=folder))
    write_program(folder, "python", "exit 0")
    monkeypatch.setattr(sbom, "prepare_tools", lambda *_: folder)
    return folder


@pytest.fixture
def checkout(docker, tmp_path, monkeypatch):
    made = make_checkout(tmp_path / "a lab")
    monkeypatch.setenv("LABKIT_HOME", str(made.root))
    return made


@pytest.mark.usefixtures("tools")
def test_the_file_and_its_size_are_said(docker, checkout, capsys):
    assert main(["sbom", "--image", "registry.example/team/labkit:1"]) == ExitCode.OK
    path = checkout.root.resolve() / ".labkit/sbom/registry.example-team-labkit-1.cdx.json"
    assert capsys.readouterr().out == f"{path}\n4 packages, CycloneDX 1.6, valid\n"
    document = json.loads(path.read_text())
    assert document["metadata"]["component"]["name"] == "registry.example/team/labkit:1"
    assert document["components"][0]["name"] == "Debian"


@pytest.mark.usefixtures("tools")
def test_the_image_is_read_without_a_network_and_its_container_removed(docker, checkout):
    write_sbom(checkout, "docker", "labkit:cpu", Steps(io.StringIO()))
    container = f"labkit-sbom-{os.getpid()}"
    [run] = [call for call in docker.calls if call.startswith("run ")]
    assert run.startswith(f"run --name {container} --network none --entrypoint sh labkit:cpu -c ")
    assert docker.calls[-1] == f"rm --force --volumes {container}"


@pytest.mark.parametrize(
    ("program", "what"),
    [
        ("debsbom", "debsbom failed: broken"),
        ("cyclonedx-py", "cyclonedx-py failed: broken"),
    ],
)
def test_a_tool_that_fails_is_named(docker, checkout, tools, program, what):
    write_program(tools, program, "echo broken >&2; exit 1")
    with pytest.raises(EngineError) as caught:
        write_sbom(checkout, "docker", "labkit:cpu", Steps(io.StringIO()))
    assert caught.value.what == what
    assert any(call.startswith("rm --force") for call in docker.calls)


def test_a_document_that_breaks_the_schema_is_an_error(docker, checkout, tools):
    write_program(tools, "python", "echo \"'bom-ref' is missing\" >&2; exit 1")
    with pytest.raises(EngineError, match=r"is not valid: 'bom-ref' is missing"):
        write_sbom(checkout, "docker", "labkit:cpu", Steps(io.StringIO()))


@pytest.mark.usefixtures("tools")
def test_an_image_that_is_not_built_is_named(docker, checkout, capsys):
    docker.play(*ANSWERS, "'image inspect'*) echo 'No such image' >&2; exit 1 ;;")
    assert main(["sbom", "--flavor", "cuda"]) == ExitCode.ENGINE
    assert capsys.readouterr().err == (
        "error: no image labkit:cu130 here: No such image\n"
        "  cause: an SBOM is made of an image that is built\n"
        "  try: make build   # then: make sbom\n"
    )
