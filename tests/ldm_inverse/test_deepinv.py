"""Operators of deepinv in a task, and our solvers as its reconstructor. What needs it is left out where it is not
installed."""

import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from data.dataloader import to_tensor
from data.pictures import read_pixels
from ldm_inverse.measurements import get_operator
from ldm_inverse.properties import PROPERTIES
from ldm_inverse.solvers.resample_settings import ResampleSettings
from ldm_inverse.solvers.solver import Solver
from model_loader import get_model, load_yaml
from tests.tiny import write_model
from util.errors import UserError
from util.settings import read

OPERATORS = {
    "inpainting": {"physics": "Inpainting", "img_size": [3, 32, 32], "mask": 0.4},
    "downsampling": {"physics": "Downsampling", "img_size": [3, 32, 32], "factor": 2, "filter": "gaussian"},
    "decolorize": {"physics": "Decolorize"},
    "demosaicing": {"physics": "Demosaicing", "img_size": [3, 32, 32]},
}


@pytest.fixture(scope="module")
def deepinv():
    return pytest.importorskip("deepinv")


@pytest.fixture(scope="module")
def prior(tmp_path_factory):
    """A tiny model for images of 32x32."""
    return get_model(*write_model(tmp_path_factory.mktemp("model")), device="cpu")


@pytest.mark.parametrize("property", PROPERTIES)
@pytest.mark.parametrize("name", OPERATORS)
def test_its_operators_have_all_properties(name, property, deepinv):
    assert PROPERTIES[property](lambda: get_operator("deepinv", **OPERATORS[name]))


def test_a_filter_is_a_file(deepinv, tmp_path):
    kernel = np.tri(3, 5) / np.tri(3, 5).sum()
    np.save(tmp_path / "psf.npy", kernel)
    x = torch.from_numpy(np.random.RandomState(0).uniform(-1, 1, (1, 3, 24, 32))).float()
    theirs = get_operator("deepinv", physics="Blur", filter=str(tmp_path / "psf.npy"), padding="circular")
    ours = get_operator("motion_blur", kernel=kernel, kernel_is="psf", boundary="circular")
    assert torch.allclose(theirs(x), ours(x), atol=1e-5)


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({}, "needs physics"),
        ({"physics": "Blurr"}, "expected the name of a linear operator of deepinv.physics, got 'Blurr'"),
        ({"physics": "Haze"}, "expected the name of a linear operator"),
        ({"physics": "Inpainting", "img_sise": [3, 8, 8]}, "deepinv's Inpainting cannot be built with img_sise"),
    ],
)
def test_what_cannot_be_built_is_told_in_a_line(settings, told, deepinv):
    with pytest.raises(UserError, match=told) as caught:
        get_operator("deepinv", **settings)
    assert len(str(caught.value).splitlines()) == 1


def test_without_it_a_line_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "deepinv", None)
    with pytest.raises(UserError, match="deepinv is not installed: pip install deepinv"):
        get_operator("deepinv", physics="Blur")


def test_it_is_imported_only_when_asked_for():
    code = "import sys, ldm_inverse.measurements; assert 'deepinv' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.slow
def test_the_reconstructor_restores_deepinvs_images(deepinv):
    from ldm_inverse.deepinv import Reconstructor

    preset = load_yaml("configs/presets/fastest.yaml")
    settings = read(ResampleSettings, preset["conditioning"]["resample"])
    solver = Solver("resample", steps=preset["ddim_steps"], settings=settings)
    rng = torch.Generator().manual_seed(0)
    physics = deepinv.physics.Inpainting(
        (3, 128, 128), mask=0.5, rng=rng, noise_model=deepinv.physics.GaussianNoise(0.02, rng=rng)
    )
    face = to_tensor(read_pixels("data/demo/900000.png"))[None] / 2 + 0.5
    y, model = physics(face), get_model(None, "models/demo/model.safetensors", device="cpu")
    found = Reconstructor(model, solver)(y, physics)
    assert found.shape == face.shape
    residual = (physics.A(found) - y)[physics.A(torch.ones_like(face)) > 0]
    assert 0.5 < residual.square().mean().sqrt() / 0.02 < 1.5
    assert -10 * (found - face).square().mean().log10() > 32
    assert torch.equal(found, Reconstructor(model, solver)(y, physics))


class Physics(torch.nn.Module):
    """A linear operator as deepinv has them: every second row."""

    img_size = (3, 32, 32)

    def A(self, x):  # noqa: N802 (its name there)
        return x[..., ::2, :]

    def A_adjoint(self, y):  # noqa: N802
        x = y.new_zeros(*y.shape[:-2], 2 * y.shape[-2], y.shape[-1])
        x[..., ::2, :] = y
        return x


@pytest.fixture
def reconstructor(monkeypatch):
    """Our reconstructor, also where deepinv is not installed."""
    monkeypatch.setitem(sys.modules, "deepinv", SimpleNamespace(models=SimpleNamespace(Reconstructor=torch.nn.Module)))
    monkeypatch.delitem(sys.modules, "ldm_inverse.deepinv", raising=False)
    from ldm_inverse.deepinv import Reconstructor

    yield Reconstructor
    sys.modules.pop("ldm_inverse.deepinv", None)


def test_each_image_of_a_batch_has_its_own_noise_level(reconstructor, prior):
    latent = {"max_iters": 20, "eps": "noise"}
    stages = {"interval": 2, "soft_step": False, "stages": {"plain": 0, "latent": 1}, "latent": latent}
    solver = Solver("resample", steps=4, settings=read(ResampleSettings, stages))
    physics, levels = Physics(), torch.tensor([0.02, 0.5])
    y = torch.rand(2, 3, 16, 32, generator=torch.Generator().manual_seed(0))
    physics.noise_model = SimpleNamespace(sigma=levels)
    both = reconstructor(prior, solver)(y, physics)
    for own in range(2):
        alone = reconstructor(prior, solver, seed=own, sigma=float(levels[own]))(y[own : own + 1], physics)
        assert torch.allclose(both[own], alone[0], atol=1e-3)
    other = reconstructor(prior, solver, seed=1, sigma=0.02)(y[1:], physics)
    assert not torch.allclose(both[1], other[0], atol=1e-2)
    physics.noise_model = SimpleNamespace(sigma=torch.ones(3))
    with pytest.raises(UserError, match="3 noise levels for a batch of 2"):
        reconstructor(prior, solver)(y, physics)


def test_the_noise_is_drawn_where_the_measurement_is(reconstructor, prior, monkeypatch):
    seen = []
    monkeypatch.setattr("ldm_inverse.deepinv.restore", lambda *args, generator: seen.extend(generator) or torch.ones(1))
    monkeypatch.setattr("ldm_inverse.deepinv.Generator", SeenGenerator)
    y = torch.rand(1, 3, 16, 32)
    reconstructor(prior, Solver("dps", steps=2))(y, Physics())
    assert [generator.given for generator in seen] == [y.device]


class SeenGenerator:
    """Says where it was asked to draw: a generator of the processor cannot draw on a card."""

    def __init__(self, device=None):
        self.given = device

    def manual_seed(self, seed):
        return self
