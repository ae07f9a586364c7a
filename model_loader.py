"""From a model's YAML and its checkpoint to a `LatentDiffusion` that is ready to sample."""

from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from torch import Tensor
from torch.overrides import TorchFunctionMode

from ldm.acceleration.arithmetic import LAYOUT, Arithmetic, accelerate
from ldm.acceleration.device import resolve_device
from ldm.acceleration.memory import keep_freed_memory, map_large_blocks
from ldm.checkpoints.diffusers import read_folder
from ldm.checkpoints.diffusers_config import is_diffusers_folder, read_config
from ldm.checkpoints.fitting import (
    FIRST_STAGE,
    MisfitError,
    check_fit,
    lacking,
    log_unused,
    moving_averages,
    own_names,
    spellings,
    without_wrappers,
)
from ldm.checkpoints.kinds import UNET, candidate_configurations, refuse_other_kinds
from ldm.checkpoints.noise_schedule import NAMES, is_rounded, take_schedule
from ldm.checkpoints.places import download_name, place_of, resolve_model
from ldm.checkpoints.reading import StoredTensor, read_checkpoint
from ldm.checkpoints.shards import files_of
from ldm.models.diffusion.ddpm import LatentDiffusion
from ldm.util import instantiate_from_config
from util.errors import UserError
from util.files import version_of
from util.logging import LOGGER
from util.yaml import load_yaml

__all__ = [
    *("build_model", "get_model", "load_model_from_config", "load_yaml", "model_config", "read_weights"),
    *("resolve_device", "resolve_model"),
]


def get_model(
    ldm_config: str | Path | None,
    diffusion_config: str | Path,
    device: str = "auto",
    gpu: int = 0,
    arithmetic: Arithmetic | None = None,
    use_ema: bool | None = None,
) -> LatentDiffusion:
    """Load a model and set how it computes (float32 if None).

    Args:
        ldm_config, diffusion_config: as `model_config` takes them.
        device, gpu: as `resolve_device` takes them.
        arithmetic: how the networks compute.
        use_ema: as `load_model_from_config` takes it.

    Raises:
        UserError: as `model_config`, `resolve_device`, `load_model_from_config` and `accelerate`.
    """
    target = resolve_device(device, gpu)
    path = resolve_model(diffusion_config)
    if target.type == "cpu":
        map_large_blocks()
    model = load_model_from_config(model_config(ldm_config, path), path, target, use_ema, LAYOUT)
    arithmetic = arithmetic or Arithmetic()
    accelerate(model, arithmetic)
    if target.type == "cpu" and not arithmetic.low_memory:
        keep_freed_memory()
    return model


def model_config(ldm_config: str | Path | None, diffusion_config: str | Path) -> dict[str, Any]:
    """Return a model's configuration, as a YAML of CompVis has it.

    Args:
        ldm_config: the YAML; None where the model tells it itself: a folder in the diffusers layout, a checkpoint with
            a YAML of its own name beside it, or one of a known architecture.
        diffusion_config: the model, as `resolve_model` takes it.

    Raises:
        UserError: there is no model, its configuration cannot be told or used, or one is given for a folder that has
            its own.
    """
    if ldm_config is not None:
        place = place_of(diffusion_config)
        if place is not None and is_diffusers_folder(place):
            raise UserError(f"{diffusion_config} has its own configuration: leave out --ldm_config {ldm_config}")
        return load_yaml(ldm_config)
    path = resolve_model(diffusion_config)
    if path.is_dir():
        return read_config(path)
    if path.with_suffix(".yaml").is_file():
        return load_yaml(path.with_suffix(".yaml"))
    return load_yaml(_recognised(path, version_of(path)))


@cache
def _recognised(path: Path, _version: tuple[int, ...]) -> Path:
    """Return the configuration of the project that a file's tensors fit."""
    stored = _with_unet(read_weights(path))
    refuse_other_kinds(stored, path)
    found = fitting_configurations(stored)
    if not found:
        raise UserError(f"{path} has no known architecture: give its configuration with --ldm_config")
    LOGGER.info("%s has the architecture %s", path, found[0])
    return found[0]


