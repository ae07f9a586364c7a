"""The cost of a restoration, against the published code's and against what a run does."""

import pytest

from ldm.models.diffusion.cost import Cost, most_passes
from ldm.models.diffusion.resample_settings import ResampleSettings


def test_the_published_setting():
    # Counted on the published code at S = 500.
    published = Cost(unet=665, decoder=500 + 8500, decoder_forward=17, pixel=34_000, events=(17, 16), encoder=17)
    assert most_passes(ResampleSettings(), 500) == published


@pytest.mark.parametrize(("key", "decoder"), [("soft_step", 8500), ("final", 500 + 8000)])
def test_what_is_off_costs_nothing(key, decoder):
    assert most_passes(ResampleSettings.from_config({key: False}), 500).decoder == decoder
