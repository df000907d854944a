"""The verdicts: which figures are low, which likely causes were looked at, and the verdict on all.

Pure functions of a proof. A threshold is a share of the hardware's limit, with its reason beside
it; where the same model is in stored proofs, a figure must also reach most of the best of them.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping
from typing import NamedTuple

from msgspec.structs import replace

from labkit.prove.limits import limit_figure
from labkit.prove.model import Cause, DeviceProof, Figure, Proof
from labkit.text import format_bytes, plural

OF_THE_MODEL = ("matmul.", "attention.", "copy.device", "sum.", "sustained.rate")
STORED_SHARE = 0.9  # cards of one model differ by a few percent, and so do two runs
HELD_PERCENT = 85.0
SLOWEST_LAUNCH_US = 50.0
LEAST_PEER_SHARE = 0.5
ERRORS = "memory errors"
# Of two cores, 30 % of both would be less than one of them does alone: what counts is the gain.
LEAST_GAIN_OF_CORE = 0.3
IDLE_USED_BYTES = 2**29  # contexts of a display or a monitor are smaller


class Threshold(NamedTuple):
    """The least share of the limit that a healthy device reaches, and why it is not more."""

    share: float
    reason: str


_TENSOR = "the power limit keeps clocks below the maximum, and no library uses every clock"
_MEMORY = "refresh, row changes and turns of the bus take the rest"
# By the figure's key, or its part before the dot.
THRESHOLDS = {
    "matmul.float8": Threshold(0.45, _TENSOR),
    "matmul.float32": Threshold(0.6, "the libraries reach 70 to 95 % of the FMA units"),
    "matmul": Threshold(0.5, _TENSOR),
    "sustained.rate": Threshold(0.4, _TENSOR),
    "attention.best": Threshold(0.2, "softmax runs outside the tensor cores"),
    "copy.device": Threshold(0.8, _MEMORY),
    "sum.float32": Threshold(0.7, _MEMORY),
    "copy.to.pinned": Threshold(0.7, "the link's packets have headers and pauses"),
    "copy.from.pinned": Threshold(0.7, "the link's packets have headers and pauses"),
}

# Why a figure that has a limit is not judged by it.
UNJUDGED = {
    "attention": "only the fastest backend is judged",
    "copy": "a pageable copy depends on the machine's cores and memory",
}

# Variables that slow a correct program down or change its results, and what they do.
VARIABLES = {
    "CUDA_LAUNCH_BLOCKING": "every launch waits for its kernel",
    "PYTORCH_NO_CUDA_MEMORY_CACHING": "every tensor asks the driver for memory",
    "NVIDIA_TF32_OVERRIDE": "it overrules which products use TF32",
    "CUBLAS_WORKSPACE_CONFIG": "it limits which kernels cuBLAS may use",
    "CUDA_INJECTION64_PATH": "a profiler is loaded into every CUDA program",
    "NVTX_INJECTION64_PATH": "a profiler is loaded into every CUDA program",
    "TORCH_COMPILE_DISABLE": "torch.compile does nothing",
    "TORCHDYNAMO_DISABLE": "torch.compile does nothing",
    "TORCHINDUCTOR_FORCE_DISABLE_CACHES": "every compile is a first one",
    "TORCH_SHOW_CPP_STACKTRACES": "every error collects C++ frames",
    "NCCL_P2P_DISABLE": "GPUs exchange data through the machine's memory",
    "NCCL_DEBUG": "NCCL writes a log",
    "OMP_NUM_THREADS": "it limits the CPU's threads",
    "MKL_NUM_THREADS": "it limits the CPU's threads",
}
# Values with which a variable above does nothing.
OFF = {"", "0", "false", "warn", "version"}
# Settings of deliberate users, which are shown beside a low figure and are not alarming alone.
HARMLESS = {"OMP_NUM_THREADS", "MKL_NUM_THREADS", "CUBLAS_WORKSPACE_CONFIG", "NCCL_DEBUG"}

HEAT = ("hardware thermal slowdown", "software thermal slowdown")
HARDWARE = ("hardware slowdown", "hardware power brake")


def list_variables(environment: Mapping[str, str]) -> dict[str, str]:
    """The set variables that change speed or results."""
    return {
        name: environment[name]
        for name in VARIABLES
        if environment.get(name, "").lower() not in OFF
    }


def judge_proof(proof: Proof, stored: Iterable[Proof] = ()) -> Proof:
    """The proof with every figure's limit and verdict, the alarms, and the verdict on all."""
    best = find_best(stored)
    devices = tuple(judge_device(device, proof.variables, best) for device in proof.devices)
    judged = replace(proof, devices=devices, links=_judge_links(proof.links))
    status = find_status(judged)
    return replace(judged, status=status, verdict=describe_verdict(judged, status))


