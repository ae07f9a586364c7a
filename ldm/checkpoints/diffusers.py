"""The weights of a folder in the diffusers layout, under the names that CompVis's checkpoints have for them.

A UNet of n residual blocks a level (`layers_per_block`) has here one list of the first convolution and n + 1 entries a
level, of which the last resamples, and one of n + 1 entries a level for the ascending half; diffusers has levels.
"""

import re
from collections.abc import Iterable, Mapping
from pathlib import Path

import torch
from torch import Tensor

from ldm.checkpoints.diffusers_config import (
    FirstStage,
    UNet,
    first_stage_folder,
    read_first_stage,
    read_unet,
)
from ldm.checkpoints.diffusers_settings import UNet2DModel
from ldm.checkpoints.fitting import without_wrappers
from ldm.checkpoints.reading import StoredTensor, read_checkpoint
from ldm.checkpoints.shards import files_of
from util.errors import UserError

UNET, FIRST_STAGE, TEXT = "model.diffusion_model.", "first_stage_model.", "cond_stage_model.transformer."
WEIGHTS = "diffusion_pytorch_model"  # diffusers' name for a part's file; transformers has two others
TEXT_WEIGHTS = ("model", "pytorch_model")

# Inside a residual block or an attention of the UNet.
IN_UNET = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "time_emb_proj": "emb_layers.1",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "conv_shortcut": "skip_connection",
    "group_norm": "norm",
    "to_out.0": "proj_out",
}
# Inside those of the first stage.
IN_FIRST_STAGE = {
    "conv_shortcut": "nin_shortcut",
    "group_norm": "norm",
    "to_q": "q",
    "to_k": "k",
    "to_v": "v",
    "to_out.0": "proj_out",
}
# Attention in older files.
FORMER_NAMES = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}


def read_folder(folder: Path, use_ema: bool | None = None) -> dict[str, StoredTensor]:
    """Return the tensors of a folder's UNet, first stage and, where there is one, text encoder.

    Args:
        folder: as `diffusers_config.read_config` takes it.
        use_ema: True takes the averaged weights of the UNet (`unet_ema/`, or a file `*.ema.*`), False those before
            averaging (a file `*.non_ema.*`) where they are kept; None is the file without such a word.

    Raises:
        UserError: a file is missing, not readable, not safe, or has tensors that its configuration has no place for.
    """
    unet, stage_folder = read_unet(folder), first_stage_folder(folder)
    network = _read_part(_unet_files(folder, use_ema), _unet_places(unet), IN_UNET)
    if isinstance(unet, UNet2DModel):
        network = _merge_queries(network, unet.attention_head_dim)
    stage = _read_part(
        weight_files(stage_folder, (WEIGHTS,)), _first_stage_places(read_first_stage(folder)), IN_FIRST_STAGE
    )
    stored = _below(UNET, network) | _below(FIRST_STAGE, {name: _as_kernel(name, stage[name]) for name in stage})
    if (folder / "text_encoder").is_dir():
        stored |= _below(TEXT, read_text_encoder(folder / "text_encoder"))
    return stored


def read_text_encoder(folder: Path) -> dict[str, StoredTensor]:
    """Return the tensors of CLIP's text model, under the names that `FrozenCLIPEmbedder` has for them.

    Raises:
        UserError: the file is missing, not readable or not safe.
    """
    stored: dict[str, StoredTensor] = {}
    for path in weight_files(folder, TEXT_WEIGHTS):
        stored |= read_checkpoint(path)
    return {name.removeprefix("text_model."): tensor for name, tensor in stored.items()}


def weight_files(folder: Path, names: Iterable[str], variant: str = "") -> list[Path]:
    """Return the files that hold the weights of a part of a pipeline: one, or the shards that an index lists.

    Args:
        folder: the part's.
        names: what files may be called, without suffixes.
        variant: a word in the file's name, such as "non_ema"; where it is empty, one that tells a precision will do.

    Raises:
        UserError: there is none, or a shard is missing.
    """
    for word in [variant] if variant else ["", "fp32", "fp16", "bf16"]:
        for name in names:
            for suffix in ("safetensors", "bin"):
                path = folder / ".".join(filter(None, (name, word, suffix)))
                index = folder / ".".join(filter(None, (name, suffix, "index", word, "json")))
                if path.is_file():
                    return [path]
                if index.is_file():
                    return files_of(index)
    wanted = ".".join(filter(None, (next(iter(names)), variant, "safetensors")))
    raise UserError(f"{folder} has no {wanted} (nor .bin, nor shards with an index)")


