"""How the C library deals with the memory of tensors on a CPU."""

from __future__ import annotations

import ctypes
import sys

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # of malloc.h
LARGEST_KEPT = 2**30  # bytes; a larger tensor still gets pages of its own


def keep_freed_memory() -> None:
    """Let this process keep what it frees, where the C library is glibc; elsewhere nothing is done.

    Every training step allocates the same tensors again. By default glibc hands large ones back to the system,
    and the first touch of a fresh page costs more than the arithmetic that fills it. What the process holds stays at
    its peak until it ends.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt is not None:
        mallopt(M_MMAP_THRESHOLD, LARGEST_KEPT)
        mallopt(M_TRIM_THRESHOLD, 2**31 - 1)
