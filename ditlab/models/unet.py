"""The U-Net that the paper compares the DiT with: ADM's (arXiv 2105.05233) and LDM's (arXiv 2112.10752)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ditlab.errors import UserError, check_divisible, nearest
from ditlab.models.condition import Condition
from ditlab.models.condition_embedding import ConditionEmbedding, LabelEmbedding, TextEmbedding, TimestepEmbedding
from ditlab.models.spec import Network, NetworkSpec, Supports
from ditlab.models.unet_blocks import (
    CONTEXT,
    AttentionBlock,
    Block,
    Resample,
    Resampling,
    ResidualBlock,
    SpatialTransformer,
    group_norm,
)

DESIGNS = ("adm", "ldm")


@dataclass(frozen=True)
class UNetConfig:
    """The configuration of a U-Net; by default a small one for images of 8x8 to 32x32."""

    kind: ClassVar[str] = "U-Net"

    width: int = 64
    """Base channels, multiplied by the multipliers; divisible by 4."""
    multipliers: tuple[float, ...] = (1.0, 2.0, 2.0)
    """Channels of each level divided by the width; each level has half the resolution of the one before."""
    blocks: int = 2
    """Residual blocks of each level of the encoder; the decoder has one more."""
    attention: tuple[int, ...] = (2, 4)
    """Downsampling factors of the levels with attention; the middle always has it."""
    head_width: int = 32
    """Minimum channels of an attention head: a level has as many heads as divide its channels."""
    heads: int = 0
    """Attention heads of every level; 0 derives them from the head width."""
    design: Literal["adm", "ldm"] = "adm"
    """adm: time and label scale and shift norms, residual blocks resample; ldm: time is added, cross-attention to the label."""

    @property
    def channels(self) -> tuple[int, ...]:
        """Channels of each level."""
        return tuple(int(self.width * multiplier) for multiplier in self.multipliers)

    @property
    def factor(self) -> int:
        """Downsampling factor of the last level, which must divide the sample's size."""
        return 2 ** (len(self.multipliers) - 1)

    def fine_tuned(self, spec: NetworkSpec) -> UNetConfig:
        """The configuration for training at other sizes: the same, since a U-Net has no positions."""
        del spec
        return self

    @property
    def divisor(self) -> tuple[int, str]:
        """What rows and columns of a sample must be divisible by, and why."""
        return self.factor, f"the {self.factor} of a U-Net of {len(self.multipliers)} levels"

    def build_network(self, spec: NetworkSpec) -> UNet:
        """The network, its weights still to be drawn or loaded."""
        return UNet(self, spec)

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


