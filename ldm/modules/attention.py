"""Attention layers of the UNet: the plain multi-head block and the spatial transformer with cross-attention."""

import torch.nn.functional as F
from torch import Tensor, nn

from ldm.modules.diffusionmodules.util import GroupNorm, zero_module


class AttentionBlock(nn.Module):
    """Residual self-attention over the positions of a feature map (B, C, H, W).

    ``norm`` comes first. A 1x1 convolution makes queries, keys and values. Its output channels are read as
    (head, qkv, C / heads), or with ``use_new_attention_order`` as (qkv, head, C / heads); no tensor's shape tells the
    two apart.
    """

    def __init__(self, channels: int, num_heads: int, norm: nn.Module, use_new_attention_order: bool = False):
        super().__init__()
        self.num_heads = num_heads
        self.new_order = use_new_attention_order
        self.norm = norm
        self.qkv = nn.Conv1d(channels, 3 * channels, 1)
        self.proj_out = zero_module(nn.Conv1d(channels, channels, 1))

    def forward(self, x: Tensor) -> Tensor:
        b, c, height, width = x.shape
        flat = x.reshape(b, c, height * width)
        qkv = self.qkv(self.norm(flat))
        if self.new_order:
            q, k, v = qkv.reshape(b, 3, self.num_heads, c // self.num_heads, -1).unbind(1)
        else:
            q, k, v = qkv.reshape(b, self.num_heads, 3, c // self.num_heads, -1).unbind(2)
        out = self.attend(*(part.transpose(2, 3) for part in (q, k, v)))
        out = self.proj_out(out.transpose(2, 3).reshape(b, c, -1))
        return (flat + out).reshape(b, c, height, width)

    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """``softmax(q k^T / sqrt(d)) v`` for queries, keys and values (B, heads, N, d)."""
        # Contiguous, or torch's kernel that keeps no table of (N, N) weights does not take them on a processor.
        return F.scaled_dot_product_attention(q.contiguous(), k.contiguous(), v.contiguous())


class CrossAttention(nn.Module):
    """Multi-head attention from x (B, N, query_dim) to ``context`` (B, M, context_dim); to x itself without one."""

    def __init__(self, query_dim: int, context_dim: int | None, heads: int, dim_head: int, dropout: float = 0.0):
        super().__init__()
        self.heads = heads
        inner = heads * dim_head
        self.to_q = nn.Linear(query_dim, inner, bias=False)
        self.to_k = nn.Linear(context_dim or query_dim, inner, bias=False)
        self.to_v = nn.Linear(context_dim or query_dim, inner, bias=False)
        self.to_out = nn.Sequential(nn.Linear(inner, query_dim), nn.Dropout(dropout))

    def forward(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        context = x if context is None else context
        q, k, v = (
            layer(source).unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for layer, source in ((self.to_q, x), (self.to_k, context), (self.to_v, context))
        )
        return self.to_out(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))


class GEGLU(nn.Module):
    """Gated linear unit with a GELU gate (Shazeer, 2020)."""

    def __init__(self, dim_in: int, dim_out: int):
        super().__init__()
        self.proj = nn.Linear(dim_in, 2 * dim_out)

    def forward(self, x: Tensor) -> Tensor:
        x, gate = self.proj(x).chunk(2, dim=-1)
        return x * F.gelu(gate)


class FeedForward(nn.Module):
    """GEGLU feed-forward with an inner width of four times ``dim``."""

    def __init__(self, dim: int, dropout: float = 0.0):
        super().__init__()
        self.net = nn.Sequential(GEGLU(dim, 4 * dim), nn.Dropout(dropout), nn.Linear(4 * dim, dim))

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)


class BasicTransformerBlock(nn.Module):
    """Self-attention, cross-attention and feed-forward, each behind a LayerNorm and added to its input."""

    def __init__(self, dim: int, heads: int, dim_head: int, context_dim: int | None, dropout: float = 0.0):
        super().__init__()
        self.attn1 = CrossAttention(dim, None, heads, dim_head, dropout)
        self.ff = FeedForward(dim, dropout)
        self.attn2 = CrossAttention(dim, context_dim, heads, dim_head, dropout)
        self.norm1 = nn.LayerNorm(dim)
        self.norm2 = nn.LayerNorm(dim)
        self.norm3 = nn.LayerNorm(dim)

    def forward(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        x = x + self.attn1(self.norm1(x))
        x = x + self.attn2(self.norm2(x), context)
        return x + self.ff(self.norm3(x))


class SpatialTransformer(nn.Module):
    """Transformer blocks over the positions of a feature map (B, C, H, W), with ``context`` (B, M, context_dim)."""

    def __init__(
        self,
        channels: int,
        heads: int,
        dim_head: int,
        depth: int,
        context_dim: int | None,
        dropout: float = 0.0,
        groups: int = 32,
    ):
        super().__init__()
        inner = heads * dim_head
        self.norm = GroupNorm(channels, 1e-6, groups)
        self.proj_in = nn.Conv2d(channels, inner, 1)
        self.transformer_blocks = nn.ModuleList(
            BasicTransformerBlock(inner, heads, dim_head, context_dim, dropout) for _ in range(depth)
        )
        self.proj_out = zero_module(nn.Conv2d(inner, channels, 1))

    def forward(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        height, width = x.shape[2:]
        tokens = self.proj_in(self.norm(x)).flatten(2).transpose(1, 2)
        for block in self.transformer_blocks:
            tokens = block(tokens, context)
        return x + self.proj_out(tokens.transpose(1, 2).unflatten(2, (height, width)))
