"""The paper's four transformer blocks (DiT, section 3.2, figure 3) and the layer after the last of them.

A design owns how its condition is laid out: ``prepare`` turns the time embedding (N, G, D) and the embedded condition into
context tokens and the input of the modulation, and every block is called as
``x, context = block(x, context, modulation_input, layout, shared_modulation)`` with tokens x (N, L, D). G is 1, or F for a
time a frame: a group of L / G tokens shares its modulation, which is computed once a group, never once a token.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, NamedTuple, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ditlab.errors import UserError
from ditlab.models.attention import EPSILON, CrossAttention, SelfAttention
from ditlab.models.condition_embedding import Conditioning
from ditlab.models.layout import Layout
from ditlab.models.modulation import ModulationTable, by_token, gated, modulate


class Context(NamedTuple):
    """Context tokens (N, S, D) and, where not all are valid, their mask, bool (N, S)."""

    tokens: Tensor
    mask: Tensor | None = None


Maybe = Tensor | None
Output = tuple[Tensor, Context | None]


@dataclass(frozen=True, kw_only=True)
class BlockConfig:
    """The configuration of a block; the paper's by default."""

    block: str = "adaln-zero"
    """How time and condition reach the blocks: adaln-zero, adaln, cross-attention, in-context; for text also
    adaln-cross-attention, adaln-in-context, joint; or a registered name."""
    width: int = 384
    """Width of every token (the paper's hidden size d)."""
    heads: int = 6
    """Attention heads; must divide the width."""
    mlp_ratio: float = 4.0
    """Width of the MLP's inner layer divided by the width."""
    mlp: Literal["gelu", "swiglu"] = "gelu"
    """The paper's GELU, or SwiGLU with two thirds of the inner width, which costs as much."""
    norm: Literal["layer", "rms"] = "layer"
    """The paper's layer norm, or root-mean-square norm."""
    positions: Literal["sincos", "rotary"] = "sincos"
    """The paper's sine-cosine positions added to the tokens; rotary adds rotary positions in every attention."""
    attention: Literal["full", "windows", "axes"] = "full"
    """Tokens that a token of a clip attends to. windows: of its frame, and in every second block of a window of ``window``
    patches over all frames (W.A.L.T). axes: of its frame, and in every second block of its place in all frames (Latte)."""
    window: tuple[int, ...] = ()
    """Rows and columns of patches of a window over all frames; empty: half of the rows and of the columns (windows)."""
    qk_norm: bool = False
    """Normalise queries and keys, which keeps attention from saturating."""
    modulation_rank: int = 0
    """adaLN-LoRA: one modulation shared by all blocks and a correction of this rank in each; 0 is one in each block."""
    shared_modulation: bool = False
    """adaLN-single: one modulation shared by all blocks and a learned table in each, and in the final layer."""

    def build(self, index: int, depth: int) -> Block:
        """Block ``index`` of ``depth``."""
        return BLOCKS[self.block].build(self, index, depth)


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


class Block(nn.Module, ABC):
    """The contract of a design.

    Attributes:
        adaptive: norms are modulated, so that a time a frame and packs need no context tokens.
        frame_times: with adaptive norms, a time a frame is supported.
        appends: the context is part of the sequence that self-attention sees.
        vectors: modulation vectors of a block; 0 for none.
        text: the context is the tokens of a text, which the network's conditions have to contain.
        pooled: the pooled text is one of the conditioning's vectors.
    """

    adaptive, frame_times, appends, vectors, text, pooled = False, True, False, 0, False, True

    @classmethod
    def build(cls, config: BlockConfig, index: int, depth: int) -> Block:
        """Block ``index`` of ``depth``; designs whose blocks differ by place decide here."""
        return cls(config)

    def zero_linears(self) -> tuple[nn.Linear, ...]:
        """Linears that start at zero besides those named ``modulation``."""
        return ()

    @staticmethod
    def prepare(time: Tensor, conditioning: Conditioning) -> tuple[Context | None, Maybe]:
        """Context and modulation input (N, G, D) from the time embedding (N, G, D) and the embedded condition."""
        tokens, mask = conditioning.as_tokens(time)
        return Context(tokens, mask), None

    @abstractmethod
    def forward(self, x: Tensor, context: Context | None, c: Maybe, layout: Layout, shared: Maybe = None) -> Output:
        """Transform tokens x (N, L, D) and, in designs that change it, the context.

        Context and modulation input c (N, G, D) come from ``prepare``; ``shared`` (N, G, vectors D) is the modulation that
        all blocks of the network have in common.
        """


