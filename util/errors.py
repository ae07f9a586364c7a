"""The one exception class for mistakes that a user can mend, and how such are shown."""


class UserError(ValueError):
    """A mistake in a user's input: a setting, a path, a file.

    The message says what is wrong, where, and how to mend it, in one line (two or three when there is more than one
    remedy). The command prints it on stderr without a traceback and exits with status 2.
    """


def printable(text: str) -> str:
    """Return text with control characters other than line ends escaped: files and words may hold a terminal's."""
    return "".join(char if char.isprintable() or char == "\n" else ascii(char)[1:-1] for char in text)
