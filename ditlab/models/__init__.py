"""Networks: embeddings, attention, blocks, the DiT, the U-Net it is compared with, and what they cost."""

from ditlab.models.compute import Cost, cost, matched
from ditlab.models.condition import NULL, Condition
from ditlab.models.dit import NAMES, SIZES, DiT, DiTConfig, NetworkInput
from ditlab.models.network import Network, NetworkConfig, build, named
from ditlab.models.unet import UNETS, UNet, UNetConfig

__all__ = [
    "NAMES",
    "NULL",
    "SIZES",
    "UNETS",
    "Condition",
    "Cost",
    "DiT",
    "DiTConfig",
    "Network",
    "NetworkConfig",
    "NetworkInput",
    "UNet",
    "UNetConfig",
    "build",
    "cost",
    "matched",
    "named",
]
