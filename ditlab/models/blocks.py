"""The paper's four transformer blocks (DiT, section 3.2, figure 3) and the layer after the last of them.

Every block is called as ``block(x, c)``: tokens x (N, T, D) and what conditions them, c. For the two adaptive designs c
is one vector (N, D), the sum of the timestep's and the label's. For the other two it is the sequence (N, 2, D) of both:
cross-attention attends to it, and the in-context design has it among its tokens already.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ditlab.models.attention import CrossAttention, SelfAttention

EPSILON = 1e-6  # of every layer norm


def modulate(x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    """Shift and scale tokens (N, T, D) by one vector (N, D) each a sample: x * (1 + scale) + shift, in one pass."""
    return torch.addcmul(shift[:, None], x, 1 + scale[:, None])


class MLP(nn.Module):
    """Two Linears around a tanh-approximate GELU."""

    def __init__(self, width: int, ratio: float):
        super().__init__()
        inner = round(width * ratio)
        self.up = nn.Linear(width, inner)
        self.down = nn.Linear(inner, width)

    def forward(self, x: Tensor) -> Tensor:
        """Map each token of x (N, T, D) on its own."""
        return self.down(F.gelu(self.up(x), approximate="tanh"))


class AdaLNZeroBlock(nn.Module):
    """Adaptive layer norm with gates that start at zero, so that the block starts as the identity."""

    vectors = 6  # shift, scale, gate for the attention, then for the MLP

    def __init__(self, width: int, heads: int, mlp_ratio: float):
        super().__init__()
        self.width = width
        self.attention = SelfAttention(width, heads)
        self.mlp = MLP(width, mlp_ratio)
        self.modulation = nn.Linear(width, self.vectors * width)

    def norm(self, x: Tensor) -> Tensor:
        """Layer norm without parameters of its own: shift and scale come from the condition."""
        return F.layer_norm(x, (self.width,), eps=EPSILON)

    def forward(self, x: Tensor, c: Tensor) -> Tensor:
        """Transform tokens x (N, T, D) under c (N, D)."""
        shift1, scale1, gate1, shift2, scale2, gate2 = self.modulation(F.silu(c)).chunk(6, dim=1)
        x = torch.addcmul(x, gate1[:, None], self.attention(modulate(self.norm(x), shift1, scale1)))
        return torch.addcmul(x, gate2[:, None], self.mlp(modulate(self.norm(x), shift2, scale2)))


class AdaLNBlock(AdaLNZeroBlock):
    """Adaptive layer norm: shift and scale from the condition, no gates."""

    vectors = 4

    def forward(self, x: Tensor, c: Tensor) -> Tensor:
        """Transform tokens x (N, T, D) under c (N, D)."""
        shift1, scale1, shift2, scale2 = self.modulation(F.silu(c)).chunk(4, dim=1)
        x = x + self.attention(modulate(self.norm(x), shift1, scale1))
        return x + self.mlp(modulate(self.norm(x), shift2, scale2))


class InContextBlock(nn.Module):
    """The plain transformer block; the condition is two of its tokens."""

    def __init__(self, width: int, heads: int, mlp_ratio: float):
        super().__init__()
        self.norm1 = nn.LayerNorm(width, eps=EPSILON)
        self.attention = SelfAttention(width, heads)
        self.norm2 = nn.LayerNorm(width, eps=EPSILON)
        self.mlp = MLP(width, mlp_ratio)

    def forward(self, x: Tensor, c: Tensor) -> Tensor:
        """Transform tokens x (N, T + 2, D)."""
        x = x + self.attention(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class CrossAttentionBlock(nn.Module):
    """The plain block with a cross-attention to the condition between its two halves."""

    def __init__(self, width: int, heads: int, mlp_ratio: float):
        super().__init__()
        self.norm1 = nn.LayerNorm(width, eps=EPSILON)
        self.attention = SelfAttention(width, heads)
        self.norm_cross = nn.LayerNorm(width, eps=EPSILON)
        self.cross_attention = CrossAttention(width, heads)
        self.norm2 = nn.LayerNorm(width, eps=EPSILON)
        self.mlp = MLP(width, mlp_ratio)

    def forward(self, x: Tensor, c: Tensor) -> Tensor:
        """Transform tokens x (N, T, D), attending to c (N, 2, D)."""
        x = x + self.attention(self.norm1(x))
        x = x + self.cross_attention(self.norm_cross(x), c)
        return x + self.mlp(self.norm2(x))


class FinalLayer(nn.Module):
    """Layer norm and the Linear that turns tokens (N, T, D) into patches (N, T, out).

    With ``adaptive`` the norm is modulated by c (N, D); the designs without adaptive norms have a plain one here too,
    which is what the paper's parameter counts say.
    """

    def __init__(self, width: int, out: int, adaptive: bool):
        super().__init__()
        self.norm = nn.LayerNorm(width, eps=EPSILON, elementwise_affine=not adaptive)
        self.modulation = nn.Linear(width, 2 * width) if adaptive else None
        self.linear = nn.Linear(width, out)

    def forward(self, x: Tensor, c: Tensor) -> Tensor:
        """Read the patches out of tokens x (N, T, D)."""
        x = self.norm(x)
        if self.modulation is not None:
            shift, scale = self.modulation(F.silu(c)).chunk(2, dim=1)
            x = modulate(x, shift, scale)
        return self.linear(x)


BLOCKS: dict[str, type[nn.Module]] = {
    "adaln-zero": AdaLNZeroBlock,
    "adaln": AdaLNBlock,
    "cross-attention": CrossAttentionBlock,
    "in-context": InContextBlock,
}
