"""How time and memory grow with an image's side and with the number of images at a time."""

import multiprocessing
import statistics
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch

from ldm.acceleration.arithmetic import Arithmetic
from ldm.acceleration.memory import keep_freed_memory, map_large_blocks, peak_memory
from scripts.benchmarks import modes
from scripts.benchmarks.measure import seconds
from scripts.text_tables import markdown_table

MEASURED = ("UNet forward", "latent iteration")


def size_table(
    config: Mapping[str, Any],
    state: Mapping[str, torch.Tensor],
    device: torch.device,
    sides: Iterable[int],
    batches: Sequence[int],
    repeats: int,
) -> list[dict[str, float]]:
    """Return a row for each side and batch, in float32: median seconds of `MEASURED`, and "MB" of peak memory.

    Each is measured in a process of its own. "UNet per pixel" and "latent per pixel" are the time per pixel and image,
    relative to the first row's: 1 where the cost is linear.

    Args:
        config: a model's YAML.
        state: its weights.
        device: where to measure.
        sides: of the images, in pixels.
        batches: images at a time.
        repeats: how often; the medians count.
    """
    table: list[dict[str, float]] = []
    for side in sides:
        for batch in batches:
            with multiprocessing.get_context("spawn").Pool(1) as pool:
                arguments = (config, state, device, side, batch, repeats, torch.get_num_threads())
                row = {"side": side, "batch": batch, **pool.apply(_measure, arguments)}
            first = table[0] if table else row
            for part in MEASURED:
                pixels = row["side"] ** 2 * row["batch"] / (first["side"] ** 2 * first["batch"])
                row[f"{part.split()[0]} per pixel"] = row[part] / first[part] / pixels
            table.append(row)
    return table


def _measure(
    config: Mapping[str, Any],
    state: Mapping[str, torch.Tensor],
    device: torch.device,
    side: int,
    batch: int,
    repeats: int,
    threads: int,
) -> dict[str, float]:
    torch.set_num_threads(threads)
    map_large_blocks()
    model = modes.build_model(config, state, device)
    subject = modes.make_subject(model, Arithmetic(), "gaussian_blur", side, batch)
    keep_freed_memory()
    runs = modes.network_parts(subject)
    row = {}
    for part in MEASURED:
        times = [seconds(runs[part], device) for _ in range(repeats + 1)]
        row[part] = statistics.median(times[1:])
    held = torch.cuda.max_memory_allocated(device) if device.type == "cuda" else peak_memory()
    return {**row, "MB": held / 1e6}


def size_markdown(table: Iterable[Mapping[str, float]]) -> str:
    """Return the table of `size_table` in Markdown."""
    head = ["pixels", "images", "UNet forward", "per pixel", "latent iteration", "per pixel", "peak memory"]
    body = [
        [
            f"{row['side']:.0f}x{row['side']:.0f}",
            f"{row['batch']:.0f}",
            f"{row['UNet forward']:.3g} s",
            f"{row['UNet per pixel']:.2f}",
            f"{row['latent iteration']:.3g} s",
            f"{row['latent per pixel']:.2f}",
            f"{row['MB']:.0f} MB",
        ]
        for row in table
    ]
    return markdown_table(head, body)
