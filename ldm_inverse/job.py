"""What a run is to do: its settings, task, solver and pictures, put together and checked before weights are loaded."""

from argparse import Namespace
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from data.dataloader import PictureFolder, get_dataset
from ldm.arithmetic import Arithmetic
from ldm.models.diffusion.ddpm import LatentDiffusion
from ldm.models.diffusion.solver import Solver, settings_of
from ldm_inverse.given_measurements import GivenMeasurements, are_given
from ldm_inverse.measured_picture import MeasuredPicture
from ldm_inverse.task import Measurement, Task
from model_loader import build_model, load_yaml
from util.errors import ImageError, UserError
from util.logger import LOGGER
from util.measurement_file import read_measurement
from util.plugins import load_plugins
from util.record import recorded_plugins
from util.settings import Settings, read_settings
from util.streams import random_stream


class Job(NamedTuple):
    """What is to be done, with which settings (every default filled in).

    ``pictures`` are pictures to measure, or measurements that are given (``is_given``); ``bad`` says, by name, what is
    wrong with those that the run goes on without; ``padded`` gives the size that the model takes instead of one that it
    may not take; ``plugins`` are the SHA-256 of the files of a person's own code that were run.
    """

    settings: Settings
    task: Task
    solver: Solver
    arithmetic: Arithmetic
    pictures: PictureFolder | GivenMeasurements
    bad: dict[str, str]
    is_given: bool
    padded: Callable[[int, int], tuple[int, int]]
    plugins: list[str]

    @property
    def restarts(self) -> int:
        """Runs of the sampler for each restoration."""
        return self.settings.conditioning.restarts


def prepare(args: Namespace) -> Job:
    """Put together what the arguments ask for, and check all that can be checked without the model's weights.

    Raises:
        UserError: whatever would stop the run.
    """
    plugins = load_plugins(args.plugin, recorded_plugins(args.from_run) if args.from_run else None)
    settings = read_settings(args)
    conditioning = settings.conditioning
    own = settings_of(conditioning, conditioning.main_sampler)
    if hasattr(conditioning, conditioning.main_sampler):
        setattr(conditioning, conditioning.main_sampler, own.to_config())
    solver = Solver(
        conditioning.main_sampler,
        settings.ddim_steps,
        settings.ddim_eta,
        settings.ddim_scale,
        settings.class_label,
        own,
    )
    task = Task(**asdict(settings.measurement), method=conditioning.method, params=conditioning.params)
    is_given = are_given(args)
    if args.measurement is None:
        task.operator.check_draw()
        if task.noise.is_estimated:
            raise UserError("measurement.noise.sigma=estimate is for --measurement: to degrade pictures, give a number")
    arithmetic = Arithmetic(settings.precision, settings.low_memory, settings.compile)
    architecture = build_model(load_yaml(args.ldm_config))
    solver.check(architecture, 0.0 if task.noise.is_estimated else task.noise.sigma)
    pictures, bad = find_pictures(args, settings, task, architecture, is_given)
    say_what_has_no_effect(args, settings)
    return Job(settings, task, solver, arithmetic, pictures, bad, is_given, architecture.padded_size, plugins)


def find_pictures(
    args: Namespace, settings: Settings, task: Task, architecture: LatentDiffusion, is_given: bool
) -> tuple[PictureFolder | GivenMeasurements, dict[str, str]]:
    """Return the data set, and what is wrong with pictures whose header says that they cannot be read or do not fit.

    Measurements that are given are read whole.

    Raises:
        UserError: there are such, and the run is not to go on without them; or there are no others.
    """
    side, sizes = architecture.resolution, set()
    if is_given:
        pictures = GivenMeasurements(args.measurement, task, args.limit)
        remedies = "--resize pad"
    else:
        fit = {"size": None} if args.resize in ("error", "pad") else {"size": side, "resize": args.resize}
        pictures = get_dataset(settings.data.name, settings.data.root, limit=args.limit, **fit)
        remedies = f"--resize center_crop|resize makes it {side}x{side}, and pad"

    def fits(name: str, height: int, width: int) -> None:
        padded = architecture.padded_size(height, width) if args.resize == "pad" else (height, width)
        try:
            architecture.latent_shape(*padded)
        except UserError as error:
            remedy = f", or {remedies} restores it with a border" if args.resize == "error" else ""
            raise UserError(f"{error}{remedy}") from error
        if not is_given:  # else it was checked with the measurement, which may have its own state
            task.operator.check_image(name, height, width)
        sizes.add(padded)

    bad = pictures.problems(fits) if args.skip_bad else {}
    if not args.skip_bad or len(bad) == len(pictures):
        pictures.check(fits)
    if sizes != {(side, side)}:
        LOGGER.warning("some pictures are not %dx%d, the only size that the model was trained on", side, side)
    return pictures, bad


def check_measurements(folder: Path, job: Job) -> None:
    """Check that a measurement of each picture is there, and can be one of a picture of that size.

    Raises:
        UserError: one is not, or cannot.
    """
    accepted = set()  # shapes: a data set has many alike, and some operators are slow
    for name, _ in job.pictures.pictures:
        if name in job.bad:
            continue
        tensors, size = read_measurement(folder, name, job.task.settings), job.pictures.size_of(name)
        shapes = (*size, *((key, tensor.shape) for key, tensor in tensors.items()))
        if shapes not in accepted:
            job.task.accept(tensors, torch.empty(1, 3, *size))
            accepted.add(shapes)


def measured_picture(args: Namespace, job: Job, name: str) -> MeasuredPicture:
    """Return what is to be restored under a name: the measurement that was given for it, or one of a picture.

    Raises:
        ImageError: it cannot be read, or does not fit.
    """
    if name in job.bad:
        raise ImageError(job.bad[name])
    truth, streams = None, job.pictures.stream_name(name)
    try:
        if job.is_given:
            measurement, shape = job.pictures.measured(name)
        else:
            truth = job.pictures.picture(name).image[None]
    except UserError as error:
        raise ImageError(str(error)) from error
    if truth is not None:
        measurement, shape = measure(args, job.task, name, streams, truth), truth.shape
    padded = job.padded(*shape[-2:]) if args.resize == "pad" else tuple(shape[-2:])
    return MeasuredPicture(name, streams, job.task, measurement, shape, padded, truth)


def measure(args: Namespace, task: Task, name: str, streams: str, truth: Tensor) -> Measurement:
    """Return the measurement of a picture (1, 3, H, W): drawn from its own ``streams``, or an earlier run's."""
    if args.measurement:
        return task.accept(read_measurement(args.measurement, name, task.settings), truth)
    return task.measure(truth, *(random_stream(args.seed, streams, purpose) for purpose in ("operator", "noise")), name)


def say_what_has_no_effect(args: Namespace, settings: Settings) -> None:
    """Say in the log what is accepted and not used."""
    if args.model_config is not None:
        LOGGER.info("--model_config is accepted and, as in the published code, not used")
    if "scale" in settings.conditioning.params:
        sampler = settings.conditioning.main_sampler
        key = {"resample": "soft_scale", "dps": "scale"}.get(sampler)
        own = f"{key} ({getattr(settings.conditioning, sampler)[key]:g})" if key else ""
        LOGGER.info(
            "conditioning.params.scale is accepted and, as in the published code, not used%s",
            f": the soft step's factor is conditioning.{sampler}.{own}" if key else "",
        )
