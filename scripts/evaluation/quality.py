"""How near a picture is to the truth: PSNR and SSIM always, LPIPS and FID by packages and weights that may be there."""

import contextlib
import tempfile
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from ldm.training.pictures import to_model_range
from util.checkpoint import read_checkpoint
from util.errors import UserError
from util.metrics import psnr, ssim

# The files of torchvision's backbones and of the Inception network, as torch.hub names them.
FILES = {
    "alex": "alexnet-owt-7be5be79.pth",
    "vgg": "vgg16-397923af.pth",
    "fid": "weights-inception-2015-12-05-6726825d.pth",
}
PACKAGES = {"alex": "lpips", "vgg": "lpips", "fid": "torch-fidelity"}
FEW = 2048  # the Inception features' dimension: of fewer pictures their covariance is singular

Distance = Callable[[Tensor, Tensor], Tensor]


class Networks(NamedTuple):
    """The perceptual distances that can be measured, by the column's name, and where they are computed."""

    distances: Mapping[str, Distance]
    device: torch.device


def quality(truth: np.ndarray, image: np.ndarray, networks: Networks) -> dict[str, float]:
    """Return PSNR in decibels, SSIM and the perceptual distances of two 8-bit pictures (H, W, 3), by column.

    Raises:
        UserError: their sizes differ, or they are too small for a network.
    """
    if truth.shape != image.shape:
        sizes = " and ".join(f"{picture.shape[1]}x{picture.shape[0]}" for picture in (image, truth))
        raise UserError(f"picture and truth have different sizes: {sizes}")
    pair = [to_model_range(picture[None]).to(networks.device) for picture in (truth, image)]
    values = {"psnr": psnr(truth / 255, image / 255), "ssim": ssim(truth / 255, image / 255)}
    for name, distance in networks.distances.items():
        try:
            with torch.no_grad():
                values[name] = float(distance(*pair))
        except RuntimeError as error:
            raise UserError(
                f"{name} cannot be measured on {truth.shape[1]}x{truth.shape[0]} pixels: {error}"
            ) from error
    return values


def lpips_networks(
    wanted: Sequence[str] | None, folder: Path | None, device: torch.device
) -> tuple[Networks, list[str]]:
    """Return the LPIPS networks (Zhang et al., 2018; version 0.1) and a line for each that cannot be had.

    Nothing is downloaded: the linear layers come with the package, the backbone from a file.

    Args:
        wanted: "alex" or "vgg"; None is those that can be had.
        folder: with the backbones' files; None is torch.hub's.
        device: where to compute.

    Raises:
        UserError: a network that was asked for by name cannot be had, or a file is none of its backbone.
    """
    distances, missing = {}, []
    for net in ("alex", "vgg") if wanted is None else wanted:
        try:
            distances[f"lpips_{net}"] = _lpips(net, find_weights(net, folder)).to(device)
        except _UnavailableError as error:
            if wanted is not None:
                raise
            missing.append(f"no lpips_{net}: {error}")
    return Networks(distances, device), missing


class _UnavailableError(UserError):
    """A package or a file is not there, which matters only to those who asked for it."""


def find_weights(network: str, folder: Path | None = None) -> Path:
    """Return the file in a folder (None: torch.hub's) that holds a network of `FILES`.

    Raises:
        UserError: there is none.
    """
    chosen = Path(torch.hub.get_dir()) / "checkpoints" if folder is None else folder
    stem = FILES[network].rpartition("-")[0] if network == "fid" else FILES[network].partition("-")[0]
    found = [p for p in sorted(chosen.glob(f"{stem}[-.]*")) if p.suffix in (".pth", ".pt", ".safetensors")]
    if not found:
        raise _UnavailableError(f"no {FILES[network]} in {chosen} (--weights names the folder; nothing is downloaded)")
    return found[0]


def _lpips(net: str, path: Path) -> torch.nn.Module:
    """Return an LPIPS network whose backbone is in a file of torchvision's."""
    try:
        import lpips
    except ImportError:
        raise _UnavailableError("the package is missing (pip install lpips)") from None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it builds the backbone by keywords that torchvision has renamed
        model = lpips.LPIPS(net=net, pnet_rand=True, verbose=False)
    stored = read_checkpoint(path)
    # Slices of the backbone keep the numbers of its layers: `slice2.3.weight` is torchvision's `features.3.weight`.
    names = {name: f"features.{name.partition('.')[2]}" for name in model.net.state_dict()}
    try:
        model.net.load_state_dict({name: stored[there].read() for name, there in names.items()})
    except (KeyError, RuntimeError) as error:
        raise UserError(f"{path} is not the backbone {net} of torchvision: {error}".replace("\n", " ")[:300]) from error
    return model.eval().requires_grad_(False)


class _Pictures(torch.utils.data.Dataset):
    """Pictures (3, H, W) as bytes, from what gives them as (H, W, 3)."""

    def __init__(self, readers: Sequence[Callable[[], np.ndarray]]) -> None:
        self._readers = readers

    def __len__(self) -> int:
        return len(self._readers)

    def __getitem__(self, index: int) -> Tensor:
        return torch.from_numpy(self._readers[index]().copy()).permute(2, 0, 1)


def fid(
    truths: Iterable[Callable[[], np.ndarray]],
    images: Iterable[Callable[[], np.ndarray]],
    weights: Path,
    device: torch.device,
) -> float:
    """Return the Frechet Inception distance (Heusel et al., 2017) of two sets of 8-bit pictures, by torch-fidelity.

    Args:
        truths, images: functions that read a picture (H, W, 3) each.
        weights: the Inception network's file.
        device: where to compute.

    Raises:
        UserError: the package is missing, or the file is none of that network.
    """
    try:
        from torch_fidelity import calculate_metrics
    except ImportError:
        raise UserError("--fid: the package is missing (pip install torch-fidelity)") from None
    state = {name: tensor.read().clone() for name, tensor in read_checkpoint(weights).items()}
    # The package unpickles whatever it is given: so it is given a file of tensors alone.
    with tempfile.NamedTemporaryFile(suffix=".pth") as clean, contextlib.redirect_stdout(None):
        torch.save(state, clean.name)
        try:
            found = calculate_metrics(
                input1=_Pictures(list(images)),
                input2=_Pictures(list(truths)),
                fid=True,
                cuda=device.type == "cuda",
                verbose=False,
                batch_size=16,
                save_cpu_ram=True,
                feature_extractor_weights_path=clean.name,
            )
        except (RuntimeError, ValueError) as error:
            raise UserError(f"--fid: not measured with {weights}: {error}".replace("\n", " ")[:300]) from error
    return float(found["frechet_inception_distance"])
