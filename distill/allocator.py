"""How the C library deals with the memory of tensors on a CPU. Where it is not glibc, nothing is done."""

from __future__ import annotations

import ctypes
import sys

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # of malloc.h
LARGEST_KEPT = 2**30  # bytes; a larger tensor still gets pages of its own


def keep_freed_memory() -> None:
    """Let this process keep what it frees.

    Every training step allocates the same tensors again. By default glibc hands large ones back to the system,
    and the first touch of a fresh page costs more than the arithmetic that fills it.
    """
    _call("mallopt", M_MMAP_THRESHOLD, LARGEST_KEPT)
    _call("mallopt", M_TRIM_THRESHOLD, 2**31 - 1)


def give_back_freed_memory() -> None:
    """Hand what this process has freed back to the system, once.

    For after what is rare and large, such as drawing pictures: what it left would never be touched again, and of many
    such gaps the heap grows over hours.
    """
    _call("malloc_trim", 0)


def _call(name: str, *values: int) -> None:
    function = getattr(ctypes.CDLL(None), name, None) if sys.platform == "linux" else None
    if function is not None:
        function(*values)
