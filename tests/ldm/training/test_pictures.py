"""Pictures for training: read as all others, and cropped."""

import zipfile

import numpy as np
import pytest
import torch
from PIL import Image

from data.picture_array import load_pictures
from ldm.training.pictures import Crop, cut, random_crops, resident
from tests.ldm.training.first_stage import some_pictures
from tests.tiny import write_pictures
from util.errors import UserError


def test_crops_show_the_pictures():
    pictures = some_pictures()
    crop = cut(torch.from_numpy(pictures), [Crop(3, 4, 6, False), Crop(3, 4, 6, True)], 16)
    whole = torch.from_numpy(pictures[3].astype(np.float32)).permute(2, 0, 1) / 127.5 - 1
    assert torch.allclose(crop[0], whole[:, 4:20, 6:22])
    assert torch.allclose(crop[1], whole.flip(2)[:, 4:20, 6:22])
    places = random_crops(torch.from_numpy(pictures), 200, 16, np.random.RandomState(0), grid=4)
    assert {c.top for c in places} == {0, 4, 8, 12, 16}
    assert {c.mirrored for c in places} == {True, False}


def test_a_set_too_large_for_a_card_stays_in_its_file(monkeypatch):
    monkeypatch.setattr("torch.cuda.mem_get_info", lambda device: (1000, 2000))
    pictures = some_pictures()
    kept = resident(pictures, torch.device("cuda"))
    assert kept.device.type == "cpu"
    assert kept.data_ptr() == pictures.ctypes.data


def test_pictures_come_from_folders_and_zips_and_are_cached(tmp_path):
    write_pictures(tmp_path / "a", ["x.png", "sub/y.jpg"], side=48)
    with zipfile.ZipFile(tmp_path / "b.zip", "w") as archive:
        archive.write(tmp_path / "a" / "x.png", "deep/x.png")
        archive.writestr("notes.txt", "no picture")
    sources = [tmp_path / "a", tmp_path / "b.zip"]
    pictures = load_pictures(sources, 32, tmp_path / "cache.u8")
    assert pictures.shape == (3, 32, 32, 3)
    assert np.array_equal(pictures[1], pictures[2])
    assert load_pictures(sources[:1], 16, tmp_path / "cache.u8").shape == (2, 16, 16, 3)


def test_training_pictures_are_read_as_all_others(tmp_path):
    """Transparency over white and 16 bits scaled, from a folder and from a zip file."""
    clear = Image.new("RGBA", (32, 32), (255, 0, 0, 0))
    grey = Image.fromarray(np.full((32, 32), 32896, dtype=np.uint16))
    (tmp_path / "a").mkdir()
    clear.save(tmp_path / "a" / "clear.png")
    grey.save(tmp_path / "a" / "grey.png")
    with zipfile.ZipFile(tmp_path / "b.zip", "w") as archive:
        archive.write(tmp_path / "a" / "grey.png", "grey.png")
    pictures = load_pictures([tmp_path / "a", tmp_path / "b.zip"], 32, tmp_path / "cache.u8")
    assert [np.unique(picture).tolist() for picture in pictures] == [[255], [128], [128]]


def test_pictures_that_cannot_be_used_are_told(tmp_path):
    (tmp_path / "a").mkdir()
    with pytest.raises(UserError, match="no pictures"):
        load_pictures([tmp_path / "a"], 32, tmp_path / "cache.u8")
    with pytest.raises(UserError, match="neither a folder nor a zip"):
        load_pictures([tmp_path / "none"], 32, tmp_path / "cache.u8")
    (tmp_path / "a" / "broken.png").write_bytes(b"\x89PNG nonsense")
    with pytest.raises(UserError, match=r"broken\.png"):
        load_pictures([tmp_path / "a"], 32, tmp_path / "cache.u8")
