import logging

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.ndimage import convolve, correlate
from skimage.data import astronaut

from data.sources import Origin
from ldm_inverse.measurements import get_operator
from ldm_inverse.operators.base import linear_map
from ldm_inverse.operators.blur import Blur
from ldm_inverse.operators.kernels import gaussian_kernel
from ldm_inverse.task import Task
from tests.reference.recorded import recorded, relative_error
from util.errors import UserError


def image(*shape, seed=0):
    return torch.from_numpy(np.random.RandomState(seed).uniform(-1, 1, shape))


def off_centre(size=9):
    """A kernel whose support misses the middle."""
    kernel = np.zeros((size, size))
    kernel[1, 5:8] = (0.2, 0.3, 0.5)
    return kernel


def test_recorded_gaussian():
    arrays, _ = recorded("operators")
    for size, sigma in ((61, 3.0), (9, 1.5)):
        name = f"gaussian_blur/{size}_{sigma}"
        operator = get_operator("gaussian_blur", kernel_size=size, intensity=sigma).double()
        assert relative_error(torch.from_numpy(gaussian_kernel(size, sigma)), arrays[f"{name}/kernel"][0, 0]) < 1e-14
        assert relative_error(operator(arrays["image"]), arrays[f"{name}/output"]) < 1e-13


def test_recorded_motion():
    arrays, _ = recorded("operators")
    kernel, want = (arrays[f"motion_blur/operator_61_0.5/{part}"] for part in ("kernel", "output"))
    fixed = get_operator("motion_blur", kernel=kernel.numpy()).double()
    assert relative_error(fixed(arrays["image"]), want) < 1e-13
    drawing = get_operator("motion_blur").double()
    assert relative_error(drawing(arrays["image"], kernel=kernel[None, None]), want) < 1e-13


@pytest.mark.parametrize(
    ("kernel", "size"),
    [
        (np.random.RandomState(1).uniform(size=(3, 3)), (7, 8)),
        (np.random.RandomState(1).uniform(size=(61, 61)), (64, 53)),
        (np.random.RandomState(1).uniform(size=(5, 31)), (3, 16)),
        (gaussian_kernel(61, 3.0), (31, 31)),
        (off_centre(), (20, 21)),
    ],
    ids=["3x3", "61x61", "oblong", "as large as the image", "off centre"],
)
def test_agrees_with_scipy(kernel, size):
    x = image(2, 3, *size)
    operator = Blur(kernel).double()
    want = np.stack([[correlate(c.numpy(), kernel.astype(np.float32), mode="mirror") for c in i] for i in x])
    assert relative_error(operator(x), torch.from_numpy(want)) < 1e-13


def test_kernel_of_each_image():
    operator = get_operator("motion_blur", kernel_size=9).double()
    kernels = operator.draw((2, 3, 16, 16), np.random.RandomState(0))["kernel"]
    assert not torch.equal(kernels[0], kernels[1])
    x = image(1, 3, 16, 16).expand(2, -1, -1, -1)
    got = operator(x, kernel=kernels)
    for i in range(2):
        alone = get_operator("motion_blur", kernel=kernels[i, 0].numpy()).double()
        assert relative_error(got[i : i + 1], alone(x[:1])) < 1e-13


def test_constant_image_stays():
    for name in ("gaussian_blur", "motion_blur"):
        operator = get_operator(name).double()
        x = torch.full((1, 3, 40, 40), 0.3, dtype=torch.float64)
        state = operator.draw(x.shape, np.random.RandomState(0))
        assert torch.allclose(operator(x, **state), x, atol=1e-6)


