"""Where a GPU is cut up (MIG), is there a part of it to use?"""

from __future__ import annotations

import re
from dataclasses import dataclass

from labkit.doctor.check import Check, Finding, failed, ok
from labkit.doctor.distribution import Distribution
from labkit.doctor.host import COMMAND_SECONDS, Host

MODE = ["nvidia-smi", "--query-gpu=index,mig.mode.current", "--format=csv,noheader"]
LIST = ["nvidia-smi", "-L"]


@dataclass(frozen=True)
class MigFacts:
    """The GPUs that MIG is on for, by index, and the number of parts that each is cut into."""

    enabled: tuple[int, ...] = ()
    parts: tuple[tuple[int, int], ...] = ()


def probe(host: Host) -> MigFacts:
    """nvidia-smi's mode of each GPU; where it is on anywhere, its list with the parts."""
    answer = host.run(MODE, timeout_seconds=COMMAND_SECONDS)
    enabled = re.findall(r"^(\d+), *Enabled\s*$", answer.stdout, re.MULTILINE)
    if not enabled:
        return MigFacts()
    return MigFacts(
        tuple(map(int, enabled)),
        count_parts(host.run(LIST, timeout_seconds=COMMAND_SECONDS).stdout),
    )


def count_parts(text: str) -> tuple[tuple[int, int], ...]:
    """Each GPU's index with the number of MIG lines below it in `nvidia-smi -L`.

    >>> count_parts("GPU 0: NVIDIA H200 (UUID: GPU-1)\\n  MIG 1g.18gb  Device  0: (UUID: MIG-2)")
    ((0, 1),)
    """
    blocks = re.split(r"^GPU (\d+):", text, flags=re.MULTILINE)[1:]
    pairs = zip(blocks[::2], blocks[1::2], strict=True)
    return tuple(
        (int(index), len(re.findall(r"^\s+MIG \S", block, re.MULTILINE))) for index, block in pairs
    )


def judge(facts: MigFacts, distribution: Distribution) -> Finding:
    """A GPU with MIG on and no part of its own gives CUDA nothing to run on."""
    parts = dict(facts.parts)
    empty = [index for index in facts.enabled if not parts.get(index)]
    if empty:
        return failed(
            f"MIG is on for GPU {empty[0]}, which is cut into no part",
            "CUDA runs on the parts alone, and there is none",
            f"sudo nvidia-smi mig -i {empty[0]} -cgi 0 -C   "
            f"# one part of all of it; or switch MIG off: sudo nvidia-smi -i {empty[0]} -mig 0",
        )
    if facts.enabled:
        count = sum(parts[index] for index in facts.enabled)
        return ok(f"MIG is on: {count} part{'s' if count > 1 else ''}; a process uses one of them")
    return ok("MIG is off, or not on this GPU")


CHECK = Check("mig", "MIG: parts of a GPU", probe, judge, ("driver-library",))
