"""Against Pillow, whose library is the one that most JPEG files come from."""

import io

import numpy as np
import pytest
import torch
from PIL import Image
from skimage.data import astronaut, coffee

from ldm_inverse.measurements import get_operator
from ldm_inverse.operators.jpeg import CHROMINANCE, LUMINANCE, quantisation_table
from util.errors import UserError

PICTURES = {"face": astronaut()[:256, 128:384], "odd sides": coffee()[100:201, 50:193], "small": coffee()[:8, :9]}


def pillow(pixels, quality, subsampling):
    """The file of a picture (H, W, 3), opened."""
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "jpeg", quality=quality, subsampling=":".join(str(subsampling)))
    return Image.open(file)


def to_image(pixels):
    return torch.from_numpy(pixels.copy()).permute(2, 0, 1)[None].double() / 127.5 - 1


def to_pixels(image):
    return (image[0].permute(1, 2, 0).numpy() + 1) * 127.5


@pytest.mark.parametrize("name", PICTURES)
@pytest.mark.parametrize("subsampling", [420, 444])
@pytest.mark.parametrize(("quality", "levels"), [(5, 0.05), (10, 0.2), (50, 0.2), (95, 0.45)])
def test_agrees_with_pillow(name, subsampling, quality, levels):
    """But for coefficients so near to a half that Pillow's integer arithmetic decides; they spread over a block."""
    pixels = PICTURES[name]
    got = to_pixels(get_operator("jpeg", quality=quality, subsampling=subsampling)(to_image(pixels)))
    want = np.asarray(pillow(pixels, quality, subsampling)).astype(float)
    assert np.abs(got - want).mean() < levels
    assert np.abs(got - want).mean() < 0.4 * np.abs(want - pixels).mean()
    assert np.allclose(got, got.round(), atol=1e-9), "8 bits"


@pytest.mark.parametrize("width", [70, 74, 90])
def test_the_last_columns_agree_with_pillow(width):
    """Where the width is no multiple of 16, the last column is repeated before chroma is averaged."""
    colours = Image.fromarray(np.random.RandomState(9).randint(0, 256, (8, 13, 3)).astype(np.uint8))
    pixels = np.asarray(colours.resize((width, 48), Image.Resampling.BICUBIC))
    got = to_pixels(get_operator("jpeg", quality=10)(to_image(pixels)))
    assert np.abs(got - np.asarray(pillow(pixels, 10, 420)))[:, -16:].mean() < 0.1


@pytest.mark.parametrize("quality", [5, 24, 49, 50, 51, 90, 95])
def test_the_tables_are_pillows(quality):
    file = pillow(PICTURES["small"], quality, 444)
    file.load()
    assert sorted(quantisation_table(LUMINANCE, quality)) == sorted(file.quantization[0])
    assert sorted(quantisation_table(CHROMINANCE, quality)) == sorted(file.quantization[1])


def test_again_changes_little():
    """A decoded file is on its grid: saved once more, it changes only by rounding to 8 bits."""
    x = to_image(PICTURES["face"])
    operator = get_operator("jpeg", quality=10, subsampling=444)
    once = operator(x)
    assert (operator(once) - once).abs().mean() < 0.05 * (once - x).abs().mean()


def test_single_precision_decides_halves_alike():
    """Flat pictures are full of coefficients at an exact half."""
    values = torch.arange(256).view(-1, 1, 1, 1).expand(-1, 3, 8, 8)
    x = values.double() / 127.5 - 1
    for quality in (5, 30, 75):
        operator = get_operator("jpeg", quality=quality)
        assert torch.allclose(operator(x.float()).double(), operator(x), atol=1e-6)


def test_the_gradient_passes_straight_through():
    x = to_image(PICTURES["odd sides"]).requires_grad_()
    weight = torch.randn(x.shape, generator=torch.Generator().manual_seed(0), dtype=x.dtype)
    for subsampling in (444, 420):
        operator = get_operator("jpeg", subsampling=subsampling)
        found, smooth = (torch.autograd.grad((f(x) * weight).sum(), x)[0] for f in (operator, operator.smooth))
        assert torch.equal(found, smooth)
        assert torch.equal(found, weight) == (subsampling == 444)
        # No step of the gradient is lost on brightness, whatever the subsampling.
        grey = torch.ones_like(x)
        assert torch.allclose(operator.smooth(x.detach() + 0.1 * grey), operator.smooth(x.detach()) + 0.1 * grey)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"quality": 4}, "quality.*from 5 to 95"),
        ({"quality": 96}, "quality.*from 5 to 95"),
        ({"quality": "good"}, "quality.*'good'"),
        ({"subsampling": 422}, "subsampling: expected 420 or 444, got 422"),
        ({"subsampling": [420]}, "subsampling: expected 420 or 444"),
    ],
)
def test_bad_settings(settings, words):
    with pytest.raises(UserError, match=words):
        get_operator("jpeg", **settings)
