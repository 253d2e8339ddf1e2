"""The judge of generated scenes: which objects an image shows, and whether they are what the prompt says.

An image is parsed without a network: each pixel is white plus a share of one of the eight colours, connected pixels of a
colour are an object, and its shape is the one whose outline of the same area, at the same centre, overlaps it most. An object
of no known colour or shape, one too many, or a larger smudge fails the image; a speck does not. The tasks are GenEval's (Ghosh
et al. 2023), and so are the rules of counting and position. ``measure_judge`` measures the judge's own error, on real scenes.
"""

from __future__ import annotations

import json
import math
import random
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from itertools import permutations

import numpy as np

from ditlab.data.scene_captions import COLOURS, SHAPES, Description, Group, Prompt, prompts, task_names
from ditlab.data.scenes import ALONE, BACKGROUND, RADII, RGB, Item, arrange, coverage, place_steps, relations
from ditlab.errors import UserError
from ditlab.runtime.console import markdown_table

tasks = task_names

_BATCH = 64  # images parsed at a time
_LARGEST = 64  # pixels of the shorter side; larger images are averaged down
_SAME_COLOUR = 80  # largest distance in RGB, 0 to 255, of an object's mean colour from the colour's own
_OVERLAP = 0.75  # least intersection over union of an object with the outline of its shape
_CLEARER = 0.05  # least difference of it to the next shape
_RADII = (0.7 * RADII["small"][0], 1.2 * ALONE)  # of an object, not of a dot or of a coloured background
_SIZE_LIMIT = (RADII["small"][1] + RADII["large"][0]) / 2  # radius
_MIDDLE = 0.08  # farthest of a centre from the middle of a side, in fractions of it
_SMALLEST_AREA = 1.3 * RADII["small"][0] ** 2  # a small triangle
_SPECK = 0.15 * _SMALLEST_AREA  # less is not an object
_SMUDGE = 0.25 * _SMALLEST_AREA  # of colour outside of objects, more is one object too many

_AREAS = {"circle": math.pi, "square": 2.0, "triangle": math.sqrt(27) / 4, "cross": 2.0944, "ring": 0.75 * math.pi}
_WHITE = np.array(BACKGROUND, np.float32)
_UNKNOWN = Item("", "", math.nan, math.nan, math.nan)


