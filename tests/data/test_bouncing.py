"""Rendered clips: captions, the law of motion, held-out combinations, rendering."""

from __future__ import annotations

import hashlib
import re
from dataclasses import replace

import numpy as np
import pytest

from ditlab.data import DataConfig, open_data
from ditlab.data.bouncing import (
    DIGITS,
    DIRECTIONS,
    HELD_OUT_DIGITS,
    HELD_OUT_MOTIONS,
    OUT_OF_RANGE,
    RADIUS,
    SPEEDS,
    BouncingSource,
    Clip,
    Motion,
    Thing,
    covered,
)
from ditlab.data.scene_captions import COLOURS, HELD_OUT_PAIRS, SHAPES
from ditlab.data.scenes import RGB
from ditlab.errors import UserError

ROWS = range(0, 20_000, 23)
DIRECTION = "|".join(sorted(DIRECTIONS, key=len, reverse=True))
CAPTION = re.compile(
    rf"(an?) (?:({'|'.join(COLOURS)}) )?({'|'.join((*SHAPES, *DIGITS))})(?: that)? "
    rf"(?:moves ({DIRECTION})(?: (slowly|fast))?( and bounces)?|bounces(?: (slowly|fast))? ({DIRECTION}))"
)


@pytest.fixture(scope="module")
def clips() -> list[tuple[str, Clip]]:
    source = BouncingSource("train", (32, 32), 17)
    return [(source.caption(row), source.clip(row)) for row in ROWS]


def test_captions_are_true_of_the_clips_and_in_plain_english(clips: list[tuple[str, Clip]]):
    for caption, clip in clips:
        found = CAPTION.fullmatch(caption)
        assert found, caption
        article, colour, shape, direction, speed, also, other_speed, other = found.groups()
        first = f"{colour} " * bool(colour) + shape
        assert article == ("an" if first[0] in "ao8" else "a"), caption
        assert clip.thing == Thing(colour or clip.thing.colour, shape, said=bool(colour))
        assert clip.motion.direction == (direction or other)
        assert clip.motion.speed == (speed or other_speed or "")
        assert (clip.bounces(17) > 0) == bool(also or other) == clip.motion.bounces
        across, down = np.sign(clip.velocity)
        assert (across, down) == DIRECTIONS[clip.motion.direction]
        least, most = SPEEDS[clip.motion.speed]
        assert least <= np.hypot(*clip.velocity) <= most
    said = {caption for caption, _ in clips}
    assert len(said) > 0.5 * len(clips)
    for word in (*COLOURS, *SHAPES, *DIGITS, "slowly", "fast", "bounces"):
        assert any(re.search(rf"\b{word}\b", caption) for caption in said), word


def test_training_has_no_held_out_combination_and_the_test_split_has_all(clips: list[tuple[str, Clip]]):
    pairs = {(clip.thing.colour, clip.thing.shape) for _, clip in clips}
    motions = {(clip.motion.direction, clip.motion.speed) for _, clip in clips}
    assert not pairs & (HELD_OUT_PAIRS | HELD_OUT_DIGITS)
    assert not motions & HELD_OUT_MOTIONS
    assert len(motions) == 8 * 3 - len(HELD_OUT_MOTIONS)
    test = BouncingSource("test", (32, 32), 17)
    others = [test.clip(row) for row in range(1000)]
    assert {(clip.motion.direction, clip.motion.speed) for clip in others} >= HELD_OUT_MOTIONS
    assert sum(clip.thing.held_out() for clip in others) > 50
    fastest = max(high for _, high in SPEEDS.values())
    slowest = min(low for low, _ in SPEEDS.values())
    assert OUT_OF_RANGE["slower"][1] < slowest < fastest < OUT_OF_RANGE["faster"][0]


