"""The command's arguments and its exit status.

Nothing heavy is imported here (no torch, NumPy or OmegaConf), so that `--help` and a mistyped argument answer at once.
"""

import argparse
import contextlib
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NoReturn

from util.argument_types import minutes, shard, whole_number
from util.errors import Terminated, UserError, is_out_of_memory, printable
from util.plugins import complaint
from util.processes import local_rank
from util.registry import unknown

DESCRIPTION = """\
Restore images with a latent diffusion model: degrade each picture as the task says (or read a measurement back),
sample a latent that explains it, and write what came out."""

EXAMPLES = """\
settings:
  defaults (those of the published code) < task file < preset < key=value words and arguments given here.
  A word names a setting by its dotted path, as in  measurement.noise.sigma=0.05  conditioning.resample.interval=20
  low_memory=true computes the decoder's blocks twice instead of keeping them; compile=true fuses operations, which
  takes minutes at the start (and a C++ compiler, or Triton on a card).

examples:
  # the demo model, on the faces that come with the project
  python sample_condition.py --ldm_config configs/latent-diffusion/demo-ldm-vq-4.yaml \\
      --diffusion_config models/demo/model.safetensors --task_config configs/tasks/demo/inpainting.yaml \\
      --preset demo --limit 2 --save_dir results/inpainting

  # the published model and task (fetch the weights first: bash scripts/download_models.sh)
  python sample_condition.py --task_config configs/tasks/super_resolution_config.yaml --data data/samples

  # a run once more, from what its folder says
  python sample_condition.py --from results/inpainting --save_dir results/again

  # what would be done, and what it would cost; nothing is written and no weights are needed
  python sample_condition.py --task_config configs/tasks/motion_deblur_config.yaml --preset paper --dry_run
"""

GO_ON = "interrupted: what is finished stays, and the same command goes on from there"
OUT_OF_MEMORY = "out of memory; what is finished stays. low_memory=true takes less, and so do smaller pictures"


class Parser(argparse.ArgumentParser):
    """A parser whose mistakes are UserErrors: one line instead of the whole usage. Abbreviations are mistakes."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False, **kwargs)

    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message} (--help lists the arguments)")


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of `sample_condition.py`. Arguments that a task or preset may also set default to None."""
    parser = Parser(prog="sample_condition.py", description=DESCRIPTION, epilog=EXAMPLES)
    _add_inputs(parser.add_argument_group("what to restore"))
    _add_model(parser.add_argument_group("model"))
    _add_solver(parser.add_argument_group("solver"))
    _add_run(parser.add_argument_group("run"))
    parser.add_argument("settings", nargs="*", metavar="key=value", help="any setting, by its dotted path")
    return parser


def add_debug(parser: argparse._ActionsContainer) -> None:
    """Add `--debug`, which `exit_status` heeds."""
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")


def _add_inputs(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--task_config",
        type=Path,
        default=Path("configs/tasks/gaussian_deblur_config.yaml"),
        help="what is to be solved: operator, noise, data (default: %(default)s)",
    )
    group.add_argument(
        "--from",
        dest="from_run",
        type=Path,
        metavar="DIR",
        help="repeat the run in this folder, with all its settings; arguments and words given beside it change them",
    )
    group.add_argument(
        "--plugin",
        action="append",
        default=[],
        metavar="FILE",
        help="run this Python file first: it registers operators, noises or other parts of your own "
        "(docs/OPERATORS.md); may be given several times. With --from: the same files, unchanged",
    )
    group.add_argument(
        "--data",
        metavar="DIR|FILE",
        help="pictures to restore, instead of the task's data.root: a folder, a picture, or a .txt file that names one "
        "on each line, relative to its own folder",
    )
    group.add_argument("--limit", type=whole_number(1), metavar="N", help="only the first N pictures")
    group.add_argument(
        "--resize",
        choices=["error", "center_crop", "resize", "pad"],
        default="error",
        help="what to do with a picture whose size does not fit the model; pad restores it with a border that is cut "
        "off again (default: %(default)s)",
    )
    group.add_argument(
        "--measurement",
        type=Path,
        metavar="FILE|DIR",
        help="restore this instead of degrading pictures: a degraded picture, a .npy (floats in [-1, 1], uint8 or 16) "
        "or .safetensors file, or a folder of such; there is no truth then. An earlier run's label/ folder: exactly "
        "its measurements again",
    )


