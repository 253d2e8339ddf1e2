"""Images from any source as uint8 (N, C, H, W) with labels, and the deterministic order in which training reads them."""

from ditlab.data.config import DataConfig
from ditlab.data.dataset import DataInfo, Dataset, Images
from ditlab.data.index import read_index, write_index
from ditlab.data.opening import SOURCES, open_data
from ditlab.data.order import DataOrder

__all__ = [
    "SOURCES", "DataConfig", "DataInfo", "DataOrder", "Dataset", "Images", "open_data", "read_index", "write_index",
]  # fmt: skip
# fmt: skip
