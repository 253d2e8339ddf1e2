"""Networks: embeddings, attention, the four blocks, the DiT, and what they cost."""

from ditlab.models.compute import Cost, cost
from ditlab.models.condition import NULL, Condition
from ditlab.models.dit import NAMES, SIZES, DiT, DiTConfig, NetworkInput

__all__ = ["NAMES", "NULL", "SIZES", "Condition", "Cost", "DiT", "DiTConfig", "NetworkInput", "cost"]
