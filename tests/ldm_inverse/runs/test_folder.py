"""The run's folder."""

import re
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from ldm_inverse.runs import results
from ldm_inverse.runs.folder import RunFolder
from ldm_inverse.runs.results import METRICS
from tests.run_folders import begin, finish, record
from tests.runs import rows
from util.errors import ImageError, UserError
from util.metrics import to_uint8

ROOT = Path(__file__).resolve().parents[3]


def test_eight_bits_clip_and_never_stretch():
    image = torch.tensor([-3.0, -1.0, 0.0, 1.0, 2.0]).reshape(1, 1, 1, 5)
    assert to_uint8(image).flatten().tolist() == [0, 0, 128, 255, 255]
    flat = to_uint8(torch.full((1, 3, 2, 2), 0.1))
    assert (flat == round(1.1 * 127.5)).all()


def test_eight_bit_values_survive_the_way_in_and_out():
    pixels = np.arange(256, dtype=np.uint8).reshape(16, 16, 1)
    image = torch.from_numpy(pixels).permute(2, 0, 1) / 127.5 - 1
    assert np.array_equal(to_uint8(image), pixels)


def test_several_restorations_get_a_suffix(tmp_path):
    assert RunFolder(tmp_path).name("a", 0) == "a"
    assert [RunFolder(tmp_path, samples=2).name("a", s) for s in (0, 1)] == ["a_s0", "a_s1"]


def test_pictures_are_lossless(tmp_path):
    pixels = np.random.RandomState(0).randint(0, 256, (5, 4, 3)).astype(np.uint8)
    RunFolder(tmp_path).write_picture("recon", "one, ä", pixels)
    assert np.array_equal(np.asarray(Image.open(tmp_path / "recon" / "one, ä.png")), pixels)


@pytest.mark.parametrize(
    ("ratios", "told"),
    [((1.5, 2.9, None), None), ((1.5, 138.0, 0.5), "1 of 3.*b: .*138 times"), ((0.3, 3.1, 1.0), "2 of 3")],
)
def test_restorations_far_from_their_noise_are_told(ratios, told, tmp_path, caplog):
    run = RunFolder(tmp_path, ["a", "b", "c"])
    for image, ratio in zip(run.images, ratios, strict=True):
        finish(run, image, ratio=ratio)
    run.tables.write()
    run.tables.say_what_is_far()
    warnings = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert len(warnings) == (told is not None)
    assert told is None or re.match(told, warnings[0])


def test_tables_have_exactly_the_columns_and_the_images_order(tmp_path):
    run = RunFolder(tmp_path, ["c", "a,b", "d"])
    finish(run, "a,b")
    finish(RunFolder(tmp_path, run.images), "c", 20.0)  # another process's
    run.tables.write()
    lines = (tmp_path / "metrics.csv").read_text().splitlines()
    passes = "unet,unet_backward,decoder_forward,decoder_backward,encoder_forward,encoder_backward"
    columns = f"image,sample,psnr,ssim,baseline_psnr,baseline_ssim,{passes},seconds,residual_per_noise"
    assert lines[0] == columns == ",".join(METRICS)
    assert lines[1] == "c,0,20,0.9,28,0.8,6,0,52,46,2,1,1,1.5"
    assert [row["image"] for row in rows(tmp_path / "metrics.csv")] == ["c", "a,b"]
    assert not (tmp_path / "failed.csv").exists()
    assert "25.00" in run.tables.text()
    assert "28.00" in run.tables.text()
    assert "UNet 6, decoder 52 forward and 46 backward, encoder 2 forward and 1 backward" in run.tables.text()


def test_an_image_that_fails_ends_alone_and_is_named(tmp_path):
    run = RunFolder(tmp_path, ["a", "b"])
    for (image,) in run.left(["a", "b"]):
        with run.failures(image, run.samples_left(image)):
            if image == "a":
                raise ImageError("the latent is not finite", 7)
            finish(run, image)
    run.tables.write()
    assert rows(tmp_path / "failed.csv") == [
        {"image": "a", "sample": "0", "step": "7", "reason": "the latent is not finite"}
    ]
    assert [row["image"] for row in rows(tmp_path / "metrics.csv")] == ["b"]
    assert run.tables.has_failures(["a", "b"])
    assert not run.tables.has_failures(["b"])
    assert "1 failed" in run.tables.text()


def test_what_failed_before_its_first_step_is_tried_again(tmp_path):
    run = RunFolder(tmp_path, ["a", "b"])
    with run.at_work(record()):
        for image, step in (("a", None), ("b", 3)):
            with run.failures(image, [0]):
                raise ImageError("why", step)
    again = RunFolder(tmp_path, ["a", "b"])
    with again.at_work(record()):
        assert list(again.left(["a", "b"])) == [["a"]]
        assert [image for image in ("a", "b") if again.samples_left(image)] == ["a"]


def fail_early(run, image, samples=(0,)):
    run.fail(image, samples, ImageError("it cannot be read"))


