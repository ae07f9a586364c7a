"""The cost of a restoration, against the published code's and against what a run does."""

import pytest

from ldm_inverse.solvers.cost import Cost
from ldm_inverse.solvers.resample_settings import ResampleSettings
from util.settings import read


def test_the_published_setting():
    # Counted on the published code at S = 500.
    published = Cost(unet=665, decoder=500 + 8500, decoder_forward=17, pixel=34_000, encoder=17)
    assert ResampleSettings().cost(500) == published


@pytest.mark.parametrize(("key", "decoder"), [("soft_step", 8500), ("final", 500 + 8000)])
def test_what_is_off_costs_nothing(key, decoder):
    assert read(ResampleSettings, {key: False}).cost(500).decoder == decoder
