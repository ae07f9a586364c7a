"""The presets that ship: where they are, what they say for an operator, and which samplers they are for."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ldm_inverse.measurements import operator_names
from ldm_inverse.solvers.samplers import POSTERIOR_SAMPLERS, get_sampler
from util.errors import UserError
from util.words import unknown
from util.yaml import load_yaml

PRESETS = Path(__file__).resolve().parents[2] / "configs" / "presets"


def find_preset(name: str) -> Path:
    """Return the file of a preset, given by its name in `configs/presets` or a folder in it, or by its own path.

    Raises:
        UserError: neither.
    """
    if Path(name).suffix in (".yaml", ".yml"):
        return Path(name)
    shipped = shipped_presets()
    if name not in shipped:
        raise unknown("preset", name, shipped)
    return shipped[name]


def shipped_presets() -> dict[str, Path]:
    """Return the presets that come with the project, by name."""
    return {path.stem: path for path in sorted(PRESETS.rglob("*.yaml"), key=lambda path: path.stem)}


def preset_layers(path: Path, operator: Any) -> list[tuple[str, dict[str, Any]]]:
    """Return a preset's settings for an operator, given by its registered name: (where from, settings), one or two.

    `by_operator` of a preset maps names of operators to settings that are laid over the others.

    Raises:
        UserError: the file cannot be read, or names an operator that is not known.
    """
    preset = load_yaml(path)
    by_operator = preset.pop("by_operator", {})
    if not isinstance(by_operator, dict) or not all(isinstance(own, dict) for own in by_operator.values()):
        raise UserError(f"{path}: by_operator: expected a mapping of operators' names to settings")
    for name in by_operator:
        if name not in operator_names():
            raise UserError(f"{path}: by_operator: {unknown('operator', name, operator_names())}")
    own = [(f"{path}: by_operator.{operator}", by_operator[operator])] if operator in by_operator else []
    return [(str(path), preset), *own]


def refuse_other_sampler(name: str, preset: Mapping[str, Any], sampler: str) -> None:
    """Refuse a preset that is made for other samplers: its number of steps is theirs, and nothing else would be of use.

    A preset is for the samplers whose settings it has; one that has no sampler's is for all. So is `none`, which takes
    no steps.

    Raises:
        UserError: it is made for others; the message names a preset for this one, if any.
    """
    samplers = samplers_of(preset)
    if not samplers or sampler in samplers or get_sampler(sampler).sample is None:
        return
    fit = [name for name, path in shipped_presets().items() if sampler in samplers_of(load_yaml(path))]
    remedy = f"take --preset {fit[0]}" if fit else "leave --preset out"
    raise UserError(f"preset {name} is made for {', '.join(samplers)}, and main_sampler is {sampler}: {remedy}")


def samplers_of(preset: Mapping[str, Any]) -> list[str]:
    """Return the samplers whose settings a preset has, sorted."""
    conditioning = preset.get("conditioning")
    return [name for name in POSTERIOR_SAMPLERS.names() if isinstance(conditioning, Mapping) and name in conditioning]
