"""Multi-head attention over tokens, through PyTorch's fused kernel."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

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


class SelfAttention(nn.Module):
    """Every token looks at every token: (N, T, D) -> (N, T, D), queries, keys and values with bias."""

    def __init__(self, width: int, heads: int):
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.projection = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        """Attend within x (N, T, D)."""
        q, k, v = rearrange(self.qkv(x), "n t (three h d) -> three n h t d", three=3, h=self.heads)
        x = attend(q, k, v)  # (N, heads, T, D / heads)
        return self.projection(rearrange(x, "n h t d -> n t (h d)"))


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
