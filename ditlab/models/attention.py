"""Multi-head attention over tokens, through PyTorch's fused kernel."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

EPSILON = 1e-6  # of every norm in a block
EXPLICIT = 256  # tokens up to which bfloat16 training on a CPU writes attention out


def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Scaled dot-product attention of q (N, heads, T, d) to k, v (N, heads, S, d), by the fastest way there is.

    That is PyTorch's fused kernel, but for training in bfloat16 on a CPU: two matrix products with a float32 softmax between
    are there up to four times as fast for few tokens (benchmarks/attention.py), and in a compiled step still at 256.
    """
    training = torch.is_grad_enabled() and q.device.type == "cpu" and q.dtype == torch.bfloat16
    if not training or k.shape[2] > EXPLICIT:
        return F.scaled_dot_product_attention(q, k, v)
    scores = (q @ k.transpose(-1, -2)).float() * q.shape[-1] ** -0.5
    return scores.softmax(dim=-1).to(v.dtype) @ v


def rotate(x: Tensor, rotation: Tensor) -> Tensor:
    """Turn queries or keys x (N, heads, T, d) by their positions: pairs (i, i + d / 2) by angles, ``rotation`` (2, T, d / 2).

    The angles come as their cosines and sines, from ``rotary_positions`` (Su et al. 2021, equation 34).
    """
    cosine, sine = rotation
    first, second = x.chunk(2, dim=-1)
    return torch.cat([first * cosine - second * sine, second * cosine + first * sine], dim=-1)


class SelfAttention(nn.Module):
    """Every token looks at every token: (N, T, D) -> (N, T, D), queries, keys and values with bias.

    Args:
        width: D.
        heads: they divide the width.
        qk_norm: queries and keys of each head through a root-mean-square norm of their own (Henry et al. 2020), in float32.
    """

    def __init__(self, width: int, heads: int, qk_norm: bool = False):
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.norm_q = nn.RMSNorm(width // heads, EPSILON) if qk_norm else None
        self.norm_k = nn.RMSNorm(width // heads, EPSILON) if qk_norm else None
        self.projection = nn.Linear(width, width)

    def forward(self, x: Tensor, rotation: Tensor | None = None) -> Tensor:
        """Attend within x (N, T, D), where ``rotation`` (2, T, D / heads / 2) turns queries and keys."""
        x = attend(*self._heads(x, rotation))  # (N, heads, T, D / heads)
        return self.projection(rearrange(x, "n h t d -> n t (h d)"))

    def weights(self, x: Tensor, rotation: Tensor | None = None) -> Tensor:
        """How much of each token every token takes in ``forward``, (N, heads, T, T); the last axis sums to 1."""
        q, k, _ = self._heads(x, rotation)
        return (q @ k.transpose(-1, -2)).float().mul(q.shape[-1] ** -0.5).softmax(dim=-1)

    def _heads(self, x: Tensor, rotation: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys and values, each (N, heads, T, D / heads)."""
        q, k, v = rearrange(self.qkv(x), "n t (three h d) -> three n h t d", three=3, h=self.heads)
        if self.norm_q is not None and self.norm_k is not None:
            q, k = self.norm_q(q.float()), self.norm_k(k.float())
        if rotation is not None:
            q, k = rotate(q, rotation), rotate(k, rotation)
        return q.to(v.dtype), k.to(v.dtype), v


class CrossAttention(nn.Module):
    """Tokens (N, T, D) look at a condition sequence (N, S, D) -> (N, T, D)."""

    def __init__(self, width: int, heads: int):
        super().__init__()
        self.heads = heads
        self.query = nn.Linear(width, width)
        self.key_value = nn.Linear(width, 2 * width)
        self.projection = nn.Linear(width, width)

    def forward(self, x: Tensor, context: Tensor) -> Tensor:
        """Attend from x (N, T, D) to context (N, S, D)."""
        q = rearrange(self.query(x), "n t (h d) -> n h t d", h=self.heads)
        k, v = rearrange(self.key_value(context), "n s (two h d) -> two n h s d", two=2, h=self.heads)
        x = attend(q, k, v)
        return self.projection(rearrange(x, "n h t d -> n t (h d)"))
