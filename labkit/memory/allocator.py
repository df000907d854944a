"""What torch's allocators hold, asked only where torch is loaded and has started CUDA already.

Nothing here imports torch or makes a CUDA context: to report memory by taking several hundred
megabytes of it (pytorch#86493) would be to change what is read.
"""

from __future__ import annotations

import gc
import sys
from typing import Any, NamedTuple


class AllocatorFacts(NamedTuple):
    """One CUDA (or ROCm) device as torch sees it, in bytes.

    ``total_bytes`` and ``free_bytes`` are None where asking would make a context. ``unified``:
    the GPU has no memory of its own, and uses the machine's.
    """

    torch_name: str
    uuid: str | None
    name: str
    allocated_bytes: int
    reserved_bytes: int
    unified: bool = False
    total_bytes: int | None = None
    free_bytes: int | None = None


def find_started_torch() -> Any:
    """The torch module where this process has loaded it and CUDA has been started, else None."""
    torch = sys.modules.get("torch")
    cuda = getattr(torch, "cuda", None)
    is_initialized = getattr(cuda, "is_initialized", None)
    return torch if is_initialized is not None and is_initialized() else None


def read_allocators(torch: Any = None) -> tuple[AllocatorFacts, ...]:
    """Every device that torch can use, with what its allocator holds; () before CUDA is started."""
    torch = torch or find_started_torch()
    if torch is None:
        return ()
    return tuple(_read_allocator(torch, index) for index in range(torch.cuda.device_count()))


def _read_allocator(torch: Any, index: int) -> AllocatorFacts:
    properties = torch.cuda.get_device_properties(index)
    uuid = getattr(properties, "uuid", None)
    reserved = torch.cuda.memory_reserved(index)
    # mem_get_info makes a context where there is none. What the allocator holds proves one.
    free, total = torch.cuda.mem_get_info(index) if reserved else (None, None)
    return AllocatorFacts(
        torch_name=f"cuda:{index}",
        uuid=str(uuid) if uuid is not None else None,
        name=properties.name,
        allocated_bytes=torch.cuda.memory_allocated(index),
        reserved_bytes=reserved,
        unified=bool(getattr(properties, "is_integrated", 0)),
        total_bytes=total,
        free_bytes=free,
    )


def count_cpu_tensors() -> int | None:
    """Bytes of the CPU tensors that Python objects hold, each storage once; 0 without torch.

    What only torch's own graph holds (saved for backward) is not seen. None where torch is being
    imported just now. Takes about 0.1 us for each object that Python's collector tracks.
    """
    torch = sys.modules.get("torch")
    if torch is None:
        return 0
    tensor = getattr(torch, "Tensor", None)
    if tensor is None:
        return None
    # By type() and not isinstance(): that would wake lazy proxies, which import things.
    tensors = [held for held in gc.get_objects() if issubclass(type(held), tensor)]
    # Subclasses can put code of their own behind every attribute; a lazy module's parameter raises.
    with torch._C.DisableTorchFunctionSubclass():
        return sum(dict(filter(None, map(_measure_storage, tensors))).values())


def _measure_storage(tensor: Any) -> tuple[int, int] | None:
    """The address and the bytes of a CPU tensor's storage; None for one that has none."""
    try:
        if tensor.device.type != "cpu":
            return None
        storage = tensor.untyped_storage()
        if storage.device.type != "cpu":
            return None  # a fake tensor, which has no memory
        return storage.data_ptr(), storage.nbytes()
    except (RuntimeError, NotImplementedError):
        return None  # sparse and functional tensors have no storage to speak of
