import numpy as np
import pytest
import torch

from ldm_inverse.measurements import get_noise
from tests.reference.recorded import recorded, relative_error
from util.errors import UserError

KINDS = [("gaussian", {"sigma": 0.05}), ("poisson", {"rate": 1.0}), ("clean", {})]


def image(*shape, dtype=torch.float64):
    return torch.from_numpy(np.random.RandomState(0).uniform(-0.9, 0.9, shape)).to(dtype)


def test_recorded():
    arrays, meta = recorded("operators")
    torch.manual_seed(meta["torch_seed"])
    gaussian = get_noise("gaussian", sigma=0.05)(arrays["image"])
    assert relative_error(gaussian, arrays["noise/gaussian_0.05_seed"]) == 0
    rng = np.random.RandomState(meta["numpy_seed_poisson"])
    poisson = get_noise("poisson", rate=1.0, rng=rng)(arrays["image"])
    assert relative_error(poisson, arrays["noise/poisson_1.0_seed"]) == 0
    rng = np.random.RandomState(meta["numpy_seed_poisson"])
    assert torch.equal(get_noise("poisson", rate=1.0)(arrays["image"], rng), poisson)


def sources():
    return [torch.Generator().manual_seed(3), np.random.RandomState(3)]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_gaussian_statistics(dtype):
    x = image(1, 3, 200, 200, dtype=dtype)
    for rng in sources():
        noise = get_noise("gaussian", sigma=0.05)(x, rng) - x
        assert noise.dtype == dtype
        assert abs(noise.mean()) < 4 * 0.05 / 120000**0.5
        assert noise.std().item() == pytest.approx(0.05, rel=0.01)


@pytest.mark.parametrize("rate", [0.5, 4.0])
def test_poisson_statistics(rate):
    """In [0, 1], counts over 255 rate have mean s and variance s / (255 rate)."""
    x = torch.full((1, 3, 200, 200), -0.2, dtype=torch.float64)
    for rng in sources():
        y = (get_noise("poisson", rate=rate)(x, rng) + 1) / 2
        assert y.mean().item() == pytest.approx(0.4, abs=4 * (0.4 / (255 * rate) / 120000) ** 0.5)
        assert y.var().item() == pytest.approx(0.4 / (255 * rate), rel=0.03)
        assert y.min() >= 0
        assert y.max() <= 1


def test_poisson_clamps():
    x = torch.tensor([-3.0, 3.0]).expand(1, 3, 100, 2)
    y = get_noise("poisson", rate=1.0)(x, np.random.RandomState(0))
    assert torch.equal(y[..., 0], torch.full((1, 3, 100), -1.0))
    assert y.max() == 1


@pytest.mark.parametrize(("name", "settings"), KINDS)
def test_repeatable_and_global_numpy_stream_untouched(name, settings):
    x = image(1, 3, 8, 8)
    before = np.random.get_state()[1].copy()
    for first, second in zip(sources(), sources(), strict=True):
        assert torch.equal(get_noise(name, **settings)(x, first), get_noise(name, **settings)(x, second))
    torch.manual_seed(1)
    once = get_noise(name, **settings)(x)
    torch.manual_seed(1)
    assert torch.equal(get_noise(name, **settings)(x), once)
    assert np.array_equal(np.random.get_state()[1], before)


@pytest.mark.parametrize(("name", "settings"), KINDS)
def test_layout_does_not_move_the_draws(name, settings):
    x = image(2, 3, 8, 8)
    for plain, other in zip(sources(), sources(), strict=True):
        noise = get_noise(name, **settings)
        assert torch.equal(noise(x, plain), noise(x.to(memory_format=torch.channels_last), other))


@pytest.mark.parametrize(("name", "settings"), KINDS[:2])
def test_dropped_pixels_have_no_noise_unless_asked(name, settings):
    mask = torch.ones(1, 1, 8, 8, dtype=torch.float64)
    mask[..., :4] = 0
    x = image(2, 3, 8, 8) * mask
    kept_only = get_noise(name, **settings)(x, np.random.RandomState(0), mask=mask)
    everywhere = get_noise(name, **settings, noise_on_dropped=True)(x, np.random.RandomState(0), mask=mask)
    assert (kept_only[..., :4] == 0).all()
    assert (everywhere[..., :4] != 0).any()
    assert torch.equal(kept_only[..., 4:], everywhere[..., 4:])
    assert torch.equal(everywhere, get_noise(name, **settings)(x, np.random.RandomState(0), kernel=mask))


def test_levels():
    assert get_noise("gaussian", sigma=0.3).sigma == 0.3
    assert get_noise("clean").sigma == 0
    assert get_noise("poisson", rate=1.0).sigma is None
    x = image(1, 3, 4, 4)
    assert torch.equal(get_noise("clean")(x), x)


def test_the_share_of_entries_with_noise():
    mask = (torch.rand(1, 1, 100, 100, generator=torch.Generator().manual_seed(0)) > 0.7).double()
    x = torch.zeros(1, 3, 100, 100, dtype=torch.float64)
    for noise in (get_noise("gaussian", sigma=0.3), get_noise("gaussian", sigma=0.3, noise_on_dropped=True)):
        measured = noise(x, np.random.RandomState(0), mask=mask).square().mean().sqrt().item()
        assert 0.3 * noise.noisy_share(mask=mask) ** 0.5 == pytest.approx(measured, rel=0.03)
    assert get_noise("gaussian", sigma=0.3).noisy_share(kernel=mask) == 1


@pytest.mark.parametrize(
    ("name", "settings", "words"),
    [
        ("gaussian", {"sigma": True}, "sigma.*True"),
        ("gaussian", {"sigma": -1}, "sigma.*-1"),
        ("gaussian", {"sigma": "loud"}, "sigma: expected a number from 0 to 1000, or .estimate., got .loud."),
        ("gaussian", {}, "needs sigma"),
        ("poisson", {"rate": 0}, "rate.*above 0"),
        ("poisson", {"rate": float("inf")}, "rate"),
        ("gausian", {"sigma": 1}, "did you mean 'gaussian'"),
        ("gaussian", {"sigm": 1}, "did you mean 'sigma'"),
    ],
)
def test_bad_settings(name, settings, words):
    with pytest.raises(UserError, match=words):
        get_noise(name, **settings)


@pytest.mark.parametrize("sigma", [0.01, 0.1, 0.4])
def test_the_level_is_estimated_in_the_measurements_own_range(sigma):
    slope = torch.linspace(-0.9, 0.9, 256).expand(1, 3, 256, 256)  # in [-1, 1], where a level in [0, 1] is half as high
    noise = get_noise("gaussian", sigma="estimate")
    assert noise.sigma is None
    noisy = get_noise("gaussian", sigma=sigma)(slope, np.random.RandomState(0))
    assert noise.of(noisy).sigma == pytest.approx(sigma, rel=0.03)
    assert noise.of(noisy[:, :1]).sigma == pytest.approx(sigma, rel=0.03)


def test_a_level_to_estimate_makes_no_noise():
    noise = get_noise("gaussian", sigma="estimate")
    with pytest.raises(UserError, match="--measurement"):
        noise(torch.zeros(1, 3, 8, 8))
    with pytest.raises(UserError, match=r"needs a picture, and the measurement has shape \(1, 2, 8, 8\)"):
        noise.of(torch.zeros(1, 2, 8, 8))
    with pytest.raises(UserError, match="sigma"):
        get_noise("gaussian", sigma="guess")
    other = get_noise("poisson", rate=1)
    assert other.of(torch.zeros(1)) is other
