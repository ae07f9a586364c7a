"""A run's job: its settings, task, solver and pictures, put together and checked before weights are loaded."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from data.dataloader import PictureFolder, get_dataset
from ldm.acceleration.arithmetic import Arithmetic
from ldm.models.diffusion.ddpm import LatentDiffusion
from ldm_inverse.measurement import Measurement
from ldm_inverse.runs.folder import RunFolder
from ldm_inverse.runs.given_measurements import GivenMeasurements, given_measurements
from ldm_inverse.runs.inputs import Inputs
from ldm_inverse.runs.manifest import CIRCUMSTANCES, DECIDING, differences, read_record, record
from ldm_inverse.runs.measured_picture import MeasuredPicture
from ldm_inverse.runs.measurement_file import read_measurement
from ldm_inverse.runs.request import Request
from ldm_inverse.runs.results import INPUTS, Results
from ldm_inverse.runs.settings import RunSettings
from ldm_inverse.solvers.solver import Solver
from ldm_inverse.solvers.tiles import tiled
from ldm_inverse.task import Task
from model_loader import build_model, model_config, resolve_device, resolve_model
from util.errors import ImageError, UserError
from util.logging import LOGGER
from util.seeds import random_stream


class Job(NamedTuple):
    """A request, resolved.

    ``pictures`` are pictures to measure, or measurements that are given; ``bad`` says, by name, what is wrong with
    those that the run leaves out; ``architecture`` is the model without its weights; ``inputs`` tells when a file is
    another than it was.
    """

    request: Request
    task: Task
    solver: Solver
    arithmetic: Arithmetic
    pictures: PictureFolder | GivenMeasurements
    bad: dict[str, str]
    architecture: LatentDiffusion
    inputs: Inputs

    def label(self, name: str) -> int | None:
        """Return the class that the model is asked for: the settings', or else the one that a list gives a picture."""
        label = self.request.settings.class_label
        if label is not None or self.architecture.cond_stage_model is None:
            return label
        return self.pictures.label(name)


def prepare(request: Request) -> Job:
    """Prepare the job, and check everything that can be checked without the model's weights.

    Raises:
        UserError: whatever would stop the run.
    """
    settings = request.settings
    solver = solver_of(settings)
    task = Task(
        settings.measurement.operator.to_plain(),
        settings.measurement.noise.to_plain(),
        settings.measurement.mask_opt,
        settings.conditioning.method,
        settings.conditioning.params,
        settings.measurement.range,
    )
    if request.measurement is None:
        task.operator.check_draw()
        if task.noise.is_estimated:
            raise UserError("measurement.noise.sigma=estimate is for --measurement: to degrade pictures, give a number")
    network = build_model(model_config(request.ldm_config, request.diffusion_config))
    architecture = tiled(network, settings.tiles)
    task.check_channels(architecture.image_channels)
    pictures, bad = find_pictures(request, task, architecture)
    say_what_has_no_effect(settings)
    say_noise_beyond_pictures(task)
    arithmetic = Arithmetic(settings.precision, settings.low_memory, settings.compile)
    saved = None if isinstance(pictures, GivenMeasurements) else request.measurement
    inputs = Inputs(pictures, task.settings["operator"], saved, task.operator.input_files())
    job = Job(request, task, solver, arithmetic, pictures, bad, architecture, inputs)
    for label in {job.label(name) for name, _ in pictures.pictures}:
        replace(solver, class_label=label).check(architecture, 0.0 if task.noise.is_estimated else task.noise.sigma)
    return job


def solver_of(settings: RunSettings) -> Solver:
    """Return the sampler that the settings choose, with what it is told."""
    return Solver(
        settings.conditioning.main_sampler,
        settings.ddim_steps,
        settings.ddim_eta,
        settings.ddim_scale,
        settings.class_label,
        settings.prompt,
        settings.negative_prompt,
        settings.conditioning.chosen,
        settings.conditioning.restarts,
    )


