"""Where a GPU is cut up (MIG), is there a part of it to use?"""

from __future__ import annotations

from labkit.doctor.check import Check, Finding, failed, ok
from labkit.doctor.distribution import Distribution
from labkit.doctor.host import Host
from labkit.host.gpu import Gpu, probe_gpu


def probe(host: Host) -> tuple[Gpu, ...]:
    """The GPUs as nvidia-smi tells of them: which have MIG on, and their parts."""
    return probe_gpu(host.run, host.root).gpus


def judge(gpus: tuple[Gpu, ...], distribution: Distribution) -> Finding:
    """A GPU with MIG on and no part of its own gives CUDA nothing to run on."""
    cut = [gpu for gpu in gpus if gpu.mig]
    empty = [gpu for gpu in cut if not gpu.parts]
    if empty:
        index = empty[0].index
        return failed(
            f"MIG is on for GPU {index}, which is cut into no part",
            "CUDA runs on the parts alone, and there is none",
            f"sudo nvidia-smi mig -i {index} -cgi 0 -C   "
            f"# one part of all of it; or switch MIG off: sudo nvidia-smi -i {index} -mig 0",
        )
    if cut:
        count = sum(len(gpu.parts) for gpu in cut)
        return ok(f"MIG is on: {count} part{'s' if count > 1 else ''}; a process uses one of them")
    return ok("MIG is off, or not on this GPU")


CHECK = Check("mig", "MIG: parts of a GPU", probe, judge, ("driver-library",))
