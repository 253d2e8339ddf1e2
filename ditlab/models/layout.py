"""Where tokens are: positions, rotary angles, and what may attend to what, built once a size and kept."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from einops import rearrange
from torch import Tensor

from ditlab.errors import UserError
from ditlab.models.attention import Windows
from ditlab.models.tokens import Size, Tokens

Scale = tuple[
    float, float
]  # distance of neighbouring rows and of neighbouring columns; below 1 positions are interpolated
MOST_KEPT = 64  # layouts a network keeps


def sincos_positions(width: int, grid: Size, scale: Scale = (1.0, 1.0)) -> Tensor:
    """Fixed sine-cosine positions of a grid (rows, columns) or (frames, rows, columns), float32 (tokens, width).

    The first half of the width encodes the column, the second the row, each as sines then cosines of
    ``position / 10000 ** (2 i / (width / 2))`` (Vaswani et al. 2017, section 3.5; DiT section 3.2). Frames add the same of
    the frame's index over the whole width, less that of frame 0, so that an image is a clip of one frame.

    Raises:
        ValueError: width is not divisible by 4.
    """
    if width % 4:
        raise ValueError(f"width {width} is not divisible by 4, which 2-D sine-cosine positions need")

    def axis(positions: Tensor, part: int) -> Tensor:
        omega = 10000.0 ** -(torch.arange(part // 2, dtype=torch.float64) / (part // 2))
        angles = positions.to(torch.float64)[:, None] * omega
        return torch.cat([angles.sin(), angles.cos()], dim=1)

    *frame, row, column = _coordinates(grid, scale)
    positions = torch.cat([axis(column, width // 2), axis(row, width // 2)], dim=1)
    for index in frame:
        positions = positions + axis(index, width) - axis(torch.zeros(1), width)
    return positions.float()


def rotary_positions(width: int, grid: Size, scale: Scale = (1.0, 1.0)) -> Tensor:
    """Cosines and sines that rotate a head of ``width`` by its token's place, float32 (2, tokens, width / 2).

    Column and row have half of the pairs each, or a fourth each where the frame has the other half; an axis of n pairs
    rotates them by ``position / 10000 ** (i / n)`` (Su et al. 2021, applied to each axis on its own).

    Raises:
        ValueError: width is not divisible by 4, or by 8 for clips.
    """
    unit = 4 if len(grid) == 2 else 8
    if width % unit:
        raise ValueError(f"width {width} is not divisible by {unit}, which rotary positions of {len(grid)} axes need")
    *frame, row, column = _coordinates(grid, scale)
    pairs = width // unit

    def axis(positions: Tensor, count: int) -> Tensor:
        return positions.double()[:, None] * 10000.0 ** -(torch.arange(count, dtype=torch.float64) / count)

    shares = [(column, pairs), (row, pairs)] if not frame else [(column, pairs), (row, pairs), (frame[0], 2 * pairs)]
    angles = torch.cat([axis(place, count) for place, count in shares], dim=1)
    return torch.stack([angles.cos(), angles.sin()]).float()


def _coordinates(grid: Size, scale: Scale) -> list[Tensor]:
    *frames, rows, columns = (torch.arange(side, dtype=torch.float64) for side in grid)
    axes = (*frames, rows * scale[0], columns * scale[1])
    return [axis.flatten() for axis in torch.meshgrid(*axes, indexing="ij")]


class Layout(NamedTuple):
    """What blocks know of their tokens' places; tensors only.

    Attributes:
        positions: added to the embedded patches, (L, D), or (R, L, D) of a pack.
        rope: cosines and sines (2, L', d / 2), or (2, R, 1, L', d / 2) of a pack; L' counts context tokens too.
        mask: of a pack, bool (R, 1, L, L): attention stays within a sample.
        sample: of a pack, int64 (R, L): the sample whose condition modulates each token.
        windows: tokens that attend to each other only; None where all do.
    """

    positions: Tensor
    rope: Tensor | None = None
    mask: Tensor | None = None
    sample: Tensor | None = None
    windows: Windows | None = None


def frame_windows(grid: Size) -> Tensor:
    """The tokens of each frame of a grid (frames, rows, columns), int64 (frames, rows x columns)."""
    return _indices(grid).flatten(1)


def time_windows(grid: Size, window: Size) -> Tensor:
    """Windows of ``window`` rows and columns over all frames of a grid, int64 (windows, tokens) (W.A.L.T, section 3.2).

    Of one frame, an image, each token is a window of its own, which W.A.L.T's identity mask for images amounts to.

    Raises:
        UserError: the windows do not divide the grid.
    """
    if grid[0] == 1:
        return _indices(grid).view(-1, 1)
    rows, columns = window
    if grid[1] % rows or grid[2] % columns:
        shape = "x".join(map(str, grid[1:]))
        raise UserError(
            f"windows of {rows}x{columns} patches do not divide frames of {shape}; give another --model.window"
        )
    return rearrange(_indices(grid), "f (a h) (b w) -> (a b) (f h w)", h=rows, w=columns)


def _indices(grid: Size) -> Tensor:
    return torch.arange(_count(grid)).view(grid)


class Layouts:
    """Layouts by size, built outside compiled code and kept.

    Args:
        width: of a token.
        head_width: of an attention head that rotary positions rotate; 0 for none.
        scale: distance of neighbouring rows and columns.
        attention: full, windows or axes, as ``BlockConfig.attention``.
        window: rows and columns of a window; empty for half of those of the grid.
    """

    def __init__(
        self, width: int, head_width: int, scale: Scale = (1.0, 1.0), attention: str = "full", window: Size = ()
    ):
        self.width, self.head_width, self.scale = width, head_width, scale
        self.attention, self.window = attention, window
        self._kept: dict[object, Layout] = {}
        self._windows: dict[object, tuple[Windows | None, ...]] = {}

    def __call__(self, tokens: Tokens, context: int) -> Layout:
        """The layout of tokens, with ``context`` tokens that have no place appended to each row."""
        key = (tokens.grids, tokens.x.shape[1], context, tokens.segment is None, tokens.x.device)
        if key not in self._kept:
            if len(self._kept) >= MOST_KEPT:
                self._kept.clear()
            with torch.inference_mode(False), torch.device("cpu"):  # kept for training too, whoever came first
                self._kept[key] = self._build(tokens, context)
        return self._kept[key]

    def windows(self, tokens: Tokens) -> tuple[Windows | None, ...]:
        """The windows that blocks attend within, in turn.

        Raises:
            UserError: the windows do not divide the grid.
        """
        if self.attention == "full":
            return (None,)
        key = (tokens.grids, tokens.x.device)
        if key not in self._windows:
            if len(self._windows) >= MOST_KEPT:
                self._windows.clear()
            grid = tokens.grids[0] if len(tokens.grids[0]) == 3 else (1, *tokens.grids[0])
            window = self.window or (max(grid[1] // 2, 1), max(grid[2] // 2, 1))
            with torch.inference_mode(False), torch.device("cpu"):
                of_time = time_windows(grid, (1, 1) if self.attention == "axes" else window)
                both = [(each, each.flatten().argsort()) for each in (frame_windows(grid), of_time)]
            self._windows[key] = tuple(Windows(*(part.to(tokens.x.device) for part in each)) for each in both)
        return self._windows[key]

    def tensors(self) -> list[Tensor]:
        """Every tensor that is kept."""
        layouts = [tensor for layout in self._kept.values() for tensor in layout if isinstance(tensor, Tensor)]
        return layouts + [tensor for both in self._windows.values() for each in both if each for tensor in each]

    def _build(self, tokens: Tokens, context: int) -> Layout:
        device, length = tokens.x.device, tokens.x.shape[1]
        positions = _row([sincos_positions(self.width, grid, self.scale) for grid in tokens.grids], 0, length)
        rope = None
        if self.head_width:
            rope = _row(
                [rotary_positions(self.head_width, grid, self.scale) for grid in tokens.grids], 1, length + context
            )
            rope[0, sum(_count(grid) for grid in tokens.grids) :] = 1.0  # what has no place is not rotated
        if tokens.segment is None:
            return Layout(positions.to(device), None if rope is None else rope.to(device))
        counts = torch.tensor([_count(grid) for grid in tokens.grids])
        segment = torch.cat(
            [torch.repeat_interleave(torch.arange(len(counts)), counts), torch.full((length - int(counts.sum()),), -1)]
        )
        return Layout(
            positions[None].to(device),
            None if rope is None else rope[:, None, None].to(device),
            (segment[:, None] == segment).view(1, 1, length, length).to(device),
            segment.clamp(min=0)[None].to(device),
        )


def _count(grid: Size) -> int:
    return torch.Size(grid).numel()


def _row(parts: Sequence[Tensor], axis: int, length: int) -> Tensor:
    """Parts one after the other along an axis, zeros up to ``length``."""
    row = torch.cat(list(parts), dim=axis)
    shape = list(row.shape)
    shape[axis] = length - shape[axis]
    return torch.cat([row, row.new_zeros(shape)], dim=axis)
