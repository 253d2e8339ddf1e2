"""The paper's four transformer blocks (DiT, section 3.2, figure 3) and the layer after the last of them.

Every block is called as ``block(x, c, rotation, shared)``: tokens x (N, T, D) and what conditions them, c. For the two
adaptive designs c is one vector (N, D), the sum of the timestep's and the label's. For the other two it is the sequence
(N, 2, D) of both: cross-attention attends to it, and the in-context design has it among its tokens already. ``rotation``
are rotary positions, and ``shared`` the modulation all blocks have in common, where the network has these.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ditlab.models.attention import EPSILON, CrossAttention, SelfAttention


@dataclass(frozen=True, kw_only=True)
class BlockConfig:
    """The shape of a block, and what came after the paper."""

    width: int = 384
    """Width of every token (the paper's hidden size d)."""
    heads: int = 6
    """Attention heads; they divide the width."""
    mlp_ratio: float = 4.0
    """Width of the MLP's inner layer over the token's."""
    mlp: Literal["gelu", "swiglu"] = "gelu"
    """The paper's GELU, or SwiGLU with two thirds of the inner width, which costs as much."""
    norm: Literal["layer", "rms"] = "layer"
    """The paper's layer norm, or root-mean-square norm."""
    positions: Literal["sincos", "rotary"] = "sincos"
    """The paper's sines and cosines added to the tokens; or they, and rotary positions in every attention."""
    qk_norm: bool = False
    """Norm queries and keys, which keeps attention from saturating."""
    modulation_rank: int = 0
    """adaLN-LoRA: one modulation for all blocks and a correction of this rank in each; 0 is a whole one in each."""


def modulate(x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    """Shift and scale tokens (N, T, D) by one vector (N, D) each a sample: x * (1 + scale) + shift, in one pass."""
    return torch.addcmul(shift[:, None], x, 1 + scale[:, None])


def plain_norm(x: Tensor, kind: str) -> Tensor:
    """Layer norm, or root-mean-square norm (Zhang and Sennrich 2019), of tokens (N, T, D), without parameters."""
    return (F.layer_norm if kind == "layer" else F.rms_norm)(x, x.shape[-1:], eps=EPSILON)


def learned_norm(config: BlockConfig) -> nn.Module:
    """The same with parameters."""
    return (nn.LayerNorm if config.norm == "layer" else nn.RMSNorm)(config.width, EPSILON)


class MLP(nn.Module):
    """Two Linears around a tanh-approximate GELU, or around a gated SiLU (SwiGLU, Shazeer 2020)."""

    def __init__(self, config: BlockConfig):
        super().__init__()
        self.gated = config.mlp == "swiglu"
        inner = round(config.width * config.mlp_ratio)
        if self.gated:  # three matrices in place of two, each two thirds as wide; by eights, as matrix units want it
            inner = max(round(inner * 2 / 3 / 8), 1) * 8
        self.up = nn.Linear(config.width, inner * (2 if self.gated else 1))
        self.down = nn.Linear(inner, config.width)

    def forward(self, x: Tensor) -> Tensor:
        """Map each token of x (N, T, D) on its own."""
        x = self.up(x)
        if not self.gated:
            return self.down(F.gelu(x, approximate="tanh"))
        gate, value = x.chunk(2, dim=-1)
        return self.down(F.silu(gate) * value)


class AdaLNZeroBlock(nn.Module):
    """Adaptive layer norm with gates that start at zero, so that the block starts as the identity."""

    vectors = 6  # shift, scale, gate for the attention, then for the MLP

    def __init__(self, config: BlockConfig):
        super().__init__()
        self.config = config
        width, rank = config.width, config.modulation_rank
        self.attention = SelfAttention(width, config.heads, config.qk_norm)
        self.mlp = MLP(config)
        self.reduction = nn.Linear(width, rank, bias=False) if rank else None
        self.modulation = nn.Linear(rank or width, self.vectors * width)

    def vectors_of(self, c: Tensor, shared: Tensor | None) -> tuple[Tensor, ...]:
        """Shifts, scales and gates, each (N, D), from c (N, D); with adaLN-LoRA a correction to ``shared`` (N, vectors D)."""
        c = F.silu(c)
        made = self.modulation(c if self.reduction is None else self.reduction(c))
        return (made if shared is None else shared + made).chunk(self.vectors, dim=1)

    def norm(self, x: Tensor) -> Tensor:
        """A norm without parameters of its own: shift and scale come from the condition."""
        return plain_norm(x, self.config.norm)

    def forward(self, x: Tensor, c: Tensor, rotation: Tensor | None = None, shared: Tensor | None = None) -> Tensor:
        """Transform tokens x (N, T, D) under c (N, D)."""
        shift1, scale1, gate1, shift2, scale2, gate2 = self.vectors_of(c, shared)
        x = torch.addcmul(x, gate1[:, None], self.attention(modulate(self.norm(x), shift1, scale1), rotation))
        return torch.addcmul(x, gate2[:, None], self.mlp(modulate(self.norm(x), shift2, scale2)))


class AdaLNBlock(AdaLNZeroBlock):
    """Adaptive layer norm: shift and scale from the condition, no gates."""

    vectors = 4

    def forward(self, x: Tensor, c: Tensor, rotation: Tensor | None = None, shared: Tensor | None = None) -> Tensor:
        """Transform tokens x (N, T, D) under c (N, D)."""
        shift1, scale1, shift2, scale2 = self.vectors_of(c, shared)
        x = x + self.attention(modulate(self.norm(x), shift1, scale1), rotation)
        return x + self.mlp(modulate(self.norm(x), shift2, scale2))


class InContextBlock(nn.Module):
    """The plain transformer block; the condition is two of its tokens."""

    def __init__(self, config: BlockConfig):
        super().__init__()
        self.norm1 = learned_norm(config)
        self.attention = SelfAttention(config.width, config.heads, config.qk_norm)
        self.norm2 = learned_norm(config)
        self.mlp = MLP(config)

    def forward(self, x: Tensor, c: Tensor, rotation: Tensor | None = None, shared: Tensor | None = None) -> Tensor:
        """Transform tokens x (N, T + 2, D)."""
        x = x + self.attention(self.norm1(x), rotation)
        return x + self.mlp(self.norm2(x))


class CrossAttentionBlock(nn.Module):
    """The plain block with a cross-attention to the condition between its two halves."""

    def __init__(self, config: BlockConfig):
        super().__init__()
        self.norm1 = learned_norm(config)
        self.attention = SelfAttention(config.width, config.heads, config.qk_norm)
        self.norm_cross = learned_norm(config)
        self.cross_attention = CrossAttention(config.width, config.heads)
        self.norm2 = learned_norm(config)
        self.mlp = MLP(config)

    def forward(self, x: Tensor, c: Tensor, rotation: Tensor | None = None, shared: Tensor | None = None) -> Tensor:
        """Transform tokens x (N, T, D), attending to c (N, 2, D)."""
        x = x + self.attention(self.norm1(x), rotation)
        x = x + self.cross_attention(self.norm_cross(x), c)
        return x + self.mlp(self.norm2(x))


class FinalLayer(nn.Module):
    """Norm and the Linear that turns tokens (N, T, D) into patches (N, T, out).

    With ``adaptive`` the norm is modulated by c (N, D); the designs without adaptive norms have a plain one here too,
    which is what the paper's parameter counts say.
    """

    def __init__(self, config: BlockConfig, out: int, adaptive: bool):
        super().__init__()
        self.kind = config.norm
        self.norm = None if adaptive else learned_norm(config)
        self.modulation = nn.Linear(config.width, 2 * config.width) if adaptive else None
        self.linear = nn.Linear(config.width, out)

    def forward(self, x: Tensor, c: Tensor) -> Tensor:
        """Read the patches out of tokens x (N, T, D)."""
        x = plain_norm(x, self.kind) if self.norm is None else self.norm(x)
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