def find_pictures(
    request: Request, task: Task, architecture: LatentDiffusion
) -> tuple[PictureFolder | GivenMeasurements, dict[str, str]]:
    """Return the data set, and what is wrong with pictures whose header says that they cannot be read or do not fit.

    Measurements that are given are read whole.

    Raises:
        UserError: there are such, and the run is not to go on without them; or there are no others.
    """
    side, sizes, channels = architecture.resolution, set(), architecture.image_channels
    pictures = given_measurements(request, task, channels) or picture_folder(request, side, channels)
    pads, remedies = must_pad(request, task, isinstance(pictures, GivenMeasurements)), "--resize pad"
    if isinstance(pictures, PictureFolder):
        remedies = f"--resize center_crop|resize makes it {side}x{side}, and pad"

    def fits(name: str, height: int, width: int) -> None:
        padded = architecture.padded_size(height, width) if pads else (height, width)
        try:
            architecture.latent_shape(*padded)
        except UserError as error:
            remedy = f", or {remedies} restores it with a border" if request.resize == "error" else ""
            raise UserError(f"{error}{remedy}") from error
        if isinstance(pictures, PictureFolder):  # a measurement was checked itself, and may have its own state
            task.operator.check_image(pictures.origin(name), height, width)
        sizes.add(padded)

    bad = pictures.problems(fits) if request.skip_bad else {}
    if not request.skip_bad or len(bad) == len(pictures):
        pictures.check(fits)
    if sizes != {(side, side)} and request.settings.tiles is None:
        LOGGER.warning("some pictures are not %dx%d, the only size that the model was trained on", side, side)
    return pictures, bad


def must_pad(request: Request, task: Task, is_given: bool) -> bool:
    """Tell whether the model samples a larger image where it cannot take the size of the one that was measured.

    It does where that is asked for, and where a measurement is smaller than its image: there is a free border anyway.
    """
    return request.resize == "pad" or (is_given and task.operator.unknown_border)


def picture_folder(request: Request, side: int, channels: int) -> PictureFolder:
    """Return the pictures that are to be measured, of the model's ``channels``, and ``side`` where they are resized."""
    data = request.settings.data
    asked: dict[str, Any] = {} if request.resize in ("error", "pad") else {"size": side, "resize": request.resize}
    # Data sets of one's own may know nothing of what is not asked for, and colour pictures alone.
    asked |= data.model_dump(exclude_defaults=True, exclude={"name", "root"})
    asked |= {"channels": channels} if channels != 3 else {}
    found: Any = get_dataset(data.name, data.root, limit=request.limit, **asked)
    return found


def check_files(job: Job) -> dict[str, Any]:
    """Check that the files that the run needs are there, and that the device can compute so.

    Returns:
        What the run's `settings.yaml` is to say; it is told in the log where that differs from the run to repeat.

    Raises:
        UserError: a file is missing or of another kind, or the device cannot compute so.
    """
    request = job.request
    resolve_model(request.diffusion_config)
    device = resolve_device(request.device, request.gpu)
    job.arithmetic.check(device)
    if request.plugins and isinstance(job.pictures, PictureFolder):
        name = next(name for name, _ in job.pictures.pictures if name not in job.bad)
        shape = (1, job.architecture.image_channels, *job.pictures.size_of(name))
        job.task.try_out(shape, job.pictures.origin(name))
    if request.measurement is not None and isinstance(job.pictures, PictureFolder):
        _check_measurements(job, job.pictures, request.measurement)
    wanted = record(request, request.settings, device, request.threads, request.plugins)
    if request.from_run is not None:
        before = read_record(request.from_run / "settings.yaml") or {}
        for line in differences(before, wanted, DECIDING + CIRCUMSTANCES):
            LOGGER.warning("differs from %s: %s", request.from_run, line)
        # Else the digests differ by the measurements, and say nothing of the rest.
        if before.get("run", {}).get("measurement") == wanted["run"]["measurement"]:
            _say_what_was_replaced(job, request.from_run)
    return wanted