def _unet_files(folder: Path, use_ema: bool | None) -> list[Path]:
    unet = folder / "unet"
    if use_ema:
        if (folder / "unet_ema").is_dir():
            return weight_files(folder / "unet_ema", (WEIGHTS,))
        for word in ("ema", "non_ema"):
            if any(unet.glob(f"{WEIGHTS}.{word}.*")):  # beside one that was not averaged, the plain one is averaged
                return weight_files(unet, (WEIGHTS,), "" if word == "non_ema" else word)
        raise UserError(f"{folder} has no weights that are marked as averaged: it has no unet_ema/, and in unet/ no "
                        f"{WEIGHTS}.ema.* and no {WEIGHTS}.non_ema.*")  # fmt: skip
    if use_ema is False and any(unet.glob(f"{WEIGHTS}.non_ema.*")):
        return weight_files(unet, (WEIGHTS,), "non_ema")
    return weight_files(unet, (WEIGHTS,))


def _below(prefix: str, stored: Mapping[str, StoredTensor]) -> dict[str, StoredTensor]:
    return {prefix + name: tensor for name, tensor in stored.items()}


def _read_part(files: list[Path], places: Mapping[str, str], inside: Mapping[str, str]) -> dict[str, StoredTensor]:
    """Read files and rename their tensors, by tables of the modules' places and of what is inside these."""
    found: dict[str, StoredTensor] = {}
    for path in files:
        for name, tensor in read_checkpoint(path).items():
            new = _renamed(name, places, inside)
            if new is None:
                raise UserError(f"{path} holds {ascii(name)[1:-1][:100]}, which its configuration has no place for")
            found[new] = tensor
    return found


def _renamed(name: str, places: Mapping[str, str], inside: Mapping[str, str]) -> str | None:
    name = without_wrappers(name).removeprefix("model.")
    for former, today in FORMER_NAMES.items():
        name = re.sub(rf"(attentions\.\d+)\.{former}\.", rf"\1.{today}.", name)
    *module, leaf = name.split(".")
    for length in range(len(module), 0, -1):
        place = places.get(".".join(module[:length]))
        if place is not None:
            rest = ".".join(module[length:])
            return ".".join(filter(None, (place, inside.get(rest, rest), leaf)))
    return None


def _unet_places(unet: UNet) -> dict[str, str]:
    """Where the modules of a UNet are here, by their names in diffusers."""
    n, levels = unet.layers_per_block, len(unet.block_out_channels)
    places = {
        "conv_in": "input_blocks.0.0",
        "time_embedding.linear_1": "time_embed.0",
        "time_embedding.linear_2": "time_embed.2",
        "mid_block.resnets.0": "middle_block.0",
        "mid_block.attentions.0": "middle_block.1",
        "mid_block.resnets.1": f"middle_block.{2 if getattr(unet, 'add_attention', True) else 1}",
        "conv_norm_out": "out.0",
        "conv_out": "out.2",
    }
    for level in range(levels):
        for j in range(n):
            block = f"input_blocks.{1 + level * (n + 1) + j}"
            places[f"down_blocks.{level}.resnets.{j}"] = f"{block}.0"
            places[f"down_blocks.{level}.attentions.{j}"] = f"{block}.1"
        places[f"down_blocks.{level}.downsamplers.0.conv"] = f"input_blocks.{(level + 1) * (n + 1)}.0.op"
    for level, kind in enumerate(unet.up_block_types):
        for j in range(n + 1):
            block = f"output_blocks.{level * (n + 1) + j}"
            places[f"up_blocks.{level}.resnets.{j}"] = f"{block}.0"
            places[f"up_blocks.{level}.attentions.{j}"] = f"{block}.1"
        last = 2 if unet.up_blocks[kind] else 1  # behind the residual block and the attention
        places[f"up_blocks.{level}.upsamplers.0.conv"] = f"output_blocks.{level * (n + 1) + n}.{last}.conv"
    return places


