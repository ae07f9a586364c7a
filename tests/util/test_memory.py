"""What the allocator is told, and that nothing happens where it cannot be."""

import ctypes
import platform
import subprocess
import sys

import pytest

from util.memory import keep_freed_memory, peak_memory

PROGRAM = """
import resource, torch
from util import memory
for name in {told}: getattr(memory, name)()
torch.set_num_threads(1)
for i in range(20):
    if i == 10: before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    x = [torch.ones({entries}) for _ in range(4)]
    del x
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def page_faults(*told: str, entries: int = 5_000_000) -> int:
    words = [sys.executable, "-c", PROGRAM.format(told=told, entries=entries)]
    return int(subprocess.run(words, check=True, capture_output=True, text=True).stdout)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="needs glibc")
def test_freed_memory_is_used_again_without_page_faults():
    # 10 times four tensors of 20 MB are 195,000 pages of 4 kB, or 380 of 2 MB, where each is mapped anew.
    anew = page_faults("keep_freed_memory", "map_large_blocks")
    assert anew > 300
    for told in (["keep_freed_memory"], ["map_large_blocks", "keep_freed_memory"]):
        assert page_faults(*told) < 0.1 * anew


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="needs glibc")
def test_by_default_blocks_below_32_mb_are_kept_and_larger_ones_are_mapped_anew():
    small, large = 1_000_000, 10_000_000
    anew = {entries: page_faults("map_large_blocks", entries=entries) for entries in (small, large)}
    assert page_faults("map_large_blocks", "allocate_as_by_default", entries=small) < 0.1 * anew[small]
    assert page_faults("keep_freed_memory", "allocate_as_by_default", entries=large) > 0.9 * anew[large]


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
