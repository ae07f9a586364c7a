"""Vector quantisation with a straight-through gradient (van den Oord et al., 2017)."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

# Rows compared with the whole codebook at a time.
ROWS_AT_ONCE = 256


class VectorQuantizer(nn.Module):
    """Replace each position of a latent (B, e_dim, H, W) by its nearest codebook entry in Euclidean distance.

    Args:
        n_e: number of entries.
        e_dim: channels of an entry.
        beta: weight of the commitment term in the training loss.
    """

    def __init__(self, n_e: int, e_dim: int, beta: float = 0.25):
        super().__init__()
        self.n_e, self.e_dim, self.beta = n_e, e_dim, beta
        self.embedding = nn.Embedding(n_e, e_dim)
        nn.init.uniform_(self.embedding.weight, -1 / n_e, 1 / n_e)

    def nearest(self, flat: Tensor) -> Tensor:
        """Index (N,) of the entry nearest to each row of ``flat`` (N, e_dim).

        ``|z - e|^2`` without its ``|z|^2``, which is the same for every entry.
        """
        weight = self.embedding.weight
        # The bias is an extra column, and the rows go in chunks, so that the table of distances stays in the cache.
        table = torch.cat([-2 * weight, weight.square().sum(1, keepdim=True)], dim=1).t()
        rows = torch.cat([flat, torch.ones_like(flat[:, :1])], dim=1)
        with torch.autocast(flat.device.type, enabled=False):
            return torch.cat([(chunk @ table).argmin(1) for chunk in rows.to(weight.dtype).split(ROWS_AT_ONCE)])

    def forward(self, z: Tensor) -> tuple[Tensor, Tensor, tuple[None, None, Tensor]]:
        """``(quantised, loss, (None, None, indices))``: (B, e_dim, H, W), a scalar, and indices (B H W,).

        The gradient of ``quantised`` passes straight through to z. ``loss`` is the codebook plus ``beta`` times the
        commitment loss.
        """
        flat = z.permute(0, 2, 3, 1).reshape(-1, self.e_dim)
        with torch.no_grad():
            indices = self.nearest(flat)
        entries = self.embedding(indices).reshape(z.shape[0], *z.shape[2:], self.e_dim).permute(0, 3, 1, 2)
        loss = F.mse_loss(entries, z.detach()) + self.beta * F.mse_loss(z, entries.detach())
        return z + (entries - z).detach(), loss, (None, None, indices)
