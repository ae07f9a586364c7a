"""The run's folder."""

import contextlib
import csv
import os
import re
import shutil
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from ldm_inverse.runs import results
from ldm_inverse.runs.folder import RunFolder
from ldm_inverse.runs.manifest import FORMAT
from ldm_inverse.runs.measurement_file import read_measurement
from ldm_inverse.runs.results import METRICS
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


def record(**changes):
    versions = {
        "format": FORMAT,
        "settings": {"steps": 3},
        "run": {"seed": 0},
        "checkpoint": {"sha256": "0"},
        "device": "cpu",
    }
    return {**versions, "versions": {"torch": "2"}, "threads": 1, **changes}


def finish(run, image, psnr=30.0, ratio=1.5):
    outcome = {"psnr": psnr, "ssim": 0.9, "baseline_psnr": 28.0, "baseline_ssim": 0.8, "residual_per_noise": ratio}
    run.add_metrics(image, 0, outcome, (6, 0, 52, 46, 2, 1), 1.0)


def table(path):
    return list(csv.DictReader(path.read_text().splitlines()))


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
    assert [row["image"] for row in table(tmp_path / "failed.csv")] == ["a"]
    assert [(row["image"], row["psnr"]) for row in table(tmp_path / "metrics.csv")] == [("b", "31"), ("c", "30")]


def test_a_result_that_another_process_has_made_anew_is_read_again(tmp_path):
    first, second = (RunFolder(tmp_path, ["a", "b"]) for _ in range(2))
    with first.at_work(record()):
        fail_early(first, "a")
        first.tables.write()
        assert [row["image"] for row in table(tmp_path / "failed.csv")] == ["a"]
        with second.at_work(record()):
            first.tables.write()
            assert not (tmp_path / "failed.csv").exists()
            assert first.samples_left("a") == [0]
            finish(second, "a")
        finish(first, "b")
        first.tables.write()
    assert [row["image"] for row in table(tmp_path / "metrics.csv")] == ["a", "b"]
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


def begin(run, record, **options):
    with run.at_work(record, **options) as in_force:
        return in_force


def test_other_settings_are_refused_with_what_differs_unless_overwritten(tmp_path):
    begin(RunFolder(tmp_path), record())
    run = RunFolder(tmp_path, ["a"])
    finish(run, "a")
    other = record(settings={"steps": 4})
    for refuse in (run.check, lambda other: begin(run, other)):
        with pytest.raises(UserError, match=r"--overwrite[^\n]*\n  settings.steps: 3 there, 4 now$"):
            refuse(other)
    begin(run, record(), overwrite=True)
    assert run.samples_left("a") == []  # by the same settings: nothing is deleted
    begin(run, other, overwrite=True)
    assert run.samples_left("a") == [0]
    run.check(other)


def test_a_folder_is_not_overwritten_while_another_process_works_there(tmp_path):
    at_work, other = RunFolder(tmp_path, ["a"]), RunFolder(tmp_path, ["a"])
    with at_work.at_work(record()):
        finish(at_work, "a")
        with pytest.raises(UserError, match=rf"process {os.getpid()} works there; stop it before --overwrite"):
            begin(other, record(settings={"steps": 4}), overwrite=True)
        begin(other, record())  # by the same settings any number may work there
        assert not other.was_left_last
    assert at_work.was_left_last
    assert at_work.rows()
    begin(other, record(settings={"steps": 4}), overwrite=True)
    assert other.rows() == []


def full_folder(root):
    """A folder with two finished restorations by `record`."""
    run = RunFolder(root, ["a", "b"])
    with run.at_work(record()):
        for image in ("a", "b"):
            for folder in ("input", "label", "recon"):
                run.write_picture(folder, image, np.zeros((4, 4, 3), np.uint8))
            run.write_measurement(image, {"y": torch.zeros(1)}, {})
            finish(run, image)
        run.tables.write()
    return root


def overwrite_until(root, unlinks):
    """Overwrite a folder with other settings in a process that dies at so many deletions; tell whether it did."""
    child = os.fork()
    if child == 0:
        left = [unlinks]

        def die_at_last(event, arguments):
            if event in ("os.remove", "os.rmdir"):
                left[0] -= 1
                if left[0] == 0:
                    os._exit(9)

        sys.addaudithook(die_at_last)
        begin(RunFolder(root, ["a", "b"]), record(settings={"steps": 4}), overwrite=True)
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 9


