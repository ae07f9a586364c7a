"""How images are sampled: a posterior sampler with its settings, and the prior it is given."""

from dataclasses import dataclass, replace

from ldm.models.diffusion.ddpm import LatentDiffusion
from ldm.models.diffusion.guidance import guidance
from ldm.models.diffusion.prior import DDIMSchedule, Generators, LatentPrior
from ldm_inverse.solvers.cost import Cost
from ldm_inverse.solvers.samplers import get_sampler
from ldm_inverse.solvers.settings import SamplerSettings
from util.errors import UserError

DEFAULTS = SamplerSettings()


@dataclass(frozen=True)
class Solver:
    """How images are sampled.

    Attributes:
        sampler: the posterior sampler's registered name.
        steps: sampling steps S, from 1 to the model's T.
        eta: share of ancestral noise in a DDIM step, in [0, 1].
        guidance_scale: of classifier-free guidance; 1 is none.
        class_label: the class that a class-conditional model is asked for.
        prompt, negative_prompt: the texts that a model with prompts is guided to and away from; None is the empty one.
        settings: the sampler's own; `DEFAULTS` become these of the sampler.
        restarts: runs of the sampler for each image, 1 or more; the image nearest its measurement is kept.

    Raises:
        UserError: an unknown sampler, or another sampler's settings.
    """

    sampler: str = "resample"
    steps: int = 500
    eta: float = 0.0
    guidance_scale: float = 1.0
    class_label: int | None = None
    prompt: str | None = None
    negative_prompt: str | None = None
    settings: SamplerSettings = DEFAULTS
    restarts: int = 1

    def __post_init__(self) -> None:
        own = get_sampler(self.sampler).settings
        if self.settings is DEFAULTS:
            object.__setattr__(self, "settings", own())
        if not isinstance(self.settings, own):
            raise UserError(f"sampler {self.sampler!r} does not take {type(self.settings).__name__}")

    @property
    def total_steps(self) -> int:
        """Steps of all restarts."""
        return self.restarts * self.steps

    def prior(self, model: LatentDiffusion, batch: int = 1, generator: Generators = None) -> LatentPrior:
        """Return the prior that is sampled, with its schedule, for a batch.

        Raises:
            UserError: the model cannot be sampled in so many steps, has no such class, or needs one.
        """
        wanted = guidance(model, self.class_label, self.guidance_scale, batch, self.prompt, self.negative_prompt)
        return LatentPrior(
            model,
            DDIMSchedule.of(model.alphas_cumprod, self.steps, self.eta),
            wanted.get("conditioning"),
            wanted.get("unconditional_conditioning"),
            wanted.get("unconditional_guidance_scale", 1.0),
            generator,
        )

    def check(self, model: LatentDiffusion, noise_sigma: float | None) -> None:
        """Check that a model (its weights may be missing) can be sampled so, given the noise's level.

        Raises:
            UserError: it cannot.
        """
        self.prior(model)
        self.settings.check_noise_level(noise_sigma)

    def cost(self, unknown_border: bool = False) -> Cost:
        """Return the most passes that a restoration can take; ``unknown_border`` is the operator's."""
        own, refine = self.settings.cost(self.steps), self.settings.refine
        return replace(own, pixel=own.pixel + (refine.most_passes(unknown_border) if refine else 0)).times(
            self.restarts
        )
