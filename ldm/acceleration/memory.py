"""The memory that freed tensors leave behind."""

import ctypes
import platform
from pathlib import Path

# mallopt's parameters, from glibc's malloc.h.
M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_THRESHOLD, M_MMAP_MAX = -1, -2, -3, -4
# glibc's own values: those it starts with, and those it arrives at with large blocks.
MMAP_MAX, MMAP_THRESHOLD_MAX = 65536, 32 << 20
TOP_PAD = 64 << 20
LARGE = 1 << 20


def keep_freed_memory() -> bool:
    """Let this process keep what it frees, for the next tensor of that size, instead of giving it to the system.

    glibc gives back what is free at the heap's end, and to fill new pages costs up to as long as a convolution over
    them. Blocks above 32 MB still have pages of their own: kept, they would leave the largest holes.
    Elsewhere than on glibc nothing is done.

    Returns:
        Whether the allocator was told.
    """
    return _tell_allocator(
        (M_MMAP_MAX, MMAP_MAX),
        (M_MMAP_THRESHOLD, MMAP_THRESHOLD_MAX),
        (M_TRIM_THRESHOLD, 2**31 - 1),
        (M_TOP_PAD, TOP_PAD),
    )


def map_large_blocks() -> bool:
    """Let every large block have pages of its own, which go back to the system when it is freed, and leave no holes.

    For what is to stay (weights) or where memory counts more than time; otherwise as `keep_freed_memory`.
    """
    return _tell_allocator((M_MMAP_MAX, MMAP_MAX), (M_MMAP_THRESHOLD, LARGE), (M_TRIM_THRESHOLD, LARGE), (M_TOP_PAD, 0))


def allocate_as_by_default() -> bool:
    """Undo what the functions above told the allocator; returns as `keep_freed_memory`."""
    thresholds = (M_MMAP_THRESHOLD, MMAP_THRESHOLD_MAX), (M_TRIM_THRESHOLD, 2 * MMAP_THRESHOLD_MAX)
    return _tell_allocator((M_MMAP_MAX, MMAP_MAX), *thresholds, (M_TOP_PAD, 0))


def _tell_allocator(*options: tuple[int, int]) -> bool:
    """Set parameters of glibc's malloc; returns whether all were taken."""
    if platform.libc_ver()[0] != "glibc":
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):
        return False
    answers = [mallopt(option, value) for option, value in options]
    return answers == [1] * len(options)


def peak_memory_text() -> str:
    """Return the most memory that torch has held at once on its card, or this process where it uses none, in words."""
    import torch

    held = torch.cuda.max_memory_allocated() if torch.cuda.is_initialized() else peak_memory()
    return f"{held / 1e9:.1f} GB"


def peak_memory() -> int:
    """Return the most bytes that this process has held at once, 0 where the system does not tell."""
    try:
        # `getrusage` would count what the parent held when it started this process.
        lines = Path("/proc/self/status").read_text().splitlines()
        return next(1024 * int(line.split()[1]) for line in lines if line.startswith("VmHWM:"))
    except (OSError, StopIteration):
        pass
    try:
        import resource
    except ImportError:  # Windows
        return 0
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if platform.system() == "Darwin" else 1024)