def find_best(stored: Iterable[Proof]) -> dict[tuple[str, str], float]:
    """The best value of each model and figure that was not low in a stored proof."""
    best: dict[tuple[str, str], float] = {}
    for device in (device for proof in stored for device in proof.devices):
        for figure in device.figures:
            if is_compared(figure, device) and figure.status in ("well", "unjudged"):
                place = (str(device.name), figure.key)
                best[place] = max(figure.value or 0.0, best.get(place, 0.0))
    return best


def is_compared(figure: Figure, device: DeviceProof) -> bool:
    """True if the figure is a matter of the model alone, and not of the machine around it.

    A link, a launch and a compile depend on the machine; virtual CPUs of one name differ; a MIG
    instance is a part of its model.
    """
    whole_gpu = device.kind != "cpu" and device.name and not device.hardware.mig_enabled
    return bool(whole_gpu) and figure.value is not None and figure.key.startswith(OF_THE_MODEL)


def is_rate(figure: Figure) -> bool:
    """True if more is better."""
    return figure.unit not in ("us", "s")


def judge_device(
    device: DeviceProof, variables: Mapping[str, str], best: Mapping[tuple[str, str], float]
) -> DeviceProof:
    """The device with its alarms and its judged figures."""
    causes = look_for_causes(device, variables)
    top = find_top_attention(device.figures)
    figures = []
    for measured in device.figures:
        compared = is_compared(measured, device)
        known = best.get((device.name or "", measured.key)) if compared else None
        figure = replace(limit_figure(measured, device), stored=known, causes=())
        figures.append(_judge_figure(figure, device, causes, is_top=measured is top))
    alarms = tuple(cause for cause in causes.values() if cause.found and _is_alarm(cause))
    return replace(device, figures=tuple(figures), alarms=alarms)


def find_top_attention(figures: Iterable[Figure]) -> Figure | None:
    """The fastest backend's figure: the others need not be fast."""
    found = [one for one in figures if one.key.startswith("attention.") and one.value is not None]
    return max(found, key=lambda one: one.value or 0.0, default=None)


def _judge_figure(
    figure: Figure, device: DeviceProof, causes: Mapping[str, Cause], *, is_top: bool
) -> Figure:
    if figure.status in ("failed", "skipped") or figure.value is None:
        return figure
    status, why = _compare(figure, device, is_top=is_top)
    if status != "low":
        return replace(figure, status=status, why=why)
    looked_at = tuple(causes[name] for name in _list_suspects(figure.key) if name in causes)
    return replace(figure, status="low", why=why, causes=looked_at)


def _compare(figure: Figure, device: DeviceProof, *, is_top: bool) -> tuple[str, str]:
    """The status of a figure, and the reason in words."""
    value = figure.value or 0.0
    bound = _find_bound(figure)
    if bound is not None:
        well, words = bound
        return "well" if well else "low", words
    if figure.stored is not None and value < STORED_SHARE * figure.stored:
        words = f"this model reached {figure.stored:.4g} {figure.unit} in a stored proof"
        return "low", f"{words}; at least {_percent(STORED_SHARE)} of that is expected"
    threshold = _find_threshold(figure.key, is_top=is_top)
    share = figure.share
    if threshold is None or share is None:
        if figure.stored is not None:
            return "well", f"at least {_percent(STORED_SHARE)} of the best stored proof is reached"
        return "unjudged", UNJUDGED.get(figure.key.partition(".")[0], "no limit is known")
    words = f"at least {_percent(threshold.share)} of the limit is expected: {threshold.reason}"
    return ("well" if share >= threshold.share else "low"), words


