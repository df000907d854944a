"""The block that ``labkit devices --report`` prints, to be pasted into an issue.

It names versions, devices and variables, and nothing of the person: no tokens, no names of users or
hosts, no UUIDs or serial numbers. Torch is not imported.
"""

from __future__ import annotations

import getpass
import importlib.metadata
import platform
import re
import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from labkit import __version__
from labkit.devices.detect import Detection, Device
from labkit.devices.telemetry import GpuTelemetry, Telemetry
from labkit.host.distribution import read_distribution
from labkit.host.engine import EngineFacts, probe_engine
from labkit.host.gpu import is_wsl
from labkit.host.torch_builds import read_torch_build
from labkit.process import CommandRunner
from labkit.text import format_bytes

# The libraries of torch's wheels, by the starts of their packages' names.
LIBRARIES = {
    "cuDNN": ("nvidia-cudnn-cu",),
    "NCCL": ("nvidia-nccl-cu",),
    "cuBLAS": ("nvidia-cublas",),
    "Triton": ("triton",),
}
CUDA_VERSIONS = ("", "11", "12", "13")
# Only variables that steer a GPU, torch or a container; never any whose name speaks of a secret.
SHOWN = re.compile(
    r"^(CUDA|NVIDIA|NCCL|TORCH|PYTORCH|TRITON|HIP|ROCR|HSA|GLOO|OMP|MKL)_\w+$"
    r"|^(LD_LIBRARY_PATH|LD_PRELOAD|DOCKER_HOST|DOCKER_CONTEXT|LABKIT_CUDA|LABKIT_GPUS|TMPDIR)$"
)
SECRET = re.compile(r"TOKEN|SECRET|PASS|KEY|AUTH|CREDENTIAL|COOKIE", re.IGNORECASE)
ADDRESS = re.compile(r"(?<=://)[^/\s,;]+")
HOME = re.compile(r"/(home|Users)/[^/:\s]+")
UUID = re.compile(r"\b(GPU|MIG)-[0-9a-fA-F][0-9a-fA-F-]+(?:/\d+)*")
COMMAND_SECONDS = 20.0


@dataclass(frozen=True)
class DeviceReport:
    """What others need to know about a machine; unknown is None."""

    labkit: str
    python: str
    system: str
    torch: str | None
    libraries: dict[str, str]
    driver: str | None
    toolkit: str | None
    engines: tuple[str, ...]
    devices: tuple[str, ...]
    paths: tuple[str, ...]
    variables: dict[str, str]
    notes: tuple[str, ...]


def read_report(
    detection: Detection,
    telemetry: Telemetry,
    run: CommandRunner,
    environment: Mapping[str, str],
    root: Path = Path("/"),
) -> DeviceReport:
    """The facts of this machine, without whatever names the person or the host."""
    build = read_torch_build()
    answer = run(["nvidia-ctk", "--version"], timeout_seconds=COMMAND_SECONDS)
    toolkit = re.search(r"\d+\.\d+\.\d+", answer.stdout) if answer.ok else None
    engines = [probe_engine(name, run, environment) for name in ("docker", "podman")]
    gpu = next((device for device in detection.devices if device.driver), None)
    names = _list_private_names(environment)
    return DeviceReport(
        labkit=__version__,
        python=f"{platform.python_version()} ({platform.python_implementation()})",
        system=_describe_system(root, environment),
        torch=f"{build.version} (CUDA {build.cuda or build.hip or 'none'})" if build else None,
        libraries=_read_libraries(),
        driver=_describe_driver(gpu, root) if gpu else None,
        toolkit=toolkit[0] if toolkit else None,
        engines=tuple(_describe_engine(engine) for engine in engines if engine.client_found),
        devices=tuple(_describe_device(one, telemetry) for one in detection.devices),
        paths=tuple(f"GPU{p.first}-GPU{p.second} {p.path or 'unknown'}" for p in telemetry.paths),
        variables={
            name: hide_names(value, names)
            for name, value in sorted(environment.items())
            if SHOWN.match(name) and not SECRET.search(name)
        },
        notes=tuple(hide_names(note, names) for note in detection.notes),
    )


def _list_private_names(environment: Mapping[str, str]) -> dict[str, str]:
    """The texts to hide, with what to print in their place; the longest first."""
    try:
        user = getpass.getuser()
    except (OSError, KeyError, ImportError):  # a user id without a name
        user = ""
    found = {
        environment.get("HOME", ""): "~",
        environment.get("USER", "") or user: "<user>",
        user: "<user>",
        platform.node(): "<host>",
    }
    # A short or common name would hide parts of other words.
    usable = {text: shown for text, shown in found.items() if len(text) > 2 and text != "root"}
    return dict(sorted(usable.items(), key=lambda item: -len(item[0])))


