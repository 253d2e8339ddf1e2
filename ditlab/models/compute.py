"""What a network costs: parameters and multiply-accumulates, by part, counted on the real modules without memory.

The paper's "Gflops" are GMACs, multiply-accumulates of one forward pass of one sample; real FLOPs are twice that.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from ditlab.models.condition import Condition
from ditlab.models.dit import DiT, DiTConfig, NetworkInput


@dataclass(frozen=True)
class Cost:
    """Counts of one network on one sample.

    Attributes:
        parameters: trained numbers by part.
        macs: multiply-accumulates of one forward pass by part.
        tokens: patches of one sample.
    """

    parameters: dict[str, int]
    macs: dict[str, int]
    tokens: int

    @property
    def total_parameters(self) -> int:
        """Trained numbers in all."""
        return sum(self.parameters.values())

    @property
    def gmacs(self) -> float:
        """1e9 multiply-accumulates of one forward pass of one sample: the paper's "Gflops"."""
        return sum(self.macs.values()) / 1e9


def cost(config: DiTConfig, shape: NetworkInput) -> Cost:
    """Count a DiT.

    Raises:
        UserError: the configuration is not a valid one.
    """
    # The meta device holds no data and counts attention in full: the CPU's flash kernel is invisible to the counter.
    with torch.device("meta"):
        network = DiT(config, shape)
        x = torch.empty(1, shape.channels, shape.height, shape.width)
        t, labels = torch.empty(1), torch.zeros(1, dtype=torch.int64)
    counter = FlopCounterMode(display=False, depth=10)
    with counter, torch.no_grad():
        network(x, t, Condition(labels))
    counts = counter.get_flop_counts()

    def macs(path: str) -> int:
        return sum(counts.get(f"DiT.{path}", {}).values()) // 2

    parts: dict[str, list[str]] = {"patch embedding": ["patch_embedding"], "timestep embedding": ["timestep_embedding"]}
    parts["label embedding"] = ["label_embedding"]
    for index, block in enumerate(network.blocks):
        for name, _ in block.named_children():
            if not name.startswith("norm"):
                parts.setdefault(f"blocks: {name.replace('_', '-')}", []).append(f"blocks.{index}.{name}")
    parts["final layer"] = ["final_layer"]
    parameters = {
        part: sum(_parameters(network.get_submodule(path)) for path in paths) for part, paths in parts.items()
    }
    norms = _parameters(network) - sum(parameters.values())
    result = {part: sum(macs(path) for path in paths) for part, paths in parts.items()}
    if norms:
        parameters["blocks: norms"] = norms
        result["blocks: norms"] = 0
    tokens = (shape.height // config.patch) * (shape.width // config.patch)
    return Cost(parameters, result, tokens)


def _parameters(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())
