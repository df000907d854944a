"""Checks of the GPUs: faults, MIG, clocks and links, NVSwitches, peer access, what hides them."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from labkit.doctor.check import COMMAND_SECONDS, Check, Finding, Host, failed, ok, unknown, warning
from labkit.host.distribution import Distribution
from labkit.host.gpu import (
    Gpu,
    list_bus_gpus,
    parse_indices,
    probe_gpu,
    read_major,
    read_module_version,
)
from labkit.host.packages import Fix
from labkit.known_errors.catalog import read_xids
from labkit.known_errors.match import explain_text
from labkit.text import plural


def query_rows(host: Host, query: str, *names: str) -> list[dict[str, str]]:
    """nvidia-smi's values by field name for each GPU; empty if a field is unknown to it."""
    command = [host.smi, f"--query-{query}={','.join(names)}", "--format=csv,noheader,nounits"]
    answer = host.run(command, timeout_seconds=COMMAND_SECONDS)
    lines = [line.split(",") for line in answer.stdout.splitlines() if answer.ok]
    rows = [[value.strip() for value in line] for line in lines]
    return [dict(zip(names, row, strict=True)) for row in rows if len(row) == len(names)]


def read_number(text: str) -> float | None:
    """The number in a field; None for nvidia-smi's placeholders."""
    return float(text) if re.fullmatch(r"\d+(?:\.\d+)?", text) else None


LOGS = (
    ["dmesg"],
    ["journalctl", "--dmesg", "--boot", "--quiet", "--no-pager", "--grep=NVRM|nvidia"],
)
XID = re.compile(r"NVRM: Xid \(.{1,40}?\): (\d+)")
XIDS = {int(one.number): one for one in read_xids()}
XID_PAGE = "docs.nvidia.com/deploy/xid-errors"
# The known errors of the kernel's log that are the GPU's own.
FAULTS = ("gpu-off-the-bus", "needs-open-modules", "gpu-init-failed", "no-devices")
LOSSES = ("gpu-off-the-bus", "needs-open-modules")


@dataclass(frozen=True)
class HealthFacts:
    """The kernel's lines about NVIDIA's GPUs since boot (None: unreadable), and memory errors.

    ``errors`` are each GPU's uncorrectable ECC errors by its index. ``pending`` and ``broken``: a
    row of memory waits for a reset to be replaced, or could not be replaced. ``silent`` are the
    indices of GPUs whose queries fail (nvidia-smi prints "ERR!").
    """

    log: str | None = None
    errors: tuple[tuple[int, int], ...] = ()
    pending: bool = False
    broken: bool = False
    silent: tuple[int, ...] = ()


def probe_gpu_health(host: Host) -> HealthFacts:
    """The kernel's log, if this user may read it, and nvidia-smi's counts of memory errors."""
    volatile = "ecc.errors.uncorrected.volatile.total"
    counted = query_rows(host, "gpu", "index", volatile)
    pending, failure = "remapped_rows.pending", "remapped_rows.failure"
    rows = query_rows(host, "remapped-rows", "gpu_uuid", pending, failure)
    return HealthFacts(
        _read_log(host),
        tuple(
            (int(row["index"]), int(row[volatile]))
            for row in counted
            if row["index"].isdecimal() and row[volatile].isdecimal()
        ),
        any(row[pending] in ("1", "Yes") for row in rows),
        any(row[failure] in ("1", "Yes") for row in rows),
        tuple(gpu.index for gpu in probe_gpu(host.run, host.root).gpus if not gpu.answers),
    )


def _read_log(host: Host) -> str | None:
    for command in LOGS:
        answer = host.run(command, timeout_seconds=COMMAND_SECONDS)
        if answer.ok:
            return "\n".join(line for line in answer.stdout.splitlines() if "NVRM" in line)
        if answer.timed_out:  # a check has time for one hanging command only
            return None
    return None


