"""Restore images: load a task and a model, measure each picture (or read its measurement back), sample a latent that
explains the measurement, and write what came out. `--help` shows the arguments.
"""

import _signal  # type: ignore[import-not-found]  # built in: the signal module would take a while to import
import sys

if __name__ == "__main__" and _signal.getsignal(_signal.SIGINT) is _signal.default_int_handler:
    # Ctrl-C while modules are imported ends the program, and says nothing.
    _signal.signal(_signal.SIGINT, _signal.SIG_DFL)

from argparse import Namespace
from collections.abc import Sequence

from ldm_inverse.runs.command_line import parse_args
from util.cli import GO_ON, exit_status


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command on the words after the program's name (None: those of `sys.argv`); returns its exit status."""
    return exit_status(restore_images, argv, parse_args, GO_ON)


def restore_images(args: Namespace) -> int:
    """Load, measure, restore, write, batch by batch; returns 1 when an image could not be restored, and 0 otherwise."""
    # What imports torch is imported here, so that `--help` and a mistyped argument do not wait for it.
    import torch

    from ldm_inverse.runs.folder import RunFolder
    from ldm_inverse.runs.job import check_files, measured, prepare
    from ldm_inverse.runs.plan import plan
    from ldm_inverse.runs.request import read_request
    from ldm_inverse.runs.restoration import Restorer
    from ldm_inverse.solvers.tiles import tiled
    from model_loader import get_model
    from util.logging import log_file, progress_bar, set_up_logging
    from util.processes import rank, share

    set_up_logging(args.verbose, args.quiet)
    request = read_request(args)
    job = prepare(request)
    if request.dry_run:
        print(plan(job))
        return 0
    names, samples = job.pictures.names, request.n_samples_per_class
    run = RunFolder(request.save_dir, names, samples, request.save_format, request.span, job.inputs.digest)
    record = check_files(job)
    run.check(record, request.overwrite)
    files, place = (request.ldm_config, request.diffusion_config), (request.device, request.gpu)
    model = get_model(*files, *place, job.arithmetic, request.settings.use_ema)
    model = tiled(model, request.settings.tiles)
    job.task.to(model.device)
    bars = sys.stderr.isatty() and not request.quiet and rank() == 0
    images = share([name for name, _ in job.pictures.pictures], request.shard)
    with log_file(run.log_path(), request.title()), run.at_work(record, request.overwrite, images) as in_force:
        torch.set_num_threads(in_force["threads"])
        restorer = Restorer(model, job.solver, run, request.seed, request.batch_size, request.checkpoint_minutes, bars)
        with progress_bar(len(images), "images", request.quiet) as bar:
            for names in run.left(images, request.batch_size):
                restorer.restore(measured(job, run, names))
                run.tables.update()
                bar.update(len(names))
        run.tables.write()
        run.tables.write_report()
    if run.was_left_last:
        print(run.tables.text())
    return int(run.tables.has_failures(images))


if __name__ == "__main__":
    sys.exit(main())
