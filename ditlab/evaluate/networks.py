"""The registry of feature networks."""

from __future__ import annotations

import torch

from ditlab.errors import UserError, nearest
from ditlab.evaluate.efficientnet import EfficientNetLite0
from ditlab.evaluate.features import FeatureNetwork
from ditlab.evaluate.inception import Inception

NETWORKS: dict[str, type[FeatureNetwork]] = {network.name: network for network in (Inception, EfficientNetLite0)}


def feature_network(
    name: str, size: tuple[int, int], weights: str = "", device: torch.device | str = "cpu"
) -> FeatureNetwork:
    """Build a feature network for images of a height and width; EfficientNet-Lite0 works at a resolution near theirs.

    ``weights`` is a file of Inception weights to use instead of the reference ones, which are otherwise read from the cache
    folder or downloaded into it. UserError: an unknown name, or weights that are missing or do not fit.
    """
    if name not in NETWORKS:
        raise UserError(f"unknown feature network {name!r}; {nearest(name, NETWORKS)}")
    return NETWORKS[name].build(size, weights).to(device)
