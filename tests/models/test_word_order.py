"""What the order of words means to a network: nothing to a mean of tokens, something to their sequence."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from ditlab.models import Condition, DiTConfig, LatentSpec, NetworkSpec
from ditlab.models.condition_embedding import TextConfig

A_LEFT_OF_B = torch.tensor([[1, 2, 5, 6, 3, 4]])  # red circle left of blue square
B_LEFT_OF_A = torch.tensor([[3, 4, 5, 6, 1, 2]])
SPEC = NetworkSpec(LatentSpec(2, (4, 4)), (TextConfig(vocabulary=7),))


def predict(block: str, ids: Tensor) -> Tensor:
    config = DiTConfig(block=block, depth=2, width=32, heads=2, patch=2)
    network = config.build_network(SPEC).initialise(torch.Generator().manual_seed(0))
    generator = torch.Generator().manual_seed(1)
    for parameter in network.parameters():  # zero gates and a zero last layer would hide everything
        torch.nn.init.normal_(parameter, std=0.2, generator=generator)
    x = torch.randn(1, 2, 4, 4, generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        return network(x, torch.tensor([500.0]), Condition.of_text(ids, ids > 0))


def test_a_mean_of_words_does_not_know_their_order() -> None:
    difference = predict("adaln-zero", A_LEFT_OF_B) - predict("adaln-zero", B_LEFT_OF_A)
    assert difference.abs().max() < 1e-5
    assert (predict("adaln-zero", A_LEFT_OF_B) - predict("adaln-zero", A_LEFT_OF_B[:, :5])).abs().max() > 1e-3


@pytest.mark.parametrize(
    "block", ["adaln-cross-attention", "adaln-in-context", "joint", "in-context", "cross-attention"]
)
def test_a_sequence_of_words_knows_their_order(block: str) -> None:
    assert (predict(block, A_LEFT_OF_B) - predict(block, B_LEFT_OF_A)).abs().max() > 1e-3
