import numpy as np
import pytest
import torch

from ldm_inverse.measurements import get_operator
from util.errors import UserError


def test_drops_what_the_mask_says():
    operator = get_operator("inpainting", mask_type="box", mask_len_range=(5, 6), margin=(2, 2))
    x = torch.ones(2, 3, 20, 24)
    state = operator.draw(x.shape, np.random.RandomState(0))
    assert state["mask"].shape == (2, 1, 20, 24)
    y = operator(x, **state)
    assert torch.equal(y, state["mask"].expand_as(x))
    assert (y == 0).sum() == 2 * 3 * 25


def test_a_given_mask_needs_no_options():
    mask = torch.zeros(1, 1, 4, 4)
    mask[..., 1, 2] = 1
    operator = get_operator("inpainting")
    assert operator(torch.full((2, 3, 4, 4), 5.0), mask=mask).sum() == 30
    with pytest.raises(UserError, match="no mask_type.*box"):
        operator.draw((1, 3, 4, 4), np.random.RandomState(0))


def test_image_of_another_size_than_the_masks():
    operator = get_operator("inpainting", mask_type="random", mask_prob_range=(0.7, 0.71), image_size=256)
    operator.check_size(256, 256)
    with pytest.raises(UserError, match="256 x 256 .* 128 x 128"):
        operator.check_size(128, 128)
