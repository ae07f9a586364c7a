"""A picture, mask or measurement that is replaced under the same name makes another restoration."""

import json
import shutil

import numpy as np
import pytest
from PIL import Image

from data.dataloader import PictureFolder
from ldm_inverse.runs import inputs, restoration
from ldm_inverse.runs.inputs import Inputs
from sample_condition import main
from tests.runs import snapshot, words
from tests.tiny import SIDE, write_pictures

ONE = ["--quiet", "--threads", "1"]
CHANGED = "its picture, measurement, mask or kernel has changed: it is restored again"


@pytest.fixture
def pictures(tmp_path):
    return write_pictures(tmp_path / "in", ["a.png", "b.png"])


def replace(path):
    Image.fromarray(np.random.RandomState(9).randint(0, 256, (SIDE, SIDE, 3)).astype(np.uint8)).save(path)


def test_a_replaced_picture_is_restored_again_and_the_others_stay(place, pictures, tmp_path, capsys):
    command = words(place, tmp_path / "out", "--data", str(pictures), *ONE, steps=2)
    assert main(command) == 0
    kept = (tmp_path / "out" / "results" / "b.json").stat().st_mtime_ns
    replace(pictures / "a.png")
    capsys.readouterr()
    assert main(command) == 0
    assert f"a: {CHANGED}" in capsys.readouterr().err
    assert (tmp_path / "out" / "results" / "b.json").stat().st_mtime_ns == kept
    assert main(words(place, tmp_path / "new", "--data", str(pictures), *ONE, steps=2)) == 0
    assert snapshot(tmp_path / "out") == snapshot(tmp_path / "new")
    capsys.readouterr()
    assert main(command) == 0
    assert "changed" not in capsys.readouterr().err


def test_a_state_of_the_replaced_picture_is_not_gone_on_from(place, pictures, tmp_path, monkeypatch, capsys):
    from ldm.models.diffusion.ddpm import LatentDiffusion

    apply, calls = LatentDiffusion.differentiable_apply_model, []

    def stop(*args):
        calls.append(1)
        if len(calls) == 6:
            raise KeyboardInterrupt
        return apply(*args)

    command = words(place, tmp_path / "out", "--data", str(pictures), "--limit", "1", "--threads", "1")
    with monkeypatch.context() as patch:
        patch.setattr(LatentDiffusion, "differentiable_apply_model", stop)
        assert main(command) == 130
    assert (tmp_path / "out" / "progress" / "a" / "state.safetensors").is_file()
    replace(pictures / "a.png")
    capsys.readouterr()
    assert main(command) == 0
    assert "continuing after" not in capsys.readouterr().err


