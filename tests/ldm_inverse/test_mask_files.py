"""Masks from files."""

import logging

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.numpy import save_file

from ldm_inverse.measurements import get_operator
from ldm_inverse.task import Task
from util.errors import UserError

KEPT = np.random.RandomState(0).uniform(size=(12, 16)) < 0.4  # not square: a transposed mask would not fit


def draw(path, name=None, **settings):
    operator = get_operator("inpainting", mask_file=str(path), **settings)
    shape = (1, 3, 12, 16)
    state = operator.draw(shape, None) if name is None else operator.draw_for(name, shape, None)
    return state["mask"]


def written(folder):
    """The same mask in every form that is read, by file name."""
    grey = np.where(KEPT, 255, 0).astype(np.uint8)
    Image.fromarray(grey).save(folder / "grey.png")
    Image.fromarray(KEPT).save(folder / "one_bit.png")
    Image.fromarray(np.repeat(grey[..., None], 3, -1)).save(folder / "colour.png")
    Image.fromarray(np.dstack([grey] * 3 + [np.full_like(grey, 255)])).save(folder / "opaque.png")
    Image.fromarray(KEPT.astype(np.uint8)).save(folder / "ones.png")
    Image.fromarray(grey.astype(np.uint16) * 257).save(folder / "deep.png")
    turned = Image.Exif()
    turned[0x0112] = 8  # to be turned a quarter anticlockwise
    Image.fromarray(np.rot90(grey, -1).copy()).save(folder / "turned.png", exif=turned)
    np.save(folder / "bool.npy", KEPT)
    np.save(folder / "float.npy", KEPT.astype(np.float64)[None])
    np.save(folder / "last.npy", grey[..., None])
    save_file({"whatever": KEPT}, folder / "tensor.safetensors")
    return sorted(path.name for path in folder.iterdir())


def test_every_form_of_one_mask_is_that_mask(tmp_path):
    names = written(tmp_path)
    assert len(names) == 11
    for name in names:
        assert torch.equal(draw(tmp_path / name), torch.from_numpy(KEPT).float()[None, None]), name
        assert torch.equal(draw(tmp_path / name, mask_keeps=0), 1 - torch.from_numpy(KEPT).float()[None, None]), name


def test_which_value_keeps_is_said(tmp_path, caplog):
    np.save(tmp_path / "m.npy", np.eye(8))
    with caplog.at_level(logging.INFO, "resample"):
        get_operator("inpainting", mask_file=str(tmp_path / "m.npy"), mask_keeps=0)
    assert "m.npy: black (zero) keeps: 87.5 % of 8 x 8 pixels" in caplog.text


def test_a_folder_has_a_mask_for_each_image_by_name(tmp_path):
    np.save(tmp_path / "a.npy", KEPT)
    Image.fromarray(~KEPT).save(tmp_path / "b_c.png")
    assert torch.equal(draw(tmp_path, "a"), 1 - draw(tmp_path, "b_c"))
    operator = get_operator("inpainting", mask_file=str(tmp_path))
    operator.check_size(12, 16)
    operator.check_image("a", 12, 16)
    for name, size, told in (("d", (12, 16), "no mask for 'd'"), ("a", (16, 12), "12 x 16 and the image 16 x 12")):
        with pytest.raises(UserError, match=told):
            operator.check_image(name, *size)
    with pytest.raises(UserError, match="names alone"):
        draw(tmp_path)


def test_a_task_measures_an_image_by_its_own_mask(tmp_path):
    np.save(tmp_path / "a.npy", KEPT)
    task = Task({"name": "inpainting"}, {"name": "gaussian", "sigma": 0.1}, {"mask_file": str(tmp_path)})
    streams = [np.random.RandomState(seed) for seed in (0, 1)]
    measurement = task.measure(torch.ones(1, 3, 12, 16), *streams, "a")
    assert torch.equal(measurement.y == 0, ~torch.from_numpy(KEPT).expand(1, 3, 12, 16))


def pickled(path):
    np.save(path, np.array([[{}]]), allow_pickle=True)


def declares_terabytes(path):
    np.save(path, np.zeros((8, 8), np.uint8))
    path.write_bytes(path.read_bytes().replace(b"(8, 8), }      ", b"(8, 99999999), "))


def brackets_without_end(path):
    header = b"(" * 9000
    path.write_bytes(b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header)


BROKEN = {
    "not there.png": (lambda path: None, "no such file"),
    "text.npy": (lambda path: path.write_text("a mask, honestly"), "not a .npy file"),
    "pickled.npy": (pickled, "cannot be read"),
    "huge.npy": (declares_terabytes, "cannot be read"),
    "brackets.npy": (brackets_without_end, "cannot be read"),
    "nan.npy": (lambda path: np.save(path, np.full((8, 8), np.nan)), "NaN"),
    "complex.npy": (lambda path: np.save(path, np.full((8, 8), 1j)), "complex128"),
    "words.npy": (lambda path: np.save(path, np.full((8, 8), "a")), "numbers"),
    "nothing.npy": (lambda path: np.save(path, np.zeros((0, 8))), "expected an array (H, W)"),
    "colour.npy": (lambda path: np.save(path, np.ones((3, 8, 8))), "shape (3, 8, 8)"),
    "text.safetensors": (lambda path: path.write_text("a mask, honestly"), "cannot be read"),
    "header.safetensors": (lambda path: path.write_bytes((2**40).to_bytes(8, "little") + b"{}"), "cannot be read"),
    "two.safetensors": (
        lambda path: save_file({"a": np.ones(2), "b": np.ones(2)}, path),
        "one array, found 2",
    ),
    "text.png": (lambda path: path.write_text("a mask, honestly"), "not a picture"),
    "grey.png": (lambda path: Image.linear_gradient("L").save(path), "256 different values"),
    "clear.png": (lambda path: Image.new("RGBA", (8, 8), (0, 0, 0, 0)).save(path), "transparent"),
    "black.png": (lambda path: Image.new("L", (8, 8)).save(path), "mask_keeps=0"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_what_is_no_mask_is_refused_in_a_line(name, tmp_path):
    write, told = BROKEN[name]
    write(tmp_path / name)
    with pytest.raises(UserError) as caught:
        get_operator("inpainting", mask_file=str(tmp_path / name))
    assert told in str(caught.value)
    assert name in str(caught.value)
    assert "mask_file" in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1


@pytest.mark.parametrize(
    ("settings", "told"),
    [({"mask_keeps": 2}, "mask_keeps"), ({"mask_keeps": "white"}, "mask_keeps"), ({"mask_type": "box"}, "only one")],
)
def test_settings_that_contradict_are_refused(settings, told, tmp_path):
    np.save(tmp_path / "m.npy", KEPT)
    with pytest.raises(UserError, match=told):
        get_operator("inpainting", mask_file=str(tmp_path / "m.npy"), **settings)
