"""Tensors in the pages of a memory-mapped file."""

import mmap
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, eq=False)
class StoredTensor:
    """A tensor of a file.

    Attributes:
        shape: its sides.
        read: reads it, to the CPU in the dtype it is stored in.
        release: gives the memory of the file's pages back; the tensor may still be used.
    """

    shape: tuple[int, ...]
    read: Callable[[], Tensor]
    release: Callable[[], None]


@dataclass(eq=False)
class Storage:
    """A flat run of numbers in a mapped file. In the legacy format its start is known only after the pickle."""

    buffer: mmap.mmap
    dtype: torch.dtype
    numel: int
    start: int | None = None

    @property
    def nbytes(self) -> int:
        return self.numel * self.dtype.itemsize

    def place(self, start: int) -> None:
        """Set the position of the first byte."""
        if start + self.nbytes > len(self.buffer):
            raise ValueError("the file ends in the middle of a tensor")
        self.start = start

    def view(self, offset: int, shape: tuple[int, ...], stride: tuple[int, ...]) -> Tensor:
        """Return a tensor in the file's own pages; a copy where they do not start at a multiple of the item size."""
        if 0 in shape:
            return torch.empty(shape, dtype=self.dtype)
        buffer, start = self.buffer, self.start
        if start % self.dtype.itemsize:
            buffer, start = bytearray(buffer[start : start + self.nbytes]), 0
        flat = torch.frombuffer(buffer, dtype=self.dtype, count=self.numel, offset=start)
        return flat.as_strided(shape, stride, offset)

    def release(self) -> None:
        """Give the pages back to the system, where it takes them; nobody writes to them, so they can be read again."""
        if hasattr(self.buffer, "madvise") and self.nbytes:
            first = self.start - self.start % mmap.PAGESIZE
            self.buffer.madvise(mmap.MADV_DONTNEED, first, self.start + self.nbytes - first)
