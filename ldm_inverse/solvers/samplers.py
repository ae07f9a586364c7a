"""All posterior samplers that ship, and the registry that has them and those of plugins."""

from ldm_inverse.solvers import daps, dps, psld, resample, sitcom, unsolved  # noqa: F401 (they register their samplers)
from ldm_inverse.solvers.registry import POSTERIOR_SAMPLERS, Sampler, get_sampler, register_sampler

__all__ = ["POSTERIOR_SAMPLERS", "Sampler", "get_sampler", "register_sampler"]