def load_model_from_config(
    config: Mapping[str, Any],
    ckpt: str | Path,
    device: str | torch.device = "cpu",
    use_ema: bool | None = None,
    layout: torch.memory_format = torch.preserve_format,
) -> LatentDiffusion:
    """Build a model and give it a checkpoint's weights, one after the other.

    Args:
        config: a model's YAML as a mapping (plain or OmegaConf) with `model: {target, params}`. What only training read
            is ignored; so is the first stage's `ckpt_path`, unless ``ckpt`` lacks part of the first stage.
        ckpt: as `resolve_model` takes it. Half-precision weights become float32. Schedule buffers that it lacks, or
            holds in half precision, are computed: from its own schedule where that is another one than the
            configuration's (`take_schedule`).
        device: where the model goes.
        use_ema: take the moving average of the weights in place of the weights themselves. None is as
            `model.params.use_ema` says, and that is false by default, as published.
        layout: of the convolutions' kernels. What keeps the file's stays in its memory-mapped pages on the CPU.

    Returns:
        The model in float32 and evaluation mode; no parameter asks for a gradient.

    Raises:
        UserError: the file is not there, not readable, not safe, or not of this model (the first tensors that are
            missing or of another shape are named); a weight is not finite; the configuration builds no model.
    """
    path = resolve_model(ckpt)
    settings = _model_config(config)
    model = _build(settings)
    use_ema = True if use_ema is None and model.use_ema else use_ema
    stored = own_names(model, read_weights(path, use_ema), path)
    try:
        check_fit(model, stored, path, UNET)
    except MisfitError as error:
        fitting = " and ".join(str(found) for found in fitting_configurations(stored))
        if not fitting:
            raise
        raise UserError(f"{str(error).splitlines()[0]}\nit fits {fitting}: give that as --ldm_config") from error
    if lacking(stored, model, FIRST_STAGE):
        stored = stored | _separate_first_stage(settings, path)
    check_fit(model, stored, path)
    log_unused(model, stored, path)
    take_schedule(model, {name: _as_stored(name, stored[name], path) for name in NAMES if name in stored}, path)
    wanted = [
        name
        for name, tensor in model.state_dict().items()
        if name in stored and (tensor.is_meta or not is_rounded(stored[name].read()))
    ]
    state = {name: _read(name, stored[name], path, device, layout) for name in wanted}
    model.load_state_dict(state, strict=False, assign=True)
    return model.to(device).eval().requires_grad_(False)


def read_weights(path: Path, use_ema: bool | None = None) -> dict[str, StoredTensor]:
    """Return the tensors of a model, under CompVis's names for them.

    Args:
        path: what `resolve_model` returns.
        use_ema: True takes the moving average of the weights in their place. False takes the weights, also of a folder
            whose plain file holds averaged ones; None takes what a folder's plain file holds.

    Raises:
        UserError: a file is not readable, not safe, or holds no average.
    """
    if path.is_dir():
        return read_folder(path, use_ema)
    stored: dict[str, StoredTensor] = {}
    averages: dict[str, StoredTensor] = {}
    for file in files_of(path):
        stored |= read_checkpoint(file)
        averages |= read_checkpoint(file, averaged=True) if use_ema else {}
    if use_ema:
        stored = _with_unet(stored)
        return stored | moving_averages(path, stored, averages)
    return stored


def _with_unet(stored: Mapping[str, StoredTensor]) -> dict[str, StoredTensor]:
    """Return a file's tensors under those names, with prefixes or without, that the most of a UNet's tensors have."""
    return max(spellings(stored), key=lambda names: sum(name.startswith(UNET) for name in names))


def fitting_configurations(stored: Mapping[str, StoredTensor]) -> list[Path]:
    """Return the project's configurations whose UNet has a file's tensors."""
    found = []
    for path in candidate_configurations(stored):
        model = build_model(load_yaml(path))
        try:
            check_fit(model, own_names(model, stored, path), path, UNET)
        except MisfitError:
            continue
        found.append(path)
    return found


