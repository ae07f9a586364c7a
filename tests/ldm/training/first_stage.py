"""A small first stage to train, and pictures for it."""

import numpy as np
import torch

from ldm.models.autoencoder import VQModelInterface

DDCONFIG = {
    "double_z": False, "z_channels": 5, "resolution": 32, "in_channels": 3, "out_ch": 3,
    "ch": 32, "num_res_blocks": 1, "attn_resolutions": [], "dropout": 0.0,
}  # fmt: skip


def first_stage(*mult, entries=16):
    torch.manual_seed(0)
    return VQModelInterface(embed_dim=5, n_embed=entries, ddconfig={**DDCONFIG, "ch_mult": mult})


def some_pictures(count=12, side=32):
    """Smooth pictures with some noise, so that every component has a deviation."""
    rng = np.random.RandomState(0)
    waves = np.cumsum(np.cumsum(rng.standard_normal((count, side, side, 3)), axis=1), axis=2)
    waves = 30 * waves / waves.std() + 128 + 5 * rng.standard_normal(waves.shape)
    return waves.clip(0, 255).astype(np.uint8)
