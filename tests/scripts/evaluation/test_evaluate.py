"""Finished runs measured, tabulated and compared."""

import json
import shutil

import numpy as np
import pytest
import yaml
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from skimage.metrics import peak_signal_noise_ratio, structural_similarity

from ldm_inverse.runs.folder import RunFolder
from ldm_inverse.runs.results import PASSES, csv_of
from sample_condition import main as restore
from scripts.evaluation import entries, tables
from scripts.evaluation.finished import FinishedRun
from scripts.evaluation.statistics import summarise
from tests.runs import pixels, table
from tests.tiny import SIDE, write_pictures

TRUTH = "input"


def means(files, title):
    """Each image's mean PSNR over the restorations of an entry."""
    values = {}
    for row in table(files["images.csv"]):
        if row["run"] == title:
            values.setdefault(row["image"], []).append(float(row["psnr"]))
    return {image: np.mean(found) for image, found in values.items()}


def summary_of(files, title, less=""):
    (row,) = (
        row for row in table(files["summary.csv"]) if (row["run"], row["less"], row["metric"]) == (title, less, "psnr")
    )
    return {key: float(row[key]) for key in ("mean", "sd", "low", "high", "n")}


def test_what_is_measured_on_each_image(runs, evaluate):
    folder = runs / "inpainting" / "two"
    _, files = evaluate(folder)
    rows = [row for row in table(files["images.csv"]) if row["run"] == "two"]
    assert [row["image"] for row in rows] == ["a", "b b", "c"]
    for row in rows:
        truth, image = (pixels(folder / kind / f"{row['image']}.png") / 255 for kind in ("input", "recon"))
        assert float(row["psnr"]) == pytest.approx(peak_signal_noise_ratio(truth, image, data_range=1), rel=1e-5)
        ssim = structural_similarity(truth, image, data_range=1, channel_axis=2)
        assert float(row["ssim"]) == pytest.approx(ssim, rel=1e-5)
        saved = {
            key: value.numpy() for key, value in load_file(folder / "label" / f"{row['image']}.safetensors").items()
        }
        x = (image * 2 - 1).transpose(2, 0, 1)[None]
        kept = np.broadcast_to(saved["mask"] > 0, x.shape)  # dropped pixels are not measured
        residual = np.sqrt(np.square(saved["y"] - x)[kept].mean())
        assert float(row["residual"]) == pytest.approx(residual, rel=1e-4)
        assert float(row["noise"]) == pytest.approx(0.05, rel=1e-4)
        trace = table((folder / "progress" / row["image"] / "trace.csv").read_text())
        for kind in PASSES:
            assert float(row[kind]) == sum(int(event[kind]) for event in trace)
            # So short a run never goes back through the UNet, and encodes nothing.
            assert (float(row[kind]) > 0) == (kind in ("unet", "decoder_forward", "decoder_backward"))
        finished = json.loads((folder / "results" / f"{row['image']}.json").read_text())
        assert float(row["seconds"]) == pytest.approx(finished["seconds"], rel=1e-5)


def test_a_run_of_before_passes_were_counted_is_measured_by_the_rest(runs, evaluate, tmp_path):
    old = tmp_path / "old"
    shutil.copytree(runs / "inpainting" / "two", old)
    for path in (old / "results").iterdir():
        row = json.loads(path.read_text())
        path.write_text(json.dumps({key: value for key, value in row.items() if key not in PASSES}))
    for path in old.glob("progress/*/trace.csv"):
        rows = table(path.read_text())
        path.write_bytes(csv_of([key for key in rows[0] if key not in PASSES], rows))
    _, files = evaluate(old)
    _, now = evaluate(runs / "inpainting" / "two")
    for row, same in zip(table(files["images.csv"]), table(now["images.csv"]), strict=True):
        assert "unet" not in row
        assert row["psnr"] == same["psnr"]
    assert "UNet uncounted" in RunFolder(old, ["a", "b b", "c"]).tables.text()


