import numpy as np
import torch
from PIL import Image
from skimage.data import astronaut

from ldm_inverse.measurements import get_operator


def test_agrees_with_pillows_grey():
    pixels = astronaut()[::4, ::4]
    x = torch.from_numpy(pixels.copy()).permute(2, 0, 1)[None] / 127.5 - 1
    y = get_operator("colourisation")(x)
    assert y.shape == (1, 1, 128, 128)
    grey = np.asarray(Image.fromarray(pixels).convert("L"))
    assert np.abs((y[0, 0].numpy() + 1) * 127.5 - grey).max() <= 0.51  # Pillow rounds


def test_the_baseline_is_the_grey_picture():
    operator = get_operator("colourisation")
    x = torch.rand(2, 3, 8, 9) * 2 - 1
    y = operator(x)
    restored = operator.baseline(y, x.shape, 0.0).clamp(-1, 1)
    assert torch.equal(restored, y.expand(-1, 3, -1, -1))
    assert torch.allclose(operator(restored), y, atol=1e-6)
