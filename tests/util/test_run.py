"""The run's folder and its random streams."""

import csv

import numpy as np
import pytest
import torch
from PIL import Image

from util.errors import UserError
from util.run import (
    METRICS,
    RunFolder,
    random_stream,
    read_measurement,
    to_uint8,
    torch_stream,
)


def test_streams_differ_by_seed_image_and_purpose_and_repeat():
    keys = [(0, "a", "noise"), (1, "a", "noise"), (0, "b", "noise"), (0, "a", "operator"), (0, "an", "oise")]
    draws = [tuple(random_stream(*key).randn(4)) for key in keys]
    assert len(set(draws)) == len(keys)
    assert draws == [tuple(random_stream(*key).randn(4)) for key in keys]
    draws = [tuple(torch.randn(4, generator=torch_stream(*key)).tolist()) for key in keys]
    assert len(set(draws)) == len(keys)
    assert draws == [tuple(torch.randn(4, generator=torch_stream(*key)).tolist()) for key in keys]


def test_streams_leave_global_random_state_alone():
    torch.manual_seed(3)
    np.random.seed(3)
    before = torch.get_rng_state(), np.random.get_state()[1].copy()
    random_stream(0, "a", "noise").randn(3)
    torch.randn(3, generator=torch_stream(0, "a", "solver"))
    assert torch.equal(torch.get_rng_state(), before[0])
    assert np.array_equal(np.random.get_state()[1], before[1])


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


def test_metrics_have_exactly_the_columns(tmp_path):
    run = RunFolder(tmp_path)
    run.add_metrics("a,b", 0, (30.0, 0.9), (28.0, 0.8), 1.0)
    run.add_metrics("c", 0, (20.0, 0.7), (28.0, 0.8), 1.0)
    lines = (tmp_path / "metrics.csv").read_text().splitlines()
    assert lines[0] == "image,sample,psnr,ssim,baseline_psnr,baseline_ssim,seconds" == ",".join(METRICS)
    assert [line["image"] for line in csv.DictReader(lines)] == ["a,b", "c"]
    assert "25.00" in run.table()
    assert "28.00" in run.table()


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
