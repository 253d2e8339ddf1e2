"""Rendered scenes: captions, pictures, held-out combinations."""

from __future__ import annotations

import hashlib
import math
import random
import re
from collections.abc import Iterable
from dataclasses import replace
from itertools import combinations, permutations, product

import numpy as np
import pytest

from ditlab.data import DataConfig, open_data
from ditlab.data.scene_captions import (
    COLOURS,
    HELD_OUT_PAIRS,
    HELD_OUT_RELATIONS,
    PLACES,
    RELATIONS,
    SHAPES,
    Description,
    Group,
    held_out_relation,
    prompts,
    task_names,
)  # fmt: skip
from ditlab.data.scenes import BACKGROUND, GAP, MARGIN, RADII, RGB, Item, Scene, SceneSource, arrange, relations
from ditlab.errors import UserError

NUMBERS = {"a": 1, "an": 1, "one": 1, "two": 2, "three": 3, "four": 4}
WORDS = {"left": "left of", "right": "right of", "over": "above", "under": "below", "above": "above", "below": "below"}
OBJECT = rf"(a|an|one|two|three|four) (?:(small|large) )?(?:({'|'.join(COLOURS)}) )?({'|'.join(SHAPES)})(e?s)?\b"


@pytest.fixture(scope="module")
def train() -> list[tuple[str, Scene]]:
    """Captions and scenes of training images from all over the split."""
    source = SceneSource("train", (32, 32))
    return [(source.caption(index), source.scene(index)) for index in range(0, 100_000, 33)]


def check_caption(caption: str, scene: Scene) -> None:
    """The caption, read by a grammar of its own, is true of the objects of the scene and mentions all of them."""
    found = list(re.finditer(OBJECT, caption))
    left = list(scene.items)
    firsts = []
    for number, size, colour, shape, plural in (match.groups() for match in found):
        alike = [
            item
            for item in left
            if item.shape == shape and colour in (None, item.colour) and (not size or _size(item) == size)
        ]
        assert len(alike) >= NUMBERS[number], caption
        assert (plural or "") == ("" if NUMBERS[number] == 1 else "es" if shape == "cross" else "s"), caption
        first = size or colour or shape
        assert number not in ("a", "an") or number == ("an" if first == "orange" else "a"), caption
        firsts.append(alike[0])
        for item in alike[: NUMBERS[number]]:
            left.remove(item)
    assert not left, caption
    assert not ("there is" in caption and NUMBERS[found[0][1]] > 1)
    assert not ("there are" in caption and NUMBERS[found[0][1]] == 1)
    if len(found) == 2 and (words := re.search(rf"\b({'|'.join(WORDS)})\b", caption)):
        first, second = firsts
        x, y = second.x - first.x, second.y - first.y
        along = {"left of": x, "right of": -x, "above": y, "below": -y}[WORDS[words[0]]]
        assert along >= first.radius + second.radius + GAP - 1e-9
        assert along >= 1.99 * min(abs(x), abs(y))
    if len(found) == 1 and (place := re.search("|".join(sorted(PLACES, key=len, reverse=True)), caption)):
        (item,) = scene.items
        x, y = item.x / scene.width - 0.5, item.y / scene.height - 0.5
        if place[0] == "in the middle":
            assert max(abs(x), abs(y)) <= 0.04
        for word, offset in (("left", -x), ("right", x), ("top", -y), ("bottom", y)):
            assert word not in place[0] or offset >= 0.12


def _size(item: Item) -> str:
    return "small" if item.radius < 0.195 else "large"


def test_captions_are_true_of_the_scenes_and_in_plain_english(train: list[tuple[str, Scene]]):
    for caption, scene in train:
        check_caption(caption, scene)
    said = {caption for caption, _ in train}
    assert {"a red circle", "there are two red crosses", "three green triangles on a white background"} <= said
    words = set(" ".join(said).split())
    assert words >= {*COLOURS, "small", "large", "one", "two", "three", "four", "an", "left", "right", "above", "below"}


def test_nothing_in_training_is_held_out_and_every_colour_shape_and_relation_is_seen(train: list[tuple[str, Scene]]):
    seen: set[tuple[str, str]] = set()
    related: set[str] = set()
    for caption, scene in train:
        pairs = [(item.colour, item.shape) for item in scene.items]
        assert not HELD_OUT_PAIRS & set(pairs)
        assert not any(f"{colour} {shape}" in caption for colour, shape in HELD_OUT_PAIRS)
        for first, second in permutations(scene.items, 2):
            for relation in relations(first.x - second.x, first.y - second.y, first.radius + second.radius):
                assert not held_out_relation(first.pair, relation, second.pair), caption
        seen |= set(pairs)
        related.add(scene.description.relation)
    assert seen == set(product(COLOURS, SHAPES)) - HELD_OUT_PAIRS
    assert related == {"", *RELATIONS}


