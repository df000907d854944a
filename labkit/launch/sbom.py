"""`make sbom`: what an image is made of, as one CycloneDX document.

Two kept tools read the two package managers' own records, copied out of the image: cyclonedx-py
the Python packages, debsbom the Debian ones. What neither manager installed (labkit's few
configuration files) is in no list.
"""

from __future__ import annotations

import json
import os
import re
import tarfile
import tempfile
from pathlib import Path
from typing import Any

from labkit.commands import run_command
from labkit.errors import EngineError
from labkit.launch.settings import Checkout
from labkit.launch.steps import Steps
from labkit.launch.tools import prepare_tools

TOOLS = ("cyclonedx-bom==7.5.0", "debsbom==0.10.2")
SCHEMA_VERSION = "1.6"
LIMIT_SECONDS = 300.0

# Copied inside the image by a container that is never seen again; no network, nothing mounted.
COLLECT = (
    "cd / && tar -cf /tmp/records.tar usr/lib/os-release var/lib/dpkg/status"
    " opt/lab/lib/python3*/site-packages/*.dist-info"
)
ALONE = ("--network", "none", "--entrypoint", "sh")
VALIDATE = """
import sys
from cyclonedx.schema import SchemaVersion
from cyclonedx.validation.json import JsonStrictValidator
problem = JsonStrictValidator(SchemaVersion.V1_6).validate_str(open(sys.argv[1]).read())
sys.exit(f"{problem}" if problem else 0)
"""

Document = dict[str, Any]


def write_sbom(checkout: Checkout, client: str, image: str, steps: Steps) -> tuple[Path, int]:
    """Writes the image's SBOM; the file, and how many packages it names.

    Raises EngineError where there is no such image, or a tool fails.
    """
    labels = read_labels(client, image)
    tools = prepare_tools(checkout, steps, TOOLS, "make sbom")
    target = checkout.state_folder / "sbom" / f"{re.sub(r'[^A-Za-z0-9._-]+', '-', image)}.cdx.json"
    with steps.step(f"reading what {image} is made of"), tempfile.TemporaryDirectory() as scratch:
        records = _copy_records(client, image, Path(scratch))
        debian = _list_debian_packages(tools, records)
        python = _list_python_packages(tools, records)
        document = merge_documents(python, debian, describe_image(image, labels))
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(json.dumps(document, indent=1, sort_keys=True) + "\n", encoding="utf-8")
        _run([str(tools / "python"), "-c", VALIDATE, str(target)], f"{target} is not valid")
    return target, len(document["components"])


def read_labels(client: str, image: str) -> dict[str, str]:
    """The image's labels. Raises EngineError where there is no such image."""
    words = [client, "image", "inspect", "--format", "{{json .Config.Labels}}", image]
    answer = run_command(words, timeout_seconds=30)
    if not answer.ok:
        raise EngineError(
            f"no image {image} here: {answer.message}",
            cause="an SBOM is made of an image that is built",
            fix="make build   # then: make sbom",
        )
    return dict(json.loads(answer.stdout) or {})


def _copy_records(client: str, image: str, scratch: Path) -> Path:
    """Copies the package managers' records out of the image; the folder they lie in."""
    name = f"labkit-sbom-{os.getpid()}"
    what = f"reading {image} failed"
    try:
        _run(
            [client, "run", "--name", name, *ALONE, image, "-c", COLLECT],
            what,
        )
        _run([client, "cp", f"{name}:/tmp/records.tar", str(scratch / "records.tar")], what)
    finally:
        run_command([client, "rm", "--force", "--volumes", name], timeout_seconds=60)
    root = scratch / "root"
    with tarfile.open(scratch / "records.tar") as archive:
        # Python before 3.10.12 has no filter; the archive is our own container's.
        safely: dict[str, Any] = {"filter": "data"} if hasattr(tarfile, "data_filter") else {}
        archive.extractall(root, **safely)  # noqa: S202
    return root


def _list_debian_packages(tools: Path, records: Path) -> Document:
    release = (records / "usr" / "lib" / "os-release").read_text(encoding="utf-8")
    version = re.search(r'^VERSION_ID="?([^"\n]+)', release, flags=re.MULTILINE)
    options = ["--sbom-type", "cdx", "--cdx-schema-version", SCHEMA_VERSION, "--root", str(records)]
    options += ["--distro-version", version.group(1)] if version else []
    output = ["--out", str(records / "debian")]
    _run([str(tools / "debsbom"), "generate", *options, *output], "debsbom failed")
    return _read(records / "debian.cdx.json")


def _list_python_packages(tools: Path, records: Path) -> Document:
    """The Python packages, as the tool finds them on the path that an interpreter tells it."""
    [site] = (records / "opt" / "lab" / "lib").glob("python3*/site-packages")
    # The image's own interpreter is of another machine perhaps; the tool asks it for its path only.
    interpreter = records / "python"
    interpreter.write_text(f"#!/bin/sh\necho '{json.dumps([str(site)])}'\n", encoding="utf-8")
    interpreter.chmod(0o755)
    options = ["--spec-version", SCHEMA_VERSION, "--output-reproducible"]
    output = ["--output-file", str(records / "python.json"), str(interpreter)]
    _run([str(tools / "cyclonedx-py"), "environment", *options, *output], "cyclonedx-py failed")
    return _read(records / "python.json")


def describe_image(image: str, labels: dict[str, str]) -> Document:
    """The component that all the others are parts of.

    >>> describe_image("labkit:cpu", {})["version"]
    'unknown'
    """
    known = {name: value for name, value in sorted(labels.items()) if name.startswith("io.labkit.")}
    return {
        "type": "container",
        "bom-ref": "image",
        "name": image,
        "version": labels.get("org.opencontainers.image.version", "unknown"),
        "properties": [
            {"name": "revision", "value": labels.get("org.opencontainers.image.revision", "")},
            *({"name": name, "value": value} for name, value in known.items()),
        ],
    }


def merge_documents(python: Document, debian: Document, image: Document) -> Document:
    """One document of both: the image, with its Python packages and its distribution as parts.

    Without serial number and time, so that the same image gives the same document.
    """
    system = debian["metadata"]["component"]
    packages = [component["bom-ref"] for component in python["components"]]
    tools = [*python["metadata"]["tools"]["components"], *debian["metadata"]["tools"]["components"]]
    root = {"ref": image["bom-ref"], "dependsOn": [system["bom-ref"], *packages]}
    return {
        "$schema": f"http://cyclonedx.org/schema/bom-{SCHEMA_VERSION}.schema.json",
        "bomFormat": "CycloneDX",
        "specVersion": SCHEMA_VERSION,
        "version": 1,
        "metadata": {"component": image, "tools": {"components": tools}},
        "components": [system, *python["components"], *debian["components"]],
        "dependencies": [
            root,
            *python.get("dependencies", []),
            *debian.get("dependencies", []),
        ],
    }


def _read(path: Path) -> Document:
    return dict(json.loads(path.read_text(encoding="utf-8")))


def _run(command: list[str], what: str) -> None:
    result = run_command(command, timeout_seconds=LIMIT_SECONDS)
    if not result.ok:
        raise EngineError(f"{what}: {result.message}", fix="make sbom")