def judge_gpu_health(facts: HealthFacts, distribution: Distribution) -> Finding:
    """A failure if a GPU left the bus: it is gone until a reboot; other faults are warnings."""
    log = facts.log or ""
    faults = [line for line in _drop_recovered(log.splitlines()) if _is_fault(line)]
    if faults:
        return _judge_fault(faults, distribution)
    if facts.silent:
        return failed(
            f"GPU {facts.silent[0]} does not answer its driver: nvidia-smi prints ERR! or [N/A]",
            "it hangs, or has left its bus",
            "sudo dmesg | grep -iE 'xid|nvrm'   # says why; a restart of the machine resets it",
        )
    if facts.broken or facts.pending:
        what = "could not replace a bad row" if facts.broken else "waits to replace a bad row"
        return warning(
            f"a GPU {what} of its memory",
            "its memory has errors that it cannot correct",
            "nvidia-smi -q -d ROW_REMAPPER   # "
            + ("have the card replaced" if facts.broken else "then reset the GPU, or reboot"),
        )
    broken = [(index, count) for index, count in facts.errors if count]
    if broken:
        index, count = broken[0]
        return warning(
            f"GPU {index} has had {count} uncorrectable memory errors",
            "programs that used this memory crashed or computed wrong results",
            "nvidia-smi -q -d ECC,ROW_REMAPPER   # reset the GPU; if it happens again, replace it",
        )
    if facts.log is None:
        return ok("no memory errors; only root can read the kernel's log: sudo dmesg | grep NVRM")
    return ok("no fault in the kernel's log since boot")


RECOVERY = re.compile(r"NVRM: Xid \((.{1,40}?)\): 154,.* to 0x\w+ \((.+?)\)")


def _drop_recovered(lines: list[str]) -> list[str]:
    """The lines without Xid 154, the recovery that a GPU needs, where its last one is "None"."""
    last = {found[1]: found[2] for line in lines if (found := RECOVERY.search(line))}
    return [
        line for line in lines if not (found := RECOVERY.search(line)) or last[found[1]] != "None"
    ]


def _is_fault(line: str) -> bool:
    found = XID.search(line)
    if found:
        xid = XIDS.get(int(found[1]))
        return xid is None or not xid.is_harmless
    known = explain_text(line, signs={"lab"}).first
    return known is not None and known.error.name in FAULTS


def _judge_fault(lines: Sequence[str], distribution: Distribution) -> Finding:
    """The worst of the faults: a lost GPU first, then the one that explains the others."""
    numbers = {int(found[1]): line for line in lines if (found := XID.search(line))}
    losses = (line for number, line in numbers.items() if number in XIDS and XIDS[number].is_loss)
    lost = next(losses, None)
    known = explain_text(lost or "\n".join(lines), signs={"lab"}).first
    line = (lost or (known.line if known else lines[0])).strip()
    if known is None:
        cause = "the driver reports a fault of the GPU, its memory or its links"
        return warning(line, cause, f"sudo dmesg | grep -i xid   # what it means: {XID_PAGE}")
    judge = failed if lost or known.error.name in LOSSES else warning
    return judge(line, known.error.cause, known.error.fix.on(distribution))


GPU_HEALTH_CHECK = Check(
    "gpu-health", "the GPU's own faults", probe_gpu_health, judge_gpu_health, ("gpu-bus",)
)


def probe_mig(host: Host) -> tuple[Gpu, ...]:
    """The GPUs that nvidia-smi lists, with MIG's state and instances."""
    return probe_gpu(host.run, host.root).gpus


def judge_mig(gpus: tuple[Gpu, ...], distribution: Distribution) -> Finding:
    """A failure if MIG is on without an instance: CUDA then has no device, unless others work."""
    enabled = [gpu for gpu in gpus if gpu.mig]
    empty = [gpu for gpu in enabled if not gpu.instances]
    if empty:
        index = empty[0].index
        judge = failed if len(empty) == len(gpus) else warning
        return judge(
            f"MIG is on for GPU {index}, which has no MIG instance",
            "with MIG on, CUDA uses only MIG instances",
            f"sudo nvidia-smi mig -i {index} -cgi 0 -C   "
            f"# one instance of the whole GPU; or turn MIG off: sudo nvidia-smi -i {index} -mig 0",
        )
    if enabled:
        count = sum(len(gpu.instances) for gpu in enabled)
        return ok(f"MIG is on: {plural(count, 'instance')}; a process uses one of them")
    return ok("MIG is off, or this GPU has none")


MIG_CHECK = Check("mig", "MIG instances", probe_mig, judge_mig, ("driver-library",))


# By the bits of NVML's mask of what holds the clocks down.
HEAT, POWER_BRAKE = 0x20 | 0x40, 0x80 | 0x08
REASONS = ("clocks_event_reasons.active", "clocks_throttle_reasons.active")  # the newer name first
STATE = (
    *("index", "pstate", "power.limit", "power.default_limit"),
    *("pcie.link.width.current", "pcie.link.width.max", "persistence_mode", "display_active"),
)
FULL_SPEED = ("P0", "P1", "P2")
LEAST_POWER_SHARE = 0.95


