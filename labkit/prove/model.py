"""The proof of a machine: what was measured, what it should reach, and the verdicts.

``labkit prove --json`` prints a ``Proof`` and proof.json holds one. ``proof.schema.json`` beside
this file is made from these classes::

    python -m labkit.prove.model > labkit/prove/proof.schema.json

What is unknown is null, never 0. No host name, user's folder, serial number or UUID is in it.
"""

from __future__ import annotations

import hashlib
import json
import re
import socket
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any

import msgspec
from msgspec import Meta, Struct

from labkit.errors import ExitCode, UsageError
from labkit.memory.balance.model import Balance, ThisProcess
from labkit.notebooks.result import Count, Seconds, fit, make_schema
from labkit.text import shorten

SCHEMA_VERSION = 1
PROOF_NAME = "proof.json"
HASH_LENGTH = 12

# The verdict on the whole, and the command's exit code for it.
EXIT_CODES = {
    "well": ExitCode.OK,
    "low": ExitCode.FAILED,  # something is slower than it should be
    "broken": ExitCode.FAILED,  # a claim, a check or a measurement failed
    "missing": ExitCode.DEVICE_MISSING,
    "unusable": ExitCode.ENGINE,
    "interrupted": ExitCode.INTERRUPTED,
    "running": ExitCode.FAILED,  # only in the file of a proof in progress, or one that was killed
}
FIGURE_STATUSES = ["well", "low", "unjudged", "failed", "skipped"]
FACT_STATUSES = ["ok", "skipped", "unknown", "warning", "failed"]
STEP_STATUSES = ["done", "skipped", "failed", "interrupted"]

Number = Annotated[float, Meta(ge=0, le=1e30)]
ProofStatus = Annotated[str, Meta(extra_json_schema={"enum": list(EXIT_CODES)})]
FigureStatus = Annotated[str, Meta(extra_json_schema={"enum": FIGURE_STATUSES})]
FactStatus = Annotated[str, Meta(extra_json_schema={"enum": FACT_STATUSES})]
StepStatus = Annotated[str, Meta(extra_json_schema={"enum": STEP_STATUSES})]


class Cause(Struct, frozen=True):
    """A likely cause that was looked at: ``found`` is null if it could not be read."""

    name: str = "unnamed"
    found: bool | None = None
    words: str = ""
    command: Annotated[str | None, Meta(description="What tells more.")] = None


class Figure(Struct, frozen=True):
    """One measured figure, its hardware's limit, and the verdict.

    ``value`` is a median; ``slow`` and ``fast`` are the 20th and 80th percentile of the runs.
    ``intensity`` is the work's FLOP per byte of memory traffic, for the roofline.
    """

    key: str = "unnamed"
    title: str = ""
    unit: str = ""
    value: Number | None = None
    slow: Number | None = None
    fast: Number | None = None
    detail: str = ""
    intensity: Number | None = None
    limit: Number | None = None
    limit_source: str | None = None
    stored: Annotated[
        Number | None, Meta(description="The best that this model reached in stored proofs.")
    ] = None
    status: FigureStatus = "unjudged"
    why: Annotated[str | None, Meta(description="The threshold, or the failure's reason.")] = None
    causes: tuple[Cause, ...] = ()

    @property
    def share(self) -> float | None:
        """The part of the limit that was reached, from 0 to about 1; None if either is unknown."""
        return self.value / self.limit if self.value is not None and self.limit else None


class LoadReading(Struct, frozen=True):
    """A GPU's state at a moment: seconds since the load began, and the rate reached then."""

    seconds: Seconds | None = None
    rate: Annotated[Number | None, Meta(description="TFLOP/s, on the CPU GFLOP/s.")] = None
    sm_mhz: Number | None = None
    memory_mhz: Number | None = None
    power_watts: Number | None = None
    temperature_celsius: Number | None = None
    clock_reasons: tuple[str, ...] | None = None
    link_generation: Number | None = None
    link_width: Number | None = None