def test_the_baseline_has_a_row_of_its_own(runs, evaluate):
    out, files = evaluate(runs / "inpainting" / "one")
    ours = {row["image"]: row for row in table(files["images.csv"]) if row["run"] == "baseline"}
    for row in table((runs / "inpainting" / "one" / "metrics.csv").read_text()):
        assert float(ours[row["image"]]["psnr"]) == pytest.approx(float(row["baseline_psnr"]), abs=1e-3)
        assert float(ours[row["image"]]["ssim"]) == pytest.approx(float(row["baseline_ssim"]), abs=1e-4)
    assert "baseline" in out
    assert "less one, image by image" in out


def test_a_summary_is_over_images(runs, evaluate):
    _, files = evaluate(runs / "inpainting" / "one")
    values = list(means(files, "one").values())
    summary = summary_of(files, "one")
    assert summary["mean"] == pytest.approx(np.mean(values), abs=1e-4)
    assert summary["sd"] == pytest.approx(np.std(values, ddof=1), rel=1e-3)
    assert min(values) <= summary["low"] < summary["mean"] < summary["high"] <= max(values)
    assert summary["n"] == 3


def test_the_interval_of_many_normal_numbers_is_the_textbooks():
    x = np.random.default_rng(1).normal(3, 2, 500)
    summary = summarise(x)
    half = 1.96 * x.std(ddof=1) / np.sqrt(500)
    assert (summary.low, summary.high) == pytest.approx((x.mean() - half, x.mean() + half), abs=0.1 * half)
    assert summary == summarise(x)


def test_summaries_where_there_is_nothing_to_resample():
    assert summarise([2.5]) == (2.5, None, None, None, 1)
    assert summarise([2.5] * 4) == (2.5, 0, 2.5, 2.5, 4)
    assert summarise([2.5, float("inf")]) == (float("inf"), None, None, None, 2)


def test_runs_are_compared_image_by_image(runs, evaluate):
    out, files = evaluate(runs / "inpainting" / "one", runs / "inpainting" / "two")
    one = means(files, "one")
    for title in ("two", "baseline"):
        less = [value - one[image] for image, value in means(files, title).items()]
        summary = summary_of(files, title, "one")
        assert summary["mean"] == pytest.approx(np.mean(less), abs=1e-3)
        assert summary["sd"] == pytest.approx(np.std(less, ddof=1), rel=1e-2)
        assert f"{np.mean(less):+.2f} ±" in out


def test_runs_that_measured_something_else_are_not_compared(runs, refused, tmp_path):
    one = runs / "inpainting" / "one"
    assert "--by_task" in refused(one, runs / "enlarging" / "one")
    assert "differ" in refused(runs / "inpainting" / "two", runs / "inpainting" / "one_again")
    # The same settings and seed, and another measurement all the same.
    altered = shutil.copytree(runs / "inpainting" / "two", tmp_path / "altered")
    path = altered / "label" / "c.safetensors"
    with safe_open(path, framework="pt") as file:
        tensors, metadata = {key: file.get_tensor(key) for key in file.keys()}, file.metadata()  # noqa: SIM118
    save_file(tensors | {"y": tensors["y"] + 1e-6}, path, metadata=metadata)
    assert "measurements of 'c' differ" in refused(one, altered)


def test_several_tasks_in_one_table(runs, evaluate):
    words = [runs / "inpainting" / "one", runs / "inpainting" / "two", runs / "enlarging" / "one", "--by_task"]
    _, files = evaluate(*words)
    summary = table(files["summary.csv"])
    titles = list(dict.fromkeys(row["run"] for row in summary))
    assert titles == [
        "baseline of inpainting/one",
        "inpainting/one",
        "inpainting/two",
        "baseline of enlarging/one",
        "enlarging/one",
    ]
    pairs = {(row["run"], row["less"]) for row in summary if row["less"]}
    assert pairs == {
        ("baseline of inpainting/one", "inpainting/one"),
        ("inpainting/two", "inpainting/one"),
        ("baseline of enlarging/one", "enlarging/one"),
    }