def test_the_law_of_motion_is_that_of_small_steps():
    """Against a simulation that turns the velocity at a side, over a clip long enough for many bounces."""
    clip = replace(BouncingSource("train", (32, 48), 17).clip(5), velocity=(0.031, -0.047))
    place, velocity, steps = np.array(clip.place), np.array(clip.velocity), 1000
    most = np.array([clip.width, clip.height]) - RADIUS
    places, turns = [], 0
    for _ in range(200):
        places.append(place.copy())
        for _ in range(steps):
            place = place + velocity / steps
            outside = (place < RADIUS) | (place > most)
            velocity = np.where(outside, -velocity, velocity)
            place = np.where(place < RADIUS, 2 * RADIUS - place, np.where(place > most, 2 * most - place, place))
            turns += int(outside.sum())
    np.testing.assert_allclose(clip.places(200), places, atol=1e-6)
    assert abs(clip.bounces(201) - turns) <= 1
    assert turns > 10


def test_the_object_is_drawn_where_it_is():
    source = BouncingSource("train", (40, 56), 9)
    for row in range(40):
        clip = source.clip(row)
        pixels = clip.render((40, 56), 9).astype(np.float64)
        ink = (255 - pixels).sum(axis=-1)
        if clip.thing.shape in DIGITS or clip.thing.shape == "triangle":
            continue  # whose centre is not that of their ink
        for frame, (x, y) in zip(ink, clip.places(9) * 40, strict=True):
            rows, columns = np.mgrid[:40, :56] + 0.5
            assert (frame * columns).sum() / frame.sum() == pytest.approx(x, abs=0.05)
            assert (frame * rows).sum() / frame.sum() == pytest.approx(y, abs=0.05)


def test_digits_differ_and_stay_within_the_square_of_their_radius():
    side = 101
    grid = (np.arange(side) - side // 2) / 40
    drawn = {digit: covered(digit, 40 * grid, 40 * grid[:, None], 40.0) for digit in DIGITS}
    outside = np.maximum(np.abs(grid), np.abs(grid[:, None])) > 1.02
    for digit, share in drawn.items():
        assert 0.03 < share.mean() < 0.5
        assert not share[outside].any(), digit
        others = [np.abs(share - other).sum() / share.sum() for name, other in drawn.items() if name != digit]
        assert min(others) > 0.1, digit  # a segment


def test_clips_are_the_same_everywhere_and_at_any_size():
    first, again = BouncingSource("train", (32, 32), 17), BouncingSource("train", (64, 64), 17)
    captions = [first.caption(row) for row in range(100)]
    assert captions == [again.caption(row) for row in reversed(range(100))][::-1]
    assert first.clip(7) == again.clip(7)
    halved = again.decode(7, 3).reshape(17, 32, 2, 32, 2, 3).mean((2, 4))
    assert np.abs(halved - first.decode(7, 3)).max() < 80
    digest = hashlib.sha256("\n".join(captions).encode()).hexdigest()[:12]
    assert digest == "0356c50c2e86"  # the version in ``identity`` changes with it


def test_the_data_set():
    config = DataConfig(source="bouncing", limit=12, size=(24, 40), frames=5)
    dataset = open_data(config)
    assert dataset.describe() == "bouncing: 12 clips of 3x5x24x40, no classes, captions"
    images = dataset.load()
    assert images.pixels.shape == (12, 3, 5, 24, 40)
    assert images.read(np.array([3, 1])).shape == (2, 3, 5, 24, 40)
    assert images.captions is not None
    assert open_data(replace(config, frames=9)).fingerprint != dataset.fingerprint
    grey = open_data(replace(config, channels=1)).load()
    assert grey.pixels.shape == (12, 1, 5, 24, 40)
    assert open_data(DataConfig(source="bouncing")).shape == (3, 17, 32, 32)
    assert set(RGB) == set(COLOURS)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (DataConfig(source="bouncing", path="x"), "takes no path"),
        (DataConfig(source="bouncing", flip=True), "left and right"),
        (DataConfig(source="bouncing", size=(32, 12)), "16 or more"),
        (DataConfig(source="bouncing", frames=-1), "frames -1 is negative"),
    ],
)
def test_what_cannot_be_is_one_line(config: DataConfig, message: str):
    with pytest.raises(UserError, match=message):
        open_data(config)


def test_a_motion_that_must_bounce_does_at_any_length_and_ratio():
    for row in range(300):
        clip = BouncingSource("train", (32, 64), 9).clip(row)
        if clip.motion.bounces:
            assert clip.bounces(9) > 0
    slow = Motion("right", "slowly", bounces=True)
    assert slow.phrases() == ["moves right slowly and bounces", "bounces slowly right"]