def test_nothing_stale_is_used():
    """The transformed kernel is kept between calls: it has to follow kernel, size and dtype."""
    operator = get_operator("motion_blur")
    kernel = torch.zeros(1, 1, 3, 3)
    kernel[..., 1, 1] = 1
    x = image(1, 3, 8, 8)
    assert torch.allclose(operator(x, kernel=kernel), x)
    kernel.mul_(0.5)
    assert torch.allclose(operator(x, kernel=kernel), 0.5 * x)
    assert torch.allclose(operator(x[..., :6], kernel=kernel), 0.5 * x[..., :6])
    assert operator(x.float(), kernel=kernel).dtype == torch.float32
    assert torch.allclose(operator(x, kernel=2 * kernel), x)
    with torch.inference_mode():
        assert torch.allclose(operator(x, kernel=kernel.clone()), 0.5 * x)


def test_a_drawing_blur_needs_its_state():
    with pytest.raises(TypeError, match="no kernel"):
        get_operator("motion_blur")(torch.zeros(1, 3, 64, 64))


def test_half_precision_is_computed_in_single():
    operator = get_operator("gaussian_blur", kernel_size=9, intensity=2.0)
    x = image(1, 3, 16, 16).bfloat16()
    assert torch.equal(operator(x), operator(x.float()).bfloat16())


def test_derivatives_of_a_linear_map():
    """Beyond the gradient: forward mode, a gradient's gradient, and vmap."""
    matrix = image(4, 5)
    x, v, w = image(5), image(5, seed=1), image(4, seed=2)

    def function(x):
        return linear_map(x, lambda x: matrix @ x, lambda y: matrix.T @ y)

    value, tangent = torch.func.jvp(function, (x,), (v,))
    assert torch.allclose(value, matrix @ x)
    assert torch.allclose(tangent, matrix @ v)
    assert torch.allclose(torch.func.vmap(function)(torch.stack([x, v])), torch.stack([matrix @ x, matrix @ v]))
    hessian = torch.autograd.functional.hessian(lambda x: (function(x) * w).sum() ** 2, x)
    assert torch.allclose(hessian, 2 * torch.outer(matrix.T @ w, matrix.T @ w))


def test_given_kernels(tmp_path):
    kernel = np.arange(15, dtype=np.uint8).reshape(3, 5)
    np.save(tmp_path / "kernel.npy", kernel)
    Image.fromarray(kernel).save(tmp_path / "kernel.png")
    want = torch.from_numpy((kernel / kernel.sum()).astype(np.float32))
    for given in (kernel, kernel.tolist(), str(tmp_path / "kernel.npy"), tmp_path / "kernel.png"):
        operator = get_operator("motion_blur", kernel=given)
        assert torch.equal(operator.kernel[0, 0], want)
        assert operator.draw((1, 3, 8, 8), np.random.RandomState(0)) == {}


@pytest.mark.parametrize(
    ("name", "settings", "words"),
    [
        ("gaussian_blur", {"kernel_size": 60}, "kernel_size.*odd.*60"),
        ("gaussian_blur", {"kernel_size": 1}, "kernel_size.*from 3"),
        ("gaussian_blur", {"kernel_size": "many"}, "kernel_size.*'many'"),
        ("gaussian_blur", {"kernel_size": 10**9 + 1}, "kernel_size.*1023"),
        ("gaussian_blur", {"intensity": 0}, "intensity.*above 0"),
        ("gaussian_blur", {"intensity": float("nan")}, "intensity.*nan"),
        ("motion_blur", {"intensity": 2}, "intensity.*0 to 1.*2"),
        ("motion_blur", {"intensity": -0.1}, "intensity.*0 to 1"),
        ("motion_blur", {"kernel": "nowhere.npy"}, "nowhere.npy.*cannot be read"),
        ("motion_blur", {"kernel": "nowhere.png"}, "nowhere.png.*no such file"),
        ("motion_blur", {"kernel": ""}, "kernel: expected the path of a file or folder, got ''"),
        ("motion_blur", {"kernel": "a" * 5000}, "cannot|no such"),
        ("inpainting", {"mask_file": "a" * 5000}, "cannot|no such|not a picture"),
        ("motion_blur", {"kernel": "a\0"}, "kernel: expected the path of a file or folder"),
        ("inpainting", {"mask_file": " "}, "mask_file: expected the path of a file or folder, got ' '"),
        ("motion_blur", {"kernel": np.ones(3)}, "two sides"),
        ("motion_blur", {"kernel": np.ones((3, 1025))}, "two sides up to 1023"),
        ("motion_blur", {"kernel": np.zeros((3, 3))}, "a sum above 0, got a sum of 0"),
        ("motion_blur", {"kernel": [[1, -3, 1]]}, "a sum above 0.*got a sum of -1"),
        ("motion_blur", {"kernel": "estimate"}, "estimate is not supported.*gaussian_blur"),
        ("motion_blur", {"kernel_is": "convolution"}, "kernel_is: expected 'correlation' or 'psf'"),
        ("motion_blur", {"boundary": "mirror"}, "boundary: expected 'reflect', 'circular', 'valid' or 'zero'"),
        ("motion_blur", {"kernel": [[1, float("inf"), 1]]}, "finite"),
        ("motion_blur", {"kernel": [["a"]]}, "array of numbers"),
        ("motion_blur", {"intensity": "much"}, "intensity.*0 to 1.*'much'"),
        ("motion_blur", {"kernel_size": 6.5}, "kernel_size.*odd number from 3 to 1023, got 6.5"),
        ("camera_blur", {"kernel_size": 2}, "kernel_size.*odd"),
    ],
)
def test_bad_settings(name, settings, words):
    with pytest.raises(UserError, match=words) as caught:
        get_operator(name, **settings)
    assert len(str(caught.value).splitlines()) == 1


