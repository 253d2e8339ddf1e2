"""The judge of generated scenes: right on real ones, strict on others, and how it counts."""

from __future__ import annotations

import json
import random
from dataclasses import replace

import numpy as np
import pytest
from scipy import ndimage

from ditlab.data.scene_captions import COLOURS, RELATIONS, SHAPES, Description, Group, Prompt, prompts
from ditlab.data.scenes import RGB, SceneSource, arrange
from ditlab.errors import UserError
from ditlab.evaluate import scenes
from ditlab.evaluate.scenes import ScenesJudge, TaskScore, matches, measure, measure_judge, parse, render, tasks

OPPOSITE = {"left of": "right of", "right of": "left of", "above": "below", "below": "above"}


@pytest.mark.parametrize(("size", "count"), [((32, 32), 200), ((64, 64), 50), ((32, 56), 50)])
def test_the_judge_passes_real_scenes_of_every_task(size: tuple[int, int], count: int):
    scores = measure_judge(size, count, seed=1, noise=8)
    assert len(scores.scores) == 12
    assert sum(score.count for score in scores.scores) == 12 * count
    assert sum(score.count - score.passed for score in scores.scores) < 0.005 * 12 * count


@pytest.fixture(scope="module")
def real() -> list[Prompt]:
    """Prompts of all tasks, colours named in all."""
    drawn = [prompt for task in tasks() for held_out in (False, True) for prompt in prompts(task, 12, 2, held_out)]
    return [prompt for prompt in drawn if prompt.expected.groups[0].colour]


def test_captions_of_the_test_split_are_true_of_the_pixels():
    for size in ((32, 32), (48, 32)):
        source = SceneSource("test", size)
        height, width = (side / min(size) for side in size)
        parsed = parse(np.stack([source.decode(index, 3) for index in range(400)]))
        for index, items in enumerate(parsed):
            scene = source.scene(index)
            assert matches(items, scene.description, height, width), source.caption(index)
            order = sorted(items, key=lambda item: (item.x, item.y))
            for item, true in zip(order, sorted(scene.items, key=lambda item: (item.x, item.y)), strict=True):
                assert (item.colour, item.shape) == true.pair
                assert (item.x, item.y, item.radius) == pytest.approx((true.x, true.y, true.radius), abs=0.012)


def score(images: np.ndarray, *expected: Description) -> list[bool]:
    return ScenesJudge.score(images, [Prompt("", each) for each in expected]).tolist()


def drawn(*descriptions: Description, size: tuple[int, int] = (32, 32)) -> np.ndarray:
    return render([Prompt("", each) for each in descriptions], size, seed=3)


def test_another_colour_shape_or_number_fails(real: list[Prompt]):
    images = render(real, (32, 32))
    expected = [prompt.expected for prompt in real]
    assert all(score(images, *expected))

    def with_first(each: Description, **changes: object) -> Description:
        return replace(each, groups=(replace(each.groups[0], **changes), *each.groups[1:]))

    def following(values: tuple[str, ...], value: str) -> str:
        return values[(values.index(value) + 1) % len(values)]

    colour = [with_first(each, colour=following(COLOURS, each.groups[0].colour)) for each in expected]
    shape = [with_first(each, shape=following(SHAPES, each.groups[0].shape)) for each in expected]
    more = [with_first(each, count=each.groups[0].count + 1) for each in expected if not each.relation]
    fewer = [with_first(each, count=each.groups[0].count - 1) for each in expected if each.groups[0].count > 1]
    assert not any(score(images, *colour))
    assert not any(score(images, *shape))
    assert not any(score(images[[not each.relation for each in expected]], *more))  # one object missing
    assert not any(score(images[[each.groups[0].count > 1 for each in expected]], *fewer))  # n + 1 objects


