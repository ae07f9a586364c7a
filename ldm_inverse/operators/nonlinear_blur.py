"""The learned nonlinear blur, whose weights are a download."""

from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import torch
import yaml
from torch import Tensor

from ldm_inverse.operators.base import OPERATORS, Operator, needed
from ldm_inverse.operators.kernel_wizard import KernelWizard
from util.errors import UserError

PUBLISHED_OPTIONS = "./bkse/options/generate_blur/default.yml"
SHIPPED_OPTIONS = Path(__file__).resolve().parents[2] / "configs" / "bkse.yaml"
STRIDE = 128  # image pixels for each pixel of a code
CODE_DEVIATION = 1.2


@OPERATORS.register("nonlinear_blur")
class NonlinearBlur(Operator):
    """The blur network of `KernelWizard` in [-1, 1]: A(x) = clamp(2 net((x + 1) / 2, code) - 1, -1, 1).

    The sides of the images are multiples of 128. State: ``code`` (B, kernel_dim, H / 128, W / 128), float32.

    Args:
        opt_yml_path: the network's options, with the path of its weights under ``pretrained``. The published path
            stands for `configs/bkse.yaml`.
        random_code: draw a code for each image. By default every image gets the published one.

    Raises:
        UserError: the options or the weights are not there, or cannot be used.
    """

    state_names = ("code",)
    colour_only = True

    def __init__(self, opt_yml_path: str = PUBLISHED_OPTIONS, random_code: bool = False) -> None:
        super().__init__()
        self.random_code = random_code
        options = _read_options(opt_yml_path)
        self._files = [_options_file(opt_yml_path), Path(options["pretrained"])]
        self.network = _load_network(options)

    def input_files(self) -> Sequence[Path]:
        return self._files

    def check_size(self, height: int, width: int) -> None:
        if height % STRIDE or width % STRIDE:
            raise UserError(f"nonlinear_blur needs sides that are multiples of {STRIDE}, got {height} x {width}")

    def draw(self, shape: Sequence[int], rng: np.random.RandomState) -> dict[str, Tensor]:
        height, width = shape[-2:]
        self.check_size(height, width)
        size = (1, self.network.kernel_dim, height // STRIDE, width // STRIDE)
        # The published code comes from a stream of its own, seeded with 0 for each image.
        codes = [(rng if self.random_code else np.random.RandomState(0)).randn(*size) for _ in range(shape[0])]
        return {"code": torch.from_numpy(np.concatenate(codes) * CODE_DEVIATION).float()}

    def forward(self, x: Tensor, **state: Tensor) -> Tensor:
        self.check_size(*x.shape[-2:])
        code = needed(state, "code").to(x).expand(x.shape[0], -1, -1, -1)
        return (2 * self.network.adaptKernel((x + 1) / 2, kernel=code) - 1).clamp(-1, 1)


def _options_file(path: str) -> Path:
    is_published = PurePosixPath(str(path)) == PurePosixPath(PUBLISHED_OPTIONS)
    return SHIPPED_OPTIONS if is_published else Path(str(path))


def _read_options(path: str) -> Mapping[str, Any]:
    """Read the network's options from YAML: the mapping `KernelWizard`."""
    try:
        options = yaml.safe_load(_options_file(path).read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise UserError(f"opt_yml_path {path}: cannot be read as YAML: {str(error).splitlines()[0]}") from error
    if not isinstance(options, Mapping) or not isinstance(options.get("KernelWizard"), Mapping):
        raise UserError(f"opt_yml_path {path}: expected a mapping with the entry KernelWizard")
    options = options["KernelWizard"]
    if not isinstance(options.get("pretrained"), str):
        raise UserError(f"opt_yml_path {path}: KernelWizard.pretrained: expected the path of the weights")
    return options


def _load_network(options: Mapping[str, Any]) -> KernelWizard:
    with torch.device("meta"):  # no initial weights: they would be drawn from torch's default stream
        network = KernelWizard(options)
    path = Path(options["pretrained"])
    if not path.is_file():
        raise UserError(
            f"nonlinear_blur needs the weights GOPRO_wVAE.pth of VinAIResearch/blur-kernel-space-exploring (GitHub): "
            f"put them at {path}\nor use the built-in operator camera_blur, which needs none"
        )
    try:
        network.load_state_dict(torch.load(path, map_location="cpu", weights_only=True), assign=True)
    except Exception as error:  # whatever is wrong with a file from outside, it is the file
        reason = " ".join(str(error).split())[:200]
        raise UserError(f"{path} does not hold the blur network's weights: {reason}") from error
    return network.float()
