"""What a network costs: parameters and multiply-accumulates, by part, counted on the real modules without memory.

The paper's "Gflops" are GMACs, multiply-accumulates of one forward pass of one sample; real FLOPs are twice that.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch.utils.flop_counter import FlopCounterMode

from ditlab.models.condition import Condition
from ditlab.models.dit import DiT, DiTConfig, NetworkInput
from ditlab.models.network import Network, NetworkConfig, numbers, on_meta
from ditlab.models.unet import UNetConfig


@dataclass(frozen=True)
class Cost:
    """Counts of one network on one sample.

    Attributes:
        parameters: trained numbers by part.
        macs: multiply-accumulates of one forward pass by part.
        tokens: patches of one sample; 0 for a U-Net, which has none.
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


def cost(config: NetworkConfig, shape: NetworkInput) -> Cost:
    """Count a network.

    Raises:
        UserError: the configuration is not a valid one.
    """
    # The meta device holds no data and counts attention in full: the CPU's flash kernel is invisible to the counter.
    network = on_meta(config, shape)
    with torch.device("meta"):
        x = torch.empty(1, shape.channels, shape.height, shape.width)
        t, labels = torch.empty(1), torch.zeros(1, dtype=torch.int64)
    counter = FlopCounterMode(display=False, depth=10)
    with counter, torch.no_grad():
        network(x, t, Condition(labels))
    counts = counter.get_flop_counts()

    def macs(path: str) -> int:
        return sum(counts.get(f"{type(network).__name__}.{path}", {}).values()) // 2

    parts = _parts(network)
    parameters = {part: sum(numbers(network.get_submodule(path)) for path in paths) for part, paths in parts.items()}
    norms = numbers(network) - sum(parameters.values())
    result = {part: sum(macs(path) for path in paths) for part, paths in parts.items()}
    if norms:
        parameters["blocks: norms"] = norms
        result["blocks: norms"] = 0
    tokens = (shape.height // config.patch) * (shape.width // config.patch) if isinstance(config, DiTConfig) else 0
    return Cost(parameters, result, tokens)


def _parts(network: Network) -> dict[str, list[str]]:
    """Paths of modules, by the part of the network they belong to."""
    embeddings = {"timestep embedding": ["timestep_embedding"], "label embedding": ["label_embedding"]}
    blocks: dict[str, list[str]] = {}
    if isinstance(network, DiT):
        for index, block in enumerate(network.blocks):
            for name, _ in block.named_children():
                if not name.startswith("norm"):
                    blocks.setdefault(f"blocks: {name.replace('_', '-')}", []).append(f"blocks.{index}.{name}")
        shared = {"shared modulation": ["modulation"]} if network.modulation is not None else {}
        return {
            "patch embedding": ["patch_embedding"],
            **embeddings,
            **shared,
            **blocks,
            "final layer": ["final_layer"],
        }
    for way in ("down", "middle", "up"):
        for index, block in enumerate(network.get_submodule(way).children()):
            for name, _ in block.named_children():
                blocks.setdefault(f"{way}: {name}", []).append(f"{way}.{index}.{name}")
    return {"first layer": ["first_layer"], **embeddings, **blocks, "last layer": ["last_norm", "last_layer"]}


def matched(config: NetworkConfig, shape: NetworkInput, like: UNetConfig | None = None) -> UNetConfig:
    """The U-Net whose multiply-accumulates come nearest to those of a network, by its width, a multiple of 4.

    Args:
        config: the network to match.
        shape: of what goes through both.
        like: the U-Net but for its width; by default the small one.

    Raises:
        UserError: either configuration is not a valid one for this shape.
    """
    wanted, like = cost(config, shape).gmacs, like or UNetConfig()

    def gmacs(fours: int) -> float:
        return cost(replace(like, width=4 * fours), shape).gmacs

    above = 1
    while gmacs(above) < wanted:
        above *= 2
    below = above // 2
    while above - below > 1:  # gmacs(below) < wanted <= gmacs(above); below may be 0, no network
        middle = (below + above) // 2
        below, above = (middle, above) if gmacs(middle) < wanted else (below, middle)
    nearer = min((fours for fours in (below, above) if fours), key=lambda fours: abs(gmacs(fours) - wanted))
    return replace(like, width=4 * nearer)
