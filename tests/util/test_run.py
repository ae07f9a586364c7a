"""The run's folder."""

import csv
import threading

import numpy as np
import pytest
import torch
from PIL import Image

from util.errors import ImageError, UserError
from util.measurement_file import read_measurement
from util.metrics import to_uint8
from util.results import METRICS
from util.run import RunFolder


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


def record(**changes):
    versions = {"settings": {"steps": 3}, "run": {"seed": 0}, "checkpoint": {"sha256": "0"}, "device": "cpu"}
    return {**versions, "versions": {"torch": "2"}, "threads": 1, **changes}


def finish(run, image, psnr=30.0):
    outcome = {"psnr": psnr, "ssim": 0.9, "baseline_psnr": 28.0, "baseline_ssim": 0.8}
    run.add_metrics(image, 0, outcome, (6, 0, 52, 46, 2, 1), 1.0)


def table(path):
    return list(csv.DictReader(path.read_text().splitlines()))


def test_tables_have_exactly_the_columns_and_the_images_order(tmp_path):
    run = RunFolder(tmp_path, ["c", "a,b", "d"])
    finish(run, "a,b")
    finish(RunFolder(tmp_path, run.images), "c", 20.0)  # another process's
    run.tables.write()
    lines = (tmp_path / "metrics.csv").read_text().splitlines()
    passes = "unet,unet_backward,decoder_forward,decoder_backward,encoder_forward,encoder_backward"
    assert lines[0] == f"image,sample,psnr,ssim,baseline_psnr,baseline_ssim,{passes},seconds" == ",".join(METRICS)
    assert lines[1] == "c,0,20,0.9,28,0.8,6,0,52,46,2,1,1"
    assert [row["image"] for row in table(tmp_path / "metrics.csv")] == ["c", "a,b"]
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
    assert table(tmp_path / "failed.csv") == [
        {"image": "a", "sample": "0", "step": "7", "reason": "the latent is not finite"}
    ]
    assert [row["image"] for row in table(tmp_path / "metrics.csv")] == ["b"]
    assert run.tables.has_failures(["a", "b"])
    assert not run.tables.has_failures(["b"])
    assert "1 failed" in run.tables.text()


def test_what_failed_before_its_first_step_is_tried_again(tmp_path):
    run = RunFolder(tmp_path, ["a", "b"])
    run.begin(record())
    for image, step in (("a", None), ("b", 3)):
        with run.failures(image, [0]):
            raise ImageError("why", step)
    run.tables.write()
    again = RunFolder(tmp_path, ["a", "b"])
    again.begin(record())
    assert list(again.left(["a", "b"])) == [["a"]]
    assert [image for image in ("a", "b") if again.samples_left(image)] == ["a"]


def test_other_settings_are_refused_with_what_differs_unless_overwritten(tmp_path):
    RunFolder(tmp_path).begin(record())
    run = RunFolder(tmp_path, ["a"])
    finish(run, "a")
    other = record(settings={"steps": 4})
    for refuse in (run.check, run.begin):
        with pytest.raises(UserError, match=r"--overwrite[^\n]*\n  settings.steps: 3 there, 4 now$"):
            refuse(other)
    run.begin(record(), overwrite=True)
    assert run.samples_left("a") == []  # by the same settings: nothing is deleted
    run.begin(other, overwrite=True)
    assert run.samples_left("a") == [0]
    run.check(other)


def test_a_folder_is_not_overwritten_while_another_process_works_there(tmp_path):
    at_work, other = RunFolder(tmp_path, ["a", "b"]), RunFolder(tmp_path, ["a", "b"])
    at_work.begin(record())
    images = at_work.left(["a", "b"])
    assert next(images) == ["a"]
    other._claims.expiry = 0.1
    with pytest.raises(UserError, match=r"another process works there \(on a\)"):
        other.begin(record(settings={"steps": 4}), overwrite=True)
    finish(at_work, "a")
    assert next(images) == ["b"]
    images.close()
    other.begin(record(settings={"steps": 4}), overwrite=True)
    with pytest.raises(UserError, match="was taken over by a run with other settings"):
        list(at_work.left(["b"]))
    assert list(other.left(["b"])) == [["b"]]


def test_threads_that_are_not_given_are_the_folders(tmp_path):
    assert RunFolder(tmp_path / "new").begin(record(threads=None))["threads"] == torch.get_num_threads()
    RunFolder(tmp_path / "old").begin(record(threads=7))
    assert RunFolder(tmp_path / "old").begin(record(threads=None))["threads"] == 7
    with pytest.raises(UserError, match="threads: 7 there, 8 now"):
        RunFolder(tmp_path / "old").check(record(threads=8))


def test_processes_share_images_out_and_wait_for_one_another(tmp_path):
    images = list("abcdefgh")
    done = []

    def work(number):
        run = RunFolder(tmp_path, images)
        for (image,) in run.left(images):
            done.append((number, image))
            finish(run, image)
            run.tables.write()
        assert not any(run.samples_left(image) for image in images)

    workers = [threading.Thread(target=work, args=[number]) for number in range(3)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert sorted(image for _, image in done) == images
    assert [row["image"] for row in table(tmp_path / "metrics.csv")] == images
    assert {path.name for path in tmp_path.iterdir()} == {"results", "metrics.csv"}


def test_a_damaged_result_is_named(tmp_path):
    run = RunFolder(tmp_path, ["a"])
    finish(run, "a")
    (tmp_path / "results" / "a.json").write_text("{")
    with pytest.raises(UserError, match=r"a\.json is damaged"):
        RunFolder(tmp_path, ["a"]).rows()


def test_measurements_come_back_exactly(tmp_path):
    tensors = {"y": torch.randn(1, 3, 4, 4).transpose(2, 3), "mask": torch.rand(1, 1, 4, 4)}
    operator = {"name": "inpainting", "mask_len_range": (3, 4)}
    RunFolder(tmp_path).write_measurement("a", tensors, operator)
    back = read_measurement(tmp_path / "label", "a", operator)
    assert back.keys() == tensors.keys()
    assert all(torch.equal(back[key], tensors[key]) for key in tensors)


def test_a_measurement_that_does_not_fit_is_refused(tmp_path):
    run = RunFolder(tmp_path)
    run.write_measurement("a", {"y": torch.zeros(1)}, {"name": "noise"})
    with pytest.raises(UserError, match=r"no measurement of 'b'.*b\.safetensors"):
        read_measurement(tmp_path / "label", "b", {"name": "noise"})
    with pytest.raises(UserError, match="other settings"):
        read_measurement(tmp_path / "label", "a", {"name": "inpainting"})
    (tmp_path / "label" / "a.safetensors").write_bytes(b"\xff" * 20)
    with pytest.raises(UserError, match="not a readable measurement"):
        read_measurement(tmp_path / "label", "a", {"name": "noise"})
