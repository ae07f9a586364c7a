"""How near a picture is to the truth: PSNR and SSIM always, LPIPS and FID by packages and weights that may be there."""

import contextlib
import importlib.util
import tempfile
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from ldm.checkpoints.reading import read_checkpoint
from ldm.training.pictures import to_model_range
from util.errors import UserError
from util.metrics import psnr, ssim

# The files of torchvision's backbones and of the Inception network, as torch.hub names them.
FILES = {
    "alex": "alexnet-owt-7be5be79.pth",
    "vgg": "vgg16-397923af.pth",
    "fid": "weights-inception-2015-12-05-6726825d.pth",
}
SSIM_WINDOW = 7  # of `util.metrics.ssim`
FEW = 2048  # the Inception features' dimension: of fewer pictures their covariance is singular

Distance = Callable[[Tensor, Tensor], Tensor]


class Networks(NamedTuple):
    """The perceptual distances that can be measured, by the column's name, and where they are computed."""

    distances: Mapping[str, Distance]
    device: torch.device


def quality(truth: np.ndarray, image: np.ndarray, networks: Networks) -> dict[str, float]:
    """Return PSNR in decibels, SSIM and the perceptual distances of two 8-bit pictures (H, W, 3), or
    (H, W, 1) where they are grey, by column.

    Raises:
        UserError: their sizes differ, or they are too small for SSIM or a network.
    """
    if truth.shape != image.shape:
        sizes = " and ".join(f"{picture.shape[1]}x{picture.shape[0]}" for picture in (image, truth))
        raise UserError(f"picture and truth have different sizes: {sizes}")
    if min(truth.shape[:2]) < SSIM_WINDOW:
        raise UserError(
            f"SSIM needs {SSIM_WINDOW}x{SSIM_WINDOW} pixels or more, and it has {truth.shape[1]}x{truth.shape[0]}"
        )
    # The networks are of colour.
    pair = [to_model_range(picture[None]).expand(1, 3, -1, -1).to(networks.device) for picture in (truth, image)]
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
    """Return the LPIPS networks (Zhang et al., 2018; version 0.1), and in a line which cannot be had and why.

    Nothing is downloaded: the linear layers come with the package, the backbone from a file.

    Args:
        wanted: "alex" or "vgg"; None is those that can be had.
        folder: with the backbones' files; None is torch.hub's.
        device: where to compute.

    Raises:
        UserError: a network that was asked for by name cannot be had, or a file is none of its backbone.
    """
    nets = wanted or ("alex", "vgg")
    if importlib.util.find_spec("lpips") is None:
        found, why = {}, "the package is missing (pip install lpips)"
    else:
        found = {net: path for net in nets if (path := find_weights(net, folder)) is not None}
        why = missing_weights([net for net in nets if net not in found], folder)
    lacking = [f"lpips_{net}" for net in nets if net not in found]
    line = f"no {', '.join(lacking)}: {why}"
    if wanted and lacking:
        raise UserError(line)
    distances = {f"lpips_{net}": _lpips(net, path).to(device) for net, path in found.items()}
    return Networks(distances, device), [line] if lacking else []


def _folder(folder: Path | None) -> Path:
    return Path(torch.hub.get_dir()) / "checkpoints" if folder is None else folder


def find_weights(network: str, folder: Path | None = None) -> Path | None:
    """Return the file in a folder (None: torch.hub's) that holds a network of `FILES`, or None where there is none."""
    # What stands before the digest, and before the training's name that torchvision's has.
    stem = FILES[network].rpartition("-")[0].removesuffix("-owt")
    found = [path for path in _folder(folder).glob(f"{stem}[-.]*") if path.suffix in (".pth", ".pt", ".safetensors")]
    return min(found, default=None)


def missing_weights(networks: Iterable[str], folder: Path | None = None) -> str:
    """Return in words that the files of these networks are not in a folder."""
    names = ", ".join(FILES[network] for network in networks)
    return f"no {names} in {_folder(folder)} (--weights names the folder; nothing is downloaded)"


def _lpips(net: str, path: Path) -> torch.nn.Module:
    """Return an LPIPS network whose backbone is in a file of torchvision's."""
    import lpips

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