def test_seeds_are_one_row_and_averaged_for_each_image(runs, evaluate):
    one, again, two = (runs / "inpainting" / name for name in ("one", "one_again", "two"))
    _, files = evaluate(one)
    first = means(files, "one")
    _, files = evaluate(again)
    second = means(files, "one_again")
    _, files = evaluate(two, one, again)
    assert sum(row["run"] == "inpainting" for row in table(files["images.csv"])) == 6
    both = [(first[image] + second[image]) / 2 for image in first]
    summary = summary_of(files, "inpainting")
    assert summary["n"] == 3
    assert summary["mean"] == pytest.approx(np.mean(both), abs=1e-3)
    assert summary["sd"] == pytest.approx(np.std(both, ddof=1), rel=1e-2)
    # Compared is on the measurements that both have: those of the first seed.
    less = [first[image] - value for image, value in means(files, "inpainting/two").items()]
    assert summary_of(files, "inpainting", "inpainting/two")["mean"] == pytest.approx(np.mean(less), abs=1e-3)


def test_a_missing_truth_shows_in_the_number_of_images(runs, evaluate, tmp_path):
    run, whole = tmp_path / "run", runs / "inpainting" / "two"
    shutil.copytree(whole, run)
    (run / TRUTH / "c.png").unlink()
    out, files = evaluate(run)
    assert "run: 1 of 3 images have no truth: c" in out
    summaries = {row["metric"]: row for row in table(files["summary.csv"]) if row["run"] == "run"}
    assert (summaries["psnr"]["n"], summaries["residual"]["n"]) == ("2", "3")
    (line,) = (line.split() for line in out.splitlines() if line.startswith("run "))
    assert line[1] == "3"
    assert " ".join(line).count("(n = 2)") == 2  # PSNR and SSIM
    # Beside a whole run: the difference is over the images whose PSNR both know, and no mean is the best.
    _, files = evaluate(whole, run)
    rows = table(files["summary.csv"])
    less = {row["metric"]: row for row in rows if row["run"].endswith("run") and row["less"].endswith("two")}
    assert (less["psnr"]["n"], float(less["psnr"]["mean"]), less["residual"]["n"]) == ("2", 0, "3")
    assert not any("**" in line.split("|")[3] for line in files["evaluation.md"].splitlines() if line.startswith("| "))


def test_a_run_without_truth_is_measured_by_the_rest(runs, evaluate, tmp_path):
    blind = shutil.copytree(runs / "enlarging" / "one", tmp_path / "blind")
    for path in (blind / "input").glob("*.png"):
        path.unlink()
    out, files = evaluate(blind)
    assert "PSNR / dB" not in out
    metrics = {row["metric"] for row in table(files["summary.csv"]) if row["run"] == "blind"}
    assert metrics == {"residual", "noise", "residual_per_noise", "seconds", *PASSES}


def test_where_the_noise_is_estimated_the_baseline_is_the_runs_own(runs, evaluate, tmp_path, capsys):
    noisy = write_pictures(tmp_path / "noisy", ["a.png", "b.png"])
    rng = np.random.RandomState(0)
    for path in noisy.iterdir():
        Image.fromarray((pixels(path) + 20 * rng.standard_normal((SIDE, SIDE, 3))).clip(0, 255).astype("uint8")).save(
            path
        )
    task = tmp_path / "task.yaml"
    noise = {"name": "gaussian", "sigma": "estimate"}
    task.write_text(yaml.safe_dump({"measurement": {"operator": {"name": "noise"}, "noise": noise}}))
    words = ["--ldm_config", runs / "tiny.yaml", "--diffusion_config", runs / "tiny.safetensors", "--device", "cpu"]
    words += ["--task_config", task, "--measurement", noisy, "--save_dir", tmp_path / "run", "--quiet"]
    assert restore([*map(str, words), "conditioning.main_sampler=none"]) == 0
    capsys.readouterr()
    _, files = evaluate(tmp_path / "run")
    told = {row["image"]: row for row in table((tmp_path / "run" / "metrics.csv").read_text())}
    for row in table(files["images.csv"]):  # this sampler gives the baseline, and 8 bits round it
        assert float(row["residual"]) == pytest.approx(float(told[row["image"]]["residual"]), abs=0.0023)
        assert float(row["noise"]) == pytest.approx(float(told[row["image"]]["noise"]), rel=1e-5)


