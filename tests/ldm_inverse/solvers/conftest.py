"""Fixtures of the solvers' tests."""

import pytest
import torch

from tests.ldm.gaussian import GaussianLatents
from tests.ldm_inverse.solvers.half_seen import SHAPE, randn


@pytest.fixture
def model():
    """A Gaussian prior with an identity first stage."""
    return GaussianLatents(0.3 * randn(*SHAPE), torch.full(SHAPE, 0.25, dtype=torch.float64))
