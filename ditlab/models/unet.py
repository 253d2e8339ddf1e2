"""The U-Net that the paper compares the DiT with: ADM's (arXiv 2105.05233) and LDM's (arXiv 2112.10752)."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from ditlab.errors import UserError, check_divisible, nearest
from ditlab.models.condition import Condition
from ditlab.models.dit import NetworkInput
from ditlab.models.embeddings import LabelEmbedding, TimestepEmbedding
from ditlab.models.unet_blocks import (
    CONTEXT,
    AttentionBlock,
    Block,
    Resampling,
    ResidualBlock,
    SpatialTransformer,
    Way,
    group_norm,
)

DESIGNS = ("adm", "ldm")


@dataclass(frozen=True)
class UNetConfig:
    """The shape of a U-Net; by default a small one for images of 8x8 to 32x32."""

    width: int = 64
    """Channels that the multipliers multiply; divisible by 4."""
    multipliers: tuple[float, ...] = (1.0, 2.0, 2.0)
    """Channels of each level over the width; each level has half the height and width of the one before."""
    blocks: int = 2
    """Residual blocks a level on the way down; one more on the way up."""
    attention: tuple[int, ...] = (2, 4)
    """Attention in the levels this many times smaller than the input; the middle always has it."""
    head_width: int = 32
    """Channels of an attention head, at least: a level has as many heads as divide its channels."""
    heads: int = 0
    """Attention heads of every level; 0 is as many as the head width says."""
    design: Literal["adm", "ldm"] = "adm"
    """adm: time and label scale and shift norms, residual blocks resize; ldm: time is added, the label is cross-attended to."""

    @property
    def channels(self) -> tuple[int, ...]:
        """Channels of each level."""
        return tuple(int(self.width * multiplier) for multiplier in self.multipliers)

    @property
    def factor(self) -> int:
        """How many times smaller the last level is than the input, which it must divide."""
        return 2 ** (len(self.multipliers) - 1)

    @classmethod
    def named(cls, name: str, **changes: object) -> UNetConfig:
        """The configuration of a published U-Net, as in ``ADM-256`` or ``LDM-4``, or the small one, ``unet``.

        Raises:
            UserError: no such network.
        """
        found = next((config for known, config in UNETS.items() if known.lower() == name.lower()), None)
        if found is None:
            raise UserError(f"unknown model {name!r}; {nearest(name, UNETS)}")
        return replace(found, **changes)  # type: ignore[arg-type]


# The flags of openai/guided-diffusion's README and what its script_util.py makes of them; cin256-v2.yaml of
# CompVis/latent-diffusion. ADM's names end in the image's size, LDM's in the autoencoder's factor.
UNETS = {
    "unet": UNetConfig(),
    "ADM-128": UNetConfig(256, (1.0, 1.0, 2.0, 3.0, 4.0), attention=(4, 8, 16), head_width=64, heads=4),
    "ADM-256": UNetConfig(256, (1.0, 1.0, 2.0, 2.0, 4.0, 4.0), attention=(8, 16, 32), head_width=64),
    "ADM-512": UNetConfig(256, (0.5, 1.0, 1.0, 2.0, 2.0, 4.0, 4.0), attention=(16, 32, 64), head_width=64),
    "LDM-4": UNetConfig(192, (1.0, 2.0, 3.0, 5.0), attention=(2, 4, 8), heads=1, design="ldm"),
}


class UNet(nn.Module):
    """Convolutions from fine to coarse and back, what left each step on the way down joined to one on the way up.

    Raises:
        UserError: the levels do not divide the input, or a number makes no network.
    """

    def __init__(self, config: UNetConfig, shape: NetworkInput):
        super().__init__()
        self._check(config, shape)
        self.config, self.input = config, shape
        self.recompute = False  # keep only what enters each block for the backward pass (Chen et al. 2016)
        self.adm = config.design == "adm"
        levels, self.condition_width = config.channels, 4 * config.width
        self.timestep_embedding = TimestepEmbedding(self.condition_width, frequency_width=config.width)
        self.label_embedding = LabelEmbedding(
            shape.classes, self.condition_width if self.adm else CONTEXT, shape.null_class
        )
        self.first_layer = nn.Conv2d(shape.channels, levels[0], 3, padding=1)

        self.down, self.middle, self.up = nn.ModuleList(), nn.ModuleList(), nn.ModuleList()
        left = [channels := levels[0]]  # channels of what leaves each step on the way down
        for level, width in enumerate(levels):
            for _ in range(config.blocks):
                self.down.append(self._block(channels, width, 2**level in config.attention))
                left.append(channels := width)
            if level < len(levels) - 1:
                self.down.append(self._resampling(width, "down"))
                left.append(width)
        self.middle.append(self._block(channels, channels, attention=True))
        self.middle.append(self._block(channels, channels, attention=False))
        for level, width in reversed(list(enumerate(levels))):
            for _ in range(config.blocks + 1):
                self.up.append(self._block(channels + left.pop(), width, 2**level in config.attention, joins=True))
                channels = width
            if level:
                self.up.append(self._resampling(width, "up"))

        self.last_norm = group_norm(channels)
        self.last_layer = nn.Conv2d(channels, shape.channels * (2 if shape.learned_variance else 1), 3, padding=1)

    def _block(self, channels: int, out: int, attention: bool, joins: bool = False) -> Block:
        heads = self.config.heads or _heads(out, self.config.head_width)
        pixels = (AttentionBlock if self.adm else SpatialTransformer)(out, heads) if attention else None
        return Block(ResidualBlock(channels, out, self.condition_width, scale_shift=self.adm), pixels, joins)

    def _resampling(self, channels: int, way: Way) -> Block:
        if self.adm:
            return Block(ResidualBlock(channels, channels, self.condition_width, scale_shift=True, way=way))
        return Block(Resampling(channels, way))

    @property
    def blocks(self) -> list[nn.Module]:
        """Every block, in order: what is compiled, sharded, and computed again going back."""
        return [*self.down, *self.middle, *self.up]

    @staticmethod
    def _check(config: UNetConfig, shape: NetworkInput) -> None:
        if config.design not in DESIGNS:
            raise UserError(f"unknown design {config.design!r}; {nearest(config.design, DESIGNS)}")
        if min(config.width, config.blocks, config.head_width) < 1 or config.heads < 0 or not config.multipliers:
            raise UserError(f"width, blocks, multipliers and head width of a U-Net are at least 1: {config}")
        if config.width % 4:
            below = max(config.width // 4 * 4, 4)
            raise UserError(f"width {config.width} of a U-Net must be divisible by 4; nearest: {below} or {below + 4}")
        for multiplier in config.multipliers:
            if not 0 < multiplier < 1000 or config.width * multiplier % 1:
                raise UserError(
                    f"multiplier {multiplier} times width {config.width} must be a whole number of channels"
                )
        factors = [2**level for level in range(len(config.multipliers))]
        for factor in config.attention:
            if factor not in factors:
                known = nearest(str(factor), map(str, factors))
                raise UserError(f"no level of the U-Net is {factor} times smaller, to have attention; {known}")
        for factor, channels in zip(factors, config.channels, strict=True):
            if config.heads and factor in (*config.attention, factors[-1]) and channels % config.heads:
                raise UserError(f"{channels} channels of a level must be divisible by the U-Net's {config.heads} heads")
        check_divisible(
            "latents",
            (shape.height, shape.width),
            config.factor,
            f"{config.factor}, as the U-Net's {len(config.multipliers)} levels need",
            "; or take fewer multipliers",
        )

    def initialise(self, generator: torch.Generator) -> UNet:
        """Draw every weight anew, in one place, as both public codes do."""
        for module in self.modules():
            if isinstance(module, nn.Conv2d | nn.Linear):
                bound = 1 / math.sqrt(module.weight[0].numel())  # of a uniform draw: PyTorch's own for both
                nn.init.uniform_(module.weight, -bound, bound, generator=generator)
                if module.bias is not None:
                    nn.init.uniform_(module.bias, -bound, bound, generator=generator)
            elif isinstance(module, nn.GroupNorm | nn.LayerNorm):
                nn.init.ones_(module.weight)
                nn.init.zeros_(module.bias)
        nn.init.normal_(self.label_embedding.table.weight, generator=generator)
        # Each block adds nothing at first: where it does not change the channels it is the identity. Nothing is predicted.
        for module in self.modules():
            if isinstance(module, ResidualBlock):
                _zero(module.convolution2)
            elif isinstance(module, AttentionBlock):
                _zero(module.attention.projection)
            elif isinstance(module, SpatialTransformer):
                _zero(module.projection)
        _zero(self.last_layer)
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
        if x.device.type == "cpu":  # oneDNN's convolutions work in this layout; on a GPU the compiler chooses its own
            x = x.contiguous(memory_format=torch.channels_last)
        time = self.timestep_embedding(t)  # (N, E)
        label = self.label_embedding(condition.labels)  # (N, E), or (N, CONTEXT)
        c = F.silu(time + label if self.adm else time)  # (N, E)
        token = None if self.adm else label[:, None]  # (N, 1, CONTEXT)
        x = self.first_layer(x)
        left = [x]
        for block in self.down:
            left.append(x := self._run(block, x, c, token))
        for block in self.middle:
            x = self._run(block, x, c, token)
        for block in self.up:
            x = self._run(block, x, c, token, left.pop() if block.joins else None)
        return self.last_layer(F.silu(self.last_norm(x)))  # (N, C or 2 C, H, W)

    def _run(self, block: nn.Module, *inputs: Tensor | None) -> Tensor:
        if self.recompute:
            return checkpoint(block, *inputs, use_reentrant=False, preserve_rng_state=False)  # type: ignore[return-value]
        return block(*inputs)


def _heads(channels: int, head_width: int) -> int:
    most = max(channels // head_width, 1)
    return next(heads for heads in range(most, 0, -1) if channels % heads == 0)


def _zero(layer: nn.Linear | nn.Conv2d) -> None:
    nn.init.zeros_(layer.weight)
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)
