"""Freed memory is used again, until it is asked for."""

from __future__ import annotations

import os
import platform
import subprocess
import sys

import pytest

FAULTS = """
import resource, torch
from distill.allocator import keep_freed_memory
{setting}
def touch():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    [torch.ones(10 * 2**20) for _ in range(4)]  # larger than what glibc learns to keep by itself
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
print([touch() for _ in range(8)][-1])
"""


HELD = """
import os, torch
from distill.allocator import give_back_freed_memory, keep_freed_memory
def held():
    return int(open("/proc/self/statm").read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
keep_freed_memory()
parts = [torch.ones(10 * 2**20) for _ in range(8)]
above = torch.ones(1)
del parts
before = held()
give_back_freed_memory()
print(before - held())
"""


needs_glibc = pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="the C library is not glibc")


@needs_glibc
def test_tensors_of_a_size_that_was_freed_need_no_fresh_pages() -> None:
    assert number_of(FAULTS.format(setting="keep_freed_memory()")) < 100 < number_of(FAULTS.format(setting=""))


@needs_glibc
def test_freed_memory_is_given_back_when_asked() -> None:
    assert number_of(HELD) > 7 * 40 * 2**20


def number_of(script: str) -> int:
    """What a process of its own prints."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("MALLOC_", "GLIBC_"))}
    done = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True, check=True)
    return int(done.stdout)
