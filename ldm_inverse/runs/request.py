"""A request to the command: its arguments and settings as one checked object."""

from argparse import Namespace
from pathlib import Path
from typing import Any

from ldm.class_names import class_number
from ldm_inverse.runs.manifest import RecordedArguments, Threads, flat, read_record, recorded_plugins
from ldm_inverse.runs.presets import find_preset, preset_layers, refuse_other_sampler
from ldm_inverse.runs.settings import RunSettings, from_words, operator_name, resolve
from util.errors import UserError
from util.logging import LOGGER
from util.plugins import load_plugins
from util.settings import Count, Flag, NotNegative, Span, Whole, read
from util.yaml import load_yaml


class Request(RecordedArguments):
    """A request to the command.

    Attributes:
        settings: what decides a result besides the model, the picture and the seed.
        plugins: the SHA-256 of each file of ``plugin``, as it was run.
        data: whether the command line says which pictures (they are in the settings).
        threads: None leaves their number to the folder, or else to torch.
        shard: (i, n) for part i of n.
        checkpoint_minutes: between two writings of the states of images in progress; 0 never writes them.
        Others are the command's arguments of these names.
    """

    settings: RunSettings
    plugins: tuple[str, ...] = ()
    data: bool = False
    from_run: Path | None = None
    gpu: Whole = 0
    save_dir: Path
    threads: Threads | None = None
    shard: tuple[Count, Count] | None = None
    checkpoint_minutes: NotNegative = 5.0
    overwrite: Flag = False
    dry_run: Flag = False
    quiet: Flag = False

    @property
    def span(self) -> Span | None:
        """Black and white in the units of the pictures, or of those that measurements are of; None where these are the
        model's or a file's own."""
        return self.settings.data.range if self.measurement is None else self.settings.measurement.range

    def title(self) -> str:
        """Return everything that is asked for, in a line."""
        return " ".join(f"{key}={value}" for key, value in flat(self.to_plain()).items())


def read_request(args: Namespace) -> Request:
    """Read the files that the command's arguments name, and check everything that they say.

    The plugins are run, for what they register has settings of its own.

    Raises:
        UserError: a file cannot be read, or a value is unknown, of the wrong type or out of range.
    """
    if args.model_config is not None:
        LOGGER.info("--model_config is accepted and, as in the published code, not used")
    plugins = load_plugins(args.plugin, recorded_plugins(args.from_run) if args.from_run else None)
    values = {name: value for name, value in vars(args).items() if name in Request.model_fields}
    values |= {"settings": _settings(args), "plugins": plugins, "data": args.data is not None}
    try:
        return read(Request, values)
    except UserError as error:
        raise UserError("\n".join(f"--{line}" for line in str(error).splitlines())) from error


def _settings(args: Namespace) -> RunSettings:
    """Return the settings of the files and words that the arguments give."""
    if args.from_run is not None:
        path = args.from_run / "settings.yaml"
        record = read_record(path)
        layers = [(str(path), record["settings"] if record else {})]
    else:
        layers = [(str(args.task_config), load_yaml(args.task_config))]
    preset: dict[str, Any] = {}
    words = from_words(args.settings)
    if args.preset is not None and args.from_run is None:  # else it is in the record's settings
        own_layers = preset_layers(find_preset(args.preset), operator_name([layers[0][1], words]))
        preset = own_layers[0][1]
        layers += own_layers
    own = ("ddim_steps", "ddim_eta", "ddim_scale", "prompt", "negative_prompt", "tiles", "precision")
    explicit = {key: getattr(args, key) for key in own}
    if args.class_label is not None:
        explicit["class_label"] = class_number(args.class_label, args.ldm_config or args.diffusion_config)
    data = {"root": args.data, "frames": args.frames, "data_root": args.data_root}
    if given := {key: value for key, value in data.items() if value is not None}:
        explicit["data"] = given
    layers.append(("command line", words))
    layers.append(("command line", {key: value for key, value in explicit.items() if value is not None}))
    settings = resolve(layers)
    refuse_other_sampler(args.preset, preset, settings.conditioning.main_sampler)
    return settings
