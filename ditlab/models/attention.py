"""Multi-head attention over tokens, through PyTorch's fused kernel."""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

EPSILON = 1e-6  # of every norm in a block
EXPLICIT = 256  # tokens up to which bfloat16 training on a CPU writes attention out


def attend(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None) -> Tensor:
    """Scaled dot-product attention of q (N, heads, T, d) to k, v (N, heads, S, d), with the fastest implementation.

    That is PyTorch's fused kernel, except for training in bfloat16 on a CPU: two matrix products with a float32 softmax
    between them are up to four times as fast for few tokens (benchmarks/attention.py), and still faster at 256 in a
    compiled step.

    Args:
        q: queries.
        k: keys.
        v: values.
        mask: bool, broadcast to (N, heads, T, S): the keys each query attends to, at least one; None for all.
    """
    training = torch.is_grad_enabled() and q.device.type == "cpu" and q.dtype == torch.bfloat16
    if not training or k.shape[2] > EXPLICIT:
        return F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
    return attention_weights(q, k, mask).to(v.dtype) @ v


def attention_weights(q: Tensor, k: Tensor, mask: Tensor | None = None) -> Tensor:
    """The softmax of scaled dot products, float32 (N, heads, T, S); the last axis sums to 1."""
    scores = (q @ k.transpose(-1, -2)).float() * q.shape[-1] ** -0.5
    if mask is not None:
        scores = scores.masked_fill(~mask, -torch.inf)
    return scores.softmax(dim=-1)


def rotate(x: Tensor, rope: Tensor) -> Tensor:
    """Rotate queries or keys x (N, heads, T, d) by their positions: pairs (i, i + d / 2) by the angles of ``rope``.

    ``rope`` holds cosines and sines, (2, T, d / 2), from ``rotary_positions`` (Su et al. 2021, equation 34).
    """
    cosine, sine = rope
    first, second = x.chunk(2, dim=-1)
    return torch.cat([first * cosine - second * sine, second * cosine + first * sine], dim=-1)


class Windows(NamedTuple):
    """Tokens that attend to each other only, in windows of one size, which become rows of their own.

    Attributes:
        tokens: int64 (W, T'), the tokens of each window.
        order: int64 (T,), where each token is in them.
    """

    tokens: Tensor
    order: Tensor


class SelfAttention(nn.Module):
    """Self-attention, (N, T, D) -> (N, T, D), with biases.

    Args:
        width: D.
        heads: must divide the width.
        qk_norm: apply a root-mean-square norm to the queries and keys of each head (Henry et al. 2020), in float32.
    """

    def __init__(self, width: int, heads: int, qk_norm: bool = False):
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.norm_q = nn.RMSNorm(width // heads, EPSILON) if qk_norm else None
        self.norm_k = nn.RMSNorm(width // heads, EPSILON) if qk_norm else None
        self.projection = nn.Linear(width, width)

    def forward(
        self, x: Tensor, rope: Tensor | None = None, mask: Tensor | None = None, windows: Windows | None = None
    ) -> Tensor:
        """Attend within x (N, T, D), or within each of its windows.

        ``rope`` rotates queries and keys, ``mask`` is ``attend``'s.
        """
        projected = self.project(x, rope)  # each (N, heads, T, D / heads)
        if windows is None:
            return self.projection(rearrange(attend(*projected, mask), "n h t d -> n t (h d)"))
        q, k, v = (rearrange(each[:, :, windows.tokens], "n h w t d -> (n w) h t d") for each in projected)
        x = rearrange(attend(q, k, v), "(n w) h t d -> n (w t) (h d)", n=len(x))
        return self.projection(x[:, windows.order])

    def weights(
        self, x: Tensor, rope: Tensor | None = None, mask: Tensor | None = None, windows: Windows | None = None
    ) -> Tensor:
        """The attention weights of ``forward``, (N, heads, T, T); 0 between windows."""
        q, k, _ = self.project(x, rope)
        if windows is not None:
            window = windows.order // windows.tokens.shape[1]
            mask = window[:, None] == window
        return attention_weights(q, k, mask)

    def project(self, x: Tensor, rope: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys and values, each (N, heads, T, D / heads)."""
        q, k, v = rearrange(self.qkv(x), "n t (three h d) -> three n h t d", three=3, h=self.heads)
        if self.norm_q is not None and self.norm_k is not None:
            q, k = self.norm_q(q.float()), self.norm_k(k.float())
        if rope is not None:
            q, k = rotate(q, rope), rotate(k, rope)
        return q.to(v.dtype), k.to(v.dtype), v


class CrossAttention(nn.Module):
    """Attention from tokens (N, T, D) to a sequence (N, S, D) -> (N, T, D), with biases."""

    def __init__(self, width: int, heads: int):
        super().__init__()
        self.heads = heads
        self.query = nn.Linear(width, width)
        self.key_value = nn.Linear(width, 2 * width)
        self.projection = nn.Linear(width, width)

    def forward(self, x: Tensor, context: Tensor, mask: Tensor | None = None) -> Tensor:
        """Attend from x (N, T, D) to context (N, S, D), where ``mask`` (N, S) marks its valid tokens."""
        x = attend(*self._project(x, context), None if mask is None else mask[:, None, None])
        return self.projection(rearrange(x, "n h t d -> n t (h d)"))

    def weights(self, x: Tensor, context: Tensor, mask: Tensor | None = None) -> Tensor:
        """The attention weights of ``forward``, (N, heads, T, S)."""
        q, k, _ = self._project(x, context)
        return attention_weights(q, k, None if mask is None else mask[:, None, None])

    def _project(self, x: Tensor, context: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Queries (N, heads, T, D / heads), and keys and values (N, heads, S, D / heads)."""
        q = rearrange(self.query(x), "n t (h d) -> n h t d", h=self.heads)
        k, v = rearrange(self.key_value(context), "n s (two h d) -> two n h s d", two=2, h=self.heads)
        return q, k, v
