"""Measure every part of a restoration: `all_rows` is the benchmark."""

import multiprocessing
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ldm.acceleration.arithmetic import Arithmetic
from ldm.acceleration.memory import allocate_as_by_default, keep_freed_memory, map_large_blocks, peak_memory
from ldm.models.diffusion.ddpm import LatentDiffusion
from ldm.util import instantiate_from_config
from model_loader import load_model_from_config
from scripts.benchmarks import modes
from scripts.benchmarks.measure import attainable_flops, count_flop, interleaved_medians, seconds
from scripts.benchmarks.report import Row, rows_of

MEASURED_OPERATOR = "gaussian_blur"


@dataclass(frozen=True)
class Setting:
    """A part of the benchmark, and how it is timed.

    Attributes:
        config: a model's YAML.
        state: its weights.
        device: where to measure.
        chosen: the modes, by name.
        repeats: rounds over all modes of a part; the medians count.
        side: of the images, in pixels.
    """

    config: Mapping[str, Any]
    state: Mapping[str, Tensor]
    device: torch.device
    chosen: Mapping[str, Arithmetic]
    repeats: int
    side: int

    def model(self) -> LatentDiffusion:
        """Return the model, anew."""
        return modes.build_model(self.config, self.state, self.device)

    def medians(self, runs: Mapping[str, Callable[[], Any]]) -> dict[str, float]:
        """Return each run's median in seconds (`interleaved_medians`)."""
        return interleaved_medians(runs, self.repeats, partial(seconds, device=self.device))


def all_rows(setting: Setting) -> Iterator[Row]:
    """Yield the rows of the networks, the operators, loading and memory."""
    yield from network_rows(setting)
    yield from pixel_rows(setting)
    yield from loading_rows(setting)
    yield from memory_rows(setting)


def network_rows(setting: Setting, only: Sequence[str] | None = None) -> Iterator[Row]:
    """Yield a row for each part that runs a network (None: all), in each mode."""
    parts = {
        name: _each_as_told(
            arithmetic,
            modes.network_parts(modes.make_subject(setting.model(), arithmetic, MEASURED_OPERATOR, setting.side)),
        )
        for name, arithmetic in {modes.PLAIN: None, **setting.chosen}.items()
    }
    dtypes = {name: modes.dtype_of(arithmetic) for name, arithmetic in setting.chosen.items()}
    limits = {dtype: attainable_flops(setting.device, dtype) for dtype in {*dtypes.values()}}
    attainable = {name: limits[dtype] for name, dtype in dtypes.items()}
    for part in only or parts[modes.PLAIN]:
        medians = setting.medians({name: runs[part] for name, runs in parts.items()})
        # Compiled code hides its operations: they are those of the same arithmetic without.
        flop = {name: count_flop(parts[name.partition(", compiled")[0]][part]) for name in setting.chosen}
        yield from rows_of(part, medians, modes.PLAIN, "s", flop, attainable)


def pixel_rows(setting: Setting) -> Iterator[Row]:
    """Yield a row for one pixel iteration of each operator."""
    keep_freed_memory()
    model = setting.model()
    for operator in modes.OPERATORS:
        ours = modes.pixel_iterations(modes.make_subject(model, Arithmetic(), operator, setting.side))
        plain = modes.pixel_iterations(modes.make_subject(model, None, operator, setting.side))
        medians = setting.medians({modes.PLAIN: plain, "fp32": ours})
        each = {mode: value / modes.PIXEL_ITERATIONS for mode, value in medians.items()}
        yield from rows_of(f"pixel iteration, {operator}", each, modes.PLAIN)


def loading_rows(setting: Setting) -> Iterator[Row]:
    """Yield how long it takes to load a checkpoint, and to read its file."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.ckpt"
        torch.save({"state_dict": dict(setting.state)}, path)

        def plain() -> None:
            model = instantiate_from_config(setting.config["model"])
            model.load_state_dict(torch.load(path, map_location="cpu", weights_only=True)["state_dict"])
            model.to(setting.device)

        medians = setting.medians(
            {
                modes.PLAIN: plain,
                "load": lambda: load_model_from_config(setting.config, path, setting.device),
                "read": path.read_bytes,
            }
        )
    yield Row("checkpoint load", "", "s", medians["load"], medians[modes.PLAIN])
    yield Row("reading the checkpoint's bytes", "", "s", medians["read"])


def memory_rows(setting: Setting) -> Iterator[Row]:
    """Yield the peak memory of each mode, each in a process of its own."""
    peaks = {}
    for name, arithmetic in {modes.PLAIN: None, **setting.chosen}.items():
        with multiprocessing.get_context("spawn").Pool(1) as pool:
            arguments = (setting.config, setting.device, arithmetic, setting.side, torch.get_num_threads())
            peaks[name] = pool.apply(_peak, arguments)
    yield from rows_of("peak memory", peaks, modes.PLAIN, "MB")


def _each_as_told(arithmetic: Arithmetic | None, runs: Mapping[str, Callable[[], Any]]) -> dict[str, Callable[[], Any]]:
    return {part: as_told(arithmetic, run) for part, run in runs.items()}


def as_told(arithmetic: Arithmetic | None, run: Callable[[], Any]) -> Callable[[], Any]:
    """Return a run that first tells torch and the allocator what `get_model` tells them in this mode (None: plain).

    Both are the process's own, and other modes have other wishes.
    """
    if arithmetic is None:
        tell = allocate_as_by_default
    else:
        tell = map_large_blocks if arithmetic.low_memory else keep_freed_memory

    def told() -> Any:
        tell()
        torch.backends.cudnn.allow_tf32 = arithmetic is not None and arithmetic.precision == "tf32"
        return run()

    return told


def _peak(
    config: Mapping[str, Any], device: torch.device, arithmetic: Arithmetic | None, side: int, threads: int
) -> float:
    """Megabytes that this process (on a card: the card) has held at most, after one of each of the networks' parts."""
    torch.set_num_threads(threads)
    if arithmetic is not None:
        map_large_blocks()  # as `get_model` does while it loads
    model = modes.build_model(config, modes.build_state(config), device)
    runs = modes.network_parts(modes.make_subject(model, arithmetic, MEASURED_OPERATOR, side))
    for run in _each_as_told(arithmetic, runs).values():
        run()
    held = torch.cuda.max_memory_allocated(device) if device.type == "cuda" else peak_memory()
    return held / 1e6
