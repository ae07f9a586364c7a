"""Masks from files."""

import logging

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.numpy import save_file
from tifffile import imwrite

from data.dataloader import get_dataset
from data.sources import Origin, find_pictures
from ldm_inverse.measurements import get_operator
from ldm_inverse.task import Task
from util.errors import UserError

KEPT = np.random.RandomState(0).uniform(size=(12, 16)) < 0.4  # not square: a transposed mask would not fit


def draw(path, name=None, **settings):
    operator = get_operator("inpainting", mask_file=str(path), **settings)
    shape = (1, 3, 12, 16)
    state = operator.draw(shape, None) if name is None else operator.draw_for(Origin(name), shape, None)
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
    imwrite(folder / "double.tif", KEPT.astype(np.float64))
    deep = np.random.RandomState(1).randint(0, 65536, (*KEPT.shape, 4)).astype(np.uint16)
    deep[..., 3] = 65535 * KEPT
    imwrite(folder / "alpha_of_deep.tif", deep, photometric="rgb", extrasamples=["unassalpha"])
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
    assert len(names) == 13
    for name in names:
        assert torch.equal(draw(tmp_path / name), torch.from_numpy(KEPT).float()[None, None]), name
        assert torch.equal(draw(tmp_path / name, mask_keeps=0), 1 - torch.from_numpy(KEPT).float()[None, None]), name


def picture(folder, alpha):
    """A picture whose alpha channel this is."""
    colours = np.random.RandomState(1).randint(0, 256, (*alpha.shape, 3), dtype=np.uint8)
    Image.fromarray(np.dstack([colours, alpha])).save(folder / "holes.png")
    return find_pictures(folder / "holes.png")[0].source