def hide_names(text: str, names: Mapping[str, str]) -> str:
    """The text without these names, addresses, home folders and UUIDs.

    >>> hide_names("http://ada:x@gpu1/a, /home/bob/x, GPU-5d1c0f2e", {})
    'http://<host>/a, /home/<user>/x, GPU-...'
    """
    text = UUID.sub(r"\1-...", ADDRESS.sub("<host>", text))
    for name, shown in names.items():
        text = re.sub(rf"(?<![A-Za-z0-9]){re.escape(name)}(?![A-Za-z0-9])", shown, text)
    return HOME.sub(r"/\1/<user>", text)


def _describe_system(root: Path, environment: Mapping[str, str]) -> str:
    parts = [f"{platform.system()} {platform.release()}", platform.machine()]
    parts.append(read_distribution(root).name or "distribution unknown")
    in_container = (root / ".dockerenv").exists() or (root / "run/.containerenv").exists()
    if in_container or environment.get("LABKIT_IN_CONTAINER"):
        parts.append("in a container")
    if sys.platform == "linux" and is_wsl(root):
        parts.append("WSL2")
    return ", ".join(parts)


def _read_libraries() -> dict[str, str]:
    found = {}
    for name, starts in LIBRARIES.items():
        packages = [start + version for start in starts for version in CUDA_VERSIONS]
        for package in packages:
            try:
                found[name] = importlib.metadata.version(package)
            except importlib.metadata.PackageNotFoundError:
                continue
            break
    return found


def _describe_driver(gpu: Device, root: Path) -> str:
    try:
        text = (root / "proc/driver/nvidia/version").read_text(errors="replace")
    except OSError:
        text = ""
    modules = (
        "open" if "Open Kernel Module" in text else "closed" if "NVIDIA" in text else "unknown"
    )
    return f"{gpu.driver} (CUDA {gpu.cuda or 'unknown'}, {modules} kernel modules)"


def _describe_engine(engine: EngineFacts) -> str:
    if engine.server_version is None:
        return f"{engine.name}: does not answer"
    kind = " rootless" if engine.rootless else ""
    return (
        f"{engine.name} {engine.server_version}{kind}, Compose {engine.compose_version or 'none'}"
    )


def _describe_device(device: Device, telemetry: Telemetry) -> str:
    if device.kind == "cpu":
        limit = "" if device.limit_bytes is None else f" (limit {format_bytes(device.limit_bytes)})"
        cores = "unknown" if device.cores is None else f"{device.cores:g}"
        return f"{device.name or 'CPU'}, {cores} cores, {format_bytes(device.total_bytes)}{limit}"
    name = device.torch_name or ("MIG instance" if device.parent_uuid else "GPU")
    facts = [device.name or "unknown", device.compute_capability or "capability unknown"]
    facts += [format_bytes(device.total_bytes), *(["MIG"] if device.mig else [])]
    state, memory = telemetry.find(device.uuid), telemetry.find_memory(device.uuid)
    if memory and memory.processes is not None:
        count = len(memory.processes)
        facts.append("1 process" if count == 1 else f"{count} processes")
    facts += _describe_state(state) if state else []
    facts += [device.trouble] if device.trouble else []
    return f"{name}: {', '.join(facts)}"


def _describe_state(state: GpuTelemetry) -> list[str]:
    width, most = state.load.link_width, state.hardware.max_link_width
    facts = [f"PCIe {state.load.link_generation}.0 x{width} of x{most}"] if width and most else []
    if state.ecc_enabled is not None:
        facts.append(f"ECC {'on' if state.ecc_enabled else 'off'}")
    if state.hardware.ecc_errors:
        facts.append(f"{state.hardware.ecc_errors} uncorrected errors")
    return facts + [f"clocks held by {each}" for each in state.load.clock_reasons or ()]


def describe_report(report: DeviceReport) -> dict[str, object]:
    """The report as ``--json`` prints it."""
    return asdict(report)


def format_report(report: DeviceReport) -> str:
    """The report as a block of Markdown, closed at once, for an issue."""
    libraries = ", ".join(f"{name} {version}" for name, version in report.libraries.items())
    lines = [
        ("labkit", report.labkit),
        ("system", report.system),
        ("python", report.python),
        ("torch", report.torch or "not installed here"),
        ("libraries", libraries or "unknown"),
        ("driver", report.driver or "none"),
        ("toolkit", report.toolkit or "none found"),
        *(("engine", engine) for engine in report.engines or ("none found",)),
        *(("device", device) for device in report.devices),
        *(("path", path) for path in report.paths),
        *(("variable", f"{name}={value}") for name, value in report.variables.items()),
        *(("note", note) for note in report.notes),
    ]
    return "\n".join(["```", *(f"{label:<10}{text}" for label, text in lines), "```"])
