"""Random numbers as a function of what they are for.

Every draw comes from a fresh CPU generator seeded by (seed, purpose, counters). A run that is resumed, split
over processes or accumulated over micro-batches therefore sees the same numbers, and there is no generator
state to save.
"""

from __future__ import annotations

import hashlib

import torch


def generator_for(seed: int, *purpose: str | int) -> torch.Generator:
    """A CPU generator for one purpose, such as `generator_for(seed, "student", step)`."""
    digest = hashlib.sha256(repr((seed, *purpose)).encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:7], "little"))