def _find_bound(figure: Figure) -> tuple[bool, str] | None:
    """Whether a figure that is not judged by a share is well, and its bound; None for others."""
    value = figure.value or 0.0
    if figure.key == "launch":
        words = f"launches take 3 to 20 us, at most {SLOWEST_LAUNCH_US:g}"
        return value <= SLOWEST_LAUNCH_US, words
    if figure.key == "sustained.hold":
        return value >= HELD_PERCENT, f"at least {HELD_PERCENT:g} % is held"
    if figure.key == "threads.gain" and figure.limit:
        least = 1 + LEAST_GAIN_OF_CORE * (figure.limit - 1)
        more = f"{_percent(LEAST_GAIN_OF_CORE)} more for each core after the first"
        reason = "cores share their power, cache and memory"
        return value >= least, f"at least {least:.2g} x is expected, {more}: {reason}"
    return None


def _percent(share: float) -> str:
    return f"{100 * share:.0f} %"


def _find_threshold(key: str, *, is_top: bool) -> Threshold | None:
    if key.startswith("attention."):
        return THRESHOLDS["attention.best"] if is_top else None
    return THRESHOLDS.get(key) or THRESHOLDS.get(key.partition(".")[0])


_LOAD = ("power limit", "clocks", "heat", "hardware slowdown", "MIG", "other processes")
_WEAR = (ERRORS, "MIG", "other processes")
SUSPECTS = {
    "matmul": (*_LOAD, "variables"),
    "sustained": (*_LOAD, "variables"),
    "attention": (*_LOAD, "variables"),
    "sum": (*_WEAR, "clocks", "heat"),
    "copy.device": (*_WEAR, "clocks", "heat"),
    "copy": ("link", "other processes", "variables"),
    "launch": ("variables", "other processes", "busy cores"),
    "threads": ("busy cores", "variables"),
}
# On the CPU, these have causes of their own.
CPU_SUSPECTS = ("busy cores", "variables")


def _list_suspects(key: str) -> tuple[str, ...]:
    found = SUSPECTS.get(key) or SUSPECTS.get(key.partition(".")[0]) or _LOAD
    return (*found, *(name for name in CPU_SUSPECTS if name not in found))


def look_for_causes(device: DeviceProof, variables: Mapping[str, str]) -> dict[str, Cause]:
    """Every likely cause of a low figure on this device, by name, with what was found."""
    if device.kind == "cpu":
        causes = [_look_at_cores(device), _look_at_variables(variables)]
    else:
        causes = [
            _look_at_power(device),
            _look_at_clocks(device),
            _look_at_reasons(device, "heat", HEAT, "TEMPERATURE,PERFORMANCE"),
            _look_at_reasons(device, "hardware slowdown", HARDWARE, "PERFORMANCE,POWER"),
            _look_at_link(device),
            _look_at_errors(device),
            _look_at_mig(device),
            _look_at_processes(device),
            _look_at_variables(variables),
        ]
    return {cause.name: cause for cause in causes}


def _is_alarm(cause: Cause) -> bool:
    """True for what is wrong by itself, and not only beside a low figure."""
    if cause.name == "variables":
        return not all(word.partition("=")[0] in HARMLESS for word in cause.words.split("; "))
    return cause.name in ("power limit", "heat", "hardware slowdown", "link", ERRORS) or (
        cause.name == "clocks" and "set" in cause.words
    )


def _look_at_power(device: DeviceProof) -> Cause:
    facts, command = device.hardware, "nvidia-smi -q -d POWER"
    limit, usual = facts.power_limit_watts, facts.default_power_limit_watts
    if limit is None or usual is None:
        return Cause("power limit", None, "its power limit cannot be read", command)
    if limit < usual - 1:
        words = f"the power limit is set to {limit:.0f} W; the card's default is {usual:.0f} W"
        return Cause("power limit", True, words, command)
    return Cause("power limit", False, f"{limit:.0f} W, the card's default", command)


