"""Parts that all commands share: a parser whose mistakes are one line, types of arguments, and the exit status.

Nothing heavy is imported here (no torch, NumPy or OmegaConf), so that `--help` and a mistyped argument answer at once.
"""

import argparse
import contextlib
import errno
import io
import math
import os
import sys
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NoReturn

from util.errors import Terminated, UserError, is_out_of_memory, printable
from util.plugins import complaint
from util.processes import interruptible, wait_briefly

GO_ON = "interrupted: finished results are kept, and the same command continues from there"
OUT_OF_MEMORY = "out of memory; finished results are kept. low_memory=true and smaller pictures need less"


class Parser(argparse.ArgumentParser):
    """A parser whose mistakes are UserErrors: one line instead of the whole usage. Abbreviations are mistakes."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False, **kwargs)

    def _get_value(self, action: argparse.Action, arg_string: str) -> Any:
        if action.type is Path and not arg_string:  # which Path takes for the current folder
            raise argparse.ArgumentError(action, "expected a file or folder, got ''")
        return super()._get_value(action, arg_string)

    def _print_message(self, message: str, file: Any = None) -> None:
        if message:  # argparse would pass over an error here
            (file or sys.stderr).write(message)

    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message} (--help lists the arguments)")


def add_debug(parser: argparse._ActionsContainer) -> None:
    """Add `--debug`, which `exit_status` heeds."""
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")


def add_model(parser: argparse._ActionsContainer, default: Path | None = None) -> None:
    """Add the arguments that name a model: `diffusion_config`, which has to be given where there is no default; and
    `ldm_config`, None where the model tells it itself.
    """
    parser.add_argument(
        *("--model", "--diffusion_config"),
        dest="diffusion_config",
        required=default is None,
        default=default,
        type=Path,
        metavar="FILE|FOLDER|ID",
        help="a checkpoint, a folder in the diffusers layout, or the id of a model from the hub"
        + (f" (default: {default})" if default else ""),
    )
    parser.add_argument(
        "--ldm_config", type=Path, metavar="FILE", help="the model's architecture, if it is not recognised"
    )


def split_word(word: str) -> tuple[str, str]:
    """Split a setting on the command line, `key=value`, into its key and the text of its value.

    Raises:
        UserError: it is none.
    """
    key, equals, value = word.partition("=")
    if not (key and equals):
        raise UserError(f"{word!r} is neither an argument nor a setting: a setting reads key=value")
    return key, value


# Types of arguments: each turns a word into a value, or says what is expected.


def whole_number(least: int, most: int | None = None) -> Callable[[str], int]:
    """Return an argument type: a whole number from `least` to `most` (None: no limit)."""
    expected = f"a whole number, {least} or more" if most is None else f"a whole number from {least} to {most}"

    def convert(text: str) -> int:
        try:
            value = int(text)
        except ValueError:
            value = least - 1
        if value < least or (most is not None and value > most):
            raise argparse.ArgumentTypeError(f"expected {expected}, got {text!r}")
        return value

    return convert


def minutes(text: str) -> float:
    """Read an argument: a finite number of minutes, 0 or more."""
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value < math.inf:
        raise argparse.ArgumentTypeError(f"expected minutes, 0 or more, got {text!r}")
    return value


def shard(text: str) -> tuple[int, int]:
    """Read an argument `i/n`, with i from 1 to n."""
    try:
        part, parts = map(int, text.split("/"))
    except ValueError:
        part, parts = 0, 0
    if not 1 <= part <= parts:
        raise argparse.ArgumentTypeError(f"expected I/N, from 1/N to N/N, got {text!r}")
    return part, parts


def tiles(text: str) -> tuple[int, int]:
    """Read an argument `SIDE,OVERLAP`, two whole numbers."""
    try:
        side, overlap = map(int, text.split(","))
    except ValueError:
        raise argparse.ArgumentTypeError(f"expected SIDE,OVERLAP, two numbers of pixels, got {text!r}") from None
    return side, overlap


# How a command ends.


def exit_status(
    command: Callable[[argparse.Namespace], int | None],
    argv: Sequence[str] | None,
    parse: Callable[[Sequence[str]], argparse.Namespace],
    interrupted: str = "interrupted",
) -> int:
    """Run a command on its arguments, which `parse` makes of the words, and say how it went.

    Args:
        interrupted: the line after Ctrl-C and SIGTERM, which says how to continue where that is possible.

    Returns:
        The command's own status (None is 0); 0 for `--help`; 2 after a user's mistake or for want of memory, which is
        told in one line on stderr (`--debug` adds the traceback), as is what a plugin raises; 130 after Ctrl-C and 143
        after SIGTERM; 141, as by SIGPIPE, where the reader of stdout has closed it. Any other
        exception is a defect of the program and passes through.
    """
    words = sys.argv[1:] if argv is None else list(argv)
    wait_briefly()
    _open_streams()
    try:
        status = _status(command, words, parse, interrupted)
        sys.stdout.flush()
        return status
    except BrokenPipeError:  # a reader that has enough, such as `head -1`, is no mistake
        _drop_stdout()
        return 141
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EIO):
            raise
        _drop_stdout()
        return _say(f"error: cannot write: {error.strerror}", 2)


def _open_streams() -> None:
    """Make sure that whatever is printed can be.

    What is said on streams that whoever started the program has closed (`>&-`) is dropped: Python has none then, and
    the first file that is opened would take their place. A character that the terminal has none for becomes "?".
    """
    for stream in ("stdout", "stderr"):
        if getattr(sys, stream) is None:
            setattr(sys, stream, open(os.devnull, "w"))  # noqa: SIM115  (as long as the process)
    if isinstance(sys.stdout, io.TextIOWrapper) and sys.stdout.errors == "strict":  # of stderr they are escaped
        sys.stdout.reconfigure(errors="replace")


def _status(
    command: Callable[[argparse.Namespace], int | None],
    words: Sequence[str],
    parse: Callable[[Sequence[str]], argparse.Namespace],
    interrupted: str,
) -> int:
    """Run the command and return its status, before what it printed has reached its reader."""
    try:
        with interruptible():
            return command(parse(words)) or 0
    except SystemExit as leave:
        return int(leave.code or 0)
    except KeyboardInterrupt:
        return _say(interrupted, 130)
    except Terminated:
        return _say(interrupted, 143)
    except Exception as error:
        told = _told(error)
        if told is None:
            raise
        if "--debug" in words:
            traceback.print_exc()
        return _say(f"error: {printable(told)}", 2)


def _drop_stdout() -> None:
    """Drop what was printed and cannot be delivered, which Python would try again at its end."""
    with contextlib.suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _told(error: Exception) -> str | None:
    """Return the line that tells a person of an exception; None for a defect of the program."""
    if is_out_of_memory(error):
        return OUT_OF_MEMORY
    if isinstance(error, OSError) and error.filename is not None:  # of the world outside, and no defect
        return f"{str(error.filename)[:200]}: {error.strerror}"
    return str(error) if isinstance(error, UserError) else complaint(error)


def _say(line: str, status: int) -> int:
    with contextlib.suppress(OSError):  # where stderr cannot be written either, the status has to do
        sys.stderr.write(f"{line}\n")
    return status
