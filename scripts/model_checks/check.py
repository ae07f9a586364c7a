"""The steps of scripts/check_model.py: load, describe, measure, draw, judge."""

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import matplotlib
import torch
from matplotlib.figure import Figure
from torch import Tensor
from torchvision.transforms.functional import rgb_to_grayscale
from torchvision.utils import make_grid

from data.dataloader import get_dataset
from ldm.checkpoints.digest import checkpoint_sha256
from ldm.checkpoints.fitting import FIRST_STAGE, own_names, unused_tensors
from ldm.checkpoints.reading import AVERAGES, StoredTensor
from ldm.models.diffusion.ddpm import LatentDiffusion
from ldm.models.diffusion.guidance import guidance, has_null_class
from ldm.models.diffusion.summary import summary
from ldm.modules.encoders.modules import ClassEmbedder
from model_loader import get_model, read_weights, resolve_model
from scripts.model_checks import measures, verdicts
from util.errors import UserError, printable
from util.files import write_whole
from util.metrics import to_uint8

matplotlib.use("Agg")

DATA = Path(__file__).resolve().parents[2] / "data"
PICTURES = {128: "demo"}  # folders of data/ with pictures of a size; for all other sizes data/samples, cropped
COLUMNS = 8


@dataclass(frozen=True)
class Check:
    """A check of one model. The attributes are the arguments of scripts/check_model.py."""

    diffusion_config: Path
    ldm_config: Path | None
    data: Path | None
    limit: int
    samples: int
    steps: int
    class_label: int | None
    seed: int
    save_dir: Path
    device: str
    gpu: int

    @cached_property
    def path(self) -> Path:
        """The file or folder that holds the model."""
        return resolve_model(self.diffusion_config)

    def run(self) -> int:
        """Look at the model, print what was found and write the sheet; returns 1 where something looks wrong.

        Raises:
            UserError: the model cannot be loaded, or pictures cannot be read.
        """
        model = self.load()
        images = self.pictures(model)
        conditions = self.guidance(model, self.samples)
        stored = own_names(model, read_weights(self.path), self.path)
        print(printable("\n".join(self.describe(model, stored))), flush=True)
        trip = measures.round_trip(model, images)
        found = [verdicts.on_round_trip(trip.psnr)]
        codes = measures.codes_in_use(model, trip.latents)
        found += [verdicts.on_codebook(*codes)] if codes else []
        samples = measures.sample(model, self.samples, self.steps, self.seed, conditions)
        error = self.relative_error(model, trip.latents)
        ratio = measures.spread(samples) / measures.spread(trip.latents)
        by_scale = {1.0: error}
        if verdicts.is_apart(ratio):
            # Few samples tell the scale roughly. The network's own error, from half to twice that, says more.
            scales = [ratio * 2 ** (quarter / 4) for quarter in range(-4, 5)]
            by_scale |= {scale: self.relative_error(model, trip.latents * scale) for scale in scales}
        best = min(by_scale, key=by_scale.__getitem__)
        found += verdicts.on_prior(error, by_scale[best], ratio, best, float(model.scale_factor))
        rows = {"pictures": images, "round trip": trip.decoded, "samples": model.decode_first_stage(samples).cpu()}
        average = self.average(model, stored)
        if isinstance(average, str):
            found.append(verdicts.Verdict("average", average))
        else:
            raw, averaged = average
            errors = [error if one is model else self.relative_error(one, trip.latents) for one in average]
            found.append(verdicts.on_average(measures.distance(raw, averaged), *errors))
            other, kind = (averaged, "average") if raw is model else (raw, "raw weights")
            samples = measures.sample(other, self.samples, self.steps, self.seed, conditions)
            rows[f"samples of\nthe {kind}"] = other.decode_first_stage(samples).cpu()
        write_sheet(self.save_dir / "sheet.png", {name: torch.nan_to_num(row) for name, row in rows.items()})
        return self.tell(found)

    def load(self, use_ema: bool | None = None) -> LatentDiffusion:
        """Load the model, or the one of the averaged weights."""
        return get_model(self.ldm_config, self.path, self.device, self.gpu, use_ema=use_ema)

    def average(
        self, model: LatentDiffusion, stored: Mapping[str, StoredTensor]
    ) -> tuple[LatentDiffusion, LatentDiffusion] | str:
        """Return the models of the raw and of the averaged weights, of which one is the model itself; or in words why
        there are not both.
        """
        try:
            read_weights(self.path, use_ema=True)
        except UserError as error:
            partly = any(name.partition(".")[0] in AVERAGES for name in stored)
            return str(error) if partly else "the file holds no moving average"
        averaged = self.load(use_ema=True)
        if measures.distance(model, averaged):
            return model, averaged
        raw = self.load(use_ema=False)  # a configuration, or a folder, may take the average by itself
        return (raw, model) if measures.distance(raw, model) else "the weights are the average, or equal to it"

    def pictures(self, model: LatentDiffusion) -> Tensor:
        """Return pictures (N, C, side, side) in [-1, 1], cropped where they have another size than the model's.

        Raises:
            UserError: there are fewer than two, or one cannot be read.
        """
        side = model.resolution
        root = self.data or DATA / PICTURES.get(side, "samples")
        found: Any = get_dataset("ffhq", root, size=side, resize="center_crop", limit=self.limit)
        if len(found) < 2:
            raise UserError(f"{root}: give two pictures or more")
        images = torch.stack([found[index].image for index in range(len(found))])
        return rgb_to_grayscale(images) if model.image_channels == 1 else images

    def guidance(self, model: LatentDiffusion, batch: int) -> dict[str, Any]:
        """Return the conditioning for a batch: an empty text; or the class asked for, or none, or the first."""
        stage, label = model.cond_stage_model, self.class_label
        if label is None and isinstance(stage, ClassEmbedder) and not has_null_class(stage):
            label = 0
        return guidance(model, label, batch=batch)

    def relative_error(self, model: LatentDiffusion, latents: Tensor) -> float:
        """Return the error of the noise estimate on latents; see `measures.relative_error`."""
        return measures.relative_error(model, latents, self.seed, self.guidance(model, 1).get("conditioning"))

    def describe(self, model: LatentDiffusion, stored: Mapping[str, StoredTensor]) -> list[str]:
        """Return what the model is, how large, and what of its file was taken."""
        lacks = [name for name in model.state_dict() if name not in stored]
        taken = len(model.state_dict()) - len(lacks)
        separate = sum(name.startswith(FIRST_STAGE) for name in lacks)
        elsewhere = f", {separate} came from the first stage's own file" if separate else ""
        left = unused_tensors(model, stored)
        ignored = f" ({', '.join(f'{group} {count}' for group, count in left.most_common(6))})" if left else ""
        files = [self.path] if self.path.is_file() else [path for path in self.path.rglob("*") if path.is_file()]
        size = sum(file.stat().st_size for file in files) / 1e6
        source = "as it tells itself" if self.ldm_config is None else f"as {self.ldm_config} says"
        return [
            f"{self.path}, {size:.1f} MB, {source}:",
            f"SHA-256 {checkpoint_sha256(self.path)}",
            *summary(model),
            f"tensors of the file: {taken} matched, {left.total()} ignored{ignored}; "
            f"{len(lacks) - separate} that it lacks were computed{elsewhere}",
        ]

    def tell(self, found: Sequence[verdicts.Verdict]) -> int:
        """Print the verdicts; returns 1 where one is bad."""
        bad = [verdict.about for verdict in found if not verdict.good]
        print()
        for verdict in found:
            print(f"{verdict.about:11s} {verdict.text}")
        print(f"{'samples':11s} look at {self.save_dir / 'sheet.png'}")
        print(f"\nverdict: {'not right: ' + ', '.join(bad) if bad else 'fine'}")
        return int(bool(bad))


def write_sheet(path: Path, rows: Mapping[str, Tensor]) -> None:
    """Write images (N, C, H, W) in [-1, 1] as a picture, a labelled block for each name."""
    grids = {name: to_uint8(make_grid(row[: 2 * COLUMNS], COLUMNS, pad_value=1)) for name, row in rows.items()}
    heights = [grid.shape[0] / grid.shape[1] for grid in grids.values()]
    figure = Figure(figsize=(9, 8.2 * sum(heights) + 0.4), layout="constrained")
    axes = figure.subplots(len(grids), height_ratios=heights, squeeze=False)
    for axis, (name, grid) in zip(axes[:, 0], grids.items(), strict=True):
        axis.imshow(grid, interpolation="nearest")
        axis.set(xticks=[], yticks=[])
        axis.set_ylabel(name, fontsize=11)
    content = io.BytesIO()
    figure.savefig(content, format="png", dpi=120)
    write_whole(path, content.getvalue())
