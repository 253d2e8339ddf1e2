"""Random checkpoints of public layouts, and what their networks compute, written from the papers without ditlab's modules."""

from __future__ import annotations

import math

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ditlab.models.layout import sincos_positions


def checkpoint(
    *, width: int = 32, depth: int = 2, heads: int = 2, patch: int = 2, channels: int = 4, side: int = 4, rows: int = 11,
    out: int = 2, rms: bool = False, swiglu: int = 0, rope: bool = False, qk_norm: bool = False, seed: int = 0,
) -> dict[str, Tensor]:  # fmt: skip
    """Tensors by the names of the public DiT layout; with the options those of LightningDiT.

    ``side`` is of the grid of patches, ``rows`` of the label table, ``out`` channels out over channels, ``swiglu`` the inner
    width of SwiGLU.
    """
    generator = torch.Generator().manual_seed(seed)
    tensors: dict[str, Tensor] = {}

    def linear(name: str, rows: int, columns: int) -> None:
        tensors[f"{name}.weight"] = torch.randn(rows, columns, generator=generator) * columns**-0.5
        tensors[f"{name}.bias"] = torch.randn(rows, generator=generator) * 0.1

    def norm(name: str, size: int) -> None:
        tensors[f"{name}.weight"] = 1 + 0.3 * torch.randn(size, generator=generator)

    tensors["pos_embed"] = sincos_positions(width, (side, side))[None]
    linear("x_embedder.proj", width, channels * patch**2)
    tensors["x_embedder.proj.weight"] = tensors["x_embedder.proj.weight"].view(width, channels, patch, patch)
    linear("t_embedder.mlp.0", width, 256)
    linear("t_embedder.mlp.2", width, width)
    tensors["y_embedder.embedding_table.weight"] = torch.randn(rows, width, generator=generator)
    for n in range(depth):
        block = f"blocks.{n}"
        linear(f"{block}.attn.qkv", 3 * width, width)
        linear(f"{block}.attn.proj", width, width)
        for each in ("q_norm", "k_norm") if qk_norm else ():
            norm(f"{block}.attn.{each}", width // heads)
        for each in ("norm1", "norm2") if rms else ():
            norm(f"{block}.{each}", width)
        linear(f"{block}.mlp.{'w12' if swiglu else 'fc1'}", 2 * swiglu or 4 * width, width)
        linear(f"{block}.mlp.{'w3' if swiglu else 'fc2'}", width, swiglu or 4 * width)
        linear(f"{block}.adaLN_modulation.1", 6 * width, width)
    if rms:
        norm("final_layer.norm_final", width)
    linear("final_layer.adaLN_modulation.1", 2 * width, width)
    linear("final_layer.linear", patch**2 * channels * out, width)
    if rope:
        angles = _angles(width // heads, side)
        tensors["feat_rope.freqs_cos"], tensors["feat_rope.freqs_sin"] = angles.cos(), angles.sin()
    return tensors


def _angles(head: int, side: int) -> Tensor:
    """Rotary angles (tokens, head) of a square grid: the first half of a head by row, the second by column, each in pairs."""
    table = np.zeros((side, side, head))
    for row in range(side):
        for column in range(side):
            for k in range(head):
                place, index = (row, k) if k < head // 2 else (column, k - head // 2)
                table[row, column, k] = place / 10000 ** (2 * (index // 2) / (head // 2))
    return torch.from_numpy(table).float().view(side * side, head)


def forward(tensors: dict[str, Tensor], heads: int, x: Tensor, t: Tensor, labels: Tensor) -> Tensor:
    """The output (N, out, H, W) of the public network at its own times t (N,) for rows ``labels`` (N,) of its label table."""

    def linear(name: str, value: Tensor) -> Tensor:
        return F.linear(value, tensors[f"{name}.weight"], tensors[f"{name}.bias"])

    def norm(name: str, value: Tensor) -> Tensor:
        if f"{name}.weight" not in tensors:
            return F.layer_norm(value, value.shape[-1:], eps=1e-6)
        return value * (value.square().mean(-1, keepdim=True) + 1e-6).rsqrt() * tensors[f"{name}.weight"]

    kernel = tensors["x_embedder.proj.weight"]
    patch, width = kernel.shape[-1], kernel.shape[0]
    tokens = F.conv2d(x, kernel, tensors["x_embedder.proj.bias"], stride=patch)
    side = tokens.shape[-1]
    tokens = tokens.flatten(2).transpose(1, 2) + tensors["pos_embed"]
    angles = t[:, None] * torch.exp(-math.log(10000) * torch.arange(128) / 128)
    time = linear("t_embedder.mlp.2", F.silu(linear("t_embedder.mlp.0", torch.cat([angles.cos(), angles.sin()], 1))))
    c = F.silu(time + tensors["y_embedder.embedding_table.weight"][labels])[:, None]
    for n in range(len([name for name in tensors if name.endswith("attn.qkv.weight")])):
        block = f"blocks.{n}"
        shift1, scale1, gate1, shift2, scale2, gate2 = linear(f"{block}.adaLN_modulation.1", c).chunk(6, -1)
        inner = norm(f"{block}.norm1", tokens) * (1 + scale1) + shift1
        q, k, v = linear(f"{block}.attn.qkv", inner).unflatten(-1, (3, heads, width // heads)).unbind(2)
        if f"{block}.attn.q_norm.weight" in tensors:
            q, k = norm(f"{block}.attn.q_norm", q), norm(f"{block}.attn.k_norm", k)
        if "feat_rope.freqs_cos" in tensors:
            q, k = (_rotated(each, tensors) for each in (q, k))
        scores = torch.einsum("nqhd,nkhd->nhqk", q, k) / math.sqrt(width // heads)
        mixed = torch.einsum("nhqk,nkhd->nqhd", scores.softmax(-1), v).flatten(2)
        tokens = tokens + gate1 * linear(f"{block}.attn.proj", mixed)
        inner = norm(f"{block}.norm2", tokens) * (1 + scale2) + shift2
        if f"{block}.mlp.w12.weight" in tensors:
            gate, value = linear(f"{block}.mlp.w12", inner).chunk(2, -1)
            inner = linear(f"{block}.mlp.w3", F.silu(gate) * value)
        else:
            inner = linear(f"{block}.mlp.fc2", F.gelu(linear(f"{block}.mlp.fc1", inner), approximate="tanh"))
        tokens = tokens + gate2 * inner
    shift, scale = linear("final_layer.adaLN_modulation.1", c).chunk(2, -1)
    pieces = linear("final_layer.linear", norm("final_layer.norm_final", tokens) * (1 + scale) + shift)
    pieces = pieces.view(len(x), side, side, patch, patch, -1)
    return torch.einsum("nhwpqc->nchpwq", pieces).reshape(len(x), -1, side * patch, side * patch)


def _rotated(x: Tensor, tensors: dict[str, Tensor]) -> Tensor:
    """Queries or keys (N, T, heads, d), each pair of neighbouring channels rotated by its angle."""
    cosines, sines = (tensors[f"feat_rope.freqs_{name}"][:, None] for name in ("cos", "sin"))
    even, odd = x[..., 0::2], x[..., 1::2]
    return x * cosines + torch.stack([-odd, even], dim=-1).flatten(-2) * sines