def test_the_test_split_has_held_out_combinations():
    source = SceneSource("test", (32, 32))
    scenes = [source.scene(index) for index in range(400)]
    held_out = [scene for scene in scenes if any(item.pair in HELD_OUT_PAIRS for item in scene.items)]
    assert len(held_out) > 80
    assert any(scene.description.relation and scene.description.held_out() for scene in scenes if scene not in held_out)
    assert len(held_out) < 250


def test_the_held_out_sets_are_fixed_and_leave_every_pair_some_arrangement():
    listed = "\n".join(" ".join((*first, relation, *second)) for first, relation, second in sorted(HELD_OUT_RELATIONS))
    assert len(HELD_OUT_RELATIONS) == 287
    assert hashlib.sha256(listed.encode()).hexdigest()[:12] == "577583989931"
    assert {colour for colour, _ in HELD_OUT_PAIRS} == set(COLOURS)
    assert {shape for _, shape in HELD_OUT_PAIRS} == set(SHAPES)
    known = set(product(COLOURS, SHAPES)) - HELD_OUT_PAIRS
    for first, second in combinations(known, 2):
        assert not all(held_out_relation(first, relation, second) for relation in RELATIONS)
        assert held_out_relation(first, "left of", second) == held_out_relation(second, "right of", first)
        assert held_out_relation(first, "above", second) == held_out_relation(second, "below", first)


def test_objects_never_touch_nor_leave_the_picture():
    for size in ((32, 32), (32, 80), (96, 64)):
        source = SceneSource("test", size)
        for scene in map(source.scene, range(150)):
            assert min(scene.height, scene.width) == 1
            for item in scene.items:
                assert item.x - item.radius + 1e-9 >= MARGIN
                assert item.y - item.radius + 1e-9 >= MARGIN
                assert item.x + item.radius + MARGIN <= scene.width + 1e-9
                assert item.y + item.radius + MARGIN <= scene.height + 1e-9
            for first, second in combinations(scene.items, 2):
                apart = math.hypot(first.x - second.x, first.y - second.y)
                assert apart >= first.radius + second.radius + GAP - 1e-9


