"""The diffusion transformer (Peebles and Xie 2022), arXiv 2212.09748."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ditlab.errors import UserError, nearest
from ditlab.models import text_blocks  # noqa: F401 - registers its designs
from ditlab.models.blocks import BLOCKS, Block, BlockConfig, FinalLayer, ModulationTable
from ditlab.models.condition import Condition
from ditlab.models.condition_embedding import (
    BlockEmbedding,
    ConditionEmbedding,
    Conditioning,
    LabelEmbedding,
    TextEmbedding,
    TimestepEmbedding,
)
from ditlab.models.layout import Layouts
from ditlab.models.spec import Network, NetworkSpec, Supports
from ditlab.models.tokens import Patching, Tokens

SIZES = {"S": (12, 384, 6), "B": (12, 768, 12), "L": (24, 1024, 16), "XL": (28, 1152, 16)}  # depth, width, heads
PATCHES = (2, 4, 8)
NAMES = tuple(f"DiT-{size}/{patch}" for size in SIZES for patch in PATCHES)


@dataclass(frozen=True, kw_only=True)
class DiTConfig(BlockConfig):
    """The configuration of a DiT; by default the paper's S/2 (table 1)."""

    kind: ClassVar[str] = "DiT"
    depth: int = 12
    """Transformer blocks."""
    patch: int = 2
    """Side of a patch, in latent pixels."""
    position_grid: tuple[int, ...] = ()
    """Rows and columns of patches that positions span: a network fine-tuned at another size interpolates those of the size it
    was first trained at. Empty: as many as the sample has."""
    block_embeddings: bool = False
    """Each block has a timestep and a label embedding of its own, as after training in diffusers; adaln-zero and adaln only."""

    @classmethod
    def named(cls, name: str, **changes: object) -> DiTConfig:
        """The configuration of a model of the paper, as ``DiT-XL/2`` or ``XL/2``.

        Raises:
            UserError: an unknown size, or a patch that is not a positive number.
        """
        match = re.fullmatch(r"(?:DiT-)?([A-Z]+)/(\d+)", name, re.IGNORECASE)
        if not match or match[1].upper() not in SIZES or int(match[2]) < 1:
            raise UserError(f"unknown model {name!r}; {nearest(name, NAMES)}")
        depth, width, heads = SIZES[match[1].upper()]
        return replace(cls(depth=depth, width=width, heads=heads, patch=int(match[2])), **changes)  # type: ignore[arg-type]

    @property
    def divisor(self) -> tuple[int, str]:
        """What rows and columns of a sample must be divisible by, and why: ``(2, "patch 2")``."""
        return max(self.patch, 1), f"patch {self.patch}"  # a patch below 1 is refused by ``check``

    def fine_tuned(self, spec: NetworkSpec) -> DiTConfig:
        """The configuration for training at other sizes: positions span those of ``spec``, the network's so far."""
        grid = Patching(self.patch).grid(spec.latent.size)[-2:]
        return self if self.position_grid else replace(self, position_grid=grid)

    def build_network(self, spec: NetworkSpec) -> DiT:
        """The network, its weights still to be drawn or loaded."""
        return DiT(self, spec)

    def check(self) -> None:
        """Raise UserError where values are out of range or do not go together."""
        if self.block not in BLOCKS:
            own = "one of your own is registered first: import the file with its register_block"
            raise UserError(f"unknown block {self.block!r}; {nearest(self.block, BLOCKS)}; {own}")
        if min(self.depth, self.width, self.heads, self.patch) < 1:
            raise UserError(f"depth, width, heads and patch of a DiT are at least 1: {self}")
        if not 0 < self.mlp_ratio < 1000 or round(self.width * self.mlp_ratio) < 1:
            raise UserError(f"MLP ratio {self.mlp_ratio} must be above 0; the paper's is 4")
        if self.width % self.heads or self.width % 4:
            raise UserError(f"width {self.width} must be divisible by 4 and by its {self.heads} heads")
        if self.positions == "rotary" and self.width // self.heads % 4:
            raise UserError(
                f"rotary positions need heads of a width divisible by 4, not {self.width // self.heads} "
                f"(width {self.width} over {self.heads} heads)"
            )
        if self.position_grid and (len(self.position_grid) != 2 or min(self.position_grid) < 1):
            raise UserError(f"position grid {self.position_grid} must be rows and columns of patches, or empty")
        design, corrected = BLOCKS[self.block], self.modulation_rank or self.shared_modulation
        if self.block_embeddings and (corrected or design.text or not design.adaptive):
            raise UserError(
                "block embeddings are for the blocks adaln-zero and adaln, without a modulation rank or shared modulation"
            )
        if self.attention != "full" and (design.appends or (design.text and self.block != "adaln-cross-attention")):
            raise UserError(
                f"attention within {self.attention} is for blocks whose text or labels are no part of the sequence, such as "
                f"adaln-zero and adaln-cross-attention, not {self.block!r}"
            )
        if self.window and (len(self.window) != 2 or min(self.window) < 1 or self.attention != "windows"):
            raise UserError(f"window {self.window} must be rows and columns of patches, for --model.attention windows")
        if self.modulation_rank < 0 or self.modulation_rank > self.width:
            raise UserError(f"modulation rank {self.modulation_rank} must be from 0, off, to the width {self.width}")
        if self.modulation_rank and self.shared_modulation:
            raise UserError("a modulation rank and shared modulation are two corrections of one modulation; choose one")
        if corrected and not design.adaptive:
            what = "a modulation rank" if self.modulation_rank else "shared modulation"
            raise UserError(f"{what} is for the adaln blocks; {self.block!r} has no modulation")


