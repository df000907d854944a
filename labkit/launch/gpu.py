"""Which of the host's GPUs a lab gets: `GPUS=all|0,1|GPU-uuid|MIG-uuid`, held against the facts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from labkit.errors import DeviceMissingError, UsageError
from labkit.host.gpu import Gpu, GpuFacts

ALL_GPUS = ("all",)


@dataclass(frozen=True)
class GpuSelection:
    """GPUs of a host, and the words an engine is asked for them by.

    The words are "all", indices, and UUIDs of parts: every CDI specification has indices, and
    only newer ones have the UUIDs of whole GPUs.
    """

    gpus: tuple[Gpu, ...]
    words: tuple[str, ...]

    def narrow(self, served: Sequence[Gpu]) -> GpuSelection:
        """The same without the GPUs that are not in ``served``."""
        if len(served) == len(self.gpus):
            return self
        return GpuSelection(tuple(served), tuple(str(gpu.index) for gpu in served))


def parse_gpus(text: str | None) -> tuple[str, ...]:
    """The words in `GPUS=`; empty where it was left out.

    Raises UsageError for words that name no GPU.
    """
    if text is None or text == "all":
        return ALL_GPUS if text else ()
    words = tuple(word.strip() for word in text.split(",") if word.strip())
    for word in words or ("",):
        if not (word.isdecimal() or word.startswith(("GPU-", "MIG-"))):
            raise UsageError(
                f"GPUS={text} names no GPU",
                cause=f"{word!r} is neither an index (0,1) nor a UUID (GPU-..., MIG-...), nor all",
                fix="nvidia-smi -L   # lists both",
            )
    return tuple(dict.fromkeys(words))


def select_gpus(asked: tuple[str, ...], facts: GpuFacts) -> GpuSelection:
    """The host's GPUs that were asked for.

    Raises DeviceMissingError, with the list of those that are there, for one that is not. A host
    that does not list its GPUs is taken at the word.
    """
    if asked in ((), ALL_GPUS):
        return GpuSelection(facts.gpus, ALL_GPUS)
    if not facts.gpus:
        return GpuSelection((), asked)
    found = [_find_gpu(word, facts.gpus) for word in asked]
    words = tuple(dict.fromkeys(word for _, word in found))
    return GpuSelection(tuple(dict.fromkeys(gpu for gpu, _ in found)), words)


def _find_gpu(word: str, gpus: Sequence[Gpu]) -> tuple[Gpu, str]:
    """The GPU that the word names, and the engine's word for it."""
    if word.startswith("MIG-"):
        parts = [(gpu, part) for gpu in gpus for part in gpu.parts if part.startswith(word)]
        if len(parts) == 1:
            return parts[0]
        raise _refuse_gpu(word, gpus)
    whole = [gpu for gpu in gpus if word == str(gpu.index) or _starts(gpu.uuid, word)]
    if len(whole) == 1:
        return whole[0], str(whole[0].index)
    raise _refuse_gpu(word, gpus)


def _starts(uuid: str | None, word: str) -> bool:
    return word.startswith("GPU-") and bool(uuid) and str(uuid).startswith(word)


def _refuse_gpu(word: str, gpus: Sequence[Gpu]) -> DeviceMissingError:
    lines = []
    for gpu in gpus:
        lines.append(f"{gpu.index} {gpu.name}" + (f" ({gpu.uuid})" if gpu.uuid else ""))
        lines += gpu.parts
    return DeviceMissingError(
        f"this host has no GPU {word}",
        cause=f"it has: {'; '.join(lines)}",
        fix=f"make up GPUS={gpus[0].index}",
    )
