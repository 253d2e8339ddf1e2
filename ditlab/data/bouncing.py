"""The data set ``bouncing``: rendered clips of a shape or a digit that moves by a law, with captions that are exact.

One object on white moves at a constant velocity and is reflected by the sides of the image. A clip is a pure function of split,
index, length and the ratio of the sides, and renders at any size. Lengths are in units of the shorter side of the image,
velocities in these per frame. Training has neither the held-out combinations, in captions or clips, nor a speed outside of
``SPEEDS``; ``draw`` makes clips of both for tests.
"""

from __future__ import annotations

import math
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from ditlab.data.decode import array_to_channels
from ditlab.data.scene_captions import COLOURS, HELD_OUT_PAIRS, SHAPES
from ditlab.data.scenes import BACKGROUND, RGB, coverage
from ditlab.data.source import Captions, Source, WrittenCaptions
from ditlab.errors import UserError

SIZE, FRAMES = (32, 32), 17  # pixels and frames, unless the config says otherwise
SMALLEST = 16  # pixels of the shorter side
COUNTS = {"train": 20_000, "test": 1_000}
RADIUS = 0.18  # of the circle around the object
DIGITS = tuple("0123456789")
DIRECTIONS = {  # x to the right, y down
    "right": (1, 0), "left": (-1, 0), "up": (0, -1), "down": (0, 1),
    "up and right": (1, -1), "up and left": (-1, -1), "down and right": (1, 1), "down and left": (-1, 1),
}  # fmt: skip
SPEEDS = {"slowly": (0.010, 0.014), "": (0.018, 0.024), "fast": (0.030, 0.038)}  # by the word of the caption
OUT_OF_RANGE = {"slower": (0.004, 0.006), "faster": (0.050, 0.060)}  # never in training

# Held out: pairs of colour and shape as in scenes, one digit of each colour, and these pairs of direction and speed.
HELD_OUT_DIGITS = frozenset((colour, str(3 * index % 10)) for index, colour in enumerate(COLOURS))
HELD_OUT_MOTIONS = frozenset(
    {("up", "fast"), ("left", "slowly"), ("down and right", "fast"), ("up and left", "slowly")}
)

_SEGMENTS = {  # of a digit: x, y of the centre, and half lengths across and down, in units of its radius
    "top": (0, -0.8, 0.5, 0.17), "middle": (0, 0, 0.5, 0.17), "bottom": (0, 0.8, 0.5, 0.17),
    "top left": (-0.5, -0.4, 0.15, 0.57), "top right": (0.5, -0.4, 0.15, 0.57),
    "bottom left": (-0.5, 0.4, 0.15, 0.57), "bottom right": (0.5, 0.4, 0.15, 0.57),
}  # fmt: skip
_LIT = {
    "0": ("top", "bottom", "top left", "top right", "bottom left", "bottom right"),
    "1": ("top right", "bottom right"),
    "2": ("top", "middle", "bottom", "top right", "bottom left"),
    "3": ("top", "middle", "bottom", "top right", "bottom right"),
    "4": ("middle", "top left", "top right", "bottom right"),
    "5": ("top", "middle", "bottom", "top left", "bottom right"),
    "6": ("top", "middle", "bottom", "top left", "bottom left", "bottom right"),
    "7": ("top", "top right", "bottom right"),
    "8": tuple(_SEGMENTS),
    "9": ("top", "middle", "bottom", "top left", "top right", "bottom right"),
}


@dataclass(frozen=True)
class Thing:
    """What moves: a shape of SHAPES or a digit; ``said`` is whether the caption names its colour."""

    colour: str
    shape: str
    said: bool = True

    def phrase(self) -> str:
        """With article: "an orange cross", "a red 8", "an 8"."""
        noun = f"{self.colour} {self.shape}" if self.said else self.shape
        return f"{'an' if noun[0] in 'aeio8' else 'a'} {noun}"

    def held_out(self) -> bool:
        """Whether the pair of colour and shape is in no training clip."""
        return (self.colour, self.shape) in (HELD_OUT_DIGITS if self.shape in DIGITS else HELD_OUT_PAIRS)


