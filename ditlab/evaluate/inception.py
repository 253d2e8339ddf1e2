"""The Inception-v3 of FID: the network of 2015-12-05 with which every published FID was computed.

Where each fact comes from:

- The network is that of Szegedy et al. 2015 (arXiv 1512.00567) as in TensorFlow's graph classify_image_graph_def.pb of
  inception-2015-12-05.tgz: 1,008 logits, average pools that exclude the padding, in the last block (mixed_10) a maximum
  where the paper has an average, batch normalisation with epsilon 0.001. mseitzer/pytorch-fid and toshas/torch-fidelity found
  the same; their releases hold the graph's weights under torchvision's names, and it is this file that is loaded here.
- FID (Heusel et al. 2017, arXiv 1706.08500) reads the graph's pool_3: 2048 means over the last 8 x 8 map.
- sFID (Nash et al. 2021, arXiv 2103.03841) reads, in ADM's evaluator (openai/guided-diffusion, evaluations/evaluator.py), the
  first 7 channels of "mixed_6/conv:0", flattened by row, column, channel: 17 x 17 x 7 = 2023. The graph calls its mixed blocks
  mixed, mixed_1, ... mixed_10; torchvision 5b, 5c, 5d, 6a, ...: mixed_6 is Mixed_6d. A scope's own name is that of its last
  operation, the ReLU, and the 1 x 1 branch comes first: they are the first 7 channels of Mixed_6d's output.
- The Inception score there is computed from the softmax of the logits without their bias.
- The graph takes values from 0 to 255. It resizes them to 299 x 299 by TensorFlow 1's ResizeBilinear, as ADM's evaluator
  does: pixel i reads at i * (length / 299), no half-pixel centres (which pytorch-fid's and clean-fid's resizes have), no
  antialiasing, positions in float32, no rounding of the result. Then it subtracts 128 and multiplies by 1 / 128.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ditlab.evaluate.features import FeatureNetwork
from ditlab.evaluate.inception_weights import is_reference, read_weights, reference_weights
from ditlab.runtime.weights import load_weights

SIDE = 299
SPATIAL_CHANNELS = 7
BATCH_COUNTER = "num_batches_tracked"  # PyTorch's batch normalisation has this buffer, the graph and so the file do not


Pair = tuple[int, int]


class Convolution(nn.Module):
    """A convolution without bias, batch normalisation, a ReLU."""

    def __init__(self, channels: int, width: int, kernel: Pair, stride: int = 1, padding: Pair = (0, 0)):
        super().__init__()
        self.conv = nn.Conv2d(channels, width, kernel, stride, padding, bias=False)
        self.bn = nn.BatchNorm2d(width, eps=1e-3)

    def forward(self, x: Tensor) -> Tensor:
        """(N, channels, H, W) to (N, width, H', W')."""
        return F.relu(self.bn(self.conv(x)), inplace=True)


@dataclass(frozen=True)
class Unit:
    """One convolution of a branch: same padding with stride 1, no padding with stride 2."""

    name: str
    width: int
    kernel: Pair = (1, 1)
    stride: int = 1

    def build(self, channels: int) -> Convolution:
        """The layer."""
        height, width = self.kernel
        padding = (height // 2, width // 2) if self.stride == 1 else (0, 0)
        return Convolution(channels, self.width, self.kernel, self.stride, padding)


def average_pool(x: Tensor) -> Tensor:
    """3 x 3 average pooling that excludes the padding."""
    return F.avg_pool2d(x, 3, stride=1, padding=1, count_include_pad=False)


def max_pool(x: Tensor) -> Tensor:
    """3 x 3 maximum pooling."""
    return F.max_pool2d(x, 3, stride=1, padding=1)


def strided_max_pool(x: Tensor) -> Tensor:
    """3 x 3 maximum pooling with stride 2."""
    return F.max_pool2d(x, 3, stride=2)


# Several units in a tuple take the same input; their outputs are concatenated.
Branch = tuple[Unit | tuple[Unit, ...] | Callable[[Tensor], Tensor], ...]


class Mixed(nn.Module):
    """Branches that take the same input; their outputs are concatenated."""

    def __init__(self, channels: int, *branches: Branch):
        super().__init__()
        self.branches = branches
        for branch in branches:
            width = channels
            for step in branch:
                units = step if isinstance(step, tuple) else (step,)
                built = {unit.name: unit.build(width) for unit in units if isinstance(unit, Unit)}
                for name, layer in built.items():
                    self.add_module(name, layer)
                width = sum(layer.conv.out_channels for layer in built.values()) or width

    def forward(self, x: Tensor) -> Tensor:
        """(N, channels, H, W) to (N, sum of widths, H', W')."""
        results = []
        for branch in self.branches:
            y = x
            for step in branch:
                if isinstance(step, tuple):
                    y = torch.cat([self.get_submodule(unit.name)(y) for unit in step], dim=1)
                else:
                    y = self.get_submodule(step.name)(y) if isinstance(step, Unit) else step(y)
            results.append(y)
        return torch.cat(results, dim=1)


def mixed_35(channels: int, pooled: int) -> Mixed:
    """A block on the 35 x 35 map."""
    return Mixed(
        channels,
        (Unit("branch1x1", 64),),
        (Unit("branch5x5_1", 48), Unit("branch5x5_2", 64, (5, 5))),
        (Unit("branch3x3dbl_1", 64), Unit("branch3x3dbl_2", 96, (3, 3)), Unit("branch3x3dbl_3", 96, (3, 3))),
        (average_pool, Unit("branch_pool", pooled)),
    )


def mixed_35_to_17() -> Mixed:
    """From the 35 x 35 map to the 17 x 17 one."""
    return Mixed(
        288,
        (Unit("branch3x3", 384, (3, 3), 2),),
        (Unit("branch3x3dbl_1", 64), Unit("branch3x3dbl_2", 96, (3, 3)), Unit("branch3x3dbl_3", 96, (3, 3), 2)),
        (strided_max_pool,),
    )


def mixed_17(inner: int) -> Mixed:
    """A block on the 17 x 17 map."""
    return Mixed(
        768,
        (Unit("branch1x1", 192),),
        (Unit("branch7x7_1", inner), Unit("branch7x7_2", inner, (1, 7)), Unit("branch7x7_3", 192, (7, 1))),
        (
            Unit("branch7x7dbl_1", inner), Unit("branch7x7dbl_2", inner, (7, 1)), Unit("branch7x7dbl_3", inner, (1, 7)),
            Unit("branch7x7dbl_4", inner, (7, 1)), Unit("branch7x7dbl_5", 192, (1, 7)),
        ),
        (average_pool, Unit("branch_pool", 192)),
    )  # fmt: skip


def mixed_17_to_8() -> Mixed:
    """From the 17 x 17 map to the 8 x 8 one."""
    return Mixed(
        768,
        (Unit("branch3x3_1", 192), Unit("branch3x3_2", 320, (3, 3), 2)),
        (
            Unit("branch7x7x3_1", 192), Unit("branch7x7x3_2", 192, (1, 7)), Unit("branch7x7x3_3", 192, (7, 1)),
            Unit("branch7x7x3_4", 192, (3, 3), 2),
        ),
        (strided_max_pool,),
    )  # fmt: skip


def mixed_8(channels: int, pool: Callable[[Tensor], Tensor]) -> Mixed:
    """A block on the 8 x 8 map."""
    return Mixed(
        channels,
        (Unit("branch1x1", 320),),
        (Unit("branch3x3_1", 384), (Unit("branch3x3_2a", 384, (1, 3)), Unit("branch3x3_2b", 384, (3, 1)))),
        (
            Unit("branch3x3dbl_1", 448), Unit("branch3x3dbl_2", 384, (3, 3)),
            (Unit("branch3x3dbl_3a", 384, (1, 3)), Unit("branch3x3dbl_3b", 384, (3, 1))),
        ),
        (pool, Unit("branch_pool", 192)),
    )  # fmt: skip


class InceptionV3(nn.Module):
    """The layers, named as in the file of weights."""

    def __init__(self):
        super().__init__()
        self.Conv2d_1a_3x3 = Convolution(3, 32, (3, 3), 2)
        self.Conv2d_2a_3x3 = Convolution(32, 32, (3, 3))
        self.Conv2d_2b_3x3 = Convolution(32, 64, (3, 3), padding=(1, 1))
        self.Conv2d_3b_1x1 = Convolution(64, 80, (1, 1))
        self.Conv2d_4a_3x3 = Convolution(80, 192, (3, 3))
        self.Mixed_5b, self.Mixed_5c, self.Mixed_5d = mixed_35(192, 32), mixed_35(256, 64), mixed_35(288, 64)
        self.Mixed_6a = mixed_35_to_17()
        self.Mixed_6b, self.Mixed_6c, self.Mixed_6d, self.Mixed_6e = (mixed_17(width) for width in (128, 160, 160, 192))
        self.Mixed_7a = mixed_17_to_8()
        self.Mixed_7b, self.Mixed_7c = mixed_8(1280, average_pool), mixed_8(2048, max_pool)
        self.fc = nn.Linear(2048, 1008)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Pooled (N, 2048), spatial (N, 2023) and logits without bias (N, 1008) of (N, 3, 299, 299) in [-1, 1]."""
        x = self.Conv2d_1a_3x3(x)  # (N, 32, 149, 149)
        x = self.Conv2d_2a_3x3(x)  # (N, 32, 147, 147)
        x = strided_max_pool(self.Conv2d_2b_3x3(x))  # (N, 64, 73, 73)
        x = self.Conv2d_3b_1x1(x)  # (N, 80, 73, 73)
        x = strided_max_pool(self.Conv2d_4a_3x3(x))  # (N, 192, 35, 35)
        x = self.Mixed_5d(self.Mixed_5c(self.Mixed_5b(x)))  # (N, 288, 35, 35)
        x = self.Mixed_6a(x)  # (N, 768, 17, 17)
        x = self.Mixed_6d(self.Mixed_6c(self.Mixed_6b(x)))  # (N, 768, 17, 17)
        spatial = x[:, :SPATIAL_CHANNELS].permute(0, 2, 3, 1).flatten(1)  # (N, 2023)
        x = self.Mixed_7a(self.Mixed_6e(x))  # (N, 1280, 8, 8)
        x = self.Mixed_7c(self.Mixed_7b(x))  # (N, 2048, 8, 8)
        pooled = x.mean((2, 3))  # (N, 2048)
        return pooled, spatial, F.linear(pooled, self.fc.weight)


