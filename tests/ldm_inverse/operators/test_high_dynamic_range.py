import pytest
import torch

from ldm_inverse.measurements import get_operator
from util.errors import UserError


def test_contrast_is_multiplied_and_cut_off():
    values = torch.tensor([-1.0, -0.5, -0.25, 0.0, 0.4, 0.5, 0.9]).view(1, 1, 1, -1).expand(1, 3, 2, -1)
    y = get_operator("high_dynamic_range")(values)
    assert torch.allclose(y, torch.tensor([-1.0, -1.0, -0.5, 0.0, 0.8, 1.0, 1.0]).expand_as(y))


def test_what_is_cut_off_has_no_gradient():
    x = torch.tensor([-0.9, 0.3, 0.6]).view(1, 1, 1, 3).expand(1, 3, 1, 3).clone().requires_grad_()
    get_operator("high_dynamic_range", scale=2.0)(x).sum().backward()
    assert torch.equal(x.grad, torch.tensor([0.0, 2.0, 0.0]).expand_as(x))


def test_the_baseline_is_right_where_nothing_was_cut_off():
    operator = get_operator("high_dynamic_range", scale=3.0)
    x = torch.rand(1, 3, 16, 16) * 2 - 1
    restored = operator.baseline(operator(x), x.shape, 0.0).clamp(-1, 1)
    kept = x.abs() < 1 / 3
    assert torch.allclose(restored[kept], x[kept], atol=1e-6)
    assert torch.allclose(restored[~kept], x[~kept].sign() / 3, atol=1e-6)


@pytest.mark.parametrize("value", [0.5, 101, "two", None])
def test_bad_settings(value):
    with pytest.raises(UserError, match="scale: expected a number from 1 to 100"):
        get_operator("high_dynamic_range", scale=value)