def test_every_pair_of_colour_and_shape_is_recognised_as_itself_only():
    groups = [Description((Group(shape, colour),)) for colour in COLOURS for shape in SHAPES]
    images = drawn(*groups)
    table = np.array([score(np.stack([image] * len(groups)), *groups) for image in images])
    assert (table == np.eye(len(groups), dtype=bool)).all()


def test_swapped_attributes_and_other_relations_fail(real: list[Prompt]):
    two = [each.expected for each in real if len(each.expected.groups) == 2]
    images = drawn(*two)
    swapped = []
    for each in two:
        first, second = each.groups
        pair = replace(first, colour=second.colour), replace(second, colour=first.colour)
        swapped.append(replace(each, groups=pair))
    same = [first.groups[0].colour == first.groups[1].colour for first in two]
    assert score(images, *swapped) == same
    related = [each for each in two if each.relation]
    images = drawn(*related)
    assert {each.relation for each in related} == set(RELATIONS)
    for other in RELATIONS:
        wrong = [replace(each, relation=other) for each in related]
        assert score(images, *wrong) == [each.relation == other for each in related]
    turned = [replace(each, groups=each.groups[::-1], relation=OPPOSITE[each.relation]) for each in related]
    assert all(score(images, *turned))


def test_sizes_and_places():
    places = ("in the top left", "on the right", "in the middle", "at the bottom")
    groups = [
        Description((Group("ring", "blue", size=size, place=place),)) for size in ("small", "large") for place in places
    ]
    images = drawn(*groups, size=(40, 64))
    table = np.array([score(np.stack([image] * len(groups)), *groups) for image in images])
    same_size = np.repeat(np.repeat(np.eye(2, dtype=bool), 4, 0), 4, 1)
    assert table.diagonal().all()
    assert not table[~same_size].any()
    assert not table[0, 1:4].any()
    assert not table[2, [0, 1, 3]].any()


RED = Description((Group("circle", "red"),))


def test_what_is_no_clear_picture_fails():
    image = arrange(Description((Group("circle", "red", size="small"),)), random.Random(0)).render((32, 32))
    generator = np.random.default_rng(0)
    mess = np.stack([ndimage.gaussian_filter(generator.normal(size=(32, 32)), 3) for _ in range(60)])
    mess = np.clip((mess / mess.std() - 1) * 4, 0, 1)[..., None]
    blobs = np.rint(255 + mess * (np.array(RGB["red"]) - 255)).astype(np.uint8)
    tiny = np.full_like(image, 255)
    tiny[8:24, 8:24] = image[::2, ::2]
    for name, bad in {
        "white": np.full_like(image, 255),
        "black": np.zeros_like(image),
        "red": np.broadcast_to(np.array(RGB["red"], np.uint8), image.shape),
        "noise": generator.integers(0, 256, image.shape, np.uint8),
        "blurred": ndimage.gaussian_filter(image.astype(float), (4, 4, 0)).astype(np.uint8),
        "gray": np.where(image == 255, 255, 128).astype(np.uint8),
        "faded": (255 - 0.4 * (255.0 - image)).astype(np.uint8),
        "half": np.where(np.arange(32)[:, None] < np.nonzero(image < 255)[1].mean(), 255, image),
        "tiny": tiny,
    }.items():
        for shape in SHAPES:
            assert score(bad[None], Description((Group(shape, "red"),))) == [False], name
    assert np.mean(score(blobs, *[RED] * 60)) < 0.05


def test_grayscale_is_refused():
    with pytest.raises(UserError, match="RGB"):
        score(np.zeros((1, 32, 32, 1), np.uint8), RED)