def test_killed_at_any_deletion_the_old_results_never_become_the_new_runs(tmp_path):
    other, died = record(settings={"steps": 4}), True
    for unlinks in range(1, 100):
        root = full_folder(tmp_path / str(unlinks))
        died = overwrite_until(root, unlinks)
        copy = tmp_path / f"{unlinks} again"
        shutil.copytree(root, copy)
        for row in RunFolder(copy, ["a", "b"]).rows() if (copy / "settings.yaml").exists() else ():
            assert (copy / "recon" / f"{row['image']}.png").exists()  # the old run goes on from what is whole
        new = RunFolder(root, ["a", "b"])
        with contextlib.suppress(UserError):
            begin(new, other)
            assert new.rows() == []
        begin(new, other, overwrite=True)
        assert new.rows() == []
        assert not (root / "metrics.csv").exists()
        if not died:
            break
    assert not died
    assert unlinks > 10


def test_results_without_settings_and_those_of_an_earlier_version_are_refused(tmp_path):
    root = full_folder(tmp_path / "a")
    found = yaml.safe_load((root / "settings.yaml").read_text())
    assert found.pop("format") == FORMAT
    (root / "settings.yaml").write_text(yaml.safe_dump(found))
    with pytest.raises(UserError, match="holds a run by an earlier version"):
        begin(RunFolder(root, ["a", "b"]), record())
    (root / "settings.yaml").unlink()
    run = RunFolder(root, ["a", "b"])
    with pytest.raises(UserError, match=r"holds results, and no settings\.yaml"):
        begin(run, record())
    begin(run, record(), overwrite=True)
    assert run.rows() == []
    (root / "settings.yaml").write_text(yaml.safe_dump({**found, "format": FORMAT + 1}))
    with pytest.raises(UserError, match="not the record of a run: format: expected a whole number from 1 to"):
        begin(run, record(), overwrite=True)


WORK = """
import sys
from pathlib import Path
from ldm_inverse.runs.folder import RunFolder
from tests.ldm_inverse.runs.test_folder import record
with RunFolder(Path(sys.argv[1]), ["a"]).at_work(record()):
    (Path(sys.argv[1]) / ".unfinished").mkdir(exist_ok=True)
    (Path(sys.argv[1]) / ".unfinished" / "half.part").write_text("")
    print("at work", flush=True)
    sys.stdin.read()
"""


def test_a_killed_process_is_in_nobodys_way_and_what_it_left_unfinished_goes(tmp_path):
    process = subprocess.Popen(
        [sys.executable, "-c", WORK, str(tmp_path)], cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert process.stdout.readline() == b"at work\n"
    other = record(settings={"steps": 4})
    with pytest.raises(UserError, match=f"process {process.pid} works there"):
        begin(RunFolder(tmp_path), other, overwrite=True)
    assert (tmp_path / ".unfinished" / "half.part").exists()
    process.kill()
    process.communicate()
    begin(RunFolder(tmp_path), other, overwrite=True)
    assert sorted(path.name for path in tmp_path.rglob("*")) == [".locks", "folder.lock", "settings.yaml"]


def test_nobody_begins_while_another_overwrites(tmp_path, monkeypatch):
    """Between the look for others and the end of the deletion, a process that begins must wait."""
    begin(RunFolder(tmp_path, ["a"]), record())
    order, clear = [], RunFolder._clear

    def slow_clear(run):
        def join():
            with RunFolder(tmp_path, ["a"]).at_work(record(settings={"steps": 4})):
                order.append("joined")

        beside.append(threading.Thread(target=join))
        beside[0].start()
        time.sleep(0.3)
        clear(run)
        order.append("cleared")

    beside = []
    monkeypatch.setattr(RunFolder, "_clear", slow_clear)
    begin(RunFolder(tmp_path, ["a"]), record(settings={"steps": 4}), overwrite=True)
    beside[0].join(20)
    assert order == ["cleared", "joined"]


def test_of_two_that_leave_at_once_one_is_the_last(tmp_path):
    runs = [RunFolder(tmp_path) for _ in range(2)]
    barrier = threading.Barrier(2)

    def work(run):
        with run.at_work(record()):
            barrier.wait(20)

    threads = [threading.Thread(target=work, args=[run]) for run in runs]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    assert sorted(run.was_left_last for run in runs) == [False, True]


def test_a_folder_without_locks_is_one_line(tmp_path):
    (tmp_path / ".locks").write_text("")
    with pytest.raises(UserError, match="cannot lock files in .*: "):
        begin(RunFolder(tmp_path), record())


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


def test_processes_at_one_folder_write_tables_of_all(tmp_path):
    images = list("abcdefgh")

    def work(own):
        run = RunFolder(tmp_path, images)
        with run.at_work(record()):
            for (image,) in run.left(own):
                finish(run, image)
                run.tables.write()

    workers = [threading.Thread(target=work, args=[images[number::3]]) for number in range(3)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert [row["image"] for row in table(tmp_path / "metrics.csv")] == images
    assert {path.name for path in tmp_path.iterdir()} == {".locks", "results", "metrics.csv", "settings.yaml"}


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
