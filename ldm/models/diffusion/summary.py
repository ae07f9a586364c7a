"""A latent diffusion model described in words."""

from torch import Tensor

from ldm.models.diffusion.ddpm import LatentDiffusion
from ldm.modules.encoders.modules import ClassEmbedder, FrozenCLIPEmbedder

KINDS = {"VQModelInterface": "VQ", "AutoencoderKL": "KL", "IdentityFirstStage": "no"}


def summary(model: LatentDiffusion) -> list[str]:
    """Return lines on a model's pictures, conditioning, first stage, noise schedule and size."""
    stage, condition = model.first_stage_model, model.cond_stage_model
    kind = KINDS.get(type(stage).__name__, type(stage).__name__)
    codes = f", {stage.quantize.n_e:,} codes" if kind == "VQ" else ""
    conditions = "unconditional"
    if isinstance(condition, FrozenCLIPEmbedder):
        conditions = "conditioned on a text"
    elif isinstance(condition, ClassEmbedder):
        conditions = f"{condition.n_classes} classes"
    parts = {"UNet": model.model, "first stage": stage, "conditioning": condition}
    sizes = {name: sum(p.numel() for p in part.parameters()) / 1e6 for name, part in parts.items() if part is not None}
    # Without weights, the model does not have the scale that its checkpoint holds.
    unknown = isinstance(model.scale_factor, Tensor) and model.scale_factor.is_meta
    scale = "of the checkpoint" if unknown else f"{float(model.scale_factor):g}"
    grey = ", grey pictures" if model.image_channels == 1 else ""
    return [
        f"latent diffusion at {model.resolution}x{model.resolution}{grey}, {conditions}; {kind} first stage "
        f"(f = {stage.downsampling}, {model.channels} channels{codes})",
        f"noise schedule: {model.settings.beta_schedule}, betas from {float(model.betas[0]):.5g} to "
        f"{float(model.betas[-1]):.5g} in {model.num_timesteps} steps; scale "
        f"factor {scale}; the UNet predicts {model.parameterization}",
        f"parameters: {', '.join(f'{name} {size:.1f} million' for name, size in sizes.items() if size)}",
    ]
