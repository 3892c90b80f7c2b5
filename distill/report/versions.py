"""The software that figures depend on."""

from __future__ import annotations

import platform
from importlib.metadata import version


def versions() -> dict[str, str]:
    """Python and the libraries that figures depend on."""
    names = ("dar-distill", "torch", "accelerate", "torch-fidelity", "lpips", "numpy")
    return {"python": platform.python_version(), **{name: version(name) for name in names}}
