"""The settings of a run: their defaults, and how task file, preset and command line are laid over them."""

import math
from argparse import Namespace
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import yaml
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import ConfigKeyError, OmegaConfBaseException

from util.class_names import class_number
from util.errors import UserError
from util.registry import unknown
from util.yaml_files import load_yaml

PRESETS = Path(__file__).resolve().parents[1] / "configs" / "presets"


@dataclass
class ConditioningSettings:
    """How the measurement steers the sampler.

    Attributes:
        main_sampler: the posterior sampler's registered name.
        method: the soft step's registered name.
        params: the soft step's keywords.
        resample, dps, psld, daps, sitcom: the settings of the sampler of this name; empty means its defaults.
        restarts: runs of the sampler from different noise, of which the one with the least residual is kept.
    """

    main_sampler: str = "resample"
    method: str = "ps"
    params: dict[str, Any] = field(default_factory=dict)
    resample: dict[str, Any] = field(default_factory=dict)
    dps: dict[str, Any] = field(default_factory=dict)
    psld: dict[str, Any] = field(default_factory=dict)
    daps: dict[str, Any] = field(default_factory=dict)
    sitcom: dict[str, Any] = field(default_factory=dict)
    restarts: int = 1


@dataclass
class DataSettings:
    """Which pictures: the data set's registered name, and the folder or file."""

    name: str = "ffhq"
    root: str = "./data/samples/"


@dataclass
class MeasurementSettings:
    """How pictures are degraded: `name` and keywords of the operator and of the noise, options of a mask."""

    operator: dict[str, Any] = field(default_factory=dict)
    noise: dict[str, Any] = field(default_factory=lambda: {"name": "clean"})
    mask_opt: dict[str, Any] = field(default_factory=dict)


@dataclass
class Settings:
    """Everything that decides a result besides the model, the picture and the seed. The defaults are the reference's.

    Attributes:
        ddim_steps: sampling steps S, at least 1.
        ddim_eta: share of ancestral noise in a DDIM step, in [0, 1].
        ddim_scale: scale of classifier-free guidance; 1 is none.
        class_label: the class that a class-conditional model is asked for.
        precision, low_memory, compile: how the networks compute (`ldm.arithmetic.Arithmetic`).
    """

    conditioning: ConditioningSettings = field(default_factory=ConditioningSettings)
    data: DataSettings = field(default_factory=DataSettings)
    measurement: MeasurementSettings = field(default_factory=MeasurementSettings)
    ddim_steps: int = 500
    ddim_eta: float = 0.0
    ddim_scale: float = 1.0
    class_label: int | None = None
    precision: str = "fp32"
    low_memory: bool = False
    compile: bool = False


def resolve(layers: Iterable[tuple[str, Mapping[str, Any]]]) -> Settings:
    """Lay mappings over the defaults, later ones over earlier ones, and check the outcome's ranges.

    Args:
        layers: (where it comes from, nested mapping) pairs; the first word of each pair is for error messages.

    Raises:
        UserError: an unknown key (the nearest known one is offered), a value of the wrong type or out of range.
    """
    merged = OmegaConf.structured(Settings)
    defaults = OmegaConf.to_container(merged)
    for source, layer in layers:
        if not isinstance(layer, Mapping):
            raise UserError(f"{source}: expected a mapping of settings, got {type(layer).__name__}")
        _check_groups(source, layer, defaults)
        try:
            own = OmegaConf.create(dict(layer))
            _forget_others_keywords(merged.measurement, own)
            merged = OmegaConf.merge(merged, own)
            OmegaConf.to_container(merged, resolve=True)  # a dangling ${...} shows up only here
        except ConfigKeyError as error:
            raise UserError(f"{source}: {_unknown_key(error)}") from error
        except OmegaConfBaseException as error:
            raise UserError(f"{source}: {_first_line(error)}") from error
        except TypeError as error:  # a list where an earlier layer has a mapping, or the other way round
            raise UserError(f"{source}: {error}") from error
    settings = OmegaConf.to_object(merged)
    _check_ranges(settings)
    return settings