def _look_at_clocks(device: DeviceProof) -> Cause:
    """The clock under load: normally below the maximum because of the default power limit."""
    command = "nvidia-smi -q -d CLOCK,PERFORMANCE"
    seen = [one.sm_mhz for one in device.sustained if one.sm_mhz is not None]
    most = device.hardware.max_sm_mhz
    if not seen or not most:
        return Cause("clocks", None, "the clock under load was not measured", command)
    clock, reasons = statistics.median(seen), _join_reasons(device)
    words = f"{clock:.0f} of {most:.0f} MHz under load"
    if "application clocks" in reasons:
        return Cause("clocks", True, f"{words}: they are set by application clocks", command)
    if clock >= 0.9 * most:
        return Cause("clocks", False, words, command)
    usual = device.hardware.power_limit_watts == device.hardware.default_power_limit_watts
    if reasons == {"power cap"} and usual:
        return Cause("clocks", False, f"{words}, as its default power limit lets it", command)
    held = f", held by: {', '.join(sorted(reasons))}" if reasons else ", for no reason it reports"
    return Cause("clocks", True, words + held, command)


def _join_reasons(device: DeviceProof) -> set[str]:
    return {reason for one in device.sustained for reason in one.clock_reasons or ()}


def _look_at_reasons(
    device: DeviceProof, name: str, reasons: tuple[str, ...], sections: str
) -> Cause:
    command = f"nvidia-smi -q -d {sections}"
    if all(one.clock_reasons is None for one in device.sustained):
        return Cause(name, None, "what holds the clocks down was not measured", command)
    found = [reason for reason in reasons if reason in _join_reasons(device)]
    heat = [one.temperature_celsius for one in device.sustained if one.temperature_celsius]
    at = f" at {max(heat):.0f} C" if heat and name == "heat" else ""
    words = f"{' and '.join(found)}{at}" if found else f"not seen{at}"
    return Cause(name, bool(found), words, command)


def _look_at_link(device: DeviceProof) -> Cause:
    fields = (
        f"pcie.link.{what}.{when}" for what in ("gen", "width") for when in ("current", "max")
    )
    command = f"nvidia-smi --query-gpu={','.join(fields)} --format=csv"
    facts = device.hardware
    # An idle GPU lowers the generation of its link, so only readings under load count.
    widths = [one.link_width for one in device.sustained if one.link_width]
    generations = [one.link_generation for one in device.sustained if one.link_generation]
    if not widths or not facts.max_link_width:
        return Cause("link", None, "its PCIe link cannot be read", command)
    most = f"PCIe {facts.max_link_generation or 0:.0f}.0 x{facts.max_link_width:.0f}"
    now = f"PCIe {max(generations, default=0):.0f}.0 x{max(widths):.0f}"
    narrow = max(widths) < facts.max_link_width
    slower = max(generations, default=0) < (facts.max_link_generation or 0)
    if narrow or slower:
        why = "the slot, a riser or a dirty contact" if narrow else "the slot or the BIOS"
        words = f"its link is {now} under load; it and its slot can do {most} ({why})"
        return Cause("link", True, words, command)
    return Cause("link", False, now, command)


def _look_at_errors(device: DeviceProof) -> Cause:
    facts, command = device.hardware, "nvidia-smi -q -d ECC,ROW_REMAPPER"
    found = []
    if facts.ecc_errors:
        found.append(f"{plural(facts.ecc_errors, 'uncorrected ECC error')} since the driver loaded")
    if facts.row_remap_failed:
        found.append("a bad row of its memory could not be replaced: the card needs service")
    if facts.row_remap_pending:
        found.append("a bad row is replaced at the GPU's next reset")
    if found:
        return Cause(ERRORS, True, "; ".join(found), command)
    if facts.ecc_errors is None and facts.remapped_rows is None:
        return Cause(ERRORS, None, "it has no ECC, or it cannot be read", command)
    rows = f"; {plural(facts.remapped_rows, 'row')} replaced" if facts.remapped_rows else ""
    return Cause(ERRORS, False, f"no uncorrected error{rows}", command)


def _look_at_mig(device: DeviceProof) -> Cause:
    enabled = device.hardware.mig_enabled
    words = {
        True: "it is a part of a GPU, and the other parts share its power",
        False: "not split",
        None: "unknown",
    }
    return Cause("MIG", enabled, words[enabled], "nvidia-smi -L")


def _look_at_processes(device: DeviceProof) -> Cause:
    facts, command = device.hardware, "nvidia-smi"
    if facts.processes:
        words = f"{plural(facts.processes, 'process')} held its memory before the measuring"
        return Cause("other processes", True, words.replace("processs", "processes"), command)
    if facts.used_bytes is not None and facts.used_bytes > IDLE_USED_BYTES:
        words = f"{format_bytes(facts.used_bytes)} were in use before the measuring"
        return Cause("other processes", True, words, command)
    known = facts.processes is not None or facts.used_bytes is not None
    return Cause("other processes", False if known else None, "none seen", command)


