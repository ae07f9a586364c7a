"""Whether a file's tensors are those that a model needs, under which names, and what is likely wrong where not."""

import re
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path

from ldm.checkpoints.kinds import UNET, kind_of
from ldm.checkpoints.reading import AVERAGES, StoredTensor
from ldm.models.diffusion.ddpm import LatentDiffusion
from util.errors import UserError
from util.logging import LOGGER

FIRST_STAGE = "first_stage_model."
# Where a tensor that a model does not have belongs to another network. Elsewhere it was the training's (losses, moving
# averages), and so are the statistics that a codebook is trained with.
_TEXT = "cond_stage_model.transformer.encoder."
_NETWORKS = (
    UNET,
    *(f"{FIRST_STAGE}{part}." for part in ("encoder", "decoder", "quantize", "quant_conv", "post_quant_conv")),
)
_OF_TRAINING = re.compile(rf"{re.escape(FIRST_STAGE)}quantize\.(used|.*\.(cluster_size|embed_avg))")
# What training wrappers (of many cards, of torch's compiler, of a trainer) put into the names of a model's tensors, and
# an older transformers into those of a text encoder.
_WRAPPERS = re.compile(r"(^|(?<=\.))(module|_orig_mod)\.|(?<=^cond_stage_model\.transformer\.)text_model\.")


class MisfitError(UserError):
    """A file's tensors are not those of a model."""


def without_wrappers(name: str) -> str:
    """Return a tensor's name without what training wrappers put into it."""
    return _WRAPPERS.sub("", name)


def own_names(model: LatentDiffusion, stored: Mapping[str, StoredTensor], path: Path) -> dict[str, StoredTensor]:
    """Return a file's tensors without what training wrappers put into their names, where more of them then fit.

    Args:
        model: what they are for.
        stored: the tensors, by their names in the file.
        path: the file, for the log.
    """
    expected = model.state_dict().keys()
    best = max(spellings(stored), key=lambda names: len(names.keys() & expected))
    if len(best.keys() & expected) > len(stored.keys() & expected):
        renamed = next(name for name in best if name in expected and name not in stored)
        LOGGER.info("%s: names of tensors without their prefixes, such as %s", path, renamed)
    return best


def spellings(stored: Mapping[str, StoredTensor]) -> list[dict[str, StoredTensor]]:
    """Return a file's tensors under its own names, without training wrappers, and without what is before the UNet's."""
    plain = {without_wrappers(name): tensor for name, tensor in stored.items()}
    before = dict.fromkeys(name.partition(UNET)[0] for name in plain if UNET in name)
    return [
        dict(stored),
        *({name.removeprefix(prefix): tensor for name, tensor in plain.items()} for prefix in ["", *before]),
    ]


def moving_averages(
    path: Path, stored: Mapping[str, StoredTensor], beside: Mapping[str, StoredTensor]
) -> dict[str, StoredTensor]:
    """Return the averages that training kept of a latent diffusion model, under the weights' own names.

    Args:
        path: the file, for the error message.
        stored: its tensors. The average of `model.a.b` is `model_ema.ab`, or has one of `AVERAGES` before its name.
        beside: what it holds in a place of its own for averages, of the whole model or of the UNet alone.

    Raises:
        UserError: a weight has no average in the file.
    """
    source = {without_wrappers(name): tensor for name, tensor in (beside or stored).items()}
    prefixes = [""] if beside else [f"{word}." for word in AVERAGES]
    averages, missing = {}, []
    for name in stored:
        within = name.removeprefix("model.")
        forms = [prefix + form for prefix in prefixes for form in (name, within, name.removeprefix(UNET))]
        found = next((form for form in [f"model_ema.{within.replace('.', '')}", *forms] if form in source), None)
        if found:
            averages[name] = source[found]
        elif name.startswith(UNET):
            missing.append(name)
    if missing or not averages:
        lacking = f" (that of {missing[0]} is missing)" if missing else ""
        raise UserError(f"{path} holds no complete moving average of the weights{lacking}")
    return averages


