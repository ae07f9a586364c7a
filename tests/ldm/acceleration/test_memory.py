"""The allocator is told what it should be, and nothing happens where it cannot be."""

import ctypes
import platform
import subprocess
import sys

import pytest

from ldm.acceleration.memory import keep_freed_memory, peak_memory

# Each case in a process of its own, forked once torch is imported: the functions it calls, and the entries of a tensor.
PROGRAM = """
import os, resource, sys, torch
from ldm.acceleration import memory
torch.set_num_threads(1)
for case in sys.argv[1:]:
    sys.stdout.flush()
    if os.fork() == 0:
        entries, *told = case.split()
        for name in told: getattr(memory, name)()
        for i in range(16):
            if i == 12: before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
            x = [torch.ones(int(entries)) for _ in range(4)]
            del x
        print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before, flush=True)
        os._exit(0)
    os.wait()
"""
SMALL, MIDDLE, LARGE = 1_000_000, 5_000_000, 10_000_000  # entries: of 4, 20 and 40 MB


def page_faults(*cases: str) -> list[int]:
    """Page faults of each case (entries and functions) in the last 4 of 16 rounds, each of which fills 4 tensors.

    A heap that keeps what is freed takes up to five rounds to settle: until then a hole may be a few bytes too small.
    """
    done = subprocess.run([sys.executable, "-c", PROGRAM, *cases], check=True, capture_output=True, text=True)
    return [int(line) for line in done.stdout.split()]


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="needs glibc")
def test_freed_memory_is_used_again_without_page_faults():
    told = ("keep_freed_memory map_large_blocks", "keep_freed_memory", "map_large_blocks keep_freed_memory")
    anew, *kept = page_faults(*(f"{MIDDLE} {names}" for names in told))
    # Four times four tensors of 20 MB are 78,000 pages of 4 kB, or 152 of 2 MB, where each is mapped anew.
    assert anew > 120
    assert max(kept) < 0.1 * anew


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="needs glibc")
def test_by_default_blocks_below_32_mb_are_kept_and_larger_ones_are_mapped_anew():
    small, large, small_by_default, large_by_default = page_faults(
        f"{SMALL} map_large_blocks",
        f"{LARGE} map_large_blocks",
        f"{SMALL} map_large_blocks allocate_as_by_default",
        f"{LARGE} keep_freed_memory allocate_as_by_default",
    )
    assert small_by_default < 0.1 * small
    assert large_by_default > 0.9 * large


@pytest.mark.parametrize("missing", ["libc", "mallopt", "library"])
def test_elsewhere_nothing_is_done(monkeypatch, missing):
    monkeypatch.setattr(platform, "libc_ver", lambda: ("", "") if missing == "libc" else ("glibc", "2.36"))

    def load(_):
        if missing == "library":
            raise OSError
        return object()

    monkeypatch.setattr(ctypes, "CDLL", load)
    assert keep_freed_memory() is False


def test_peak_memory_grows_with_what_is_held():
    before = peak_memory()
    block = bytearray(b"x") * (before + (32 << 20))
    assert peak_memory() >= before + (32 << 20)
    del block
