"""What a network costs: parameters and multiply-accumulates, by part, counted on the real modules without memory.

The paper's "Gflops" are GMACs, multiply-accumulates of one forward pass of one sample; real FLOPs are twice that.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cache

import torch
from torch.utils.flop_counter import FlopCounterMode

from ditlab.models.network import NetworkConfig, on_meta, parameter_count
from ditlab.models.spec import NetworkSpec
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


@cache
def cost(config: NetworkConfig, spec: NetworkSpec) -> Cost:
    """Count a network.

    Raises:
        UserError: the configuration is not valid for this spec.
    """
    # The meta device holds no data and counts attention in full: the CPU's flash kernel is invisible to the counter.
    network = on_meta(config, spec)
    with torch.device("meta"):
        x, t = torch.empty(1, *spec.latent.shape), torch.empty(1)
        condition = spec.blank_condition()
    counter = FlopCounterMode(display=False, depth=10)
    with counter, torch.no_grad():
        network(x, t, condition)
    counts = counter.get_flop_counts()

    def macs(path: str) -> int:
        return sum(counts.get(f"{type(network).__name__}.{path}", {}).values()) // 2

    parts = network.parts()
    parameters = {
        part: sum(parameter_count(network.get_submodule(path)) for path in paths) for part, paths in parts.items()
    }
    norms = parameter_count(network) - sum(parameters.values())
    result = {part: sum(macs(path) for path in paths) for part, paths in parts.items()}
    if norms:
        parameters["blocks: norms"] = norms
        result["blocks: norms"] = 0
    return Cost(parameters, result, network.token_count())


def matched(config: NetworkConfig, spec: NetworkSpec, like: UNetConfig | None = None) -> UNetConfig:
    """The U-Net whose multiply-accumulates come nearest to those of a network, by its width, a multiple of 4.

    Args:
        config: the network to match.
        spec: inputs and outputs of both.
        like: the U-Net but for its width; by default the small one.

    Raises:
        UserError: either configuration is not a valid one for this spec.
    """
    wanted, like = cost(config, spec).gmacs, like or UNetConfig()

    def gmacs(fours: int) -> float:
        return cost(replace(like, width=4 * fours), spec).gmacs

    above = 1
    while gmacs(above) < wanted:
        above *= 2
    below = above // 2
    while above - below > 1:  # gmacs(below) < wanted <= gmacs(above); below may be 0, no network
        middle = (below + above) // 2
        below, above = (middle, above) if gmacs(middle) < wanted else (below, middle)
    nearer = min((fours for fours in (below, above) if fours), key=lambda fours: abs(gmacs(fours) - wanted))
    return replace(like, width=4 * nearer)
