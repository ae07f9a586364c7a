"""Restoration in one call: from a model, a problem and a solver to images."""

from collections.abc import Sequence
from contextlib import closing
from dataclasses import replace

import torch
from torch import Tensor

from ldm.models.diffusion.ddpm import LatentDiffusion
from ldm.models.diffusion.evaluations import counter_of
from ldm.models.diffusion.prior import Generators, LatentPrior, standard_normal
from ldm_inverse.solvers.observer import Observer, State
from ldm_inverse.solvers.problem import InverseProblem
from ldm_inverse.solvers.refine import refine
from ldm_inverse.solvers.sampler_run import Before, SamplerRun
from ldm_inverse.solvers.samplers import get_sampler
from ldm_inverse.solvers.solver import Solver
from util.errors import ImageError, UserError


def restore(
    model: LatentDiffusion,
    problem: InverseProblem,
    solver: Solver,
    observer: Observer | None = None,
    generator: Generators = None,
    resume: State | None = None,
) -> Tensor:
    """Restore the images of a batch of measurements: (B, C, H, W) in [-1, 1], not clipped.

    Computes in the measurements' dtype, on their device. Every image has its own norm, losses and stopping, and with a
    generator of its own it ends as it would alone.

    With restarts, an image is restored so often in a row, each time from fresh noise of the same source and from the
    next equivalent of its first guess, and the restoration with the smallest mean squared residual is returned: where a
    measurement has several explanations far apart (phase retrieval), a run may end in a wrong one, and its residual
    shows it. Steps are counted on: the first of restart r is number ``r * solver.steps``.

    Args:
        model: the prior.
        problem: with the images' ``size``; `InverseProblem.stack` makes one of several.
        solver: how the images are sampled.
        observer: is told of all that is done, and of images that are lost: what is returned for these has no meaning.
        generator: source of all noise, one or one for each image; None is torch's default stream.
        resume: the state of an earlier call, to continue to the same result; the generators must be as they were then.

    Raises:
        UserError: the model cannot be sampled so, or the problem lacks what the sampler needs.
        ImageError: values are not finite, and there is no observer to be told.
    """
    sample, batch = get_sampler(solver.sampler).sample, len(problem.measurement)
    if sample is None:
        return problem.guess()
    prior = solver.prior(model, batch, generator)
    check_batch(problem, prior, batch)
    before = Before() if resume is None else Before((resume.done - 1) // solver.steps * solver.steps, resume.best)
    for restart in range(before.steps // solver.steps, solver.restarts):
        done = 0 if resume is None else resume.done - before.steps
        z = noise(model, problem, generator) if resume is None else resume.latent
        run = SamplerRun(prior.schedule, problem, batch, observer, counter_of(model), done, before)
        with closing(run):
            z = sample(prior, begun_from(problem, restart), z, solver.settings, run)
            found = decoded(model, problem, z, solver, run)
        if run.lost and observer is None:
            lost = run.lost[min(run.lost)]
            raise ImageError(lost.reason, lost.step, lost.sample)
        best = found if before.best is None else nearer(problem, before.best, found)
        before, resume = Before(before.steps + solver.steps, best, run.lost), None
        if len(run.lost) == batch:
            break
    assert before.best is not None  # there is a restart at least
    return before.best


def noise(model: LatentDiffusion, problem: InverseProblem, generator: Generators) -> Tensor:
    """The noise that a run starts from, (B, C, h, w).

    Raises:
        UserError: the problem does not tell the size of its images, or the model cannot have it.
    """
    if problem.size is None:
        raise UserError("the problem does not tell the size of its images")
    y = problem.measurement
    return standard_normal((len(y), *model.latent_shape(*problem.size)), y.dtype, y.device, generator)


def check_batch(problem: InverseProblem, prior: LatentPrior, batch: int) -> None:
    """Check that a problem and a prior are those of a batch.

    Raises:
        UserError: they are not.
    """
    generator = prior.generator
    if len(problem.measurement) not in (1, batch):
        raise UserError(f"{len(problem.measurement)} measurements for a batch of {batch}: must be as many, or one")
    if isinstance(generator, Sequence) and len(generator) != batch:
        raise UserError(f"{len(generator)} generators for a batch of {batch}: must be one, or one each")
    prior.check_rows(batch)


def decoded(model: LatentDiffusion, problem: InverseProblem, z: Tensor, solver: Solver, run: SamplerRun) -> Tensor:
    """The images (B, C, H, W) of restored latents, each refined where the settings say so, unless it is lost."""
    # The image that was fitted: through the codebook, or without where the last optimisation left it out.
    with counter_of(model).counting_for(()):
        image = model.decode_first_stage(z, force_not_quantize=not solver.settings.decodes_quantised)
    run.require(image, "the image", solver.steps)
    how = solver.settings.refine
    if how is None:
        return image
    images = list(image.split(1))
    for sample, own in enumerate(images):
        if sample not in run.lost:
            minimum = refine(problem.select([sample], run.batch), own, how)
            run.optimised(solver.steps, "refine", minimum, first=sample)
            run.require(minimum.x, "the image", solver.steps, first=sample)
            images[sample] = minimum.x
    return torch.cat(images)


def begun_from(problem: InverseProblem, restart: int) -> InverseProblem:
    """The problem with the restart's own first guess."""
    if problem.initial is None or problem.equivalents_fn is None:
        return problem
    guesses = problem.equivalents_fn(problem.initial)
    return replace(problem, initial=guesses[restart % len(guesses)])


def nearer(problem: InverseProblem, a: Tensor, b: Tensor) -> Tensor:
    """Choose for each image between two (B, C, H, W): the one with the smaller residual."""
    with torch.no_grad():
        of_a, of_b = problem.loss(a), problem.loss(b)
    return torch.where((of_b < of_a)[:, None, None, None], b, a)
