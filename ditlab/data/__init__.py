"""Pixels in: images of any source as uint8 (N, C, H, W) with labels, and the deterministic order they are shown in."""

from ditlab.data.config import DataConfig
from ditlab.data.dataset import Dataset, Images
from ditlab.data.opening import open_data
from ditlab.data.order import DataOrder

__all__ = ["DataConfig", "DataOrder", "Dataset", "Images", "open_data"]
