"""Restore images: load a task and a model, measure each picture (or read its measurement back), sample a latent that
explains the measurement, and write what came out. `--help` shows the arguments.
"""

import sys
from argparse import Namespace
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from util.cli import GO_ON, exit_status

if TYPE_CHECKING:
    from ldm.models.diffusion.ddpm import LatentDiffusion
    from ldm_inverse.job import Job
    from ldm_inverse.measured_picture import MeasuredPicture
    from ldm_inverse.restoration import Restorer
    from util.run import RunFolder

# What imports torch is imported inside functions, so that `--help` and a mistyped argument do not wait for it.


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command on the words after the program's name (None: those of `sys.argv`); returns its exit status."""
    return exit_status(restore_images, argv, interrupted=GO_ON)


def restore_images(args: Namespace) -> int:
    """Load, restore, write, batch by batch; returns 1 when an image could not be restored, and 0 otherwise."""
    from contextlib import closing

    from tqdm import tqdm

    from ldm_inverse.job import prepare
    from model_loader import get_model
    from util.logger import log_file, set_up_logging
    from util.processes import rank, share
    from util.record import plan
    from util.run import RunFolder

    set_up_logging(args.verbose, args.quiet)
    job = prepare(args)
    if args.dry_run:
        passes = {what: job.restarts * number for what, number in job.solver.cost().table().items()}
        print(plan(job.settings, job.pictures.pictures, args.n_samples_per_class, passes))
        return 0
    run = RunFolder(args.save_dir, job.pictures.names, args.n_samples_per_class)
    record = check_files(args, job, run)
    say_what_is_not_repeated(args, record)
    model = get_model(args.ldm_config, args.diffusion_config, args.device, args.gpu, job.arithmetic)
    job.task.to(model.device)
    restorer = get_restorer(args, job, model, run)
    images = share([name for name, _ in job.pictures.pictures], args.shard)
    first = rank() == 0  # of those that torchrun started: the one that draws and prints what is common to all
    title = " ".join(f"{key}={value}" for key, value in vars(args).items())
    bar = tqdm(total=len(images), desc="images", disable=args.quiet or not first or None, dynamic_ncols=True)
    with log_file(run.log_path(), title), bar, closing(run.left(images, args.batch_size)) as left:
        set_threads(run.begin(record, args.overwrite))
        for names in left:
            restorer.restore(measured(args, job, run, names))
            run.tables.update()
            bar.update(len(names))
        run.tables.write()
        run.tables.write_report()
    if first:
        print(run.tables.text())
    return int(run.tables.has_failures(images))


def get_restorer(args: Namespace, job: "Job", model: "LatentDiffusion", run: "RunFolder") -> "Restorer":
    """Return what restores measured pictures as the arguments say."""
    from ldm_inverse.restoration import Restorer
    from util.processes import rank

    progress = sys.stderr.isatty() and not args.quiet and rank() == 0
    return Restorer(model, job.solver, run, args.seed, args.batch_size, args.checkpoint_minutes, progress, job.restarts)


def measured(args: Namespace, job: "Job", run: "RunFolder", names: Sequence[str]) -> list["MeasuredPicture"]:
    """Return these pictures with their measurements, which are written; those that cannot be read have failed."""
    from ldm_inverse.job import measured_picture

    pictures = []
    for name in names:
        with run.failures(name, run.samples_left(name)):
            picture = measured_picture(args, job, name)
            run.write_measurement(name, picture.measurement.tensors(), job.task.settings)
            pictures.append(picture)
    return pictures


def set_threads(record: Mapping[str, Any]) -> None:
    """Let torch compute with as many threads as a run's record says."""
    import torch

    torch.set_num_threads(record["threads"])


def check_files(args: Namespace, job: "Job", run: "RunFolder") -> dict[str, Any]:
    """Check that the files to read are there, and that the run's can be written; returns the run's record.

    Raises:
        UserError: they are not, or cannot.
    """
    from ldm_inverse.job import check_measurements
    from model_loader import require_checkpoint, resolve_device
    from util.record import record

    require_checkpoint(args.diffusion_config)
    device = resolve_device(args.device, args.gpu)
    job.arithmetic.check(device)
    if args.measurement and not job.is_given:
        check_measurements(args.measurement, job)
    wanted = record(args, job.settings, device, job.plugins)
    run.check(wanted, args.overwrite)
    return wanted


def say_what_is_not_repeated(args: Namespace, record: Mapping[str, Any]) -> None:
    """Say in the log in what a run that repeats another (`--from`) differs from it."""
    from util.logger import LOGGER
    from util.record import CIRCUMSTANCES, DECIDING, differences, read_record

    if args.from_run is not None:
        for line in differences(read_record(args.from_run / "settings.yaml"), record, DECIDING + CIRCUMSTANCES):
            LOGGER.warning("not as in %s: %s", args.from_run, line)


if __name__ == "__main__":
    sys.exit(main())
