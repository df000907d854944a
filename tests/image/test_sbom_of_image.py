"""The SBOM of the real image, by the real tools, against CycloneDX's own schema."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from labkit.commands import run_command
from labkit.launch.sbom import TOOLS, VALIDATE
from tests.image.clones import Clone

pytestmark = [pytest.mark.engine, pytest.mark.timeout(900)]


@pytest.fixture
def sbom(running: Clone) -> Path:
    """The file of the CPU image, which the running lab has had built."""
    answer = running.labkit("sbom", "--flavor", "cpu", timeout_seconds=600)
    assert answer.exit_code == 0, answer.stderr
    path, summary = answer.stdout.splitlines()
    assert summary.endswith(" packages, CycloneDX 1.6, valid")
    return Path(path)


def validate(clone: Clone, file: Path) -> str:
    """What the schema has against the file; empty where nothing."""
    python = clone.checkout.state_folder / "tools" / "+".join(TOOLS) / "bin" / "python"
    answer = run_command([str(python), "-c", VALIDATE, str(file)], timeout_seconds=120)
    return answer.message if not answer.ok else ""


def test_it_names_every_package_and_holds_to_the_schema(running: Clone, sbom: Path, tmp_path: Path):
    document = json.loads(sbom.read_text())
    assert validate(running, sbom) == ""
    assert document["metadata"]["component"]["type"] == "container"
    named = {(part["name"], part["version"]) for part in document["components"]}

    listed = running.inside("pip", "list", "--format", "json", "--path", site_packages(running))
    installed = {(part["name"], part["version"]) for part in json.loads(listed.stdout)}
    assert ("torch", "2.13.0+cpu") in installed
    assert installed <= named
    debian = running.inside("dpkg-query", "-W", "-f", "${Package}\t${Version}\n").stdout
    assert {tuple(line.split("\t")) for line in debian.splitlines()} <= named

    references = {part["bom-ref"] for part in document["components"]} | {"image"}
    assert {entry["ref"] for entry in document["dependencies"]} <= references

    document["components"][0]["surprise"] = True
    (tmp_path / "broken.json").write_text(json.dumps(document))
    assert "surprise" in validate(running, tmp_path / "broken.json")


def test_the_same_image_gives_the_same_file(running: Clone, sbom: Path):
    before = sbom.read_bytes()
    assert running.labkit("sbom", "--flavor", "cpu", timeout_seconds=600).ok
    assert sbom.read_bytes() == before


def site_packages(clone: Clone) -> str:
    """Where the locked packages are in the image; a learner's own lie elsewhere."""
    program = "import sysconfig; print(sysconfig.get_path('purelib'))"
    return clone.inside("python", "-c", program).stdout.strip()