def resize(pixels: Tensor, side: int = SIDE) -> Tensor:
    """(N, C, H, W) to (N, C, side, side) as TensorFlow 1's ResizeBilinear does, by one matrix per axis."""

    def weights(length: int) -> Tensor:
        places = torch.arange(side, device=pixels.device, dtype=torch.float32) * torch.tensor(length / side)
        low = places.long()
        right = (places - low).to(pixels.dtype)
        matrix = pixels.new_zeros(side, length)
        matrix.scatter_add_(1, low[:, None], 1 - right[:, None])
        return matrix.scatter_add_(1, (low[:, None] + 1).clamp(max=length - 1), right[:, None])

    return weights(pixels.shape[2]) @ pixels @ weights(pixels.shape[3]).T


class Inception(FeatureNetwork):
    """Inception-v3 with the reference weights, or with those of a .pth or .safetensors, which give the distance another name.

    UserError: weights that are missing, cannot be read or do not fit.
    """

    name = "inception"
    width = 2048
    side = SIDE
    resize = "TensorFlow 1's bilinear resize as in ADM's evaluator"

    def __init__(self, weights: Path | None = None):
        super().__init__()
        path = weights or reference_weights()
        read, digest = read_weights(path)
        self.distance = "FID" if is_reference(digest) else f"FD-Inception({digest[:8]})"
        with torch.device("meta"):  # without drawing random numbers
            self.network = InceptionV3()
        counts = {name: torch.tensor(0) for name in self.network.state_dict() if name.endswith(BATCH_COUNTER)}
        load_weights(self.network.to_empty(device="cpu"), read | counts, path)
        self.eval().requires_grad_(False)

    @classmethod
    def build(cls, size: tuple[int, int], weights: str) -> Inception:
        """See FeatureNetwork.build."""
        return cls(Path(weights) if weights else None)

    def forward(self, pixels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Pooled (N, 2048), spatial (N, 2023) and probabilities (N, 1008) of RGB (N, 3, H, W), float32 from 0 to 255."""
        pooled, spatial, logits = self.network((resize(pixels) - 128) / 128)
        return pooled, spatial, logits.softmax(1)