def test_what_is_far_from_its_noise_is_told(runs, evaluate):
    out, files = evaluate(runs / "enlarging" / "one")  # random weights explain nothing
    ratios = {}
    for row in table(files["images.csv"]):
        assert float(row["residual_per_noise"]) == pytest.approx(float(row["residual"]) / float(row["noise"]), rel=1e-4)
        ratios.setdefault(row["run"], []).append(float(row["residual_per_noise"]))
    assert sum(ratio > 3 or ratio < 1 / 3 for ratio in ratios["one"]) == 3
    assert "one: 3 of 3 restorations have residuals far from the noise" in out
    assert out.count("far from the noise") == 1  # a baseline is no restoration


PLUGIN = """
from ldm_inverse.measurements import register_operator
from ldm_inverse.operators import Operator

@register_operator(name="halving_of_a_test")
class Halving(Operator):
    def forward(self, x):
        return x / 2
"""


def test_code_of_ones_own_is_run_by_request_only(runs, evaluate, refused, tmp_path, capsys):
    (tmp_path / "own.py").write_text(PLUGIN)
    (tmp_path / "task.yaml").write_text(yaml.safe_dump({"measurement": {"operator": {"name": "halving_of_a_test"}}}))
    words = ["--ldm_config", runs / "tiny.yaml", "--diffusion_config", runs / "tiny.safetensors", "--ddim_steps", 1]
    words += ["--task_config", tmp_path / "task.yaml", "--data", runs / "pictures", "--save_dir", tmp_path / "run"]
    words += ["--plugin", tmp_path / "own.py", "--quiet", "conditioning.resample.final.max_iters=1"]
    assert restore([*map(str, words)]) == 0
    capsys.readouterr()
    assert f"give --plugin {tmp_path / 'own.py'}" in refused(tmp_path / "run")
    _, files = evaluate(tmp_path / "run", "--plugin", tmp_path / "own.py")
    assert "residual" in files["summary.csv"]
    shutil.rmtree(tmp_path / "tables")
    (tmp_path / "own.py").write_text(PLUGIN + "# changed")
    assert "has changed" in refused(tmp_path / "run", "--plugin", tmp_path / "own.py")


def test_failures_are_told(runs, evaluate, tmp_path):
    some = shutil.copytree(runs / "enlarging" / "one", tmp_path / "some")
    (some / "results" / "c.json").write_text(json.dumps({"image": "c", "sample": 0, "step": None, "reason": "why not"}))
    out, _ = evaluate(some)
    assert "some: 1 restorations could not be made" in out
    assert FinishedRun(some).rows.keys() == {"a", "b b"}


def test_images_that_the_run_has_no_longer_are_left_out(runs, evaluate, tmp_path):
    run = shutil.copytree(runs / "enlarging" / "one", tmp_path / "run")
    # The command, continued on other pictures, leaves the former results where they are, and tables without them.
    RunFolder(run, ["a", "c"]).tables.write()
    out, files = evaluate(run)
    assert [row["image"] for row in table(files["images.csv"]) if row["run"] == "run"] == ["a", "c"]
    assert "run: 1 restorations of images that the run no longer has were left out" in out
    # What is newer than the tables is of a run that goes on.
    (run / "results" / "b b.json").touch()
    assert FinishedRun(run).rows.keys() == {"a", "b b", "c"}
    (run / "metrics.csv").unlink()
    assert FinishedRun(run).rows.keys() == {"a", "b b", "c"}


def test_a_name_that_the_tables_write_otherwise_is_still_the_runs(runs, tmp_path):
    run = shutil.copytree(runs / "enlarging" / "one", tmp_path / "run")
    row = json.loads((run / "results" / "a.json").read_text())
    for name in ("=a", "a, b", "'c"):
        (run / "results" / f"{name}.json").write_text(json.dumps({**row, "image": name}))
    RunFolder(run, ["=a", "a, b", "'c"]).tables.write()
    assert FinishedRun(run).rows.keys() == {"=a", "a, b", "'c"}


