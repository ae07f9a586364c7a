"""Samples of a model's prior in a folder: what is asked for, what is there, and what is left to make."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from torchvision.utils import make_grid
from tqdm import tqdm

from data.pictures import read_picture
from ldm.acceleration.arithmetic import Arithmetic
from ldm.models.diffusion.ddpm import LatentDiffusion
from ldm.models.diffusion.guidance import guidance
from ldm.models.diffusion.prior_sampler import get_prior_sampler
from ldm.models.diffusion.sampling import check_steps, sample_prior
from ldm_inverse.runs.folder import RunFolder
from ldm_inverse.runs.manifest import differences, made_by, read_record
from ldm_inverse.runs.settings import from_words
from model_loader import build_model, get_model, model_config, resolve_device, resolve_model
from util.errors import UserError
from util.files import write_whole
from util.metrics import to_uint8
from util.seeds import torch_stream
from util.settings import read

SHEET, COLUMNS = 64, 8
MOST_LINES = 5  # of differences that one error names


@dataclass(frozen=True)
class Samples:
    """Samples of a prior in a folder: `samples/00000.png` and so on, `sheet.png` and `settings.yaml`.

    The attributes are the arguments of `scripts/sample.py`; ``settings`` are the sampler's own, as pairs of a key and
    the text of its value.

    Attributes:
        no_codebook: decode the latents as they are, without the first stage's codebook, if it has one.
    """

    diffusion_config: Path
    save_dir: Path
    ldm_config: Path | None = None
    sampler: str = "ddim"
    steps: int = 50
    n: int = 16
    seed: int = 0
    class_label: int | None = None
    prompt: str | None = None
    negative_prompt: str | None = None
    scale: float = 1.0
    batch_size: int = 16
    device: str = "auto"
    gpu: int = 0
    precision: str = "fp32"
    threads: int | None = None
    quiet: bool = False
    no_codebook: bool = False
    settings: Sequence[tuple[str, str]] = ()

    @cached_property
    def own(self) -> Any:
        """The sampler's own settings.

        Raises:
            UserError: no such sampler or setting, or a value that it cannot have.
        """
        return read(get_prior_sampler(self.sampler).settings, from_words(self.settings), self.sampler)

    @property
    def passes(self) -> int:
        """Passes through the UNet for each sample."""
        return self.own.evaluations(self.steps)

    @cached_property
    def record(self) -> dict[str, Any]:
        """The content of `settings.yaml`. All that can be checked without loading the weights has then been checked.

        Raises:
            UserError: whatever would stop the run, such as samples with other settings in the folder.
        """
        architecture = build_model(model_config(self.ldm_config, self.diffusion_config))
        settings = {"sampler": self.sampler, "steps": self.steps, self.sampler: self.own.to_plain()}
        check_steps(architecture, self.steps)
        if not math.isfinite(self.scale):
            raise UserError(f"--scale: expected a finite number, got {self.scale}")
        guidance(architecture, self.class_label, self.scale, 1, self.prompt, self.negative_prompt)
        resolve_model(self.diffusion_config)
        device = resolve_device(self.device, self.gpu)
        Arithmetic(self.precision).check(device)
        given = ("class_label", "prompt", "negative_prompt", "scale", "precision")
        settings |= {key: getattr(self, key) for key in given}
        # Only where it is left out: the settings of earlier samples do not name it.
        settings |= {"codebook": False} if self.no_codebook else {}
        record = {"settings": settings, "run": {"seed": self.seed}, "threads": self.threads}
        record |= made_by(self.ldm_config, self.diffusion_config, device)
        record["threads"] = self._threads_there(record) or self.threads or torch.get_num_threads()
        return record

    def _threads_there(self, record: dict[str, Any]) -> int | None:
        """Return the threads that the samples in the folder were made with; None where there are none."""
        found = read_record(self.save_dir / "settings.yaml")
        if found is None:
            return None
        if lines := differences(found, record):
            more = [f"  and {len(lines) - MOST_LINES} more"] if len(lines) > MOST_LINES else []
            told = "\n".join([*(f"  {line}" for line in lines[:MOST_LINES]), *more])
            raise UserError(f"{self.save_dir} holds samples with other settings; give another --save_dir:\n{told}")
        return found["threads"]

    def make(self) -> None:
        """Make the samples that are not there yet, then the sheet.

        Raises:
            UserError: see `record`; or a sample is not finite.
        """
        content = yaml.safe_dump(self.record, sort_keys=False, allow_unicode=True)
        torch.set_num_threads(self.record["threads"])
        arithmetic = Arithmetic(self.precision)
        model = get_model(self.ldm_config, self.diffusion_config, self.device, self.gpu, arithmetic)
        write_whole(self.save_dir / "settings.yaml", content.encode())
        folder = RunFolder(self.save_dir)
        for indices in self._batches():
            for index, picture in zip(indices, self._pictures(model, indices), strict=True):
                folder.write_picture("samples", name(index), picture)
        folder.write_picture(".", "sheet", self._sheet())

    def _batches(self) -> Iterator[list[int]]:
        """Yield the samples that are not there yet, so many at a time, with a progress bar."""
        left = [index for index in range(self.n) if not self._path(index).is_file()]
        with tqdm(total=self.n, initial=self.n - len(left), unit="sample", disable=self.quiet or None) as bar:
            for first in range(0, len(left), self.batch_size):
                indices = left[first : first + self.batch_size]
                yield indices
                bar.update(len(indices))

    def _pictures(self, model: LatentDiffusion, indices: Sequence[int]) -> Iterator[np.ndarray]:
        """Sample a batch, and yield each as 8-bit pixels (H, W, C)."""
        shape = (len(indices), *model.latent_shape(model.resolution, model.resolution))
        generators = [torch_stream(self.seed, name(index), "sample", model.device) for index in indices]
        keywords = guidance(model, self.class_label, self.scale, len(indices), self.prompt, self.negative_prompt)
        latents = sample_prior(model, self.sampler, self.steps, shape, generators, self.own, **keywords)
        for index, latent in zip(indices, latents, strict=True):
            image = model.decode_first_stage(latent[None], force_not_quantize=self.no_codebook)
            if not image.isfinite().all():
                raise UserError(
                    f"sample {name(index)} is not finite: take more steps, less guidance or --precision fp32"
                )
            yield to_uint8(image)

    def _path(self, index: int) -> Path:
        return self.save_dir / "samples" / f"{name(index)}.png"

    def read(self, count: int | None = None) -> np.ndarray:
        """Return the first samples (None: all) as they were written: uint8 (N, H, W, 3)."""
        return np.stack([np.asarray(read_picture(self._path(index))) for index in range(self.n)[:count]])

    def _sheet(self) -> np.ndarray:
        """Return the first samples as one picture (H, W, 3)."""
        shown = torch.from_numpy(self.read(SHEET)).permute(0, 3, 1, 2)
        return make_grid(shown, nrow=COLUMNS, pad_value=255).permute(1, 2, 0).numpy()


def name(index: int) -> str:
    """Return the name of a sample's picture."""
    return f"{index:05d}"
