"""Conditioning of a model by class or text, and classifier-free guidance."""

from typing import Any

import torch
from torch import Tensor

from ldm.models.diffusion.ddpm import LatentDiffusion
from ldm.modules.encoders.modules import ClassEmbedder, FrozenCLIPEmbedder
from util.errors import UserError
from util.logging import LOGGER

NULL_CLASS = 1000  # "no class", for the models that have it after ImageNet's thousand and nothing behind it


def guidance(
    model: LatentDiffusion,
    class_label: int | None = None,
    scale: float = 1.0,
    batch: int = 1,
    prompt: str | None = None,
    negative_prompt: str | None = None,
) -> dict[str, Any]:
    """The keywords of `DDIMSampler.sample` and `posterior_sampler` that ask for a batch of images.

    Args:
        model: its conditioning stage, if it has one, embeds class labels or prompts.
        class_label: the class; None is no class, for a model without or one with a null class.
        scale: classifier-free guidance (Ho and Salimans, 2022); 1 is none.
        batch: how many images.
        prompt: a text that describes the image; None is the empty one.
        negative_prompt: a text to guide away from; None is the empty one.

    Raises:
        UserError: the model does not take this, lacks this class, or cannot be used without one or with guidance.
    """
    stage = model.cond_stage_model
    if class_label is not None and not isinstance(stage, ClassEmbedder):
        raise UserError(f"class_label is {class_label}, and this model has no classes{_takes(stage)}")
    if not (prompt is None and negative_prompt is None) and not isinstance(stage, FrozenCLIPEmbedder):
        raise UserError(f"this model takes no prompt{_takes(stage)}")
    if isinstance(stage, FrozenCLIPEmbedder):
        return _by_prompt(model, prompt or "", negative_prompt, scale, batch)
    if isinstance(stage, ClassEmbedder):
        return _by_class(model, stage, class_label, scale, batch)
    if stage is not None:
        raise UserError(
            "this model is conditioned on something that the command cannot give: neither a class nor a prompt, but a "
            "picture or a layout, as for inpainting, super-resolution or retrieval"
        )
    if scale != 1.0:
        LOGGER.warning("guidance of scale %g has no effect, because this model is unconditional", scale)
    return {}


def has_null_class(stage: ClassEmbedder) -> bool:
    """Whether the last class of a model means "no class": known of those of ImageNet's thousand classes alone."""
    return stage.n_classes == NULL_CLASS + 1


def _takes(stage: Any) -> str:
    if isinstance(stage, FrozenCLIPEmbedder):
        return ": it takes a prompt"
    return ": it takes a class_label" if isinstance(stage, ClassEmbedder) else ": it is unconditional"


def _guided(wanted: Tensor, unwanted: Tensor, scale: float) -> dict[str, Any]:
    return {
        "conditioning": wanted,
        "unconditional_conditioning": unwanted,
        "unconditional_guidance_scale": scale,
    }


def _by_prompt(
    model: LatentDiffusion, prompt: str, negative_prompt: str | None, scale: float, batch: int
) -> dict[str, Any]:
    wanted = model.get_learned_conditioning([prompt]).repeat(batch, 1, 1)
    if scale == 1.0:
        if negative_prompt is not None:
            LOGGER.warning("negative_prompt has no effect, because the scale of guidance is 1")
        return {"conditioning": wanted}
    unwanted = model.get_learned_conditioning([negative_prompt or ""]).repeat(batch, 1, 1)
    return _guided(wanted, unwanted, scale)


def _by_class(
    model: LatentDiffusion, stage: ClassEmbedder, label: int | None, scale: float, batch: int
) -> dict[str, Any]:
    classes = stage.n_classes
    has_null = has_null_class(stage)
    if label is None and not has_null:
        raise UserError(f"this model is class-conditional: give class_label=N, from 0 to {classes - 1}")
    if label is not None and not 0 <= label < classes:
        raise UserError(f"class_label is {label}: must be from 0 to {classes - 1}")
    if label is None or scale == 1.0:
        return {"conditioning": _embed(model, stage, NULL_CLASS if label is None else label, batch)}
    if not has_null:
        raise UserError("guidance: this model has no null class to guide away from: its scale must be 1")
    return _guided(_embed(model, stage, label, batch), _embed(model, stage, NULL_CLASS, batch), scale)


def _embed(model: LatentDiffusion, stage: ClassEmbedder, label: int, batch: int) -> Tensor:
    labels = torch.full((batch,), label, device=stage.embedding.weight.device)
    with torch.no_grad():
        return model.get_learned_conditioning({stage.key: labels})
