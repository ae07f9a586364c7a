"""Objects from configuration: the dotted targets that a model's YAML may name, and how they are built."""

import importlib
import inspect
import re
from collections.abc import Mapping
from typing import Any

from omegaconf import OmegaConf

from util.errors import UserError
from util.registry import unknown

# A YAML chooses among these and can cause no other import, whatever it says.
TARGETS = (
    "ldm.models.diffusion.ddpm.LatentDiffusion",
    "ldm.modules.diffusionmodules.openaimodel.UNetModel",
    "ldm.models.autoencoder.VQModelInterface",
    "ldm.models.autoencoder.AutoencoderKL",
    "ldm.models.autoencoder.IdentityFirstStage",
    "ldm.modules.encoders.modules.ClassEmbedder",
    "torch.nn.Identity",
)

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
        "concat_mode",
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
    if OmegaConf.is_config(config):
        config = OmegaConf.to_container(config, resolve=True)
    if not isinstance(config, Mapping) or "target" not in config:
        raise UserError(f"model configuration: expected a mapping with a `target`, got {str(config)[:80]!r}")
    target = config["target"]
    factory = _resolve(target)
    kwargs = _accepted(target, factory, config.get("params") or {})
    try:
        return factory(**kwargs)
    except TypeError as error:
        if _ARGUMENT_ERROR.search(str(error)):
            raise UserError(f"model configuration: {target}: {error}") from error
        raise


def reject_unknown(factory: type, leftover: Mapping[str, Any]) -> None:
    """For a constructor that is also called directly with a published file's parameters: ``leftover`` may hold only
    what training read.

    Raises:
        UserError: any other keyword.
    """
    for key in leftover:
        if key not in TRAINING_KEYS:
            raise unknown(f"parameter of {factory.__name__}", str(key), _keyword_names(factory))


def _resolve(target: Any) -> type:
    if target not in TARGETS:
        raise unknown("target in a model configuration", str(target)[:80], TARGETS)
    module, _, name = target.rpartition(".")
    return getattr(importlib.import_module(module), name)


def _accepted(target: str, factory: type, params: Any) -> dict[str, Any]:
    """Keyword arguments for `factory`: `params` without what only training used. An unknown name is a UserError."""
    if not isinstance(params, Mapping):
        raise UserError(f"model configuration: params of {target} must be a mapping, got {str(params)[:80]!r}")
    names = _keyword_names(factory)
    if not names:  # takes anything, as torch.nn.Identity does
        return dict(params)
    for key in params:
        if key not in names and key not in TRAINING_KEYS:
            raise unknown(f"parameter of {target}", str(key), names)
    return {key: value for key, value in params.items() if key in names}


def _keyword_names(factory: type) -> set[str]:
    """Names of the keyword arguments of a class, its bases' included where it passes keywords on."""
    names: set[str] = set()
    for cls in factory.__mro__:
        if "__init__" not in vars(cls):
            continue
        parameters = list(inspect.signature(cls.__init__).parameters.values())[1:]
        names |= {p.name for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)}
        if not any(p.kind is p.VAR_KEYWORD for p in parameters):
            break
    return names
