"""Specs of networks on labelled images, and conditions that fit them, in short."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from ditlab.models import NULL, Condition, Entry, LabelsConfig, LatentSpec, Network, NetworkSpec, TextConfig, labelled
from ditlab.models.blocks import BLOCKS

TEXT_BLOCKS = tuple(name for name, design in BLOCKS.items() if design.text)


def image_spec(
    channels: int, height: int, width: int, classes: int, learned_variance: bool = False, null: bool = True
) -> NetworkSpec:
    """A network of latents (channels, height, width) and class labels."""
    return labelled(LatentSpec(channels, (height, width)), classes, null=null, learned_variance=learned_variance)


def class_count(spec: NetworkSpec) -> int:
    """Classes of a spec's labels."""
    labels = spec.conditions[0]
    assert isinstance(labels, LabelsConfig)
    return labels.classes


def spec_of_block(spec: NetworkSpec, block: str, features: int = 6) -> NetworkSpec:
    """The same spec, and a text where the block needs one."""
    text = (TextConfig(features=features),) if BLOCKS[block].text else ()
    return replace(spec, conditions=(*spec.conditions, *text))


def text_entry(lengths: Sequence[int], padded: int, features: int = 6) -> Entry:
    """Random texts of so many tokens, padded with nines; the features of row k depend on k and its length only."""
    value, mask = torch.full((len(lengths), padded, features), 9.0), torch.zeros(len(lengths), padded, dtype=torch.bool)
    for row, length in enumerate(lengths):
        value[row, :length] = torch.randn(length, features, generator=torch.Generator().manual_seed(row + 5))
        mask[row, :length] = True
    return Entry(value, torch.ones(len(lengths), dtype=torch.bool), mask)


def condition_of(spec: NetworkSpec, labels: Tensor) -> Condition:
    """Labels int64 (N,) and, where the spec has one, a text: of 3, 1, 0 and 2 tokens in turn."""
    condition = Condition.of_labels(labels)
    if len(spec.conditions) == 1:
        return condition
    features = spec.blank_condition().entries["text"].value.shape[2]
    return condition.replace(text=text_entry([(3, 1, 0, 2)[row % 4] for row in range(len(labels))], 5, features))


def condition_of_classes(spec: NetworkSpec, n: int) -> Condition:
    """``condition_of`` the classes in turn, or of no class where there are none."""
    count = class_count(spec)
    return condition_of(spec, torch.arange(n) % count if count else torch.full((n,), NULL))


class FixedNetwork(Network):
    """A network whose ``forward`` a test writes itself: called with x, t, condition and r."""

    def __init__(self, channels: int = 2):
        super().__init__(None, image_spec(channels, 4, 4, 3))
