"""The judge of generated clips of ``bouncing``: what moves, how, and whether it is what the prompt says.

A clip is parsed without a network. In each frame the pixels are white plus a share of one of the eight colours; the object is
the shape or digit whose outline, at the same centre of mass, overlaps them most. The centres of all frames are fitted by the
law of motion: a constant velocity, reflected by the sides. ``measure_judge`` measures the judge's own error, on real clips.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

import numpy as np

from ditlab.data.bouncing import DIGITS, DIRECTIONS, FRAMES, RADIUS, SPEEDS, Motion, Thing, covered, describe, draw
from ditlab.data.scene_captions import COLOURS, SHAPES
from ditlab.evaluate.scenes import TaskScore, TaskScores, unmix

TASKS = ("identity", "direction", "speed", "bounces", "law", "all")
SPEED_TOLERANCE = 0.2  # of the ends of the range that the caption means
LAW_TOLERANCE = 0.03  # root mean square distance from the law, in units of the shorter side

_INK = (0.6, 1.6)  # of an image, by the area of the object that the prompt says
_OVERLAP = 0.6  # least intersection over union with the outline
_STILL = 0.3  # of the speed: an axis of less does not move
_FITS = 3  # times that the law is fitted, each with the sides that the last fit reaches


@dataclass(frozen=True)
class Observed:
    """What a clip shows.

    Attributes:
        things: colour and shape in each frame; empty where it shows no object or several.
        direction: of DIRECTIONS, at first; empty if nothing moves, or where no law fits.
        speed: per frame, in units of the shorter side.
        bounces: how often it is reflected.
        residual: root mean square distance of the centres from the law.
    """

    things: tuple[tuple[str, str], ...]
    direction: str
    speed: float
    bounces: int
    residual: float


@dataclass(frozen=True)
class ClipPrompt:
    """A caption to generate a clip from, and what it demands."""

    text: str
    thing: Thing
    motion: Motion


def prompts(count: int, seed: int, held_out: bool) -> list[ClipPrompt]:
    """Draw prompts that name a colour, with or without a held-out combination."""
    rng, drawn = random.Random(f"bouncing prompts {held_out} {seed}"), list[ClipPrompt]()
    while len(drawn) < count:
        thing, motion = describe(rng)
        if thing.said and (thing.held_out() or motion.held_out()) == held_out:
            drawn.append(ClipPrompt(f"{thing.phrase()} {motion.phrases()[0]}", thing, motion))
    return drawn


def observe(clip: np.ndarray) -> Observed:
    """What a clip uint8 (F, H, W, 3) shows."""
    unit = min(clip.shape[1:3])
    found = [_object(frame) for frame in clip.astype(np.float32)]
    things = tuple(found_thing for found_thing, _ in found)
    centres = np.array([centre for _, centre in found]) / unit
    if not np.isfinite(centres).all():
        return Observed(things, "", 0.0, 0, math.inf)
    room = np.array([clip.shape[2], clip.shape[1]]) / unit - 2 * RADIUS
    fits = [_fit(centres[:, axis] - RADIUS, room[axis]) for axis in (0, 1)]
    velocity = np.array([fit[0] for fit in fits])
    speed = float(np.hypot(*velocity))
    signs = tuple(int(np.sign(v)) if abs(v) > _STILL * speed > 0 else 0 for v in velocity)
    direction = next((name for name, each in DIRECTIONS.items() if each == signs), "")
    residual = math.sqrt(sum(fit[2] ** 2 for fit in fits))
    return Observed(things, direction, speed, sum(fit[1] for fit in fits), residual)


def score(clip: np.ndarray, prompt: ClipPrompt) -> dict[str, bool]:
    """Whether a clip uint8 (F, H, W, 3) is what its prompt demands, by task."""
    seen, motion = observe(clip), prompt.motion
    low, high = SPEEDS[motion.speed]
    right = {
        "identity": all(each == (prompt.thing.colour, prompt.thing.shape) for each in seen.things),
        "direction": seen.direction == motion.direction,
        "speed": low * (1 - SPEED_TOLERANCE) <= seen.speed <= high * (1 + SPEED_TOLERANCE),
        "bounces": math.isfinite(seen.residual) and (seen.bounces > 0) == motion.bounces,
        "law": seen.residual <= LAW_TOLERANCE,
    }
    return {**right, "all": all(right.values())}


def measure(generate: Callable[[list[str]], np.ndarray], count: int = 200, seed: int = 0) -> TaskScores:
    """Score a model on ``count`` prompts, seen and held out apart.

    ``generate`` makes of prompts, twice ``count`` of them, clips uint8 (N, F, H, W, 3) in their order.
    """
    return _measure(lambda drawn: generate([prompt.text for prompt in drawn]), count, seed)


def measure_judge(
    size: tuple[int, int] = (32, 32), frames: int = FRAMES, count: int = 200, seed: int = 0, noise: float = 8
) -> TaskScores:
    """Score real clips with Gaussian noise of a standard deviation of ``noise`` of 255: one less a share is the error."""
    generator, rng = np.random.default_rng(seed), random.Random(f"real {seed}")
    height, width = (side / min(size) for side in size)

    def real(drawn: list[ClipPrompt]) -> np.ndarray:
        clips = [draw(prompt.thing, prompt.motion, rng, frames, height, width).render(size, frames) for prompt in drawn]
        noised = np.stack(clips) + noise * generator.standard_normal((len(clips), *clips[0].shape))
        return np.clip(np.rint(noised), 0, 255).astype(np.uint8)

    return _measure(real, count, seed)


def _measure(generate: Callable[[list[ClipPrompt]], np.ndarray], count: int, seed: int) -> TaskScores:
    scores = []
    for held_out in (False, True):
        drawn = prompts(count, seed, held_out)
        verdicts = [score(clip, prompt) for clip, prompt in zip(generate(drawn), drawn, strict=True)]
        scores += [TaskScore(task, held_out, sum(each[task] for each in verdicts), count) for task in TASKS]
    return TaskScores(tuple(scores), seed)


def _object(frame: np.ndarray) -> tuple[tuple[str, str], tuple[float, float]]:
    """Colour and shape of the object in a frame (H, W, 3), and its centre in pixels; empty and NaN for none."""
    colours, shares = unmix(frame[None])
    shares = np.where(shares[0] > 0.15, shares[0], 0)  # noise on white
    ink = np.bincount(colours[0].ravel(), shares.ravel(), len(COLOURS))
    radius = RADIUS * min(frame.shape[:2])
    if not ink.sum() > 0.2 * radius**2:
        return ("", ""), (math.nan, math.nan)
    rows, columns = (np.arange(side) + 0.5 for side in shares.shape)
    x, y = (shares * columns).sum() / shares.sum(), (shares * rows[:, None]).sum() / shares.sum()
    overlaps = []
    for shape in (*SHAPES, *DIGITS):
        across, down, area = _mass(shape)
        if _INK[0] < shares.sum() / (area * radius**2) < _INK[1]:
            centre = x - across * radius, y - down * radius
            outline = covered(shape, columns - centre[0], (rows - centre[1])[:, None], radius)
            overlap = np.minimum(outline, shares).sum() / np.maximum(outline, shares).sum()
            overlaps.append((float(overlap), shape, centre))
    best = max(overlaps, default=(0.0, "", (x, y)))
    known = best[0] >= _OVERLAP and ink.max() > 0.7 * ink.sum()
    return (COLOURS[int(ink.argmax())], best[1]) if known else ("", ""), best[2]


@cache
def _mass(shape: str) -> tuple[float, float, float]:
    """Centre of mass of a shape or digit from its centre, and its area, for a radius of 1."""
    grid = (np.arange(400) - 199.5) / 150
    share = covered(shape, 150 * grid, 150 * grid[:, None], 150.0)
    return (
        float((share * grid).sum() / share.sum()), float((share * grid[:, None]).sum() / share.sum()),
        float(share.sum() / 150**2),
    )  # fmt: skip


def _fit(places: np.ndarray, room: float) -> tuple[float, int, float]:
    """Velocity at first, number of reflections and residual of places (F,) from 0 to ``room`` along one axis.

    The places are unfolded at the sides that the last fit reaches, then a line is fitted.
    """
    steps = np.diff(places)
    sign = np.sign(np.median(steps[: max(2, len(steps) // 4)])) or 1.0
    velocity, start, t = sign * float(np.median(np.abs(steps))), float(places[0]), np.arange(len(places))
    best = (velocity, 0, math.inf)
    for folds in (_folds(start + velocity * t, room), np.zeros(len(t), int)):
        for _ in range(_FITS):
            unfolded = folds * room + np.where(folds % 2, room - places, places)
            slope, start = np.polyfit(t, unfolded, 1)
            residual = float(np.sqrt(np.mean((unfolded - start - slope * t) ** 2)))
            if residual < best[2]:
                best = (float(slope), int(abs(folds[-1] - folds[0])), residual)
            folds = _folds(start + slope * t, room)
    return best


def _folds(free: np.ndarray, room: float) -> np.ndarray:
    """How often a path without sides, from 0 to ``room`` between them, has passed one."""
    return np.floor(free / room).astype(int)