def test_a_summary_is_computed_once(runs, evaluate, monkeypatch):
    seen = []

    def counted(values):
        seen.append(tuple(values))
        return summarise(seen[-1])

    monkeypatch.setattr(entries, "summarise", counted)
    evaluate(runs / "enlarging" / "one")
    titles, columns = 2, len(tables.COLUMNS)
    assert 0 < len(seen) <= titles * columns


def test_a_tiff_beside_each_restoration_is_no_other_picture(runs, evaluate, tmp_path):
    recon = shutil.copytree(runs / "inpainting" / "one" / "recon", tmp_path / "recon")
    for path in [*recon.iterdir()]:
        Image.new("RGB", (SIDE, SIDE)).save(path.with_suffix(".tif"))
    _, alone = evaluate("--recon", runs / "inpainting" / "one" / "recon", "--reference", runs / "pictures")
    out, files = evaluate("--recon", recon, "--reference", runs / "pictures")
    assert files["images.csv"] == alone["images.csv"]
    assert "no partner" not in out


def test_folders_of_pictures(runs, evaluate, refused, tmp_path):
    one = runs / "inpainting" / "one"
    (one / "recon" / "a.png").replace(tmp_path / "a.png")
    try:
        out, files = evaluate("--recon", one / "recon", "--reference", runs / "pictures")
    finally:
        (tmp_path / "a.png").replace(one / "recon" / "a.png")
    assert "1 pictures have no partner" in out
    rows = {row["image"]: row for row in table(files["images.csv"])}
    assert rows.keys() == {"b b", "c"}
    truth, image = pixels(runs / "pictures" / "c.png") / 255, pixels(one / "recon" / "c.png") / 255
    assert float(rows["c"]["psnr"]) == pytest.approx(peak_signal_noise_ratio(truth, image, data_range=1), rel=1e-5)
    shutil.rmtree(tmp_path / "tables")
    write_pictures(tmp_path / "large", ["c.png"], SIDE * 2)
    assert "c: picture and truth have different sizes: 32x32 and 64x64" in refused(
        "--recon", one / "recon", "--reference", tmp_path / "large"
    )
    write_pictures(tmp_path / "small", ["c.png"], 6)
    assert "c: SSIM needs 7x7 pixels or more, and it has 6x6" in refused(
        "--recon", tmp_path / "small", "--reference", tmp_path / "small"
    )
    write_pictures(tmp_path / "others", ["z.png"])
    assert "has the name of one in" in refused("--recon", one / "recon", "--reference", tmp_path / "others")


def test_equal_pictures_leave_every_file_readable(runs, evaluate):
    out, files = evaluate("--recon", runs / "pictures", "--reference", runs / "pictures")
    assert " inf" in out
    assert json.loads(files["evaluation.json"])["entries"][0]["summary"]["psnr"]["mean"] is None
    assert table(files["images.csv"])[0]["psnr"] == "inf"


def test_tables_to_paste(runs, evaluate):
    _, files = evaluate(runs / "inpainting" / "one", runs / "inpainting" / "one_again", runs / "inpainting" / "two")
    rows = [line for line in files["evaluation.md"].splitlines() if line.startswith("|")]
    assert len({line.count("|") for line in rows[:5]}) == 1
    assert sum("**" in line for line in rows) >= 1
    body = files["evaluation.tex"]
    assert body.count(r"\begin{tabular}") == body.count(r"\end{tabular}") == 2
    for tabular in body.split(r"\toprule")[1:]:
        lines = [line for line in tabular.splitlines() if "&" in line]
        assert len({line.count("&") for line in lines}) == 1

    content = json.loads(files["evaluation.json"])
    assert [entry["title"] for entry in content["entries"]] == ["baseline", "inpainting", "inpainting/two"]