def test_a_pickle_is_not_a_kernel(tmp_path):
    np.save(tmp_path / "kernel.npy", np.array([{"an": "object"}]), allow_pickle=True)
    with pytest.raises(UserError, match="cannot be read"):
        get_operator("motion_blur", kernel=tmp_path / "kernel.npy")


def test_image_too_small_for_the_kernel():
    operator = get_operator("gaussian_blur")
    operator.check_size(31, 31)
    with pytest.raises(UserError, match="30 x 64 is too small .* 31 x 31 or more"):
        operator.check_size(30, 64)
    with pytest.raises(UserError, match="31 x 31 or more"):
        operator(torch.zeros(1, 3, 30, 64))


SCIPYS = {"reflect": "mirror", "circular": "wrap", "zero": "constant"}


@pytest.mark.parametrize("boundary", [*SCIPYS, "valid"])
@pytest.mark.parametrize("kernel_is", ["correlation", "psf"])
@pytest.mark.parametrize("sides", [(5, 7), (4, 6), (5, 4)])
def test_borders_and_kernels_are_scipys(boundary, kernel_is, sides):
    kernel = np.random.RandomState(1).uniform(size=sides)
    kernel /= kernel.sum()
    x = image(1, 1, 12, 15)
    operator = get_operator("motion_blur", kernel=kernel, kernel_is=kernel_is, boundary=boundary).double()
    scipys = correlate if kernel_is == "correlation" else convolve
    want = scipys(x[0, 0].numpy(), kernel, mode=SCIPYS.get(boundary, "mirror"))
    if boundary == "valid":
        rows, columns = sides[0] // 2, sides[1] // 2
        want = want[rows : 12 - rows, columns : 15 - columns]
        assert operator.image_size((1, 1, *want.shape)) == (12, 15)
        assert torch.equal(operator.inside(x), x[..., rows : 12 - rows, columns : 15 - columns])
    assert np.abs(operator(x)[0, 0].numpy() - want).max() < 1e-6


def test_a_valid_gaussian_leaves_out_no_more_than_it_reaches():
    operator = get_operator("gaussian_blur", boundary="valid")  # 61x61, but zero from 4 deviations of 3 pixels on
    assert operator(image(1, 3, 64, 64).float()).shape == (1, 3, 40, 40)
    with pytest.raises(UserError, match="24 x 64 is too small for a kernel of 25 x 25: 25 x 25 or more"):
        operator.check_size(24, 64)


