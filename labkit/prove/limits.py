"""What the hardware can do at most: from NVML's clocks, the bus, the SMs, and published rates.

A rate is FLOP per SM and clock: twice the multiply-adds that NVIDIA publishes for an architecture,
dense (without structured sparsity), with sums in float32, as torch asks for. GeForce cards of
Turing and later do half of it. A rate that is not published is None, and no limit is guessed.
"""

from __future__ import annotations

from typing import NamedTuple

import msgspec

from labkit.prove.model import DeviceProof, Figure, HardwareFacts

# Bytes per second and lane, after encoding, by generation of PCIe (PCI-SIG's base specifications:
# 8b/10b up to 2.0, 128b/130b from 3.0 on; 6.0 in FLIT mode).
LANE_BYTES = {1: 0.25e9, 2: 0.5e9, 3: 0.985e9, 4: 1.969e9, 5: 3.938e9, 6: 7.563e9}
# Memory of every kind moves data on both edges of the clock that NVML reports.
EDGES = 2
TERA, GIGA = 1e12, 1e9


class Rates(NamedTuple):
    """FLOP per SM and clock by dtype, and where they are published; None is not published."""

    float32: int | None
    tf32: int | None
    half: int | None
    float8: int | None
    source: str
    consumer_half: bool = False  # GeForce cards of it sum in float32 at half the rate

    def find(self, dtype: str, *, consumer: bool) -> int | None:
        """The rate for matrix products of a dtype; None if it has no such hardware."""
        rates = {
            "float32": self.float32,
            "tf32": self.tf32,
            "bfloat16": self.half,
            "float16": self.half,
            "float8": self.float8,
        }
        rate = rates.get(dtype)
        halved = rate and consumer and self.consumer_half and dtype != "float32"
        return rate // 2 if rate and halved else rate


_GUIDE = "CUDA programming guide, arithmetic throughput"
# By compute capability.
RATES = {
    "7.0": Rates(128, None, 1024, None, f"Volta architecture whitepaper; {_GUIDE}"),
    "7.5": Rates(128, None, 1024, None, f"Turing architecture whitepaper; {_GUIDE}", True),
    "8.0": Rates(128, 1024, 2048, None, f"A100 architecture whitepaper; {_GUIDE}"),
    "8.6": Rates(256, 512, 1024, None, f"GA102 architecture whitepaper; {_GUIDE}", True),
    "8.9": Rates(256, 512, 1024, 2048, f"Ada architecture whitepaper; {_GUIDE}", True),
    "9.0": Rates(256, 2048, 4096, 8192, f"H100 architecture whitepaper; {_GUIDE}"),
    "10.0": Rates(256, 4096, 8192, 16384, f"Blackwell architecture brief; {_GUIDE}"),
    "10.3": Rates(256, 4096, 8192, 16384, f"Blackwell architecture brief; {_GUIDE}"),
    "12.0": Rates(256, 512, 1024, 2048, f"RTX Blackwell whitepaper; {_GUIDE}", True),
}


class Limit(NamedTuple):
    """The most that the hardware can do, in the figure's unit, and how that is known."""

    value: float
    source: str


def limit_figure(figure: Figure, device: DeviceProof) -> Figure:
    """The figure with its hardware's limit, if that is known."""
    found = find_limit(figure.key, device)
    if found is None:
        return figure
    limited: Figure = msgspec.structs.replace(figure, limit=found.value, limit_source=found.source)
    return limited


def find_limit(key: str, device: DeviceProof) -> Limit | None:
    """The limit for the figure with this key; None if it has none, or it is unknown."""
    subject, _, rest = key.partition(".")
    if device.kind == "cpu":
        return _limit_threads(device.hardware) if key == "threads.gain" else None
    if subject == "matmul":
        return limit_matmul(rest, device)
    if subject == "attention" or key == "sustained.rate":
        return limit_matmul("bfloat16", device)
    if subject in ("copy", "sum") and rest in ("device", "float32"):
        return limit_memory(device.hardware)
    if subject == "copy":
        return limit_link(device.hardware)
    return None


def limit_matmul(dtype: str, device: DeviceProof) -> Limit | None:
    """TFLOP/s of matrix products: SMs x rate x the highest clock."""
    facts = device.hardware
    rates = RATES.get(facts.compute_capability or "")
    consumer = "GeForce" in (device.name or "")
    rate = rates.find(dtype, consumer=consumer) if rates else None
    if rates is None or rate is None or not facts.sm_count or not facts.max_sm_mhz:
        return None
    value = facts.sm_count * rate * facts.max_sm_mhz * 1e6 / TERA
    words = f"{facts.sm_count} SMs x {rate:,} FLOP x {facts.max_sm_mhz:.0f} MHz"
    return Limit(value, f"{words} ({rates.source})")


def limit_memory(facts: HardwareFacts) -> Limit | None:
    """GB/s of the GPU's own memory: bus x clock x 2; of a MIG instance its share of the memory."""
    if not facts.bus_width_bits or not facts.max_memory_mhz:
        return None
    value = facts.bus_width_bits / 8 * facts.max_memory_mhz * 1e6 * EDGES / GIGA
    words = f"{facts.bus_width_bits:.0f} bit x {facts.max_memory_mhz:.0f} MHz x 2 (NVML)"
    share = find_memory_share(facts)
    if share is not None and share < 1:
        return Limit(value * share, f"{words} x {share:g} of the memory (MIG)")
    return Limit(value, words)


def find_memory_share(facts: HardwareFacts) -> float | None:
    """The part of a GPU's memory, in eighths, that a MIG instance has; 1 without MIG."""
    if not facts.mig_enabled:
        return 1.0
    if not facts.memory_bytes or not facts.total_bytes:
        return None
    return max(1, round(8 * facts.memory_bytes / facts.total_bytes)) / 8


def limit_link(facts: HardwareFacts) -> Limit | None:
    """GB/s in one direction over PCIe: lanes x the generation's rate."""
    lane = LANE_BYTES.get(int(facts.max_link_generation or 0))
    if lane is None or not facts.max_link_width:
        return None
    value = lane * facts.max_link_width / GIGA
    words = f"PCIe {facts.max_link_generation:.0f}.0 x{facts.max_link_width:.0f} (NVML, PCI-SIG)"
    return Limit(value, words)


def _limit_threads(facts: HardwareFacts) -> Limit | None:
    usable = min((n for n in (facts.threads, facts.cores) if n), default=None)
    return Limit(float(usable), "the cores that torch uses here") if usable else None
