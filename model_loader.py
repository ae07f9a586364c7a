"""From a model's YAML and its checkpoint to a `LatentDiffusion` that is ready to sample."""

import logging
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from torch import Tensor
from torch.overrides import TorchFunctionMode

from ldm.arithmetic import LAYOUT, Arithmetic, set_arithmetic
from ldm.models.diffusion.ddpm import LatentDiffusion
from ldm.util import instantiate_from_config
from util.checkpoint import moving_averages, read_checkpoint
from util.errors import UserError
from util.memory import keep_freed_memory, map_large_blocks
from util.registry import unknown
from util.stored_tensor import StoredTensor
from util.yaml_files import load_yaml

__all__ = ["build_model", "get_model", "load_model_from_config", "load_yaml", "require_checkpoint", "resolve_device"]

logger = logging.getLogger("resample")

DEVICES = ("auto", "cpu", "cuda", "mps")
# What scripts/download_models.sh fetches; each goes to a folder of this name (ffhq to models/ldm itself).
DOWNLOADS = ("ffhq", "celeba", "cin", "lsun_churches", "vq-f4", "vq-f8", "kl-f8")
DEMO_COMMAND = (
    "python sample_condition.py --ldm_config configs/latent-diffusion/demo-ldm-vq-4.yaml "
    "--diffusion_config models/demo/model.safetensors --task_config configs/tasks/demo/inpainting.yaml --preset demo "
    "--data data/demo"
)

UNET, FIRST_STAGE = "model.diffusion_model.", "first_stage_model."


def get_model(
    ldm_config: str | Path,
    diffusion_config: str | Path,
    device: str = "auto",
    gpu: int = 0,
    arithmetic: Arithmetic | None = None,
    use_ema: bool | None = None,
) -> LatentDiffusion:
    """Load the model that the command's arguments of these names describe, and set how it computes (float32 if None).

    Raises:
        UserError: as `load_yaml`, `resolve_device`, `load_model_from_config` and `set_arithmetic`.
    """
    require_checkpoint(diffusion_config)
    target = resolve_device(device, gpu)
    if target.type == "cpu":
        map_large_blocks()
    model = load_model_from_config(load_yaml(ldm_config), diffusion_config, target, use_ema, LAYOUT)
    arithmetic = arithmetic or Arithmetic()
    set_arithmetic(model, arithmetic)
    if target.type == "cpu" and not arithmetic.low_memory:
        keep_freed_memory()
    return model


def resolve_device(device: str = "auto", gpu: int = 0) -> torch.device:
    """Turn a word into a device.

    Args:
        device: "auto" (a CUDA card where there is one, else Apple's GPU, else the CPU), "cpu", "cuda" or "mps".
        gpu: which CUDA card.

    Raises:
        UserError: another word, or a device that this machine does not have.
    """
    if device not in DEVICES:
        raise unknown("device", device, DEVICES)
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    if device == "cuda":
        count = torch.cuda.device_count() if torch.cuda.is_available() else 0
        if not 0 <= gpu < count:
            raise UserError(f"no CUDA card {gpu}: this machine offers {count} (--device cpu runs without)")
        return torch.device("cuda", gpu)
    if device == "mps" and not torch.backends.mps.is_available():
        raise UserError("this machine has no Apple GPU that torch can use (--device cpu runs without)")
    return torch.device(device)


def require_checkpoint(path: str | Path) -> Path:
    """Return the path when there is a file.

    Raises:
        UserError: there is none; the message says how to get one, and names the demo.
    """
    path = Path(path)
    if path.is_file():
        return path
    if path.exists():
        raise UserError(f"{path} is not a file: give the checkpoint itself")
    raise UserError(
        f"no checkpoint at {path}\n"
        f"the published one: bash scripts/download_models.sh {_download_name(path)}\n"
        f"or the model that ships with the project: {DEMO_COMMAND}"
    )


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
        ckpt: a .ckpt, .pt, .pth or .safetensors file. Half-precision weights become float32. Schedule buffers that it
            lacks are computed from the configuration.
        device: where the model goes.
        use_ema: take the moving average of the UNet's weights (`model_ema.`) in place of the weights themselves. None
            is as `model.params.use_ema` says, and that is false by default, as published.
        layout: of the convolutions' kernels. What keeps the file's stays in its memory-mapped pages on the CPU.

    Returns:
        The model in float32 and evaluation mode; no parameter asks for a gradient.

    Raises:
        UserError: the file is not there, not readable, not safe, or not of this model (the first tensors that are
            missing or of another shape are named); a weight is not finite; the configuration builds no model.
    """
    ckpt = require_checkpoint(ckpt)
    model_config = _model_config(config)
    model = _build(model_config)
    stored = read_checkpoint(ckpt)
    if _lacks(stored, model, FIRST_STAGE):
        stored = stored | _separate_first_stage(model_config, ckpt)
    if model.use_ema if use_ema is None else use_ema:
        weights = [name for name, _ in model.named_parameters() if name.startswith("model.")]
        stored = stored | moving_averages(ckpt, stored, weights)
    _check_fit(model, stored, ckpt)
    _log_unused(model, stored, ckpt)
    state = {name: _read(name, stored[name], ckpt, device, layout) for name in model.state_dict() if name in stored}
    _check_schedule(model, state, ckpt)
    model.load_state_dict(state, strict=False, assign=True)
    return model.to(device).eval().requires_grad_(False)


def build_model(config: Mapping[str, Any]) -> LatentDiffusion:
    """Build a model without weights, on the meta device, to ask what it takes. ``config`` is its YAML as a mapping.

    Raises:
        UserError: the configuration builds no model.
    """
    return _build(_model_config(config))


def _model_config(config: Mapping[str, Any]) -> dict[str, Any]:
    try:
        plain = OmegaConf.to_container(OmegaConf.create(config), resolve=True)
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


def _lacks(stored: Mapping[str, StoredTensor], model: LatentDiffusion, prefix: str) -> list[str]:
    """Names of the model's tensors below a prefix that neither the file nor the configuration gives."""
    tensors = model.state_dict().items()
    return [name for name, tensor in tensors if name.startswith(prefix) and tensor.is_meta and name not in stored]


