"""The sampler `none`: what one would make of a measurement without a model, in the place of a restoration."""

from dataclasses import dataclass
from fractions import Fraction

from ldm.models.diffusion.cost import Cost
from ldm.models.diffusion.posterior import POSTERIOR_SAMPLERS, PosteriorSampler
from ldm.models.diffusion.posterior_settings import PosteriorSettings


@dataclass(frozen=True)
class NoSettings(PosteriorSettings):
    """Nothing is sampled: the result is the first guess."""

    start = Fraction(0)


POSTERIOR_SAMPLERS.register("none")(PosteriorSampler(None, NoSettings, lambda settings, steps: Cost()))
