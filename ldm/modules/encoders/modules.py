"""Conditioning stages."""

from torch import Tensor, nn

from ldm.modules.sizes import MAX_ENTRIES, check_channels
from util.checks import whole_number


class ClassEmbedder(nn.Module):
    """A learned vector per class: ``{key: LongTensor (B,)}`` to a context of shape (B, 1, embed_dim)."""

    def __init__(self, embed_dim: int, n_classes: int = 1000, key: str = "class_label"):
        super().__init__()
        check_channels(embed_dim=embed_dim)
        whole_number("n_classes", n_classes, 1, MAX_ENTRIES)
        self.key, self.n_classes = key, n_classes
        self.embedding = nn.Embedding(n_classes, embed_dim)

    def forward(self, batch: dict[str, Tensor], key: str | None = None) -> Tensor:
        return self.embedding(batch[key or self.key][:, None])
