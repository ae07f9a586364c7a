"""The memory that freed tensors leave behind."""

import ctypes
import platform
from pathlib import Path

# mallopt's parameters, from glibc's malloc.h.
M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_MAX = -1, -2, -4
TOP_PAD = 64 << 20


def keep_freed_memory() -> bool:
    """Let this process keep what it frees, for the next tensor of that size, instead of giving it to the system.

    glibc maps blocks above 32 MB anew each time, and to fill new pages costs up to as long as a convolution over them.
    The process's peak stays; only what it holds between peaks grows. Elsewhere than on glibc nothing is done.

    Returns:
        Whether the allocator was told.
    """
    if platform.libc_ver()[0] != "glibc":
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):
        return False
    options = ((M_MMAP_MAX, 0), (M_TRIM_THRESHOLD, 2**31 - 1), (M_TOP_PAD, TOP_PAD))
    answers = [mallopt(option, value) for option, value in options]
    return answers == [1] * len(options)


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
