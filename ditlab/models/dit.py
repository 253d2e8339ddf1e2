"""The diffusion transformer (Peebles and Xie 2022), arXiv 2212.09748."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from ditlab.errors import UserError, check_divisible, nearest
from ditlab.models.blocks import BLOCKS, AdaLNZeroBlock, BlockConfig, FinalLayer
from ditlab.models.condition import Condition
from ditlab.models.embeddings import (
    LabelEmbedding,
    TimestepEmbedding,
    patchify,
    rotary_positions,
    sincos_positions,
    unpatchify,
)

SIZES = {"S": (12, 384, 6), "B": (12, 768, 12), "L": (24, 1024, 16), "XL": (28, 1152, 16)}  # depth, width, heads
PATCHES = (2, 4, 8)
NAMES = tuple(f"DiT-{size}/{patch}" for size in SIZES for patch in PATCHES)


@dataclass(frozen=True, kw_only=True)
class DiTConfig(BlockConfig):
    """The shape of a DiT; table 1 of the paper by default its S/2."""

    depth: int = 12
    """Transformer blocks."""
    patch: int = 2
    """Side of a patch, in latent pixels."""
    block: Literal["adaln-zero", "adaln", "cross-attention", "in-context"] = "adaln-zero"
    """How timestep and label reach the blocks."""

    @classmethod
    def named(cls, name: str, **changes: object) -> DiTConfig:
        """The configuration of a model of the paper, as in ``DiT-XL/2`` or ``XL/2``.

        Raises:
            UserError: no such size, or a patch that is no positive number.
        """
        match = re.fullmatch(r"(?:DiT-)?([A-Z]+)/(\d+)", name, re.IGNORECASE)
        if not match or match[1].upper() not in SIZES or int(match[2]) < 1:
            raise UserError(f"unknown model {name!r}; {nearest(name, NAMES)}")
        depth, width, heads = SIZES[match[1].upper()]
        return replace(cls(depth=depth, width=width, heads=heads, patch=int(match[2])), **changes)  # type: ignore[arg-type]


@dataclass(frozen=True)
class NetworkInput:
    """What goes through a network: decided by the data and the diffusion, not by the network's shape."""

    channels: int
    """Channels of the latent."""
    height: int
    """Rows of the latent."""
    width: int
    """Columns of the latent."""
    classes: int
    """Classes; 0 for an unconditional network."""
    learned_variance: bool = False
    """Twice the channels out: the target, then how far the variance is from its lower to its upper bound."""
    null_class: bool = True
    """One more label for no class, which guidance needs."""


