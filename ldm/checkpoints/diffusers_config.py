"""From the JSON files of a folder in the diffusers layout to the configuration of a latent diffusion model."""

from pathlib import Path
from typing import Any, TypeVar

from ldm.checkpoints.diffusers_settings import AutoencoderKL, Scheduler, UNet2DConditionModel, UNet2DModel, VQModel
from ldm.checkpoints.shards import read_json
from ldm.modules.encoders.text_settings import TextModelSettings
from util.errors import UserError
from util.settings import Settings, read

INDEX = "model_index.json"
BETA_SCHEDULES = {"scaled_linear": "linear", "linear": "sqrt_linear", "squaredcos_cap_v2": "cosine"}
# Of flow matching, of models trained on sigmas (EDM, consistency models), of scores in continuous time, of tokens.
OTHER_SCHEDULERS = (
    *("Flow", "EDM", "Cosine", "KarrasVe", "ScoreSde", "CMStochastic", "IPNDM"),
    *("VQDiffusion", "Amused"),
)
# What diffusers takes where a file leaves it out, for the classes that have not the defaults of most.
_LATER_BETAS: dict[str, Any] = {"beta_start": 0.00085, "beta_end": 0.012}
SCHEDULER_DEFAULTS: dict[str, dict[str, Any]] = {
    **dict.fromkeys(("HeunDiscreteScheduler", "DPMSolverSDEScheduler"), _LATER_BETAS),
    **dict.fromkeys(("KDPM2DiscreteScheduler", "KDPM2AncestralDiscreteScheduler"), _LATER_BETAS),
    **dict.fromkeys(("LCMScheduler", "TCDScheduler"), _LATER_BETAS | {"beta_schedule": "scaled_linear"}),
    "UnCLIPScheduler": {"beta_schedule": "squaredcos_cap_v2"},
}
# What transformers takes where a text model's file leaves it out, and Stable Diffusion's has otherwise.
TEXT_DEFAULTS = {"hidden_size": 512, "intermediate_size": 2048, "num_attention_heads": 8}
PREDICTIONS = {"epsilon": "eps", "sample": "x0", "v_prediction": "v"}

S = TypeVar("S", bound=Settings)
UNet = UNet2DModel | UNet2DConditionModel
FirstStage = VQModel | AutoencoderKL


def is_diffusers_folder(path: Path) -> bool:
    """Whether a path is a folder that diffusers has written."""
    return (path / INDEX).is_file() or (path / "unet" / "config.json").is_file()


def first_stage_folder(folder: Path) -> Path:
    """Return the part of a folder that holds the first stage.

    Raises:
        UserError: there is none.
    """
    for name in ("vqvae", "vae"):
        if (folder / name / "config.json").is_file():
            return folder / name
    raise UserError(
        f"{folder} has neither vqvae/ nor vae/: it is a diffusion model of pixels, without the first stage that "
        "restoration in a latent space needs"
    )


def read_unet(folder: Path) -> UNet:
    """Read `unet/config.json`.

    Raises:
        UserError: it is not there, or has a field that cannot be honoured; the message names it.
    """
    path = folder / "unet" / "config.json"
    fields = read_json(path)
    if _class_name(fields, path, ("UNet2DModel", "UNet2DConditionModel")) == "UNet2DModel":
        return _read_fields(UNet2DModel, fields, path)
    return _read_fields(UNet2DConditionModel, fields, path)


def read_first_stage(folder: Path) -> FirstStage:
    """Read the `config.json` of the first stage. Raises UserError as `read_unet`."""
    path = first_stage_folder(folder) / "config.json"
    fields = read_json(path)
    if _class_name(fields, path, ("VQModel", "AutoencoderKL")) == "VQModel":
        return _read_fields(VQModel, fields, path)
    return _read_fields(AutoencoderKL, fields, path)


def read_scheduler(folder: Path) -> Scheduler:
    """Read the noise schedule, from `scheduler/scheduler_config.json` (`config.json` in some folders).

    Raises:
        UserError: it is not there, cannot be honoured, or is of another kind of model.
    """
    path = folder / "scheduler" / "scheduler_config.json"
    if not path.exists() and path.with_name("config.json").is_file():
        path = path.with_name("config.json")
    fields = read_json(path)
    name = str(fields.get("_class_name"))
    if name.startswith(OTHER_SCHEDULERS):
        raise UserError(
            f"{path}: _class_name is {name!a:.80}: its model was trained with noise that betas do not describe"
        )
    if not any(field.startswith("beta_") for field in fields):
        raise UserError(f"{path} has no beta_schedule, beta_start and beta_end: the noise of the training is not told")
    return _read_fields(Scheduler, SCHEDULER_DEFAULTS.get(name, {}) | fields, path)


