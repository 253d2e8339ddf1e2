"""Multi-head attention over tokens, through PyTorch's fused kernel."""

from __future__ import annotations

import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn


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
        x = F.scaled_dot_product_attention(q, k, v)  # (N, heads, T, D / heads)
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
        x = F.scaled_dot_product_attention(q, k, v)
        return self.projection(rearrange(x, "n h t d -> n t (h d)"))
