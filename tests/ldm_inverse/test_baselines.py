"""Baselines without a model, on a photograph."""

import time

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from scipy.interpolate import griddata
from skimage.data import astronaut
from skimage.restoration import denoise_tv_chambolle

from ldm_inverse.baselines import hybrid_input_output, interpolate
from ldm_inverse.measurements import Operator, get_noise, get_operator
from util.errors import UserError


@pytest.fixture(scope="module")
def photograph():
    """A face, (1, 3, 96, 96)."""
    face = Image.fromarray(astronaut()[:200, 120:320]).resize((96, 96), Image.Resampling.LANCZOS)
    return torch.from_numpy(np.array(face)).permute(2, 0, 1)[None].float() / 127.5 - 1


def baseline(operator, y, shape, sigma, state):
    return operator.baseline(y, shape, sigma, **state).clamp(-1, 1)


def psnr(truth, image):
    return -10 * torch.log10((truth - image).square().mean() / 4).item()


def measure(name, x, sigma, **settings):
    operator = get_operator(name, **settings)
    state = operator.draw(x.shape, np.random.RandomState(0))
    y = get_noise("gaussian", sigma=sigma)(operator(x, **state), np.random.RandomState(1), **state)
    return operator, y, state


@pytest.mark.parametrize(
    ("name", "settings", "gain"),
    [("gaussian_blur", {}, 2), ("motion_blur", {"kernel_size": 31}, 4)],
)
@pytest.mark.parametrize("sigma", [0.0, 0.01, 0.05])
def test_deconvolution_beats_the_blurred(photograph, name, settings, gain, sigma):
    operator, y, state = measure(name, photograph, sigma, **settings)
    restored = baseline(operator, y, photograph.shape, sigma, state)
    assert psnr(photograph, restored) > psnr(photograph, y) + gain * (0.5 if sigma == 0.05 else 1)
    assert restored.dtype == photograph.dtype
    # Not told the noise, it comes near.
    assert psnr(photograph, baseline(operator, y, photograph.shape, None, state)) > psnr(photograph, restored) - 0.5


def test_deconvolution_is_a_proper_estimate(photograph):
    """Told too little or too much noise, it is worse."""
    operator, y, state = measure("motion_blur", photograph, 0.03, kernel_size=31)
    right, less, more = (
        psnr(photograph, baseline(operator, y, photograph.shape, s, state)) for s in (0.03, 0.003, 0.3)
    )
    assert right > less
    assert right > more


@pytest.mark.parametrize("sigma", [0.1, 0.3])
def test_denoising_beats_the_noisy(photograph, sigma):
    operator, y, state = measure("noise", photograph, sigma)
    restored = baseline(operator, y, photograph.shape, sigma, state)
    assert psnr(photograph, restored) > psnr(photograph, y) + 5
    assert restored.dtype == photograph.dtype
    # Not told the noise, it comes near.
    assert psnr(photograph, baseline(operator, y, photograph.shape, None, state)) > psnr(photograph, restored) - 0.5


@pytest.mark.parametrize("sigma", [0.1, 0.3])
def test_total_variation_is_scikit_images_and_takes_away_what_is_noise(photograph, sigma, monkeypatch):
    operator, y, state = measure("noise", photograph, sigma, baseline="total_variation")
    weights = []

    def noted(image, weight, **options):
        weights.append(weight)
        return denoise_tv_chambolle(image, weight=weight, **options)

    monkeypatch.setattr("skimage.restoration.denoise_tv_chambolle", noted)
    restored = operator.baseline(y, photograph.shape, sigma, **state)
    assert psnr(photograph, restored) > psnr(photograph, y) + 3

    # Of all weights, the one that takes as much away as there is noise.
    pixels = y[0].permute(1, 2, 0).double().numpy()
    less, own, more = (denoise_tv_chambolle(pixels, w * weights[-1], channel_axis=-1) for w in (0.9, 1, 1.1))
    assert np.std(pixels - less) < sigma < np.std(pixels - more)
    assert np.std(pixels - own) == pytest.approx(sigma, rel=0.02)
    assert np.abs(own - restored[0].permute(1, 2, 0).numpy()).max() < 1e-6

    # Not told the noise, it comes near; a batch is each image alone.
    assert psnr(photograph, operator.baseline(y, photograph.shape, None)) > psnr(photograph, restored) - 1
    both = operator.baseline(torch.cat([y, -y]), (2, *photograph.shape[1:]), sigma)
    assert torch.allclose(both[:1], restored)


def test_an_unknown_baseline_is_told():
    with pytest.raises(
        UserError, match="baseline: expected 'non_local_means' or 'total_variation', got 'total_variance'"
    ):
        get_operator("noise", baseline="total_variance")


def test_upscaling_is_bicubic(photograph):
    operator, y, state = measure("super_resolution", photograph, 0.0, scale_factor=4)
    got = baseline(operator, y, photograph.shape, 0.0, state)
    want = [np.asarray(Image.fromarray(c.numpy()).resize((96, 96), Image.Resampling.BICUBIC)) for c in y[0]]
    inner = (..., slice(8, -8), slice(8, -8))
    assert torch.allclose(got[inner], torch.from_numpy(np.stack(want))[None].clamp(-1, 1)[inner], atol=1e-4)
    odd = get_operator("super_resolution", scale_factor=7)
    assert baseline(odd, odd(photograph), photograph.shape, 0.0, {}).shape == photograph.shape


