"""Restoring what is degraded already, of any size, with no truth at hand."""

import csv
import json

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from safetensors.torch import load_file, save_file

from ldm_inverse.measurements import get_operator
from ldm_inverse.runs.results import PASSES
from sample_condition import main
from tests.runs import words
from tests.tiny import CONFIG, SIDE, write_pictures


def rows(path):
    return list(csv.DictReader(path.read_text().splitlines()))


def pixels(path):
    return np.asarray(Image.open(path))


def task(folder, operator, sigma=0.05):
    noise = {"name": "gaussian", "sigma": sigma}
    (folder / "own.yaml").write_text(yaml.safe_dump({"measurement": {"operator": operator, "noise": noise}}))
    return ["--task_config", str(folder / "own.yaml")]


def degraded(folder, sides=(SIDE // 2, SIDE // 2), sigma=0.0, seed=0):
    """A smooth measurement (1, 3, h, w) with noise."""
    rng = np.random.RandomState(seed)
    small = torch.from_numpy(rng.uniform(-0.8, 0.8, (1, 3, 4, 4)))
    smooth = torch.nn.functional.interpolate(small, sides, mode="bicubic", align_corners=True)
    return (smooth + sigma * torch.from_numpy(rng.standard_normal(smooth.shape))).float()


def to_picture(y):
    return Image.fromarray(((y[0].clamp(-1, 1) + 1) * 127.5).round().byte().permute(1, 2, 0).numpy())


def test_a_small_picture_is_enlarged(place, tmp_path, capsys):
    (tmp_path / "in").mkdir()
    to_picture(degraded(tmp_path)).save(tmp_path / "in" / "small.png")
    np.save(tmp_path / "in" / "exact.npy", degraded(tmp_path, (SIDE // 2, SIDE))[0].numpy())
    given = ["--measurement", str(tmp_path / "in"), *task(tmp_path, {"name": "super_resolution", "scale_factor": 2})]
    out = tmp_path / "out"
    assert main(words(place, out, *given, steps=2)) == 0
    assert pixels(out / "recon" / "small.png").shape == (SIDE, SIDE, 3)
    assert pixels(out / "recon" / "exact.png").shape == (SIDE, 2 * SIDE, 3)
    assert np.array_equal(pixels(out / "label" / "small.png"), pixels(tmp_path / "in" / "small.png"))
    assert sorted(path.name for path in (out / "label").iterdir()) == [
        "exact.png",
        "exact.safetensors",
        "small.png",
        "small.safetensors",
    ]
    assert not (out / "input").exists()
    table = rows(out / "metrics.csv")
    assert list(table[0]) == [
        "image",
        "sample",
        "residual",
        "noise",
        "baseline_residual",
        *PASSES,
        "seconds",
        "residual_per_noise",
    ]
    assert [row["image"] for row in table] == ["exact", "small"]
    assert all(float(row["noise"]) == 0.05 and float(row["residual"]) > 0 for row in table)
    assert all(
        float(row["residual_per_noise"]) == pytest.approx(float(row["residual"]) / 0.05, rel=1e-4) for row in table
    )
    told = capsys.readouterr()
    assert "no truth, so no PSNR" in told.out
    assert "small: residual" in told.err
    # The baseline is bicubic enlargement, whose residual under bicubic reduction is small.
    assert pixels(out / "baseline" / "small.png").shape == (SIDE, SIDE, 3)
    assert all(float(row["baseline_residual"]) < 0.03 for row in table)
    assert (out / "report.html").is_file()


def test_the_residual_is_that_of_the_measurement_and_the_restoration(place, tmp_path, monkeypatch):
    y = degraded(tmp_path, (SIDE, SIDE))
    save_file({"y": y}, tmp_path / "a.safetensors")
    monkeypatch.setattr("ldm_inverse.runs.restoration.restore", lambda *_, **__: y + 0.03)
    given = ["--measurement", str(tmp_path / "a.safetensors"), *task(tmp_path, {"name": "noise"})]
    assert main(words(place, tmp_path / "out", *given)) == 0
    (row,) = rows(tmp_path / "out" / "metrics.csv")
    assert float(row["residual"]) == pytest.approx(0.03, rel=1e-4)


def test_noise_is_estimated_and_reported(place, tmp_path, capsys):
    np.save(tmp_path / "noisy.npy", degraded(tmp_path, (SIDE, SIDE), sigma=0.2)[0].numpy())
    given = ["--measurement", str(tmp_path / "noisy.npy"), *task(tmp_path, {"name": "noise"}, "estimate")]
    assert main(words(place, tmp_path / "out", *given, "conditioning.resample.pixel.eps=noise", steps=2)) == 0
    (row,) = rows(tmp_path / "out" / "metrics.csv")
    assert float(row["noise"]) == pytest.approx(0.2, rel=0.15)
    assert f"noise {row['noise']}" in capsys.readouterr().err


def test_masks_and_kernels_come_from_files(place, tmp_path):
    y = degraded(tmp_path, (SIDE, SIDE))
    (tmp_path / "in").mkdir()
    (tmp_path / "masks").mkdir()
    mask = np.random.RandomState(0).uniform(size=(SIDE, SIDE)) < 0.5
    for name in ("a", "b"):
        to_picture(y).save(tmp_path / "in" / f"{name}.png")
        Image.fromarray(mask if name == "a" else ~mask).save(tmp_path / "masks" / f"{name}.png")
    operator = {"name": "inpainting", "mask_file": str(tmp_path / "masks")}
    given = ["--measurement", str(tmp_path / "in"), *task(tmp_path, operator)]
    assert main(words(place, tmp_path / "out", *given, steps=1)) == 0
    saved = [load_file(tmp_path / "out" / "label" / f"{name}.safetensors") for name in ("a", "b")]
    assert torch.equal(saved[0]["mask"][0, 0] > 0, torch.from_numpy(mask))
    assert torch.equal(saved[0]["mask"], 1 - saved[1]["mask"])
    assert not saved[0]["y"][:, :, ~torch.from_numpy(mask)].any()
    Image.fromarray(np.diag([255] * 5).astype(np.uint8)).save(tmp_path / "kernel.png")
    operator = {"name": "motion_blur", "kernel": str(tmp_path / "kernel.png")}
    given = ["--measurement", str(tmp_path / "in" / "a.png"), *task(tmp_path, operator)]
    assert main(words(place, tmp_path / "blurred", *given, steps=1)) == 0


def test_a_runs_own_measurement_is_restored_without_its_truth(place, tmp_path):
    data = write_pictures(tmp_path / "in", ["one.png"])
    assert main(words(place, tmp_path / "run", "--data", str(data), steps=1)) == 0
    saved = tmp_path / "run" / "label" / "one.safetensors"
    out = tmp_path / "out"
    assert main(words(place, out, "--measurement", str(saved), steps=1)) == 0
    assert (out / "label" / "one.safetensors").read_bytes() == saved.read_bytes()
    assert (out / "recon" / "one.png").read_bytes() == (tmp_path / "run" / "recon" / "one.png").read_bytes()
    assert main(words(place, tmp_path / "no", "--measurement", str(saved), "measurement.noise.sigma=0.5")) == 2
    assert main(["--from", str(out), "--save_dir", str(tmp_path / "again")]) == 0
    assert (tmp_path / "again/recon/one.png").read_bytes() == (out / "recon/one.png").read_bytes()


NEIGHBOURS = {
    "noise": {},
    "colourisation": {},
    "high_dynamic_range": {"scale": 2.0},
    "jpeg": {"quality": 20},
    "tomography": {"angles": 6},
    "phase_retrieval": {"oversample": 0.25},
}


@pytest.mark.parametrize("name", NEIGHBOURS)
def test_measurements_by_every_operator_are_read_back_and_given(name, place, tmp_path):
    """A run's label/ folder with its truths, its exact measurement without, a plain array, and the run again."""
    given = task(tmp_path, {"name": name, **NEIGHBOURS[name]})
    data = write_pictures(tmp_path / "in", ["one.png"])
    run, saved = tmp_path / "run", tmp_path / "run" / "label" / "one.safetensors"
    quick = ["conditioning.resample.pixel.max_iters=1", "conditioning.resample.latent.max_iters=1", "--quiet"]
    assert main(words(place, run, "--data", str(data), *given, *quick, steps=1)) == 0
    y = load_file(saved)["y"]
    np.save(tmp_path / "mine.npy", y[0].numpy())
    ways = {
        "label": [str(run / "label"), "--data", str(data)],
        "file": [str(saved)],
        "array": [str(tmp_path / "mine.npy")],
    }
    for way, source in ways.items():
        assert main(words(place, tmp_path / way, "--measurement", *source, *given, *quick, steps=1)) == 0
        (label,) = (tmp_path / way / "label").glob("*.safetensors")
        (restored,) = (tmp_path / way / "recon").iterdir()
        assert torch.equal(load_file(label)["y"], y)
        if way != "array":  # whose name, and so its noise to start from, is another
            assert restored.read_bytes() == (run / "recon" / "one.png").read_bytes()
        assert pixels(restored).shape == (SIDE, SIDE, 3)
    assert main(["--from", str(run), "--save_dir", str(tmp_path / "again"), "--quiet"]) == 0
    assert (tmp_path / "again/recon/one.png").read_bytes() == (run / "recon/one.png").read_bytes()


def test_pad_restores_any_size_and_cuts_back(place, tmp_path, capsys):
    write_pictures(tmp_path / "in", ["odd.png"], side=45)
    extra = ["--data", str(tmp_path / "in"), "--resize", "pad", "conditioning.resample.start=1/2"]
    assert main(words(place, tmp_path / "out", *extra, "measurement.mask_opt.image_size=45", steps=4)) == 0
    assert capsys.readouterr().err.count("the only size that the model was trained on") == 1
    for folder in ("input", "label", "recon"):
        assert pixels(tmp_path / "out" / folder / "odd.png").shape == (45, 45, 3)
    assert np.array_equal(pixels(tmp_path / "out/input/odd.png"), pixels(tmp_path / "in/odd.png"))
    assert load_file(tmp_path / "out/label/odd.safetensors")["y"].shape == (1, 3, 45, 45)
    progress = sorted((tmp_path / "out/progress/odd").glob("step*.png"))
    assert {pixels(path).shape for path in progress} == {(45, 45, 3)}
    (row,) = rows(tmp_path / "out" / "metrics.csv")
    assert float(row["baseline_psnr"]) > 20


def test_what_fits_is_restored_alike_with_and_without_pad(place, tmp_path):
    for method in ("error", "pad"):
        assert main(words(place, tmp_path / method, "--resize", method, "--limit", "1", steps=3)) == 0
    recon = [(tmp_path / method / "recon" / "a_jpg.png").read_bytes() for method in ("error", "pad")]
    assert recon[0] == recon[1]


def test_padding_reflects():
    from ldm_inverse.runs.measured_picture import MeasuredPicture

    picture = MeasuredPicture("a", "a", None, None, (1, 3, 3, 4), (8, 5))
    image = torch.arange(12.0).reshape(1, 1, 3, 4)
    expected = np.pad(image[0, 0].numpy(), ((0, 5), (0, 1)), mode="reflect")
    assert np.array_equal(picture.pad(image)[0, 0].numpy(), expected)
    assert torch.equal(picture.crop(picture.pad(image)), image)


def test_a_listed_picture_and_a_named_class(place, tmp_path, capsys):
    (tmp_path / "list.txt").write_text(str(place / "pictures" / "sub" / "c.png"))
    config = {**CONFIG, "model": {**CONFIG["model"], "params": dict(CONFIG["model"]["params"])}}
    stage = {"n_classes": 4, "embed_dim": 8, "key": "class_label"}
    unet = json.loads(json.dumps(CONFIG["model"]["params"]["unet_config"]))
    unet["params"] |= {"use_spatial_transformer": True, "transformer_depth": 1, "context_dim": 8}
    config["model"]["params"] |= {
        "cond_stage_config": {"target": "ldm.modules.encoders.modules.ClassEmbedder", "params": stage},
        "cond_stage_key": "class_label",
        "unet_config": unet,
    }
    (tmp_path / "classes.yaml").write_text(yaml.safe_dump(config))
    (tmp_path / "classes.classes.txt").write_text("cat\ndog\nowl\nhen\n")
    extra = ["--ldm_config", str(tmp_path / "classes.yaml"), "--class_label", "owl"]
    assert main(words(place, tmp_path / "out", *extra, "--data", str(tmp_path / "list.txt"), "--dry_run")) == 0
    settings, _, rest = capsys.readouterr().out.partition("\n\n")
    assert yaml.safe_load(settings)["class_label"] == 2
    assert "1 pictures:" in rest
    assert "sub_c" in rest


WRONG = {
    "text.npy": (lambda path: path.write_text("a picture, honestly"), "not a .npy file"),
    "pickled.npy": (lambda path: np.save(path, np.array([[{}] * 9]), allow_pickle=True), "cannot be read"),
    "nan.npy": (lambda path: np.save(path, np.full((SIDE, SIDE), np.nan)), "NaN"),
    "int64.npy": (lambda path: np.save(path, np.ones((SIDE, SIDE), np.int64)), "int64"),
    "shape.npy": (lambda path: np.save(path, np.full((7, SIDE, SIDE), -0.5)), "(1, 7, 32, 32)"),
    "size.npy": (lambda path: np.save(path, np.full((3, 30, 30), -0.5)), "multiples of 4"),
    "header.safetensors": (lambda path: path.write_bytes((2**40).to_bytes(8, "little") + b"{}"), "not a readable"),
    "text.png": (lambda path: path.write_text("a picture, honestly"), "not a picture"),
    "text.txt": (lambda path: path.write_bytes(b"\xff\xfe"), "not UTF-8"),
    "state.safetensors": (
        lambda path: save_file({"y": -torch.ones(1, 3, SIDE, SIDE), "mask": torch.ones(1, 1, 5, 5)}, path),
        "mask: expected one of 32 x 32, got shape (1, 1, 5, 5)",
    ),
    "random.png": (lambda path: Image.new("RGB", (SIDE, SIDE)).save(path), "draws the mask at random"),
}


@pytest.mark.parametrize("name", WRONG)
def test_what_is_no_measurement_of_the_task_is_refused_in_a_line(name, refused, tmp_path):
    write, told = WRONG[name]
    write(tmp_path / name)
    other = name in ("state.safetensors", "random.png")
    extra = [] if other else task(tmp_path, {"name": "noise"})
    err = refused("--measurement", str(tmp_path / name), *extra)
    assert told in err
    assert name in err


KERNEL = {"name": "motion_blur", "kernel": "k"}
WORDS = [
    (["--measurement", "{in}", "--data", "{in}"], {"name": "noise"}, "exclude each other"),
    (["--measurement", "{in}", "--resize", "resize"], {"name": "noise"}, "--resize resize would change"),
    (["--measurement", "nowhere"], {"name": "noise"}, "nowhere"),
    (["measurement.noise.sigma=estimate"], {"name": "noise"}, "sigma=estimate is for --measurement"),
    (["--class_label", "3"], {"name": "noise"}, "unconditional"),
    (["--class_label", "owl"], {"name": "noise"}, "give the class's number"),
    ([], {"name": "inpainting", "mask_file": "{in}/wide.png"}, "24 x 32 and the image 32 x 32"),
    ([], {"name": "inpainting", "mask_file": "{in}/text.npy"}, "not a .npy file"),
    ([], {"name": "inpainting", "mask_file": "{in}"}, "no mask for 'a_jpg'"),
    ([], {"name": "motion_blur", "kernel": "estimate"}, "estimate is not supported"),
    ([], {"name": "motion_blur", "kernel": "{in}/text.npy"}, "not a .npy file"),
]


@pytest.mark.parametrize(("extra", "operator", "told"), WORDS, ids=[row[2] for row in WORDS])
def test_inputs_that_do_not_go_together_are_refused_in_a_line(extra, operator, told, refused, place, tmp_path):
    (tmp_path / "in").mkdir()
    Image.fromarray(np.eye(24, 32) > 0).save(tmp_path / "in" / "wide.png")
    (tmp_path / "in" / "text.npy").write_text("a mask, honestly")
    operator, extra = json.loads(json.dumps([operator, extra]).replace("{in}", str(tmp_path / "in")))
    given = task(tmp_path, operator) + ([] if "--measurement" in extra else ["--data", str(place / "pictures")])
    assert told in refused(*given, *extra, "--limit", "1")


def test_a_measurement_whose_surroundings_are_unknown_keeps_its_size(place, tmp_path):
    """The kernel of 5x7 needs an image of 36x38 around y, and the model one of multiples of 4."""
    scene = torch.from_numpy(np.random.RandomState(0).uniform(-1, 1, (1, 3, 36, 38))).float()
    kernel = np.random.RandomState(1).uniform(size=(5, 7))
    np.save(tmp_path / "kernel.npy", kernel)
    y = get_operator("motion_blur", kernel=kernel, boundary="valid")(scene)
    np.save(tmp_path / "y.npy", y[0].numpy())
    operator = {"name": "motion_blur", "kernel": str(tmp_path / "kernel.npy"), "boundary": "valid"}
    extra = ["--measurement", str(tmp_path / "y.npy"), *task(tmp_path, operator)]
    assert main(words(place, tmp_path / "out", *extra, steps=2)) == 0
    for folder in ("recon", "baseline", "label"):
        assert Image.open(tmp_path / "out" / folder / "y.png").size == (32, 32), folder


def test_kernels_beside_measurements_may_have_sides_of_their_own(place, tmp_path):
    """Each says how far its picture reaches: 5x7 and 3x3 around 32x32, in one batch with no more in common."""
    folder, random = tmp_path / "in", np.random.RandomState(0)
    folder.mkdir()
    for name, (rows, columns) in {"a": (5, 7), "b": (3, 3), "c": (3, 3)}.items():
        kernel = random.uniform(size=(1, 1, rows, columns))
        scene = torch.from_numpy(random.uniform(-1, 1, (1, 3, 31 + rows, 31 + columns))).float()
        y = get_operator("motion_blur", kernel=kernel[0, 0], boundary="valid")(scene)
        save_file({"y": y, "kernel": torch.from_numpy(kernel / kernel.sum())}, folder / f"{name}.safetensors")
    extra = ["--measurement", str(folder), *task(tmp_path, {"name": "motion_blur", "boundary": "valid"})]
    assert main(words(place, tmp_path / "out", *extra, "--batch_size", "3", steps=2)) == 0
    for name in "abc":
        assert Image.open(tmp_path / "out" / "recon" / f"{name}.png").size == (32, 32), name
