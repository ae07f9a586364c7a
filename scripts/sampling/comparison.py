"""How far the samples of several samplers are from pictures of the kind that the prior was trained on."""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from data.picture_array import load_pictures
from ldm.models.diffusion.ddpm import LatentDiffusion
from ldm.training.pictures import to_model_range
from model_loader import get_model
from scripts.evaluation.frechet import encoded, relative_distance
from scripts.sampling.samples import Samples
from scripts.text_tables import markdown_table
from util.errors import UserError
from util.files import make_folder, write_whole
from util.metrics import to_uint8


class Row(NamedTuple):
    """A row of the table: what was sampled, passes through the UNet for each sample, and the distance."""

    run: str
    passes: int | None
    distance: float


def compare(runs: Sequence[tuple[str, Samples]], reference: Sequence[Path], out: Path) -> str:
    """Sample, measure, write `samplers.md` and return it.

    Args:
        runs: what to compare, each with its name; all of one model, with equally many samples.
        reference: folders or zip files of pictures, at least twice as many as samples of a run.
        out: the folder of the table.

    Raises:
        UserError: see `Samples.record`; or there are too few pictures.
    """
    for _, samples in runs:
        _ = samples.record  # all are checked before the first is made
    first = runs[0][1]
    model = get_model(first.ldm_config, first.diffusion_config, first.device)
    make_folder(out)
    pictures = load_pictures(reference, model.resolution, out / "reference.u8")
    if len(pictures) < 2 * first.n:
        raise UserError(f"--reference holds {len(pictures)} pictures: must be {2 * first.n} or more, twice --n")
    all_features = features(model, pictures)
    held_out, others = all_features[: first.n], all_features[first.n :]
    decoded = features(model, round_trip(model, pictures[: first.n], first.no_codebook))
    rows = [
        Row("pictures of the reference", None, relative_distance(others, held_out)),
        Row("the same, encoded and decoded", None, relative_distance(others, decoded)),
    ]
    for name, samples in runs:
        samples.make()
        distance = relative_distance(others, features(model, samples.read()))
        rows.append(Row(name, samples.passes, distance))
        write_whole(out / "samplers.md", table(rows, first.n).encode())
    return table(rows, first.n)


def round_trip(model: LatentDiffusion, pictures: np.ndarray, no_codebook: bool) -> np.ndarray:
    """Return uint8 pictures (N, H, W, 3) encoded and decoded, as `Samples` decodes."""
    images = (to_model_range(picture[None]).to(model.device) for picture in pictures)
    decoded = (model.decode_first_stage(model.encode_mode(image), force_not_quantize=no_codebook) for image in images)
    return np.stack([to_uint8(image) for image in decoded])


def features(model: LatentDiffusion, pictures: np.ndarray) -> np.ndarray:
    """Return mean and deviation of each latent channel over each quarter of uint8 pictures (N, H, W, 3): (N, 8 C)."""
    found = []
    for latents in encoded(model, pictures):
        cells = latents.unflatten(3, (2, -1)).unflatten(2, (2, -1)).transpose(3, 4).flatten(4)
        found.append(torch.cat([cells.mean(-1), cells.std(-1)], 1).flatten(1).double().numpy())
    return np.concatenate(found)


def table(rows: Sequence[Row], count: int) -> str:
    """Return the rows as Markdown."""
    body = [[run, "" if passes is None else str(passes), f"{distance:.2f}"] for run, passes, distance in rows]
    return markdown_table([f"{count} samples of", "passes each", "distance"], body)