def test_a_faint_second_object_fails_and_specks_noise_and_slight_blur_do_not():
    image = arrange(
        replace(RED, groups=(Group("circle", "red", size="small", place="in the top left"),)), random.Random(0)
    )
    picture = image.render((32, 32)).astype(float)
    ghost = picture.copy()
    ghost[20:28, 20:28] -= 0.4 * (255 - np.array(RGB["blue"]))
    block = picture.copy()
    block[24:28, 24:27] = RGB["green"]
    speck = picture.copy()
    speck[25:27, 25:27] = RGB["green"]
    noisy = picture + np.random.default_rng(0).normal(0, 16, picture.shape)
    blurred = ndimage.gaussian_filter(picture, (0.7, 0.7, 0))
    pale = 255 - 0.85 * (255 - picture)
    images = np.clip(np.rint(np.stack([ghost, block, speck, noisy, blurred, pale])), 0, 255).astype(np.uint8)
    assert score(images, *[RED] * 6) == [False, False, True, True, True, True]


def test_a_diagonal_has_both_relations_and_its_middle_is_no_corner():
    images = []
    for offset in (0.25, 0.02):  # below and right of, nearly level
        scene = arrange(Description((Group("circle", "red"), Group("square", "blue"))), random.Random(0))
        first = replace(scene.items[0], x=0.25, y=0.3, radius=0.17)
        second = replace(scene.items[1], x=0.65, y=0.3 + offset * 1.5, radius=0.17)
        images.append(replace(scene, items=(first, second)).render((32, 32)))
    groups = Group("circle", "red"), Group("square", "blue")
    for image, true in zip(images, ({"left of", "above"}, {"left of"}), strict=True):
        assert {each for each in RELATIONS if score(image[None], Description(groups, each))[0]} == true


def test_components_equal_scipys():
    colours = np.random.default_rng(0).integers(0, 3, (20, 17, 23))
    labels = scenes._components(colours)
    for image, found in zip(colours, labels, strict=True):
        count = 0
        for colour in (1, 2):
            expected = np.zeros(image.shape, np.int32)
            ndimage.label(image == colour, np.ones((3, 3)), output=expected)
            pairs = np.unique(np.stack([expected[image == colour], found[image == colour]]), axis=1)
            assert pairs.shape[1] == expected.max() == len(np.unique(pairs[1]))
            count += pairs.shape[1]
        assert len(np.unique(found[image > 0])) == count
        assert not found[image == 0].any()
    assert not scenes._components(np.zeros((2, 5, 5), int)).any()
    assert (scenes._components(np.ones((1, 5, 5), int)) == 1).all()


def test_measure_reports_all_tasks():
    asked: list[list[str]] = []

    def generate(texts: list[str]) -> np.ndarray:  # red circles, whatever the prompts are
        asked.append(texts)
        return np.concatenate([drawn(RED)] * len(texts))

    scores = measure(generate, count=40, seed=5)
    assert [len(texts) for texts in asked] == [40] * 12
    assert asked[0] == [prompt.text for prompt in prompts("single object", 40, 5, False)]
    right = sum(prompt.expected == RED for prompt in prompts("colours", 40, 5, False))
    assert scores.get("colours").passed == right
    assert scores.get("colours", held_out=True).passed == scores.get("counting").passed == 0
    assert scores.get("single object").passed == sum("circle" in text for text in asked[0]) > 0
    assert scores.mean() == pytest.approx(np.mean([score.share for score in scores.scores if not score.held_out]))
    record = json.loads(scores.to_json())
    assert record["seed"] == 5
    assert record["scores"][3]["task"] == "colours"
    assert record["scores"][3]["interval"] == list(scores.get("colours").interval)
    lines = scores.table()
    assert lines[0] == "| task | seen, % | held out, % |"
    assert [line.split(" | ")[0] for line in lines[2:-1]] == [f"| {name}" for name in (*tasks(), "mean")]


@pytest.mark.parametrize(
    ("passed", "count", "interval"),
    [(0, 10, (0, 0.2775)), (5, 10, (0.2366, 0.7634)), (10, 10, (0.7225, 1)), (81, 263, (0.2553, 0.3662))],
)  # the last from Newcombe 1998, table I
def test_wilsons_interval(passed: int, count: int, interval: tuple[float, float]):
    assert TaskScore("colours", False, passed, count).interval == pytest.approx(interval, abs=1e-4)
