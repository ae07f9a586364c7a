"""Objects from configuration: the dotted targets that a model's YAML may name, and how they are built."""

import importlib
import re
from collections.abc import Mapping
from typing import Any

from omegaconf import OmegaConf

from util.errors import UserError
from util.settings import S, keywords, read, signature_model
from util.words import unknown

# A YAML chooses among these and can cause no other import, whatever it says.
TARGETS = (
    "ldm.models.diffusion.ddpm.LatentDiffusion",
    "ldm.modules.diffusionmodules.openaimodel.UNetModel",
    "ldm.models.autoencoder.VQModelInterface",
    "ldm.models.autoencoder.AutoencoderKL",
    "ldm.models.autoencoder.IdentityFirstStage",
    "ldm.modules.encoders.modules.ClassEmbedder",
    "ldm.modules.encoders.modules.FrozenCLIPEmbedder",
    "torch.nn.Identity",
)

# Other classes that published files name, by the last part of their target, and what such a file is.
ELSEWHERE = {
    "BERTEmbedder": "a model of texts or layouts, which it reads by a BERT of its own",
    "SpatialRescaler": "a model that is given a picture (a segmentation, a masked picture)",
    "FrozenClipImageEmbedder": "a model that is given pictures (retrieval, variations)",
    "FrozenCLIPImageEmbedder": "a model that is given pictures (retrieval, variations)",
    "FrozenCLIPTextEmbedder": "a model of retrieved pictures",
    "FrozenOpenCLIPEmbedder": "Stable Diffusion 2",
    "DiffusionEngine": "a model of Stability AI's generative-models (Stable Diffusion XL and others)",
    "MinimalRETRODiffusion": "a model of retrieved pictures",
    "LatentInpaintDiffusion": "an inpainting model, which is given mask and masked picture",
    "LatentFinetuneDiffusion": "a model that is given a picture",
    "LatentUpscaleDiffusion": "a super-resolution model, which is given the small picture",
    "LatentDepth2ImageDiffusion": "a model that is given depths",
    "Layout2ImgDiffusion": "a model of layouts",
    "ControlLDM": "a ControlNet",
    "DDPM": "a diffusion model of pixels",
}

# Conditioning settings that are a word instead of a mapping: no network of its own.
NO_NETWORK = ("__is_first_stage__", "__is_unconditional__")

# Parameters in CompVis YAML files that only training or logging read, or that `model_loader` acts on. They are left
# out unless the class asks for them by name.
TRAINING_KEYS = frozenset(
    (
        "base_learning_rate",
        "batch_resize_range",
        "ckpt_path",
        "clip_denoised",
        "colorize_nlabels",
        "cond_stage_forward",
        "cond_stage_trainable",
        "first_stage_key",
        "ignore_keys",
        "image_key",
        "l_simple_weight",
        "learn_logvar",
        "load_only_unet",
        "log_every_t",
        "logvar_init",
        "loss_type",
        "lossconfig",
        "lr_g_factor",
        "make_it_fit",
        "monitor",
        "num_timesteps_cond",
        "original_elbo_weight",
        "remap",
        "sane_index_shape",
        "scheduler_config",
        "use_checkpoint",
        "use_ema",
        "use_fp16",
        "use_positional_encodings",
        "v_posterior",
    )
)

# What Python says when an argument is unknown or missing, here or in a constructor further inside.
_ARGUMENT_ERROR = re.compile(r"unexpected keyword argument|missing \d+ required")


def instantiate_from_config(config: Mapping[str, Any] | str) -> Any:
    """Build what a configuration describes.

    Args:
        config: mapping (plain or OmegaConf) with `target`, one of `TARGETS`, and `params`, its keyword arguments, which
            reach the class as plain dictionaries and lists; or one of the words `NO_NETWORK`.

    Returns:
        The new object, or None for a word of `NO_NETWORK`.

    Raises:
        UserError: a target outside `TARGETS`, a keyword that the target does not have, or one that it lacks.
    """
    if isinstance(config, str) and config in NO_NETWORK:
        return None
    plain: Any = OmegaConf.to_container(config, resolve=True) if OmegaConf.is_config(config) else config
    if not isinstance(plain, Mapping) or "target" not in plain:
        raise UserError(f"model configuration: expected a mapping with a `target`, got {str(plain)[:80]!r}")
    target, params = plain["target"], plain.get("params") or {}
    factory = _resolve(target)
    if not isinstance(params, Mapping):
        raise UserError(f"model configuration: params of {target} must be a mapping, got {str(params)[:80]!r}")
    group, taken = signature_model(factory), dict(params)
    if group.model_config["extra"] == "forbid":  # other classes look at their keywords themselves
        taken = {key: value for key, value in taken.items() if key in group.model_fields or key not in TRAINING_KEYS}
        taken = keywords(factory, taken, target)
    try:
        return factory(**taken)
    except TypeError as error:
        if _ARGUMENT_ERROR.search(str(error)):
            raise UserError(f"model configuration: {target}: {error}") from error
        raise


def read_params(settings: type[S], params: Mapping[str, Any], factory: type) -> S:
    """Return the settings of a class that a published file's parameters give; what only training read is left out.

    Raises:
        UserError: a keyword that neither has, or a value of the wrong type or range.
    """
    plain = {
        key: OmegaConf.to_container(value, resolve=True) if OmegaConf.is_config(value) else value
        for key, value in params.items()
    }
    taken = {key: value for key, value in plain.items() if key in settings.model_fields or key not in TRAINING_KEYS}
    return read(settings, taken, factory.__name__)


def _resolve(target: Any) -> type:
    if target not in TARGETS:
        kind = ELSEWHERE.get(str(target).rpartition(".")[2])
        if kind:
            raise UserError(
                f"the model configuration is for {kind}: {str(target)[:80]!a} is not supported. Supported: latent "
                "diffusion without a condition, of classes (ClassEmbedder) or of texts by CLIP (FrozenCLIPEmbedder)"
            )
        raise unknown("target in a model configuration", str(target)[:80], TARGETS)
    module, _, name = target.rpartition(".")
    return getattr(importlib.import_module(module), name)