def lacking(stored: Mapping[str, StoredTensor], model: LatentDiffusion, prefix: str = "") -> list[str]:
    """Names of the model's tensors below a prefix that neither the file nor the configuration gives."""
    tensors = model.state_dict().items()
    return [name for name, tensor in tensors if name.startswith(prefix) and tensor.is_meta and name not in stored]


def check_fit(model: LatentDiffusion, stored: Mapping[str, StoredTensor], path: Path, prefix: str = "") -> None:
    """Check that a file has the tensors of a model below a prefix, in their shapes, and no other of its networks.

    Raises:
        MisfitError: it has not; the message names some, and the likely cause.
    """
    own = model.state_dict()
    expected = {name: tensor for name, tensor in own.items() if name.startswith(prefix)}
    missing = lacking(stored, model, prefix)
    differ = [
        f"{name} ({_sizes(stored[name].shape)} in the file, {_sizes(tensor.shape)} in the model)"
        for name, tensor in expected.items()
        if name in stored and stored[name].shape != tuple(tensor.shape)
    ]
    networks = (*_NETWORKS, _TEXT) if any(name.startswith(_TEXT) for name in own) else _NETWORKS
    extra = [
        name
        for name in stored
        if name.startswith(prefix) and name.startswith(networks) and name not in own and not _OF_TRAINING.match(name)
    ]
    problems = {"missing": missing, "of another shape": differ, "that the model does not have": extra}
    found = [f"{len(names)} tensors {what} ({_first(names)})" for what, names in problems.items() if names]
    if found:
        cause = _likely_cause(stored, [*missing, *differ, *extra])
        raise MisfitError(f"{path} does not fit the configuration: {'; '.join(found)}\nlikely cause: {cause}")


def _likely_cause(stored: Mapping[str, StoredTensor], names: list[str]) -> str:
    kind = kind_of(stored)
    if kind:
        return f"the file is {kind}, not a latent diffusion model"
    if not any(name.startswith(UNET) for name in stored):
        return f"the file is not a latent diffusion model: its tensors have names such as {_first(stored)}"
    if names == ["scale_factor"]:
        return "scale_by_std takes the scale of the latents from the checkpoint, and this one was trained without"
    if all(name.startswith(FIRST_STAGE) for name in names):
        return "first_stage_config describes another autoencoder, or the checkpoint that holds it was not found"
    return "the configuration is another model's: --ldm_config and --diffusion_config must belong together"


def unused_tensors(model: LatentDiffusion, stored: Mapping[str, StoredTensor]) -> Counter[str]:
    """Count what a file holds that the model does not take: `model_ema`, `first_stage_model.loss` and the like."""
    expected = model.state_dict()
    unused = [name for name in stored if name not in expected]
    depth = {name: 2 if name.startswith(FIRST_STAGE) else 1 for name in unused}
    return Counter(".".join(ascii(name)[1:-1].split(".")[: depth[name]]) for name in unused)


def log_unused(model: LatentDiffusion, stored: Mapping[str, StoredTensor], path: Path) -> None:
    """Say in one line what the file holds for training only."""
    groups = unused_tensors(model, stored)
    if groups:
        counts = ", ".join(f"{group} {count}" for group, count in groups.most_common(8))
        LOGGER.info("%s: %d tensors that sampling does not use: %s", path, groups.total(), counts)
    if "scale_factor" in groups:
        LOGGER.warning("%s holds a scale_factor, and the configuration lacks scale_by_std: true", path)


def _first(names: Iterable[str], count: int = 3) -> str:
    names = [ascii(name)[1:-1][:120] for name in names]
    return ", ".join(names[:count]) + (", ..." if len(names) > count else "")


def _sizes(shape: Iterable[int]) -> str:
    return "x".join(map(str, shape)) or "a number"
