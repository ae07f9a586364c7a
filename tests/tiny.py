"""A model of the shipped kind, small enough to restore a picture in a moment: 32x32 pixels, f = 2, random weights."""

import copy
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from PIL import Image
from safetensors.torch import save_file

SIDE = 32

CONFIG: dict[str, Any] = {
    "model": {
        "target": "ldm.models.diffusion.ddpm.LatentDiffusion",
        "params": {
            "linear_start": 0.0015,
            "linear_end": 0.0195,
            "timesteps": 1000,
            "image_size": SIDE // 2,
            "channels": 3,
            "unet_config": {
                "target": "ldm.modules.diffusionmodules.openaimodel.UNetModel",
                "params": {
                    "image_size": SIDE // 2,
                    "in_channels": 3,
                    "out_channels": 3,
                    "model_channels": 32,
                    "num_res_blocks": 1,
                    "attention_resolutions": [2],
                    "channel_mult": [1, 1],
                    "num_head_channels": 16,
                },
            },
            "first_stage_config": {
                "target": "ldm.models.autoencoder.VQModelInterface",
                "params": {
                    "embed_dim": 3,
                    "n_embed": 32,
                    "ddconfig": {
                        "double_z": False,
                        "z_channels": 3,
                        "resolution": SIDE,
                        "in_channels": 3,
                        "out_ch": 3,
                        "ch": 32,
                        "ch_mult": [1, 1],
                        "num_res_blocks": 1,
                        "attn_resolutions": [],
                        "dropout": 0.0,
                    },
                },
            },
            "cond_stage_config": "__is_unconditional__",
        },
    }
}


def family(unet: dict | None = None, first_stage: dict | None = None, **params: object) -> dict:
    """The configuration with other parameters of the model, the UNet, and the first stage (a mapping with a target)."""
    config = copy.deepcopy(CONFIG)
    own = config["model"]["params"]
    own.update(params)
    own["unet_config"]["params"].update(unet or {})
    if first_stage is not None:
        ddconfig = {**own["first_stage_config"]["params"]["ddconfig"], **first_stage.pop("ddconfig", {})}
        own["first_stage_config"] = {**first_stage, "params": {"embed_dim": own["channels"], "ddconfig": ddconfig}}
    return config


def write_model(folder: Path, config: dict = CONFIG) -> tuple[Path, Path]:
    """Write a model's YAML and a checkpoint of random weights; returns their paths."""
    from ldm.util import instantiate_from_config

    path, checkpoint = folder / "tiny.yaml", folder / "tiny.safetensors"
    path.write_text(yaml.safe_dump(config))
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = instantiate_from_config(config["model"])
    save_file(model.state_dict(), checkpoint)
    return path, checkpoint


def write_pictures(folder: Path, names: list[str], side: int = SIDE) -> Path:
    """Write smooth colour pictures, each other than the next, under these file names."""
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        seed = np.random.RandomState(sum(name.encode()))
        small = seed.randint(0, 256, (4, 4, 3)).astype(np.uint8)
        Image.fromarray(small).resize((side, side), Image.Resampling.BICUBIC).save(path)
    return folder


def training_config(folder: Path) -> Path:
    """Write the configuration of a tiny model and of the training of both its stages; returns its path."""
    config = copy.deepcopy(CONFIG)
    config["model"]["params"]["first_stage_config"]["params"]["ddconfig"]["ch_mult"] = [1, 4]
    stages = [{"share": 1.0, "batch_size": 2, "crop": 16}]
    common = {"learning_rate": 1e-3, "averages": [0.1], "stages": stages}
    config["training"] = {
        "autoencoder": {"init": "linear", "whitening": 0.25, "trainable": "all", **common},
        "diffusion": {**common, "weight_cap": 20},
    }
    (folder / "model.yaml").write_text(yaml.safe_dump(config))
    return folder / "model.yaml"
