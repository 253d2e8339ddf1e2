"""Blocks whose context is the tokens of a text: cross-attention, one stream, or two streams.

All are modulated by time and vectors as the paper's adaLN-Zero block. Padding of the text is masked wherever it could be
attended to, and an absent or empty text is one null token, so that no row of a mask is empty.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from ditlab.models.attention import EPSILON, CrossAttention, SelfAttention, attend, attention_weights
from ditlab.models.blocks import MLP, AdaLNZeroBlock, BlockConfig, Context, Maybe, Output, register_block
from ditlab.models.condition_embedding import Conditioning
from ditlab.models.layout import Layout
from ditlab.models.modulation import gated, modulate


class TextBlock(AdaLNZeroBlock):
    """An adaLN-Zero block with the text's tokens as context, modulated by the sum of all vectors."""

    text = True

    @staticmethod
    def prepare(time: Tensor, conditioning: Conditioning) -> tuple[Context | None, Maybe]:
        """The text's tokens, and the sum of time and vectors."""
        assert conditioning.tokens is not None
        return Context(conditioning.tokens, conditioning.mask), conditioning.add_vectors(time)


@register_block("adaln-cross-attention")
class AdaLNCrossAttentionBlock(TextBlock):
    """Cross-attention to the text between the two halves, without norm or gate (PixArt-alpha; Chen et al. 2023, figure 4)."""

    pooled = False

    def __init__(self, config: BlockConfig):
        super().__init__(config)
        self.cross_attention = CrossAttention(config.width, config.heads)

    def zero_linears(self) -> tuple[nn.Linear, ...]:
        """The output of the cross-attention, so that a new block is the identity (PixArt-alpha, section 2.3)."""
        return (self.cross_attention.projection,)

    def forward(self, x: Tensor, context: Context | None, c: Maybe, layout: Layout, shared: Maybe = None) -> Output:
        """See ``Block.forward``."""
        assert c is not None
        assert context is not None
        shift1, scale1, gate1, shift2, scale2, gate2 = self.modulation_vectors(c, layout, shared)  # each (N, G, D)
        x = gated(x, gate1, self.attention(modulate(self.norm(x), shift1, scale1), layout.rope, windows=layout.windows))
        x = x + self.cross_attention(x, context.tokens, context.mask)
        return gated(x, gate2, self.mlp(modulate(self.norm(x), shift2, scale2))), context


@register_block("adaln-in-context")
class AdaLNInContextBlock(TextBlock):
    """The adaLN-Zero block over the patches and, after them, the text: one stream (DiT-Air; Chen et al. 2025).

    The text has no positions here; its encoder knows the order of the tokens.
    """

    frame_times, appends = False, True

    def forward(self, x: Tensor, context: Context | None, c: Maybe, layout: Layout, shared: Maybe = None) -> Output:
        """See ``Block.forward``."""
        assert c is not None
        assert context is not None
        length = x.shape[1]
        x = torch.cat([x, context.tokens.to(x.dtype)], dim=1)  # (N, L + S, D)
        shift1, scale1, gate1, shift2, scale2, gate2 = self.modulation_vectors(c, layout, shared)  # each (N, 1, D)
        x = gated(x, gate1, self.attention(modulate(self.norm(x), shift1, scale1), layout.rope, _keys(length, context)))
        x = gated(x, gate2, self.mlp(modulate(self.norm(x), shift2, scale2)))
        return x[:, :length], Context(x[:, length:], context.mask)


