"""Specs of networks on labelled images, in short."""

from __future__ import annotations

from ditlab.models import LabelsConfig, LatentSpec, Network, NetworkSpec, labelled


def image_spec(
    channels: int, height: int, width: int, classes: int, learned_variance: bool = False, null: bool = True
) -> NetworkSpec:
    """A network of latents (channels, height, width) and class labels."""
    return labelled(LatentSpec(channels, (height, width)), classes, null=null, learned_variance=learned_variance)


def class_count(spec: NetworkSpec) -> int:
    """Classes of a spec's labels."""
    (labels,) = spec.conditions
    assert isinstance(labels, LabelsConfig)
    return labels.classes


class FixedNetwork(Network):
    """A network whose ``forward`` a test writes itself: called with x, t, condition and r."""

    def __init__(self, channels: int = 2):
        super().__init__(None, image_spec(channels, 4, 4, 3))