class HardwareFacts(Struct, frozen=True):
    """A GPU's limits, settings and errors, as NVML and torch report them."""

    compute_capability: str | None = None
    sm_count: Count | None = None
    l2_bytes: Count | None = None
    memory_bytes: Annotated[
        Count | None, Meta(description="What torch can use: of a MIG instance, its own part.")
    ] = None
    max_sm_mhz: Number | None = None
    max_memory_mhz: Number | None = None
    bus_width_bits: Number | None = None
    power_limit_watts: Number | None = None
    default_power_limit_watts: Number | None = None
    max_link_generation: Number | None = None
    max_link_width: Number | None = None
    ecc_errors: Count | None = None
    remapped_rows: Count | None = None
    row_remap_pending: bool | None = None
    row_remap_failed: bool | None = None
    mig_enabled: bool | None = None
    total_bytes: Count | None = None
    processes: Annotated[
        Count | None, Meta(description="Processes that held its memory before the measuring.")
    ] = None
    used_bytes: Annotated[
        Count | None, Meta(description="In use before the measuring, without the driver's reserve.")
    ] = None
    threads: Annotated[Count | None, Meta(description="On the CPU: of torch's kernels.")] = None
    cores: Annotated[
        Number | None, Meta(description="On the CPU: usable here, a quota counted.")
    ] = None
    busy: Annotated[
        Number | None, Meta(description="On the CPU: the load average before the measuring.")
    ] = None


class BalanceSheet(Struct, frozen=True):
    """Where a device's memory was at the end of the measuring, in bytes."""

    total_bytes: Count | None = None
    free_bytes: Count | None = None
    driver_reserved_bytes: Count | None = None
    allocated_bytes: Count | None = None
    cached_bytes: Count | None = None
    context_bytes: Count | None = None
    process_bytes: Count | None = None
    other_processes_bytes: Count | None = None
    shared: bool = False

    def restore(self, device: DeviceProof) -> Balance:
        """The balance to draw."""
        mine = ThisProcess(
            self.allocated_bytes, self.cached_bytes, self.context_bytes, self.process_bytes
        )
        return Balance(
            device.kind,
            torch_name=device.torch_name,
            name=device.name,
            total_bytes=self.total_bytes,
            free_bytes=self.free_bytes,
            driver_reserved_bytes=self.driver_reserved_bytes,
            this_process=mine,
            other_processes_bytes=self.other_processes_bytes,
            shared=self.shared,
        )


class DeviceProof(Struct, frozen=True):
    """A device's figures, its states before and under load, and what to know about it."""

    kind: str = "unknown"
    torch_name: str | None = None
    name: str | None = None
    uuid_hash: str | None = None
    hardware: HardwareFacts = HardwareFacts()
    idle: LoadReading | None = None
    sustained: tuple[LoadReading, ...] = ()
    figures: tuple[Figure, ...] = ()
    balance: BalanceSheet | None = None
    alarms: Annotated[
        tuple[Cause, ...], Meta(description="Found on the device, whatever its figures.")
    ] = ()
    trouble: str | None = None


class ProofFact(Struct, frozen=True):
    """A statement that was checked: by the doctor, by a self-test, or on the balance."""

    group: str = "doctor"
    name: str = "unnamed"
    status: FactStatus = "unknown"
    found: str = ""
    cause: str | None = None
    fix: str | None = None


class LabProof(Struct, frozen=True):
    """A lab's run: how many of its claims held, and the statements that did not."""

    name: str = "unnamed"
    status: str = "unknown"
    seconds: Seconds | None = None
    claims: Count = 0
    held: Count = 0
    skipped: Count = 0
    checks: Count = 0
    passed: Count = 0
    broken: tuple[str, ...] = ()

    @property
    def is_broken(self) -> bool:
        """True if it was run and did not pass."""
        return self.status not in ("passed", "not_run")


class ProofStep(Struct, frozen=True):
    """A step of the proof, and how it ended."""

    name: str = "unnamed"
    status: StepStatus = "done"
    seconds: Seconds | None = None
    words: str = ""


class Versions(Struct, frozen=True):
    """The versions below the figures."""

    labkit: str | None = None
    python: str | None = None
    platform: str | None = None
    torch: str | None = None
    cuda: Annotated[str | None, Meta(description="The version that torch is built for.")] = None
    driver: str | None = None


class Proof(Struct, frozen=True):
    """What labkit prove --json prints and proof.json holds."""

    schema_version: Annotated[int, Meta(extra_json_schema={"const": SCHEMA_VERSION})] = (
        SCHEMA_VERSION
    )
    status: ProofStatus = "running"
    verdict: str = ""
    started_at: Annotated[str | None, Meta(description="ISO 8601 with the offset from UTC.")] = None
    seconds: Seconds | None = None
    command: str = "labkit prove"
    versions: Versions = Versions()
    variables: Annotated[
        dict[str, str], Meta(description="Set variables that change speed or results.")
    ] = {}
    steps: tuple[ProofStep, ...] = ()
    devices: tuple[DeviceProof, ...] = ()
    links: Annotated[tuple[Figure, ...], Meta(description="Between GPUs.")] = ()
    facts: tuple[ProofFact, ...] = ()
    labs: tuple[LabProof, ...] = ()

    @property
    def exit_code(self) -> ExitCode:
        """The exit code that the command ends with."""
        return EXIT_CODES.get(self.status, ExitCode.FAILED)

    @property
    def figures(self) -> Iterable[tuple[DeviceProof | None, Figure]]:
        """Every figure with its device; None for those between devices."""
        for device in self.devices:
            yield from ((device, figure) for figure in device.figures)
        yield from ((None, figure) for figure in self.links)

    def describe(self) -> dict[str, Any]:
        """The proof as JSON values, without names that point to the machine or its user."""
        described: dict[str, Any] = scrub(msgspec.to_builtins(self), list_private())
        return described


