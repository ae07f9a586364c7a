"""Pictures and measurements as people have them, through the command."""

import zipfile
from pathlib import Path

import numpy as np
import pytest
import tifffile
import yaml
from PIL import Image
from safetensors.torch import load_file

from model_loader import get_model
from sample_condition import main
from tests.runs import pixels, words
from tests.tiny import SIDE, family, write_model, write_pictures

COLOURS = np.asarray(
    Image.fromarray(np.random.RandomState(0).randint(0, 256, (4, 4, 3)).astype(np.uint8)).resize((SIDE, SIDE))
)


def names(folder):
    return sorted(path.stem for path in folder.glob("*.png"))


@pytest.fixture
def run(place, tmp_path):
    """Return a function that runs the command in one step and returns its folder."""

    def run(*extra, out="out"):
        assert main(words(place, tmp_path / out, *map(str, extra), steps=1)) == 0
        return tmp_path / out

    return run


TASKS = Path(__file__).resolve().parents[1] / "configs" / "tasks"
DENOISE = ["--task_config", str(TASKS / "denoising_config.yaml")]


def test_all_frames(run, tmp_path):
    frames = [Image.fromarray(np.roll(COLOURS, 5 * shift, 1)) for shift in range(3)]
    (tmp_path / "in").mkdir()
    frames[0].save(tmp_path / "in" / "scan.tif", save_all=True, append_images=frames[1:])
    out = run("--data", tmp_path / "in", "--frames", "all", *DENOISE, "measurement.noise={name: clean}")
    assert names(out / "recon") == ["scan_000", "scan_001", "scan_002"]
    for frame, name in zip(frames, names(out / "recon"), strict=True):
        assert np.array_equal(pixels(out / "input" / f"{name}.png"), np.asarray(frame))
    recorded = yaml.safe_load((out / "settings.yaml").read_text())
    assert recorded["settings"]["data"]["frames"] == "all"


def test_the_first_frame_and_other_losses_are_in_the_log(run, tmp_path):
    frames = [Image.fromarray(np.roll(COLOURS, shift, 1)).convert("RGBA") for shift in range(2)]
    frames[0].putpixel((0, 0), (0, 0, 0, 0))
    frames[0].save(tmp_path / "a.webp", save_all=True, append_images=frames[1:], lossless=True)
    out = run("--data", tmp_path / "a.webp")
    (log,) = (out / "log").iterdir()
    assert "a.webp: the first of its 2 frames is taken" in log.read_text()
    assert "a.webp: its transparent parts are laid over white" in log.read_text()


def test_a_list_that_lies_elsewhere_and_an_archive(run, tmp_path):
    write_pictures(tmp_path / "set", ["x.png", "y y.png", "z.png"])
    (tmp_path / "list.txt").write_text("# two of three\nx.png (32,32,3)\n\ny y.png (32,32,3)\n")
    listed = run("--data", tmp_path / "list.txt", "--data_root", tmp_path / "set")
    assert names(listed / "recon") == ["x", "y y"]
    with zipfile.ZipFile(tmp_path / "set.zip", "w") as archive:
        for name in ("x.png", "y y.png"):
            archive.write(tmp_path / "set" / name, name)
    zipped = run("--data", tmp_path / "set.zip", out="zipped")
    for name in ("x", "y y"):
        assert np.array_equal(pixels(listed / "recon" / f"{name}.png"), pixels(zipped / "recon" / f"{name}.png"))


def test_data_root_without_a_list_is_refused(refused, tmp_path):
    assert "data_root" in refused("--data_root", str(tmp_path))


def test_what_a_run_writes_says_it_is_srgb(run, place):
    out = run("--data", place / "pictures" / "a.png")
    assert Image.open(out / "recon" / "a.png").info["srgb"] == 0


def test_a_measurement_in_other_units(run, tmp_path):
    y = COLOURS.transpose(2, 0, 1) / 127.5 - 1
    np.save(tmp_path / "right.npy", y.astype(np.float32))
    np.save(tmp_path / "units.npy", (500 + 1000 * y).astype(np.float32))
    right = run("--measurement", tmp_path / "right.npy", *DENOISE, out="right")
    units = run("--measurement", tmp_path / "units.npy", *DENOISE, "measurement.range=[-500, 1500]", out="units")
    # The restorations have other names, and so other noise.
    first, second = pixels(right / "baseline" / "right.png"), pixels(units / "baseline" / "units.png")
    assert np.abs(first.astype(int) - second).max() <= 1


@pytest.mark.parametrize("word", ["measurement.range=[1, 0]", "data.range=[0]", "measurement.range=wide"])
def test_a_range_that_is_none_is_refused(word, refused):
    assert word.partition("=")[0] in refused(word)