def _say_what_was_replaced(job: Job, before: Path) -> None:
    """Warn of images whose files are others than when the run in a folder restored them."""
    rows = Results(before / "results").read().values()
    known = {row["image"]: row[INPUTS] for row in rows if row[INPUTS]}
    for name, _ in job.pictures.pictures:
        if name in known and job.inputs.digest(name) != known[name]:
            LOGGER.warning("differs from %s: the picture, measurement, mask or kernel of %s has changed", before, name)


def _check_measurements(job: Job, pictures: PictureFolder, folder: Path) -> None:
    """Raise UserError unless a measurement of each picture is there, and can be one of a picture of that size."""
    accepted = set()  # shapes: a data set has many alike, and some operators are slow
    for name, _ in pictures.pictures:
        if name in job.bad:
            continue
        tensors, size = read_measurement(folder, name, job.task.settings), pictures.size_of(name)
        shapes = (*size, *((key, tensor.shape) for key, tensor in tensors.items()))
        if shapes not in accepted:
            job.task.accept(tensors, torch.empty(1, job.architecture.image_channels, *size))
            accepted.add(shapes)


def measured(job: Job, run: RunFolder, names: Sequence[str]) -> list[MeasuredPicture]:
    """Return what is to be restored under these names, with its measurement, which is written.

    Those that cannot be read have failed, and are left out.
    """
    pictures = []
    for name in names:
        with run.failures(name, run.samples_left(name)):
            picture = measured_picture(job, name)
            run.write_measurement(name, picture.measurement.tensors(), job.task.settings)
            pictures.append(picture)
    return pictures


def measured_picture(job: Job, name: str) -> MeasuredPicture:
    """Return what is to be restored under a name: the measurement that was given for it, or one of a picture.

    Raises:
        ImageError: it cannot be read, or does not fit.
    """
    if name in job.bad:
        raise ImageError(job.bad[name])
    job.inputs.digest(name)  # before anything of it is read
    pictures, truth = job.pictures, None
    streams = pictures.stream_name(name)
    try:
        if isinstance(pictures, GivenMeasurements):
            measurement, shape = pictures.measured(name)
        else:
            truth = pictures.picture(name).image[None]
    except UserError as error:
        raise ImageError(str(error)) from error
    if truth is not None:
        measurement, shape = measure(job, name, streams, truth), tuple(truth.shape)
    pads = must_pad(job.request, job.task, truth is None)
    padded = job.architecture.padded_size(*shape[-2:]) if pads else (shape[-2], shape[-1])
    return MeasuredPicture(name, streams, job.task, measurement, shape, padded, truth, job.label(name))


def measure(job: Job, name: str, streams: str, truth: Tensor) -> Measurement:
    """Return the measurement of a picture (1, C, H, W): drawn from its own ``streams``, or an earlier run's."""
    request, task = job.request, job.task
    if request.measurement is not None:
        return task.accept(read_measurement(request.measurement, name, task.settings), truth)
    operator_rng, noise_rng = (random_stream(request.seed, streams, purpose) for purpose in ("operator", "noise"))
    return task.measure(truth, operator_rng, noise_rng, job.pictures.origin(name))


def say_what_has_no_effect(settings: RunSettings) -> None:
    """Say in the log what is accepted and not used."""
    conditioning = settings.conditioning
    if "scale" in conditioning.params:
        key = {"resample": "soft_scale", "dps": "scale"}.get(conditioning.main_sampler)
        own = f"conditioning.{conditioning.main_sampler}.{key} ({getattr(conditioning.chosen, key):g})" if key else ""
        LOGGER.info(
            "conditioning.params.scale is accepted and, as in the published code, not used%s",
            f": the soft step's factor is {own}" if key else "",
        )


def say_noise_beyond_pictures(task: Task) -> None:
    """Say in the log that the noise is stronger than any picture, as a level in other units is."""
    sigma = task.noise.sigma or 0.0
    if sigma > 2 and not task.operator.units:
        LOGGER.warning(
            "measurement.noise.sigma=%g is larger than the range from black to white: it is in the range [-1, 1], "
            "in which %g of 255 levels are %.3g",
            *(sigma, sigma, sigma / 127.5),
        )
