"""Measure every part of a restoration: `all_rows` is the benchmark."""

import multiprocessing
import tempfile
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ldm.arithmetic import Arithmetic
from ldm.util import instantiate_from_config
from model_loader import load_model_from_config
from scripts.benchmarks import modes
from scripts.benchmarks.measure import attainable_flops, count_flop, interleaved_medians, seconds
from scripts.benchmarks.report import Row, rows_of
from util.memory import allocate_as_by_default, keep_freed_memory, map_large_blocks, peak_memory

MEASURED_OPERATOR = "gaussian_blur"


def all_rows(
    config: Mapping[str, Any],
    state: Mapping[str, Tensor],
    device: torch.device,
    chosen: Mapping[str, Arithmetic],
    repeats: int,
    side: int,
) -> Iterator[Row]:
    """Yield the rows of the networks, the operators, loading and memory.

    Args:
        config: a model's YAML.
        state: its weights.
        device: where to measure.
        chosen: the modes, by name.
        repeats: rounds over all modes of a part; the medians count.
        side: of the images, in pixels.
    """
    clock = partial(seconds, device=device)
    yield from network_rows(config, state, device, chosen, repeats, side, clock)
    yield from pixel_rows(config, state, device, repeats, side, clock)
    yield from loading_rows(config, state, repeats, device, clock)
    yield from memory_rows(config, device, chosen, side)


def network_rows(
    config: Mapping[str, Any],
    state: Mapping[str, Tensor],
    device: torch.device,
    chosen: Mapping[str, Arithmetic],
    repeats: int,
    side: int,
    clock: Callable[[Callable[[], Any]], float],
) -> Iterator[Row]:
    """Yield a row for each part that runs a network, in each mode."""
    parts = {
        name: _with_allocator(
            arithmetic,
            modes.network_parts(
                modes.make_subject(modes.build_model(config, state, device), arithmetic, MEASURED_OPERATOR, side)
            ),
        )
        for name, arithmetic in {modes.PLAIN: None, **chosen}.items()
    }
    limits = {dtype: attainable_flops(device, dtype) for dtype in {*map(modes.dtype_of, chosen.values())}}
    attainable = {name: limits[modes.dtype_of(arithmetic)] for name, arithmetic in chosen.items()}
    for part in parts[modes.PLAIN]:
        medians = interleaved_medians({name: runs[part] for name, runs in parts.items()}, repeats, clock)
        # Compiled code hides its operations: they are those of the same arithmetic without.
        flop = {name: count_flop(parts[name.partition(", compiled")[0]][part]) for name in chosen}
        yield from rows_of(part, medians, modes.PLAIN, "s", flop, attainable)


def pixel_rows(
    config: Mapping[str, Any],
    state: Mapping[str, Tensor],
    device: torch.device,
    repeats: int,
    side: int,
    clock: Callable[[Callable[[], Any]], float],
) -> Iterator[Row]:
    """Yield a row for one pixel iteration of each operator."""
    keep_freed_memory()
    model = modes.build_model(config, state, device)
    for operator in modes.OPERATORS:
        ours = modes.pixel_iterations(modes.make_subject(model, Arithmetic(), operator, side))
        plain = modes.pixel_iterations(modes.make_subject(model, None, operator, side))
        medians = interleaved_medians({modes.PLAIN: plain, "fp32": ours}, repeats, clock)
        each = {mode: value / modes.PIXEL_ITERATIONS for mode, value in medians.items()}
        yield from rows_of(f"pixel iteration, {operator}", each, modes.PLAIN)


def loading_rows(
    config: Mapping[str, Any],
    state: Mapping[str, Tensor],
    repeats: int,
    device: torch.device,
    clock: Callable[[Callable[[], Any]], float],
) -> Iterator[Row]:
    """Yield how long it takes to load a checkpoint, and to read its file."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.ckpt"
        torch.save({"state_dict": dict(state)}, path)

        def plain() -> None:
            model = instantiate_from_config(config["model"])
            model.load_state_dict(torch.load(path, map_location="cpu", weights_only=True)["state_dict"])
            model.to(device)

        runs = {
            modes.PLAIN: plain,
            "load": lambda: load_model_from_config(config, path, device),
            "read": path.read_bytes,
        }
        medians = interleaved_medians(runs, repeats, clock)
    yield Row("checkpoint load", "", "s", medians["load"], medians[modes.PLAIN])
    yield Row("reading the checkpoint's bytes", "", "s", medians["read"])


def memory_rows(
    config: Mapping[str, Any], device: torch.device, chosen: Mapping[str, Arithmetic], side: int
) -> Iterator[Row]:
    """Yield the peak memory of each mode, each in a process of its own."""
    peaks = {}
    for name, arithmetic in {modes.PLAIN: None, **chosen}.items():
        with multiprocessing.get_context("spawn").Pool(1) as pool:
            peaks[name] = pool.apply(_peak, (config, device, arithmetic, side, torch.get_num_threads()))
    yield from rows_of("peak memory", peaks, modes.PLAIN, "MB")


def _with_allocator(
    arithmetic: Arithmetic | None, runs: Mapping[str, Callable[[], Any]]
) -> dict[str, Callable[[], Any]]:
    """Return the runs, each after the allocator was told what `get_model` tells it in this mode (None: nothing)."""
    if arithmetic is None:
        tell = allocate_as_by_default
    else:
        tell = map_large_blocks if arithmetic.low_memory else keep_freed_memory

    def told(run: Callable[[], Any]) -> Callable[[], Any]:
        return lambda: (tell(), run())[1]

    return {part: told(run) for part, run in runs.items()}


def _peak(
    config: Mapping[str, Any], device: torch.device, arithmetic: Arithmetic | None, side: int, threads: int
) -> float:
    """Megabytes that this process (on a card: the card) has held at most, after one of each of the networks' parts."""
    torch.set_num_threads(threads)
    if arithmetic is not None:
        map_large_blocks()  # as `get_model` does while it loads
    model = modes.build_model(config, modes.build_state(config), device)
    runs = modes.network_parts(modes.make_subject(model, arithmetic, MEASURED_OPERATOR, side))
    for run in _with_allocator(arithmetic, runs).values():
        run()
    held = torch.cuda.max_memory_allocated(device) if device.type == "cuda" else peak_memory()
    return held / 1e6
