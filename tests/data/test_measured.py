"""Measurements that a person has, in the forms that they come in."""

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.numpy import save_file

from data.measured import ALPHA, MeasuredFolder, holds_saved, read_measured
from util.errors import UserError

COLOURS = np.random.RandomState(0).randint(0, 256, (10, 12, 3)).astype(np.uint8)
RANGE = COLOURS.astype(np.float64) / 127.5 - 1
DEEP = np.random.RandomState(1).randint(0, 65536, (10, 12)).astype(np.uint16)

FORMS = {
    "p.png": (lambda path: Image.fromarray(COLOURS).save(path), RANGE),
    "p.bmp": (lambda path: Image.fromarray(COLOURS).save(path), RANGE),
    "grey.png": (lambda path: Image.fromarray(COLOURS[..., 0]).save(path), RANGE[..., :1].repeat(3, -1)),
    "deep.png": (lambda path: Image.fromarray(DEEP).save(path), (DEEP / 32767.5 - 1)[..., None].repeat(3, -1)),
    "last.npy": (lambda path: np.save(path, COLOURS), RANGE),
    "first.npy": (lambda path: np.save(path, COLOURS.transpose(2, 0, 1)), RANGE),
    "batch.npy": (lambda path: np.save(path, COLOURS.transpose(2, 0, 1)[None]), RANGE),
    "batch_last.npy": (lambda path: np.save(path, COLOURS[None, None]), RANGE),
    "fortran.npy": (lambda path: np.save(path, np.asfortranarray(COLOURS)), RANGE),
    "float.npy": (lambda path: np.save(path, RANGE * 1.5), RANGE * 1.5),
    "half.npy": (lambda path: np.save(path, RANGE.astype(np.float16)), RANGE.astype(np.float16)),
    "flat.npy": (lambda path: np.save(path, DEEP), (DEEP / 32767.5 - 1)[..., None]),
    "one.npy": (lambda path: np.save(path, RANGE[..., :1]), RANGE[..., :1]),
    "bool.npy": (lambda path: np.save(path, COLOURS > 99), (COLOURS > 99) * 2.0 - 1),
    "a.safetensors": (lambda path: save_file({"anything": RANGE}, path), RANGE),
    "y.safetensors": (lambda path: save_file({"y": COLOURS, "gain": np.ones((1, 1), np.int64)}, path), RANGE),
}


@pytest.mark.parametrize("name", FORMS)
def test_forms(name, tmp_path):
    write, expected = FORMS[name]
    write(tmp_path / name)
    tensors = read_measured(tmp_path / name)
    y = tensors.pop("y")
    assert y.dtype == torch.float32
    assert y.is_contiguous()
    assert np.allclose(y[0].permute(1, 2, 0).numpy(), expected, atol=2e-7)
    assert tensors == ({"gain": torch.ones(1, 1)} if name.startswith("y") else {})


@pytest.mark.parametrize("span", [None, (0.0, 255.0)])
def test_a_pictures_transparency_is_beside_its_own_colours(span, tmp_path, caplog):
    alpha = np.random.RandomState(2).randint(0, 256, COLOURS.shape[:2]).astype(np.uint8)
    Image.fromarray(np.dstack([COLOURS, alpha])).save(tmp_path / "a.png")
    tensors = read_measured(tmp_path / "a.png", span)
    assert np.allclose(tensors["y"][0].permute(1, 2, 0).numpy(), RANGE if span is None else COLOURS, atol=2e-5)
    assert np.allclose(tensors[ALPHA][0, 0].numpy(), alpha / 255)
    assert "white" not in caplog.text, "which is for the task to decide"


def write_half(path):
    np.save(path, COLOURS)
    path.write_bytes(path.read_bytes()[:200])


BROKEN = {
    "text.npy": (lambda path: path.write_text("a picture, honestly"), "not a .npy file"),
    "zip.npy": (lambda path: np.savez(path.open("wb"), a=COLOURS), "not a .npy file"),
    "pickled.npy": (lambda path: np.save(path, np.array([[{}] * 9]), allow_pickle=True), "cannot be read"),
    "half.npy": (write_half, "cannot be read"),
    "nan.npy": (lambda path: np.save(path, np.full((9, 9), np.nan)), "NaN"),
    "int64.npy": (lambda path: np.save(path, COLOURS.astype(np.int64)), "int64 has no agreed range"),
    "complex.npy": (lambda path: np.save(path, COLOURS * 1j), "expected numbers"),
    "four.npy": (lambda path: np.save(path, np.zeros((2, 3, 9, 9))), "one measurement"),
    "one.npy": (lambda path: np.save(path, np.float64(3)), "one measurement"),
    "small.npy": (lambda path: np.save(path, np.zeros((3, 4, 4))), "one measurement"),
    "none.npy": (lambda path: np.save(path, np.zeros((3, 0, 9))), "one measurement"),
    "text.safetensors": (lambda path: path.write_text("a picture"), "cannot be read"),
    "huge.safetensors": (lambda path: path.write_bytes((2**50).to_bytes(8, "little") + b"{}"), "cannot be read"),
    "none.safetensors": (lambda path: save_file({}, path), "found nothing"),
    "two.safetensors": (lambda path: save_file({"a": RANGE, "b": RANGE}, path), "found a, b"),
    "empty.png": (lambda path: path.write_bytes(b""), "an empty file"),
    "text.png": (lambda path: path.write_bytes(b"a picture, honestly"), "not a picture"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_what_is_no_measurement_is_refused_by_name_in_a_line(name, tmp_path):
    write, told = BROKEN[name]
    write(tmp_path / name)
    with pytest.raises(UserError) as caught:
        read_measured(tmp_path / name)
    assert told in str(caught.value)
    assert name in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1


def test_a_folder_keeps_names_apart(tmp_path):
    (tmp_path / "sub").mkdir()
    np.save(tmp_path / "a.npy", COLOURS)
    Image.fromarray(COLOURS).save(tmp_path / "a.png")
    save_file({"y": RANGE}, tmp_path / "sub" / "c.safetensors")
    (tmp_path / "notes.md").write_text("not one")
    folder = MeasuredFolder(tmp_path, limit=2)
    assert folder.names == ["a_npy", "a_png", "sub_c"]
    assert len(folder) == 2
    assert torch.allclose(folder.tensors("a_npy")["y"], folder.tensors("a_png")["y"], atol=2e-7)


def test_of_a_runs_label_folder_the_exact_measurements_are_taken(tmp_path):
    save_file({"y": RANGE}, tmp_path / "a.safetensors")
    Image.fromarray(COLOURS).save(tmp_path / "a.png")
    assert not holds_saved(tmp_path)
    assert len(MeasuredFolder(tmp_path)) == 2
    save_file({"y": RANGE}, tmp_path / "a.safetensors", metadata={"made_by": "{}"})
    assert holds_saved(tmp_path)
    assert MeasuredFolder(tmp_path).names == ["a"]
    assert not holds_saved(tmp_path / "nowhere")


def test_a_range_that_may_be_another_is_told_once(tmp_path, caplog):
    np.save(tmp_path / "unit.npy", (RANGE + 1) / 2)
    folder = MeasuredFolder(tmp_path)
    for _ in range(2):  # as a run does, to check it and to use it
        folder.tensors("unit")
    assert caplog.text.count("all values are from 0 to 1; a picture's range here is [-1, 1]") == 1


def test_sixteen_bits_of_which_few_are_used_are_said(tmp_path, caplog):
    np.save(tmp_path / "a.npy", DEEP // 16)
    read_measured(tmp_path / "a.npy")
    assert "a.npy: no value is above 4095 of 65535" in caplog.text
