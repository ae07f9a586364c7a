"""A small model, what its checkpoints hold, and that one is loaded as it was saved."""

import copy

import torch
from omegaconf import OmegaConf

CONFIG = {
    "model": {
        "target": "ldm.models.diffusion.ddpm.LatentDiffusion",
        "params": {
            **{"linear_start": 0.0015, "linear_end": 0.0195, "timesteps": 1000, "image_size": 8, "channels": 3},
            "unet_config": {
                "target": "ldm.modules.diffusionmodules.openaimodel.UNetModel",
                "params": {
                    **{"image_size": 8, "in_channels": 3, "out_channels": 3, "model_channels": 32},
                    **{"attention_resolutions": [2], "num_res_blocks": 1, "channel_mult": [1, 2], "num_heads": 2},
                },
            },
            "first_stage_config": {
                "target": "ldm.models.autoencoder.VQModelInterface",
                "params": {
                    **{"embed_dim": 3, "n_embed": 64},
                    "ckpt_path": "nowhere/vq-f4/model.ckpt",
                    "ddconfig": {
                        **{"double_z": False, "z_channels": 3, "resolution": 16, "in_channels": 3, "out_ch": 3},
                        **{"ch": 32, "ch_mult": [1, 2], "num_res_blocks": 1, "attn_resolutions": [], "dropout": 0.0},
                    },
                },
            },
            "cond_stage_config": "__is_unconditional__",
        },
    }
}


def changed(**values):
    """The configuration with other values, by their dotted path below `model.params` (dots as two underscores)."""
    config = OmegaConf.create(copy.deepcopy(CONFIG))
    for path, value in values.items():
        OmegaConf.update(config, f"model.params.{path.replace('__', '.')}", value, force_add=True)
    return OmegaConf.to_container(config)


def moving_averages(state):
    averages = {
        "model_ema." + k.removeprefix("model.").replace(".", ""): 2 * v for k, v in state.items() if "model." in k[:6]
    }
    return {**averages, "model_ema.decay": torch.tensor(0.9999), "model_ema.num_updates": torch.tensor(5)}


def assert_same(model, state):
    got = model.state_dict()
    assert list(got) == list(state)
    assert all(torch.equal(got[name], tensor) for name, tensor in state.items())