def probe_gpu_state(host: Host) -> list[dict[str, str]]:
    """Each GPU's clocks, power limit, PCIe link and persistence; empty if nvidia-smi is too old."""
    for reasons in REASONS:
        rows = query_rows(host, "gpu", *STATE, reasons)
        if rows:
            return [{**row, "reasons": row[reasons]} for row in rows]
    return []


def judge_gpu_clocks(rows: list[dict[str, str]], distribution: Distribution) -> Finding:
    """A warning if heat, power or a power limit below the default slows a GPU down."""
    if not rows:
        return ok("this nvidia-smi does not tell what holds the clocks")
    for row in rows:
        index, mask = row["index"], row["reasons"]
        held = int(mask, 16) if re.fullmatch(r"0x[0-9a-fA-F]+", mask) else 0
        if held & HEAT:
            cause = "its cooling does not suffice: dust, a blocked fan, warm air"
            fix = f"nvidia-smi -i {index} -q -d TEMPERATURE,PERFORMANCE"
            return warning(f"GPU {index} is slowed down by heat", cause, fix)
        if held & POWER_BRAKE:
            cause = "the board limits its power: a supply, a cable, or the server's own limit"
            fix = f"nvidia-smi -i {index} -q -d POWER,PERFORMANCE"
            return warning(f"GPU {index} is slowed down by its power supply", cause, fix)
        limit, default = read_number(row["power.limit"]), read_number(row["power.default_limit"])
        if limit and default and limit < LEAST_POWER_SHARE * default:
            return warning(
                f"GPU {index} may use {limit:.0f} W of its {default:.0f} W",
                "somebody limited its power: it computes more slowly, and cooler",
                f"sudo nvidia-smi -i {index} -pl {default:.0f}",
            )
    return ok("neither heat nor a power limit slows a GPU down")


GPU_CLOCKS_CHECK = Check(
    "gpu-clocks", "heat and power limits", probe_gpu_state, judge_gpu_clocks, ("driver-library",)
)


def judge_gpu_link(rows: list[dict[str, str]], distribution: Distribution) -> Finding:
    """A warning if a working GPU has fewer PCIe lanes than it and its slot can have."""
    widths = []
    for row in rows:
        width, most = (read_number(row[f"pcie.link.width.{name}"]) for name in ("current", "max"))
        if width is None or most is None:
            continue
        # An idle GPU may give lanes up to save power.
        if width < most and row["pstate"] in FULL_SPEED:
            return warning(
                f"GPU {row['index']} has {width:.0f} of {most:.0f} PCIe lanes",
                "copies to and from it are slower: a narrow slot, a riser, or dirty contacts",
                f"nvidia-smi -i {row['index']} -q -d PCI   # then reseat the card",
            )
        widths.append(f"x{width:.0f}")
    return ok(f"PCIe lanes: {', '.join(widths) or 'unknown'}")


GPU_LINK_CHECK = Check(
    "gpu-link", "the PCIe link's width", probe_gpu_state, judge_gpu_link, ("driver-library",)
)


@dataclass(frozen=True)
class PersistenceFacts:
    """Each GPU's state, and whether NVIDIA's service of persistence is installed."""

    rows: tuple[dict[str, str], ...] = ()
    has_service: bool = False


def probe_persistence(host: Host) -> PersistenceFacts:
    """nvidia-smi's rows, and systemd's unit; a container's host sets the mode."""
    if host.in_container or host.in_lxc:
        return PersistenceFacts()
    folders = ("etc/systemd/system", "usr/lib/systemd/system", "lib/systemd/system")
    units = [host.exists(f"{folder}/nvidia-persistenced.service") for folder in folders]
    return PersistenceFacts(tuple(probe_gpu_state(host)), any(units))


def judge_persistence(facts: PersistenceFacts, distribution: Distribution) -> Finding:
    """A warning if several GPUs without a screen unload their driver whenever they are idle."""
    rows = facts.rows
    off = [row for row in rows if row["persistence_mode"] == "Disabled"]
    if len(rows) < 2 or not off or any(row["display_active"] == "Enabled" for row in rows):
        return ok("not needed here" if off else "on, or unknown to this driver")
    return warning(
        "persistence mode is off",
        "each program's first CUDA call then waits seconds while the driver starts the GPUs",
        "sudo systemctl enable --now nvidia-persistenced"
        if facts.has_service
        else "sudo nvidia-smi -pm 1   # until the next boot",
    )


PERSISTENCE_CHECK = Check(
    "persistence", "persistence mode", probe_persistence, judge_persistence, ("driver-library",)
)