def build_model(config: Mapping[str, Any]) -> LatentDiffusion:
    """Build a model without weights, on the meta device, to ask what it takes. ``config`` is its YAML as a mapping.

    Raises:
        UserError: the configuration builds no model.
    """
    return _build(_model_config(config))


def _model_config(config: Mapping[str, Any]) -> dict[str, Any]:
    try:
        found = config if isinstance(config, DictConfig) else OmegaConf.create(dict(config))
        plain = OmegaConf.to_container(found, resolve=True)
    except OmegaConfBaseException as error:
        raise UserError(f"model configuration: {str(error).splitlines()[0]}") from error
    model_config = plain.get("model") if isinstance(plain, dict) else None
    if not isinstance(model_config, dict) or not isinstance(model_config.get("params"), dict):
        raise UserError("model configuration: expected `model:` with `target:` and `params:` below it")
    return model_config


class _WithoutInitialisation(TorchFunctionMode):
    """Makes the functions of `torch.nn.init` do nothing.

    On the meta device there is nothing to fill, and to try costs seconds: torch imports its compiler for it.
    """

    def __torch_function__(self, func: Callable, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        kwargs = kwargs or {}
        if getattr(func, "__module__", None) == "torch.nn.init":
            return args[0] if args else kwargs["tensor"]
        return func(*args, **kwargs)


def _build(model_config: dict[str, Any]) -> LatentDiffusion:
    """Build the model with weights that take no memory, and real schedule buffers."""
    try:
        with torch.device("meta"), _WithoutInitialisation():
            model = instantiate_from_config(model_config)
    except UserError:
        raise
    except Exception as error:  # settings of a wrong type or value may fail anywhere in the networks
        reason = str(error).splitlines()[0] if str(error) else ""
        raise UserError(f"model configuration: no model can be built: {type(error).__name__}: {reason}") from error
    if not isinstance(model, LatentDiffusion):
        raise UserError(f"model configuration: {model_config['target']} is not a latent diffusion model")
    model.register_schedule("cpu")
    return model


def _separate_first_stage(model_config: dict[str, Any], ckpt: Path) -> dict[str, StoredTensor]:
    """Tensors of the file that the first stage's `ckpt_path` names, under the whole model's names for them."""
    path = (model_config["params"]["first_stage_config"].get("params") or {}).get("ckpt_path")
    if not path:
        return {}
    path = Path(path)
    if not path.is_file():
        raise UserError(
            f"{ckpt} holds no complete first stage, and there is none at {path}\n"
            f"to fetch the published one: bash scripts/download_models.sh {download_name(path)}"
        )
    LOGGER.info("the first stage comes from %s", path)
    stored = read_checkpoint(path)
    return {FIRST_STAGE + without_wrappers(name).removeprefix(FIRST_STAGE): stored[name] for name in stored}


def _as_stored(name: str, stored: StoredTensor, ckpt: Path) -> Tensor:
    """Return a tensor that was checked as all others are, in the file's precision."""
    return _read(name, stored, ckpt, "cpu", torch.preserve_format).to(stored.read().dtype)


def _read(
    name: str, stored: StoredTensor, ckpt: Path, device: str | torch.device, layout: torch.memory_format
) -> Tensor:
    tensor = stored.read()
    if not tensor.is_floating_point():
        raise UserError(f"{ckpt}: {name} holds {tensor.dtype} numbers, which no model can use")
    tensor = tensor.to(torch.float32)
    if tensor.numel() and not torch.stack(torch.aminmax(tensor)).isfinite().all():
        raise UserError(f"{ckpt}: {name} holds NaN or infinity: the file is damaged, or its training diverged")
    tensor = tensor.to(device, memory_format=layout if tensor.ndim == 4 else torch.preserve_format)
    stored.release()
    return tensor
