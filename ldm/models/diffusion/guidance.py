"""Class labels and classifier-free guidance for the samplers."""

import logging
from typing import TYPE_CHECKING, Any

import torch

from util.errors import UserError

if TYPE_CHECKING:
    from ldm.models.diffusion.ddpm import LatentDiffusion

logger = logging.getLogger("resample")

NULL_CLASS = 1000  # "no class", for the models that have it after ImageNet's thousand


def guidance(
    model: "LatentDiffusion", class_label: int | None = None, scale: float = 1.0, batch: int = 1
) -> dict[str, Any]:
    """The keywords of `DDIMSampler.sample` and `posterior_sampler` that ask for a batch of images of a class.

    Args:
        model: its conditioning stage, if it has one, embeds class labels.
        class_label: the class; None is no class, for an unconditional model or one with a null class.
        scale: classifier-free guidance (Ho and Salimans, 2022); 1 is none.
        batch: how many images.

    Raises:
        UserError: the model has no classes, lacks this one, or cannot be used without one or with guidance.
    """
    stage = model.cond_stage_model
    if stage is None:
        if class_label is not None:
            raise UserError(f"class_label is {class_label}, and this model is unconditional")
        if scale != 1.0:
            logger.warning("guidance of scale %g: without effect, as this model is unconditional", scale)
        return {}
    classes = stage.n_classes
    has_null = classes > NULL_CLASS
    if class_label is None and not has_null:
        raise UserError(f"this model is class-conditional: give class_label=N, from 0 to {classes - 1}")
    if class_label is not None and not 0 <= class_label < classes:
        raise UserError(f"class_label is {class_label}: must be from 0 to {classes - 1}")
    if class_label is None or scale == 1.0:
        return {"conditioning": _embed(model, NULL_CLASS if class_label is None else class_label, batch)}
    if not has_null:
        raise UserError("guidance: this model has no null class to guide away from: its scale must be 1")
    return {
        "conditioning": _embed(model, class_label, batch),
        "unconditional_conditioning": _embed(model, NULL_CLASS, batch),
        "unconditional_guidance_scale": scale,
    }


def _embed(model: "LatentDiffusion", label: int, batch: int) -> torch.Tensor:
    key = model.cond_stage_model.key
    device = next(model.cond_stage_model.parameters()).device
    with torch.no_grad():
        return model.get_learned_conditioning({key: torch.full((batch,), label, device=device)})