class AdaLNZeroBlock(Block):
    """Adaptive layer norm with gates that start at zero, so that the block starts as the identity."""

    adaptive, vectors = True, 6  # shift, scale and gate of the attention, then of the MLP

    @staticmethod
    def prepare(time: Tensor, conditioning: Conditioning) -> tuple[Context | None, Maybe]:
        """No context; the sum of all vectors modulates."""
        return None, conditioning.add_vectors(time)

    def __init__(self, config: BlockConfig):
        super().__init__()
        self.config = config
        width, rank = config.width, config.modulation_rank
        self.attention = SelfAttention(width, config.heads, config.qk_norm)
        self.mlp = MLP(config)
        self.reduction = nn.Linear(width, rank, bias=False) if rank else None
        self.modulation: nn.Linear | ModulationTable
        if config.shared_modulation:
            self.modulation = ModulationTable(self.vectors, width)
        else:
            self.modulation = nn.Linear(rank or width, self.vectors * width)

    def modulation_vectors(self, c: Tensor, layout: Layout, shared: Maybe) -> tuple[Tensor, ...]:
        """Shifts, scales and gates, each (N, G, D), from c (N, G, D) or, where modulation is shared, from ``shared``."""
        if self.config.shared_modulation:
            made = self.modulation(shared)  # (N, G, vectors D)
        else:
            c = F.silu(c)
            made = self.modulation(c if self.reduction is None else self.reduction(c))  # (N, G, vectors D)
            made = made if shared is None else shared + made
        return by_token(made, layout).chunk(self.vectors, dim=2)

    def norm(self, x: Tensor) -> Tensor:
        """A norm without parameters of its own: shift and scale come from the condition."""
        return plain_norm(x, self.config.norm)

    def forward(self, x: Tensor, context: Context | None, c: Maybe, layout: Layout, shared: Maybe = None) -> Output:
        """See ``Block.forward``."""
        assert c is not None
        shift1, scale1, gate1, shift2, scale2, gate2 = self.modulation_vectors(c, layout, shared)  # each (N, G, D)
        x = gated(
            x, gate1, self.attention(modulate(self.norm(x), shift1, scale1), layout.rope, layout.mask, layout.windows)
        )
        return gated(x, gate2, self.mlp(modulate(self.norm(x), shift2, scale2))), context


class AdaLNBlock(AdaLNZeroBlock):
    """Adaptive layer norm: shift and scale from the condition, no gates."""

    vectors = 4

    def forward(self, x: Tensor, context: Context | None, c: Maybe, layout: Layout, shared: Maybe = None) -> Output:
        """See ``Block.forward``."""
        assert c is not None
        shift1, scale1, shift2, scale2 = self.modulation_vectors(c, layout, shared)
        x = x + self.attention(modulate(self.norm(x), shift1, scale1), layout.rope, layout.mask, layout.windows)
        return x + self.mlp(modulate(self.norm(x), shift2, scale2)), context


class InContextBlock(Block):
    """The plain transformer block over the tokens and, after them, the context: time, label and text."""

    appends = True

    def __init__(self, config: BlockConfig):
        super().__init__()
        self.norm1, self.attention = learned_norm(config), SelfAttention(config.width, config.heads, config.qk_norm)
        self.norm2, self.mlp = learned_norm(config), MLP(config)

    def forward(self, x: Tensor, context: Context | None, c: Maybe, layout: Layout, shared: Maybe = None) -> Output:
        """See ``Block.forward``."""
        assert context is not None
        length, mask = x.shape[1], None
        if context.mask is not None:
            mask = F.pad(context.mask, (length, 0), value=True)[:, None, None]  # (N, 1, 1, L + S)
        x = torch.cat([x, context.tokens.to(x.dtype)], dim=1)  # (N, L + S, D)
        x = x + self.attention(self.norm1(x), layout.rope, mask)
        x = x + self.mlp(self.norm2(x))
        return x[:, :length], Context(x[:, length:], context.mask)


