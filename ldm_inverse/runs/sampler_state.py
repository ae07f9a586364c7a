"""The state of a restoration between two steps, and the file that keeps it."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor


class SamplerState(NamedTuple):
    """All that the rest of a restoration depends on, besides the measurement and the settings.

    Attributes:
        done: steps that are done.
        latent: what they led to, (1, C, h, w).
        generator: the noise source's state (`torch.Generator.get_state`).
        best: of the restarts that have ended, the image kept, (1, 3, H, W); None in the first.
    """

    done: int
    latent: Tensor
    generator: Tensor
    best: Tensor | None = None


class Progress(NamedTuple):
    """A state, the rows of the trace until then, and the seconds that it took."""

    state: SamplerState
    trace: list[dict[str, Any]]
    seconds: float


def state_path(name: str) -> str:
    """Return where in a run's folder the state of a restoration in progress is."""
    return f"progress/{name}/state.safetensors"


def encode(state: SamplerState, trace: Sequence[Mapping[str, Any]], seconds: float, inputs: str | None = None) -> bytes:
    """Return a file's content (safetensors) from which `read` makes these again, for the same ``inputs`` (a digest)."""
    latent = state.latent.detach().cpu()
    tensors = {"latent": latent.contiguous(), "generator": state.generator}
    if state.best is not None:
        tensors["best"] = state.best.detach().cpu().contiguous()
    channels_last = not latent.is_contiguous() and latent.is_contiguous(memory_format=torch.channels_last)
    about = {
        "done": state.done,
        "channels_last": channels_last,
        "trace": list(trace),
        "seconds": seconds,
        "inputs": inputs,
    }
    return save(tensors, metadata={"progress": json.dumps(about)})


def read(path: Path, generator: torch.Generator, inputs: str | None = None) -> Progress | None:
    """Read what was kept for a restoration with this generator and of these inputs; None when nothing fit was."""
    try:
        with safe_open(path, framework="pt") as file:
            about = json.loads(file.metadata()["progress"])
            if about.get("inputs") != inputs:
                return None
            latent, state = file.get_tensor("latent"), file.get_tensor("generator")
            best = file.get_tensor("best").to(generator.device) if "best" in file.keys() else None  # noqa: SIM118
        if state.shape != generator.get_state().shape:  # of another kind of device
            return None
        # The layout decides which kernels compute, and so the last digits.
        layout = torch.channels_last if about["channels_last"] else torch.contiguous_format
        latent = latent.to(generator.device).contiguous(memory_format=layout)
        kept = SamplerState(about["done"], latent, state, best)
        return Progress(kept, about["trace"], about["seconds"])
    except (SafetensorError, OSError, ValueError, KeyError, TypeError):
        return None