def _add_model(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--ldm_config",
        type=Path,
        default=Path("configs/latent-diffusion/ffhq-ldm-vq-4.yaml"),
        help="the model's architecture (default: %(default)s)",
    )
    group.add_argument(
        "--diffusion_config",
        type=Path,
        default=Path("models/ldm/model.ckpt"),
        help="its weights: .ckpt, .pt, .pth or .safetensors (default: %(default)s)",
    )
    group.add_argument("--model_config", help="accepted as in the published code, and as there not used")
    group.add_argument(
        "--device", choices=["auto", "cpu", "cuda", "mps"], default="auto", help="(default: %(default)s)"
    )
    group.add_argument(
        "--gpu",
        type=whole_number(0),
        default=local_rank(),
        metavar="N",
        help="which card, where the device is one (default: each process's own under torchrun, else 0)",
    )
    group.add_argument(
        "--precision",
        choices=["fp32", "tf32", "bf16", "fp16"],
        help="arithmetic of the networks; all else is fp32 (default: fp32, or the preset's)",
    )


def _add_solver(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--preset", metavar="NAME|FILE", help="solver settings: a name in configs/presets, or a YAML file"
    )
    group.add_argument(
        "--ddim_steps", type=int, metavar="S", help="sampling steps, 1 to 1000 (default: 500, or the preset's)"
    )
    group.add_argument(
        "--ddim_eta",
        type=float,
        metavar="ETA",
        help="noise in each step: 0 deterministic, 1 ancestral (default: 0.0, or the preset's)",
    )
    group.add_argument(
        "--ddim_scale",
        type=float,
        metavar="SCALE",
        help="classifier-free guidance, for class-conditional models; 1 is none (default: 1.0, or the preset's)",
    )
    group.add_argument(
        "--class_label",
        metavar="N|NAME",
        help="the class that a class-conditional model is asked for; names are those in a text file beside its "
        "configuration, MODEL.classes.txt, where line n is class n - 1",
    )
    group.add_argument(
        "--n_samples_per_class",
        type=whole_number(1),
        default=1,
        metavar="N",
        help="restorations of each measurement (default: %(default)s)",
    )