class UNet(Network):
    """An encoder of convolutions, a middle, and a decoder that concatenates the encoder's feature maps.

    Raises:
        UserError: the levels do not divide the sample, or a value makes no valid network.
    """

    config: UNetConfig

    def __init__(self, config: UNetConfig, spec: NetworkSpec):
        super().__init__(config, spec)
        self._check(config, spec)
        self.supports = Supports()
        self.adm = config.design == "adm"
        levels, self.condition_width = config.channels, 4 * config.width
        self.timestep_embedding = TimestepEmbedding(self.condition_width, frequency_width=config.width)
        self.condition_embedding = ConditionEmbedding(spec.conditions, self.condition_width if self.adm else CONTEXT)
        self.first_layer = nn.Conv2d(spec.channels_in, levels[0], 3, padding=1)

        self.down, self.middle, self.up = nn.ModuleList(), nn.ModuleList(), nn.ModuleList()
        skips = [channels := levels[0]]  # channels of the feature maps that the decoder concatenates
        for level, width in enumerate(levels):
            for _ in range(config.blocks):
                self.down.append(self._block(channels, width, 2**level in config.attention))
                skips.append(channels := width)
            if level < len(levels) - 1:
                self.down.append(self._resampling(width, "down"))
                skips.append(width)
        self.middle.append(self._block(channels, channels, attention=True))
        self.middle.append(self._block(channels, channels, attention=False))
        for level, width in reversed(list(enumerate(levels))):
            for _ in range(config.blocks + 1):
                self.up.append(self._block(channels + skips.pop(), width, 2**level in config.attention, has_skip=True))
                channels = width
            if level:
                self.up.append(self._resampling(width, "up"))

        self.last_norm = group_norm(channels)
        self.last_layer = nn.Conv2d(channels, spec.channels_out, 3, padding=1)

    def _block(self, channels: int, out: int, attention: bool, has_skip: bool = False) -> Block:
        heads = self.config.heads or _heads(out, self.config.head_width)
        pixels = (AttentionBlock if self.adm else SpatialTransformer)(out, heads) if attention else None
        return Block(ResidualBlock(channels, out, self.condition_width, scale_shift=self.adm), pixels, has_skip)

    def _resampling(self, channels: int, resample: Resample) -> Block:
        if self.adm:
            block = ResidualBlock(channels, channels, self.condition_width, scale_shift=True, resample=resample)
            return Block(block)
        return Block(Resampling(channels, resample))

    def block_list(self) -> Sequence[nn.Module]:  # noqa: D102
        return [*self.down, *self.middle, *self.up]

    def parts(self) -> dict[str, list[str]]:  # noqa: D102
        blocks: dict[str, list[str]] = {}
        for stage in ("down", "middle", "up"):
            for index, block in enumerate(self.get_submodule(stage).children()):
                for name, _ in block.named_children():
                    blocks.setdefault(f"{stage}: {name}", []).append(f"{stage}.{index}.{name}")
        return {
            "first layer": ["first_layer"],
            "timestep embedding": ["timestep_embedding"],
            **{f"{name} embedding": [f"condition_embedding.{name}"] for name in self.condition_embedding},
            **blocks,
            "last layer": ["last_norm", "last_layer"],
        }

    @staticmethod
    def _check(config: UNetConfig, spec: NetworkSpec) -> None:
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
        if len(spec.latent.size) != 2:
            raise UserError("a U-Net takes images, not clips; use a DiT")
        check_divisible(
            "latents",
            (spec.latent.size[0], spec.latent.size[1]),
            config.factor,
            f"{config.factor}, as the U-Net's {len(config.multipliers)} levels need",
            "; or take fewer multipliers",
        )

    def initialise(self, generator: torch.Generator) -> UNet:
        """Draw every weight, in one place, as both public codes do."""
        for module in self.modules():
            if isinstance(module, nn.Conv2d | nn.Linear):
                bound = 1 / math.sqrt(module.weight[0].numel())  # of a uniform draw: PyTorch's own for both
                nn.init.uniform_(module.weight, -bound, bound, generator=generator)
                if module.bias is not None:
                    nn.init.uniform_(module.bias, -bound, bound, generator=generator)
            elif isinstance(module, nn.GroupNorm | nn.LayerNorm):
                nn.init.ones_(module.weight)
                nn.init.zeros_(module.bias)
        for module in self.condition_embedding.children():
            table = module.table if isinstance(module, LabelEmbedding | TextEmbedding) else None
            if table is not None:
                nn.init.normal_(table.weight, generator=generator)
        # A new block adds nothing, so that it is the identity unless it changes the channels; a new network predicts zero.
        for module in self.modules():
            if isinstance(module, ResidualBlock):
                _zero(module.convolution2)
            elif isinstance(module, AttentionBlock):
                _zero(module.attention.projection)
            elif isinstance(module, SpatialTransformer):
                _zero(module.projection)
        _zero(self.last_layer)
        return self

    def forward(self, x: Tensor, t: Tensor, condition: Condition, r: Tensor | None = None) -> Tensor:
        """Predict from noised samples x (N, C, H, W): (N, C or 2 C, H, W)."""
        conditioning = self.condition_embedding(condition)
        if conditioning.channels is not None:
            x = torch.cat([x, conditioning.channels], dim=1)
        if x.device.type == "cpu":  # oneDNN's convolutions work in this layout; on a GPU the compiler chooses its own
            x = x.contiguous(memory_format=torch.channels_last)
        time = self.timestep_embedding(t)  # (N, 1, E)
        c = F.silu((conditioning.add_vectors(time) if self.adm else time)[:, 0])  # (N, E)
        context = None if self.adm else torch.stack(list(conditioning.vectors.values()), dim=1)  # (N, S, CONTEXT)
        x = self.first_layer(x)
        skips = [x]
        for block in self.down:
            skips.append(x := self.run_block(block, x, c, context))
        for block in self.middle:
            x = self.run_block(block, x, c, context)
        for block in self.up:
            x = self.run_block(block, x, c, context, skips.pop() if block.has_skip else None)
        return self.last_layer(F.silu(self.last_norm(x)))  # (N, C or 2 C, H, W)


def _heads(channels: int, head_width: int) -> int:
    most = max(channels // head_width, 1)
    return next(heads for heads in range(most, 0, -1) if channels % heads == 0)


def _zero(layer: nn.Linear | nn.Conv2d) -> None:
    nn.init.zeros_(layer.weight)
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)