def _separate_first_stage(model_config: dict[str, Any], ckpt: Path) -> dict[str, StoredTensor]:
    """Tensors of the file that the first stage's `ckpt_path` names, under the whole model's names for them."""
    path = (model_config["params"]["first_stage_config"].get("params") or {}).get("ckpt_path")
    if not path:
        return {}
    path = Path(path)
    if not path.is_file():
        raise UserError(
            f"{ckpt} holds no complete first stage, and there is none at {path}\n"
            f"the published one: bash scripts/download_models.sh {_download_name(path)}"
        )
    logger.info("the first stage comes from %s", path)
    return {FIRST_STAGE + name: tensor for name, tensor in read_checkpoint(path).items()}


def _check_fit(model: LatentDiffusion, stored: Mapping[str, StoredTensor], ckpt: Path) -> None:
    expected = model.state_dict()
    missing = _lacks(stored, model, "")
    differ = [
        f"{name} ({_sizes(stored[name].shape)} in the file, {_sizes(tensor.shape)} in the model)"
        for name, tensor in expected.items()
        if name in stored and stored[name].shape != tuple(tensor.shape)
    ]
    extra = [name for name in stored if name.startswith(UNET) and name not in expected]
    problems = {"missing": missing, "of another shape": differ, "that the model does not have": extra}
    found = [f"{len(names)} tensors {what} ({_first(names)})" for what, names in problems.items() if names]
    if found:
        cause = _likely_cause(stored, [*missing, *differ, *extra])
        raise UserError(f"{ckpt} does not fit the configuration: {'; '.join(found)}\nlikely cause: {cause}")


def _likely_cause(stored: Mapping[str, StoredTensor], names: Iterable[str]) -> str:
    names = list(names)
    if not any(name.startswith(UNET) for name in stored):
        if any(name.startswith("decoder.") for name in stored):
            return "the file is a first stage alone, not a latent diffusion model"
        return f"the file is no latent diffusion model: its tensors have names such as {_first(stored)}"
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


def fits(config: Mapping[str, Any], stored: Mapping[str, StoredTensor]) -> bool:
    """Tell whether a file's tensors are those that the model of a YAML (as a mapping) needs."""
    try:
        _check_fit(build_model(config), stored, Path())
    except UserError:
        return False
    return True


def _log_unused(model: LatentDiffusion, stored: Mapping[str, StoredTensor], ckpt: Path) -> None:
    """Say in one line what the file holds for training only."""
    groups = unused_tensors(model, stored)
    if groups:
        counts = ", ".join(f"{group} {count}" for group, count in groups.most_common(8))
        logger.info("%s: %d tensors that sampling does not use: %s", ckpt, groups.total(), counts)
    if "scale_factor" in groups:
        logger.warning("%s holds a scale_factor, and the configuration lacks scale_by_std: true", ckpt)


def _read(
    name: str, stored: StoredTensor, ckpt: Path, device: str | torch.device, layout: torch.memory_format
) -> Tensor:
    tensor = stored.read()
    if not tensor.is_floating_point():
        raise UserError(f"{ckpt}: {name} holds {tensor.dtype} numbers, and no model does")
    tensor = tensor.to(torch.float32)
    if tensor.numel() and not torch.stack(torch.aminmax(tensor)).isfinite().all():
        raise UserError(f"{ckpt}: {name} holds NaN or infinity: the file is damaged, or its training diverged")
    tensor = tensor.to(device, memory_format=layout if tensor.ndim == 4 else torch.preserve_format)
    stored.release()
    return tensor


def _check_schedule(model: LatentDiffusion, state: Mapping[str, Tensor], ckpt: Path) -> None:
    for name in state.keys() & {"betas", "alphas_cumprod"}:
        if not 0 < state[name].min() <= state[name].max() < 1:
            raise UserError(f"{ckpt}: {name} holds numbers outside 0 to 1: the file is damaged")
    if "betas" in state and not torch.allclose(state["betas"].cpu(), model.betas, rtol=1e-3):
        logger.warning("%s was trained with another noise schedule than the configuration's; the file's is used", ckpt)


def _download_name(path: Path) -> str:
    return path.parent.name if path.parent.name in DOWNLOADS else "ffhq"


def _first(names: Iterable[str], count: int = 3) -> str:
    names = [ascii(name)[1:-1][:120] for name in names]
    return ", ".join(names[:count]) + (", ..." if len(names) > count else "")


def _sizes(shape: Iterable[int]) -> str:
    return "x".join(map(str, shape)) or "a number"