def test_a_replaced_mask_and_a_replaced_measurement_are_noticed(place, pictures, tmp_path, capsys):
    (tmp_path / "masks").mkdir()
    for name in ("a", "b"):
        np.save(tmp_path / "masks" / f"{name}.npy", np.tile([1, 0], (SIDE, SIDE // 2)))
    masked = ["measurement.mask_opt={mask_file: " + str(tmp_path / "masks") + "}", "--data", str(pictures), *ONE]
    assert main(words(place, tmp_path / "out", *masked, steps=2)) == 0
    saved = tmp_path / "saved"
    shutil.copytree(tmp_path / "out" / "label", saved)
    given = ["--measurement", str(saved), *masked]
    assert main(words(place, tmp_path / "given", *given, steps=2)) == 0
    np.save(tmp_path / "masks" / "b.npy", np.tile([0, 1], (SIDE, SIDE // 2)))
    capsys.readouterr()
    assert main(words(place, tmp_path / "out", *masked, steps=2)) == 0
    err = capsys.readouterr().err
    assert f"b: {CHANGED}" in err
    assert f"a: {CHANGED}" not in err
    np.save(tmp_path / "masks" / "b.npy", np.tile([1, 0], (SIDE, SIDE // 2)))
    shutil.copy(tmp_path / "out" / "label" / "b.safetensors", saved)
    assert main(words(place, tmp_path / "given", *given, steps=2)) == 0
    assert f"b: {CHANGED}" in capsys.readouterr().err


def test_a_repeated_run_says_which_pictures_are_others(place, pictures, tmp_path, capsys):
    assert main(words(place, tmp_path / "out", "--data", str(pictures), *ONE, steps=2)) == 0
    assert len(json.loads((tmp_path / "out" / "results" / "a.json").read_text())["inputs"]) == 64
    replace(pictures / "b.png")
    capsys.readouterr()
    assert main(["--from", str(tmp_path / "out"), "--save_dir", str(tmp_path / "again"), "--quiet"]) == 0
    said = capsys.readouterr().err
    assert f"differs from {tmp_path / 'out'}: the picture, measurement, mask or kernel of b has changed" in said
    assert "of a has" not in said


@pytest.mark.parametrize(
    ("file", "setting"), [("m#1.npy", "m#1.npy"), ("m.npz", "m.npz#mask"), ("m#1.npz", "m#1.npz#x")]
)
def test_files_of_an_operator_are_those_that_it_reads(file, setting, pictures, tmp_path):
    """A file's own name may hold a #, and what comes after one may be the name of an array."""
    found = PictureFolder(pictures)
    (tmp_path / file).write_bytes(b"one")
    before = Inputs(found, {"name": "inpainting", "mask_file": str(tmp_path / setting)}).digest("a")
    (tmp_path / file).write_bytes(b"two")
    assert Inputs(found, {"name": "inpainting", "mask_file": str(tmp_path / setting)}).digest("a") != before


def test_files_of_a_folder_are_told_by_their_images_and_taken_before_any_is_restored(pictures, tmp_path):
    """Kernels are read at the beginning: one that is replaced during the run is not what a restoration is made of."""
    found, kernels = PictureFolder(pictures), tmp_path / "kernels"
    kernels.mkdir()
    for name in ("a.npy", "b.npy", "c.npy"):
        (kernels / name).write_bytes(b"one")

    def digests():
        return Inputs(found, {"name": "motion_blur", "kernel": str(kernels)})

    begun, before = digests(), digests()
    assert before.digest("b")
    (kernels / "b.npy").write_bytes(b"two")
    (kernels / "c.npy").write_bytes(b"two")
    assert begun.digest("b") == before.digest("b") != digests().digest("b")
    assert before.digest("a") == digests().digest("a")


def test_files_that_an_operator_names_itself_are_inputs(pictures, tmp_path):
    weights = tmp_path / "weights.pth"
    weights.write_bytes(b"one")
    before = Inputs(PictureFolder(pictures), {"name": "own"}, more=[weights]).digest("a")
    weights.write_bytes(b"two")
    assert Inputs(PictureFolder(pictures), {"name": "own"}, more=[weights]).digest("a") != before


def test_a_repeated_run_on_given_measurements_says_of_no_picture_that_it_is_another(place, pictures, tmp_path, capsys):
    out = tmp_path / "out"
    assert main(words(place, out, "--data", str(pictures), *ONE, steps=2)) == 0
    capsys.readouterr()
    given = ["--measurement", str(out / "label"), "--save_dir", str(tmp_path / "again"), "--limit", "1", "--quiet"]
    assert main(["--from", str(out), *given]) == 0
    err = capsys.readouterr().err
    assert "run.measurement: None there" in err
    assert "has changed" not in err


def test_a_folder_of_masks_is_listed_once(pictures, tmp_path, monkeypatch):
    lists, iterdir = [], type(tmp_path).iterdir
    monkeypatch.setattr(type(tmp_path), "iterdir", lambda path: lists.append(path) or iterdir(path))
    known = Inputs(PictureFolder(pictures), {"name": "inpainting", "mask_file": str(tmp_path)})
    assert known.digest("a") != known.digest("b")
    assert len(lists) == 1


def test_a_file_of_many_frames_is_read_once_for_its_digest(tmp_path, monkeypatch):
    frames = [Image.new("L", (SIDE, SIDE), level) for level in range(5)]
    frames[0].save(tmp_path / "a.tif", save_all=True, append_images=frames[1:])
    reads, sha256 = [], inputs.hashlib.sha256
    monkeypatch.setattr(inputs.hashlib, "sha256", lambda content: reads.append(len(content)) or sha256(content))
    found = PictureFolder(tmp_path, frames="all")
    known = Inputs(found, {})
    assert len({known.digest(name) for name, _ in found.pictures}) == 1
    assert reads.count((tmp_path / "a.tif").stat().st_size) == 1
    frames[1].save(tmp_path / "a.tif", save_all=True, append_images=frames[1:])
    assert Inputs(found, {}).digest("a_000") != known.digest("a_000")


@pytest.mark.parametrize("minutes", ["0", "5"])
def test_a_picture_that_is_replaced_while_it_is_restored_is_noticed(
    minutes, place, pictures, tmp_path, monkeypatch, capsys
):
    command = words(place, tmp_path / "out", "--data", str(pictures), *ONE, "--checkpoint_minutes", minutes, steps=2)
    restore = restoration.restore

    def replace_meanwhile(*args):
        replace(pictures / "a.png")
        return restore(*args)

    with monkeypatch.context() as patch:
        patch.setattr(restoration, "restore", replace_meanwhile)
        assert main([*command, "--limit", "1"]) == 0
    capsys.readouterr()
    assert main(command) == 0
    assert f"a: {CHANGED}" in capsys.readouterr().err