@dataclass(frozen=True)
class Motion:
    """How it moves at first: a direction of DIRECTIONS, a speed of SPEEDS or OUT_OF_RANGE, and whether it reaches a side."""

    direction: str
    speed: str = ""
    bounces: bool = False

    def phrases(self, moves: str = "moves") -> list[str]:
        """What a caption says after the thing."""
        speed = f" {self.speed}" if self.speed else ""
        if self.bounces:
            return [f"{moves} {self.direction}{speed} and bounces", f"bounces{speed} {self.direction}"]
        return [f"{moves} {self.direction}{speed}"]

    def held_out(self) -> bool:
        """Whether the pair of direction and speed is in no training clip."""
        return (self.direction, self.speed) in HELD_OUT_MOTIONS


@dataclass(frozen=True)
class Clip:
    """The truth about a clip: place (x, y) and velocity at frame 0; height and width, of which the shorter is 1."""

    thing: Thing
    motion: Motion
    place: tuple[float, float]
    velocity: tuple[float, float]
    height: float
    width: float

    def captions(self) -> list[str]:
        """All sentences that say it, the plainest first."""
        thing = self.thing.phrase()
        said = [f"{thing} {each}" for each in self.motion.phrases()]
        return said + [f"{thing} that {each}" for each in self.motion.phrases()]

    def places(self, frames: int) -> np.ndarray:
        """Centre of the thing in each frame, float64 (F, 2): a constant velocity, reflected by the sides."""
        t = np.arange(frames)[:, None]
        least, most = RADIUS, np.array([self.width, self.height]) - RADIUS
        free = np.array(self.place) + np.array(self.velocity) * t
        folded = np.mod(free - least, 2 * (most - least))  # a path that returns after twice the room
        return least + np.minimum(folded, 2 * (most - least) - folded)

    def bounces(self, frames: int) -> int:
        """How often it is reflected until the last frame."""
        least, most = RADIUS, np.array([self.width, self.height]) - RADIUS
        end = np.array(self.place) + np.array(self.velocity) * (frames - 1)
        return int(np.abs(np.floor((end - least) / (most - least))).sum())

    def render(self, size: tuple[int, int], frames: int) -> np.ndarray:
        """The clip, uint8 (F, H, W, 3), of ``size`` (H, W) in the ratio of the clip; edges are anti-aliased."""
        unit, colour = min(size), np.array(RGB[self.thing.colour], np.float32)
        background, radius = np.array(BACKGROUND, np.float32), RADIUS * unit
        clip = np.empty((frames, *size, 3), np.uint8)
        rows, columns = (np.arange(side, dtype=np.float32) + 0.5 for side in size)
        for frame, (x, y) in zip(clip, self.places(frames) * unit, strict=True):
            share = covered(self.thing.shape, columns - x, (rows - y)[:, None], radius)[..., None]
            frame[:] = np.rint(background + share * (colour - background))
        return clip


def covered(shape: str, x: np.ndarray, y: np.ndarray, radius: float) -> np.ndarray:
    """The share of each pixel that a shape or a digit of a radius covers, in [0, 1], as ``scenes.coverage``."""
    if shape not in DIGITS:
        return coverage(shape, x, y, radius)
    bars = [
        np.maximum(np.abs(x - across * radius) - half_width * radius, np.abs(y - down * radius) - half_height * radius)
        for across, down, half_width, half_height in (_SEGMENTS[name] for name in _LIT[shape])
    ]
    return np.clip(0.5 - np.minimum.reduce(np.broadcast_arrays(*bars)), 0, 1)


def describe(rng: random.Random) -> tuple[Thing, Motion]:
    """Draw what a clip shows: as many shapes as digits; of ten clips three bounce, and one caption names no colour."""
    shapes = SHAPES if rng.random() < 0.5 else DIGITS
    thing = Thing(_any(rng, COLOURS), _any(rng, shapes), said=rng.random() >= 0.1)
    return thing, Motion(_any(rng, tuple(DIRECTIONS)), _any(rng, tuple(SPEEDS)), bounces=rng.random() < 0.3)