def parse(images: np.ndarray) -> list[list[Item]]:
    """The objects in each of the images uint8 (N, H, W, 3), in no order; an unknown colour or shape is an empty string."""
    factor = max(1, min(images.shape[1:3]) // _LARGEST)
    parsed: list[list[Item]] = []
    for start in range(0, len(images), _BATCH):
        parsed += _parse(images[start : start + _BATCH], factor)
    return parsed


def _parse(images: np.ndarray, factor: int) -> list[list[Item]]:
    count, height, width = len(images), images.shape[1] // factor, images.shape[2] // factor
    unit = min(images.shape[1:3]) / factor
    cut = images[:, : height * factor, : width * factor].astype(np.float32)
    pixels = cut.reshape(count, height, factor, width, factor, 3).mean((2, 4)) if factor > 1 else cut
    colours, shares = unmix(pixels)
    labels = _components(np.where(shares > 0.5, colours + 1, 0))
    areas = np.bincount(_with_border(labels).ravel(), shares.ravel())
    kept = np.flatnonzero(areas > _SPECK * unit**2)
    kept = kept[kept > 0]
    owner = _with_border(np.where(np.isin(labels, kept), labels, 0))

    parsed: list[list[Item]] = [[] for _ in range(count)]
    smudges = np.where((owner == 0) & (shares > 0.25), shares, 0).sum((1, 2)) > _SMUDGE * unit**2
    first = np.zeros(labels.max() + 1, np.int64)
    first[labels.ravel()[::-1]] = np.arange(labels.size)[::-1]
    for label in kept:
        image = first[label] // (height * width)
        own = owner[image] == label
        parsed[image].append(
            _recognise(pixels[image], np.where(own, shares[image], 0), COLOURS[colours.flat[first[label]]], unit)
        )
    for image in np.flatnonzero(smudges):
        parsed[image].append(_UNKNOWN)
    return parsed


def unmix(pixels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Of each pixel the colour, of COLOURS, on whose line from white it is nearest, and its share, in [0, 1]."""
    lines = np.array([RGB[colour] for colour in COLOURS], np.float32) - _WHITE
    lengths = (lines**2).sum(1)
    along = (pixels - _WHITE) @ lines.T
    shares = np.clip(along / lengths, 0, 1)
    distances = shares**2 * lengths - 2 * shares * along  # squared, less what is equal for all lines
    colours = distances.argmin(-1)
    return colours, np.take_along_axis(shares, colours[..., None], -1)[..., 0]


def _components(colours: np.ndarray) -> np.ndarray:
    """Labels int64 (N, H, W), above 0, of the pixels connected, also by corners, to others of the same colour; 0 is none."""
    padded = _padded(colours)
    labels = np.where(padded > 0, np.arange(padded.size).reshape(padded.shape), 0)
    height, width = padded.shape[1:]
    pairs = []
    for down, right in ((0, 1), (1, -1), (1, 0), (1, 1)):
        here = (slice(None), slice(0, height - down), slice(max(-right, 0), width - max(right, 0)))
        there = (slice(None), slice(down, height), slice(max(right, 0), width + min(right, 0)))
        pairs.append((here, there, (padded[here] == padded[there]) & (padded[here] > 0)))
    while True:
        before = labels.copy()
        for here, there, same in pairs:
            largest = np.maximum(labels[here], labels[there])
            for side in (labels[here], labels[there]):  # they overlap, and no label may become smaller
                np.maximum(side, largest, out=side, where=same)
        labels = labels.ravel()[labels]  # a label is a pixel of the component: its label is larger, or the same
        if (labels == before).all():
            break
    found, compact = np.unique(labels[:, 1:-1, 1:-1], return_inverse=True)
    return compact.reshape(colours.shape) + (found[0] > 0)


def _padded(images: np.ndarray) -> np.ndarray:
    """Integers (N, H, W) with a border of zeros, (N, H + 2, W + 2)."""
    count, height, width = images.shape
    padded = np.zeros((count, height + 2, width + 2), images.dtype)
    padded[:, 1:-1, 1:-1] = images
    return padded


def _with_border(labels: np.ndarray) -> np.ndarray:
    """Labels that own also the pixels next to them, where an edge is less than half covered."""
    (height, width), padded = labels.shape[1:], _padded(labels)
    near = [padded[:, y : y + height, x : x + width] for y in range(3) for x in range(3)]
    return np.where(labels > 0, labels, np.max(near, axis=0))


def _recognise(pixels: np.ndarray, shares: np.ndarray, colour: str, unit: float) -> Item:
    """One object of an image (H, W, 3) from its share of each pixel (H, W)."""
    shares = np.minimum(shares / np.quantile(shares[shares > 0.5], 0.9), 1)  # a pale object has the shape of a full one
    inner = pixels[shares > 0.7]
    known = len(inner) > 0 and np.linalg.norm(inner.mean(0) - RGB[colour]) < _SAME_COLOUR
    shares = _sharpened(shares)
    area = shares.sum()
    rows, columns = np.arange(shares.shape[0])[:, None] + 0.5, np.arange(shares.shape[1]) + 0.5
    x, y = float((shares * columns).sum() / area), float((shares * rows).sum() / area)
    overlaps = []
    for shape in SHAPES:
        outline = _sharpened(coverage(shape, columns - x, rows - y, math.sqrt(area / _AREAS[shape])))
        overlap = np.minimum(outline, shares).sum() / np.maximum(outline, shares).sum()
        overlaps.append((float(overlap), shape))
    (second, _), (best, shape) = sorted(overlaps)[-2:]
    radius = math.sqrt(area / _AREAS[shape]) / unit
    clear = best >= _OVERLAP and best - second >= _CLEARER and _RADII[0] <= radius <= _RADII[1]
    return Item(colour if known else "", shape if clear else "", x / unit, y / unit, radius)


def _sharpened(shares: np.ndarray) -> np.ndarray:
    """Shares of pixels with edges of half the width, so that slight blur counts little."""
    return np.clip(2 * shares - 0.5, 0, 1)


def matches(items: Sequence[Item], expected: Description, height: float = 1, width: float = 1) -> bool:
    """Whether objects are exactly what a description says; ``height`` and ``width`` in units of the shorter side."""
    groups = [group for group in expected.groups for _ in range(group.count)]
    if len(items) != len(groups):
        return False
    return any(
        all(_is(item, group, height, width) for item, group in zip(order, groups, strict=True))
        and (not expected.relation or expected.relation in _relations(*order))
        for order in permutations(items)
    )


def _is(item: Item, group: Group, height: float, width: float) -> bool:
    if item.shape != group.shape or not item.colour or (group.colour and item.colour != group.colour):
        return False
    if group.size and group.size != ("small" if item.radius < _SIZE_LIMIT else "large"):
        return False
    return not group.place or all(
        wanted in (None, 0 if abs(offset) <= _MIDDLE else math.copysign(1, offset))
        for wanted, offset in zip(place_steps(group.place), (item.x / width - 0.5, item.y / height - 0.5), strict=True)
    )


def _relations(first: Item, second: Item) -> list[str]:
    return relations(first.x - second.x, first.y - second.y, first.radius + second.radius)


@dataclass(frozen=True)
class TaskScore:
    """How many of the images of one task are what their prompts say."""

    task: str
    held_out: bool  # the prompts have combinations that training does not
    passed: int
    count: int

    @property
    def share(self) -> float:
        """In [0, 1]."""
        return self.passed / self.count

    @property
    def interval(self) -> tuple[float, float]:
        """Wilson's interval of the share at 95% (Wilson 1927)."""
        z = 1.959964
        centre = (self.passed + z**2 / 2) / (self.count + z**2)
        half = z * math.sqrt(self.share * (1 - self.share) * self.count + z**2 / 4) / (self.count + z**2)
        return max(centre - half, 0), min(centre + half, 1)

    def cell(self) -> str:
        """Percent, with the interval."""
        low, high = self.interval
        return f"{100 * self.share:.1f} ({100 * low:.1f} to {100 * high:.1f})"


@dataclass(frozen=True)
class TaskScores:
    """The scores of all tasks, seen and held out."""

    scores: tuple[TaskScore, ...]
    seed: int  # of the prompts

    def get(self, task: str, held_out: bool = False) -> TaskScore:
        """The score of one task."""
        return next(score for score in self.scores if (score.task, score.held_out) == (task, held_out))

    def rows(self) -> list[tuple[str, ...]]:
        """Of each task its name, and percent with the interval, seen and held out."""
        names = dict.fromkeys(score.task for score in self.scores)
        return [(task, self.get(task).cell(), self.get(task, True).cell()) for task in names]

    def table(self) -> list[str]:
        """Lines of a Markdown table: percent of each task with its interval."""
        return markdown_table(("task", "seen, %", "held out, %"), self.rows())

    def to_json(self) -> str:
        """One line: the seed, and of each task passed, count, share and interval."""
        scores = [{**asdict(score), "share": score.share, "interval": score.interval} for score in self.scores]
        return json.dumps({"seed": self.seed, "scores": scores})


class SceneScores(TaskScores):
    """The scores of GenEval's tasks."""

    def mean(self, held_out: bool = False) -> float:
        """The mean share of the six tasks, GenEval's overall score."""
        shares = [score.share for score in self.scores if score.held_out == held_out]
        return sum(shares) / len(shares)

    def rows(self) -> list[tuple[str, ...]]:
        """See ``TaskScores.rows``; the last is the mean."""
        return [*super().rows(), ("mean", f"{100 * self.mean():.1f}", f"{100 * self.mean(True):.1f}")]


class ScenesJudge:
    """Prompts of GenEval's tasks on scenes, and the verdict on images generated from them."""

    prompts = staticmethod(prompts)

    @staticmethod
    def score(images: np.ndarray, prompts: Sequence[Prompt]) -> np.ndarray:
        """Whether each image uint8 (N, H, W, 3) is what its prompt demands and shows nothing else, bool (N,).

        UserError: the images are not RGB.
        """
        if images.shape[3] != 3:
            raise UserError(f"images of {images.shape[3]} channels cannot be judged; scenes are RGB")
        height, width = (side / min(images.shape[1:3]) for side in images.shape[1:3])
        found = zip(parse(images), prompts, strict=True)
        return np.array([matches(items, prompt.expected, height, width) for items, prompt in found], bool)


def measure(generate: Callable[[list[str]], np.ndarray], count: int = 500, seed: int = 0) -> SceneScores:
    """Score a model on all tasks, ``count`` prompts each, seen and held out apart.

    ``generate`` makes of prompts, 12 times ``count`` of them, images uint8 (N, H, W, 3) in their order.
    """
    return _measure(lambda drawn: generate([prompt.text for prompt in drawn]), count, seed)


def measure_judge(size: tuple[int, int], count: int = 500, seed: int = 0, noise: float = 8) -> SceneScores:
    """Score real scenes of ``size`` (H, W) with Gaussian noise of a standard deviation of ``noise`` of 255.

    One less a share is the judge's own error.
    """
    generator = np.random.default_rng(seed)

    def real(drawn: list[Prompt]) -> np.ndarray:
        images = render(drawn, size, seed)
        return np.clip(np.rint(images + noise * generator.standard_normal(images.shape)), 0, 255).astype(np.uint8)

    return _measure(real, count, seed)


def render(drawn: Sequence[Prompt], size: tuple[int, int], seed: int = 0) -> np.ndarray:
    """A real scene for each prompt, uint8 (N, H, W, 3) of ``size`` (H, W)."""
    rng, (height, width) = random.Random(f"real {seed}"), (side / min(size) for side in size)
    return np.stack([arrange(prompt.expected, rng, height, width).render(size) for prompt in drawn])


def _measure(generate: Callable[[list[Prompt]], np.ndarray], count: int, seed: int) -> SceneScores:
    scores = []
    for held_out in (False, True):
        for task in tasks():
            drawn = prompts(task, count, seed, held_out)
            passed = int(ScenesJudge.score(generate(drawn), drawn).sum())
            scores.append(TaskScore(task, held_out, passed, count))
    return SceneScores(tuple(scores), seed)
