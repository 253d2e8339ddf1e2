"""Attention on this machine: ours against PyTorch's fused kernel as it comes, forward and backward, in turn.

    python benchmarks/attention.py [--json benchmarks/results/attention-cpu.json]

Why bfloat16 training on a CPU writes attention out (ditlab/models/attention.py), and up to how many tokens. Then every
backend of PyTorch's fused attention that runs on this device, against the one it chooses, at DiT-XL/2's shape.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from itertools import chain

import torch
import torch.nn.functional as F
from table import Row, arguments, compare, in_turn, show
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from ditlab.models.attention import attend

SHAPES = {  # (images, heads, tokens, width of a head)
    "digits": (128, 4, 16, 16),
    "fashion": (128, 6, 49, 32),
    "DiT-S/2": (16, 6, 256, 64),
    "DiT-XL/2": (4, 16, 256, 72),
    "DiT-S/2 at 512 px": (2, 6, 1024, 64),
}


def row(name: str, dtype: torch.dtype, device: torch.device, rounds: int) -> Row:
    """One shape."""
    generator = torch.Generator().manual_seed(0)
    tensors = [torch.randn(SHAPES[name], generator=generator).to(device, dtype).requires_grad_() for _ in range(3)]

    def both(attention):
        def work() -> None:
            q, k, v = tensors
            result: Tensor = attention(q, k, v)
            result.backward(torch.ones_like(result))

        return work

    times = in_turn(both(attend), both(F.scaled_dot_product_attention), device, rounds, 3)
    precision = "bf16" if dtype == torch.bfloat16 else "fp32"
    return compare(f"{name} {SHAPES[name]}", "torch's fused", device, precision, "calls/s", 1, *times)


def backends(device: torch.device, rounds: int) -> Iterator[Row]:
    """Forward and backward in bfloat16 with each backend, in turn with the one that PyTorch chooses."""
    shape = (64 if device.type == "cuda" else 2, 16, 256, 72)
    q, k, v = (torch.randn(shape, device=device, dtype=torch.bfloat16, requires_grad=True) for _ in range(3))
    gradient = torch.ones_like(q)

    def work(chosen: list[SDPBackend]) -> Callable[[], None]:
        def call() -> None:
            with sdpa_kernel(chosen) if chosen else contextlib.nullcontext():
                F.scaled_dot_product_attention(q, k, v).backward(gradient)

        return call

    for backend in (
        SDPBackend.FLASH_ATTENTION,
        SDPBackend.CUDNN_ATTENTION,
        SDPBackend.EFFICIENT_ATTENTION,
        SDPBackend.MATH,
    ):
        try:
            times = in_turn(work([backend]), work([]), device, rounds, 10)
        except RuntimeError:  # not on this device
            continue
        yield compare(f"{backend.name} {shape}", "PyTorch's choice", device, "bf16", "calls/s", 1, *times)


def main() -> None:
    """Run what the flags say."""
    given = arguments(__doc__ or "").parse_args()
    device = torch.device(given.device)
    rounds = 3 if given.quick else 9
    ours = (row(name, dtype, device, rounds) for dtype in (torch.bfloat16, torch.float32) for name in SHAPES)
    show("Attention, forward and backward", chain(backends(device, rounds), ours), given.json)


if __name__ == "__main__":
    main()
