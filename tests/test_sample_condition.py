"""The command from its words to its folder, with a tiny model of random weights."""

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from safetensors.torch import load_file
from skimage.metrics import peak_signal_noise_ratio, structural_similarity

from ldm_inverse.runs.results import PASSES
from sample_condition import main
from tests.runs import names, pixels, rows, words
from tests.tiny import SIDE, write_pictures

ROOT = Path(__file__).resolve().parents[1]
STAGES = ("pixel", "latent", "final")
FOLDERS = ("input", "label", "recon")


def test_one_picture_in_each_folder_under_the_images_own_name(finished):
    for folder in FOLDERS:
        assert names(finished / folder) == ["a_jpg", "a_png", "b b", "sub_c"]
    for path in finished.rglob("*"):
        assert ".part" not in path.name


def test_input_is_the_truth_and_label_the_measurement_clipped_to_eight_bits(place, finished):
    assert np.array_equal(pixels(finished / "input" / "sub_c.png"), pixels(place / "pictures" / "sub" / "c.png"))
    y = load_file(finished / "label" / "sub_c.safetensors")["y"]
    expected = ((y[0].clamp(-1, 1) + 1) * 127.5).round().permute(1, 2, 0).numpy()
    assert np.array_equal(pixels(finished / "label" / "sub_c.png"), expected)
    assert pixels(finished / "recon" / "sub_c.png").shape == (SIDE, SIDE, 3)


def test_the_measurement_file_explains_the_measurement(place, finished):
    saved = load_file(finished / "label" / "b b.safetensors")
    assert saved.keys() == {"y", "mask"}
    truth = torch.from_numpy(pixels(finished / "input" / "b b.png").copy()).permute(2, 0, 1)[None] / 127.5 - 1
    noise = (saved["y"] - truth * saved["mask"])[saved["mask"].expand_as(truth) > 0]
    assert noise.std() == pytest.approx(0.01, rel=0.1)
    assert 1 - saved["mask"].mean() == pytest.approx(0.55, abs=0.06)


def test_metrics_are_scikit_images_on_the_written_pictures(finished):
    table = rows(finished / "metrics.csv")
    columns = ["image", "sample", "psnr", "ssim", "baseline_psnr", "baseline_ssim", *PASSES, "seconds"]
    assert list(table[0]) == [*columns, "residual_per_noise"]
    assert [row["image"] for row in table] == ["a_jpg", "a_png", "b b", "sub_c"]
    for row in table:
        truth, image = (pixels(finished / folder / f"{row['image']}.png") / 255 for folder in ("input", "recon"))
        assert float(row["psnr"]) == pytest.approx(peak_signal_noise_ratio(truth, image, data_range=1), rel=1e-5)
        ssim = structural_similarity(truth, image, data_range=1, channel_axis=-1)
        assert float(row["ssim"]) == pytest.approx(ssim, rel=1e-4)
        assert float(row["baseline_psnr"]) > 20  # interpolation of a smooth picture's known pixels
        assert float(row["seconds"]) > 0


def test_the_trace_tells_every_step_and_stage(finished):
    trace = rows(finished / "progress" / "a_png" / "trace.csv")
    passes = "unet,unet_backward,decoder_forward,decoder_backward,encoder_forward,encoder_backward"
    columns = f"iterations,first_loss,last_loss,target,noise_floor,stop,{passes},seconds"
    assert ",".join(trace[0]) == f"step,timestep,stage,{columns}"
    assert [row["step"] for row in trace if row["stage"] == "soft"] == list("012345")
    assert [row["stage"] for row in trace if row["stage"] != "soft"] == ["pixel"] * 3 + ["latent", "final"]
    final = trace[-1]
    assert (final["iterations"], final["stop"]) == ("2", "limit")
    assert float(final["first_loss"]) > 0
    kept = load_file(finished / "label" / "a_png.safetensors")["mask"].mean().item()
    for row in trace:
        assert float(row["noise_floor"]) == pytest.approx(0.01**2 * kept, rel=1e-4)
        assert row["target"] == ("" if row["stage"] == "soft" else "1e-06")  # the published code's eps, squared


def test_the_losses_of_every_optimisation_are_kept_and_drawn(finished):
    folder = finished / "progress" / "a_png"
    trace, losses = rows(folder / "trace.csv"), rows(folder / "losses.csv")
    assert list(losses[0]) == ["step", "stage", "iteration", "loss"]
    for event in trace:
        own = [row for row in losses if (row["step"], row["stage"]) == (event["step"], event["stage"])]
        assert [row["iteration"] for row in own] == [str(number) for number in range(max(int(event["iterations"]), 1))]
        if event["stage"] == "soft":  # its norm, as a mean square over the measurement's entries
            assert float(own[0]["loss"]) == pytest.approx(float(event["last_loss"]) ** 2 / (3 * SIDE**2), rel=1e-4)
        else:
            assert (own[0]["loss"], own[-1]["loss"]) == (event["first_loss"], event["last_loss"])
    assert "<svg" in (folder / "residual.svg").read_text()


def test_the_evolving_estimate_is_an_animation_too(finished):
    folder = finished / "progress" / "a_png"
    with Image.open(folder / "estimate.webp") as moving:  # the format joins pictures that look the same
        assert 2 <= moving.n_frames <= len(list(folder.glob("step_*.png"))) + 1
        assert moving.size == (SIDE, SIDE)


