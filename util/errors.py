"""Exceptions that end an image or the command without being a defect of the program, and how they are shown."""


class UserError(ValueError):
    """A mistake in a user's input: a setting, a path, a file.

    The message says what is wrong, where, and how to correct it, in one line (two or three when there is more than one
    remedy). The command prints it on stderr without a traceback and exits with status 2.
    """


class ImageError(Exception):
    """One image cannot be restored, and others can: the command records why, and continues.

    Args:
        reason: why, in a line.
        step: the sampling step at which it showed; None before the first.
        sample: the image's position in a batch.
    """

    def __init__(self, reason: str, step: int | None = None, sample: int = 0) -> None:
        super().__init__(reason)
        self.reason, self.step, self.sample = reason, step, sample


class Terminated(BaseException):
    """The process was asked to end (SIGTERM). As KeyboardInterrupt, it passes handlers of Exception."""


NO_MEMORY = ("failed to map segment", "annot allocate memory")  # as the system and its loader of libraries say it


def is_out_of_memory(error: Exception) -> bool:
    """Tell by name and text, so that torch need not be imported for it."""
    if isinstance(error, OSError | ImportError) and any(words in str(error) for words in NO_MEMORY):
        return True
    return isinstance(error, MemoryError) or (
        isinstance(error, RuntimeError)
        and (type(error).__name__ == "OutOfMemoryError" or "DefaultCPUAllocator" in str(error))
    )


def printable(text: str) -> str:
    """Return text with control characters other than line ends escaped: files and words may hold a terminal's."""
    return "".join(char if char.isprintable() or char == "\n" else ascii(char)[1:-1] for char in text)