def _inside(shape: str, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Whether points are in a shape of radius 1."""
    square = x**2 + y**2
    if shape == "triangle":  # barycentric coordinates of the corners at 90, 210 and 330 degrees
        corners = [(math.cos(math.radians(angle)), -math.sin(math.radians(angle))) for angle in (90, 210, 330)]
        return np.all([2 / 3 * (x * a + y * b) + 1 / 3 >= 0 for a, b in corners], 0)
    return {
        "circle": square <= 1,
        "ring": (square <= 1) & (square >= 0.25),
        "square": (2 * x**2 <= 1) & (2 * y**2 <= 1),
        "cross": ((abs(x) <= 0.94) & (abs(y) <= 0.34)) | ((abs(x) <= 0.34) & (abs(y) <= 0.94)),
    }[shape]


@pytest.mark.parametrize("shape", SHAPES)
def test_pictures_equal_a_supersampled_reference(shape: str):
    rng, fine = random.Random(0), 16
    for size in ((32, 32), (48, 64)):
        scene = arrange(Description((Group(shape, "blue"),)), rng, size[0] / min(size), size[1] / min(size))
        (item,) = scene.items
        y, x = ((np.arange(side * fine) + 0.5) / fine / min(size) for side in size)
        inside = _inside(shape, (x - item.x) / item.radius, ((y - item.y) / item.radius)[:, None])
        share = inside.reshape(size[0], fine, size[1], fine).mean((1, 3))[..., None]
        expected = np.array(BACKGROUND) + share * (np.array(RGB["blue"]) - np.array(BACKGROUND))
        off = np.abs(scene.render(size) - expected)
        assert off.max() < 64  # at a corner
        assert off.sum() < 0.03 * (255 - expected).sum()


def test_scenes_are_the_same_everywhere_and_at_any_size():
    first, again = SceneSource("train", (32, 32)), SceneSource("train", (64, 64))
    captions = [first.caption(index) for index in range(200)]
    assert captions == [again.caption(index) for index in reversed(range(200))][::-1]
    assert first.scene(7) == again.scene(7)
    halved = again.decode(7, 3).reshape(32, 2, 32, 2, 3).mean((1, 3))
    assert np.abs(halved - first.decode(7, 3)).max() < 64
    assert (
        hashlib.sha256("\n".join(captions).encode()).hexdigest()[:12] == "180ef75e5881"
    )  # the version changes with it
    ink = np.stack([first.decode(index, 3) for index in range(64)]).astype(np.float64).mean()
    assert ink == pytest.approx(230.5164, abs=1e-2)


def test_short_captions_say_half_of_the_same_scenes_and_only_what_is_true():
    full, short = SceneSource("train", (32, 32)), SceneSource("train", (32, 32), "short")
    rows = range(0, 100_000, 97)
    captions = [short.caption(row) for row in rows]
    assert captions == [short.caption(row) for row in rows]
    for row, caption in zip(rows, captions, strict=True):
        assert short.scene(row) == full.scene(row)
        check_caption(caption, short.scene(row))

    def said(source: SceneSource, words: Iterable[str]) -> int:
        return sum(len(re.findall(rf"\b({'|'.join(words)})\b", source.caption(row))) for row in rows)

    for words in (COLOURS, ("small", "large"), WORDS):
        assert 0.4 < said(short, words) / said(full, words) < 0.6, words
    assert said(short, [f"{shape}(?:e?s)?" for shape in SHAPES]) == said(full, [f"{shape}(?:e?s)?" for shape in SHAPES])


def test_the_caption_option_chooses_the_captions():
    read = {
        name: open_data(DataConfig(source="scenes", limit=20, caption=name)) for name in ("", "full", "short", "none")
    }
    captions = {name: dataset.load().captions for name, dataset in read.items()}
    assert captions[""] == captions["full"] != captions["short"]
    assert captions["none"] is None
    assert read["none"].describe() == "scenes: 20 images of 3x32x32, no classes"
    with pytest.raises(UserError, match=r"no captions 'shorter' \(--data.caption\); did you mean 'short'"):
        open_data(DataConfig(source="scenes", caption="shorter"))


def test_the_data_set():
    config = DataConfig(source="scenes", limit=20, size=(24, 40))
    dataset = open_data(config)
    assert dataset.describe() == "scenes: 20 images of 3x24x40, no classes, captions"
    images = dataset.load()
    assert images.pixels.shape == (20, 3, 24, 40)
    assert images.captions is not None
    source = dataset.source
    assert isinstance(source, SceneSource)
    row = next(row for row in range(100_000) if (source.caption(row),) == images.captions[3])
    assert row < 100_000
    assert (255 - images.pixels).any((1, 2, 3)).all()
    assert len(open_data(DataConfig(source="scenes", split="test"))) == 5_000
    assert open_data(replace(config, split="test")).fingerprint != dataset.fingerprint
    assert open_data(config).info == dataset.info


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (DataConfig(source="scenes", path="x"), "takes no path"),
        (DataConfig(source="scenes", flip=True), "left and right"),
        (DataConfig(source="scenes", size=(32, 12)), "16 or more"),
    ],
)
def test_what_cannot_be_is_one_line(config: DataConfig, message: str):
    with pytest.raises(UserError, match=message):
        open_data(config)


@pytest.mark.parametrize("held_out", [False, True])
@pytest.mark.parametrize("task", task_names())
def test_prompts(task: str, held_out: bool):
    drawn = prompts(task, 100, seed=3, held_out=held_out)
    assert drawn == prompts(task, 100, seed=3, held_out=held_out)
    assert drawn[:10] == prompts(task, 10, seed=3, held_out=held_out)
    assert drawn != prompts(task, 100, seed=4, held_out=held_out)
    for text, expected in ((prompt.text, prompt.expected) for prompt in drawn):
        pairs = [(colour, shape) for _, _, colour, shape, _ in re.findall(OBJECT, text)]
        assert (
            len(pairs)
            == len(expected.groups)
            == (2 if task in ("two objects", "position", "colour attribution") else 1)
        )
        assert [shape for _, shape in pairs] == [group.shape for group in expected.groups]
        known = not HELD_OUT_PAIRS & set(pairs)
        assert known == (not held_out or task == "position")
        if task == "position":
            assert held_out_relation(pairs[0], expected.relation, pairs[1]) == held_out
        if task in ("single object", "two objects"):
            assert not any(group.colour for group in expected.groups)
        else:
            assert [colour for colour, _ in pairs] == [group.colour for group in expected.groups]
        if task == "counting":
            assert expected.groups[0].count in (2, 3, 4)


def test_the_radii_leave_room_for_two_large_objects_in_a_row():
    assert 4 * RADII["large"][1] + GAP + 2 * MARGIN < 1
