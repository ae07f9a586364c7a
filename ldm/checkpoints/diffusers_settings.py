"""The JSON files of a folder in the diffusers layout, field by field: each is honoured, or refused by its name.

A class lists the fields that diffusers writes for the class of its name. Defaults are diffusers' own: older files leave
fields out. A field of the type that `only` makes has one meaning here, and another value of it is refused.
"""

import json
from typing import Annotated, Any, ClassVar

from pydantic import BeforeValidator, ConfigDict

from ldm.modules.sizes import Blocks, Channels, Entries, Levels, Side
from util.settings import BelowOne, Count, Flag, Number, Positive, Settings, whole


def only(*accepted: Any) -> BeforeValidator:
    """Return the check for a field of which only these values, as JSON has them, can be honoured."""
    texts = [json.dumps(value) for value in accepted]

    def check(value: Any) -> Any:
        # 1 and 1.0 are the same in JSON, and neither is true.
        if not any(value == one and isinstance(value, bool) == isinstance(one, bool) for one in accepted):
            raise ValueError(f"expected {' or '.join(texts)} (nothing else is supported)")
        return value

    return BeforeValidator(check)


def _side(value: Any) -> int | None:
    """A nominal size: one number, or height and width. It decides nothing but what is said of the model."""
    if isinstance(value, list | tuple) and len(value) == 2:
        value = max(value)
    return value


No = Annotated[bool, only(False)]
Yes = Annotated[bool, only(True)]
Null = Annotated[None, only(None)]
One = Annotated[float, only(1)]
Three = Annotated[int, only(3)]
SiLU = Annotated[str, only("silu", "swish")]
Whatever = Any  # of no effect on what the network computes here
Nominal = Annotated[Side | None, BeforeValidator(_side)]


