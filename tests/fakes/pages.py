"""Memory that comes from the system and goes back to it: malloc keeps what it once got."""

from __future__ import annotations

import mmap


def hold_pages(count: int) -> mmap.mmap:
    """``count`` bytes that are resident until the object is gone."""
    pages = mmap.mmap(-1, count)
    for start in range(0, count, mmap.PAGESIZE):
        pages[start] = 1
    return pages
