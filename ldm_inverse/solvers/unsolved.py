"""The sampler `none`: the baseline, without a model, in place of a restoration."""

from ldm_inverse.solvers.registry import POSTERIOR_SAMPLERS, Sampler
from ldm_inverse.solvers.settings import SamplerSettings


class NoSettings(SamplerSettings):
    """Nothing is sampled: the result is the first guess."""

    @property
    def starts_from_guess(self) -> bool:
        return True


POSTERIOR_SAMPLERS.register("none")(Sampler(None, NoSettings))