def test_only_what_a_process_restores_itself_is_tried_again(tmp_path):
    """Another part of a job array would leave a hole where the failure was, and call it success."""
    digests = dict.fromkeys("abc", "old")
    run = RunFolder(tmp_path, ["a", "b", "c"], digest=digests.get)
    with run.at_work(record(), images=["a", "b", "c"]):
        fail_early(run, "a")
        finish(run, "b")
        finish(run, "c")
        run.tables.write()
    digests |= {"b": "new", "c": "new"}
    part = RunFolder(tmp_path, ["a", "b", "c"], digest=digests.get)
    with part.at_work(record(), images=["b"]):
        assert list(part.left(["b"])) == [["b"]]
        finish(part, "b", 31.0)
        part.tables.write()
    assert [row["image"] for row in rows(tmp_path / "failed.csv")] == ["a"]
    assert [(row["image"], row["psnr"]) for row in rows(tmp_path / "metrics.csv")] == [("b", "31"), ("c", "30")]


def test_a_result_that_another_process_has_made_anew_is_read_again(tmp_path):
    first, second = (RunFolder(tmp_path, ["a", "b"]) for _ in range(2))
    with first.at_work(record()):
        fail_early(first, "a")
        first.tables.write()
        assert [row["image"] for row in rows(tmp_path / "failed.csv")] == ["a"]
        with second.at_work(record()):
            first.tables.write()
            assert not (tmp_path / "failed.csv").exists()
            assert first.samples_left("a") == [0]
            finish(second, "a")
        finish(first, "b")
        first.tables.write()
    assert [row["image"] for row in rows(tmp_path / "metrics.csv")] == ["a", "b"]
    assert not (tmp_path / "failed.csv").exists()


def test_results_that_stay_are_read_once(tmp_path, monkeypatch):
    run = RunFolder(tmp_path, list("abcd"))
    reads, read = [], results._read
    monkeypatch.setattr(results, "_read", lambda path: reads.append(path.stem) or read(path))
    for image in "abcd":
        finish(run, image)
        run.tables.write()
    assert reads == list("abcd")


def finish_white(run, image, sample, level):
    white = torch.full((1, 3, 8, 8), level)
    run.write_restoration(image, sample, label=white, input=white, recon=white)
    outcome = {"psnr": 30.0, "ssim": 0.9, "baseline_psnr": 28.0, "baseline_ssim": 0.8, "residual_per_noise": 1.5}
    run.add_metrics(image, sample, outcome, (6, 0, 52, 46, 2, 1), 1.0)


@pytest.mark.parametrize("lost", [0, 1, 2])
def test_the_spread_is_of_the_restorations_that_are_good(lost, tmp_path):
    run = RunFolder(tmp_path, ["a"], 3)
    for sample in range(3):
        if sample == lost:
            run.fail("a", [sample], ImageError("lost", 1))
        else:
            finish_white(run, "a", sample, 1.0)
    assert np.asarray(Image.open(tmp_path / "spread" / "a_mean.png")).min() == 255


def test_no_spread_is_of_restorations_of_two_pictures(tmp_path):
    digests = {"a": "old"}
    run = RunFolder(tmp_path, ["a"], 3, digest=digests.get)
    with run.at_work(record()):
        for sample in range(3):
            finish_white(run, "a", sample, -1.0)
            run.write_trace(f"a_s{sample}", [])
    digests["a"] = "new"
    again = RunFolder(tmp_path, ["a"], 3, digest=digests.get)
    with again.at_work(record()):
        assert not list((tmp_path / "recon").iterdir())
        again.fail("a", [0, 1], ImageError("lost", 1))
        finish_white(again, "a", 2, 1.0)
    assert not list((tmp_path / "spread").iterdir())
    assert [path.name for path in (tmp_path / "progress").iterdir()] == ["a_s2"]
    assert [path.name for path in (tmp_path / "recon").iterdir()] == ["a_s2.png"]


def test_threads_that_are_not_given_are_the_folders(tmp_path):
    assert begin(RunFolder(tmp_path / "new"), record(threads=None))["threads"] == torch.get_num_threads()
    begin(RunFolder(tmp_path / "old"), record(threads=7))
    assert begin(RunFolder(tmp_path / "old"), record(threads=None))["threads"] == 7
    with pytest.raises(UserError, match="threads: 7 there, 8 now"):
        RunFolder(tmp_path / "old").check(record(threads=8))


def test_what_another_process_finishes_meanwhile_is_left_out(tmp_path):
    run, other = (RunFolder(tmp_path, list("abcde")) for _ in range(2))
    left = run.left(list("abcde"), batch_size=2)
    assert next(left) == ["a", "b"]
    finish(other, "d")
    assert list(left) == [["c", "e"]]


def test_a_damaged_result_is_named(tmp_path):
    run = RunFolder(tmp_path, ["a"])
    finish(run, "a")
    (tmp_path / "results" / "a.json").write_text("{")
    with pytest.raises(UserError, match=r"a\.json is damaged"):
        RunFolder(tmp_path, ["a"]).rows()
