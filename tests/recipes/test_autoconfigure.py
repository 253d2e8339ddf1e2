"""What recipes leave open is chosen for the machine, logged, and kept by a run that resumes."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from ditlab.recipes import Recipe, autoconfigure, find_recipe
from ditlab.recipes.autoconfigure import CPU_MODEL, CPU_SECONDS, LEAST, MOST, fit_to_machine
from ditlab.recipes.recipe import save_recipe
from ditlab.runtime.distributed import ALONE
from ditlab.train import Task
from ditlab.train.timing import time_images

CPU, GPU = torch.device("cpu"), torch.device("cuda")
FOLDER = find_recipe("folder")[0]


def chosen(out: Path | None = None, recipe: Recipe = FOLDER, device: torch.device = CPU) -> tuple[Recipe, str]:
    lines: list[str] = []
    found = autoconfigure(recipe, device, lines.append, open_size=True, open_model=True, out=out)
    return found, "\n".join(lines)


def test_a_cpu_gets_a_smaller_network_than_a_gpu():
    small, line = chosen()
    assert {name: getattr(small.model, name) for name in CPU_MODEL} == CPU_MODEL
    assert "depth 6 (--model.depth), width 128 (--model.width), heads 4 (--model.heads)" in line
    assert small.train.images == 0  # chosen when the images are known
    large, _ = chosen(device=GPU)
    assert (large.model, large.train.images) == (FOLDER.model, MOST)
    kept = autoconfigure(FOLDER, CPU, print, open_size=True)
    assert kept.model == FOLDER.model


def test_a_run_keeps_what_was_chosen_at_its_start_on_whatever_device(tmp_path: Path):
    started, _ = chosen()
    started = replace(started, train=replace(started.train, images=70_400))
    save_recipe(started, tmp_path)
    for device in (CPU, GPU):
        again, line = chosen(tmp_path, device=device)
        assert again == started
        assert line.startswith("chosen at the start of this run: size 32")
    longer = replace(FOLDER, train=replace(FOLDER.train, images=128_000, batch=32))
    again, _ = chosen(tmp_path, longer)
    assert (again.train.images, again.train.batch) == (128_000, 32)


class Timed:
    """What ``fit_to_machine`` returns and logs where a training image takes so many seconds with a number of threads."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, **seconds: float):
        times = {int(name.removeprefix("threads_")): value for name, value in seconds.items()}
        monkeypatch.setitem(fit_to_machine.__globals__, "time_images", lambda *_: times)

    def __call__(self, recipe: Recipe, out: Path, device: torch.device = CPU) -> tuple[Recipe, float, str]:
        lines: list[str] = []
        task: Task = None  # type: ignore[assignment] # not timed
        fitted, first = fit_to_machine(recipe, task, out, device, ALONE, lines.append)
        return fitted, first, "\n".join(lines)


def test_the_length_takes_half_an_hour_and_time_pictures_and_a_quicker_command_are_logged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    recipe, _ = chosen()
    fitted, first, lines = Timed(monkeypatch, threads_1=0.02, threads_2=0.1)(recipe, tmp_path)
    assert fitted == replace(recipe, train=replace(recipe.train, images=89_600))
    assert 89_600 * 0.02 <= CPU_SECONDS < (89_600 + 6_400) * 0.02
    assert first == pytest.approx(64 * 25 * 2 * 0.02 / 3 * 4)  # four times what 64 samples of 25 Heun steps take
    assert lines == (
        "CPU threads: 1 (--train.threads); a step takes 1.3 s with 1 and 6.4 s with 2\n"
        "estimated time: 30 min for 89,600 images chosen for this machine (--train.images) at 50 images/s; first picture "
        f"after 85 s, in {tmp_path / 'samples'}\n"
        "quicker: the same command with --train.images 17920, about 6 min"
    )


@pytest.mark.parametrize(("seconds", "images"), [(10.0, LEAST), (1e-6, MOST)])
def test_the_length_has_bounds(seconds: float, images: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    recipe, _ = chosen()
    fitted, _, lines = Timed(monkeypatch, threads_2=seconds)(recipe, tmp_path)
    assert fitted.train.images == images
    assert "CPU threads" not in lines
    assert ("quicker" in lines) == (seconds > 1)


def test_a_length_that_is_set_stays_and_a_gpu_or_a_checkpoint_is_not_timed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    recipe, _ = chosen()
    timed = Timed(monkeypatch, threads_1=0.5)
    given = replace(recipe, train=replace(recipe.train, images=640))
    fitted, _, lines = timed(given, tmp_path)
    assert fitted == given
    assert "5 min for 640 images at 2 images/s; first picture after 5 min" in lines
    assert timed(recipe, tmp_path, GPU)[0].train.images == MOST
    (tmp_path / "checkpoints" / "000000000064").mkdir(parents=True)
    assert timed(given, tmp_path) == (given, 60, "")


def test_the_time_of_a_step_is_measured_and_training_is_not_changed_by_it(
    tmp_path: Path, tiny: list[str], ditlab: Callable, tree: Callable, monkeypatch: pytest.MonkeyPatch
):
    """Two threads, timed or set: the same choice gives the same bits."""
    before = torch.get_num_threads()
    monkeypatch.setattr("ditlab.runtime.threads.ALL", 2)
    try:
        counts: list[dict[int, float]] = []

        def watched(*arguments) -> dict[int, float]:
            counts.append(time_images(*arguments))
            return counts[-1]

        monkeypatch.setitem(fit_to_machine.__globals__, "time_images", watched)
        monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
        short = [*tiny, "--train.images", 64]
        timed = ditlab("train", "digits", *short, "--out", tmp_path / "timed")
        assert (timed.code, timed.err) == (0, "")
        fast = torch.get_num_threads()
        assert f"CPU threads: {fast} (--train.threads); a step takes" in timed.out
        assert set(counts[0]) == {1, 2}
        assert all(0 < seconds < 1 for seconds in counts[0].values())
        given = ditlab("train", "digits", *short, "--train.threads", fast, "--out", tmp_path / "given")
        assert (given.code, given.err) == (0, "")
        assert "CPU threads" not in given.out
        assert set(counts[1]) == {fast}
        timed_files, given_files = tree(tmp_path / "timed"), tree(tmp_path / "given")
        assert timed_files["model.safetensors"] == given_files["model.safetensors"]
    finally:
        torch.set_num_threads(before)


def test_encode_says_which_autoencoder_it_trains_and_for_how_long_before_it_does(
    tmp_path: Path, kl_recipe: Path, ditlab: Callable
):
    flags = ["--autoencoder-train.images", 64, "--data.limit", 64, "--out", tmp_path / "run"]
    ended = ditlab("encode", kl_recipe, *flags)
    assert (ended.code, ended.err) == (0, "")
    lines = [
        line
        for line in ended.out.splitlines()
        if not line.startswith(("CPU threads", "digits: ", "classes: ", "images: "))
    ]
    assert re.fullmatch(r"autoencoder to train: 1x8x8 to 2x4x4, [\d,]+ parameters, 2 steps of 32 images", lines[0])
    assert re.fullmatch(r"estimated time: \d+ s for 64 images at .* images/s; first picture after .*", lines[1])
    assert [line.split(":")[0] for line in lines[2:]] == ["autoencoder", "latents", "latents"]
    again = ditlab("encode", kl_recipe, *flags)
    assert "to train" not in again.out
