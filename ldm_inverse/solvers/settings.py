"""The settings that every posterior sampler has. No torch here: settings are checked before anything heavy loads."""

from ldm_inverse.solvers.cost import Cost
from util.errors import UserError
from util.settings import Count, Flag, Positive, Settings

# A measurement without noise has a floor of 0, which no optimisation reaches: the reference's eps then.
NOISELESS_EPS = 1e-3


class RefineSettings(Settings):
    """The last optimisation, over the decoded image (`refine`): an autoencoder loses detail, so that a decoded image
    cannot explain its measurement down to the noise.

    Attributes:
        deviation: of true images from decoded ones, in units of [-1, 1].
        correlation: over how many pixels their differences are correlated.
        max_iters: of L-BFGS; four times as many where the border is unknown, which it reaches slowly.
        border_deviation: of the errors that are added where a pixel is not measured; in proportion, where it is
            measured in part.
        border_correlation: over how many pixels these are correlated.
    """

    deviation: Positive = 0.03
    correlation: Positive = 0.6
    max_iters: Count = 20
    border_deviation: Positive = 0.15
    border_correlation: Positive = 3.0

    def iterations(self, unknown_border: bool) -> int:
        """Iterations of L-BFGS, at most."""
        return self.max_iters * (4 if unknown_border else 1)

    def most_passes(self, unknown_border: bool) -> int:
        """Passes through the operator, at most: after 5/4 of these only a line search is ended, of up to 25."""
        return 1 + self.iterations(unknown_border) * 5 // 4 + 25


class SamplerSettings(Settings):
    """How a posterior sampler restores: `conditioning.<its name>` of a task or preset. Derive your sampler's from it.

    Attributes:
        refine: how the decoded image is refined; None: not at all.
    """

    refine: RefineSettings | None = None

    @property
    def starts_from_guess(self) -> bool:
        """Whether the problem must have a first guess."""
        return False

    @property
    def decodes_quantised(self) -> bool:
        """Whether the result is decoded through the codebook, where the model has one."""
        return True

    def cost(self, steps: int) -> Cost:
        """Return the most passes that a run of ``steps`` steps takes, besides `refine`."""
        return Cost()

    def check_noise_level(self, noise_sigma: float | None) -> None:
        """Check that a measurement with noise of this level can be restored, before any work is done.

        Raises:
            UserError: the level is not known (None), and the image is to be refined.
        """
        if self.refine is not None and noise_sigma is None:
            raise UserError(
                "the level of this measurement's noise is not known, and refine needs it: set refine to null"
            )


class CodebookSettings(SamplerSettings):
    """Of a sampler that may leave the codebook out.

    Attributes:
        quantise: decode through the codebook, where the model has one.
    """

    quantise: Flag = True

    @property
    def decodes_quantised(self) -> bool:
        return self.quantise
