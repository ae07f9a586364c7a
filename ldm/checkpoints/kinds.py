"""The kind of a file of tensors, told by their names and shapes."""

from collections.abc import Iterator, Mapping
from pathlib import Path

from ldm.checkpoints.reading import StoredTensor
from util.errors import UserError
from util.yaml import load_yaml

CONFIGS = Path(__file__).resolve().parents[2] / "configs" / "latent-diffusion"
UNET = "model.diffusion_model."
FIRST_CONVOLUTION = f"{UNET}input_blocks.0.0.weight"

# Kinds of file that are no latent diffusion model of this project's kind, and how names of tensors tell: the first
# whose every text is in some name.
_BY_NAME = {
    "a LoRA, which only changes another model": (("lora",),),
    "a ControlNet": (("control_model.",), ("controlnet_cond_embedding.",)),
    "Stable Diffusion XL": (("conditioner.embedders.",), (f"{UNET}label_emb.0.0.", "add_embedding.")),
    "Stable Diffusion 3": ((".joint_blocks.",),),
    "a Flux transformer": (("double_blocks.", "single_blocks."),),
    "Stable Diffusion 2": (("cond_stage_model.model.transformer.resblocks.",),),
    "a quantised model": ((".qweight",), (".weight_scale",), ("scale_weight",), (".absmax",), (".quant_map",)),
}
_BY_START = {
    "one part of a folder in the diffusers layout (give the folder above it)": ("down_blocks.", "encoder.down_blocks."),
    "a text encoder": ("text_model.", "transformer.text_model.", "embeddings.token_embedding."),
    "a first stage alone": ("decoder.", "first_stage_model.decoder."),
    "a pixel-space model of guided-diffusion": ("input_blocks.", "time_embed."),
}


def kind_of(stored: Mapping[str, StoredTensor]) -> str | None:
    """Return in words what kind of file this is; None where it may be a latent diffusion model that is supported."""
    for kind, alternatives in _BY_NAME.items():
        if any(all(any(text in name for name in stored) for text in texts) for texts in alternatives):
            return kind
    shape = stored[FIRST_CONVOLUTION].shape if FIRST_CONVOLUTION in stored else ()
    if len(shape) == 4 and any(".attn2." in name for name in stored):
        if shape[1] == 9:
            return "an inpainting UNet, which takes mask and masked picture as input (9 channels)"
        if shape[1] == 8:
            return "a UNet that edits pictures (8 channels)"
        contexts = {tensor.shape[1:] for name, tensor in stored.items() if name.endswith(".attn2.to_k.weight")}
        if (1024,) in contexts:
            return "Stable Diffusion 2"
        if (2048,) in contexts:
            return "Stable Diffusion XL"
    if any(name.startswith(UNET) for name in stored):
        return None
    for kind, starts in _BY_START.items():
        if any(name.startswith(starts) for name in stored):
            return kind
    return None


def candidate_configurations(stored: Mapping[str, StoredTensor]) -> Iterator[Path]:
    """Yield the project's configurations whose UNet begins as the one of a file, by name."""
    shape = stored[FIRST_CONVOLUTION].shape if FIRST_CONVOLUTION in stored else None
    for path in sorted(CONFIGS.glob("*.yaml")):
        params = load_yaml(path)["model"]["params"]["unet_config"]["params"]
        if shape == (params["model_channels"], params["in_channels"], 3, 3):
            yield path


def refuse_other_kinds(stored: Mapping[str, StoredTensor], path: Path) -> None:
    """Raise UserError for a file that says by its tensors' names that it is something else."""
    kind = kind_of(stored)
    if kind:
        raise UserError(f"{path} is {kind}, not a latent diffusion model that can be used here")