def _add_run(group: argparse._ArgumentGroup) -> None:
    group.add_argument("--save_dir", type=Path, default=Path("./results"), help="where results go (default: ./results)")
    group.add_argument(
        "--seed", type=whole_number(0), default=0, metavar="N", help="of everything random (default: %(default)s)"
    )
    group.add_argument(
        "--batch_size",
        type=whole_number(1),
        default=1,
        metavar="N",
        help="restore N images of the same size at once, each as it would be alone but for rounding; pays on a card. "
        "Where memory is short, it is halved (default: %(default)s)",
    )
    group.add_argument(
        "--threads",
        type=whole_number(1, 1024),
        metavar="N",
        help="processor threads; a result depends on their number (default: as in save_dir, or else torch's own)",
    )
    group.add_argument(
        "--checkpoint_minutes",
        type=minutes,
        default=5.0,
        metavar="M",
        help="how often the state of an image in progress is saved; 0 never does (default: 5)",
    )
    group.add_argument(
        "--overwrite",
        action="store_true",
        help="where save_dir holds results by other settings, delete them (default: refuse); by the same, go on",
    )
    group.add_argument(
        "--skip_bad",
        action="store_true",
        help="go on without pictures that cannot be read or do not fit; failed.csv names them",
    )
    group.add_argument(
        "--shard",
        type=shard,
        metavar="I/N",
        help="only the I-th of N parts of the pictures, for job arrays; the N jobs share one save_dir",
    )
    group.add_argument("--dry_run", action="store_true", help="show settings, inputs and cost; write nothing")
    add_debug(group)
    loudness = group.add_mutually_exclusive_group()
    loudness.add_argument("--verbose", action="store_true", help="say more")
    loudness.add_argument("--quiet", action="store_true", help="only warnings and the table")


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Read the command line.

    Args:
        argv: the words after the program's name; None reads `sys.argv`.

    Returns:
        The arguments; `settings` holds the key=value words as (key, value text) pairs, in their order.

    Raises:
        UserError: an unknown argument (the nearest known one is offered), a value of the wrong type or range, or no run
            in `--from`'s folder.
        SystemExit: `--help`.
    """
    parser = build_parser()
    args, extra = parser.parse_known_intermixed_args(argv)
    if extra:
        raise unknown("argument", extra[0].partition("=")[0], _option_names(parser))
    if args.from_run is not None:
        args = _repeat(parser, args.from_run, argv)
    args.settings = [split_word(word) for word in args.settings]
    return args


def _repeat(parser: argparse.ArgumentParser, run: Path, argv: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line anew, with the arguments of the run in a folder for defaults."""
    from util.record import recorded_arguments, recorded_plugins  # need YAML

    recorded = recorded_arguments(run)
    parser.set_defaults(**recorded)
    args = parser.parse_intermixed_args(argv)
    for key in ("task_config", "preset"):
        if str(getattr(args, key)) != str(recorded[key]):
            raise UserError(f"--{key} and --from exclude each other: words such as ddim_steps=20 change a repeated run")
    if missing := [path for path in recorded_plugins(run) if path not in args.plugin]:
        # A folder may come from anyone: code is run only where the command line says so.
        given = " ".join(f"--plugin {path}" for path in missing)
        raise UserError(f"the run in {run} had code of its own; to run that again, say so: {given}")
    return args


def _option_names(parser: argparse.ArgumentParser) -> list[str]:
    return [name for action in parser._actions for name in action.option_strings if name.startswith("--")]


def split_word(word: str) -> tuple[str, str]:
    """Split a setting on the command line, `key=value`, into its key and the text of its value.

    Raises:
        UserError: it is none.
    """
    key, equals, value = word.partition("=")
    if not (key and equals):
        raise UserError(f"{word!r} is neither an argument nor a setting: a setting reads key=value")
    return key, value


def exit_status(
    command: Callable[[argparse.Namespace], int | None],
    argv: Sequence[str] | None = None,
    parse: Callable[[Sequence[str]], argparse.Namespace] = parse_args,
    interrupted: str = "interrupted",
) -> int:
    """Run a command on its arguments, which `parse` makes of the words, and say how it went.

    Args:
        interrupted: the line after Ctrl-C and SIGTERM, which says how to go on where that is possible.

    Returns:
        The command's own status (None is 0); 0 for `--help`; 2 after a user's mistake or for want of memory, which is
        told in one line on stderr (`--debug` adds the traceback), as is what a plugin raises; 130 after Ctrl-C and 143
        after SIGTERM. Any other exception is a defect of the program and passes through.
    """
    words = sys.argv[1:] if argv is None else list(argv)
    try:
        with _termination_as_exception():
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


def _told(error: Exception) -> str | None:
    """What a person is told of an exception; None for a defect of the program."""
    if is_out_of_memory(error):
        return OUT_OF_MEMORY
    return str(error) if isinstance(error, UserError) else complaint(error)


def _say(line: str, status: int) -> int:
    sys.stderr.write(f"{line}\n")
    return status


@contextlib.contextmanager
def _termination_as_exception() -> Iterator[None]:
    """Raise Terminated in the block at SIGTERM, where signals can be handled (in a process's main thread)."""

    def terminate(*_: object) -> NoReturn:
        raise Terminated

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, terminate)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before or signal.SIG_DFL)
