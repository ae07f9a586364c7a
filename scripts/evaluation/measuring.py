"""From folders to an `Evaluation`: runs, or a folder of pictures, are measured and compared."""

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import numpy as np
import torch

from data.picture_array import load_pictures
from ldm_inverse.measurement import Measurement
from ldm_inverse.runs.results import FAR, is_far
from model_loader import get_model, resolve_device
from scripts.evaluation.differences import Difference, compare
from scripts.evaluation.entries import Entry, Known, entries_of, entry_of_folders
from scripts.evaluation.finished import FinishedRun
from scripts.evaluation.frechet import FeatureDistance
from scripts.evaluation.quality import FEW, Networks, fid, find_weights, lpips_networks, missing_weights
from scripts.evaluation.tables import COMPARED, FILES, Evaluation
from util.errors import UserError
from util.files import write_whole
from util.metrics import describe


@dataclass(frozen=True)
class Request:
    """An evaluation: the runs or folders to measure, and how.

    Attributes:
        runs: folders of runs; or none, with the two that follow.
        recon, reference: folders of pictures and of their truths, of the same names.
        by_task: compare runs of one task only with each other.
        lpips: backbones ("alex", "vgg"); None is those that are there.
        weights: a folder with the networks' files; None is torch.hub's.
        fid: measure the Fréchet Inception distance as well.
        frechet: folders or zip files of pictures from which to measure the distance; empty for none.
        model: whose features that distance takes.
        plugin: files of a person's own code that may be run.
        device: "auto", "cpu", "cuda" or "mps".
    """

    runs: Sequence[Path] = ()
    recon: Path | None = None
    reference: Path | None = None
    by_task: bool = False
    lpips: Sequence[str] | None = None
    weights: Path | None = None
    fid: bool = False
    frechet: Sequence[Path] | None = None
    model: Path | None = None
    plugin: Sequence[str] = ()
    device: str = "auto"


def measure(request: Request, known: Mapping[Path, Known] | None = None) -> Evaluation:
    """Measure what is asked for.

    Args:
        request: the runs or folders.
        known: by folder, what a program knows of runs that it has made (None: they are called by their folders). Of
            these, those without a common measurement are not compared; of others that is refused.

    Raises:
        UserError: it cannot be read, or not be compared.
    """
    device = resolve_device(request.device)
    inception = find_weights("fid", request.weights) if request.fid else None
    if request.fid and inception is None:
        raise UserError(f"--fid: {missing_weights(['fid'], request.weights)}")
    networks, lacking = lpips_networks(request.lpips, request.weights, device)
    notes = [describe(), *_lpips_notes(networks), *lacking]
    differences: list[Difference] = []
    if request.recon is not None and request.reference is not None:
        entry, alone = entry_of_folders(request.recon, request.reference, networks)
        entries = [entry]
        notes += [f"{alone} pictures have no partner in the other folder and were left out"] if alone else []
    else:
        names = {folder: run.restorations for folder, run in (known or {}).items()}
        runs = [FinishedRun(folder, request.plugin, names.get(folder)) for folder in request.runs]
        entries = entries_of(runs, networks, known)
        keys = [column.key for column in COMPARED]
        differences, uncompared = compare(entries, keys, request.by_task, strict=known is None)
        notes += uncompared
        for entry in filter(lambda entry: entry.folders, entries):
            notes += [*_run_notes(entry), *_truth_notes(entry), *_noise_notes(entry)]
    if inception is not None:
        notes += _add_fid(entries, inception, device)
    if request.frechet and request.model is not None:
        notes += _add_frechet(entries, request.frechet, request.model, device)
    return Evaluation(notes, entries, differences)


def _run_notes(entry: Entry) -> list[str]:
    """Return a line where some of a run's restorations have failed, and one where it has others no longer."""
    notes = [f"{entry.title}: {entry.failed} restorations could not be made"] if entry.failed else []
    if entry.former:
        notes.append(f"{entry.title}: {entry.former} restorations of images that the run no longer has were left out")
    return notes


def _truth_notes(entry: Entry) -> list[str]:
    """Return a line where some of a run's images have a truth and others have none."""
    images = entry.measurements()
    lacking = [image for image in images if image not in entry.images("psnr")]
    if not 0 < len(lacking) < len(images):
        return []
    more = ", ..." if len(lacking) > 3 else ""
    return [f"{entry.title}: {len(lacking)} of {len(images)} images have no truth: {', '.join(lacking[:3])}{more}"]


def _noise_notes(entry: Entry) -> list[str]:
    """Return a line where restorations of a run do not explain their measurements, or explain the noise as well."""
    far = [found.name for found in entry.observations if is_far(found.values)]
    if not far:
        return []
    more = ", ..." if len(far) > 3 else ""
    return [
        f"{entry.title}: {len(far)} of {len(entry.observations)} restorations have residuals far from the noise "
        f"(above {FAR:g} times it, or below a third): {', '.join(far[:3])}{more}"
    ]


def _lpips_notes(networks: Networks) -> list[str]:
    if not networks.distances:
        return []
    return [f"{', '.join(networks.distances)} by lpips {version('lpips')}, linear layers version 0.1"]


def _add_fid(entries: Sequence[Entry], weights: Path, device: torch.device) -> list[str]:
    """Measure the FID of each entry that has truths; returns what a reader should know of it."""
    counts = []
    for entry in entries:
        pictures = [found.pictures for found in entry.observations if found.pictures is not None]
        if len(pictures) > 1:
            truths, images = zip(*pictures, strict=True)
            entry.of_all["fid"] = fid(truths, images, weights, device)
            counts.append(len(pictures))
    notes = [f"FID by torch-fidelity {version('torch-fidelity')}"]
    if counts and min(counts) < FEW:
        notes.append(f"FID of {min(counts)} pictures is far too high: compare it only with that of as many others")
    return notes


def _add_frechet(entries: Sequence[Entry], pictures: Sequence[Path], model: Path, device: torch.device) -> list[str]:
    """Measure the Fréchet distance of the restorations in each entry; returns what a reader should know of it.

    Raises:
        UserError: see `load_pictures` and `FeatureDistance`.
    """
    network = get_model(None, model, str(device))
    notes = []
    with tempfile.TemporaryDirectory() as folder:
        distance = FeatureDistance(network, load_pictures(pictures, network.resolution, Path(folder) / "reference.u8"))
        for entry in entries:
            seen = [
                (found.pictures, found.measured())
                for found in entry.observations
                if found.pictures is not None and found.measured is not None
            ]
            if len(seen) > 1:
                truths, restored = (np.stack([pair[which]() for pair, _ in seen]) for which in (0, 1))
                dropped = np.stack([_dropped(measured, truths.shape[1:3]) for _, measured in seen])
                entry.of_all["frechet"] = distance(restored, dropped)
                notes.append(
                    f"{entry.title}: Fréchet distance of {len(seen)} restorations from {len(distance.reference)} "
                    f"pictures; that of their truths is {distance(truths, dropped):.2f}"
                )
    return notes


def _dropped(measurement: Measurement, size: tuple[int, ...]) -> np.ndarray:
    """Return which pixels (H, W) a mask dropped; all of them where there was no mask."""
    mask = measurement.state.get("mask")
    return np.ones(size, bool) if mask is None else (mask[0, 0] == 0).numpy()


def write(evaluation: Evaluation, folder: Path) -> None:
    """Write the tables into a folder."""
    for name, content in FILES.items():
        write_whole(folder / name, content(evaluation))
