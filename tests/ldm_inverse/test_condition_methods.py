"""The soft step on a linear model, whose gradient is known in closed form."""

import numpy as np
import pytest
import torch

from ldm_inverse.condition_methods import get_conditioning_method
from ldm_inverse.measurements import get_noise, get_operator
from util.errors import UserError


class Decoder:
    """x = 3 z."""

    @staticmethod
    def differentiable_decode_first_stage(z):
        return 3 * z


def tensor(seed, batch=1):
    return torch.from_numpy(np.random.RandomState(seed).uniform(-1, 1, (batch, 3, 8, 8)))


def step(noise, y, x_prev, operator=None, scale=0.25, state=None, options_scale=1.0):
    """One soft step from x_prev - 1, where the clean latent is x_prev / 2."""
    operator = operator or get_operator("noise")
    method = get_conditioning_method("ps", Decoder, operator, noise, scale=options_scale)
    x_prev = x_prev.clone().requires_grad_()
    arguments = dict(x_prev=x_prev, x_0_hat=x_prev / 2, measurement=y, noisy_measurement=y, **(state or {}))
    return method.conditioning(x_t=x_prev - 1, scale=scale, **arguments)


def test_gaussian_closed_form():
    """The gradient of || y - 1.5 z || is -1.5 (y - 1.5 z) / || y - 1.5 z ||."""
    z, y = tensor(0), tensor(1)
    got, norm = step(get_noise("gaussian", sigma=0.1), y, z)
    residual = y - 1.5 * z
    assert norm.shape == ()
    assert norm.item() == pytest.approx(residual.norm().item(), rel=1e-12)
    assert torch.allclose(got, z - 1 + 0.25 * 1.5 * residual / residual.norm(), atol=1e-12)
    assert not got.requires_grad
    assert not norm.requires_grad


def test_poisson_closed_form():
    z, y = tensor(0), tensor(1)
    got, norm = step(get_noise("poisson", rate=1.0), y, z)
    residual, weight = y - 1.5 * z, (1 / y.abs()).mean()
    assert norm.item() == pytest.approx((residual.norm() * weight).item(), rel=1e-12)
    assert torch.allclose(got, z - 1 + 0.25 * weight * 1.5 * residual / residual.norm(), atol=1e-12)


def test_poisson_measurement_of_zero_counts_as_none():
    y = tensor(1)
    y[0, 0, 0, 0] = 0
    got, norm = step(get_noise("poisson", rate=1.0), y, tensor(0))
    assert torch.isfinite(got).all()
    assert torch.isfinite(norm)


@pytest.mark.parametrize(("name", "options"), [("gaussian", {"sigma": 0.1}), ("poisson", {"rate": 1.0}), ("clean", {})])
def test_samples_do_not_know_of_each_other(name, options):
    noise = get_noise(name, **options)
    z, y = tensor(0, batch=3), tensor(1, batch=3)
    scale = torch.tensor([0.1, 0.2, 0.3], dtype=torch.float64).view(3, 1, 1, 1)
    together, norms = step(noise, y, z, scale=scale)
    assert norms.shape == (3,)
    for i in range(3):
        alone, norm = step(noise, y[i : i + 1], z[i : i + 1], scale=scale[i].item())
        assert torch.allclose(together[i : i + 1], alone, atol=1e-12)
        assert norms[i].item() == pytest.approx(norm.item(), rel=1e-12)


def test_state_reaches_the_operator():
    mask = (tensor(2)[:, :1] > 0).double()
    z = tensor(0)
    got, _ = step(get_noise("clean"), mask * tensor(1), z, get_operator("inpainting"), state={"mask": mask})
    moved = (got != z - 1).any(1)
    assert torch.equal(moved, mask[:, 0] > 0)


def test_explained_measurement_moves_nothing():
    z = tensor(0)
    got, norm = step(get_noise("clean"), 1.5 * z, z)
    assert norm == 0
    assert torch.equal(got, z - 1)


def test_scale_of_the_settings_where_the_call_has_none():
    z, y = tensor(0), tensor(1)
    noise = get_noise("clean")
    assert torch.equal(step(noise, y, z, scale=None, options_scale=0.7)[0], step(noise, y, z, scale=0.7)[0])


def test_unknown_method():
    with pytest.raises(UserError, match="did you mean 'ps'"):
        get_conditioning_method("pss", Decoder, get_operator("noise"), get_noise("clean"))