def draw(
    thing: Thing, motion: Motion, rng: random.Random, frames: int = FRAMES, height: float = 1, width: float = 1
) -> Clip:
    """Draw a clip of ``frames`` frames, ``height`` by ``width`` in units of the shorter side.

    It starts where it reaches no side before the last frame, or does where it is to bounce. A thing too fast for the length to
    reach none starts as far from the side as possible.
    """
    across, down = DIRECTIONS[motion.direction]
    speed = rng.uniform(*(SPEEDS | OUT_OF_RANGE)[motion.speed]) / math.hypot(across, down)
    velocity = (across * speed, down * speed)
    x, y = (_start(*axis, speed * (frames - 1), motion.bounces, rng) for axis in ((across, width), (down, height)))
    return Clip(thing, motion, (x, y), velocity, height, width)


def _start(step: int, side: float, travel: float, bounces: bool, rng: random.Random) -> float:
    """Where an object starts along one axis to reach, or not to reach, the side that it moves to."""
    least, room = RADIUS, side - 2 * RADIUS
    if not step:
        return least + rng.uniform(0, room)
    before = rng.uniform(0, max(room - travel, 0))  # how far from the side behind it
    if bounces:
        before = rng.uniform(max(room - 0.8 * travel, 0), max(room - 0.2 * travel, 0))
    return least + before if step > 0 else least + room - before


def _any(rng: random.Random, values: Sequence[str]) -> str:  # random() alone is the same in every version of Python
    return values[int(rng.random() * len(values))]


class BouncingSource(Source):
    """Clips of a split, rendered when they are read; each has one caption."""

    threaded, names = False, ()

    def __init__(self, split: str, size: tuple[int, int], frames: int) -> None:
        self.split = "train" if split == "train" else "test"
        self.title, self.size, self.frames, self.stamps = "bouncing", size, frames, {}
        self.labels = np.zeros(COUNTS[self.split], np.int64)
        self.captions: Captions = WrittenCaptions(len(self), self.caption)

    def clip(self, index: int) -> Clip:
        """Clip ``index``: what it shows."""
        rng = self._rng(index)
        thing, motion = describe(rng)
        while self.split == "train" and (thing.held_out() or motion.held_out()):
            thing, motion = describe(rng)
        height, width = (side / min(self.size) for side in self.size)
        return draw(thing, motion, rng, self.frames, height, width)

    def caption(self, index: int) -> str:
        """The caption of clip ``index``."""
        return _any(random.Random(f"bouncing caption {self.split} {index}"), self.clip(index).captions())

    def _rng(self, index: int) -> random.Random:
        return random.Random(f"bouncing {self.split} {index}")

    def name(self, index: int) -> str:
        """The clip's index."""
        return f"clip {index}"

    def decode(self, index: int, channels: int) -> np.ndarray:
        """See Source.decode: uint8 (F, H, W, C)."""
        clip = self.clip(index).render(self.size, self.frames)
        return np.stack([array_to_channels(frame, channels) for frame in clip])

    def header(self, index: int) -> tuple[int, int, int] | None:
        """See Source.header; renders nothing."""
        return (*self.size, 3)

    def identity(self) -> Iterator[bytes]:
        """The version of the clips, split, size and length determine them."""
        yield f"bouncing 1 {self.split} {self.size} {self.frames}".encode()


def open_bouncing(split: str, size: tuple[int, int] | None, frames: int) -> BouncingSource:
    """The clips of a split, rendered at ``size`` (H, W) or SIZE, of ``frames`` frames or FRAMES; the split valid is test.

    UserError: a side is too short for the digits to be told apart.
    """
    size = size or SIZE
    if min(size) < SMALLEST:
        raise UserError(f"clips cannot be drawn at {size[0]}x{size[1]} pixels; give --data.size {SMALLEST} or more")
    return BouncingSource(split, size, frames or FRAMES)
