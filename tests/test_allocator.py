"""Freed memory is used again."""

from __future__ import annotations

import os
import platform
import subprocess
import sys

import pytest

FAULTS = """
import resource, torch
from distill.cli.allocator import keep_freed_memory
{setting}
def touch():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    [torch.ones(10 * 2**20) for _ in range(4)]  # larger than what glibc learns to keep by itself
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
print([touch() for _ in range(8)][-1])
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="the C library is not glibc")
def test_tensors_of_a_size_that_was_freed_need_no_fresh_pages() -> None:
    faults = {}
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("MALLOC_", "GLIBC_"))}
    for setting in ("", "keep_freed_memory()"):
        script = FAULTS.format(setting=setting)
        done = subprocess.run(
            [sys.executable, "-c", script], env=environment, capture_output=True, text=True, check=True
        )
        faults[setting] = int(done.stdout)
    assert faults["keep_freed_memory()"] < 100 < faults[""]
