"""Versions of software that can change results."""

from __future__ import annotations

import platform
from importlib.metadata import version


def versions() -> dict[str, str]:
    """Versions of Python and of the libraries that can change results."""
    names = ("dar-distill", "torch", "accelerate", "torch-fidelity", "lpips", "numpy")
    return {"python": platform.python_version(), **{name: version(name) for name in names}}