def test_interpolation(photograph):
    settings = {"mask_type": "random", "mask_prob_range": (0.8, 0.8)}
    operator, y, state = measure("inpainting", photograph, 0.0, **settings)
    got = baseline(operator, y, photograph.shape, 0.0, state)
    kept = state["mask"][0, 0].numpy() > 0
    assert torch.equal(got * state["mask"], y)
    points, values = np.argwhere(kept), y[0, 1].numpy()[kept]
    want = griddata(points, values, np.argwhere(~kept), method="linear")
    inside = ~np.isnan(want)
    assert np.abs(got[0, 1].numpy()[~kept] - want)[inside].max() < 1e-6
    assert np.isin(got[0, 1].numpy()[~kept][~inside], values).all()
    assert psnr(photograph, got) > psnr(photograph, y) + 8


def test_interpolation_does_not_try_every_triangle():
    mask = torch.from_numpy(np.random.RandomState(0).rand(1, 1, 256, 256) > 0.7).float()
    rows, columns = torch.meshgrid(*[torch.linspace(-1, 1, 256)] * 2, indexing="ij")
    plane = torch.stack([rows, columns, rows - columns])[None]
    start = time.process_time()
    filled = interpolate(plane * mask, mask)
    assert time.process_time() - start < 10  # minutes otherwise
    inner = (..., slice(8, -8), slice(8, -8))
    assert torch.allclose(filled[inner], plane[inner], atol=1e-5)


@pytest.mark.parametrize("kept", [[], [(2, 3)], [(1, 1), (4, 4)], [(1, 1), (3, 3), (5, 5), (7, 7)]])
def test_interpolation_of_too_few_pixels(kept):
    mask = torch.zeros(1, 1, 8, 8)
    for row, column in kept:
        mask[..., row, column] = 1
    y = mask * torch.arange(64.0).reshape(1, 1, 8, 8)
    filled = interpolate(y, mask)
    assert np.isin(filled.numpy(), y.numpy()).all()
    assert torch.equal(filled * mask, y)
    assert not kept or filled.min() > 0


def test_otherwise_the_measurement_or_nothing(photograph):
    operator, y, state = measure("camera_blur", photograph, 0.0, kernel_size=9)
    assert torch.equal(baseline(operator, y, photograph.shape, 0.0, state), y.clamp(-1, 1))
    y = torch.ones(1, 3, 5, 7)
    assert torch.equal(baseline(Operator(), y, photograph.shape, 0.0, {}), torch.zeros_like(photograph))


def test_batch_is_each_image_alone(photograph):
    x = torch.cat([photograph, photograph.flip(-1)])
    operator, y, state = measure("motion_blur", x, 0.01, kernel_size=15)
    together = baseline(operator, y, x.shape, 0.01, state)
    for i in range(2):
        alone = baseline(operator, y[i : i + 1], x[:1].shape, 0.01, {"kernel": state["kernel"][i : i + 1]})
        assert torch.allclose(together[i : i + 1], alone, atol=1e-5)


@pytest.mark.parametrize("iterations", [1, 2, 3, 8])
def test_hybrid_input_output_is_fienups(iterations):
    """Against the algorithm as in Fienup's paper, on whole spectra, for one try and the channel that is kept."""
    side, pad = 8, 4
    truth = np.random.RandomState(5).uniform(-1, 1, (1, 3, side, side))
    magnitude = np.abs(np.fft.fft2(np.pad(truth, ((0, 0), (0, 0), (pad, pad), (pad, pad))), norm="ortho"))
    support = np.pad(np.ones((side, side), dtype=bool), pad)
    g = np.random.RandomState(0).uniform(-1, 1, (1, 3, side + 2 * pad, side + 2 * pad)) * support
    for iteration in range(iterations + iterations // 8):
        spectrum = np.fft.fft2(g, norm="ortho")
        fitted = np.fft.ifft2(magnitude * spectrum / np.abs(spectrum), norm="ortho").real
        allowed = support & (np.abs(fitted) <= 1)
        feedback = np.where(allowed, fitted, g - 0.9 * fitted)
        g = feedback if iteration < iterations else support * fitted.clip(-1, 1)
    y = torch.from_numpy(np.fft.fftshift(magnitude, axes=(-2, -1)))
    found = hybrid_input_output(y, pad, iterations, tries=1)
    assert np.abs(found[0, 1].numpy() - g[0, 1, pad:-pad, pad:-pad]).max() < 1e-9


def test_hybrid_input_output_of_grey_is_that_of_the_channel():
    truth = torch.from_numpy(np.random.RandomState(5).uniform(-1, 1, (1, 1, 8, 8)))
    magnitude = torch.fft.fftshift(torch.fft.fft2(F.pad(truth, [4] * 4), norm="ortho").abs(), dim=(-2, -1))
    found = hybrid_input_output(magnitude, 4, iterations=8, tries=1)
    first = hybrid_input_output(magnitude.expand(1, 3, -1, -1), 4, iterations=8, tries=1)[:, :1]
    alike = [first, -first, first.flip(-2, -1), -first.flip(-2, -1)]  # of the same magnitudes
    assert any(torch.allclose(found, one, atol=1e-9) for one in alike)