def _first_stage_places(stage: FirstStage) -> dict[str, str]:
    """Where the modules of a first stage are here, by their names in diffusers."""
    n, levels = stage.layers_per_block, len(stage.block_out_channels)
    places = {name: name for name in ("quantize.embedding", "quant_conv", "post_quant_conv")}
    for half, down_or_up, sampler in (("encoder", "down", "downsample"), ("decoder", "up", "upsample")):
        places |= {
            f"{half}.conv_in": f"{half}.conv_in",
            f"{half}.mid_block.resnets.0": f"{half}.mid.block_1",
            f"{half}.mid_block.attentions.0": f"{half}.mid.attn_1",
            f"{half}.mid_block.resnets.1": f"{half}.mid.block_2",
            f"{half}.conv_norm_out": f"{half}.norm_out",
            f"{half}.conv_out": f"{half}.conv_out",
        }
        for level in range(levels):
            theirs = f"{half}.{down_or_up}_blocks.{level if half == 'encoder' else levels - 1 - level}"
            ours = f"{half}.{down_or_up}.{level}"
            for j in range(n + 1):
                places[f"{theirs}.resnets.{j}"] = f"{ours}.block.{j}"
                places[f"{theirs}.attentions.{j}"] = f"{ours}.attn.{j}"
            places[f"{theirs}.{sampler}rs.0.conv"] = f"{ours}.{sampler}.conv"
    return places


def _as_kernel(name: str, stored: StoredTensor) -> StoredTensor:
    """Give a linear layer's matrix the shape of a 1x1 convolution's kernel, where the first stage has that."""
    return _with_sides(stored, 2) if ".attn" in name and len(stored.shape) > 1 else stored


def _merge_queries(stored: Mapping[str, StoredTensor], head_dim: int | None) -> dict[str, StoredTensor]:
    """Make one `qkv` of queries, keys and values, which follow one another head by head (`head_dim` None: one head)."""
    merged = {}
    for name, tensor in stored.items():
        module, _, leaf = name.rpartition(".")
        place, _, part = module.rpartition(".")
        if part == "to_q":
            parts = [stored.get(f"{place}.{other}.{leaf}") for other in ("to_q", "to_k", "to_v")]
            merged[f"{place}.qkv.{leaf}"] = _interleaved([one for one in parts if one is not None], head_dim)
        elif part == "proj_out" and leaf == "weight":
            merged[name] = _with_sides(tensor, 1)
        elif part not in ("to_k", "to_v"):
            merged[name] = tensor
    return merged


def _with_sides(stored: StoredTensor, count: int) -> StoredTensor:
    """The matrix of a linear layer as the kernel of a convolution of size one, of ``count`` dimensions.

    It may be such a kernel already, of another number of dimensions: older files differ in that.
    """
    if set(stored.shape[2:]) - {1}:
        return stored
    shape = (*stored.shape[:2], *[1] * count)
    return StoredTensor(shape, lambda: stored.read().reshape(shape), stored.release)


def _interleaved(parts: list[StoredTensor], head_dim: int | None) -> StoredTensor:
    """The matrices (C, C), or biases (C,), of queries, keys and values as one (3 C, C, 1), or (3 C,)."""
    parts = [_with_sides(part, 0) for part in parts]
    channels, *rest = parts[0].shape

    def read() -> Tensor:
        size = head_dim or channels
        by_head = [part.read().reshape(channels // size, size, *rest) for part in parts]
        tensor = torch.stack(by_head, dim=1).reshape(-1, *rest)
        return tensor[..., None] if rest else tensor

    def release() -> None:
        for part in parts:
            part.release()

    return StoredTensor((len(parts) * channels, *rest, *([1] if rest else [])), read, release)
