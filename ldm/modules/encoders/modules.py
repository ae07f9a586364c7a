"""Conditioning stages."""

from torch import Tensor, nn

from ldm.modules.encoders.clip import FrozenCLIPEmbedder
from ldm.modules.sizes import Channels, Entries

__all__ = ["ClassEmbedder", "FrozenCLIPEmbedder"]


class ClassEmbedder(nn.Module):
    """A learned vector per class: ``{key: LongTensor (B,)}`` to a context of shape (B, 1, embed_dim)."""

    def __init__(self, embed_dim: Channels, n_classes: Entries = 1000, key: str = "class_label"):
        super().__init__()
        self.key, self.n_classes = key, n_classes
        self.embedding = nn.Embedding(n_classes, embed_dim)

    def forward(self, batch: dict[str, Tensor], key: str | None = None) -> Tensor:
        return self.embedding(batch[key or self.key][:, None])