def smooth(mask):
    """A mask as drawn at eight times the size, and shrunk: its edges are grey."""
    return np.asarray(Image.fromarray(mask).resize((mask.shape[1] // 8, mask.shape[0] // 8), Image.Resampling.BOX))


def test_a_transparent_picture_is_its_own_mask(tmp_path, caplog):
    caplog.set_level(logging.INFO, "resample")
    source = picture(tmp_path, np.where(KEPT, 255, 0).astype(np.uint8))
    kept = torch.from_numpy(KEPT).float()[None, None]
    assert torch.equal(draw(source.path), kept)
    drawn = get_operator("inpainting", mask_file="alpha").draw_for(Origin("holes", source), (1, 3, 12, 16), None)
    assert torch.equal(drawn["mask"], kept)
    assert f"what is opaque (not transparent) is kept: {100 * KEPT.mean():.1f} %" in caplog.text
    task = Task({"name": "inpainting"}, {"name": "clean"}, {"mask_type": "random", "mask_prob_range": [0.5, 0.6]})
    measurement, _ = task.given(Origin("holes", source), {"y": torch.ones(1, 3, 12, 16)})
    assert torch.equal(measurement.state["mask"], kept)
    source = picture(tmp_path, np.full((12, 16), 255, np.uint8))
    with pytest.raises(UserError, match="draws the mask at random"):
        task.given(Origin("holes", source), {"y": torch.ones(1, 3, 12, 16)})
    with pytest.raises(UserError, match="has no transparency"):
        get_operator("inpainting", mask_file="alpha").check_image(Origin("holes", source), 12, 16)


def test_smooth_edges_and_jpeg_make_a_mask(tmp_path):
    large = np.full((512, 512), 255, np.uint8)
    large[100:220, 96:301] = 0
    Image.fromarray(smooth(large)).save(tmp_path / "smooth.png")
    Image.fromarray(np.where(smooth(large) >= 128, 255, 0).astype(np.uint8)).save(tmp_path / "mask.jpg", quality=60)
    masks = [
        get_operator("inpainting", mask_file=str(tmp_path / n)).draw((1, 3, 64, 64), None)["mask"]
        for n in ("smooth.png", "mask.jpg")
    ]
    assert torch.equal(*masks)
    half, low = (
        get_operator("inpainting", mask_file=str(tmp_path / "smooth.png"), mask_threshold=t) for t in (0.5, 0.01)
    )
    assert torch.equal(half.draw((1, 3, 64, 64), None)["mask"], masks[0])
    assert low.draw((1, 3, 64, 64), None)["mask"].sum() > masks[0].sum()


def test_a_given_mask_takes_the_place_of_the_drawn_one(tmp_path):
    np.save(tmp_path / "m.npy", KEPT)
    for options in (
        {"mask_type": "box", "mask_len_range": [128, 129]},
        {"mask_type": "random", "mask_prob_range": [0, 1]},
    ):
        assert torch.equal(draw(tmp_path / "m.npy", **options), torch.from_numpy(KEPT).float()[None, None])


def test_holes_grow_by_pixels_of_the_image(tmp_path):
    mask = np.ones((12, 16))
    mask[5, 7] = 0
    np.save(tmp_path / "m.npy", mask)
    assert (draw(tmp_path / "m.npy", mask_dilate=2)[0, 0] == 0).nonzero().tolist() == [
        [row, column] for row in range(3, 8) for column in range(5, 10)
    ]


def test_a_mask_of_the_pictures_size_follows_its_resize(tmp_path):
    mask = np.full((120, 160), 255, np.uint8)
    mask[20:60, 30:70] = 0
    Image.fromarray(mask).save(tmp_path / "mask.png")
    Image.fromarray(np.dstack([mask] * 3)).save(tmp_path / "picture.png")
    operator = get_operator("inpainting", mask_file=str(tmp_path / "mask.png"))
    for resize in ("center_crop", "resize"):
        folder = get_dataset("ffhq", tmp_path / "picture.png", size=64, resize=resize)
        image = folder.picture("picture").image[None]
        found = operator.draw_for(folder.origin("picture"), image.shape, None)["mask"]
        assert torch.equal(found[0, 0], (image[0, 0] >= 0).float())
    with pytest.raises(UserError, match="120 x 160 and the image 64 x 64"):
        operator.draw((1, 3, 64, 64), None)
    Image.fromarray(mask[:, :100]).save(tmp_path / "picture.png")
    with pytest.raises(UserError, match="120 x 160 and the image 64 x 64"):
        operator.check_image(
            get_dataset("ffhq", tmp_path / "picture.png", size=64, resize="resize").origin("picture"), 64, 64
        )


@pytest.mark.parametrize(
    ("mask", "told"),
    [
        (torch.zeros(12, 16), "not all of them zero, got values from 0 to 0"),
        (torch.full((1, 1, 12, 16), 0.5), "got values from 0.5 to 0.5"),
        (-torch.ones(1, 12, 16), "got values from -1 to -1"),
        (torch.ones(1, 1, 16, 16), "expected one of 12 x 16"),
    ],
)
def test_a_mask_beside_the_measurement_is_checked(mask, told):
    task = Task({"name": "inpainting"}, {"name": "clean"})
    with pytest.raises(UserError, match=told):
        task.given(Origin("a"), {"y": torch.ones(1, 3, 12, 16), "mask": mask})
    kept = torch.from_numpy(KEPT).float()
    measurement, _ = task.given(Origin("a"), {"y": torch.ones(1, 3, 12, 16), "mask": kept})
    assert torch.equal(measurement.state["mask"], kept[None, None])


def test_which_value_keeps_is_said(tmp_path, caplog):
    np.save(tmp_path / "m.npy", np.eye(8))
    with caplog.at_level(logging.INFO, "resample"):
        get_operator("inpainting", mask_file=str(tmp_path / "m.npy"), mask_keeps=0)
    assert "m.npy: what is black (zero) is kept: 87.5 % of 8 x 8 pixels" in caplog.text


def test_a_folder_has_a_mask_for_each_image_by_name(tmp_path):
    np.save(tmp_path / "a.npy", KEPT)
    Image.fromarray(~KEPT).save(tmp_path / "b_c.png")
    assert torch.equal(draw(tmp_path, "a"), 1 - draw(tmp_path, "b_c"))
    operator = get_operator("inpainting", mask_file=str(tmp_path))
    operator.check_size(12, 16)
    operator.check_image(Origin("a"), 12, 16)
    for name, size, told in (("d", (12, 16), "no mask for 'd'"), ("a", (16, 12), "12 x 16 and the image 16 x 12")):
        with pytest.raises(UserError, match=told):
            operator.check_image(Origin(name), *size)
    with pytest.raises(UserError, match="each picture has a mask of its own"):
        draw(tmp_path)


def test_a_deep_picture_is_its_own_mask(tmp_path):
    values = np.random.RandomState(1).uniform(size=(*KEPT.shape, 4)).astype(np.float32)
    values[..., 3] = KEPT
    imwrite(tmp_path / "a.tif", values, photometric="rgb", extrasamples=["unassalpha"])
    origin = Origin("a", find_pictures(tmp_path / "a.tif")[0].source)
    mask = get_operator("inpainting", mask_file="alpha").draw_for(origin, (1, 3, 12, 16), None)["mask"]
    assert torch.equal(mask[0, 0], torch.from_numpy(KEPT).float())


def test_of_a_folder_one_file_is_for_a_picture(tmp_path):
    Image.fromarray(KEPT).save(tmp_path / "a.PNG", format="png")
    assert torch.equal(draw(tmp_path, "a")[0, 0], torch.from_numpy(KEPT).float())
    np.save(tmp_path / "a.npy", KEPT)
    with pytest.raises(UserError, match="a.PNG and a.npy are both for 'a': keep only one of them"):
        draw(tmp_path, "a")


def test_a_task_measures_an_image_by_its_own_mask(tmp_path):
    np.save(tmp_path / "a.npy", KEPT)
    task = Task({"name": "inpainting"}, {"name": "gaussian", "sigma": 0.1}, {"mask_file": str(tmp_path)})
    streams = [np.random.RandomState(seed) for seed in (0, 1)]
    measurement = task.measure(torch.ones(1, 3, 12, 16), *streams, Origin("a"))
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
        "one array, found 2: a, b: name one, as in two.safetensors#NAME",
    ),
    "text.png": (lambda path: path.write_text("a mask, honestly"), "not a picture"),
    "grey.png": (lambda path: Image.linear_gradient("L").save(path), "256 different values, 80 % of its pixels"),
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
    [({"mask_keeps": 2}, "mask_keeps"), ({"mask_keeps": "white"}, "mask_keeps")],
)
def test_settings_that_contradict_are_refused(settings, told, tmp_path):
    np.save(tmp_path / "m.npy", KEPT)
    with pytest.raises(UserError, match=told):
        get_operator("inpainting", mask_file=str(tmp_path / "m.npy"), **settings)
