"""The settings of a run: their defaults, and how task file, preset and command line are laid over them."""

from collections.abc import Iterable, Mapping, Sequence
from functools import reduce
from operator import getitem
from typing import Any, Literal, cast

import yaml
from omegaconf import Container, DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from pydantic import ConfigDict, Field, create_model

from data.sources import Frames
from ldm_inverse.solvers.samplers import POSTERIOR_SAMPLERS, get_sampler
from util.errors import UserError
from util.settings import Count, Flag, Number, Settings, Span, Text, Unit, Whole, mistakes, read

Layers = Sequence[tuple[str, Mapping[str, Any]]]


class Named(Settings):
    """Something registered by name: the other keys are its own settings, which the registry checks."""

    model_config = ConfigDict(extra="allow")

    name: Text


class ConditioningSettings(Settings):
    """How the measurement steers the sampler.

    Each registered sampler has a field of its name with its own settings besides (`settings_model`).

    Attributes:
        main_sampler: the posterior sampler's registered name.
        method: the soft step's registered name.
        params: the soft step's keywords.
        restarts: runs of the sampler from different noise, of which the one with the least residual is kept.
    """

    main_sampler: Text = "resample"
    method: Text = "ps"
    params: dict[str, Any] = Field(default_factory=dict)
    restarts: Count = 1

    @property
    def chosen(self) -> Any:
        """The settings of the main sampler.

        Raises:
            UserError: there is no such sampler.
        """
        get_sampler(self.main_sampler)
        return getattr(self, self.main_sampler)


class DataSettings(Settings):
    """Which pictures, or which measurements that are given.

    Attributes:
        name: the data set's registered name.
        root: the folder or file.
        frames: of files that have several, the first or all.
        data_root: the folder that the paths in a list begin in; None is the list's own.
        range: black and white in pictures with more than 8 bits whose files do not say; None is what a file says.
    """

    name: Text = "ffhq"
    root: Text = "./data/samples/"
    frames: Frames = "first"
    data_root: Text | None = None
    range: Span | None = None


class MeasurementSettings(Settings):
    """How pictures are degraded: the operator, the noise, and options of a mask, which join the operator's.

    Attributes:
        range: black and white in the pictures that given measurements are of; None is [-1, 1].
    """

    operator: Named
    noise: Named
    mask_opt: dict[str, Any] = Field(default_factory=dict)
    range: Span | None = None


class RunSettings(Settings):
    """Everything that decides a result besides the model, the picture and the seed. The defaults are the reference's.

    Attributes:
        ddim_steps: sampling steps S.
        ddim_eta: share of ancestral noise in a DDIM step.
        ddim_scale: scale of classifier-free guidance; 1 is none.
        class_label: the class that a class-conditional model is asked for.
        prompt, negative_prompt: the texts that a model with prompts is guided to and away from; none is the empty one.
        tiles: side and overlap, in pixels, of the tiles that the networks see (`TiledModel`); None: the whole picture.
        use_ema: take the moving average of the weights, or the weights themselves; None is as the model says.
        precision, low_memory, compile: how the networks compute (`ldm.acceleration.arithmetic.Arithmetic`).
    """

    conditioning: ConditioningSettings
    data: DataSettings = DataSettings()
    measurement: MeasurementSettings
    ddim_steps: Count = 500
    ddim_eta: Unit = 0.0
    ddim_scale: Number = 1.0
    class_label: Whole | None = None
    prompt: Text | None = None
    negative_prompt: Text | None = None
    tiles: tuple[Count, Whole] | None = None
    precision: Literal["fp32", "tf32", "bf16", "fp16"] = "fp32"
    use_ema: Flag | None = None
    low_memory: Flag = False
    compile: Flag = False

    def recorded(self) -> dict[str, Any]:
        """Return the settings as plain values, from which `resolve` makes them again: of samplers, the main one's with
        every default filled in, and what others were given."""
        plain = self.to_plain()
        given = self.conditioning.model_dump(mode="json", exclude_unset=True)
        for name in POSTERIOR_SAMPLERS.names():
            if name != self.conditioning.main_sampler:
                plain["conditioning"].pop(name)
                plain["conditioning"] |= {name: given[name]} if given.get(name) else {}
        return plain


def settings_model() -> type[RunSettings]:
    """Return `RunSettings` with a field for each sampler that is registered by now."""

    classes = {name: get_sampler(name).settings for name in POSTERIOR_SAMPLERS.names()}
    samplers: dict[str, Any] = {name: (own, Field(default_factory=own)) for name, own in classes.items()}
    conditioning = create_model("ConditioningSettings", __base__=ConditioningSettings, **samplers)
    return create_model("RunSettings", __base__=RunSettings, conditioning=(conditioning, {}))


DEFAULTS = {"measurement": {"noise": {"name": "clean"}}}


