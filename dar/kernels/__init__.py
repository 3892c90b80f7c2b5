"""The fused routing kernels. Triton is imported here only, and only when a kernel is asked for."""

from __future__ import annotations

import os
from collections.abc import Sequence
from importlib.util import find_spec

import torch
from torch import Tensor

BACKENDS = ("auto", "torch", "triton")
MAX_SOURCES = 1024
DTYPES = (torch.float32, torch.bfloat16, torch.float16)
TRITON_INSTALLED = find_spec("triton") is not None


def choose_backend(backend: str, sources: Sequence[Tensor]) -> str:
    """ "torch" or "triton" for these sources; "auto" takes triton wherever it can run.

    Raises: ValueError for an unknown backend, or "triton" where it cannot run, with the reason.
    """
    if backend not in BACKENDS:
        raise ValueError(f"backend must be one of {', '.join(BACKENDS)}; got {backend!r}")
    if backend == "torch":
        return backend
    if backend == "auto":
        return "triton" if sources[0].is_cuda and obstacle(sources) is None else "torch"
    reason = obstacle(sources)
    if reason is not None:
        raise ValueError(f"backend 'triton' cannot run: {reason}")
    return backend


def obstacle(sources: Sequence[Tensor]) -> str | None:
    """Why the kernels cannot take these sources; None where they can."""
    if not TRITON_INSTALLED:
        return "the package triton is not installed"
    if not sources[0].is_cuda and os.environ.get("TRITON_INTERPRET") != "1":
        return f"sources are on {sources[0].device.type}; it takes cuda, or the cpu under TRITON_INTERPRET=1"
    if sources[0].dtype not in DTYPES:
        return f"sources are {sources[0].dtype}; it takes float32, bfloat16 and float16"
    if any(source.dtype != sources[0].dtype or source.device != sources[0].device for source in sources):
        return "sources differ in dtype or device"
    if len(sources) > MAX_SOURCES:
        return f"there are {len(sources)} sources; it takes at most {MAX_SOURCES}"
    return None


def in_kernel_dtype(value: Tensor) -> Tensor:
    """In autocast's dtype where it is on: the kernels take one dtype, and the embedding alone is not in it yet."""
    device = value.device.type
    return value.to(torch.get_autocast_dtype(device)) if torch.is_autocast_enabled(device) else value
