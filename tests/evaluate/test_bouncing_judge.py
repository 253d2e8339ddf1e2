"""The judge of clips: its own error, and that it finds every fault."""

from __future__ import annotations

import json
import random
from dataclasses import replace

import numpy as np
import pytest

from ditlab.data.bouncing import OUT_OF_RANGE, Clip, Motion, Thing, draw
from ditlab.evaluate.bouncing import TASKS, ClipPrompt, measure, measure_judge, observe, prompts, score

SIZE = (32, 32)


def clip_of(prompt: ClipPrompt, seed: int = 0, frames: int = 17) -> Clip:
    return draw(prompt.thing, prompt.motion, random.Random(seed), frames)


def passed(prompt: ClipPrompt, clip: Clip | np.ndarray) -> set[str]:
    pixels = clip.render(SIZE, 17) if isinstance(clip, Clip) else clip
    return {task for task, right in score(pixels, prompt).items() if right}


@pytest.mark.parametrize(("size", "frames"), [((32, 32), 17), ((32, 48), 9)])
def test_its_own_error_is_below_half_a_percent(size: tuple[int, int], frames: int):
    scores = measure_judge(size, frames, count=120)
    assert len(scores.scores) == 2 * len(TASKS)
    assert sum(each.count - each.passed for each in scores.scores if each.task == "all") <= 1
    assert json.loads(scores.to_json())["scores"][0]["count"] == 120
    assert [line.split(" | ")[0] for line in scores.table()[2:-1]] == [f"| {task}" for task in TASKS]


def test_prompts_say_what_is_demanded_and_are_held_out_or_not():
    for held_out in (False, True):
        drawn = prompts(100, 0, held_out)
        assert drawn == prompts(100, 0, held_out) != prompts(100, 1, held_out)
        for prompt in drawn:
            assert (prompt.thing.held_out() or prompt.motion.held_out()) == held_out
            assert prompt.thing.colour in prompt.text.split()
            assert prompt.text.endswith("and bounces") == prompt.motion.bounces


@pytest.mark.parametrize("seed", range(6))
def test_each_fault_fails_its_own_task(seed: int):
    rng = random.Random(seed)
    shape = rng.choice(("circle", "square", "triangle", "cross", "ring", "2", "4", "7", "8"))
    prompt = ClipPrompt("", Thing("blue", shape), Motion("right", "fast"))
    right, every = clip_of(prompt, seed), set(TASKS)
    assert passed(prompt, right) == every
    other = "8" if shape == "circle" else "circle"
    assert passed(prompt, replace(right, thing=Thing("red", shape))) == every - {"identity", "all"}
    assert "identity" not in passed(prompt, replace(right, thing=Thing("blue", other)))
    for motion, task in ((Motion("down", "fast"), "direction"), (Motion("right", "slowly"), "speed")):
        assert passed(prompt, clip_of(replace(prompt, motion=motion), seed)) == every - {task, "all"}
    reflected = clip_of(replace(prompt, motion=Motion("right", "fast", bounces=True)), seed)
    assert passed(prompt, reflected) == every - {"bounces", "all"}


def test_a_change_of_identity_in_one_frame_a_jump_and_a_second_object_are_found():
    prompt = ClipPrompt("", Thing("green", "square"), Motion("up", ""))
    clip = clip_of(prompt)
    pixels = clip.render(SIZE, 17)
    changed = pixels.copy()
    changed[8] = replace(clip, thing=Thing("green", "ring")).render(SIZE, 17)[8]
    assert passed(prompt, changed) == set(TASKS) - {"identity", "all"}
    blank = pixels.copy()
    blank[5] = 255
    assert not passed(prompt, blank) & {"identity", "law", "all", "direction"}
    jump = pixels.copy()
    jump[9:] = np.roll(pixels[9:], 6, axis=2)
    assert "law" not in passed(prompt, jump)
    two = np.minimum(pixels, np.roll(pixels, 14, axis=2))
    assert "identity" not in passed(prompt, two)
    assert passed(prompt, np.full_like(pixels, 255)) == set()


def test_shuffled_frames_break_the_law():
    prompt = ClipPrompt("", Thing("black", "3"), Motion("down and right", "fast"))
    pixels = clip_of(prompt).render(SIZE, 17)
    assert "law" not in passed(prompt, pixels[np.random.default_rng(0).permutation(17)])


@pytest.mark.parametrize("speed", OUT_OF_RANGE)
def test_speeds_out_of_range_are_measured(speed: str):
    for direction in ("left", "up and right"):
        clip = draw(Thing("purple", "cross"), Motion(direction, speed), random.Random(1))
        seen = observe(clip.render((64, 64), 17))
        assert seen.speed == pytest.approx(np.hypot(*clip.velocity), rel=0.05)
        assert seen.direction == direction


def test_a_generator_of_noise_scores_nothing():
    noise = np.random.default_rng(0)
    scores = measure(lambda texts: noise.integers(0, 256, (len(texts), 9, 32, 32, 3), np.uint8), count=10)
    assert all(each.passed == 0 for each in scores.scores if each.task in ("identity", "all"))
