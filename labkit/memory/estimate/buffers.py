"""Objects that are memory: arrays, buffers, mapped files and what processes share.

A simulated step may write numbers of its own into one. Small ones are copied and put back; of
larger ones a checksum is kept, and what has changed is named.
"""

from __future__ import annotations

import array
import ctypes
import functools
import mmap
import sys
import zlib
from collections.abc import Callable
from typing import Any

# The largest that is copied, and the most that is copied, and looked at, in all.
MOST_BYTES, ALL_BYTES, LOOKED_BYTES = 2**24, 2**26, 2**28
# Of more than that, parts of this size are looked at: its ends, and these many between.
PART_BYTES, PARTS = 2**20, 64
# The objects of a longer array are not looked at.
MOST_ITEMS = 10_000
STREAMS = ("stdout", "stderr", "__stdout__", "__stderr__")
# The kinds of C's numbers, which point to nothing.
NUMBERS = frozenset("?cbBhHiIlLqQfdgu")


class KeptBuffers:
    """Copies and checksums of buffers; ``changed`` has what cannot be put back, in words."""

    def __init__(self) -> None:
        self._copied = self._looked = 0
        # What sees whether a buffer has changed, and what it is called.
        self._sums: list[tuple[Callable[[], int], int, str]] = []

    def may_copy(self, count: int) -> bool:
        """True where that many bytes more may be copied."""
        fits = count <= MOST_BYTES and self._copied + count <= ALL_BYTES
        self._copied += count if fits else 0
        return fits

    def look(self, one: Any, count: int, name: str) -> None:
        """Keeps a checksum of what is not copied; of very large ones, that of some parts."""
        whole = self._looked + count <= LOOKED_BYTES
        self._looked += count if whole else 0
        compute = functools.partial(_add_up, one, whole=whole)
        self._sums.append((compute, compute(), f"{name} of {count} bytes"))

    def list_changed(self) -> list[str]:
        """What has changed of that, in words."""
        found = []
        for compute, before, name in self._sums:
            try:
                same = compute() == before
            except (ValueError, BufferError):  # closed meanwhile
                continue
            found += [] if same else [name]
        return found


def _add_up(one: Any, *, whole: bool) -> int:
    """A checksum that sees where bytes are, not only which."""
    with memoryview(one) as view, view.cast("B") as data:
        if whole:
            return zlib.adler32(data)
        found, last = 1, len(data) - PART_BYTES
        for part in range(PARTS + 1):
            start = last * part // PARTS
            found = zlib.adler32(data[start : start + PART_BYTES], found)
        return found


def keep_array(kept: Any, one: Any) -> None:
    """Keeps an array of NumPy."""
    if not one.flags.writeable or not one.size:
        return
    if one.dtype.hasobject and one.size <= MOST_ITEMS:
        kept.follow(one.ravel().tolist())
    if kept.buffers.may_copy(one.nbytes):
        kept.keep(restore_array, one, one.copy())
    elif one.flags.c_contiguous and not one.dtype.hasobject:
        kept.buffers.look(one.view("uint8"), one.nbytes, "an array")


def restore_array(one: Any, content: Any) -> None:
    """Gives an array of NumPy its numbers back, and its shape."""
    one.flags.writeable = True
    if one.shape != content.shape:
        one.shape = content.shape
    if not _are_equal(one, content):
        one[...] = content


def _are_equal(one: Any, other: Any) -> bool:
    """True if two arrays have the same bytes; numbers that are not numbers are equal too."""
    if one.ndim and one.flags.c_contiguous and not one.dtype.hasobject:
        return bool((one.view("uint8") == other.view("uint8")).all())
    return bool(one.tobytes() == other.tobytes())


def keep_numbers(kept: Any, one: Any) -> None:
    """Keeps a ``bytearray`` or an ``array.array``."""
    count = len(one) * getattr(one, "itemsize", 1)
    if kept.buffers.may_copy(count):
        kept.keep(restore_numbers, one, one[:])
    else:
        kept.buffers.look(one, count, f"a {type(one).__name__}")


def restore_numbers(one: Any, content: Any) -> None:
    """Gives a ``bytearray`` or an ``array.array`` its numbers back."""
    if len(one) != len(content) or bytes(one) != bytes(content):
        one[:] = content


def keep_text(kept: Any, one: Any) -> None:
    """Keeps a ``StringIO`` or a ``BytesIO``, except where the step prints."""
    if one.closed or any(one is getattr(sys, name) for name in STREAMS):
        return
    kept.keep(restore_text, one, (one.getvalue(), one.tell()))


def restore_text(one: Any, content: tuple[Any, int]) -> None:
    """Gives a ``StringIO`` or a ``BytesIO`` its content and its place back."""
    text, place = content
    if one.getvalue() != text:
        one.seek(0)
        one.truncate()
        one.write(text)
    one.seek(place)


def keep_mapped(kept: Any, one: Any) -> None:
    """Keeps a mapped file."""
    if one.closed:
        return
    with memoryview(one) as view:
        count, readonly = view.nbytes, view.readonly
    if readonly or kept.buffers.may_copy(count):
        kept.keep(restore_mapped, one, (None if readonly else one[:], one.tell()))
    else:
        kept.buffers.look(one, count, "a mapped file")


def restore_mapped(one: Any, content: tuple[bytes | None, int]) -> None:
    """Gives a mapped file its bytes and its place back."""
    data, place = content
    if data is not None and one[:] != data:
        one[:] = data
    one.seek(place)


def keep_shared(kept: Any, one: Any) -> None:
    """Keeps numbers of C's, such as those that ``multiprocessing.Value`` shares."""
    count = ctypes.sizeof(one)
    if count and _has_numbers(one.__class__) and kept.buffers.may_copy(count):
        kept.keep(restore_shared, one, ctypes.string_at(ctypes.addressof(one), count))


@functools.lru_cache(maxsize=1024)
def _has_numbers(kind: Any) -> bool:
    """True for a type of C's without pointers."""
    if issubclass(kind, ctypes.Array):
        return _has_numbers(kind._type_)
    if issubclass(kind, ctypes.Structure | ctypes.Union):
        return all(_has_numbers(field[1]) for field in getattr(kind, "_fields_", ()))
    code = getattr(kind, "_type_", None)
    return isinstance(code, str) and code in NUMBERS


def restore_shared(one: Any, content: bytes) -> None:
    """Gives numbers of C's their bytes back."""
    place = ctypes.addressof(one)
    if ctypes.string_at(place, len(content)) != content:
        ctypes.memmove(place, content, len(content))


SHARED: tuple[Any, ...] = (
    ctypes._SimpleCData, ctypes.Array, ctypes.Structure, ctypes.Union,
)  # fmt: skip
NUMBERED: tuple[Any, ...] = (bytearray, array.array)
MAPPED: Any = mmap.mmap