class DiT(nn.Module):
    """Tokens of latent patches through transformer blocks, conditioned on time and label.

    Raises:
        UserError: the patch does not divide the input, or the heads the width.
    """

    positions: Tensor
    rotation: Tensor | None

    def __init__(self, config: DiTConfig, shape: NetworkInput):
        super().__init__()
        self._check(config, shape)
        self.config, self.input = config, shape
        self.recompute = False  # keep only what enters each block for the backward pass (Chen et al. 2016)
        self.adaptive = issubclass(BLOCKS[config.block], AdaLNZeroBlock)
        patch_size = config.patch**2
        rows, columns = shape.height // config.patch, shape.width // config.patch
        self.patch_embedding = nn.Linear(shape.channels * patch_size, config.width)
        rotation = None
        if config.positions == "rotary":
            rotation = rotary_positions(config.width // config.heads, rows, columns)
            if config.block == "in-context":  # the condition's two tokens have no place: not turned
                still = torch.tensor([1.0, 0.0]).view(2, 1, 1).expand(2, 2, rotation.shape[2])
                rotation = torch.cat([rotation, still], dim=1)
        self.register_buffer("positions", sincos_positions(config.width, rows, columns), persistent=False)
        self.register_buffer("rotation", rotation, persistent=False)
        self.timestep_embedding = TimestepEmbedding(config.width)
        self.label_embedding = LabelEmbedding(shape.classes, config.width, shape.null_class)
        block = BLOCKS[config.block]
        shared = config.modulation_rank > 0
        self.modulation = nn.Linear(config.width, block.vectors * config.width) if shared else None  # type: ignore[attr-defined]
        self.blocks = nn.ModuleList(block(config) for _ in range(config.depth))
        out = patch_size * shape.channels * (2 if shape.learned_variance else 1)
        self.final_layer = FinalLayer(config, out, self.adaptive)

    @staticmethod
    def _check(config: DiTConfig, shape: NetworkInput) -> None:
        if config.block not in BLOCKS:
            raise UserError(f"unknown block {config.block!r}; {nearest(config.block, BLOCKS)}")
        if min(config.depth, config.width, config.heads, config.patch) < 1:
            raise UserError(f"depth, width, heads and patch of a DiT are at least 1: {config}")
        if not 0 < config.mlp_ratio < 1000 or round(config.width * config.mlp_ratio) < 1:
            raise UserError(f"MLP ratio {config.mlp_ratio} must be above 0; the paper's is 4")
        if config.width % config.heads or config.width % 4:
            raise UserError(f"width {config.width} must be divisible by 4 and by its {config.heads} heads")
        if config.positions == "rotary" and config.width // config.heads % 4:
            raise UserError(
                f"rotary positions need heads of a width divisible by 4, not {config.width // config.heads} "
                f"(width {config.width} over {config.heads} heads)"
            )
        if config.modulation_rank < 0 or config.modulation_rank > config.width:
            raise UserError(
                f"modulation rank {config.modulation_rank} must be from 0, off, to the width {config.width}"
            )
        if config.modulation_rank and not issubclass(BLOCKS[config.block], AdaLNZeroBlock):
            raise UserError(
                f"a modulation rank is for the blocks adaln-zero and adaln; {config.block!r} modulates nothing"
            )
        check_divisible("latents", (shape.height, shape.width), config.patch, f"patch {config.patch}")

    def initialise(self, generator: torch.Generator) -> DiT:
        """Draw every weight anew, in one place, as the paper does (its code's defaults)."""
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight, generator=generator)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
        for table in (self.timestep_embedding.mlp[0], self.timestep_embedding.mlp[2], self.label_embedding.table):
            nn.init.normal_(table.weight, std=0.02, generator=generator)  # type: ignore[arg-type]
        # Zero modulation makes every adaLN-Zero block the identity; a zero last Linear makes the first prediction zero.
        for name, module in self.named_modules():
            if name.endswith("modulation") and isinstance(module, nn.Linear):
                nn.init.zeros_(module.weight)
        nn.init.zeros_(self.final_layer.linear.weight)
        return self

    def forward(self, x: Tensor, t: Tensor, condition: Condition) -> Tensor:
        """Predict from a noised latent.

        Args:
            x: noised latents (N, C, H, W).
            t: times (N,), as the schedule shows them to networks.
            condition: the batch's labels.

        Returns:
            (N, C, H, W), or (N, 2 C, H, W) with learned variance: the target's C channels, then the variance's.
        """
        # In bf16 training the positions' float32 keeps what the blocks add to in it, whatever the Linear gives.
        x = self.patch_embedding(patchify(x, self.config.patch)) + self.positions  # (N, T, D)
        time = self.timestep_embedding(t)  # (N, D)
        label = self.label_embedding(condition.labels)  # (N, D)
        c = time + label if self.adaptive else torch.stack([time, label], dim=1)  # (N, D) or (N, 2, D)
        tokens = x.shape[1]
        if self.config.block == "in-context":
            x = torch.cat([x, c.to(x.dtype)], dim=1)  # (N, T + 2, D)
        shared = None if self.modulation is None else self.modulation(F.silu(c))  # (N, vectors D)
        for block in self.blocks:  # each (N, T, D) -> (N, T, D)
            inputs = (x, c, self.rotation, shared)
            x = (
                checkpoint(block, *inputs, use_reentrant=False, preserve_rng_state=False)
                if self.recompute
                else block(*inputs)
            )
        x = self.final_layer(x[:, :tokens], c)  # (N, T, patch * patch * out)
        return unpatchify(x, self.config.patch, self.input.height)
