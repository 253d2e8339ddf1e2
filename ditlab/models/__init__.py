"""Networks: conditions, tokens and their layout, attention, blocks, the DiT, the U-Net, and their cost."""

from ditlab.models.compute import Cost, cost, matched
from ditlab.models.condition import NULL, Condition, Entry
from ditlab.models.condition_embedding import ChannelsConfig, ConditionConfig, LabelsConfig, TextConfig, labelled
from ditlab.models.dit import NAMES, SIZES, DiT, DiTConfig
from ditlab.models.network import NETWORKS, NetworkConfig, build, named
from ditlab.models.spec import LatentSpec, Network, NetworkSpec, Supports
from ditlab.models.unet import UNETS, UNet, UNetConfig

__all__ = [
    "NAMES", "NETWORKS", "NULL", "SIZES", "UNETS", "ChannelsConfig", "Condition", "ConditionConfig", "Cost", "DiT",
    "DiTConfig", "Entry", "LabelsConfig", "LatentSpec", "Network", "NetworkConfig", "NetworkSpec", "Supports",
    "TextConfig", "UNet", "UNetConfig", "build", "cost", "labelled", "matched", "named",
]  # fmt: skip