class _File(Settings):
    """A JSON file of diffusers."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, validate_default=False)


class _UNet(_File):
    """Fields that both kinds of UNet have."""

    sample_size: Nominal = None
    act_fn: SiLU = "silu"
    center_input_sample: No = False
    class_embed_type: Null = None
    downsample_padding: Annotated[int, whole(0, 1)] = 1
    dropout: BelowOne = 0.0
    flip_sin_to_cos: Yes = True
    freq_shift: Number = 0
    layers_per_block: Blocks = 2
    mid_block_scale_factor: One = 1
    norm_eps: Positive = 1e-5
    norm_num_groups: Channels = 32
    num_class_embeds: Null = None
    resnet_time_scale_shift: Annotated[str, only("default", "scale_shift")] = "default"
    time_embedding_type: Annotated[str, only("positional")] = "positional"
    time_embedding_dim: Channels | None = None


class UNet2DModel(_UNet):
    """An unconditional UNet, as of latent diffusion and DDPM."""

    down_blocks: ClassVar = {"DownBlock2D": False, "AttnDownBlock2D": True}  # whether they have attention
    up_blocks: ClassVar = {"UpBlock2D": False, "AttnUpBlock2D": True}

    in_channels: Channels = 3
    out_channels: Channels = 3
    block_out_channels: Levels[Channels] = (224, 448, 672, 896)
    down_block_types: tuple[str, ...] = ("DownBlock2D", "AttnDownBlock2D", "AttnDownBlock2D", "AttnDownBlock2D")
    up_block_types: tuple[str, ...] = ("AttnUpBlock2D", "AttnUpBlock2D", "AttnUpBlock2D", "UpBlock2D")
    mid_block_type: Annotated[str, only("UNetMidBlock2D")] = "UNetMidBlock2D"
    add_attention: Flag = True
    attention_head_dim: Channels | None = 8
    attn_norm_num_groups: Channels | None = None
    downsample_type: Annotated[str, only("conv")] = "conv"
    upsample_type: Annotated[str, only("conv")] = "conv"
    num_train_timesteps: Whatever = None


class UNet2DConditionModel(_UNet):
    """A UNet with cross-attention to a text, as of Stable Diffusion 1."""

    down_blocks: ClassVar = {"DownBlock2D": False, "CrossAttnDownBlock2D": True}
    up_blocks: ClassVar = {"UpBlock2D": False, "CrossAttnUpBlock2D": True}

    in_channels: Channels = 4
    out_channels: Channels = 4
    block_out_channels: Levels[Channels] = (320, 640, 1280, 1280)
    down_block_types: tuple[str, ...] = (*("CrossAttnDownBlock2D",) * 3, "DownBlock2D")
    up_block_types: tuple[str, ...] = ("UpBlock2D", *("CrossAttnUpBlock2D",) * 3)
    mid_block_type: Annotated[str, only("UNetMidBlock2DCrossAttn")] = "UNetMidBlock2DCrossAttn"
    addition_embed_type: Null = None
    addition_embed_type_num_heads: Whatever = None
    addition_time_embed_dim: Null = None
    attention_head_dim: Channels | Levels[Channels] = 8  # the number of heads, whatever it is called
    attention_type: Annotated[str, only("default")] = "default"
    class_embeddings_concat: No = False
    conv_in_kernel: Three = 3
    conv_out_kernel: Three = 3
    cross_attention_dim: Channels = 1280
    cross_attention_norm: Null = None
    dual_cross_attention: No = False
    encoder_hid_dim: Null = None
    encoder_hid_dim_type: Null = None
    mid_block_only_cross_attention: Annotated[bool | None, only(None, False)] = None
    num_attention_heads: Null = None
    only_cross_attention: No = False
    projection_class_embeddings_input_dim: Null = None
    resnet_out_scale_factor: One = 1
    resnet_skip_time_act: No = False
    reverse_transformer_layers_per_block: Null = None
    time_cond_proj_dim: Null = None
    time_embedding_act_fn: Null = None
    timestep_post_act: Null = None
    transformer_layers_per_block: Blocks = 1
    upcast_attention: Whatever = False
    use_linear_projection: No = False


class _Autoencoder(_File):
    """Fields that both kinds of first stage have."""

    down_blocks: ClassVar = {"DownEncoderBlock2D": False, "AttnDownEncoderBlock2D": True}
    up_blocks: ClassVar = {"UpDecoderBlock2D": False, "AttnUpDecoderBlock2D": True}

    act_fn: SiLU = "silu"
    block_out_channels: Levels[Channels] = (64,)
    down_block_types: tuple[str, ...] = ("DownEncoderBlock2D",)
    up_block_types: tuple[str, ...] = ("UpDecoderBlock2D",)
    force_upcast: Whatever = False
    in_channels: Channels = 3
    out_channels: Channels = 3
    layers_per_block: Blocks = 1
    mid_block_add_attention: Flag = True
    norm_num_groups: Channels = 32
    sample_size: Nominal = None


class VQModel(_Autoencoder):
    """A vector-quantised first stage."""

    latent_channels: Channels = 3
    lookup_from_codebook: No = False
    norm_type: Annotated[str, only("group")] = "group"
    num_vq_embeddings: Entries = 256
    # The hub's files of latent diffusion leave it out and mean 1 (diffusers' own default is another).
    scaling_factor: Positive = 1.0
    vq_embed_dim: Channels | None = None


class AutoencoderKL(_Autoencoder):
    """A first stage with a Gaussian latent."""

    latent_channels: Channels = 4
    latents_mean: Null = None
    latents_std: Null = None
    scaling_factor: Positive = 0.18215
    shift_factor: Number | None = None
    use_post_quant_conv: Flag = True
    use_quant_conv: Flag = True


class Scheduler(Settings):
    """Of a scheduler, the noise schedule and what the network predicts; the rest is about sampling, and not read."""

    model_config = ConfigDict(frozen=True, extra="ignore", allow_inf_nan=False)

    num_train_timesteps: Count = 1000
    beta_start: Positive = 1e-4
    beta_end: Positive = 0.02
    beta_schedule: Annotated[str, only("linear", "scaled_linear", "squaredcos_cap_v2")] = "linear"
    trained_betas: Null = None
    prediction_type: Annotated[str, only("epsilon", "sample", "v_prediction")] = "epsilon"
    rescale_betas_zero_snr: No = False
    snr_shift_scale: Annotated[float | None, only(None, 1)] = None
    use_flow_sigmas: Annotated[bool | None, only(None, False)] = None
