"""The command line of `sample_condition.py`, read: its arguments, or those of a run that is repeated.

Nothing heavy is imported here (no torch, NumPy or OmegaConf), so that `--help` and a mistyped argument answer at once.
"""

import argparse
from collections.abc import Sequence

from ldm_inverse.runs.arguments import DIFFUSION_CONFIG, LDM_CONFIG, build_parser
from util.cli import split_word
from util.errors import UserError
from util.words import unknown


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
        args = _repeat(parser, args, argv)
    _choose_model(args)
    if args.data == "":
        raise UserError("--data is empty: give a folder, a picture or a list")
    args.settings = [split_word(word) for word in args.settings]
    return args


def _repeat(
    parser: argparse.ArgumentParser, given: argparse.Namespace, argv: Sequence[str] | None
) -> argparse.Namespace:
    """Read the command line anew, with the arguments of the run in ``given.from_run`` for defaults."""
    from ldm_inverse.runs.manifest import recorded_arguments, recorded_plugins  # need YAML

    run = given.from_run
    recorded = recorded_arguments(run)
    parser.set_defaults(**recorded)
    args = parser.parse_intermixed_args(argv)
    if args.model is not None:
        args.ldm_config = given.ldm_config  # the recorded one is the other model's
    for key in ("task_config", "preset"):
        if str(getattr(args, key)) != str(recorded[key]):
            raise UserError(f"--{key} and --from exclude each other: words such as ddim_steps=20 change a repeated run")
    if missing := [path for path in recorded_plugins(run) if path not in args.plugin]:
        # A folder may come from anyone: code is run only where the command line says so.
        plugins = " ".join(f"--plugin {path}" for path in missing)
        raise UserError(f"the run in {run} had code of its own; to run it again, add {plugins}")
    return args


def _choose_model(args: argparse.Namespace) -> None:
    """Give `diffusion_config` the model, whatever name it came by; `ldm_config` is None where the model tells it."""
    if args.model is not None:
        if args.diffusion_config is not None and args.from_run is None:
            raise UserError("--model and --diffusion_config are two names for one thing: give one of them")
        args.diffusion_config = args.model
    elif args.from_run is None:
        args.diffusion_config = args.diffusion_config or DIFFUSION_CONFIG
        if not args.diffusion_config.is_dir():
            args.ldm_config = args.ldm_config or LDM_CONFIG


def _option_names(parser: argparse.ArgumentParser) -> list[str]:
    return [name for action in parser._actions for name in action.option_strings if name.startswith("--")]
