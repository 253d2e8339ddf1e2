"""Attention on this machine: ours against PyTorch's fused kernel as it comes, forward and backward, in turn.

    python benchmarks/attention.py [--json benchmarks/results/attention-cpu.json]

Why bfloat16 training on a CPU writes attention out (ditlab/models/attention.py), and up to how many tokens.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from table import Row, arguments, compare, in_turn, show
from torch import Tensor

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


def main() -> None:
    """Run what the flags say."""
    given = arguments(__doc__ or "").parse_args()
    device = torch.device(given.device)
    rounds = 3 if given.quick else 9
    rows = (row(name, dtype, device, rounds) for dtype in (torch.bfloat16, torch.float32) for name in SHAPES)
    show("Attention, forward and backward", rows, given.json)


if __name__ == "__main__":
    main()
