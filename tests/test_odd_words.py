"""Words and files that nobody should give: each is a line and status 2, and never a traceback or a hang."""

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

from sample_condition import main
from tests.runs import words
from tests.tiny import write_pictures

ROOT = Path(__file__).resolve().parents[1]
LONG = "x" * 300
ODD = [
    (["conditioning.resample.pixel.lr=1e300"], "conditioning.resample.pixel.lr: expected a number above 0"),
    (["conditioning.resample.latent.anchor=1e300"], "anchor: expected a number above 0"),
    (["conditioning.resample.pixel.max_iters=1e300"], "max_iters: expected a whole number from 1 to"),
    (["--batch_size", "9" * 20], "--batch_size: expected a whole number"),
    (["--limit", "9" * 30], "--limit: expected a whole number"),
    (["--shard", "1/" + "9" * 30], "--shard"),
    (["--data", ""], "--data is empty"),
    (["--save_dir", ""], "--save_dir: expected a file or folder, got ''"),
    (["--measurement", ""], "--measurement: expected a file or folder, got ''"),
    (["." * 2000 + "=1"], "no setting is nested so deeply"),
    (["a." * 2000 + "b=1"], "no setting is nested so deeply"),
    (["--save_dir", "/tmp/" + LONG], "File name too long"),
    (["--save_dir", os.fsdecode(b"/tmp/out_\xe9x")], "this name is not in UTF-8"),
    (["--preset", LONG], "unknown preset"),
    (["--preset", LONG + ".yaml"], "File name too long"),
    (["--task_config", LONG], "File name too long"),
    (["--diffusion_config", LONG], "File name too long"),
    (["--measurement", LONG], "File name too long"),
    (["--from", LONG], "File name too long"),
]


@pytest.mark.parametrize(("odd", "told"), ODD, ids=[ascii(" ".join(odd))[1:40] for odd, _ in ODD])
def test_an_odd_word_is_refused(odd, told, refused):
    assert told in refused(*odd)


@pytest.mark.parametrize(
    ("key", "value", "told"),
    [
        ("threads", 0, "threads: expected a whole number from 1 to 1024, got 0"),
        ("run.n_samples_per_class", None, "run.n_samples_per_class: expected a whole number"),
        ("run.batch_size", [], "run.batch_size: expected a whole number"),
        ("run.seed", [1], "run.seed: expected a whole number"),
        ("run.resize", "stretch", "run.resize: expected"),
        ("settings.ddim_steps", "many", "ddim_steps: expected a whole number"),
    ],
)
def test_a_record_that_says_what_cannot_be_is_refused(key, value, told, finished, tmp_path, capsys):
    record = yaml.safe_load((finished / "settings.yaml").read_text())
    *parents, last = key.split(".")
    group = record
    for parent in parents:
        group = group[parent]
    group[last] = value
    (tmp_path / "settings.yaml").write_text(yaml.safe_dump(record))
    assert main(["--from", str(tmp_path), "--save_dir", str(tmp_path / "out"), "--quiet"]) == 2
    err = capsys.readouterr().err
    assert told in err
    assert err.startswith(f"error: {tmp_path / 'settings.yaml'}")


def test_odd_names_stay_in_the_folder(place, tmp_path):
    data = write_pictures(tmp_path / "in", ["a.png"])
    for name in ("..png", "=1+1.png", "-x.png", "@y.png"):
        shutil.copy(data / "a.png", data / name)
    command = words(place, tmp_path / "out", "--data", str(data), "--quiet", "conditioning.main_sampler=none", steps=2)
    assert main(command) == 0
    names = {path.stem for path in (tmp_path / "out" / "recon").glob("*.png")}
    assert len(names) == 5
    assert not any(name.startswith(".") for name in names)
    assert {path.name for path in tmp_path.iterdir()} == {"in", "out"}


def test_a_folder_spelt_otherwise_is_the_same_folder(place, finished, tmp_path, monkeypatch):
    shutil.copytree(finished, tmp_path / "out")
    monkeypatch.chdir(place)
    for data in ("pictures", "./pictures/", str(place / "pictures") + "//"):
        assert main(words(place, tmp_path / "out", "--data", data, "--quiet")) == 0


def test_ctrl_c_at_any_moment_of_the_start_leaves_no_traceback():
    for milliseconds in (10, 30, 50, 100, 300):
        command = [sys.executable, "sample_condition.py", "--dry_run"]
        process = subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL)
        time.sleep(milliseconds / 1000)
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=60)
        if b"sample_condition.py" in err or not err:  # else Python itself was not up
            assert b"Traceback" not in err


def test_an_unreadable_file_is_a_line(place, tmp_path, capsys, monkeypatch):
    def refuse(*_, **__):
        raise PermissionError(13, "Permission denied", "secret.ckpt")

    monkeypatch.setattr("model_loader.get_model", refuse)
    assert main(words(place, tmp_path / "out", "--limit", "1", "--quiet")) == 2
    assert capsys.readouterr().err == "error: secret.ckpt: Permission denied\n"
    assert os.path.exists(place)
