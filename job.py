"""What the command was asked to do: the parts of a run, put together and checked before anything is loaded."""

from argparse import Namespace
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
import yaml
from torch import Tensor

from data.dataloader import get_dataset
from ldm.models.diffusion.cost import most_passes
from ldm.models.diffusion.ddim import DDIMSampler
from ldm.models.diffusion.guidance import guidance
from ldm.models.diffusion.posterior import get_sampler
from ldm.models.diffusion.resample import stop_rule
from ldm.models.diffusion.resample_settings import ResampleSettings
from ldm_inverse.task import Measurement, Task
from model_loader import build_model, load_yaml, require_checkpoint, resolve_device
from util.errors import UserError
from util.logger import LOGGER
from util.run import RunFolder, provenance, random_stream, read_measurement
from util.settings import read_settings


class Job:
    """The parts of a run, put together and checked before any weight is loaded and anything is written.

    Attributes:
        args: the command's arguments.
        settings: what task file, preset and command line come to.
        solver: the sampler's part of them.
        task: operator, noise and conditioning method.
        architecture: the model without its weights.
        pictures: the data set.

    Raises:
        UserError: on construction, for whatever would stop the run.
    """

    def __init__(self, args: Namespace) -> None:
        self.args = args
        self.settings = read_settings(args)
        self.solver = ResampleSettings.from_config(self.settings.conditioning.resample)
        conditioning = self.settings.conditioning
        self.task = Task(**asdict(self.settings.measurement), method=conditioning.method, params=conditioning.params)
        self.architecture = build_model(load_yaml(args.ldm_config))
        data = self.settings.data
        self._keeps_size = args.resize == "error"
        size = None if self._keeps_size else self.architecture.resolution
        self.pictures = get_dataset(data.name, data.root, size=size, resize=args.resize, limit=args.limit)
        self._check_solver()
        self._check_pictures()
        if not args.dry_run:
            self._check_files()
        self._explain()

    def _check_solver(self) -> None:
        get_sampler(self.settings.conditioning.main_sampler)
        DDIMSampler(self.architecture).make_schedule(self.settings.ddim_steps, ddim_eta=self.settings.ddim_eta)
        guidance(self.architecture, self.settings.class_label, self.settings.ddim_scale)
        for stage in (self.solver.pixel, self.solver.latent, self.solver.final_stage or self.solver.latent):
            stop_rule(stage, self.task.noise.sigma)

    def _check_pictures(self) -> None:
        side, sizes = self.architecture.resolution, set()

        def fits(height: int, width: int) -> None:
            try:
                self.architecture.latent_shape(height, width)
                self.task.operator.check_size(height, width)
            except UserError as error:
                remedy = f", or --resize center_crop|resize makes it {side}x{side}" if self._keeps_size else ""
                raise UserError(f"{error}{remedy}") from error
            sizes.add((height, width))

        self.pictures.check(fits)
        if sizes != {(side, side)}:
            LOGGER.warning("some pictures are not %dx%d, the only size that the model was trained on", side, side)

    def _check_files(self) -> None:
        require_checkpoint(self.args.diffusion_config)
        resolve_device(self.args.device, self.args.gpu)
        RunFolder(self.args.save_dir).check()
        for name, _ in self.pictures.pictures if self.args.measurement else ():
            read_measurement(self.args.measurement, name, self.task.settings)

    def _explain(self) -> None:
        """Say in the log what is accepted and has no effect."""
        if self.args.model_config is not None:
            LOGGER.info("--model_config is accepted and, as in the published code, not used")
        if "scale" in self.settings.conditioning.params:
            LOGGER.info(
                "conditioning.params.scale is accepted and, as in the published code, not used: the soft step's factor "
                "is conditioning.resample.soft_scale (%g)",
                self.solver.soft_scale,
            )

    def measurement(self, name: str, truth: Tensor) -> Measurement:
        """Return the measurement of a picture: drawn from streams of its own, or an earlier run's."""
        if self.args.measurement:
            saved = read_measurement(self.args.measurement, name, self.task.settings)
            return self.task.accept(saved, truth)
        streams = [random_stream(self.args.seed, name, purpose) for purpose in ("operator", "noise")]
        return self.task.measure(truth, *streams)

    def resolved(self) -> dict[str, Any]:
        """Return the settings with every default filled in, as plain values."""
        settings = asdict(self.settings)
        settings["conditioning"]["resample"] = self.solver.to_config()
        return settings

    def record(self, device: torch.device) -> dict[str, Any]:
        """Return what `settings.yaml` says of the run on a device."""
        run = {key: str(value) if isinstance(value, Path) else value for key, value in vars(self.args).items()}
        run = {key: value for key, value in run.items() if key not in ("dry_run", "debug", "verbose", "quiet")}
        run["settings"] = [f"{key}={value}" for key, value in self.args.settings]
        return {"settings": self.resolved(), "run": run, **provenance(self.args.diffusion_config, device)}

    def description(self) -> str:
        """Return settings, inputs and cost as text."""
        pictures = self.pictures.pictures
        count = len(pictures) * self.args.n_samples_per_class
        cost = most_passes(self.solver, self.settings.ddim_steps, self.settings.conditioning.main_sampler)
        lines = [yaml.safe_dump(self.resolved(), sort_keys=False)]
        lines += [f"{len(pictures)} pictures:", *(f"  {name}  ({path})" for name, path in pictures)]
        lines += ["", "passes, at most (optimisations may stop early):"]
        for what, passes in (
            ("UNet, forward", cost.unet),
            ("decoder, forward and backward", cost.decoder),
            ("operator, forward and backward", cost.pixel),
        ):
            lines.append(f"  {what:32s} {passes:>8,} for a restoration, {passes * count:>12,} for all {count}")
        return "\n".join(lines)