class KeysValues(nn.Module):
    """Keys and values of tokens (N, S, D) that others attend to and that do not attend themselves."""

    def __init__(self, width: int, heads: int, qk_norm: bool):
        super().__init__()
        self.heads = heads
        self.key_value = nn.Linear(width, 2 * width)
        self.norm_k = nn.RMSNorm(width // heads, EPSILON) if qk_norm else None

    def project(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values, each (N, heads, S, D / heads)."""
        k, v = rearrange(self.key_value(x), "n s (two h d) -> two n h s d", two=2, h=self.heads)
        return k if self.norm_k is None else self.norm_k(k.float()).to(v.dtype), v


class JointAttention(nn.Module):
    """Attention within patches and text together, each with projections of its own (Esser et al. 2024, figure 2).

    Args:
        width: D.
        heads: must divide the width.
        qk_norm: as in ``SelfAttention``, with weights of their own for each stream.
        last: the text is attended to, and does not attend.
    """

    def __init__(self, width: int, heads: int, qk_norm: bool, last: bool):
        super().__init__()
        self.patches = SelfAttention(width, heads, qk_norm)
        self.text = (KeysValues if last else SelfAttention)(width, heads, qk_norm)

    def forward(
        self, x: Tensor, text: Tensor, rope: Tensor | None = None, mask: Tensor | None = None
    ) -> tuple[Tensor, Tensor | None]:
        """Patches (N, L, D) and text (N, S, D), or None in the last block; ``rope`` rotates the patches only."""
        length = x.shape[1]
        x = attend(*self._project(x, text, rope), mask)  # (N, heads, L or L + S, D / heads)
        x = rearrange(x, "n h t d -> n t (h d)")
        after = self.text.projection(x[:, length:]) if isinstance(self.text, SelfAttention) else None
        return self.patches.projection(x[:, :length]), after

    def weights(self, x: Tensor, text: Tensor, rope: Tensor | None = None, mask: Tensor | None = None) -> Tensor:
        """The attention weights of ``forward``, (N, heads, L or L + S, L + S)."""
        q, k, _ = self._project(x, text, rope)
        return attention_weights(q, k, mask)

    def _project(self, x: Tensor, text: Tensor, rope: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys and values of the patches, then of the text."""
        q, k, v = self.patches.project(x, rope)
        *queries, keys, values = self.text.project(text)
        return torch.cat([q, *queries], dim=2), torch.cat([k, keys], dim=2), torch.cat([v, values], dim=2)


@register_block("joint")
class JointBlock(TextBlock):
    """Patches and text as two streams with norms, modulation and MLP of their own that attend jointly: MMDiT of SD3.

    The last block updates the patches only (Esser et al. 2024, and the public code of SD3).
    """

    frame_times, vectors = False, 12  # of the patches six as in ``AdaLNZeroBlock``, then of the text

    @classmethod
    def build(cls, config: BlockConfig, index: int, depth: int) -> JointBlock:
        """The last block has no text stream after the attention."""
        return cls(config, last=index == depth - 1)

    def __init__(self, config: BlockConfig, last: bool = False):
        self.vectors = 8 if last else 12  # the text of the last block has shift and scale only
        super().__init__(config)
        self.attention = JointAttention(config.width, config.heads, config.qk_norm, last)
        self.text_mlp = None if last else MLP(config)

    def modulation_vectors(self, c: Tensor, layout: Layout, shared: Maybe) -> tuple[Tensor, ...]:
        """Six vectors of the patches, then six of the text, or two in the last block, each (N, 1, D)."""
        shared = None if shared is None else shared[..., : self.vectors * self.config.width]
        return super().modulation_vectors(c, layout, shared)

    def forward(self, x: Tensor, context: Context | None, c: Maybe, layout: Layout, shared: Maybe = None) -> Output:
        """See ``Block.forward``; the last block returns no context."""
        assert c is not None
        assert context is not None
        vectors = self.modulation_vectors(c, layout, shared)
        shift1, scale1, gate1, shift2, scale2, gate2 = vectors[:6]
        text_shift1, text_scale1, *others = vectors[6:]
        text = context.tokens.to(x.dtype)  # (N, S, D)
        change, text_change = self.attention(
            modulate(self.norm(x), shift1, scale1),
            modulate(self.norm(text), text_shift1, text_scale1),
            layout.rope,
            _keys(x.shape[1], context),
        )
        x = gated(x, gate1, change)
        x = gated(x, gate2, self.mlp(modulate(self.norm(x), shift2, scale2)))
        if self.text_mlp is None:
            return x, None
        text_gate1, text_shift2, text_scale2, text_gate2 = others
        text = gated(text, text_gate1, text_change)
        text = gated(text, text_gate2, self.text_mlp(modulate(self.norm(text), text_shift2, text_scale2)))
        return x, Context(text, context.mask)


def _keys(length: int, context: Context) -> Tensor | None:
    """The mask (N, 1, 1, L + S) of keys: all patches, and the valid tokens of the text."""
    return None if context.mask is None else F.pad(context.mask, (length, 0), value=True)[:, None, None]
