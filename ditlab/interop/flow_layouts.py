"""Turn checkpoints of SiT, REPA and LightningDiT into the public DiT layout of a network that ditlab's rectified flow runs.

The weights absorb every difference exactly:

- SiT and LightningDiT have noise at t = 0, data at t = 1, and predict data - noise; REPA has them as ditlab, data at 0.
- SiT has channels of a variance that it never uses.
- LightningDiT's RMS norms have weights, its rotary positions pair neighbouring channels, rows before columns.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ditlab.errors import UserError
from ditlab.models.layout import rotary_positions

Tensors = dict[str, Tensor]
TIME, OUT = "t_embedder.mlp.0.weight", "final_layer.linear"
ROPE = "feat_rope.freqs_cos"


def reverse_time(tensors: Tensors) -> None:
    """Change a network of time 1 - t into one of t, whose velocity points from data to noise.

    Its sinusoids are cos(f - f t) = cos f cos(f t) + sin f sin(f t) and sin(f - f t) = sin f cos(f t) - cos f sin(f t), so
    that the first Linear of the timestep embedding is multiplied by a reflection; the last Linear changes its sign.
    """
    weight = tensors[TIME].double()
    cosines, sines = weight.chunk(2, dim=1)
    half = cosines.shape[1]
    f = torch.exp(-math.log(10000) * torch.arange(half, dtype=torch.float32) / half).double()
    tensors[TIME] = torch.cat([cosines * f.cos() + sines * f.sin(), cosines * f.sin() - sines * f.cos()], dim=1).float()
    for kind in ("weight", "bias"):
        tensors[f"{OUT}.{kind}"] = -tensors[f"{OUT}.{kind}"]


def drop_variance(tensors: Tensors, channels: int, patch: int) -> None:
    """Remove the second half of the channels out, where a network of flow matching has them."""
    area = patch**2
    if len(tensors[f"{OUT}.weight"]) != 2 * channels * area:
        return
    for kind in ("weight", "bias"):
        tensor = tensors[f"{OUT}.{kind}"]
        tensors[f"{OUT}.{kind}"] = tensor.unflatten(0, (area, 2 * channels))[:, :channels].flatten(0, 1)


def fold_norms(tensors: Tensors) -> bool:
    """Move the weights w of RMS norms into the modulation after them; returns whether there were any.

    w n (1 + scale) = n (1 + (w scale + w - 1)) for the normalised tokens n.
    """
    folded = False
    for name in [name for name in tensors if name.endswith((".norm1.weight", ".norm2.weight", ".norm_final.weight"))]:
        owner, _, norm = name.removesuffix(".weight").rpartition(".")
        weight, modulation = tensors.pop(name).float(), f"{owner}.adaLN_modulation.1"
        place = {"norm1": 1, "norm2": 4, "norm_final": 1}[norm]  # of the scale among the vectors
        rows = slice(place * len(weight), (place + 1) * len(weight))
        for kind, each in (("weight", weight[:, None]), ("bias", weight)):
            tensor = tensors[f"{modulation}.{kind}"].float().clone()
            tensor[rows] *= each
            tensors[f"{modulation}.{kind}"] = tensor
        tensors[f"{modulation}.bias"][rows] += weight - 1
        folded = True
    return folded


def rename_swiglu(tensors: Tensors) -> bool:
    """Name SwiGLU's Linears as the MLP's; returns whether there were any.

    The inner width becomes a multiple of 8, as ditlab has it, by channels that are zero.
    """
    found = [name for name in tensors if ".mlp.w12." in name or ".mlp.w3." in name]
    for name in found:
        tensor = tensors.pop(name)
        if ".mlp.w12." in name:
            parts = [_padded(part, 0) for part in tensor.chunk(2)]
            tensors[name.replace(".w12.", ".fc1.")] = torch.cat(parts)
        else:
            tensors[name.replace(".w3.", ".fc2.")] = _padded(tensor, 1) if name.endswith("weight") else tensor
    return bool(found)


def _padded(tensor: Tensor, axis: int) -> Tensor:
    shape = list(tensor.shape)
    shape[axis] = -shape[axis] % 8
    return torch.cat([tensor, tensor.new_zeros(shape)], dim=axis)


def reorder_rotary(tensors: Tensors, heads: int, path: object) -> None:
    """Reorder the channels of each head of queries and keys: neighbours, rows first, to halves, columns first.

    UserError: the rotary positions have other frequencies than ditlab's.
    """
    qkv = [name for name in tensors if ".attn.qkv." in name]
    width = len(tensors[qkv[0]]) // 3
    head = width // heads
    if head % 4:
        raise UserError(
            f"{path} has rotary positions, which heads of a width of {head} ({heads} heads) cannot have; give --heads"
        )
    row, column = torch.arange(0, head // 2, 2), torch.arange(head // 2, head, 2)
    order = torch.cat([column, row, column + 1, row + 1])
    if ROPE in tensors:
        found = tensors.pop(ROPE).float()
        side = math.isqrt(len(found))
        cosines, _ = rotary_positions(head, (side, side))
        if found.shape != (side * side, head) or not torch.allclose(found[:, order[: head // 2]], cosines, atol=0.01):
            raise UserError(
                f"{path} is of another architecture: its rotary positions have other frequencies than LightningDiT's"
            )
    for name in qkv:
        parts = tensors[name].unflatten(0, (3, heads, head)).clone()
        parts[:2] = parts[:2, :, order]
        tensors[name] = parts.flatten(0, 2)
    for name in tensors:
        if name.endswith((".attn.q_norm.weight", ".attn.k_norm.weight")):
            tensors[name] = tensors[name][order]