def _forget_others_keywords(measurement: DictConfig, layer: DictConfig) -> None:
    """Empty the operator or the noise where a layer names another: the keywords are those of what has that name."""
    for part in ("operator", "noise"):
        name = OmegaConf.select(layer, f"measurement.{part}.name")
        if name not in (None, measurement[part].get("name")):
            measurement[part] = {}


def _check_groups(source: str, layer: Mapping[str, Any], defaults: Mapping[str, Any], parent: str = "") -> None:
    """Raise UserError where a layer has something else than a mapping for a group of settings."""
    for key, value in layer.items():
        group = defaults.get(key)
        if isinstance(group, Mapping):
            if not isinstance(value, Mapping):
                raise UserError(f"{source}: {parent}{key}: expected a mapping of settings, got {value!r:.100}")
            _check_groups(source, value, group, f"{parent}{key}.")


def _unknown_key(error: ConfigKeyError) -> UserError:
    known = [f.name for f in fields(error.object_type)]
    parent = str(error.full_key).rpartition(".")[0]
    return unknown(f"setting of {parent}" if parent else "setting", str(error.key), known)


def _first_line(error: OmegaConfBaseException) -> str:
    key = f"{error.full_key}: " if error.full_key else ""
    return key + str(error).partition("\n")[0]


def _check_ranges(settings: Settings) -> None:
    for name in ("operator", "noise"):
        part = getattr(settings.measurement, name)
        if not isinstance(part.get("name"), str):
            raise UserError(f"the task has no measurement.{name}.name: expected the {name}'s name")
    if settings.ddim_steps < 1:
        raise UserError(f"ddim_steps: expected a whole number, 1 or more, got {settings.ddim_steps}")
    if settings.conditioning.restarts < 1:
        raise UserError(
            f"conditioning.restarts: expected a whole number, 1 or more, got {settings.conditioning.restarts}"
        )
    if not 0 <= settings.ddim_eta <= 1:
        raise UserError(f"ddim_eta: expected a number from 0 to 1, got {settings.ddim_eta}")
    if not math.isfinite(settings.ddim_scale):
        raise UserError(f"ddim_scale: expected a finite number, got {settings.ddim_scale}")


def read_settings(args: Namespace) -> Settings:
    """Read the settings that the command's arguments ask for.

    Args:
        args: of `util.cli.parse_args`.

    Raises:
        UserError: as `resolve`, and for a file that cannot be read.
    """
    if args.from_run is not None:
        path = args.from_run / "settings.yaml"
        layers = [(str(path), load_yaml(path)["settings"])]
    else:
        layers = [(str(args.task_config), load_yaml(args.task_config))]
        if args.preset is not None:
            preset = find_preset(args.preset)
            layers.append((str(preset), load_yaml(preset)))
    layers.append(("command line", from_words(args.settings)))
    explicit = {key: getattr(args, key) for key in ("ddim_steps", "ddim_eta", "ddim_scale", "precision")}
    if args.class_label is not None:
        explicit["class_label"] = class_number(args.class_label, args.ldm_config)
    layers.append(("command line", {key: value for key, value in explicit.items() if value is not None}))
    if args.data is not None:
        layers.append(("command line", {"data": {"root": args.data}}))
    return resolve(layers)


def from_words(words: Iterable[tuple[str, str]]) -> dict[str, Any]:
    """Turn (dotted key, YAML text of the value) pairs into a nested mapping.

    Raises:
        UserError: the value is not plain YAML.
    """
    merged = OmegaConf.create({})
    for key, text in words:
        try:
            merged = OmegaConf.merge(merged, OmegaConf.from_dotlist([f"{key}={text}"]))
        except (yaml.YAMLError, OmegaConfBaseException) as error:
            raise UserError(f"{key}={text}: the value is not plain YAML") from error
    return OmegaConf.to_container(merged)


def find_preset(name: str) -> Path:
    """Return the file of a preset, given by its name in `configs/presets` or by its own path.

    Raises:
        UserError: neither.
    """
    if Path(name).suffix in (".yaml", ".yml"):
        return Path(name)
    path = PRESETS / f"{name}.yaml"
    if not path.is_file():
        raise unknown("preset", name, [p.stem for p in PRESETS.glob("*.yaml")])
    return path
