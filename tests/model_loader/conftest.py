"""Checkpoints of a small model."""

import pytest
import torch

from ldm.util import instantiate_from_config
from tests.model_loader.small import CONFIG


@pytest.fixture(scope="module")
def original():
    """The model that the checkpoints hold."""
    torch.manual_seed(0)
    return instantiate_from_config(CONFIG["model"]).eval()


@pytest.fixture
def state(original):
    return {name: tensor.clone() for name, tensor in original.state_dict().items()}


@pytest.fixture
def ckpt(tmp_path):
    """Save a state dict as a training framework does; gives the path."""

    def ckpt(state, name="model.ckpt"):
        torch.save({"epoch": 7, "global_step": 1000, "state_dict": state, "optimizer_states": [{}]}, tmp_path / name)
        return tmp_path / name

    return ckpt