def resolve(layers: Iterable[tuple[str, Mapping[str, Any]]]) -> RunSettings:
    """Lay mappings over the defaults, later ones over earlier ones, and check each value and the outcome.

    Args:
        layers: (where it comes from, nested mapping) pairs; the first word of each pair is for error messages.

    Raises:
        UserError: an unknown key (the nearest known one is offered), a value of the wrong type or out of range: a line
            for each, with the layer that it comes from.
    """
    layers, model = list(layers), settings_model()
    merged = DictConfig(DEFAULTS)
    for number, (source, layer) in enumerate(layers, start=1):
        if not isinstance(layer, Mapping):
            raise UserError(f"{source}: expected a mapping of settings, got {type(layer).__name__}")
        merged = _laid_over(merged, source, layer)
        found = mistakes(model, _plain(merged))
        if number < len(layers):  # a later layer may make a whole of what this one begins
            found = {keys: line for keys, line in found.items() if _is_value(layer, keys)}
        if found:
            raise UserError("\n".join(f"{_source(layers[:number], keys)}: {line}" for keys, line in found.items()))
    settings = read(model, _plain(merged))
    _ = settings.conditioning.chosen  # a name that is not registered
    return settings


def _laid_over(merged: DictConfig, source: str, layer: Mapping[str, Any]) -> DictConfig:
    """Return settings with a layer over them, its interpolations resolved."""
    try:
        own = DictConfig(dict(layer))
        for part in ("operator", "noise"):
            name = _name_of(own, part)
            if name not in (None, _name_of(merged, part)):
                merged.measurement[part] = {}  # the keywords are those of what has that name
        _make_way(merged, layer)
        merged = cast(DictConfig, OmegaConf.merge(merged, own))
        OmegaConf.resolve(merged)
        return merged
    except (OmegaConfBaseException, TypeError, ValueError, RecursionError) as error:
        key = getattr(error, "full_key", None)
        raise UserError(f"{source}: {key + ': ' if key else ''}{str(error).splitlines()[0]}") from error


def _make_way(settings: DictConfig, layer: Mapping[Any, Any]) -> None:
    """Take away what is a list and is to be a mapping, or the other way round, which OmegaConf would not merge: a value
    of the wrong kind is told as any other."""
    for key, value in layer.items():
        found = settings.get(key)
        if isinstance(found, DictConfig) and isinstance(value, Mapping):
            _make_way(found, value)
        elif isinstance(found, Container) and isinstance(value, Mapping | list):
            settings.pop(key)


def _name_of(settings: DictConfig, part: str) -> Any:
    """The name of the operator or the noise; None where there is none."""
    group: Any = settings
    for key in ("measurement", part, "name"):
        group = group.get(key) if isinstance(group, DictConfig) else None
    return group


def operator_name(layers: Iterable[Mapping[str, Any]]) -> Any:
    """Return the name of the operator that layers of settings end with; None where none of them has one."""
    names = [_name_of(DictConfig(dict(layer)), "operator") for layer in layers if isinstance(layer, Mapping)]
    return next((name for name in reversed(names) if name is not None), None)


def _plain(settings: DictConfig) -> dict[str, Any]:
    return cast(dict[str, Any], OmegaConf.to_container(settings))


def _is_value(layer: Any, keys: Sequence[str]) -> bool:
    """Tell whether a layer has a value, rather than a mapping, at a path."""
    return _depth(layer, keys) == len(keys) and not isinstance(reduce(getitem, keys, layer), Mapping)


def _depth(layer: Any, keys: Sequence[str]) -> int:
    """Return how many of the keys lead on through a layer's mappings."""
    for depth, key in enumerate(keys):
        if not isinstance(layer, Mapping) or key not in layer:
            return depth
        layer = layer[key]
    return len(keys)


def _source(layers: Layers, keys: Sequence[str]) -> str:
    """Return where the value at a path comes from: the last layer that has it, or most of the way; else the first."""
    deepest = max(reversed(layers), key=lambda pair: _depth(pair[1], keys))
    return deepest[0] if _depth(deepest[1], keys) else layers[0][0]


def from_words(words: Iterable[tuple[str, str]]) -> dict[str, Any]:
    """Turn (dotted key, YAML text of the value) pairs into a nested mapping.

    Raises:
        UserError: the value is not plain YAML.
    """
    merged = DictConfig({})
    for key, text in words:
        try:
            merged = cast(DictConfig, OmegaConf.merge(merged, OmegaConf.from_dotlist([f"{key}={text}"])))
        except RecursionError as error:
            raise UserError(f"{key[:60]}...: no setting is nested so deeply") from error
        except (yaml.YAMLError, OmegaConfBaseException) as error:
            raise UserError(f"{key}={text}: the value is not plain YAML") from error
    return _plain(merged)
