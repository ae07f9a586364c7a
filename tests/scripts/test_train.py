"""Both stages of training by the command, end to end."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from data.picture_array import load_pictures
from ldm.training.autoencoder import round_trip_psnr
from model_loader import get_model
from scripts.train import main
from tests.tiny import training_config, write_pictures

ROOT = Path(__file__).resolve().parents[2]


def train(*words):
    assert main([*map(str, words), "--threads", "1"]) == 0


def test_both_stages_give_weights_that_the_command_loads(tmp_path, capsys):
    config, data = training_config(tmp_path), write_pictures(tmp_path / "pictures", [f"{i}.png" for i in range(6)])
    first, prior, more = (tmp_path / name for name in ("first", "prior", "more"))
    common = ("--config", config, "--data", data)
    train("--stage", "autoencoder", *common, "--max_steps", 20, "--out", first)
    assert "round-trip PSNR" in capsys.readouterr().out
    given = ("--first_stage", first / "weights.safetensors")
    train("--stage", "diffusion", *common, "--max_steps", 2, "--out", prior, *given)
    train("--stage", "diffusion", *common, "--max_steps", 2, "--out", more, "--start", prior / "weights.safetensors")
    for folder in (first, prior, more):
        assert {"weights.safetensors", "log.csv", "sheet.png", "state.pt"} <= {p.name for p in folder.iterdir()}
    model = get_model(config, prior / "weights.safetensors", "cpu")
    psnr, _ = round_trip_psnr(model.first_stage_model, load_pictures([data], 32, tmp_path / "again.u8"))
    assert psnr > 12


@pytest.mark.parametrize("stage", ["autoencoder", "diffusion"])
def test_mistakes_end_with_status_2(stage, tmp_path, capsys):
    words = [
        "--stage",
        stage,
        "--config",
        training_config(tmp_path),
        "--data",
        tmp_path / "none",
        "--out",
        tmp_path / "o",
    ]
    assert main([*map(str, words)]) == 2
    err = capsys.readouterr().err
    assert err.count("\n") == 1
    assert ("none" if stage == "autoencoder" else "--first_stage") in err


@pytest.mark.slow
def test_as_a_process_of_its_own(tmp_path):
    config, data = training_config(tmp_path), write_pictures(tmp_path / "pictures", ["a.png", "b.png"])
    words = ["--stage", "autoencoder", "--config", config, "--data", data, "--max_steps", 1, "--out", tmp_path / "o"]
    done = subprocess.run(
        [sys.executable, ROOT / "scripts" / "train.py", *map(str, words), "--threads", "1"],
        capture_output=True, text=True, timeout=300, env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert (done.returncode, "round-trip PSNR" in done.stdout) == (0, True), done.stderr
