"""The table and picture of several runs."""

import csv
import shutil

import numpy as np
import pytest
import yaml
from PIL import Image

from ldm_inverse.runs.folder import RunFolder
from sample_condition import main as restore
from scripts.evaluation.side_by_side import panels, read_run
from scripts.overview import main
from tests.tiny import SIDE, write_model, write_pictures
from util.errors import ImageError

TASKS = {
    "super_resolution": {"operator": {"name": "super_resolution", "scale_factor": 4}},
    "box_inpainting": {
        "operator": {"name": "inpainting"},
        "mask_opt": {"mask_type": "box", "mask_len_range": [8, 9], "margin": [4, 4], "image_size": SIDE},
    },
}


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """The folders of a finished run for each of the tasks, with two restorations of each of two pictures."""
    place = tmp_path_factory.mktemp("runs")
    config, checkpoint = write_model(place)
    pictures = write_pictures(place / "pictures", ["a.png", "b.png"])
    for name, measurement in TASKS.items():
        task = place / f"{name}.yaml"
        noise = {"name": "gaussian", "sigma": 0.01}
        task.write_text(yaml.safe_dump({"measurement": {**measurement, "noise": noise}}))
        words = ["--ldm_config", config, "--diffusion_config", checkpoint, "--task_config", task, "--data", pictures]
        words += ["--save_dir", place / name, "--ddim_steps", "1", "--n_samples_per_class", "2", "--quiet"]
        assert restore([*map(str, words), "conditioning.resample.latent.max_iters=1"]) == 0
    return [place / name for name in TASKS]


def test_the_baseline_computed_anew_is_the_runs_own(runs):
    for folder in runs:
        run = read_run(folder)
        for row in run.metrics:
            truth, _, baseline, restored = (panel / 255 for panel in panels(run, row))
            for image, column in ((baseline, "baseline_psnr"), (restored, "psnr")):
                psnr = -10 * np.log10(np.square(truth - image).mean())
                assert psnr == pytest.approx(float(row[column]), abs=1e-3)


def test_a_run_whose_last_restorations_failed_is_shown(runs, tmp_path):
    folder = shutil.copytree(runs[0], tmp_path / "run")
    whole = RunFolder(folder, ["a", "b"], samples=2)
    for image in ("a", "b"):
        (folder / "results" / f"{image}_s1.json").unlink()
        whole.fail(image, [1], ImageError("not finite", 1))
    whole.tables.write()
    run = read_run(folder)
    assert [row["sample"] for row in run.metrics] == ["0", "0"]
    shown, before = (panels(each, each.metrics[0]) for each in (run, read_run(runs[0])))
    assert all(np.array_equal(*pair) for pair in zip(shown, before, strict=True))


def test_table_and_picture(runs, tmp_path, capsys):
    path = tmp_path / "sub" / "overview.png"
    assert main([*map(str, runs), "--save", str(path)]) == 0
    out = capsys.readouterr().out
    for folder in runs:
        rows = list(csv.DictReader((folder / "metrics.csv").read_text().splitlines()))
        line = next(line for line in out.splitlines() if line.startswith(folder.name.replace("_", " ")))
        for column in ("baseline_psnr", "psnr"):
            assert f"{np.mean([float(row[column]) for row in rows]):.2f}" in line
    assert str(path) in out
    width, height = Image.open(path).size
    assert width >= 900
    assert height >= 450


def test_many_runs_stand_side_by_side(runs, tmp_path):
    many = [str(runs[0])] * 13
    assert main([*many[:6], "--save", str(tmp_path / "six.png")]) == 0
    assert main([*many, "--save", str(tmp_path / "many.png")]) == 0
    (one_wide, one_high), (width, height) = (Image.open(tmp_path / name).size for name in ("six.png", "many.png"))
    assert one_high > one_wide
    assert width > 1.5 * height  # three blocks of five rows, of which the last has three
    picture = np.asarray(Image.open(tmp_path / "many.png").convert("L"))
    assert (picture[-height // 3 :, -width // 4 :] == 255).all()
    assert not (picture[-height // 3 :, : width // 4] == 255).all()


def test_a_folder_that_is_no_run_is_told(tmp_path, capsys):
    assert main([str(tmp_path), "--save", str(tmp_path / "o.png")]) == 2
    assert "not a finished run" in capsys.readouterr().err
    assert not (tmp_path / "o.png").exists()
