"""The data set ``scenes``: rendered pictures of coloured shapes whose captions are exact by construction.

A scene is drawn from a description (``ditlab.data.scene_captions``): up to four objects in eight colours and five shapes on
white, of two sizes, that never touch. It is a pure function of split, index and the ratio of the sides, and renders at any
size. The training split has no held-out combination in captions or pictures; the test split is drawn from all of them.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import permutations

import numpy as np

from ditlab.data.decode import array_to_channels
from ditlab.data.scene_captions import (
    COLOURS,
    HELD_OUT_PAIRS,
    SIZES,
    Description,
    Group,
    Pair,
    describe,
    held_out_relation,
)  # fmt: skip
from ditlab.data.source import Captions, Source, WrittenCaptions
from ditlab.errors import UserError, nearest

SIZE = (32, 32)  # pixels, without --data.size
SMALLEST = 16  # pixels of the shorter side
COUNTS = {"train": 100_000, "test": 5_000}
CAPTIONS = ("full", "short", "none")  # values of --data.caption; the first without it

BACKGROUND = (255, 255, 255)
RGB = {
    "red": (225, 30, 35), "orange": (255, 135, 0), "yellow": (250, 220, 20), "green": (35, 175, 65),
    "cyan": (30, 200, 225), "blue": (40, 70, 220), "purple": (150, 45, 190), "black": (20, 20, 20),
}  # fmt: skip

# Lengths in units of the shorter side of the image. A radius is that of the circle around the object.
RADII = {"small": (0.165, 0.175), "large": (0.215, 0.225)}
ALONE = 0.3  # largest radius of a single large object
MARGIN = 0.02  # least distance of an object to the border
GAP = 0.05  # least distance of two objects

_VERSION = 1  # part of the fingerprint: raise it with every change of the pictures


@dataclass(frozen=True)
class Item:
    """One object: centre and radius in units of the shorter side, y downwards."""

    colour: str
    shape: str
    x: float
    y: float
    radius: float

    @property
    def pair(self) -> Pair:
        """Colour and shape."""
        return self.colour, self.shape


@dataclass(frozen=True)
class Scene:
    """The truth about a picture; height and width in units of the shorter side, so that one of them is 1."""

    description: Description
    items: tuple[Item, ...]
    height: float
    width: float

    def render(self, size: tuple[int, int]) -> np.ndarray:
        """The picture, uint8 (H, W, 3), of ``size`` (H, W) in the ratio of the scene; edges are anti-aliased."""
        unit = min(size)
        image = np.full((*size, 3), BACKGROUND, np.float32)
        for item in self.items:
            x, y, radius = item.x * unit, item.y * unit, item.radius * unit
            top, left = max(int(y - radius) - 1, 0), max(int(x - radius) - 1, 0)
            window = image[top : int(y + radius) + 3, left : int(x + radius) + 3]
            rows = np.arange(top, top + window.shape[0], dtype=np.float32)[:, None] + np.float32(0.5 - y)
            columns = np.arange(left, left + window.shape[1], dtype=np.float32) + np.float32(0.5 - x)
            share = coverage(item.shape, columns, rows, radius)[..., None]
            window += share * (np.array(RGB[item.colour], np.float32) - window)
        return np.rint(image).astype(np.uint8)


def coverage(shape: str, x: np.ndarray, y: np.ndarray, radius: np.ndarray | float) -> np.ndarray:
    """The share of each pixel that an object covers, in [0, 1].

    ``x`` and ``y`` are the offsets of pixel centres from the object's centre, in pixels as ``radius`` is; the three are
    broadcast. The share is 1/2 less the signed distance to the outline, clipped.
    """
    return np.clip(0.5 - _DISTANCES[shape](x, y, radius), 0, 1)


def _ring(x: np.ndarray, y: np.ndarray, radius: np.ndarray | float) -> np.ndarray:
    return np.abs(np.hypot(x, y) - 0.75 * radius) - 0.25 * radius


def _cross(x: np.ndarray, y: np.ndarray, radius: np.ndarray | float) -> np.ndarray:
    x, y, length, half = np.abs(x), np.abs(y), 0.94 * radius, 0.34 * radius
    return np.minimum(np.maximum(x - length, y - half), np.maximum(x - half, y - length))


# Signed distances to the outline, negative inside, exact but outside at corners; each shape fits the circle of the radius.
_DISTANCES: dict[str, Callable[[np.ndarray, np.ndarray, np.ndarray | float], np.ndarray]] = {
    "circle": lambda x, y, radius: np.hypot(x, y) - radius,
    "square": lambda x, y, radius: np.maximum(np.abs(x), np.abs(y)) - math.sqrt(0.5) * radius,
    "triangle": lambda x, y, radius: np.maximum(math.sqrt(0.75) * np.abs(x) - 0.5 * y, y) - 0.5 * radius,
    "cross": _cross,
    "ring": _ring,
}


def relations(x: float, y: float, reach: float) -> list[str]:
    """The relations of one object to another, none, one or two of RELATIONS, as GenEval decides (Ghosh et al. 2023).

    ``x`` and ``y`` are the offset of its centre from the other's, ``reach`` the sum of both radii. On each axis a tenth of
    the summed widths is taken off; what remains must be more than half of the distance: within about 60 degrees of the axis.
    """
    distance = math.hypot(x, y) or 1.0
    across, down = (math.copysign(max(abs(offset) - 0.2 * reach, 0), offset) / distance for offset in (x, y))
    holds = {"left of": across < -0.5, "right of": across > 0.5, "above": down < -0.5, "below": down > 0.5}
    return [relation for relation, true in holds.items() if true]


def arrange(
    description: Description, rng: random.Random, height: float = 1, width: float = 1, known: bool = False
) -> Scene:
    """Draw a scene that a description is true of, ``height`` by ``width`` in units of the shorter side.

    What is not said is drawn: colours, places, and sizes, of which more than two objects are small. With ``known`` nothing in
    the scene is held out; the description must not be either.
    """
    while True:
        items = _items(description, rng, height, width)
        if items and not (known and _held_out(items)):
            return Scene(description, tuple(items), height, width)


def _held_out(items: Sequence[Item]) -> bool:
    if any(item.pair in HELD_OUT_PAIRS for item in items):
        return True
    return any(
        held_out_relation(first.pair, relation, second.pair)
        for first, second in permutations(items, 2)
        for relation in relations(first.x - second.x, first.y - second.y, first.radius + second.radius)
    )


def _items(description: Description, rng: random.Random, height: float, width: float) -> list[Item]:
    """One attempt at a scene; no items if some do not fit."""
    groups = [group for group in description.groups for _ in range(group.count)]
    colours = {group: group.colour or _any(rng, COLOURS) for group in description.groups}
    radii = [_radius(group, len(groups), rng) for group in groups]
    if description.relation:
        centres = _related(description.relation, radii, rng, height, width)
    elif groups[0].place:
        centres = [_placed(groups[0].place, radii[0], rng, height, width)]
    else:
        centres = _apart(radii, rng, height, width)
    return [
        Item(colours[group], group.shape, *centre, radius)
        for group, centre, radius in zip(groups, centres, radii, strict=bool(centres))
    ]


def _radius(group: Group, count: int, rng: random.Random) -> float:
    size = group.size or ("small" if count > 2 else _any(rng, SIZES))
    low, high = RADII[size]
    return rng.uniform(low, ALONE if size == "large" and count == 1 else high)


def _related(
    relation: str, radii: list[float], rng: random.Random, height: float, width: float
) -> list[tuple[float, float]]:
    """Centres of two objects apart along the axis of the relation, and offset across it by at most half of that."""
    if relation in ("right of", "below"):
        opposite = "left of" if relation == "right of" else "above"
        return _related(opposite, radii[::-1], rng, height, width)[::-1]
    along, across = (width, height) if relation == "left of" else (height, width)
    first, second = radii
    offset = rng.uniform(first + second + GAP, along - 2 * MARGIN - first - second)
    start = rng.uniform(MARGIN + first, along - MARGIN - second - offset)
    side = rng.uniform(MARGIN + first, across - MARGIN - first)
    low, high = max(side - offset / 2, MARGIN + second), min(side + offset / 2, across - MARGIN - second)
    centres = [(start, side), (start + offset, rng.uniform(low, high))]
    return centres if relation == "left of" else [(x, y) for y, x in centres]


_THIRDS = {-1: (0.0, 0.38), 0: (0.46, 0.54), 1: (0.62, 1.0)}  # where a centre is, in fractions of the side


def place_steps(place: str) -> tuple[int | None, int | None]:
    """What a place says of x and y: -1 left or top, 0 the middle, 1 right or bottom, None nothing."""
    across = -1 if "left" in place else 1 if "right" in place else None
    down = -1 if "top" in place else 1 if "bottom" in place else None
    return (0, 0) if place == "in the middle" else (across, down)


def _placed(place: str, radius: float, rng: random.Random, height: float, width: float) -> tuple[float, float]:
    def draw(step: int | None, side: float) -> float:
        low, high = (0.0, 1.0) if step is None else _THIRDS[step]
        return rng.uniform(max(low * side, MARGIN + radius), min(high * side, side - MARGIN - radius))

    across, down = place_steps(place)
    return draw(across, width), draw(down, height)


def _apart(radii: list[float], rng: random.Random, height: float, width: float) -> list[tuple[float, float]]:
    """Centres anywhere, no two too near; empty if the last of them found no room."""
    centres: list[tuple[float, float]] = []
    for radius in radii:
        for _ in range(8):
            x = rng.uniform(MARGIN + radius, width - MARGIN - radius)
            y = rng.uniform(MARGIN + radius, height - MARGIN - radius)
            if all(
                (x - other_x) ** 2 + (y - other_y) ** 2 >= (radius + other + GAP) ** 2
                for (other_x, other_y), other in zip(centres, radii, strict=False)
            ):
                centres.append((x, y))
                break
        else:
            return []
    return centres


def _any(rng: random.Random, values: Sequence[str]) -> str:
    return values[int(rng.random() * len(values))]


class SceneSource(Source):
    """Scenes of a split, rendered when they are read; each has one caption, unless ``captions`` is none.

    With short captions, half of the colours, sizes, places and relations are not said.
    """

    threaded, names = False, ()

    def __init__(self, split: str, size: tuple[int, int], captions: str = CAPTIONS[0]) -> None:
        self.split = "train" if split == "train" else "test"
        self.short = captions == "short"
        self.title, self.size, self.stamps = "scenes", size, {}
        self.labels = np.zeros(COUNTS[self.split], np.int64)
        self.captions: Captions | None = None if captions == "none" else WrittenCaptions(len(self), self.caption)

    def scene(self, index: int) -> Scene:
        """Scene ``index``: what its picture shows."""
        description, rng = self._described(index)
        _ = self._caption(description, rng)
        height, width = (side / min(self.size) for side in self.size)
        return arrange(description, rng, height, width, known=self.split == "train")

    def caption(self, index: int) -> str:
        """The caption of scene ``index``."""
        description, rng = self._described(index)
        if self.short:
            rng = random.Random(f"scenes short {self.split} {index}")
            description = description.shortened(rng)
        return self._caption(description, rng)

    def _described(self, index: int) -> tuple[Description, random.Random]:
        rng = random.Random(f"scenes {self.split} {index}")
        description = describe(rng)
        while self.split == "train" and description.held_out():
            description = describe(rng)
        return description, rng

    @staticmethod
    def _caption(description: Description, rng: random.Random) -> str:
        return _any(rng, description.captions())

    def name(self, index: int) -> str:
        """The scene's index."""
        return f"scene {index}"

    def decode(self, index: int, channels: int) -> np.ndarray:
        """See Source.decode."""
        return array_to_channels(self.scene(index).render(self.size), channels)

    def header(self, index: int) -> tuple[int, int, int] | None:
        """See Source.header; renders nothing."""
        return (*self.size, 3)

    def identity(self) -> Iterator[bytes]:
        """The version of the pictures, split and size determine them."""
        yield f"scenes {_VERSION} {self.split} {self.size}".encode()


def open_scenes(split: str, size: tuple[int, int] | None, captions: str = "") -> SceneSource:
    """The scenes of a split, rendered at ``size`` (H, W) or SIZE, with captions of CAPTIONS; the split valid is test.

    UserError: a side is too short for the shapes to be told apart, or there are no such captions.
    """
    if captions and captions not in CAPTIONS:
        raise UserError(f"scenes have no captions {captions!r} (--data.caption); {nearest(captions, CAPTIONS)}")
    size = size or SIZE
    if min(size) < SMALLEST:
        raise UserError(f"scenes cannot be drawn at {size[0]}x{size[1]} pixels; give --data.size {SMALLEST} or more")
    return SceneSource(split, size, captions or CAPTIONS[0])