def _look_at_variables(variables: Mapping[str, str]) -> Cause:
    if not variables:
        return Cause("variables", False, "none that slows torch down is set", None)
    words = "; ".join(f"{name}={value}: {VARIABLES[name]}" for name, value in variables.items())
    return Cause("variables", True, words, f"unset {' '.join(variables)}")


def _look_at_cores(device: DeviceProof) -> Cause:
    facts = device.hardware
    if facts.busy is None or not facts.cores:
        return Cause("busy cores", None, "the load before the measuring is unknown", "uptime")
    words = f"a load of {facts.busy:.1f} on {facts.cores:g} cores before the measuring"
    return Cause("busy cores", facts.busy > 0.5 * facts.cores, words, "top")


def _judge_links(links: tuple[Figure, ...]) -> tuple[Figure, ...]:
    """The figures between GPUs: a copy is low beside the other pairs of the same machine."""
    rates = [one.value for one in links if one.key.startswith("peer.") and one.value]
    usual = statistics.median(rates) if rates else 0.0
    return tuple(_judge_link(one, usual) for one in links)


def _judge_link(link: Figure, usual: float) -> Figure:
    if link.status in ("failed", "skipped") or not link.key.startswith("peer."):
        return link
    low = (link.value or 0.0) < LEAST_PEER_SHARE * usual
    why = f"at least half of the median of all pairs, {usual:.3g} GB/s, is expected"
    looked = Cause("link", None, "how the two are connected", "nvidia-smi topo -m")
    return replace(link, status="low" if low else "well", why=why, causes=(looked,) if low else ())


# The verdict on all.


def find_status(proof: Proof) -> str:
    """The status of a proof whose figures are judged."""
    if any(step.status == "interrupted" for step in proof.steps):
        return "interrupted"
    working = [one for one in proof.devices if any(each.value is not None for each in one.figures)]
    dead = [one for one in proof.devices if one.trouble and one.kind != "cpu"]
    no_driver = any(fact.group == "driver" and fact.status == "failed" for fact in proof.facts)
    tried = [one for one in proof.devices if any(each.status != "skipped" for each in one.figures)]
    untried = bool(proof.devices) and not tried and all(one.figures for one in proof.devices)
    if dead or no_driver or (proof.devices and not working and not untried):
        return "unusable"
    if count_failures(proof):
        return "broken"
    return "low" if count_low(proof) or count_alarms(proof) else "well"


def count_failures(proof: Proof) -> int:
    """How much failed: measurements, devices, checks, labs, and memory with errors."""
    return (
        sum(figure.status == "failed" for _, figure in proof.figures)
        + sum(device.trouble is not None for device in proof.devices)
        + sum(fact.status == "failed" for fact in proof.facts)
        + sum(lab.is_broken for lab in proof.labs)
        + sum(cause.name == ERRORS for one in proof.devices for cause in one.alarms)
    )


def count_low(proof: Proof) -> int:
    """How many figures are low."""
    return sum(figure.status == "low" for _, figure in proof.figures)


def count_alarms(proof: Proof) -> int:
    """How many alarms the devices have, without memory errors, which count as failures."""
    return sum(cause.name != ERRORS for device in proof.devices for cause in device.alarms)


def describe_verdict(proof: Proof, status: str) -> str:
    """The verdict in a line."""
    measured = sum(figure.value is not None for _, figure in proof.figures)
    words = f"{plural(measured, 'figure')} measured"
    if status == "unusable":
        causes = [device.trouble for device in proof.devices if device.trouble]
        causes += [fact.found for fact in proof.facts if fact.group == "driver"]
        return f"unusable: {causes[0] if causes else 'no device could be measured'}"
    counts = {
        "failed": count_failures(proof),
        "low": count_low(proof),
        "to look at": count_alarms(proof),
    }
    sound = "all well" if measured else "nothing to judge"
    parts = ", ".join(f"{count} {name}" for name, count in counts.items() if count) or sound
    return f"interrupted, {words}: {parts}" if status == "interrupted" else f"{words}: {parts}"