def test_progress_has_the_evolving_estimate(finished):
    pictures = sorted((finished / "progress" / "a_png").glob("*.png"))
    assert pictures[0].name == "step_0000.png"
    assert pictures[-1].name == "step_0005.png"
    assert all(pixels(path).shape == (SIDE, SIDE, 3) for path in pictures)


def test_settings_yaml_is_what_a_repetition_needs(place, finished):
    record = yaml.safe_load((finished / "settings.yaml").read_text())
    assert record["settings"]["ddim_steps"] == 6
    assert record["settings"]["conditioning"]["resample"]["pixel"]["max_iters"] == 2
    assert record["settings"]["conditioning"]["resample"]["gamma"] == 40.0  # a default, filled in
    assert record["settings"]["measurement"]["mask_opt"]["mask_type"] == "random"
    assert record["run"]["seed"] == 0
    assert record["threads"] == torch.get_num_threads()
    assert record["versions"]["torch"] == torch.__version__.partition("+")[0]
    assert len(record["checkpoint"]["sha256"]) == 64


def contents(out, *folders):
    return {path.relative_to(out): path.read_bytes() for folder in folders for path in (out / folder).glob("*.*")}


def test_an_image_depends_on_its_name_and_the_seed_alone(place, finished, tmp_path):
    alone = tmp_path / "alone"
    shutil.copytree(place / "pictures", tmp_path / "pictures")
    for other in ("a.png", "a.jpg"):
        (tmp_path / "pictures" / other).unlink()
    assert main(words(place, alone, "--data", str(tmp_path / "pictures"), "--limit", "1")) == 0
    assert names(alone / "recon") == ["b b"]
    for folder, ending in ((f, "png") for f in FOLDERS):
        path = Path(folder) / f"b b.{ending}"
        assert (alone / path).read_bytes() == (finished / path).read_bytes()
    assert (alone / "label/b b.safetensors").read_bytes() == (finished / "label/b b.safetensors").read_bytes()


def test_a_picture_of_the_same_stem_beside_it_changes_no_result(place, finished, tmp_path):
    (tmp_path / "in").mkdir()
    shutil.copy(place / "pictures" / "a.png", tmp_path / "in")
    assert main(words(place, tmp_path / "out", "--data", str(tmp_path / "in"))) == 0
    for folder in FOLDERS:
        assert (tmp_path / "out" / folder / "a.png").read_bytes() == (finished / folder / "a_png.png").read_bytes()


def test_another_seed_is_another_measurement_and_restoration(place, finished, tmp_path):
    assert main(words(place, tmp_path, "--seed", "1", "--limit", "1")) == 0
    for path in ("label/a_jpg.safetensors", "recon/a_jpg.png"):
        assert (tmp_path / path).read_bytes() != (finished / path).read_bytes()


def test_the_solvers_settings_leave_the_measurement_alone(place, finished, tmp_path):
    assert main(words(place, tmp_path, "--ddim_eta", "0.5", "conditioning.main_sampler=dps", steps=2)) == 0
    assert contents(tmp_path, "label", "input") == contents(finished, "label", "input")


def test_several_restorations_share_one_measurement(place, finished, tmp_path):
    assert main(words(place, tmp_path, "--n_samples_per_class", "2", "--limit", "1")) == 0
    for folder in FOLDERS:
        assert names(tmp_path / folder) == ["a_jpg_s0", "a_jpg_s1"]
    first, second = (pixels(tmp_path / "recon" / f"a_jpg_s{sample}.png") for sample in (0, 1))
    assert not np.array_equal(first, second)
    assert np.array_equal(first, pixels(finished / "recon" / "a_jpg.png"))
    measurement = Path("label/a_jpg.safetensors")
    assert (tmp_path / measurement).read_bytes() == (finished / measurement).read_bytes()
    assert [(row["image"], row["sample"]) for row in rows(tmp_path / "metrics.csv")] == [("a_jpg", "0"), ("a_jpg", "1")]
    assert (tmp_path / "progress" / "a_jpg_s1" / "trace.csv").is_file()


def test_measurements_of_an_earlier_run_are_read_back(place, finished, tmp_path):
    saved = str(finished / "label")
    assert main(words(place, tmp_path, "--measurement", saved, "--seed", "5", "--limit", "2")) == 0
    for name in ("a_jpg", "a_png"):
        path = Path("label") / f"{name}.safetensors"
        assert (tmp_path / path).read_bytes() == (finished / path).read_bytes()
        assert (tmp_path / "recon" / f"{name}.png").read_bytes() != (finished / "recon" / f"{name}.png").read_bytes()


def test_the_table_compares_with_the_baseline(place, tmp_path, capsys):
    assert main(words(place, tmp_path, "--limit", "1", "--quiet", steps=2)) == 0
    out, err = capsys.readouterr()
    assert "far from the noise" in err  # random weights explain nothing
    assert err.count("\n") == 1
    row = rows(tmp_path / "metrics.csv")[0]
    assert f"{float(row['baseline_psnr']):.2f}" in out
    assert f"{float(row['psnr']):.2f}" in out


def test_resizing_makes_any_picture_fit(place, tmp_path):
    write_pictures(tmp_path / "in", ["wide.png"], side=45)
    for method in ("center_crop", "resize"):
        out = tmp_path / method
        assert main(words(place, out, "--data", str(tmp_path / "in"), "--resize", method, steps=2)) == 0
        assert pixels(out / "recon" / "wide.png").shape == (SIDE, SIDE, 3)
