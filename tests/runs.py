"""Words for the command on the tiny model of the fixture `place`, and what reads and compares the folders of runs."""

import csv
import io
import json
import multiprocessing
import os
import re
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from sample_condition import main

# Every stage runs, each for a moment.
QUICK = [
    "conditioning.resample.interval=1",
    "conditioning.resample.pixel.max_iters=2",
    "conditioning.resample.latent.max_iters=2",
]


def words(place, out, *extra, steps=6):
    """The command's words for the tiny model; `steps` None leaves their number to the rest."""
    return [
        *("--ldm_config", str(place / "tiny.yaml"), "--diffusion_config", str(place / "tiny.safetensors")),
        *("--task_config", str(place / "task.yaml"), "--device", "cpu", "--save_dir", str(out)),
        *(["--ddim_steps", str(steps)] if steps else []),
        *(QUICK + list(extra)),
    ]


def names(folder):
    return sorted(path.stem for path in folder.glob("*.png"))


def pixels(path):
    return np.asarray(Image.open(path))


def table(text):
    return list(csv.DictReader(text.splitlines()))


def rows(path):
    return table(path.read_text())


def snapshot(folder: Path) -> dict[str, object]:
    """Return every file's bytes by its path (None for a folder), without the times that things took and the logs."""
    found = {path.relative_to(folder).as_posix(): path for path in folder.rglob("*")}
    return {
        name: None if path.is_dir() else _without_seconds(name, path.read_bytes())
        for name, path in found.items()
        if name.partition("/")[0] != "log"
    }


def _without_seconds(path: str, content: bytes) -> Any:
    if path.endswith(".csv"):
        rows = list(csv.reader(io.StringIO(content.decode())))
        kept = [place for place, column in enumerate(rows[0]) if column != "seconds"]
        return [[row[place] for place in kept] for row in rows]
    if path == "report.html":
        found = shown(content)
        del found["title"]  # the folder's name
        for row in found["rows"]:
            del row["values"]["seconds"]
        return found
    if path.startswith("results/"):
        return {key: value for key, value in json.loads(content).items() if key != "seconds"}
    return content


def shown(page: bytes) -> dict[str, Any]:
    """Return what the script of a `report.html` is given to show."""
    found = re.search(rb'<script type="application/json" id="run">(.*?)</script>', page)
    assert found
    return json.loads(found[1])


def start(words: list[str]) -> ForkServerProcess:
    """Run the command in a process of its own, forked from one that has imported all and holds no threads."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tests.runs", "skimage.metrics", "scipy.interpolate", "scipy.spatial"])
    process = context.Process(target=_main, args=(words,))
    process.start()
    return process


def _main(words: list[str]) -> None:
    torch.set_num_threads(1)
    os._exit(main(words))
