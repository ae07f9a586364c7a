"""Restore images: load a task and a model, measure each picture (or read its measurement back), sample a latent that
explains the measurement, and write what came out. `--help` shows the arguments.
"""

import sys
from argparse import Namespace
from collections.abc import Sequence
from typing import TYPE_CHECKING

from util.cli import exit_status

if TYPE_CHECKING:
    from torch import Generator, Tensor

    from job import Job
    from ldm.models.diffusion.ddpm import LatentDiffusion
    from ldm_inverse.task import Measurement
    from util.run import Recorder

# What imports torch is imported inside functions, so that `--help` and a mistyped argument do not wait for it.


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command on the words after the program's name (None: those of `sys.argv`); returns its exit status."""
    return exit_status(restore_images, argv)


def restore_images(args: Namespace) -> None:
    """Load, restore, write, image by image."""
    from tqdm import tqdm

    from data.dataloader import get_dataloader
    from job import Job
    from model_loader import get_model
    from util.logger import set_up_logging
    from util.run import Recorder, RunFolder, score, torch_stream

    set_up_logging(args.verbose, args.quiet)
    job = Job(args)
    if args.dry_run:
        print(job.description())
        return
    model = get_model(args.ldm_config, args.diffusion_config, args.device, args.gpu)
    job.task.to(model.device)
    run = RunFolder(args.save_dir, args.n_samples_per_class)
    run.write_settings(job.record(model.device))
    pictures = get_dataloader(job.pictures, batch_size=1, num_workers=0, train=False)
    for (name,), _, truth in tqdm(pictures, "images", disable=args.quiet or None, dynamic_ncols=True):
        measurement = job.measurement(name, truth)
        run.write_measurement(name, measurement.tensors(), job.task.settings)
        baseline = score(truth, job.task.baseline(measurement, truth.shape))
        for sample in range(args.n_samples_per_class):
            generator = torch_stream(args.seed, name, f"solver {sample}", model.device)
            recorder = Recorder(run, run.name(name, sample), job.settings.ddim_steps, model.decode_first_stage)
            restoration = restore(job, model, measurement, truth.shape, generator, recorder)
            run.write_restoration(name, sample, truth, measurement.y, restoration)
            run.write_trace(name, sample, recorder.events)
            run.add_metrics(name, sample, score(truth, restoration), baseline, recorder.seconds)
    print(run.table())


def restore(
    job: "Job",
    model: "LatentDiffusion",
    measurement: "Measurement",
    shape: Sequence[int],
    generator: "Generator",
    recorder: "Recorder",
) -> "Tensor":
    """Sample an image of ``shape`` (1, 3, H, W) that explains a measurement; in [-1, 1], not clipped."""
    from ldm.models.diffusion.ddim import DDIMSampler
    from ldm.models.diffusion.guidance import guidance

    settings = job.settings
    with recorder:
        latent, _ = DDIMSampler(model).posterior_sampler(
            measurement.y,
            job.task.condition_fn(measurement, model),
            job.task.operator_fn(measurement),
            settings.ddim_steps,
            batch_size=1,
            shape=model.latent_shape(*shape[-2:]),
            cond_method=settings.conditioning.main_sampler,
            eta=settings.ddim_eta,
            verbose=sys.stderr.isatty() and not job.args.quiet,
            img_callback=recorder.estimate,
            callback=recorder.event,
            settings=job.solver,
            generator=generator,
            noise_sigma=job.task.noise_level(measurement),
            **guidance(model, settings.class_label, settings.ddim_scale),
        )
        return model.decode_first_stage(latent)


if __name__ == "__main__":
    sys.exit(main())
