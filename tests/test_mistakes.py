"""Mistakes in the command's words are refused in a line, before anything is loaded or written."""

import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from sample_condition import main
from tests.runs import pixels, words
from tests.tiny import write_pictures

ROOT = Path(__file__).resolve().parents[1]

MISTAKES = [
    (["measurement.operator.name=inpaintin"], "did you mean 'inpainting'"),
    (["measurement.operator.mask_typ=box"], "did you mean 'mask_type'"),
    (["measurement.operator.device=cuda"], "device"),
    (["measurement.mask_opt.mask_prob_range=[0.9, 0.1]"], "mask_prob_range"),
    (["measurement.mask_opt.image_size=64"], "image_size"),
    (["measurement.noise.name=gausian"], "did you mean 'gaussian'"),
    (["measurement.noise.sigma=-1"], "measurement.noise.sigma: expected a number"),
    (["measurement.noise.sigma=much"], "measurement.noise.sigma: expected a number"),
    (["measurement.noise.rng=3"], "rng"),
    (["--save_dir", __file__ + "/below"], "test_mistakes.py is a file"),
    (["conditioning.main_sampler=dsp"], "did you mean 'dps'"),
    (["conditioning.main_sampler=sitcon"], "did you mean 'sitcom'"),
    (["conditioning.dasp.lr=1"], "did you mean 'daps'"),
    (
        ["--preset", "fastest", "conditioning.main_sampler=dps"],
        "preset fastest is made for resample, and main_sampler is dps: take --preset dps\n",
    ),
    (["conditioning.daps.lr=-1"], "conditioning.daps.lr: expected a number above 0, got -1"),
    (["conditioning.main_sampler=psld", "conditioning.psld.glueing=1"], "did you mean 'gluing'"),
    (["conditioning.main_sampler=sitcom", "measurement.noise={name: poisson, rate: 1}"], "level of this measurement's"),
    (["conditioning.method=pss"], "did you mean 'ps'"),
    (["conditioning.params.scal=1"], "did you mean 'scale'"),
    (["conditioning.params.model=1"], "model"),
    (["conditioning.resample.intervall=5"], "did you mean 'interval'"),
    (["conditioning.resample.latent.lr=-1"], "conditioning.resample.latent.lr"),
    (["conditioning.resample.latent.max_iters=0"], "conditioning.resample.latent.max_iters"),
    (["data.name=fhq"], "did you mean 'ffhq'"),
    (["ddim_step=3"], "did you mean 'ddim_steps'"),
    (["class_label=3"], "unconditional"),
    (["--ddim_steps", "0"], "ddim_steps"),
    (["--ddim_steps", "1001"], "from 1 to 1000"),
    (["--tiles", "32"], "expected SIDE,OVERLAP, two numbers of pixels, got '32'"),
    (["--tiles", "33,8"], "tiles of 33 pixels that overlap by 8 do not fit the model"),
    (["--ddim_eta", "2"], "ddim_eta"),
    (["--preset", "demmo"], "did you mean 'demo'"),
    (["--preset", "nowhere.yaml"], "nowhere.yaml"),
    (["--task_config", "nowhere.yaml"], "nowhere.yaml"),
    (["--ldm_config", "nowhere.yaml"], "nowhere.yaml"),
    (["--diffusion_config", "nowhere.ckpt"], "scripts/download_models.sh"),
    (["--data", "nowhere"], "nowhere"),
    (["--measurement", "nowhere"], "'nowhere': no such file or folder"),
    (["measurement.noise={name: poisson, rate: 1}", "conditioning.resample.latent.eps=noise"], "noise"),
]


@pytest.mark.parametrize(("mistake", "told"), MISTAKES, ids=[" ".join(mistake) for mistake, _ in MISTAKES])
def test_a_mistake_is_refused_before_anything_is_loaded_or_written(mistake, told, place, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("model_loader.get_model", lambda *_: pytest.fail("loaded"))
    assert main(words(place, tmp_path / "out", *mistake)) == 2
    out, err = capsys.readouterr()
    assert told in err
    assert err.startswith("error: ")
    assert "Traceback" not in err
    assert out == ""
    assert not (tmp_path / "out").exists()


def test_a_size_that_does_not_fit_is_told_with_those_that_do(place, tmp_path, capsys):
    write_pictures(tmp_path / "in", ["wide.png"], side=45)
    assert main(words(place, tmp_path / "out", "--data", str(tmp_path / "in"))) == 2
    err = capsys.readouterr().err
    for text in ("wide.png", "45x45", "multiples of 4", "32x32", "--resize center_crop|resize"):
        assert text in err
    assert not (tmp_path / "out").exists()


def test_another_size_that_fits_is_restored_with_a_warning(place, tmp_path, capsys):
    write_pictures(tmp_path / "in", ["large.png"], side=48)
    extra = ["--data", str(tmp_path / "in"), "measurement.mask_opt.image_size=48"]
    assert main(words(place, tmp_path / "out", *extra, steps=2)) == 0
    assert "warning: some pictures are not 32x32" in capsys.readouterr().err
    assert pixels(tmp_path / "out" / "recon" / "large.png").shape == (48, 48, 3)


def test_a_measurement_by_other_settings_is_refused(place, finished, tmp_path, capsys):
    saved = ["--measurement", str(finished / "label")]
    assert main(words(place, tmp_path / "out", *saved, "measurement.noise.sigma=0.02")) == 2
    assert "other settings" in capsys.readouterr().err
    write_pictures(tmp_path / "in", ["a_jpg.png"], side=48)
    other = [*saved, "--data", str(tmp_path / "in"), "--resize", "error"]
    assert main(words(place, tmp_path / "out", *other)) == 2


def test_a_measurement_of_a_picture_of_another_size_is_refused_before_anything_is_written(place, tmp_path, capsys):
    task = yaml.safe_load((place / "task.yaml").read_text())
    task["measurement"] = {"operator": {"name": "super_resolution", "scale_factor": 4}}
    (tmp_path / "task.yaml").write_text(yaml.safe_dump(task))
    given = ["--task_config", str(tmp_path / "task.yaml"), "--data", str(write_pictures(tmp_path / "in", ["a.png"]))]
    assert main(words(place, tmp_path / "first", *given, steps=1)) == 0
    write_pictures(tmp_path / "in", ["a.png"], side=48)
    capsys.readouterr()
    saved = ["--measurement", str(tmp_path / "first" / "label")]
    assert main(words(place, tmp_path / "out", *given, *saved, "--quiet", steps=1)) == 2
    assert "the saved measurement has shape (1, 3, 8, 8), and that of the picture would" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_help_waits_for_no_heavy_import():
    code = "import sys, sample_condition; sample_condition.main(['--help']); sys.exit('numpy' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True).returncode == 0