def test_a_valid_blur_tells_how_much_of_each_pixel_is_not_measured():
    """Of a kernel that takes 0.7 of the pixel itself and 0.3 of the second one to its right."""
    operator = get_operator("motion_blur", kernel=[[0, 0, 7, 0, 3]], boundary="valid").double()
    found = operator.unmeasured((1, 3, 2, 10))
    assert found.shape == (1, 1, 2, 10)
    want = torch.tensor([1, 1, 0.3, 0.3, 0, 0, 0, 0, 0.7, 0.7], dtype=torch.float64)
    assert torch.allclose(found[0, 0], want.expand(2, -1), atol=1e-6)
    assert get_operator("motion_blur", kernel=[[0, 0, 7, 0, 3]]).unmeasured((1, 3, 2, 10)) is None


@pytest.mark.parametrize("boundary", ["valid", "zero", "circular"])
def test_the_baseline_knows_the_border(boundary):
    face = torch.from_numpy(astronaut()[40:136, 160:256].copy()).permute(2, 0, 1)[None] / 127.5 - 1
    operator = get_operator("motion_blur", kernel=np.ones((9, 9)), boundary=boundary)
    y = operator(face) + 0.01 * image(1, seed=3).float()
    found = operator.baseline(y, face.shape, 0.01)
    error = operator.inside(found - face)[..., 4:-4, 4:-4].square().mean()
    blurred = get_operator("motion_blur", kernel=np.ones((9, 9)))(face)
    assert error < 0.5 * (blurred - face)[..., 4:-4, 4:-4].square().mean()


def test_kernels_for_each_picture(tmp_path):
    kernels = {"a": np.ones((3, 3)), "b": np.tri(5, 7)}
    for name, kernel in kernels.items():
        np.save(tmp_path / f"{name}.npy", kernel)
    operator = get_operator("motion_blur", kernel=str(tmp_path))
    x = image(1, 3, 16, 16).float()
    for name, kernel in kernels.items():
        state = operator.draw_for(Origin(name), x.shape, None)
        assert torch.allclose(operator(x, **state), get_operator("motion_blur", kernel=kernel)(x), atol=1e-6)
    with pytest.raises(UserError, match="no kernel for 'c': there are a, b"):
        operator.check_image(Origin("c"), 16, 16)


def test_a_kernel_beside_the_measurement_is_checked(caplog):
    task = Task({"name": "motion_blur", "kernel_is": "psf"}, {"name": "clean"})
    y, kernel = torch.zeros(1, 3, 16, 16), torch.arange(16.0).reshape(4, 4)
    with caplog.at_level(logging.INFO, "resample"):
        measurement, _ = task.given(Origin("a"), {"y": y, "kernel": kernel})
    assert "padded with zeros" in caplog.text
    assert "divided by its sum, 120" in caplog.text
    want = get_operator("motion_blur", kernel=kernel.numpy(), kernel_is="psf").kernel
    assert torch.equal(measurement.state["kernel"], want)
    with pytest.raises(UserError, match="a sum above 0, got a sum of 0"):
        task.given(Origin("a"), {"y": y, "kernel": torch.zeros(3, 3)})


def test_negative_entries_are_said(caplog):
    get_operator("motion_blur", kernel=[[-1, 4, -1]])
    assert "some entries are negative" in caplog.text


def test_of_a_folder_of_kernels_one_file_is_for_a_picture(tmp_path):
    kernel = np.random.RandomState(0).uniform(size=(3, 5))
    np.save(tmp_path / "a.npy", kernel / kernel.sum())
    (tmp_path / "._a.npy").write_bytes(b"what a Mac leaves beside a file")
    operator = get_operator("motion_blur", kernel=str(tmp_path))
    found = operator.draw_for(Origin("a"), (1, 3, 12, 15), None)["kernel"]
    assert torch.allclose(found[0, 0].double(), torch.from_numpy(kernel / kernel.sum()))
    np.savetxt(tmp_path / "a.txt", kernel)
    with pytest.raises(UserError, match="a.npy and a.txt are both for 'a': keep only one of them"):
        get_operator("motion_blur", kernel=str(tmp_path))
