"""Figures from papers (`configs/published_results.yaml`), and possible reasons why a run differs from them."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from util.settings import Count, NotNegative, Number, Positive, Settings, Text, read
from util.yaml import load_yaml

FILE = Path(__file__).resolve().parents[2] / "configs" / "published_results.yaml"


class Figures(Settings):
    """A source's figures for one task; ``measurement`` is the part of a task's settings that identifies it."""

    task: Text
    measurement: dict[str, dict[str, Any]]
    psnr: Number
    ssim: Number | None = None
    lpips: NotNegative | None = None


class Source(Settings):
    """A table of a paper.

    Attributes:
        source: which, for a reader.
        known: how its figures are known here.
        method: the sampler, by its name here.
        data_set, prior: as the paper names them.
        sigma: the noise's, in [-1, 1]; None where it is not stated.
        images: how many; None where it is not stated.
        tasks: the rows.
    """

    source: Text
    known: Text
    method: Text
    data_set: Text
    prior: Text
    sigma: NotNegative | None
    images: Count | None
    tasks: tuple[Figures, ...]


class Time(Settings):
    """Seconds that a paper reports for one picture of 256x256, and on which card."""

    gpu: Text
    seconds: Positive


class Published(Settings):
    """The whole file."""

    sources: tuple[Source, ...]
    seconds: tuple[Time, ...]


class Reported(NamedTuple):
    """A row of a source that is about a run's task."""

    source: Source
    figures: Figures


def read_published(path: Path = FILE) -> Published:
    """Read the file of published results.

    Raises:
        UserError: it cannot be read, or is none.
    """
    return read(Published, load_yaml(path), path.name)


def reported(published: Published, measurement: Mapping[str, Any]) -> list[Reported]:
    """Return the rows about the task with these settings of its measurement."""
    return [
        Reported(source, figures)
        for source in published.sources
        for figures in source.tasks
        if _is_part(figures.measurement, measurement)
    ]


def _is_part(part: Any, whole: Any) -> bool:
    """Tell whether nested mappings hold each entry of others."""
    if not isinstance(part, Mapping):
        return part == whole
    return isinstance(whole, Mapping) and all(_is_part(value, whole.get(key)) for key, value in part.items())


def explanations(source: Source, record: Mapping[str, Any], images: int) -> list[str]:
    """Return what may explain a difference between a source and a run, a line each.

    Args:
        source: what is compared with.
        record: the run's `settings.yaml`.
        images: how many the run has restored.
    """
    settings = record["settings"]
    noise, sampler = settings["measurement"].get("noise") or {}, settings["conditioning"]["main_sampler"]
    lines = [
        f"pictures of {source.data_set} there, {settings['data']['root']} here",
        f"prior {source.prior} there, {record['run'].get('diffusion_config')} here",
    ]
    if source.sigma is None:
        lines.append(f"noise not stated there, {_noise(noise)} here")
    elif noise.get("name") != "gaussian" or noise.get("sigma") != source.sigma:
        lines.append(f"noise of sigma {source.sigma:g} in [-1, 1] there, {_noise(noise)} here")
    if sampler != source.method:
        lines.append(f"sampler {source.method} there, {sampler} here")
    if settings["ddim_steps"] != 500:
        lines.append(f"S = {settings['ddim_steps']} here; 500 is the published setting")
    if record["run"].get("preset") not in (None, "reference", "paper"):
        lines.append(f"preset {record['run']['preset']} here; `reference` is the published setting")
    lines.append(f"{source.images or 'an unknown number of'} images there, {images} here")
    return lines


def _noise(noise: Mapping[str, Any]) -> str:
    sigma = noise.get("sigma")
    return f"{noise.get('name', 'none')}{'' if sigma is None else f' of sigma {sigma:g}'}"
