"""Written files are read back by other libraries: Pillow, tifffile, NumPy and safetensors."""

import io

import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import load

from data.picture_encoding import SAVE_FORMATS, SUFFIX, encode, encode_png
from data.pictures import read_pixels

H, W = 12, 16


@pytest.fixture(params=[1, 3])
def image(request):
    """Values beyond [-1, 1] among them."""
    return np.random.RandomState(0).uniform(-1.2, 1.2, (H, W, request.param))


def test_png_is_srgb(image):
    picture = Image.open(io.BytesIO(encode(image, "png")))
    assert picture.info["srgb"] == 0
    assert np.abs(np.asarray(picture).reshape(image.shape) - (image.clip(-1, 1) + 1) * 127.5).max() <= 0.5


def test_png_keeps_pixels():
    pixels = np.random.RandomState(0).randint(0, 256, (H, W, 3)).astype(np.uint8)
    assert np.array_equal(np.asarray(Image.open(io.BytesIO(encode_png(pixels)))), pixels)


def test_sixteen_bits_are_seen_by_pillow(image):
    picture = Image.open(io.BytesIO(encode(image, "png16")))
    picture.load()
    assert picture.info["srgb"] == 0
    expected = (image.clip(-1, 1) + 1) / 2
    if image.shape[2] == 1:
        assert np.abs(np.asarray(picture).astype(float)[..., None] - 65535 * expected).max() <= 0.5
    else:  # of which Pillow shows the high bytes
        assert np.abs(np.asarray(picture) - 255 * expected).max() <= 1


@pytest.mark.parametrize("span", [None, (-1000.0, 3000.0)])
def test_float_formats_are_not_cut(image, span):
    tifffile = pytest.importorskip("tifffile")
    unit = (image + 1) / 2

    def expected(default):
        low, high = span or default
        return unit * (high - low) + low

    tiff = tifffile.imread(io.BytesIO(encode(image, "tiff", span))).reshape(image.shape)
    assert tiff.dtype == np.float32
    assert np.allclose(tiff, expected((0, 1)), rtol=1e-6, atol=1e-6)
    npy = np.load(io.BytesIO(encode(image, "npy", span)))
    assert np.allclose(npy.transpose(1, 2, 0), expected((-1, 1)), rtol=1e-6, atol=1e-6)
    assert np.array_equal(load(encode(image, "safetensors", span))["image"], npy)


@pytest.mark.parametrize("kind", [kind for kind in SAVE_FORMATS if kind in ("png", "png16", "tiff")])
def test_pictures_are_read_back_as_they_were(image, kind, tmp_path):
    image = image.clip(-1, 1)
    path = tmp_path / f"a{SUFFIX[kind]}"
    path.write_bytes(encode(image, kind))
    pixels = read_pixels(path)
    pixels = pixels / 127.5 - 1 if kind == "png" else pixels
    assert np.abs(pixels - image).max() <= {"png": 1 / 255, "png16": 1 / 65535, "tiff": 1e-6}[kind]
