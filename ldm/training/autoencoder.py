"""The loss of a vector-quantised first stage."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ldm.models.autoencoder import VQModelInterface
from ldm.training.pictures import Crop, cut, random_crops, resident, to_model_range
from ldm.training.settings import Stage
from util.errors import UserError
from util.metrics import psnr, to_uint8

REVIVE_EVERY = 100


def crop_side(stage: Stage) -> int:
    """The side of a stage's crops.

    Raises:
        UserError: the stage has none.
    """
    if stage.crop is None:
        raise UserError("a stage of an autoencoder's training needs crop")
    return stage.crop


class DecoderLoss:
    """Mean squared error of what the decoder makes of fixed codes; encoder and codebook stay as they are.

    The error is ``mean (D(c) - x)^2 + consistency mean (E(D(c)) - c)^2``: a picture should have the code that it was
    made of, so that nothing is lost between a latent of the prior and its picture.

    Args:
        pictures: uint8 (N, H, W, 3).
        latents: of the pictures and of their mirror images, (2N, C, h, w), before quantisation.
        quantised_share: of the pictures in a batch; the others are decoded from the latent itself, so that a
            restoration may leave the codebook out (`latent.quantise: false`).
        consistency: weight of the second term.
    """

    def __init__(
        self,
        model: VQModelInterface,
        pictures: np.ndarray,
        latents: np.ndarray,
        quantised_share: float,
        consistency: float = 0.0,
    ):
        self.device = next(model.parameters()).device
        self.model, self.pictures, self.latents = model, resident(pictures, self.device), resident(latents, self.device)
        self.quantised_share, self.consistency = quantised_share, consistency

    def __call__(self, stage: Stage, rng: np.random.RandomState) -> Tensor:
        side = crop_side(stage)
        crops = random_crops(self.pictures, stage.batch_size, side, rng, self.model.downsampling)
        codes = torch.stack([self._codes(crop, side) for crop in crops]).to(self.device)
        with torch.no_grad():
            count = round(self.quantised_share * len(codes))
            codes = torch.cat([self.model.quantize(codes[:count])[0], codes[count:]])
            codes = codes.contiguous(memory_format=torch.channels_last)
        decoded = self.model.decode(codes, force_not_quantize=True).float()
        loss = F.mse_loss(decoded, cut(self.pictures, crops, side).to(self.device))
        if self.consistency:
            loss = loss + self.consistency * F.mse_loss(self.model.encode(decoded).float(), codes)
        return loss

    def _codes(self, crop: Crop, side: int) -> Tensor:
        factor, row = self.model.downsampling, crop.picture + crop.mirrored * len(self.pictures)
        top, left = crop.top // factor, crop.left // factor
        return self.latents[row, :, top : top + side // factor, left : left + side // factor].float()


class AutoencoderLoss:
    """Mean squared error of the round trip, plus the codebook and commitment losses.

    Entries that no latent chose in the last `REVIVE_EVERY` steps are moved onto latents of the current batch, so that
    the codebook stays in use.
    """

    def __init__(self, model: VQModelInterface, pictures: np.ndarray):
        self.device = next(model.parameters()).device
        self.model, self.pictures = model, resident(pictures, self.device)
        self.uses = torch.zeros(model.quantize.n_e, device=self.device)
        self.steps = 0

    def __call__(self, stage: Stage, rng: np.random.RandomState) -> Tensor:
        crops = random_crops(self.pictures, stage.batch_size, crop_side(stage), rng)
        images = cut(self.pictures, crops, crop_side(stage)).to(self.device)
        latents = self.model.encode(images)
        quantised, codebook_loss, (_, _, indices) = self.model.quantize(latents)
        self._keep_alive(latents.detach(), indices, rng)
        decoded = self.model.decode(quantised, force_not_quantize=True).float()
        return F.mse_loss(decoded, images) + codebook_loss

    def state_dict(self) -> dict[str, Any]:
        """Return the state that `load_state_dict` takes: what has been counted."""
        return {"uses": self.uses, "steps": self.steps}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a state."""
        self.uses, self.steps = state["uses"].to(self.device), int(state["steps"])

    @torch.no_grad()
    def _keep_alive(self, latents: Tensor, indices: Tensor, rng: np.random.RandomState) -> None:
        self.uses += torch.bincount(indices, minlength=len(self.uses))
        self.steps += 1
        if self.steps % REVIVE_EVERY:
            return
        flat = latents.permute(0, 2, 3, 1).reshape(-1, latents.shape[1]).float()
        unused = (self.uses == 0).nonzero().flatten()[: len(flat)]
        chosen = torch.from_numpy(rng.permutation(len(flat))[: len(unused)]).to(self.device)
        self.model.quantize.embedding.weight[unused] = flat[chosen]
        self.uses.zero_()


@torch.no_grad()
def round_trip_psnr(model: VQModelInterface, pictures: np.ndarray, quantise: bool = True) -> tuple[float, Tensor]:
    """Mean PSNR in dB of encoding and decoding uint8 pictures (N, H, W, 3), and the decoded images in [-1, 1].

    Errors are measured on [0, 1] after clipping and rounding to 8 bits, as a written picture would be.
    """
    device = next(model.parameters()).device
    ratios, decoded = [], []
    for picture in pictures:
        image = to_model_range(picture[None]).to(device)
        decoded.append(model.decode(model.encode(image), force_not_quantize=not quantise).float().clamp(-1, 1).cpu())
        ratios.append(psnr(picture / 255, to_uint8(decoded[-1]) / 255))
    return float(np.mean(ratios)), torch.cat(decoded)
