"""The C allocator's settings for streaming: freed blocks are kept, because page faults cost more than arithmetic."""

from __future__ import annotations

import ctypes
import functools

__all__ = ["keep_freed_memory"]

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD, _M_ARENA_MAX = -1, -3, -8
_LARGEST_KEPT = 32 << 20  # glibc's own upper limit for the mmap threshold


@functools.cache
def keep_freed_memory() -> None:
    """Serve allocations up to 32 MB from memory that was freed before, instead of fresh pages (glibc only).

    A run's temporaries are all of one block's size, so what is kept is what the next block needs.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):
        return
    mallopt(_M_ARENA_MAX, 1)  # the arenas of threads give large blocks back whatever the thresholds say
    mallopt(_M_MMAP_THRESHOLD, _LARGEST_KEPT)
    mallopt(_M_TRIM_THRESHOLD, 8 * _LARGEST_KEPT)
