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
    assert round_trip_psnr(model.first_stage_model, pictures)[0] >= 32.5


@pytest.mark.slow
@pytest.mark.parametrize(
    ("task", "psnr_gain", "ssim_gain"),
    [
        ("inpainting", 1.2, 0.04),
        ("box_inpainting", 2.0, 0.03),
        ("nonlinear_deblur", 9.0, 0.2),
        ("gaussian_deblur", 1.2, 0.09),
        ("super_resolution", 1.2, 0.03),
        ("motion_deblur", 3.5, 0.17),
    ],
)
def test_the_demo_preset_restores(tmp_path, task, psnr_gain, ssim_gain):
    """Means over six faces against the baseline's; the README has the figures over more."""
    words = {
        "--ldm_config": CONFIG, "--diffusion_config": WEIGHTS, "--data": ROOT / "data" / "demo", "--preset": "demo",
        "--task_config": ROOT / "configs" / "tasks" / "demo" / f"{task}.yaml", "--limit": 6, "--save_dir": tmp_path,
    }  # fmt: skip
    assert main([str(word) for pair in words.items() for word in pair]) == 0
    rows = list(csv.DictReader((tmp_path / "metrics.csv").open()))
    assert len(rows) == 6
    assert mean_gain(rows, "psnr") >= psnr_gain
    assert mean_gain(rows, "ssim") >= ssim_gain


def mean_gain(rows, metric):
    return sum(float(row[metric]) - float(row[f"baseline_{metric}"]) for row in rows) / len(rows)