FABRIC_MANAGER = Fix(
    "install nvidia-fabricmanager in exactly the driver's version, {version}",
    debian="sudo apt-get install 'nvidia-fabricmanager-{branch}={version}*'"
    "   # NVIDIA's own source, from 590 on: nvidia-fabricmanager",
    fedora="sudo dnf install nvidia-fabricmanager-{version}",
    suse="sudo zypper install nvidia-fabricmanager={version}",
)
BRIDGE_CLASS, NVIDIA = "0x0680", "0x10de"


@dataclass(frozen=True)
class FabricFacts:
    """NVSwitches on the bus, and the fabric manager's version (None: missing) and state."""

    switches: int = 0
    version: str | None = None
    active: bool | None = None
    driver: str | None = None


def probe_fabric(host: Host) -> FabricFacts:
    """The bus, `nv-fabricmanager --version` and systemd; the programs only if there is a switch."""
    places = [f"sys/bus/pci/devices/{path.name}" for path in host.list("sys/bus/pci/devices", "*")]
    switches = sum(
        (host.read(f"{place}/vendor") or "").strip() == NVIDIA
        and (host.read(f"{place}/class") or "").startswith(BRIDGE_CLASS)
        for place in places
    )
    if not switches or host.in_container or host.in_lxc:  # the host's own
        return FabricFacts()
    answer = host.run(["nv-fabricmanager", "--version"], timeout_seconds=COMMAND_SECONDS)
    found = re.search(r"\d{3}\.\d+(?:\.\d+)?", answer.stdout + answer.stderr)
    words = ["systemctl", "is-active", "nvidia-fabricmanager"]
    state = host.run(words, timeout_seconds=COMMAND_SECONDS)
    active = None if state.missing or state.timed_out else state.stdout.strip() == "active"
    driver = read_module_version(host.root)
    return FabricFacts(switches, found[0] if found else None, active, driver)


def judge_fabric(facts: FabricFacts, distribution: Distribution) -> Finding:
    """A failure without a running fabric manager of the driver's version: CUDA then fails (802)."""
    if not facts.switches:
        return ok("no NVSwitch here")
    cause = "CUDA then fails with error 802: system not yet initialized"
    if facts.driver and facts.version != facts.driver:
        branch = read_major(facts.driver)
        fix = FABRIC_MANAGER.on(distribution).format(version=facts.driver, branch=branch)
        found = f"fabric manager {facts.version or 'missing'}, and driver {facts.driver}"
        return failed(found, cause, fix)
    if facts.active is False:
        start = "sudo systemctl enable --now nvidia-fabricmanager"
        return failed("the fabric manager does not run", cause, start)
    return ok(f"{plural(facts.switches, 'NVSwitch')}: fabric manager {facts.version}")


FABRIC_CHECK = Check(
    "fabric-manager", "NVSwitches and their manager", probe_fabric, judge_fabric, ("driver",)
)


@dataclass(frozen=True)
class PeerFacts:
    """The number of GPUs, whether the IOMMU translates for them, and pairs with peer access."""

    gpus: int = 0
    translated: bool = False
    pairs: int | None = None


def probe_peers(host: Host) -> PeerFacts:
    """The IOMMU groups of the GPUs, and `nvidia-smi topo -p2p r` on a host of several."""
    gpus = list_bus_gpus(host.root)
    if len(gpus) < 2:
        return PeerFacts(len(gpus))
    kinds = [host.read(f"sys/bus/pci/devices/{gpu.address}/iommu_group/type") or "" for gpu in gpus]
    answer = host.run([host.smi, "topo", "-p2p", "r"], timeout_seconds=COMMAND_SECONDS)
    rows = re.findall(r"^\s*GPU\d+\s+(.*(?:\bX\b|\bOK\b).*)$", answer.stdout, re.MULTILINE)
    pairs = sum(row.split().count("OK") for row in rows) // 2 if rows else None
    return PeerFacts(len(gpus), any(kind.startswith("DMA") for kind in kinds), pairs)


def judge_peers(facts: PeerFacts, distribution: Distribution) -> Finding:
    """A warning if GPUs access each other through an IOMMU: NCCL then hangs or computes wrongly."""
    if facts.gpus < 2:
        return ok("a single GPU, or none")
    if facts.pairs is None:
        found = "nvidia-smi does not tell which GPUs access each other"
        return unknown(found, "nvidia-smi topo -m")
    if facts.pairs and facts.translated:
        return warning(
            f"{plural(facts.pairs, 'pair')} of GPUs access each other through an IOMMU",
            "it redirects their traffic: NCCL may hang, or be slow",
            "export NCCL_P2P_DISABLE=1   # until iommu=pt is on the kernel's command line",
        )
    if not facts.pairs:
        return ok("the GPUs exchange data through the machine's memory")
    return ok(f"{plural(facts.pairs, 'pair')} of GPUs access each other directly")