def test_floats_in_0_255_are_refused(refused, tmp_path):
    np.save(tmp_path / "a.npy", COLOURS.astype(np.float32))
    err = refused("--measurement", str(tmp_path / "a.npy"), *DENOISE)
    assert "measurement.range=[0, 255]" in err
    assert "a.npy" in err


def test_a_deep_picture_is_a_truth_with_all_its_bits(place, run, tmp_path):
    hounsfield = np.linspace(-1000, 3000, SIDE * SIDE, dtype=np.float32).reshape(SIDE, SIDE)
    tifffile.imwrite(tmp_path / "ct.tif", hounsfield)
    out = run("--data", tmp_path / "ct.tif", "data.range=[-1000, 3000]", *DENOISE, "measurement.noise={name: clean}")
    y = load_file(out / "label" / "ct.safetensors")["y"]
    assert np.allclose((y[0, 0].numpy() + 1) * 2000 - 1000, hounsfield, atol=1e-2)


@pytest.mark.parametrize("kind", ["tiff", "npy", "png16", "safetensors"])
def test_restorations_as_floats_or_with_sixteen_bits(kind, run, tmp_path):
    np.save(tmp_path / "a.npy", COLOURS.transpose(2, 0, 1).astype(np.float32))
    words = ["--measurement", tmp_path / "a.npy", *DENOISE, "measurement.range=[0, 255]", "--save_format", kind]
    out = run(*words)
    shown = Image.open(out / "recon" / "a.png")
    suffix = {"tiff": ".tif", "npy": ".npy", "png16": ".png", "safetensors": ".safetensors"}[kind]
    path = out / "recon" / f"a{suffix}"
    if kind == "png16":
        assert path.read_bytes()[24] == 16  # bits a value, of the header
        return
    readers = {"tiff": tifffile.imread, "npy": np.load, "safetensors": lambda path: load_file(path)["image"].numpy()}
    image = readers[kind](path)
    image = image if kind == "tiff" else image.transpose(1, 2, 0)
    assert np.abs(image.clip(0, 255) - np.asarray(shown)).max() <= 0.51
    assert (out / "report.html").exists()


@pytest.fixture(scope="module")
def classes(tmp_path_factory):
    """A folder with a class-conditional model."""
    folder = tmp_path_factory.mktemp("classes")
    stage = {"n_classes": 1001, "embed_dim": 8, "key": "class_label"}
    config = family(
        {"use_spatial_transformer": True, "transformer_depth": 1, "context_dim": 8},
        cond_stage_config={"target": "ldm.modules.encoders.modules.ClassEmbedder", "params": stage},
        cond_stage_key="class_label",
    )
    write_model(folder, config)
    return folder


def test_a_lists_classes_are_what_the_model_is_asked_for(classes, place, tmp_path, monkeypatch):
    write_pictures(tmp_path / "set", ["a.png", "b.png"])
    (tmp_path / "list.txt").write_text("a.png 7\nb.png 970\n")
    asked = []
    embed = type(get_model(classes / "tiny.yaml", classes / "tiny.safetensors", "cpu").cond_stage_model).forward

    def noting(self, batch, *args, **kwargs):
        if not batch["class_label"].is_meta:
            asked.append(batch["class_label"].tolist())
        return embed(self, batch, *args, **kwargs)

    monkeypatch.setattr("ldm.modules.encoders.modules.ClassEmbedder.forward", noting)
    model = ["--ldm_config", str(classes / "tiny.yaml"), "--diffusion_config", str(classes / "tiny.safetensors")]
    given = [*model, "--data", str(tmp_path / "list.txt"), "--data_root", str(tmp_path / "set"), "--batch_size", "2"]
    assert main(words(place, tmp_path / "listed", *given, steps=1)) == 0
    assert [7] in asked
    assert [970] in asked
    asked.clear()
    assert main(words(place, tmp_path / "said", *given, "--class_label", "3", steps=1)) == 0
    assert {label for labels in asked for label in labels} == {3}


def test_a_class_that_the_model_lacks_is_refused(classes, place, tmp_path, capsys):
    write_pictures(tmp_path / "set", ["a.png"])
    (tmp_path / "set" / "list.txt").write_text("a.png 5000\n")
    model = ["--ldm_config", str(classes / "tiny.yaml"), "--diffusion_config", str(classes / "tiny.safetensors")]
    assert main(words(place, tmp_path / "out", *model, "--data", str(tmp_path / "set" / "list.txt"))) == 2
    assert "class_label is 5000" in capsys.readouterr().err
