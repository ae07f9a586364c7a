"""Measurements that a run keeps."""

import pytest
import torch

from ldm_inverse.runs.folder import RunFolder
from ldm_inverse.runs.measurement_file import read_measurement
from util.errors import UserError


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