class CrossAttentionBlock(Block):
    """The plain block with a cross-attention to the context between its two halves."""

    def __init__(self, config: BlockConfig):
        super().__init__()
        self.norm1, self.attention = learned_norm(config), SelfAttention(config.width, config.heads, config.qk_norm)
        self.norm_cross, self.cross_attention = learned_norm(config), CrossAttention(config.width, config.heads)
        self.norm2, self.mlp = learned_norm(config), MLP(config)

    def forward(self, x: Tensor, context: Context | None, c: Maybe, layout: Layout, shared: Maybe = None) -> Output:
        """See ``Block.forward``."""
        assert context is not None
        x = x + self.attention(self.norm1(x), layout.rope, layout.mask, layout.windows)
        x = x + self.cross_attention(self.norm_cross(x), context.tokens, context.mask)
        return x + self.mlp(self.norm2(x)), context


B = TypeVar("B", bound=Block)


class FinalLayer(nn.Module):
    """Norm and the Linear that turns tokens (N, L, D) into patches (N, L, out).

    With ``adaptive`` the norm is modulated by the modulation input (N, G, D), through a Linear or, where modulation is shared,
    plus a table; the designs without adaptive norms have a learned norm here too, which is what the paper's parameter counts
    say.
    """

    def __init__(self, config: BlockConfig, out: int, adaptive: bool):
        super().__init__()
        self.kind = config.norm
        self.norm = None if adaptive else learned_norm(config)
        self.modulation: nn.Linear | ModulationTable | None = None
        self.shared = config.shared_modulation
        if adaptive:
            width = config.width
            self.modulation = ModulationTable(2, width) if self.shared else nn.Linear(width, 2 * width)
        self.linear = nn.Linear(config.width, out)

    def forward(self, x: Tensor, c: Maybe, layout: Layout) -> Tensor:
        """Patches of tokens x (N, L, D) under c (N, G, D)."""
        x = plain_norm(x, self.kind) if self.norm is None else self.norm(x)
        if self.modulation is not None and c is not None:
            made = self.modulation(torch.cat([c, c], dim=2) if self.shared else F.silu(c))  # (N, G, 2 D)
            shift, scale = by_token(made, layout).chunk(2, dim=2)
            x = modulate(x, shift, scale)
        return self.linear(x)


BLOCKS: dict[str, type[Block]] = {
    "adaln-zero": AdaLNZeroBlock,
    "adaln": AdaLNBlock,
    "cross-attention": CrossAttentionBlock,
    "in-context": InContextBlock,
}
PAPER_BLOCKS = tuple(BLOCKS)


def register_block(name: str) -> Callable[[type[B]], type[B]]:
    """Class decorator that makes a block design of your own a value of ``DiTConfig.block``.

    ``@ditlab.register_block("parallel")`` before ``class ParallelBlock(Block)``. The class takes a ``BlockConfig`` and has the
    methods that ``Block`` describes. A model with such a block is loaded where the name is registered: import the module
    that does it first. Registering a name again replaces the class, as running a notebook's cell again does.

    Args:
        name: of the design, in recipes and model files.

    Raises:
        UserError: a name that a design of ditlab has, or a class that is no Block.
    """
    shipped = [known for known, design in BLOCKS.items() if design.__module__.startswith("ditlab.")]
    if not name or name in shipped:
        raise UserError(f"block name {name!r} is taken; choose one that is not {', '.join(shipped)}")

    def register(design: type[B]) -> type[B]:
        if not (isinstance(design, type) and issubclass(design, Block)):
            raise UserError(f"block {name!r}: {design!r} is no subclass of ditlab.models.blocks.Block")
        BLOCKS[name] = design
        return design

    return register