def hash_uuid(uuid: str | None) -> str | None:
    """A short hash that tells a device from others and does not reveal its UUID; None for None.

    >>> hash_uuid("GPU-5d1c0f2e"), hash_uuid("5d1c0f2e") == hash_uuid("GPU-5d1c0f2e")
    ('752829867530', True)
    """
    if not uuid:
        return None
    plain = uuid.removeprefix("GPU-").removeprefix("MIG-")
    return hashlib.sha256(plain.encode()).hexdigest()[:HASH_LENGTH]


_UUID = re.compile(r"\b(?:GPU-|MIG-)?[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}\b", re.IGNORECASE)


def list_private() -> dict[str, str]:
    """What may not leave the machine, and what stands for it: its names, the user's folders."""
    names = {socket.gethostname(), socket.gethostname().partition(".")[0]}
    private = {name: "HOST" for name in names if len(name) > 3 and name != "localhost"}
    for folder, substitute in ((Path.cwd(), "."), (Path.home(), "~")):
        if len(folder.parts) > 1:
            private[str(folder)] = substitute
    return private


def scrub(value: Any, private: Mapping[str, str]) -> Any:
    """JSON values with the private words replaced and UUIDs hashed in every text."""
    if isinstance(value, str):
        for word, substitute in private.items():
            value = re.sub(rf"(?<![\w-]){re.escape(word)}(?![\w-])", substitute, value)
        return _UUID.sub(lambda found: f"uuid:{hash_uuid(found[0])}", value)
    if isinstance(value, Mapping):
        return {key: scrub(item, private) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [scrub(item, private) for item in value]
    return value


def read_proof(place: Path) -> Proof:
    """The proof in a folder or a proof.json. Raises UsageError if there is none."""
    path = place / PROOF_NAME if place.is_dir() else place
    try:
        described = json.loads(path.read_text(encoding="utf-8"), parse_constant=lambda name: None)
    except OSError as error:
        raise UsageError(
            f"{path} cannot be read: {error.strerror}",
            cause="labkit prove --output DIR writes proof.json into DIR",
            fix="labkit prove --output proof",
        ) from error
    except (ValueError, RecursionError) as error:
        raise UsageError(f"{path} is not a proof", cause=str(error)) from error
    if not isinstance(described, dict) or not isinstance(described.get("devices"), list):
        raise UsageError(f"{path} is not a proof", cause="it has no list of devices")
    version = described.get("schema_version", SCHEMA_VERSION)
    if type(version) is not int or version < 1:
        raise UsageError(
            f"{path} is not a proof",
            cause=f"its schema version is {shorten(json.dumps(version), 40)}, not a number from 1",
        )
    if version > SCHEMA_VERSION:
        raise UsageError(
            f"{path} has schema version {version}",
            cause=f"a newer labkit wrote it; this one reads up to {SCHEMA_VERSION}",
        )
    proof: Proof = fit({**described, "schema_version": SCHEMA_VERSION}, Proof)
    return proof


def find_damage(place: Path) -> str | None:
    """What of a proof that can be read is missing or has the wrong type; None for a whole one."""
    path = place / PROOF_NAME if place.is_dir() else place
    described = json.loads(path.read_text(encoding="utf-8"), parse_constant=lambda name: None)
    try:
        proof = msgspec.convert(described, Proof)
    except msgspec.ValidationError as error:
        return f"{path} is damaged, and what does not fit is left out: {error}"
    if not proof.devices:
        return f"{path} has no devices"
    return None if any(proof.figures) else f"{path} has no figures"


def format_schema() -> str:
    """The text of proof.schema.json."""
    return json.dumps(make_schema(Proof, "labkit prove result"), indent=1) + "\n"


if __name__ == "__main__":
    print(format_schema(), end="")
