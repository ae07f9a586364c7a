"""The model that ships: its size, what it reconstructs, what it restores."""

import csv
from pathlib import Path

import pytest

from data.picture_array import load_pictures
from ldm.training.autoencoder import round_trip_psnr
from model_loader import get_model
from sample_condition import main

ROOT = Path(__file__).resolve().parents[1]
CONFIG = ROOT / "configs" / "latent-diffusion" / "demo-ldm-vq-4.yaml"
WEIGHTS = ROOT / "models" / "demo" / "model.safetensors"


def test_it_is_small():
    assert sum(path.stat().st_size for path in WEIGHTS.parent.iterdir()) <= 24e6


def test_it_reconstructs_faces_it_has_not_seen(tmp_path):
    model = get_model(CONFIG, WEIGHTS, "cpu")
    pictures = load_pictures([ROOT / "data" / "demo"], 128, tmp_path / "pictures.u8")
    assert len(pictures) == 16
    assert round_trip_psnr(model.first_stage_model, pictures)[0] >= 29.5


@pytest.mark.slow
@pytest.mark.parametrize(
    ("task", "gain"),
    [
        ("inpainting", 0.5),
        ("nonlinear_deblur", 1.0),
        ("gaussian_deblur", -0.3),
        ("super_resolution", -0.5),
        ("motion_deblur", -1.0),
    ],
)
def test_the_demo_preset_restores(tmp_path, task, gain):
    """Mean PSNR over three faces against the baseline's; the README has the figures over more."""
    words = {
        "--ldm_config": CONFIG, "--diffusion_config": WEIGHTS, "--data": ROOT / "data" / "demo", "--preset": "demo",
        "--task_config": ROOT / "configs" / "tasks" / "demo" / f"{task}.yaml", "--limit": 3, "--save_dir": tmp_path,
    }  # fmt: skip
    assert main([str(word) for pair in words.items() for word in pair]) == 0
    rows = list(csv.DictReader((tmp_path / "metrics.csv").open()))
    assert len(rows) == 3
    assert sum(float(row["psnr"]) - float(row["baseline_psnr"]) for row in rows) / 3 >= gain