PEERS_CHECK = Check(
    "peer-access", "several GPUs and the IOMMU", probe_peers, judge_peers, ("driver-library",)
)


@dataclass(frozen=True)
class VisibleFacts:
    """CUDA_VISIBLE_DEVICES (None: not set), and the GPUs that it can name."""

    value: str | None = None
    gpus: tuple[Gpu, ...] = ()


def probe_visible(host: Host) -> VisibleFacts:
    """The variable of this process, which a lab without a container takes over."""
    value = host.environment.get("CUDA_VISIBLE_DEVICES")
    return VisibleFacts(value, probe_gpu(host.run, host.root).gpus if value is not None else ())


def judge_visible(facts: VisibleFacts, distribution: Distribution) -> Finding:
    """A warning if the variable hides every GPU from CUDA."""
    if facts.value is None:
        return ok("CUDA_VISIBLE_DEVICES is not set")
    first = facts.value.split(",")[0].strip()
    if first.startswith("MIG-GPU-"):  # the form of drivers before 470, which nothing lists today
        hidden = False
    elif first.startswith(("GPU-", "MIG-")):
        known = [uuid for gpu in facts.gpus for uuid in (gpu.uuid, *gpu.instances) if uuid]
        hidden = bool(known) and not any(uuid.startswith(first) for uuid in known)
    else:
        hidden = not parse_indices(facts.value, len(facts.gpus) or 64)
    if hidden:
        return warning(
            f"CUDA_VISIBLE_DEVICES={facts.value!r} hides every GPU",
            "torch then says that no CUDA GPUs are available",
            "unset CUDA_VISIBLE_DEVICES",
        )
    return ok(f"CUDA_VISIBLE_DEVICES={facts.value}")


VISIBLE_CHECK = Check(
    "visible-devices", "GPUs hidden by a variable", probe_visible, judge_visible, ("gpu-bus",)
)


@dataclass(frozen=True)
class CompatFacts:
    """A folder with another libcuda that is found before the driver's, who names it, its driver."""

    folder: str | None = None
    named_by: str | None = None
    version: str | None = None
    driver: str | None = None
    gpus: tuple[str, ...] = ()


# Cards that NVIDIA's newer compat libraries serve, by their names.
DATA_CENTER = re.compile(r"\bTesla\b|\b(?:GH|GB|[VPTALHB])\d{1,3}[A-Z]?\b")


def probe_compat(host: Host) -> CompatFacts:
    """LD_LIBRARY_PATH, then the loader's own configuration."""
    driver = read_module_version(host.root)
    places = [("LD_LIBRARY_PATH", host.environment.get("LD_LIBRARY_PATH", "").split(":"))]
    for path in host.list("etc/ld.so.conf.d", "*.conf"):
        name = f"etc/ld.so.conf.d/{path.name}"
        places.append((f"/{name}", (host.read(name) or "").split()))
    for named_by, folders in places:
        for folder in folders:
            inside = folder.strip("/")
            if "compat" in inside and (found := host.list(inside, "libcuda.so.[0-9][0-9][0-9].*")):
                version = found[0].name.removeprefix("libcuda.so.")
                names = probe_gpu(host.run, host.root).names
                return CompatFacts(folder, named_by, version, driver, names)
    return CompatFacts()


def judge_compat(facts: CompatFacts, distribution: Distribution) -> Finding:
    """A warning if a compat libcuda that is no newer than the driver takes the driver's place."""
    if facts.folder is None:
        return ok("no other libcuda before the driver's")
    found = f"{facts.folder} has libcuda {facts.version}, before the driver's {facts.driver}"
    newer = (read_major(facts.version) or 0) > (read_major(facts.driver) or 0)
    if newer and facts.gpus and all(map(DATA_CENTER.search, facts.gpus)):
        return ok(f"{found}, which serves a data-center card")
    cause = "a compat library older than the driver makes CUDA fail (errors 803 and 804)"
    if newer:
        cause = "it serves data-center cards only: a GeForce then fails (error 804)"
    fix = "unset LD_LIBRARY_PATH   # or take that folder out of it"
    if facts.named_by != "LD_LIBRARY_PATH":
        fix = f"sudo mv {facts.named_by} {facts.named_by}.off && sudo ldconfig"
    return warning(found, cause, fix)


COMPAT_CHECK = Check(
    "cuda-compat", "the driver's own libcuda", probe_compat, judge_compat, ("driver",)
)
