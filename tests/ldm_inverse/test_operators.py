"""What every registered operator has to do. An operator is tested by being registered.

One that cannot be built or drawn from its defaults has its settings in `settings`.
"""

import numpy as np
import pytest
import torch
from safetensors.torch import load, save

from ldm_inverse.measurements import get_operator, operator_names
from util.errors import UserError

SIZES = [(32, 32), (33, 40), (45, 37), (128, 128)]
SETTINGS = {
    "camera_blur": [{"kernel_size": 9}],
    "gaussian_blur": [{"kernel_size": 61, "intensity": 3.0}, {"kernel_size": 7, "intensity": 2.0}],
    "inpainting": [
        {"mask_type": "random", "mask_prob_range": (0.3, 0.6)},
        {"mask_type": "box", "mask_len_range": (5, 12), "margin": (4, 6)},
        {"mask_type": "extreme", "mask_len_range": (5, 12), "margin": (4, 6)},
        {"mask_type": "both", "mask_len_range": (5, 12), "mask_prob_range": (0.3, 0.6), "margin": (4, 6)},
    ],
    "motion_blur": [{"kernel_size": 61}, {"kernel_size": 3}, {"kernel": np.triu(np.ones((5, 9)))}],
    "phase_retrieval": [{"oversample": 1.0}],
    "super_resolution": [{"scale_factor": 4}, {"scale_factor": 3}, {"scale_factor": 1}],
}
CASES = [(name, i) for name in operator_names() for i in range(len(SETTINGS.get(name, [{}])))]


@pytest.fixture(params=CASES, ids=lambda case: f"{case[0]}-{case[1]}")
def build(request, tiny_blur_options):
    """A function that builds the operator under test."""
    name, i = request.param
    settings = {"opt_yml_path": tiny_blur_options, "random_code": True} if name == "nonlinear_blur" else {}
    settings |= SETTINGS.get(name, [{}])[i]
    return lambda: get_operator(name, **settings)


def image(shape, dtype=torch.float64, seed=0):
    """A random image in [-0.9, 0.9]."""
    return torch.from_numpy(np.random.RandomState(seed).uniform(-0.9, 0.9, shape)).to(dtype)


def accepted(operator, sizes=SIZES):
    """Those sizes that the operator takes."""

    def takes(size):
        try:
            operator.check_size(*size)
        except UserError:
            return False
        return True

    return [size for size in sizes if takes(size)]


def case(build, batch=2, dtype=torch.float64):
    """An operator, an image of the first size it takes, and drawn state."""
    operator = build().to(dtype)
    x = image((batch, 3, *accepted(operator)[0]), dtype)
    return operator, x, operator.draw(x.shape, np.random.RandomState(1))


def test_takes_some_size(build):
    assert accepted(build())


def test_adjoint(build):
    operator = build().double()
    if not operator.linear:
        with pytest.raises(NotImplementedError):
            operator.transpose(torch.zeros(1, 3, 8, 8))
        return
    for size in accepted(operator):
        x = image((2, 3, *size))
        state = operator.draw(x.shape, np.random.RandomState(1))
        measured = operator(x, **state)
        y = image(measured.shape, seed=2)
        back = operator.transpose(y, shape=x.shape, **state)
        assert back.shape == x.shape
        assert (measured * y).sum().item() == pytest.approx((x * back).sum().item(), rel=1e-12)


def test_linear_where_it_says_so(build):
    operator, x, state = case(build)
    other = image(x.shape, seed=3)
    together = operator(2 * x - 0.5 * other, **state)
    apart = 2 * operator(x, **state) - 0.5 * operator(other, **state)
    assert torch.allclose(together, apart, atol=1e-12) == operator.linear


def test_gradient_is_that_of_finite_differences(build):
    operator, x, state = case(build, batch=1)
    direction = image(x.shape, seed=4)
    weight = image(operator(x, **state).shape, seed=5)

    def value(step):
        return (operator(x + step * direction, **state) * weight).sum().item()

    x.requires_grad_()
    (gradient,) = torch.autograd.grad((operator(x, **state) * weight).sum(), x)
    differences = (value(1e-6) - value(-1e-6)) / 2e-6
    assert (gradient * direction).sum().item() == pytest.approx(differences, rel=1e-6, abs=1e-6)


def test_gradient_reaches_the_image_alone(build):
    operator, x, state = case(build)
    assert not any(p.requires_grad for p in operator.parameters())
    measured = operator(x.requires_grad_(), **{key: value.requires_grad_() for key, value in state.items()})
    measured.square().mean().backward()
    assert x.grad is not None
    assert all(p.grad is None for p in operator.parameters())
    assert all(b.grad is None and not b.requires_grad for b in operator.buffers())


def test_dtype_follows_the_image(build):
    double, x, state = case(build)
    single = build()
    y = single(x.float(), **state)
    assert y.dtype == torch.float32
    assert double(x, **state).dtype == torch.float64
    assert torch.allclose(y.double(), double(x, **state), atol=1e-5)


def test_batch_is_each_image_alone(build):
    operator, x, state = case(build, batch=3)
    together = operator(x, **state)
    for i in range(3):
        own = {key: value[i : i + 1] if len(value) > 1 else value for key, value in state.items()}
        assert torch.allclose(together[i : i + 1], operator(x[i : i + 1], **own), rtol=0, atol=1e-12)


def test_draws_one_image_after_the_other(build):
    operator, x, state = case(build, batch=2)
    rng = np.random.RandomState(1)
    for i in range(2):
        for key, value in operator.draw(x[:1].shape, rng).items():
            assert torch.equal(value[0], state[key][i])


def test_deterministic_and_global_streams_untouched(build):
    numpy_before, torch_before = np.random.get_state()[1].copy(), torch.get_rng_state()
    results = []
    for _ in range(2):
        operator, x, state = case(build)
        results.append(operator(x, **state))
    assert torch.equal(*results)
    assert np.array_equal(np.random.get_state()[1], numpy_before)
    assert torch.equal(torch.get_rng_state(), torch_before)


def test_memory_layout_changes_nothing(build):
    operator, x, state = case(build)
    other = operator(x.to(memory_format=torch.channels_last), **state)
    assert torch.allclose(operator(x, **state), other, rtol=0, atol=1e-12)


def test_state_given_back_gives_the_same_measurement(build):
    operator, x, state = case(build)
    saved = save({"measurement": operator(x, **state), **state})
    restored = load(saved)
    measurement = restored.pop("measurement")
    assert torch.equal(build().double()(x, **restored), measurement)


def test_sizes_it_refuses_are_refused_in_a_line(build):
    operator = build()
    sizes = [*SIZES, (1, 1), (2, 300), (300, 2)]
    for height, width in sorted(set(sizes) - set(accepted(operator, sizes))):
        with pytest.raises(UserError, match=f"{height} x {width}") as caught:
            operator.check_size(height, width)
        assert len(str(caught.value).splitlines()) == 1


def test_unknown_operator_offers_the_nearest():
    with pytest.raises(UserError, match="did you mean 'gaussian_blur'"):
        get_operator("gausian_blur")
    with pytest.raises(UserError, match="did you mean 'kernel_size'"):
        get_operator("gaussian_blur", kernelsize=61)
