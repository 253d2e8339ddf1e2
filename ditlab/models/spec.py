"""What goes in and out of a network, and the contract that every network keeps."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from ditlab.models.condition import Condition, Entry

if TYPE_CHECKING:
    from ditlab.models.condition_embedding import ConditionConfig


@dataclass(frozen=True)
class LatentSpec:
    """The sample a network denoises: pixels or latents, of an image or a clip.

    Attributes:
        channels: C.
        size: (H, W) of an image, (F, H, W) of a clip; an image is a clip of one frame.
    """

    channels: int
    size: tuple[int, ...]

    @property
    def shape(self) -> tuple[int, ...]:
        """(C, *size)."""
        return self.channels, *self.size


@dataclass(frozen=True)
class NetworkSpec:
    """Inputs and outputs of a network, decided by data and process, not by the network's own configuration.

    Attributes:
        latent: the sample.
        conditions: what the network is conditioned on besides the time.
        learned_variance: twice the channels out: the target, then where the variance lies between its bounds.
        interval: the network also takes the end r of the interval [r, t] (average velocity, Geng et al. 2025).
    """

    latent: LatentSpec
    conditions: tuple[ConditionConfig, ...] = ()
    learned_variance: bool = False
    interval: bool = False

    @property
    def channels_in(self) -> int:
        """Channels of the sample and of the conditions that are concatenated to it."""
        return self.latent.channels + sum(condition.channels for condition in self.conditions)

    @property
    def classes(self) -> int:
        """Number of class labels; 0 without them."""
        return sum(each.classes for each in self.conditions)

    def blank_condition(self, count: int = 1) -> Condition:
        """A condition of ``count`` samples in which every entry is absent, of the shapes that the network expects."""
        values = {each.name: each.blank(count, self.latent) for each in self.conditions}
        absent = {name: torch.zeros(count, dtype=torch.bool, device=value.device) for name, value in values.items()}
        return Condition({name: Entry(value, absent[name]) for name, value in values.items()})

    @property
    def channels_out(self) -> int:
        """Channels of the prediction."""
        return self.latent.channels * (2 if self.learned_variance else 1)


@dataclass(frozen=True)
class Supports:
    """What a network accepts; checked when a recipe is built, not when it runs."""

    clips: bool = False
    """Samples (N, C, F, H, W)."""
    frame_times: bool = False
    """A time a frame, t (N, F)."""
    packs: bool = False
    """Samples of several sizes in one sequence."""
    tokens: bool = False
    """The sample is cut into patches, so that any size the patch divides is accepted."""


class Network(nn.Module):
    """A network that predicts from a noised sample, called as ``network(x, t, condition, r=None)``.

    Attributes:
        config: the network's own configuration.
        spec: its inputs and outputs.
        supports: which inputs it accepts beyond one image size and one time a sample.
        activation_checkpointing: keep only the inputs of each block for the backward pass (Chen et al. 2016).
    """

    config: Any
    spec: NetworkSpec
    supports: Supports
    activation_checkpointing: bool

    def __init__(self, config: Any, spec: NetworkSpec):
        super().__init__()
        self.config, self.spec, self.activation_checkpointing = config, spec, False

    def block_list(self) -> Sequence[nn.Module]:
        """Every block in order: what is compiled, sharded and recomputed on its own."""
        raise NotImplementedError

    def parts(self) -> dict[str, list[str]]:
        """Paths of submodules by the name of the part they belong to, for tables of cost."""
        raise NotImplementedError

    def token_count(self) -> int:
        """Tokens of one sample; 0 for a network without tokens."""
        return 0

    def constants(self) -> list[Tensor]:
        """Tensors that are neither parameters nor activations: buffers, cached layouts."""
        return list(self.buffers())

    def initialise(self, generator: torch.Generator) -> Network:
        """Draw every weight."""
        raise NotImplementedError

    def forward(self, x: Tensor, t: Tensor, condition: Condition, r: Tensor | None = None) -> Tensor:
        """Predict from a noised sample.

        Args:
            x: noised samples (N, C, *size).
            t: network times (N,), or (N, F) where the network supports a time a frame.
            condition: of the batch.
            r: network times (N,) of the interval's end, for networks of average velocity.

        Returns:
            (N, C, *size), or (N, 2 C, *size) with learned variance.
        """
        raise NotImplementedError

    def run_block(self, block: nn.Module, *inputs: Any) -> Any:
        """Call a block, with activation checkpointing where it is on."""
        if self.activation_checkpointing:
            return checkpoint(block, *inputs, use_reentrant=False, preserve_rng_state=False)
        return block(*inputs)