class DiT(Network):
    """Tokens of latent patches through transformer blocks, conditioned on time and label.

    Raises:
        UserError: the patch does not divide the sample, or the heads the width, or the block needs a text.
    """

    config: DiTConfig

    def __init__(self, config: DiTConfig, spec: NetworkSpec):
        super().__init__(config, spec)
        config.check()
        design = BLOCKS[config.block]
        clips = len(spec.latent.size) == 3
        if design.text and not any(condition.sequence for condition in spec.conditions):
            others = ", ".join(name for name, other in BLOCKS.items() if not other.text)
            raise UserError(f"block {config.block!r} needs a text condition, which this network lacks; choose {others}")
        frame_times = clips and design.adaptive and design.frame_times
        # A pack's text tokens would have to be packed too, and its windows would be of several sizes.
        packs = design.adaptive and not design.text and config.attention == "full"
        self.supports = Supports(clips=clips, frame_times=frame_times, packs=packs, tokens=True)
        self.patching = Patching(config.patch)
        *_, rows, columns = self.patching.grid(spec.latent.size)  # raises where the patch does not divide it
        span = config.position_grid or (rows, columns)
        head_width = config.width // config.heads if config.positions == "rotary" else 0
        scale = span[0] / rows, span[1] / columns
        self.layouts = Layouts(config.width, head_width, scale, config.attention, config.window)
        width, area = config.width, config.patch**2
        self.patch_embedding = nn.Linear(spec.channels_in * area, width)
        self.timestep_embedding = TimestepEmbedding(width)
        self.interval_embedding = TimestepEmbedding(width) if spec.interval else None
        self.condition_embedding = ConditionEmbedding(spec.conditions, width, design.pooled)
        more = config.depth - 1 if config.block_embeddings else 0  # the first block and the last layer use those above
        self.block_embeddings = nn.ModuleList(BlockEmbedding(spec.conditions, width) for _ in range(more))
        shared = config.modulation_rank or config.shared_modulation
        self.shared_modulation = nn.Linear(width, design.vectors * width) if shared else None
        self.blocks = nn.ModuleList(config.build(index, config.depth) for index in range(config.depth))
        self.final_layer = FinalLayer(config, area * spec.channels_out, design.adaptive)

    def initialise(self, generator: torch.Generator) -> DiT:
        """Draw every weight, in one place, as the paper's code does."""
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight, generator=generator)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
        for module in self.modules():
            if isinstance(module, TimestepEmbedding):
                for linear in (module.mlp[0], module.mlp[2]):
                    nn.init.normal_(linear.weight, std=0.02, generator=generator)  # type: ignore[arg-type]
            elif isinstance(module, LabelEmbedding):
                nn.init.normal_(module.table.weight, std=0.02, generator=generator)
            elif isinstance(module, TextEmbedding):
                nn.init.normal_(module.null, std=0.02, generator=generator)
                if module.table is not None:
                    nn.init.normal_(module.table.weight, generator=generator)  # as large as the positions added to it
        # Zero modulation makes every adaLN-Zero block the identity; a zero last Linear makes the first prediction zero.
        for name, module in self.named_modules():
            if name.endswith("modulation") and isinstance(module, nn.Linear):
                nn.init.zeros_(module.weight)
            elif isinstance(module, ModulationTable):
                nn.init.zeros_(module.table)
        for block in self.blocks:
            for linear in block.zero_linears():  # type: ignore[operator]
                nn.init.zeros_(linear.weight)
        nn.init.zeros_(self.final_layer.linear.weight)
        return self

    def forward(self, x: Tensor, t: Tensor, condition: Condition, r: Tensor | None = None) -> Tensor:
        """Predict from noised samples x (N, C, *size) of any size the patch divides: (N, C or 2 C, *size)."""
        conditioning = self._embed(condition)
        if conditioning.channels is not None:
            x = torch.cat([x, conditioning.channels], dim=1)  # (N, C + C', *size)
        tokens = self.patching.to_tokens(x)
        return self.patching.to_sample(self.forward_tokens(tokens, t, conditioning, r))  # type: ignore[return-value]

    def forward_pack(
        self, samples: Sequence[Tensor], t: Tensor, condition: Condition, r: Tensor | None = None, length: int = 0
    ) -> list[Tensor]:
        """Predict from samples (C, *size) of several sizes in one sequence, padded to ``length``: times (samples,)."""
        tokens = self.patching.to_tokens(samples, length)
        return self.patching.to_sample(self.forward_tokens(tokens, t, self._embed(condition), r))  # type: ignore[return-value]

    def _embed(self, condition: Condition) -> Conditioning:
        blocks = tuple(embedding.condition_embedding(condition) for embedding in self.block_embeddings)  # type: ignore[operator]
        return self.condition_embedding(condition)._replace(blocks=blocks)

    def forward_tokens(self, tokens: Tokens, t: Tensor, conditioning: Conditioning, r: Tensor | None) -> Tokens:
        """The transformer: patches (R, L, P) to predicted patches (R, L, P').

        Raises:
            UserError: a pack or a time a frame, which the network does not support.
        """
        if tokens.segment is not None and not self.supports.packs:
            raise UserError(f"block {self.config.block!r} does not support samples of several sizes in one sequence")
        if t.ndim == 2 and not self.supports.frame_times:
            raise UserError(f"block {self.config.block!r} does not support a time per frame")
        time = self.timestep_embedding(t)  # (N, G, D)
        if self.interval_embedding is not None:
            time = time + self.interval_embedding(torch.zeros_like(t) if r is None else t - r)
        context, c = self.design.prepare(time, conditioning)  # (N, S, D) and None, or None and (N, G, D)
        layout = self.layouts(tokens, context.tokens.shape[1] if context and self.design.appends else 0)
        # In bf16 training the positions' float32 keeps what the blocks add to in it, whatever the Linear gives.
        x = self.patch_embedding(tokens.x) + layout.positions  # (R, L, D)
        shared = None if self.shared_modulation is None or c is None else self.shared_modulation(F.silu(c))
        own = [
            self.design.prepare(embedding.timestep_embedding(t), each)[1]  # type: ignore[operator]
            for embedding, each in zip(self.block_embeddings, conditioning.blocks, strict=True)
        ]
        windows = [layout._replace(windows=each) for each in self.layouts.windows(tokens)]
        for index, (block, each) in enumerate(
            zip(self.blocks, [c, *own] if own else [c] * len(self.blocks), strict=True)
        ):
            x, context = self.run_block(
                block, x, context, each, windows[index % len(windows)], shared
            )  # (R, L, D), (N, S, D)
        return replace(tokens, x=self.final_layer(x, c, layout))  # (R, L, patch * patch * out)

    @property
    def design(self) -> type[Block]:
        """The class of the blocks."""
        return BLOCKS[self.config.block]

    def block_list(self) -> Sequence[nn.Module]:  # noqa: D102
        return list(self.blocks)

    def token_count(self) -> int:  # noqa: D102
        return torch.Size(self.patching.grid(self.spec.latent.size)).numel()

    def constants(self) -> list[Tensor]:  # noqa: D102
        return [*self.buffers(), *self.layouts.tensors()]

    def parts(self) -> dict[str, list[str]]:  # noqa: D102
        blocks: dict[str, list[str]] = {}
        for index, block in enumerate(self.blocks):
            for name, _ in block.named_children():
                if not name.startswith("norm"):
                    blocks.setdefault(f"blocks: {name.replace('_', '-')}", []).append(f"blocks.{index}.{name}")
        shared = {} if self.shared_modulation is None else {"shared modulation": ["shared_modulation"]}
        if self.block_embeddings:
            shared["block embeddings"] = ["block_embeddings"]
        return {
            "patch embedding": ["patch_embedding"],
            "timestep embedding": ["timestep_embedding"],
            **{f"{name} embedding": [f"condition_embedding.{name}"] for name in self.condition_embedding},
            **shared,
            **blocks,
            "final layer": ["final_layer"],
        }
