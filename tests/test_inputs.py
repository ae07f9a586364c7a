"""A picture, mask or measurement that is replaced under the same name makes another restoration."""

import json
import shutil

import numpy as np
import pytest
from PIL import Image

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
