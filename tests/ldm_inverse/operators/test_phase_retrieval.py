import numpy as np
import pytest
import torch
from skimage.data import astronaut

from ldm_inverse.measurements import get_operator
from tests.reference.recorded import recorded, relative_error
from util.errors import UserError


def test_recorded():
    arrays, meta = recorded("operators")
    x = torch.from_numpy(np.random.RandomState(meta["phase_retrieval_seed"]).uniform(-1, 1, (1, 3, 256, 256)))
    y = get_operator("phase_retrieval", oversample=2.0).double()(x)
    assert relative_error(y[0, :, ::32, ::32], arrays["phase_retrieval/2.0"]) < 1e-6


def test_energy_is_kept_and_the_middle_is_the_mean():
    x = torch.from_numpy(np.random.RandomState(0).uniform(-1, 1, (1, 3, 16, 20)))
    y = get_operator("phase_retrieval", oversample=1.0).double()(x)
    assert y.shape == (1, 3, 80, 84)
    assert torch.allclose(y.square().sum(), x.square().sum())
    assert torch.allclose(y[..., 40, 42] * (80 * 84) ** 0.5, x.sum((-2, -1)).abs())


def test_equivalents_have_the_same_magnitudes():
    operator = get_operator("phase_retrieval", oversample=1.0).double()
    x = torch.from_numpy(np.random.RandomState(0).uniform(-1, 1, (2, 3, 16, 20)))
    images = operator.equivalents(x)
    assert torch.equal(images[0], x)
    assert len({tuple(image.flatten().tolist()) for image in images}) == 4
    for image in images:
        assert torch.allclose(operator(image), operator(x), atol=1e-12)


def test_the_baseline_finds_a_photograph_or_an_equivalent():
    face = torch.from_numpy(astronaut()[40:168:4, 160:288:4].copy()).permute(2, 0, 1)[None] / 127.5 - 1
    x = torch.cat([face, -face.flip(-1)])
    operator = get_operator("phase_retrieval", oversample=1.0)
    y = operator(x)
    found = operator.baseline(y, x.shape, 0.0).clamp(-1, 1)
    assert (operator(found) - y).square().mean() < 0.01 * y.square().mean()
    for image in range(2):
        errors = [(e - x)[image].square().mean() for e in operator.equivalents(found)]
        assert min(errors) < 0.04 < 0.2 < max(errors)
    alone = operator.baseline(y[1:], x[1:].shape, 0.0).clamp(-1, 1)
    assert torch.allclose(alone, found[1:], atol=1e-3)


def test_the_picture_is_logarithmic():
    operator = get_operator("phase_retrieval")
    y = torch.tensor([-0.01, 0.0, 1e-3, 0.1, 10.0, 300.0])
    assert torch.allclose(operator.picture(y), torch.tensor([-1.0, -1.0, -1.0, 0.0, 1.0, 1.0]), atol=1e-6)


@pytest.mark.parametrize("value", [-1, 17, "two", None])
def test_bad_settings(value):
    with pytest.raises(UserError, match="oversample"):
        get_operator("phase_retrieval", oversample=value)
