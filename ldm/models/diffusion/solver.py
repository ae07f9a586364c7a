"""A posterior sampler with everything that it is told besides the measurement: one restoration is one call."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Generator, Tensor

from ldm.models.diffusion.cost import Cost
from ldm.models.diffusion.ddim import DDIMSampler
from ldm.models.diffusion.finite import FiniteWatch
from ldm.models.diffusion.guidance import guidance
from ldm.models.diffusion.listeners import NOBODY, Listeners
from ldm.models.diffusion.posterior import POSTERIOR_SAMPLERS, InverseProblem, TraceEvent, get_sampler
from ldm.models.diffusion.posterior_settings import PosteriorSettings
from ldm.models.diffusion.refine import refine
from util.sampler_state import SamplerState

if TYPE_CHECKING:
    from ldm.models.diffusion.ddpm import LatentDiffusion


def settings_of(conditioning: Any, sampler: str) -> PosteriorSettings:
    """The settings of the chosen sampler, of an object with an attribute (a mapping) for each that has some.

    Raises:
        UserError: an unknown sampler, or settings that cannot be, of whichever sampler.
    """
    chosen = get_sampler(sampler)
    for name in POSTERIOR_SAMPLERS.names():
        get_sampler(name).settings.from_config(getattr(conditioning, name, None), f"conditioning.{name}")
    return chosen.settings.from_config(getattr(conditioning, sampler, None), f"conditioning.{sampler}")


@dataclass(frozen=True)
class Solver:
    """How images are sampled.

    Attributes:
        sampler: the posterior sampler's registered name.
        steps: sampling steps S, from 1 to the model's T.
        eta: share of ancestral noise in a DDIM step, in [0, 1].
        guidance_scale: of classifier-free guidance; 1 is none.
        class_label: the class that a class-conditional model is asked for.
        settings: the sampler's own; None is its defaults.
    """

    sampler: str = "resample"
    steps: int = 500
    eta: float = 0.0
    guidance_scale: float = 1.0
    class_label: int | None = None
    settings: PosteriorSettings | None = None

    def __post_init__(self) -> None:
        if self.settings is None:
            object.__setattr__(self, "settings", get_sampler(self.sampler).settings())

    def check(self, model: "LatentDiffusion", noise_sigma: float | None) -> None:
        """Check that a model (its weights may be missing) can be sampled so, given the noise's level.

        Raises:
            UserError: it cannot.
        """
        DDIMSampler(model).make_schedule(self.steps, ddim_eta=self.eta)
        guidance(model, self.class_label, self.guidance_scale)
        self.settings.check_noise_level(noise_sigma)

    def cost(self) -> Cost:
        """Return the most passes that a restoration can take."""
        return get_sampler(self.sampler).cost(self.settings, self.steps)

    def restore(
        self,
        model: "LatentDiffusion",
        problem: InverseProblem,
        shape: Sequence[int],
        generator: Generator | Sequence[Generator] | None = None,
        listeners: Listeners = NOBODY,
        progress: bool = False,
        resume: Sequence[SamplerState] | None = None,
    ) -> Tensor:
        """Sample images of ``shape`` (B, 3, H, W) that explain B measurements (`InverseProblem.stack`); in [-1, 1], not
        clipped.

        Arguments as for `DDIMSampler.posterior_sampler`, and:

        Args:
            listeners: are told how it goes on.
            progress: show a bar.
            resume: states to go on from, to the same result: of each image, after the same number of steps.

        Raises:
            ImageError: values are not finite, and there is no listener to be told.
        """
        if get_sampler(self.sampler).solve is None:
            return problem.initial
        finite = FiniteWatch(listeners.failed)
        event = finite.events(listeners.event)
        generators = generator if isinstance(generator, Sequence) else [generator]

        def keep_states(latents: Tensor, done: int) -> None:
            pairs = zip(latents.split(1), generators, strict=True)
            listeners.keep([SamplerState(done, latent, own.get_state()) for latent, own in pairs])

        if resume is not None:
            for own, state in zip(generators, resume, strict=True):
                own.set_state(state.generator)
        latent, _ = DDIMSampler(model).posterior_sampler(
            problem.measurement,
            problem.condition_fn,
            problem.operator_fn,
            self.steps,
            batch_size=shape[0],
            shape=model.latent_shape(*shape[-2:]),
            cond_method=self.sampler,
            eta=self.eta,
            verbose=progress,
            img_callback=finite.estimates(listeners.estimate),
            callback=event,
            settings=self.settings,
            generator=generator,
            noise_sigma=problem.noise_sigma,
            initial=problem.initial,
            operator_state=problem.state,
            x_T=None if resume is None else torch.cat([state.latent for state in resume]),
            done=0 if resume is None else resume[0].done,
            state_callback=None if listeners.keep is None else keep_states,
            **guidance(model, self.class_label, self.guidance_scale, shape[0]),
        )
        # The image that was fitted: through the codebook, or without where the last optimisation left it out.
        image = model.decode_first_stage(latent, force_not_quantize=not self.settings.quantise)
        finite.require(image, "the image", self.steps)
        if self.settings.refine is None:
            return image
        refined = [
            own if sample in finite.lost else self._refine(problem, image, sample, event, finite)
            for sample, own in enumerate(image.split(1))
        ]
        return torch.cat(refined)

    def _refine(
        self,
        problem: InverseProblem,
        image: Tensor,
        sample: int,
        event: Callable[[TraceEvent], None],
        finite: FiniteWatch,
    ) -> Tensor:
        """One of a batch's images (B, 3, H, W), refined: (1, 3, H, W)."""
        started = time.perf_counter()
        minimum = refine(problem.select([sample], len(image)), image[sample : sample + 1], self.settings.refine)
        losses, stop = minimum.losses[0], minimum.stops[0]
        about = {
            "seconds": time.perf_counter() - started,
            "sample": sample,
            "losses": losses,
            "noise_floor": problem.sigmas(len(image))[sample] ** 2,  # known, or the settings are refused
        }
        event(TraceEvent(self.steps, 0, "refine", len(losses), losses[0], losses[-1], stop, **about))
        finite.require(minimum.x, "the image", self.steps, first=sample)
        return minimum.x