def read_config(folder: Path) -> dict[str, Any]:
    """Return the configuration of the model in a folder, as a published YAML file would have it.

    Raises:
        UserError: the folder holds another kind of model, or one of its files a field that cannot be honoured.
    """
    _refuse_other_pipelines(folder)
    first_stage, unet = read_first_stage(folder), read_unet(folder)
    scheduler = read_scheduler(folder)
    embed_dim = getattr(first_stage, "vq_embed_dim", None) or first_stage.latent_channels
    _check_channels(folder, unet, embed_dim)
    factor = 2 ** (len(first_stage.block_out_channels) - 1)
    side = unet.sample_size or max(1, (first_stage.sample_size or 64 * factor) // factor)
    params = {
        "timesteps": scheduler.num_train_timesteps,
        "beta_schedule": BETA_SCHEDULES[scheduler.beta_schedule],
        "linear_start": scheduler.beta_start,
        "linear_end": scheduler.beta_end,
        "parameterization": PREDICTIONS[scheduler.prediction_type],
        "image_size": side,
        "channels": embed_dim,
        "scale_factor": first_stage.scaling_factor,
        "shift_factor": getattr(first_stage, "shift_factor", None) or 0.0,
        "unet_config": {
            "target": "ldm.modules.diffusionmodules.openaimodel.UNetModel",
            "params": _unet_params(unet, side, folder / "unet" / "config.json"),
        },
        "first_stage_config": _first_stage_config(first_stage, embed_dim, side * factor, first_stage_folder(folder)),
        "cond_stage_config": "__is_unconditional__",
    }
    if isinstance(unet, UNet2DConditionModel):
        params["conditioning_key"] = "crossattn"
        params["cond_stage_config"] = _text_config(folder, unet)
    return {"model": {"target": "ldm.models.diffusion.ddpm.LatentDiffusion", "params": params}}


def _class_name(fields: dict[str, Any], path: Path, known: tuple[str, ...]) -> str:
    name = fields.get("_class_name")
    if name not in known:
        raise UserError(f"{path}: _class_name is {str(name)!a:.80}, and must be {' or '.join(known)}")
    return str(name)


def _read_fields(kind: type[S], fields: dict[str, Any], path: Path) -> S:
    """Read a file's fields, but for those that diffusers writes about itself, and unknown ones that say nothing."""
    told = {
        key: value
        for key, value in fields.items()
        if not key.startswith("_") and (key in kind.model_fields or value is not None)
    }
    try:
        return read(kind, told)
    except UserError as error:
        lines = [line.partition("known:")[0].rstrip(" ;:") for line in str(error).splitlines()]
        raise UserError("\n".join(f"{path}: {line}" for line in lines)) from error


def _refuse_other_pipelines(folder: Path) -> None:
    """Raise UserError for the folders of models that are no latent diffusion of a UNet and one text encoder."""
    index = read_json(folder / INDEX) if (folder / INDEX).is_file() else {}
    fields = read_json(folder / "unet" / "config.json") if (folder / "unet" / "config.json").is_file() else {}
    name = str(index.get("_class_name", "a model"))
    kind = None
    if (folder / "transformer").is_dir() or "transformer" in index:
        kind = f"{name}: its network is a transformer, not a UNet (Stable Diffusion 3, Flux and the like)"
    elif (folder / "text_encoder_2").is_dir() or "text_encoder_2" in index:
        kind = "Stable Diffusion XL: it has two text encoders"
    elif fields.get("addition_embed_type"):
        kind = f"a UNet that takes a further condition (addition_embed_type is {fields['addition_embed_type']!r:.40})"
    elif fields.get("_class_name") == "UNet2DConditionModel":
        if fields.get("in_channels") == 9:
            kind = "an inpainting UNet of Stable Diffusion: it takes mask and masked picture as input (9 channels)"
        elif fields.get("in_channels") == 8:
            kind = "a UNet that edits pictures (8 channels)"
        elif fields.get("cross_attention_dim") == 1024 or fields.get("use_linear_projection"):
            kind = "Stable Diffusion 2: its text encoder is OpenCLIP's"
    elif not fields:
        raise UserError(f"{folder} has no unet/config.json: it holds no diffusion model in the diffusers layout")
    if kind:
        raise UserError(f"{ascii(str(folder))[1:-1]} holds {ascii(kind)[1:-1][:200]}. Supported: Stable Diffusion 1, "
                        "and latent diffusion with a UNet2DModel")  # fmt: skip


def _check_channels(folder: Path, unet: UNet, embed_dim: int) -> None:
    path = folder / "unet" / "config.json"
    if unet.out_channels != unet.in_channels:
        raise UserError(
            f"{path}: out_channels is {unet.out_channels} for in_channels {unet.in_channels}: a UNet with more "
            "inputs or outputs than the latent (a condition, a learned variance) is not supported"
        )
    if unet.in_channels != embed_dim:
        raise UserError(f"{path}: in_channels is {unet.in_channels}, but the first stage's latents have {embed_dim}")


def _attention_levels(part: UNet | FirstStage, path: Path) -> list[bool]:
    """Return which levels have attention, the highest resolution first.

    Raises:
        UserError: a type of block that is not known, or halves of the network that are not alike.
    """
    levels = len(part.block_out_channels)
    halves = []
    for field, known in (("down_block_types", part.down_blocks), ("up_block_types", part.up_blocks)):
        types = getattr(part, field)
        odd = [name for name in types if name not in known]
        if odd:
            raise UserError(f"{path}: {field} has {odd[0]!a:.80}, which is not supported")
        if len(types) != levels:
            raise UserError(f"{path}: {field} has {len(types)} entries for {levels} levels")
        halves.append([known[name] for name in types])
    down, up = halves
    if down != up[::-1]:
        raise UserError(f"{path}: up_block_types has attention at other levels than down_block_types: not supported")
    return down


def _unet_params(unet: UNet, side: int, path: Path) -> dict[str, Any]:
    first = unet.block_out_channels[0]
    if unet.time_embedding_dim not in (None, 4 * first):
        raise UserError(f"{path}: time_embedding_dim is {unet.time_embedding_dim}, and only {4 * first} is supported")
    params = {
        "image_size": side,
        "in_channels": unet.in_channels,
        "out_channels": unet.out_channels,
        "model_channels": first,
        "channel_mult": [channels / first for channels in unet.block_out_channels],
        "num_res_blocks": unet.layers_per_block,
        "attention_levels": _attention_levels(unet, path),
        "dropout": unet.dropout,
        "use_scale_shift_norm": unet.resnet_time_scale_shift == "scale_shift",
        "norm_groups": unet.norm_num_groups,
        "norm_eps": unet.norm_eps,
        "downsample_padding": unet.downsample_padding,
        "frequency_shift": unet.freq_shift,
    }
    if isinstance(unet, UNet2DConditionModel):
        heads = unet.attention_head_dim
        return params | {
            "num_heads": list(heads) if isinstance(heads, tuple) else heads,
            "use_spatial_transformer": True,
            "transformer_depth": unet.transformer_layers_per_block,
            "context_dim": unet.cross_attention_dim,
        }
    if unet.attn_norm_num_groups not in (None, unet.norm_num_groups):
        raise UserError(f"{path}: attn_norm_num_groups is {unet.attn_norm_num_groups}, and must be norm_num_groups")
    head_dim = unet.attention_head_dim
    levels = zip(unet.block_out_channels, _attention_levels(unet, path), strict=True)
    widths = [*(width for width, has in levels if has), *unet.block_out_channels[-1:] * unet.add_attention]
    odd = [width for width in widths if width % (head_dim or width)]
    if odd:
        raise UserError(f"{path}: attention_head_dim is {head_dim}, which does not divide {odd[0]} channels")
    return params | {
        **({"num_heads": 1} if head_dim is None else {"num_head_channels": head_dim}),
        "mid_attention": unet.add_attention,
        # Where the timestep scales and shifts, diffusers leaves out the norm of the middle unless groups are given.
        "mid_attention_norm": unet.resnet_time_scale_shift == "default" or unet.attn_norm_num_groups is not None,
    }


def _first_stage_config(stage: FirstStage, embed_dim: int, side: int, folder: Path) -> dict[str, Any]:
    channels = stage.block_out_channels
    ddconfig = {
        "double_z": isinstance(stage, AutoencoderKL),
        "z_channels": stage.latent_channels,
        "resolution": side,
        "in_channels": stage.in_channels,
        "out_ch": stage.out_channels,
        "ch": channels[0],
        "ch_mult": [width / channels[0] for width in channels],
        "num_res_blocks": stage.layers_per_block,
        "attention_levels": _attention_levels(stage, folder / "config.json"),
        "mid_attention": stage.mid_block_add_attention,
        "norm_groups": stage.norm_num_groups,
    }
    params: dict[str, Any] = {"embed_dim": embed_dim, "ddconfig": ddconfig}
    if isinstance(stage, VQModel):
        params["n_embed"] = stage.num_vq_embeddings
        return {"target": "ldm.models.autoencoder.VQModelInterface", "params": params}
    params |= {"use_quant_conv": stage.use_quant_conv, "use_post_quant_conv": stage.use_post_quant_conv}
    return {"target": "ldm.models.autoencoder.AutoencoderKL", "params": params}


def _text_config(folder: Path, unet: UNet2DConditionModel) -> dict[str, Any]:
    """Return the configuration of the text encoder, whose own files `transformers` reads."""
    path = folder / "text_encoder" / "config.json"
    fields = read_json(path)
    names = fields.get("architectures") or ["CLIPTextModel"]
    if names != ["CLIPTextModel"]:
        raise UserError(f"{path}: architectures is {str(names)!a:.80}, and must be CLIPTextModel")
    # Its fields alone: other texts of the file have no business in a configuration, which resolves what is in ${}.
    settings = _read_fields(TextModelSettings, TEXT_DEFAULTS | fields, path)
    if settings.hidden_size != unet.cross_attention_dim:
        raise UserError(f"{path}: hidden_size is {settings.hidden_size}, and the UNet's cross_attention_dim "
                        f"{unet.cross_attention_dim}")  # fmt: skip
    tokenizer = str(folder / "tokenizer").replace("${", r"\${")  # the text itself, in a configuration
    return {
        "target": "ldm.modules.encoders.modules.FrozenCLIPEmbedder",
        "params": {"config": settings.to_plain(), "tokenizer": tokenizer},
    }
